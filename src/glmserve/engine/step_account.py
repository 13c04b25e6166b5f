"""What the engine counts of its steps: time by activity, sizes, and how much of the device the model's work needed.  No torch."""

from __future__ import annotations

from collections import deque

from glmserve.engine.device_time import DeviceTime
from glmserve.models.floor import StepCost, StepCosts
from glmserve.protocol.messages import EngineReady
from glmserve.protocol.stats import EngineStats
from glmserve.scheduler.batch import ScheduledBatch

WINDOW_SECONDS = 10.0  # that MBU and MFU look back
SAMPLE_SECONDS = 0.25


class UtilizationWindow:
    """Shares of the device's peaks over the last ten seconds of wall time."""

    def __init__(self, now: float, peak_flops: float, peak_bytes: float) -> None:
        """Peaks are per second; one that is 0, because nothing was measured, gives a share of 0."""
        self._peak_flops = peak_flops
        self._peak_bytes = peak_bytes
        self._samples = deque([(now, 0.0, 0.0)])  # (time, FLOPs and bytes up to then)

    def shares(self, now: float, flops: float, num_bytes: float) -> tuple[float, float]:
        """(MFU, MBU), given what was done up to `now` since the start."""
        samples = self._samples
        if now - samples[-1][0] >= SAMPLE_SECONDS:
            samples.append((now, flops, num_bytes))
        while len(samples) > 1 and samples[1][0] <= now - WINDOW_SECONDS:
            samples.popleft()
        since, flops_then, bytes_then = samples[0]
        seconds = now - since
        if seconds <= 0:
            return 0.0, 0.0
        return _share(flops - flops_then, self._peak_flops * seconds), _share(num_bytes - bytes_then, self._peak_bytes * seconds)


def _share(done: float, possible: float) -> float:
    return done / possible if possible else 0.0


class StepAccount:
    """The counters of one engine's steps, in `stats`; the time of its device, in `device`."""

    def __init__(self, now: float, costs: StepCosts | None = None, ready: EngineReady | None = None) -> None:
        """Without `costs` nothing is estimated, as for an engine that has no model."""
        self.device = DeviceTime(now)
        self.stats = EngineStats(gpu_time_seconds=self.device.seconds)
        self._costs = costs
        peaks = (ready.device_peak_flops_per_second, ready.device_peak_bytes_per_second) if ready is not None else (0.0, 0.0)
        self._window = UtilizationWindow(now, *peaks)

    def launched(self, batch: ScheduledBatch) -> None:
        """A step was sent off."""
        stats = self.stats
        stats.engine_steps += 1
        stats.iteration_tokens_total.observe(batch.num_tokens)
        if batch.is_prefill:
            stats.prompt_tokens += batch.num_tokens
        else:
            stats.decode_batch_size.observe(len(batch.requests))
        if self._costs is not None:
            cost = cost_of(self._costs, batch)
            stats.estimated_flops_per_gpu += cost.flops
            stats.estimated_read_bytes_per_gpu += cost.read_bytes
            stats.estimated_write_bytes_per_gpu += cost.write_bytes

    def refresh(self, now: float | None) -> EngineStats:
        """`stats`, with what is derived brought up to date; `now` is None while a step is under way."""
        if now is not None:
            self.device.idle_until(now)
        stats = self.stats
        stats.launch_bound_seconds = self.device.launch_bound
        num_bytes = stats.estimated_read_bytes_per_gpu + stats.estimated_write_bytes_per_gpu
        shares = self._window.shares(self.device.until, stats.estimated_flops_per_gpu, num_bytes)
        stats.model_flops_utilization_perc, stats.model_bandwidth_utilization_perc = shares
        return stats


def cost_of(costs: StepCosts, batch: ScheduledBatch) -> StepCost:
    """Of a step that was just scheduled, so that each request's newest token counts as computed."""
    if batch.is_prefill:
        return costs.prefill(((chunk.start, chunk.length, chunk.request.context_len) for chunk in batch.chunks), len(batch.requests))
    return costs.decode(len(batch.requests), sum([request.num_computed_tokens for request in batch.requests]))
