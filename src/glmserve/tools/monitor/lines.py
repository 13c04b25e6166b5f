"""The line for logs and cron: time | GPU | Mem | QPS, and what those leave open: busy by the engine's count, MBU, why it idles.

GPU and Mem are NVML's, as nvidia-smi has them; a dash where the server reports none.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from pathlib import Path

import httpx

from glmserve.observe.signals import IDLE, Unit, show
from glmserve.protocol.errors import SettingsError
from glmserve.tools.monitor.watched_server import WatchedServer

LEAST_IDLE = 0.005  # causes of idleness below this share are left out

AfterLook = Callable[[], object]


def line_of(server: WatchedServer, now: datetime, with_url: bool, seconds: float) -> str:
    """One line of a server, over the last `seconds`."""
    parts = [now.strftime("%Y-%m-%d %H:%M:%S"), *([server.url] if with_url else [])]
    if not server.reachable:
        return " | ".join([*parts, f"{server.state}: {server.reason}"])
    values = server.values(seconds)
    rate = values["requests_per_second"]
    parts += [
        f"GPU: {show(values['nvml_utilization'], Unit.SHARE)}",
        f"Mem: {show(values['nvml_memory'], Unit.SHARE)}",
        f"QPS: {'-' if rate is None else f'{rate:.1f}'}",
        f"busy: {show(values['gpu_busy'], Unit.SHARE)}",
        f"MBU: {show(values['mbu'], Unit.SHARE)}",
        f"idle: {idle_words(server.device_shares(seconds))}",
    ]
    return " | ".join([*parts, *([f"{server.state}: {server.reason}"] if server.reason else [])])


def idle_words(shares: dict[str, float]) -> str:
    """Why the device rests, the largest share first: "9% no work, 4% scheduling"."""
    if not shares:
        return "-"
    idle = {name.removeprefix(IDLE).replace("_", " "): share for name, share in shares.items() if name.startswith(IDLE)}
    causes = [f"{share:.0%} {cause}" for cause, share in sorted(idle.items(), key=lambda item: -item[1]) if share >= LEAST_IDLE]
    return ", ".join(causes) or "0%"


async def write_lines(
    servers: Sequence[WatchedServer],
    http: httpx.AsyncClient,
    write: Callable[[str], None],
    interval: float,
    look_seconds: float,
    rounds: int | None = None,
    after_look: AfterLook = lambda: None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """A line a server each `interval` seconds, for ever or `rounds` times.  Rates are those of the interval before the line.

    Between the lines it looks every `look_seconds`, for those who wait for `after_look`.
    """
    await look_at(servers, http)
    after_look()
    looks = max(1, round(interval / look_seconds))
    due, lines = time.monotonic(), 0
    while rounds is None or lines < rounds:
        for _ in range(looks):
            due += interval / looks
            await sleep(max(0.0, due - time.monotonic()))
            await look_at(servers, http)
            after_look()
        for server in servers:
            write(line_of(server, datetime.now(), len(servers) > 1, interval))
        lines += 1


async def look_at(servers: Sequence[WatchedServer], http: httpx.AsyncClient) -> None:
    """One look at all of them at once."""
    await asyncio.gather(*(server.look(http) for server in servers))


def line_writer(log: str) -> Callable[[str], None]:
    """Appends to the file, opened anew for each line so that it may be rotated away; "-" is stdout.  Raises SettingsError."""
    if log == "-":
        return _print
    path = Path(log)
    try:
        path.open("a", encoding="utf-8").close()
    except OSError as error:
        raise SettingsError(f"--log: {log} cannot be written: {error.strerror}.") from error

    def append(line: str) -> None:
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:  # a full disk must not end the watching
            print(f"glmserve: {log} cannot be written: {error.strerror}: {line}", file=sys.stderr)

    return append


def _print(line: str) -> None:
    print(line, flush=True)
