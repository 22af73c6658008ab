"""Each limit for a client: a client above it gets a clear answer, and other clients are served meanwhile."""

import asyncio
import contextlib
import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from sanic import Request

from sanic_nats_bridge import Permissions
from sanic_nats_bridge.testing import NatsServer
from sanic_nats_bridge.transports.assembler import MessageAssembler
from tests.support.bridge import SERVERS, Bridge, Publisher, ServerName, WebSocketClient, running, until
from tests.support.clock import held, turns
from tests.support.raw import UPGRADE, client_frame, raw_connection, sessions


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> ServerName:
    name: ServerName = request.param
    return name


class Bystander:
    """A client that follows a busy subject and must not miss a message."""

    def __init__(self, bridge: Bridge, client: WebSocketClient, publisher: Publisher) -> None:
        self._bridge = bridge
        self._client = client
        self._publisher = publisher
        self._subject = publisher.subject("bystander")
        self._sent = self._read = 0
        self._ended = False

    @classmethod
    @contextlib.asynccontextmanager
    async def of(cls, bridge: Bridge, publisher: Publisher) -> AsyncIterator["Bystander"]:
        async with bridge.websocket() as client:
            bystander = cls(bridge, client, publisher)
            await client.follow(bystander._subject)
            feed = asyncio.create_task(bystander._feed())
            try:
                yield bystander
            finally:
                # Not cancelled: before Python 3.12 a `flush` that ends at that moment drops the cancellation.
                # https://github.com/python/cpython/issues/86296
                bystander._ended = True
                await feed

    async def _feed(self) -> None:
        while not self._ended:
            await self._publisher.send(self._subject, b"%d" % self._sent)
            self._sent += 1
            await asyncio.sleep(0.01)

    async def is_served(self) -> None:
        """Check that all messages have come in order, that more come, and that a new client is served."""
        # At least one more, because the last one that was read may still count as being sent.
        expected = list(range(self._read, max(self._read, self._sent) + 1))
        assert await self._client.data(len(expected)) == expected
        self._read = expected[-1] + 1
        async with self._bridge.websocket() as other:
            assert (await other.ask({"action": "ping"}))["message"] == "pong"


@contextlib.asynccontextmanager
async def limited(
    shared_nats: NatsServer, publisher: Publisher, server: ServerName = "sanic", **settings: Any
) -> AsyncIterator[tuple[Bridge, Bystander]]:
    defaults: dict[str, Any] = {} if "permissions" in settings else {"subscribe": [">"]}
    async with (
        running(servers=shared_nats.url, server=server, **({"unsubscribe_delay": 0.1} | defaults | settings)) as bridge,
        Bystander.of(bridge, publisher) as bystander,
    ):
        await bystander.is_served()
        yield bridge, bystander
        await bystander.is_served()


async def frames_to_the_end(client: WebSocketClient) -> list[dict[str, Any]]:
    """Return all frames up to the `close`, and check that the WebSocket ends with its code."""
    frames = [await client.frame()]
    while frames[-1]["type"] != "close":
        frames.append(await client.frame())
    await client.connection.wait_closed()
    assert client.connection.close_code == frames[-1]["code"]
    return frames


async def test_commands_over_rate_are_rejected_then_session_is_closed(
    shared_nats: NatsServer, publisher: Publisher, server: ServerName
) -> None:
    async with (
        limited(shared_nats, publisher, server, command_rate=0.01, command_burst=10) as (bridge, _),
        bridge.websocket() as client,
    ):
        for number in range(21):
            await client.send({"action": "ping", "id": number})
        *replies, close = await frames_to_the_end(client)
        assert [reply["success"] for reply in replies[:20]] == [True] * 10 + [False] * 10
        assert {reply["code"] for reply in replies[10:]} == {"limit.rate"}
        assert [reply["id"] for reply in replies] == list(range(20))
        assert (close["code"], close["reconnect"]) == (4429, True)
        assert close["retry"] > 0


async def test_pings_over_rate_close_session(shared_nats: NatsServer, publisher: Publisher) -> None:
    async with (
        limited(shared_nats, publisher, command_rate=0.01, command_burst=10) as (bridge, _),
        bridge.websocket() as client,
    ):
        pongs = [await client.connection.ping() for _ in range(21)]
        await asyncio.gather(*pongs[:20])
        (close,) = await frames_to_the_end(client)
        assert close["code"] == 4429


@pytest.mark.parametrize("kind", ["pongs", "empty fragments", "small fragments"])
async def test_non_command_frames_over_rate_close_session(
    shared_nats: NatsServer, publisher: Publisher, kind: str
) -> None:
    async with (
        limited(shared_nats, publisher, command_rate=0.01, command_burst=10) as (bridge, _),
        bridge.websocket() as client,
    ):
        if kind == "pongs":
            for _ in range(21):
                await client.connection.pong()
        else:
            await client.connection.send(["" if kind == "empty fragments" else "x"] * 22)
        (close,) = await frames_to_the_end(client)
        assert close["code"] == 4429


async def authenticate_no_client(_: Request) -> None:
    """Return None, so that no client is authenticated."""


CLOSING_ROUTES: dict[str, dict[str, Any]] = {
    "too many commands": {"subscribe": [">"], "command_rate": 0.01, "command_burst": 1},
    "not authenticated": {"permissions": authenticate_no_client},
}


@pytest.mark.parametrize("settings", CLOSING_ROUTES.values(), ids=CLOSING_ROUTES)
async def test_reading_stops_if_client_keeps_sending_after_close(
    monkeypatch: pytest.MonkeyPatch, shared_nats: NatsServer, settings: dict[str, Any]
) -> None:
    shut: list[MessageAssembler] = []
    shut_down = MessageAssembler.stop

    def stop_and_report(assembler: MessageAssembler) -> None:
        shut_down(assembler)
        shut.append(assembler)

    monkeypatch.setattr(MessageAssembler, "stop", stop_and_report)
    handshake = f"GET /nats/stream HTTP/1.1\r\n{UPGRADE}\r\n"
    async with (
        running(servers=shared_nats.url, **settings) as bridge,
        raw_connection(bridge.port, handshake) as (reader, writer),
    ):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(client_frame(b"", 9) * 5)
        await reader.readuntil(b'"type":"close"')
        assert not shut
        writer.write(client_frame(b"", 9) * 200)
        await until(lambda: shut)


async def test_commands_are_executed_again_after_pause(
    shared_nats: NatsServer, publisher: Publisher, server: ServerName
) -> None:
    async with (
        limited(shared_nats, publisher, server, command_rate=20, command_burst=3) as (bridge, _),
        bridge.websocket() as client,
        held() as clock,
    ):
        assert [(await client.ask({"action": "ping"}))["success"] for _ in range(4)] == [True] * 3 + [False]
        await clock.forward(0.5)  # ten times what a token takes
        assert (await client.ask({"action": "ping"}))["success"]


async def test_post_over_rate_is_answered_with_429_and_retry_after(
    shared_nats: NatsServer, publisher: Publisher, server: ServerName
) -> None:
    async with (
        limited(shared_nats, publisher, server, command_rate=0.1, command_burst=2) as (bridge, _),
        bridge.events() as client,
        held(),
    ):
        body = {"session": client.session, "subjects": ["a"]}
        codes = []
        for _ in range(5):
            async with bridge.http.post(f"{bridge.url}/subscribe", json=body) as response:
                codes.append((response.status, (await response.json()).get("code")))
                if response.status == 429:
                    assert 10 <= int(response.headers["Retry-After"]) <= 40
        assert codes == [(200, None)] * 2 + [(429, "limit.rate")] * 3
        assert (await client.frame())["code"] == 4429
        assert (await bridge.post("/subscribe", body))[0] == 404


MOST_PATTERNS = [f"most.{number}" for number in range(128)]
"""As many as one session may have by default."""


async def test_client_subscribes_to_all_patterns_at_once_and_again_after_reconnect(
    shared_nats: NatsServer, publisher: Publisher, server: ServerName
) -> None:
    async with limited(shared_nats, publisher, server, command_rate=0.01) as (bridge, _):
        for _ in range(3):
            async with bridge.websocket() as client:
                await client.follow(*MOST_PATTERNS[:64])
                await client.follow(*MOST_PATTERNS[64:])
            async with bridge.events(*MOST_PATTERNS) as events:
                assert events.reply["success"]
            async with bridge.events() as events:
                body = {"session": events.session, "subjects": MOST_PATTERNS}
                assert (await bridge.post("/subscribe", body))[0] == 200


async def test_command_counts_once_for_each_16_new_patterns(
    shared_nats: NatsServer, publisher: Publisher, server: ServerName
) -> None:
    async with (
        limited(shared_nats, publisher, server, command_rate=0.01, command_burst=10) as (bridge, _),
        bridge.websocket() as client,
    ):
        await client.follow(*MOST_PATTERNS)
        await client.follow(*MOST_PATTERNS)
        await client.send({"action": "unsubscribe", "subjects": MOST_PATTERNS})
        assert (await client.frame())["success"]
        refused = await client.ask({"subjects": MOST_PATTERNS[:1]})
        assert (refused["code"], refused["success"]) == ("limit.rate", False)
    async with (
        limited(shared_nats, publisher, server, command_rate=0.01, command_burst=10) as (bridge, _),
        bridge.events(*MOST_PATTERNS[:64]) as events,
    ):
        body = {"session": events.session, "subjects": MOST_PATTERNS}
        assert (await bridge.post("/subscribe", body))[0] == 200
        for _ in range(2):
            assert (await bridge.post("/subscribe", body))[0] == 200
        status, refused = await bridge.post("/subscribe", body)
        assert (status, refused["code"]) == (429, "limit.rate")


BAD = {
    "invalid JSON": "{",
    "not an object": "[]",
    "unknown action": '{"action": "x"}',
    "reserved": '{"action": "publish"}',
    "invalid subject": '{"subjects": ["a..b"]}',
    "binary": b"x",
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
async def test_too_many_bad_commands_close_session(
    shared_nats: NatsServer, publisher: Publisher, server: ServerName, bad: str | bytes
) -> None:
    async with (
        limited(shared_nats, publisher, server, max_bad_commands=3) as (bridge, _),
        bridge.websocket() as client,
    ):
        for _ in range(4):
            await client.send(bad)
        *replies, close = await frames_to_the_end(client)
        assert len(replies) == 3
        assert not any(reply["success"] for reply in replies)
        assert (close["code"], close["reconnect"]) == (4429, True)


async def test_too_many_bad_post_commands_close_session(shared_nats: NatsServer, publisher: Publisher) -> None:
    async with limited(shared_nats, publisher, max_bad_commands=2) as (bridge, _), bridge.events() as client:
        body = {"session": client.session, "subjects": ["a..b"]}
        statuses = [(await bridge.post("/subscribe", body))[0] for _ in range(4)]
        assert statuses == [400, 400, 400, 404]
        assert (await client.frame())["code"] == 4429


async def test_forbidden_and_unknown_subjects_are_not_bad_commands(
    shared_nats: NatsServer, publisher: Publisher
) -> None:
    async with limited(shared_nats, publisher, max_bad_commands=2) as (bridge, _), bridge.websocket() as client:
        for _ in range(6):
            assert (await client.ask({"subjects": ["$SYS.>"]}))["code"] == "subject.forbidden"
            unknown = await client.ask({"action": "unsubscribe", "subjects": ["x"]})
            assert unknown["code"] == "subject.not_subscribed"


async def test_worker_rejects_subscriptions_over_max_patterns(
    shared_nats: NatsServer, publisher: Publisher, server: ServerName
) -> None:
    async with (
        limited(shared_nats, publisher, server, max_patterns=3) as (bridge, _),
        bridge.websocket() as client,
        bridge.websocket() as other,
    ):
        await client.follow("a", "b")
        refused = await other.ask({"subjects": ["c"]})
        assert (refused["code"], refused["success"]) == ("limit.subscriptions", False)
        await other.follow("a", "b")
        for client_ in (client, other):
            await client_.ask({"action": "unsubscribe", "subjects": ["b"]})
        await other.follow("c")


async def test_sessions_over_max_sessions_per_identity_are_rejected(
    shared_nats: NatsServer, publisher: Publisher, server: ServerName
) -> None:
    async def permissions(request: Request) -> Permissions:
        return Permissions([">"], identity=request.cookies.get("user"))

    cookie = {"Cookie": "user=ada"}
    async with limited(shared_nats, publisher, server, permissions=permissions, max_sessions_per_identity=2) as (
        bridge,
        _,
    ):
        async with bridge.websocket(additional_headers=cookie), bridge.events(**cookie):
            async with bridge.unwelcome_websocket(additional_headers=cookie) as third:
                (close,) = await frames_to_the_end(third)
                assert (close["code"], close["reconnect"]) == (1013, True)
            async with bridge.http.get(f"{bridge.url}/events", headers=cookie) as response:
                assert response.status == 200
                body = await response.read()
                assert b"event: close" in body
                assert b"retry: " in body
            async with bridge.websocket(additional_headers={"Cookie": "user=bob"}), bridge.websocket():
                assert len(sessions(bridge)) == 5
        await until(lambda: len(sessions(bridge)) == 1)
        async with bridge.websocket(additional_headers=cookie):
            pass


async def test_sub_and_unsub_rate_stays_within_max_subscribe_rate(nats_server: NatsServer, server: ServerName) -> None:
    rate = 50
    async with (
        Publisher.connected(nats_server) as publisher,
        limited(nats_server, publisher, server, unsubscribe_delay=0, max_subscribe_rate=rate, command_rate=10_000) as (
            bridge,
            bystander,
        ),
        contextlib.AsyncExitStack() as stack,
    ):
        *flippers, other = [await stack.enter_async_context(bridge.websocket(ping_interval=None)) for _ in range(4)]
        client: Any = bridge.extension.client

        async def flip(number: int, client: WebSocketClient) -> None:
            for turn in range(3):
                patterns = [f"flip.{number}.{turn}.{index}" for index in range(50)]
                await client.ask({"action": "subscribe", "subjects": patterns})
                await client.ask({"action": "unsubscribe", "subjects": patterns})

        async def ask_for_little() -> None:
            for number in range(3):
                assert (await other.ask({"subjects": [f"other.{number}"]}))["active"]

        async with held() as clock:
            heard, began = _subs_and_unsubs(bridge), clock.now
            asking = [asyncio.create_task(flip(number, flipper)) for number, flipper in enumerate(flippers)]
            await until(lambda: heard)
            asking.append(asyncio.create_task(ask_for_little()))
            while not all(task.done() for task in asking):
                # No time passes while NATS has still to answer, nor while a command is on its way.
                await until(lambda: not client._pongs)
                await turns(20)
                await clock.forward(1 / rate)
                assert len(heard) <= rate * (clock.now - began) + rate * 0.1 + 2
            await asyncio.gather(*asking)
        # Its turn comes, however many wait.
        assert heard.index("other.2") < len(heard) / 10
        await bystander.is_served()
        await until(
            lambda: (
                set(nats_server.subscriptions()) == {publisher.subject("bystander"), "other.0", "other.1", "other.2"}
            )
        )


def _subs_and_unsubs(bridge: Bridge) -> list[str]:
    """Record the SUBs and UNSUBs that the bridge sends to NATS from now on."""
    heard: list[str] = []
    link: Any = bridge.runtime.connection
    subscribe, unsubscribe = link.subscribe, link.unsubscribe

    def record_subscribe(pattern: str, sink: Any, group: int = 0) -> Any:
        heard.append(pattern)
        return subscribe(pattern, sink, group)

    def record_unsubscribe(sid: int) -> None:
        heard.append(f"-{sid}")
        unsubscribe(sid)

    link.subscribe, link.unsubscribe = record_subscribe, record_unsubscribe
    return heard


async def test_compression_is_neither_negotiated_nor_accepted(shared_nats: NatsServer, publisher: Publisher) -> None:
    async with limited(shared_nats, publisher) as (bridge, _):
        async with bridge.http.ws_connect(f"{bridge.url}/stream", compress=15) as websocket:
            assert websocket.compress == 0
            assert (await websocket.receive_json())["type"] == "welcome"
        async with bridge.events() as client:
            body = gzip.compress(json.dumps({"session": client.session, "subjects": ["a"]}).encode())
            status, reply = await bridge.post("/subscribe", body, **{"Content-Encoding": "gzip"})
            assert (status, reply["code"]) == (415, "command.invalid")
            assert client.response.headers.get("Content-Encoding") is None


async def test_chunked_body_over_size_limit_is_not_read_to_end(shared_nats: NatsServer, publisher: Publisher) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 100_000_000:
            sent += 1000
            yield b"x" * 1000

    async with limited(shared_nats, publisher, max_command_bytes=2_000) as (bridge, _):
        headers = {"Content-Type": "application/json"}
        with contextlib.suppress(aiohttp.ClientError):
            async with bridge.http.post(f"{bridge.url}/subscribe", data=endless(), headers=headers) as response:
                assert (response.status, (await response.json())["code"]) == (413, "limit.size")
        assert sent < 50_000_000


async def test_session_rejects_subscriptions_over_max_subscriptions(
    shared_nats: NatsServer, publisher: Publisher, server: ServerName
) -> None:
    async with (
        limited(shared_nats, publisher, server, max_subscriptions=3) as (bridge, _),
        bridge.websocket() as client,
    ):
        await client.follow("a", "b")
        refused = await client.ask({"subjects": ["c", "d"]})
        assert (refused["code"], refused["subjects"]) == ("limit.subscriptions", ["c", "d"])
        await client.follow("a", "c")


async def test_worker_rejects_sessions_over_max_sessions(
    shared_nats: NatsServer, publisher: Publisher, server: ServerName
) -> None:
    # One for the bystander, one for whom it finds to be let in.
    async with limited(shared_nats, publisher, server, max_sessions=2) as (bridge, bystander):
        async with bridge.websocket():
            for _ in range(20):
                async with bridge.unwelcome_websocket() as other:
                    (close,) = await frames_to_the_end(other)
                    assert (close["code"], close["reconnect"]) == (1013, True)
            assert len(sessions(bridge)) == 2
        await until(lambda: len(sessions(bridge)) == 1)
        await bystander.is_served()


async def test_oversized_frame_closes_only_its_session(
    shared_nats: NatsServer, publisher: Publisher, server: ServerName
) -> None:
    async with (
        limited(shared_nats, publisher, server, max_command_bytes=1_000) as (bridge, _),
        bridge.websocket() as client,
    ):
        await client.send({"action": "ping", "id": "x" * 900})
        await client.send({"action": "ping", "id": "x" * 1_000})
        reply, close = await frames_to_the_end(client)
        assert reply["success"]
        assert (close["code"], close["reconnect"]) == (1009, False)
