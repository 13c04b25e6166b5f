"""What happens to every request before a route sees it: an id, the API key, the limit on its body, and the count.

Plain ASGI, one layer for all of it: each layer costs on every streamed token.
"""

from __future__ import annotations

import hmac
import logging
import re
import uuid
from collections.abc import Callable
from hashlib import sha256
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glmserve.observe.request_record import TRACEPARENT
from glmserve.protocol.errors import GlmserveError
from glmserve.server.errors import PayloadTooLargeError, UnauthorizedError, error_response
from glmserve.server.services import REQUEST_ID

logger = logging.getLogger(__name__)

CLIENT_KEY = "glmserve.client_key"  # key of the ASGI scope: a digest of the API key that the client sent
OPEN_PATHS = frozenset({"/health", "/ready", "/metrics", "/scale"})  # for machines that watch, which have no key
_USABLE_ID = re.compile(r"[\x21-\x7e]{1,128}")


class RequestGate:
    """Wraps the app.  `count` is called with (method, path, status) once a request; `label` turns a path into a route's.

    `refused` is called with the scope and the error of each request that is turned away here.
    """

    def __init__(
        self,
        app: ASGIApp,
        api_keys: tuple[str, ...],
        max_body_bytes: int,
        count: Callable[[str, str, int], None],
        label: Callable[[str], str],
        refused: Callable[[Scope, GlmserveError], None],
    ) -> None:
        self._app = app
        self._keys = [sha256(key.encode()).digest() for key in api_keys]
        self._max_body_bytes = max_body_bytes
        self._count = count
        self._label = label
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        request_id = headers.get("x-request-id", "")
        if not _USABLE_ID.fullmatch(request_id):
            request_id = uuid.uuid4().hex
        scope[REQUEST_ID] = request_id
        TRACEPARENT.set(headers.get("traceparent"))
        status = 0  # none sent yet

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", request_id.encode())]}
            await send(message)

        try:
            if (error := self._refusal(scope, headers)) is not None:
                self._refused(scope, error)
                await error_response(error, scope["path"])(scope, receive, send_with_id)  # uvicorn reads the body on and forgets it
            else:
                await self._app(scope, self._limited(receive), send_with_id)
        except Exception:
            if status:
                raise  # uvicorn cuts the connection, so that the client sees that its answer is not whole
            logger.exception("request %s failed in the server itself", request_id)
            error = GlmserveError(f"something went wrong inside the server: its log says what, at request {request_id}")
            self._refused(scope, error)
            await error_response(error, scope["path"])(scope, receive, send_with_id)
        finally:
            self._count(scope["method"], self._label(scope["path"]), status or 500)

    def _refusal(self, scope: Scope, headers: Headers) -> GlmserveError | None:
        if not _is_open(scope) and not self._authorized(scope, _bearer(headers)):
            return UnauthorizedError("this server wants an API key: send it as `Authorization: Bearer KEY`")
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self._max_body_bytes:
            return self._too_large()
        return None

    def _too_large(self) -> PayloadTooLargeError:
        return PayloadTooLargeError(f"the body is longer than {self._max_body_bytes} bytes, the server's limit: send less")

    def _authorized(self, scope: Scope, key: str) -> bool:
        if not self._keys:
            return True
        sent = sha256(key.encode("latin-1", "replace")).digest()  # the bytes that came: Headers reads them so
        scope[CLIENT_KEY] = sent.hex()
        # all are compared, whichever fits, so that time tells nothing
        return sum(hmac.compare_digest(sent, known) for known in self._keys) > 0 and key != ""

    def _limited(self, receive: Receive) -> Receive:
        num_bytes = 0

        async def limited() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_body_bytes:
                raise self._too_large()
            return message

        return limited

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = _bearer(Headers(scope=scope))
        if not key:  # a browser cannot send headers with a WebSocket
            key = parse_qs(scope["query_string"].decode("latin-1"), encoding="latin-1").get("api_key", [""])[0]
        if not self._authorized(scope, key):
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": "this server wants an API key"})
            return
        scope[REQUEST_ID] = uuid.uuid4().hex
        await self._app(scope, receive, send)


def _is_open(scope: Scope) -> bool:
    """No key is asked for: machines that watch have none, and the web page must load before it can ask its user for one."""
    path: str = scope["path"]
    return path in OPEN_PATHS or (scope["method"] in ("GET", "HEAD") and (path == "/" or path.startswith("/web/")))


def _bearer(headers: Headers) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""
