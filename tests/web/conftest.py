"""A real Chromium and servers with the fake engine, started once.  Tests that need the browser skip where there is none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from glmserve.engine.fake import FakeOptions
from glmserve.models.catalog import read_spec
from glmserve.text.tokenizer import load_tokenizer
from tests.server.serving import FIXTURE, ServerInThread

ANSWER = "## 春望\n\n国破山河在,城春草木深。\n感时花溅泪,恨别鸟惊心。\n\nWritten by **Du Fu** in `757`."
QUIET = (  # no service of the browser's maker is asked for anything
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE_MS = 30_000  # a test ends as soon as what it waits for is there; a busy machine takes its time
Start = Callable[..., ServerInThread]
Open = Callable[..., Page]


def answer_ids(text: str) -> tuple[int, ...]:
    """Token ids of a text, ended by the end token: what the fake engine is told to say."""
    spec = read_spec(FIXTURE)
    return (*load_tokenizer(FIXTURE, spec).encode(text, add_special_tokens=False), spec.eos_token_ids[0])


@pytest.fixture(scope="session")
def start_server() -> Iterator[Start]:
    """ServerInThread, stopped at the end whatever happens."""
    servers: list[ServerInThread] = []

    def start(*args: Any, **kwargs: Any) -> ServerInThread:
        servers.append(ServerInThread(*args, **kwargs))
        return servers[-1]

    yield start
    for server in servers:
        server.server.should_exit = True
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def server(start_server: Start) -> ServerInThread:
    """Answers ANSWER at once to whatever it is asked."""
    return start_server(FakeOptions(alphabet=answer_ids(ANSWER)))


@pytest.fixture(scope="session")
def slow_server(start_server: Start) -> ServerInThread:
    """Goes on for seconds: there is time to stop it, to look away, to ask the next one."""
    return start_server(FakeOptions(alphabet=answer_ids("春风吹绿江南岸。")[:-1], step_seconds=0.02))


@pytest.fixture(scope="module")  # no longer: while Playwright runs, its event loop counts as running, and no async test can
def browser() -> Iterator[Browser]:
    """Chromium, headless."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium here: install one (Debian: apt-get install chromium) or name it in CHROMIUM")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=list(QUIET))
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """A page of a server, ready to use, in a browser profile of its own; a script's error fails the test."""
    errors: list[str] = []
    contexts = []

    def open_one(server: ServerInThread, path: str = "/", **options: Any) -> Page:
        context = browser.new_context(**({"locale": "en-US", "viewport": {"width": 1280, "height": 800}} | options))
        contexts.append(context)
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if "Security Policy" in message.text else None)
        page.goto(server.url + path)
        page.wait_for_selector("html[data-ready]")
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert errors == []
