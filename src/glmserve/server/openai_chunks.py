"""OpenAI's streamed chunks and whole answers, for chat and for completions.

A token's chunk is bytes from a template made once a request: only the text in it is encoded.  What is rarer (the first and
last chunk, logprobs, token ids) goes through the encoder as a whole.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from glmserve.protocol.errors import GlmserveError
from glmserve.server.bodies import WholeChoice, usage_body
from glmserve.server.errors import openai_body
from glmserve.server.logprobs import CompletionLogprobs, chat_logprobs
from glmserve.server.sse import encode_json, event
from glmserve.text.answer import ChoiceDelta, TextAnswer, Usage
from glmserve.text.tokenizer import Tokenizer

DONE = b"data: [DONE]\n\n"
_TEXT_MARK = "\x00text\x00"


@dataclass(frozen=True)
class AnswerFrame:
    """What all chunks of one answer share, and what the client asked to see."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    tokenizer: Tokenizer | None
    num_top: int | None = None  # best tokens a step; None is no logprobs
    with_token_ids: bool = False
    with_usage: bool = False  # a last chunk with the usage
    with_running_usage: bool = False  # and with each chunk

    def head(self, kind: str) -> dict[str, Any]:
        """The fields before `choices`."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


class _OpenAIStream(ABC):
    """The common half of both writers: they differ in how a choice is written."""

    kind: str

    def __init__(self, frame: AnswerFrame, answer: TextAnswer) -> None:
        self._frame = frame
        self._answer = answer
        self._plain = frame.num_top is None and not frame.with_token_ids and not frame.with_running_usage
        self._templates = [self._template(index) for index in range(answer.num_choices)]

    def _template(self, index: int) -> tuple[bytes, bytes]:
        """The bytes before and after the text of a plain chunk."""
        chunk = self._chunk([self._choice(ChoiceDelta(index, _TEXT_MARK, []))])
        head, tail = event(chunk).split(encode_json(_TEXT_MARK))
        return head, tail

    def events(self, deltas: list[ChoiceDelta]) -> bytes:
        """The chunks of what is new."""
        parts: list[bytes] = []
        for delta in deltas:
            if self._plain and delta.finish_reason is None:
                if delta.text:
                    head, tail = self._templates[delta.index]
                    parts += (self._first(delta.index), head, encode_json(delta.text), tail)
            elif delta.text or delta.finish_reason is not None or delta.token_ids:
                parts += (self._first(delta.index), event(self._chunk([self._choice(delta)])))
        return b"".join(parts)

    def end(self, usage: Usage) -> bytes:
        """The usage where it was asked for, and the mark that ends the stream."""
        if not self._frame.with_usage:
            return DONE
        return event(self._frame.head(self.kind) | {"choices": [], "usage": usage_body(usage)}) + DONE

    def failed(self, error: GlmserveError) -> bytes:
        """The error as an event; OpenAI's clients raise it."""
        return event(openai_body(error)) + DONE

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        chunk = self._frame.head(self.kind) | {"system_fingerprint": self._frame.system_fingerprint, "choices": choices}
        if self._frame.with_running_usage:
            chunk["usage"] = usage_body(self._answer.usage)
        elif self._frame.with_usage:
            chunk["usage"] = None
        return chunk

    @abstractmethod
    def _first(self, index: int) -> bytes:
        """What goes before the first chunk of a choice."""

    @abstractmethod
    def _choice(self, delta: ChoiceDelta) -> dict[str, Any]:
        """The choice of one chunk."""

    def _choice_end(self, delta: ChoiceDelta) -> dict[str, Any]:
        ids = {"token_ids": delta.token_ids} if self._frame.with_token_ids else {}
        return {"finish_reason": delta.finish_reason, "stop_reason": delta.stop_reason, **ids}


class ChatStream(_OpenAIStream):
    """Chunks of /v1/chat/completions."""

    kind = "chat.completion.chunk"

    def __init__(self, frame: AnswerFrame, answer: TextAnswer) -> None:
        super().__init__(frame, answer)
        self._begun: set[int] = set()

    def _first(self, index: int) -> bytes:
        if index in self._begun:
            return b""
        self._begun.add(index)
        delta = {"role": "assistant", "content": ""}
        return event(self._chunk([{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}]))

    def _choice(self, delta: ChoiceDelta) -> dict[str, Any]:
        logprobs = None
        if self._frame.num_top is not None and delta.logprobs is not None:
            logprobs = chat_logprobs(self._frame.tokenizer, delta.logprobs, self._frame.num_top)
        content = {"content": delta.text} if delta.text or delta.finish_reason is None else {}
        return {"index": delta.index, "delta": content, "logprobs": logprobs} | self._choice_end(delta)


class CompletionStream(_OpenAIStream):
    """Chunks of /v1/completions; `echoes` are the prompts' texts, one a choice, or empty."""

    kind = "text_completion"

    def __init__(self, frame: AnswerFrame, answer: TextAnswer, echoes: list[str]) -> None:
        self._echoes = dict(enumerate(echoes))
        self._logprobs = [CompletionLogprobs(frame.tokenizer, frame.num_top or 0) for _ in range(answer.num_choices)]
        super().__init__(frame, answer)

    def _first(self, index: int) -> bytes:
        echo = self._echoes.pop(index, None)
        return event(self._chunk([self._choice(ChoiceDelta(index, echo, []))])) if echo else b""

    def _choice(self, delta: ChoiceDelta) -> dict[str, Any]:
        logprobs = None
        if self._frame.num_top is not None and delta.logprobs is not None:
            logprobs = self._logprobs[delta.index].write(delta.logprobs)
        return {"index": delta.index, "text": delta.text, "logprobs": logprobs} | self._choice_end(delta)


def whole_chat(frame: AnswerFrame, choices: list[WholeChoice], answer: TextAnswer) -> dict[str, Any]:
    """The answer of /v1/chat/completions."""
    written = []
    for index, choice in enumerate(choices):
        logprobs = None if frame.num_top is None else chat_logprobs(frame.tokenizer, choice.logprobs, frame.num_top)
        message = {"role": "assistant", "content": choice.text}
        written.append({"index": index, "message": message, "logprobs": logprobs} | _whole_end(frame, choice))
    return _whole(frame, "chat.completion", written, answer)


def whole_completion(frame: AnswerFrame, choices: list[WholeChoice], answer: TextAnswer, echoes: list[str]) -> dict[str, Any]:
    """The answer of /v1/completions."""
    written = []
    for index, choice in enumerate(choices):
        logprobs = None if frame.num_top is None else CompletionLogprobs(frame.tokenizer, frame.num_top).write(choice.logprobs)
        text = (echoes[index] if echoes else "") + choice.text
        written.append({"index": index, "text": text, "logprobs": logprobs} | _whole_end(frame, choice))
    return _whole(frame, "text_completion", written, answer)


def _whole_end(frame: AnswerFrame, choice: WholeChoice) -> dict[str, Any]:
    ids = {"token_ids": choice.token_ids} if frame.with_token_ids else {}
    return {"finish_reason": choice.finish_reason, "stop_reason": choice.stop_reason, **ids}


def _whole(frame: AnswerFrame, kind: str, choices: list[dict[str, Any]], answer: TextAnswer) -> dict[str, Any]:
    body = frame.head(kind) | {"system_fingerprint": frame.system_fingerprint, "choices": choices, "usage": usage_body(answer.usage)}
    if frame.with_token_ids:
        body["prompt_token_ids"] = answer.prompt_token_ids[0] if len(answer.prompt_token_ids) == 1 else answer.prompt_token_ids
    return body
