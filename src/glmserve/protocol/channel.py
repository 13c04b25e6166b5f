"""One socket pair between front end and engine: ZeroMQ over ipc://, msgpack frames.  No torch, no fastapi.

It carries the messages of `protocol.messages` and knows nothing of their meaning.  Each engine process gets a channel of its
own, so nothing said to or by a dead engine can reach its successor.  The front end binds in a private folder, the engine connects.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import zmq
import zmq.asyncio

from glmserve.protocol.messages import FromEngine, ToEngine

Message = TypeVar("Message")

MAX_IPC_PATH = 100  # the kernel takes 107 bytes
EXIT_LINGER_MS = 2000  # how long a closing engine waits for its last words to leave


class MessageError(Exception):
    """A frame that is not a valid message.  `request_id` where it was a request whose id could still be read."""

    def __init__(self, message: str, request_id: str | None = None) -> None:
        super().__init__(message)
        self.request_id = request_id


class FrontEndChannel:
    """The asyncio side.  Creates the socket's folder (mode 0700) and removes it in `close`."""

    def __init__(self) -> None:
        self._folder = _private_folder()
        self.address = f"ipc://{self._folder / 'engine'}"
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.DEALER)
        _without_limits(self._socket)
        self._socket.linger = 0
        self._socket.bind(self.address)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)

    def send(self, message: ToEngine) -> None:
        """Hands the message over; never blocks.  Raises ConnectionError where no engine is connected."""
        sent = asyncio.ensure_future(self._socket.send(self._encoder.encode(message), zmq.NOBLOCK))
        error = sent.exception()  # NOBLOCK: zmq.asyncio tried at once, and its future is done
        if error is not None:
            raise ConnectionError("the engine is not connected") from error

    async def receive(self) -> FromEngine:
        """The next message.  Raises MessageError for a frame that is none; the channel goes on."""
        return _decode(self._decoder, await self._socket.recv())

    async def wait(self, seconds: float) -> bool:
        """True where a message is there within `seconds`."""
        return bool(await self._socket.poll(int(seconds * 1000)))

    def close(self) -> None:
        """Drops what is unsent and removes the folder."""
        self._socket.close()
        self._context.term()
        shutil.rmtree(self._folder, ignore_errors=True)


class EngineChannel:
    """The blocking side, for the engine's one loop."""

    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        _without_limits(self._socket)
        self._socket.connect(address)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)

    def send(self, message: FromEngine) -> None:
        """Hands the message over; never blocks."""
        self._socket.send(self._encoder.encode(message))

    def receive(self, timeout: float = 0.0) -> ToEngine | None:
        """The next message, or None where none comes within `timeout` seconds.  Raises MessageError for a frame that is none."""
        if not self._socket.poll(int(timeout * 1000)):
            return None
        return _decode(self._decoder, self._socket.recv())

    def close(self) -> None:
        """Lets what was sent leave, for two seconds at most."""
        self._socket.close(linger=EXIT_LINGER_MS)
        self._context.term()


def _decode(decoder: msgspec.msgpack.Decoder[Message], frame: bytes) -> Message:
    try:
        return decoder.decode(frame)
    except Exception as error:  # SamplingParams checks itself on decoding, so this is more than msgspec's own errors
        raise MessageError(f"cannot read a frame of {len(frame)} bytes: {error}", _request_id(frame)) from error


def _request_id(frame: bytes) -> str | None:
    """The id of a request that does not decode, so that it can still be answered."""
    with contextlib.suppress(msgspec.DecodeError, IndexError, TypeError, KeyError):
        parts: Any = msgspec.msgpack.decode(frame)
        if parts[0] == "request" and isinstance(parts[1], str):
            return parts[1]
    return None


def _private_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="glmserve-"))
    if len(str(folder)) <= MAX_IPC_PATH - len("/engine"):
        return folder
    folder.rmdir()  # a long TMPDIR; a socket's path must be short
    return Path(tempfile.mkdtemp(prefix="glmserve-", dir="/tmp"))


def _without_limits(socket: zmq.Socket[Any]) -> None:
    """No high-water mark: the queue is bounded before the channel, by admission, and a send must never block."""
    socket.sndhwm = 0
    socket.rcvhwm = 0
