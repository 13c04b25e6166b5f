"""For operators and their machines: is the process alive, can it serve, what does it count, which version is it."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

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


@router.get("/version")
async def version() -> Response:
    """The server's version."""
    return json_response({"version": __version__})
