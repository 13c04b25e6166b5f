"""Keeps an engine running: starts it, watches it, ends it when it is ill, starts the next one.

It knows lives of engines, not requests: who wants to know of outputs and deaths hands in callbacks.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from glmserve.client.engine_life import EngineLife
from glmserve.config import EngineConfig, ServerConfig
from glmserve.protocol.errors import EngineUnavailableError
from glmserve.protocol.messages import DrainRequest, EngineReady, FromEngine, ToEngine

logger = logging.getLogger(__name__)

RESTART_WINDOW = 600.0  # seconds in which `max_engine_restarts` are counted
MAX_BACKOFF = 30.0
MAX_TICK = 1.0


class EngineState(StrEnum):
    """Only READY takes requests.  FAILED and STOPPED are final."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    RESTARTING = "restarting"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Death:
    """How a life ended, and whether another try makes sense."""

    reason: str
    retryable: bool = True


class Supervisor:
    """Runs one engine process after another.

    `on_message` gets all that the running engine says.  `on_death` gets the reason once an engine is lost, before it is replaced.
    `on_garbled` gets the reason where a frame could not be read.  All are called on the event loop and must not block.
    """

    def __init__(
        self,
        engine_config: EngineConfig,
        server_config: ServerConfig,
        engine_module: str,
        engine_args: Sequence[str],
        *,
        on_message: Callable[[FromEngine], None],
        on_death: Callable[[str], None],
        on_garbled: Callable[[str], None],
        first_backoff: float = 0.5,
    ) -> None:
        self._engine_config = engine_config
        self._server_config = server_config
        self._engine_module = engine_module
        self._engine_args = tuple(engine_args)
        self._on_message = on_message
        self._on_death = on_death
        self._on_garbled = on_garbled
        self._first_backoff = first_backoff
        self._task: asyncio.Task[None] | None = None
        self._life: EngineLife | None = None
        self._deaths: deque[float] = deque()
        self._changed = asyncio.Event()
        self.state = EngineState.STARTING
        self.failure: str | None = None  # why the last engine was lost
        self.num_engine_restarts = 0

    @property
    def ready(self) -> EngineReady | None:
        """What the running engine said of itself; None while none is ready."""
        life = self._life  # read once: the thread that watches the GPU asks too
        return life.ready if life is not None else None

    @property
    def loading(self) -> str | None:
        """What a starting engine is doing, for people to read."""
        return self._life.loading if self._life is not None else None

    @property
    def pid(self) -> int | None:
        """The engine's process id, or None between two lives."""
        return self._life.process.pid if self._life is not None else None

    def heartbeat_age(self) -> float:
        """Seconds since the running engine was last heard; infinite where there is none."""
        return time.monotonic() - self._life.heard_at if self._life is not None else float("inf")

    def send(self, message: ToEngine) -> None:
        """Raises ConnectionError where no engine is connected."""
        if self._life is None:
            raise ConnectionError("no engine is running")
        self._life.send(message)

    async def start(self) -> None:
        """Starts the first engine; returns before it is loaded."""
        if self._task is not None:
            raise RuntimeError("the engine was started already")
        self._task = asyncio.create_task(self._supervise(), name="engine supervisor")

    async def wait_ready(self) -> None:
        """Returns once an engine is ready.  Raises EngineUnavailableError with the reason where none will be."""
        while self.state is not EngineState.READY:
            if self.state in (EngineState.FAILED, EngineState.STOPPED, EngineState.DRAINING):
                raise EngineUnavailableError(self.failure or f"the engine is {self.state}")
            self._changed.clear()
            await self._changed.wait()

    async def stop(self, drain_seconds: float) -> None:
        """Lets a ready engine finish what it has for so long, then ends it.  Final."""
        was_ready = self.state is EngineState.READY
        self._enter(EngineState.DRAINING)
        if self._task is not None:
            if was_ready and drain_seconds > 0:
                await self._drain(self._task, drain_seconds)
            self._task.cancel()
            await asyncio.wait([self._task])
        self._enter(EngineState.STOPPED)

    async def _drain(self, task: asyncio.Task[None], seconds: float) -> None:
        try:
            self.send(DrainRequest())
        except ConnectionError:
            return
        await asyncio.wait([task], timeout=seconds)

    def _enter(self, state: EngineState) -> None:
        if state is not self.state:
            logger.info("engine: %s -> %s", self.state, state)
        self.state = state
        self._changed.set()

    @property
    def _stopping(self) -> bool:
        return self.state in (EngineState.DRAINING, EngineState.STOPPED)

    async def _supervise(self) -> None:
        while True:
            death = await self._one_life()
            if self._stopping:
                return
            if not death.retryable or not self._may_restart():
                logger.error("the engine is given up: %s", death.reason)
                self._enter(EngineState.FAILED)
                return
            delay = min(MAX_BACKOFF, self._first_backoff * 2 ** (len(self._deaths) - 1))
            logger.warning("the engine is restarted in %.1f s", delay)
            await asyncio.sleep(delay)
            self.num_engine_restarts += 1

    def _may_restart(self) -> bool:
        """Counts a death; False where there were too many of late."""
        now = time.monotonic()
        self._deaths.append(now)
        while now - self._deaths[0] > RESTART_WINDOW:
            self._deaths.popleft()
        return len(self._deaths) <= self._server_config.max_engine_restarts

    async def _one_life(self) -> Death:
        """Runs an engine until it is lost, and has everyone told."""
        death = Death("the server is shutting down")
        try:
            self._life = await EngineLife.begin(self._engine_module, self._engine_config, self._engine_args)
            death = await self._watch(self._life)
        except OSError as error:
            death = Death(f"the engine process could not be started: {error}")
        finally:
            await asyncio.shield(self._lose(death))
        return death

    async def _lose(self, death: Death) -> None:
        """Ends what is left of the life, after all that it had already said was heard."""
        self._no_longer_ready()
        if not self._stopping:
            self.failure = death.reason
            logger.error("the engine is lost: %s", death.reason)
        self._on_death(death.reason)
        life, self._life = self._life, None
        if life is not None:
            await life.end()

    def _no_longer_ready(self) -> None:
        if not self._stopping:
            self._enter(EngineState.RESTARTING)

    async def _watch(self, life: EngineLife) -> Death:
        """Returns when the engine exited, said that it failed, or is overdue."""
        exited = asyncio.create_task(life.process.wait())
        listening = asyncio.create_task(life.listen(self._hear, self._on_garbled))
        try:
            overdue = await self._until_ill(life, exited, listening)
        finally:
            exited.cancel()
            listening.cancel()
            await asyncio.wait([exited, listening])
        self._no_longer_ready()
        if overdue is None and life.failed is None:
            await life.listen_to_last_words(self._hear, self._on_garbled)
        if life.failed is not None:
            return Death(life.failed.message, life.failed.retryable)
        if overdue is not None:
            return overdue
        if not listening.cancelled() and (error := listening.exception()) is not None:
            return Death(f"what the engine said could not be handled: {error!r}")
        return Death(_exit_reason(life.process.returncode))

    async def _until_ill(self, life: EngineLife, exited: asyncio.Task[int], listening: asyncio.Task[None]) -> Death | None:
        """The death of an engine that must be killed, or None where it ended, or announced its end, by itself."""
        num_overdue = 0  # twice in a row, so that a pause of our own, with messages still unread, is not taken for the engine's
        while True:
            death = self._overdue(life)
            num_overdue = num_overdue + 1 if death else 0
            if num_overdue >= 2:
                return death
            done, _ = await asyncio.wait({exited, listening}, timeout=self._tick, return_when=asyncio.FIRST_COMPLETED)
            if done:
                return None

    @property
    def _tick(self) -> float:
        return min(MAX_TICK, self._server_config.engine_hang_timeout / 4)

    def _overdue(self, life: EngineLife) -> Death | None:
        """A loading engine may be silent: only the whole start is limited."""
        now = time.monotonic()
        config = self._server_config
        if life.ready is None:
            if now - life.started_at > config.engine_start_timeout:
                return Death(f"the engine did not start within {config.engine_start_timeout:g} s (last: {life.loading})")
        elif now - life.heard_at > config.engine_hang_timeout:
            return Death(f"the engine hung: nothing was heard from it for {config.engine_hang_timeout:g} s")
        return None

    def _hear(self, message: FromEngine) -> None:
        if isinstance(message, EngineReady) and not self._stopping:
            self.failure = None
            self._enter(EngineState.READY)
        self._on_message(message)


def _exit_reason(returncode: int | None) -> str:
    if returncode is None:
        return "the engine was ended"
    if returncode < 0:
        return f"the engine process was killed by signal {-returncode}"
    return f"the engine process exited with code {returncode}"
