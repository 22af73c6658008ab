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
    Linked,
    Listener,
    given_up,
    linked,
    own_subscription,
    permissions,
)
from tests.support.bridge import WAIT_SECONDS, Publisher, free_port, until
from tests.support.clock import held
from tests.support.fakes import ignore
from tests.support.nats import INFO, Peer, Proxy, sockets

QUICK: dict[str, Any] = {"connect_timeout": 0.3}
"""Settings for peers that accept no client; a peer that does, but is slow, is tried again."""

CAME_BACK = ["up", "down", "up"]


@pytest.fixture(autouse=True)
async def _nothing_is_left() -> AsyncIterator[None]:
    tasks, before = asyncio.all_tasks(), sockets()
    yield
    tasks |= {task for task in (asyncio.current_task(),) if task is not None}
    await until(lambda: not asyncio.all_tasks() - tasks)
    await until(lambda: sockets() == before)


async def lives(bridge: Linked, server: NatsServer, *, subject: str = "alive") -> None:
    """Make sure that what is subscribed now arrives."""
    assert await bridge.ask(subject) == {subject: "confirmed"}
    async with Publisher.connected(server) as publisher:
        await publisher.send(subject, b"still here")
    await until(lambda: b"still here" in bridge.listener.payloads)


def told_of(bridge: Linked, changes: list[str]) -> bool:
    return bridge.listener.told == changes


# The network


async def test_a_connection_that_swallows_everything_is_given_up_and_made_anew(
    nats_server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with Proxy.before(nats_server) as proxy, linked(nats_server, servers=proxy.url, **QUICK) as bridge:
        proxy.hole = True
        await given_up(bridge)
        proxy.hole = False
        await until(lambda: bridge.listener.told == CAME_BACK)
        await lives(bridge, nats_server)
        assert "the server was silent for 60 s after a PING" in caplog.text


@pytest.mark.parametrize("size", [1, 2, 7])
async def test_messages_in_small_pieces_come_whole_and_in_order(nats_server: NatsServer, size: int) -> None:
    payloads = [bytes(range(256)), b"", b"\r\nMSG a 1 2\r\n", *(b"%d" % number for number in range(30))]
    async with Proxy.before(nats_server) as proxy:
        proxy.forward = lambda data: (data[start : start + size] for start in range(0, len(data), size))
        async with linked(nats_server, servers=proxy.url) as bridge, Publisher.connected(nats_server) as publisher:
            await bridge.ask("a")
            await publisher.send("a", *payloads)
            await until(lambda: len(bridge.listener.messages) == len(payloads))
            assert bridge.listener.payloads == payloads
            assert bridge.listener.told == ["up"]


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
async def test_a_stream_that_was_corrupted_is_left(nats_server: NatsServer, sent: bytes, arrives: bytes) -> None:
    async with Proxy.before(nats_server) as proxy:
        corrupting = True

        def corrupt(data: bytes) -> Iterable[bytes]:
            nonlocal corrupting
            changed = data.replace(sent, arrives) if corrupting else data
            corrupting = corrupting and changed == data
            return (changed,)

        async with (
            linked(nats_server, servers=proxy.url, **QUICK) as bridge,
            Publisher.connected(nats_server) as publisher,
        ):
            await bridge.ask("a")
            proxy.forward = corrupt
            await publisher.send("a", b"hello", b"lost")
            await until(lambda: not corrupting)
            await given_up(bridge)
            await until(lambda: bridge.listener.told == CAME_BACK)
            assert bridge.listener.messages == []
            await lives(bridge, nats_server)


async def test_a_length_that_was_corrupted_is_noticed_although_something_is_read() -> None:
    async with Peer().listening() as peer, linked(servers=peer.url) as bridge:
        bridge.link.subscribe("a", "a")
        await until(lambda: "a" in bridge.listener.answers)
        # All that comes from here on is taken for the payload.
        peer.say(b"MSG a 1 99999999\r\nhello\r\n")
        await given_up(bridge)
        await until(lambda: bridge.listener.told == CAME_BACK)
        assert bridge.listener.messages == []


# The server


ENDS = {
    "login expired": b"-ERR 'User Authentication Expired'\r\n",
    "login revoked": b"-ERR 'Authorization Violation'\r\n",
    "stale connection": b"-ERR 'Stale Connection'\r\n",
    "payload too large": b"-ERR 'Maximum Payload Violation'\r\n",
    "an unknown error": b"-ERR 'what nobody knows'\r\n",
    "an error that is not UTF-8": b"-ERR '\xff\r\n",
    "an error without words": b"-ERR\r\n",
    "an unknown operation": b"HELLO\r\n",
    "an empty line": b"\r\n",
    "a message line cut short": b"MSG a\r\n",
    "INFO that is not JSON": b"INFO {\r\n",
    "INFO that is not an object": b"INFO [1]\r\n",
    "INFO with servers that are none": b'INFO {"connect_urls": 1}\r\n',
    "INFO with servers without sense": b'INFO {"connect_urls": ["[::", "a:b"]}\r\n',
    "nothing": b"",
    "half a line": b"MSG a 1",
    "half a message": b"MSG a 1 5\r\nhel",
}


@pytest.mark.parametrize("said", ENDS.values(), ids=ENDS.keys())
@pytest.mark.parametrize("closes", [True, False], ids=["and closes", "and stays"])
async def test_whatever_a_server_says_the_link_comes_back(said: bytes, closes: bool) -> None:
    async with Peer().listening() as peer, linked(servers=peer.url, **QUICK) as bridge:
        peer.say(said, then_close=closes)
        # A peer hangs if it has sent only half of a line or message.
        peer.answers = False
        await given_up(bridge)
        peer.answers = True
        await until(lambda: bridge.listener.told == CAME_BACK)
        assert await bridge.ask("a") == {"a": "confirmed"}


async def test_a_server_of_the_cluster_whose_address_has_no_sense_is_passed_over() -> None:
    info = b'INFO {"max_payload":1024,"connect_urls":["127.0.0.1:port","127.0.0.1:99999",":","127.0.0.1:0"]}\r\n'
    async with Peer(greeting=info).listening() as peer, linked(servers=peer.url, **QUICK) as bridge:
        peer.welcome = b"-ERR 'maximum connections exceeded'\r\n"
        peer.say(b"", then_close=True)
        # More than one round, so that the servers named in INFO have been tried.
        before = peer.accepted
        await until(lambda: peer.accepted >= before + 3)
        peer.welcome = b"PONG\r\n"
        await until(lambda: bridge.listener.told == CAME_BACK)
        assert await bridge.ask("a") == {"a": "confirmed"}


STRANGERS = {
    "says nothing": Peer(greeting=b"", answers=False),
    "says something else": Peer(greeting=b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "says half a line": Peer(greeting=b"INFO {"),
    "says INFO that is not JSON": Peer(greeting=b"INFO {\r\n"),
    "says INFO that is not an object": Peer(greeting=b"INFO 1\r\n"),
    "says a line without an end": Peer(greeting=b"INFO {" + b"x" * 2_000_000),
    "wants TLS and never speaks it": Peer(greeting=b'INFO {"tls_required":true}\r\n', answers=False),
    "never answers CONNECT": Peer(answers=False),
    "refuses the login": Peer(welcome=b"-ERR 'Authorization Violation'\r\n"),
    "takes nobody more": Peer(welcome=b"-ERR 'maximum connections exceeded'\r\n"),
    "answers with something else": Peer(welcome=b"HELLO\r\n"),
}


@pytest.mark.parametrize("name", STRANGERS)
async def test_a_peer_that_does_not_let_the_link_in_is_tried_again(name: str) -> None:
    stranger = STRANGERS[name]
    async with stranger.listening(), linked(servers=stranger.url, connected=False, **QUICK) as bridge:
        await until(lambda: stranger.accepted >= 2)
        assert bridge.listener.told == []
        stranger.greeting, stranger.welcome, stranger.answers = INFO, b"PONG\r\n", True
        await until(lambda: bridge.listener.told == ["up"])
        assert await bridge.ask("a") == {"a": "confirmed"}


async def test_a_tls_handshake_that_hangs_is_given_up() -> None:
    silent = Peer(greeting=b"", answers=False)
    async with silent.listening():
        url = f"tls://127.0.0.1:{silent.port}"
        async with linked(servers=url, tls_handshake_first=True, connected=False, **QUICK) as bridge:
            await until(lambda: silent.accepted >= 3)
            assert bridge.listener.told == []


async def test_a_blocked_event_loop_is_not_held_against_the_server(nats_server: NatsServer) -> None:
    async with linked(nats_server) as bridge:
        client: Any = bridge.client
        async with held() as clock:
            for pause in (0.0, WAIT_SECONDS / 3, WAIT_SECONDS * 0.9):
                await clock.forward(pause)
                clock.jump(5 * WAIT_SECONDS)
                await until(lambda: not client.unanswered_pings)
        await lives(bridge, nats_server)
        assert bridge.link.client is client
        assert bridge.listener.told == ["up"]


async def test_a_login_that_is_taken_away_and_given_back(caplog: pytest.LogCaptureFixture) -> None:
    ours = "authorization: {users: [{user: u, password: p}, {user: other, password: p}]}"
    with NatsServer(config=ours) as server:
        async with linked(server, user="u", password="p") as bridge:
            await bridge.ask("a")
            server.config = ours.replace("user: u", "user: nobody")
            server.reload()
            await until(lambda: bridge.listener.told == ["up", "down"])
            await until(lambda: "Cannot connect to NATS" in caplog.text)
            server.config = ours
            server.reload()
            await until(lambda: bridge.listener.told == CAME_BACK)
            assert await bridge.ask("a") == {"a": "confirmed"}


async def test_each_server_of_a_cluster_may_die_in_turn() -> None:
    with clustered(3) as members:
        async with linked(*members) as bridge:
            for number in range(1, 4):
                assert bridge.client.connected_url is not None
                port = bridge.client.connected_url.port
                (serving,) = (member for member in members if member.port == port)
                serving.kill()
                await until(partial(told_of, bridge, ["up", *["down", "up"] * number]))
                assert await bridge.ask("a") == {"a": "confirmed"}
                serving.start()


async def test_a_server_that_is_about_to_stop_is_left_for_another_before_it_does(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with clustered(2) as (leaving, other):
        async with linked(leaving) as bridge, Publisher.connected(other) as publisher:
            await until(lambda: len(bridge.client.servers) == 2)
            await bridge.ask("a")
            client = bridge.client
            assert leaving.pid is not None
            os.kill(leaving.pid, signal.SIGUSR2)
            await until(lambda: bridge.listener.told == CAME_BACK)
            assert client.is_closed
            await until(lambda: leaving.monitor("/varz")["connections"] == 0)
            assert bridge.client.connected_url is not None
            assert bridge.client.connected_url.port == other.port
            assert await bridge.ask("a") == {"a": "confirmed"}
            await publisher.send("a", b"1")
            await until(lambda: bridge.listener.payloads == [b"1"])
            assert "the server is in lame duck mode" in caplog.text
            leaving.kill()


async def test_a_server_that_is_about_to_stop_is_kept_as_long_as_it_serves_where_there_is_no_other(
    nats_server: NatsServer,
) -> None:
    gone = f"nats://127.0.0.1:{free_port()}"
    async with linked(nats_server, servers=[nats_server.url, gone]) as bridge:
        await bridge.ask("a")
        client = bridge.client
        async with Publisher.connected(nats_server) as publisher:
            assert nats_server.pid is not None
            os.kill(nats_server.pid, signal.SIGUSR2)
            await until(lambda: getattr(client, "needs_replacement").is_set())  # noqa: B009 - one of ours
            await publisher.send("a", b"1")
            await until(lambda: bridge.listener.payloads == [b"1"])
        assert await bridge.ask("b") == {"b": "confirmed"}
        assert bridge.link.client is client
        nats_server.kill()
        nats_server.start()
        await until(lambda: bridge.listener.told == CAME_BACK)


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
async def test_a_server_that_hangs_is_left_over_websocket_too() -> None:
    port = free_port()
    with NatsServer(config=f'websocket {{listen: "127.0.0.1:{port}", no_tls: true}}') as server:
        async with linked(servers=f"ws://127.0.0.1:{port}", **QUICK) as bridge:
            await bridge.ask("a")
            server.pause()
            await given_up(bridge)
            server.resume()
            await until(lambda: bridge.listener.told == CAME_BACK)
            await lives(bridge, server)


# The app, and the machine


async def test_the_app_may_close_its_client(nats_server: NatsServer) -> None:
    async with linked(nats_server) as bridge, Publisher.connected(nats_server) as publisher:
        watched = await own_subscription(publisher.client, nats_server, "last")
        await bridge.client.publish("last", b"words")
        await bridge.client.close()
        await until(lambda: bridge.listener.told == CAME_BACK)
        assert (await watched.next_msg(WAIT_SECONDS)).data == b"words"
        await lives(bridge, nats_server)


async def test_the_app_may_drain_its_client(nats_server: NatsServer) -> None:
    async with linked(nats_server) as bridge:
        client = bridge.client
        nats_server.pause()
        draining = asyncio.create_task(client.drain())
        await until(lambda: client.is_draining)
        await client.drain()
        # The second drain returns at once, and does not end the first.
        assert bridge.listener.told == ["up"]
        nats_server.resume()
        await draining
        await until(lambda: bridge.listener.told == CAME_BACK)
        assert bridge.link.client is not client
        await lives(bridge, nats_server)


async def test_a_drain_that_the_app_gives_up_ends_the_client_all_the_same(nats_server: NatsServer) -> None:
    async with linked(nats_server, ping_interval=60) as bridge:
        client = bridge.client
        nats_server.pause()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.drain(), 0.1)
        await until(lambda: bridge.listener.told == ["up", "down"])
        nats_server.resume()
        await until(lambda: bridge.listener.told == CAME_BACK)
        assert client.is_closed
        await lives(bridge, nats_server)


async def test_a_read_loop_that_ends_ends_the_connection(nats_server: NatsServer) -> None:
    class Faulty(Listener):
        def confirmed(self, sink: str) -> None:
            super().confirmed(sink)
            if sink == "faulty":
                raise RuntimeError("a fault on the way of a PONG")

    bridge = Linked(servers=nats_server.url)
    bridge.listener = Faulty()
    bridge.link.start(bridge.listener)
    try:
        await until(lambda: bridge.listener.told == ["up"])
        bridge.link.subscribe("faulty", "faulty")
        await until(lambda: bridge.listener.told == CAME_BACK)
        await lives(bridge, nats_server)
    finally:
        await bridge.link.stop()


async def test_file_descriptors_that_are_used_up_are_waited_for(
    nats_server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    link, listener = (
        ConnectionSupervisor(Settings.resolve({"servers": nats_server.url}, {}), on_connected=ignore),
        Listener(),
    )
    with files_used_up() as held:
        link.start(listener)
        try:
            await until(lambda: "Too many open files" in caplog.text)
            assert listener.told == []
            for descriptor in held:
                os.close(descriptor)
            await until(lambda: listener.told == ["up"])
        finally:
            await link.stop()


@contextlib.contextmanager
def files_used_up() -> Iterator[list[int]]:
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


async def test_a_place_that_becomes_free_is_taken() -> None:
    with NatsServer(config="max_subscriptions: 2") as server:
        async with linked(server) as bridge:
            first = bridge.link.subscribe("a", "a")
            assert first is not None
            assert await bridge.ask("b", "c") == {"b": "confirmed", "c": "refused"}
            bridge.link.unsubscribe(first)
            assert await bridge.ask("c") == {"c": "confirmed"}
            assert await bridge.ask("d") == {"d": "refused"}
            assert server.subscriptions() == ["b", "c"]
            assert bridge.listener.told == ["up"]


async def test_all_patterns_that_are_too_long_are_refused_at_once() -> None:
    longest = {"x" * 255: "refused", "y" * 254: "refused", "z" * 255: "refused"}
    with NatsServer(config="max_control_line: 200") as server:
        async with linked(server) as bridge:
            for pattern in ("a", "y" * 254, "x" * 255, "z" * 255, "b"):
                bridge.link.subscribe(pattern, pattern)
            await until(lambda: bridge.listener.told == CAME_BACK)
            assert {
                pattern: answer for pattern, answer in bridge.listener.answers.items() if len(pattern) > 1
            } == longest
            assert await bridge.ask("a", "b") == {"a": "confirmed", "b": "confirmed"}
            assert bridge.listener.told == CAME_BACK


async def test_permissions_that_are_taken_away_and_given_back_concern_that_pattern_alone() -> None:
    patterns = ["orders.a", "orders.A", 'orders."a"', "orders.a\\b", "orders.*"]
    with NatsServer(config=permissions()) as server:
        async with linked(server) as bridge:
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
            await until(lambda: asked_again(bridge))
            assert bridge.listener.told == ["up"]


def asked_again(bridge: Linked) -> bool:
    if bridge.listener.answers.get("orders.a") != "confirmed" and "orders.a" in bridge.listener.answers:
        del bridge.listener.answers["orders.a"]
        bridge.link.subscribe("orders.a", "orders.a")
    return bridge.listener.answers.get("orders.a") == "confirmed"


async def test_a_message_that_the_app_publishes_over_the_servers_limit_costs_one_reconnect() -> None:
    with NatsServer(config="max_payload: 1024") as server:
        async with linked(server) as bridge:
            server.config = "max_payload: 100"
            server.reload()
            await until(lambda: server.monitor("/varz")["max_payload"] == 100)
            await bridge.client.publish("a", b"x" * 1_000)
            await until(lambda: bridge.listener.told == CAME_BACK)
            with pytest.raises(nats.errors.MaxPayloadError):
                await bridge.client.publish("a", b"x" * 1_000)
            await lives(bridge, server)
