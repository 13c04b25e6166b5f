"""What NVML says, through a stand-in that has its functions."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from glmserve.observe.gpu import GpuSampler, read_gpu


class FakeNvml:
    """One GPU."""

    NVMLError = pynvml.NVMLError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = pynvml.NVML_CLOCK_SM, pynvml.NVML_CLOCK_MEM, pynvml.NVML_TEMPERATURE_GPU

    def __init__(self) -> None:
        self.broken = False
        self.num_inits = 0
        self.answers: dict[str, Any] = {
            "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=98, memory=40),
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=2**30, total=2**33),
            "nvmlDeviceGetPowerUsage": 350_500,
            "nvmlDeviceGetEnforcedPowerLimit": 700_000,
            "nvmlDeviceGetTemperature": 61,
            "nvmlDeviceGetCurrentClocksEventReasons": pynvml.nvmlClocksEventReasonSwPowerCap | pynvml.nvmlClocksEventReasonGpuIdle,
            "nvmlDeviceGetCurrPcieLinkWidth": 8,
            "nvmlDeviceGetMaxPcieLinkWidth": 16,
        }

    def nvmlInit(self) -> None:
        self.num_inits += 1
        if self.broken:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid != "GPU-1":
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return uuid

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:
        return {pynvml.NVML_CLOCK_SM: 1980, pynvml.NVML_CLOCK_MEM: 3201}[kind]

    def __getattr__(self, name: str) -> Any:
        def ask(handle: str, *arguments: int) -> Any:
            if name not in self.answers:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
            return self.answers[name]

        return ask


def test_a_look_has_units_and_reasons() -> None:
    reading = read_gpu(FakeNvml(), "GPU-1")
    assert reading.nvml_utilization_perc == pytest.approx(0.98)
    assert (reading.nvml_memory_used_bytes, reading.nvml_memory_total_bytes) == (2**30, 2**33)
    assert (reading.nvml_power_watts, reading.nvml_power_limit_watts) == (350.5, 700.0)
    assert (reading.nvml_sm_clock_hertz, reading.nvml_memory_clock_hertz) == (1.98e9, 3.201e9)
    assert reading.nvml_throttle == {
        "sw_power_cap": True, "hw_slowdown": False, "sw_thermal": False, "hw_thermal": False, "hw_power_brake": False,
    }  # fmt: skip
    assert (reading.nvml_pcie_width, reading.nvml_pcie_width_max, reading.nvml_pcie_generation) == (8, 16, None)


def test_without_a_gpu_nvml_is_left_alone() -> None:
    nvml = FakeNvml()
    sampler = GpuSampler(lambda: None, nvml)
    sampler.look()
    assert sampler.latest is None and nvml.num_inits == 0


def test_the_engine_s_gpu_comes_and_goes_with_the_engine() -> None:
    uuids = iter([None, "GPU-1", None])
    sampler = GpuSampler(lambda: next(uuids), FakeNvml())
    seen = []
    for _ in range(3):
        sampler.look()
        seen.append(sampler.latest is not None)
    assert seen == [False, True, False]


def test_a_failing_nvml_is_told_once_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    nvml = FakeNvml()
    nvml.broken = True
    sampler = GpuSampler(lambda: "GPU-1", nvml)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            sampler.look()
    assert sampler.latest is None and len(caplog.records) == 1
    nvml.broken = False
    sampler.look()
    assert sampler.latest is not None


def test_a_gpu_that_nvml_does_not_know_is_no_crash(caplog: pytest.LogCaptureFixture) -> None:
    sampler = GpuSampler(lambda: "GPU-2", FakeNvml())
    sampler.look()
    assert sampler.latest is None and "GPU-2" in caplog.text
