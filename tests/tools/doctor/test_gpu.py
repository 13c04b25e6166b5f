"""NVML's figures are read as they are meant, and a GPU that does not tell one still gives the others."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from glmserve.tools.doctor import gpu
from glmserve.tools.doctor.gpu import GpuSample, GpuWatch, NvmlReader, mean_utilization, nvml_reader
from tests.tools.doctor.fake_gpu import FakeGpu


class FakeNvml:
    """An H200 as NVML describes it; `silent` functions are not supported by it."""

    NVMLError = pynvml.NVMLError
    NVML_CLOCK_MEM, NVML_CLOCK_SM, NVML_TEMPERATURE_GPU, NVML_PCIE_UTIL_RX_BYTES = range(4)

    def __init__(self, *silent: str) -> None:
        self.silent = silent
        self.answers: dict[str, Any] = {
            "nvmlInit": None,
            "nvmlDeviceGetCount": 1,
            "nvmlDeviceGetHandleByIndex": 7,
            "nvmlDeviceGetHandleByUUID": 7,
            "nvmlDeviceGetName": "NVIDIA H200",
            "nvmlDeviceGetUUID": "GPU-1",
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=150 * 10**9, used=130 * 10**9),
            "nvmlSystemGetDriverVersion": "580.95.05",
            "nvmlSystemGetCudaDriverVersion_v2": 13010,
            "nvmlDeviceGetMaxClockInfo": 3201,
            "nvmlDeviceGetMemoryBusWidth": 6144,
            "nvmlDeviceGetMaxPcieLinkWidth": 16,
            "nvmlDeviceGetMaxPcieLinkGeneration": 5,
            "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=97),
            "nvmlDeviceGetCurrentClocksEventReasons": pynvml.nvmlClocksEventReasonSwPowerCap | pynvml.nvmlClocksEventReasonGpuIdle,
            "nvmlDeviceGetPcieThroughput": 2048,
            "nvmlDeviceGetPowerUsage": 650_000,
            "nvmlDeviceGetEnforcedPowerLimit": 700_000,
            "nvmlDeviceGetCurrPcieLinkWidth": 16,
            "nvmlDeviceGetCurrPcieLinkGeneration": 5,
            "nvmlDeviceGetClockInfo": 1980,
            "nvmlDeviceGetTemperature": 61,
        }

    def __getattr__(self, name: str) -> Any:
        def ask(*arguments: Any) -> Any:
            if name in self.silent:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
            return self.answers[name]

        return ask


def test_an_h200(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "pynvml", FakeNvml())
    (one,) = NvmlReader().gpus()
    assert (one.name, one.driver_cuda, one.max_pcie_width) == ("NVIDIA H200", (13, 1), 16)
    assert one.peak_bytes_per_second == pytest.approx(4.9e12, rel=0.01)
    assert NvmlReader().sample(one) == GpuSample(130 * 10**9, 0.97, frozenset({"sw_power_cap"}), 16, 5, 2048 * 1024, 1980, 61)


def test_what_a_gpu_does_not_tell_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = (
        "nvmlDeviceGetUtilizationRates",
        "nvmlDeviceGetPcieThroughput",
        "nvmlDeviceGetMemoryBusWidth",
        "nvmlDeviceGetCurrPcieLinkWidth",
    )
    monkeypatch.setattr(gpu, "pynvml", FakeNvml(*silent))
    (one,) = NvmlReader().gpus()
    sample = NvmlReader().sample(one)
    assert (one.peak_bytes_per_second, sample.utilization, sample.pcie_received, sample.pcie_width) == (None, None, None, None)
    assert sample.temperature == 61
    assert mean_utilization([sample]) is None


def test_no_driver_and_a_gpu_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "pynvml", FakeNvml("nvmlInit"))
    assert nvml_reader() is None
    monkeypatch.setattr(gpu, "pynvml", FakeNvml("nvmlDeviceGetHandleByUUID"))
    with pytest.raises(OSError, match="NVML"):
        NvmlReader().sample(NvmlReader().gpus()[0])


def test_watching_ends_with_the_gpu_and_keeps_what_was_seen() -> None:
    class Falling(FakeGpu):
        num_left = 2

        def sample(self, gpu: Any) -> GpuSample:
            self.num_left -= 1
            if self.num_left < 0:
                raise OSError("fell off the bus")
            return self.now

    falling = Falling()
    with GpuWatch(falling, falling.gpu, every=0.001) as watch:
        deadline = time.monotonic() + 10
        while falling.num_left >= 0 and time.monotonic() < deadline:
            time.sleep(0.001)
    assert watch.samples == [falling.now] * 2
