"""Failures of the connection to NATS: the link notices, reconnects, and leaves nothing behind."""

import asyncio
import contextlib
import os
import resource
import signal
from collections.abc import AsyncIterator, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import nats.errors
import pytest

from sanic_nats_bridge.nats.supervisor import ConnectionSupervisor
from sanic_nats_bridge.settings import Settings
from sanic_nats_bridge.testing import NatsServer
from tests.integration.test_nats_supervisor import (
    Listener,
    SupervisorHarness,
    own_subscription,
    permissions,
    supervising,
    wait_until_disconnected,
)
from tests.support.bridge import WAIT_SECONDS, Publisher, free_port, until
from tests.support.clock import held
from tests.support.fakes import ignore
from tests.support.nats import INFO, Peer, Proxy, sockets

QUICK: dict[str, Any] = {"connect_timeout": 0.3}
"""Settings for peers that accept no client; a peer that does, but is slow, is tried again."""

CAME_BACK = ["up", "down", "up"]


@pytest.fixture(autouse=True)
async def _no_leaked_tasks_or_sockets() -> AsyncIterator[None]:
    tasks, before = asyncio.all_tasks(), sockets()
    yield
    tasks |= {task for task in (asyncio.current_task(),) if task is not None}
    await until(lambda: not asyncio.all_tasks() - tasks)
    await until(lambda: sockets() == before)


async def check_delivery(bridge: SupervisorHarness, server: NatsServer, *, subject: str = "alive") -> None:
    """Make sure that what is subscribed now arrives."""
    assert await bridge.ask(subject) == {subject: "confirmed"}
    async with Publisher.connected(server) as publisher:
        await publisher.send(subject, b"still here")
    await until(lambda: b"still here" in bridge.listener.payloads)


def has_reported(bridge: SupervisorHarness, changes: list[str]) -> bool:
    return bridge.listener.changes == changes


# The network


async def test_connection_is_replaced_when_network_drops_all_data(
    nats_server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        Proxy.before(nats_server) as proxy,
        supervising(nats_server, servers=proxy.url, **QUICK) as bridge,
    ):
        proxy.hole = True
        await wait_until_disconnected(bridge)
        proxy.hole = False
        await until(lambda: bridge.listener.changes == CAME_BACK)
        await check_delivery(bridge, nats_server)
        assert "the server was silent for 60 s after a PING" in caplog.text


@pytest.mark.parametrize("size", [1, 2, 7])
async def test_fragmented_messages_arrive_whole_and_in_order(nats_server: NatsServer, size: int) -> None:
    payloads = [bytes(range(256)), b"", b"\r\nMSG a 1 2\r\n", *(b"%d" % number for number in range(30))]
    async with Proxy.before(nats_server) as proxy:
        proxy.forward = lambda data: (data[start : start + size] for start in range(0, len(data), size))
        async with (
            supervising(nats_server, servers=proxy.url) as bridge,
            Publisher.connected(nats_server) as publisher,
        ):
            await bridge.ask("a")
            await publisher.send("a", *payloads)
            await until(lambda: len(bridge.listener.messages) == len(payloads))
            assert bridge.listener.payloads == payloads
            assert bridge.listener.changes == ["up"]


@pytest.mark.parametrize(
    ("sent", "arrives"),
    [
        (b"MSG a", b"MTG a"),
        (b"MSG a", b"\xff\x00G a"),
        (b" 5\r\n", b" 4\r\n"),
        (b" 5\r\n", b" x\r\n"),
        (b" 5\r\n", b" 5\rx"),
        (b"hello\r\n", b"hello\n\r"),
    ],
    ids=ascii,
)
async def test_corrupted_stream_causes_reconnect(nats_server: NatsServer, sent: bytes, arrives: bytes) -> None:
    async with Proxy.before(nats_server) as proxy:
        corrupting = True

        def corrupt(data: bytes) -> Iterable[bytes]:
            nonlocal corrupting
            changed = data.replace(sent, arrives) if corrupting else data
            corrupting = corrupting and changed == data
            return (changed,)

        async with (
            supervising(nats_server, servers=proxy.url, **QUICK) as bridge,
            Publisher.connected(nats_server) as publisher,
        ):
            await bridge.ask("a")
            proxy.forward = corrupt
            await publisher.send("a", b"hello", b"lost")
            await until(lambda: not corrupting)
            await wait_until_disconnected(bridge)
            await until(lambda: bridge.listener.changes == CAME_BACK)
            assert bridge.listener.messages == []
            await check_delivery(bridge, nats_server)


async def test_corrupted_payload_length_causes_reconnect() -> None:
    async with Peer().listening() as peer, supervising(servers=peer.url) as bridge:
        bridge.supervisor.subscribe("a", "a")
        await until(lambda: "a" in bridge.listener.answers)
        # All that comes from here on is taken for the payload.
        peer.say(b"MSG a 1 99999999\r\nhello\r\n")
        await wait_until_disconnected(bridge)
        await until(lambda: bridge.listener.changes == CAME_BACK)
        assert bridge.listener.messages == []


# The server


ENDS = {
    "login expired": b"-ERR 'User Authentication Expired'\r\n",
    "login revoked": b"-ERR 'Authorization Violation'\r\n",
    "stale connection": b"-ERR 'Stale Connection'\r\n",
    "payload too large": b"-ERR 'Maximum Payload Violation'\r\n",
    "unknown error": b"-ERR 'what nobody knows'\r\n",
    "error that is not UTF-8": b"-ERR '\xff\r\n",
    "empty error": b"-ERR\r\n",
    "an unknown operation": b"HELLO\r\n",
    "an empty line": b"\r\n",
    "truncated MSG line": b"MSG a\r\n",
    "INFO that is not JSON": b"INFO {\r\n",
    "INFO that is not an object": b"INFO [1]\r\n",
    "INFO with connect_urls that is not a list": b'INFO {"connect_urls": 1}\r\n',
    "INFO with invalid connect_urls": b'INFO {"connect_urls": ["[::", "a:b"]}\r\n',
    "nothing": b"",
    "half a line": b"MSG a 1",
    "half a message": b"MSG a 1 5\r\nhel",
}


@pytest.mark.parametrize("said", ENDS.values(), ids=ENDS.keys())
@pytest.mark.parametrize("closes", [True, False], ids=["server closes", "server keeps connection open"])
async def test_supervisor_reconnects_after_any_server_output(said: bytes, closes: bool) -> None:
    async with Peer().listening() as peer, supervising(servers=peer.url, **QUICK) as bridge:
        peer.say(said, then_close=closes)
        # A peer hangs if it has sent only half of a line or message.
        peer.answers = False
        await wait_until_disconnected(bridge)
        peer.answers = True
        await until(lambda: bridge.listener.changes == CAME_BACK)
        assert await bridge.ask("a") == {"a": "confirmed"}


async def test_cluster_server_with_invalid_address_is_skipped() -> None:
    info = b'INFO {"max_payload":1024,"connect_urls":["127.0.0.1:port","127.0.0.1:99999",":","127.0.0.1:0"]}\r\n'
    async with Peer(greeting=info).listening() as peer, supervising(servers=peer.url, **QUICK) as bridge:
        peer.welcome = b"-ERR 'maximum connections exceeded'\r\n"
        peer.say(b"", then_close=True)
        # More than one round, so that the servers named in INFO have been tried.
        before = peer.accepted
        await until(lambda: peer.accepted >= before + 3)
        peer.welcome = b"PONG\r\n"
        await until(lambda: bridge.listener.changes == CAME_BACK)
        assert await bridge.ask("a") == {"a": "confirmed"}


STRANGERS = {
    "sends nothing": Peer(greeting=b"", answers=False),
    "sends HTTP": Peer(greeting=b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "sends half a line": Peer(greeting=b"INFO {"),
    "sends INFO that is not JSON": Peer(greeting=b"INFO {\r\n"),
    "sends INFO that is not an object": Peer(greeting=b"INFO 1\r\n"),
    "sends an endless line": Peer(greeting=b"INFO {" + b"x" * 2_000_000),
    "requires TLS and never answers": Peer(greeting=b'INFO {"tls_required":true}\r\n', answers=False),
    "never answers CONNECT": Peer(answers=False),
    "rejects login": Peer(welcome=b"-ERR 'Authorization Violation'\r\n"),
    "has too many connections": Peer(welcome=b"-ERR 'maximum connections exceeded'\r\n"),
    "answers with unknown operation": Peer(welcome=b"HELLO\r\n"),
}


@pytest.mark.parametrize("name", STRANGERS)
async def test_supervisor_retries_until_peer_accepts_connection(name: str) -> None:
    stranger = STRANGERS[name]
    async with stranger.listening(), supervising(servers=stranger.url, connected=False, **QUICK) as bridge:
        await until(lambda: stranger.accepted >= 2)
        assert bridge.listener.changes == []
        stranger.greeting, stranger.welcome, stranger.answers = INFO, b"PONG\r\n", True
        await until(lambda: bridge.listener.changes == ["up"])
        assert await bridge.ask("a") == {"a": "confirmed"}


async def test_hanging_tls_handshake_times_out_and_is_retried() -> None:
    silent = Peer(greeting=b"", answers=False)
    async with silent.listening():
        url = f"tls://127.0.0.1:{silent.port}"
        async with supervising(servers=url, tls_handshake_first=True, connected=False, **QUICK) as bridge:
            await until(lambda: silent.accepted >= 3)
            assert bridge.listener.changes == []


async def test_blocked_event_loop_does_not_end_connection(nats_server: NatsServer) -> None:
    async with supervising(nats_server) as bridge:
        client: Any = bridge.client
        async with held() as clock:
            for pause in (0.0, WAIT_SECONDS / 3, WAIT_SECONDS * 0.9):
                await clock.forward(pause)
                clock.jump(5 * WAIT_SECONDS)
                await until(lambda: not client.unanswered_pings)
        await check_delivery(bridge, nats_server)
        assert bridge.supervisor.client is client
        assert bridge.listener.changes == ["up"]


async def test_supervisor_reconnects_after_login_is_revoked_and_restored(caplog: pytest.LogCaptureFixture) -> None:
    ours = "authorization: {users: [{user: u, password: p}, {user: other, password: p}]}"
    with NatsServer(config=ours) as server:
        async with supervising(server, user="u", password="p") as bridge:
            await bridge.ask("a")
            server.config = ours.replace("user: u", "user: nobody")
            server.reload()
            await until(lambda: bridge.listener.changes == ["up", "down"])
            await until(lambda: "Cannot connect to NATS" in caplog.text)
            server.config = ours
            server.reload()
            await until(lambda: bridge.listener.changes == CAME_BACK)
            assert await bridge.ask("a") == {"a": "confirmed"}


async def test_supervisor_reconnects_as_each_cluster_server_dies_in_turn() -> None:
    with clustered(3) as members:
        async with supervising(*members) as bridge:
            for number in range(1, 4):
                assert bridge.client.connected_url is not None
                port = bridge.client.connected_url.port
                (serving,) = (member for member in members if member.port == port)
                serving.kill()
                await until(partial(has_reported, bridge, ["up", *["down", "up"] * number]))
                assert await bridge.ask("a") == {"a": "confirmed"}
                serving.start()


async def test_supervisor_leaves_lame_duck_server_before_it_stops(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with clustered(2) as (leaving, other):
        async with supervising(leaving) as bridge, Publisher.connected(other) as publisher:
            await until(lambda: len(bridge.client.servers) == 2)
            await bridge.ask("a")
            client = bridge.client
            assert leaving.pid is not None
            os.kill(leaving.pid, signal.SIGUSR2)
            await until(lambda: bridge.listener.changes == CAME_BACK)
            assert client.is_closed
            await until(lambda: leaving.monitor("/varz")["connections"] == 0)
            assert bridge.client.connected_url is not None
            assert bridge.client.connected_url.port == other.port
            assert await bridge.ask("a") == {"a": "confirmed"}
            await publisher.send("a", b"1")
            await until(lambda: bridge.listener.payloads == [b"1"])
            assert "the server is in lame duck mode" in caplog.text
            leaving.kill()


async def test_supervisor_keeps_lame_duck_server_if_no_other_is_reachable(
    nats_server: NatsServer,
) -> None:
    gone = f"nats://127.0.0.1:{free_port()}"
    async with supervising(nats_server, servers=[nats_server.url, gone]) as bridge:
        await bridge.ask("a")
        client = bridge.client
        async with Publisher.connected(nats_server) as publisher:
            assert nats_server.pid is not None
            os.kill(nats_server.pid, signal.SIGUSR2)
            await until(lambda: getattr(client, "needs_replacement").is_set())  # noqa: B009 - one of ours
            await publisher.send("a", b"1")
            await until(lambda: bridge.listener.payloads == [b"1"])
        assert await bridge.ask("b") == {"b": "confirmed"}
        assert bridge.supervisor.client is client
        nats_server.kill()
        nats_server.start()
        await until(lambda: bridge.listener.changes == CAME_BACK)


@contextlib.contextmanager
def clustered(count: int) -> Iterator[list[NatsServer]]:
    ports = [free_port() for _ in range(count)]
    routes = ", ".join(f"nats://127.0.0.1:{port}" for port in ports)
    members = [
        NatsServer(
            config="lame_duck_duration: '30s'\nlame_duck_grace_period: '10s'\n"
            f"cluster: {{name: c, listen: '127.0.0.1:{port}', routes: [{routes}]}}"
        )
        for port in ports
    ]
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(member) for member in members]


@pytest.mark.filterwarnings("ignore:parameter 'timeout' of type:DeprecationWarning")  # nats-py's call of aiohttp
async def test_hanging_server_over_websocket_causes_reconnect() -> None:
    port = free_port()
    with NatsServer(config=f'websocket {{listen: "127.0.0.1:{port}", no_tls: true}}') as server:
        async with supervising(servers=f"ws://127.0.0.1:{port}", **QUICK) as bridge:
            await bridge.ask("a")
            server.pause()
            await wait_until_disconnected(bridge)
            server.resume()
            await until(lambda: bridge.listener.changes == CAME_BACK)
            await check_delivery(bridge, server)


# The app, and the machine


async def test_supervisor_reconnects_after_app_closes_client(nats_server: NatsServer) -> None:
    async with supervising(nats_server) as bridge, Publisher.connected(nats_server) as publisher:
        watched = await own_subscription(publisher.client, nats_server, "last")
        await bridge.client.publish("last", b"words")
        await bridge.client.close()
        await until(lambda: bridge.listener.changes == CAME_BACK)
        assert (await watched.next_msg(WAIT_SECONDS)).data == b"words"
        await check_delivery(bridge, nats_server)


async def test_supervisor_reconnects_after_app_drains_client(nats_server: NatsServer) -> None:
    async with supervising(nats_server) as bridge:
        client = bridge.client
        nats_server.pause()
        draining = asyncio.create_task(client.drain())
        await until(lambda: client.is_draining)
        await client.drain()
        # The second drain returns at once, and does not end the first.
        assert bridge.listener.changes == ["up"]
        nats_server.resume()
        await draining
        await until(lambda: bridge.listener.changes == CAME_BACK)
        assert bridge.supervisor.client is not client
        await check_delivery(bridge, nats_server)


async def test_supervisor_reconnects_after_app_cancels_drain(nats_server: NatsServer) -> None:
    async with supervising(nats_server, ping_interval=60) as bridge:
        client = bridge.client
        nats_server.pause()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.drain(), 0.1)
        await until(lambda: bridge.listener.changes == ["up", "down"])
        nats_server.resume()
        await until(lambda: bridge.listener.changes == CAME_BACK)
        assert client.is_closed
        await check_delivery(bridge, nats_server)


async def test_supervisor_reconnects_after_read_loop_fails(nats_server: NatsServer) -> None:
    class Faulty(Listener):
        def confirmed(self, sink: str) -> None:
            super().confirmed(sink)
            if sink == "faulty":
                raise RuntimeError("a fault on the way of a PONG")

    bridge = SupervisorHarness(servers=nats_server.url)
    bridge.listener = Faulty()
    bridge.supervisor.start(bridge.listener)
    try:
        await until(lambda: bridge.listener.changes == ["up"])
        bridge.supervisor.subscribe("faulty", "faulty")
        await until(lambda: bridge.listener.changes == CAME_BACK)
        await check_delivery(bridge, nats_server)
    finally:
        await bridge.supervisor.stop()


async def test_supervisor_retries_until_file_descriptors_are_available(
    nats_server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    link, listener = (
        ConnectionSupervisor(Settings.resolve({"servers": nats_server.url}, {}), on_connected=ignore),
        Listener(),
    )
    with exhausted_file_descriptors() as held:
        link.start(listener)
        try:
            await until(lambda: "too many open files" in caplog.text)
            assert listener.changes == []
            for descriptor in held:
                os.close(descriptor)
            await until(lambda: listener.changes == ["up"])
        finally:
            await link.stop()


@contextlib.contextmanager
def exhausted_file_descriptors() -> Iterator[list[int]]:
    """Use up the file descriptors of the process, except for the yielded ones."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(int(descriptor.name) for descriptor in Path("/proc/self/fd").iterdir()) + 8
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    held = []
    try:
        with contextlib.suppress(OSError):
            for _ in range(most):
                held.append(os.dup(0))  # noqa: PERF401 - until it fails
        yield held
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# The server's limits


async def test_freed_subscription_slot_is_reused() -> None:
    with NatsServer(config="max_subscriptions: 2") as server:
        async with supervising(server) as bridge:
            first = bridge.supervisor.subscribe("a", "a")
            assert first is not None
            assert await bridge.ask("b", "c") == {"b": "confirmed", "c": "refused"}
            bridge.supervisor.unsubscribe(first)
            assert await bridge.ask("c") == {"c": "confirmed"}
            assert await bridge.ask("d") == {"d": "refused"}
            assert server.subscriptions() == ["b", "c"]
            assert bridge.listener.changes == ["up"]


async def test_overlong_patterns_are_all_refused_after_one_reconnect() -> None:
    longest = {"x" * 255: "refused", "y" * 254: "refused", "z" * 255: "refused"}
    with NatsServer(config="max_control_line: 200") as server:
        async with supervising(server) as bridge:
            for pattern in ("a", "y" * 254, "x" * 255, "z" * 255, "b"):
                bridge.supervisor.subscribe(pattern, pattern)
            await until(lambda: bridge.listener.changes == CAME_BACK)
            assert {
                pattern: answer for pattern, answer in bridge.listener.answers.items() if len(pattern) > 1
            } == longest
            assert await bridge.ask("a", "b") == {"a": "confirmed", "b": "confirmed"}
            assert bridge.listener.changes == CAME_BACK


async def test_permission_change_affects_only_its_patterns() -> None:
    patterns = ["orders.a", "orders.A", 'orders."a"', "orders.a\\b", "orders.*"]
    with NatsServer(config=permissions()) as server:
        async with supervising(server) as bridge:
            await bridge.ask(*patterns)
            server.config = permissions("orders.a", 'orders."a"', "orders.a\\b")
            server.reload()
            await until(lambda: list(bridge.listener.answers.values()).count("refused") == 3)
            assert bridge.listener.answers == {
                "orders.a": "refused",
                "orders.A": "confirmed",
                'orders."a"': "refused",
                "orders.a\\b": "refused",
                "orders.*": "confirmed",
            }
            server.config = permissions()
            server.reload()
            await until(lambda: resubscribed(bridge))
            assert bridge.listener.changes == ["up"]


def resubscribed(bridge: SupervisorHarness) -> bool:
    if bridge.listener.answers.get("orders.a") != "confirmed" and "orders.a" in bridge.listener.answers:
        del bridge.listener.answers["orders.a"]
        bridge.supervisor.subscribe("orders.a", "orders.a")
    return bridge.listener.answers.get("orders.a") == "confirmed"


async def test_oversized_message_of_app_causes_one_reconnect() -> None:
    with NatsServer(config="max_payload: 1024") as server:
        async with supervising(server) as bridge:
            server.config = "max_payload: 100"
            server.reload()
            await until(lambda: server.monitor("/varz")["max_payload"] == 100)
            await bridge.client.publish("a", b"x" * 1_000)
            await until(lambda: bridge.listener.changes == CAME_BACK)
            with pytest.raises(nats.errors.MaxPayloadError):
                await bridge.client.publish("a", b"x" * 1_000)
            await check_delivery(bridge, server)
