"""What NVML says of GPUs, once and while something runs: of this machine's, or of another one's through a server's /metrics.

Tests give a reader of their own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from types import TracebackType
from typing import Any, Protocol, Self

import httpx
import msgspec
import pynvml

from glmserve.observe.gpu import GpuReading, read_gpu
from glmserve.observe.readings import Readings
from glmserve.tools.doctor.service import Service

SAMPLE_SECONDS = 0.1


@dataclass(frozen=True)
class Gpu:
    """What does not change.  None where it is not told."""

    index: int
    name: str
    memory_bytes: int
    uuid: str = ""
    driver: str = ""
    driver_cuda: tuple[int, int] | None = None  # the newest CUDA this driver runs
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

    @classmethod
    def of(cls, reading: GpuReading, pcie_received: float | None = None) -> GpuSample:
        """From the server's own kind of look at a GPU."""
        clock = reading.nvml_sm_clock_hertz
        return cls(
            int(reading.nvml_memory_used_bytes or 0),
            reading.nvml_utilization_perc,
            frozenset(reason for reason, is_slowed in (reading.nvml_throttle or {}).items() if is_slowed),
            _whole(reading.nvml_pcie_width),
            _whole(reading.nvml_pcie_generation),
            pcie_received,
            None if clock is None else round(clock / 1e6),
            _whole(reading.nvml_temperature_celsius),
        )


class GpuReader(Protocol):
    """Where the figures come from."""

    def gpus(self) -> list[Gpu]:
        """All GPUs it can see."""
        ...

    def sample(self, gpu: Gpu) -> GpuSample:
        """One of them, now.  Raises OSError where it can be seen no more."""
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
            pynvml.nvmlDeviceGetUUID(handle),
            pynvml.nvmlSystemGetDriverVersion(),
            (cuda // 1000, cuda % 1000 // 10),
            _told(pynvml.nvmlDeviceGetMaxPcieLinkWidth, handle),
            _told(pynvml.nvmlDeviceGetMaxPcieLinkGeneration, handle),
            _told(pynvml.nvmlDeviceGetMaxClockInfo, handle, pynvml.NVML_CLOCK_SM),
            clock * 1e6 * bits / 8 * 2 if clock and bits else None,  # two transfers a clock
        )

    def sample(self, gpu: Gpu) -> GpuSample:
        """One of them, now.  Takes about 20 ms, which is how long NVML counts PCIe bytes.  Raises OSError."""
        try:
            handle = pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
            kib = _told(pynvml.nvmlDeviceGetPcieThroughput, handle, pynvml.NVML_PCIE_UTIL_RX_BYTES)
            return GpuSample.of(read_gpu(pynvml, gpu.uuid), None if kib is None else kib * 1024.0)
        except pynvml.NVMLError as error:
            raise OSError(f"NVML: {error}") from error


class ReportedReader:
    """The GPU of a glmserve on another machine, as its /metrics reports it once a second."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def gpus(self) -> list[Gpu]:
        """The one its engine uses; none where it reports none."""
        try:
            readings = self._readings()
        except OSError:
            return []
        series = readings.series("nvml_memory_total_bytes")
        return [
            Gpu(
                0,
                uuid := dict(labels).get("gpu", ""),
                int(total),
                uuid,
                max_pcie_width=_whole(readings.total("nvml_pcie_width_max")),
                max_pcie_generation=_whole(readings.total("nvml_pcie_generation_max")),
            )
            for labels, total in series.items()
        ]

    def sample(self, gpu: Gpu) -> GpuSample:
        """As of its last look.  Raises OSError."""
        readings = self._readings()
        values: dict[str, Any] = {name: readings.total(name, gpu=gpu.uuid) for name in GpuReading.__struct_fields__}
        values["nvml_throttle"] = {reason: value > 0 for reason, value in readings.by("nvml_throttle", "reason").items()}
        return GpuSample.of(msgspec.convert(values, GpuReading))

    def _readings(self) -> Readings:
        try:
            response = httpx.get(f"{self._service.url}/metrics", headers=self._service.headers, timeout=5.0, trust_env=False)
            return Readings.parse(response.raise_for_status().text, time.monotonic())
        except (httpx.HTTPError, ValueError) as error:
            raise OSError(f"/metrics: {error}") from error


def _told(ask: Callable[..., Any], *arguments: Any) -> Any:
    """None where this GPU or driver does not tell."""
    try:
        return ask(*arguments)
    except pynvml.NVMLError:
        return None


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def nvml_reader() -> GpuReader | None:
    """None on a machine without an NVIDIA driver or without a GPU."""
    try:
        reader = NvmlReader()
        return reader if reader.gpus() else None
    except pynvml.NVMLError:
        return None


class GpuWatch:
    """`with GpuWatch(reader, index) as watch: ...` samples in a thread of its own; read `samples` afterwards."""

    def __init__(self, reader: GpuReader, gpu: Gpu, every: float = SAMPLE_SECONDS) -> None:
        self.samples: list[GpuSample] = []
        self._reader, self._gpu, self._every = reader, gpu, every
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._done.wait(self._every if self.samples else 0):
            try:
                self.samples.append(self._reader.sample(self._gpu))
            except OSError:  # a GPU that fell off the bus: what was seen stays
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
