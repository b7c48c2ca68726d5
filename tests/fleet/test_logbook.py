import asyncio

from control_plane.fleet.logbook import MAX_TEXT, Logbook, LogEntry
from infra.contracts.base import ModelName
from infra.virtual_time import run_virtual

CHAT, OTHER = ModelName("chat"), ModelName("other")


def entry(text: str) -> LogEntry:
    return LogEntry(1.0, "platform", text)


def test_the_ring_keeps_the_newest_lines_of_each_model():
    book = Logbook(max_lines=3)
    for number in range(5):
        book.append(CHAT, entry(str(number)))
    book.append(OTHER, entry("x"))
    assert [it.text for it in book.last(CHAT)] == ["2", "3", "4"]
    assert [it.text for it in book.last(CHAT, 2)] == ["3", "4"]
    assert book.last(CHAT, 0) == ()
    book.forget(CHAT)
    assert book.last(CHAT) == ()


def test_a_model_that_writes_long_lines_keeps_fewer():
    book = Logbook(max_characters=1000)
    for _ in range(50):
        book.append(CHAT, entry("x" * 300))
    assert len(book.last(CHAT)) == 3


def test_long_lines_are_cut_and_models_bounded():
    book = Logbook(max_models=2)
    book.append(CHAT, entry("x" * 100_000))
    assert len(book.last(CHAT)[0].text) == MAX_TEXT
    for name in ("a", "b"):
        book.append(ModelName(name), entry("y"))
    assert book.last(CHAT) == ()


def test_a_follower_gets_the_last_lines_and_every_later_one():
    async def main() -> None:
        book = Logbook()
        for text in "abc":
            book.append(CHAT, entry(text))
        follower = book.follow(CHAT, last=2)
        assert [(await anext(follower)).text for _ in range(2)] == ["b", "c"]
        waiting = asyncio.ensure_future(anext(follower))
        await asyncio.sleep(1)
        book.append(OTHER, entry("not this"))
        book.append(CHAT, entry("d"))
        assert (await waiting).text == "d"
        await follower.aclose()
        assert book._followers == {}

    run_virtual(main())


def test_a_follower_that_sleeps_misses_the_oldest_lines_and_stalls_nobody():
    async def main() -> None:
        book = Logbook(max_behind=10)
        follower = book.follow(CHAT)
        first = asyncio.ensure_future(anext(follower))
        await asyncio.sleep(0)
        for number in range(100):
            book.append(CHAT, entry(str(number)))
        assert (await first).text == "90"
        await follower.aclose()

    run_virtual(main())
