"""Who may join the running requests: today's way, and three older ones for people who want to see what each costs.

    continuous  whoever fits, at any step
    window      requests are gathered for a moment, then run together; nobody joins until the last of them is done
    async       one after the other, with no gap between them
    serial      one after the other, the next not before the one before has been answered (server/admission.py keeps the order there)

A policy only says no.  Room in the K/V cache, order and preemption are the scheduler's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

from glmserve.scheduler.request import Request

Mode = Literal["serial", "async", "window", "continuous"]


class Batching(Protocol):
    """Asked before a waiting request is started, again at each step while the answer is no."""

    def admits(self, request: Request, running: Mapping[str, Request], unfinished: Mapping[str, Request], now: float) -> bool:
        """Whether `request`, first in the queue, may join `running`.  `unfinished` are all requests, waiting ones too; `now` is seconds."""


class ContinuousBatching:
    """Everybody may join, always."""

    def admits(self, request: Request, running: Mapping[str, Request], unfinished: Mapping[str, Request], now: float) -> bool:
        """Always."""
        return True


class OneAtATime:
    """One request runs.  With `overlap` the next one is begun while the last token of the one before is on its way to the host."""

    def __init__(self, overlap: bool) -> None:
        self._overlap = overlap

    def admits(self, request: Request, running: Mapping[str, Request], unfinished: Mapping[str, Request], now: float) -> bool:
        """Once nothing runs that still has tokens to compute."""
        return not running or (self._overlap and all(other.output_complete for other in running.values()))


class WindowBatching:
    """A batch is closed `seconds` after its oldest request came, or when `max_num_seqs` are there, and then runs to its end.

    Those of a batch that do not fit into memory at once, or are pushed back, still belong to it.
    """

    def __init__(self, seconds: float, max_num_seqs: int) -> None:
        self._seconds = seconds
        self._max_num_seqs = max_num_seqs
        self._gathered: frozenset[str] = frozenset()  # who was there when the batch was closed
        self._batch: set[str] = set()  # and, of those, the first `max_num_seqs`

    def admits(self, request: Request, running: Mapping[str, Request], unfinished: Mapping[str, Request], now: float) -> bool:
        """Once the batch is closed, to those that are in it."""
        if not running:
            self._batch.clear()
            self._gathered = frozenset(unfinished) if self._is_due(unfinished, now) else frozenset()
        if request.request_id in self._gathered and len(self._batch) < self._max_num_seqs:
            self._batch.add(request.request_id)
        return request.request_id in self._batch

    def _is_due(self, waiting: Mapping[str, Request], now: float) -> bool:
        oldest = min(request.arrival_time for request in waiting.values())
        return len(waiting) >= self._max_num_seqs or now - oldest >= self._seconds


def batching_of(mode: Mode, window_seconds: float, max_num_seqs: int) -> Batching:
    """The policy of `--batching`."""
    if mode == "continuous":
        return ContinuousBatching()
    if mode == "window":
        return WindowBatching(window_seconds, max_num_seqs)
    return OneAtATime(overlap=mode == "async")
