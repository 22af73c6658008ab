import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import aiohttp
import nats.errors
import pytest
from aiohttp import web
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from sanic_nats_bridge.nats.connection import Connection, NatsClient
from sanic_nats_bridge.nats.server_pool import Server
from sanic_nats_bridge.nats.supervisor import ConnectionListener, ConnectionSupervisor
from sanic_nats_bridge.nats.transport import TcpSocket
from sanic_nats_bridge.settings import Settings
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import UNHURRIED, WAIT_SECONDS, Publisher, free_port, until
from tests.support.clock import held, turns
from tests.support.fakes import ignore


class Listener:
    """A listener that records the events of a link; every sink is the pattern itself."""

    is_full = False

    def __init__(self) -> None:
        self.changes: list[str] = []
        self.answers: dict[str, str] = {}
        self.lost: list[str] = []
        self.messages: list[tuple[str, bytes, bytes, bytes]] = []

    def on_message(self, sink: str, subject: bytes, headers: bytes, payload: bytes) -> bool:
        self.messages.append((sink, subject, headers, payload))
        return self.is_full

    async def room(self) -> None:
        pass

    def delivery_failed(self, sink: str) -> None:
        self.lost.append(sink)

    def confirmed(self, sink: str) -> None:
        self.answers[sink] = "confirmed"

    def refused(self, sink: str) -> None:
        self.answers[sink] = "refused"

    def connection_established(self) -> None:
        self.changes.append("up")

    async def subscribed(self) -> None:
        pass

    def connection_closed(self) -> None:
        self.changes.append("down")

    @property
    def payloads(self) -> list[bytes]:
        return [payload for *_, payload in self.messages]


class SupervisorHarness:
    """A started link and who listens to it."""

    def __init__(self, **settings: Any) -> None:
        self.listener = Listener()
        self.supervisor = ConnectionSupervisor(Settings.resolve(settings, {}), on_connected=ignore)

    @property
    def client(self) -> NatsClient:
        assert self.supervisor.client is not None
        return self.supervisor.client

    async def ask(self, *patterns: str) -> dict[str, str]:
        """Subscribe to all of them at once; what became of each."""
        for pattern in patterns:
            self.listener.answers.pop(pattern, None)
            assert self.supervisor.subscribe(pattern, pattern) is not None
        await until(lambda: set(patterns) <= set(self.listener.answers))
        return {pattern: self.listener.answers[pattern] for pattern in patterns}


@contextlib.asynccontextmanager
async def supervising(
    *servers: NatsServer, connected: bool = True, **settings: Any
) -> AsyncIterator[SupervisorHarness]:
    harness = SupervisorHarness(**{**UNHURRIED, "servers": [server.url for server in servers]} | settings)
    harness.supervisor.start(harness.listener)
    try:
        if connected:
            await until(lambda: harness.listener.changes == ["up"])
        yield harness
    finally:
        await harness.supervisor.stop()


async def wait_until_disconnected(bridge: SupervisorHarness) -> None:
    """Let as much time pass as the link needs to give up its first connection."""
    async with held() as clock:
        await clock.forward_until(lambda: "down" in bridge.listener.changes, step=WAIT_SECONDS / 4)


async def stopped(link: ConnectionSupervisor) -> None:
    """Stop the link, and let pass what time that takes."""
    async with held() as clock:
        stopping = asyncio.create_task(link.stop())
        await clock.forward_until(stopping.done)
        await stopping


def permissions(*denied: str) -> str:
    """Return a configuration without login in which clients may not subscribe to these patterns."""
    rules = {"subscribe": {"deny": ["never", *denied]}, "publish": {"deny": ["forbidden"]}}
    users = json.dumps({"users": [{"user": "u", "password": "p", "permissions": rules}]})
    return f"authorization: {users}\nno_auth_user: u"


async def own_subscription(client: NatsClient, server: NatsServer, pattern: str, **options: Any) -> Subscription:
    """Subscribe in the app's own name, and wait until the server has it.

    nats-py's ``flush`` may overtake its SUB.
    """
    before = server.subscriptions().count(pattern)
    subscription = await client.subscribe(pattern, **options)
    await until(lambda: server.subscriptions().count(pattern) > before)
    return subscription


async def publish_raw(server: NatsServer, data: bytes) -> None:
    """Send bytes to the server as a publisher without scruples, and wait until it has read them."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b'CONNECT {"verbose":false,"pedantic":false,"headers":true}\r\n' + data + b"PING\r\n")
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        await reader.readuntil(b"PONG\r\n")
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


def pub(subject: bytes, payload: bytes = b"1") -> bytes:
    return b"PUB %b %d\r\n%b\r\n" % (subject, len(payload), payload)


def hpub(headers: bytes, payload: bytes = b"1") -> bytes:
    sizes = (len(headers), len(headers) + len(payload))
    return b"HPUB a.h %d %d\r\n%b%b\r\n" % (*sizes, headers, payload)


# What the server answers


async def test_subscription_is_confirmed_only_after_server_answers(
    nats_server: NatsServer,
) -> None:
    async with supervising(nats_server) as bridge:
        nats_server.pause()
        bridge.supervisor.subscribe("a", "a")
        await turns(20)
        assert bridge.listener.answers == {}
        nats_server.resume()
        await until(lambda: bridge.listener.answers == {"a": "confirmed"})
        assert nats_server.subscriptions() == ["a"]


async def test_no_message_is_delivered_after_unsubscribe(nats_server: NatsServer) -> None:
    async with supervising(nats_server) as bridge, Publisher.connected(nats_server) as publisher:
        await bridge.ask("marker")
        number = bridge.supervisor.subscribe("a", "a")
        assert number is not None
        await until(lambda: "a" in bridge.listener.answers)
        await publisher.send("a", b"1")
        await until(lambda: bridge.listener.payloads == [b"1"])
        bridge.supervisor.unsubscribe(number)
        await publisher.send("a", b"2")
        await publisher.send("marker", b"3")
        await until(lambda: bridge.listener.payloads == [b"1", b"3"])
        assert nats_server.subscriptions() == ["marker"]


@pytest.mark.parametrize("denied", ["secret.x", "secret.*", 'secret."quoted"', "secret.back\\slash", "secret.it's"])
async def test_denied_subscription_is_refused_without_affecting_others(denied: str) -> None:
    with NatsServer(config=permissions("secret.>")) as server:
        async with supervising(server) as bridge:
            assert await bridge.ask("open", denied, "open.too") == {
                "open": "confirmed",
                denied: "refused",
                "open.too": "confirmed",
            }
            assert server.subscriptions() == ["open", "open.too"]
            assert bridge.listener.changes == ["up"]


async def test_refusal_matches_pattern_case_sensitively() -> None:
    with NatsServer(config=permissions("secret.X")) as server:
        async with supervising(server) as bridge:
            answers = await bridge.ask("SECRET.x", "secret.X", "secret.x")
            assert answers == {"SECRET.x": "confirmed", "secret.X": "refused", "secret.x": "confirmed"}


async def test_denied_publish_by_app_refuses_no_subscription() -> None:
    with NatsServer(config=permissions()) as server:
        async with supervising(server) as bridge:
            await bridge.ask("forbidden")
            client = bridge.client
            bridge.supervisor.subscribe("a", "a")
            await client.publish("forbidden", b"1")
            assert await bridge.ask("b") == {"b": "confirmed"}
            await client.flush()
            assert bridge.listener.answers == {"forbidden": "confirmed", "a": "confirmed", "b": "confirmed"}
            assert bridge.supervisor.client is client


async def test_only_subscription_over_server_limit_is_refused() -> None:
    with NatsServer(config="max_subscriptions: 2") as server:
        async with supervising(server) as bridge, Publisher.connected(server) as publisher:
            answers = await bridge.ask("a", "b", "c")
            assert answers == {"a": "confirmed", "b": "confirmed", "c": "refused"}
            await publisher.send("a", b"1")
            await until(lambda: bridge.listener.payloads == [b"1"])
            assert bridge.listener.changes == ["up"]


async def test_supervisor_refuses_oversized_pattern_and_reconnects() -> None:
    poison = "x" * 255
    with NatsServer(config="max_control_line: 256") as server:
        async with supervising(server) as bridge, Publisher.connected(server) as publisher:
            await bridge.ask("a")
            for pattern in ("b", poison, "c"):
                bridge.supervisor.subscribe(pattern, pattern)
            await until(lambda: bridge.listener.changes == ["up", "down", "up"])
            assert bridge.listener.answers[poison] == "refused"
            assert bridge.listener.answers.get("c") != "refused"
            assert await bridge.ask("a", "b", "c") == dict.fromkeys("abc", "confirmed")
            await publisher.send("c", b"1")
            await until(lambda: bridge.listener.payloads == [b"1"])
            assert bridge.listener.changes == ["up", "down", "up"]


async def test_narrowed_nats_permissions_refuse_only_denied_pattern() -> None:
    with NatsServer(config=permissions()) as server:
        async with supervising(server) as bridge, Publisher.connected(server) as publisher:
            await bridge.ask("a", "b")
            server.config = permissions("a")
            server.reload()
            await until(lambda: bridge.listener.answers == {"a": "refused", "b": "confirmed"})
            await publisher.send("b", b"1")
            await until(lambda: bridge.listener.payloads == [b"1"])


# Coming and going


@pytest.mark.parametrize("end", [NatsServer.stop, NatsServer.kill], ids=["stopped", "killed"])
async def test_supervisor_reconnects_when_server_restarts(
    nats_server: NatsServer, end: Callable[[NatsServer], None], caplog: pytest.LogCaptureFixture
) -> None:
    async with supervising(nats_server) as bridge:
        before = bridge.client
        end(nats_server)
        await until(lambda: bridge.listener.changes == ["up", "down"])
        assert bridge.supervisor.client is None
        assert bridge.supervisor.subscribe("a", "a") is None
        nats_server.start()
        await until(lambda: bridge.listener.changes == ["up", "down", "up"])
        assert bridge.client is not before
        assert await bridge.ask("a") == {"a": "confirmed"}
    assert [record.levelname for record in caplog.records if "Disconnected from NATS" in record.getMessage()] == [
        "WARNING"
    ]


async def test_ping_timeout_closes_connection_to_hanging_server(nats_server: NatsServer) -> None:
    async with supervising(nats_server) as bridge:
        nats_server.pause()
        await wait_until_disconnected(bridge)
        nats_server.resume()
        await until(lambda: bridge.listener.changes == ["up", "down", "up"])


async def test_unreachable_server_at_start_is_retried_and_logged_once(
    nats_server: NatsServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[str] = []
    attempt = ConnectionSupervisor._open

    async def note(link: ConnectionSupervisor, server: Server, listener: ConnectionListener) -> Connection:
        attempts.append(server.url)
        return await attempt(link, server, listener)

    monkeypatch.setattr(ConnectionSupervisor, "_open", note)
    nats_server.stop()
    async with supervising(nats_server, connected=False) as bridge:
        await until(lambda: len(attempts) == 5)
        assert bridge.listener.changes == []
        nats_server.start()
        await until(lambda: bridge.listener.changes == ["up"])
    assert caplog.text.count("Cannot connect to NATS") == 1


async def test_lasting_connect_error_is_logged_once_per_minute(caplog: pytest.LogCaptureFixture) -> None:
    async with supervising(servers=f"nats://127.0.0.1:{free_port()}", connected=False):
        await until(lambda: "connection refused" in caplog.text)
        async with held() as clock:
            for count in (2, 3):
                before = clock.now
                await clock.forward_until(lambda: caplog.text.count("connection refused") == count, step=1)  # noqa: B023
                assert 55 <= clock.now - before <= 65


async def test_wrong_credentials_are_retried_with_backoff_and_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with NatsServer(config="authorization: {user: right, password: right}") as server:
        wrong = f"nats://in-url:hush-url@127.0.0.1:{server.port}"
        async with supervising(server, servers=wrong, connected=False):
            async with held() as clock:
                began = clock.now
                await clock.forward_until(lambda: server.monitor("/varz")["total_connections"] >= 7, step=0.02)
                # nats-py connects twice each time. The waits before the second, third and fourth time.
                assert clock.now - began >= 0.05 + 0.1 + 0.2
            assert "hush" not in caplog.text
        caplog.clear()
        async with supervising(server, user="someone", password="hush-setting", connected=False):
            await until(lambda: "authorization" in caplog.text.lower())
    assert "hush" not in caplog.text


async def test_supervisor_connects_when_rejected_credentials_become_valid() -> None:
    with NatsServer(config="authorization: {user: u, password: old}") as server:
        async with supervising(server, user="u", password="new", connected=False) as bridge:
            await until(lambda: server.monitor("/varz")["total_connections"] >= 1)
            server.config = "authorization: {user: u, password: new}"
            server.restart()
            await until(lambda: bridge.listener.changes == ["up"])


async def test_stop_drains_and_leaves_no_task(nats_server: NatsServer) -> None:
    before = asyncio.all_tasks()
    async with supervising(nats_server) as bridge, Publisher.connected(nats_server) as publisher:
        client = bridge.client
        handled: list[bytes] = []

        async def slowly(message: Msg) -> None:
            await turns(100)
            handled.append(message.data)

        await own_subscription(client, nats_server, "app", cb=slowly)
        await bridge.ask("app")
        await publisher.send("app", *[b"%d" % number for number in range(5)])
        await until(lambda: len(bridge.listener.messages) == 5)
        async with held():
            await bridge.supervisor.stop()
        assert handled == [b"0", b"1", b"2", b"3", b"4"]
        assert bridge.supervisor.client is None
    await until(lambda: asyncio.all_tasks() == before)
    assert client.is_closed


async def test_stop_while_lost_connection_is_closed_leaves_no_socket(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with supervising(nats_server) as bridge, held():
        transport: Any = bridge.client._transport
        socket = transport._bare_io_writer.transport
        closing = asyncio.Event()

        async def hang(*_: object) -> None:
            closing.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(TcpSocket, "close", ignore)
        monkeypatch.setattr(Connection, "close", hang)
        nats_server.stop()
        await until(lambda: bridge.listener.changes == ["up", "down"])
        await until(closing.is_set)
        assert not socket.is_closing()
        await bridge.supervisor.stop()
        assert socket.is_closing()


@pytest.mark.parametrize("away", [True, False], ids=["server disconnected", "server hangs"])
async def test_stop_completes_when_server_is_down_or_hangs(nats_server: NatsServer, away: bool) -> None:
    before = asyncio.all_tasks()
    async with supervising(nats_server) as bridge:
        if away:
            nats_server.stop()
            await until(lambda: bridge.listener.changes == ["up", "down"])
        else:
            nats_server.pause()
        await stopped(bridge.supervisor)
    await until(lambda: asyncio.all_tasks() == before)


# What any publisher may send

RAW = {
    "subject not UTF-8": pub(b"a.\xff\xfe"),
    "subject cut UTF-8": pub(b"a.\xe2\x98"),
    "subject with a vertical tab": pub(b"a.\x0bb"),
    "subject with a form feed": pub(b"a.\x0cb"),
    "subject with NUL": pub(b"a.\x00b"),
    "subject with DEL": pub(b"a.\x7fb"),
    "subject with a no-break space": pub("a.\xa0\u2028\x85".encode()),
    "subject with a lone CR": pub(b"a.\rb"),
    "subject with a CR at its end": pub(b"a.b\r"),
    "subject long": pub(b"a." + b"x" * 3_900),
    "reply not UTF-8": b"PUB a.b \xff\xfe 1\r\n1\r\n",
    "payload like a protocol line": pub(b"a.b", b"\r\n-ERR 'x'\r\nMSG a.b 1 1\r\n"),
    "payload empty": pub(b"a.b", b""),
    "payload of a megabyte": pub(b"a.b", b"\r\n" * 500_000),
    "header block without a version": hpub(b"X\r\n\r\n"),
    "header not UTF-8": hpub(b"NATS/1.0\r\n\xff: \xff\r\n\r\n"),
    "header block empty": hpub(b""),
    "header block of a line end": hpub(b"\r\n"),
    "header without fields": hpub(b"NATS/1.0\r\n\r\n"),
    "header without a colon": hpub(b"NATS/1.0\r\nX\r\n\r\n"),
    "header without a name": hpub(b"NATS/1.0\r\n: x\r\n\r\n"),
    "header not ended": hpub(b"NATS/1.0\r\nX: y"),
    "header status": hpub(b"NATS/1.0 503\r\n\r\n", b""),
    "header status with words": hpub(b"NATS/1.0 100 Idle Heartbeat\r\nX: y\r\n\r\n"),
    "header status broken": hpub(b"NATS/1.0 \xff\r\n\r\n"),
}


@pytest.mark.parametrize("raw", RAW.values(), ids=RAW.keys())
async def test_connection_and_app_subscription_survive_any_published_data(
    shared_nats: NatsServer, raw: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with supervising(shared_nats) as bridge, Publisher.connected(shared_nats) as publisher:
        client, marker = bridge.client, publisher.subject("marker")
        await bridge.ask("a.>", marker)
        own = await own_subscription(client, shared_nats, "a.>")
        own_marker = await own_subscription(client, shared_nats, marker)
        await publish_raw(shared_nats, raw)
        await publisher.send(marker, b"after")
        await until(lambda: b"after" in bridge.listener.payloads)
        assert (await own_marker.next_msg(WAIT_SECONDS)).data == b"after"
        with contextlib.suppress(nats.errors.TimeoutError):
            await own.next_msg(0.01)
        assert len(bridge.listener.messages) == 2, "the server did not let it through"
        assert bridge.supervisor.client is client
        assert bridge.listener.changes == ["up"]
        assert "Disconnected from NATS" not in caplog.text


async def test_messages_are_delivered_unchanged_and_in_order(nats_server: NatsServer) -> None:
    headers = b"NATS/1.0\r\n\xff: \xff\r\n\r\n"
    async with supervising(nats_server) as bridge:
        await bridge.ask("a.>", "b")
        await publish_raw(nats_server, pub(b"a.\xff", b"\r\n") + pub(b"b", b"") + hpub(headers, b"3") + pub(b"b", b"4"))
        await until(lambda: len(bridge.listener.messages) == 4)
        assert bridge.listener.messages == [
            ("a.>", b"a.\xff", b"", b"\r\n"),
            ("b", b"b", b"", b""),
            ("a.>", b"a.h", headers, b"3"),
            ("b", b"b", b"", b"4"),
        ]


# The app's own use of the client


async def test_flush_timeout_does_not_close_connection(nats_server: NatsServer) -> None:
    async with supervising(nats_server) as bridge:
        client = bridge.client
        nats_server.pause()
        with pytest.raises(nats.errors.TimeoutError):
            await client.flush(timeout=0.05)  # type: ignore[arg-type]  # nats-py declares int
        nats_server.resume()
        assert await bridge.ask("a") == {"a": "confirmed"}
        await client.flush()
        assert bridge.supervisor.client is client
        assert bridge.listener.changes == ["up"]


async def test_app_subscription_receives_messages_in_order_with_headers(nats_server: NatsServer) -> None:
    async with supervising(nats_server) as bridge, Publisher.connected(nats_server) as publisher:
        await bridge.ask("app")
        own = await own_subscription(bridge.client, nats_server, "app")
        for number in range(50):
            await publisher.send("app", b"%d" % number, headers={"Number": str(number)})
        messages = [await own.next_msg(WAIT_SECONDS) for _ in range(50)]
        assert [message.data for message in messages] == [b"%d" % number for number in range(50)]
        assert [message.headers for message in messages] == [{"Number": str(number)} for number in range(50)]
        assert bridge.listener.payloads == [b"%d" % number for number in range(50)]


async def test_app_can_send_and_answer_requests(nats_server: NatsServer) -> None:
    async with supervising(nats_server) as bridge, Publisher.connected(nats_server) as publisher:

        async def echo(message: Msg) -> None:
            await message.respond(message.data + b"!")

        for asker, answerer in ((bridge.client, publisher.client), (publisher.client, bridge.client)):
            subscription = await own_subscription(answerer, nats_server, "echo", cb=echo)
            answers = await asyncio.gather(
                *(asker.request("echo", b"%d" % number, timeout=WAIT_SECONDS) for number in range(10))
            )
            assert [answer.data for answer in answers] == [b"%d!" % number for number in range(10)]
            await subscription.unsubscribe()
            await until(lambda: "echo" not in nats_server.subscriptions())


# Which server, and by which right


@pytest.fixture
def cluster() -> Iterator[tuple[NatsServer, NatsServer]]:
    ports = free_port(), free_port()
    routes = ", ".join(f"nats://127.0.0.1:{port}" for port in ports)
    first, second = (
        NatsServer(config=f"cluster: {{name: c, listen: '127.0.0.1:{port}', routes: [{routes}]}}") for port in ports
    )
    with first, second:
        yield first, second


async def test_supervisor_fails_over_to_discovered_cluster_server(cluster: tuple[NatsServer, NatsServer]) -> None:
    known, other = cluster
    async with supervising(known) as bridge:
        await until(lambda: len(bridge.client.servers) == 2)
        known.kill()
        await until(lambda: bridge.listener.changes == ["up", "down", "up"])
        assert bridge.client.connected_url is not None
        assert bridge.client.connected_url.port == other.port
        assert await bridge.ask("a") == {"a": "confirmed"}


async def test_discovered_servers_are_ignored_if_set(cluster: tuple[NatsServer, NatsServer]) -> None:
    known, other = cluster
    async with supervising(known) as follower, supervising(known, ignore_discovered_servers=True) as bridge:
        await until(lambda: len(follower.client.servers) == 2)
        await bridge.ask("a")
        assert bridge.client.discovered_servers == []
        assert [server.port for server in bridge.client.servers] == [known.port]
        known.kill()
        await until(lambda: follower.listener.changes == ["up", "down", "up"])
        assert follower.client.connected_url is not None
        assert follower.client.connected_url.port == other.port
        assert bridge.supervisor.client is None
        known.start()
        await until(lambda: bridge.listener.changes == ["up", "down", "up"])
        assert bridge.client.connected_url is not None
        assert bridge.client.connected_url.port == known.port


PASSWORD = "authorization: {user: u, password: 'p@ss:w/rd'}"
TOKEN = "authorization: {token: s3cret}"


@pytest.mark.parametrize(
    ("config", "login", "settings"),
    [
        (PASSWORD, "", {"user": "u", "password": "p@ss:w/rd"}),
        (PASSWORD.replace("p@ss:w/rd", "plain"), "u:plain@", {}),
        (PASSWORD, "u:p%40ss%3Aw%2Frd@", {}),
        (PASSWORD, "u@", {"password": "p@ss:w/rd"}),
        (PASSWORD, "someone:else@", {"user": "u", "password": "p@ss:w/rd"}),
        (TOKEN, "", {"token": "s3cret"}),
        (TOKEN, "s3cret@", {}),
        (TOKEN.replace("s3cret", "t@k/n%41"), "t%40k%2Fn%2541@", {}),
        (TOKEN, "someone:else@", {"token": "s3cret"}),
    ],
    ids=[
        "user and password",
        "user and password in the URL",
        "percent-encoded password",
        "user in the URL and password",
        "settings before the URL",
        "token",
        "token in the URL",
        "percent-encoded token",
        "token before the URL",
    ],
)
async def test_supervisor_authenticates_with_password_or_token(
    config: str, login: str, settings: dict[str, Any]
) -> None:
    with NatsServer(config=config) as server:
        async with supervising(server, servers=f"nats://{login}127.0.0.1:{server.port}", **settings) as bridge:
            assert await bridge.ask("a") == {"a": "confirmed"}


# The ground


async def test_listener_exception_is_logged_and_supervisor_still_reconnects(
    nats_server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    class Faulty(Listener):
        def connection_established(self) -> None:
            super().connection_established()
            raise RuntimeError("a fault in what follows")

        def connection_closed(self) -> None:
            super().connection_closed()
            raise RuntimeError("a fault in what follows")

    link, listener = (
        ConnectionSupervisor(Settings.resolve({"servers": nats_server.url}, {}), on_connected=ignore),
        Faulty(),
    )
    link.start(listener)
    try:
        await until(lambda: listener.changes == ["up"])
        nats_server.restart()
        await until(lambda: listener.changes == ["up", "down", "up"])
    finally:
        await link.stop()
    assert [record.message for record in caplog.records].count("A callback of the NATS connection failed") == 3


async def test_server_that_drops_connections_is_retried_with_backoff() -> None:
    connections: list[asyncio.StreamWriter] = []

    async def greet_and_drop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        writer.write(b'INFO {"max_payload":1024}\r\n')
        await reader.readuntil(b"PING\r\n")
        writer.write(b"PONG\r\n")
        writer.close()

    async with await asyncio.start_server(greet_and_drop, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        link, listener = (
            ConnectionSupervisor(Settings.resolve({"servers": f"nats://127.0.0.1:{port}"}, {}), on_connected=ignore),
            Listener(),
        )
        link.start(listener)
        async with held() as clock:
            began = clock.now
            await clock.forward_until(lambda: len(connections) == 5, step=0.02)
            assert clock.now - began >= 0.05 + 0.1 + 0.2 + 0.4
        await link.stop()


@contextlib.asynccontextmanager
async def proxied_websocket(server_port: int, path: str) -> AsyncIterator[int]:
    """Serve the WebSocket of a NATS server below a path only, as a reverse proxy does."""

    async def relay(request: web.Request) -> web.WebSocketResponse:
        front = web.WebSocketResponse()
        await front.prepare(request)
        async with aiohttp.ClientSession() as http, http.ws_connect(f"http://127.0.0.1:{server_port}") as back:

            async def forward() -> None:
                async for message in back:
                    await front.send_bytes(message.data)

            forwarding = asyncio.create_task(forward())
            async for message in front:
                await back.send_bytes(message.data)
            forwarding.cancel()
        return front

    app = web.Application()
    app.router.add_get(path, relay)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        port = free_port()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield port
    finally:
        await runner.cleanup()


async def test_websocket_url_may_have_a_path(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    with NatsServer(config=f"websocket {{listen: '127.0.0.1:{port}', no_tls: true}}") as server:
        async with proxied_websocket(port, "/edge/nats") as proxy:
            async with supervising(server, servers=f"ws://127.0.0.1:{proxy}/edge/nats") as bridge:
                assert await bridge.ask("a") == {"a": "confirmed"}
            async with supervising(server, servers=f"ws://127.0.0.1:{proxy}/other", connected=False):
                await until(lambda: "answered the WebSocket handshake with HTTP status 404" in caplog.text)


async def test_denied_app_queue_subscription_affects_no_other_subscription(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = 'authorization { users: [{user: u, password: p, permissions: {subscribe: {deny: ["orders.> jobs"]}}}] }'
    with NatsServer(config=config) as server:
        async with supervising(server, user="u", password="p") as linked_up:
            assert await linked_up.ask("orders.>") == {"orders.>": "confirmed"}
            await linked_up.client.subscribe("orders.>", queue="jobs")
            assert await linked_up.ask("marker") == {"marker": "confirmed"}
            assert 'Permissions Violation for Subscription to "orders.>" using queue "jobs"' in caplog.text
            assert linked_up.listener.answers["orders.>"] == "confirmed"
            await linked_up.client.publish("orders.1", b"1")
            await until(lambda: linked_up.listener.payloads == [b"1"])


async def test_app_subscription_over_limit_affects_no_other_subscription(caplog: pytest.LogCaptureFixture) -> None:
    with NatsServer(config="max_subscriptions: 2") as server:
        async with supervising(server) as linked_up:
            await linked_up.ask("a", "b")
            client = linked_up.client
            await client.subscribe("c")
            await client.publish("a", b"1")
            await until(lambda: linked_up.listener.payloads == [b"1"])
            assert "maximum subscriptions exceeded" in caplog.text
            assert linked_up.supervisor.client is client
            assert linked_up.listener.changes == ["up"]


async def test_stop_completes_when_cancellation_is_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = asyncio.Event()

    async def lose_the_first(*_: Any, **__: Any) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        lost.set()
        await asyncio.Event().wait()

    monkeypatch.setattr("sanic_nats_bridge.nats.connection.Connection.open", lose_the_first)
    link = ConnectionSupervisor(Settings.resolve({"connect_timeout": 120}, {}), on_connected=ignore)
    link.start(Listener())
    await asyncio.sleep(0)
    await stopped(link)
    assert lost.is_set()


async def test_stop_closes_client_when_drain_is_cancelled(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def cancelled(_: NatsClient) -> None:
        # What nats-py's read loop does to a drain: both wait for the end of the transport, and one is cancelled.
        ended = asyncio.get_running_loop().create_future()
        ended.cancel()
        await ended

    monkeypatch.setattr("nats.aio.client.Client.drain", cancelled)
    async with supervising(nats_server) as bridge:
        client = bridge.client
        await bridge.supervisor.stop()
        assert client.is_closed
        assert bridge.supervisor.client is None


@pytest.mark.filterwarnings("ignore:parameter 'timeout' of type:DeprecationWarning")  # nats-py's call of aiohttp
async def test_nats_websocket_sends_subscriptions_immediately() -> None:
    port = free_port()
    with NatsServer(config=f'websocket {{listen: "127.0.0.1:{port}", no_tls: true}}') as server:
        # With so long between pings nothing else would send what waits.
        async with supervising(server, servers=f"ws://127.0.0.1:{port}", ping_interval=600) as bridge:
            assert await bridge.ask("a", "b") == {"a": "confirmed", "b": "confirmed"}
            sid = bridge.supervisor.subscribe("c", "c")
            assert sid is not None
            bridge.supervisor.unsubscribe(sid)
            await until(lambda: server.subscriptions() == ["a", "b"])
            async with Publisher.connected(server) as publisher:
                await publisher.send("a", b"1")
            await until(lambda: bridge.listener.payloads == [b"1"])
