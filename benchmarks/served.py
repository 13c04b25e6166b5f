"""A server in a process of its own for as long as a benchmark runs, the bench command pointed at it, and what CPU it took."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


class Served:
    """`with Served(command) as server`: started with `--host 127.0.0.1 --port P` added, ready inside, ended after."""

    def __init__(self, command: list[str], start_timeout: float = 300.0) -> None:
        """Raises RuntimeError with the server's last words where it does not become ready."""
        self._port = _free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # closed in __exit__
        started = time.monotonic()
        self.process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(self._port)], stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
        )
        try:
            self._wait_ready(started + start_timeout)
        except BaseException:
            self._stop()
            raise
        self.start_seconds = time.monotonic() - started

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop()
        self._log.close()

    def cpu_seconds(self) -> float:
        """CPU time of the front-end process, all threads, user and system; its engine is another process."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS

    def metric(self, name: str, labels: str = "") -> float:
        """Sum of a metric's samples, or of those whose labels hold a text such as `status="200"`."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as response:
            lines = response.read().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((name + "{", name + " ")) and labels in line)

    def bench(self, *flags: str) -> dict[str, Any]:
        """`glmserve bench serve` against it, in a process of its own: the figures, under vLLM's names."""
        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder) / "result.json"
            command = [sys.executable, "-m", "glmserve", "bench", "serve", "--base-url", self.url, "--save-result", str(result)]
            done = subprocess.run([*command, "--disable-tqdm", *flags], capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{' '.join(flags)}:\n{done.stdout}{done.stderr}\nthe server's last words:\n{self.last_words()}")
            figures: dict[str, Any] = json.loads(result.read_text())
        if figures["failed"]:
            print(f"{figures['failed']} of {figures['num_prompts']} requests failed: {figures['error_examples']}", file=sys.stderr)
        return figures

    def last_words(self) -> str:
        """The end of its log."""
        self._log.seek(0)
        return "\n".join(self._log.read().decode(errors="replace").splitlines()[-30:])

    def _wait_ready(self, deadline: float) -> None:
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.url}/ready", timeout=5):
                    return
            except (urllib.error.URLError, OSError):  # not listening yet, or 503
                time.sleep(0.2)
        raise RuntimeError(f"the server did not become ready:\n{self.last_words()}")

    def _stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def where_and_when() -> str:
    """Date, commit and load of this machine, for the head of a table."""
    commit = _git("rev-parse", "--short", "HEAD") or "unknown"
    changed = _git("status", "--porcelain", "--untracked-files=no", "../src")
    load = os.getloadavg()[0]
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC; commit {commit}{' with local changes' if changed else ''}; "
        f"{cpu_name()}, {os.cpu_count()} cores; load before the run {load:.1f}"
    )


def _git(*arguments: str) -> str:
    """What git says; nothing where there is no git or no repository."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def cpu_name() -> str:
    """As the kernel names it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
