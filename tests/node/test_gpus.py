"""Which GPU a replica gets, and who owns what: pure and in tables."""

import random

import pytest

from infra.contracts.base import GpuId
from infra.gpus import Wish, choose, gpu_kind
from tests.node.makers import sleeping
from worker.node.allotment import Allotment, GpusAtHand
from worker.node.fake_gpus import a_gpu
from worker.node.gpu_table import GpuTable, Holder

ONE, TWO = Wish(1), Wish(2)


def ids(*numbers: int) -> tuple[GpuId, ...]:
    return tuple(GpuId(f"GPU-{number}") for number in numbers)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA A10G", "a10g"),
        ("Tesla T4", "t4"),
        ("Tesla V100-SXM2-16GB", "v100"),
        ("NVIDIA A100-SXM4-40GB", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA GH200 480GB", "gh200"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA GeForce GTX 1080 Ti", "gtx1080ti"),
        ("NVIDIA RTX A6000", "a6000"),
        ("NVIDIA GeForce RTX 4070 Ti", "rtx4070ti"),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", "rtx4070tisuper"),
        ("Quadro RTX 6000", "rtx6000"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx6000ada"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtxpro6000"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "h100-1g.10gb"),
        ("NVIDIA", "gpu"),
    ],
)
def test_a_class_is_what_people_call_a_gpu(name: str, kind: str) -> None:
    assert gpu_kind(name) == kind


def test_a_replica_gets_gpus_of_one_class_the_smallest_that_will_do() -> None:
    free = [a_gpu(0, "h100", 80 << 30), a_gpu(1), a_gpu(2, "h100", 80 << 30)]
    assert choose(free, ONE) == ids(1)
    assert choose(free, TWO) == ids(0, 2)
    assert choose(free, Wish(1, "H100")) == ids(0)
    assert choose(free, Wish(3)) is None
    assert choose(free, Wish(1, "a100")) is None
    assert choose(free, Wish(1, None, 30 << 30)) == ids(0)
    assert choose(free, Wish(1, "l4", 30 << 30)) is None


def test_parts_of_a_divided_gpu_serve_replicas_of_one_process_only() -> None:
    parts = [
        a_gpu(0, "a100-1g.5gb").model_copy(update={"gpu_id": GpuId(f"MIG-{n}")}) for n in range(2)
    ]
    assert choose(parts, ONE) == ("MIG-0",)
    assert choose(parts, TWO) is None


def test_what_one_replica_waits_for_no_later_one_is_given() -> None:
    allotment = Allotment(GpusAtHand((a_gpu(0),), (a_gpu(1),)), ())
    assert allotment.take(TWO) is None
    assert allotment.take(ONE) is None
    assert allotment.take(Wish()) == ()
    assert allotment.giving_way == []


def test_who_fell_asleep_first_gives_way_and_nobody_whose_gpu_is_not_needed() -> None:
    asleep = [
        sleeping(1, since=3, gpus=(a_gpu(1),)),
        sleeping(2, since=1, gpus=(a_gpu(2, "t4"),)),
        sleeping(3, since=2, gpus=(a_gpu(3),)),
        sleeping(4, since=0),
    ]
    allotment = Allotment(GpusAtHand(), asleep)
    assert allotment.take(Wish(1, "l4")) is None
    assert [one.worker_id for one in allotment.giving_way] == [3]

    allotment = Allotment(GpusAtHand(leaving=(a_gpu(9),)), asleep)
    assert allotment.take(Wish(1, "l4")) is None
    assert allotment.giving_way == []  # what is about to be free will do


def test_whose_time_is_over_gives_way_before_others() -> None:
    asleep = [sleeping(1, since=1, gpus=(a_gpu(1),)), sleeping(2, gpus=(a_gpu(2),), is_over=True)]
    allotment = Allotment(GpusAtHand(), asleep)
    assert allotment.take(ONE) is None
    assert [one.worker_id for one in allotment.giving_way] == [2]


def test_a_gpu_is_free_again_when_a_reading_that_began_later_finds_it_empty() -> None:
    table = GpuTable()
    wanted: list[int] = []
    table.on_given_back = lambda: wanted.append(table.num_given_back)
    full = a_gpu(0).model_copy(update={"used_bytes": 20 << 30})
    table.heard((a_gpu(0),), after=0)
    table.take(7, ids(0))
    assert table.free() == ()

    table.give_back(7)
    table.give_back(7)
    assert (wanted, table.free(), table.unread()) == ([1], (), (a_gpu(0),))
    table.heard((a_gpu(0),), after=0)  # it began before
    assert table.free() == ()
    table.heard((full,), after=1)
    assert table.free() == ()
    assert [gpu.trouble for gpu in table.told(lambda _: Holder())] == ["others use 20.0 GiB of it"]
    table.heard((a_gpu(0),), after=1)
    assert table.free() == (a_gpu(0),)


def test_memory_of_the_owner_is_no_trouble_and_little_of_others_neither() -> None:
    table = GpuTable()
    table.heard((a_gpu(0), a_gpu(1)), after=0)
    table.take(1, ids(0))
    used = (
        a_gpu(0).model_copy(update={"used_bytes": 23 << 30}),
        a_gpu(1).model_copy(update={"used_bytes": 1 << 30}),
    )
    assert not table.heard(used, after=0)
    assert [gpu.gpu_id for gpu in table.free()] == ["GPU-1"]
    assert all(gpu.trouble is None for gpu in table.told(lambda _: Holder()))


def test_what_is_owned_or_in_trouble_is_given_to_nobody() -> None:
    table = GpuTable()
    hurt = a_gpu(1).model_copy(update={"trouble": "XID 79"})
    assert table.heard((a_gpu(0), hurt), after=0)
    table.take(1, ids(0))
    with pytest.raises(AssertionError):
        table.take(2, ids(0))
    with pytest.raises(AssertionError):
        table.take(2, ids(1))


@pytest.mark.parametrize("seed", range(20))
def test_a_gpu_has_one_owner_whatever_happens_and_none_is_lost(seed: int) -> None:
    dice, table = random.Random(seed), GpuTable()
    gpus = tuple(a_gpu(number) for number in range(4))
    table.heard(gpus, after=0)
    owned: dict[int, tuple[GpuId, ...]] = {}
    for worker in range(200):
        chosen = choose(table.free(), Wish(dice.choice([1, 1, 2])))
        if chosen is not None:
            table.take(worker, chosen)
            owned[worker] = chosen
        for gone in [it for it in owned if dice.random() < 0.4]:
            table.give_back(gone)
            del owned[gone]
        if dice.random() < 0.7:
            table.heard(gpus, after=table.num_given_back)
        table.check_integrity()
        assert {it: table.owned_by(it) for it in owned} == owned
        assert len({it for ids in owned.values() for it in ids}) == sum(map(len, owned.values()))
    for worker in owned:
        table.give_back(worker)
    table.heard(gpus, after=table.num_given_back)
    assert table.free() == gpus
