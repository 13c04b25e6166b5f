"""Makes the pictures of the web page in docs/images, from a running server that nobody else uses.

    glmserve serve demo --port 8123 &
    python scripts/web_screenshots.py http://localhost:8123

The chat asks what the page suggests; the dashboard is seen while the load is at its highest, in both languages.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from pathlib import Path

import httpx
from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).parents[1] / "docs" / "images"
SIZE = {"width": 1180, "height": 740}
LOAD_SECONDS, SEEN_AFTER_SECONDS = 66, 45
MOST_AT_A_TIME = 5
QUESTION = "写一首七言律诗，题目是《秋思》。"
NO_NOISE = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update"]


def chat(page: Page) -> None:
    """The page's suggestions and their answers."""
    suggestions = [text.split("\n")[0] for text in page.locator(".suggestion").all_inner_texts()]
    for question in suggestions:
        page.fill("#question", question)
        page.press("#question", "Enter")
        page.wait_for_selector(".message.assistant:last-child:not(.streaming)", timeout=120_000)
    page.evaluate("document.activeElement.blur()")


def load(url: str, until: float) -> None:
    """More and more clients, then fewer, so that the charts show something."""

    def client(number: int) -> None:
        time.sleep(number * LOAD_SECONDS / 12)
        while time.monotonic() < until - number * LOAD_SECONDS / 20:
            body = {
                "messages": [{"role": "user", "content": QUESTION * (1 + 2 * number)}],
                "max_tokens": 60 + 30 * number,
                "ignore_eos": True,
            }
            httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120).raise_for_status()

    for number in range(MOST_AT_A_TIME):
        threading.Thread(target=client, args=(number,), daemon=True).start()


def main() -> None:
    url = sys.argv[1].rstrip("/")
    IMAGES.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=NO_NOISE)
        page = browser.new_page(viewport=SIZE, locale="en-US")
        page.goto(url)
        page.evaluate("localStorage.setItem('glmserve.sampling', JSON.stringify({max_tokens: 120}))")
        page.wait_for_selector(".suggestion")
        chat(page)
        page.screenshot(path=IMAGES / "chat.png")
        page.click("#dashboard-tab")
        load(url, time.monotonic() + LOAD_SECONDS)
        page.wait_for_timeout(SEEN_AFTER_SECONDS * 1000)
        page.screenshot(path=IMAGES / "dashboard.png")
        page.click("#switch-language")
        page.wait_for_timeout(500)
        page.screenshot(path=IMAGES / "dashboard.zh-CN.png")
        page.click("#chat-tab")
        page.wait_for_timeout(500)
        page.screenshot(path=IMAGES / "chat.zh-CN.png")
        page.set_viewport_size({"width": 360, "height": 720})
        page.emulate_media(color_scheme="dark")
        page.wait_for_timeout(500)
        page.screenshot(path=IMAGES / "phone.png")
        browser.close()


if __name__ == "__main__":
    main()
