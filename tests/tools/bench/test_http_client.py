"""The client against servers that are written out byte by byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from glmserve.tools.bench.http_client import HttpClient

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


class Seen:
    def __init__(self) -> None:
        self.code = 0
        self.data = b""

    def status(self, code: int) -> None:
        self.code = code

    def body(self, data: bytes, now: float) -> None:
        self.data += data


class Scripted:
    """Answers requests with `answers` in turn; None closes the connection. Counts connections."""

    def __init__(self, *answers: bytes | None, close_after: bool = False) -> None:
        self.answers = list(answers)
        self.close_after = close_after
        self.num_connections = 0
        self.requests: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(length))
                if (answer := self.answers.pop(0)) is None:
                    break
                writer.write(answer)
                if self.close_after:
                    break
        except asyncio.IncompleteReadError:
            pass


@asynccontextmanager
async def serving(handler: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[HttpClient]:
    connections: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.append(task)
        try:
            await handler(reader, writer)
        except ConnectionError:  # the client broke it off
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    client = HttpClient(f"http://localhost:{server.sockets[0].getsockname()[1]}/base", {"Authorization": "Bearer k"})
    try:
        yield client
    finally:
        client.close()
        await asyncio.wait_for(asyncio.gather(*connections), 10)
        server.close()
        await asyncio.sleep(0)


async def post(client: HttpClient) -> tuple[int, bytes]:
    seen = Seen()
    await asyncio.wait_for(client.post("/path", b"{}", seen), 10)
    return seen.code, seen.data


async def test_a_request_and_its_kept_connection() -> None:
    server = Scripted(OK, b"HTTP/1.1 404 No\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n3\r\nbcd\r\n0\r\n\r\n")
    async with serving(server.serve) as client:
        assert await post(client) == (200, b"hi")
        assert await post(client) == (404, b"abcd")
    assert server.num_connections == 1
    assert server.requests[0].startswith(b"POST /base/path HTTP/1.1\r\nHost: localhost:")
    assert b"Authorization: Bearer k\r\n" in server.requests[0]


async def test_requests_together_have_connections_of_their_own() -> None:
    server = Scripted(*[OK] * 5)
    async with serving(server.serve) as client:
        assert await asyncio.gather(*(post(client) for _ in range(5))) == [(200, b"hi")] * 5
    assert server.num_connections == 5


async def test_a_connection_closed_while_idle_is_replaced() -> None:
    server = Scripted(OK, None, OK)  # the second request finds the door closed, and is sent again
    async with serving(server.serve) as client:
        await post(client)
        assert await post(client) == (200, b"hi")
    assert server.num_connections == 2


async def test_a_body_without_a_length_ends_with_its_connection() -> None:
    server = Scripted(b"HTTP/1.1 200 OK\r\n\r\nall of it", close_after=True)
    async with serving(server.serve) as client:
        assert await post(client) == (200, b"all of it")


@pytest.mark.parametrize("answer", [None, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi", b"SSH-2.0-OpenSSH\r\n"])
async def test_broken_answers_are_connection_errors(answer: bytes | None) -> None:
    async with serving(Scripted(answer, close_after=True).serve) as client:
        with pytest.raises(ConnectionError):
            await post(client)


async def test_a_request_given_up_closes_its_connection() -> None:
    gone = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1000):
            pass
        gone.set()

    async with serving(silent) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.post("/", b"{}", Seen())
        await asyncio.wait_for(gone.wait(), 10)
