"""Conversations as ChatGLM-6B reads them, and what is said to users whose messages cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from glmserve.protocol.errors import InvalidRequestError
from glmserve.text.chat_format import ChatMessage, messages_from_history, parse_messages, render_chatglm
from glmserve.text.chatglm_tokenizer import ChatGLMTokenizer


def chat(*turns: tuple[str, str]) -> str:
    return render_chatglm(parse_messages([{"role": role, "content": content} for role, content in turns]))


def test_golden_conversations(released: ChatGLMTokenizer, golden: Callable[[str], Any]) -> None:
    for case in golden("chat_cases"):
        messages = messages_from_history(case["query"], case["history"])
        assert released.render_chat(messages) == case["prompt"]
        assert released.encode_chat(messages) == case["input_ids"]


def test_a_first_question_stands_bare() -> None:
    assert chat(("user", "你好")) == "你好"


def test_many_neighbours_are_joined_quickly() -> None:
    assert chat(*[("user", "a" * 20)] * 20_000).count("\n") == 19_999


def test_rounds_count_from_zero() -> None:
    assert chat(("user", "a"), ("assistant", "b"), ("user", "c")) == "[Round 0]\n问：a\n答：b\n[Round 1]\n问：c\n答："


def test_system_text_goes_before_the_first_question() -> None:
    assert chat(("system", "S"), ("user", "a")) == "S\na"
    assert chat(("developer", "S"), ("system", "T"), ("user", "a")) == "S\nT\na"
    rounds = chat(("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c"))
    assert rounds == "[Round 0]\n问：S\na\n答：b\n[Round 1]\n问：c\n答："
    assert chat(("system", ""), ("user", "a")) == "a"


def test_neighbours_of_one_side_are_joined() -> None:
    assert chat(("user", "a"), ("user", "b")) == "a\nb"
    assert chat(("user", "a"), ("assistant", "b"), ("assistant", "c"), ("user", "d")).startswith("[Round 0]\n问：a\n答：b\nc\n[Round 1]")


@pytest.mark.parametrize(
    ("turns", "complaint"),
    [
        ([("user", "a"), ("assistant", "b")], "last message must be of role user"),
        ([("system", "a")], "last message must be of role user"),
        ([("assistant", "a"), ("user", "b")], "must begin with a message of role user"),
        ([("user", "a"), ("system", "b"), ("user", "c")], "must come before all others"),
        ([("user", "a"), ("tool", "b"), ("user", "c")], "no messages of role tool"),
    ],
)
def test_orders_that_the_format_cannot_say(turns: list[tuple[str, str]], complaint: str) -> None:
    with pytest.raises(InvalidRequestError, match=complaint) as caught:
        chat(*turns)
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        (None, "must be a list"),
        ("hello", "must be a list"),
        ([], "must not be empty"),
        (["hello"], r"messages\[0\] must be an object"),
        ([{"role": "user", "content": "a"}, {"role": "robot", "content": "b"}], r"messages\[1\].role must be one of .*'robot'"),
        ([{"role": ["user"], "content": "a"}], r"messages\[0\].role"),
        ([{"role": "user"}], r"messages\[0\].content must be a string"),
        ([{"role": "user", "content": 5}], r"messages\[0\].content must be a string"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "only parts of type text.*image_url"),
        ([{"role": "user", "content": ["a"]}], "only parts of type text"),
    ],
)
def test_messages_that_cannot_be_read(messages: object, complaint: str) -> None:
    with pytest.raises(InvalidRequestError, match=complaint):
        parse_messages(messages)


def test_parts_of_text_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert parse_messages([{"role": "user", "content": parts}]) == [ChatMessage("user", "a\nb")]


@pytest.mark.parametrize("history", ["ab", [["a"]], [["a", "b", "c"]], [["a", None]], ["ab"], 5, {"a": "b"}])
def test_histories_that_cannot_be_read(history: object) -> None:
    with pytest.raises(InvalidRequestError, match="history") as caught:
        messages_from_history("q", history)
    assert caught.value.param == "history"


def test_no_history_may_be_null() -> None:
    assert messages_from_history("q", None) == messages_from_history("q", []) == [ChatMessage("user", "q")]
