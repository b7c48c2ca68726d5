"""Which of a node's free GPUs a replica gets: pure, so that who places foresees who assigns."""

from collections.abc import Iterable

from infra.contracts.base import GpuId
from infra.contracts.node import Gpu


def choose(free: Iterable[Gpu], count: int, kind: str | None) -> tuple[GpuId, ...] | None:
    """`count` GPUs of one class, for one replica; None where there are not as many.

    Of several classes the one with the least memory, within a class the first.
    """
    by_kind: dict[str, list[Gpu]] = {}
    for gpu in free:
        if suits(gpu, count, kind):
            by_kind.setdefault(gpu.kind, []).append(gpu)
    enough = [gpus for gpus in by_kind.values() if len(gpus) >= count]
    if not enough:
        return None
    chosen = min(enough, key=lambda gpus: (gpus[0].memory_bytes, gpus[0].kind))
    return tuple(gpu.gpu_id for gpu in chosen[:count])


def suits(gpu: Gpu, count: int, kind: str | None) -> bool:
    """Whether it can be one of `count` of the class that `resources.gpu` names; None takes any.

    Parts of a divided GPU (MIG) cannot exchange tensors: of several none is one.
    """
    is_alone = count > 1 and gpu.is_part
    return not is_alone and (kind is None or gpu.kind == kind.lower())


def gpu_kind(name: str) -> str:
    """The class of a GPU whose driver calls it so: `NVIDIA A100-SXM4-40GB` is an a100.

    A part of it is a class of its own: `NVIDIA H100 80GB HBM3 MIG 1g.10gb` is an h100-1g.10gb.
    """
    whole, _, part = name.lower().partition(" mig ")
    words = [word for word in whole.replace("-", " ").split() if word not in _BRANDS]
    match words:
        case [("rtx" | "gtx" | "titan") as family, number, *rest] if number[0].isdigit():
            kind = family + number + "".join(rest[:1] if rest and rest[0] in _GRADES else ())
        case ["rtx" | "gtx", model, *_]:
            kind = model
        case [model, *_]:
            kind = model
        case _:
            kind = "gpu"
    return f"{kind}-{part.strip()}" if part else kind


_BRANDS = frozenset({"nvidia", "tesla", "geforce", "quadro"})
_GRADES = frozenset({"ti", "super"})
