"""Which kind of server answers at a URL, found out by asking; nothing is generated for it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit

import httpx

from glmserve.observe.readings import Readings
from glmserve.protocol.errors import EngineUnavailableError, SettingsError


class Kind(StrEnum):
    """What a server speaks, and as far as it shows, what it is."""

    GLMSERVE = "glmserve"
    VLLM = "vLLM"
    OPENAI = "an OpenAI-compatible server"
    CHATGLM = "a ChatGLM-6B api.py"
    GRADIO = "a Gradio demo"
    UNKNOWN = "an HTTP server of another kind"


SPEAK_OPENAI = frozenset({Kind.GLMSERVE, Kind.VLLM, Kind.OPENAI})


@dataclass(frozen=True)
class Service:
    """A running server.  `page` is a path that costs it next to nothing, `max_model_len` is in tokens."""

    kind: Kind
    url: str
    page: str = "/"
    model: str = ""
    max_model_len: int | None = None
    has_metrics: bool = False
    gradio: dict[str, Any] = field(default_factory=dict)  # its /config
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def host(self) -> str:
        """Name or address, without port."""
        return urlsplit(self.url).hostname or "localhost"

    @property
    def port(self) -> int:
        """The port it listens on."""
        url = urlsplit(self.url)
        return url.port or (443 if url.scheme == "https" else 80)

    @property
    def is_ours(self) -> bool:
        """Whether it is this product's own server."""
        return self.kind is Kind.GLMSERVE

    async def metrics(self, http: httpx.AsyncClient) -> Readings | None:
        """Its /metrics page now; None where it has none."""
        if not self.has_metrics:
            return None
        return await _metrics(http)


def http_client(url: str, headers: dict[str, str], timeout: float) -> httpx.AsyncClient:
    """For pages; messages go through the client of `bench`, which notes the moment of each piece."""
    return httpx.AsyncClient(base_url=url, headers=headers, timeout=timeout, trust_env=False)


async def recognise(url: str, api_key: str | None, timeout: float) -> Service:
    """Ask until it is clear.  Raises EngineUnavailableError where nothing answers, SettingsError where a key is wanted."""
    url = url.rstrip("/").removesuffix("/v1")
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    async with http_client(url, headers, timeout) as http:
        try:
            for look in (_openai, _gradio, _chatglm):
                if (service := await look(http, url, headers)) is not None:
                    return service
            await http.get("/")
            return Service(Kind.UNKNOWN, url, headers=headers)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise EngineUnavailableError(
                f"nothing answers at {url} ({error or type(error).__name__}). Is it running, and is this its port? "
                "A server of your own: `glmserve serve MODEL`. A model folder: `glmserve doctor FOLDER`."
            ) from error


async def _openai(http: httpx.AsyncClient, url: str, headers: dict[str, str]) -> Service | None:
    response = await http.get("/v1/models")
    if response.status_code == 401:
        raise SettingsError("the server wants a key: give it with --api-key or GLMSERVE_API_KEY.")
    try:
        entry = response.raise_for_status().json()["data"][0]
        model = str(entry["id"])
    except (httpx.HTTPStatusError, ValueError, LookupError, TypeError):
        return None
    readings = await _metrics(http)
    kind = {"glmserve:": Kind.GLMSERVE, "vllm:": Kind.VLLM}.get(readings.prefix if readings else "", Kind.OPENAI)
    length = entry.get("max_model_len")
    return Service(
        kind, url, "/v1/models", model, length if isinstance(length, int) else None, has_metrics=readings is not None, headers=headers
    )


async def _metrics(http: httpx.AsyncClient) -> Readings | None:
    response = await http.get("/metrics")
    try:
        return Readings.parse(response.text, time.monotonic()) if response.is_success else None
    except ValueError:  # a page, but not Prometheus' format
        return None


async def _gradio(http: httpx.AsyncClient, url: str, headers: dict[str, str]) -> Service | None:
    response = await http.get("/config")
    try:
        config = response.raise_for_status().json()
        if "components" not in config or "dependencies" not in config:
            return None
    except (httpx.HTTPStatusError, ValueError, TypeError):
        return None
    return Service(Kind.GRADIO, url, "/", str(config.get("title") or ""), gradio=config, headers=headers)


async def _chatglm(http: httpx.AsyncClient, url: str, headers: dict[str, str]) -> Service | None:
    """api.py is a FastAPI with one path: POST /."""
    response = await http.get("/openapi.json")
    try:
        paths = response.raise_for_status().json()["paths"]
        if "post" not in paths["/"]:
            return None
    except (httpx.HTTPStatusError, ValueError, LookupError, TypeError):
        return None
    return Service(Kind.CHATGLM, url, "/openapi.json", headers=headers)
