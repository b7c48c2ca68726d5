"""What a report says of an image that came while its program started already."""

from infra.contracts.stage import Came, Moved, Rung, Stage, StageTiming
from infra.contracts.worker_link import ImageRead, StageDone
from tests.node.makers import assignment
from worker.node.replica import Replica

READ = Moved(came=(Came(source="origin", bytes=800), Came(source="cache", bytes=100)), seconds=2.0)


def timing(stage: Stage, started_at: float, seconds: float, **facts: object) -> StageTiming:
    timing = StageTiming(stage=stage, started_at=started_at, seconds=seconds)
    return timing.model_copy(update=facts)


def climbed(rung: Rung, *stages: StageTiming) -> Replica:
    """At 100 it was assigned."""
    replica = Replica(assignment(), 100.0).claimed(1, rung, "container")
    for stage in stages:
        replica = replica.heard(StageDone(timing=stage))
    return replica


def test_an_image_that_nobody_waited_for_takes_no_time_and_shows_what_came() -> None:
    runtime = timing(Stage.RUNTIME, 100.0, 3.0)
    replica = climbed(Rung.IMAGE, runtime).heard(ImageRead(read=READ))

    image, later = replica.report().stages

    assert (image.stage, image.started_at, image.seconds) == (Stage.IMAGE, 100.0, 0.0)
    assert (image.bytes, image.source, image.moved) == (900, "origin+cache", READ)
    assert image.bytes_per_s == 400.0, "what was here did not move"
    assert later.seconds == 3.0


def test_an_image_that_was_pulled_for_it_counts_what_came_before_and_since() -> None:
    pulled = timing(Stage.IMAGE, 99.0, 3.0, bytes=200, source="origin")
    replica = climbed(Rung.NODE, pulled, timing(Stage.RUNTIME, 102.0, 1.0))
    replica = replica.heard(ImageRead(read=READ))

    image = replica.report().stages[0]

    assert (image.started_at, image.seconds) == (100.0, 2.0)
    assert (image.bytes, image.source) == (1100, "origin+cache")
    assert image.bytes_per_s == 1000 / (2.0 + 2.0)


def test_the_last_word_of_what_was_read_counts() -> None:
    earlier = Moved(came=(Came(source="origin", bytes=1),), seconds=1.0)
    replica = climbed(Rung.IMAGE).heard(ImageRead(read=earlier)).heard(ImageRead(read=READ))

    (image,) = replica.report().stages

    assert image.moved == READ


def test_an_image_of_which_nothing_had_to_be_read_says_so() -> None:
    replica = climbed(Rung.IMAGE).heard(ImageRead(read=Moved(seconds=0)))

    (image,) = replica.report().stages

    assert (image.bytes, image.source, image.bytes_per_s) == (0, "cache", None)


def test_a_container_that_was_parked_had_read_its_image_before() -> None:
    runtime = timing(Stage.RUNTIME, 100.0, 0.1)
    replica = climbed(Rung.RUNTIME, runtime).heard(ImageRead(read=READ))

    assert [it.stage for it in replica.report().stages] == [Stage.RUNTIME]
