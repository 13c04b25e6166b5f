"""For operators and their machines: is the process alive, can it serve, what does it count, which version is it."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from glmserve.observe.request_log import KEPT_LINES
from glmserve.server.bodies import json_response
from glmserve.server.services import services_of
from glmserve.version import __version__

router = APIRouter()


@router.get("/health")
async def health(request: Request) -> Response:
    """The process answers.  Says nothing of the engine: that is /ready."""
    return json_response({"status": "ok", "uptime_seconds": int(time.time()) - services_of(request).created})


@router.get("/ready")
async def ready(request: Request) -> Response:
    """200 where requests can be served: the engine is loaded and its heartbeat moved; 503 and the reason otherwise."""
    services = services_of(request)
    reason = services.not_ready_because()
    body = {"status": "ready" if reason is None else "not ready", "engine": str(services.client.state), "reason": reason}
    return json_response(body, 200 if reason is None else 503)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Prometheus' text format."""
    return Response(services_of(request).metrics.render(), media_type=CONTENT_TYPE_LATEST)


@router.get("/slow")
async def slow(
    request: Request,
    over: Annotated[float, Query(ge=0, description="Seconds that a request took at least")] = 2.0,
    last: Annotated[int, Query(ge=1, le=KEPT_LINES, description="How many to list")] = 10,
) -> Response:
    """The last requests that took long, newest first: each its line of the request log, with a `cause` and, in words, `why`."""
    return json_response({"requests": services_of(request).request_log.slowest(over, last)})


@router.get("/version")
async def version() -> Response:
    """The server's version."""
    return json_response({"version": __version__})
