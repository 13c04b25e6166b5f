"""One engine process from start to end: the process, the channel to it, and what it last said.

It decides nothing: the supervisor judges whether the engine is well and whether another one is started.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence

from glmserve.config import EngineConfig
from glmserve.protocol.channel import FrontEndChannel, MessageError
from glmserve.protocol.messages import EngineFailed, EngineHeartbeat, EngineReady, FromEngine, ToEngine

logger = logging.getLogger(__name__)

TERM_GRACE = 1.0  # seconds from SIGTERM to SIGKILL
MAX_FRAMES_A_TURN = 8  # `receive` does not yield while frames are there; consumers must run, and may find several frames at once
LAST_WORDS = 0.1  # seconds of silence after which a dead engine's socket is taken as empty


class EngineLife:
    """A running engine process.  `heard_at` and `started_at` are seconds of CLOCK_MONOTONIC."""

    def __init__(self, process: asyncio.subprocess.Process, channel: FrontEndChannel) -> None:
        self.process = process
        self.channel = channel
        self.started_at = self.heard_at = time.monotonic()
        self.ready: EngineReady | None = None
        self.failed: EngineFailed | None = None
        self.loading: str | None = "starting the engine process"

    @classmethod
    async def begin(cls, module: str, config: EngineConfig, extra: Sequence[str]) -> EngineLife:
        """Starts `python -m module` in a session of its own; its stdout and stderr are ours."""
        channel = FrontEndChannel()
        arguments = ["--address", channel.address, "--parent-pid", str(os.getpid()), "--config", config.model_dump_json(), *extra]
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", module, *arguments, stdin=asyncio.subprocess.DEVNULL, start_new_session=True
            )
        except BaseException:
            channel.close()
            raise
        return cls(process, channel)

    def send(self, message: ToEngine) -> None:
        """Raises ConnectionError where the engine is not there."""
        self.channel.send(message)

    async def listen(self, on_message: Callable[[FromEngine], None], on_garbled: Callable[[str], None]) -> None:
        """Hands on all that the engine says until it says that it failed."""
        while self.failed is None:
            for _ in range(MAX_FRAMES_A_TURN):
                await self._hear(on_message, on_garbled)
                if self.failed is not None:
                    return
            await asyncio.sleep(0)

    async def listen_to_last_words(self, on_message: Callable[[FromEngine], None], on_garbled: Callable[[str], None]) -> None:
        """After the process ended: hands on what it had sent before."""
        while self.failed is None and await self.channel.wait(LAST_WORDS):
            await self._hear(on_message, on_garbled)

    async def _hear(self, on_message: Callable[[FromEngine], None], on_garbled: Callable[[str], None]) -> None:
        try:
            message = await self.channel.receive()
        except MessageError as error:
            on_garbled(str(error))
            return
        self.heard_at = time.monotonic()
        match message:
            case EngineReady():
                self.ready, self.loading = message, None
            case EngineFailed():
                self.failed = message
            case EngineHeartbeat(loading=str(loading)):
                self.loading = loading
        on_message(message)

    async def end(self) -> None:
        """Kills what is left of the process and of its children, and closes the channel."""
        try:
            await self._kill()
        finally:
            self.channel.close()

    async def _kill(self) -> None:
        self._signal(signal.SIGTERM)
        if not await _within(TERM_GRACE, self.process.wait()):
            self._signal(signal.SIGKILL)
            await self.process.wait()
        self._signal(signal.SIGKILL)  # children that outlived it

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)  # it leads its own group


async def _within(seconds: float, awaitable: Awaitable[object]) -> bool:
    try:
        await asyncio.wait_for(awaitable, seconds)
    except TimeoutError:
        return False
    return True
