"""What this machine's device can do, measured: a copy, a matrix product, and how busy NVML says it is."""

from __future__ import annotations

import platform
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from glmserve.models.floor import Chip

try:
    import pynvml
except ImportError:  # a figure for comparison only: without it a column stays empty
    pynvml = None

NVML_SECONDS = 0.05


def measure_chip(device: torch.device, dtype: torch.dtype) -> Chip:
    """Rates of a large copy and a large square matrix product in `dtype`."""
    on_gpu = device.type == "cuda"
    size, width = (min(2**31, torch.cuda.mem_get_info(device)[0] // 4), 8192) if on_gpu else (2**28, 1024)
    source = torch.zeros(size, dtype=torch.uint8, device=device).random_() if on_gpu else torch.ones(size, dtype=torch.uint8)
    target = torch.empty_like(source)
    a, b = (torch.randn(width, width, device=device, dtype=dtype) for _ in range(2))
    copy, product = _seconds(lambda: target.copy_(source), device), _seconds(lambda: a @ b, device)
    return Chip(device_name(device), 2 * source.nbytes / copy, 2 * width**3 / product)


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's with the number of threads torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor() or "CPU")
    return f"{name}, {torch.get_num_threads()} threads"


def _seconds(work: Callable[[], Any], device: torch.device, repeats: int = 10) -> float:
    """Of one call, in a row of them: what the device holds out, not its best moment."""
    for _ in range(3):
        work()
    if device.type != "cuda":
        started = time.perf_counter()
        for _ in range(repeats):
            work()
        return (time.perf_counter() - started) / repeats
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(repeats):
        work()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) / 1000 / repeats


class Utilization:
    """NVML's "GPU utilization" while a `with` block runs, sampled by a thread: the share of time in which some kernel ran.

    It says nothing of how much of the chip that kernel used; it stands beside the share of the floor for that reason.
    """

    def __init__(self, device: torch.device) -> None:
        self._handle = _nvml_handle(device)
        self._samples: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    @property
    def mean(self) -> float | None:
        """Percent; None without NVML."""
        return statistics.fmean(self._samples) if self._samples else None

    def __enter__(self) -> Self:
        if self._handle is not None:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(NVML_SECONDS):
            self._samples.append(pynvml.nvmlDeviceGetUtilizationRates(self._handle).gpu)


def _nvml_handle(device: torch.device) -> Any:
    """None where there is no GPU, or no NVML to ask."""
    if device.type != "cuda" or pynvml is None:
        return None
    try:
        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    except (pynvml.NVMLError, AttributeError):
        return None
