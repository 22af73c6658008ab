"""The limits on requests that aren't sessions yet, and on the share of one client, with real sockets."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sanic import Request, Sanic
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from sanic_nats_bridge import Permissions
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import SERVERS, Bridge, ServerName, WebSocketClient, running, sanic_only, until
from tests.support.raw import sessions

SLOW: dict[str, Any] = {"request_rate": 0.001, "request_burst": 5}
"""A limit that doesn't depend on the speed of the test."""
COMMAND = {"session": "x", "subjects": ["a"]}


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> ServerName:
    name: ServerName = request.param
    return name


def behind_proxy(app: Sanic[Any, Any]) -> None:
    app.config.PROXIES_COUNT = 1


class App:
    def __init__(self) -> None:
        self.asked = 0

    async def permissions(self, request: Request) -> Permissions | None:
        self.asked += 1
        user = request.headers.get("user")
        return None if user is None else Permissions([">"], identity=user)


@contextlib.asynccontextmanager
async def limited(shared_nats: NatsServer, server: ServerName, **settings: Any) -> AsyncIterator[Bridge]:
    async with running(servers=shared_nats.url, server=server, prepare=behind_proxy, **SLOW | settings) as bridge:
        yield bridge


async def status(bridge: Bridge, method: str, path: str, **headers: str) -> int:
    body = COMMAND if method == "POST" else None
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with bridge.http.request(method, bridge.url + path, json=body, headers=named) as response:
        if response.status == 429:
            assert 0 < int(response.headers["Retry-After"]) <= 1_000
            assert response.headers["Sanic-Nats-Bridge"] == "1"
            if method != "HEAD":
                assert (await response.json())["code"] == "limit.rate"
        return response.status


async def handshake(bridge: Bridge, server: ServerName, **headers: str) -> int:
    """Return 101, or 429 if the handshake was refused in the way that the server allows."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    address = bridge.url.replace("http", "ws") + "/stream"
    try:
        async with connect(address, additional_headers=named, compression=None) as connection:
            frame = await WebSocketClient(connection).frame()
            if frame["type"] == "welcome":
                return 101
            assert server != "sanic"
            assert (frame["code"], frame["reconnect"]) == (1013, True)
            assert frame["retry"] >= 1_000_000
            return 429
    except InvalidStatus as refused:
        response = refused.response
    assert server == "sanic"
    assert int(response.headers["Retry-After"]) > 0
    assert b"limit.rate" in response.body
    return response.status_code


KINDS = {
    "HEAD": ("HEAD", "/events", 200),
    "GET": ("GET", "/events?subjects=..", 400),
    "subscribe": ("POST", "/subscribe", 404),
    "unsubscribe": ("POST", "/unsubscribe", 404),
}


@pytest.mark.parametrize("kind", KINDS)
async def test_requests_over_rate_are_refused_before_app_is_asked(
    shared_nats: NatsServer, server: ServerName, kind: str
) -> None:
    app = App()
    method, path, usual = KINDS[kind]
    usual = usual if kind == "GET" else 401
    async with limited(shared_nats, server, permissions=app.permissions) as bridge:
        assert [await status(bridge, method, path) for _ in range(8)] == [usual] * 5 + [429] * 3
        assert app.asked == (0 if kind == "GET" else 5)
        assert bridge.extension.stats().refused["limit.rate"] == 3
        # All kinds have one budget, which is that of this address only.
        for other_method, other_path, _ in KINDS.values():
            assert await status(bridge, other_method, other_path) == 429
        assert await status(bridge, method, path, X_Forwarded_For="192.0.2.1") == usual


async def test_handshakes_over_rate_are_refused(shared_nats: NatsServer, server: ServerName) -> None:
    async with limited(shared_nats, server, subscribe=["a"]) as bridge:
        assert [await handshake(bridge, server) for _ in range(8)] == [101] * 5 + [429] * 3
        assert bridge.extension.stats().refused["limit.rate"] == 3
        assert await handshake(bridge, server, X_Forwarded_For="192.0.2.1") == 101
        assert await status(bridge, "HEAD", "/events") == 429


async def test_event_source_over_rate_gets_close_frame(shared_nats: NatsServer, server: ServerName) -> None:
    async with limited(shared_nats, server, subscribe=["a"]) as bridge:
        assert [await status(bridge, "HEAD", "/events") for _ in range(6)] == [200] * 5 + [429]
        async with bridge.http.get(f"{bridge.url}/events", headers={"Accept": "text/event-stream"}) as response:
            text = await response.text()
        assert response.status == 200
        assert '"code":1013' in text
        assert '"reconnect":true' in text
        # Not before the next request is allowed.
        found = re.search(r"^retry: (\d+)$", text, re.MULTILINE)
        assert found is not None
        assert int(found[1]) >= 900_000
        assert bridge.extension.stats().refused["limit.rate"] == 2


async def test_addresses_of_one_ipv6_network_have_one_limit(shared_nats: NatsServer, server: ServerName) -> None:
    async with limited(shared_nats, server, subscribe=["a"]) as bridge:
        got = [
            await status(bridge, "HEAD", "/events", X_Forwarded_For=f"2001:db8:0:1::{number:x}") for number in range(7)
        ]
        assert got == [200] * 5 + [429] * 2
        assert await status(bridge, "HEAD", "/events", X_Forwarded_For="2001:db8:0:2::1") == 200


@sanic_only  # uvicorn itself trusts a proxy on the same machine
async def test_forwarded_address_does_not_count_if_proxy_is_not_trusted(
    shared_nats: NatsServer, server: ServerName
) -> None:
    async with running(servers=shared_nats.url, server=server, subscribe=["a"], **SLOW) as bridge:
        got = [await status(bridge, "HEAD", "/events", X_Forwarded_For=f"192.0.2.{number}") for number in range(7)]
        assert got == [200] * 5 + [429] * 2


async def test_users_behind_one_address_have_limits_of_their_own(shared_nats: NatsServer, server: ServerName) -> None:
    app = App()
    async with limited(shared_nats, server, permissions=app.permissions) as bridge:
        for user in ("ada", "bob", "eve"):
            assert [await status(bridge, "HEAD", "/events", User=user) for _ in range(5)] == [200] * 5
        # Over the limit of a user, its requests count for the address too, so the app isn't asked endlessly.
        asked = app.asked
        assert [await status(bridge, "HEAD", "/events", User="ada") for _ in range(10)] == [429] * 10
        assert app.asked == asked + 5
        assert await status(bridge, "HEAD", "/events", User="new", X_Forwarded_For="192.0.2.1") == 200
        assert await status(bridge, "HEAD", "/events", User="ada", X_Forwarded_For="192.0.2.1") == 429


async def test_open_sessions_and_their_commands_are_not_affected(shared_nats: NatsServer, server: ServerName) -> None:
    async with limited(shared_nats, server, subscribe=["a", "b"]) as bridge, bridge.websocket() as client:
        for _ in range(8):
            await status(bridge, "HEAD", "/events")
        await client.follow("a")
        assert (await client.ask({"action": "ping"}))["success"]
        assert len(sessions(bridge)) == 1


async def test_other_routes_are_not_limited(shared_nats: NatsServer, server: ServerName) -> None:
    async with limited(shared_nats, server, subscribe=["a"], metrics=True) as bridge:
        for path in ("/health/live", "/health/ready", "/metrics", "/client.js"):
            assert [await status(bridge, "GET", path) for _ in range(7)] == [200] * 7, path


async def test_zero_turns_limit_off(shared_nats: NatsServer, server: ServerName) -> None:
    async with limited(shared_nats, server, subscribe=["a"], request_rate=0, request_burst=1) as bridge:
        assert [await status(bridge, "HEAD", "/events") for _ in range(20)] == [200] * 20
        assert [await handshake(bridge, server) for _ in range(5)] == [101] * 5


# The share of one client


async def test_one_address_cannot_take_all_patterns(shared_nats: NatsServer, server: ServerName) -> None:
    settings = {"subscribe": [">"], "request_rate": 0, "max_patterns": 10, "max_patterns_per_client": 4}
    async with (
        limited(shared_nats, server, **settings) as bridge,
        bridge.websocket() as first,
        bridge.websocket() as second,
        bridge.websocket(additional_headers={"X-Forwarded-For": "192.0.2.1"}) as other,
    ):
        await first.follow("a", "b")
        # The same patterns don't count again.
        await second.follow("a", "b", "c", "d")
        refused = await first.ask({"subjects": ["c", "e"]})
        assert (refused["code"], refused["subjects"]) == ("limit.subscriptions", ["c", "e"])
        assert "max_patterns_per_client" in refused["message"]
        await other.follow("e", "f", "g")
        await second.ask({"action": "unsubscribe", "subjects": ["c", "a"]})
        await first.follow("h")
        assert (await first.ask({"subjects": ["i"]}))["code"] == "limit.subscriptions"


async def test_one_address_cannot_take_all_sessions(shared_nats: NatsServer, server: ServerName) -> None:
    settings = {"subscribe": [">"], "request_rate": 0, "max_sessions_per_address": 2}
    async with (
        limited(shared_nats, server, **settings) as bridge,
        bridge.websocket() as first,
        bridge.events("a"),
        bridge.websocket(additional_headers={"X-Forwarded-For": "192.0.2.1"}) as other,
    ):
        async with bridge.unwelcome_websocket() as refused:
            close = await refused.frame()
        assert (close["type"], close["code"], close["reconnect"]) == ("close", 1013, True)
        assert close["reason"] == "Too many connections from this address; try again later"
        assert (await other.ask({"action": "ping"}))["success"]
        await first.connection.close()
        await until(lambda: len(sessions(bridge)) == 2)
        async with bridge.websocket() as second:
            assert (await second.ask({"action": "ping"}))["success"]
    assert sessions(bridge)._by_address == {}


async def test_identities_do_not_count_for_their_address(shared_nats: NatsServer, server: ServerName) -> None:
    app = App()
    settings = {"permissions": app.permissions, "request_rate": 0, "max_sessions_per_address": 1}
    async with (
        limited(shared_nats, server, **settings) as bridge,
        bridge.websocket(additional_headers={"User": "ada"}) as ada,
        bridge.websocket(additional_headers={"User": "bob"}) as bob,
    ):
        for client in (ada, bob):
            assert (await client.ask({"action": "ping"}))["success"]


async def test_patterns_of_ended_session_are_free_again(shared_nats: NatsServer, server: ServerName) -> None:
    settings = {"subscribe": [">"], "request_rate": 0, "max_patterns_per_client": 2}
    async with limited(shared_nats, server, **settings) as bridge, bridge.websocket() as client:
        async with bridge.events("a", "b"):
            assert (await client.ask({"subjects": ["c"]}))["code"] == "limit.subscriptions"
        await until(lambda: len(sessions(bridge)) == 1)
        await client.follow("c", "d")


async def test_identity_has_one_share_at_all_addresses(shared_nats: NatsServer, server: ServerName) -> None:
    app = App()
    settings = {"permissions": app.permissions, "request_rate": 0, "max_patterns_per_client": 2}
    async with (
        limited(shared_nats, server, **settings) as bridge,
        bridge.websocket(additional_headers={"User": "ada"}) as ada,
        bridge.websocket(additional_headers={"User": "ada", "X-Forwarded-For": "192.0.2.1"}) as same,
        bridge.websocket(additional_headers={"User": "bob"}) as bob,
    ):
        await ada.follow("a", "b")
        assert (await same.ask({"subjects": ["c"]}))["code"] == "limit.subscriptions"
        await bob.follow("c", "d")


async def test_share_is_freed_however_subscriptions_end(shared_nats: NatsServer, server: ServerName) -> None:
    app = App()
    settings = {"permissions": app.permissions, "request_rate": 0}
    async with limited(shared_nats, server, **settings) as bridge:
        shares = sessions(bridge)._context.shares
        async with (
            bridge.websocket(additional_headers={"User": "ada"}) as ada,
            bridge.websocket(additional_headers={"User": "ada"}) as second,
        ):
            await asyncio.gather(*(client.follow("a", "b", "c") for client in (ada, second)))
            assert shares.count("identity ada") == 3
            await bridge.extension.update_permissions(Permissions(["a", "b"]), identity="ada")
            assert shares.count("identity ada") == 2
            assert (await ada.frame())["subjects"] == ["c"]
            assert (await ada.ask({"subjects": ["forbidden"]}))["code"] == "subject.forbidden"
            await ada.ask({"action": "unsubscribe", "subjects": ["a", "b"]})
            assert shares.count("identity ada") == 2
            await bridge.extension.revoke(identity="ada")
            assert len(shares) == 0
