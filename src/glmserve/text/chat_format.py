"""Conversations: what users send, checked, and ChatGLM-6B's way of writing them down.

Other models bring their own format as a template (`bpe_tokenizer`).  Why a system message reads the way it does here is in
docs/decisions/chatglm-system-message.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from glmserve.protocol.errors import InvalidRequestError

ROLES = ("system", "user", "assistant", "tool")
_ROLE_ALIASES = {"developer": "system"}  # OpenAI's newer name


@dataclass(frozen=True)
class ChatMessage:
    """One message; `role` is one of ROLES."""

    role: str
    content: str


def parse_messages(messages: object) -> list[ChatMessage]:
    """OpenAI's list of messages, as parsed from JSON or written in Python, as ChatMessages.

    `content` may be a string or a list of text parts.  Raises InvalidRequestError that names the message and what is wrong.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise InvalidRequestError("messages must be a list of {role, content} objects", "messages")
    if not messages:
        raise InvalidRequestError("messages must not be empty: send at least one message of the user", "messages")
    return [_parse_message(message, index) for index, message in enumerate(messages)]


def messages_from_history(query: str, history: object) -> list[ChatMessage]:
    """ChatGLM-6B's old protocol, a query and the [query, answer] pairs before it, as messages."""
    if history is None:
        history = []
    if not isinstance(history, Sequence) or isinstance(history, str | bytes):
        raise InvalidRequestError("history must be a list of [query, answer] pairs", "history")
    messages: list[ChatMessage] = []
    for index, pair in enumerate(history):
        question, answer = _parse_pair(pair, index)
        messages += [ChatMessage("user", question), ChatMessage("assistant", answer)]
    return [*messages, ChatMessage("user", query)]


def render_chatglm(messages: Sequence[ChatMessage]) -> str:
    """ChatGLM-6B's prompt of a conversation; the last message must be the user's.

    Without history it is the bare question, else rounds counted from 0.  Neighbouring messages of one side are joined by a
    line break, and so is the system text with the first question.
    """
    system, turns = _split_system(messages)
    turns = _join_neighbours(turns)
    if not turns or turns[-1].role != "user":
        raise InvalidRequestError("the last message must be of role user: the model answers it", "messages")
    if turns[0].role != "user":
        raise InvalidRequestError("the conversation must begin with a message of role user, after any of role system", "messages")
    texts = [turn.content for turn in turns]
    if system:
        texts[0] = f"{system}\n{texts[0]}"
    return render_rounds(texts[-1], list(zip(texts[:-1:2], texts[1::2], strict=True)))


def render_rounds(query: str, history: Sequence[tuple[str, str]]) -> str:
    """The released chat format: a question after the (question, answer) rounds before it."""
    if not history:
        return query
    rounds = [f"[Round {index}]\n问：{question}\n答：{answer}\n" for index, (question, answer) in enumerate(history)]
    return "".join(rounds) + f"[Round {len(history)}]\n问：{query}\n答："


def _parse_message(message: object, index: int) -> ChatMessage:
    if isinstance(message, ChatMessage):
        message = {"role": message.role, "content": message.content}
    if not isinstance(message, Mapping):
        raise InvalidRequestError(f"messages[{index}] must be an object with role and content", "messages")
    role = message.get("role")
    role = _ROLE_ALIASES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise InvalidRequestError(f"messages[{index}].role must be one of {', '.join(ROLES)}, got {role!r}", "messages")
    return ChatMessage(role, _parse_content(message.get("content"), index))


def _parse_content(content: Any, index: int) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise InvalidRequestError(f"messages[{index}].content must be a string or a list of text parts", "messages")
    return "\n".join(_parse_part(part, index) for part in content)


def _parse_part(part: object, index: int) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise InvalidRequestError(f"messages[{index}].content: only parts of type text can be read here, got {kind!r}", "messages")


def _parse_pair(pair: object, index: int) -> tuple[str, str]:
    if isinstance(pair, Sequence) and not isinstance(pair, str | bytes) and len(pair) == 2:
        query, answer = pair
        if isinstance(query, str) and isinstance(answer, str):
            return query, answer
    raise InvalidRequestError(f"history[{index}] must be a pair of strings, [query, answer]", "history")


def _split_system(messages: Sequence[ChatMessage]) -> tuple[str, list[ChatMessage]]:
    """The system text at the front, and the turns after it."""
    num_system = next((index for index, message in enumerate(messages) if message.role != "system"), len(messages))
    turns = list(messages[num_system:])
    for message in turns:
        if message.role == "system":
            raise InvalidRequestError("messages of role system must come before all others", "messages")
        if message.role not in ("user", "assistant"):
            raise InvalidRequestError(f"this model knows no messages of role {message.role}", "messages")
    return "\n".join(message.content for message in messages[:num_system] if message.content), turns


def _join_neighbours(turns: Sequence[ChatMessage]) -> list[ChatMessage]:
    sides = groupby(turns, key=lambda turn: turn.role)
    return [ChatMessage(role, "\n".join(turn.content for turn in side)) for role, side in sides]
