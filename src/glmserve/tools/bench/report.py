"""From what the clients saw to figures, with vLLM's names, and to a table."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
from rich.table import Table

from glmserve.tools.bench.answers import Outcome
from glmserve.tools.bench.load import LoadResult
from glmserve.tools.bench.server_watch import ServerFigures, rows
from glmserve.tools.bench.settings import ServeBenchConfig

TITLES = {
    "ttft": "time to first token",
    "tpot": "time per output token, without the first",
    "itl": "gap between tokens",
    "e2el": "whole answer",
}
BUSY_CLIENT = 0.8  # CPU share from which a client process may be what limits


def percentile(values: list[float], percent: float) -> float:
    """Between the neighbours, linearly, as numpy does.  NaN for no values."""
    if not values:
        return math.nan
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def measure(result: LoadResult, config: ServeBenchConfig) -> dict[str, Any]:
    """All figures, under vLLM's names.  Times are ms in *_ms and seconds elsewhere; what was not seen is None."""
    done = [outcome for outcome in result.outcomes if not outcome.error]
    seconds = result.duration or math.inf  # nothing came
    counted = [outcome.output_tokens for outcome in done if outcome.output_tokens is not None]
    output_tokens = sum(counted) if len(counted) == len(done) else None  # a sum over some of them would mean nothing
    input_tokens = sum(outcome.input_tokens for outcome in done)
    limits = config.limits
    figures: dict[str, Any] = {
        "duration": result.duration,
        "completed": len(done),
        "failed": len(result.outcomes) - len(done),
        "unfinished": result.num_unfinished,
        "total_input_tokens": input_tokens,
        "total_output_tokens": output_tokens,
        "request_throughput": len(done) / seconds,
        "output_throughput": None if output_tokens is None else output_tokens / seconds,
        "total_token_throughput": None if output_tokens is None else (input_tokens + output_tokens) / seconds,
        "request_goodput": sum(_is_good(outcome, limits) for outcome in done) / seconds if limits else None,
        "max_concurrent_requests": max_concurrent(result.outcomes),
        "client_busy": result.client_busy,
        "errors_by_kind": dict(Counter(outcome.error for outcome in result.outcomes if outcome.error)),
        "error_examples": {outcome.error: outcome.detail for outcome in reversed(result.outcomes) if outcome.error},
    }
    for metric in config.metrics:
        figures |= _statistics(metric, _milliseconds(metric, done), config.percentiles)
    return figures


def _milliseconds(metric: str, outcomes: list[Outcome]) -> list[float]:
    if metric == "itl":
        return [gap * 1000 for outcome in outcomes for gap in outcome.itls]
    values = (_value(metric, outcome) for outcome in outcomes)
    return [value * 1000 for value in values if value is not None]


def _value(metric: str, outcome: Outcome) -> float | None:
    return {"ttft": outcome.ttft, "tpot": outcome.tpot, "e2el": outcome.latency}[metric]


def _statistics(metric: str, values: list[float], percentiles: list[float]) -> dict[str, float | None]:
    names: dict[str, Callable[[list[float]], float]] = {"mean": statistics.fmean, "median": statistics.median, "std": statistics.pstdev}
    figures = {f"{name}_{metric}_ms": function(values) if values else None for name, function in names.items()}
    return figures | {f"p{percent:g}_{metric}_ms": percentile(values, percent) if values else None for percent in percentiles}


def _is_good(outcome: Outcome, limits: dict[str, float]) -> bool:
    """Within every limit.  An answer of one token has no TPOT, and so breaks no limit on it."""
    for metric, limit in limits.items():
        value = _value(metric, outcome)
        if value is None and metric == "ttft":
            return False
        if value is not None and value * 1000 > limit:
            return False
    return True


def max_concurrent(outcomes: list[Outcome]) -> int:
    """Most requests that were open at one moment."""
    edges = sorted(edge for outcome in outcomes for edge in ((outcome.sent, 1), (outcome.sent + outcome.latency, -1)))
    most = now = 0
    for _, change in edges:
        now += change
        most = max(most, now)
    return most


def result_file(
    figures: dict[str, Any], result: LoadResult, server: ServerFigures | None, config: ServeBenchConfig, model: str
) -> dict[str, Any]:
    """What is written to --save-result: settings (but for the key), figures, what the server said and, if wanted, each request."""
    settings = config.model_dump(mode="json", exclude={"api_key", "save_result"})
    settings["request_rate"] = "inf" if math.isinf(config.request_rate) else config.request_rate
    content = {"date": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}", **settings, "model_id": config.model or model, **figures}
    content["server"] = None if server is None else msgspec.to_builtins(server)
    if config.save_detailed:
        content["requests"] = [msgspec.to_builtins(outcome) for outcome in result.outcomes]
    return content


def tables(figures: dict[str, Any], server: ServerFigures | None, config: ServeBenchConfig) -> list[Table]:
    """What the terminal shows."""
    shown = [_totals(figures, config), _times(figures, config)]
    return [*shown, _said_by(server)] if server is not None and rows(server) else shown


def _said_by(server: ServerFigures) -> Table:
    table = Table(title="the server says", title_justify="left", show_header=False)
    for name, value in rows(server).items():
        table.add_row(name, value)
    return table


def _totals(figures: dict[str, Any], config: ServeBenchConfig) -> Table:
    table = Table(title=f"{config.backend} at {config.base_url}", title_justify="left", show_header=False)
    rows = {
        "requests done": f"{figures['completed']:,}",
        "failed": f"{figures['failed']:,}",
        **({"under way at the end": f"{figures['unfinished']:,}"} if figures["unfinished"] else {}),
        "most at a time": f"{figures['max_concurrent_requests']:,}",
        "seconds": f"{figures['duration']:.2f}",
        "input tokens": f"{figures['total_input_tokens']:,}",
        "output tokens": _shown(figures["total_output_tokens"], ",d"),
        "requests/s": f"{figures['request_throughput']:.2f}",
        "output tokens/s": _shown(figures["output_throughput"], ",.1f"),
        "all tokens/s": _shown(figures["total_token_throughput"], ",.1f"),
    }
    if config.limits:
        limits = ", ".join(f"{name} <= {limit:g} ms" for name, limit in config.limits.items())
        rows[f"requests/s within {limits}"] = _shown(figures["request_goodput"], ".2f")
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _times(figures: dict[str, Any], config: ServeBenchConfig) -> Table:
    table = Table(title="milliseconds", title_justify="left")
    columns = ["mean", *(f"p{percent:g}" for percent in config.percentiles)]
    for title in ("", *columns):
        table.add_column(title, justify="right" if title else "left")
    for metric in config.metrics:
        values = (_shown(figures[f"{column}_{metric}_ms"], ",.2f") for column in columns)
        table.add_row(f"{metric.upper()}, {TITLES[metric]}", *values)
    return table


def remarks(figures: dict[str, Any]) -> list[str]:
    """What the reader of the figures must know."""
    lines = [f"{count} failed: {kind}: {figures['error_examples'][kind]}" for kind, count in figures["errors_by_kind"].items()]
    if figures["client_busy"] > BUSY_CLIENT:
        lines.append(
            f"a client process was busy for {figures['client_busy']:.0%} of the time and may be what limits: "
            "more --num-workers, or a machine of its own for the client"
        )
    return lines


def _shown(value: float | int | None, form: str) -> str:
    return "-" if value is None else format(value, form)
