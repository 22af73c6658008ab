"""Serve an app in a process that `processes.server` has started."""

import socket
from typing import Any

from sanic import Sanic

from .output import print_line

__all__ = ["serve_app"]

_BACKLOG = 1024


def serve_app(app: Sanic[Any, Any]) -> None:
    """Serve in this process, on a free port, which is the first line of the output."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG)

    async def print_port(_: Sanic[Any, Any]) -> None:
        print_line(str(listener.getsockname()[1]))

    app.register_listener(print_port, "after_server_start")
    app.prepare(sock=listener, single_process=True, access_log=False, motd=False, backlog=_BACKLOG)
    Sanic.serve_single(app)
