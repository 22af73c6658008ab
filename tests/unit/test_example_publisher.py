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
