from hypothesis import given
from hypothesis import strategies as st

from control_plane.deployments.record import MOST_REVISIONS, Record
from tests.fleet.makers import CHAT


def a_record(*digests: str) -> Record:
    """A model to which these were deployed, one after the other."""
    record = Record(model=CHAT)
    for digest in digests:
        record = record.published(digest, takes_traffic=True)
    return record


def test_the_first_revision_is_number_one_and_gets_everything():
    record = a_record("a")
    assert (record.generation, record.digests, record.percents) == (1, {1: "a"}, {1: 100})


def test_equal_content_changes_nothing_and_former_content_keeps_its_number():
    record = a_record("a", "b")
    assert record.published("b", takes_traffic=True) is record
    back = record.published("a", takes_traffic=True)
    assert (back.percents, back.last_number, back.generation) == ({1: 100}, 2, 3)


def test_a_revision_without_traffic_waits_to_be_given_some():
    record = a_record("a").published("b", takes_traffic=False)
    assert (record.percents, record.digests) == ({1: 100}, {1: "a", 2: "b"})
    assert record.published("b", takes_traffic=False) is record
    assert record.published("b", takes_traffic=True).percents == {2: 100}


def test_a_split_names_shares_and_drops_what_has_none():
    record = a_record("a", "b", "c").split({1: 90, 2: 0, 3: 10})
    assert record.percents == {1: 90, 3: 10}
    assert record.split({3: 10, 1: 90}) is record


def test_a_rollback_from_a_canary_goes_to_what_was_whole_before_it():
    canary = a_record("a", "b").published("c", takes_traffic=False).split({2: 40, 3: 60})
    assert canary.previous == 2


def test_a_rollback_passes_over_what_never_had_everything():
    record = a_record("a").published("never", takes_traffic=False)
    assert record.published("c", takes_traffic=True).previous == 1


def test_two_rollbacks_end_where_they_began():
    record = a_record("a", "b", "c")
    assert record.previous == 2
    back = record.split({2: 100})
    assert back.previous == 3


def test_a_first_revision_has_nothing_before_it():
    assert a_record("a").previous is None


def test_a_retired_model_keeps_only_its_numbers():
    record = a_record("a", "b").retired()
    assert not record.is_deployed
    assert (record.digests, record.settled, record.last_number) == ({}, (), 2)
    assert record.retired() is record
    assert record.published("a", takes_traffic=True).percents == {3: 100}


def test_the_oldest_go_but_never_one_in_traffic_or_that_a_rollback_goes_to():
    record = a_record(*(str(number) for number in range(1, 21)))
    record = record.split({1: 50, 20: 50})
    for number in range(21, 31):
        record = record.published(str(number), takes_traffic=False)
    assert set(record.digests) == {1, *range(12, 31)}
    assert len(record.digests) == MOST_REVISIONS
    assert record.previous == 20


Change = tuple[str, int, int]
CHANGES = st.tuples(
    st.sampled_from(["deploy", "hide", "split", "back", "retire"]), *[st.integers(0, 40)] * 2
)


@given(st.lists(CHANGES, max_size=80))
def test_whatever_is_done_the_record_is_whole(changes: list[Change]):
    record = Record(model=CHAT)
    for what, one, other in changes:
        before = record
        numbers = sorted(record.digests)
        match what:
            case "deploy":
                record = record.published(str(one), takes_traffic=True)
            case "hide" if record.is_deployed:
                record = record.published(str(one), takes_traffic=False)
            case "split" if numbers:
                a, b = numbers[one % len(numbers)], numbers[other % len(numbers)]
                record = record.split({a: 100} if a == b else {a: 100 - one, b: one})
            case "back" if record.previous is not None:
                record = record.split({record.previous: 100})
            case "retire":
                record = record.retired()
        assert record is before or record.generation == before.generation + 1
        assert record.last_number >= before.last_number
        assert sum(record.percents.values()) == (100 if record.digests else 0)
        assert all(percent > 0 for percent in record.percents.values())
        assert {*record.percents, *record.settled} <= record.digests.keys()
        assert len(set(record.digests.values())) == len(record.digests) <= MOST_REVISIONS + 2
        assert record == Record.model_validate_json(record.model_dump_json())
