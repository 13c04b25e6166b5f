"""What is examined, and what a check is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from glmserve.tools.doctor.finding import Finding, NotApplicableError
from glmserve.tools.doctor.gpu import Gpu, GpuReader, GpuSample
from glmserve.tools.doctor.machine import Machine
from glmserve.tools.doctor.model_folder import ModelFolder
from glmserve.tools.doctor.service import Service
from glmserve.tools.doctor.trials import Trials

Subject = Literal["service", "folder", "machine"]


@dataclass
class Patient:
    """A service or a model folder, and this machine.

    `is_here` is false for a service on another machine: then nothing of this machine is looked at.  `gpu` is the GPU that the service
    uses, or that a model would be loaded on; None where there is none, or none that can be seen from here.
    """

    machine: Machine
    is_here: bool = True
    reader: GpuReader | None = None
    gpu: Gpu | None = None
    trials: Trials | None = None
    folder: ModelFolder | None = None

    @property
    def service(self) -> Service:
        """The running service; only checks of the subject "service" ask."""
        assert self.trials is not None
        return self.trials.service

    @property
    def tried(self) -> Trials:
        """The trials on it; only checks of the subject "service" ask."""
        assert self.trials is not None
        return self.trials

    @property
    def files(self) -> ModelFolder:
        """The model folder; only checks of the subject "folder" ask."""
        assert self.folder is not None
        return self.folder

    def need_here(self) -> None:
        """Raises NotApplicableError for a service on another machine."""
        if not self.is_here:
            raise NotApplicableError("the server is on another machine; run the doctor there")

    def need_gpu(self) -> Gpu:
        """Raises NotApplicableError where no GPU can be looked at."""
        if self.gpu is None:
            self.need_here()
            raise NotApplicableError("no NVIDIA GPU on this machine")
        return self.gpu

    async def gpu_at_work(self) -> list[GpuSample]:
        """Samples while the service was kept busy; one of this moment where there is no service."""
        gpu = self.need_gpu()
        assert self.reader is not None
        if self.trials is None:
            return [self.reader.sample(gpu)]
        samples = (await self.trials.busy()).samples
        if not samples:
            raise NotApplicableError("NVML gave no sample")
        return samples


@dataclass(frozen=True)
class Check:
    """One thing to look at.  `run` gives the finding, or raises NotApplicableError with the reason."""

    name: str
    title: str
    subject: Subject
    run: Callable[[Patient], Awaitable[Finding]]
