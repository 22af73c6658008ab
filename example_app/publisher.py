"""A test publisher that sends one message per second, and writes into the streams of the app's own nats-server."""

import asyncio
import itertools
import random
from contextlib import suppress
from typing import Any, NoReturn

from sanic_nats_bridge import NatsBridge, NatsUnavailable

SUBJECT = "test.subject"
_SECONDS = 1.0
_CITIES = ("berlin", "lagos", "lima")
_USERS = ("ada", "bob", "eve", "mallory")
_THEMES = ("dark", "light", "system")
_DELETE = {"KV-Operation": "DEL"}


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


async def publish_forever(bridge: NatsBridge, *, has_streams: bool = False) -> NoReturn:
    """Publish one message per second; skip messages while NATS is disconnected.

    Args:
        bridge: The bridge.
        has_streams: Whether an order is published too, and a preference written or deleted.
    """
    for number in itertools.count(1):
        with suppress(NatsUnavailable):
            await bridge.publish(SUBJECT, message())
            if has_streams:
                await _write(bridge, number)
        await asyncio.sleep(_SECONDS)
    raise AssertionError  # counting doesn't end


async def _write(bridge: NatsBridge, number: int) -> None:
    order = {"number": number, "total": round(random.uniform(1, 99), 2)}
    await bridge.publish(f"orders.{random.choice(_CITIES)}", order)
    # A bucket is a stream: a value is a message, and so is a deletion.
    key = f"$KV.prefs.{_USERS[number % len(_USERS)]}"
    if number % 5 == 0:
        await bridge.publish(key, headers=_DELETE)
    else:
        preferences = {"theme": random.choice(_THEMES), "size": random.randrange(10, 20)}
        await bridge.publish(key, preferences)
