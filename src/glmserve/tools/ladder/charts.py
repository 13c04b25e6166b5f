"""What the pictures show, whoever draws them: a panel a figure, a bar a rung."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from glmserve.tools.ladder.results import Ladder, RungFigures
from glmserve.tools.ladder.table import number, seconds, share


@dataclass(frozen=True)
class Bar:
    """A rung's figure, as a share of the panel's width; `mark` is a second figure on the same scale, drawn as a line."""

    label: str
    length: float
    text: str
    mark: float | None = None


@dataclass(frozen=True)
class Panel:
    """One figure over all rungs that have it."""

    title: str
    hint: str
    bars: list[Bar]


def panels(ladder: Ladder) -> Iterator[Panel]:
    """Those whose figure at least one rung has."""
    rows = [(f"{row.number} {row.name}", figures) for row, figures in ladder.measured]
    rates = [(name, one.requests_per_second, number(one.requests_per_second), None) for name, one in rows]
    latencies = [(name, one.mean_latency, _latencies(one), one.p99_latency) for name, one in rows]
    costs = [(name, one.cost, number(one.cost), None) for name, one in rows]
    busy = [Bar(name, one.busy, _shares(one), None if one.mbu is None else min(1.0, one.mbu)) for name, one in rows if one.busy is not None]
    yield _scaled("Requests per second", "longer is better", rates)
    yield _scaled("Latency", "shorter is better; bar: mean, line: p99", latencies)
    if busy:
        yield Panel("Busy, and what it is worth", "bar: the device computes; line: MBU, the share of its memory speed", busy)
    yield _scaled("Cost of 1,000 requests", "shorter is better", costs)


def _scaled(title: str, hint: str, entries: Sequence[tuple[str, float, str, float | None]]) -> Panel:
    longest = max((max(value, mark or 0.0) for _, value, _, mark in entries), default=1.0)
    bars = [Bar(label, value / longest, text, None if mark is None else mark / longest) for label, value, text, mark in entries]
    return Panel(title, hint, bars)


def _latencies(figures: RungFigures) -> str:
    return f"{seconds(figures.mean_latency)}, p99 {seconds(figures.p99_latency)}"


def _shares(figures: RungFigures) -> str:
    return f"{share(figures.busy)}" + (f", MBU {share(figures.mbu)}" if figures.mbu is not None else "")
