"""How busy NVML says a GPU is while something runs."""

from __future__ import annotations

import statistics
import threading
from types import TracebackType
from typing import Any, Self

import torch

try:
    import pynvml
except ImportError:  # a figure for comparison only: without it a column stays empty
    pynvml = None

NVML_SECONDS = 0.05


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
