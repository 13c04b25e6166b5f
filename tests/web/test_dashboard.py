"""The dashboard against /metrics itself."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.server.serving import MODEL, ServerInThread, chat_body, eventually
from tests.web.conftest import Open
from tests.web.talking import ask, button, wait_for_answer, wait_for_text

pytestmark = pytest.mark.browser
LABELS = f'model_name="{MODEL}",engine="0"'


def figure(page: Page, name: str) -> float | None:
    """The number behind a figure."""
    value = page.locator(f"[data-figure={name}]").get_attribute("data-value")
    return float(value) if value else None


def test_figures_are_those_of_metrics(open_page: Open, server: ServerInThread) -> None:
    for _ in range(3):
        server.http.post("/v1/chat/completions", json=chat_body(stream=True)).read()
    page = open_page(server, "/#/dashboard")
    wanted = {
        "running": server.metric("glmserve:num_requests_running"),
        "kv": server.metric("glmserve:kv_cache_usage_perc"),
        "mbu": server.metric("glmserve:model_bandwidth_utilization_perc"),
        "output_tokens": server.metric("glmserve:generation_tokens_total"),
        "prompt_tokens": server.metric("glmserve:prompt_tokens_total"),
        "done": server.metric("glmserve:request_success_total"),
        "rejected": server.metric("glmserve:requests_rejected_total"),
        "restarts": server.metric("glmserve:engine_restarts_total"),
    }
    assert wanted["done"] >= 3
    eventually(lambda: page.locator("[data-figure=done]").count())
    assert {name: figure(page, name) for name in wanted} == wanted
    expect(page.locator("[data-figure=output_tokens]")).to_have_text(f"{wanted['output_tokens']:,.0f}")


def test_it_follows_what_happens(open_page: Open, slow_server: ServerInThread) -> None:
    page = open_page(slow_server)
    ask(page, "说下去")
    wait_for_text(page)
    page.click("#dashboard-tab")
    eventually(lambda: figure(page, "running") == 1)
    eventually(lambda: (figure(page, "output_rate") or 0) > 0)
    eventually(lambda: page.locator("[data-activity=decode]").count())
    shares = [text.rstrip("%") for text in page.locator("[data-activity]").all_inner_texts()]
    assert 98 <= sum(map(float, shares)) <= 102  # each is rounded
    page.click("#chat-tab")
    button(page, "Stop").click()
    wait_for_answer(page)
    page.click("#dashboard-tab")
    eventually(lambda: figure(page, "running") == 0)


def _metrics(seconds: dict[str, float], tokens: int, first_token: list[int]) -> str:
    lines = [f'glmserve:gpu_time_seconds_total{{{LABELS},activity="{name}"}} {value}' for name, value in seconds.items()]
    lines += [f"glmserve:generation_tokens_total{{{LABELS}}} {tokens}", f"glmserve:num_requests_running{{{LABELS}}} 2.0"]
    for bound, count in zip(("0.1", "0.5", "1.0", "+Inf"), first_token, strict=True):
        lines.append(f'glmserve:time_to_first_token_seconds_bucket{{{LABELS},le="{bound}"}} {count}')
    return "# HELP a comment\n" + "\n".join(lines)


def _evaluate(page: Page, readings: list[tuple[float, str]]) -> dict[str, Any]:
    """What the page's own modules make of scrapes at given times."""
    script = """async readings => {
        const [{ Exposition }, { readingOf }, { History }] = await Promise.all(
            ["exposition", "reading", "history"].map(name => import(`/web/scripts/dashboard/${name}.js`)));
        const history = new History();
        for (const [time, text] of readings) history.add(readingOf(new Exposition(text), time));
        return { rate: history.rate("outputTokens"), shares: history.shares(), latency: history.latency("firstToken"),
                 points: history.points, mbu: history.last.mbu };
    }"""
    result: dict[str, Any] = page.evaluate(script, readings)
    return result


def test_rates_shares_and_quantiles(open_page: Open, server: ServerInThread) -> None:
    page = open_page(server)
    first = _metrics({"decode": 10, "idle_no_work": 90}, 1000, [100, 100, 100, 100])
    second = _metrics({"decode": 13, "idle_no_work": 91}, 1300, [100, 110, 120, 120])
    seen = _evaluate(page, [(1000, first), (1004, second)])
    assert seen["rate"] == 75
    assert seen["shares"]["decode"] == 0.75 and seen["shares"]["idle_no_work"] == 0.25
    # as Prometheus' histogram_quantile: half of 20 new ones is where the bucket up to 0.5 s ends; 99% is 0.98 of the next
    assert seen["latency"] == pytest.approx({"median": 0.5, "p99": 0.99, "sinceStart": False})
    assert seen["mbu"] is None
    idle = _evaluate(page, [(1000, second), (1070, second)])
    assert idle["latency"]["sinceStart"] is True and idle["rate"] == 0


def test_a_restart_makes_no_negative_rates(open_page: Open, server: ServerInThread) -> None:
    page = open_page(server)
    before = _metrics({"decode": 100}, 5000, [10, 10, 10, 10])
    after = _metrics({"decode": 1}, 20, [1, 1, 1, 1])
    seen = _evaluate(page, [(1000, before), (1001, after), (1002, _metrics({"decode": 2}, 30, [2, 2, 2, 2]))])
    assert [point["outputRate"] for point in seen["points"]] == [None, None, 10]


def test_what_is_not_reported_is_said_to_be_so(open_page: Open, server: ServerInThread) -> None:
    page = open_page(server)
    page.route("**/metrics", lambda route: route.fulfill(body='vllm:num_requests_running{engine="0"} 1.0\n'))
    page.route("**/slow?*", lambda route: route.fulfill(status=404, body="{}"))
    page.reload()
    page.click("#dashboard-tab")
    expect(page.locator(".figure", has=page.locator("[data-figure=mbu]"))).to_contain_text("not reported")
    expect(page.locator("[data-figure=running]")).to_have_text("–")
    expect(page.locator(".slow-body")).to_have_text("This server does not report slow requests.")


def test_slow_requests_and_their_reasons(open_page: Open, server: ServerInThread) -> None:
    page = open_page(server)
    slow = {
        "timestamp": "2026-11-22T20:00:00Z",
        "request_id": "chatcmpl-1",
        "e2e_seconds": 4.2,
        "first_token_seconds": 3.1,
        "prompt_tokens": 12,
    }
    slow |= {"completion_tokens": 40, "queue_seconds": 3.0, "why": "waited 3.0 s behind <b>a long prompt</b>", "cause": "queue"}
    page.route("**/slow?*", lambda route: route.fulfill(body=json.dumps({"requests": [slow]})))
    with page.expect_request("**/slow?over=2&last=10"):
        page.click("#dashboard-tab")
    row = page.locator("table.slow tbody tr")
    expect(row).to_contain_text("waited 3.0 s behind <b>a long prompt</b>")
    expect(row.locator(".tag")).to_have_text("queue")
    expect(row).to_contain_text("4.20 s")
    expect(row).to_contain_text("12 / 40")
    page.click("#switch-language")
    expect(row).to_contain_text("排队 3.00 s，其间在计算其他请求")
    with page.expect_request("**/slow?over=5&last=10"):
        page.locator("select").select_option("5")


def test_the_reason_is_seen_on_a_phone(open_page: Open, server: ServerInThread) -> None:
    page = open_page(server, "/#/dashboard")
    page.set_viewport_size({"width": 390, "height": 664})
    slow = {"timestamp": "2026-11-22T20:00:00Z", "e2e_seconds": 4.2, "first_token_seconds": 3.1, "prompt_tokens": 1200}
    slow |= {"completion_tokens": 400, "why": "waited 3.0 s for K/V blocks: 14 requests before it held all of them", "cause": "kv_full"}
    page.route("**/slow?*", lambda route: route.fulfill(body=json.dumps({"requests": [slow]})))
    page.locator("select").select_option("5")
    reason = page.locator("table.slow td:last-child")
    expect(reason).to_contain_text("14 requests before it")
    heads = page.evaluate("[...document.querySelectorAll('.slow td')].map(td => getComputedStyle(td, '::before').content)")
    assert [re.sub(r"[^a-zA-Z/ ]", "", head).strip() for head in heads[1:4]] == ["Took", "First token", "Tokens in / out"]
    box = reason.bounding_box()
    assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= 390


def test_a_gpus_own_figures(open_page: Open, server: ServerInThread) -> None:
    page = open_page(server)
    values = {
        "utilization_perc": 0.97,
        "memory_used_bytes": 71.2e9,
        "memory_total_bytes": 150e9,
        "power_watts": 512,
        "power_limit_watts": 700,
    }
    values |= {"sm_clock_hertz": 1.98e9, "temperature_celsius": 61}
    lines = [f'glmserve:nvml_{name}{{gpu="0",engine="0"}} {value}' for name, value in values.items()]
    lines.append('glmserve:device_info{device_name="NVIDIA H100 80GB HBM3",engine="0"} 1.0')
    lines.append('glmserve:nvml_throttle{gpu="0",reason="power_cap"} 1.0\nglmserve:nvml_throttle{gpu="0",reason="thermal"} 0.0')
    page.route("**/metrics", lambda route: route.fulfill(body="\n".join(lines)))
    page.click("#dashboard-tab")
    for text in ("NVIDIA H100 80GB HBM3", "97%", "71.2 GB / 150 GB", "512 / 700 W", "1980 MHz", "61 °C", "power_cap"):
        expect(page.locator(".gpus")).to_contain_text(text)
    expect(page.locator(".gpus")).not_to_contain_text("thermal")


def test_no_label_of_a_chart_is_cut_off(open_page: Open, slow_server: ServerInThread) -> None:
    page = open_page(slow_server, "/#/dashboard")
    eventually(lambda: page.locator(".chart-label", has_text="00 ms").count())
    assert page.evaluate("Math.min(...[...document.querySelectorAll('.chart-label')].map((label) => label.getBBox().x))") >= 0


def test_pointing_at_a_chart_tells_its_values(open_page: Open, slow_server: ServerInThread) -> None:
    page = open_page(slow_server, "/#/dashboard")
    eventually(lambda: page.locator("[data-activity]").count())
    page.locator(".chart").first.hover()
    expect(page.locator(".chart-tip").first).to_contain_text("No work")
