"""A hand-written gateway: an app that sends each message to each client of its subject, one after another.

``python -m tools.benchmarks.servers.plain '{"servers": "nats://…"}' LOOP``
"""

import json
import sys

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from sanic import Request, Sanic, Websocket
from sanic.exceptions import WebsocketClosed

from .serving import App, serve

subscribers: dict[str, set[Websocket]] = {}


def create_app() -> App:
    """Create the app, with its only route."""
    app: App = Sanic("bench_plain", configure_logging=False)
    app.register_listener(connect, "before_server_start")
    app.add_websocket_route(stream, "/stream")
    return app


async def connect(app: App) -> None:
    """Connect to NATS."""
    app.ctx.nats = await nats.connect(json.loads(sys.argv[1])["servers"])


async def stream(request: Request, ws: Websocket) -> None:
    """Subscribe to the subjects of each command."""
    client: Client = request.app.ctx.nats
    try:
        while (command := await ws.recv()) is not None:
            for subject in json.loads(command)["subjects"]:
                if subject not in subscribers:
                    subscribers[subject] = set()
                    await client.subscribe(subject, cb=fan_out)
                subscribers[subject].add(ws)
            await client.flush()
            await ws.send('{"type":"subscribed"}')
    finally:
        for clients in subscribers.values():
            clients.discard(ws)


async def fan_out(message: Msg) -> None:
    """Send a message to all subscribers of its subject."""
    text = f'{{"subject":"{message.subject}","data":{message.data.decode()}}}'
    for ws in tuple(subscribers[message.subject]):
        try:
            await ws.send(text)
        except WebsocketClosed:
            subscribers[message.subject].discard(ws)


if __name__ == "__main__":
    serve(create_app, sys.argv[2])
