"""Requests through a real engine process (the fake one), while all goes well."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from glmserve.client.engine_client import EngineClient
from glmserve.client.supervisor import EngineState
from glmserve.engine.fake import FakeOptions
from glmserve.protocol.errors import EngineUnavailableError, InvalidRequestError
from glmserve.protocol.messages import FinishReason
from tests.client.scripted_requests import FOREVER, StartClient, collect, eventually, request


async def idle(client: EngineClient) -> None:
    """Returns once the engine says that it holds nothing."""
    await eventually(lambda: client.stats.num_requests_running + client.stats.num_requests_waiting == 0)


async def test_a_request_is_answered(start_client: StartClient) -> None:
    client = await start_client()
    assert client.state is EngineState.READY
    assert client.ready is not None
    assert client.ready.device_name == "fake engine"
    assert client.loading is None
    assert client.heartbeat_age() < 10
    outputs = await collect(client, request("a"))
    assert [token_id for output in outputs for token_id in output.new_token_ids] == [4, 5, 6, 4, 5]
    assert outputs[-1].finish_reason is FinishReason.LENGTH
    assert client.stats.generation_tokens == 5
    assert client.num_open_requests == 0


async def test_fifty_at_once_get_their_own_tokens(start_client: StartClient) -> None:
    client = await start_client(max_num_seqs=8)
    answers = await asyncio.gather(*(collect(client, request(f"r{k}", max_tokens=20 + k, prompt=(k, k + 1))) for k in range(50)))
    for k, outputs in enumerate(answers):
        token_ids = [token_id for output in outputs for token_id in output.new_token_ids]
        assert token_ids == [k + index % 2 for index in range(20 + k)]


async def test_a_slow_consumer_takes_all_at_once(start_client: StartClient) -> None:
    client = await start_client()
    stream = client.submit(request("a", max_tokens=200))
    await eventually(lambda: client.stats.generation_tokens == 200)
    outputs = await stream.take()
    assert sum(len(output.new_token_ids) for output in outputs) == 200
    assert stream.finished


async def test_closing_a_stream_frees_its_place(start_client: StartClient) -> None:
    client = await start_client(FakeOptions(step_seconds=0.001), max_num_seqs=1)
    endless = client.submit(request("endless", FOREVER))
    await endless.take()
    waiting = asyncio.create_task(collect(client, request("next")))
    endless.close()
    assert (await waiting)[-1].finish_reason is FinishReason.LENGTH
    assert await endless.take() == []
    await idle(client)
    assert client.stats.generation_tokens < FOREVER


async def test_cancelling_the_consumer_frees_its_place(start_client: StartClient) -> None:
    client = await start_client(FakeOptions(step_seconds=0.001))
    consumer = asyncio.create_task(collect(client, request("a", FOREVER)))
    await eventually(lambda: client.stats.num_requests_running == 1)
    consumer.cancel()
    await asyncio.wait([consumer])
    await idle(client)
    assert client.num_open_requests == 0


async def test_abort_ends_the_stream_and_the_others_go_on(start_client: StartClient) -> None:
    client = await start_client(FakeOptions(step_seconds=0.001))
    stream, other = client.submit(request("a", FOREVER)), client.submit(request("b", 50))
    await stream.take()
    client.abort(["a", "unknown"])
    ends = [output.finish_reason async for output in stream if output.finish_reason]
    assert ends == [FinishReason.ABORT]
    assert sum([len(output.new_token_ids) async for output in other]) == 50


async def test_what_the_engine_refuses_ends_with_the_reason(start_client: StartClient) -> None:
    client = await start_client()
    [output] = await collect(client, request("a", prompt=()))
    assert output.finish_reason is FinishReason.ERROR
    assert "empty" in str(output.error)


async def test_an_id_in_use_is_refused_and_the_first_goes_on(start_client: StartClient) -> None:
    client = await start_client()
    stream = client.submit(request("a", 30))
    with pytest.raises(InvalidRequestError, match="already running"):
        client.submit(request("a"))
    assert sum([len(output.new_token_ids) async for output in stream]) == 30


async def test_nothing_is_taken_before_it_is_ready(start_client: StartClient) -> None:
    client = await start_client(FakeOptions(load_seconds=30), wait=False)
    with pytest.raises(EngineUnavailableError, match="starting"):
        client.submit(request("a"))
    await eventually(lambda: client.loading == "pretending to load")
    assert client.ready is None


async def test_stopping_lets_running_requests_finish(start_client: StartClient) -> None:
    client = await start_client(FakeOptions(step_seconds=0.002))
    answers = [asyncio.create_task(collect(client, request(name, 50))) for name in "abc"]
    await asyncio.sleep(0)
    stopping = asyncio.create_task(client.stop(drain_seconds=20))
    await asyncio.sleep(0)
    assert client.state is EngineState.DRAINING
    with pytest.raises(EngineUnavailableError, match="draining"):
        client.submit(request("late"))
    for outputs in await asyncio.gather(*answers):
        assert outputs[-1].finish_reason is FinishReason.LENGTH
    await stopping
    assert client.state is EngineState.STOPPED
    assert client.num_engine_restarts == 0


async def test_what_is_not_done_when_the_drain_ends_gets_an_error(start_client: StartClient) -> None:
    client = await start_client(FakeOptions(step_seconds=0.01))
    stream = client.submit(request("a", FOREVER))
    await stream.take()
    await client.stop(drain_seconds=0.05)
    ends = [output async for output in stream if output.finish_reason]
    assert [end.finish_reason for end in ends] == [FinishReason.ERROR]
    assert "shutting down" in str(ends[0].error)


def test_this_wing_imports_no_torch_and_no_fastapi() -> None:
    code = "import glmserve.client.engine_client, glmserve.engine.fake, sys; print(*{'torch', 'fastapi'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
