"""``/health/live`` and ``/health/ready``: the probes of load balancers and of Kubernetes."""

from typing import Any

import msgspec
from sanic import Blueprint, HTTPResponse, Request
from sanic_ext import openapi

from ..sessions.registry import SessionRegistry

__all__ = ["add_health_routes"]

_HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


def add_health_routes(blueprint: Blueprint, sessions: SessionRegistry) -> None:
    """Serve the probes on the blueprint, which must not check origins: a probe sends none."""

    async def live(request: Request) -> HTTPResponse:
        return _response(200, live=True)

    async def ready(request: Request) -> HTTPResponse:
        stopping = sessions.stop_reason is not None
        is_ready = not stopping and (sessions.nats == "connected" or not sessions.settings.ready_needs_nats)
        return _response(200 if is_ready else 503, ready=is_ready, stopping=stopping, nats=sessions.nats)

    for handler in (live, ready):
        name = handler.__name__
        openapi.exclude()(handler)
        # HEAD is named, because it otherwise depends on settings of sanic-ext.
        blueprint.add_route(handler, f"/health/{name}", methods=["GET", "HEAD"], name=f"health_{name}")


def _response(status: int, **fields: Any) -> HTTPResponse:
    return HTTPResponse(msgspec.json.encode(fields), status, dict(_HEADERS), "application/json")
