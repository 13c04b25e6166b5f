"""Notices that a client went away while its answer is being made, streaming or not.

ASGI tells of it by `http.disconnect`, which nobody hears who does not listen.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from starlette.types import Receive


class ClientGoneError(Exception):
    """The client closed its connection: nobody waits for an answer."""


class ClientWatch:
    """`async with ClientWatch(receive): ...` cancels the block when the client goes, which then raises ClientGoneError."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._gone = False

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._num_cancelling = task.cancelling()
        self._watcher = asyncio.create_task(self._watch())
        return self

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        self._task.cancel()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._watcher.cancel()
        if self._gone and self._task.uncancel() <= self._num_cancelling and kind is not None:
            raise ClientGoneError from None
