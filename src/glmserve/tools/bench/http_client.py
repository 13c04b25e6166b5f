"""A small HTTP/1.1 client that hands each piece of an answer on with the moment it arrived.

It knows POST, keep-alive, chunked bodies and TLS, and nothing else: at tens of thousands of events a second the general clients
are slower than the servers they are to measure.  Parsing is httptools', as in uvicorn.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from typing import Protocol
from urllib.parse import urlsplit

import httptools


class Receiver(Protocol):
    """Takes the answer to one request.  `now` is time.monotonic()."""

    def status(self, code: int) -> None:
        """Called first."""

    def body(self, data: bytes, now: float) -> None:
        """A piece of the body."""


class HttpClient:
    """Connections to one server: each carries one request at a time, and is kept for the next one."""

    def __init__(self, base_url: str, headers: dict[str, str]) -> None:
        url = urlsplit(base_url)
        self._host = url.hostname or "localhost"
        self._port = url.port or (443 if url.scheme == "https" else 80)
        self._ssl = ssl.create_default_context() if url.scheme == "https" else None
        self._prefix = url.path.rstrip("/")
        lines = {"Host": url.netloc.rpartition("@")[2], "Content-Type": "application/json", **headers}
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self._address: str | None = None
        self._idle: list[_Connection] = []

    async def post(self, path: str, body: bytes, receiver: Receiver) -> None:
        """Send a request and wait for all of its answer.  Raises OSError where the connection fails or breaks."""
        head = f"POST {self._prefix}{path} HTTP/1.1\r\n{self._headers}Content-Length: {len(body)}\r\n\r\n".encode()
        if (connection := self._take_idle()) is not None:
            try:
                return await self._exchange(connection, head + body, receiver)
            except _StaleConnectionError:  # the server closed it while it was idle, and never saw this request
                pass
        await self._exchange(await self._connect(), head + body, receiver)

    def close(self) -> None:
        """Close what is idle."""
        while self._idle:
            self._idle.pop().transport.close()

    async def _exchange(self, connection: _Connection, request: bytes, receiver: Receiver) -> None:
        done = False
        try:
            await connection.exchange(request, receiver)
            done = True
        finally:
            if done and connection.reusable:
                self._idle.append(connection)
            else:
                connection.transport.abort()  # given up: the server shall notice

    def _take_idle(self) -> _Connection | None:
        while self._idle:
            if not (connection := self._idle.pop()).transport.is_closing():
                return connection
        return None

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        name = self._host if self._ssl else None
        if self._address is not None:
            return (await loop.create_connection(_Connection, self._address, self._port, ssl=self._ssl, server_hostname=name))[1]
        _, connection = await loop.create_connection(_Connection, self._host, self._port, ssl=self._ssl)
        self._address = connection.transport.get_extra_info("peername")[0]  # a name is looked up once
        return connection


class _StaleConnectionError(ConnectionError):
    """A kept connection that was closed before it brought anything."""


class _Connection(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self) -> None:
        self._done: asyncio.Future[None] | None = None
        self._used_before = False
        self.reusable = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvloop's is no subclass of it
        self.transport = transport

    async def exchange(self, request: bytes, receiver: Receiver) -> None:
        self._receiver = receiver
        self._done = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._answered = self._has_length = False
        self.reusable = False
        self.transport.write(request)
        try:
            await self._done
        finally:
            self._done = None
            self._used_before = True

    def data_received(self, data: bytes) -> None:
        self._now = time.monotonic()
        self._answered = True
        if self._done is None:  # nobody asked
            self.transport.abort()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(ConnectionError(f"the answer is not HTTP: {error}"))

    def connection_lost(self, error: Exception | None) -> None:
        if self._answered and not self._has_length and error is None:
            self._end(None)  # a body without a length ends with its connection
        elif self._used_before and not self._answered:
            self._end(_StaleConnectionError("closed while idle"))
        else:
            self._end(ConnectionError(f"the connection broke: {error or 'closed by the server'}"))

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._has_length = True

    def on_headers_complete(self) -> None:
        self._receiver.status(self._parser.get_status_code())

    def on_body(self, data: bytes) -> None:
        self._receiver.body(data, self._now)

    def on_message_complete(self) -> None:
        self.reusable = self._parser.should_keep_alive()
        self._end(None)

    def _end(self, error: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            if error is None:
                self._done.set_result(None)
            else:
                self._done.set_exception(error)
