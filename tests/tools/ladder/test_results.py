"""From what clients and server said to a row."""

from __future__ import annotations

import pytest

from glmserve.tools.bench.answers import Outcome
from glmserve.tools.bench.load import LoadResult
from glmserve.tools.ladder.results import figures_of
from glmserve.tools.ladder.settings import LadderConfig
from tests.tools.ladder.ladders import figures, three_rungs


def outcome(sent: float, latency: float, error: str = "") -> Outcome:
    return Outcome(sent, latency, 0.1, [], 10, 10, error)


def test_the_first_request_of_each_client_is_left_out_of_the_latencies() -> None:
    """Two clients, served one after the other for one second each: the first has nobody before it."""
    outcomes = [outcome(0.0, 1.0), outcome(0.0, 2.0), outcome(1.0, 2.0), outcome(2.0, 2.0)]
    row = figures_of(LoadResult(outcomes, 4.0, 0.0, num_unfinished=2), None, LadderConfig(concurrency=2, price_per_hour=36.0))
    assert row is not None and row.settled
    assert (row.mean_latency, row.p99_latency) == (2.0, 2.0)
    assert row.requests_per_second == 1.0, "all four count"
    assert row.cost == pytest.approx(10.0), "1,000 seconds at 36 an hour"
    assert (row.completed, row.unfinished, row.busy) == (4, 2, None)


def test_too_few_answers_are_all_counted_and_said_to_be_few() -> None:
    row = figures_of(LoadResult([outcome(0.0, 1.0), outcome(0.0, 2.0), outcome(1.0, 2.0)], 3.0, 0.0), None, LadderConfig(concurrency=2))
    assert row is not None and not row.settled
    assert row.mean_latency == pytest.approx(5 / 3)


def test_failures_are_no_answers() -> None:
    result = LoadResult([outcome(0.0, 1.0), outcome(0.0, 0.1, error="HTTP 503")], 1.0, 0.0)
    row = figures_of(result, None, LadderConfig(concurrency=1))
    assert row is not None and (row.completed, row.failed, row.requests_per_second) == (1, 1, 1.0)
    assert figures_of(LoadResult(result.outcomes[1:], 1.0, 0.0), None, LadderConfig()) is None


def test_the_headline_goes_from_the_first_to_the_last_that_was_measured() -> None:
    headline = three_rungs().headline
    assert headline is not None
    assert (headline.requests, headline.latency, headline.cost, headline.utilization) == (4.0, -0.75, -0.75, (0.5, 0.97))
    ladder = three_rungs()
    ladder.rows[0].figures = None
    assert ladder.headline is None
    assert figures().settled
