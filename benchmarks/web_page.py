"""How fast the web page is: time from opening to usable, and what 100,000 characters of chat cost the browser.

    python benchmarks/web_page.py [--url http://localhost:8000]

Starts Chromium, headless, against a running server.  A "long task" is the browser's own word: more than 50 ms in which the
page answers to nobody.  Streaming is measured with answers made up in the browser's place of the network, so that the model's
speed does not matter: 100,000 characters in 5,000 events, as fast as the page takes them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time

from playwright.sync_api import Browser, CDPSession, Page, Route, sync_playwright

QUIET = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
PARAGRAPH = """## 春望

国破山河在，城春草木深。**感时**花溅泪，`恨别`鸟惊心。

- 烽火连三月
- 家书抵万金

```python
print('poem')
```

"""
WATCH = """
window.longTasks = [];
const watch = list => { for (const entry of list.getEntries()) longTasks.push(entry.duration); };
new PerformanceObserver(watch).observe({ type: "longtask", buffered: true });
"""


def seconds_to_usable(browser: Browser, url: str, times: int = 7) -> list[float]:
    """Navigation's start to the page ready for a question, each time with an empty cache, by the browser's own clock."""
    measured = []
    for _ in range(times):
        context = browser.new_context()
        page = context.new_page()
        page.goto(url)
        page.wait_for_selector("html[data-ready]")
        measured.append(float(page.evaluate("performance.getEntriesByName('usable')[0].startTime")) / 1000)
        context.close()
    return measured


def stream(page: Page, devtools: CDPSession, text: str, num_events: int) -> dict[str, float]:
    """One answer of `text` in `num_events` events; what it cost."""
    size = -(-len(text) // num_events)
    chunks = [text[at : at + size] for at in range(0, len(text), size)]
    events = "".join(f"data: {json.dumps({'choices': [{'delta': {'content': chunk}}]})}\n\n" for chunk in chunks) + "data: [DONE]\n\n"

    def answer(route: Route) -> None:
        route.fulfill(body=events, headers={"content-type": "text/event-stream"})

    page.route("**/v1/chat/completions", answer)
    page.evaluate("longTasks.length = 0")
    before = cpu(devtools)
    began = time.monotonic()
    page.fill("#question", "x")
    page.press("#question", "Enter")
    page.wait_for_selector(".message.assistant:last-child:not(.streaming)", timeout=120_000)
    seconds = time.monotonic() - began
    held_up = long_tasks(page)
    frames, cpu_seconds = (after - earlier for after, earlier in zip(cpu(devtools), before, strict=True))
    return {"seconds": seconds, "frames": frames, "cpu_ms_a_frame": 1000 * cpu_seconds / frames} | held_up


def cpu(devtools: CDPSession) -> tuple[float, float]:
    """(frames that were laid out, CPU seconds of the page's thread) so far: what other programs take does not count."""
    metrics = {one["name"]: one["value"] for one in devtools.send("Performance.getMetrics")["metrics"]}
    return metrics["LayoutCount"], metrics["TaskDuration"]


def long_tasks(page: Page) -> dict[str, float]:
    """Number and longest, in ms, of the tasks that held up the page since they were last counted."""
    length = -1
    while length != (length := page.evaluate("document.getElementById('messages').textContent.length")):
        page.wait_for_timeout(1000)  # a flood is drawn over many frames
    tasks: list[float] = page.evaluate("longTasks.splice(0)")
    return {"long_tasks": len(tasks), "longest_ms": max(tasks, default=0.0), "together_ms": sum(tasks)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://localhost:8000")
    url = parser.parse_args().url
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=QUIET)
        usable = seconds_to_usable(browser, url)
        print(f"usable after: median {statistics.median(usable):.2f} s, worst {max(usable):.2f} s of {len(usable)}")
        page = browser.new_page()
        page.add_init_script(WATCH)
        devtools = page.context.new_cdp_session(page)
        devtools.send("Performance.enable", {"timeDomain": "threadTicks"})
        page.goto(url)
        page.wait_for_selector("html[data-ready]")
        whole = (PARAGRAPH * (100_000 // len(PARAGRAPH) + 1))[:100_000]
        print("100,000 characters in one answer:", stream(page, devtools, whole, 5_000))
        print("one short answer below it:", stream(page, devtools, PARAGRAPH, 20))
        page.reload()
        page.wait_for_selector(".message.assistant")
        print("reloading that conversation:", long_tasks(page))
        page.click("#new-chat")
        print("one line of 100,000 characters:", stream(page, devtools, ("春风又绿江南岸，" * 12_500), 5_000))
        browser.close()


if __name__ == "__main__":
    main()
