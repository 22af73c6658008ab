"""The gateway of the Panini framework's documentation: a NATS subscription for each client, and JSON encoded again.

``python -m tools.benchmarks.servers.panini '{"servers": "nats://…"}'``, with the Python of an environment that has
panini, aiohttp and packaging (``make bench-panini``). Panini always uses asyncio's own event loop.
"""

import asyncio
import contextlib
import json
import socket
import sys
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web
from panini.app import App  # type: ignore[import-not-found, unused-ignore]

from ...harness.processes import raise_file_limit

_BACKLOG = 4096


def main() -> None:
    """Serve until the process ends."""
    raise_file_limit()
    asyncio.set_event_loop(asyncio.new_event_loop())
    broker = urlsplit(json.loads(sys.argv[1])["servers"])
    listener = socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG)
    app = App(service_name="bench_panini", host=broker.hostname, port=broker.port, logger_required=False)
    params = {"sock": listener, "backlog": _BACKLOG, "print": None, "access_log": None}
    app.setup_web_server(web_app=_web_app(app, listener.getsockname()[1]), params=params)
    # Panini prints a greeting, but the first line of the output must be the port.
    with contextlib.redirect_stdout(sys.stderr):
        app.start()


def _web_app(app: Any, port: int) -> web.Application:
    async def stream(request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse()
        await ws.prepare(request)

        async def forward(message: Any) -> None:
            await ws.send_str(json.dumps({"subject": message.subject, "data": message.data}))

        async for command in ws:
            for subject in json.loads(command.data)["subjects"]:
                await app.subscribe_new_subject(subject, forward)
            await app.nats.client.flush()
            await ws.send_str('{"type":"subscribed"}')
        return ws

    async def print_port(_: web.Application) -> None:
        assert sys.__stdout__ is not None
        sys.__stdout__.write(f"{port}\n")
        sys.__stdout__.flush()

    web_app = web.Application()
    web_app.add_routes([web.get("/stream", stream)])
    web_app.on_startup.append(print_port)
    return web_app


if __name__ == "__main__":
    main()
