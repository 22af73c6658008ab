import asyncio
import json
from types import SimpleNamespace
from typing import Any

from example_app.publisher import SUBJECT, publish_forever


async def test_one_message_a_second_is_published_while_nats_is_connected() -> None:
    published: list[tuple[float, str]] = []

    async def publish(subject: str, payload: bytes) -> None:
        assert len(json.loads(payload)) == 7
        published.append((asyncio.get_running_loop().time(), subject))

    bridge: Any = SimpleNamespace(client=SimpleNamespace(publish=publish))
    publishing = asyncio.create_task(publish_forever(bridge))
    await asyncio.sleep(2.5)
    client, bridge.client = bridge.client, None
    await asyncio.sleep(5)
    bridge.client = client
    await asyncio.sleep(1)
    publishing.cancel()
    assert published == [(0, SUBJECT), (1, SUBJECT), (2, SUBJECT), (8, SUBJECT)]


async def test_orders_and_preferences_are_written_into_streams() -> None:
    published: list[tuple[str, bytes, Any]] = []

    async def publish(subject: str, payload: bytes, headers: Any = None) -> None:
        published.append((subject, payload, headers))

    bridge: Any = SimpleNamespace(client=SimpleNamespace(publish=publish))
    publishing = asyncio.create_task(publish_forever(bridge, has_streams=True))
    await asyncio.sleep(4.5)
    publishing.cancel()
    assert [subject for subject, _, _ in published[::3]] == [SUBJECT] * 5
    assert all(subject.startswith("orders.") and json.loads(payload) for subject, payload, _ in published[1::3])
    writes = published[2::3]
    assert all(subject.startswith("$KV.prefs.") for subject, _, _ in writes)
    assert [headers for _, _, headers in writes] == [None] * 4 + [{"KV-Operation": "DEL"}]
    assert [bool(payload) for _, payload, _ in writes] == [True] * 4 + [False]
