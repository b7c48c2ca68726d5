"""The FUSE server's answers, asked for over a socket pair that stands in for /dev/fuse."""

import errno
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from queue import Queue
from typing import Any

import pytest

from infra.errors import Conflict, ImageInvalid, Invalid, SourceUnavailable
from snapshotter.fs.fuse_server import NUM_FETCHERS, NUM_READERS, FuseServer
from snapshotter.fs.fuse_wire import ROOT, Op, Request
from snapshotter.fs.late_requests import LateRequests
from snapshotter.fs.layer_file import LayerFile
from snapshotter.fs.local_bytes import MemoryBytes
from snapshotter.fs.openings import Openings
from snapshotter.fs.ports import OpenFile
from snapshotter.fs.served_files import ServedFiles, node_id
from snapshotter.fs.waiting_reads import WaitingReads, is_dying

NAME = "sha256:aa"
DATA = bytes(range(256)) * 16


def served(name: str, stream: MemoryBytes) -> LayerFile:
    return LayerFile(name, b"", stream)


class Gated(MemoryBytes):
    """Has to be waited for until the gate opens, then gives its bytes or raises."""

    def __init__(self, data: bytes, error: BaseException | None = None) -> None:
        super().__init__(data, here=False)
        self.error = error
        self.asked = threading.Semaphore(0)
        self.gate = threading.Event()

    def read(self, offset: int, length: int) -> bytes:
        self.asked.release()
        assert self.gate.wait(60)
        if self.error is not None:
            raise self.error
        return super().read(offset, length)


@dataclass(frozen=True)
class Answer:
    unique: int
    error: int
    body: bytes


class Kernel:
    """Our end of the pair: asks, and receives what is written to /dev/fuse."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(60)
        self.descriptor = theirs.detach()
        self._unique = 0

    def ask(self, op: int, node: int = ROOT, body: bytes = b"", *, thread_id: int = 0) -> int:
        self._unique += 2
        head = struct.pack("<IIQQIIII", 40 + len(body), op, self._unique, node, 0, 0, thread_id, 0)
        self._socket.send(head + body)
        return self._unique

    def read(self, name: str, offset: int, size: int, *, thread_id: int = 0) -> int:
        body = struct.pack("<QQIIQII", 0, offset, size, 0, 0, 0, 0)
        return self.ask(Op.READ, node_id(name), body, thread_id=thread_id)

    def answer(self) -> Answer:
        received = self._socket.recv(1 << 21)
        length, error, unique = struct.unpack_from("<IiQ", received)
        assert length == len(received)
        return Answer(unique, -error, received[16:])

    def reply(self) -> Answer:
        """The next answer that is no notification of ours."""
        while not (answer := self.answer()).unique:
            pass
        return answer

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    kernel = Kernel()
    yield kernel
    kernel.close()  # the other end stays open: the server's threads may still read it


def refuse(name: str, spec: Mapping[str, Any]) -> LayerFile:
    raise ImageInvalid(f"{name} is nothing that was served before")


def started(
    kernel: Kernel, *files: LayerFile, open_file: OpenFile = refuse, late: Sequence[str] = ()
) -> tuple[FuseServer, ServedFiles]:
    """`late`: names of what is still to be opened."""
    all_files = ServedFiles(files)
    openings = Openings(open_file, all_files, retry_s=0)
    for name in late:
        openings.begin(name, {})
    server = FuseServer(kernel.descriptor, all_files, openings)
    server.start()
    assert kernel.answer() == Answer(0, -7, b"")  # a notification: FUSE_NOTIFY_RESEND
    return server, all_files


def test_a_new_process_first_has_the_kernel_ask_again(kernel: Kernel) -> None:
    server, _ = started(kernel)

    kernel._socket.shutdown(socket.SHUT_RDWR)

    server.wait()


def test_a_file_is_found_and_read(kernel: Kernel) -> None:
    server, _ = started(kernel, served(NAME, MemoryBytes(DATA)))

    asked = kernel.ask(Op.LOOKUP, body=NAME.encode() + b"\0")
    found = kernel.answer()
    assert (found.unique, found.error) == (asked, 0)
    node, _, entry_s, _ = struct.unpack_from("<QQQQ", found.body)
    ino, size = struct.unpack_from("<QQ", found.body, 40)
    assert (node, ino, size, len(found.body)) == (node_id(NAME), node_id(NAME), 4096, 128)
    assert entry_s > 10**9
    unique = kernel.read(NAME, 100, 50)
    assert kernel.answer() == Answer(unique, 0, DATA[100:150])
    unique = kernel.read(NAME, 4000, 4096)
    assert kernel.answer() == Answer(unique, 0, DATA[4000:])
    unique = kernel.read(NAME, 2**40, 4096)
    assert kernel.answer() == Answer(unique, 0, b"")
    assert server.counts() == {"other": 1, "read": 3, "cached_bytes": 146}


def test_node_ids_are_those_of_any_other_process() -> None:
    code = f"from snapshotter.fs.served_files import node_id; print(node_id({NAME!r}))"
    said = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True).stdout

    assert int(said) == node_id(NAME)
    assert ROOT < node_id(NAME) < 2**63


def test_requests_that_no_flat_folder_knows_are_refused(kernel: Kernel) -> None:
    started(kernel, served(NAME, MemoryBytes(DATA)))

    def refused(op: int, node: int = ROOT, body: bytes = b"") -> int:
        unique = kernel.ask(op, node, body)
        answer = kernel.answer()
        assert (answer.unique, answer.body) == (unique, b"")
        return answer.error

    assert refused(Op.LOOKUP, body=b"missing\0") == errno.ENOENT
    assert refused(Op.LOOKUP, body=b"\xff\xfe\0") == errno.ENOENT
    assert refused(Op.LOOKUP, node_id(NAME), NAME.encode() + b"\0") == errno.ENOENT
    assert refused(Op.OPEN, node_id(NAME)) == errno.ENOSYS
    assert refused(9999) == errno.ENOSYS
    assert refused(Op.GETATTR, 12345) == errno.ESTALE
    assert refused(Op.READ, 12345, bytes(40)) == errno.ESTALE
    assert refused(Op.READ, node_id(NAME), b"short") == errno.EIO


def test_more_than_was_agreed_is_not_read(kernel: Kernel) -> None:
    started(kernel, served(NAME, MemoryBytes(bytes(3 << 20))))

    kernel.read(NAME, 0, (1 << 20) + 1)

    assert kernel.answer().error == errno.EINVAL


def test_a_listing_goes_on_where_it_stopped_though_files_come_and_go(kernel: Kernel) -> None:
    names = sorted((f"sha256:{i:02}" for i in range(30)), key=node_id)
    _, files = started(kernel, *(served(name, MemoryBytes(b"x")) for name in names))

    def listed(after: int) -> list[tuple[int, str]]:
        kernel.ask(Op.READDIR, body=struct.pack("<QQI", 0, after, 400) + bytes(20))
        body, found = kernel.answer().body, []
        while body:
            node, then, length, _ = struct.unpack_from("<QQII", body)
            assert node == then
            found.append((then, body[24 : 24 + length].decode()))
            body = body[24 + length + -(24 + length) % 8 :]
        return found

    seen, after = [], 0
    while part := listed(after):
        seen += [name for _, name in part]
        after = part[-1][0]
        files.remove(seen[0])

    assert seen == names


def test_what_is_here_is_read_while_every_fetcher_waits_for_an_origin(kernel: Kernel) -> None:
    slow = Gated(DATA)
    started(kernel, served("slow", slow), served(NAME, MemoryBytes(DATA)))
    waiting = {kernel.read("slow", i, 1): i for i in range(NUM_FETCHERS + NUM_READERS + 20)}
    for _ in range(NUM_FETCHERS):
        assert slow.asked.acquire(timeout=60)

    unique = kernel.read(NAME, 0, 4096)

    assert kernel.answer() == Answer(unique, 0, DATA)
    slow.gate.set()
    answers = [kernel.answer() for _ in waiting]
    assert {answer.unique: answer.body for answer in answers} == {
        unique: DATA[i : i + 1] for unique, i in waiting.items()
    }


@pytest.mark.parametrize(
    ("error", "answered"),
    [
        (OSError(errno.ENOSPC, "full"), errno.ENOSPC),
        (OSError("no number"), errno.EIO),
        (OSError(99999, "no errno of the kernel's"), errno.EIO),
        (SourceUnavailable("the registry is away"), errno.EIO),
        (ZeroDivisionError("a defect"), errno.EIO),
        (SystemExit(1), errno.EIO),
    ],
)
def test_whatever_goes_wrong_the_reader_is_told(
    kernel: Kernel, error: BaseException, answered: int
) -> None:
    broken = Gated(DATA, error)
    broken.gate.set()
    started(kernel, served(NAME, broken))

    unique = kernel.read(NAME, 0, 10)

    assert kernel.answer() == Answer(unique, answered, b"")
    broken.error = None
    unique = kernel.read(NAME, 0, 10)
    assert kernel.answer() == Answer(unique, 0, DATA[:10])


def test_fewer_bytes_than_the_file_has_are_no_answer(kernel: Kernel) -> None:
    class Short(MemoryBytes):
        def read(self, offset: int, length: int) -> bytes:
            return super().read(offset, length - 1)

    started(kernel, served(NAME, Short(DATA)), served("late", Short(DATA, here=False)))

    for name in (NAME, "late"):
        unique = kernel.read(name, 0, 10)
        assert kernel.answer() == Answer(unique, errno.EIO, b"")


def interrupt(kernel: Kernel, unique: int) -> int:
    return kernel.ask(Op.INTERRUPT, body=struct.pack("<Q", unique))


def test_a_program_that_is_killed_waits_for_no_origin(kernel: Kernel) -> None:
    slow = Gated(DATA)
    started(kernel, served(NAME, slow))
    reader = subprocess.Popen(["sleep", "infinity"])
    unique = kernel.read(NAME, 0, 10, thread_id=reader.pid)
    assert slow.asked.acquire(timeout=60)

    interrupt(kernel, unique)  # by a signal that ends nothing: it goes on waiting
    other = kernel.ask(Op.STATFS)
    assert kernel.answer().unique == other
    reader.kill()
    reader.wait()

    assert kernel.answer() == Answer(unique, errno.EINTR, b"")
    slow.gate.set()  # what comes now nobody wants
    other = kernel.ask(Op.STATFS)
    assert kernel.answer().unique == other


def test_a_living_program_that_was_interrupted_gets_its_bytes(kernel: Kernel) -> None:
    slow = Gated(DATA)
    started(kernel, served(NAME, slow))
    unique = kernel.read(NAME, 0, 10, thread_id=os.getpid())
    assert slow.asked.acquire(timeout=60)

    interrupt(kernel, unique)
    slow.gate.set()

    assert kernel.answer() == Answer(unique, 0, DATA[:10])


def test_an_interrupt_that_overtook_its_read_is_sent_again(kernel: Kernel) -> None:
    started(kernel)

    unique = interrupt(kernel, 4242)

    assert kernel.answer() == Answer(unique, errno.EAGAIN, b"")


class Opens:
    """Opens what is late when the gate is open, or raises."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.gate = threading.Event()
        self.asked: list[str] = []

    def __call__(self, name: str, spec: Mapping[str, Any]) -> LayerFile:
        self.asked.append(name)
        assert self.gate.wait(60)
        if self.error is not None:
            raise self.error
        return served(name, MemoryBytes(DATA))


def test_readers_of_a_layer_that_is_still_being_opened_wait_for_it_and_hold_up_nobody(
    kernel: Kernel,
) -> None:
    opens = Opens()
    started(kernel, served(NAME, MemoryBytes(DATA)), open_file=opens, late=["late"])
    late = {kernel.read("late", i, 1): i for i in range(NUM_FETCHERS + NUM_READERS + 1)}
    asked = kernel.ask(Op.GETATTR, node_id("late"))

    here = kernel.read(NAME, 0, 10)
    assert kernel.reply() == Answer(here, 0, DATA[:10])
    opens.gate.set()

    answers = {answer.unique: answer for answer in (kernel.reply() for _ in range(len(late) + 1))}
    assert answers.pop(asked).error == 0
    assert {unique: answer.body for unique, answer in answers.items()} == {
        unique: DATA[i : i + 1] for unique, i in late.items()
    }
    assert opens.asked == ["late"]


def test_a_layer_whose_origin_was_away_is_opened_for_whoever_reads_it_next(
    kernel: Kernel,
) -> None:
    opens = Opens(SourceUnavailable("the registry is away"))
    started(kernel, open_file=opens, late=["late"])
    unique = kernel.read("late", 0, 10)
    opens.gate.set()
    assert kernel.reply() == Answer(unique, errno.EIO, b"")

    opens.error = None
    unique = kernel.read("late", 0, 10)

    assert kernel.reply() == Answer(unique, 0, DATA[:10])


def test_a_layer_that_can_never_be_opened_is_gone_to_its_readers(kernel: Kernel) -> None:
    opens = Opens(ImageInvalid("no index can be made of it"))
    started(kernel, open_file=opens, late=["late"])
    waiting = kernel.read("late", 0, 10)
    opens.gate.set()

    assert kernel.reply() == Answer(waiting, errno.ESTALE, b"")
    unique = kernel.read("late", 0, 10)
    assert kernel.reply() == Answer(unique, errno.ESTALE, b"")
    assert opens.asked == ["late"]


def test_a_program_that_is_killed_waits_for_no_layer_that_is_being_opened(kernel: Kernel) -> None:
    opens = Opens()
    started(kernel, open_file=opens, late=["late"])
    unique = kernel.read("late", 0, 10, thread_id=2**22 + 1)  # of a thread that is gone
    kernel.ask(Op.STATFS)
    kernel.reply()

    interrupt(kernel, unique)

    answer = kernel.reply()
    assert answer.error in {errno.EINTR, errno.EAGAIN}  # EAGAIN: it overtook its read
    opens.gate.set()


def late_request(unique: int) -> Request:
    return Request(Op.READ, unique, node_id("late"), 0, b"")


def test_nobody_waits_for_ever_for_a_layer_that_is_being_opened() -> None:
    told: Queue[tuple[int, str, bool]] = Queue()
    requests = LateRequests(
        WaitingReads(),
        lambda _: True,
        lambda *late: told.put((late[0].unique, *late[1:])),
        patience_s=0,
    )
    requests.start()

    requests.add(late_request(42), "late")

    assert told.get(timeout=60) == (42, "late", False)


def test_who_was_interrupted_while_a_layer_was_being_opened_is_watched_afterwards_too() -> None:
    told: Queue[tuple[int, bool]] = Queue()
    waiting, is_open = WaitingReads(), threading.Event()
    requests = LateRequests(
        waiting, lambda _: not is_open.is_set(), lambda late, _, was: told.put((late.unique, was))
    )
    requests.start()
    for unique in (42, 44):
        requests.add(late_request(unique), "late")
    waiting.interrupt(42, on_death=lambda _: None)

    is_open.set()
    requests.settled()

    assert [told.get(timeout=60), told.get(timeout=60)] == [(42, True), (44, False)]


def test_a_name_has_one_content_and_cannot_leave_the_folder() -> None:
    files = ServedFiles([served(NAME, MemoryBytes(DATA))])
    files.add(served(NAME, MemoryBytes(DATA)))

    with pytest.raises(Conflict):
        files.add(served(NAME, MemoryBytes(DATA + DATA)))
    for name in ("", ".", "..", "a/b", "a b", "-a", "a" * 201, "é"):
        with pytest.raises(Invalid):
            files.add(served(name, MemoryBytes(DATA)))


def test_is_dying_reads_what_the_kernel_says_of_a_thread() -> None:
    assert not is_dying(os.getpid())
    assert not is_dying(0)
    assert is_dying(2**22 + 1)  # above the largest process id there can be
