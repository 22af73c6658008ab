"""Serve the Sanic apps, all in the same way."""

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Any, TypeAlias

from sanic import Sanic
from sanic.worker.loader import AppLoader

from ...harness.output import print_line
from ...harness.processes import raise_file_limit

__all__ = ["App", "serve"]

App: TypeAlias = Sanic[Any, Any]

_BACKLOG = 4096
_PING_SECONDS = 3600


def serve(create_app: Callable[[], App], loop: str, workers: int = 1) -> None:
    """Serve on a free port. A single worker is this process; several are processes of Sanic's manager.

    Each worker prints the port and its process id when it accepts clients.
    """
    raise_file_limit()
    loader = AppLoader(factory=_AppFactory(create_app, loop))
    app = loader.load()
    listener = socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG)
    single = workers == 1
    app.prepare(sock=listener, workers=workers, single_process=single, access_log=False, motd=False, backlog=_BACKLOG)
    if single:
        Sanic.serve_single(app)
    else:
        Sanic.serve(primary=app, app_loader=loader)


class _AppFactory:
    """A factory that configures the app, called in each process."""

    def __init__(self, create_app: Callable[[], App], loop: str) -> None:
        self._create_app = create_app
        self._loop = loop

    def __call__(self) -> App:
        app = self._create_app()
        app.config.USE_UVLOOP = self._loop == "uvloop"
        # The clients of a benchmark don't parse frames, so they answer no ping.
        app.config.WEBSOCKET_PING_INTERVAL = _PING_SECONDS
        app.register_listener(self._print_port, "after_server_start")
        return app

    async def _print_port(self, app: App) -> None:
        running = type(asyncio.get_running_loop()).__module__
        assert running.startswith(self._loop), running
        port = app.state.server_info[0].settings["sock"].getsockname()[1]
        print_line(f"{port} {os.getpid()}")
