import asyncio
import inspect
from dataclasses import FrozenInstanceError, fields
from itertools import pairwise
from uuid import uuid4

import pytest

from sanic_nats_bridge import Stats
from sanic_nats_bridge.metrics import stats
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import SERVERS, WAIT_SECONDS, Bridge, Publisher, ServerName, running, until
from tests.support.raw import raw_connection


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> ServerName:
    name: ServerName = request.param
    return name


def test_every_field_is_documented() -> None:
    source = inspect.getsource(stats.Stats)
    names = [field.name for field in fields(Stats)]
    for name, following in pairwise([*names, ""]):
        assert '"""' in source.partition(f"    {name}: ")[2].partition(f"    {following}: ")[0], name


async def test_message_delivery_and_byte_counts_match_client_traffic(bridge: Bridge, publisher: Publisher) -> None:
    subject, wildcard = publisher.subject("a"), publisher.subject("*")
    async with bridge.websocket() as first, bridge.websocket() as second, bridge.events(subject) as third:
        await first.follow(subject, wildcard)
        await second.follow(subject)
        before = bridge.extension.stats()
        assert (before.sessions, before.patterns) == ({"websocket": 2, "sse": 1}, 2)
        await publisher.send(subject, b'"x"', b'"y"')
        for client, count in ((first, 4), (second, 2), (third, 2)):
            await client.data(count)
        after = bridge.extension.stats()
        assert after.messages - before.messages == 4  # two under each of two patterns
        assert after.deliveries - before.deliveries == 8
        sent = after.sent_bytes - before.sent_bytes
        assert 8 * len(subject) < sent < 8 * (len(subject) + 100)
        assert (after.nats, after.nats_reconnects) == ("connected", 0)
        assert 0 <= after.loop_lag < 60
        with pytest.raises(FrozenInstanceError):
            after.messages = 0  # type: ignore[misc]
        assert before.messages == 0  # a picture of its time
    await until(lambda: sum(bridge.extension.stats().sessions.values()) == 0)
    ended = bridge.extension.stats()
    assert ended.sent_bytes >= after.sent_bytes
    assert sum(ended.closes.values()) == 3
    assert ended.closes["1000"] == 2


async def test_rejected_commands_are_counted_by_code_on_any_route(bridge: Bridge) -> None:
    async with bridge.websocket() as websocket, bridge.events() as events:
        assert not (await websocket.ask("{"))["success"]
        assert not (await websocket.ask({"action": "subscribe", "subjects": ["a..b"]}))["success"]
        await bridge.post("/subscribe", {"session": events.session, "subjects": ["a..b"]})
        await bridge.post("/subscribe", {"session": "x", "subjects": ["a"]})
        await bridge.post("/unsubscribe", {"session": events.session, "subjects": ["a"]})
        await bridge.post("/subscribe", b"x" * 70_000)
        async with bridge.http.get(f"{bridge.url}/events", params={"subjects": "a..b"}) as response:
            assert response.status == 400
    assert bridge.extension.stats().refused == {
        "command.invalid": 1,
        "subject.invalid": 3,
        "session.unknown": 1,
        "subject.not_subscribed": 1,
        "limit.size": 1,
    }


async def test_nats_reconnect_counts_one_gap_per_subscription(nats_server: NatsServer) -> None:
    async with running(servers=nats_server.url, subscribe=[">"]) as bridge, bridge.websocket() as client:
        await client.follow("a", "b")
        nats_server.stop()
        await until(lambda: bridge.extension.stats().nats == "disconnected")
        nats_server.start()
        await until(lambda: bridge.extension.stats().nats == "connected")
        after = bridge.extension.stats()
        assert after.nats_reconnects == 1
        assert {reason: count for reason, count in after.gaps.items() if count} == {"nats_reconnect": 2}


async def test_lost_and_delivered_messages_of_slow_client_are_counted(shared_nats: NatsServer) -> None:
    subject = f"slow{uuid4().hex}"
    request = f"GET /nats/events?subjects={subject} HTTP/1.1\r\nHost: h\r\n\r\n"
    async with (
        running(servers=shared_nats.url, subscribe=[">"], max_pending_bytes=65_536, write_timeout=3600) as bridge,
        Publisher.connected(shared_nats) as publisher,
        raw_connection(bridge.port, request, limit=1000) as (reader, _),
    ):
        await until(lambda: [session.subscriptions for session in bridge.extension.sessions] == [(subject,)])
        sent, payload = 0, b'"' + b"x" * 100_000 + b'"'
        while not bridge.extension.stats().lost["slow_consumer"]:
            await publisher.send(subject, payload)
            sent += 1
            await asyncio.sleep(0)
            assert sent < 1000
        await until(lambda: bridge.extension.stats().messages == sent)
        slow = bridge.extension.stats()
        assert slow.slow_consumers == 1
        assert slow.deliveries + slow.lost["slow_consumer"] == sent
        assert slow.gaps["slow_consumer"] == 0
        told = b""
        async with asyncio.timeout(WAIT_SECONDS):
            while b'"reason":"slow_consumer"' not in told:
                part = await reader.read(1 << 20)
                assert part
                told = told[-100:] + part
        assert bridge.extension.stats().gaps["slow_consumer"] == 1


async def test_message_with_undecodable_subject_is_counted_as_lost(nats_server: NatsServer) -> None:
    async with running(servers=nats_server.url, subscribe=[">"]) as bridge, bridge.websocket() as client:
        await client.follow("a.>")
        _, writer = await asyncio.open_connection("127.0.0.1", nats_server.port)
        writer.write(b"CONNECT {}\r\nPUB a.\xff 1\r\n1\r\nPUB a.b 1\r\n2\r\nPING\r\n")
        assert await client.data(1) == [2]
        assert bridge.extension.stats().lost == {"slow_consumer": 0, "subject_mismatch": 0, "unreadable_subject": 1}
        writer.close()
        await writer.wait_closed()
