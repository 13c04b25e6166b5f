"""Starts the client processes together, shows how far they are, and gathers what they saw."""

from __future__ import annotations

import asyncio
import resource
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import msgspec

from glmserve.protocol.errors import EngineUnavailableError
from glmserve.tools.bench.answers import Outcome
from glmserve.tools.bench.plan import Plan
from glmserve.tools.bench.worker import Report, Start

START_DELAY = 0.05  # seconds from telling the workers when to start until then


@dataclass(frozen=True)
class LoadResult:
    """What all clients saw.  Times are seconds; `client_busy` is the CPU share of the busiest client process."""

    outcomes: list[Outcome]
    duration: float
    client_busy: float
    num_unfinished: int = 0  # under way when the time was over; not among the outcomes


async def run_load(plans: list[Plan], progress: Callable[[int, int], None], watch: AbstractContextManager[Any] | None = None) -> LoadResult:
    """Run the plans; `progress` gets requests done and events seen, of all; `watch` is open from the start to the end, without the warm-up.

    Raises EngineUnavailableError where the warm-up fails.
    """
    raise_open_files()
    workers = [await _start(plan) for plan in plans]
    try:
        for worker in workers:
            await _wait_ready(worker)
        with watch or nullcontext():
            reports = await _run_workers(workers, progress)
    except BaseException:
        for worker in workers:
            await _end(worker, patience=0.0)
        raise
    for worker in workers:  # after its last report a worker ends by itself
        await _end(worker, patience=10.0)
    outcomes = sorted((outcome for report in reports for outcome in report.outcomes), key=lambda outcome: outcome.sent)
    num_unfinished = sum(report.num_unfinished for report in reports)
    last = max((outcome.sent + outcome.latency for outcome in outcomes), default=0.0)
    duration = (plans[0].duration if num_unfinished else None) or last
    return LoadResult(outcomes, duration, max(report.cpu_seconds for report in reports) / max(duration, 1e-9), num_unfinished)


async def _run_workers(workers: list[Process], progress: Callable[[int, int], None]) -> list[Report]:
    started = time.monotonic() + START_DELAY
    for worker in workers:
        await _send(worker, Start(started))
    seen = [(0, 0)] * len(workers)

    def note(number: int, report: Report) -> None:
        seen[number] = (report.num_done, report.num_events)
        progress(sum(done for done, _ in seen), sum(events for _, events in seen))

    return await asyncio.gather(*(_gather(number, worker, note) for number, worker in enumerate(workers)))


def raise_open_files() -> None:
    """A connection is an open file, and many shells allow 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _start(plan: Plan) -> Process:
    command = (sys.executable, "-m", "glmserve.tools.bench.worker")
    worker = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, limit=2**30, start_new_session=True)
    await _send(worker, plan)
    return worker


async def _end(worker: Process, patience: float) -> None:
    """Wait so many seconds for its end, then kill it."""
    with suppress(TimeoutError):
        async with asyncio.timeout(patience):
            await worker.wait()
    if worker.returncode is None:
        worker.kill()
        await worker.wait()


async def _send(worker: Process, message: msgspec.Struct) -> None:
    assert worker.stdin is not None
    worker.stdin.write(msgspec.json.encode(message) + b"\n")
    await worker.stdin.drain()


async def _wait_ready(worker: Process) -> None:
    report = await _read(worker)
    if report.kind != "ready":
        raise EngineUnavailableError(f"the first request failed, so nothing was measured: {report.message}")


async def _gather(number: int, worker: Process, note: Callable[[int, Report], None]) -> Report:
    while (report := await _read(worker)).kind != "done":
        note(number, report)
    note(number, msgspec.structs.replace(report, num_done=len(report.outcomes), num_events=_num_events(report.outcomes)))
    return report


def _num_events(outcomes: list[Outcome]) -> int:
    return sum(len(outcome.itls) + (outcome.ttft is not None) for outcome in outcomes)


async def _read(worker: Process) -> Report:
    assert worker.stdout is not None
    line = await worker.stdout.readline()
    if not line:
        raise RuntimeError(f"a client process ended with {await worker.wait()}; its own words stand above")
    return msgspec.json.decode(line, type=Report)
