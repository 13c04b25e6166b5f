"""What one request's consumer holds: outputs as the engine sends them, ending exactly once.

A list and at most one waiting future, not a queue: at 256 streams and 65 steps a second each wake-up counts, and outputs that
came while the consumer was busy are taken in one go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from glmserve.protocol.messages import RequestOutput


class OutputStream:
    """An async iterator of RequestOutput for one consumer.  The last one has a finish_reason; nothing follows it.

    `close` before the end aborts the request in the engine, and so does cancelling a wait in `take` or in `async for`.
    After `close` the stream is over at once and gives nothing more.
    """

    __slots__ = ("_closed", "_ended", "_on_close", "_outputs", "_waiter", "request_id")

    def __init__(self, request_id: str, on_close: Callable[[str], None]) -> None:
        self.request_id = request_id
        self._on_close = on_close
        self._outputs: list[RequestOutput] = []
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False
        self._closed = False

    @property
    def finished(self) -> bool:
        """True where nothing more will come: the end was taken, or the stream was closed."""
        return self._ended and not self._outputs

    async def take(self, timeout: float | None = None) -> list[RequestOutput]:
        """All outputs there are, in order; waits for the first one.  An empty list means that the stream is over.

        Raises TimeoutError where none comes within `timeout` seconds; that does not abort the request.
        """
        if not self._outputs and not self._ended:
            await self._wait(timeout)
        outputs, self._outputs = self._outputs, []
        return outputs

    def __aiter__(self) -> OutputStream:
        return self

    async def __anext__(self) -> RequestOutput:
        if not self._outputs and not self._ended:
            await self._wait(None)
        if not self._outputs:
            raise StopAsyncIteration
        return self._outputs.pop(0)

    def close(self) -> None:
        """Ends the stream now, and aborts the request where it has not ended.  Harmless when repeated."""
        if self._closed:
            return
        self._closed = True
        self._outputs = []
        if not self._ended:
            self._ended = True
            self._on_close(self.request_id)
            self._wake()

    async def aclose(self) -> None:
        """`close`, for `contextlib.aclosing`."""
        self.close()

    def put(self, output: RequestOutput) -> None:
        """For the engine client: adds an output and wakes the consumer.  After the end it does nothing."""
        if self._ended:
            return
        self._outputs.append(output)
        self._ended = output.finish_reason is not None
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self, timeout: float | None) -> None:
        if self._waiter is not None:
            raise RuntimeError(f"request {self.request_id} already has a consumer")
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = None if timeout is None else loop.call_later(timeout, _expire, self._waiter)
        try:
            await self._waiter
        except asyncio.CancelledError:
            self.close()
            raise
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()


def _expire(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_exception(TimeoutError())
