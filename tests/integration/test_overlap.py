"""Overlapping patterns: what NATS sends for them, and what clients get, with a real nats-server and real sockets."""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from itertools import combinations
from typing import Any

import pytest

from sanic_nats_bridge.hub.queue_groups import MAX_COPIES
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import Bridge, Publisher, WebSocketClient, running, until
from tests.support.raw import UPGRADE, client_frame, raw_connection, session_of, sessions

SUBJECT = "orders.eu.shop42.customer7.item9.created.v1.x.y"
HONEST = 1
MAX_OVERLAP = 16


def incomparable(wild: int) -> list[str]:
    """Return 126 patterns that match the subject, none of which includes another one, for 4 or 5 wildcards."""
    tokens = SUBJECT.split(".")
    return [
        ".".join("*" if place in places else token for place, token in enumerate(tokens))
        for places in combinations(range(len(tokens)), wild)
    ]


def connection(server: NatsServer) -> dict[str, Any]:
    """Return the server's record of the bridge's connection."""
    connections = server.monitor("/connz?subs=detail&limit=64")["connections"]
    (found,) = [each for each in connections if each.get("name") == "sanic-nats-bridge"]
    return dict(found)


def followed(server: NatsServer) -> list[dict[str, Any]]:
    """Return the bridge's subscriptions, without those of its control channel."""
    return [each for each in connection(server)["subscriptions_list_detail"] if not each["subject"].startswith("_")]


@contextlib.asynccontextmanager
async def numbering(publisher: Publisher) -> AsyncIterator[list[int]]:
    """Publish numbers on the subject all the time; the list has those that the server has."""
    sent: list[int] = []

    async def publish() -> None:
        while True:
            batch = range(len(sent), len(sent) + 20)
            await publisher.send(SUBJECT, *(b"%d" % number for number in batch))
            sent.extend(batch)
            await asyncio.sleep(0.01)

    task = asyncio.create_task(publish())
    try:
        yield sent
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def copies_of_each(server: NatsServer, publisher: Publisher, bridge: Bridge, count: int = 500) -> float:
    """Publish messages, and return how many copies of each the server has sent to the bridge."""
    before = connection(server)["out_msgs"]
    received = sessions(bridge).counters.messages
    await publisher.send(SUBJECT, *(b"-1" for _ in range(count)))
    sent = connection(server)["out_msgs"] - before
    await until(lambda: sessions(bridge).counters.messages - received >= sent - 5)  # control messages are few
    return float(round(sent / count, 1))


async def read_to(client: WebSocketClient, last: int) -> list[int]:
    """Read messages up to this number."""
    numbers = [-1]
    while numbers[-1] < last:
        frame = await client.frame()
        assert frame["type"] == "message", frame
        numbers.append(frame["data"])
    return numbers[1:]


@contextlib.asynccontextmanager
async def overlapping_clients(bridge: Bridge, *, reading: bool) -> AsyncIterator[list[str]]:
    """Connect eight sockets, each with 126 overlapping patterns; return the ids of their sessions."""
    async with contextlib.AsyncExitStack() as stack:
        ids: list[str] = []
        patterns = [incomparable(4), incomparable(5)]
        for number in range(8):
            command = {"action": "subscribe", "subjects": patterns[number % 2]}
            if reading:
                client = await stack.enter_async_context(bridge.websocket())
                ids.append(client.session)
                await client.send(command)
                task = asyncio.create_task(_read_all(client))
                stack.callback(task.cancel)
            else:
                request = f"GET {bridge.prefix}/stream HTTP/1.1\r\n{UPGRADE}\r\n"
                # The limit of what asyncio reads by itself.
                reader, writer = await stack.enter_async_context(raw_connection(bridge.port, request, 1024))
                await reader.readuntil(b"\r\n\r\n")
                head = await reader.readexactly(4)
                welcome = await reader.readexactly(int.from_bytes(head[2:]))
                ids.append(json.loads(welcome)["session"])
                writer.write(client_frame(json.dumps(command).encode()))
        yield ids


async def _read_all(client: WebSocketClient) -> None:
    with contextlib.suppress(Exception):
        while True:
            await client.frame()


@pytest.mark.parametrize("reading", [True, False])
async def test_many_overlapping_patterns_cost_few_copies_and_no_other_client(
    nats_server: NatsServer, *, reading: bool
) -> None:
    async with (
        running(servers=nats_server.url, subscribe=[">"]) as bridge,
        Publisher.connected(nats_server) as publisher,
        bridge.websocket() as honest,
    ):
        await honest.follow("orders.>")
        async with numbering(publisher) as sent, overlapping_clients(bridge, reading=reading) as ids:
            await until(lambda: all(session_of(bridge, each).subscriptions for each in ids))
            await until(lambda: all(len(session_of(bridge, each).subscriptions) == MAX_OVERLAP for each in ids))
            begin = len(sent)
            await until(lambda: len(sent) > begin + 100)
        last = sent[-1]
        assert await read_to(honest, last) == list(range(last + 1))
        stats = bridge.extension.stats()
        assert (stats.nats, stats.nats_reconnects, stats.gaps["internal"], stats.gaps["nats_reconnect"]) == (
            *("connected", 0),
            *(0, 0),
        )
        assert stats.refused["limit.overlap"] == 8 * (126 - MAX_OVERLAP)


async def test_copies_from_nats_are_bounded_before_the_first_message(nats_server: NatsServer) -> None:
    async with (
        running(servers=nats_server.url, subscribe=[">"], max_overlap=126) as bridge,
        Publisher.connected(nats_server) as publisher,
        overlapping_clients(bridge, reading=True) as ids,
    ):
        await until(lambda: all(len(session_of(bridge, each).subscriptions) == 126 for each in ids))
        assert len(followed(nats_server)) == 252
        assert await copies_of_each(nats_server, publisher, bridge) <= MAX_COPIES


async def test_each_overlapping_pattern_gets_each_message_once(nats_server: NatsServer) -> None:
    patterns = [*incomparable(4)[:20], "orders.>", SUBJECT, *incomparable(3)[:20]]
    async with (
        running(servers=nats_server.url, subscribe=[">"], max_overlap=100) as bridge,
        Publisher.connected(nats_server) as publisher,
        bridge.websocket() as client,
    ):
        await client.follow(*patterns)
        await publisher.send(SUBJECT, *(b"%d" % number for number in range(50)))
        frames = await client.frames(50 * len(patterns))
        for pattern in patterns:
            own = [frame["data"] for frame in frames if frame.get("pattern", frame["subject"]) == pattern]
            assert own == list(range(50))


async def test_overlapping_patterns_on_silent_subject_bring_nothing_from_beside_it(nats_server: NatsServer) -> None:
    silent = [pattern.replace("orders", "all.silent") for pattern in incomparable(4) if pattern.startswith("orders")]
    async with (
        running(servers=nats_server.url, subscribe=["all.>"]) as bridge,
        Publisher.connected(nats_server) as publisher,
        bridge.websocket() as honest,
        bridge.websocket() as other,
    ):
        await honest.follow("all.busy.>")
        await other.follow(*silent[:9])
        before = connection(nats_server)["out_bytes"]
        payloads = [b'"%0100d"' % number for number in range(2000)]
        await publisher.send("all.busy.eu.shop42.customer7.item9.created.v1.x.y", *payloads)
        assert len(await honest.data(2000)) == 2000
        assert connection(nats_server)["out_bytes"] - before < 1.1 * sum(map(len, payloads))
        await publisher.send(f"all.silent.{SUBJECT.partition('.')[2]}", b'"rare"')
        assert await other.data(9) == ["rare"] * 9


async def test_patterns_that_do_not_overlap_have_subscriptions_without_groups(nats_server: NatsServer) -> None:
    patterns = [f"orders.{number}.*" for number in range(126)]
    async with running(servers=nats_server.url, subscribe=["orders.>"]) as bridge, bridge.websocket() as client:
        await client.follow(*patterns)
        held = followed(nats_server)
        assert sorted(each["subject"] for each in held) == sorted(patterns)
        assert not [each for each in held if each.get("qgroup")]


async def test_groups_of_two_workers_are_their_own(nats_server: NatsServer) -> None:
    patterns = incomparable(4)[:12]
    async with (
        running(servers=nats_server.url, subscribe=[">"]) as here,
        running(servers=nats_server.url, subscribe=[">"]) as there,
        Publisher.connected(nats_server) as publisher,
        here.websocket() as one,
        there.websocket() as other,
    ):
        for client in (one, other):
            await client.follow(*patterns)
        await publisher.send(SUBJECT, b"1", b"2")
        for client in (one, other):
            frames = await client.frames(24)
            assert Counter(frame["data"] for frame in frames) == {1: 12, 2: 12}


async def test_groups_are_subscribed_again_on_a_new_connection(nats_server: NatsServer) -> None:
    patterns = incomparable(4)[:12]
    async with running(servers=nats_server.url, subscribe=[">"]) as bridge, bridge.websocket() as client:
        await client.follow(*patterns)
        before = {each["qgroup"] for each in followed(nats_server) if each.get("qgroup")}
        nats_server.restart()
        while (await client.frame()) != {"type": "status", "nats": "connected"}:
            pass
        after = {each["qgroup"] for each in followed(nats_server) if each.get("qgroup")}
        assert before
        assert len(after) == len(before)
        assert not before & after
        async with Publisher.connected(nats_server) as publisher:
            await publisher.send(SUBJECT, b"1")
        assert await client.data(12) == [1] * 12


DENYING = """
authorization {{users: [
  {{user: bridge, password: b, permissions: {{subscribe: {{allow: [">"], deny: ["never", {denied}]}}}}}}
  {{user: other, password: o}}
]}}
"""


async def test_nats_refuses_members_of_groups(nats_server: NatsServer) -> None:
    *patterns, late, denied = incomparable(4)[:14]
    config = DENYING.format(denied=json.dumps(denied))
    with NatsServer(config=config) as server:
        async with (
            running(servers=server.url, subscribe=[">"], user="bridge", password="b") as bridge,
            bridge.websocket() as client,
        ):
            await client.follow(*patterns)
            assert (await client.ask({"subjects": [denied]}))["code"] == "nats.refused"
            await client.follow(late)
            assert {each["subject"] for each in followed(server) if each.get("qgroup")} >= {late}
            server.config = DENYING.format(denied=json.dumps(late))
            server.reload()
            frame = await client.frame()
            assert (frame["type"], frame["subjects"], frame["code"]) == ("unsubscribed", [late], "nats.refused")
            assert session_of(bridge, client.session).subscriptions == tuple(patterns)
