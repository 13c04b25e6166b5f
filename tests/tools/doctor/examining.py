"""An examination as short as a test wants it."""

from __future__ import annotations

import asyncio
from typing import Any

from glmserve.tools.doctor.examine import Examination, examine
from glmserve.tools.doctor.finding import Finding
from glmserve.tools.doctor.gpu import Gpu, GpuReader, GpuSample
from glmserve.tools.doctor.machine import Machine
from glmserve.tools.doctor.settings import DoctorConfig
from glmserve.tools.doctor.trials import Sizes

SMALL = Sizes(
    short_tokens=6,
    min_seconds=0,
    short_seconds=60,
    long_factor=6,
    pause=0,
    num_pages=10,
    num_one_token=10,
    busy_seconds=0.2,
    hang_up_seconds=1.0,
)


class NoGpu:
    """A machine without a GPU, also where the tests run on one that has one."""

    def gpus(self) -> list[Gpu]:
        return []

    def sample(self, gpu: Gpu) -> GpuSample:
        raise AssertionError("there is none")


def look(
    target: str,
    checks: str | None = None,
    *,
    reader: GpuReader | None = None,
    machine: Machine | None = None,
    sizes: Sizes = SMALL,
    **settings: Any,
) -> Examination:
    """An examination of `target`."""
    config = DoctorConfig(checks=checks, **settings)
    return asyncio.run(examine(target, config, lambda words: None, machine=machine, reader=reader or NoGpu(), sizes=sizes))


def finding(target: str, check: str, **how: Any) -> Finding:
    """What one check says of `target`."""
    ((_, found),) = look(target, check, **how).findings
    return found
