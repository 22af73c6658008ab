"""A test publisher: one message a second."""

import asyncio
import json
import random
from contextlib import suppress
from typing import Any, NoReturn

from nats.errors import Error

from sanic_nats_bridge import NatsBridge

SUBJECT = "test.subject"
_SECONDS = 1.0


def message() -> dict[str, Any]:
    """Values of every kind that JSON has."""
    return {
        "key1": "value1",
        "key2": 2,
        "key3": random.random(),
        "key4": [1, 2, 3, 4],
        "key5": {"1": 1, "2": 2, "3": 3, "4": 4, "5": 5},
        "key6": {"subkey1": "1", "subkey2": 2, "3": 3, "4": 4, "5": 5},
        "key7": None,
    }


async def publish_forever(bridge: NatsBridge) -> NoReturn:
    """Publish while there is a connection to NATS; leave a message out while there is none."""
    while True:
        client = bridge.client
        if client is not None:
            with suppress(Error):
                await client.publish(SUBJECT, json.dumps(message()).encode())
        await asyncio.sleep(_SECONDS)
