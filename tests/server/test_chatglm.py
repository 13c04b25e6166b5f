"""ChatGLM-6B's own protocol, as its clients of 2023 speak it."""

from __future__ import annotations

import json
from datetime import datetime
from itertools import pairwise
from typing import Any

import pytest

from tests.server.serving import ServerInThread


def events(text: str) -> list[dict[str, Any]]:
    """The JSON of each event."""
    return [json.loads(line.removeprefix("data: ")) for line in text.split("\n\n") if line]


def test_api_answers_as_the_released_file(fast: ServerInThread) -> None:
    body = {"prompt": "你好", "history": [["问", "答"]], "max_length": 200, "top_p": 0.7, "temperature": 0.95}
    response = fast.http.post("/", json=body)
    assert response.status_code == 200
    answer = response.json()
    assert list(answer) == ["response", "history", "status", "time"]
    assert answer["history"] == [["问", "答"], ["你好", answer["response"]]]
    assert answer["status"] == 200
    datetime.strptime(answer["time"], "%Y-%m-%d %H:%M:%S")


@pytest.mark.parametrize("more", [{}, {"history": None, "max_length": None, "top_p": None, "temperature": None}])
def test_missing_fields_take_the_servers_defaults(fast: ServerInThread, more: dict[str, Any]) -> None:
    answer = fast.http.post("/", json={"prompt": "你好"} | more).json()
    assert answer["history"] == [["你好", answer["response"]]]


def test_zero_takes_the_default_as_in_the_released_file(fast: ServerInThread) -> None:
    body = {"prompt": "你好", "history": [], "max_length": 0, "top_p": 0, "temperature": 0}
    assert fast.http.post("/", json=body).status_code == 200


def test_max_length_counts_the_prompt(fast: ServerInThread) -> None:
    num_prompt = fast.count_texts(["你好"])
    fast.log.truncate(0)
    fast.log.seek(0)
    assert fast.http.post("/", json={"prompt": "你好", "max_length": num_prompt + 2}).status_code == 200
    assert json.loads(fast.log.getvalue().splitlines()[-1])["completion_tokens"] == 2
    error = fast.http.post("/", json={"prompt": "你好", "max_length": num_prompt})
    assert error.status_code == 400 and "max_length" in error.json()["error"]


def test_stream_gives_all_of_the_text_so_far(fast: ServerInThread) -> None:
    whole = fast.http.post("/", json={"prompt": "你好", "history": [["问", "答"]]}).json()
    seen = events(fast.http.post("/stream", json={"prompt": "你好", "history": [["问", "答"]]}).text)
    assert all(list(event) == ["response", "history", "status", "time", "finished"] for event in seen)
    assert [event["finished"] for event in seen] == [False] * (len(seen) - 1) + [True]
    assert seen[-1]["response"] == whole["response"] and seen[-1]["history"] == whole["history"]
    assert all(later["response"].startswith(earlier["response"]) for earlier, later in pairwise(seen))
    assert all(event["history"] == [["问", "答"], ["你好", event["response"]]] for event in seen)


def test_chat_and_its_stream(fast: ServerInThread) -> None:
    answer = fast.http.post("/chat", json={"prompt": "你好"}).json()
    assert list(answer) == ["response"] and answer["response"]
    seen = events(fast.http.post("/chat/stream", json={"prompt": "你好"}).text)
    assert "".join(event["delta"] for event in seen) == seen[-1]["response"] == answer["response"]
    assert [event["finished"] for event in seen] == [False] * (len(seen) - 1) + [True]


@pytest.mark.parametrize("path", ["/", "/stream", "/chat", "/chat/stream"])
@pytest.mark.parametrize("body", [{}, {"prompt": ""}, {"prompt": None}])
def test_prompt_required(fast: ServerInThread, path: str, body: dict[str, Any]) -> None:
    response = fast.http.post(path, json=body)
    assert response.status_code == 400
    assert response.json() == {"error": "prompt required", "detail": "prompt required", "status": 400}


@pytest.mark.parametrize(
    "body",
    [{"prompt": 5}, {"prompt": "x", "history": "y"}, {"prompt": "x", "history": [["a"]]}, {"prompt": "x", "history": [["a", 1]]},
     {"prompt": "x", "max_length": -5}, {"prompt": "x", "top_p": 7.0}, {"prompt": "x", "temperature": "hot"}],
)  # fmt: skip
def test_errors_have_the_true_status(fast: ServerInThread, body: dict[str, Any]) -> None:
    response = fast.http.post("/", json=body)
    assert response.status_code == response.json()["status"] == 400
    assert response.json()["error"]
    assert fast.http.post("/", content=b"{").status_code == 400
    assert fast.idle()
