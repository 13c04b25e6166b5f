"""The socket pair: what goes in comes out on the other side, and a bad frame harms only itself."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
import zmq

from glmserve.protocol.channel import EngineChannel, FrontEndChannel, MessageError
from glmserve.protocol.messages import (
    AbortRequest,
    DrainRequest,
    EngineFailed,
    EngineHeartbeat,
    EngineOutputs,
    EngineReady,
    EngineRequest,
    FinishReason,
    FromEngine,
    RequestOutput,
    RequestTimes,
    ToEngine,
    TokenLogprobs,
)
from glmserve.protocol.sampling_params import SamplingParams
from glmserve.protocol.stats import EngineStats

PARAMS = SamplingParams(temperature=0.0, stop=["\n"], stop_token_ids=[7], logit_bias={3: -1.5}, logprobs=2, seed=2**63, max_tokens=None)
READY = EngineReady("m", "cpu", "a cpu", "float32", 2048, 8, 64, 16, 10**10, 10**9, [["all", "cpu", "10 GB"]], {"total": 1.5})


@pytest.fixture
async def front() -> Iterator[FrontEndChannel]:
    with closing(FrontEndChannel()) as channel:
        yield channel


@pytest.fixture
async def engine(front: FrontEndChannel) -> Iterator[EngineChannel]:
    with closing(EngineChannel(front.address)) as channel:
        channel.send(READY)  # the front end can send only to an engine that has spoken
        assert await front.receive() == READY
        yield channel


@pytest.mark.parametrize(
    "message",
    [
        EngineRequest("你好-1", [0, 130527], PARAMS, 12.5, priority=-1),
        EngineRequest("long", list(range(100_000)), SamplingParams(), 0.0),
        AbortRequest(["a", "b"]),
        DrainRequest(),
    ],
    ids=lambda message: type(message).__name__,
)
async def test_what_the_front_end_sends_arrives(front: FrontEndChannel, engine: EngineChannel, message: ToEngine) -> None:
    front.send(message)
    assert engine.receive(timeout=5.0) == message


@pytest.mark.parametrize(
    "message",
    [
        EngineOutputs(
            [
                RequestOutput("a", [1]),
                RequestOutput("b", [2, 3], FinishReason.STOP, 7, [TokenLogprobs([2], [-0.1], [1])], 16, RequestTimes(1, 2, 3, 4, 5)),
                RequestOutput("c", [], FinishReason.ERROR, error="为什么"),
            ],
            EngineStats(num_requests_running=2, kv_cache_usage_perc=0.5),
            3.25,
        ),
        EngineHeartbeat(1.0, loading="reading weights"),
        EngineHeartbeat(1.0, stats=EngineStats(engine_steps=4)),
        READY,
        EngineFailed("no memory", retryable=True),
    ],
    ids=lambda message: type(message).__name__,
)
async def test_what_the_engine_sends_arrives(front: FrontEndChannel, engine: EngineChannel, message: FromEngine) -> None:
    engine.send(message)
    assert await front.receive() == message


async def test_messages_keep_their_order(front: FrontEndChannel, engine: EngineChannel) -> None:
    sent = [AbortRequest([str(number)]) for number in range(1000)]
    for message in sent:
        front.send(message)
    assert [engine.receive(timeout=5.0) for _ in sent] == sent
    assert engine.receive() is None


async def test_sending_to_no_engine_says_so(front: FrontEndChannel) -> None:
    with pytest.raises(ConnectionError):
        front.send(DrainRequest())


async def test_a_request_out_of_range_names_its_id_and_the_next_one_arrives(front: FrontEndChannel, engine: EngineChannel) -> None:
    hot = SamplingParams()
    hot.temperature = -1.0  # past the check of the constructor
    front.send(EngineRequest("hot", [1], hot, 0.0))
    front.send(DrainRequest())
    with pytest.raises(MessageError, match="temperature") as caught:
        engine.receive(timeout=5.0)
    assert caught.value.request_id == "hot"
    assert engine.receive(timeout=5.0) == DrainRequest()


@pytest.fixture
def peer() -> Iterator[zmq.Socket[bytes]]:
    """A bare socket that can say anything."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        yield socket


GARBAGE = [b"", b"\xc1", b"\x93", msgspec.msgpack.encode(["no such tag", 1]), msgspec.msgpack.encode(7)]


@pytest.mark.parametrize("frame", GARBAGE)
async def test_garbage_is_an_error_for_the_front_end(front: FrontEndChannel, peer: zmq.Socket[bytes], frame: bytes) -> None:
    peer.connect(front.address)
    peer.send(frame)
    peer.send(msgspec.msgpack.encode(READY))
    with pytest.raises(MessageError):
        await front.receive()
    assert await front.receive() == READY


@pytest.mark.parametrize("frame", GARBAGE)
def test_garbage_is_an_error_for_the_engine(peer: zmq.Socket[bytes], tmp_path: Path, frame: bytes) -> None:
    peer.bind(f"ipc://{tmp_path / 's'}")
    with closing(EngineChannel(f"ipc://{tmp_path / 's'}")) as engine:
        peer.send(frame)
        peer.send(msgspec.msgpack.encode(DrainRequest()))
        with pytest.raises(MessageError) as caught:
            engine.receive(timeout=5.0)
        assert caught.value.request_id is None
        assert engine.receive(timeout=5.0) == DrainRequest()


async def test_the_socket_lies_in_a_private_folder_that_close_removes() -> None:
    channel = FrontEndChannel()
    folder = Path(channel.address.removeprefix("ipc://")).parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert folder.stat().st_uid == os.getuid()
    channel.close()
    assert not folder.exists()


async def test_a_long_tmpdir_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with closing(FrontEndChannel()) as front, closing(EngineChannel(front.address)) as engine:
        engine.send(READY)
        assert await front.receive() == READY
    assert not any(long.iterdir())
