"""Lines from a file, from standard input and from a server; and what is said where there are none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from glmserve.protocol.errors import SettingsError
from glmserve.tools.slow.settings import SlowConfig, load_slow_settings
from glmserve.tools.slow.source import SourceError, find_slow, read_lines


def line(number: int, seconds: float, **fields: Any) -> bytes:
    body = {"event": "request", "timestamp": "2026-01-01T00:00:00Z", "request_id": str(number), "status": 200, "e2e_seconds": seconds}
    return json.dumps({**body, **fields}).encode() + b"\n"


REFUSED = json.dumps({"event": "refused", "status": 503, "code": "server_is_overloaded", "not_logged": 9}).encode() + b"\n"


def ids(source: str, **settings: Any) -> list[str]:
    return [found.request_id for found in find_slow(source, SlowConfig(**settings)).lines]


def test_a_log_with_other_lines_in_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"INFO: started\n" + line(1, 5) + line(2, 0.1) + b'{"half a li\n' + REFUSED + line(3, 2.0) + line(4, 3)[:-30])
    assert ids(str(log)) == ["3", "1"]
    assert ids(str(log), over=0.05) == ["3", "2", "1"]
    assert ids(str(log), last=1) == ["3"]
    assert find_slow(str(log), SlowConfig()).refusals == {"503 server_is_overloaded": 10}


def test_fields_of_another_version_do_no_harm() -> None:
    [found] = read_lines([line(1, 5, brand_new=[1, 2])], SlowConfig(), "log").lines
    assert found.request_id == "1"


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        find_slow(str(tmp_path / "missing"), SlowConfig())
    other = tmp_path / "other"
    other.write_text("a poem\nof two lines\n")
    with pytest.raises(SettingsError, match="no line about a request"):
        find_slow(str(other), SlowConfig())
    other.write_text("")
    assert find_slow(str(other), SlowConfig()).lines == []


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[httpx.Request], httpx.Response]], None]:
    def answer(handler: Callable[[httpx.Request], httpx.Response]) -> None:
        def get(url: str, **options: Any) -> httpx.Response:
            options.pop("timeout")
            with httpx.Client(transport=httpx.MockTransport(handler)) as client:
                return client.get(url, **options)

        monkeypatch.setattr(httpx, "get", get)

    return answer


@pytest.mark.parametrize("source", ["http://box:8000", "http://box:8000/", "box:8000"])
def test_a_server_is_asked(server: Callable[..., None], source: str) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert str(request.url) == "http://box:8000/slow?over=0.5&last=10" and request.headers["authorization"] == "Bearer k"
        return httpx.Response(200, content=b'{"requests": [' + line(7, 3) + b"]}")

    server(handler)
    assert ids(source, over=0.5, api_key="k") == ["7"]


@pytest.mark.parametrize(
    "response, words", [(httpx.Response(401), "--api-key"), (httpx.Response(404), "404"), (httpx.Response(200, text="<html>"), "glmserve")]
)
def test_a_server_that_does_not_tell(server: Callable[..., None], response: httpx.Response, words: str) -> None:
    server(lambda request: response)
    with pytest.raises(SourceError, match=words):
        find_slow("http://box:8000", SlowConfig())


def test_a_server_that_is_not_there(server: Callable[..., None]) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    server(handler)
    with pytest.raises(SourceError, match="does not answer"):
        find_slow("http://box:8000", SlowConfig())


@pytest.mark.parametrize(
    "given, seconds", [("2", 2.0), ("2s", 2.0), ("1.5 s", 1.5), ("500ms", 0.5), ("1min", 60.0), ("1m", 60.0), ("1h", 3600.0)]
)
def test_over_takes_units(given: str, seconds: float) -> None:
    assert load_slow_settings({"over": given}, {}).over == seconds


@pytest.mark.parametrize("given", ["soon", "-1", "2 hours", "s", "nan"])
def test_over_that_is_no_time(given: str) -> None:
    with pytest.raises(SettingsError, match="over cannot be"):
        load_slow_settings({"over": given}, {})
