"""The engine process around a core: its socket loop, its start and its end.  Knows token ids, never text; imports no torch.

A core (`engine.core.EngineCore`, or `engine.fake.FakeCore`) schedules and computes.  This file takes messages between its steps,
sends one frame a step, and holds the promise that every request that came in ends with exactly one finish reason.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from glmserve.config import EngineConfig
from glmserve.protocol.channel import EngineChannel, MessageError
from glmserve.protocol.errors import InvalidRequestError, ModelLoadError
from glmserve.protocol.messages import (
    AbortRequest,
    DrainRequest,
    EngineFailed,
    EngineHeartbeat,
    EngineOutputs,
    EngineReady,
    EngineRequest,
    FinishReason,
    Refusal,
    RequestOutput,
    ToEngine,
)
from glmserve.protocol.stats import EngineStats

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 0.2  # of an idle engine; it is also how late SIGTERM may be noticed
STATS_SECONDS = 0.1  # steps without a new token report no more often than this
EXIT_CRASHED = 1
EXIT_CANNOT_LOAD = 2
PR_SET_PDEATHSIG = 1  # linux/prctl.h

ReportLoading = Callable[[str], None]


class Core(Protocol):
    """What the process asks of a core.  All calls come from one thread.

    `add_request` raises InvalidRequestError for a request it cannot serve.  After `abort_requests` the core forgets those
    requests; the process itself acknowledges them, and drops whatever a step already under way still returns for them.
    `take_without_work` gives each stretch of time without a request once; after `drain` idle time is put down to the end.
    `prepare_ahead`, called while there is no request, does a little that later steps would wait for, and says whether it did.
    """

    def add_request(self, request: EngineRequest) -> None: ...

    def abort_requests(self, request_ids: list[str]) -> None: ...

    def has_unfinished_requests(self) -> bool: ...

    def step(self) -> list[RequestOutput]: ...

    def stats(self) -> EngineStats: ...

    def take_without_work(self) -> list[tuple[float, float]]: ...

    def drain(self) -> None: ...

    def prepare_ahead(self) -> bool: ...

    def describe(self) -> EngineReady: ...


class EngineProcess:
    """The loop of an engine that is loaded."""

    def __init__(self, core: Core, channel: EngineChannel) -> None:
        self._core = core
        self._channel = channel
        self._open_ids: set[str] = set()
        self._unsent: list[RequestOutput] = []
        self._draining = False
        self._last_sent = 0.0

    def run(self) -> int:
        """Serves until drained.  Returns the process' exit code: 0 drained, 1 the core failed."""
        gc.collect()  # a tenth of a second with torch loaded, so before anyone sends a request
        gc.freeze()  # what loading made stays for good: no collection should walk it between two steps
        self._channel.send(self._core.describe())
        try:
            while not self._drained():
                self._turn()
        except Exception as error:
            logger.exception("the engine failed and will be restarted")
            self._channel.send(EngineFailed(f"the engine failed in a step: {type(error).__name__}: {error}", retryable=True))
            return EXIT_CRASHED
        finally:
            gc.unfreeze()  # else native libraries call frozen objects leaks when Python ends
        return 0

    def drain(self) -> None:
        """From now on nothing new is taken, and the loop ends when all that was taken is done."""
        self._draining = True
        self._core.drain()

    def _drained(self) -> bool:
        return self._draining and not self._core.has_unfinished_requests() and not self._unsent

    def _turn(self) -> None:
        while self._receive():
            pass
        if self._core.has_unfinished_requests():
            self._collect(self._core.step())
            self._send_outputs()
        elif self._unsent:
            self._send_outputs()
        elif not self._draining:
            self._idle()

    def _idle(self) -> None:
        """Tells that the loop turns, and waits for work unless there is some to do ahead of it."""
        stats = self._core.stats()
        self._channel.send(EngineHeartbeat(time.monotonic(), stats=stats, without_work=self._core.take_without_work()))
        self._receive(0.0 if self._core.prepare_ahead() else HEARTBEAT_SECONDS)

    def _receive(self, timeout: float = 0.0) -> bool:
        """Takes one message.  False where there was none."""
        try:
            message = self._channel.receive(timeout)
        except MessageError as error:
            logger.error("a message from the front end is lost: %s", error)
            if error.request_id is not None and error.request_id not in self._open_ids:
                self._refuse(error.request_id, str(error))
            return True
        if message is not None:
            self._handle(message)
        return message is not None

    def _handle(self, message: ToEngine) -> None:
        match message:
            case EngineRequest():
                self._add(message)
            case AbortRequest():
                self._abort(message.request_ids)
            case DrainRequest():
                self.drain()

    def _add(self, request: EngineRequest) -> None:
        request_id = request.request_id
        if request_id in self._open_ids:
            logger.error("request %s came twice; the second is ignored", request_id)
            return
        if self._draining:
            self._refuse(request_id, "the engine is shutting down", Refusal.DRAINING)
            return
        try:
            self._core.add_request(request)
        except InvalidRequestError as error:
            self._refuse(request_id, str(error), Refusal.INVALID)
        except Exception as error:  # one request must not end all the others
            logger.exception("request %s could not be added", request_id)
            self._core.abort_requests([request_id])
            self._refuse(request_id, f"the engine could not take the request: {type(error).__name__}: {error}")
        else:
            self._open_ids.add(request_id)

    def _abort(self, request_ids: list[str]) -> None:
        known = [request_id for request_id in request_ids if request_id in self._open_ids]
        if not known:
            return
        self._core.abort_requests(known)
        self._open_ids.difference_update(known)
        self._unsent += [RequestOutput(request_id, [], FinishReason.ABORT) for request_id in known]

    def _refuse(self, request_id: str, error: str, refusal: Refusal | None = None) -> None:
        self._unsent.append(RequestOutput(request_id, [], FinishReason.ERROR, error=error, refusal=refusal))

    def _collect(self, outputs: list[RequestOutput]) -> None:
        """Keeps what belongs to open requests, and closes those that are done."""
        for output in outputs:
            if output.request_id not in self._open_ids:
                continue  # aborted while its step ran
            self._unsent.append(output)
            if output.finish_reason is not None:
                self._open_ids.remove(output.request_id)

    def _send_outputs(self) -> None:
        now = time.monotonic()
        if not self._unsent and now - self._last_sent < STATS_SECONDS:
            return
        stats = self._core.stats()
        self._channel.send(EngineOutputs(self._unsent, stats, now, self._core.take_without_work()))
        self._unsent = []
        self._last_sent = now


@dataclass(frozen=True)
class EngineArguments:
    """The command line by which the supervisor starts an engine: `python -m MODULE --address … --parent-pid … --config JSON`."""

    address: str
    parent_pid: int
    config: EngineConfig
    extra: tuple[str, ...] = ()

    @classmethod
    def parse(cls, argv: Sequence[str]) -> EngineArguments:
        """Reads `argv` (without the program's name); what it does not know is `extra`, for the entry itself."""
        parser = argparse.ArgumentParser(description="Started by glmserve's front end, not by hand.")
        parser.add_argument("--address", required=True)
        parser.add_argument("--parent-pid", type=int, required=True)
        parser.add_argument("--config", required=True, help="EngineConfig as JSON")
        known, extra = parser.parse_known_args(argv)
        config = EngineConfig.model_validate_json(known.config)
        return cls(known.address, known.parent_pid, config, tuple(extra))


def run_engine(make_core: Callable[[ReportLoading], Core], arguments: EngineArguments) -> int:
    """Loads a core, serves until drained or broken, and returns the exit code.  Both entries, real and fake, are this."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s engine %(levelname)s %(name)s: %(message)s")
    end_with_parent(arguments.parent_pid)
    channel = EngineChannel(arguments.address)
    try:
        return _load_and_serve(make_core, channel)
    finally:
        channel.close()


def _load_and_serve(make_core: Callable[[ReportLoading], Core], channel: EngineChannel) -> int:
    def report_loading(what: str) -> None:
        channel.send(EngineHeartbeat(time=time.monotonic(), loading=what))

    try:
        core = make_core(report_loading)
    except ModelLoadError as error:
        channel.send(EngineFailed(str(error), retryable=False))
        return EXIT_CANNOT_LOAD
    except Exception as error:
        logger.exception("the engine could not start")
        channel.send(EngineFailed(f"the engine could not start: {type(error).__name__}: {error}", retryable=True))
        return EXIT_CRASHED
    process = EngineProcess(core, channel)
    signal.signal(signal.SIGTERM, lambda *_: process.drain())  # a service manager may send it to us as well as to the front end
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the front end, which then drains us
    return process.run()


def end_with_parent(parent_pid: int) -> None:
    """Has the kernel kill this process when its parent dies, so that no orphan keeps the GPU.  Linux; elsewhere it checks only now.

    To the kernel the parent is the thread that started us: the front end's event loop must not end before its engine.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it died before we got here
        logger.error("the front end %d is gone; the engine ends", parent_pid)
        sys.exit(EXIT_CRASHED)
