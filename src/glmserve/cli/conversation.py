"""One conversation with a server over /v1/chat/completions: keeps the turns, streams the answers.  Knows no terminal."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from typing import Any

import httpx

from glmserve.config import ChatConfig
from glmserve.protocol.errors import EngineUnavailableError, InvalidRequestError


class Conversation:
    """Talks to the server at `url`; `messages` holds the turns so far in OpenAI's form."""

    def __init__(self, url: str, settings: ChatConfig) -> None:
        """Raises EngineUnavailableError where no server answers, InvalidRequestError where it wants another key."""
        headers = {"Authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=httpx.Timeout(10.0, read=None))
        self._settings = settings
        self.messages: list[dict[str, str]] = []
        self.start_again()
        self.model = self._first_model()

    def start_again(self) -> None:
        """Forget all turns."""
        self.messages = [{"role": "system", "content": self._settings.system}] if self._settings.system else []

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def ask(self, text: str) -> Generator[str, None, None]:
        """The answer to `text`, piece by piece.

        A consumer that stops early ends the answer on the server too, and what was said so far stays in the conversation.
        A turn that fails before its first word leaves no trace.
        """
        turn = [*self.messages, {"role": "user", "content": text}]
        answer = ""
        try:
            for piece in self._stream(turn):
                answer += piece
                yield piece
        finally:
            if answer:
                self.messages = [*turn, {"role": "assistant", "content": answer}]

    def _stream(self, messages: list[dict[str, str]]) -> Iterator[str]:
        given = self._settings.model_dump(include={"temperature", "top_p", "max_tokens"}, exclude_none=True)
        body = {"model": self.model, "messages": messages, "stream": True, **given}
        try:
            with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
                _raise_for_refusal(response)
                for line in response.iter_lines():
                    if line.startswith("data: {"):
                        yield _piece(json.loads(line.removeprefix("data: ")))
        except httpx.HTTPError as error:
            raise EngineUnavailableError(f"the connection to {self._http.base_url} broke: {error}") from error

    def _first_model(self) -> str:
        try:
            response = self._http.get("/v1/models")
            _raise_for_refusal(response)
            return str(response.json()["data"][0]["id"])
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise EngineUnavailableError(
                f"no server answers at {self._http.base_url} ({error}).\n"
                "  Start one with `glmserve serve demo`, or talk to a model without a server: `glmserve chat demo`."
            ) from error
        except (ValueError, LookupError, TypeError) as error:
            raise EngineUnavailableError(f"what answers at {self._http.base_url} is not an OpenAI-compatible server.") from error


def _raise_for_refusal(response: httpx.Response) -> None:
    """Raise the server's own words where it refused."""
    if response.is_success:
        return
    response.read()
    try:
        message = _message(response.json())
    except (ValueError, AttributeError):  # a proxy's own page
        message = f"the server answered {response.status_code} {response.reason_phrase}"
    if response.status_code == 401:
        message += "\n  Give the server's key with --api-key or GLMSERVE_API_KEY."
    raise InvalidRequestError(message) if response.is_client_error else EngineUnavailableError(message)


def _piece(event: dict[str, Any]) -> str:
    if "error" in event:  # the answer began and could not be finished
        raise EngineUnavailableError(_message(event))
    choices = event.get("choices")
    return (choices[0]["delta"].get("content") or "") if choices else ""


def _message(body: Any) -> str:
    error = body.get("error", body)
    return str(error.get("message", error) if isinstance(error, dict) else error)
