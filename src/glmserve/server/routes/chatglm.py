"""ChatGLM-6B's own protocol, so that the clients of its api.py need no change, and a streaming twin of each path.

| path | body | answer |
|---|---|---|
| POST / | {prompt, history, max_length, top_p, temperature} | {response, history, status, time} |
| POST /stream | the same | events, each {response, history, status, time, finished} with all of the text so far, as stream_chat gives it |
| POST /chat | {prompt} and, if wanted, the fields above | {response} |
| POST /chat/stream | the same | events {delta, response, finished}: what is new, and all of the text so far |

`max_length` counts prompt and answer.  A field that is missing, null or 0 takes the server's default, as in the released file.
The last event of a stream has "finished": true; a stream that fails ends with {error, detail, status, finished}.
Errors are {error, detail, status} with the true HTTP status, where the released file had a bare 500.
"""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request, Response

from glmserve.protocol.errors import GlmserveError, InvalidRequestError
from glmserve.server.admission import Place
from glmserve.server.bodies import body_schema, collect, json_response
from glmserve.server.errors import chatglm_body
from glmserve.server.schemas import ChatGLMRequest
from glmserve.server.services import request_id_of, services_of
from glmserve.server.sse import EventStream, encode_json, event
from glmserve.text.answer import ChoiceDelta, TextAnswer, Usage
from glmserve.text.chat_format import messages_from_history
from glmserve.text.generator import ChatPrompt, GenerationRequest

router = APIRouter()


@router.post("/", openapi_extra=body_schema(ChatGLMRequest))
async def api(request: Request) -> Response:
    """Answer a prompt after its history, as api.py does."""
    with services_of(request).reserve() as place:
        body, answer = await _start(request, place)
        response = (await collect(answer, request))[0].text
        history = [*(body.history or []), [body.prompt, response]]
        return json_response({"response": response, "history": history, "status": 200, "time": _now()})


@router.post("/stream", openapi_extra=body_schema(ChatGLMRequest))
async def api_stream(request: Request) -> Response:
    """The same, as it is written."""
    services = services_of(request)
    with services.reserve() as place:
        body, answer = await _start(request, place)
        return EventStream(answer, ApiEvents(body), services.config.stream_interval)


@router.post("/chat", openapi_extra=body_schema(ChatGLMRequest))
async def chat(request: Request) -> Response:
    """Answer a prompt."""
    with services_of(request).reserve() as place:
        _, answer = await _start(request, place)
        return json_response({"response": (await collect(answer, request))[0].text})


@router.post("/chat/stream", openapi_extra=body_schema(ChatGLMRequest))
async def chat_stream(request: Request) -> Response:
    """The same, as it is written."""
    services = services_of(request)
    with services.reserve() as place:
        _, answer = await _start(request, place)
        return EventStream(answer, ChatEvents(), services.config.stream_interval)


async def _start(request: Request, place: Place) -> tuple[ChatGLMRequest, TextAnswer]:
    services = services_of(request)
    body = await services.read(ChatGLMRequest, request, place)
    if not body.prompt:
        raise InvalidRequestError("prompt required", "prompt")
    generation = GenerationRequest(
        request_id=f"chatglm-{request_id_of(request)}",
        prompts=[ChatPrompt(messages_from_history(body.prompt, body.history))],
        sampling_params=body.sampling_params(services.config),
        max_length=body.length(services.config),
    )
    answer = await services.start(generation, place)
    return body, answer


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


class ChatEvents:
    """Events of /chat/stream."""

    def __init__(self) -> None:
        self._text = ""

    def events(self, deltas: list[ChoiceDelta]) -> bytes:
        """What is new and all so far."""
        delta = "".join(delta.text for delta in deltas)
        self._text += delta
        return self._event(delta, False) if delta else b""

    def end(self, usage: Usage) -> bytes:
        """The whole text."""
        return self._event("", True)

    def failed(self, error: GlmserveError) -> bytes:
        """Why it ends early."""
        return event(chatglm_body(error) | {"finished": True})

    def _event(self, delta: str, finished: bool) -> bytes:
        return event({"delta": delta, "response": self._text, "finished": finished})


class ApiEvents:
    """Events of /stream."""

    def __init__(self, body: ChatGLMRequest) -> None:
        rounds: list[Any] = [*(body.history or []), [body.prompt]]
        self._history = encode_json(rounds).removesuffix(b"]]")  # encoded once: a long history would be most of the work
        self._text = ""

    def events(self, deltas: list[ChoiceDelta]) -> bytes:
        """All of the text so far."""
        delta = "".join(delta.text for delta in deltas)
        self._text += delta
        return self._event(False) if delta else b""

    def end(self, usage: Usage) -> bytes:
        """The whole text."""
        return self._event(True)

    def failed(self, error: GlmserveError) -> bytes:
        """Why it ends early."""
        return event(chatglm_body(error) | {"finished": True})

    def _event(self, finished: bool) -> bytes:
        text = encode_json(self._text)
        rest = encode_json({"status": 200, "time": _now(), "finished": finished})[1:]
        return b"".join((b'data: {"response":', text, b',"history":', self._history, b",", text, b"]],", rest, b"\n\n"))
