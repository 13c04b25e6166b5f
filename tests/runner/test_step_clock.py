"""Device events become seconds, each event is used again, and nothing waits for more than the step's own end."""

from __future__ import annotations

import pytest
import torch

from glmserve.runner.step_clock import EventMarker, HostMarker, StepClock, StepTime


class FakeStream:
    """A device that takes as long as it is told for what lies between two events, and one step behind the host."""

    def __init__(self) -> None:
        self.time_ms = 0.0
        self.num_events = 0
        self.waits: list[FakeEvent] = []


STREAM = FakeStream()


class FakeEvent:
    def __init__(self, enable_timing: bool = False) -> None:
        assert enable_timing, "an event without timing cannot be read"
        STREAM.num_events += 1
        self.at = -1.0

    def record(self) -> None:
        self.at = STREAM.time_ms

    def synchronize(self) -> None:
        STREAM.waits.append(self)

    def elapsed_time(self, later: FakeEvent) -> float:
        assert self.at >= 0 and later.at >= self.at, "read before it was recorded, or after it was used again"
        return later.at - self.at


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> StepClock:
    STREAM.__init__()  # type: ignore[misc]
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    return StepClock(EventMarker())


def test_steps_that_overlap_on_the_host_are_read_in_order(clock: StepClock) -> None:
    clock.restart()
    flying, read = [], []
    for gap, forward, sampling in [(5.0, 3.0, 0.5), (0.25, 3.0, 0.5), (0.0, 12.0, 0.0), (1.0, 3.0, 0.5)]:
        STREAM.time_ms += gap
        marks = clock.begin()
        STREAM.time_ms += forward
        if sampling:
            clock.begin_sampling(marks)
            STREAM.time_ms += sampling
        clock.end(marks)
        flying.append(marks)
        if len(flying) == 2:
            clock.wait(flying[0])
            read.append(clock.read(flying.pop(0)))
    read.append(clock.read(flying.pop()))
    assert [pytest.approx(times[1:4]) for times in read] == [
        (0.005, 0.003, 0.0005), (0.00025, 0.003, 0.0005), (0.0, 0.012, 0.0), (0.001, 0.003, 0.0005),
    ]  # fmt: skip


def test_how_long_the_host_launched(clock: StepClock, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([3.0, 3.25])
    monkeypatch.setattr("glmserve.runner.step_clock.time.monotonic", lambda: next(times))
    marks = clock.begin()
    clock.end(marks)
    assert clock.read(marks).launching == 0.25


def test_events_are_used_again(clock: StepClock) -> None:
    for _ in range(100):
        marks = clock.begin()
        clock.begin_sampling(marks)
        clock.end(marks)
        clock.wait(marks)
        clock.read(marks)
    assert STREAM.num_events <= 6
    assert len(STREAM.waits) == 100, "one wait a step, for its end"


def test_on_a_cpu_the_host_s_clock_is_the_device_s(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1.0, 2.0, 2.0, 5.0, 6.0])
    monkeypatch.setattr("glmserve.runner.step_clock.time.monotonic", lambda: next(times))
    clock = StepClock(HostMarker())
    marks = clock.begin()
    clock.begin_sampling(marks)
    clock.end(marks)
    assert clock.read(marks) == StepTime(launched=2.0, gap=1.0, forward=3.0, sampling=1.0, launching=0.0)
