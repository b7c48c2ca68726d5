"""Answers the kernel's requests for the flat folder, in threads of one process.

A few reader threads take requests from one descriptor and answer at once whatever needs no
network. A read that does is handed to a fetch thread and answered when its bytes are there, in
whatever order: what waits for an origin never holds up what is on this machine.

Every request is answered exactly once, with EIO if all else fails: one without an answer leaves
its program unkillable.
"""

import errno
import os
import stat
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from threading import Thread

import structlog

from infra.errors import PlatformError
from snapshotter.fs import fuse_wire
from snapshotter.fs.fuse_wire import Buffers, Op, Request
from snapshotter.fs.late_requests import LateRequests
from snapshotter.fs.layer_trees import SUFFIX as TREE_SUFFIX
from snapshotter.fs.layer_trees import LayerTree, key_of
from snapshotter.fs.openings import Openings
from snapshotter.fs.ports import ServedFile
from snapshotter.fs.served_files import NotServedYet, ServedFiles
from snapshotter.fs.waiting_reads import WaitingReads

log = structlog.get_logger()

NUM_READERS = 4
NUM_FETCHERS = 64  # as many as the kernel has asynchronous requests outstanding
_UNREAD = (errno.EINTR, errno.EAGAIN, errno.ENOENT)  # the request was taken back
_UNMOUNTED = (errno.ENODEV, errno.ECONNABORTED)


class FuseServer:
    """Serves `files` over a /dev/fuse descriptor whose INIT has been answered.

    The descriptor is shared with the keeper, and is never cloned: what had been read from a
    clone would fail when this process dies, what was read from the shared one is asked again.
    """

    def __init__(self, descriptor: int, files: ServedFiles, openings: Openings) -> None:
        """`openings` has the files that are still to come to `files`."""
        self._descriptor = descriptor
        self._files = files
        self._openings = openings
        self._waiting = WaitingReads()
        self._late = LateRequests(self._waiting, openings.is_under_way, self._handle_late)
        self._late_counts: Counter[str] = Counter()
        self._fetchers = ThreadPoolExecutor(NUM_FETCHERS, thread_name_prefix="fuse-fetch")
        self._ended: Future[None] = Future()
        self._counts: list[Counter[str]] = []  # of each reader its own

    def start(self) -> None:
        """Takes over what another process left unanswered, then serves."""
        try:
            os.write(self._descriptor, fuse_wire.resend())
        except OSError as error:  # before Linux 6.9; the keeper knows what to do then
            log.info("fuse.no_resend", error=error.strerror)
        self._waiting.start()
        self._late.start()
        self._counts.append(self._late_counts)
        self._openings.subscribe(self._settled)
        for number in range(NUM_READERS):
            counts: Counter[str] = Counter()
            self._counts.append(counts)
            thread = Thread(target=self._serve, args=(counts,), name=f"fuse-{number}", daemon=True)
            thread.start()

    def wait(self) -> None:
        """Returns when the folder is unmounted; raises what ended the service otherwise."""
        self._ended.result()

    def counts(self) -> dict[str, int]:
        """How many requests of each kind were read, and bytes by where they came from."""
        return dict(sum((counts.copy() for counts in self._counts), Counter()))

    def added(self) -> None:
        """Makes the kernel drop its list of the folder; call it after a file was added."""
        with suppress(OSError):  # it has none
            os.write(self._descriptor, fuse_wire.changed_folder())

    def forget(self, name: str) -> None:
        """Makes the kernel drop the file's names and pages; call it after its removal."""
        for known in (name, name + TREE_SUFFIX):
            with suppress(OSError):  # it knows no such name
                os.write(self._descriptor, fuse_wire.forget_name(known))

    def _serve(self, counts: Counter[str]) -> None:
        try:
            # written to once: a fault while the kernel fills it could lose a request
            buffer = bytearray(b"\1" * fuse_wire.REQUEST_BYTES)
            while (request := self._next(buffer)) is not None:
                self._handle(request, counts)
        except BaseException as error:
            log.exception("fuse.reader_failed")
            with suppress(Exception):
                self._ended.set_exception(error)
        else:
            with suppress(Exception):  # another reader was first
                self._ended.set_result(None)

    def _next(self, buffer: bytearray) -> Request | None:
        """Waits for a request; None: there will be none."""
        while True:
            try:
                length = os.readv(self._descriptor, [buffer])
            except OSError as error:
                if error.errno in _UNREAD:
                    continue
                if error.errno in _UNMOUNTED:
                    return None
                raise
            return fuse_wire.parsed(buffer, length) if length else None

    def _handle(self, request: Request, counts: Counter[str]) -> None:
        try:
            match request.op:
                case Op.READ:
                    counts["read"] += 1
                    self._read(request, counts)
                case Op.INTERRUPT:
                    self._interrupt(request)
                case Op.FORGET | Op.BATCH_FORGET:
                    pass  # nodes are never forgotten, and the kernel awaits no answer
                case _:
                    counts["other"] += 1
                    body = answer(request, self._files)
                    self._send(fuse_wire.reply(request.unique, body))
        except NotServedYet as late:
            self._openings.again(late.name)
            self._late.add(request, late.name)
        except Exception as error:
            self._send(fuse_wire.refusal(request.unique, _errno_of(error)))

    def _handle_late(self, request: Request, name: str, is_interrupted: bool) -> None:
        """The file that it waited for is there, or did not come; the next one may wait again."""
        if self._files.awaits(name):
            self._send(fuse_wire.refusal(request.unique, errno.EIO))
            return
        self._handle(request, self._late_counts)
        if is_interrupted:  # the kernel does not say it twice
            self._waiting.interrupt(request.unique, on_death=self._abandon)

    def _settled(self) -> None:
        self.added()
        self._late.settled()

    def _read(self, request: Request, counts: Counter[str]) -> None:
        file, begin, file_size = _place_of(request.node, self._files)
        offset, size = fuse_wire.read_range(request)
        length = max(0, min(size, file_size - offset))
        if length > fuse_wire.MOST_READ_BYTES:
            raise OSError(errno.EINVAL, "more was asked for than was agreed")
        data = file.cached(begin + offset, length) if length else b""
        if data is not None:
            counts["cached_bytes"] += length
            self._send(fuse_wire.reply(request.unique, _whole(data, length)))
            return
        counts["waited_bytes"] += length
        self._waiting.add(request)
        self._fetchers.submit(self._fetch, request, file, begin + offset, length)

    def _fetch(self, request: Request, file: ServedFile, offset: int, length: int) -> None:
        if not self._waiting.has(request.unique):
            return  # who waited for it is gone
        try:
            data = file.read(offset, length)
            answered = fuse_wire.reply(request.unique, _whole(data, length))
        except BaseException as error:
            answered = fuse_wire.refusal(request.unique, _errno_of(error))
        if self._waiting.take(request.unique):
            self._send(answered)

    def _interrupt(self, request: Request) -> None:
        """A signal reached the program that waits: if it dies of it, it waits no longer."""
        unique = fuse_wire.interrupted(request)
        if self._waiting.interrupt(unique, on_death=self._abandon):
            return
        # Perhaps another thread has just read it: to be told again. If it was answered, the
        # kernel refuses this (ENOENT) and that is all.
        self._send(fuse_wire.refusal(request.unique, errno.EAGAIN))

    def _abandon(self, unique: int) -> None:
        self._send(fuse_wire.refusal(unique, errno.EINTR))

    def _send(self, buffers: Buffers) -> None:
        try:
            os.writev(self._descriptor, buffers)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV):
                return  # nobody waits any more
            log.error("fuse.answer_refused", error=error.strerror)
            with suppress(OSError):
                os.writev(self._descriptor, fuse_wire.refused_instead(buffers))


def answer(request: Request, files: ServedFiles) -> bytes:
    """The body that answers a request for names and attributes. Raises OSError."""
    key = key_of(request.node)
    if key is not None and request.op != Op.STATFS:
        return files.tree(key).answer(request)
    match request.op:
        case Op.LOOKUP:
            return _lookup(request, files)
        case Op.GETATTR if request.node == fuse_wire.ROOT:
            return fuse_wire.attributes_body(fuse_wire.folder_attributes())
        case Op.GETATTR:
            size = files.at(request.node).size
            return fuse_wire.attributes_body(fuse_wire.file_attributes(request.node, size))
        case Op.READDIR:
            return _listing(request, files)
        case Op.STATFS:
            served = files.listed()
            return fuse_wire.statfs_body(len(served), sum(file.size for _, file in served))
        case Op.GETXATTR:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        case Op.LISTXATTR:
            return fuse_wire.xattr_body(b"", fuse_wire.xattr_wanted(request)[0])
        case Op.DESTROY:
            return b""
        case _:  # OPEN and OPENDIR too: there are no handles, so a restart loses none
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def _lookup(request: Request, files: ServedFiles) -> bytes:
    name = request.body.rstrip(b"\0").decode("utf-8", "replace")
    layer = name.removesuffix(TREE_SUFFIX)
    found = files.find(layer) if request.node == fuse_wire.ROOT else None
    if found is None:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))  # which the kernel does not keep
    node, file = found
    if layer != name:
        return LayerTree(file).found()
    return fuse_wire.entry_body(node, fuse_wire.file_attributes(node, file.size))


def _listing(request: Request, files: ServedFiles) -> bytes:
    after, size = fuse_wire.read_range(request)
    # a listing goes on by node, not by place: files come and go meanwhile
    names = ((node, node, file.name.encode()) for node, file in files.listed() if node > after)
    return fuse_wire.listing(((*entry, stat.S_IFREG >> 12) for entry in names), size)


def _place_of(node: int, files: ServedFiles) -> tuple[ServedFile, int, int]:
    """The served file that has the node's bytes, where they begin, and how many there are."""
    if (key := key_of(node)) is not None:
        tree = files.tree(key)
        return tree.file, *tree.range_of(node)
    file = files.at(node)
    return file, 0, file.size


def _whole(data: bytes, length: int) -> bytes:
    if len(data) != length:
        raise OSError(errno.EIO, f"{len(data)} of {length} bytes were read")
    return data


def _errno_of(error: BaseException) -> int:
    if isinstance(error, OSError) and error.errno:
        return error.errno
    if isinstance(error, PlatformError):
        log.warning("fuse.read_failed", error=error.detail)
    else:
        log.error("fuse.request_failed", exc_info=error)
    return errno.EIO
