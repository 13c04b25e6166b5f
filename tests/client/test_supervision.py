"""Engines that die, hang or cannot start: every open request ends once, and the next engine serves."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path

import pytest
import uvloop

from glmserve.client.engine_client import EngineClient
from glmserve.client.output_stream import OutputStream
from glmserve.client.supervisor import EngineState
from glmserve.config import EngineConfig, ServerConfig
from glmserve.engine.fake import FakeOptions
from glmserve.protocol.channel import FrontEndChannel
from glmserve.protocol.errors import EngineUnavailableError
from glmserve.protocol.messages import FinishReason, RequestOutput
from tests.client.scripted_requests import FOREVER, StartClient, collect, eventually, request

SLOW = FakeOptions(step_seconds=0.002)


async def ends_of(stream: OutputStream) -> list[RequestOutput]:
    """All outputs of the rest of the stream that carry a finish reason."""
    return [output async for output in stream if output.finish_reason is not None]


async def open_streams(client: EngineClient, number: int) -> list[OutputStream]:
    """Streams that are in the middle of an endless answer."""
    streams = [client.submit(request(f"open-{index}", FOREVER)) for index in range(number)]
    for stream in streams:
        await stream.take()
    return streams


async def assert_all_end_with(streams: list[OutputStream], error: str) -> None:
    for stream in streams:
        [end] = await ends_of(stream)
        assert end.finish_reason is FinishReason.ERROR
        assert error in str(end.error)


async def test_a_killed_engine_ends_all_and_comes_back(start_client: StartClient) -> None:
    client = await start_client(SLOW)
    streams = await open_streams(client, 10)
    pid = client.engine_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await assert_all_end_with(streams, "killed by signal 9")
    with pytest.raises(EngineUnavailableError, match=r"restarting: .*signal 9"):
        client.submit(request("too soon"))
    assert client.state is EngineState.RESTARTING
    assert client.stats.num_requests_running == 0
    await client.wait_ready()
    assert client.num_engine_restarts == 1
    assert client.engine_pid != pid
    assert client.failure is None
    assert (await collect(client, request("after")))[-1].finish_reason is FinishReason.LENGTH


def test_uvloop_serves_it_as_well() -> None:
    async def kill_and_come_back() -> None:
        options = SLOW.as_arguments()
        client = EngineClient(EngineConfig(model="fake"), ServerConfig(), engine_module="glmserve.engine.fake", engine_args=options)
        await client.start()
        await client.wait_ready()
        streams = await open_streams(client, 2)
        assert client.engine_pid is not None
        os.kill(client.engine_pid, signal.SIGKILL)
        await assert_all_end_with(streams, "signal 9")
        await client.wait_ready()
        assert (await collect(client, request("after")))[-1].finish_reason is FinishReason.LENGTH
        await client.stop(drain_seconds=5)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(kill_and_come_back())


async def test_a_hung_engine_is_found_and_replaced(start_client: StartClient) -> None:
    client = await start_client(SLOW, engine_hang_timeout=1.0)
    streams = await open_streams(client, 3)
    pid = client.engine_pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    await assert_all_end_with(streams, "hung")
    await client.wait_ready()
    assert client.engine_pid != pid
    assert (await collect(client, request("after")))[-1].finish_reason is FinishReason.LENGTH
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_an_idle_engine_is_not_taken_for_hung(start_client: StartClient) -> None:
    client = await start_client(engine_hang_timeout=1.0)
    pid = client.engine_pid
    await asyncio.sleep(1.8)
    assert client.heartbeat_age() < 1.0
    assert (client.engine_pid, client.num_engine_restarts) == (pid, 0)


@pytest.mark.parametrize(("fault", "error"), [("exit", "exited with code 3"), ("raise", "RuntimeError: told to fail")])
async def test_an_engine_that_breaks_in_a_step(start_client: StartClient, tmp_path: Path, fault: str, error: str) -> None:
    broke = str(tmp_path / "broke")
    # Slow steps, so that both requests are sent before it breaks, however busy the machine is.
    options = FakeOptions.model_validate({"fault": fault, "fault_after_steps": 3, "fault_once_file": broke, "step_seconds": 0.1})
    client = await start_client(options)
    await assert_all_end_with([client.submit(request("a", FOREVER)), client.submit(request("b", FOREVER))], error)
    await client.wait_ready()
    assert (await collect(client, request("after")))[-1].finish_reason is FinishReason.LENGTH


async def test_a_model_that_cannot_be_loaded_is_not_tried_again(start_client: StartClient) -> None:
    client = await start_client(FakeOptions(load_error="12 bytes of memory are missing"), wait=False)
    with pytest.raises(EngineUnavailableError, match="12 bytes"):
        await client.wait_ready()
    assert client.state is EngineState.FAILED
    assert client.failure == "12 bytes of memory are missing"
    assert client.num_engine_restarts == 0
    with pytest.raises(EngineUnavailableError, match="12 bytes"):
        client.submit(request("a"))


async def test_too_many_deaths_are_given_up(start_client: StartClient) -> None:
    client = await start_client(FakeOptions(fault="exit"), max_engine_restarts=1)
    await collect(client, request("first"))
    await client.wait_ready()
    [end] = await collect(client, request("second"))
    assert end.finish_reason is FinishReason.ERROR
    await eventually(lambda: client.state is EngineState.FAILED)
    assert client.num_engine_restarts == 1


async def test_a_start_that_takes_too_long_is_ended(start_client: StartClient) -> None:
    client = await start_client(
        FakeOptions(load_seconds=60), wait=False, engine_start_timeout=0.5, engine_hang_timeout=0.1, max_engine_restarts=0
    )
    with pytest.raises(EngineUnavailableError, match="did not start within"):
        await client.wait_ready()


async def test_loading_in_silence_is_not_a_hang(start_client: StartClient) -> None:
    client = await start_client(FakeOptions(load_seconds=1.0), engine_hang_timeout=0.6)
    assert client.num_engine_restarts == 0


async def test_an_engine_lost_while_draining_ends_its_requests_and_is_not_replaced(start_client: StartClient) -> None:
    client = await start_client(SLOW)
    streams = await open_streams(client, 3)
    pid = client.engine_pid
    assert pid is not None
    stopping = asyncio.create_task(client.stop(drain_seconds=20))
    await asyncio.sleep(0)
    os.kill(pid, signal.SIGKILL)
    await assert_all_end_with(streams, "signal 9")
    await stopping
    assert client.num_engine_restarts == 0


async def test_stopping_while_loading_leaves_no_process(start_client: StartClient) -> None:
    client = await start_client(FakeOptions(load_seconds=60), wait=False)
    await eventually(lambda: client.loading == "pretending to load")
    pid = client.engine_pid
    assert pid is not None
    await client.stop(drain_seconds=5)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_garbled_frame_ends_what_is_open_and_the_engine_serves_on(
    start_client: StartClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await start_client(SLOW)
    streams = await open_streams(client, 3)
    receive = FrontEndChannel.receive

    async def receive_garbage(channel: FrontEndChannel) -> object:
        monkeypatch.setattr(FrontEndChannel, "receive", receive)
        await receive(channel)
        monkeypatch.setattr(channel, "_decoder", None)  # the next frame cannot be read
        try:
            return await receive(channel)
        finally:
            monkeypatch.undo()

    monkeypatch.setattr(FrontEndChannel, "receive", receive_garbage)
    counted = client.stats.engine_steps
    await assert_all_end_with(streams, "lost")
    assert client.stats.engine_steps >= counted > 0, "what the engine counted stays, for it lives"
    await eventually(lambda: client.stats.engine_steps > 0 and client.stats.num_requests_running == 0)
    assert (await collect(client, request("after")))[-1].finish_reason is FinishReason.LENGTH
    assert client.num_engine_restarts == 0


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_every_request_ends_once_whatever_happens(start_client: StartClient, seed: int) -> None:
    """Random lengths, aborts, closed streams, cancelled consumers and killed engines."""
    chance = random.Random(seed)
    client = await start_client(SLOW, max_num_seqs=8, max_engine_restarts=20)
    num_ends: dict[str, int] = {}
    left_early: set[str] = set()

    async def consume(stream: OutputStream, max_outputs: int) -> None:
        num_outputs = 0
        async for output in stream:
            num_ends[stream.request_id] += output.finish_reason is not None
            num_outputs += 1
            if num_outputs == max_outputs:
                left_early.add(stream.request_id)
                stream.close()

    consumers: dict[str, asyncio.Task[None]] = {}
    for index in range(120):
        if index % 40 == 20:
            await client.wait_ready()
            assert client.engine_pid is not None
            os.kill(client.engine_pid, chance.choice([signal.SIGKILL, signal.SIGTERM]))
        await asyncio.sleep(chance.uniform(0, 0.004))
        if chance.random() < 0.2 and consumers:
            client.abort([chance.choice(list(consumers))])
        if chance.random() < 0.1 and consumers:
            request_id = chance.choice(list(consumers))
            if consumers[request_id].cancel():
                left_early.add(request_id)
        try:
            stream = client.submit(request(f"r{index}", chance.choice([1, 5, 40])))
        except EngineUnavailableError:
            await client.wait_ready()
            continue
        num_ends[stream.request_id] = 0
        consumers[stream.request_id] = asyncio.create_task(consume(stream, chance.choice([1, 3, 1000, 1000])))
    async with asyncio.timeout(15):
        await asyncio.wait(consumers.values())
    assert all(number == 1 for request_id, number in num_ends.items() if request_id not in left_early)
    assert all(number <= 1 for number in num_ends.values())
    assert client.num_open_requests == 0
    await client.wait_ready()
    await eventually(lambda: client.stats.num_requests_running + client.stats.num_requests_waiting == 0)
