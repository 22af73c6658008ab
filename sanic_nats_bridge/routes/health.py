"""``/health/live`` and ``/health/ready``: the probes of load balancers and of Kubernetes."""

from collections.abc import Callable
from typing import Any

import msgspec
from sanic import Blueprint, HTTPResponse, Request

from ..protocol.messages import NatsState
from ..sessions.registry import SessionRegistry
from .openapi import describe_live, describe_ready
from .responses import json_response

__all__ = ["add_health_routes"]


def add_health_routes(blueprint: Blueprint, sessions: SessionRegistry, control: Callable[[], NatsState]) -> None:
    """Serve the probes on a blueprint.

    Args:
        blueprint: It must not check origins, because a probe sends none.
        sessions: The sessions of this worker.
        control: Returns whether this worker and the others can reach each other.
    """

    @describe_live()
    async def live(request: Request) -> HTTPResponse:
        return _response(200, live=True)

    @describe_ready()
    async def ready(request: Request) -> HTTPResponse:
        stopping = sessions.stop_reason is not None
        is_ready = not stopping and (sessions.nats == "connected" or not sessions.settings.ready_needs_nats)
        status = 200 if is_ready else 503
        streams: dict[str, Any] = {}
        if sessions.streams is not None:
            # They don't decide: everything but history works without them.
            streams["streams"] = {feed.name: feed.state for feed in sessions.streams.feeds}
        return _response(status, ready=is_ready, stopping=stopping, nats=sessions.nats, control=control(), **streams)

    for handler in (live, ready):
        name = handler.__name__
        # HEAD is named, because it otherwise depends on settings of sanic-ext.
        blueprint.add_route(handler, f"/health/{name}", methods=["GET", "HEAD"], name=f"health_{name}")


def _response(status: int, **fields: Any) -> HTTPResponse:
    return json_response(msgspec.json.encode(fields), status)
