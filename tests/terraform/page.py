"""The commands of docs/cloud.md, as they stand there."""

import re
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "cloud.md"
_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """One block of commands, and whether the page says that no test runs it."""

    commands: tuple[str, ...]
    is_left_out: bool

    @property
    def script(self) -> str:
        return "\n".join(("set -euo pipefail", *self.commands))


def blocks() -> list[Block]:
    found: list[Block] = []
    ended = 0
    text = PAGE.read_text()
    for match in _BLOCK.finditer(text):
        commands = tuple(it.removeprefix("$ ") for it in match[1].splitlines())
        found.append(Block(commands, "*Not run by the test" in text[ended : match.start()]))
        ended = match.end()
    return found


def block_of(command: str) -> Block:
    """The one whose first command begins so."""
    (found,) = (it for it in blocks() if it.commands[0].startswith(command))
    return found
