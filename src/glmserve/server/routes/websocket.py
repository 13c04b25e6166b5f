"""Chat over a WebSocket, for answers that outlive a bad connection.

The client sends JSON objects as text frames:
    {"type": "generate", "id"?, "prompt", "history"? | "messages", "max_tokens"?, "max_length"?, "temperature"?, ...}
    {"type": "resume", "id", "after_seq"}    pick up a running or finished answer after that number
    {"type": "stop", "id"}                   end an answer; what was said stays
    {"type": "ping"}                         answered by {"type": "pong"}, for clients that cannot send WebSocket pings
The server sends:
    {"type": "start", "id"}  {"type": "delta", "id", "seq", "text"}  {"type": "end", "id", "seq", "finish_reason", "usage"}
    {"type": "error", "id"?, "error": {"message", "type", "param", "code"}}
One connection may run several answers at a time.  A dropped connection cancels nothing: its answers run on, and are kept for
ServerConfig.resume_seconds.  Only the API key that asked for an answer may resume or stop it.
"""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import msgspec
from fastapi import APIRouter, WebSocket
from starlette.websockets import WebSocketDisconnect

from glmserve.protocol.errors import GlmserveError, InvalidRequestError
from glmserve.server.errors import openai_body
from glmserve.server.kept_answers import KeptAnswer
from glmserve.server.middleware import CLIENT_KEY
from glmserve.server.schemas import GenerateMessage, parse_body
from glmserve.server.services import services_of
from glmserve.server.sse import encode_json
from glmserve.text.chat_format import messages_from_history, parse_messages
from glmserve.text.generator import ChatPrompt, GenerationRequest

router = APIRouter()


@router.websocket("/ws/chat")
async def chat(websocket: WebSocket) -> None:
    """One connection."""
    await websocket.accept()
    await ChatSession(websocket).run()


class ChatSession:
    """One connection: reads messages, and follows answers on its behalf."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self._services = services_of(websocket)
        self._owner: str | None = websocket.scope.get(CLIENT_KEY)
        self._followers: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until the client goes."""
        try:
            while (frame := await self._websocket.receive())["type"] != "websocket.disconnect":
                await self._hear(frame)
        except (WebSocketDisconnect, ConnectionError):
            pass
        finally:
            for follower in self._followers:
                follower.cancel()
            if self._followers:  # so that each answer knows at once that nobody follows it
                await asyncio.wait(self._followers)

    async def _hear(self, frame: Any) -> None:
        text = frame.get("text")
        answer_id = None
        try:
            if text is None:
                raise InvalidRequestError("send JSON in text frames, not binary ones")
            message = _parse(text)
            answer_id = message.get("id") if isinstance(message.get("id"), str) else None
            await self._act(message, text.encode())
        except GlmserveError as error:
            self._services.log_refusal(self._websocket.scope, error)
            await self._send({"type": "error", "id": answer_id, **openai_body(error)})

    async def _act(self, message: dict[str, Any], raw: bytes) -> None:
        match message.get("type"):
            case "ping":
                await self._send({"type": "pong"})
            case "generate":
                await self._generate(raw)
            case "resume":
                self._follow(self._find(message), _after_seq(message))
            case "stop":
                self._find(message).stop()
            case kind:
                raise InvalidRequestError(f"type must be generate, resume, stop or ping, got {kind!r}", "type")

    async def _generate(self, raw: bytes) -> None:
        services = self._services
        with services.reserve(len(raw)) as place:
            body = parse_body(GenerateMessage, raw)
            answer_id = body.id or uuid.uuid4().hex
            services.kept_answers.check_new(answer_id)
            messages = messages_from_history(body.prompt, body.history) if body.prompt else parse_messages(body.messages)
            generation = GenerationRequest(
                request_id=f"ws-{answer_id}",
                prompts=[ChatPrompt(messages)],
                sampling_params=body.sampling_params(services.config),
                priority=body.priority or 0,
                max_length=body.length(services.config) if body.max_length else None,
            )
            answer = await services.start(generation, place)
            kept = services.kept_answers.keep(answer_id, self._owner, answer)
        await self._send({"type": "start", "id": kept.id})
        self._follow(kept, 0)

    def _find(self, message: dict[str, Any]) -> KeptAnswer:
        answer_id = message.get("id")
        if not isinstance(answer_id, str):
            raise InvalidRequestError("id is missing: name the answer", "id")
        return self._services.kept_answers.find(answer_id, self._owner)

    def _follow(self, kept: KeptAnswer, after_seq: int) -> None:
        follower = asyncio.create_task(self._forward(kept, after_seq))
        self._followers.add(follower)
        follower.add_done_callback(self._followers.discard)

    async def _forward(self, kept: KeptAnswer, after_seq: int) -> None:
        messages = kept.follow(after_seq)
        try:
            async for message in messages:
                await self._send(message)
        except (WebSocketDisconnect, ConnectionError):
            pass  # the client went; the answer is kept for its return
        finally:
            await messages.aclose()

    async def _send(self, message: dict[str, Any]) -> None:
        await self._websocket.send_text(encode_json(message).decode())


def _parse(text: str) -> dict[str, Any]:
    try:
        message = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequestError(f"the message is not JSON: {error}") from None
    if not isinstance(message, dict):
        raise InvalidRequestError("the message must be a JSON object")
    return message


def _after_seq(message: dict[str, Any]) -> int:
    after_seq = message.get("after_seq", 0)
    if not isinstance(after_seq, int) or isinstance(after_seq, bool) or after_seq < 0:
        raise InvalidRequestError("after_seq must be the number of the last delta that was received, or 0", "after_seq")
    return after_seq
