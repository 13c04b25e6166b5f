"""Where lines of the request log come from: a file, standard input, or a running server."""

from __future__ import annotations

import re
import sys
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import msgspec

from glmserve.observe.request_record import RequestLine
from glmserve.protocol.errors import GlmserveError, SettingsError
from glmserve.tools.slow.settings import SlowConfig

TIMEOUT = 10.0
_HOST_AND_PORT = re.compile(r"[\w.-]+:\d+")


class SourceError(GlmserveError):
    """The server cannot be asked; the message says what to do."""


@dataclass
class Found:
    """Lines of slow requests, newest first, and how many requests were refused meanwhile, by status and code."""

    lines: list[RequestLine]
    refusals: Counter[str] = field(default_factory=Counter)


class _AnyLine(msgspec.Struct):
    """What tells a line of the request log from any other line."""

    event: str = ""
    status: int = 0
    code: str | None = None
    not_logged: int = 0


class _Listing(msgspec.Struct):
    requests: list[RequestLine]


def find_slow(source: str, config: SlowConfig) -> Found:
    """The slow requests of `source`: a URL, a file, or - for standard input.  Raises SettingsError and SourceError."""
    if source.startswith(("http://", "https://")):
        return _ask(source, config)
    if _HOST_AND_PORT.fullmatch(source) and not Path(source).exists():
        return _ask(f"http://{source}", config)
    if source == "-":
        return read_lines(sys.stdin.buffer, config, "standard input")
    path = Path(source)
    try:
        with path.open("rb") as file:
            return read_lines(file, config, source)
    except OSError as error:
        raise SettingsError(
            f"{source} cannot be read ({error.strerror}). Give the file that the server's standard error goes to, - for standard input, "
            "or a server as http://HOST:PORT."
        ) from error


def read_lines(lines: Iterable[bytes], config: SlowConfig, name: str) -> Found:
    """From a log, whose other lines are passed over.  Raises SettingsError where it has no line about any request."""
    slow: deque[RequestLine] = deque(maxlen=config.last)
    refusals: Counter[str] = Counter()
    num_requests = num_lines = 0
    for raw in lines:
        num_lines += 1
        line = _decode(raw)
        if isinstance(line, RequestLine):
            num_requests += 1
            if line.e2e_seconds >= config.over:
                slow.append(line)
        elif line is not None:
            refusals[f"{line.status} {line.code or ''}".strip()] += 1 + line.not_logged
    if num_lines and not num_requests and not refusals:
        raise SettingsError(
            f"{name} has no line about a request. It should hold what `glmserve serve` writes to standard error, "
            'one JSON object a line with "event": "request"; at --log-level warning and above there are none.'
        )
    return Found(list(reversed(slow)), refusals)


def _decode(raw: bytes) -> RequestLine | _AnyLine | None:
    """None for a line of something else, or one that was cut off."""
    if not raw.lstrip().startswith(b"{"):
        return None
    try:
        kind = msgspec.json.decode(raw, type=_AnyLine)
        if kind.event == "request":
            return msgspec.json.decode(raw, type=RequestLine)
    except msgspec.DecodeError:
        return None
    return kind if kind.event == "refused" else None


def _ask(url: str, config: SlowConfig) -> Found:
    headers = {"Authorization": f"Bearer {config.api_key}"} if config.api_key else {}
    address = f"{url.rstrip('/')}/slow"
    try:
        response = httpx.get(address, params={"over": config.over, "last": config.last}, headers=headers, timeout=TIMEOUT)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise SourceError(f"{url} does not answer ({error}). Is the server running? Or give its log file instead.") from error
    if response.status_code == 401:
        raise SourceError(f"{url} wants an API key: give it with --api-key or GLMSERVE_API_KEY.")
    try:
        response.raise_for_status()
        return Found(list(msgspec.json.decode(response.content, type=_Listing).requests))
    except (httpx.HTTPStatusError, msgspec.DecodeError) as error:
        raise SourceError(f"{address} does not list slow requests (status {response.status_code}): is this a glmserve server?") from error
