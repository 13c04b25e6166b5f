"""The server goes away and comes back: the page says so, waits, goes on, and nothing is lost."""

from __future__ import annotations

import json
import os
import signal

import pytest
from playwright.sync_api import Route, expect

from glmserve.engine.fake import FakeOptions
from tests.server.serving import ServerInThread
from tests.web.conftest import ANSWER, Open, Start, answer_ids
from tests.web.talking import ANSWERS, QUESTIONS, ask, button, wait_for_answer, wait_for_text

pytestmark = pytest.mark.browser


def test_a_restarted_server_finds_the_page_as_it_was(open_page: Open, start_server: Start) -> None:
    talkative = start_server(FakeOptions(alphabet=answer_ids(ANSWER)[:-1], step_seconds=0.02), server={"shutdown_timeout": 0})
    page = open_page(talkative)
    banner = page.locator("#banner")
    expect(banner).to_be_hidden()
    ask(page, "before")
    wait_for_text(page)
    talkative.stop()
    expect(page.locator(ANSWERS).locator(".message-problem")).to_be_visible()
    expect(page.locator(ANSWERS)).to_contain_text("春望")  # what had come stays
    expect(banner).to_contain_text("cannot be reached")
    expect(page.locator("#connection-dot")).to_have_attribute("aria-label", "Not connected")
    ask(page, "while it is away")
    expect(page.locator(ANSWERS).last).to_contain_text("sent again as soon as the server is back")

    back = start_server(FakeOptions(alphabet=answer_ids(ANSWER)), server={"port": talkative.port, "served_model_name": "another"})
    expect(banner).to_be_hidden()
    expect(wait_for_answer(page)).to_contain_text("Du Fu")  # by itself
    expect(page.locator("#model-name")).to_have_text("another")
    expect(page.locator(QUESTIONS)).to_have_count(2)
    button(page, "Answer again").click()
    wait_for_answer(page)
    assert back.metric("glmserve:request_success_total", finished_reason="stop") == 2


def test_an_engine_that_dies_is_waited_for(open_page: Open, start_server: Start) -> None:
    server = start_server(FakeOptions(alphabet=answer_ids(ANSWER)[:-1], step_seconds=0.02, load_seconds=1.0))
    page = open_page(server)
    ask(page, "说下去")
    wait_for_text(page)
    os.kill(server.client.engine_pid or 0, signal.SIGKILL)
    expect(page.locator(ANSWERS).locator(".message-problem")).to_contain_text("engine")
    expect(page.locator("#banner")).to_contain_text("not ready")
    button(page, "Try again").click()
    wait_for_text(page)  # once it is loaded again
    expect(page.locator("#banner")).to_be_hidden()
    button(page, "Stop").click()
    wait_for_answer(page)


def test_waiting_can_be_given_up(open_page: Open, start_server: Start) -> None:
    server = start_server(FakeOptions(alphabet=answer_ids(ANSWER)))
    page = open_page(server)
    server.stop()
    ask(page, "anybody there?")
    expect(page.locator(ANSWERS)).to_contain_text("as soon as the server is back")
    page.keyboard.press("Escape")
    expect(wait_for_answer(page).locator(".message-problem")).to_have_text("Stopped.")


def test_a_page_opened_while_the_engine_loads_waits_too(open_page: Open, start_server: Start) -> None:
    server = start_server(FakeOptions(alphabet=answer_ids(ANSWER), load_seconds=1.5), wait=False)
    page = open_page(server)
    ask(page, "too early")
    expect(page.locator("#banner")).to_contain_text("The server is not ready: the engine is starting")
    expect(wait_for_answer(page)).to_contain_text("Du Fu")


def test_a_full_server_is_asked_again(open_page: Open, server: ServerInThread) -> None:
    page = open_page(server)
    refusals = iter([json.dumps({"error": {"message": "the queue is full", "code": "server_is_overloaded"}})])

    def first_full_then_free(route: Route) -> None:
        body = next(refusals, None)
        if body is None:
            route.continue_()
        else:
            route.fulfill(status=503, headers={"Retry-After": "1"}, body=body)

    page.route("**/v1/chat/completions", first_full_then_free)
    ask(page, "你好")
    expect(page.locator("#banner")).to_contain_text("the queue is full")
    expect(wait_for_answer(page)).to_contain_text("Du Fu")
    expect(page.locator("#banner")).to_be_hidden()
