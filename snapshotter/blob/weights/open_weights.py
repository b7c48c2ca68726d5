"""Files of weights that workers of this node read now, each once however many read it."""

import base64
import binascii
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any, Final

import structlog
from pydantic import ValidationError

from infra.contracts.revision import ResolvedSource, SourceFile
from infra.errors import Invalid, SourceUnavailable, StoreUnavailable
from infra.json_socket import Verb
from infra.sources.piece_digests import PieceDigests
from infra.sources.port import Remote
from snapshotter.blob.blob import Blob
from snapshotter.blob.fetcher import Fetcher
from snapshotter.blob.peers.peering import Sharing
from snapshotter.blob.source import ChunkSource
from snapshotter.blob.stored_blob import BlobRef
from snapshotter.blob.weights.origin import WeightsOrigin
from snapshotter.blob.weights.proven import ProvenWeights
from snapshotter.blob.weights.table import NOT_PROVEN, blob_name, digests_in, weights_ref
from snapshotter.index.chunk_table import Chunk

log = structlog.get_logger()

_HEAR_S: Final = 0.1  # how often, while weights stream, to hear who else streams them
_ALONE_S: Final = 600.0
_MOST_BYTES: Final = 64 << 20  # of one question


@dataclass(slots=True)
class _Opened:
    """One file and how many connections read it."""

    blob: Blob
    origin: WeightsOrigin
    readers: int = 0
    heard_at: float = -math.inf


class OpenWeights:
    """The store's side of infra.sources.node_chunks; any thread may use it.

    Nobody knows the digests of a file's pieces before one node has proven the whole: until then
    who reads here proves the whole, and says so when it is not what was pinned. Then all that is
    here of it is dropped, and for ten minutes it is read from its origin alone. From then on every
    piece is verified when it comes.
    """

    def __init__(
        self,
        remote: Callable[[ResolvedSource], Remote],
        fetcher: Fetcher,
        sharing: Sharing,
        proven: ProvenWeights,
        *,
        deadline_s: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._remote = remote
        self._fetcher = fetcher
        self._sharing = sharing
        self._proven = proven
        self._deadline_s = deadline_s
        self._now = now
        self._lock = Lock()  # guards what follows
        self._opened: dict[str, _Opened] = {}
        self._distrusted_until: dict[str, float] = {}

    @contextmanager
    def verbs(self) -> Iterator[Mapping[str, Verb]]:
        """For one connection: `open` {source, file} → the path of its bytes; `bring` {file, offset,
        length} → bytes by where they came from, now that all are at the path; `distrust` {file}.
        Of files that need not be open: `digests` {source, file} → those of its pieces in base64,
        if any node has proven it; `prove` {source, file, digests}: this one has.
        """
        mine: dict[str, str] = {}

        def opened(question: Mapping[str, Any]) -> str:
            name = mine.get(_text(question, "file"))
            if name is None:
                raise Invalid("the file has not been opened")
            return name

        def open_file(question: Mapping[str, Any]) -> str:
            path = _text(question, "file")
            if path not in mine:
                mine[path] = self._open(*_pinned(question, path))
            return str(self._fetcher.store.data_path(mine[path]))

        try:
            yield {
                "open": open_file,
                "bring": lambda question: self._bring(opened(question), question),
                "distrust": lambda question: self._distrust(opened(question)),
                "digests": self._tell_digests,
                "prove": self._prove,
            }
        finally:
            for name in mine.values():
                self._close(name)

    def _open(self, source: ResolvedSource, file: SourceFile) -> str:
        ref = weights_ref(source, file, self._digests(source, file))
        with self._lock:
            opened = self._opened.get(ref.digest)
            if opened is None:
                origin = WeightsOrigin(self._remote(source), file)
                sources = self._sources(ref, origin)
                blob = Blob(ref, sources, self._fetcher, deadline_s=self._deadline_s)
                opened = self._opened[ref.digest] = _Opened(blob, origin)
            opened.readers += 1
        self._sharing.opened(opened.blob)
        return ref.digest

    def _digests(self, source: ResolvedSource, file: SourceFile) -> PieceDigests:
        """What is known of the file's pieces, here or among all nodes."""
        name = blob_name(source, file)
        stored = self._fetcher.store.blobs().get(name)
        here = NOT_PROVEN if stored is None else digests_in(stored.table)
        try:
            return PieceDigests.of(self._proven.find(name), size=file.size) or here
        except StoreUnavailable as error:
            log.info("weights.digests_unavailable", detail=error.detail)
            return here

    def _tell_digests(self, question: Mapping[str, Any]) -> str:
        found = self._digests(*_pinned(question, _text(question, "file")))
        return base64.b64encode(found.packed).decode()

    def _prove(self, question: Mapping[str, Any]) -> None:
        source, file = _pinned(question, _text(question, "file"))
        try:
            packed = base64.b64decode(_text(question, "digests"), validate=True)
        except binascii.Error as error:
            raise Invalid("the digests are not base64") from error
        digests = PieceDigests.of(packed, size=file.size)
        if not digests:
            raise Invalid(f"{len(packed)} bytes of digests for {file.size} bytes")
        self._fetcher.store.learn(weights_ref(source, file, digests))
        try:
            self._proven.add(blob_name(source, file), packed)
        except StoreUnavailable as error:
            log.info("weights.digests_not_shared", detail=error.detail)

    def _sources(self, ref: BlobRef, origin: WeightsOrigin) -> Sequence[ChunkSource]:
        def is_trusted() -> bool:
            return self._now() >= self._distrusted_until.get(ref.digest, 0.0)

        return [
            source if source is origin else _WhileTrusted(source, is_trusted)
            for source in self._sharing.before(ref, origin)
        ]

    def _bring(self, name: str, question: Mapping[str, Any]) -> Mapping[str, int]:
        offset, length = question.get("offset"), question.get("length")
        if not (isinstance(offset, int) and isinstance(length, int)):
            raise Invalid("the range is no two numbers")
        opened = self._opened[name]
        if offset < 0 or not 0 < length <= _MOST_BYTES or offset + length > opened.blob.size:
            raise Invalid(f"bytes {offset} to {offset + length} are not in the file")
        self._hear(opened)
        try:
            return opened.blob.bring(offset, length)
        except OSError as error:
            raise SourceUnavailable(f"cannot bring {name}: {error.strerror}") from error

    def _hear(self, opened: _Opened) -> None:
        """Has the directory asked who else reads the file, and waits for nothing."""
        now = self._now()
        if now - opened.heard_at >= _HEAR_S:
            opened.heard_at = now
            self._sharing.hear()

    def _distrust(self, name: str) -> None:
        log.error("weights.distrusted", blob=name)
        self._distrusted_until[name] = self._now() + _ALONE_S
        self._fetcher.store.empty(name)

    def _close(self, name: str) -> None:
        with self._lock:
            opened = self._opened[name]
            opened.readers -= 1
            if opened.readers:
                return
            del self._opened[name]
            self._sharing.closed(name)
            opened.blob.close()
        opened.origin.close()


class _WhileTrusted:
    """Other nodes' chunks, as long as nobody has found the whole to be wrong."""

    def __init__(self, source: ChunkSource, is_trusted: Callable[[], bool]) -> None:
        self.name = source.name
        self._source = source
        self._is_trusted = is_trusted

    def chunks(self, run: Sequence[Chunk]) -> Iterator[bytes]:
        if not self._is_trusted():
            raise SourceUnavailable("the file was not what was pinned")
        return self._source.chunks(run)


def _pinned(question: Mapping[str, Any], path: str) -> tuple[ResolvedSource, SourceFile]:
    try:
        source = ResolvedSource.model_validate(question.get("source"))
    except ValidationError as error:
        raise Invalid(f"the source is malformed in {error.error_count()} places") from error
    file = next((file for file in source.files if file.path == path), None)
    if file is None:
        raise Invalid(f"the source has no {path[:100]!a}")
    return source, file


def _text(question: Mapping[str, Any], name: str) -> str:
    value = question.get(name)
    if not isinstance(value, str):
        raise Invalid(f"{name} is no text")
    return value
