"""Ladders made by hand, for the tests of what is drawn and written."""

from __future__ import annotations

from typing import Any

from glmserve.tools.ladder.results import Ladder, RungFigures, RungResult
from glmserve.tools.ladder.rungs import RUNGS
from glmserve.tools.ladder.settings import LadderConfig


def figures(**values: Any) -> RungFigures:
    """A rung's figures; those not given are ordinary."""
    usual: dict[str, Any] = {
        "requests_per_second": 2.0, "mean_latency": 4.0, "p99_latency": 5.0, "settled": True, "output_tokens_per_second": 64.0,
        "busy": 0.5, "nvml": 0.9, "mbu": 0.25, "mfu": 0.1, "cost": 0.5, "completed": 200, "failed": 0, "unfinished": 8,
        "seconds": 30.0, "mean_batch": 1.0, "spent": {"decode": 0.5, "idle_http": 0.5},
    }  # fmt: skip
    return RungFigures(**{**usual, **values})


def three_rungs() -> Ladder:
    """Two that were measured, and one that could not be."""
    ladder = Ladder.begin("some <model>", LadderConfig(price_per_hour=3.6), "glmserve bench ladder some")
    rows = [RungResult.of(RUNGS[number]) for number in (0, 3, 5)]
    rows[0].figures = figures()
    rows[1].figures = figures(requests_per_second=8.0, mean_latency=1.0, p99_latency=2.0, cost=0.125, busy=0.97, mbu=0.6, nvml=None)
    rows[2].missing = "the server could not start:\nloading\nfp8 needs another GPU"
    ladder.device, ladder.rows, ladder.complete = "NVIDIA H200", rows, True
    return ladder
