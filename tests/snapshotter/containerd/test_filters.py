import pytest

from snapshotter.containerd.filters import MOST_BYTES, parse_filters
from snapshotter.containerd.snapshot import Kind, Reason, Refused, Snapshot

SNAPSHOT = Snapshot(
    id=1,
    name="sha256:ab",
    parent="default/1/base",
    kind=Kind.COMMITTED,
    created_ns=0,
    updated_ns=0,
    labels={"containerd.io/snapshot.ref": "sha256:ab", "colour": "a, b", "lines": "x|y/z"},
)


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "name==sha256:ab",
        'name=="sha256:ab"',
        " name == sha256:ab , kind==committed ",
        "kind!=view",
        "parent",
        'labels."containerd.io/snapshot.ref"==sha256:ab',
        'labels."containerd.io/snapshot.ref"==sha256:ab,parent=="default/1/base"',
        "labels.colour",
        'labels.colour=="a, b"',
        r'labels.colour=="\x61, \u0062"',
        "labels.nothing!=x",
        "name~=sha.*:[a-b]+$",
        "labels.lines~=/y\\/z/",
        "labels.lines~=|x.y|",
    ],
)
def test_an_expression_matches(expression: str) -> None:
    assert parse_filters([expression])(SNAPSHOT)


@pytest.mark.parametrize(
    "expression",
    [
        "name==sha256",
        "kind==view",
        "name==sha256:ab,kind==active",
        "labels.nothing",
        "labels.nothing==x",
        "nothing",
        "nothing==x",
        "name~=^x",
    ],
)
def test_an_expression_does_not_match(expression: str) -> None:
    assert not parse_filters([expression])(SNAPSHOT)


def test_of_several_expressions_one_is_enough() -> None:
    assert parse_filters([])(SNAPSHOT)
    assert parse_filters(["kind==view", "kind==committed"])(SNAPSHOT)
    assert not parse_filters(["kind==view", "kind==active"])(SNAPSHOT)


@pytest.mark.parametrize(
    "expression",
    [
        "==x",
        "name=x",
        "name=>x",
        "name==",
        "name==x,",
        "name,,kind",
        "name kind",
        'labels."open==x',
        r'name=="\q"',
        "name~=(",
        "name==|x|",
        "name.",
        "a" * (MOST_BYTES + 1),
    ],
)
def test_what_is_no_expression_is_an_invalid_argument(expression: str) -> None:
    with pytest.raises(Refused) as refusal:
        parse_filters([expression])
    assert refusal.value.reason is Reason.INVALID_ARGUMENT
