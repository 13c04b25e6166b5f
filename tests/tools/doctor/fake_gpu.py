"""A GPU that says what a test wants."""

from __future__ import annotations

from dataclasses import replace

from glmserve.tools.doctor.gpu import Gpu, GpuSample

GIB = 2**30
HEALTHY = GpuSample(
    memory_used=14 * GIB, utilization=0.96, pcie_width=16, pcie_generation=4, pcie_received=2e6, sm_clock=1700, temperature=61
)


class FakeGpu:
    """One GPU with 16 GiB, and the same sample again and again."""

    def __init__(self, **changes: object) -> None:
        self.gpu = Gpu(
            0,
            "Fake A10",
            16 * GIB,
            "GPU-1",
            "580.10",
            (13, 0),
            max_pcie_width=16,
            max_pcie_generation=4,
            max_sm_clock=1710,
            peak_bytes_per_second=600e9,
        )
        self.now = replace(HEALTHY, **changes)  # type: ignore[arg-type]

    def gpus(self) -> list[Gpu]:
        return [self.gpu]

    def sample(self, gpu: Gpu) -> GpuSample:
        return self.now
