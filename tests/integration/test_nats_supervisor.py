import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import nats.errors
import pytest
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from sanic_nats_bridge.nats.connection import Connection, NatsClient
from sanic_nats_bridge.nats.server_pool import Server
from sanic_nats_bridge.nats.supervisor import ConnectionListener, ConnectionSupervisor
from sanic_nats_bridge.settings import Settings
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import UNHURRIED, WAIT_SECONDS, Publisher, free_port, until
from tests.support.clock import held, turns
from tests.support.fakes import ignore


class Listener:
    """A listener that records the events of a link; every sink is the pattern itself."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.answers: dict[str, str] = {}
        self.lost: list[str] = []
        self.messages: list[tuple[str, bytes, bytes, bytes]] = []

    def on_message(self, sink: str, subject: bytes, headers: bytes, payload: bytes) -> None:
        self.messages.append((sink, subject, headers, payload))

    def delivery_failed(self, sink: str) -> None:
        self.lost.append(sink)

    def confirmed(self, sink: str) -> None:
        self.answers[sink] = "confirmed"

    def refused(self, sink: str) -> None:
        self.answers[sink] = "refused"

    def connection_established(self) -> None:
        self.told.append("up")

    def connection_closed(self) -> None:
        self.told.append("down")

    @property
    def payloads(self) -> list[bytes]:
        return [payload for *_, payload in self.messages]


class Linked:
    """A started link and who listens to it."""

    def __init__(self, **settings: Any) -> None:
        self.listener = Listener()
        self.link = ConnectionSupervisor(Settings.resolve(settings, {}), on_connected=ignore)

    @property
    def client(self) -> NatsClient:
        assert self.link.client is not None
        return self.link.client

    async def ask(self, *patterns: str) -> dict[str, str]:
        """Subscribe to all of them at once; what became of each."""
        for pattern in patterns:
            self.listener.answers.pop(pattern, None)
            assert self.link.subscribe(pattern, pattern) is not None
        await until(lambda: set(patterns) <= set(self.listener.answers))
        return {pattern: self.listener.answers[pattern] for pattern in patterns}


@contextlib.asynccontextmanager
async def linked(*servers: NatsServer, connected: bool = True, **settings: Any) -> AsyncIterator[Linked]:
    linked = Linked(**{**UNHURRIED, "servers": [server.url for server in servers]} | settings)
    linked.link.start(linked.listener)
    try:
        if connected:
            await until(lambda: linked.listener.told == ["up"])
        yield linked
    finally:
        await linked.link.stop()


async def given_up(bridge: Linked) -> None:
    """Let as much time pass as the link needs to give up its first connection."""
    async with held() as clock:
        await clock.forward_until(lambda: "down" in bridge.listener.told, step=WAIT_SECONDS / 4)


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


async def test_a_subscription_is_confirmed_when_the_server_has_answered_and_not_before(
    nats_server: NatsServer,
) -> None:
    async with linked(nats_server) as bridge:
        nats_server.pause()
        bridge.link.subscribe("a", "a")
        await turns(20)
        assert bridge.listener.answers == {}
        nats_server.resume()
        await until(lambda: bridge.listener.answers == {"a": "confirmed"})
        assert nats_server.subscriptions() == ["a"]


async def test_what_is_unsubscribed_brings_nothing_more(nats_server: NatsServer) -> None:
    async with linked(nats_server) as bridge, Publisher.connected(nats_server) as publisher:
        await bridge.ask("marker")
        number = bridge.link.subscribe("a", "a")
        assert number is not None
        await until(lambda: "a" in bridge.listener.answers)
        await publisher.send("a", b"1")
        await until(lambda: bridge.listener.payloads == [b"1"])
        bridge.link.unsubscribe(number)
        await publisher.send("a", b"2")
        await publisher.send("marker", b"3")
        await until(lambda: bridge.listener.payloads == [b"1", b"3"])
        assert nats_server.subscriptions() == ["marker"]


@pytest.mark.parametrize("denied", ["secret.x", "secret.*", 'secret."quoted"', "secret.back\\slash", "secret.it's"])
async def test_a_denied_subscription_is_refused(denied: str) -> None:
    with NatsServer(config=permissions("secret.>")) as server:
        async with linked(server) as bridge:
            assert await bridge.ask("open", denied, "open.too") == {
                "open": "confirmed",
                denied: "refused",
                "open.too": "confirmed",
            }
            assert server.subscriptions() == ["open", "open.too"]
            assert bridge.listener.told == ["up"]


async def test_patterns_that_differ_only_in_case_are_told_apart() -> None:
    with NatsServer(config=permissions("secret.X")) as server:
        async with linked(server) as bridge:
            answers = await bridge.ask("SECRET.x", "secret.X", "secret.x")
            assert answers == {"SECRET.x": "confirmed", "secret.X": "refused", "secret.x": "confirmed"}


async def test_a_denied_publish_of_the_app_refuses_nobody() -> None:
    with NatsServer(config=permissions()) as server:
        async with linked(server) as bridge:
            await bridge.ask("forbidden")
            client = bridge.client
            bridge.link.subscribe("a", "a")
            await client.publish("forbidden", b"1")
            assert await bridge.ask("b") == {"b": "confirmed"}
            await client.flush()
            assert bridge.listener.answers == {"forbidden": "confirmed", "a": "confirmed", "b": "confirmed"}
            assert bridge.link.client is client


async def test_one_subscription_too_many_for_the_server_is_refused_and_harms_no_other() -> None:
    with NatsServer(config="max_subscriptions: 2") as server:
        async with linked(server) as bridge, Publisher.connected(server) as publisher:
            answers = await bridge.ask("a", "b", "c")
            assert answers == {"a": "confirmed", "b": "confirmed", "c": "refused"}
            await publisher.send("a", b"1")
            await until(lambda: bridge.listener.payloads == [b"1"])
            assert bridge.listener.told == ["up"]


async def test_the_subject_that_kills_the_connection_is_refused_and_the_link_comes_back() -> None:
    poison = "x" * 255
    with NatsServer(config="max_control_line: 256") as server:
        async with linked(server) as bridge, Publisher.connected(server) as publisher:
            await bridge.ask("a")
            for pattern in ("b", poison, "c"):
                bridge.link.subscribe(pattern, pattern)
            await until(lambda: bridge.listener.told == ["up", "down", "up"])
            assert bridge.listener.answers[poison] == "refused"
            assert bridge.listener.answers.get("c") != "refused"
            assert await bridge.ask("a", "b", "c") == dict.fromkeys("abc", "confirmed")
            await publisher.send("c", b"1")
            await until(lambda: bridge.listener.payloads == [b"1"])
            assert bridge.listener.told == ["up", "down", "up"]


async def test_permissions_narrowed_while_subscribed_refuse_that_pattern_alone() -> None:
    with NatsServer(config=permissions()) as server:
        async with linked(server) as bridge, Publisher.connected(server) as publisher:
            await bridge.ask("a", "b")
            server.config = permissions("a")
            server.reload()
            await until(lambda: bridge.listener.answers == {"a": "refused", "b": "confirmed"})
            await publisher.send("b", b"1")
            await until(lambda: bridge.listener.payloads == [b"1"])


# Coming and going


@pytest.mark.parametrize("end", [NatsServer.stop, NatsServer.kill], ids=["stopped", "killed"])
async def test_the_link_comes_back_with_the_server(
    nats_server: NatsServer, end: Callable[[NatsServer], None], caplog: pytest.LogCaptureFixture
) -> None:
    async with linked(nats_server) as bridge:
        before = bridge.client
        end(nats_server)
        await until(lambda: bridge.listener.told == ["up", "down"])
        assert bridge.link.client is None
        assert bridge.link.subscribe("a", "a") is None
        nats_server.start()
        await until(lambda: bridge.listener.told == ["up", "down", "up"])
        assert bridge.client is not before
        assert await bridge.ask("a") == {"a": "confirmed"}
    assert [record.levelname for record in caplog.records if "Disconnected from NATS" in record.getMessage()] == [
        "WARNING"
    ]


async def test_a_server_that_hangs_is_noticed_by_pings(nats_server: NatsServer) -> None:
    async with linked(nats_server) as bridge:
        nats_server.pause()
        await given_up(bridge)
        nats_server.resume()
        await until(lambda: bridge.listener.told == ["up", "down", "up"])


async def test_a_server_that_is_not_there_at_the_start_is_waited_for_and_told_of_once(
    nats_server: NatsServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[str] = []
    attempt = ConnectionSupervisor._open

    async def note(link: ConnectionSupervisor, server: Server, listener: ConnectionListener) -> Connection:
        attempts.append(server.url)
        return await attempt(link, server, listener)

    monkeypatch.setattr(ConnectionSupervisor, "_open", note)
    nats_server.stop()
    async with linked(nats_server, connected=False) as bridge:
        await until(lambda: len(attempts) == 5)
        assert bridge.listener.told == []
        nats_server.start()
        await until(lambda: bridge.listener.told == ["up"])
    assert caplog.text.count("Cannot connect to NATS") == 1


async def test_wrong_credentials_are_tried_again_at_leisure_and_shown_nowhere(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with NatsServer(config="authorization: {user: right, password: right}") as server:
        wrong = f"nats://in-url:hush-url@127.0.0.1:{server.port}"
        async with linked(server, servers=wrong, connected=False):
            async with held() as clock:
                began = clock.now
                await clock.forward_until(lambda: server.monitor("/varz")["total_connections"] >= 7, step=0.02)
                # nats-py connects twice each time. The waits before the second, third and fourth time.
                assert clock.now - began >= 0.05 + 0.1 + 0.2
            assert "hush" not in caplog.text
        caplog.clear()
        async with linked(server, user="someone", password="hush-setting", connected=False):
            await until(lambda: "authorization" in caplog.text.lower())
    assert "hush" not in caplog.text


async def test_the_link_is_told_once_more_when_wrong_credentials_become_right() -> None:
    with NatsServer(config="authorization: {user: u, password: old}") as server:
        async with linked(server, user="u", password="new", connected=False) as bridge:
            await until(lambda: server.monitor("/varz")["total_connections"] >= 1)
            server.config = "authorization: {user: u, password: new}"
            server.restart()
            await until(lambda: bridge.listener.told == ["up"])


async def test_stop_drains_and_leaves_no_task(nats_server: NatsServer) -> None:
    before = asyncio.all_tasks()
    async with linked(nats_server) as bridge, Publisher.connected(nats_server) as publisher:
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
            await bridge.link.stop()
        assert handled == [b"0", b"1", b"2", b"3", b"4"]
        assert bridge.link.client is None
    await until(lambda: asyncio.all_tasks() == before)
    assert client.is_closed


@pytest.mark.parametrize("away", [True, False], ids=["while away", "while the server hangs"])
async def test_stop_ends_also_without_a_server(nats_server: NatsServer, away: bool) -> None:
    before = asyncio.all_tasks()
    async with linked(nats_server) as bridge:
        if away:
            nats_server.stop()
            await until(lambda: bridge.listener.told == ["up", "down"])
        else:
            nats_server.pause()
        await stopped(bridge.link)
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
async def test_whatever_a_publisher_sends_the_link_and_the_apps_own_subscription_live(
    shared_nats: NatsServer, raw: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with linked(shared_nats) as bridge, Publisher.connected(shared_nats) as publisher:
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
        assert bridge.link.client is client
        assert bridge.listener.told == ["up"]
        assert "Disconnected from NATS" not in caplog.text


async def test_messages_are_handed_over_byte_for_byte_and_in_order(nats_server: NatsServer) -> None:
    headers = b"NATS/1.0\r\n\xff: \xff\r\n\r\n"
    async with linked(nats_server) as bridge:
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


async def test_a_flush_whose_waiter_gave_up_does_not_end_the_link(nats_server: NatsServer) -> None:
    async with linked(nats_server) as bridge:
        client = bridge.client
        nats_server.pause()
        with pytest.raises(nats.errors.TimeoutError):
            await client.flush(timeout=0.05)  # type: ignore[arg-type]  # nats-py declares int
        nats_server.resume()
        assert await bridge.ask("a") == {"a": "confirmed"}
        await client.flush()
        assert bridge.link.client is client
        assert bridge.listener.told == ["up"]


async def test_the_apps_own_subscriptions_get_their_messages_in_order_with_headers(nats_server: NatsServer) -> None:
    async with linked(nats_server) as bridge, Publisher.connected(nats_server) as publisher:
        await bridge.ask("app")
        own = await own_subscription(bridge.client, nats_server, "app")
        for number in range(50):
            await publisher.send("app", b"%d" % number, headers={"Number": str(number)})
        messages = [await own.next_msg(WAIT_SECONDS) for _ in range(50)]
        assert [message.data for message in messages] == [b"%d" % number for number in range(50)]
        assert [message.headers for message in messages] == [{"Number": str(number)} for number in range(50)]
        assert bridge.listener.payloads == [b"%d" % number for number in range(50)]


async def test_the_app_can_ask_and_answer_requests(nats_server: NatsServer) -> None:
    async with linked(nats_server) as bridge, Publisher.connected(nats_server) as publisher:

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


async def test_a_server_that_the_cluster_told_of_takes_over(cluster: tuple[NatsServer, NatsServer]) -> None:
    known, other = cluster
    async with linked(known) as bridge:
        await until(lambda: len(bridge.client.servers) == 2)
        known.kill()
        await until(lambda: bridge.listener.told == ["up", "down", "up"])
        assert bridge.client.connected_url is not None
        assert bridge.client.connected_url.port == other.port
        assert await bridge.ask("a") == {"a": "confirmed"}


PASSWORD = "authorization: {user: u, password: 'p@ss:w/rd'}"
TOKEN = "authorization: {token: s3cret}"


@pytest.mark.parametrize(
    ("config", "login", "settings"),
    [
        (PASSWORD, "", {"user": "u", "password": "p@ss:w/rd"}),
        (PASSWORD.replace("p@ss:w/rd", "plain"), "u:plain@", {}),
        (TOKEN, "", {"token": "s3cret"}),
        (TOKEN, "s3cret@", {}),
    ],
    ids=["user and password", "user and password in the URL", "token", "token in the URL"],
)
async def test_a_server_that_wants_a_login_is_connected_to(config: str, login: str, settings: dict[str, Any]) -> None:
    with NatsServer(config=config) as server:
        async with linked(server, servers=f"nats://{login}127.0.0.1:{server.port}", **settings) as bridge:
            assert await bridge.ask("a") == {"a": "confirmed"}


# The ground


async def test_a_fault_of_the_listener_does_not_end_the_link(
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
        await until(lambda: listener.told == ["up"])
        nats_server.restart()
        await until(lambda: listener.told == ["up", "down", "up"])
    finally:
        await link.stop()
    assert [record.message for record in caplog.records].count("A callback of the NATS connection failed") == 3


async def test_a_server_that_drops_each_connection_is_tried_at_leisure() -> None:
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


async def test_a_queue_subscription_of_the_app_that_is_denied_ends_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = 'authorization { users: [{user: u, password: p, permissions: {subscribe: {deny: ["orders.> jobs"]}}}] }'
    with NatsServer(config=config) as server:
        async with linked(server, user="u", password="p") as linked_up:
            assert await linked_up.ask("orders.>") == {"orders.>": "confirmed"}
            await linked_up.client.subscribe("orders.>", queue="jobs")
            assert await linked_up.ask("marker") == {"marker": "confirmed"}
            assert 'subscription to "orders.>" using queue "jobs"' in caplog.text
            assert linked_up.listener.answers["orders.>"] == "confirmed"
            await linked_up.client.publish("orders.1", b"1")
            await until(lambda: linked_up.listener.payloads == [b"1"])


async def test_one_subscription_of_the_app_too_many_harms_no_other(caplog: pytest.LogCaptureFixture) -> None:
    with NatsServer(config="max_subscriptions: 2") as server:
        async with linked(server) as linked_up:
            await linked_up.ask("a", "b")
            client = linked_up.client
            await client.subscribe("c")
            await client.publish("a", b"1")
            await until(lambda: linked_up.listener.payloads == [b"1"])
            assert "maximum subscriptions exceeded" in caplog.text
            assert linked_up.link.client is client
            assert linked_up.listener.told == ["up"]


async def test_stop_ends_also_when_a_cancellation_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
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


async def test_stop_ends_also_when_the_server_goes_meanwhile(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def cancelled(_: NatsClient) -> None:
        # What nats-py's read loop does to a drain: both wait for the end of the transport, and one is cancelled.
        ended = asyncio.get_running_loop().create_future()
        ended.cancel()
        await ended

    monkeypatch.setattr("nats.aio.client.Client.drain", cancelled)
    async with linked(nats_server) as bridge:
        client = bridge.client
        await bridge.link.stop()
        assert client.is_closed
        assert bridge.link.client is None


@pytest.mark.filterwarnings("ignore:parameter 'timeout' of type:DeprecationWarning")  # nats-py's call of aiohttp
async def test_nats_over_websocket_is_asked_at_once_too() -> None:
    port = free_port()
    with NatsServer(config=f'websocket {{listen: "127.0.0.1:{port}", no_tls: true}}') as server:
        # With so long between pings nothing else would send what waits.
        async with linked(server, servers=f"ws://127.0.0.1:{port}", ping_interval=600) as bridge:
            assert await bridge.ask("a", "b") == {"a": "confirmed", "b": "confirmed"}
            sid = bridge.link.subscribe("c", "c")
            assert sid is not None
            bridge.link.unsubscribe(sid)
            await until(lambda: server.subscriptions() == ["a", "b"])
            async with Publisher.connected(server) as publisher:
                await publisher.send("a", b"1")
            await until(lambda: bridge.listener.payloads == [b"1"])
