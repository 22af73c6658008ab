"""The app behind the proxies, in a process of its own: ``python -m tools.proxies.app '{"servers": "nats://…"}'``."""

import json
import socket
import sys
from typing import Any

from sanic import Request, Sanic, html
from sanic import json as json_response
from sanic.response import HTTPResponse

from sanic_nats_bridge import NatsBridge

__all__ = ["main"]

_BACKLOG = 1024
_PAGE = "<!doctype html><title>Proxies</title>"


def main() -> None:
    """Serve on a free port, which is the first line of the output, with the settings of the command line."""
    app: Sanic[Any, Any] = Sanic("proxies", configure_logging=False)
    app.config.PROXIES_COUNT = 1
    NatsBridge(app, subscribe=[">"], **json.loads(sys.argv[1]))
    app.add_route(page, "/page")
    app.add_route(login, "/login")
    app.add_route(sessions, "/sessions")
    listener = socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG)

    async def print_port(_: Sanic[Any, Any]) -> None:
        sys.stdout.write(f"{listener.getsockname()[1]}\n")
        sys.stdout.flush()

    app.register_listener(print_port, "after_server_start")
    app.prepare(sock=listener, single_process=True, access_log=False, motd=False, backlog=_BACKLOG)
    Sanic.serve_single(app)


async def page(_: Request) -> HTTPResponse:
    """Respond with an empty page."""
    return html(_PAGE)


async def login(_: Request) -> HTTPResponse:
    """Respond with the login page to which some proxies redirect."""
    return html("<!doctype html><title>Log in</title>")


async def sessions(request: Request) -> HTTPResponse:
    """Respond with the patterns of each session."""
    bridge: NatsBridge = request.app.ctx.nats_bridge
    return json_response([list(map(str, session.subscriptions)) for session in bridge.sessions])


if __name__ == "__main__":
    main()
