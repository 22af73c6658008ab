"""How the Sanic apps are served, all alike."""

import asyncio
import socket
import sys
from typing import Any, Final

from sanic import Sanic

from ..processes import raise_file_limit

__all__ = ["serve"]

_BACKLOG: Final = 4096
_PING_SECONDS: Final = 3600


def serve(app: Sanic[Any, Any], loop: str) -> None:
    """Serve in this process, on a free port, which is printed."""
    raise_file_limit()
    app.config.USE_UVLOOP = loop == "uvloop"
    # The clients of a benchmark do not look at frames, and so answer no ping.
    app.config.WEBSOCKET_PING_INTERVAL = _PING_SECONDS
    listener = socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG)

    @app.after_server_start
    async def announce(_: Sanic[Any, Any]) -> None:
        running = type(asyncio.get_running_loop()).__module__
        assert running.startswith(loop), running
        sys.stdout.write(f"{listener.getsockname()[1]}\n")
        sys.stdout.flush()

    app.prepare(sock=listener, single_process=True, access_log=False, motd=False, backlog=_BACKLOG)
    Sanic.serve_single(app)
