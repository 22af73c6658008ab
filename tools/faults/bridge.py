"""The bridge in a process of its own: ``python -m tools.faults.bridge '{"servers": "nats://…"}' DROP_ONE_IN``."""

import asyncio
import importlib
import json
import os
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any

from sanic import Request, Sanic, empty, text
from sanic import json as json_response
from sanic.response import BaseHTTPResponse, HTTPResponse

from sanic_nats_bridge import NatsBridge, Permissions
from sanic_nats_bridge.hub.broadcast import Broadcaster
from sanic_nats_bridge.hub.interest import Interest

from ..harness.serving import serve_app
from .permission_profiles import PROFILES
from .publishes import authors
from .streams.profiles import profile_of

__all__ = ["APP_NAME", "CONSTANTS", "drop_one_in", "make_app", "permissions"]

APP_NAME = "faults_bridge"
"""The name of the app, on which the control subjects depend."""

CONSTANTS = "constants"
"""Beside the settings: values for constants of the bridge's modules, by full name, so that small runs wait less."""

dropped = 0
"""The number of copies of messages that were lost on purpose."""


def main() -> None:
    """Serve with the settings of the command line until the process ends."""
    settings, every = json.loads(sys.argv[1]), int(sys.argv[2])
    if every:
        drop_one_in(every)
    app = make_app(settings)
    app.add_route(facts, "/facts")
    app.add_route(block, "/block", methods=["POST"])
    app.add_route(publish, "/publish/<subject>", methods=["POST"])
    app.add_route(resolve, "/resolve/<name>")
    app.add_route(revoke, "/revoke/<session>", methods=["POST"])
    serve_app(app)


def make_app(settings: Mapping[str, Any]) -> Sanic[Any, Any]:
    """Create an app that contains only the bridge."""
    settings = dict(settings)
    for name, value in settings.pop(CONSTANTS, {}).items():
        module, _, constant = name.rpartition(".")
        vars(importlib.import_module(module))[constant] = value
    app: Sanic[Any, Any] = Sanic(APP_NAME, configure_logging=False)
    # All clients have one address, and some faults let them reconnect at once.
    options: Any = {"permissions": permissions, "request_rate": 0, **settings}
    NatsBridge(app, **options)
    app.register_middleware(add_worker_header, "response")
    return app


async def add_worker_header(_: Request, response: BaseHTTPResponse) -> None:
    """Add the process id of the worker to a response."""
    response.headers["x-worker"] = str(os.getpid())


async def permissions(request: Request) -> Permissions | None:
    """Return the permissions of the profile that the client names. Clients of streams, and authors, name themselves."""
    if user := request.headers.get("x-user"):
        return Permissions(**profile_of(user).permissions(user))
    if author := request.args.get("author"):
        return Permissions(**authors.permissions(author))
    access = PROFILES.get(request.args.get("profile"))
    return None if access is None else Permissions(**access.permissions)


def drop_one_in(every: int) -> None:
    """Make the bridge of this process lose one message in ``every`` without a gap."""
    broadcaster: Any = Broadcaster
    on_message, count = broadcaster.on_message, 0

    def drop_some(self: Broadcaster, interest: Interest, subject: bytes, *rest: bytes) -> None:
        global dropped
        nonlocal count
        count += 1
        if count % every:
            on_message(self, interest, subject, *rest)
        else:
            excludes = [view.excludes for view, _ in interest.subscribers_by_view()]
            dropped += sum(each is None or not each(subject.decode()) for each in excludes)

    broadcaster.on_message = drop_some


async def facts(request: Request) -> HTTPResponse:
    """Respond with the number of tasks, the port of the connected NATS server, and the number of lost copies."""
    client = request.app.ctx.nats_bridge.client
    address = client.connected_url if client is not None else None
    return json_response({"tasks": len(asyncio.all_tasks()), "nats": address and address.port, "dropped": dropped})


async def block(request: Request) -> HTTPResponse:
    """Block the event loop for some seconds, as an app must not."""
    _sleep(float(request.args.get("seconds")))
    return empty()


def _sleep(seconds: float) -> None:
    time.sleep(seconds)


async def publish(request: Request, subject: str) -> HTTPResponse:
    """Publish the body with the bridge's own client."""
    client = request.app.ctx.nats_bridge.client
    if client is None:
        return text("NATS is disconnected", 503)
    try:
        await client.publish(subject, request.body)
        # Twice, because the first PING overtakes what waits for nats-py's flusher.
        await client.flush()
        await client.flush()
    except Exception as error:
        return text(type(error).__name__, 422)
    return empty()


async def resolve(request: Request, name: str) -> HTTPResponse:
    """Respond with the IP addresses of a host name, in the order in which this process gets them."""
    found = await asyncio.get_running_loop().getaddrinfo(name, 0, type=socket.SOCK_STREAM)
    return json_response([address[0] for *_, address in found])


async def revoke(request: Request, session: str) -> HTTPResponse:
    """Revoke a session, and respond with the result."""
    result = await request.app.ctx.nats_bridge.revoke(session=session)
    return json_response(result._asdict())


if __name__ == "__main__":
    main()
