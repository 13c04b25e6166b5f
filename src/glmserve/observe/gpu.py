"""What NVML says of the engine's GPU, read once a second by a thread, so that a slow driver delays no answer.

NVML's "utilization" is the share of time in which some kernel ran; how much of the chip it used is what MBU and MFU say.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
import pynvml

from glmserve.protocol.stats import gauge

logger = logging.getLogger(__name__)

SAMPLE_SECONDS = 1.0
# What slows a GPU down.  NVML's other reasons (idle, clocks that were set) are no fault.
THROTTLE_REASONS = {
    "sw_power_cap": pynvml.nvmlClocksEventReasonSwPowerCap,
    "hw_slowdown": pynvml.nvmlClocksEventReasonHwSlowdown,
    "sw_thermal": pynvml.nvmlClocksEventReasonSwThermalSlowdown,
    "hw_thermal": pynvml.nvmlClocksEventReasonHwThermalSlowdown,
    "hw_power_brake": pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown,
}


class GpuReading(msgspec.Struct):
    """One look at a GPU; None where this GPU or driver does not tell."""

    nvml_utilization_perc: Annotated[float | None, gauge("Share of time in which some kernel ran, 0 to 1, as nvidia-smi has it")] = None
    nvml_memory_used_bytes: Annotated[float | None, gauge("GPU memory in use, by all programs")] = None
    nvml_memory_total_bytes: Annotated[float | None, gauge("GPU memory there is")] = None
    nvml_power_watts: Annotated[float | None, gauge("Power drawn")] = None
    nvml_power_limit_watts: Annotated[float | None, gauge("Power that the GPU may draw")] = None
    nvml_sm_clock_hertz: Annotated[float | None, gauge("Clock of the multiprocessors")] = None
    nvml_memory_clock_hertz: Annotated[float | None, gauge("Clock of the memory")] = None
    nvml_temperature_celsius: Annotated[float | None, gauge("Temperature of the GPU")] = None
    nvml_pcie_width: Annotated[float | None, gauge("PCIe lanes in use")] = None
    nvml_pcie_width_max: Annotated[float | None, gauge("PCIe lanes that GPU and board could use")] = None
    nvml_pcie_generation: Annotated[float | None, gauge("PCIe generation in use; an idle GPU saves power with a lower one")] = None
    nvml_pcie_generation_max: Annotated[float | None, gauge("PCIe generation that GPU and board could use")] = None
    nvml_throttle: Annotated[dict[str, bool] | None, gauge("1 while the GPU is slowed down for this reason", "reason")] = None


def read_gpu(nvml: Any, uuid: str) -> GpuReading:
    """One look.  `nvml` is pynvml, initialised.  Raises its NVMLError where the GPU is not found."""
    handle = nvml.nvmlDeviceGetHandleByUUID(uuid)

    def ask(function: str, *arguments: Any, part: str = "", scale: float = 1.0) -> float | None:
        try:
            value = getattr(nvml, function)(handle, *arguments)
        except nvml.NVMLError:  # not on this GPU
            return None
        return float(getattr(value, part) if part else value) * scale

    reasons = ask("nvmlDeviceGetCurrentClocksEventReasons")
    return GpuReading(
        nvml_utilization_perc=ask("nvmlDeviceGetUtilizationRates", part="gpu", scale=0.01),
        nvml_memory_used_bytes=ask("nvmlDeviceGetMemoryInfo", part="used"),
        nvml_memory_total_bytes=ask("nvmlDeviceGetMemoryInfo", part="total"),
        nvml_power_watts=ask("nvmlDeviceGetPowerUsage", scale=1e-3),
        nvml_power_limit_watts=ask("nvmlDeviceGetEnforcedPowerLimit", scale=1e-3),
        nvml_sm_clock_hertz=ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM, scale=1e6),
        nvml_memory_clock_hertz=ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM, scale=1e6),
        nvml_temperature_celsius=ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
        nvml_pcie_width=ask("nvmlDeviceGetCurrPcieLinkWidth"),
        nvml_pcie_width_max=ask("nvmlDeviceGetMaxPcieLinkWidth"),
        nvml_pcie_generation=ask("nvmlDeviceGetCurrPcieLinkGeneration"),
        nvml_pcie_generation_max=ask("nvmlDeviceGetMaxPcieLinkGeneration"),
        nvml_throttle=None if reasons is None else {name: bool(int(reasons) & bit) for name, bit in THROTTLE_REASONS.items()},
    )


class GpuSampler:
    """Looks at the GPU whose UUID `uuid` gives, once a second between `start` and `stop`; the last look is `latest`.

    While there is no GPU (`uuid` gives None) it asks nothing of NVML.  NVML that fails is told once in the log.
    """

    def __init__(self, uuid: Callable[[], str | None], nvml: Any = pynvml) -> None:
        self.latest: GpuReading | None = None
        self.gpu: str | None = None  # the UUID that `latest` is of
        self._uuid = uuid
        self._nvml = nvml
        self._initialised = False
        self._complained = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nvml", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """End; a look that hangs in the driver is not waited for."""
        self._stop.set()

    def look(self) -> None:
        """One look, now."""
        uuid = self._uuid()
        if uuid is None:
            self.latest = self.gpu = None
            return
        try:
            if not self._initialised:
                self._nvml.nvmlInit()
                self._initialised = True
            self.latest, self.gpu = read_gpu(self._nvml, uuid), uuid
        except self._nvml.NVMLError as error:
            self.latest = None
            if not self._complained:
                logger.warning("NVML tells nothing of %s (%s): the nvml_* metrics stay away", uuid, error)
                self._complained = True

    def _run(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self.look()
