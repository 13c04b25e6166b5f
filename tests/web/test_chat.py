"""Chatting on the page, in a real browser."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import Page, Request, expect

from glmserve.engine.fake import FakeOptions
from tests.server.serving import MODEL, ServerInThread, eventually
from tests.web.conftest import Open, Start, answer_ids
from tests.web.talking import ANSWERS, QUESTIONS, ask, button, wait_for_answer, wait_for_text

pytestmark = pytest.mark.browser


def test_an_answer_streams_in_and_is_drawn_as_markdown(open_page: Open, server: ServerInThread) -> None:
    page = open_page(server)
    expect(page.locator("#model-name")).to_have_text(MODEL)
    assert page.evaluate("document.activeElement.id") == "question"
    ask(page, "写一首诗")
    answer = wait_for_answer(page)
    expect(page.locator(QUESTIONS)).to_contain_text("写一首诗")
    expect(answer.locator("h2:not(.only-heard)")).to_have_text("春望")
    expect(answer.locator("p").first).to_have_text("国破山河在，城春草木深。感时花溅泪，恨别鸟惊心。")
    assert answer.locator("p").first.locator("br").count() == 1  # a poem keeps its lines
    expect(answer.locator("strong")).to_have_text("Du Fu")
    expect(answer.locator(".figures")).to_have_text(re.compile(r"\d+ tokens · \d+.* a second · first after"))
    expect(page.locator("#announcements")).to_have_text("The answer is complete")


def test_what_is_sent_is_the_conversation_and_the_settings(open_page: Open, server: ServerInThread) -> None:
    page = open_page(server)
    bodies: list[dict[str, object]] = []
    page.on("request", lambda request: bodies.append(request.post_data_json) if request.method == "POST" else None)
    ask(page, "one")
    wait_for_answer(page)
    assert {"temperature", "top_p", "max_tokens"}.isdisjoint(bodies[0])  # what nobody set is the server's choice
    button(page, "Settings").click()
    page.fill("[name=system]", "Answer briefly.")
    page.fill("[name=temperature]", "0.5")
    page.fill("[name=max_tokens]", "5")
    button(page, "Done").click()
    ask(page, "two")
    answer = wait_for_answer(page)
    expect(answer.locator(".figures")).to_contain_text("5 tokens")
    expect(answer.locator(".figures")).to_contain_text("cut at the token limit")
    sent = bodies[1]
    assert (sent["model"], sent["temperature"], sent["max_tokens"], sent["stream"]) == (MODEL, 0.5, 5, True)
    assert [message["role"] for message in sent["messages"]] == ["system", "user", "assistant", "user"]  # type: ignore[attr-defined]
    page.reload()
    button(page, "Settings").click()
    expect(page.locator("[name=temperature]")).to_have_value("0.5")
    button(page, "Reset").click()
    expect(page.locator("[name=temperature]")).to_have_value("")


def test_stop_keeps_what_came_and_frees_the_server(open_page: Open, slow_server: ServerInThread) -> None:
    page = open_page(slow_server)
    for stop in (lambda: button(page, "Stop").click(), lambda: page.keyboard.press("Escape")):
        ask(page, "说下去")
        wait_for_text(page)
        expect(button(page, "Send")).to_be_hidden()
        stop()
        answer = wait_for_answer(page)
        expect(answer.locator(".message-text")).to_contain_text("春风")
        expect(answer.locator(".message-problem")).to_have_text("Stopped.")
        expect(page.locator("#question")).to_be_focused()
    eventually(slow_server.idle)


def test_answer_again_and_edit(open_page: Open, server: ServerInThread) -> None:
    page = open_page(server)
    ask(page, "first question")
    wait_for_answer(page)
    ask(page, "second question")
    wait_for_answer(page)
    assert button(page, "Answer again").count() == 1  # of the last answer only
    before = page.locator(ANSWERS).last.get_attribute("data-id")
    button(page, "Answer again").click()
    expect(page.locator(ANSWERS).last).not_to_have_attribute("data-id", before or "")
    wait_for_answer(page)
    assert (page.locator(QUESTIONS).count(), page.locator(ANSWERS).count()) == (2, 2)
    page.locator(QUESTIONS).first.hover()
    button(page, "Edit").first.click()
    page.fill(".editor textarea", "a better question")
    page.locator(".editor").get_by_role("button", name="Send").click()
    wait_for_answer(page)
    expect(page.locator(QUESTIONS)).to_have_count(1)
    expect(page.locator(QUESTIONS)).to_contain_text("a better question")


def test_conversations_are_kept_switched_deleted_and_brought_back(open_page: Open, server: ServerInThread) -> None:
    page = open_page(server)
    titles = page.locator(".conversation a")
    ask(page, "about the sea")
    wait_for_answer(page)
    button(page, "New chat").click()
    expect(page.locator("#welcome")).to_be_visible()
    ask(page, "about the hills")
    wait_for_answer(page)
    expect(titles).to_have_text(["about the hills", "about the sea"])
    page.reload()
    expect(page.locator(QUESTIONS)).to_contain_text("about the hills")
    expect(page.locator(ANSWERS)).to_contain_text("Du Fu")
    titles.nth(1).click()
    expect(page.locator(QUESTIONS)).to_contain_text("about the sea")
    page.click("#dashboard-tab")
    page.click("#chat-tab")
    expect(page.locator(QUESTIONS)).to_contain_text("about the sea")
    page.locator(".conversation").nth(1).hover()
    button(page, "Delete “about the sea”").click()
    expect(titles).to_have_text(["about the hills"])
    expect(page.locator("#welcome")).to_be_visible()
    button(page, "Undo").click()
    expect(titles).to_have_text(["about the hills", "about the sea"])
    page.reload()
    expect(titles).to_have_count(2)


def test_an_answer_goes_on_while_one_looks_at_another_conversation(open_page: Open, slow_server: ServerInThread) -> None:
    page = open_page(slow_server)
    ask(page, "a long one")
    wait_for_text(page)
    button(page, "New chat").click()
    expect(button(page, "Send")).to_be_visible()
    expect(page.locator(".conversation.answering")).to_have_count(1)
    page.locator(".conversation a").click()
    wait_for_text(page)
    length = len(page.locator(ANSWERS).inner_text())
    expect(page.locator(ANSWERS)).to_have_text(re.compile(rf"[\s\S]{{{length + 10},}}"))
    button(page, "Stop").click()
    wait_for_answer(page)


def test_closing_the_page_loses_at_most_what_was_about_to_come(open_page: Open, slow_server: ServerInThread) -> None:
    page = open_page(slow_server)
    ask(page, "说下去")
    expect(page.locator(ANSWERS)).to_have_text(re.compile(r"[\s\S]{60,}"))
    page.fill("#question", "a draft")
    page.reload()
    expect(page.locator(QUESTIONS)).to_contain_text("说下去")
    expect(page.locator(ANSWERS)).to_contain_text("The page was closed while this was being written.")
    expect(page.locator(ANSWERS)).to_contain_text("春风")
    expect(page.locator("#question")).to_have_value("a draft")
    eventually(slow_server.idle)


def test_enter_sends_but_not_while_chinese_is_composed(open_page: Open, server: ServerInThread) -> None:
    page = open_page(server)
    keyboard = page.context.new_cdp_session(page)
    page.focus("#question")
    keyboard.send("Input.imeSetComposition", {"text": "nihao", "selectionStart": 5, "selectionEnd": 5})
    # an input method hands its Enter to the page as key code 229, marked as part of the composition
    keyboard.send("Input.dispatchKeyEvent", {"type": "keyDown", "key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 229})
    page.eval_on_selector(
        "#question", "field => field.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', isComposing: true, bubbles: true}))"
    )
    keyboard.send("Input.insertText", {"text": "你好"})
    expect(page.locator("#question")).to_have_value("你好")
    assert page.locator(QUESTIONS).count() == 0
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("再见")
    expect(page.locator("#question")).to_have_value("你好\n再见")
    page.keyboard.press("Enter")
    expect(page.locator(QUESTIONS)).to_have_count(1)
    wait_for_answer(page)


def test_everything_can_be_reached_with_the_keyboard(open_page: Open, server: ServerInThread) -> None:
    page = open_page(server)
    seen = []
    for _ in range(14):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
        ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert ring != "none" or seen[-1] in ("question", ""), seen[-1]
    assert {"new-chat", "open-settings", "switch-theme", "switch-language", "chat-tab", "dashboard-tab", "suggestion"} <= set(seen)


def test_a_key_is_asked_for_and_kept(open_page: Open, start_server: Start) -> None:
    server = start_server(FakeOptions(alphabet=answer_ids("好的。")), server={"api_key": ("secret",)})
    page = open_page(server)
    for key in ("wrong", "secret"):
        if key == "wrong":
            ask(page, "你好")
        page.wait_for_selector("#key-dialog[open]")
        page.fill("#key-dialog input", key)
        button(page, "Use this key").click()
    expect(wait_for_answer(page)).to_contain_text("好的。")
    page.reload()
    ask(page, "再来")
    wait_for_answer(page)
    expect(page.locator(ANSWERS)).to_have_count(2)
    page.evaluate("localStorage.removeItem('glmserve.api_key')")
    ask(page, "没有密钥")
    page.wait_for_selector("#key-dialog[open]")
    button(page, "Cancel").click()
    expect(wait_for_answer(page).locator(".message-problem")).to_contain_text("this server wants an API key")


def test_the_servers_own_words_where_a_request_is_refused(open_page: Open, server: ServerInThread) -> None:
    page = open_page(server)
    ask(page, "春" * 600)  # longer than this model reads
    expect(wait_for_answer(page).locator(".message-problem")).to_contain_text("shorten")
    ask(page, "short")
    wait_for_answer(page)


def test_it_speaks_the_browsers_language_and_the_other(open_page: Open, server: ServerInThread) -> None:
    page = open_page(server, locale="zh-CN")
    expect(page.locator("html")).to_have_attribute("lang", "zh-CN")
    expect(page.locator("#new-chat")).to_have_text("新对话")
    expect(page.locator("#question")).to_have_attribute("placeholder", "想问什么，尽管说")
    page.locator(".suggestion").first.click()
    wait_for_answer(page)
    page.click("#switch-language")
    expect(page.locator("#new-chat")).to_have_text("New chat")
    page.reload()
    expect(page.locator("html")).to_have_attribute("lang", "en")


def test_light_and_dark(open_page: Open, server: ServerInThread) -> None:
    page = open_page(server, color_scheme="dark")

    def brightness() -> int:
        color = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", color)[:3]))

    assert brightness() < 200
    button(page, "Theme: as the system").click()
    assert brightness() > 600
    page.reload()
    assert brightness() > 600
    button(page, "Theme: light").click()
    page.emulate_media(color_scheme="light")
    assert brightness() < 200


def test_on_a_phone(open_page: Open, server: ServerInThread) -> None:
    page = open_page(server, viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True)
    sidebar = page.locator("#sidebar")
    expect(sidebar).not_to_be_in_viewport()
    page.tap(".suggestion")
    wait_for_answer(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    expect(page.locator("#question")).to_be_in_viewport()
    button(page, "Conversations").tap()
    expect(sidebar).to_be_in_viewport()
    button(page, "New chat").tap()
    expect(sidebar).not_to_be_in_viewport()
    expect(page.locator("#welcome")).to_be_visible()
    page.tap("#dashboard-tab")
    page.set_viewport_size({"width": 640, "height": 360})  # turned, and back
    page.set_viewport_size({"width": 360, "height": 640})
    page.wait_for_selector("[data-figure=running][data-value='0']")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.tap("#chat-tab")
    assert page.locator("#question").evaluate("field => field.clientHeight") > 30


def test_the_page_asks_nobody_but_its_server(open_page: Open, server: ServerInThread) -> None:
    page = open_page(server)
    requests: list[Request] = []
    page.on("request", lambda request: requests.append(request))
    page.reload()
    ask(page, "![a picture](https://example.com/picture.png)")
    wait_for_answer(page)
    assert requests and all(request.url.startswith(server.url) for request in requests)
    assert json.loads(
        page.evaluate("JSON.stringify(performance.getEntriesByType('resource').map(entry => new URL(entry.name).origin))")
    ) == [server.url] * page.evaluate("performance.getEntriesByType('resource').length")


def test_a_reader_in_the_middle_is_not_dragged_along(open_page: Open, slow_server: ServerInThread) -> None:
    page: Page = open_page(slow_server, viewport={"width": 700, "height": 300})
    page.evaluate("localStorage.setItem('glmserve.sampling', JSON.stringify({max_tokens: 300}))")
    ask(page, "\n".join(f"line {number}" for number in range(12)))
    wait_for_text(page)
    page.eval_on_selector("#message-scroll", "scroll => scroll.scrollTop = 0")
    expect(page.locator("#to-the-end")).to_be_visible()
    before = len(page.locator(ANSWERS).inner_text())
    expect(page.locator(ANSWERS)).to_have_text(re.compile(rf"[\s\S]{{{before + 10},}}"))
    assert page.eval_on_selector("#message-scroll", "scroll => scroll.scrollTop") == 0
    page.click("#to-the-end")
    expect(page.locator("#to-the-end")).to_be_hidden()
    button(page, "Stop").click()
    wait_for_answer(page)
