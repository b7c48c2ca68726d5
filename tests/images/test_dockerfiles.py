"""The Dockerfiles keep the rules that matter, and describe what scripts/images builds."""

from pathlib import Path

import pytest

from benchmarks.image_build.image import CONTROL_PLANE, WORKER, Recipe, config_of
from tests.support.dockerfile import Dockerfile, parse, problems
from worker.node.container.spec import INSIDE, MODELS, USER

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "infra" / "images"

GOOD = """\
ARG BASE=3.11.14-slim
FROM python:${BASE} AS build
WORKDIR /code
COPY constraints.txt ./
RUN pip install --no-cache-dir --constraint constraints.txt x
FROM python:${BASE}
COPY --from=build /code /code
USER 65532:65532
ENTRYPOINT ["python3"]
"""


def dockerfile(name: str) -> Dockerfile:
    return parse((IMAGES / f"{name}.Dockerfile").read_text())


@pytest.mark.parametrize("path", sorted(IMAGES.glob("*.Dockerfile")), ids=lambda path: path.stem)
def test_our_dockerfiles_have_no_problem(path: Path) -> None:
    assert problems(path.read_text(), ROOT) == []


def test_there_is_one_for_each_program_that_is_shipped_as_an_image() -> None:
    assert [path.stem for path in sorted(IMAGES.glob("*.Dockerfile"))] == [
        "control-plane",
        "worker",
    ]


@pytest.mark.parametrize(("name", "recipe"), [("worker", WORKER), ("control-plane", CONTROL_PLANE)])
def test_what_scripts_images_builds_runs_as_the_dockerfile_says(name: str, recipe: Recipe) -> None:
    file, config = dockerfile(name), config_of(recipe)

    assert config["User"] == file.said("USER")[-1].text
    assert config["Entrypoint"] == file.said("ENTRYPOINT")[-1].words()
    assert config["WorkingDir"] == file.said("WORKDIR")[-1].text
    assert config.get("Cmd", []) == [word for each in file.said("CMD") for word in each.words()]
    built = dict(line.split("=", 1) for line in config["Env"] if not line.startswith("PATH="))
    assert built == file.environment()


@pytest.mark.parametrize("name", ["worker", "control-plane"])
def test_a_container_that_writes_no_bytecode_brings_it(name: str) -> None:
    build = dockerfile(name).stages[0]
    folder = [each.text for each in build if each.name == "WORKDIR"][-1]
    compiled = [each.text for each in build if "compileall" in each.text]

    assert dockerfile(name).environment()["PYTHONDONTWRITEBYTECODE"] == "1"
    assert folder == dockerfile(name).said("WORKDIR")[-1].text
    ends = [text.partition("--invalidation-mode unchecked-hash ")[2] for text in compiled]
    assert [end.split()[0] for end in ends] == ["/opt/firstlight/site", "."]


def test_the_worker_has_what_its_containers_need() -> None:
    (made,) = (each.text for each in dockerfile("worker").said("RUN"))

    assert f"mkdir -p {INSIDE} {MODELS}" in made
    assert dockerfile("worker").said("USER")[-1].text == f"{USER}:{USER}"


def test_a_good_file_has_no_problem() -> None:
    assert problems(GOOD, ROOT) == []


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        ("3.11.14-slim", "latest", "not pinned"),
        ("3.11.14-slim", "3.11", "not pinned"),
        ("USER 65532:65532\n", "", "runs as root"),
        ("USER 65532:65532", "USER root", "should not be root"),
        ("USER 65532:65532", "USER firstlight", "Non-numeric user-id"),
        ("ENTRYPOINT [", "RUN echo\nENTRYPOINT [", "goes on building"),
        ('["python3"]', "python3", "JSON notation"),
        ('ENTRYPOINT ["python3"]\n', "", "no ENTRYPOINT"),
        ("COPY constraints.txt ./", "COPY . .", "whatever is here"),
        ("COPY constraints.txt ./", "COPY no-such-file ./", "not in the repository"),
        ("COPY constraints.txt ./", "COPY .env ./", "secret"),
        ("COPY constraints.txt ./", "ADD constraints.txt ./", "instead of ADD"),
        ("WORKDIR /code", "WORKDIR code", "absolute WORKDIR"),
        ("WORKDIR /code", "ENV API_KEY=x", "sensitive data"),
        ("WORKDIR /code", "ARG NPM_TOKEN", "sensitive data"),
        ("--no-cache-dir ", "", "cache"),
        ("--constraint constraints.txt ", "", "not pinned"),
        ("--from=build", "--from=other", "previously defined"),
        (
            "pip install",
            "apt-get update && apt-get install -y y && pip install",
            "--no-install-recommends",
        ),
        ("RUN pip", "RUN curl https://x | sh && pip", "pipefail"),
        ("COPY --from=build", "RUN apt-get install g++\nCOPY --from=build", "compiler"),
    ],
)
def test_what_breaks_a_rule_is_found(before: str, after: str, why: str) -> None:
    assert before in GOOD

    assert any(why in problem for problem in problems(GOOD.replace(before, after), ROOT))


def test_a_file_of_one_stage_is_found() -> None:
    assert "1: one stage: what builds is shipped" in problems("FROM python:3.11.14\nUSER 1\n", ROOT)
