"""The device's wall time by cause: the parts sum to all of it, and each stretch goes to what was known then."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from glmserve.engine.device_time import DeviceTime, Idle
from glmserve.engine.step_account import UtilizationWindow

CAUSES = [Idle.NO_WORK, Idle.SCHEDULING, Idle.KV_FULL]


def parts(account: DeviceTime) -> dict[str, float]:
    """What is not zero."""
    return {name: seconds for name, seconds in msgspec.structs.asdict(account.seconds).items() if seconds}


@dataclass
class Gpu:
    """Runs what it is given in order, on a clock of its own that goes `drift` per 1,024 fast.  Whole numbers, so that sums are exact."""

    drift: int = 0
    busy_until: int = 0
    last_end: int = 0

    def run(self, launched: int, forward: int, sampling: int) -> tuple[int, int, int, int]:
        """(true end, gap, forward and sampling as the device's clock has them)."""
        start = max(launched, self.busy_until)
        gap = start - self.last_end
        self.busy_until = self.last_end = start + forward + sampling
        return self.busy_until, self._seen(gap), self._seen(forward), self._seen(sampling)

    def _seen(self, ticks: int) -> int:
        return ticks + ticks * self.drift // 1024


actions = st.lists(
    st.one_of(
        st.tuples(st.just("step"), st.integers(1, 5000), st.integers(0, 300), st.booleans()),
        st.tuples(st.just("wait"), st.integers(0, 3000)),
        st.tuples(st.just("note"), st.sampled_from(CAUSES)),
        st.tuples(st.just("look")),
    ),
    max_size=60,
)


@given(actions, st.integers(-30, 30), st.booleans(), st.integers(0, 500))
def test_the_parts_sum_to_wall_time_whatever_happens(plan: list[tuple], drift: int, one_step_late: bool, slow_host: int) -> None:  # type: ignore[type-arg]
    now, gpu, account = 0, Gpu(drift), DeviceTime(0)
    flying: list[tuple[int, tuple[int, int, int, int], bool]] = []
    before = parts(account)

    def read() -> None:
        nonlocal now
        launched, (end, gap, forward, sampling), is_prefill = flying.pop(0)
        now = max(now, end) + slow_host
        account.step(launched, gap, forward, sampling, collected=now, is_prefill=is_prefill)

    for action in plan:
        match action:
            case ("step", forward, sampling, is_prefill):
                flying.append((now, gpu.run(now, forward, sampling), is_prefill))
                if len(flying) > one_step_late:
                    read()
            case ("wait", ticks):
                now += ticks
            case ("note", cause):
                account.note(cause, now)
            case ("look",) if not flying:
                account.idle_until(now)
                assert account.until == now
        now_parts = parts(account)
        assert sum(now_parts.values()) == account.until - account.started
        assert account.until <= now
        assert all(seconds >= before.get(name, 0) for name, seconds in now_parts.items()), "a counter went back"
        before = now_parts
    while flying:
        read()
    account.idle_until(now)
    assert sum(parts(account).values()) == now


@given(st.lists(st.tuples(st.integers(0, 900), st.integers(1, 900), st.integers(0, 90), st.booleans()), max_size=40))
def test_without_drift_each_tick_of_work_is_found_again(steps: list[tuple[int, int, int, bool]]) -> None:
    now, gpu, account = 0, Gpu(), DeviceTime(0)
    expected = dict.fromkeys(("prefill", "decode", "sampling", "idle_no_work"), 0)
    flying = []
    for pause, forward, sampling, is_prefill in steps:
        now += pause
        expected["idle_no_work"] += max(0, now - gpu.busy_until)
        flying.append((now, gpu.run(now, forward, sampling), is_prefill))
        expected["prefill" if is_prefill else "decode"] += forward
        expected["sampling"] += sampling
        if len(flying) > 1:
            launched, (end, *times), was_prefill = flying.pop(0)
            now = max(now, end)
            account.step(launched, *times, collected=now, is_prefill=was_prefill)
    for launched, (end, *times), was_prefill in flying:
        account.step(launched, *times, collected=end, is_prefill=was_prefill)
    assert parts(account) == {name: ticks for name, ticks in expected.items() if ticks}


def test_a_gap_is_split_at_what_the_host_learned_in_it() -> None:
    account = DeviceTime(100)
    account.note(Idle.SCHEDULING, 110)
    account.step(launched=113, gap=13, forward=20, sampling=2, collected=135, is_prefill=True)
    account.note(Idle.KV_FULL, 140)
    account.note(Idle.NO_WORK, 141)
    account.idle_until(150)
    account.note(Idle.DRAINING, 150)
    account.note(Idle.SCHEDULING, 155)  # too late: the engine is to end
    account.step(launched=160, gap=25, forward=1, sampling=0, collected=170, is_prefill=False)
    assert parts(account) == {
        "idle_no_work": 10 + 9, "idle_scheduling": 3 + 5, "prefill": 20, "sampling": 2, "idle_kv_full": 1, "idle_draining": 10, "decode": 1,
    }  # fmt: skip
    assert account.take_without_work() == [(100, 110), (141, 150)] and account.take_without_work() == []


def test_work_with_holes_is_counted_apart() -> None:
    account = DeviceTime(0)
    account.step(0, 0, 10, 2, launching=11.5, collected=12, is_prefill=False)  # as long to launch as to run
    account.step(12, 0, 10, 0, launching=0.1, collected=22, is_prefill=False)  # a graph
    account.step(22, 0, 10, 0, launching=5, collected=32, is_prefill=True)
    assert account.launch_bound == 12
    account.step(32, 0, 4, 0, launching=20, collected=36, is_prefill=True)  # launched while the one before it ran
    assert account.launch_bound == 16 and sum(parts(account).values()) == 36


def test_a_host_that_reads_late_is_not_taken_for_a_busy_device() -> None:
    account = DeviceTime(0)
    account.note(Idle.SCHEDULING, 0)
    account.step(launched=0, gap=0, forward=10, sampling=0, collected=500, is_prefill=False)
    account.step(launched=501, gap=491, forward=10, sampling=0, collected=520, is_prefill=False)
    assert parts(account) == {"decode": 20, "idle_scheduling": 491}


def test_shares_are_of_the_last_ten_seconds() -> None:
    window = UtilizationWindow(0.0, peak_flops=100.0, peak_bytes=1000.0)
    assert window.shares(0.0, 0.0, 0.0) == (0.0, 0.0)
    done = 0.0
    for tick in range(1, 81):  # half of the arithmetic, a tenth of the bytes, for 20 seconds
        done += 0.25
        shares = window.shares(tick / 4, 50 * done, 100 * done)
        assert shares == (0.5, 0.1)
    assert window.shares(25.0, 50 * done, 100 * done) == (0.25, 0.05)
    assert window.shares(31.0, 50 * done, 100 * done) == (0.0, 0.0)


def test_nothing_measured_is_a_share_of_nothing() -> None:
    assert UtilizationWindow(0.0, 0.0, 0.0).shares(1.0, 5.0, 5.0) == (0.0, 0.0)
