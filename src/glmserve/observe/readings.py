"""What a /metrics page said at one moment, and what happened between two of them: rates, shares, quantiles.

The page may come over HTTP or straight from a registry, from this server or from vLLM: both give their metrics the same names behind
a prefix of their own, and the prefix is taken off here.  Knows no metric by name; what the figures mean is in `observe.signals`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

PREFIXES = ("glmserve:", "vllm:")
MOST_READINGS = 120  # one takes about 100 kB
Labels = frozenset[tuple[str, str]]


class Family(NamedTuple):
    """What the page says of a metric itself."""

    kind: str  # counter, gauge, histogram, ...
    help: str
    sample_names: tuple[str, ...]  # those that are there, without prefix


class Readings:
    """All samples of one page, by name without prefix.  `at` is in seconds, of any clock that only goes forward."""

    def __init__(self, families: Iterable[Metric], at: float) -> None:
        self.at = at
        self.prefix = ""  # of the server that spoke: "glmserve:", "vllm:" or none
        self.families: dict[str, Family] = {}
        self._samples: dict[str, dict[Labels, float]] = {}
        for family in families:
            names = dict.fromkeys(self._add(sample) for sample in family.samples)
            self.families[self._plain(family.name)] = Family(family.type, family.documentation, tuple(names))

    @classmethod
    def parse(cls, text: str, at: float) -> Readings:
        """From Prometheus' text format.  Raises ValueError where it is none."""
        return cls(text_string_to_metric_families(text), at)

    def _add(self, sample: Sample) -> str:
        name = self._plain(sample.name)
        if not math.isnan(sample.value):
            self._samples.setdefault(name, {})[frozenset(sample.labels.items())] = sample.value
        return name

    def _plain(self, name: str) -> str:
        for prefix in PREFIXES:
            if name.startswith(prefix):
                self.prefix = prefix
                return name.removeprefix(prefix)
        return name

    def series(self, name: str) -> dict[Labels, float]:
        """The samples of this name by their labels; empty where the server does not report it."""
        return self._samples.get(name, {})

    def total(self, name: str, **labels: str) -> float | None:
        """Sum over the samples that have these labels; None where there is none."""
        wanted = labels.items()
        values = [value for has, value in self.series(name).items() if wanted <= has]
        return sum(values) if values else None

    def mean(self, name: str) -> float | None:
        """Mean over the samples, for shares that several engines or GPUs report each; None where there is none."""
        values = self.series(name).values()
        return sum(values) / len(values) if values else None

    def by(self, name: str, label: str) -> dict[str, float]:
        """Sum for each value of a label."""
        return _by_label(self.series(name), label)


class Window:
    """What happened from one reading to a later one."""

    def __init__(self, before: Readings, after: Readings) -> None:
        self.before = before
        self.after = after
        self.seconds = after.at - before.at

    def increases(self, name: str) -> dict[Labels, float]:
        """By how much each series of a counter grew.  One that fell began again at 0: its process was restarted."""
        earlier = self.before.series(name)
        return {
            labels: value - earlier.get(labels, 0.0) if value >= earlier.get(labels, 0.0) else value
            for labels, value in self.after.series(name).items()
        }

    def increase(self, name: str, **labels: str) -> float | None:
        """Growth of a counter, over the series that have these labels; None where it is not reported."""
        wanted = labels.items()
        values = [value for has, value in self.increases(name).items() if wanted <= has]
        return sum(values) if values else None

    def rate(self, name: str, **labels: str) -> float | None:
        """Growth of a counter a second."""
        grown = self.increase(name, **labels)
        return None if grown is None or self.seconds <= 0 else grown / self.seconds

    def increases_by(self, name: str, label: str) -> dict[str, float]:
        """Growth of a counter for each value of a label."""
        return _by_label(self.increases(name), label)

    def quantile(self, name: str, share: float) -> float | None:
        """The value below which `share` of a histogram's new observations lie, as Prometheus' histogram_quantile has it.

        Linear within a bucket; the last finite bound where it lies above.  None where nothing was observed.
        """
        buckets = sorted((float(bound), count) for bound, count in self.increases_by(name + "_bucket", "le").items())
        if not buckets or buckets[-1][1] <= 0:
            return None
        wanted, low, below = share * buckets[-1][1], 0.0, 0.0
        for bound, count in buckets:
            if count >= wanted and count > below:
                return low if math.isinf(bound) else low + (bound - low) * (wanted - below) / (count - below)
            low, below = (low if math.isinf(bound) else bound), count
        return low

    def mean_observation(self, name: str) -> float | None:
        """Mean of a histogram's new observations; None where nothing was observed."""
        total, count = self.increase(name + "_sum"), self.increase(name + "_count")
        return total / count if total is not None and count else None


class History:
    """The readings of the last `keep_seconds`, oldest first; about MOST_READINGS of them, however often one is added."""

    def __init__(self, keep_seconds: float) -> None:
        self._keep_seconds = keep_seconds
        self._readings: deque[Readings] = deque()

    def add(self, readings: Readings) -> None:
        """A new reading; what is older than needed goes, and of those that lie closer than needed the middle one."""
        kept = self._readings
        kept.append(readings)
        if len(kept) > 3 and kept[-2].at - kept[-4].at < self._keep_seconds / MOST_READINGS:
            del kept[-3]
        while len(kept) > 2 and readings.at - kept[1].at >= self._keep_seconds:
            kept.popleft()

    def clear(self) -> None:
        """Forget all: the next reading begins anew."""
        self._readings.clear()

    @property
    def last(self) -> Readings | None:
        """The newest reading."""
        return self._readings[-1] if self._readings else None

    def window(self, seconds: float) -> Window | None:
        """The last `seconds`, or all there is where that is less; None before the second reading."""
        if len(self._readings) < 2:
            return None
        end = self._readings[-1]
        begin = next((one for one in reversed(self._readings) if end.at - one.at >= seconds), self._readings[0])
        return Window(begin, end)

    def within(self, seconds: float) -> Iterator[Readings]:
        """The readings of the last `seconds`, oldest first."""
        return (one for one in self._readings if self._readings[-1].at - one.at <= seconds)

    def mean(self, name: str, seconds: float) -> float | None:
        """Mean over the last `seconds` of a gauge, summed over its series; None where it is not reported."""
        return _mean(one.total(name) for one in self.within(seconds))

    def mean_share(self, name: str, seconds: float) -> float | None:
        """The same of a gauge that is a share, so that several engines or GPUs are averaged."""
        return _mean(one.mean(name) for one in self.within(seconds))


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _by_label(series: dict[Labels, float], label: str) -> dict[str, float]:
    sums: dict[str, float] = {}
    for labels, value in series.items():
        if (key := dict(labels).get(label)) is not None:
            sums[key] = sums.get(key, 0.0) + value
    return sums
