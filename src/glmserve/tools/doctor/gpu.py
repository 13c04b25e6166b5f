"""What NVML says of this machine's GPUs, once and while something runs.  Tests give a reader of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from types import TracebackType
from typing import Any, Protocol, Self

import pynvml

SAMPLE_SECONDS = 0.1
THROTTLE_REASONS = {  # NVML's bits -> the name; idle clocks, application clocks and sync boost slow nothing down that runs
    pynvml.nvmlClocksEventReasonHwSlowdown: "hw_slowdown",
    pynvml.nvmlClocksEventReasonHwThermalSlowdown: "hw_thermal",
    pynvml.nvmlClocksEventReasonSwThermalSlowdown: "sw_thermal",
    pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown: "hw_power_brake",
    pynvml.nvmlClocksEventReasonSwPowerCap: "sw_power_cap",
}


@dataclass(frozen=True)
class Gpu:
    """What does not change.  None where NVML does not tell."""

    index: int
    name: str
    memory_bytes: int
    driver: str
    driver_cuda: tuple[int, int]  # the newest CUDA this driver runs
    max_pcie_width: int | None = None
    max_pcie_generation: int | None = None
    max_sm_clock: int | None = None  # MHz
    peak_bytes_per_second: float | None = None


@dataclass(frozen=True)
class GpuSample:
    """One moment.  `utilization` is the share of NVML's last window (up to 1 s) in which some kernel ran."""

    memory_used: int
    utilization: float | None = None
    throttle: frozenset[str] = frozenset()
    pcie_width: int | None = None
    pcie_generation: int | None = None
    pcie_received: float | None = None  # bytes a second, host to device
    sm_clock: int | None = None  # MHz
    temperature: int | None = None  # Celsius
    power: float | None = None  # watts


class GpuReader(Protocol):
    """Where the figures come from."""

    def gpus(self) -> list[Gpu]:
        """All GPUs of this machine."""
        ...

    def sample(self, index: int) -> GpuSample:
        """One of them, now."""
        ...


class NvmlReader:
    """NVML itself.  Raises pynvml.NVMLError on construction where there is no NVIDIA driver."""

    def __init__(self) -> None:
        pynvml.nvmlInit()

    def gpus(self) -> list[Gpu]:
        """All GPUs of this machine."""
        return [self._gpu(index) for index in range(pynvml.nvmlDeviceGetCount())]

    def _gpu(self, index: int) -> Gpu:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()
        clock = _told(pynvml.nvmlDeviceGetMaxClockInfo, handle, pynvml.NVML_CLOCK_MEM)
        bits = _told(pynvml.nvmlDeviceGetMemoryBusWidth, handle)
        return Gpu(
            index,
            pynvml.nvmlDeviceGetName(handle),
            pynvml.nvmlDeviceGetMemoryInfo(handle).total,
            pynvml.nvmlSystemGetDriverVersion(),
            (cuda // 1000, cuda % 1000 // 10),
            _told(pynvml.nvmlDeviceGetMaxPcieLinkWidth, handle),
            _told(pynvml.nvmlDeviceGetMaxPcieLinkGeneration, handle),
            _told(pynvml.nvmlDeviceGetMaxClockInfo, handle, pynvml.NVML_CLOCK_SM),
            clock * 1e6 * bits / 8 * 2 if clock and bits else None,  # two transfers a clock
        )

    def sample(self, index: int) -> GpuSample:
        """One of them, now.  Takes about 20 ms, which is how long NVML counts PCIe bytes."""
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        utilization = _told(pynvml.nvmlDeviceGetUtilizationRates, handle)
        bits = _told(pynvml.nvmlDeviceGetCurrentClocksEventReasons, handle) or 0
        kib = _told(pynvml.nvmlDeviceGetPcieThroughput, handle, pynvml.NVML_PCIE_UTIL_RX_BYTES)
        milliwatts = _told(pynvml.nvmlDeviceGetPowerUsage, handle)
        return GpuSample(
            pynvml.nvmlDeviceGetMemoryInfo(handle).used,
            None if utilization is None else utilization.gpu / 100,
            frozenset(name for bit, name in THROTTLE_REASONS.items() if bits & bit),
            _told(pynvml.nvmlDeviceGetCurrPcieLinkWidth, handle),
            _told(pynvml.nvmlDeviceGetCurrPcieLinkGeneration, handle),
            None if kib is None else kib * 1024.0,
            _told(pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_SM),
            _told(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU),
            None if milliwatts is None else milliwatts / 1000,
        )


def _told(ask: Callable[..., Any], *arguments: Any) -> Any:
    """None where this GPU or driver does not tell."""
    try:
        return ask(*arguments)
    except pynvml.NVMLError:
        return None


def nvml_reader() -> GpuReader | None:
    """None on a machine without an NVIDIA driver or without a GPU."""
    try:
        reader = NvmlReader()
        return reader if reader.gpus() else None
    except pynvml.NVMLError:
        return None


class GpuWatch:
    """`with GpuWatch(reader, index) as watch: ...` samples in a thread of its own; read `samples` afterwards."""

    def __init__(self, reader: GpuReader, index: int, every: float = SAMPLE_SECONDS) -> None:
        self.samples: list[GpuSample] = []
        self._reader, self._index, self._every = reader, index, every
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._done.wait(self._every if self.samples else 0):
            try:
                self.samples.append(self._reader.sample(self._index))
            except pynvml.NVMLError:  # a GPU that fell off the bus: what was seen stays
                return

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()


def utilizations(samples: list[GpuSample]) -> list[float]:
    """Those that NVML told."""
    return [sample.utilization for sample in samples if sample.utilization is not None]


def mean_utilization(samples: list[GpuSample]) -> float | None:
    """None where NVML tells none."""
    return fmean(told) if (told := utilizations(samples)) else None
