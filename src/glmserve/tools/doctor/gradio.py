"""Talks to a Gradio demo as its page does: over the queue, a WebSocket in Gradio 3, server-sent events since Gradio 4.

Which function answers is read from /config: the one that takes a text box and fills a chat box.  Its other inputs get the page's own
values, but a slider called something like "Maximum length" says how long the answer may be.
"""

from __future__ import annotations

import secrets
import time
from typing import Any

import httpx
import msgspec
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from glmserve.tools.doctor.finding import NotApplicableError
from glmserve.tools.doctor.reply import Reply
from glmserve.tools.doctor.service import Service

PROMPT_TOKENS = 6
CONTROLS = ("slider", "number", "checkbox", "dropdown", "radio")


class GradioDialect:
    """A dialect of `speaker`.  Raises NotApplicableError for a demo in which no function takes text and fills a chat."""

    def __init__(self, service: Service) -> None:
        config = service.gradio
        self._components = {component["id"]: component for component in config["components"]}
        self._number, self._inputs = self._chat_function(config["dependencies"])
        self._url = service.url + str(config.get("api_prefix") or "")
        self._headers = service.headers
        self._talk = self._over_events if config.get("protocol", "ws") != "ws" else self._over_socket
        self.can_stream = True
        if config.get("enable_queue") is False and "api_prefix" not in config:  # Gradio 3 without its queue
            self._talk, self.can_stream = self._directly, False

    def _chat_function(self, functions: list[dict[str, Any]]) -> tuple[int, list[dict[str, Any]]]:
        for number, function in enumerate(functions):
            inputs = [self._components[id_] for id_ in function["inputs"] if id_ in self._components]
            outputs = [self._components[id_]["type"] for id_ in function["outputs"] if id_ in self._components]
            if "chatbot" in outputs and any(one["type"] == "textbox" for one in inputs):
                return int(function.get("id", number)), inputs
        raise NotApplicableError("no function of this Gradio demo takes a text and fills a chat, as far as its /config tells")

    async def exchange(self, reply: Reply, text: str, num_tokens: int, stream: bool) -> None:
        """One message, in a session of its own, so that no history grows."""
        event = {"fn_index": self._number, "session_hash": secrets.token_hex(6)}
        data = {"data": self._values(text, num_tokens), "event_data": None, **event}
        try:
            await self._talk(reply, event, data)
        except WebSocketException as error:
            reply.fail(f"the queue's WebSocket broke: {error}")

    def _values(self, text: str, num_tokens: int) -> list[Any]:
        values: list[Any] = []
        for one in self._inputs:
            value = (one.get("props") or {}).get("value")
            label = str((one.get("props") or {}).get("label") or "").lower()
            if one["type"] == "textbox":
                values.append(text if text not in values else value or "")
            elif one["type"] == "chatbot":
                values.append(value or [])
            elif one["type"] == "slider" and "max" in label and ("length" in label or "token" in label):
                values.append(len(text) + PROMPT_TOKENS + num_tokens)
            else:
                values.append(value if one["type"] in CONTROLS else None)
        return values

    async def _over_socket(self, reply: Reply, event: dict[str, Any], data: dict[str, Any]) -> None:
        url = "ws" + self._url.removeprefix("http") + "/queue/join"
        async with connect(url, additional_headers=self._headers, proxy=None, max_size=None) as socket:
            async for raw in socket:
                message = msgspec.json.decode(raw)
                if message["msg"] == "send_hash":
                    await socket.send(msgspec.json.encode(event).decode())
                elif message["msg"] == "send_data":
                    await socket.send(msgspec.json.encode(data).decode())
                elif _is_last(message, reply):
                    return

    async def _over_events(self, reply: Reply, event: dict[str, Any], data: dict[str, Any]) -> None:
        async with httpx.AsyncClient(headers=self._headers, timeout=None, trust_env=False) as http:
            (await http.post(f"{self._url}/queue/join", json=data)).raise_for_status()
            parameters = {"session_hash": event["session_hash"]}
            async with http.stream("GET", f"{self._url}/queue/data", params=parameters) as response:
                async for line in response.aiter_lines():
                    if line.startswith("data:") and _is_last(msgspec.json.decode(line[5:]), reply):
                        return

    async def _directly(self, reply: Reply, event: dict[str, Any], data: dict[str, Any]) -> None:
        async with httpx.AsyncClient(headers=self._headers, timeout=None, trust_env=False) as http:
            (await http.post(f"{self._url}/run/predict", json=data)).raise_for_status()
        reply.piece(time.monotonic())

    def close(self) -> None:
        """Nothing is kept open."""


def _is_last(message: dict[str, Any], reply: Reply) -> bool:
    """Note what a message of the queue brings."""
    kind = message.get("msg")
    if kind == "process_generating":
        reply.piece(time.monotonic())
    elif kind == "process_completed":
        if message.get("success", True):
            reply.piece(time.monotonic())
        else:
            reply.fail(f"the demo's function failed: {(message.get('output') or {}).get('error') or 'it does not say why'}")
        return True
    elif kind in ("queue_full", "unexpected_error"):
        reply.fail(f"the demo's queue says {kind}")
        return True
    return False
