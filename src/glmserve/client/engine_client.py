"""The HTTP wing's one way to the engine: token ids in, a stream of token ids out.

It holds the promise of the door: every request that `submit` took ends exactly once, also when the engine dies or hangs.
It knows neither text nor HTTP.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence

from glmserve.client.output_stream import OutputStream
from glmserve.client.supervisor import EngineState, Supervisor
from glmserve.config import EngineConfig, ServerConfig
from glmserve.observe.http_work import HttpWork
from glmserve.protocol.errors import EngineUnavailableError, InvalidRequestError
from glmserve.protocol.messages import (
    AbortRequest,
    EngineHeartbeat,
    EngineOutputs,
    EngineReady,
    EngineRequest,
    FinishReason,
    FromEngine,
    RequestOutput,
)
from glmserve.protocol.stats import EngineStats

logger = logging.getLogger(__name__)


class EngineClient:
    """Starts an engine process, keeps it running and talks to it.  All methods belong to one event loop.

    `engine_module` is run with `python -m`; `engine_args` are added to its command line (the fake engine's options).
    """

    def __init__(
        self,
        engine_config: EngineConfig,
        server_config: ServerConfig,
        *,
        engine_module: str = "glmserve.engine.main",
        engine_args: Sequence[str] = (),
        first_backoff: float = 0.5,
    ) -> None:
        self._streams: dict[str, OutputStream] = {}
        self.stats = EngineStats()
        self.http_work = HttpWork()  # told by whoever accepts, tokenizes and submits
        self._supervisor = Supervisor(
            engine_config,
            server_config,
            engine_module,
            engine_args,
            on_message=self._hear,
            on_death=self._lose_engine,
            on_garbled=self._garbled,
            first_backoff=first_backoff,
        )

    @property
    def state(self) -> EngineState:
        """Only READY takes requests."""
        return self._supervisor.state

    @property
    def ready(self) -> EngineReady | None:
        """What the running engine said of itself; None while none is ready."""
        return self._supervisor.ready

    @property
    def loading(self) -> str | None:
        """What a starting engine is doing, for people to read; None where nothing is loading."""
        return self._supervisor.loading

    @property
    def failure(self) -> str | None:
        """Why the last engine was lost, until the next one is ready."""
        return self._supervisor.failure

    @property
    def num_engine_restarts(self) -> int:
        """Engines started after the first one."""
        return self._supervisor.num_engine_restarts

    @property
    def engine_pid(self) -> int | None:
        """The engine's process id, or None between two lives."""
        return self._supervisor.pid

    @property
    def num_open_requests(self) -> int:
        """Requests that have not ended."""
        return len(self._streams)

    def heartbeat_age(self) -> float:
        """Seconds since the engine was last heard; infinite where none is running."""
        return self._supervisor.heartbeat_age()

    async def start(self) -> None:
        """Starts the engine and returns at once; `wait_ready` waits until it is loaded."""
        await self._supervisor.start()

    async def wait_ready(self) -> None:
        """Returns once the engine is ready.  Raises EngineUnavailableError with the reason where it will not be."""
        await self._supervisor.wait_ready()

    async def stop(self, drain_seconds: float = 0.0) -> None:
        """Takes nothing new, lets the engine finish for so long, then ends it; what is still open ends with an error."""
        await self._supervisor.stop(drain_seconds)
        self._end_all("the server is shutting down")

    def submit(self, request: EngineRequest) -> OutputStream:
        """Sends the request and never blocks.  Ids must be new: one that was used may still have an answer on its way.

        Raises EngineUnavailableError unless the state is READY, InvalidRequestError where the id is in use.
        """
        if self.state is not EngineState.READY:
            raise self._unavailable()
        if request.request_id in self._streams:
            raise InvalidRequestError(f"a request with the id {request.request_id} is already running", "request_id")
        stream = OutputStream(request.request_id, self._close)
        try:
            self._supervisor.send(request)
        except ConnectionError:
            raise self._unavailable() from None
        self._streams[request.request_id] = stream
        return stream

    def abort(self, request_ids: Sequence[str]) -> None:
        """Has the engine stop these; their streams then end with ABORT.  Unknown ids are ignored."""
        self._send_abort([request_id for request_id in request_ids if request_id in self._streams])

    def _unavailable(self) -> EngineUnavailableError:
        reason = f": {self.failure}" if self.failure else ""
        hint = "see the server's log" if self.state is EngineState.FAILED else "try again shortly"
        return EngineUnavailableError(f"the engine is {self.state}{reason}; {hint}")

    def _send_abort(self, request_ids: list[str]) -> None:
        if request_ids:
            with contextlib.suppress(ConnectionError):  # a lost engine has forgotten them already
                self._supervisor.send(AbortRequest(request_ids))

    def _close(self, request_id: str) -> None:
        """A stream was closed by its consumer."""
        self._streams.pop(request_id, None)
        self._send_abort([request_id])

    def _hear(self, message: FromEngine) -> None:
        match message:
            case EngineOutputs():
                self._take_stats(message.stats, message)
                self._deliver(message.outputs)
            case EngineHeartbeat(stats=EngineStats() as stats):
                self._take_stats(stats, message)

    def _take_stats(self, stats: EngineStats, message: EngineOutputs | EngineHeartbeat) -> None:
        self.http_work.hear(stats.gpu_time_seconds, message.without_work, message.time)
        self.stats = stats

    def _deliver(self, outputs: list[RequestOutput]) -> None:
        streams = self._streams
        for output in outputs:
            stream = streams.get(output.request_id)
            if stream is None:
                continue  # closed while this was on its way
            if output.finish_reason is not None:
                del streams[output.request_id]
            stream.put(output)

    def _lose_engine(self, reason: str) -> None:
        self.stats = EngineStats()
        self.http_work.forget()
        self._end_all(reason)

    def _end_all(self, reason: str) -> None:
        """Ends every open request with a stated error."""
        streams, self._streams = self._streams, {}
        for request_id, stream in streams.items():
            stream.put(RequestOutput(request_id, [], FinishReason.ERROR, error=reason))

    def _garbled(self, reason: str) -> None:
        """A frame is lost, and nobody knows whose tokens were in it: no answer that is open can be trusted."""
        logger.error("a frame from the engine is lost: %s", reason)
        open_ids = list(self._streams)
        self._end_all(f"a message from the engine was lost: {reason}")
        self._send_abort(open_ids)
