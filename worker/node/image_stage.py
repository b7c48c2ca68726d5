"""The stage `image` of a start that went on while its image came."""

from collections import Counter
from collections.abc import Sequence

from infra.contracts.stage import Came, Moved, Stage, StageTiming


def with_image_read(
    stages: Sequence[StageTiming], read: Moved | None, *, began_at: float
) -> tuple[StageTiming, ...]:
    """The stages, and in `image` all that came of the image: before the container, and since.

    What was read lazily came while later stages went on, so the stage lasts no longer for it; one
    that nobody waited for takes no time at all.
    """
    if read is None:
        return tuple(stages)
    waited = [timing for timing in stages if timing.stage is Stage.IMAGE]
    came = Counter({each.source: each.bytes for each in read.came})
    for timing in waited:
        came[timing.source or ""] += timing.bytes or 0
    sources = tuple(Came(source=name, bytes=size) for name, size in came.most_common() if size)
    pulled_s = sum(timing.seconds for timing in waited if timing.bytes)
    first = waited[0] if waited else None
    image = StageTiming(
        stage=Stage.IMAGE,
        started_at=began_at if first is None else first.started_at,
        seconds=0.0 if first is None else first.seconds,
        bytes=came.total(),
        source="+".join(each.source for each in sources) or "cache",
        moved=Moved(came=sources, seconds=read.seconds + pulled_s),
    )
    return image, *(timing for timing in stages if timing.stage is not Stage.IMAGE)
