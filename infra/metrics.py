"""Counters, histograms and gauges of one process, exposed in the Prometheus text format."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = tuple[str, ...]
GaugeReader = Callable[[], Iterable[tuple[Labels, float]]]


class Counter:
    """Counts that only grow, one a set of label values; an increment costs a dict update."""

    def __init__(self, name: str, description: str, labels: Sequence[str]) -> None:
        self._name = name
        self._description = description
        self._labels = labels
        self._counts: dict[Labels, float] = {}

    def add(self, *labels: str, by: float = 1) -> None:
        """Adds `by` to the count of these label values, in the order they were declared."""
        self._counts[labels] = self._counts.get(labels, 0) + by

    def value(self, *labels: str) -> float:
        return self._counts.get(labels, 0)

    def matching(self, *first: str) -> dict[Labels, float]:
        """The counts whose labels begin so."""
        return {it: count for it, count in self._counts.items() if it[: len(first)] == first}

    def forget(self, *first: str) -> None:
        """Drops the counts whose labels begin so: what they count is gone."""
        for labels in self.matching(*first):
            del self._counts[labels]

    def retain(self, label: str, keeps: Callable[[str], bool]) -> None:
        """See Metrics.retain."""
        for labels in _gone(self._counts, self._labels, label, keeps):
            del self._counts[labels]

    def collect(self) -> Metric:
        family = CounterMetricFamily(self._name, self._description, labels=self._labels)
        for labels, count in sorted(self._counts.items()):
            family.add_metric(labels, count)
        return family


class Histogram:
    """Observations counted into buckets; `buckets` are upper bounds, ascending, +Inf implied."""

    def __init__(
        self, name: str, description: str, labels: Sequence[str], buckets: Sequence[float]
    ) -> None:
        self._name = name
        self._description = description
        self._labels = labels
        self._bounds = tuple(buckets)
        self._counts: dict[Labels, list[int]] = {}
        self._sums: dict[Labels, float] = {}

    def observe(self, *labels: str, value: float) -> None:
        """Counts one observation."""
        counts = self._counts.get(labels)
        if counts is None:
            counts = self._counts[labels] = [0] * (len(self._bounds) + 1)
        counts[bisect_left(self._bounds, value)] += 1
        self._sums[labels] = self._sums.get(labels, 0.0) + value

    def count(self, *labels: str) -> int:
        return sum(self._counts.get(labels, ()))

    def retain(self, label: str, keeps: Callable[[str], bool]) -> None:
        """See Metrics.retain."""
        for labels in _gone(self._counts, self._labels, label, keeps):
            del self._counts[labels], self._sums[labels]

    def collect(self) -> Metric:
        family = HistogramMetricFamily(self._name, self._description, labels=self._labels)
        for labels, counts in sorted(self._counts.items()):
            family.add_metric(labels, list(self._cumulative(counts)), self._sums[labels])
        return family

    def _cumulative(self, counts: list[int]) -> Iterator[tuple[str, float]]:
        total = 0
        for bound, count in zip((*self._bounds, float("inf")), counts, strict=True):
            total += count
            yield "+Inf" if bound == float("inf") else str(float(bound)), total


def _gone(
    series: Iterable[Labels], names: Sequence[str], label: str, keeps: Callable[[str], bool]
) -> list[Labels]:
    if label not in names:
        return []
    place = tuple(names).index(label)
    return [labels for labels in series if not keeps(labels[place])]


class _Gauge:
    def __init__(
        self, name: str, description: str, labels: Sequence[str], read: GaugeReader
    ) -> None:
        self._name = name
        self._description = description
        self._labels = labels
        self._read = read

    def collect(self) -> Metric:
        family = GaugeMetricFamily(self._name, self._description, labels=self._labels)
        for labels, value in self._read():
            family.add_metric(labels, value)
        return family


_Instrument = TypeVar("_Instrument", Counter, Histogram, _Gauge)


class Metrics:
    """The instruments of one process in a registry of their own.

    A gauge is read from the state it shows when it is asked for: it has nothing to leak.
    """

    def __init__(self, prefix: str = "firstlight") -> None:
        self._prefix = prefix
        self._instruments: list[Counter | Histogram | _Gauge] = []
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def counter(self, name: str, description: str, labels: Sequence[str] = ()) -> Counter:
        return self._add(Counter(self._full(name), description, labels))

    def histogram(
        self, name: str, description: str, labels: Sequence[str] = (), *, buckets: Sequence[float]
    ) -> Histogram:
        return self._add(Histogram(self._full(name), description, labels, buckets))

    def gauge(self, name: str, description: str, labels: Sequence[str], read: GaugeReader) -> None:
        """A gauge whose values `read` gives, each with its label values, at every scrape."""
        self._add(_Gauge(self._full(name), description, labels, read))

    def retain(self, label: str, keeps: Callable[[str], bool]) -> None:
        """Drops whatever was counted of values of a label that are not to be kept."""
        for instrument in self._instruments:
            if not isinstance(instrument, _Gauge):
                instrument.retain(label, keeps)

    def collect(self) -> Iterator[Metric]:
        """Every instrument's values; the registry calls it."""
        for instrument in self._instruments:
            yield instrument.collect()

    def render(self) -> bytes:
        """The whole exposition; see CONTENT_TYPE."""
        return generate_latest(self._registry)

    def _full(self, name: str) -> str:
        return f"{self._prefix}_{name}"

    def _add(self, instrument: _Instrument) -> _Instrument:
        self._instruments.append(instrument)
        return instrument
