"""A server on which the user of the bridge has no more permissions than history needs."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import nats
from nats.js import JetStreamContext

from sanic_nats_bridge.testing import NatsServer

ALLOWED = (
    "$JS.API.STREAM.INFO.ORDERS",
    "$JS.API.CONSUMER.CREATE.ORDERS.>",
    "$JS.API.CONSUMER.DELETE.ORDERS.*",
    "$JS.API.STREAM.MSG.GET.ORDERS",
    "$JS.API.DIRECT.GET.ORDERS",
    "$JS.FC.ORDERS.>",
)
OWN = ("orders.>", "_NATSBRIDGE.>", "_INBOX.>")


def restricted(*missing: str) -> str:
    """Return the configuration of a server with a user that has all permissions but these."""
    publish = [each for each in (*ALLOWED, *OWN) if each not in missing]
    allow = ", ".join(f'"{each}"' for each in publish)
    return f"""authorization {{ users: [
        {{user: admin, password: admin}}
        {{user: bridge, password: bridge, permissions: {{publish: {{allow: [{allow}]}}, subscribe: ">"}}}}
    ] }}"""


@asynccontextmanager
async def administrator(server: NatsServer) -> AsyncIterator[JetStreamContext]:
    client = await nats.connect(server.url, user="admin", password="admin")
    yield client.jetstream()
    await client.close()
