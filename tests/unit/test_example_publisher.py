import asyncio
from types import SimpleNamespace
from typing import Any

from example_app.publisher import SUBJECT, publish_forever
from sanic_nats_bridge import NatsUnavailable


async def test_one_message_a_second_is_published_while_nats_is_connected() -> None:
    published: list[tuple[float, str]] = []

    async def publish(subject: str, data: Any) -> None:
        assert len(data) == 7
        published.append((asyncio.get_running_loop().time(), subject))

    async def disconnected(subject: str, data: Any) -> None:
        raise NatsUnavailable("NATS is disconnected")

    bridge: Any = SimpleNamespace(publish=publish)
    publishing = asyncio.create_task(publish_forever(bridge))
    await asyncio.sleep(2.5)
    bridge.publish = disconnected
    await asyncio.sleep(5)
    bridge.publish = publish
    await asyncio.sleep(1)
    publishing.cancel()
    assert published == [(0, SUBJECT), (1, SUBJECT), (2, SUBJECT), (8, SUBJECT)]


async def test_orders_and_preferences_are_written_into_streams() -> None:
    published: list[tuple[str, Any, Any]] = []

    async def publish(subject: str, data: Any = None, headers: Any = None) -> None:
        published.append((subject, data, headers))

    bridge: Any = SimpleNamespace(publish=publish)
    publishing = asyncio.create_task(publish_forever(bridge, has_streams=True))
    await asyncio.sleep(4.5)
    publishing.cancel()
    assert [subject for subject, _, _ in published[::3]] == [SUBJECT] * 5
    assert all(subject.startswith("orders.") and data["number"] for subject, data, _ in published[1::3])
    writes = published[2::3]
    assert all(subject.startswith("$KV.prefs.") for subject, _, _ in writes)
    assert [headers for _, _, headers in writes] == [None] * 4 + [{"KV-Operation": "DEL"}]
    assert [bool(data) for _, data, _ in writes] == [True] * 4 + [False]
