"""Time in which the engine had no request is split by what the HTTP process was doing."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmserve.observe.http_work import HttpWork
from glmserve.protocol.stats import DeviceSeconds


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def heard(work: HttpWork, intervals: list[tuple[float, float]], at: float, no_work: float) -> dict[str, float]:
    """The counters after the engine said so."""
    seconds = DeviceSeconds(idle_no_work=no_work)
    work.hear(seconds, intervals, at)
    return {name: value for name, value in msgspec.structs.asdict(seconds).items() if value}


def test_a_request_on_its_way_to_an_idle_engine(clock: Clock) -> None:
    work = HttpWork(clock)
    clock.now = 10
    work.accept()
    clock.now = 11
    with work.tokenizing():
        clock.now = 14
    clock.now = 16
    work.leave(sent=True)
    clock.now = 30
    # the engine got it at 17 and tells so at 20
    assert heard(work, [(0, 17)], 20, 17) == {"idle_no_work": 10, "idle_http": 1 + 2 + 1, "idle_tokenizing": 3}
    clock.now = 40
    assert heard(work, [(30, 40)], 40, 27) == {"idle_no_work": 20, "idle_http": 4, "idle_tokenizing": 3}


def test_a_refused_request_holds_nothing_up_any_more(clock: Clock) -> None:
    work = HttpWork(clock)
    work.accept()
    clock.now = 2
    work.leave(sent=False)
    assert heard(work, [(0, 1), (1, 5)], 5, 5) == {"idle_no_work": 3, "idle_http": 2}


def test_a_new_engine_counts_from_zero(clock: Clock) -> None:
    work = HttpWork(clock)
    work.accept()
    assert heard(work, [(0, 5)], 5, 5) == {"idle_http": 5}
    work.forget()
    assert heard(work, [(6, 8)], 8, 2) == {"idle_http": 2}


@given(st.lists(st.sampled_from(["accept", "refuse", "send", "tokenize", "pass", "tell"]), max_size=80))
def test_the_split_loses_no_time(plan: list[str]) -> None:
    clock, told, held, no_work = Clock(), 0.0, 0, 0.0
    work = HttpWork(clock)
    for action in plan:
        clock.now += 1
        match action:
            case "accept":
                work.accept()
                held += 1
            case "refuse" | "send" if held:
                work.leave(sent=action == "send")
                held -= 1
            case "tokenize" if held:
                with work.tokenizing():
                    clock.now += 2
            case "tell":
                middle = (told + clock.now) / 2  # the engine was idle up to here, and busy since
                no_work += middle - told
                assert sum(heard(work, [(told, middle)], clock.now, no_work).values()) == pytest.approx(no_work)
                told = clock.now
