"""What the docs show of a request's body, and an answer's written as JSON, without the framework's checks in between."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from glmserve.protocol.messages import TokenLogprobs
from glmserve.server.client_watch import ClientWatch
from glmserve.server.sse import encode_json
from glmserve.text.answer import TextAnswer, Usage


def json_response(data: Any, status_code: int = 200) -> Response:
    """A JSON answer of plain values."""
    return Response(encode_json(data), status_code=status_code, media_type="application/json")


def usage_body(usage: Usage) -> dict[str, Any]:
    """Usage as OpenAI writes it."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "completion_tokens": usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def body_schema(kind: type[BaseModel]) -> dict[str, Any]:
    """What the interactive docs show of a body that the route reads by itself."""
    schema = kind.model_json_schema()
    definitions = schema.pop("$defs", {})
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": _inline(schema, definitions)}}}}


def _inline(node: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(node, list):
        return [_inline(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if isinstance(name := node.get("$ref"), str):
        return _inline(definitions[name.removeprefix("#/$defs/")], definitions)
    return {key: _inline(value, definitions) for key, value in node.items()}


class WholeChoice:
    """One choice, put together from its deltas."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.finish_reason: str | None = None
        self.stop_reason: str | int | None = None

    @property
    def text(self) -> str:
        """All of the text."""
        return "".join(self.parts)


async def collect(answer: TextAnswer, request: Request) -> list[WholeChoice]:
    """Wait for the whole answer, as long as the client does.  Raises ClientGoneError and the answer's own errors."""
    choices = [WholeChoice() for _ in range(answer.num_choices)]
    async with ClientWatch(request.receive), answer:
        async for deltas in answer:
            for delta in deltas:
                choice = choices[delta.index]
                choice.parts.append(delta.text)
                choice.token_ids += delta.token_ids
                choice.logprobs += delta.logprobs or ()
                choice.finish_reason = delta.finish_reason
                choice.stop_reason = delta.stop_reason
    return choices
