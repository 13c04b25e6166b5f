"""For autoscalers and those who feed them: how many replicas the present load needs, and why."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from glmserve.server.bodies import json_response
from glmserve.server.services import services_of

router = APIRouter()


@router.get("/scale")
async def scale(request: Request) -> Response:
    """Replicas that this server's share of the load needs, from queue, K/V memory and time to first token, with the reasons."""
    return json_response(services_of(request).watch.scale.advice())
