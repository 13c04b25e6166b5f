"""One request's stream: nothing is lost, nothing follows the end, and leaving early aborts."""

from __future__ import annotations

import asyncio

import pytest

from glmserve.client.output_stream import OutputStream
from glmserve.protocol.messages import FinishReason, RequestOutput


def token(token_id: int) -> RequestOutput:
    return RequestOutput("a", [token_id])


def last(token_id: int) -> RequestOutput:
    return RequestOutput("a", [token_id], FinishReason.STOP)


@pytest.fixture
def aborted() -> list[str]:
    return []


@pytest.fixture
def stream(aborted: list[str]) -> OutputStream:
    return OutputStream("a", aborted.append)


async def test_iterating_gives_each_output_and_ends_after_the_last(stream: OutputStream, aborted: list[str]) -> None:
    for output in (token(1), token(2), last(3)):
        stream.put(output)
    assert [output.new_token_ids async for output in stream] == [[1], [2], [3]]
    assert stream.finished
    stream.close()
    assert aborted == []


async def test_take_gives_all_there_is(stream: OutputStream) -> None:
    stream.put(token(1))
    stream.put(token(2))
    assert [output.new_token_ids for output in await stream.take()] == [[1], [2]]
    stream.put(last(3))
    assert not stream.finished
    assert len(await stream.take()) == 1
    assert await stream.take() == []


async def test_take_waits_for_the_first(stream: OutputStream) -> None:
    taking = asyncio.create_task(stream.take())
    await asyncio.sleep(0)
    assert not taking.done()
    stream.put(token(1))
    stream.put(token(2))
    assert len(await taking) == 2


async def test_nothing_follows_the_end(stream: OutputStream) -> None:
    stream.put(last(1))
    stream.put(last(2))
    assert [output.new_token_ids async for output in stream] == [[1]]


async def test_a_timeout_does_not_abort(stream: OutputStream, aborted: list[str]) -> None:
    with pytest.raises(TimeoutError):
        await stream.take(timeout=0.001)
    stream.put(last(1))
    assert len(await stream.take(timeout=1.0)) == 1
    assert aborted == []


async def test_closing_aborts_once_and_wakes_the_consumer(stream: OutputStream, aborted: list[str]) -> None:
    taking = asyncio.create_task(stream.take())
    await asyncio.sleep(0)
    stream.close()
    stream.close()
    assert await taking == []
    assert aborted == ["a"]
    stream.put(token(1))
    assert await stream.take() == []


async def test_cancelling_a_wait_aborts(stream: OutputStream, aborted: list[str]) -> None:
    taking = asyncio.create_task(anext(stream))
    await asyncio.sleep(0)
    taking.cancel()
    await asyncio.wait([taking])
    assert taking.cancelled()
    assert aborted == ["a"]


async def test_two_consumers_are_a_mistake(stream: OutputStream) -> None:
    taking = asyncio.create_task(stream.take())
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="consumer"):
        await stream.take()
    stream.close()
    await taking
