"""What the server says of itself while it is under load, read from its /metrics once a second.

The clients see times; only the server knows how its device spent them.  A server that reports nothing, or only some of it, as vLLM's
does, leaves the figures empty.
"""

from __future__ import annotations

import contextlib
import threading
import time
from types import TracebackType
from typing import Any, Self

import httpx
import msgspec

from glmserve.observe.readings import Readings, Window
from glmserve.observe.signals import IDLE

WATCH_SECONDS = 1.0


class ServerFigures(msgspec.Struct):
    """From the first page to the last.  Shares are 0 to 1; None where the server does not report it.

    `spent` is the share of wall time of each activity of the device; `launch_bound` the share of its work in which it waited for launches.
    `floor_seconds` is the least time that the work of these seconds takes on this chip: all bytes at the speed of its memory, or all
    arithmetic at the speed of its multipliers, whichever is longer.
    """

    seconds: float
    spent: dict[str, float]
    busy: float | None
    launch_bound: float | None
    mbu: float | None
    mfu: float | None
    nvml: float | None
    floor_seconds: float | None
    output_tokens: float | None
    mean_batch: float | None
    peak_bytes_per_second: float | None
    peak_flops_per_second: float | None


class ServerWatch:
    """Watches while its `with` block runs; afterwards `figures` has what was seen."""

    def __init__(self, base_url: str, api_key: str | None, every: float = WATCH_SECONDS) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(base_url=base_url, headers=headers, timeout=10.0, trust_env=False)
        self._every = every
        self._pages: list[tuple[float, str]] = []  # parsed at the end, so that the machine is left to the load
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._read()
        if self._pages:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
            self._read()
        self._http.close()

    def _watch(self) -> None:
        while not self._stop.wait(self._every):
            self._read()

    def _read(self) -> None:
        with contextlib.suppress(httpx.HTTPError):  # a page that is missing is not worth the run
            self._pages.append((time.monotonic(), self._http.get("/metrics").raise_for_status().text))

    def figures(self) -> ServerFigures | None:
        """None for a server without metrics."""
        try:
            readings = [Readings.parse(text, at) for at, text in self._pages]
        except ValueError:  # some page of the same name
            return None
        return figures_of(readings) if len(readings) > 1 else None


def figures_of(readings: list[Readings]) -> ServerFigures:
    """What happened from the first to the last of at least two readings."""
    window = Window(readings[0], readings[-1])
    seconds_by = window.increases_by("gpu_time_seconds_total", "activity")
    wall = sum(seconds_by.values())
    peak_bytes, peak_flops = (readings[-1].total(f"device_peak_{what}_per_second") for what in ("bytes", "flops"))
    memory = _seconds(_moved_bytes(window), peak_bytes)
    arithmetic = _seconds(window.increase("estimated_flops_per_gpu_total"), peak_flops)
    work = sum(spent for activity, spent in seconds_by.items() if not activity.startswith(IDLE))
    launch_bound = window.increase("launch_bound_seconds_total")
    nvml = [value for one in readings[1:] if (value := one.mean("nvml_utilization_perc")) is not None]
    return ServerFigures(
        seconds=window.seconds,
        spent={activity: spent / wall for activity, spent in seconds_by.items()} if wall else {},
        busy=work / wall if wall else None,
        launch_bound=None if launch_bound is None or not work else launch_bound / work,
        mbu=None if memory is None or not wall else memory / wall,
        mfu=None if arithmetic is None or not wall else arithmetic / wall,
        nvml=sum(nvml) / len(nvml) if nvml else None,
        floor_seconds=None if memory is None or arithmetic is None else max(memory, arithmetic),
        output_tokens=window.increase("generation_tokens_total"),
        mean_batch=window.mean_observation("decode_batch_size"),
        peak_bytes_per_second=peak_bytes or None,
        peak_flops_per_second=peak_flops or None,
    )


def _moved_bytes(window: Window) -> float | None:
    read, written = (window.increase(f"estimated_{what}_bytes_per_gpu_total") for what in ("read", "write"))
    return None if read is None or written is None else read + written


def _seconds(amount: float | None, per_second: float | None) -> float | None:
    return None if amount is None or not per_second else amount / per_second


def rows(figures: ServerFigures) -> dict[str, str]:
    """For the table that people read."""
    idle = sorted(((share, name) for name, share in figures.spent.items() if name.startswith(IDLE) and share >= 0.005), reverse=True)
    shown: dict[str, Any] = {
        "device busy": _busy(figures),
        "idle because of": ", ".join(f"{name.removeprefix(IDLE).replace('_', ' ')} {share:.0%}" for share, name in idle),
        "MBU, share of memory speed": _of(figures.mbu, figures.peak_bytes_per_second, 1e9, "GB/s"),
        "MFU, share of arithmetic": _of(figures.mfu, figures.peak_flops_per_second, 1e12, "TFLOP/s"),
        "floor of this load": _floor(figures),
        "NVML utilization": _percent(figures.nvml),
        "requests in a decode step": None if figures.mean_batch is None else f"{figures.mean_batch:.1f}",
    }
    return {name: value for name, value in shown.items() if value}


def _busy(figures: ServerFigures) -> str | None:
    if figures.busy is None or (figures.launch_bound or 0.0) < 0.01:
        return _percent(figures.busy)
    return f"{figures.busy:.0%}, {figures.launch_bound:.0%} of it waiting for launches"


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.0%}"


def _of(share: float | None, peak: float | None, unit: float, name: str) -> str | None:
    return None if share is None or peak is None else f"{share:.1%} of {peak / unit:,.3g} {name}"


def _floor(figures: ServerFigures) -> str | None:
    if figures.floor_seconds is None or figures.seconds <= 0:
        return None
    return f"{figures.floor_seconds:.2f} s of {figures.seconds:.2f} s, {figures.floor_seconds / figures.seconds:.0%} reached"
