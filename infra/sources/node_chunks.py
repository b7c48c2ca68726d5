"""Weights out of the node's chunk store, which has them, or gets them from other nodes."""

import base64
import os
import socket
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import structlog

from infra.contracts.revision import ResolvedSource, SourceFile
from infra.errors import Invalid, SourceUnavailable
from infra.json_socket import receive, send
from infra.sources.digests import WholeDigest
from infra.sources.port import Packed, RangeReader, Remote, Share, unshared

log = structlog.get_logger()

CACHE: Final = "cache"
PEER: Final = "peer"
_CONNECT_S: Final = 2.0
_ANSWER_S: Final = 60.0  # longer than the store itself waits for its sources
_DIGESTS_S: Final = 3.0  # for what the store need not have, longer than it waits for Redis


def share_through(path: Path | None) -> Share:
    """By way of the node's store, where it has one."""
    return unshared if path is None else NodeChunks(path).share


class NodeChunks:
    """Puts the store that answers on a socket before a remote source.

    Whatever the store does not give is read from the source, as if there were no store. Only
    files are asked of it whose digest can be computed: what a neighbour gave wrongly shows.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def share(self, resolved: ResolvedSource, remote: Remote) -> Remote:
        """See infra.sources.port.Share."""
        source = resolved.model_dump(mode="json")
        tally = _Tally(remote.came_from)

        def open_reader() -> RangeReader:
            return _StoreReader(self._path, source, remote.open_reader(), tally)

        def on_damage(file: SourceFile) -> None:
            log.warning("weights.damaged", path=file.path, source=resolved.uri)
            with suppress(OSError, Invalid, SourceUnavailable), _Store(self._path, source) as store:
                store.distrust(file.path)
            remote.on_damage(file)

        def known(file: SourceFile) -> Packed:
            if not WholeDigest(file).is_known:
                return remote.known(file)
            try:
                with _Store(self._path, source, answer_s=_DIGESTS_S) as store:
                    found = store.digests(file.path)
            except (OSError, ValueError, Invalid, SourceUnavailable) as error:
                log.info("weights.digests_not_in_store", path=file.path, why=str(error)[:200])
                found = b""
            return found or remote.known(file)

        def on_proof(file: SourceFile, digests: Packed) -> None:
            remote.on_proof(file, digests)
            if not WholeDigest(file).is_known:  # what was pinned by its ETag is no proof to others
                return
            with suppress(OSError, Invalid, SourceUnavailable), _Store(self._path, source) as store:
                store.prove(file.path, digests)

        return replace(
            remote,
            open_reader=open_reader,
            came_from=tally.came_from,
            on_damage=on_damage,
            known=known,
            on_proof=on_proof,
        )


class _Tally:
    """Bytes by where they came from."""

    def __init__(self, origin: Callable[[], str]) -> None:
        self._origin = origin
        self._lock = threading.Lock()  # guards the bytes: readers are many
        self._bytes: Counter[str] = Counter()

    def add(self, counts: Mapping[str, int]) -> None:
        with self._lock:
            self._bytes.update(counts)

    def came_from(self) -> str:
        """What gave most of them first, as in `peer+s3`; before any came, the source itself."""
        with self._lock:
            names = [name for name, count in self._bytes.most_common() if count]
        return "+".join(self._origin() if name == "origin" else name for name in names) or (
            self._origin()
        )


class _Store:
    """One connection to the store."""

    def __init__(
        self, path: Path, source: Mapping[str, Any], *, answer_s: float = _ANSWER_S
    ) -> None:
        """Raises OSError where nobody listens."""
        self._source = source
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(_CONNECT_S)
            self._socket.connect(str(path))
            self._socket.settimeout(answer_s)
        except BaseException:
            self._socket.close()
            raise
        self._files: dict[str, int] = {}

    def __enter__(self) -> "_Store":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def read_into(self, name: str, offset: int, memory: memoryview) -> Mapping[str, int]:
        """Fills the memory and says where the bytes came from.

        Raises OSError, Invalid, SourceUnavailable.
        """
        if name not in self._files:
            self._files[name] = os.open(self._open(name), os.O_RDONLY | os.O_CLOEXEC)
        said = self._ask("bring", file=name, offset=offset, length=len(memory))
        got = 0
        while got < len(memory):
            count = os.preadv(self._files[name], [memory[got:]], offset + got)
            if count == 0:
                raise SourceUnavailable(f"the store's file ends before byte {offset + got}")
            got += count
        return {str(source): int(count) for source, count in dict(said).items()}

    def distrust(self, name: str) -> None:
        """What the store has of the file is not what was pinned. Raises as `read_into`."""
        self._open(name)
        self._ask("distrust", file=name)

    def digests(self, name: str) -> Packed:
        """Of the file's pieces, if a node has proven it. Raises as `read_into`, ValueError."""
        return base64.b64decode(str(self._ask("digests", source=self._source, file=name)))

    def prove(self, name: str, digests: Packed) -> None:
        """The file with pieces of these digests is what was pinned. Raises as `read_into`."""
        packed = base64.b64encode(digests).decode()
        self._ask("prove", source=self._source, file=name, digests=packed)

    def _open(self, name: str) -> str:
        return str(self._ask("open", source=self._source, file=name))

    def _ask(self, verb: str, **facts: Any) -> Any:
        send(self._socket, {"verb": verb, **facts})
        answer = receive(self._socket)
        if answer is None:
            raise ConnectionError("the store has gone")
        if "error" in answer:
            raise SourceUnavailable(f"the store: {answer.get('detail')}")
        return answer.get("result")

    def interrupt(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()


class _StoreReader:
    """See infra.sources.port.RangeReader."""

    def __init__(
        self, path: Path, source: Mapping[str, Any], direct: RangeReader, tally: _Tally
    ) -> None:
        self._path = path
        self._source = source
        self._direct = direct
        self._tally = tally
        self._last: tuple[str, int] | None = None
        self._lock = threading.Lock()  # guards what follows: interrupt comes from other threads
        self._store: _Store | None = None
        self._is_interrupted = False
        self._is_away = False

    def read_into(self, file: SourceFile, offset: int, memory: memoryview) -> int:
        with self._lock:
            self._is_interrupted = False
        if self._may_ask(file, offset):
            try:
                self._tally.add(self._connected().read_into(file.path, offset, memory))
            except (OSError, ValueError, Invalid, SourceUnavailable) as error:
                log.info("weights.not_in_store", path=file.path, why=str(error)[:200])
                self._hang_up()
                if self._is_interrupted:
                    raise SourceUnavailable("interrupted") from error
                self._is_away = True  # a store that fails takes its time over each failure
            else:
                self._last = file.path, offset
                return len(memory)
        count = self._direct.read_into(file, offset, memory)
        self._tally.add({"origin": count})
        return count

    def _may_ask(self, file: SourceFile, offset: int) -> bool:
        """Who asks twice for the same bytes was given wrong ones."""
        is_again = self._last == (file.path, offset)
        return not (self._is_away or is_again) and WholeDigest(file).is_known

    def _connected(self) -> _Store:
        with self._lock:
            if self._store is None:
                self._store = _Store(self._path, self._source)
            return self._store

    def interrupt(self) -> None:
        with self._lock:
            self._is_interrupted = True
            if self._store is not None:
                self._store.interrupt()
        self._direct.interrupt()

    def close(self) -> None:
        self._hang_up()
        self._direct.close()

    def _hang_up(self) -> None:
        with self._lock:
            store, self._store = self._store, None
        if store is not None:
            store.close()
