"""The engine's socket loop around a scripted core: one end a request, whatever the core or the front end does."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from glmserve.config import EngineConfig
from glmserve.engine.fake import FakeCore, FakeOptions
from glmserve.engine.process import HEARTBEAT_SECONDS, Core, EngineArguments, EngineProcess
from glmserve.protocol.channel import EngineChannel, FrontEndChannel
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
from glmserve.protocol.sampling_params import SamplingParams


def request(request_id: str, max_tokens: int = 3, prompt: tuple[int, ...] = (1, 2)) -> EngineRequest:
    return EngineRequest(request_id, list(prompt), SamplingParams(max_tokens=max_tokens), 0.0)


def fake_core(**options: object) -> FakeCore:
    return FakeCore(EngineConfig(model="fake", max_model_len=100_000), FakeOptions.model_validate(options))


class Engine:
    """An EngineProcess in a thread, and the front end's view of it."""

    def __init__(self, core: Core) -> None:
        self._front = FrontEndChannel()
        self._running = asyncio.create_task(asyncio.to_thread(self._run, core, self._front.address))
        self.outputs: list[RequestOutput] = []
        self.heartbeats: list[EngineHeartbeat] = []
        self.failed: EngineFailed | None = None

    @staticmethod
    def _run(core: Core, address: str) -> int:
        channel = EngineChannel(address)
        try:
            return EngineProcess(core, channel).run()
        finally:
            channel.close()

    async def ready(self) -> EngineReady:
        message = await self._front.receive()
        assert isinstance(message, EngineReady)
        return message

    def send(self, *messages: ToEngine) -> None:
        for message in messages:
            self._front.send(message)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Listens until the condition holds."""
        async with asyncio.timeout(10):
            while not condition():
                match await self._front.receive():
                    case EngineOutputs(outputs):
                        self.outputs += outputs
                    case EngineHeartbeat() as heartbeat:
                        self.heartbeats.append(heartbeat)
                    case EngineFailed() as failed:
                        self.failed = failed

    def ends(self) -> dict[str, list[FinishReason]]:
        """All finish reasons of each request."""
        ends: dict[str, list[FinishReason]] = {}
        for output in self.outputs:
            if output.finish_reason is not None:
                ends.setdefault(output.request_id, []).append(output.finish_reason)
        return ends

    async def exit_code(self) -> int:
        async with asyncio.timeout(10):
            return await self._running

    async def close(self) -> None:
        if not self._running.done():
            self.send(AbortRequest([output.request_id for output in self.outputs]), DrainRequest())
            await self.exit_code()
        self._front.close()


@pytest.fixture
async def start() -> AsyncIterator[Callable[[Core], Engine]]:
    engines: list[Engine] = []

    def start_engine(core: Core) -> Engine:
        engines.append(Engine(core))
        return engines[-1]

    yield start_engine
    for engine in engines:
        await engine.close()


Start = Callable[[Core], Engine]


async def test_it_says_that_it_is_ready_then_serves_then_drains(start: Start) -> None:
    engine = start(fake_core())
    assert (await engine.ready()).max_model_len == 100_000
    engine.send(request("a", 3), request("b", 5), DrainRequest())
    await engine.until(lambda: len(engine.ends()) == 2)
    assert engine.ends() == {"a": [FinishReason.LENGTH], "b": [FinishReason.LENGTH]}
    assert sum(len(output.new_token_ids) for output in engine.outputs) == 8
    assert await engine.exit_code() == 0


async def test_an_idle_engine_beats_and_tells_its_idle_time(start: Start) -> None:
    engine = start(fake_core())
    await engine.ready()
    await engine.until(lambda: len(engine.heartbeats) == 3)
    idle = [heartbeat.stats.gpu_time_seconds.idle_no_work for heartbeat in engine.heartbeats if heartbeat.stats is not None]
    assert idle == sorted(idle)
    assert len(set(idle)) == 3


class PreparingCore(FakeCore):
    """Has `pieces` of work to do ahead of requests."""

    def __init__(self, pieces: int) -> None:
        super().__init__(EngineConfig(model="fake"), FakeOptions())
        self.pieces = pieces

    def prepare_ahead(self) -> bool:
        assert not self.has_unfinished_requests()
        self.pieces = max(0, self.pieces - 1)
        return self.pieces > 0


async def test_an_idle_engine_prepares_without_a_pause_and_goes_on_beating(start: Start) -> None:
    core = PreparingCore(50)
    engine = start(core)
    await engine.ready()
    began = time.monotonic()
    await engine.until(lambda: core.pieces == 0)
    assert time.monotonic() - began < 50 * HEARTBEAT_SECONDS / 2
    await engine.until(lambda: len(engine.heartbeats) >= 50)


async def test_a_request_does_not_wait_for_all_that_can_be_prepared(start: Start) -> None:
    core = PreparingCore(10**9)
    engine = start(core)
    await engine.ready()
    engine.send(request("a"), request("b", 5))
    await engine.until(lambda: len(engine.ends()) == 2)
    engine.send(DrainRequest())
    assert await engine.exit_code() == 0 and core.pieces > 0


async def test_a_refused_request_ends_with_the_reason(start: Start) -> None:
    engine = start(fake_core())
    await engine.ready()
    engine.send(request("empty", prompt=()), request("good"))
    await engine.until(lambda: len(engine.ends()) == 2)
    assert engine.ends() == {"empty": [FinishReason.ERROR], "good": [FinishReason.LENGTH]}
    assert "prompt is empty" in str(engine.outputs[0].error) and engine.outputs[0].refusal is Refusal.INVALID


async def test_an_unreadable_request_ends_with_the_reason(start: Start) -> None:
    engine = start(fake_core())
    await engine.ready()
    bad = request("bad")
    bad.sampling_params.top_p = 2.0
    engine.send(bad, request("good"))
    await engine.until(lambda: len(engine.ends()) == 2)
    assert engine.ends() == {"bad": [FinishReason.ERROR], "good": [FinishReason.LENGTH]}


class ChattyCore(FakeCore):
    """Speaks of aborted requests once more, as a core may whose next step was already under way."""

    late: tuple[RequestOutput, ...] = ()

    def abort_requests(self, request_ids: list[str]) -> None:
        super().abort_requests(request_ids)
        self.late += tuple(RequestOutput(request_id, [9], FinishReason.ABORT) for request_id in request_ids)

    def step(self) -> list[RequestOutput]:
        late, self.late = self.late, ()
        return [*super().step(), *late]


async def test_an_abort_is_acknowledged_once(start: Start) -> None:
    engine = start(ChattyCore(EngineConfig(model="fake", max_model_len=100_000), FakeOptions(step_seconds=0.001)))
    await engine.ready()
    engine.send(request("a", 99_000), request("b", 50))
    await engine.until(lambda: len(engine.outputs) > 4)
    engine.send(AbortRequest(["a", "unknown"]), AbortRequest(["a"]))
    await engine.until(lambda: len(engine.ends()) == 2)
    engine.send(request("c"))
    await engine.until(lambda: len(engine.ends()) == 3)
    assert engine.ends() == {"a": [FinishReason.ABORT], "b": [FinishReason.LENGTH], "c": [FinishReason.LENGTH]}
    after = [output.request_id for output in engine.outputs]
    assert "a" not in after[after.index("c") :]


async def test_a_request_that_came_twice_ends_once(start: Start) -> None:
    engine = start(fake_core())
    await engine.ready()
    engine.send(request("a", 50), request("a", 50), request("b", 60))
    await engine.until(lambda: "b" in engine.ends())
    assert engine.ends()["a"] == [FinishReason.LENGTH]
    assert sum(len(output.new_token_ids) for output in engine.outputs if output.request_id == "a") == 50


class PickyCore(FakeCore):
    def add_request(self, request: EngineRequest) -> None:
        super().add_request(request)
        if request.request_id == "poison":
            raise ZeroDivisionError("a bug")


async def test_a_bug_that_one_request_meets_ends_only_that_one(start: Start) -> None:
    engine = start(PickyCore(EngineConfig(model="fake"), FakeOptions()))
    await engine.ready()
    engine.send(request("a"), request("poison"), request("b"))
    await engine.until(lambda: len(engine.ends()) == 3)
    assert engine.ends() == {"a": [FinishReason.LENGTH], "b": [FinishReason.LENGTH], "poison": [FinishReason.ERROR]}


async def test_a_step_that_fails_is_told_and_ends_the_process(start: Start) -> None:
    engine = start(fake_core(fault="raise", fault_after_steps=2))
    await engine.ready()
    engine.send(request("a"))
    await engine.until(lambda: engine.failed is not None)
    assert engine.failed is not None
    assert engine.failed.retryable
    assert "told to fail" in engine.failed.message
    assert await engine.exit_code() == 1


async def test_a_draining_engine_takes_nothing_new(start: Start) -> None:
    engine = start(fake_core(step_seconds=0.01))
    await engine.ready()
    engine.send(request("a", 20), DrainRequest(), request("late"))
    await engine.until(lambda: len(engine.ends()) == 2)
    assert engine.ends() == {"a": [FinishReason.LENGTH], "late": [FinishReason.ERROR]}
    assert [output.refusal for output in engine.outputs if output.finish_reason is FinishReason.ERROR] == [Refusal.DRAINING]
    assert await engine.exit_code() == 0


class SlowPrefillCore(FakeCore):
    """Its first 200 steps give no token."""

    num_silent = 200

    def step(self) -> list[RequestOutput]:
        if self.num_silent:
            self.num_silent -= 1
            time.sleep(0.001)
            return []
        return super().step()


async def test_steps_without_news_do_not_flood_the_front_end(start: Start) -> None:
    engine = start(SlowPrefillCore(EngineConfig(model="fake"), FakeOptions()))
    await engine.ready()
    frames = 0

    def finished() -> bool:
        nonlocal frames
        frames += 1
        return bool(engine.ends())

    engine.send(request("a"))
    await engine.until(finished)
    assert frames < 100


def test_the_command_line_is_read_back() -> None:
    config = EngineConfig(model="some/folder", max_num_seqs=3)
    argv = ["--address", "ipc:///x", "--parent-pid", "12", "--config", config.model_dump_json(), "--fake-options", "{}"]
    assert EngineArguments.parse(argv) == EngineArguments("ipc:///x", 12, config, ("--fake-options", "{}"))


PARENT = """
import asyncio
from glmserve.client.engine_client import EngineClient
from glmserve.config import EngineConfig, ServerConfig

async def main():
    client = EngineClient(EngineConfig(model="fake"), ServerConfig(), engine_module="glmserve.engine.fake")
    await client.start()
    await client.wait_ready()
    print(client.engine_pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent death signal is Linux's")
def test_no_engine_outlives_its_front_end(tmp_path: Path) -> None:
    environment = os.environ | {"TMPDIR": str(tmp_path)}  # a killed front end cannot remove its folder
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        engine_pid = int(parent.stdout.readline())
        os.kill(engine_pid, 0)
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while _alive(engine_pid):
        assert time.monotonic() < deadline, "the engine is an orphan"
        time.sleep(0.02)


def _alive(pid: int) -> bool:
    """False for a zombie too: in a container nobody may reap it."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
