"""The app behind the proxies, in a process of its own: ``python -m tools.proxies.app '{"servers": "nats://…"}'``."""

import json
import sys
from typing import Any

from sanic import Request, Sanic, html
from sanic import json as json_response
from sanic.response import HTTPResponse

from sanic_nats_bridge import NatsBridge

from ..harness.serving import serve_app

__all__ = ["main"]

_PAGE = "<!doctype html><title>Proxies</title>"
_LOGIN_PAGE = "<!doctype html><title>Log in</title>"


def main() -> None:
    """Serve with the settings of the command line until the process ends."""
    app: Sanic[Any, Any] = Sanic("proxies", configure_logging=False)
    app.config.PROXIES_COUNT = 1
    NatsBridge(app, subscribe=[">"], **json.loads(sys.argv[1]))
    app.add_route(page, "/page")
    app.add_route(login, "/login")
    app.add_route(sessions, "/sessions")
    serve_app(app)


async def page(_: Request) -> HTTPResponse:
    """Respond with an empty page."""
    return html(_PAGE)


async def login(_: Request) -> HTTPResponse:
    """Respond with the login page to which some proxies redirect."""
    return html(_LOGIN_PAGE)


async def sessions(request: Request) -> HTTPResponse:
    """Respond with the patterns of each session."""
    bridge: NatsBridge = request.app.ctx.nats_bridge
    return json_response([list(map(str, session.subscriptions)) for session in bridge.sessions])


if __name__ == "__main__":
    main()
