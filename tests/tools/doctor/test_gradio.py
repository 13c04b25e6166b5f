"""A Gradio demo is spoken to as its page does: over the WebSocket of Gradio 3, the events of later ones, or without a queue."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse

from glmserve.tools.doctor.finding import Verdict
from tests.tools.doctor.examining import finding, look

PIECES, PIECE_SECONDS = 6, 0.05
COMPONENTS = [
    {"id": 1, "type": "html", "props": {"value": "<h1>ChatGLM</h1>"}},
    {"id": 2, "type": "chatbot", "props": {"value": None}},
    {"id": 3, "type": "textbox", "props": {"value": ""}},
    {"id": 4, "type": "slider", "props": {"value": 2048, "label": "Maximum length"}},
    {"id": 5, "type": "slider", "props": {"value": 0.7, "label": "Top P"}},
    {"id": 6, "type": "state", "props": {}},
]
CLEAR = {"id": 0, "inputs": [], "outputs": [2]}
CHAT = {"id": 1, "inputs": [3, 2, 4, 5, 6], "outputs": [2, 6]}


class Demo:
    """The parts of a demo's server that its page uses; one answer at a time, as Gradio does it."""

    def __init__(self, **config: Any) -> None:
        self.app = FastAPI()
        self.config = {"components": COMPONENTS, "dependencies": [CLEAR, CHAT], **config}
        self.data: list[list[Any]] = []
        self.fails = False
        self._turn = asyncio.Lock()
        self._sessions: dict[str, Any] = {}
        self.app.get("/config")(lambda: self.config)
        self.app.get("/")(lambda: "page")
        self.app.websocket("/queue/join")(self.socket)
        self.app.post("/gradio_api/queue/join")(self.join)
        self.app.get("/gradio_api/queue/data")(self.events)
        self.app.post("/run/predict")(self.predict)

    async def messages(self) -> Any:
        async with self._turn:
            if self.fails:
                yield {"msg": "process_completed", "success": False, "output": {"error": "CUDA out of memory"}}
                return
            yield {"msg": "process_starts"}
            for _ in range(PIECES):
                await asyncio.sleep(PIECE_SECONDS)
                yield {"msg": "process_generating", "output": {"data": []}, "success": True}
            yield {"msg": "process_completed", "output": {"data": []}, "success": True}

    async def socket(self, socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_json({"msg": "send_hash"})
        assert (await socket.receive_json())["fn_index"] == 1
        await socket.send_json({"msg": "send_data"})
        self.data.append((await socket.receive_json())["data"])
        async for message in self.messages():
            await socket.send_json(message)
        await socket.close()

    async def join(self, request: Request) -> Any:
        body = await request.json()
        self.data.append(body["data"])
        return {"event_id": body["session_hash"]}

    async def events(self, session_hash: str) -> Any:
        async def lines() -> Any:
            async for message in self.messages():
                yield f"data: {json.dumps(message)}\n\n"

        return StreamingResponse(lines(), media_type="text/event-stream")

    async def predict(self, request: Request) -> Any:
        self.data.append((await request.json())["data"])
        await asyncio.sleep(PIECE_SECONDS)
        return {"data": []}


@pytest.fixture
def serve() -> Iterator[Callable[[Demo], str]]:
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def serve(demo: Demo) -> str:
        server = uvicorn.Server(uvicorn.Config(demo.app, port=0, log_level="error", ws="websockets-sansio", lifespan="off"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        running.append((server, thread))
        deadline = time.monotonic() + 15
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

    yield serve
    for server, thread in running:
        server.should_exit = True
        thread.join(timeout=10)


@pytest.mark.parametrize("config", [{}, {"protocol": "sse_v3", "api_prefix": "/gradio_api", "enable_queue": True}], ids=["3", "5"])
def test_a_demo_answers_one_at_a_time_and_streams(serve: Callable[[Demo], str], config: dict[str, Any]) -> None:
    demo = Demo(**config)
    examined = look(serve(demo), "answers,pulses,streaming,served_dtype")
    verdicts = {check.name: found.verdict for check, found in examined.findings}
    assert examined.about.startswith("a Gradio demo at")
    assert verdicts == {"answers": Verdict.OK, "pulses": Verdict.FAIL, "streaming": Verdict.OK, "served_dtype": Verdict.SKIPPED}
    text, chat, length, top_p, state = demo.data[0]
    assert (chat, top_p, state) == ([], 0.7, None)
    assert text and length < 50  # the demo's own is 2048


def test_a_demo_without_a_queue(serve: Callable[[Demo], str]) -> None:
    examined = look(serve(Demo(enable_queue=False)), "answers,streaming")
    assert [found.verdict for _, found in examined.findings] == [Verdict.OK, Verdict.FAIL]


def test_a_demo_whose_function_fails(serve: Callable[[Demo], str]) -> None:
    demo = Demo()
    demo.fails = True
    found = finding(serve(demo), "answers")
    assert found.verdict is Verdict.FAIL
    assert "CUDA out of memory" in found.summary


def test_a_demo_that_is_no_chat_is_examined_as_far_as_it_goes(serve: Callable[[Demo], str]) -> None:
    examined = look(serve(Demo(dependencies=[CLEAR])), "answers,web_layer,keep_alive")
    by_name = {check.name: found for check, found in examined.findings}
    assert "no function of this Gradio demo" in by_name["answers"].summary
    assert by_name["web_layer"].verdict is by_name["keep_alive"].verdict is Verdict.OK
