"""`--batching serial`: a request is begun when the one before it has been answered, whatever becomes of that one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from glmserve.engine.fake import FakeOptions
from glmserve.protocol.errors import DeadlineExceededError
from glmserve.server.admission import Admission
from tests.server.serving import ServerInThread, chat_body, eventually


@pytest.fixture(scope="module")
def serial(start_server: Callable[..., ServerInThread], answer_ids: tuple[int, ...]) -> ServerInThread:
    """Its engine would take many at a time."""
    options = FakeOptions(alphabet=answer_ids[:-1], step_seconds=0.01)
    return start_server(options, engine={"batching": "serial"}, server={"first_token_timeout": 5.0})


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/chat"])
def test_the_next_one_waits_for_the_answer(serial: ServerInThread, path: str) -> None:
    admission = serial.services.admission
    with ThreadPoolExecutor(1) as threads:
        with serial.http.stream("POST", "/v1/chat/completions", json=chat_body(stream=True, max_tokens=400)) as stream:
            lines = stream.iter_lines()  # kept: httpx closes the stream with its iterator
            next(lines)
            second = threads.submit(httpx.post, serial.url + path, json=chat_body(max_tokens=3) | {"prompt": "你好", "max_length": 40})
            eventually(lambda: admission.num_requests == 2)
            for _ in range(5):
                next(lines)
            assert serial.client.num_open_requests == 1, "the engine does not know of the second one"
            assert not second.done()
        assert second.result().status_code == 200, "the first one went away, which ends its turn"
    eventually(serial.idle)


def test_the_wait_for_a_turn_is_told_as_such(serial: ServerInThread) -> None:
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(httpx.post, f"{serial.url}/v1/chat/completions", json=chat_body(max_tokens=60))
        eventually(lambda: serial.client.num_open_requests == 1)
        serial.http.post("/v1/chat/completions", json=chat_body(max_tokens=2), headers={"X-Request-Id": "second"})
        first.result()
    line = next(line for line in serial.http.get("/slow?over=0").json()["requests"] if line["request_id"] == "chatcmpl-second")
    assert line["cause"] == "turn" and "this server answers one request at a time" in line["why"]
    assert line["turn_seconds"] > 0.5 * line["e2e_seconds"] > line["admission_seconds"] >= 0


def test_everybody_has_a_turn(serial: ServerInThread) -> None:
    def ask(number: int) -> int:
        body = chat_body(max_tokens=2) if number % 3 else chat_body("long " * 5000)  # that one is refused
        return httpx.post(f"{serial.url}/v1/chat/completions", json=body, timeout=30).status_code

    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(ask, range(6))) == [400, 200, 200, 400, 200, 200]
    eventually(serial.idle)


async def test_a_turn_that_does_not_come_in_time() -> None:
    admission = Admission(10, 1000, one_at_a_time=True)
    first, second, third = (admission.reserve(0) for _ in range(3))
    await first.wait_turn(1.0)
    with pytest.raises(DeadlineExceededError, match="one at a time"):
        await second.wait_turn(0.01)
    second.release()
    waiting = asyncio.create_task(third.wait_turn(10.0))
    await asyncio.sleep(0)
    assert not third.has_turn, "the second one had no turn to give"
    first.release()
    await waiting
    assert third.has_turn


async def test_otherwise_nobody_waits() -> None:
    admission = Admission(10, 1000)
    for place in [admission.reserve(0) for _ in range(3)]:
        await place.wait_turn(0.0)
