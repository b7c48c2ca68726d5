"""Tables of a module's or an example's variables and outputs, from its own files.

`python -m tests.terraform.tables` writes them into the READMEs; a test compares.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import hcl2

ROOT = Path(__file__).parents[2] / "terraform"
BEGIN, END = "<!-- variables and outputs: begin -->", "<!-- variables and outputs: end -->"


def folders() -> list[Path]:
    return sorted(it for kind in ("modules", "examples") for it in ROOT.glob(f"{kind}/*/"))


@cache  # the parser takes a while
def blocks(folder: Path, kind: str) -> dict[str, dict[str, Any]]:
    """What `variables.tf` or `outputs.tf` declares, by name."""
    with (folder / f"{kind}s.tf").open() as file:
        found = hcl2.load(file)[kind]
    return {_plain(name): fields for block in found for name, fields in block.items()}


def description(fields: dict[str, Any]) -> str:
    return _plain(fields.get("description", ""))


def kind_of(fields: dict[str, Any]) -> str:
    """A variable's type on one line."""
    return _plain(fields.get("type", "")).removeprefix("${").removesuffix("}")


def with_tables(readme: str, folder: Path) -> str:
    """The README with its part between the marks made anew."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{''.join(_tables(folder))}{END}{after}"


def _tables(folder: Path) -> Iterator[str]:
    yield "\n| variable | type | default | meaning |\n|---|---|---|---|\n"
    for name, fields in blocks(folder, "variable").items():
        default = f"`{_shown(fields['default'])}`" if "default" in fields else "required"
        yield f"| `{name}` | {_cell(kind_of(fields))} | {default} | {description(fields)} |\n"
    yield "\n| output | meaning |\n|---|---|\n"
    for name, fields in blocks(folder, "output").items():
        yield f"| `{name}` | {description(fields)} |\n"
    yield "\n"


def _cell(text: str) -> str:
    return f"`{text}`" if len(text) <= 60 else f"`{text.partition('(')[0]}(…)`"


def _shown(value: Any) -> str:
    """A default as Terraform writes it."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case list():
            return f"[{', '.join(map(_shown, value))}]"
        case dict():
            shown = f"{{{', '.join(f'{_plain(it)} = {_shown(value[it])}' for it in value)}}}"
            return shown if len(shown) <= 60 else "{…}"
        case _:
            return str(value)


def _plain(text: str) -> str:
    return text[1:-1] if text[:1] == text[-1:] == '"' else text


def main() -> None:
    for folder in folders():
        readme = folder / "README.md"
        readme.write_text(with_tables(readme.read_text(), folder))


if __name__ == "__main__":
    main()
