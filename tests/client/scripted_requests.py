"""Requests and ways to follow them, for the tests of the engine client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from glmserve.client.engine_client import EngineClient
from glmserve.protocol.messages import EngineRequest, RequestOutput
from glmserve.protocol.sampling_params import SamplingParams

FOREVER = 90_000  # tokens; far more than any test waits for

StartClient = Callable[..., Awaitable[EngineClient]]


def request(request_id: str, max_tokens: int = 5, prompt: tuple[int, ...] = (4, 5, 6)) -> EngineRequest:
    """One that the fake engine answers by echoing the prompt."""
    return EngineRequest(request_id, list(prompt), SamplingParams(max_tokens=max_tokens), time.monotonic())


async def collect(client: EngineClient, message: EngineRequest) -> list[RequestOutput]:
    """All outputs of it."""
    return [output async for output in client.submit(message)]


async def eventually(condition: Callable[[], bool]) -> None:
    """Returns once the condition holds; fails after ten seconds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)
