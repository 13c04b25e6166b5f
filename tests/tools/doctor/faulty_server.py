"""A small server with the fault that a test wants, speaking OpenAI's protocol or api.py's.  A token takes `token_seconds`."""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FaultyServer(ThreadingHTTPServer):
    """Healthy as it stands; each attribute spoils one thing."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, handler: type[BaseHTTPRequestHandler] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), handler or Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.token_seconds = 0.02
        self.is_chatglm = False
        self.one_at_a_time = False
        self.blocks_pages = False
        self.page_seconds = 0.0
        self.page_status = 200
        self.streams = True
        self.holds_stream_back = False
        self.notices_leaving = True
        self.notices_leaving_whole = True  # of answers that are not streamed
        self.word = "word"
        self.max_running = 1000
        self.refuses = 0  # status of every message
        self.refuses_chat = False
        self.key = ""
        self.has_metrics = True
        self.more_metrics = ""
        self.num_running = 0
        self.num_tokens = 0
        self.bodies: list[dict[str, Any]] = []
        self.turn = threading.Lock()
        self.counting = threading.Lock()

    @contextmanager
    def running(self) -> Iterator[None]:
        with self.turn if self.one_at_a_time else nullcontext():
            with self.counting:
                self.num_running += 1
            try:
                yield
            finally:
                with self.counting:
                    self.num_running -= 1

    def metrics(self) -> str:
        lines = [f"glmserve:num_requests_running {self.num_running}", f"glmserve:generation_tokens_total {self.num_tokens}"]
        return "\n".join([*lines, self.more_metrics, ""])


class Handler(BaseHTTPRequestHandler):
    """Keeps connections."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: FaultyServer

    def log_message(self, *_: object) -> None:
        pass

    def handle(self) -> None:
        with suppress(ConnectionError):  # a client that left
            super().handle()

    def do_GET(self) -> None:
        server = self.server
        if server.key and self.headers.get("Authorization") != f"Bearer {server.key}":
            return self._send(401, {"error": {"message": "a key is missing"}})
        if self.path == "/metrics" and server.has_metrics:
            return self._send_bytes(200, server.metrics().encode())
        if self.path != ("/openapi.json" if server.is_chatglm else "/v1/models"):
            return self._send(404, {})
        with server.turn if server.blocks_pages else nullcontext():
            time.sleep(server.page_seconds)
        if server.is_chatglm:
            return self._send(server.page_status, {"paths": {"/": {"post": {}}}})
        return self._send(server.page_status, {"data": [{"id": "faulty-6b", "max_model_len": 2048}]})

    def do_POST(self) -> None:
        server, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.bodies.append(body)
        if server.refuses:
            return self._send(server.refuses, {"error": {"message": "the engine is dead"}})
        if server.refuses_chat and self.path == "/v1/chat/completions":
            return self._send(404, {"error": {"message": "no chat format"}})
        if server.num_running >= server.max_running:
            return self._send(429, {"error": {"message": "too many"}})
        with server.running():
            if server.is_chatglm:
                return self._whole({"response": "字", "history": []}, max(1, body["max_length"] - 20))
            if not (body["stream"] and server.streams):
                return self._whole({"choices": [{"message": {"content": self.server.word}}]}, body["max_tokens"])
            return self._stream(body["max_tokens"])

    def _tokens(self, count: int, notices: bool = True) -> Iterator[None]:
        for _ in range(count):
            time.sleep(self.server.token_seconds)
            if notices and self.server.notices_leaving and self._client_left():
                return
            self.server.num_tokens += 1
            yield

    def _client_left(self) -> bool:
        try:
            return bool(select.select([self.connection], [], [], 0)[0]) and not self.connection.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def _whole(self, answer: dict[str, Any], num_tokens: int) -> None:
        for _ in self._tokens(num_tokens, self.server.notices_leaving_whole):
            pass
        self._send(200, answer)

    def _stream(self, num_tokens: int) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        event = b'data: {"choices": [{"delta": {"content": "%s"}}]}\n\n' % self.server.word.encode()
        held_back = b""
        for _ in self._tokens(num_tokens):
            if self.server.holds_stream_back:
                held_back += event
            else:
                self._chunk(event)
        self._chunk(held_back + b"data: [DONE]\n\n")
        self._chunk(b"")

    def _chunk(self, data: bytes) -> None:
        try:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        except ConnectionError:
            if self.server.notices_leaving:
                raise

    def _send(self, status: int, body: Any) -> None:
        self._send_bytes(status, json.dumps(body).encode())

    def _send_bytes(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class ForgetfulHandler(Handler):
    """Closes the connection after every answer."""

    protocol_version = "HTTP/1.0"
