"""When a step began and ended on the device: CUDA events on a GPU, the host's clock on a CPU.

Reading never waits for more than the step's own end, which the host waits for anyway to read its tokens.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch


class StepTime(NamedTuple):
    """Seconds: idle before the step since the one before it, its two parts, and how long the host took to launch it, which is 0 on a CPU,
    where launching is running.  `launched` is CLOCK_MONOTONIC."""

    launched: float
    gap: float
    forward: float
    sampling: float
    launching: float


@dataclass(slots=True)
class StepMarks:
    """Points on the device's timeline; what they are is the marker's business.  `sampling` is None for a step that samples nothing."""

    launched: float
    begin: Any
    sampling: Any = None
    end: Any = None
    launching: float = 0.0


class Marker(Protocol):
    """Makes points on the timeline of a device."""

    runs_later: bool  # whether the host goes on while the device works

    def mark(self) -> Any: ...

    def wait(self, mark: Any) -> None: ...

    def seconds(self, earlier: Any, later: Any) -> float: ...

    def recycle(self, mark: Any) -> None: ...


class HostMarker:
    """For a CPU, where a step has run when its call returns."""

    runs_later = False

    def mark(self) -> float:
        """Now."""
        return time.monotonic()

    def wait(self, mark: float) -> None:
        """It has passed already."""

    def seconds(self, earlier: float, later: float) -> float:
        """Between two marks."""
        return later - earlier

    def recycle(self, mark: float) -> None:
        """Nothing to keep."""


class EventMarker:
    """For a GPU: events in the current stream, used again, since making one costs more than recording it."""

    runs_later = True

    def __init__(self) -> None:
        self._free: list[torch.cuda.Event] = []

    def mark(self) -> torch.cuda.Event:
        """The point that the device reaches once it has done all that was launched so far."""
        event = self._free.pop() if self._free else torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def wait(self, mark: torch.cuda.Event) -> None:
        """Block until the device has reached it."""
        mark.synchronize()

    def seconds(self, earlier: torch.cuda.Event, later: torch.cuda.Event) -> float:
        """Between two marks that the device has passed."""
        return float(earlier.elapsed_time(later)) / 1000

    def recycle(self, mark: torch.cuda.Event) -> None:
        """Nobody will read it any more."""
        self._free.append(mark)


class StepClock:
    """Marks each step as it is launched and reads it once it has run, in the same order."""

    def __init__(self, marker: Marker) -> None:
        self._marker = marker
        self._last_end = marker.mark()

    def restart(self) -> None:
        """Nothing before now counts: warming up is over."""
        self._last_end = self._marker.mark()

    def begin(self) -> StepMarks:
        """The inputs are on their way; what is launched from here on is the step."""
        return StepMarks(time.monotonic(), self._marker.mark())

    def begin_sampling(self, marks: StepMarks) -> None:
        """The logits are computed."""
        marks.sampling = self._marker.mark()

    def end(self, marks: StepMarks) -> None:
        """All of the step is launched."""
        marks.end = self._marker.mark()
        if self._marker.runs_later:
            marks.launching = time.monotonic() - marks.launched

    def wait(self, marks: StepMarks) -> None:
        """Block until the step has run."""
        self._marker.wait(marks.end)

    def read(self, marks: StepMarks) -> StepTime:
        """How long the parts of a step took, which has run.  Call it once a step, in the order of the steps."""
        seconds, sampling = self._marker.seconds, marks.end if marks.sampling is None else marks.sampling
        gap, forward = seconds(self._last_end, marks.begin), seconds(marks.begin, sampling)
        times = StepTime(marks.launched, gap, forward, seconds(sampling, marks.end), marks.launching)
        for mark in (self._last_end, marks.begin, marks.sampling):
            if mark is not None:
                self._marker.recycle(mark)
        self._last_end = marks.end
        return times
