"""Reads Dockerfiles, and says what in one of them is not as it should be."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SECRET = re.compile(r"(TOKEN|SECRET|PASSWORD|CREDENTIAL|API_?KEY|PRIVATE_?KEY)", re.IGNORECASE)
_SECRET_FILE = re.compile(r"(^|/)(\.env|\.netrc|\.aws|\.docker|\.ssh|id_rsa|.*\.pem)(/|$)")
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
    """What is wrong, each with its line; `root` is the folder that it is built in."""
    file = parse(text)
    if len(file.stages) < 2:
        return ["1: one stage: what builds is shipped"]
    found: list[str] = []
    names: set[str] = set()
    for stage in file.stages:
        found += _of_base(stage[0], file.arguments, names)
        names.add(stage[0].words()[-1])
        for instruction in stage[1:]:
            found += [f"{instruction.line}: {why}" for why in _of(instruction, root, names)]
    found += [f"{file.last[0].line}: {why}" for why in _of_last(file)]
    return found


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


def _of(instruction: Instruction, root: Path, stages: set[str]) -> Iterator[str]:
    match instruction.name:
        case "ADD":
            yield "ADD unpacks and downloads: COPY what is here"
        case "MAINTAINER":
            yield "MAINTAINER is a LABEL"
        case "RUN":
            yield from _of_run(instruction.text)
        case "COPY":
            yield from _of_copy(instruction.words(), root, stages)
        case "ENV" | "ARG":
            for word in instruction.words():
                if _SECRET.search(word.partition("=")[0]):
                    yield f"{word.partition('=')[0]} is a secret that every layer would tell"
        case "WORKDIR" if not instruction.text.startswith("/"):
            yield "WORKDIR is not absolute"
        case "ENTRYPOINT" | "CMD" | "VOLUME" if not instruction.text.startswith("["):
            yield f"{instruction.name} runs in a shell: write it as a JSON list"


def _of_run(command: str) -> Iterator[str]:
    if "apt-get install" in command:
        if "apt-get update" not in command:
            yield "installs from lists of another layer: update in the same RUN"
        if "--no-install-recommends" not in command:
            yield "installs what is only recommended"
        if "rm -rf /var/lib/apt/lists" not in command:
            yield "keeps the lists of packages"
    if re.search(r"\bpip3? install\b", command):
        if "--no-cache-dir" not in command:
            yield "keeps pip's cache"
        if not re.search(r"(-c|--constraint) constraints\.txt", command):
            yield "installs versions that are not pinned: --constraint constraints.txt"
    if re.search(r"\b(curl|wget)\b.*\|", command):
        yield "runs what it downloads"
    if re.search(r"\bsudo\b", command):
        yield "sudo"
    if re.search(r"chmod\s+(-R\s+)?0?777", command):
        yield "lets everybody write"


def _of_copy(words: list[str], root: Path, stages: set[str]) -> Iterator[str]:
    options = [word for word in words if word.startswith("--")]
    sources = [word for word in words if not word.startswith("--")][:-1]
    for option in options:
        if option.startswith("--from=") and option.removeprefix("--from=") not in stages:
            yield f"{option} names no stage before it"
    if any(option.startswith("--from=") for option in options):
        return
    for source in sources:
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
        return
    if not re.fullmatch(r"[1-9][0-9]*(:[1-9][0-9]*)?", file.last[users[-1]].text):
        yield f"USER {file.last[users[-1]].text} is not a number other than 0"
    if any(each.name in {"RUN", "COPY"} for each in file.last[users[-1] :]):
        yield "goes on building after USER"
    if not file.said("ENTRYPOINT"):
        yield "has no ENTRYPOINT"
    if any(
        re.search(r"\b(g\+\+|gcc|build-essential)(\s|$)", each.text) for each in file.said("RUN")
    ):
        yield "ships a compiler"
