import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sanic_nats_bridge.testing import NatsServer

from .support import Bridge, EventClient, Publisher, WebSocketClient, running, until

LOST = {"type": "status", "nats": "disconnected"}
BACK = {"type": "status", "nats": "connected"}


@contextlib.asynccontextmanager
async def bridged(server: NatsServer, **settings: Any) -> AsyncIterator[Bridge]:
    async with running(servers=server.url, subscribe=[">"], **{"linger": 0.05} | settings) as bridge:
        yield bridge


def gap(*patterns: str) -> dict[str, Any]:
    return {"type": "gap", "subjects": list(patterns), "lost": None, "reason": "nats_reconnect"}


async def publish(server: NatsServer, subject: str, *payloads: bytes) -> None:
    async with Publisher.connected(server) as publisher:
        await publisher.send(subject, *payloads)


def denying(*patterns: str) -> str:
    rules = {"subscribe": {"deny": ["never", *patterns]}}
    users = json.dumps({"users": [{"user": "u", "password": "p", "permissions": rules}]})
    return f"authorization: {users}\nno_auth_user: u"


async def test_nobody_is_dropped_when_nats_is_away_for_seconds(nats_server: NatsServer) -> None:
    async with (
        bridged(nats_server) as bridge,
        bridge.websocket() as websocket,
        bridge.websocket() as idle,
        bridge.events("a", "b.*") as events,
    ):
        await websocket.follow("a", "b.*")
        sessions = bridge.extension._sessions
        before = {session.key for session in sessions}
        nats_server.stop()
        followers: list[WebSocketClient | EventClient] = [websocket, events]
        assert [await client.frame() for client in [*followers, idle]] == [LOST] * 3
        await asyncio.sleep(3)
        nats_server.start()
        for client in followers:
            assert await client.frames(2) == [gap("a", "b.*"), BACK]
        assert await idle.frame() == BACK
        await publish(nats_server, "a", b"1")
        await publish(nats_server, "b.c", b"2")
        assert [await client.data(2) for client in followers] == [[1, 2]] * 2
        assert (await idle.ask({"action": "ping"}))["message"] == "pong"
        assert {session.key for session in sessions} == before


async def test_the_gap_stands_before_the_first_message_of_the_new_connection(nats_server: NatsServer) -> None:
    async with bridged(nats_server) as bridge, bridge.websocket() as websocket:
        await websocket.follow("a")
        nats_server.restart()
        async with Publisher.connected(nats_server) as publisher:
            sent = 0
            while "a" not in nats_server.subscriptions():
                await publisher.send("a", b"%d" % sent)
                sent += 1
            await publisher.send("a", b'"last"')
        frames = [await websocket.frame()]
        while frames[-1].get("data") != "last":
            frames.append(await websocket.frame())
        assert frames[:2] == [LOST, gap("a")]
        assert frames.count(BACK) == 1
        numbers = [frame["data"] for frame in frames if frame["type"] == "message"][:-1]
        assert numbers == list(range(sent - len(numbers), sent))


async def test_what_is_subscribed_while_nats_is_away_becomes_live(nats_server: NatsServer) -> None:
    async with bridged(nats_server) as bridge, bridge.websocket() as websocket, bridge.events() as events:
        nats_server.stop()
        assert [await client.frame() for client in (websocket, events)] == [LOST] * 2
        reply = await websocket.ask({"action": "subscribe", "subjects": ["a"]})
        assert (reply["success"], reply["active"]) == (True, False)
        status, reply = await bridge.post("/subscribe", {"session": events.session, "subjects": ["a"]})
        assert (status, reply["success"], reply["active"]) == (200, True, False)
        nats_server.start()
        assert [await client.frame() for client in (websocket, events)] == [BACK] * 2
        await publish(nats_server, "a", b"1")
        assert await websocket.data(1) == await events.data(1) == [1]


async def test_what_is_unsubscribed_while_nats_is_away_is_gone(nats_server: NatsServer) -> None:
    async with bridged(nats_server) as bridge, bridge.websocket() as websocket:
        await websocket.follow("a", "b")
        nats_server.stop()
        assert await websocket.frame() == LOST
        assert (await websocket.ask({"action": "unsubscribe", "subjects": ["a"]}))["success"]
        nats_server.start()
        assert await websocket.frames(2) == [gap("b"), BACK]
        assert nats_server.subscriptions() == ["b"]
        await publish(nats_server, "a", b"1")
        await publish(nats_server, "b", b"2")
        assert await websocket.data(1) == [2]


async def test_nats_may_come_after_the_app(nats_server: NatsServer) -> None:
    nats_server.stop()
    async with bridged(nats_server, connected=False) as bridge, bridge.websocket() as websocket:
        assert websocket.welcome["nats"] == "disconnected"
        reply = await websocket.ask({"action": "subscribe", "subjects": ["a"]})
        assert reply["active"] is False
        async with bridge.events("a") as events:
            assert (events.welcome["nats"], events.reply["active"]) == ("disconnected", False)
            nats_server.start()
            assert await websocket.frame() == await events.frame() == BACK
            await publish(nats_server, "a", b"1")
            assert await websocket.data(1) == await events.data(1) == [1]


async def test_what_nats_refuses_after_its_return_is_ended_between_gap_and_status() -> None:
    with NatsServer() as server:
        async with bridged(server) as bridge, bridge.websocket() as websocket:
            await websocket.follow("a", "b", "c")
            server.stop()
            server.config = denying("b")
            server.start()
            lost, hole, ended, back = await websocket.frames(4)
            assert [lost, hole, back] == [LOST, gap("a", "b", "c"), BACK]
            assert (ended["type"], ended["subjects"], ended["code"]) == ("unsubscribed", ["b"], "nats.refused")
            await publish(server, "b", b"1")
            await publish(server, "c", b"2")
            assert await websocket.data(1) == [2]
            assert (await websocket.ask({"action": "unsubscribe", "subjects": ["b"]}))["code"] == (
                "subject.not_subscribed"
            )


async def test_a_pattern_that_is_no_longer_permitted_is_ended() -> None:
    with NatsServer(config=denying()) as server:
        async with bridged(server) as bridge, bridge.websocket() as websocket, bridge.websocket() as other:
            await websocket.follow("a", "b")
            await other.follow("b")
            server.config = denying("a")
            server.reload()
            ended = await websocket.frame()
            assert (ended["type"], ended["subjects"], ended["code"]) == ("unsubscribed", ["a"], "nats.refused")
            await publish(server, "b", b"1")
            assert await websocket.data(1) == await other.data(1) == [1]


async def test_a_server_that_does_not_answer_makes_an_inactive_reply_and_a_later_status(
    nats_server: NatsServer,
) -> None:
    async with (
        bridged(nats_server, confirm_timeout=0.1, ping_interval=60) as bridge,
        bridge.websocket() as websocket,
    ):
        nats_server.pause()
        reply = await websocket.ask({"action": "subscribe", "subjects": ["a"]})
        assert (reply["success"], reply["active"]) == (True, False)
        nats_server.resume()
        assert await websocket.frame() == BACK
        await publish(nats_server, "a", b"1")
        assert await websocket.data(1) == [1]


async def test_a_server_that_hangs_for_long_is_lost_and_comes_back(nats_server: NatsServer) -> None:
    async with (
        bridged(nats_server, confirm_timeout=0.05, ping_interval=0.2) as bridge,
        bridge.websocket() as websocket,
    ):
        await websocket.follow("a")
        nats_server.pause()
        assert (await websocket.ask({"action": "subscribe", "subjects": ["b"]}))["active"] is False
        assert await websocket.frame() == LOST
        nats_server.resume()
        assert await websocket.frames(2) == [gap("a"), BACK]
        await publish(nats_server, "b", b"1")
        assert await websocket.data(1) == [1]


@pytest.mark.parametrize("rounds", [4])
async def test_the_promise_is_kept_each_time_that_nats_goes(nats_server: NatsServer, rounds: int) -> None:
    async with bridged(nats_server) as bridge, bridge.events("a") as events:
        for number in range(rounds):
            nats_server.kill()
            nats_server.start()
            assert await events.frames(3) == [LOST, gap("a"), BACK]
            await publish(nats_server, "a", b"%d" % number)
            assert await events.data(1) == [number]
        await until(lambda: nats_server.subscriptions() == ["a"])
