"""Where a step's tokens lie in a paged cache, as arrays that attention can be computed from."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from worker.kernels.port import Span

Integers = npt.NDArray[np.int32]

_SHORT = 16  # tokens of a sequence up to which it attends beside those that decode
LONGEST_ROW = 128  # tokens


@dataclass(frozen=True, slots=True)
class Rows:
    """Each row is up to a number of successive tokens of one sequence.

    They see the first `num_blocks` blocks of the row's table; what follows there is scratch.
    """

    firsts: Integers  # [rows]: positions of the first tokens
    num_blocks: Integers  # [rows]
    tables: Integers  # [rows, blocks]


@dataclass(frozen=True, slots=True)
class GatheredRows(Rows):
    """Rows of some of a step's tokens, filled up with any of them to be equally long."""

    tokens: Integers  # [rows * columns]


@dataclass(frozen=True, slots=True)
class Places:
    """Of each token its position and its slot, and in which calls they attend."""

    positions: Integers  # [tokens]
    slots: Integers  # [tokens]
    calls: tuple[GatheredRows, ...]
    order: Integers  # [tokens]: where its result is among those of all calls


def places(spans: Sequence[Span], *, block_size: int, scratch_block: int) -> Places:
    """Who has few tokens in this step attends in one call, others in another.

    So one long prompt does not make everybody's rows long.
    """
    pieces = _pieces(spans)
    short = [each for each in pieces if each[0].count <= _SHORT]
    long = [each for each in pieces if each[0].count > _SHORT]
    calls: list[GatheredRows] = []
    order = np.empty(sum(span.count for span in spans), np.int32)
    num_results = 0
    for chosen in filter(None, (short, long)):
        columns = max(piece.count for piece, _ in chosen)
        tokens = np.zeros((len(chosen), columns), np.int32)
        for row, (piece, begin) in enumerate(chosen):
            its_tokens = np.arange(begin, begin + piece.count)
            tokens[row, : piece.count] = its_tokens
            order[its_tokens] = num_results + row * columns + np.arange(piece.count)
        num_results += tokens.size
        spans_of_rows = [piece for piece, _ in chosen]
        blocks = max(_num_blocks(span, block_size) for span in spans_of_rows)
        rows = GatheredRows(
            np.empty(len(chosen), np.int32),
            np.empty(len(chosen), np.int32),
            np.empty((len(chosen), blocks), np.int32),
            tokens.ravel(),
        )
        fill_rows(rows, spans_of_rows, block_size=block_size, scratch_block=scratch_block)
        calls.append(rows)
    positions = [np.arange(span.first, span.first + span.count) for span in spans]
    return Places(
        np.concatenate(positions, dtype=np.int32),
        np.array([slot for span in spans for slot in slots_of(span, block_size)], np.int32),
        tuple(calls),
        order,
    )


def fill_rows(rows: Rows, spans: Sequence[Span], *, block_size: int, scratch_block: int) -> None:
    """One span a row; rows without one see nothing but scratch."""
    rows.firsts[:] = 0
    rows.num_blocks[:] = 1
    rows.tables[:] = scratch_block
    for row, span in enumerate(spans):
        count = _num_blocks(span, block_size)
        rows.firsts[row] = span.first
        rows.num_blocks[row] = count
        rows.tables[row, :count] = span.blocks[:count]


def slots_of(span: Span, block_size: int) -> list[int]:
    """Where in the cache its tokens lie."""
    return [
        span.blocks[position // block_size] * block_size + position % block_size
        for position in range(span.first, span.first + span.count)
    ]


def _pieces(spans: Sequence[Span]) -> list[tuple[Span, int]]:
    """Spans in pieces that fit a row, each with the place of its first token in the step."""
    pieces = []
    begin = 0
    for span in spans:
        for offset in range(0, span.count, LONGEST_ROW):
            count = min(LONGEST_ROW, span.count - offset)
            pieces.append((Span(span.first + offset, count, span.blocks, span.lane), begin))
            begin += count
    return pieces


def _num_blocks(span: Span, block_size: int) -> int:
    return -(-(span.first + span.count) // block_size)
