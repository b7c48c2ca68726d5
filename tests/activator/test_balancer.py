"""Who gets a request: the emptiest, or the one that its key likes, within bounds."""

from collections import Counter
from dataclasses import dataclass, replace

from hypothesis import given
from hypothesis import strategies as st

from control_plane.activator.balancer import choose, hash_of
from infra.contracts.model_spec import Limits
from tests.activator.world import World, says, scenario, spec


@dataclass
class Replica:
    name: str
    in_flight: int = 0
    max_concurrency: int = 8

    @property
    def seed(self) -> int:
        return hash_of(self.name.encode())


def replicas(count: int, **more: int) -> list[Replica]:
    return [Replica(f"replica-{n}", **more) for n in range(count)]


KEYS = [hash_of(b"key", b"%d" % n) for n in range(2000)]


def test_without_a_key_the_smallest_share_goes_first_and_the_first_of_equals() -> None:
    loads = [Replica("a", 3, 4), Replica("b", 4, 8), Replica("c", 4, 8)]

    assert choose(loads) is loads[1]
    assert choose([Replica("a", 4, 4), Replica("b", 8, 8)]) is None
    assert choose([]) is None


def test_a_key_finds_the_same_replica_wherever_it_stands_in_the_list() -> None:
    loads = replicas(5)

    for key in KEYS[:100]:
        assert choose(loads, key) is choose(loads[::-1], key)


def test_keys_spread_evenly() -> None:
    loads = replicas(4)

    got = Counter(chosen.name for key in KEYS if (chosen := choose(loads, key)) is not None)

    assert len(got) == 4
    assert max(got.values()) < 1.2 * len(KEYS) / 4


def test_a_new_replica_takes_its_part_of_the_keys_and_moves_no_other() -> None:
    before, after = replicas(4), replicas(5)

    for key in KEYS:
        was, now = choose(before, key), choose(after, key)
        assert was is not None
        assert now is not None
        assert now.name in {was.name, "replica-4"}


def test_a_popular_key_fills_no_replica_beyond_its_share() -> None:
    loads = replicas(4, max_concurrency=100)
    for _ in range(200):
        chosen = choose(loads, KEYS[0])
        assert chosen is not None
        chosen.in_flight += 1

    assert sorted(load.in_flight for load in loads)[-1] <= 1.25 * 201 / 4 + 1
    assert sum(load.in_flight for load in loads) == 200


@given(
    taken=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=8),
    key=st.one_of(st.none(), st.sampled_from(KEYS)),
)
def test_whoever_is_chosen_has_room_and_nobody_is_only_if_nobody_has(
    taken: list[tuple[int, int]], key: int | None
) -> None:
    loads = [Replica(f"replica-{n}", *each) for n, each in enumerate(taken)]

    chosen = choose([replace(load) for load in loads], key)

    has_room = [load for load in loads if load.in_flight < load.max_concurrency]
    assert (chosen is None) == (not has_room)
    assert chosen is None or chosen in has_room


@scenario
async def test_requests_of_one_key_meet_at_one_replica_and_others_do_not(world: World) -> None:
    revision = await world.deploy(spec(limits=Limits(max_concurrency=4)))
    for _ in range(3):
        world.ready(revision, says("hello"))

    for number in range(8):
        await world.start(world.call(number, affinity=KEYS[7]), revision).result()
    together = {sent.replica_id for sent in world.replicas.sent}
    for number, key in enumerate(KEYS[:30]):
        await world.start(world.call(number, affinity=key), revision).result()

    assert len(together) == 1
    assert len({sent.replica_id for sent in world.replicas.sent}) == 3


@scenario
async def test_held_requests_of_one_key_meet_too_once_there_are_replicas(world: World) -> None:
    revision = await world.deploy(spec(limits=Limits(max_concurrency=2)))
    for _ in range(2):
        world.begin(revision)
    running = [world.start(world.call(0, affinity=KEYS[7]), revision)]
    running += [world.start(world.call(1), revision)]
    await world.settled()
    for _ in range(2):
        world.ready(revision, says("hello", seconds=1))
    for one in running:
        await one.result()
    await world.start(world.call(2, affinity=KEYS[7]), revision).result()
    await world.start(world.call(3, affinity=KEYS[7]), revision).result()

    sent = {one.request.request_id: one.replica_id for one in world.replicas.sent}
    assert sent["req_2"] == sent["req_3"]
