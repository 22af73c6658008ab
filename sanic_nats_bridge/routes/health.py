"""``/health/live`` and ``/health/ready``: what a load balancer or an orchestrator asks (Kubernetes's probes)."""

from typing import Any, Final

import msgspec
from sanic import Blueprint, HTTPResponse, Request
from sanic_ext import openapi

from ..sessions.registry import SessionRegistry

__all__ = ["add_health_routes"]

_HEADERS: Final = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


def add_health_routes(blueprint: Blueprint, sessions: SessionRegistry) -> None:
    """Serve them on the blueprint, which must turn nobody away."""

    async def live(request: Request) -> HTTPResponse:
        return _answer(200, live=True)

    async def ready(request: Request) -> HTTPResponse:
        stopping = sessions.stop_reason is not None
        is_ready = not stopping and (sessions.nats == "connected" or not sessions.settings.ready_needs_nats)
        return _answer(200 if is_ready else 503, ready=is_ready, stopping=stopping, nats=sessions.nats)

    for handler in (live, ready):
        name = handler.__name__
        openapi.exclude()(handler)
        # HEAD by name: otherwise it depends on settings of sanic-ext.
        blueprint.add_route(handler, f"/health/{name}", methods=["GET", "HEAD"], name=f"health_{name}")


def _answer(status: int, **facts: Any) -> HTTPResponse:
    return HTTPResponse(msgspec.json.encode(facts), status, dict(_HEADERS), "application/json")
