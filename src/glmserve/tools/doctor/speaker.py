"""Sends a message in the words a server understands: OpenAI's protocol, ChatGLM-6B's own, or a Gradio demo's."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Protocol

import httpx
import msgspec

from glmserve.tools.bench.http_client import HttpClient
from glmserve.tools.doctor.finding import NotApplicableError
from glmserve.tools.doctor.gradio import GradioDialect
from glmserve.tools.doctor.reply import Reply
from glmserve.tools.doctor.service import SPEAK_OPENAI, Kind, Service

PROMPT_TOKENS = 6  # about so many ChatGLM-6B makes of a short message; its limit counts prompt and answer
UNSERVED = (400, 404, 405, 501)


class Dialect(Protocol):
    """How one kind of server is spoken to."""

    can_stream: bool

    async def exchange(self, reply: Reply, text: str, num_tokens: int, stream: bool) -> None:
        """Send and fill `reply`.  Raises OSError or TimeoutError where the connection fails; cancelling it hangs up."""
        ...

    def close(self) -> None:
        """Close what is kept open."""
        ...


class Speaker:
    """Messages to one server.  Failures are in the reply, never raised."""

    def __init__(self, dialect: Dialect, timeout: float) -> None:
        self._dialect = dialect
        self._timeout = timeout

    @property
    def can_stream(self) -> bool:
        """Whether this protocol knows streams at all."""
        return self._dialect.can_stream

    async def say(self, text: str, num_tokens: int, *, stream: bool = True, reply: Reply | None = None) -> Reply:
        """Ask for about `num_tokens` tokens in answer to `text`.  Cancelling it hangs up, as a user who leaves does."""
        reply = reply or Reply()
        reply.start()
        try:
            async with asyncio.timeout(self._timeout):
                await self._dialect.exchange(reply, text, num_tokens, stream and self.can_stream)
        except TimeoutError:
            reply.fail(f"not done within {self._timeout:g} s")
        except (OSError, httpx.HTTPError) as error:
            reply.fail(str(error) or type(error).__name__)
        return reply.finish(time.monotonic())

    def close(self) -> None:
        """Close what is kept open."""
        self._dialect.close()


class NoDialect:
    """In place of a dialect, for a server that cannot be spoken to."""

    can_stream = False

    def __init__(self, reason: str) -> None:
        self._reason = reason

    async def exchange(self, reply: Reply, text: str, num_tokens: int, stream: bool) -> None:
        """Raises NotApplicableError."""
        raise NotApplicableError(self._reason)

    def close(self) -> None:
        """Nothing is open."""


def speaker_for(service: Service, timeout: float) -> Speaker:
    """One that speaks as the service wants; where nobody can, what it is asked to say raises NotApplicableError with the reason."""
    try:
        return Speaker(_dialect(service), timeout)
    except NotApplicableError as error:
        return Speaker(NoDialect(str(error)), timeout)


def _dialect(service: Service) -> Dialect:
    if service.kind in SPEAK_OPENAI:
        return OpenAIDialect(service)
    if service.kind is Kind.CHATGLM:
        return ChatGLMDialect(service)
    if service.kind is Kind.GRADIO:
        return GradioDialect(service)
    raise NotApplicableError("it speaks neither OpenAI's protocol, nor ChatGLM-6B's, nor Gradio's")


class OpenAIDialect:
    """/v1/chat/completions, or /v1/completions for a model that has no chat format."""

    can_stream = True

    def __init__(self, service: Service) -> None:
        self._service = service
        self._http = HttpClient(service.url, service.headers)
        self._chats = True
        self._answered = False

    async def exchange(self, reply: Reply, text: str, num_tokens: int, stream: bool) -> None:
        """One message.  The first one shows whether the model has a chat format."""
        await self._post(reply, text, num_tokens, stream)
        if reply.status_code in UNSERVED and not self._answered and self._chats:
            self._chats = False
            reply.start()
            await self._post(reply, text, num_tokens, stream)
        self._answered = self._answered or reply.status_code == 200

    async def _post(self, reply: Reply, text: str, num_tokens: int, stream: bool) -> None:
        body: dict[str, Any] = {"model": self._service.model, "max_tokens": num_tokens, "temperature": 0, "stream": stream}
        if self._service.kind is not Kind.OPENAI:  # a length that does not depend on the model's mood
            body |= {"ignore_eos": True} | ({"stream_options": {"include_usage": True}} if stream else {})
        said = {"messages": [{"role": "user", "content": text}]} if self._chats else {"prompt": text}
        path = "/v1/chat/completions" if self._chats else "/v1/completions"
        await self._http.post(path, msgspec.json.encode(body | said), reply)

    def close(self) -> None:
        """Close what is kept open."""
        self._http.close()


class ChatGLMDialect:
    """POST / of api.py: whole answers only."""

    can_stream = False

    def __init__(self, service: Service) -> None:
        self._http = HttpClient(service.url, service.headers)

    async def exchange(self, reply: Reply, text: str, num_tokens: int, stream: bool) -> None:
        """One message.  max_length counts the prompt too."""
        body = {"prompt": text, "history": [], "max_length": len(text) + PROMPT_TOKENS + num_tokens}
        await self._http.post("/", msgspec.json.encode(body), reply)

    def close(self) -> None:
        """Close what is kept open."""
        self._http.close()
