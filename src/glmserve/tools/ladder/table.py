"""The ladder as a table: cells for whoever lays them out, Markdown, and the sentence that sums it up."""

from __future__ import annotations

from collections.abc import Iterator

from glmserve.tools.ladder.results import Ladder, RungFigures, RungResult
from glmserve.tools.ladder.rungs import ARTICLE, Headline

COLUMNS = ("rung", "req/s", "mean", "p99", "tok/s", "batch", "busy", "NVML", "MBU", "cost", "the article, on an A10")
WORTH_TELLING = 0.05
FEW_ANSWERS = 100  # below this a p99 is the slowest answer or near it


def cells(row: RungResult) -> list[str]:
    """One row under COLUMNS; one that has no figures says why in the second cell, and has no more cells than the last."""
    name = f"{row.number} {row.name}"
    if row.figures is None:
        return [name, _in_a_line(row.missing), *[""] * (len(COLUMNS) - 3), row.article]
    figures = row.figures
    return [
        name,
        number(figures.requests_per_second),
        seconds(figures.mean_latency),
        seconds(figures.p99_latency),
        "-" if figures.output_tokens_per_second is None else number(figures.output_tokens_per_second),
        "-" if figures.mean_batch is None else number(figures.mean_batch),
        share(figures.busy),
        share(figures.nvml),
        share(figures.mbu),
        number(figures.cost),
        row.article,
    ]


def _in_a_line(missing: str) -> str:
    """Of a server's last words the last ones: what it did before stands above them."""
    first, *rest = missing.splitlines() or ["-"]
    return f"{first} {rest[-1]}" if rest else first


def markdown(ladder: Ladder) -> str:
    """A page: what was run, the table, the sum, and what to know when reading it."""
    lines = [f"# Ladder: {ladder.model} on {ladder.device or 'an unknown device'}", "", facts(ladder), ""]
    lines += [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    lines += [f"| {' | '.join(cells(row))} |" for row in ladder.rows]
    lines += ["", *(f"{line}\n" for line in (*summary(ladder), *notes(ladder)))]
    return "\n".join(lines)


def facts(ladder: Ladder) -> str:
    """What was asked, in one sentence."""
    load = ladder.settings
    about = "about " if load["range_ratio"] else ""
    return (
        f"{load['concurrency']} clients, each with its next request when it has its answer; {about}{load['input_len']} tokens in and "
        f"{load['output_len']} out; at most {load['duration']:g} s a rung. {ladder.date}, glmserve {ladder.version}: `{ladder.command}`"
    )


def summary(ladder: Ladder) -> Iterator[str]:
    """From the first rung to the last, beside the article's."""
    if (headline := ladder.headline) is None:
        return
    (first, _), (last, _) = ladder.measured[0], ladder.measured[-1]
    yield f"From rung {first.number} to rung {last.number}: {_changes(headline)}."
    yield f"The article: {_changes(ARTICLE)}."


def _changes(headline: Headline) -> str:
    before, after = headline.utilization
    utilization = "" if before is None or after is None else f", utilization {before:.0%} -> {after:.0%}"
    return f"requests/s x{headline.requests:.3g}, mean latency {headline.latency:+.0%}, cost {headline.cost:+.0%}{utilization}"


def notes(ladder: Ladder) -> Iterator[str]:
    """What the reader of the figures must know, a sentence each."""
    yield (
        "tok/s: of answers; batch: requests in a decode step, on average; busy: share of wall time in which a step was under way, by the "
        "engine's own count of device time; NVML: share in which some kernel ran, what nvidia-smi calls utilization, so lower where a "
        "step's kernels are launched one by one and leave gaps (rungs 0 to 3); MBU: bytes the device had to move, of what its memory can; "
        f"cost: of 1,000 requests at {number(ladder.settings['price_per_hour'])} an hour."
    )
    for row, figures in ladder.measured:
        yield from (f"Rung {row.number}: {note}" for note in _notes_on(figures))
    if not ladder.complete:
        yield "Cut short: not all rungs were climbed."


def _notes_on(figures: RungFigures) -> Iterator[str]:
    if (figures.launch_bound or 0.0) >= WORTH_TELLING:
        waited = share(figures.launch_bound)
        yield f"in {waited} of the busy time the host launched kernels no faster than the device ran them, which waited."
    if figures.failed:
        yield f"{figures.failed} of {figures.completed + figures.failed} requests failed."
    if not figures.settled:
        yield f"only {figures.completed} answers; latencies are too low, since they lack those still waiting: a longer --duration helps."
    elif figures.completed < FEW_ANSWERS:
        yield f"{figures.completed} answers; the p99 is about the slowest."


def number(value: float) -> str:
    """Three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def seconds(value: float) -> str:
    """Three digits too, so that the numbers of a column compare at a glance."""
    return f"{number(value)} s"


def share(value: float | None) -> str:
    """Percent, or a dash."""
    return "-" if value is None else f"{value:.0%}"
