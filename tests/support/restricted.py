"""A server on which the user of the bridge has no more permissions than history needs."""

import json
from collections.abc import AsyncIterator, Sequence
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


def restricted(*missing: str, subscribe: Sequence[str] = (">",), denied: Sequence[str] = (), domain: str = "") -> str:
    """Return the configuration of a server with a user that has all permissions but these.

    Args:
        missing: The subjects on which the user may not publish.
        subscribe: The subjects that it may subscribe to.
        denied: Those of them that it may not subscribe to.
        domain: The JetStream domain of the server.
    """
    publish = [each for each in (*ALLOWED, *OWN) if each not in missing]
    allow, received, refused = (json.dumps(list(each)) for each in (publish, subscribe, denied))
    jetstream = f"jetstream: {{domain: {domain}, max_mem: 100M}}\n" if domain else ""
    return f"""{jetstream}authorization {{ users: [
        {{user: admin, password: admin}}
        {{user: bridge, password: bridge, permissions: {{
            publish: {{allow: {allow}}}, subscribe: {{allow: {received}, deny: {refused}}}
        }}}}
    ] }}"""


@asynccontextmanager
async def administrator(server: NatsServer) -> AsyncIterator[JetStreamContext]:
    client = await nats.connect(server.url, user="admin", password="admin")
    yield client.jetstream()
    await client.close()
