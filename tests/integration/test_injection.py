"""Hostile strings as subjects: each is rejected, or reaches NATS unchanged."""

import json
import random
from typing import Any

from sanic_nats_bridge.protocol import subjects
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import Publisher, running, until

SEED = 20_261_124
PIECES = (
    *"abzAZ09.*>$_-", "..", ".>", "*.", "a.b", " ", "\t", "\r\n", "\n", "\0", "\x0b", "\x0c", "\x7f", "\x80", "\xa0",
    "ß", "\u2028", "\u202e", "\ufeff", "\U0001f600", "\uff0a", "SUB ", "UNSUB 1", "PUB b 0", "\r\nPUB b 0\r\n\r\n",
    "$SYS", "_INBOX", "_NATSBRIDGE", "{user}", "%s", '"', "\\", "<script>", "x" * 100, "y." * 20,
)  # fmt: skip


def hostile_strings(count: int) -> list[str]:
    draw = random.Random(SEED)
    return ["".join(draw.choices(PIECES, k=draw.randint(1, 5))) for _ in range(count)]


async def test_only_valid_hostile_subjects_reach_nats(nats_server: NatsServer) -> None:
    texts = list(dict.fromkeys(hostile_strings(1500)))
    expected = {text for text in texts if subjects.is_valid(text) and text[0] not in "$_"}
    assert 50 < len(expected) < len(texts) - 500
    limits: dict[str, Any] = {
        "max_subscriptions": 2000,
        "command_rate": 1e6,
        "command_burst": 10_000,
        "max_bad_commands": 10_000,
    }
    async with (
        running(servers=nats_server.url, subscribe=[">"], max_subscribe_rate=1e6, **limits) as bridge,
        Publisher.connected(nats_server) as publisher,
        bridge.websocket() as bystander,
        bridge.websocket() as client,
    ):
        await bystander.follow("b")
        for text in texts:
            reply = await client.ask(json.dumps({"subjects": [text], "id": text}))
            assert reply["success"] == (text in expected), text
            assert reply["id"] == text
            if not reply["success"]:
                assert reply["code"] in ("subject.invalid", "subject.forbidden")
        await until(lambda: set(nats_server.subscriptions()) == expected | {"b"})
        await publisher.send("b", b'"only this"')
        assert await bystander.data(1) == ["only this"]


async def test_sse_query_rejects_invalid_and_reserved_subjects(nats_server: NatsServer) -> None:
    texts = [text for text in hostile_strings(200) if not subjects.is_valid(text) or text[0] in "$_"]
    async with running(servers=nats_server.url, subscribe=[">"]) as bridge:
        for text in texts:
            async with bridge.http.get(f"{bridge.url}/events", params={"subjects": text}) as response:
                assert response.status in (400, 403), text
        assert nats_server.subscriptions() == []
