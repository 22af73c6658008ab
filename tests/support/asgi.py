"""Apps served by ASGI servers in the test's own event loop."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from hypercorn.asyncio import serve
from hypercorn.config import Config as HypercornConfig


@contextlib.asynccontextmanager
async def uvicorn_serving(app: Any, listener: socket.socket, **options: Any) -> AsyncIterator[None]:
    """Serve the app as `uvicorn.Server.serve` does, without its signals and its waiting."""
    defaults: dict[str, Any] = {"log_config": None, "access_log": False, "timeout_graceful_shutdown": 5}
    defaults["ws_ping_interval"] = None  # it would end WebSockets when a test moves the clock
    config = uvicorn.Config(app, lifespan="on", **(defaults | options))
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup([listener])
    await server.on_tick(0)
    try:
        yield
    finally:
        await server.shutdown([listener])


@contextlib.asynccontextmanager
async def hypercorn_serving(app: Any, listener: socket.socket, **options: Any) -> AsyncIterator[None]:
    config = HypercornConfig.from_mapping({"bind": f"fd://{listener.detach()}", "errorlog": None} | options)
    stopping = asyncio.Event()
    served = asyncio.create_task(serve(app, config, shutdown_trigger=stopping.wait))
    try:
        yield
    finally:
        stopping.set()
        await served
