"""A hundred thousand characters of chat: all of it there, and what is old is not drawn again for what is new.

How long it takes is measured by benchmarks/web_page.py: a test on a busy machine could only guess.
"""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.server.serving import ServerInThread
from tests.web.conftest import Open
from tests.web.talking import ANSWERS, QUESTIONS, ask, wait_for_answer

pytestmark = pytest.mark.browser

KEEP_LONG_CHAT = """async ({ rounds, paragraph }) => {
    const { openArchive } = await import("/web/scripts/chat/archive.js");
    const messages = [];
    for (let number = 0; number < rounds; number++) {
        messages.push({ id: `q${number}`, role: "user", text: `question ${number}` });
        messages.push({ id: `a${number}`, role: "assistant", state: "done", text: `## Answer ${number}\\n\\n${paragraph}` });
    }
    const archive = await openArchive();
    await archive.put({ id: "long", title: "a long one", changedAt: Date.now(), messages });
    return messages.reduce((sum, message) => sum + message.text.length, 0);
}"""


def keep_long_chat(page: Page, rounds: int = 130) -> int:
    """Put a conversation into the browser's archive; gives its number of characters."""
    paragraph = "\n\n".join(f"{number}. 春风吹绿江南岸，**some** `code` and [a link](https://example.com) " * 4 for number in range(6))
    return int(page.evaluate(KEEP_LONG_CHAT, {"rounds": rounds, "paragraph": paragraph}))


def test_a_long_chat_is_shown_whole_and_goes_on(open_page: Open, server: ServerInThread) -> None:
    page = open_page(server)
    assert keep_long_chat(page) > 100_000
    page.route(
        "**/v1/chat/completions", lambda route: route.fulfill(body='data: {"choices":[{"delta":{"content":"and on"}}]}\n\ndata: [DONE]\n\n')
    )
    page.goto(f"{server.url}/#/chat/long")
    page.reload()
    expect(page.locator(ANSWERS)).to_have_count(130)
    assert len(page.locator("#messages").text_content() or "") > 90_000  # without the marks of Markdown
    expect(page.locator(ANSWERS).last).to_be_in_viewport()
    page.evaluate("document.querySelectorAll('.message').forEach(node => { node.isOld = true; })")
    ask(page, "one more")
    expect(wait_for_answer(page)).to_contain_text("and on")
    expect(page.locator(QUESTIONS)).to_have_count(131)
    assert (
        page.evaluate("[...document.querySelectorAll('.message')].filter(node => node.isOld).length") >= 259
    )  # but the last answer's buttons
    assert page.evaluate("getComputedStyle(document.querySelector('.message')).contentVisibility") == "auto"
