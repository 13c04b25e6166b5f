"""A small server whose /metrics, /ready and /slow say what a test wrote, and a clock that the test turns."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

QUANTILE_BOUNDS = ("0.1", "0.2", "0.4", "+Inf")


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class MetricsServer(ThreadingHTTPServer):
    """`values` are samples by name, with labels as they stand on the page; None in `ready` or `slow` is a 404."""

    daemon_threads = True

    def __init__(self, prefix: str = "glmserve:") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.prefix = prefix
        self.values: dict[str, float] = {}
        self.ready: tuple[int, dict[str, Any]] | None = (200, {"status": "ready", "reason": None})
        self.slow: list[dict[str, Any]] | None = []
        self.slow_answer: tuple[int, object] | None = None  # in place of `slow`
        self.page: tuple[int, str] | None = None  # in place of `values`
        self.asked: list[str] = []
        self.keys: set[str | None] = set()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """No longer there."""
        self.shutdown()
        self.server_close()

    def grow(self, **more: float) -> None:
        """Counters go on."""
        for name, value in more.items():
            self.values[name] = self.values.get(name, 0.0) + value

    def observe(self, name: str, bucket: int, count: float) -> None:
        """`count` new observations of a histogram that lie in this bucket."""
        for index, bound in enumerate(QUANTILE_BOUNDS):
            key = f'{name}_bucket{{le="{bound}"}}'
            self.grow(**{key: count if index >= bucket else 0.0})
        self.grow(**{name + "_count": count, name + "_sum": 0.1 * count})

    def text(self) -> str:
        """The page, with a TYPE line a family."""
        histograms = {key.split("_bucket")[0] for key in self.values if "_bucket" in key}
        names = dict.fromkeys(_family(key, histograms) for key in self.values)
        lines = []
        for name in names:
            shown = name if name.startswith("http_") else self.prefix + name
            kind = "histogram" if name in histograms else "gauge"
            lines.append(f"# HELP {shown} Help of {name}")
            lines.append(f"# TYPE {shown} {'counter' if name.endswith('_total') else kind}")
            own = [key for key in self.values if _family(key, histograms) == name]
            lines += [f"{'' if key.startswith('http_') else self.prefix}{key} {self.values[key]}" for key in own]
        return "\n".join(lines) + "\n"


def _family(key: str, histograms: set[str]) -> str:
    """The family of a sample: a histogram has three kinds of them."""
    name = key.split("{")[0]
    short = name.removesuffix("_bucket").removesuffix("_count").removesuffix("_sum")
    return short if short in histograms else name


class _Handler(BaseHTTPRequestHandler):
    server: MetricsServer

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.server.keys.add(self.headers.get("Authorization"))
        path = self.path.split("?")[0]
        if path == "/metrics":
            status, text = self.server.page or (200, self.server.text())
            self._send(status, text.encode())
        elif path == "/ready" and self.server.ready is not None:
            self._send(self.server.ready[0], json.dumps(self.server.ready[1]).encode())
        elif path == "/slow" and self.server.slow_answer is not None:
            self._send(self.server.slow_answer[0], json.dumps(self.server.slow_answer[1]).encode())
        elif path == "/slow" and self.server.slow is not None:
            self._send(200, json.dumps({"requests": self.server.slow}).encode())
        else:
            self._send(404, b"{}")

    def _send(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
