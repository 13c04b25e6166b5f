"""What is known of a server that is well, loading, away, or no such server at all."""

from __future__ import annotations

import httpx
import pytest

from glmserve.tools.monitor.watched_server import State, WatchedServer
from tests.tools.monitor.scripted_metrics import Clock, MetricsServer


async def test_figures_are_those_of_the_last_seconds(server: MetricsServer, clock: Clock) -> None:
    server.values = {'num_requests_running{model_name="glm"}': 3, "generation_tokens_total": 1000}
    watched = WatchedServer(server.url, clock)
    async with httpx.AsyncClient() as http:
        await watched.look(http)
        clock.now += 4
        server.grow(generation_tokens_total=200)
        await watched.look(http)
    values = watched.values()
    assert watched.state is State.READY and (watched.model, watched.engine) == ("glm", "glmserve")
    assert values["requests_running"] == 3
    assert values["tokens_per_second"] == 50
    assert values["gpu_busy"] is None and "gpu_busy" in watched.unreported()


async def test_slow_requests_are_asked_for(server: MetricsServer, clock: Clock) -> None:
    server.values, server.slow = {"num_requests_running": 0}, [{"request_id": "a", "why": "it was long"}]
    watched = WatchedServer(server.url, clock, slow_over=1.5)
    async with httpx.AsyncClient() as http:
        await watched.look(http)
    assert watched.slow == server.slow
    assert "/slow?over=1.5&last=20" in server.asked


@pytest.mark.parametrize(
    ("answer", "words"),
    [((401, {}), "--api-key"), ((200, {"requests": 3}), "another one"), ((200, []), "another one"), (None, "has no GET /slow")],
)
async def test_why_there_are_no_slow_requests(server: MetricsServer, clock: Clock, answer: tuple[int, object] | None, words: str) -> None:
    server.values, server.slow_answer, server.slow = {"num_requests_running": 0}, answer, None
    watched = WatchedServer(server.url, clock)
    async with httpx.AsyncClient() as http:
        await watched.look(http)
    assert watched.slow is None and words in watched.slow_reason


async def test_a_server_of_another_make(vllm: MetricsServer, clock: Clock) -> None:
    vllm.values = {"num_requests_waiting": 2}
    watched = WatchedServer(vllm.url, clock)
    async with httpx.AsyncClient() as http:
        await watched.look(http)
    assert watched.state is State.READY and watched.engine == "vllm" and watched.slow is None
    assert watched.values()["requests_waiting"] == 2


async def test_loading_is_told_with_its_reason(server: MetricsServer, clock: Clock) -> None:
    server.values, server.ready = {"num_requests_running": 0}, (503, {"reason": "the engine is starting (weights)"})
    watched = WatchedServer(server.url, clock)
    async with httpx.AsyncClient() as http:
        await watched.look(http)
    assert (watched.state, watched.reason) == (State.NOT_READY, "the engine is starting (weights)")
    assert watched.reachable


async def test_a_server_that_goes_and_comes_back(server: MetricsServer, clock: Clock) -> None:
    server.values = {"generation_tokens_total": 1000}
    watched = WatchedServer(server.url, clock)
    async with httpx.AsyncClient() as http:
        await watched.look(http)
        away = WatchedServer("http://127.0.0.1:9", clock)
        await away.look(http)
        assert away.state is State.UNREACHABLE and away.reason and set(away.values().values()) == {None}
        url, watched.url = watched.url, "http://127.0.0.1:9"
        clock.now += 5
        await watched.look(http)
        assert watched.state is State.UNREACHABLE and watched.since == clock.now
        watched.url = url
        clock.now += 600
        server.values = {"generation_tokens_total": 50}
        await watched.look(http)
        assert watched.state is State.READY and watched.values()["tokens_per_second"] is None  # nobody knows what was in between
        clock.now += 2
        server.grow(generation_tokens_total=20)
        await watched.look(http)
    assert watched.values()["tokens_per_second"] == 10


@pytest.mark.parametrize(("page", "words"), [((404, ""), "answers 404"), ((200, "<html>{"), "not Prometheus"), ((200, ""), "empty page")])
async def test_what_has_no_metrics(server: MetricsServer, clock: Clock, page: tuple[int, str], words: str) -> None:
    server.page = page
    watched = WatchedServer(server.url, clock)
    async with httpx.AsyncClient() as http:
        await watched.look(http)
    assert watched.state is State.NO_METRICS and words in watched.reason
    assert not watched.reachable


@pytest.mark.parametrize("answer", [(503, {}), (503, {"reason": 1}), (500, {})])
async def test_an_odd_ready_is_survived(server: MetricsServer, clock: Clock, answer: tuple[int, dict[str, object]]) -> None:
    server.values, server.ready = {"num_requests_running": 0}, answer
    watched = WatchedServer(server.url, clock)
    async with httpx.AsyncClient() as http:
        await watched.look(http)
    assert watched.reachable
