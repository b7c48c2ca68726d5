"""Columns of text below their headings."""

from collections.abc import Collection, Iterable, Sequence

from rich.text import Text

GAP = "  "


def table(
    headings: Sequence[str], rows: Iterable[Sequence[Text]], *, numbers: Collection[str]
) -> list[Text]:
    """One line a row below a line of headings; lines are never broken, so that they can be
    searched. Columns of `numbers` end on the right."""
    cells = [[Text(heading) for heading in headings], *rows]
    widths = [max(cell.cell_len for cell in column) for column in zip(*cells, strict=True)]
    return [_line(headings, row, widths, numbers) for row in cells]


def _line(
    headings: Sequence[str], row: Sequence[Text], widths: Sequence[int], numbers: Collection[str]
) -> Text:
    cells = []
    for heading, cell, width in zip(headings, row, widths, strict=True):
        filling = Text(" " * (width - cell.cell_len))
        cells.append(filling + cell if heading in numbers else cell + filling)
    line = Text(GAP).join(cells)
    line.rstrip()
    return line
