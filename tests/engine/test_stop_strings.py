"""Stop strings across the borders of pieces."""

from hypothesis import given
from hypothesis import strategies as st

from worker.engine.stop_strings import StopStrings


def feed(stops: tuple[str, ...], *pieces: str) -> tuple[list[str], bool]:
    matcher = StopStrings(stops)
    shown = []
    for piece in pieces:
        shown.append(matcher.push(piece))
        if matcher.is_stopped:
            return shown, True
    return [*shown, matcher.flush()], False


def test_text_without_stops_passes_at_once() -> None:
    assert feed((), "a", "b") == (["a", "b", ""], False)


def test_only_what_may_begin_a_stop_is_held_back() -> None:
    assert feed(("<end>",), "text <", "e", "nough", " x") == (
        ["text ", "", "<enough", " x", ""],
        False,
    )


def test_a_stop_across_borders_ends_the_text_before_it() -> None:
    assert feed(("<end>",), "text <e", "nd", "> more") == (["text ", "", ""], True)


def test_a_stop_that_overlaps_its_own_beginning_is_found() -> None:
    assert feed(("aab",), "a", "a", "a", "b") == (["", "", "a", ""], True)


def test_the_first_complete_stop_wins_and_of_two_at_once_the_longer() -> None:
    assert feed(("abcd", "bc"), "xabcd") == (["xa"], True)
    assert feed(("c", "abc"), "xabc") == (["x"], True)


def test_what_was_held_is_shown_when_the_text_ends() -> None:
    assert feed(("stop",), "a st") == (["a ", "st"], False)


def test_after_a_stop_nothing_is_left() -> None:
    matcher = StopStrings(("b",))
    assert matcher.push("abc") == "a"
    assert matcher.flush() == ""


def plainly(stops: tuple[str, ...], text: str) -> tuple[str, bool]:
    for end in range(1, len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end - len(stop)], True
    return text, False


letters = st.text("ab", max_size=30)


@given(
    st.lists(st.text("ab", min_size=1, max_size=5), max_size=4).map(tuple),
    st.lists(letters, max_size=6),
)
def test_the_borders_of_pieces_make_no_difference(
    stops: tuple[str, ...], pieces: list[str]
) -> None:
    shown, is_stopped = feed(stops, *pieces)
    assert ("".join(shown), is_stopped) == plainly(stops, "".join(pieces))


@given(st.lists(st.text("ab", min_size=1, max_size=5), min_size=1).map(tuple), letters)
def test_no_more_is_held_than_could_become_a_stop(stops: tuple[str, ...], text: str) -> None:
    matcher = StopStrings(stops)
    shown = ""
    for character in text:
        shown += matcher.push(character)
        if matcher.is_stopped:
            return
    held = text[len(shown) :]
    assert held == "" or any(stop.startswith(held) for stop in stops)


def test_a_stop_string_where_the_text_may_not_stop_is_text() -> None:
    stops = StopStrings(("aba", "cc"))
    shown = [stops.push(piece, may_stop=False) for piece in ("xab", "a", "cc")]
    assert shown == ["x", "ab", "ac"] and not stops.is_stopped
    assert stops.push("ba") == "cb"
    assert stops.flush() == "a" and not stops.is_stopped
