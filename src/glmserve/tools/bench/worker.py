"""`python -m glmserve.tools.bench.worker`: one client process.  Started by load.py, not by hand.

Reads a plan from stdin, answers "ready", waits for the start, and writes lines of JSON: progress, then the outcomes.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import time

import msgspec
import uvloop

from glmserve.tools.bench.answers import AnswerReader, Outcome
from glmserve.tools.bench.http_client import HttpClient
from glmserve.tools.bench.plan import Plan, PlannedRequest

PROGRESS_SECONDS = 0.2
WARMUP_INDEX = 10**9  # numbers of warm-up requests, so that their prompts are not those that count


class Start(msgspec.Struct):
    """Tells a worker when to begin: a moment of time.monotonic(), which all processes of a machine share."""

    at: float


class Report(msgspec.Struct):
    """A line that a worker writes.  The last one has outcomes; `cpu_seconds` is what the worker took between start and end."""

    kind: str  # "ready", "failed", "progress" or "done"
    message: str = ""
    num_done: int = 0
    num_events: int = 0
    outcomes: list[Outcome] = []
    num_unfinished: int = 0
    cpu_seconds: float = 0.0


class Worker:
    """Sends what a plan says and keeps what came of it."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._client = HttpClient(plan.base_url, plan.headers)
        self._bodies = [(request, plan.body(request)) for request in plan.requests]  # before the clock starts
        self._slots = asyncio.Semaphore(plan.max_concurrency) if plan.max_concurrency else contextlib.nullcontext()
        self.num_warmups = plan.num_warmups
        self._open: set[AnswerReader] = set()
        self._num_events = 0
        self.outcomes: list[Outcome] = []

    @property
    def num_events(self) -> int:
        """Events with tokens that have come, for the progress bar."""
        return self._num_events + sum(reader.num_events for reader in self._open)

    async def warm_up(self) -> str:
        """Requests whose times do not count: one alone, then the others together.  Gives what went wrong, or an empty text."""
        requests = self._plan.requests  # with their lengths, so that batches of all sizes occur
        warmups = range(self._plan.num_warmups)
        first, *others = [msgspec.structs.replace(requests[n % len(requests)], index=WARMUP_INDEX + n) for n in warmups]
        outcome = await self._send(first, self._plan.body(first), time.monotonic())
        if outcome.error:
            return f"{outcome.error}: {outcome.detail}"
        await asyncio.gather(*(self._send(request, self._plan.body(request), time.monotonic()) for request in others))
        return ""

    async def run(self, started: float) -> int:
        """All requests, each at its time and as soon as a slot is free.  Returns how many were under way when the time was over."""
        limit = self._plan.duration
        try:
            async with asyncio.timeout(None if limit is None else started + limit - time.monotonic()), asyncio.TaskGroup() as tasks:
                for request, body in self._bodies:
                    if (pause := started + request.send_at - time.monotonic()) > 0:
                        await asyncio.sleep(pause)
                    tasks.create_task(self._send_in_slot(request, body, started))
        except TimeoutError:  # those under way were given up, and their connections with them
            return len(self._open)
        finally:
            self._client.close()
        return 0

    async def _send_in_slot(self, request: PlannedRequest, body: bytes, started: float) -> None:
        async with self._slots:
            self.outcomes.append(await self._send(request, body, started))

    async def _send(self, request: PlannedRequest, body: bytes, run_started: float) -> Outcome:
        plan = self._plan
        reader = AnswerReader(time.monotonic(), request.input_len, plan.streaming)
        self._open.add(reader)
        try:
            async with asyncio.timeout(plan.timeout):
                await self._client.post(plan.path, body, reader)
        except TimeoutError:
            reader.fail("timeout", f"no whole answer within {plan.timeout:g} s")
        except OSError as error:
            reader.fail("connection", str(error))
        self._open.discard(reader)
        self._num_events += reader.num_events
        return reader.finish(run_started)


async def main() -> None:
    """The life of a worker."""
    lines = asyncio.StreamReader(limit=2**30)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    worker = Worker(msgspec.json.decode(await lines.readline(), type=Plan))
    if worker.num_warmups and (trouble := await worker.warm_up()):
        _write(Report("failed", trouble))
        return
    gc.freeze()
    gc.disable()  # a collection in the middle would look like the server's latency
    _write(Report("ready"))
    started = msgspec.json.decode(await lines.readline(), type=Start).at
    cpu_before = time.process_time()
    await asyncio.sleep(started - time.monotonic())
    progress = asyncio.create_task(_tell_progress(worker))
    num_unfinished = await worker.run(started)
    progress.cancel()
    _write(Report("done", outcomes=worker.outcomes, num_unfinished=num_unfinished, cpu_seconds=time.process_time() - cpu_before))


async def _tell_progress(worker: Worker) -> None:
    while True:
        await asyncio.sleep(PROGRESS_SECONDS)
        _write(Report("progress", num_done=len(worker.outcomes), num_events=worker.num_events))


def _write(report: Report) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):  # whoever started this is gone: nobody wants the outcomes
        uvloop.run(main())
