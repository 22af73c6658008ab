"""The configurations of docs/guides/nats-topologies.md, and the limits that the guide names as facts."""

import asyncio
import base64
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, Self

import nats
import nkeys  # type: ignore[import-untyped]
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import RePublish, StreamConfig
from sanic import Request

from sanic_nats_bridge import Permissions
from sanic_nats_bridge.testing import NatsServer
from tests.integration.test_nats_credentials import UNLIMITED, Account, Key
from tests.support.bridge import WAIT_SECONDS, Bridge, flush, free_port, running, subscribed, until
from tests.support.docs import file_of
from tools.harness.tcp_proxy import Proxy

GUIDE = "docs/guides/nats-topologies.md"
CONTROL = "_NATSBRIDGE.shop"


def documented(name: str, **replacements: str) -> str:
    """Return a configuration of the guide, with the addresses and passwords of this run."""
    config = file_of(GUIDE, name)
    for part, here in replacements.items():
        assert part in config, part
        config = config.replace(part, here)
    return config


@contextlib.asynccontextmanager
async def client_of(server: NatsServer, **options: Any) -> AsyncIterator[Client]:
    client = await nats.connect(server.url, connect_timeout=WAIT_SECONDS, **options)
    try:
        yield client
    finally:
        await client.close()


async def publish(client: Client, subject: str, payload: bytes) -> None:
    await client.publish(subject, payload)
    await flush(client)


def without_loss(bridge: Bridge) -> bool:
    """Return True if the bridge has never lost its connection, and has announced no loss."""
    stats = bridge.extension.stats()
    return stats.nats == "connected" and stats.nats_reconnects == 0 and not any(stats.gaps.values())


async def reload(server: NatsServer, config: str) -> None:
    """Reload the server with another configuration, and wait until it applies."""
    before = server.monitor("/varz")["config_load_time"]
    server.config = config
    server.reload()
    await until(lambda: server.monitor("/varz")["config_load_time"] != before)


async def permissions(request: Request) -> Permissions:
    return Permissions([">"], identity=request.cookies.get("user", "ada"))


def worker(server: NatsServer, **settings: Any) -> contextlib.AbstractAsyncContextManager[Bridge]:
    """Serve one worker of an app; two apps of one process can't have one name."""
    options: dict[str, Any] = {"servers": server.url, "control_prefix": CONTROL, "permissions": permissions}
    return running(**options | settings)


# Clusters


async def test_message_published_at_other_cluster_member_arrives() -> None:
    hosts = ("nats-1.example:6222", "nats-2.example:6222")
    routes = {host: f"127.0.0.1:{free_port()}" for host in hosts}
    first, second = (
        NatsServer(config=documented("cluster.conf", **{"0.0.0.0:6222": here}, **routes)) for here in routes.values()
    )
    with first, second:
        async with (
            running(servers=[first.url], subscribe=["orders.>"]) as bridge,
            client_of(second) as publisher,
            bridge.websocket() as browser,
        ):
            await browser.follow("orders.>")
            await until(lambda: "orders.>" in _subscriptions(second.monitor("/routez?subs=1")["routes"] or ()))
            await publish(publisher, "orders.new", b"1")
            assert await browser.data(1) == [1]


def _subscriptions(links: Any) -> set[str]:
    return {pattern for link in links for pattern in link.get("subscriptions_list") or ()}


# Leaf nodes


class Leaf:
    """A hub and a leaf node, and the link between them."""

    def __init__(self, hub: NatsServer, leaf: NatsServer, link: Proxy) -> None:
        self.hub = hub
        self.leaf = leaf
        self.link = link

    @classmethod
    @contextlib.asynccontextmanager
    async def connected(cls, remote: str = "") -> AsyncIterator[Self]:
        """Start both servers. ``remote`` has further options of the leaf node's remote."""
        port = free_port()
        with NatsServer(config=documented("hub.conf", **{"0.0.0.0:7422": f"127.0.0.1:{port}"})) as hub:
            async with Proxy(port).running() as link:
                here = {"hub.example:7422": link.url.removeprefix("nats://"), "url:": f"{remote} url:"}
                with NatsServer(config=documented("leaf.conf", **here)) as leaf:
                    both = cls(hub, leaf, link)
                    await until(both.is_linked)
                    yield both

    def is_linked(self) -> bool:
        """Return True if both servers have the link."""
        return all(server.monitor("/leafz")["leafnodes"] == 1 for server in (self.hub, self.leaf))

    async def wait_until_hub_knows(self, *patterns: str) -> None:
        """Wait until the hub sends messages of these patterns to the leaf node."""
        await until(lambda: {*patterns} <= _subscriptions(self.hub.monitor("/leafz?subs=1").get("leafs") or ()))

    async def cut(self) -> None:
        """Cut the link, and wait until both servers have noticed."""
        self.link.down = True
        self.link.cut()
        await until(lambda: all(not server.monitor("/leafz")["leafnodes"] for server in (self.hub, self.leaf)))

    async def restore(self) -> None:
        """Let the leaf node reconnect."""
        self.link.down = False
        await until(self.is_linked)


async def test_message_published_at_hub_reaches_bridge_at_leaf_node() -> None:
    async with (
        Leaf.connected() as servers,
        running(servers=servers.leaf.url, subscribe=["orders.>"]) as bridge,
        client_of(servers.hub) as publisher,
        bridge.websocket() as browser,
    ):
        await browser.follow("orders.>")
        await servers.wait_until_hub_knows("orders.>")
        await publish(publisher, "orders.new", b"1")
        assert await browser.data(1) == [1]


async def test_cut_leaf_link_loses_messages_without_notice() -> None:
    async with (
        Leaf.connected() as servers,
        running(servers=servers.leaf.url, subscribe=["orders.>"]) as bridge,
        client_of(servers.hub) as at_hub,
        client_of(servers.leaf) as at_leaf,
        bridge.websocket() as browser,
    ):
        await browser.follow("orders.>")
        await servers.cut()
        await publish(at_hub, "orders.new", b'"lost"')
        await publish(at_leaf, "orders.new", b'"beside the bridge"')
        assert await browser.data(1) == ["beside the bridge"]
        await servers.restore()
        await servers.wait_until_hub_knows("orders.>")
        await publish(at_hub, "orders.new", b'"restored"')
        assert await browser.data(1) == ["restored"]
        assert without_loss(bridge)


async def test_subscription_that_cannot_cross_leaf_link_is_confirmed() -> None:
    async with (
        Leaf.connected('deny_imports: ["secret.>"],') as servers,
        running(servers=servers.leaf.url, subscribe=["secret.>", "orders.>"]) as bridge,
        client_of(servers.hub) as publisher,
        bridge.websocket() as browser,
    ):
        await browser.follow("secret.>", "orders.>")
        await servers.wait_until_hub_knows("orders.>")
        await publish(publisher, "secret.new", b'"denied"')
        await publish(publisher, "orders.new", b'"allowed"')
        assert await browser.data(1) == ["allowed"]


async def test_workers_on_both_sides_of_leaf_link_reach_each_other() -> None:
    async with (
        Leaf.connected() as servers,
        worker(servers.hub) as here,
        worker(servers.leaf) as there,
        there.events() as browser,
    ):
        await servers.wait_until_hub_knows(f"{CONTROL}.all.>")
        command = {"session": browser.session, "subjects": ["orders.>"]}
        assert await here.post("/subscribe", command) == (200, subscribed("orders.>"))
        assert await here.extension.revoke(identity="ada") == (0, True)
        assert (await browser.frame())["code"] == 4403


async def test_revoke_behind_cut_leaf_link_is_missed_though_announced() -> None:
    async with (
        Leaf.connected() as servers,
        worker(servers.hub) as here,
        worker(servers.leaf) as there,
        there.events("orders.>") as browser,
    ):
        await servers.wait_until_hub_knows(f"{CONTROL}.all.>")
        await servers.cut()
        assert await here.extension.revoke(identity="ada") == (0, True)
        await servers.restore()
        await servers.wait_until_hub_knows("orders.>")
        async with client_of(servers.hub) as publisher:
            await publish(publisher, "orders.new", b"1")
            assert await browser.data(1) == [1]


# Gateways


@pytest.fixture
async def supercluster() -> AsyncIterator[tuple[NatsServer, NatsServer]]:
    """Start two clusters of one server each."""
    ports = {"east": free_port(), "west": free_port()}

    def server(name: str, other: str) -> NatsServer:
        own, remote = (f"127.0.0.1:{ports[each]}" for each in (name, other))
        config = documented("gateway.conf", **{"0.0.0.0:7222": own, "nats.west.example:7222": remote})
        names = {"east": name, "west": other}
        return NatsServer(config=re.sub("east|west", lambda found: names[found[0]], config))

    with server("east", "west") as east, server("west", "east") as west:
        await until(lambda: _has_gateways(east) and _has_gateways(west))
        yield east, west


def _has_gateways(server: NatsServer) -> bool:
    gateways = server.monitor("/gatewayz")
    return bool(gateways["outbound_gateways"]) and bool(gateways["inbound_gateways"])


def _passed_on(server: NatsServer) -> set[str]:
    """Return the patterns of the other cluster that the server knows."""
    gateways = server.monitor("/gatewayz?accs=1&subs=1&acc_name=$G")["outbound_gateways"]
    return _subscriptions(account for gateway in gateways.values() for account in gateway.get("accounts") or ())


async def test_message_published_in_other_cluster_arrives_through_gateway(
    supercluster: tuple[NatsServer, NatsServer],
) -> None:
    east, west = supercluster
    async with (
        running(servers=east.url, subscribe=["orders.>"]) as bridge,
        client_of(west) as publisher,
        bridge.websocket() as browser,
    ):
        await browser.follow("orders.>")
        await until(lambda: "orders.>" in _passed_on(west))
        await publish(publisher, "orders.new", b"1")
        assert await browser.data(1) == [1]


async def test_workers_in_two_clusters_reach_each_other(supercluster: tuple[NatsServer, NatsServer]) -> None:
    east, west = supercluster
    async with worker(east) as here, worker(west) as there, there.events() as browser:
        await until(lambda: f"{CONTROL}.all.>" in _passed_on(east) and f"{CONTROL}.all.>" in _passed_on(west))
        command = {"session": browser.session, "subjects": ["orders.>"]}
        assert await here.post("/subscribe", command) == (200, subscribed("orders.>"))
        assert await here.extension.revoke(identity="ada") == (0, True)
        assert (await browser.frame())["code"] == 4403


# Accounts and mappings


ACCOUNTS = documented("accounts.conf", **{"$ERP_PASSWORD": "e", "$BRIDGE_PASSWORD": "b"})
BRIDGE_LOGIN: dict[str, Any] = {"user": "bridge", "password": "b"}
ERP_LOGIN: dict[str, Any] = {"user": "erp", "password": "e"}


@pytest.fixture
def accounts() -> Iterator[NatsServer]:
    with NatsServer(config=ACCOUNTS) as server:
        yield server


@pytest.mark.parametrize("pattern", ["erp.orders.>", "erp.orders.new", "erp.*.new", "erp.>", ">"])
async def test_imported_subject_arrives_under_its_prefix(accounts: NatsServer, pattern: str) -> None:
    async with (
        running(servers=accounts.url, subscribe=[">"], **BRIDGE_LOGIN) as bridge,
        client_of(accounts, **ERP_LOGIN) as erp,
        bridge.websocket() as browser,
    ):
        await browser.follow(pattern)
        await publish(erp, "orders.new", b"1")
        frame = await browser.frame()
        assert (frame["type"], frame["subject"]) == ("message", "erp.orders.new")


@pytest.mark.parametrize("pattern", ["levels.*", "levels.tea", "*.tea"])
async def test_imported_subject_arrives_under_its_mapped_name(accounts: NatsServer, pattern: str) -> None:
    async with (
        running(servers=accounts.url, subscribe=[">"], **BRIDGE_LOGIN) as bridge,
        client_of(accounts, **ERP_LOGIN) as erp,
        bridge.websocket() as browser,
    ):
        await browser.follow(pattern)
        await publish(erp, "stock.tea.level", b"1")
        frame = await browser.frame()
        assert (frame["type"], frame["subject"]) == ("message", "levels.tea")


async def test_alias_gives_imported_subject_its_original_name(accounts: NatsServer) -> None:
    allowed = Permissions(["erp.orders.>"], aliases={"orders.": "erp.orders."})
    async with (
        running(servers=accounts.url, permissions=lambda _: allowed, **BRIDGE_LOGIN) as bridge,
        client_of(accounts, **ERP_LOGIN) as erp,
        bridge.websocket() as browser,
    ):
        await browser.follow("orders.>")
        await publish(erp, "orders.new", b"1")
        frame = await browser.frame()
        assert (frame["subject"], frame["pattern"]) == ("orders.new", "orders.>")


async def test_import_that_reload_removes_ends_without_notice(accounts: NatsServer) -> None:
    async with (
        running(servers=accounts.url, subscribe=[">"], **BRIDGE_LOGIN) as bridge,
        client_of(accounts, **ERP_LOGIN) as erp,
        client_of(accounts, **BRIDGE_LOGIN) as local,
        bridge.websocket() as browser,
    ):
        await browser.follow("erp.orders.>", "erp.local")
        await reload(accounts, re.sub(r".*prefix: erp.*\n", "", ACCOUNTS))
        await publish(erp, "orders.new", b'"no longer imported"')
        await publish(local, "erp.local", b'"local"')
        assert await browser.data(1) == ["local"]
        assert without_loss(bridge)


async def test_workers_in_two_accounts_do_not_find_each_other(accounts: NatsServer) -> None:
    async with (
        worker(accounts, **BRIDGE_LOGIN) as here,
        worker(accounts, **ERP_LOGIN) as there,
        there.events() as browser,
    ):
        command = {"session": browser.session, "subjects": ["orders.>"]}
        status, reply = await here.post("/subscribe", command)
        assert (status, reply["code"]) == (404, "session.unknown")


def test_imports_of_control_subjects_in_both_directions_are_rejected() -> None:
    config = "accounts {" + "".join(
        f'{name} {{exports: [{{stream: "{CONTROL}.>"}}], '
        f'imports: [{{stream: {{account: {other}, subject: "{CONTROL}.>"}}}}]}}\n'
        for name, other in (("A", "B"), ("B", "A"))
    )
    with pytest.raises(RuntimeError, match="import forms a cycle"), NatsServer(config=config + "}"):
        pass


async def test_mapped_message_arrives_under_its_new_subject_only() -> None:
    with NatsServer(config=documented("mappings.conf")) as server:
        async with (
            running(servers=server.url, subscribe=[">"]) as bridge,
            client_of(server) as publisher,
            bridge.websocket() as browser,
        ):
            await browser.follow("orders.*", "legacy.orders.*")
            await publish(publisher, "legacy.orders.1", b'"mapped"')
            await publish(publisher, "orders.2", b'"published there"')
            frames = await browser.frames(2)
            assert [(frame["subject"], frame["data"]) for frame in frames] == [
                ("orders.1", "mapped"),
                ("orders.2", "published there"),
            ]


# Permissions that a reload takes away


def restricted(*denied: str) -> str:
    rules = json.dumps({"subscribe": {"allow": ["orders.>", "_NATSBRIDGE.>"], "deny": ["never", *denied]}})
    return (
        f"authorization {{users: [{{user: bridge, password: b, permissions: {rules}}}, {{user: erp, password: e}}]}}\n"
    )


async def test_deny_added_inside_followed_pattern_is_not_announced() -> None:
    with NatsServer(config=restricted()) as server:
        async with (
            running(servers=server.url, subscribe=["orders.>"], **BRIDGE_LOGIN) as bridge,
            client_of(server, **ERP_LOGIN) as publisher,
            bridge.websocket() as browser,
        ):
            await browser.follow("orders.>")
            await publish(publisher, "orders.secret", b'"before"')
            assert await browser.data(1) == ["before"]
            await reload(server, restricted("orders.secret"))
            await publish(publisher, "orders.secret", b'"denied"')
            await publish(publisher, "orders.new", b'"allowed"')
            assert await browser.data(1) == ["allowed"]
            assert without_loss(bridge)


async def test_deny_added_for_followed_pattern_ends_its_subscription() -> None:
    with NatsServer(config=restricted()) as server:
        async with (
            running(servers=server.url, subscribe=["orders.>"], **BRIDGE_LOGIN) as bridge,
            bridge.websocket() as browser,
        ):
            await browser.follow("orders.secret", "orders.new")
            await reload(server, restricted("orders.secret"))
            frame = await browser.frame()
            assert (frame["type"], frame["subjects"], frame["code"]) == (
                "unsubscribed",
                ["orders.secret"],
                "nats.refused",
            )


# Queue groups


def overlapping(first: str = "orders") -> list[str]:
    """Return all patterns with wildcards that begin with this token and match the subject "eu.item.new" below it."""
    tokens = ("eu", "item", "new")
    masks = [".".join(each) for each in product(*((token, "*") for token in tokens))][1:]
    opened = [".".join([*each, ">"]) for size in range(3) for each in product(*((t, "*") for t in tokens[:size]))]
    return [f"{first}.{each}" for each in (*masks, *opened)]


async def check_overlapping(
    bridge: Bridge, publisher: Client, known: Callable[[], set[str]], first: str = "orders"
) -> None:
    """Check that each of many overlapping patterns gets each message once and in order, while others come and go."""
    patterns = overlapping(first)
    async with bridge.websocket() as browser, bridge.websocket() as restless:
        await browser.follow(*patterns)
        await until(lambda: {*patterns} <= {each.partition(" ")[0] for each in known()})

        async def come_and_go() -> None:
            await restless.follow(f"{first}.*.*.other")
            while True:
                await restless.ask({"subjects": [f"{first}.*.*.*.>", f"{first}.>"]})
                await restless.ask({"action": "unsubscribe", "subjects": [f"{first}.*.*.*.>", f"{first}.*.*.other"]})
                await restless.ask({"subjects": [f"{first}.*.*.other"]})
                await restless.ask({"action": "unsubscribe", "subjects": [f"{first}.>"]})

        task = asyncio.create_task(come_and_go())
        try:
            for number in range(100):
                await publish(publisher, "orders.eu.item.new", b"%d" % number)
        finally:
            task.cancel()
        frames = await browser.frames(100 * len(patterns))
        received = {pattern: [each["data"] for each in frames if each["pattern"] == pattern] for pattern in patterns}
        assert received == {pattern: list(range(100)) for pattern in patterns}
        assert without_loss(bridge)


def many(server: NatsServer, **settings: Any) -> contextlib.AbstractAsyncContextManager[Bridge]:
    """Serve a worker whose clients are neither limited nor slow to leave NATS."""
    limits: dict[str, Any] = {"command_rate": 1e6, "command_burst": 10**6, "unsubscribe_delay": 0}
    return running(servers=server.url, subscribe=[">"], max_overlap=20, **limits | settings)


async def test_overlapping_patterns_get_messages_of_other_cluster_member() -> None:
    hosts = ("nats-1.example:6222", "nats-2.example:6222")
    routes = {host: f"127.0.0.1:{free_port()}" for host in hosts}
    first, second = (
        NatsServer(config=documented("cluster.conf", **{"0.0.0.0:6222": here}, **routes)) for here in routes.values()
    )
    with first, second:
        async with many(first) as bridge, client_of(second) as publisher:
            await check_overlapping(
                bridge, publisher, lambda: _subscriptions(second.monitor("/routez?subs=1")["routes"] or ())
            )


@pytest.mark.parametrize("bridge_at_leaf", [True, False])
async def test_overlapping_patterns_get_messages_over_leaf_link(*, bridge_at_leaf: bool) -> None:
    async with Leaf.connected() as servers:
        here, there = (servers.leaf, servers.hub) if bridge_at_leaf else (servers.hub, servers.leaf)
        async with many(here) as bridge, client_of(there) as publisher:
            await check_overlapping(
                bridge, publisher, lambda: _subscriptions(there.monitor("/leafz?subs=1").get("leafs") or ())
            )


async def test_overlapping_patterns_get_messages_through_gateway(supercluster: tuple[NatsServer, NatsServer]) -> None:
    east, west = supercluster
    async with many(east) as bridge, client_of(west) as publisher:
        await check_overlapping(bridge, publisher, lambda: _passed_on(west))


async def test_overlapping_patterns_get_imported_messages(accounts: NatsServer) -> None:
    async with many(accounts, **BRIDGE_LOGIN) as bridge, client_of(accounts, **ERP_LOGIN) as erp:
        await check_overlapping(bridge, erp, lambda: {f"erp.{each}" for each in overlapping()}, "erp.orders")


async def test_stream_imported_under_two_names_arrives_under_both() -> None:
    exported = '{stream: "orders.eu.>", accounts: [SHOP]}'
    imported = '{stream: {account: ERP, subject: "orders.eu.>"}, prefix: again}'
    config = ACCOUNTS.replace("exports: [", f"exports: [{exported}, ").replace("imports: [", f"imports: [{imported}")
    assert config.count("orders.eu") == 2
    names = ("erp", "again")
    with NatsServer(config=config) as server:
        async with (
            many(server, **BRIDGE_LOGIN) as bridge,
            client_of(server, **ERP_LOGIN) as erp,
            contextlib.AsyncExitStack() as stack,
        ):
            browsers = [await stack.enter_async_context(bridge.websocket()) for _ in names]
            for name, browser in zip(names, browsers, strict=True):
                await browser.follow(*overlapping(f"{name}.orders"))
            await publish(erp, "orders.eu.item.new", b"1")
            for name, browser in zip(names, browsers, strict=True):
                frames = await browser.frames(len(overlapping()))
                assert {frame["pattern"] for frame in frames} == {*overlapping(f"{name}.orders")}


# Operator mode and auth callout


async def test_bridge_in_operator_mode_receives_messages_of_its_account(tmp_path: Path) -> None:
    account = Account(tmp_path / "user.creds")
    account.issue(Key(nkeys.PREFIX_BYTE_USER))
    with NatsServer(config=account.config) as server:
        async with (
            running(servers=server.url, subscribe=["orders.>"], credentials=account.file) as bridge,
            client_of(server, user_credentials=str(account.file)) as publisher,
            bridge.websocket() as browser,
        ):
            await browser.follow("orders.>")
            await publish(publisher, "orders.new", b"1")
            assert await browser.data(1) == [1]


class Callout:
    """An auth callout service that knows one login, and lets it into the account SHOP (ADR-26).

    Args:
        login: The fields of ``connect_opts`` that are accepted.
    """

    def __init__(self, login: dict[str, str]) -> None:
        self._login = login
        self._issuer = Key(nkeys.PREFIX_BYTE_ACCOUNT)
        self.requests: list[dict[str, Any]] = []
        config = documented("callout.conf", **{"$AUTH_PASSWORD": "a", "auth_callout": "timeout: 60, auth_callout"})
        self.config = re.sub(r"issuer: \w+", f"issuer: {self._issuer.public}", config)

    @contextlib.asynccontextmanager
    async def answering(self, server: NatsServer) -> AsyncIterator[None]:
        """Answer requests with a NATS client of its own."""
        async with client_of(server, user="auth", password="a") as client:
            await client.subscribe("$SYS.REQ.USER.AUTH", cb=self._answer)
            await flush(client)
            yield

    async def _answer(self, message: Msg) -> None:
        claims = message.data.decode().split(".")[1]
        request = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["nats"]
        self.requests.append(request["connect_opts"])
        user = request["user_nkey"]
        said: dict[str, Any] = {"error": "unknown login"}
        if self._login.items() <= request["connect_opts"].items():
            rules = {"sub": {"allow": ["orders.>", f"{CONTROL}.>"]}, "pub": {"allow": [f"{CONTROL}.>"]}}
            said = {"jwt": self._issuer.issue("user", user, UNLIMITED | rules, aud="SHOP")}
        await message.respond(
            self._issuer.issue("authorization_response", user, said, aud=request["server_id"]["id"]).encode()
        )


@pytest.mark.parametrize(
    ("settings", "login"),
    [(BRIDGE_LOGIN, {"user": "bridge", "pass": "b"}), ({"token": "t"}, {"auth_token": "t"})],
    ids=["user and password", "token"],
)
async def test_auth_callout_accepts_login_of_bridge(settings: dict[str, str], login: dict[str, str]) -> None:
    callout = Callout(login)
    with NatsServer(config=callout.config) as server:
        async with (
            callout.answering(server),
            worker(server, **settings) as bridge,
            worker(server, **settings) as other,
            other.events() as browser,
        ):
            command = {"session": browser.session, "subjects": ["orders.>"]}
            assert await bridge.post("/subscribe", command) == (200, subscribed("orders.>"))
            command["subjects"] = ["payments.>"]
            assert (await bridge.post("/subscribe", command))[1]["code"] == "nats.refused"
            assert len(callout.requests) >= 2
            accounts = {connection["account"] for connection in server.monitor("/connz?auth=1")["connections"]}
            assert accounts == {"AUTH", "SHOP"}


async def test_bridge_retries_until_auth_callout_accepts_its_login(caplog: pytest.LogCaptureFixture) -> None:
    login: dict[str, str] = {"user": "someone"}
    callout = Callout(login)
    with NatsServer(config=callout.config) as server:
        async with callout.answering(server), worker(server, connected=False, **BRIDGE_LOGIN) as bridge:
            await until(lambda: "Cannot connect to NATS" in caplog.text)
            assert callout.requests
            assert bridge.extension.client is None
            login["user"] = "bridge"
            await until(lambda: bridge.extension.client is not None)


# JetStream


async def test_republished_message_carries_its_stream_sequence() -> None:
    with NatsServer(jetstream=True) as server:
        async with (
            running(
                servers=server.url, subscribe=["orders.>"], expose_headers=["Nats-Sequence", "Nats-Last-Sequence"]
            ) as bridge,
            client_of(server) as client,
            bridge.websocket() as browser,
        ):
            stream = client.jetstream()
            republish = RePublish(src="store.orders.>", dest="orders.>")
            await stream.add_stream(StreamConfig("ORDERS", subjects=["store.orders.>"], republish=republish))
            await browser.follow("orders.>")
            for rest in ("a", "b", "a"):
                await stream.publish(f"store.orders.{rest}", b"1")
            frames = await browser.frames(3)
            assert [(frame["subject"], frame["headers"]) for frame in frames] == [
                ("orders.a", {"Nats-Sequence": ["1"], "Nats-Last-Sequence": ["0"]}),
                ("orders.b", {"Nats-Sequence": ["2"], "Nats-Last-Sequence": ["0"]}),
                ("orders.a", {"Nats-Sequence": ["3"], "Nats-Last-Sequence": ["1"]}),
            ]
