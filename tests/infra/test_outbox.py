import asyncio

from infra.outbox import HeldTransport, Outbox


class Recorder(asyncio.Transport):
    """Keeps what is done to it, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[bytes | str] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.done.append(bytes(data))

    def close(self) -> None:
        self.done.append("closed")

    def abort(self) -> None:
        self.done.append("aborted")

    def is_closing(self) -> bool:
        return "closed" in self.done or "aborted" in self.done


def held(outbox: Outbox | None = None) -> tuple[HeldTransport, Recorder]:
    recorder = Recorder()
    return (outbox or Outbox()).hold(recorder), recorder


async def test_what_is_written_in_one_turn_goes_out_after_it_as_one_write_each():
    outbox = Outbox()
    (one, to_one), (other, to_other) = held(outbox), held(outbox)

    one.write(b"head ")
    other.write(b"hello")
    one.write(b"")
    one.write(b"body")
    in_the_turn = [*to_one.done, *to_other.done]
    await asyncio.sleep(0)

    assert in_the_turn == []
    assert (to_one.done, to_other.done) == ([b"head body"], [b"hello"])


async def test_every_turn_has_its_own_writes():
    transport, recorder = held()

    for word in (b"a", b"b"):
        transport.write(word)
        await asyncio.sleep(0)
    await asyncio.sleep(0)

    assert recorder.done == [b"a", b"b"]


async def test_a_lot_is_not_held():
    transport, recorder = held()

    transport.write(b"head")
    transport.write(b"x" * (64 << 10))

    assert recorder.done == [b"head", b"x" * (64 << 10)]


async def test_who_closes_sends_what_is_held_first_and_who_aborts_does_not():
    (closed, by_close), (aborted, by_abort) = held(), held()

    closed.write(b"last words")
    closed.close()
    aborted.write(b"last words")
    aborted.abort()
    await asyncio.sleep(0)

    assert by_close.done == [b"last words", "closed"]
    assert by_abort.done == ["aborted"]


async def test_nothing_is_written_to_what_was_lost_within_the_turn():
    outbox = Outbox()
    (lost, to_lost), (other, to_other) = held(outbox), held(outbox)

    lost.write(b"x")
    other.write(b"y")
    to_lost.close()  # the loop noticed that its client left
    await asyncio.sleep(0)

    assert (to_lost.done, to_other.done) == (["closed"], [b"y"])
