"""`make demo`: starts a server with the built-in model, asks it something, puts eight clients on it, prints figures, ends it.

A client like any other: it knows the server's HTTP face only.
"""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

QUESTION = "以春日为题写一首七言绝句"
TOPICS = ["大海", "明月", "冬夜", "梅花", "江南", "夜雨", "琴声", "思乡"]
NUM_CLIENTS = 8
REQUESTS_PER_CLIENT = 2
MAX_TOKENS = 48
START_SECONDS = 300.0

console = Console(highlight=False)


@dataclass
class Answer:
    """One request as its client saw it; times in seconds."""

    text: str
    num_tokens: int
    first_token: float
    latency: float


def main() -> None:
    """Run the whole demonstration."""
    with running_server() as url, httpx.Client(base_url=url, timeout=300) as client:
        body = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 2 * MAX_TOKENS}
        console.rule("one question over HTTP")
        curl = f"curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{json.dumps(body, ensure_ascii=False)}'\n"
        console.print(curl, markup=False, soft_wrap=True)
        answer = ask(client, body)
        console.print(f"[bold]{QUESTION}[/bold]\n{answer.text.strip()}")
        console.rule(f"{NUM_CLIENTS} clients at once, against one")
        rows = [measure(url, num_clients) for num_clients in (1, NUM_CLIENTS)]
    console.print(table_of(rows))
    console.print("The server has been stopped. `make serve` keeps one running.")


@contextmanager
def running_server() -> Iterator[str]:
    """A server with the built-in model on a free port; its own words go to this terminal."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [sys.executable, "-m", "glmserve", "serve", "demo", "--host", "127.0.0.1", "--port", str(port), "--log-level", "warning"]
    console.rule(f"glmserve serve demo --port {port}")
    process = subprocess.Popen(command)
    try:
        wait_until_ready(process, url)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(process: subprocess.Popen[bytes], url: str) -> None:
    """Return once /ready says so.  Ends the demonstration where the server ended or takes too long."""
    start = time.monotonic()
    while time.monotonic() - start < START_SECONDS:
        if process.poll() is not None:
            sys.exit("The server ended before it was ready; its last words are above.")
        try:
            if httpx.get(f"{url}/ready", timeout=2).is_success:
                console.print(f"Ready after {time.monotonic() - start:.1f} s.")
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    sys.exit(f"The server was not ready after {START_SECONDS:.0f} s.")


def ask(client: httpx.Client, body: dict[str, Any]) -> Answer:
    """Stream one answer, as a chat page would."""
    start = time.monotonic()
    text, num_tokens, first_token = "", 0, 0.0
    with client.stream(
        "POST", "/v1/chat/completions", json={**body, "stream": True, "stream_options": {"include_usage": True}}
    ) as response:
        if response.is_error:
            sys.exit(f"The server answered {response.status_code}: {response.read().decode()}")
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            for choice in event.get("choices", []):
                text += choice["delta"].get("content") or ""
                first_token = first_token or (time.monotonic() - start if text else 0.0)
            if event.get("usage"):
                num_tokens = event["usage"]["completion_tokens"]
    if not num_tokens:
        sys.exit("The server sent no tokens.")
    return Answer(text, num_tokens, first_token, time.monotonic() - start)


def measure(url: str, num_clients: int) -> list[str]:
    """A row of figures: `num_clients` clients, each asking its questions one after the other."""

    def one_client(index: int) -> list[Answer]:
        with httpx.Client(base_url=url, timeout=300) as client:
            return [ask(client, story_request(index + turn)) for turn in range(REQUESTS_PER_CLIENT)]

    start = time.monotonic()
    with ThreadPoolExecutor(num_clients) as pool:
        answers = [answer for answers in pool.map(one_client, range(num_clients)) for answer in answers]
    seconds = time.monotonic() - start
    latencies = sorted(answer.latency for answer in answers)
    figures = [
        len(answers) / seconds,
        sum(answer.num_tokens for answer in answers) / seconds,
        statistics.median(answer.first_token for answer in answers),
        statistics.mean(latencies),
        statistics.median(latencies),
        latencies[min(len(latencies) - 1, int(0.99 * len(latencies)))],
    ]
    return [str(num_clients), *(f"{figure:.2f}" for figure in figures)]


def story_request(number: int) -> dict[str, Any]:
    """A request whose answer takes all its tokens, so that rows compare."""
    topic = TOPICS[number % len(TOPICS)]
    return {"messages": [{"role": "user", "content": f"写一首关于{topic}的五言律诗"}], "max_tokens": MAX_TOKENS, "ignore_eos": True}


def table_of(rows: list[list[str]]) -> Table:
    """The figures side by side, 80 columns wide."""
    table = Table(
        caption=f"latencies in seconds; each answer has {MAX_TOKENS} tokens, each client asks {REQUESTS_PER_CLIENT} times",
        box=SIMPLE,
        padding=(0, 1),
        pad_edge=False,
    )
    for title in ("clients", "requests/s", "tokens/s", "first token", "latency mean", "p50", "p99"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


if __name__ == "__main__":
    main()
