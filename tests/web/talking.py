"""What a user does on the chat page, in words."""

from __future__ import annotations

from playwright.sync_api import Locator, Page

ANSWERS = ".message.assistant"
QUESTIONS = ".message.user"


def ask(page: Page, question: str) -> None:
    """Type a question and send it."""
    page.fill("#question", question)
    page.press("#question", "Enter")


def wait_for_answer(page: Page) -> Locator:
    """The last answer, once it has ended."""
    page.wait_for_selector(f"{ANSWERS}:last-child:not(.streaming)")
    return page.locator(ANSWERS).last


def wait_for_text(page: Page) -> None:
    """Until an answer that is being written shows some letters."""
    page.wait_for_selector(".message.streaming .message-text > *")


def button(page: Page, label: str) -> Locator:
    """A button by what it is called."""
    return page.get_by_role("button", name=label, exact=True)
