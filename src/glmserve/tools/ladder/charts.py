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
    used = [_usage(name, value, one.mbu) for (name, one), value in zip(rows, ladder.utilization, strict=True) if value is not None]
    yield _scaled("Requests per second", "longer is better", rates)
    yield _scaled("Latency", "shorter is better; bar: mean, line: p99", latencies)
    if used:
        what = "some kernel runs, says NVML" if ladder.has_nvml else "a step is under way"
        yield Panel("Utilization, and what it is worth", f"bar: {what}; line: MBU, the share of the memory's speed", used)
    yield _scaled("Cost of 1,000 requests", "shorter is better", costs)


def _scaled(title: str, hint: str, entries: Sequence[tuple[str, float, str, float | None]]) -> Panel:
    longest = max((max(value, mark or 0.0) for _, value, _, mark in entries), default=1.0)
    bars = [Bar(label, value / longest, text, None if mark is None else mark / longest) for label, value, text, mark in entries]
    return Panel(title, hint, bars)


def _latencies(figures: RungFigures) -> str:
    return f"{seconds(figures.mean_latency)}, p99 {seconds(figures.p99_latency)}"


def _usage(name: str, utilization: float, mbu: float | None) -> Bar:
    if mbu is None:
        return Bar(name, utilization, share(utilization))
    return Bar(name, utilization, f"{share(utilization)}, MBU {share(mbu)}", min(1.0, mbu))
