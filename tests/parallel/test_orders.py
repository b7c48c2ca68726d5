import random
import socket
from array import array

from worker.kernels.port import Span
from worker.models.orders import Allocate, Head, Order, OrderReader, OrderWriter, Rest, Step, orders


def told(*sent: Order) -> list[Order]:
    """What the other end hears of a whole conversation."""
    writer, reader = OrderWriter(), OrderReader()
    heard = []
    for order in sent:
        numbers = array("i", writer.written(order))
        assert numbers[0] == len(numbers) - 1
        heard.append(snapshot(reader.read(numbers[1:])))
    return heard


def snapshot(order: Order) -> Order:
    match order:
        case Step(token_ids, spans, wanted):
            copies = [Span(it.first, it.count, list(it.blocks), it.lane) for it in spans]
            return Step(list(token_ids), copies, list(wanted))
        case _:
            return order


def test_orders_are_heard_as_they_are_told() -> None:
    step = Step([5, 6, 7], [Span(0, 2, [3, 1], 0), Span(4, 1, [2], 1)], [1, 2])

    assert told(Allocate(64, 16, 4), step, Head(2)) == [Allocate(64, 16, 4), step, Head(2)]


def test_a_table_that_grows_is_sent_in_parts_and_stays_one_list() -> None:
    writer, reader, table = OrderWriter(), OrderReader(), [1, 2, 3]

    def hear() -> tuple[int, Span]:
        data = writer.written(Step([1], [Span(0, 1, table, 2)], []))
        order = reader.read(array("i", data)[1:])
        assert isinstance(order, Step)
        return len(data), order.spans[0]

    first_size, first = hear()
    table += [7, 8]
    second_size, second = hear()

    assert second.blocks is first.blocks and list(second.blocks) == [1, 2, 3, 7, 8]
    assert second_size == first_size - 4, "two new blocks instead of three"


def test_a_lane_that_another_sequence_takes_starts_anew() -> None:
    """Also when a table has shrunk: a sequence that was preempted comes back with less."""
    chance = random.Random(3)
    writer, reader = OrderWriter(), OrderReader()
    tables: dict[int, list[int]] = {lane: [] for lane in range(4)}
    for _ in range(500):
        lane = chance.randrange(4)
        match chance.randrange(3):
            case 0:
                tables[lane] = [chance.randrange(99) for _ in range(chance.randrange(1, 9))]
            case 1:
                del tables[lane][chance.randrange(len(tables[lane]) + 1) :]
            case _:
                tables[lane] += [chance.randrange(99)]
        spans = [Span(0, 1, tables[lane], lane)]
        data = writer.written(Step([1], spans, []))
        order = reader.read(array("i", data)[1:])
        assert isinstance(order, Step)
        assert list(order.spans[0].blocks) == tables[lane]


def test_orders_come_whole_however_they_are_cut() -> None:
    ours, theirs = socket.socketpair()
    sent: list[Order] = [Allocate(4, 16, 1), Step(list(range(900)), [], [3]), Head(1)]
    sent += [Rest(is_asleep=True), Rest(is_asleep=False)]
    writer = OrderWriter()
    data = b"".join(map(writer.written, sent))
    with ours, theirs:
        heard = orders(theirs)
        got: list[Order] = []
        for start in range(0, len(data), 97):
            ours.sendall(data[start : start + 97])
        ours.shutdown(socket.SHUT_WR)
        got += map(snapshot, heard)

    assert got == sent
