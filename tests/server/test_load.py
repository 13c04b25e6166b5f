"""A full server, deadlines, and clients that go away: nothing is kept running for nobody."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.server.serving import ServerInThread, chat_body, eventually

LONG = {"max_tokens": 400}


def last_log(server: ServerInThread) -> dict[str, object]:
    """The newest line of the request log."""
    line: dict[str, object] = json.loads(server.log.getvalue().splitlines()[-1])
    return line


def test_full_of_requests_is_503_with_retry_after(slow: ServerInThread) -> None:
    with ThreadPoolExecutor(3) as threads, httpx.Client(base_url=slow.url, timeout=30) as client:
        running = [threads.submit(client.post, "/v1/chat/completions", json=chat_body(max_tokens=30)) for _ in range(3)]
        eventually(lambda: slow.services.admission.num_requests == 3)
        rejected = slow.http.post("/v1/chat/completions", json=chat_body())
        old = slow.http.post("/chat", json={"prompt": "你好"})
        assert slow.http.get("/health").status_code == 200
        statuses = {future.result().status_code for future in running}
    assert rejected.status_code == old.status_code == 503
    assert int(rejected.headers["retry-after"]) >= 1
    error = rejected.json()["error"]
    assert (error["type"], error["code"]) == ("service_unavailable_error", "server_is_overloaded")
    assert "3 requests" in error["message"]
    assert old.json()["status"] == 503
    assert statuses <= {200, 504}
    assert slow.metric("glmserve:requests_rejected_total") >= 2
    eventually(slow.idle)


def test_full_of_tokens_is_503(slow: ServerInThread) -> None:
    prompt = "q?" * 155
    assert slow.config.max_num_queued_tokens / 2 < slow.count_texts([prompt]) < slow.spec.max_model_len
    with slow.http.stream("POST", "/v1/chat/completions", json=chat_body(prompt, stream=True)) as stream:
        lines = stream.iter_lines()  # kept: httpx closes the stream with its iterator
        next(lines)
        rejected = httpx.post(f"{slow.url}/v1/chat/completions", json=chat_body(prompt))
    assert rejected.status_code == 503
    assert "prompt tokens" in rejected.json()["error"]["message"]
    eventually(slow.idle)


@pytest.mark.parametrize("stream", [False, True])
def test_no_first_token_in_time_is_504(slow: ServerInThread, stream: bool) -> None:
    with slow.http.stream("POST", "/v1/chat/completions", json=chat_body(stream=True, **LONG)) as busy:
        lines = busy.iter_lines()  # kept: httpx closes the stream with its iterator
        next(lines)
        late = httpx.post(f"{slow.url}/v1/chat/completions", json=chat_body(stream=stream), timeout=30)
        assert late.status_code == 504
        assert late.json()["error"]["code"] == "deadline_exceeded"
        assert "1 s" in late.json()["error"]["message"]
        eventually(lambda: slow.client.stats.num_requests_waiting == 0)
        assert last_log(slow)["finish_reason"] == "timeout" and last_log(slow)["status"] == 504
    eventually(slow.idle)


def test_total_deadline(slow: ServerInThread) -> None:
    late = slow.http.post("/v1/chat/completions", json=chat_body(**LONG))
    assert late.status_code == 504
    assert "2.5 s" in late.json()["error"]["message"]
    eventually(slow.idle)


def test_total_deadline_in_a_stream_is_an_error_event(slow: ServerInThread) -> None:
    events = slow.http.post("/v1/chat/completions", json=chat_body(stream=True, **LONG)).text.split("\n\n")
    assert json.loads(events[-3].removeprefix("data: "))["error"]["code"] == "deadline_exceeded"
    assert events[-2] == "data: [DONE]"
    eventually(slow.idle)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/stream", "/chat/stream"])
def test_leaving_a_stream_cancels_it(slow: ServerInThread, path: str) -> None:
    body = chat_body(stream=True, **LONG) | {"prompt": "你好"}
    with slow.http.stream("POST", path, json=body) as stream:
        lines = stream.iter_lines()  # kept: httpx closes the stream with its iterator
        next(lines)
        eventually(lambda: slow.client.stats.num_requests_running == 1)
    eventually(slow.idle)
    assert last_log(slow)["status"] == 499 and last_log(slow)["finish_reason"] == "abort"


@pytest.mark.parametrize(("path", "n"), [("/v1/chat/completions", 1), ("/v1/completions", 2), ("/", 1), ("/chat", 1)])
def test_leaving_while_waiting_cancels_it(slow: ServerInThread, path: str, n: int) -> None:
    def ask() -> None:
        with httpx.Client(timeout=httpx.Timeout(5, read=0.3)) as client, pytest.raises(httpx.ReadTimeout):
            client.post(slow.url + path, json=chat_body(n=n, **LONG) | {"prompt": "你好"})

    asking = threading.Thread(target=ask)
    asking.start()
    eventually(lambda: slow.client.stats.num_requests_running == 1)
    asking.join()
    eventually(slow.idle)
    assert last_log(slow)["status"] == 499
    eventually(lambda: slow.metric("http_requests_total", path=path, status="499"))


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/stream"])
def test_leaving_a_stream_before_it_began_is_no_fault_of_the_server(slow: ServerInThread, path: str) -> None:
    faults = slow.metric("http_requests_total", path=path, status="500")
    with slow.http.stream("POST", "/v1/chat/completions", json=chat_body(stream=True, **LONG)) as busy:
        lines = busy.iter_lines()  # kept: httpx closes the stream with its iterator
        next(lines)
        with httpx.Client(timeout=httpx.Timeout(5, read=0.3)) as client, pytest.raises(httpx.ReadTimeout):
            client.post(slow.url + path, json=chat_body(stream=True, **LONG) | {"prompt": "你好"})
    eventually(slow.idle)
    assert slow.metric("http_requests_total", path=path, status="499") >= 1
    assert slow.metric("http_requests_total", path=path, status="500") == faults


def test_each_end_is_counted_once(slow: ServerInThread) -> None:
    eventually(slow.idle)
    assert slow.metric("glmserve:e2e_request_latency_seconds_count") == slow.log.getvalue().count('"event":"request"')
