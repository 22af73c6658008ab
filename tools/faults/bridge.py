"""The bridge, in a process of its own: ``python -m tools.faults.bridge '{"servers": "nats://…"}' 0``."""

import asyncio
import json
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any, Final

from sanic import Request, Sanic, empty, text
from sanic import json as json_response
from sanic.response import HTTPResponse

from sanic_nats_bridge import NatsBridge, Permissions
from sanic_nats_bridge.hub.broadcast import Broadcaster
from sanic_nats_bridge.hub.interest import Interest

from .permission_profiles import VIEWS

__all__ = ["drop_one_in", "make_app", "permissions"]

_BACKLOG: Final = 1024

dropped = 0
"""How many copies of messages were lost on purpose."""


def main() -> None:
    """Serve with these settings until the process is ended, and lose one message in so many; 0: none."""
    settings, every = json.loads(sys.argv[1]), int(sys.argv[2])
    if every:
        drop_one_in(every)
    app = make_app(settings)
    app.add_route(facts, "/facts")
    app.add_route(block, "/block", methods=["POST"])
    app.add_route(publish, "/publish/<subject>", methods=["POST"])
    serve(app)


def make_app(settings: Mapping[str, Any]) -> Sanic[Any, Any]:
    """An app with nothing but the bridge in it."""
    app: Sanic[Any, Any] = Sanic("faults_bridge", configure_logging=False)
    options: Any = {"permissions": permissions, **settings}
    NatsBridge(app, **options)
    return app


async def permissions(request: Request) -> Permissions | None:
    """What the client may follow: it only has to name its view."""
    access = VIEWS.get(request.args.get("view"))
    return None if access is None else Permissions(**access.permissions)


def drop_one_in(every: int) -> None:
    """Make a bridge that loses messages in silence, as no bridge may."""
    batch: Any = Broadcaster
    on_message, count = batch.on_message, 0

    def drop_some(self: Broadcaster, interest: Interest, subject: bytes, *rest: bytes) -> None:
        global dropped
        nonlocal count
        count += 1
        if count % every:
            on_message(self, interest, subject, *rest)
        else:
            skip = [view.excludes for view, _ in interest.subscribers_by_view()]
            dropped += sum(each is None or not each(subject.decode()) for each in skip)

    batch.on_message = drop_some


async def facts(request: Request) -> HTTPResponse:
    """What the process holds, and to which server it is connected."""
    client = request.app.ctx.nats_bridge.client
    address = client.connected_url if client is not None else None
    return json_response({"tasks": len(asyncio.all_tasks()), "nats": address and address.port, "dropped": dropped})


async def block(request: Request) -> HTTPResponse:
    """Do what an app must not: let nothing else run for so many seconds."""
    _sleep(float(request.args.get("seconds")))
    return empty()


def _sleep(seconds: float) -> None:
    time.sleep(seconds)


async def publish(request: Request, subject: str) -> HTTPResponse:
    """Publish by the bridge's own client."""
    client = request.app.ctx.nats_bridge.client
    if client is None:
        return text("NATS is away", 503)
    try:
        await client.publish(subject, request.body)
        await client.flush()
    except Exception as error:
        return text(type(error).__name__, 422)
    return empty()


def serve(app: Sanic[Any, Any]) -> None:
    """Serve in this process, on a free port, which is the first line of output."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG)

    async def announce(_: Sanic[Any, Any]) -> None:
        sys.stdout.write(f"{listener.getsockname()[1]}\n")
        sys.stdout.flush()

    app.register_listener(announce, "after_server_start")
    app.prepare(sock=listener, single_process=True, access_log=False, motd=False, backlog=_BACKLOG)
    Sanic.serve_single(app)


if __name__ == "__main__":
    main()
