"""A service that answers requests with their own data, for the page's composer."""

import asyncio
from contextlib import suppress
from functools import partial
from typing import NoReturn

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error

from sanic_nats_bridge import NatsBridge

__all__ = ["ECHO_SUBJECT", "answer", "echo_forever"]

ECHO_SUBJECT = "example.echo"
_QUEUE = "example"
_SECONDS = 1.0
# Services of the NATS micro protocol report their errors in such headers.
_ERROR = {"Nats-Service-Error-Code": "400", "Nats-Service-Error": "Nothing to echo"}


async def echo_forever(bridge: NatsBridge) -> NoReturn:
    """Answer requests on each connection of the bridge."""
    served: Client | None = None
    while True:
        client = bridge.client
        if client is not None and client is not served:
            with suppress(Error):
                await client.subscribe(ECHO_SUBJECT, _QUEUE, partial(answer, client))
                served = client
        await asyncio.sleep(_SECONDS)


async def answer(client: Client, request: Msg) -> None:
    """Send the data of a request back, or an error if it has none."""
    with suppress(Error):
        if request.data:
            await client.publish(request.reply, request.data)
        else:
            await client.publish(request.reply, headers=_ERROR)
