"""What the command line says of a model's image."""

from pathlib import Path

import pytest

from control_plane.cli.explaining import explanation
from control_plane.cli.listing import listing
from infra.contracts.image import ImageState, ImageStatus
from infra.contracts.release import RevisionStatus
from tests.cli.conftest import Run
from tests.cli.fake_platform import FakePlatform, as_json, model, model_json
from tests.cli.test_explaining import an_explanation
from tests.cli.test_verbs import MODEL, SPEC

IMAGE = "r.io/team/worker@sha256:0123"
INDEXING = ImageStatus(
    reference=IMAGE, state=ImageState.INDEXING, fraction=0.4, detail="indexing image, 40%"
)
LAZY = ImageStatus(reference=IMAGE, state=ImageState.LAZY, detail="2 of 3 layers are mounted")
WHOLE = ImageStatus(
    reference=IMAGE,
    state=ImageState.WHOLE,
    detail="its layers are downloaded whole: r.io refuses us\x1b[2J",
    hint="log in: docker login r.io",
)
SMALL = ImageStatus(
    reference=IMAGE, state=ImageState.WHOLE, detail="its layers are downloaded whole: all are small"
)


def revisions(*images: ImageStatus) -> list[object]:
    """What the platform says of the revisions, one answer after the other."""
    return [
        as_json({"object": "list", "data": [revision(image).model_dump(mode="json")]})
        for image in images
    ]


def revision(image: ImageStatus) -> RevisionStatus:
    return RevisionStatus(
        revision="chat@1",
        percent=100,
        is_previous=False,
        source="file:///models/chat",
        digest="sha256:0",
        image=image,
        created_at=0,
        replicas=0,
        in_flight=0,
        waiting=0,
        requests=0,
        failed=0,
    )


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "model.yaml"
    path.write_text(SPEC)
    return path


def test_a_deploy_follows_until_the_image_is_indexed(
    run: Run, platform: FakePlatform, spec: Path
) -> None:
    platform.answer(f"PUT {MODEL}", model_json(model(image=INDEXING), 202))
    platform.answer(f"GET {MODEL}/revisions", *revisions(INDEXING, LAZY))

    waited = run("deploy", str(spec))
    platform.answer(f"PUT {MODEL}", model_json(model(image=INDEXING), 202))
    at_once = run("deploy", str(spec), "--no-wait")

    assert f"  image  {IMAGE}: 2 of 3 layers are mounted\n" in waited.out
    assert f"  image  {IMAGE}: indexing image, 40%\n" in at_once.out


def test_a_deploy_does_not_fail_where_the_index_takes_longer_or_cannot_be_made(
    run: Run, platform: FakePlatform, spec: Path
) -> None:
    platform.answer(f"PUT {MODEL}", model_json(model(image=INDEXING), 202))
    platform.answer(f"GET {MODEL}/revisions", *revisions(INDEXING))
    late = run("deploy", str(spec), "--timeout", "0.01")
    platform.answer(f"GET {MODEL}/revisions", *revisions(WHOLE))
    refused = run("deploy", str(spec))

    assert (late.code, refused.code) == (0, 0)
    assert "indexing image, 40%" in late.out
    assert "downloaded whole: r.io refuses us[2J\nhint: log in: docker login r.io" in refused.out


def test_ls_says_what_is_not_settled_or_wrong_and_nothing_else() -> None:
    models = [
        model("a", image=INDEXING),
        model("b", image=LAZY),
        model("c", image=WHOLE),
        model("d", image=SMALL),
        model("e"),
    ]
    lines = [line.plain for line in listing(models, unix_now=0)]
    assert lines[6:] == [
        "",
        f"a@1 runs {IMAGE}: indexing image, 40%",
        f"c@1 runs {IMAGE}: its layers are downloaded whole: r.io refuses us[2J\n"
        "hint: log in: docker login r.io",
    ]


def test_explain_says_what_a_model_runs() -> None:
    found = an_explanation().model_copy(update={"image": LAZY})
    lines = [line.plain for line in explanation(found)]
    assert lines[1] == f"it runs {IMAGE}: 2 of 3 layers are mounted"
