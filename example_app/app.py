"""The app: the bridge without a prefix, the page at ``/``, the test publisher, and the echo service."""

import os
from pathlib import Path
from typing import Any

from sanic import HTTPResponse, Request, Sanic, file

from sanic_nats_bridge import NatsBridge
from sanic_nats_bridge.auth.hosts import LOCAL_HOSTS

from .echo import echo_forever
from .publisher import publish_forever
from .security import add_security_headers, check_host
from .streams import BUCKET_SUBJECTS, HISTORY, STREAMS

_STATIC = Path(__file__).parent / "static"


def create_app() -> Sanic[Any, Any]:
    """Create the app. Sanic calls it once in each process."""
    app: Sanic[Any, Any] = Sanic("example_app")
    has_streams = bool(os.environ.get("EXAMPLE_APP_STREAMS"))
    bridge = NatsBridge(
        app,
        servers=os.environ.get("NATS_URL", "nats://127.0.0.1:4222"),
        prefix="",
        # Allows every subject, for experiments. Don't copy this: every client that reaches the app could read
        # all messages that your services exchange over NATS, and publish what they take for each other's.
        subscribe=[">", BUCKET_SUBJECTS] if has_streams else [">"],
        streams=STREAMS if has_streams else {},
        history=HISTORY if has_streams else [],
        publish=["test.>", "orders.>"],
        # Only one has a service, so that the page can show a request without an answer too.
        request=["example.*"],
        # The app has no login. So no website may reach it by a name of its own that resolves to this machine.
        allowed_hosts=[*LOCAL_HOSTS, *os.environ.get("EXAMPLE_APP_HOSTS", "").split()],
    )
    app.register_middleware(check_host, "request")
    app.static("/static", _STATIC, name="static")
    app.add_route(index, "/")
    app.register_middleware(add_security_headers, "response")
    if _is_first_worker():
        app.add_task(publish_forever(bridge, has_streams=has_streams))
        app.add_task(echo_forever(bridge))
    return app


async def index(_: Request) -> HTTPResponse:
    """Return the page."""
    return await file(_STATIC / "index.html")


def _is_first_worker() -> bool:
    return os.environ.get("SANIC_WORKER_IDENTIFIER", "Srv 0") == "Srv 0"
