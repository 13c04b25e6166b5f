"""An examination, from a target to its findings: who is the patient, which checks apply, one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from glmserve.models.demo import resolve_model
from glmserve.protocol.errors import ModelLoadError
from glmserve.tools.doctor.checklist import applicable, select
from glmserve.tools.doctor.finding import Finding, NotApplicableError, Verdict, skipped
from glmserve.tools.doctor.gpu import Gpu, GpuReader, ReportedReader, nvml_reader
from glmserve.tools.doctor.machine import Machine
from glmserve.tools.doctor.model_folder import ModelFolder
from glmserve.tools.doctor.patient import Check, Patient
from glmserve.tools.doctor.service import Kind, Service, http_client, recognise
from glmserve.tools.doctor.settings import DEFAULT_TARGET, DoctorConfig
from glmserve.tools.doctor.speaker import speaker_for
from glmserve.tools.doctor.trials import QUICK, Sizes, Trials
from glmserve.tools.targets import as_url

Note = Callable[[str], None]


@dataclass
class Examination:
    """What came of it.  `about` says in a line what was examined."""

    target: str
    about: str
    findings: list[tuple[Check, Finding]]
    seconds: float

    @property
    def is_healthy(self) -> bool:
        """Nothing was found that wants mending."""
        return all(finding.verdict in (Verdict.OK, Verdict.SKIPPED) for _, finding in self.findings)


async def examine(
    target: str | None,
    config: DoctorConfig,
    note: Note,
    *,
    announce: Note = lambda words: None,
    machine: Machine | None = None,
    reader: GpuReader | None = None,
    sizes: Sizes | None = None,
) -> Examination:
    """Make the checks that were asked for and that apply.  `note` is told what is going on, `announce` what will be sent before it is.

    Raises EngineUnavailableError where nothing answers at a URL, ModelLoadError where there is no folder, SettingsError.
    """
    begun, checks = time.monotonic(), select(config.checks)
    machine, reader = machine or Machine(), reader or nvml_reader()
    target = target or DEFAULT_TARGET
    if (url := as_url(target)) is None:
        path = _folder(target)
        patient = Patient(machine, True, reader, _gpu(reader, config.gpu), folder=ModelFolder(path))
        about = f"the model folder {path}"
        findings = await _make(applicable(checks, "folder"), patient, note)
    else:
        wanted = applicable(checks, "service")
        service = await recognise(url, config.api_key, config.timeout)
        is_here = machine.has_address(service.host)
        about = _about(service, is_here)
        reported = ReportedReader(service) if service.is_ours else None
        if not is_here:
            reader = reported
        patient = Patient(machine, is_here, reader, _gpu(reader, config.gpu, reported))
        sizes = sizes or (QUICK if config.quick else Sizes())
        announce(f"Examining {url}, {sizes.in_words() if not config.checks else 'with what these checks send'}")
        findings = await _on_service(wanted, patient, service, config, sizes, note)
    return Examination(target, about, findings, time.monotonic() - begun)


async def _on_service(
    checks: list[Check], patient: Patient, service: Service, config: DoctorConfig, sizes: Sizes, note: Note
) -> list[tuple[Check, Finding]]:
    speaker = speaker_for(service, config.timeout)
    watch = (patient.reader, patient.gpu) if patient.reader is not None and patient.gpu is not None else None
    async with http_client(service.url, service.headers, config.timeout) as http:
        patient.trials = Trials(service, speaker, http, sizes, watch, note)
        try:
            return await _make(checks, patient, note)
        finally:
            speaker.close()


async def _make(checks: list[Check], patient: Patient, note: Note) -> list[tuple[Check, Finding]]:
    findings = []
    for number, check in enumerate(checks, 1):
        note(f"{number} of {len(checks)}: {check.title}")
        try:
            finding = await check.run(patient)
        except NotApplicableError as error:
            finding = skipped(str(error))
        except (OSError, httpx.HTTPError) as error:
            finding = skipped(f"it could not be examined: {error or type(error).__name__}")
        findings.append((check, finding))
    return findings


def _folder(name: str) -> Path:
    path = resolve_model(name)
    if not path.is_dir():
        raise ModelLoadError(
            f"there is no model folder at {path}. Give a folder that holds config.json and weights, or a URL such as {DEFAULT_TARGET}."
        )
    return path


def _gpu(reader: GpuReader | None, index: int | None, reported: ReportedReader | None = None) -> Gpu | None:
    """The one that was named, or that the server says it uses, or the one whose memory is fullest: a model is hard to overlook."""
    gpus = reader.gpus() if reader is not None else []
    if reader is None or not gpus:
        return None
    if index is not None:
        return next((gpu for gpu in gpus if gpu.index == index), None)
    uuids = {gpu.uuid for gpu in reported.gpus()} if reported is not None else set()
    return max(gpus, key=lambda gpu: (gpu.uuid in uuids, _memory_used(reader, gpu)))


def _memory_used(reader: GpuReader, gpu: Gpu) -> int:
    try:
        return reader.sample(gpu).memory_used
    except OSError:
        return 0


def _about(service: Service, is_here: bool) -> str:
    model = f" with {service.model}" if service.model and service.kind is not Kind.GRADIO else ""
    return f"{service.kind}{model} at {service.url}, on {'this' if is_here else 'another'} machine"
