"""What the first rank of a group tells the others to do, as bytes: no rank decides for itself.

An order is its length, then that many int32: the kind, then its numbers. Block tables grow from
step to step; of a table that is known no more than its new blocks is sent.
"""

import socket
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from worker.kernels.port import Span

_ALLOCATE, _STEP, _HEAD, _REST = 1, 2, 3, 4
_ITEM = array("i").itemsize
_RECEIVED_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class Allocate:
    """Reserve the KV cache."""

    num_blocks: int
    block_size: int
    lanes: int


@dataclass(frozen=True, slots=True)
class Step:
    """Compute these tokens; see CausalModel.states."""

    token_ids: Sequence[int]
    spans: Sequence[Span]
    wanted: Sequence[int]


@dataclass(frozen=True, slots=True)
class Head:
    """Compute the logits of so many states, which the first rank spreads."""

    rows: int


@dataclass(frozen=True, slots=True)
class Rest:
    """Fall asleep: drop the cache and move weights to the host. Or wake: move them back."""

    is_asleep: bool


Order = Allocate | Step | Head | Rest


class OrderWriter:
    """Remembers which block tables the others know."""

    def __init__(self) -> None:
        self._owners: dict[int, Sequence[int]] = {}  # by lane
        self._known: dict[int, int] = {}

    def written(self, order: Order) -> bytes:
        """The order as it is sent, to every rank the same; each order is written once."""
        numbers = array("i", self._numbers(order))
        return array("i", (len(numbers),)).tobytes() + numbers.tobytes()

    def _numbers(self, order: Order) -> Sequence[int]:
        match order:
            case Allocate(num_blocks, block_size, lanes):
                return (_ALLOCATE, num_blocks, block_size, lanes)
            case Head(rows):
                return (_HEAD, rows)
            case Rest(is_asleep):
                return (_REST, int(is_asleep))
            case Step(token_ids, spans, wanted):
                numbers = [_STEP, len(token_ids), len(wanted), len(spans), *token_ids, *wanted]
                for span in spans:
                    self._add(numbers, span)
                return numbers

    def _add(self, numbers: list[int], span: Span) -> None:
        lane, blocks = span.lane, span.blocks
        known = self._known.get(lane, 0)
        if self._owners.get(lane) is not blocks or len(blocks) < known:
            self._owners[lane], known = blocks, 0
        self._known[lane] = len(blocks)
        numbers.extend((span.first, span.count, lane, known, len(blocks) - known))
        numbers.extend(blocks[known:])


class OrderReader:
    """The other end; a lane's table is one list for as long as its sequence runs."""

    def __init__(self) -> None:
        self._tables: dict[int, list[int]] = {}

    def read(self, numbers: "array[int]") -> Order:
        """An order without its length."""
        match numbers[0]:
            case 1:
                return Allocate(*numbers[1:4])
            case 2:
                return self._step(numbers)
            case 3:
                return Head(numbers[1])
            case kind:
                assert kind == _REST, "the first rank sends nothing else"
                return Rest(bool(numbers[1]))

    def _step(self, numbers: "array[int]") -> Step:
        _, num_tokens, num_wanted, num_spans = numbers[:4]
        begin = 4 + num_tokens
        token_ids, wanted = numbers[4:begin], numbers[begin : begin + num_wanted]
        at, spans = begin + num_wanted, []
        for _ in range(num_spans):
            first, count, lane, known, grown = numbers[at : at + 5]
            at += 5
            if not known:
                self._tables[lane] = []
            table = self._tables[lane]
            table.extend(numbers[at : at + grown])
            at += grown
            spans.append(Span(first, count, table, lane))
        return Step(token_ids, spans, wanted)


def orders(link: socket.socket) -> Iterator[Order]:
    """Orders as they come, until the other end closes."""
    reader, buffer = OrderReader(), bytearray()
    while received := link.recv(_RECEIVED_BYTES):
        buffer += received
        while len(buffer) >= _ITEM:
            size = _ITEM * (1 + int.from_bytes(buffer[:_ITEM], "little"))
            if len(buffer) < size:
                break
            numbers = array("i", bytes(buffer[_ITEM:size]))
            del buffer[:size]
            yield reader.read(numbers)
