"""A test publisher that sends one message per second."""

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
    """Return a message with values of all JSON types."""
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
    """Publish one message per second; skip messages while NATS is disconnected."""
    while True:
        client = bridge.client
        if client is not None:
            with suppress(Error):
                await client.publish(SUBJECT, json.dumps(message()).encode())
        await asyncio.sleep(_SECONDS)
