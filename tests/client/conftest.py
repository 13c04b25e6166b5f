"""Engine clients over the fake engine as a real process."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from glmserve.client.engine_client import EngineClient
from glmserve.config import EngineConfig, ServerConfig
from glmserve.engine.fake import FakeOptions
from tests.client.scripted_requests import StartClient


@pytest.fixture
async def start_client() -> AsyncIterator[StartClient]:
    """start_client(FakeOptions(...), wait=True, max_num_seqs=…, **ServerConfig fields) -> a client, stopped after the test."""
    clients: list[EngineClient] = []

    async def start(options: FakeOptions | None = None, *, wait: bool = True, max_num_seqs: int = 64, **server: object) -> EngineClient:
        client = EngineClient(
            EngineConfig(model="fake", max_model_len=100_000, max_num_seqs=max_num_seqs),
            ServerConfig.model_validate(server),
            engine_module="glmserve.engine.fake",
            engine_args=(options or FakeOptions()).as_arguments(),
            first_backoff=0.01,
        )
        clients.append(client)
        await client.start()
        if wait:
            await client.wait_ready()
        return client

    yield start
    for client in clients:
        await client.stop()
