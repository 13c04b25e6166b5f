"""The web page at `/`: its files, and what it must know of the model before anybody chats.

The page is a client of the public API like any other: nothing here answers a chat or counts a metric.  It needs no key
itself; it asks for one where the API answers 401.  Files are checked against their ETag at each load, so that a page never
outlives the server it came from.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from glmserve.server.bodies import json_response
from glmserve.server.services import services_of
from glmserve.version import __version__

FOLDER = Path(__file__).parents[2] / "web"
# Nothing but this server's own files; no script in the page, and none made from text ("trusted types" forbids innerHTML too).
CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}

router = APIRouter(include_in_schema=False)


class PageFiles(StaticFiles):
    """The page's folder, with the page's headers on each file."""

    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        """Called by StaticFiles for a file that exists."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update(HEADERS)
        return response


_files = PageFiles(directory=FOLDER)
_suggestions: dict[str, Any] = json.loads((FOLDER / "suggestions.json").read_text(encoding="utf-8"))


@router.api_route("/", methods=["GET", "HEAD"])
async def page(request: Request) -> Response:
    """The page."""
    return await _files.get_response("index.html", request.scope)


@router.get("/web/page.json")
async def about_the_model(request: Request) -> Response:
    """What the page shows before the first question: the model's name, its limits, what to ask it."""
    services = services_of(request)
    config = services.config
    return json_response(
        {
            "model": services.model_name,
            "version": __version__,
            "defaults": {"temperature": config.default_temperature, "top_p": config.default_top_p},
            "suggestions": _suggestions.get(services.model_name, _suggestions["default"]),
        }
    )


@router.api_route("/web/{path:path}", methods=["GET", "HEAD"])
async def file(request: Request, path: str) -> Response:
    """A file of the page."""
    return await _files.get_response(path, request.scope)
