"""Reads Dockerfiles, and says what in one of them is not as it should be."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import require

_SECRET_FILE = re.compile(r"(^|/)(\.env|\.netrc|\.aws|\.docker|\.ssh|id_rsa|.*\.pem)(/|$)")
_INSTALLS = re.compile(r"\bpip3? install\b")
_HELD = re.compile(r"(-c|--constraint) constraints\.txt")
_PINNED = re.compile(r"(@sha256:[0-9a-f]{64}|:[0-9]+\.[0-9]+\.[0-9]+[A-Za-z0-9.-]*)$")


@dataclass(frozen=True)
class Instruction:
    """One instruction, its continued lines joined."""

    line: int
    name: str
    text: str

    def words(self) -> list[str]:
        """Of the exec form, or of what is written plainly."""
        if self.text.startswith("["):
            return [str(word) for word in json.loads(self.text)]
        return self.text.split()


@dataclass(frozen=True)
class Dockerfile:
    """Its stages, each a FROM with what follows; `arguments` are the defaults before the first."""

    arguments: dict[str, str]
    stages: list[list[Instruction]]

    @property
    def last(self) -> list[Instruction]:
        return self.stages[-1]

    def said(self, name: str) -> list[Instruction]:
        """Instructions of that name in the last stage."""
        return [instruction for instruction in self.last if instruction.name == name]

    def environment(self) -> dict[str, str]:
        pairs = (word for each in self.said("ENV") for word in each.words())
        return {name: value for name, _, value in (pair.partition("=") for pair in pairs)}


def parse(text: str) -> Dockerfile:
    arguments: dict[str, str] = {}
    stages: list[list[Instruction]] = []
    for instruction in _instructions(text):
        if instruction.name == "FROM":
            stages.append([instruction])
        elif stages:
            stages[-1].append(instruction)
        else:
            name, _, default = instruction.text.partition("=")
            arguments[name] = default
    return Dockerfile(arguments, stages)


def problems(text: str, root: Path) -> list[str]:
    """What hadolint says of it, and what else is wrong; `root` is the folder it is built in."""
    file = parse(text)
    found = _linted(text)
    if len(file.stages) < 2:
        found.append("1: one stage: what builds is shipped")
    names: set[str] = set()
    for stage in file.stages:
        found += _of_base(stage[0], file.arguments, names)
        names.add(stage[0].words()[-1])
        for instruction in stage[1:]:
            found += [f"{instruction.line}: {why}" for why in _of(instruction, root)]
    return found + [f"{file.last[0].line}: {why}" for why in _of_last(file)]


def _linted(text: str) -> list[str]:
    hadolint = Path(sys.executable).with_name("hadolint")
    require(hadolint.exists(), "hadolint")
    done = subprocess.run(
        [hadolint, "--no-color", "--no-fail", "-"],
        input=text,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def _instructions(text: str) -> Iterator[Instruction]:
    begun, rest = 0, ""
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#") or (not line.strip() and not rest):
            continue
        begun = begun or number
        rest += line.strip()
        if rest.endswith("\\"):
            rest = rest[:-1].rstrip() + " "
            continue
        name, _, said = rest.partition(" ")
        yield Instruction(begun, name.upper(), said.strip())
        begun, rest = 0, ""


def _of_base(base: Instruction, arguments: dict[str, str], names: set[str]) -> list[str]:
    image = base.words()[0]
    for name, default in arguments.items():
        image = image.replace(f"${{{name}}}", default)
    if image in names or _PINNED.search(image):
        return []
    return [f"{base.line}: {image} is not pinned to a version of three numbers or a digest"]


def _of(instruction: Instruction, root: Path) -> Iterator[str]:
    match instruction.name:
        case "RUN":
            installs = [it for it in instruction.text.split("&&") if _INSTALLS.search(it)]
            if not all(_HELD.search(it) for it in installs):
                yield "installs versions that are not pinned: --constraint constraints.txt"
        case "COPY" if "--from=" not in instruction.text:
            yield from _of_copy(instruction.words(), root)


def _of_copy(words: list[str], root: Path) -> Iterator[str]:
    for source in [word for word in words if not word.startswith("--")][:-1]:
        if source in {".", "./", "/"}:
            yield "copies whatever is here: name what is needed"
        elif _SECRET_FILE.search(source):
            yield f"{source} is a secret that the layer would tell"
        elif not (root / source).exists():
            yield f"{source} is not in the repository"


def _of_last(file: Dockerfile) -> Iterator[str]:
    users = [number for number, each in enumerate(file.last) if each.name == "USER"]
    if not users:
        yield "runs as root: end with a USER"
    elif any(each.name in {"RUN", "COPY"} for each in file.last[users[-1] :]):
        yield "goes on building after USER"
    if not file.said("ENTRYPOINT"):
        yield "has no ENTRYPOINT"
    if any(
        re.search(r"\b(g\+\+|gcc|build-essential)(\s|$)", each.text) for each in file.said("RUN")
    ):
        yield "ships a compiler"
