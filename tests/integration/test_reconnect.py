import asyncio
import contextlib
import json
import signal
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from websockets.asyncio.client import connect

from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import WAIT_SECONDS, Bridge, EventClient, Publisher, WebSocketClient, running, until
from tests.support.clock import held
from tests.support.example import publish as publish_at_once
from tests.support.process import app_process

LOST = {"type": "status", "nats": "disconnected"}
BACK = {"type": "status", "nats": "connected"}


@contextlib.asynccontextmanager
async def bridged(server: NatsServer, **settings: Any) -> AsyncIterator[Bridge]:
    async with running(servers=server.url, subscribe=[">"], **{"unsubscribe_delay": 0.05} | settings) as bridge:
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


async def test_sessions_survive_ten_second_nats_outage(nats_server: NatsServer) -> None:
    async with (
        bridged(nats_server) as bridge,
        bridge.websocket() as websocket,
        bridge.websocket() as idle,
        bridge.events("a", "b.*") as events,
        held() as clock,
    ):
        await websocket.follow("a", "b.*")
        sessions = bridge.runtime.sessions
        before = {session.key for session in sessions}
        nats_server.stop()
        followers: list[WebSocketClient | EventClient] = [websocket, events]
        assert [await client.frame() for client in [*followers, idle]] == [LOST] * 3
        await clock.forward(10)
        nats_server.start()
        await clock.forward_until(lambda: bridge.extension.client)
        for client in followers:
            assert await client.frames(2) == [gap("a", "b.*"), BACK]
        assert await idle.frame() == BACK
        await publish(nats_server, "a", b"1")
        await publish(nats_server, "b.c", b"2")
        assert [await client.data(2) for client in followers] == [[1, 2]] * 2
        assert (await idle.ask({"action": "ping"}))["message"] == "pong"
        assert {session.key for session in sessions} == before


async def test_gap_precedes_messages_after_reconnect(nats_server: NatsServer) -> None:
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


async def test_pattern_subscribed_during_nats_outage_becomes_active(nats_server: NatsServer) -> None:
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


async def test_pattern_unsubscribed_during_nats_outage_is_not_restored(nats_server: NatsServer) -> None:
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


async def test_app_can_start_before_nats(nats_server: NatsServer) -> None:
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


async def test_refusal_after_reconnect_is_sent_between_gap_and_status() -> None:
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


async def test_subscription_ends_when_nats_revokes_permission() -> None:
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


async def test_unconfirmed_subscribe_is_inactive_until_status_connected(
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


async def test_unresponsive_nats_server_causes_reconnect_with_gap(nats_server: NatsServer) -> None:
    async with (
        bridged(nats_server) as bridge,
        bridge.websocket(ping_interval=None) as websocket,
    ):
        await websocket.follow("a")
        nats_server.pause()
        async with held() as clock:
            asking = asyncio.create_task(websocket.ask({"action": "subscribe", "subjects": ["b"]}))
            await clock.forward_until(asking.done, step=5)
            assert asking.result()["active"] is False
            hearing = asyncio.create_task(websocket.frame())
            await clock.forward_until(hearing.done, step=5)
            assert hearing.result() == LOST
        nats_server.resume()
        assert await websocket.frames(2) == [gap("a"), BACK]
        await publish(nats_server, "b", b"1")
        assert await websocket.data(1) == [1]


@pytest.mark.parametrize("rounds", [4])
async def test_each_nats_restart_sends_gap_and_resumes_delivery(nats_server: NatsServer, rounds: int) -> None:
    async with bridged(nats_server) as bridge, bridge.events("a") as events:
        for number in range(rounds):
            nats_server.kill()
            nats_server.start()
            assert await events.frames(3) == [LOST, gap("a"), BACK]
            await publish(nats_server, "a", b"%d" % number)
            assert await events.data(1) == [number]
        await until(lambda: nats_server.subscriptions() == ["a"])


async def test_subscribe_denied_by_nats_fails_for_that_client_only() -> None:
    with NatsServer(config=denying("secret")) as server:
        async with bridged(server) as bridge, bridge.websocket() as websocket, bridge.websocket() as other:
            await websocket.follow("a", "SECRET")
            reply = await other.ask({"action": "subscribe", "subjects": ["a", "secret"]})
            assert (reply["success"], reply["code"], reply["subjects"]) == (False, "nats.refused", ["secret"])
            await publish(server, "a", b"1")
            assert await websocket.data(1) == [1]
            assert (await other.ask({"action": "ping"}))["message"] == "pong"


async def test_pattern_that_breaks_connection_is_refused_and_not_retried() -> None:
    poison = "x" * 255
    with NatsServer(config="max_control_line: 200") as server:
        async with bridged(server) as bridge, bridge.websocket() as websocket, bridge.websocket() as other:
            await websocket.follow("a")
            await other.send({"action": "subscribe", "subjects": [poison]})
            assert await websocket.frames(3) == [LOST, gap("a"), BACK]
            replies = [frame for frame in await other.frames(3) if frame["type"] == "reply"]
            assert [(reply["success"], reply["code"]) for reply in replies] == [(False, "nats.refused")]
            # No client can cause a gap for the others repeatedly.
            for number in range(20):
                again = await other.ask({"action": "subscribe", "subjects": ["b", "c" * 255], "id": number})
                assert (again["id"], again["code"], again["subjects"]) == (number, "nats.refused", ["c" * 255])
            await publish(server, "a", b"1")
            assert await websocket.data(1) == [1]
            await until(lambda: server.subscriptions() == ["a"])


async def test_messages_dropped_by_nats_for_slow_bridge_cause_gap() -> None:
    count, size = 3_000, 8_000

    def flood(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as publisher:
            publisher.sendall(b'CONNECT {"verbose":false}\r\n')
            for number in range(count):
                publisher.sendall(b"PUB a %d\r\n%-*d\r\n" % (size, size, number))
            publisher.sendall(b"PING\r\n")
            while b"PONG" not in publisher.recv(4096):
                pass

    with NatsServer(config="max_payload: 16384\nmax_pending: 65536") as server:
        async with bridged(server) as bridge, bridge.websocket() as websocket:
            await websocket.follow("a")
            # In the loop's own thread: it is blocked, and reads nothing meanwhile.
            flood(server.port)
            last, holes = -1, 0
            while (frame := await websocket.frame()) != BACK:
                if frame["type"] == "gap":
                    assert frame["reason"] == "nats_reconnect"
                    last, holes = count, holes + 1
                elif frame["type"] == "message":
                    assert last + 1 == int(frame["data"])
                    last += 1
            assert holes == 1
            await publish(server, "a", b"1")
            assert await websocket.data(1) == [1]


async def test_suspended_bridge_keeps_nats_connection(nats_server: NatsServer) -> None:
    async with bridged(nats_server) as bridge, bridge.websocket(ping_interval=None) as websocket:
        await websocket.follow("a")
        client: Any = bridge.extension.client
        async with held() as clock:
            # It blocks the loop.
            publish_at_once(nats_server, "a", b"1")
            clock.jump(10 * WAIT_SECONDS)
            assert await websocket.data(1) == [1]
            await until(lambda: not client.unanswered_pings)
            await clock.forward(WAIT_SECONDS / 2)
        await publish(nats_server, "a", b"2")
        assert await websocket.data(1) == [2]
        assert bridge.extension.client is client


async def test_stopped_process_receives_messages_after_sigcont(nats_server: NatsServer) -> None:
    settings = {"servers": nats_server.url, "subscribe": [">"], "ping_interval": WAIT_SECONDS}
    async with app_process(settings) as app:
        await until(lambda: nats_server.monitor("/varz")["connections"] == 1)
        async with connect(f"ws://127.0.0.1:{app.ports[0]}/nats/stream") as connection:
            websocket = WebSocketClient(connection)
            websocket.welcome = await websocket.frame()
            if websocket.welcome["nats"] == "disconnected":
                assert await websocket.frame() == BACK
            await websocket.follow("a")
            app.process.send_signal(signal.SIGSTOP)
            await publish(nats_server, "a", b"1")
            app.process.send_signal(signal.SIGCONT)
            await publish(nats_server, "a", b"2")
            assert await websocket.data(2) == [1, 2]
