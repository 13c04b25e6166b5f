"""Health, readiness, metrics, keys; and an engine that dies, hangs or never starts."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from glmserve.engine.fake import FakeOptions
from glmserve.observe.request_record import RequestRecord
from glmserve.protocol.errors import SettingsError
from tests.server.serving import MODEL, ServerInThread, chat_body, eventually

Start = Callable[..., ServerInThread]


def test_health_and_version(fast: ServerInThread) -> None:
    assert fast.http.get("/health").json()["status"] == "ok"
    assert fast.http.get("/version").json()["version"]
    assert fast.http.get("/ready").json()["status"] == "ready"


def test_metrics_count_what_happened(fast: ServerInThread) -> None:
    def counts() -> list[float]:
        return [
            fast.metric("http_requests_total", method="POST", path="/v1/completions", status="200"),
            fast.metric("glmserve:request_success_total", model_name=MODEL, engine="0", finished_reason="length"),
            fast.metric("glmserve:time_to_first_token_seconds_count", model_name=MODEL),
            fast.metric("glmserve:e2e_request_latency_seconds_count"),
            fast.metric("glmserve:request_queue_time_seconds_count"),
            fast.metric("glmserve:request_generation_tokens_sum"),
        ]

    before = counts()
    for stream in (False, True):
        fast.http.post("/v1/completions", json={"prompt": "x", "max_tokens": 3, "stream": stream})
    assert [after - earlier for after, earlier in zip(counts(), before, strict=True)] == [2, 2, 2, 2, 2, 6]


def test_metrics_show_the_engines_side(fast: ServerInThread) -> None:
    text = fast.http.get("/metrics").text
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "generation_tokens_total", "engine_restarts_total"):
        assert f'glmserve:{name}{{engine="0",model_name="{MODEL}"}}' in text
    assert fast.metric("glmserve:generation_tokens_total") > 0


def test_unknown_paths_make_no_labels(fast: ServerInThread) -> None:
    fast.http.get("/made/up/by/a/client")
    assert "made/up" not in fast.http.get("/metrics").text
    assert fast.metric("http_requests_total", path="other", status="404") >= 1


def test_the_request_log_tells_of_a_request(fast: ServerInThread) -> None:
    fast.http.post("/v1/completions", json={"prompt": "你好", "max_tokens": 3}, headers={"X-Request-Id": "logged"})
    line = json.loads(fast.log.getvalue().splitlines()[-1])
    assert line["request_id"] == "cmpl-logged" and line["status"] == 200 and line["finish_reason"] == "length"
    assert line["completion_tokens"] == 3 and line["prompt_tokens"] == fast.count_texts(["你好"])
    assert line["queue_seconds"] >= 0 and line["decode_seconds"] >= 0 and line["e2e_seconds"] >= line["first_token_seconds"]
    assert "你好" not in fast.log.getvalue()


def test_api_keys(start_server: Start, answer_ids: tuple[int, ...]) -> None:
    server = start_server(FakeOptions(alphabet=answer_ids), server={"api_key": ("secret", "other", "sécret")})
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret-not"}):
        refused = server.http.post("/v1/chat/completions", json=chat_body(), headers=headers)
        assert refused.status_code == 401
        assert refused.json()["error"]["code"] == "invalid_api_key"
        assert refused.headers["www-authenticate"] == "Bearer"
    assert server.http.post("/", json={"prompt": "x"}).json()["status"] == 401
    for key in ("secret", "other"):
        assert server.http.post("/v1/chat/completions", json=chat_body(), headers={"Authorization": f"Bearer {key}"}).status_code == 200
    for header in ("bearer secret", "BEARER  other", "Bearer sécret".encode()):
        assert server.http.get("/v1/models", headers={"Authorization": header}).status_code == 200  # type: ignore[dict-item]
    assert [server.http.get(path).status_code for path in ("/health", "/ready", "/metrics")] == [200, 200, 200]
    assert server.http.get("/v1/models").status_code == 401


def test_while_loading_it_says_so(start_server: Start, answer_ids: tuple[int, ...]) -> None:
    server = start_server(FakeOptions(alphabet=answer_ids, load_seconds=1.5), wait=False)
    eventually(lambda: server.server.started)
    eventually(lambda: "pretending to load" in server.http.get("/ready").text)
    ready = server.http.get("/ready")
    assert (ready.status_code, ready.json()["engine"]) == (503, "starting")
    assert server.http.get("/health").status_code == 200
    early = server.http.post("/v1/chat/completions", json=chat_body())
    assert early.status_code == 503 and "retry-after" in early.headers
    assert early.json()["error"]["code"] == "engine_unavailable"
    server.wait_ready()
    assert server.http.post("/v1/chat/completions", json=chat_body()).status_code == 200


def test_a_killed_engine_ends_requests_and_comes_back(start_server: Start, answer_ids: tuple[int, ...]) -> None:
    server = start_server(FakeOptions(alphabet=answer_ids[:-1], step_seconds=0.02))
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=chat_body(stream=True, max_tokens=400), timeout=30) as stream:
        lines = stream.iter_lines()
        next(lines)
        os.kill(server.client.engine_pid or 0, signal.SIGKILL)
        events = [line for line in lines if line]
    error = json.loads(events[-2].removeprefix("data: "))["error"]
    assert error["code"] == "engine_unavailable" and "signal 9" in error["message"]
    assert events[-1] == "data: [DONE]"
    server.wait_ready()
    assert server.http.post("/v1/chat/completions", json=chat_body(max_tokens=2)).status_code == 200
    assert server.metric("glmserve:engine_restarts_total") == 1
    assert server.metric("glmserve:request_success_total", finished_reason="error") == 1
    eventually(server.idle)


def test_a_hung_engine_is_noticed_and_replaced(start_server: Start, answer_ids: tuple[int, ...], tmp_path: Path) -> None:
    options = FakeOptions(alphabet=answer_ids, fault="hang", fault_once_file=str(tmp_path / "hung"))
    server = start_server(options, server={"engine_hang_timeout": 1.0})
    waiting = server.http.post("/v1/chat/completions", json=chat_body())
    assert waiting.status_code == 503
    assert "hung" in waiting.json()["error"]["message"]
    server.wait_ready()
    assert server.http.post("/v1/chat/completions", json=chat_body()).status_code == 200


def test_an_engine_that_cannot_start_ends_the_server(start_server: Start) -> None:
    server = start_server(FakeOptions(load_error="12 GiB of memory are missing"), wait=False)
    eventually(lambda: server.server.failure)
    assert "12 GiB" in str(server.server.failure)


def test_token_ids_alone_without_a_tokenizer(start_server: Start, answer_ids: tuple[int, ...]) -> None:
    server = start_server(FakeOptions(alphabet=answer_ids), engine={"skip_tokenizer_init": True})
    prompt = [10, server.spec.gmask_token_id, server.spec.bos_token_id]
    body = {"prompt": prompt, "max_tokens": 3, "logprobs": 1}
    choice = server.http.post("/v1/completions", json=body).json()["choices"][0]
    assert choice["token_ids"] == list(answer_ids[:3]) and choice["text"] == ""
    assert choice["logprobs"]["tokens"][0] == f"token_id:{answer_ids[0]}"
    events = server.http.post("/v1/completions", json=body | {"stream": True, "logprobs": None}).text.split("\n\n")
    choices = [json.loads(event[6:])["choices"][0] for event in events if event.startswith("data: {")]
    assert [token_id for choice in choices for token_id in choice["token_ids"]] == list(answer_ids[:3])
    response = server.http.post("/v1/completions", json=body | {"stop": "x"})
    assert response.status_code == 400 and "stop strings" in response.json()["error"]["message"]
    for path, refused in (("/v1/completions", {"prompt": "text"}), ("/v1/chat/completions", chat_body()), ("/tokenize", {"prompt": "x"})):
        response = server.http.post(path, json=refused)
        assert response.status_code == 400 and "tokenizer" in response.json()["error"]["message"]


@pytest.mark.parametrize("interval", [0.0, 0.02])
def test_tokens_that_are_ready_together_travel_together(start_server: Start, answer_ids: tuple[int, ...], interval: float) -> None:
    server = start_server(FakeOptions(alphabet=answer_ids[:-1], tokens_per_step=50), server={"stream_interval": interval})
    events = server.http.post("/v1/completions", json={"prompt": "x", "max_tokens": 400, "stream": True}).text.split("\n\n")
    assert len(events) < 40
    assert json.loads(events[-3][6:])["choices"][0]["finish_reason"] == "length"


def test_a_fault_of_our_own_is_a_500_in_the_same_body(fast: ServerInThread, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(fast.services.generator, "start", broken)
    failed = fast.http.post("/v1/chat/completions", json=chat_body())
    assert failed.status_code == 500 and failed.json()["error"]["type"] == "internal_server_error"
    monkeypatch.undo()
    assert fast.http.post("/v1/chat/completions", json=chat_body()).status_code == 200
    assert fast.idle()


def test_time_in_which_requests_are_read_and_tokenized_is_told_from_time_without_any(
    start_server: Start, answer_ids: tuple[int, ...]
) -> None:
    server = start_server(FakeOptions(alphabet=answer_ids))

    def idle(cause: str) -> float:
        return server.metric("glmserve:gpu_time_seconds_total", activity=f"idle_{cause}")

    eventually(lambda: idle("no_work") > 0)
    assert idle("http") == 0 and idle("tokenizing") == 0
    server.http.post("/v1/completions", json={"prompt": "你好 " * 20_000, "max_tokens": 1})  # too long: it is refused once it is tokenized
    eventually(lambda: idle("tokenizing") > 0 and idle("http") > 0)
    assert idle("no_work") > idle("http")


def test_slow_requests_are_listed_with_the_reason(slow: ServerInThread) -> None:
    slow.http.post("/v1/completions", json={"prompt": "x", "max_tokens": 20}, headers={"X-Request-Id": "slow-one"})
    slow.http.post("/v1/completions", json={"prompt": "x", "max_tokens": 1}, headers={"X-Request-Id": "fast-one"})
    listed = slow.http.get("/slow", params={"over": 0.3, "last": 5}).json()["requests"]
    assert listed[0]["request_id"] == "cmpl-slow-one"
    assert listed[0]["cause"] == "decode" and "20 tokens at" in listed[0]["why"]
    assert [line["request_id"] for line in slow.http.get("/slow?over=0&last=1").json()["requests"]] == ["cmpl-fast-one"]
    refused = slow.http.get("/slow?over=2s")
    assert refused.status_code == 400
    assert refused.json()["error"]["message"] == "over: input should be a valid number, unable to parse string as a number"
    assert refused.json()["error"]["param"] == "over"


def test_refused_requests_have_a_line(fast: ServerInThread) -> None:
    def last_line() -> dict[str, object]:
        return json.loads(fast.log.getvalue().splitlines()[-1])  # type: ignore[no-any-return]

    fast.http.post("/chat", json={}, headers={"X-Request-Id": "no-prompt"})
    assert (last_line()["event"], last_line()["request_id"], last_line()["status"]) == ("refused", "no-prompt", 400)
    fast.http.post("/v1/completions", json={"prompt": "x", "max_tokens": 10**6})
    assert last_line()["status"] == 400 and "max_tokens" in str(last_line()["error"])
    fast.http.post("/v1/completions", content=b" " * (fast.config.max_body_bytes + 1))
    assert (last_line()["status"], last_line()["code"]) == (413, "payload_too_large")
    before = fast.log.getvalue()
    fast.http.get("/nothing")
    assert fast.log.getvalue() == before


def test_a_request_that_failed_on_its_way_has_one_line(slow: ServerInThread) -> None:
    before = slow.log.getvalue()
    response = slow.http.post("/v1/completions", json={"prompt": "x", "max_tokens": 150})
    assert response.status_code == 504
    [line] = slow.log.getvalue().removeprefix(before).splitlines()
    assert json.loads(line)["status"] == 504 and json.loads(line)["cause"] == "deadline"


def test_a_client_s_trace_reaches_the_record(start_server: Start, answer_ids: tuple[int, ...]) -> None:
    server = start_server(FakeOptions(alphabet=answer_ids))
    records: list[RequestRecord] = []
    server.services.request_log.traces = SimpleNamespace(add=records.append, close=lambda: records.clear())
    header = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    server.http.post("/v1/chat/completions", json=chat_body(), headers={"traceparent": header})
    server.http.post("/v1/completions", json={"prompt": "x", "max_tokens": 1})
    assert [(record.operation, record.traceparent) for record in records] == [("chat", header), ("text_completion", None)]
    server.server.should_exit = True
    eventually(lambda: not records)  # closed with the server


def test_traces_without_the_extra_are_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "glmserve.observe.traces", None)
    with pytest.raises(SettingsError, match=r"pip install 'glmserve\[otel\]'"):
        ServerInThread(FakeOptions(), server={"otlp_traces_endpoint": "http://localhost:4318/v1/traces"})
