"""Which of a node's free GPUs a replica gets: pure, so that who places foresees who assigns."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile

from infra.contracts.base import GpuId
from infra.contracts.node import Gpu


@dataclass(frozen=True, slots=True)
class Wish:
    """What one replica asks for; any class for None, each GPU with so much memory at least."""

    count: int = 0
    kind: str | None = None
    memory_bytes: int = 0


def choose(free: Iterable[Gpu], wish: Wish) -> tuple[GpuId, ...] | None:
    """As many GPUs as are wished, of one class; None where there are not as many.

    Of several classes the one with the least memory, within a class the first.
    """
    by_kind: dict[str, list[Gpu]] = {}
    for gpu in free:
        if suits(gpu, wish):
            by_kind.setdefault(gpu.kind, []).append(gpu)
    enough = [gpus for gpus in by_kind.values() if len(gpus) >= wish.count]
    if not enough:
        return None
    chosen = min(enough, key=lambda gpus: (gpus[0].memory_bytes, gpus[0].kind))
    return tuple(gpu.gpu_id for gpu in chosen[: wish.count])


def suits(gpu: Gpu, wish: Wish) -> bool:
    """Whether it can be one of those.

    Parts of a divided GPU (MIG) cannot exchange tensors: of several none is one.
    """
    is_of_class = wish.kind is None or gpu.kind == wish.kind.lower()
    is_too_small = gpu.memory_bytes < wish.memory_bytes
    return is_of_class and not is_too_small and not (wish.count > 1 and gpu.is_part)


def gpu_kind(name: str) -> str:
    """The class of a GPU whose driver calls it so: `NVIDIA A100-SXM4-40GB` is an a100.

    A part of it is a class of its own: `NVIDIA H100 80GB HBM3 MIG 1g.10gb` is an h100-1g.10gb.
    """
    whole, _, part = name.lower().partition(" mig ")
    words = [word for word in whole.replace("-", " ").split() if word not in _BRANDS]
    match words:
        case ["rtx", "pro", number, *_]:
            kind = f"rtxpro{number}"
        case [("rtx" | "gtx" | "titan") as family, number, *rest] if number[0].isdigit():
            kind = family + number + "".join(takewhile(_GRADES.__contains__, rest))
        case ["rtx" | "gtx", model, *_]:
            kind = model
        case [model, *_]:
            kind = model
        case _:
            kind = "gpu"
    return f"{kind}-{part.strip()}" if part else kind


_BRANDS = frozenset({"nvidia", "tesla", "geforce", "quadro"})
_GRADES = frozenset({"ti", "super", "sff", "ada"})
