"""The live page, driven as a person would: what stands on the screen is what the servers said."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from textual.widgets import DataTable

from glmserve.observe.alert_file import parse_alert_rules
from glmserve.observe.readings import History
from glmserve.observe.signals import read_all
from glmserve.tools.monitor.page import MonitorPage
from glmserve.tools.monitor.panels import shown
from glmserve.tools.monitor.rule_watch import RuleWatch
from glmserve.tools.monitor.watched_server import WatchedServer
from tests.tools.monitor.scripted_metrics import Clock, MetricsServer

NEVER = 3600.0  # the page's own timer stays out of the way; the tests look themselves


def page_of(servers: Sequence[str], clock: Clock, rules: str = "") -> MonitorPage:
    watched = [WatchedServer(url, clock) for url in servers]
    watch = RuleWatch(parse_alert_rules(rules, "test"), watched, clock) if rules else None
    return MonitorPage(watched, httpx.AsyncClient(), NEVER, 2.0, watch, clock)


def screen_text(page: MonitorPage) -> str:
    """What a person reads: the texts of the screen, line by line, with single spaces."""
    lines: dict[float, list[tuple[float, str]]] = {}
    for match in re.finditer(r'<text class="[^"]*" x="([\d.]+)" y="([\d.]+)"[^>]*>(.*?)</text>', page.export_screenshot()):
        lines.setdefault(float(match[2]), []).append((float(match[1]), html.unescape(match[3])))
    texts = (" ".join(text for _, text in sorted(line)) for _, line in sorted(lines.items()))
    return "\n".join(re.sub(r"[\s\u00a0]+", " ", text).strip() for text in texts)


def first_ten_seconds(server: MetricsServer) -> None:
    """Counters begin."""
    server.values = {
        'num_requests_running{model_name="chatglm-6b"}': 12,
        "num_requests_waiting": 3,
        "kv_cache_usage_perc": 0.45,
        "generation_tokens_total": 0,
        "prompt_tokens_total": 0,
        "num_preemptions_total": 0,
        "requests_rejected_total": 0,
        "e2e_request_latency_seconds_count": 0,
        'gpu_time_seconds_total{activity="decode"}': 0,
        'gpu_time_seconds_total{activity="idle_no_work"}': 0,
        'gpu_time_seconds_total{activity="idle_kv_full"}': 0,
        "model_bandwidth_utilization_perc": 0.61,
        "model_flops_utilization_perc": 0.07,
        "nvml_utilization_perc": 0.98,
        "nvml_memory_used_bytes": 60e9,
        "nvml_memory_total_bytes": 80e9,
        "nvml_power_watts": 350,
        "nvml_power_limit_watts": 700,
        "nvml_temperature_celsius": 64,
    }
    server.observe("time_to_first_token_seconds", 0, 0)


def next_ten_seconds(server: MetricsServer) -> None:
    """Counters go on."""
    server.grow(generation_tokens_total=12340, prompt_tokens_total=5000, e2e_request_latency_seconds_count=25, requests_rejected_total=20)
    server.grow(**{'gpu_time_seconds_total{activity="decode"}': 7, 'gpu_time_seconds_total{activity="idle_no_work"}': 2})
    server.grow(**{'gpu_time_seconds_total{activity="idle_kv_full"}': 1}, launch_bound_seconds_total=6)
    server.observe("time_to_first_token_seconds", 1, 100)


@pytest.mark.parametrize("size", [(80, 24), (140, 40)])
async def test_the_screen_shows_what_the_server_says(server: MetricsServer, clock: Clock, size: tuple[int, int]) -> None:
    first_ten_seconds(server)
    server.slow = [
        {"timestamp": "2026-11-22T20:41:56Z", "e2e_seconds": 7.25, "completion_tokens": 64, "why": "it waited 5.0 s for K/V blocks"}
    ]
    local = datetime(2026, 11, 22, 20, 41, 56, tzinfo=UTC).astimezone()
    page = page_of([server.url], clock)
    async with page.run_test(size=size) as pilot:
        await page.look()
        clock.now += 10
        next_ten_seconds(server)
        await page.look()
        await pilot.pause()
        text = screen_text(page)
    assert f"● {server.url} chatglm-6b glmserve ready" in text
    for words in (
        "running 12 waiting 3", "done 2.5/s", "refused 2/s", "preempted 0/s",
        "tokens out 1,234/s", "tokens in 500/s", "K/V used 45%",
        "first token 150 ms 190 ms 199 ms", "next token - - -",
        "decode 70%", "no work 20%", "kv full 10%", "MBU 61% MFU 7% busy 70% launch 60%",
        "NVML 98% mem 75% power 50% 64 °C",
        f"{local:%H:%M:%S} 7.2 s {'64 tokens ' if size[0] >= 96 else ''}it waited 5.0 s for K/V blocks",
    ):  # fmt: skip
        assert words in text, text
    assert ("Device over time" in text) == (size[1] >= 30)


def test_an_average_count_is_not_told_to_the_thousandth() -> None:
    values = read_all(History(10), 10) | {"requests_running": 5.7272, "requests_waiting": 0.0909, "tokens_per_second": 5.7272}
    assert [shown(values, name) for name in ("requests_running", "requests_waiting", "tokens_per_second")] == ["5.7", "0.1", "5.73/s"]
    assert shown(values, "engine_restarts") == "-"


async def test_numbers_follow_the_server(server: MetricsServer, clock: Clock) -> None:
    first_ten_seconds(server)
    page = page_of([server.url], clock)
    async with page.run_test(size=(80, 24)) as pilot:
        for running in (5, 7):
            server.values['num_requests_running{model_name="chatglm-6b"}'] = running
            clock.now += 20
            await page.look()
            await pilot.pause()
            assert f"running {running}" in screen_text(page)


async def test_a_server_that_is_away_comes_back(server: MetricsServer, clock: Clock) -> None:
    first_ten_seconds(server)
    page = page_of(["http://127.0.0.1:9"], clock)
    async with page.run_test(size=(120, 24)) as pilot:
        await page.look()
        clock.now += 30
        await page.look()
        await pilot.pause()
        assert "✕ http://127.0.0.1:9 unreachable for 30 s: " in screen_text(page)
        page.chosen.url = server.url
        server.ready = (503, {"reason": "the engine is restarting"})
        await page.look()
        await pilot.pause()
        assert "not ready for 0 s: the engine is restarting" in screen_text(page)
        server.ready = (200, {})
        server.values["engine_restarts_total"] = 1
        await page.look()
        await pilot.pause()
        assert "glmserve ready engine restarted 1x" in screen_text(page)


async def test_several_servers_and_the_chosen_one(server: MetricsServer, vllm: MetricsServer, clock: Clock) -> None:
    first_ten_seconds(server)
    vllm.values = {'num_requests_running{model_name="qwen"}': 99, "num_requests_waiting": 1}
    page = page_of([server.url, vllm.url], clock)
    async with page.run_test(size=(100, 40)) as pilot:
        await page.look()
        await pilot.pause()
        text = screen_text(page)
        assert f"● {server.url.removeprefix('http://')} 12 3" in text
        assert f"● {vllm.url.removeprefix('http://')} 99 1" in text
        assert "running 12" in text
        await pilot.press("n")
        await pilot.pause()
        text = screen_text(page)
        assert "qwen vllm ready" in text and "running 99" in text
        assert "vllm does not report where the" in text
        assert "This server does not tell its slow requests" in text


async def test_all_metrics_whatever_they_are_called(server: MetricsServer, clock: Clock) -> None:
    first_ten_seconds(server)
    server.values["something_new_total"] = 5
    page = page_of([server.url], clock)
    async with page.run_test(size=(140, 40)) as pilot:
        await page.look()
        clock.now += 10
        next_ten_seconds(server)
        server.grow(something_new_total=30)
        await page.look()
        await pilot.press("m")
        await pilot.pause()
        text = screen_text(page)
        assert "something_new_total 35 3" in text
        assert "gpu_time_seconds_total 7 0.7 activity=decode" in text
        assert "time_to_first_token_seconds" in text and "p50 0.15" in text
        assert "Help of num_requests_running" in text
        table = page.screen.query_one(DataTable)
        assert table.row_count == len([key for key in server.values if "time_to_first_token" not in key]) + 1
        await pilot.press("escape")
        await pilot.pause()
        assert "Latency" in screen_text(page)


async def test_pause_and_quit(server: MetricsServer, clock: Clock) -> None:
    first_ten_seconds(server)
    page = page_of([server.url], clock)
    async with page.run_test(size=(80, 24)) as pilot:
        await pilot.press("space")
        await pilot.pause()
        assert "paused" in screen_text(page)
        asked = len(server.asked)
        await page._tick()
        assert len(server.asked) == asked
        await pilot.press("space")
        await page._tick()
        assert len(server.asked) > asked
        await pilot.press("q")
    assert page.return_code == 0


async def test_alerts_are_shown_and_sent(server: MetricsServer, clock: Clock, tmp_path: Path) -> None:
    first_ten_seconds(server)
    rules = "rules:\n- {name: full queue, signal: requests_waiting, above: 2, over: 0, for: 0}\n"
    page = page_of([server.url], clock, rules)
    async with page.run_test(size=(120, 30)) as pilot:
        await page.look()
        await pilot.pause()
        assert "ALERT: full queue" in screen_text(page)
        assert any("requests_waiting is 3, above 2" in note.message for note in page._notifications)
