"""How an error leaves the server: its status, and the body of the protocol that the client speaks.

OpenAI's protocol: {"error": {"message", "type", "param", "code"}}.  ChatGLM-6B's own: {"error", "detail", "status"}, where
`detail` is what FastAPI services of that time sent and `error` what the others did.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import msgspec
from starlette.responses import Response

from glmserve.protocol.errors import GlmserveError

CHATGLM_PATHS = frozenset({"/", "/stream", "/chat", "/chat/stream"})


class PayloadTooLargeError(GlmserveError):
    """The body is longer than the server reads."""

    http_status = 413
    error_type = "invalid_request_error"
    code = "payload_too_large"


class BodyTimeoutError(GlmserveError):
    """The client announced a body and did not send all of it."""

    http_status = 408
    error_type = "timeout_error"
    code = "request_timeout"


class UnauthorizedError(GlmserveError):
    """No key, or a wrong one, where the server wants one."""

    http_status = 401
    error_type = "authentication_error"
    code = "invalid_api_key"


class RouteError(GlmserveError):
    """No such path, or not with this method."""

    error_type = "invalid_request_error"

    def __init__(self, message: str, http_status: int) -> None:
        super().__init__(message)
        self.http_status = http_status
        self.code = HTTPStatus(http_status).name.lower()


def openai_body(error: GlmserveError) -> dict[str, Any]:
    """The error as OpenAI's clients read it."""
    param = getattr(error, "param", None)
    return {"error": {"message": str(error), "type": error.error_type, "param": param, "code": error.code}}


def chatglm_body(error: GlmserveError) -> dict[str, Any]:
    """The error as clients of ChatGLM-6B's api.py read it."""
    return {"error": str(error), "detail": str(error), "status": error.http_status}


def error_response(error: GlmserveError, path: str) -> Response:
    """The error in the protocol of `path`, with Retry-After where waiting helps."""
    body = chatglm_body(error) if path in CHATGLM_PATHS else openai_body(error)
    headers = {}
    if (retry_after := getattr(error, "retry_after", None)) is not None:
        headers["Retry-After"] = str(retry_after)
    if error.http_status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(msgspec.json.encode(body), status_code=error.http_status, headers=headers, media_type="application/json")
