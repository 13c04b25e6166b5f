"""Where the device's wall time went: computing, or idle and why.  No torch: it is given seconds, whoever measured them.

A step tells how long the device worked and how long it had been idle before, both by the device's own clock where it is a GPU.  Why it
was idle is what the host knew meanwhile, by the host's clock.  The two clocks are brought together step by step: a step starts neither
before the host launched it nor so late that it could not have ended when the host read its result, so no drift adds up.
Everything before `until` is accounted for, and the parts always sum to `until` less the start.
"""

from __future__ import annotations

from collections import deque
from enum import StrEnum

from glmserve.protocol.stats import DeviceSeconds

MAX_STRETCHES = 1024  # kept for an engine whose user never asks for them
LAUNCH_BOUND = 0.9  # of a step's time on the device


class Idle(StrEnum):
    """Why the device has nothing to do, as the engine knows it; the values are fields of DeviceSeconds."""

    NO_WORK = "idle_no_work"
    SCHEDULING = "idle_scheduling"
    KV_FULL = "idle_kv_full"
    DRAINING = "idle_draining"


class DeviceTime:
    """The account of one device.  All times are seconds of one clock, CLOCK_MONOTONIC."""

    def __init__(self, now: float) -> None:
        self.seconds = DeviceSeconds()
        self.launch_bound = 0.0  # seconds of work in steps that the host launched no faster than the device ran them
        self.started = now
        self.until = now
        self._step_end = now
        self._cause = Idle.NO_WORK  # at `until`
        self._notes: deque[tuple[float, Idle]] = deque()  # changes of the cause after `until`
        self._without_work: deque[tuple[float, float]] = deque(maxlen=MAX_STRETCHES)

    def note(self, cause: Idle, now: float) -> None:
        """From now on, idle time is put down to `cause`.  Draining is final."""
        last = self._notes[-1][1] if self._notes else self._cause
        if cause is not last and last is not Idle.DRAINING:
            self._notes.append((now, cause))

    def step(
        self, launched: float, gap: float, forward: float, sampling: float, launching: float = 0.0, *, collected: float, is_prefill: bool
    ) -> None:
        """A step has ended: idle for `gap` seconds since the step before it, then `forward` and `sampling` seconds of work.

        `launched` and `collected` are when the host began to send it off and read its result; it took `launching` seconds to send it off.
        A step that took as long to launch as to run is work with holes: the device waited for one kernel after the other.
        """
        start = max(self._step_end + gap, launched)
        start = max(min(start, collected - forward - sampling), self.until)
        self._idle_until(start)
        forward = min(forward, max(0.0, collected - start))
        sampling = min(sampling, max(0.0, collected - start - forward))
        if is_prefill:
            self.seconds.prefill += forward
        else:
            self.seconds.decode += forward
        self.seconds.sampling += sampling
        if launching >= LAUNCH_BOUND * (forward + sampling) > 0:
            self.launch_bound += forward + sampling
        self.until = self._step_end = start + forward + sampling

    def idle_until(self, now: float) -> None:
        """No step is under way: the device has been idle since the last one."""
        if now > self.until:
            self._idle_until(now)

    def take_without_work(self) -> list[tuple[float, float]]:
        """(from, to) of the idle time without work that was accounted for since the last call; the HTTP wing knows what it did then."""
        taken = list(self._without_work)
        self._without_work.clear()
        return taken

    def _idle_until(self, end: float) -> None:
        while self._notes and self._notes[0][0] <= end:
            at, cause = self._notes.popleft()
            self._add_idle(max(at, self.until))
            self._cause = cause
        self._add_idle(end)

    def _add_idle(self, end: float) -> None:
        start, self.until = self.until, end
        if end <= start:
            return
        match self._cause:
            case Idle.NO_WORK:
                self.seconds.idle_no_work += end - start
                self._without_work.append((start, end))
            case Idle.SCHEDULING:
                self.seconds.idle_scheduling += end - start
            case Idle.KV_FULL:
                self.seconds.idle_kv_full += end - start
            case Idle.DRAINING:
                self.seconds.idle_draining += end - start
