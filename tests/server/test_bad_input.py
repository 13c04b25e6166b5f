"""Whatever is sent, the answer is a 4xx that says what is wrong, in OpenAI's body, and the service goes on."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from glmserve.models.catalog import read_spec
from tests.server.serving import FIXTURE, MODEL, ServerInThread, chat_body, eventually

BOS = read_spec(FIXTURE).bos_token_id
JSON = {"Content-Type": "application/json"}


def ask(server: ServerInThread, body: Any, path: str = "/v1/chat/completions") -> tuple[int, dict[str, Any]]:
    """Status and error of a body, given as bytes or as JSON; afterwards the server still answers and holds no place."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = server.http.post(path, content=content, headers=JSON)
    assert server.http.post("/v1/chat/completions", json=chat_body(max_tokens=1)).status_code == 200
    assert server.idle()
    return response.status_code, response.json()["error"]


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        (b"{", None, "not JSON"),
        (b"", None, "not JSON"),
        (b"[1, 2]", None, "JSON object"),
        (b"[" * 100_000, None, "not JSON"),
        (b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}', None, "UTF-8"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', None, "not JSON"),
        ({"model": MODEL}, "messages", "missing"),
        (chat_body() | {"messages": []}, "messages", "empty"),
        (chat_body() | {"messages": "hello"}, "messages", "valid"),
        (chat_body() | {"messages": ["hello"]}, "messages", "messages[0]"),
        (chat_body() | {"messages": [{"role": "king", "content": "x"}]}, "messages", "role"),
        (chat_body() | {"messages": [{"role": "user"}]}, "messages", "content"),
        (chat_body() | {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages", "image_url"),
        (chat_body() | {"messages": [{"role": "assistant", "content": "x"}]}, "messages", "user"),
        (chat_body(temperature=float("nan")), "temperature", "finite"),
        (chat_body(temperature=float("inf")), "temperature", "finite"),
        (chat_body(temperature=-1), "temperature", "from 0"),
        (chat_body(temperature="hot"), "temperature", "number"),
        (chat_body(top_p=0), "top_p", "above 0"),
        (chat_body(top_p=1.5), "top_p", "at most 1"),
        (chat_body(max_tokens=0), "max_tokens", "at least 1"),
        (chat_body(max_tokens="5"), "max_tokens", "integer"),
        (chat_body(max_tokens=True), "max_tokens", "integer"),
        (chat_body(max_tokens=100_000), "max_tokens", "room"),
        (chat_body(n=0), "n", "from 1"),
        (chat_body(n=1000), "n", "from 1"),
        (chat_body(stop=["a"] * 17), "stop", "at most 16"),
        (chat_body(stop="x" * 1001), "stop", "1000 characters"),
        (chat_body(top_k=2**64), "top_k", "at most"),
        (chat_body(repetition_penalty=1e-40), "repetition_penalty", "0.01"),
        (chat_body(stop=""), "stop", "empty"),
        (chat_body(stop=[1]), "stop", "string"),
        (chat_body(logprobs=5), "logprobs", "boolean"),
        (chat_body(top_logprobs=3), "top_logprobs", "logprobs"),
        (chat_body(logprobs=True, top_logprobs=21), "top_logprobs", "0 to 20"),
        (chat_body(logit_bias={"x": 1}), "logit_bias", "token ids"),
        (chat_body(logit_bias={"99999999": 1}), "logit_bias", "99999999"),
        (chat_body(stop_token_ids=[-1]), "stop_token_ids", "-1"),
        (chat_body(seed=2**70), "seed", "64 bits"),
        (chat_body(stream="yes"), "stream", "boolean"),
        (chat_body(stream_options={"include_usage": True}), "stream_options", "stream"),
        (chat_body(tools=[{"type": "function"}]), "tools", "tools"),
        (chat_body(response_format={"type": "json_object"}), "response_format", "text"),
        (chat_body(priority=2**40), "priority", "32 bits"),
    ],
)
def test_chat_says_what_is_wrong(fast: ServerInThread, body: Any, param: str | None, says: str) -> None:
    status, error = ask(fast, body)
    assert status == 400
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert says in error["message"]


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({}, "prompt", "missing"),
        ({"prompt": []}, "prompt", "empty"),
        ({"prompt": [[]]}, "prompt", "empty"),
        ({"prompt": [1, "a"]}, "prompt", "valid"),
        ({"prompt": [10**9]}, "prompt", "token ids"),
        ({"prompt": [-1]}, "prompt", "token ids"),
        ({"prompt": [10, 11]}, "prompt", "answer begins"),
        ({"prompt": [10, BOS]}, "prompt", "[gMASK]"),
        ({"prompt": ["x"] * 1000}, "prompt", "at most"),
        ({"prompt": "x", "suffix": "y"}, "suffix", "suffix"),
        ({"prompt": "x", "echo": True, "logprobs": 1}, "echo", "logprobs"),
        ({"prompt": "x", "logprobs": 50}, "logprobs", "0 to 20"),
        ({"prompt": "x", "best_of": 3}, "best_of", "best_of"),
        ({"prompt": ["x"] * 100, "n": 100}, "n", "10000"),
    ],
)
def test_completions_say_what_is_wrong(fast: ServerInThread, body: Any, param: str, says: str) -> None:
    status, error = ask(fast, body, "/v1/completions")
    assert (status, error["param"]) == (400, param)
    assert says in error["message"]


def test_over_long_prompt(fast: ServerInThread) -> None:
    for path, body in (("/v1/chat/completions", chat_body("你好" * 3000)), ("/v1/completions", {"prompt": "你好" * 3000})):
        status, error = ask(fast, body, path)
        assert status == 400
        assert error["code"] == "context_length_exceeded"
        assert str(fast.spec.max_model_len) in error["message"]


def test_unknown_model(fast: ServerInThread) -> None:
    status, error = ask(fast, chat_body() | {"model": "gpt-5"})
    assert (status, error["code"]) == (404, "model_not_found")
    assert "gpt-5" in error["message"] and MODEL in error["message"]


def test_ten_megabytes(fast: ServerInThread) -> None:
    status, error = ask(fast, chat_body("x" * 10_000_000))
    assert (status, error["code"]) == (413, "payload_too_large")
    assert str(fast.config.max_body_bytes) in error["message"]


def test_ten_megabytes_in_chunks_of_unknown_number(fast: ServerInThread) -> None:
    response = fast.http.post("/v1/chat/completions", content=(b"x" * 100_000 for _ in range(100)), headers=JSON)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "payload_too_large"
    assert fast.idle()


def test_too_long_is_refused_before_the_body_is_read(fast: ServerInThread) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", fast.port, timeout=10)
    connection.putrequest("POST", "/v1/chat/completions")
    connection.putheader("Content-Length", str(10**9))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


def test_a_body_that_never_comes_costs_nothing(fast: ServerInThread) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", fast.port, timeout=10)
    connection.putrequest("POST", "/v1/chat/completions")
    connection.putheader("Content-Length", "1000")
    connection.endheaders(b'{"messages"')
    connection.close()
    status, _ = ask(fast, b"{")
    assert status == 400


def test_a_body_that_does_not_come_whole_keeps_nobody_out(slow: ServerInThread) -> None:
    """However long it is announced to be; after a while it is waited for no more."""
    connection = http.client.HTTPConnection("127.0.0.1", slow.port, timeout=10)
    connection.putrequest("POST", "/v1/chat/completions")
    connection.putheader("Content-Length", str(slow.config.max_body_bytes))
    connection.endheaders(b"{")
    eventually(lambda: slow.services.admission.num_requests == 1)
    assert slow.http.post("/v1/chat/completions", json=chat_body(max_tokens=1)).status_code == 200
    response = connection.getresponse()
    assert response.status == 408 and b"did not come whole within 1 s" in response.read()
    connection.close()
    assert slow.idle()


def test_long_input_is_tokenized_beside_the_event_loop(fast: ServerInThread, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fast.tokenizer is not None
    threads = set[str]()
    for name in ("encode", "encode_chat", "decode", "token_text"):
        real = getattr(fast.tokenizer, name)

        def noted(*given: Any, real: Callable[..., Any] = real, **named: Any) -> Any:
            threads.add(threading.current_thread().name.rstrip("_0123456789"))
            return real(*given, **named)

        monkeypatch.setattr(fast.tokenizer, name, noted)
    long_ids = [10] * 5000
    for path, body in (
        ("/tokenize", {"prompt": "x" * 5000, "return_token_strs": True}),
        ("/tokenize", {"prompt": "x" * 5000, "add_special_tokens": False, "return_token_strs": True}),
        ("/detokenize", {"tokens": long_ids}),
        ("/v1/completions", {"prompt": long_ids, "echo": True}),
        ("/", {"prompt": "x", "history": [["", ""]] * 500}),
    ):
        threads.clear()
        fast.http.post(path, json=body)
        assert threads == {"tokenizer"}, path


def test_wrong_paths_and_methods(fast: ServerInThread) -> None:
    missing = fast.http.get("/v2/chat")
    assert missing.status_code == 404 and "/v2/chat" in missing.json()["error"]["message"]
    wrong = fast.http.get("/v1/chat/completions")
    assert wrong.status_code == 405 and "GET" in wrong.json()["error"]["message"]


def test_tokenize_wants_one_of_two(fast: ServerInThread) -> None:
    assert fast.http.post("/tokenize", json={}).status_code == 400
    assert fast.http.post("/detokenize", json={"tokens": [10**7]}).status_code == 400
    assert fast.http.post("/detokenize", json={"tokens": "x"}).status_code == 400
