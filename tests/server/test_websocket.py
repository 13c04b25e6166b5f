"""Chat over a WebSocket: streaming, stopping, dropping and coming back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import websockets

from glmserve.engine.fake import FakeOptions
from tests.server.conftest import ANSWER
from tests.server.serving import ServerInThread, eventually

LONG = {"type": "generate", "prompt": "你好", "max_tokens": 60}


class Chat:
    """A connection that speaks JSON."""

    def __init__(self, connection: websockets.ClientConnection) -> None:
        self.connection = connection

    async def send(self, **message: Any) -> None:
        await self.connection.send(json.dumps(message))

    async def next(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(await asyncio.wait_for(self.connection.recv(), 15))
        return message

    async def until_end(self) -> list[dict[str, Any]]:
        """All messages up to and with the end."""
        messages = [await self.next()]
        while messages[-1]["type"] not in ("end", "error"):
            messages.append(await self.next())
        return messages


@asynccontextmanager
async def connect(server: ServerInThread, query: str = "", **options: Any) -> AsyncIterator[Chat]:
    async with websockets.connect(f"ws://127.0.0.1:{server.port}/ws/chat{query}", **options) as connection:
        yield Chat(connection)


def text_of(messages: list[dict[str, Any]]) -> str:
    return "".join(message["text"] for message in messages if message["type"] == "delta")


async def settle(condition: Any) -> None:
    await asyncio.to_thread(eventually, condition)


async def test_an_answer_is_streamed_and_ended(fast: ServerInThread) -> None:
    async with connect(fast) as chat:
        await chat.send(type="generate", prompt="你好", history=[["问", "答"]])
        messages = await chat.until_end()
        assert messages[0]["type"] == "start"
        assert {message["id"] for message in messages} == {messages[0]["id"]}
        assert text_of(messages).replace(" ", "") == ANSWER.replace("! ", "！").replace(", ", "，")
        sequence = [message["seq"] for message in messages if message["type"] == "delta"]
        assert sequence == sorted(set(sequence))
        assert messages[-1]["finish_reason"] == "stop" and messages[-1]["usage"]["completion_tokens"] > 0
        await chat.send(type="generate", messages=[{"role": "user", "content": "你好"}], temperature=0, max_tokens=2)
        assert (await chat.until_end())[-1]["finish_reason"] == "length"


async def test_several_answers_share_a_connection(fast: ServerInThread) -> None:
    async with connect(fast) as chat:
        for name in "abc":
            await chat.send(type="generate", id=name, prompt="你好")
        messages = []
        while sum(message["type"] == "end" for message in messages) < 3:
            messages.append(await chat.next())
        texts = {name: text_of([message for message in messages if message["id"] == name]) for name in "abc"}
        assert len(set(texts.values())) == 1 and texts["a"]


async def test_application_ping(fast: ServerInThread) -> None:
    async with connect(fast) as chat:
        await chat.send(type="ping")
        assert await chat.next() == {"type": "pong"}
        await (await chat.connection.ping())


async def test_stop_cancels(slow: ServerInThread) -> None:
    async with connect(slow) as chat:
        await chat.send(**LONG, id="stopped")
        while (await chat.next())["type"] != "delta":
            pass
        await chat.send(type="stop", id="stopped")
        end = (await chat.until_end())[-1]
        assert (end["type"], end["finish_reason"]) == ("end", "abort")
        await settle(slow.idle)


async def test_a_dropped_client_picks_the_answer_up_again(slow: ServerInThread) -> None:
    async with connect(slow) as chat:
        await chat.send(**LONG, id="resumed")
        while (delta := await chat.next())["type"] != "delta":
            pass
    assert slow.client.num_open_requests == 1  # it runs on
    async with connect(slow) as chat:
        await chat.send(type="resume", id="resumed", after_seq=delta["seq"])
        rest = await chat.until_end()
    assert rest[-1]["finish_reason"] == "length"
    async with connect(slow) as chat:  # also when it is finished, and from the start
        await chat.send(type="resume", id="resumed")
        again = await chat.until_end()
    assert text_of(again) == delta["text"] + text_of(rest)
    assert again[-1] == rest[-1]
    await settle(slow.idle)


async def test_an_answer_nobody_comes_back_for_is_dropped(start_server: Any, answer_ids: tuple[int, ...]) -> None:
    options = FakeOptions(alphabet=answer_ids[:-1], step_seconds=0.02)
    settings = {"resume_seconds": 0.1, "api_key": ("one", "two")}
    server = await asyncio.to_thread(start_server, options, server=settings, wait=False)
    await settle(lambda: server.client.ready is not None)
    async with connect(server, "?api_key=one") as chat:
        await chat.send(type="generate", prompt="你好", id="left")
        assert (await chat.next())["type"] == "start"
        await settle(lambda: server.client.num_open_requests == 1)
    await settle(server.idle)
    async with connect(server, additional_headers={"Authorization": "Bearer one"}) as chat:
        await chat.send(type="resume", id="left")
        assert "no answer" in (await chat.next())["error"]["message"]
    with pytest.raises(websockets.InvalidStatus):
        async with connect(server, "?api_key=three"):
            pass
    async with connect(server, "?api_key=one") as chat, connect(server, "?api_key=two") as stranger:
        await chat.send(type="generate", prompt="你好", id="mine")
        assert (await chat.next())["type"] == "start"
        await stranger.send(type="stop", id="mine")
        assert (await stranger.next())["type"] == "error"
    async with connect(server, "?api_key=one") as chat:
        await chat.send(type="stop", id="mine")  # and does not read along
        await chat.send(type="ping")
        await chat.next()
    await settle(server.idle)
    async with connect(server, "?api_key=one") as chat:
        await chat.send(type="generate", prompt="你好", id="unread")  # and goes at once
    await settle(lambda: not server.services.kept_answers._answers)
    await settle(server.idle)


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ("{", "not JSON"),
        ("[]", "JSON object"),
        ("[" * 100_000, "not JSON"),
        ('{"type": "dance"}', "dance"),
        ('{"type": "generate"}', "prompt required"),
        ('{"type": "generate", "prompt": "x", "temperature": "hot"}', "temperature"),
        ('{"type": "generate", "prompt": "x", "history": 5}', "history"),
        ('{"type": "generate", "messages": []}', "empty"),
        ('{"type": "generate", "prompt": "x", "max_tokens": 99999}', "room"),
        ('{"type": "resume"}', "id is missing"),
        ('{"type": "resume", "id": "nobody"}', "nobody"),
        ('{"type": "resume", "id": "nobody", "after_seq": -1}', "nobody"),
        ('{"type": "stop", "id": "nobody"}', "nobody"),
    ],
)
async def test_bad_messages_are_told_of_and_the_connection_stays(fast: ServerInThread, message: str, says: str) -> None:
    async with connect(fast) as chat:
        await chat.connection.send(message)
        answer = await chat.next()
        assert answer["type"] == "error" and says in answer["error"]["message"]
        await chat.connection.send(b"\x00\xff")
        assert "text frames" in (await chat.next())["error"]["message"]
        await chat.send(type="generate", prompt="你好", max_tokens=1)
        assert (await chat.until_end())[-1]["type"] == "end"


async def test_an_id_is_used_once(fast: ServerInThread) -> None:
    async with connect(fast) as chat:
        await chat.send(type="generate", prompt="你好", id="twice")
        await chat.until_end()
        await chat.send(type="generate", prompt="你好", id="twice")
        error = await chat.next()
        assert error["id"] == "twice" and "exists already" in error["error"]["message"]
        await chat.send(type="resume", id="twice", after_seq=10**6)
        assert [message["type"] for message in await chat.until_end()] == ["end"]


async def test_an_id_that_was_taken_meanwhile(fast: ServerInThread) -> None:
    """Two ask for it while the first one's prompt is still tokenized."""
    async with connect(fast) as one, connect(fast) as other:
        for chat in (one, other):
            await chat.send(type="generate", prompt="你好" + " " * 2000, id="same")  # few tokens
        kinds = sorted([(await one.next())["type"], (await other.next())["type"]])
        assert kinds == ["error", "start"]
    await settle(fast.idle)


async def test_a_deadline_ends_with_an_error(slow: ServerInThread) -> None:
    async with connect(slow) as chat:
        await chat.send(type="generate", prompt="你好", max_tokens=400)
        assert (await chat.until_end())[-1]["error"]["code"] == "deadline_exceeded"
        await settle(slow.idle)
