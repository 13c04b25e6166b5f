"""What came of a rung, and of all of them: figures, no layout."""

from __future__ import annotations

import statistics
from datetime import UTC, datetime
from typing import Any

import msgspec

from glmserve.tools.bench.load import LoadResult
from glmserve.tools.bench.report import percentile
from glmserve.tools.bench.server_watch import ServerFigures
from glmserve.tools.ladder.rungs import Headline, Rung
from glmserve.tools.ladder.settings import LadderConfig
from glmserve.version import __version__


class RungFigures(msgspec.Struct):
    """What was measured on a rung.  Latencies are seconds, shares 0 to 1, None where the server does not report it.

    `launch_bound` is the share of the busy time that passed in steps which the host launched no faster than the device ran them.
    `cost` is that of 1,000 requests at LadderConfig.price_per_hour.  `settled`: the latencies leave out each client's first request, which
    had not all the others before it; else there were too few answers for that.
    """

    requests_per_second: float
    mean_latency: float
    p99_latency: float
    settled: bool
    output_tokens_per_second: float | None
    busy: float | None
    nvml: float | None
    mbu: float | None
    mfu: float | None
    cost: float
    completed: int
    failed: int
    unfinished: int
    seconds: float
    mean_batch: float | None
    spent: dict[str, float]
    launch_bound: float | None = None


class RungResult(msgspec.Struct):
    """A row: a rung with its figures, or why it has none."""

    number: int
    name: str
    flags: list[str]
    article: str
    figures: RungFigures | None = None
    missing: str = ""
    start_seconds: float | None = None  # until the server was ready

    @classmethod
    def of(cls, rung: Rung) -> RungResult:
        """A row without figures yet."""
        return cls(rung.number, rung.name, list(rung.flags), rung.article)


class Ladder(msgspec.Struct):
    """All rows, and what must be known to read them."""

    model: str
    device: str
    date: str
    version: str
    command: str
    settings: dict[str, Any]
    rows: list[RungResult] = []
    complete: bool = False

    @classmethod
    def begin(cls, model: str, config: LadderConfig, command: str) -> Ladder:
        """No rows yet."""
        settings = config.model_dump(mode="json", exclude={"output"})
        return cls(model, "", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", __version__, command, settings)

    @property
    def measured(self) -> list[tuple[RungResult, RungFigures]]:
        """The rows that have figures."""
        return [(row, row.figures) for row in self.rows if row.figures is not None]

    @property
    def has_nvml(self) -> bool:
        """Whether all rows that have figures have NVML's."""
        return all(figures.nvml is not None for _, figures in self.measured)

    @property
    def utilization(self) -> list[float | None]:
        """Of each row that has figures: NVML's, which is what the article reports; without NVML the engine's own busy share."""
        return [figures.nvml if self.has_nvml else figures.busy for _, figures in self.measured]

    @property
    def headline(self) -> Headline | None:
        """From the lowest rung that was measured to the highest; None for fewer than two."""
        if len(self.measured) < 2:
            return None
        (_, first), (_, last) = self.measured[0], self.measured[-1]
        utilization = self.utilization
        return Headline(
            requests=last.requests_per_second / first.requests_per_second,
            latency=last.mean_latency / first.mean_latency - 1,
            cost=last.cost / first.cost - 1,
            utilization=(utilization[0], utilization[-1]),
        )


def figures_of(result: LoadResult, server: ServerFigures | None, config: LadderConfig) -> RungFigures | None:
    """None where no request succeeded."""
    done = [outcome for outcome in result.outcomes if not outcome.error]
    if not done:
        return None
    later = [outcome for outcome in result.outcomes[config.concurrency :] if not outcome.error]
    settled = len(later) >= config.concurrency
    latencies = [outcome.latency for outcome in (later if settled else done)]
    rate = len(done) / result.duration
    return RungFigures(
        requests_per_second=rate,
        mean_latency=statistics.fmean(latencies),
        p99_latency=percentile(latencies, 99),
        settled=settled,
        output_tokens_per_second=_tokens(server),
        busy=server.busy if server else None,
        nvml=server.nvml if server else None,
        mbu=server.mbu if server else None,
        mfu=server.mfu if server else None,
        cost=config.price_per_hour / 3600 / rate * 1000,
        completed=len(done),
        failed=len(result.outcomes) - len(done),
        unfinished=result.num_unfinished,
        seconds=result.duration,
        mean_batch=server.mean_batch if server else None,
        spent=server.spent if server else {},
        launch_bound=server.launch_bound if server else None,
    )


def _tokens(server: ServerFigures | None) -> float | None:
    return None if server is None or server.output_tokens is None else server.output_tokens / server.seconds
