"""Servers that speak the NATS protocol, but lie: no input costs more than its length, and none stops the event loop."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from sanic_nats_bridge.nats.parser import MAX_MESSAGE_BYTES
from sanic_nats_bridge.nats.server_pool import MAX_DISCOVERED
from tests.integration.test_nats_supervisor import Listener, SupervisorHarness, supervising
from tests.support.bridge import free_port, running, until
from tests.support.clock import held
from tests.support.nats import INFO, Peer

MAX_PAYLOAD = 1_048_576
CAME_BACK = ["up", "down", "up"]
MEBIBYTE = 1024 * 1024


def message(subject: str, sid: int, payload: bytes, headers: bytes = b"") -> bytes:
    body = headers + payload
    sizes = b"%d %d" % (len(headers), len(body)) if headers else b"%d" % len(body)
    return b"%b %b %d %b\r\n%b\r\n" % (b"HMSG" if headers else b"MSG", subject.encode(), sid, sizes, body)


@contextlib.asynccontextmanager
async def subscribed(**settings: Any) -> AsyncIterator[tuple[Peer, SupervisorHarness, int]]:
    """Yield a peer, a bridge that is connected to it, and the number of its subscription to "a"."""
    async with Peer().listening() as peer, supervising(servers=peer.url, **settings) as bridge:
        yield peer, bridge, await resubscribe(bridge)


async def resubscribe(bridge: SupervisorHarness) -> int:
    bridge.listener.answers.pop("a", None)
    sid = bridge.supervisor.subscribe("a", "a")
    assert sid is not None
    await until(lambda: bridge.listener.answers.get("a") == "confirmed")
    return sid


async def check_alive(peer: Peer, bridge: SupervisorHarness, sid: int) -> None:
    """Make sure that everything sent so far was processed, and that the connection is still the first one."""
    peer.say(message("a", sid, b"after"))
    await until(lambda: b"after" in bridge.listener.payloads)
    assert bridge.listener.changes == ["up"]


# Lengths


@pytest.mark.parametrize(
    "line",
    [
        b"MSG a %d 1048577",
        b"MSG a %d r 2147483648",
        b"HMSG a %d 12 1114113",
        b"MSG b 4711 1048577",
        b"MSG a %d " + b"9" * 19,
    ],
    ids=ascii,
)
async def test_message_beyond_max_payload_ends_connection_before_it_arrives(
    line: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with subscribed() as (peer, bridge, sid):
        peer.say((line % sid if b"%d" in line else line) + b"\r\n")
        await until(lambda: bridge.listener.changes == CAME_BACK)
        size = int(line.split()[-1])
        assert f": a message of {size} bytes, although max_payload is {MAX_PAYLOAD}" in caplog.text
        assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    "line",
    [
        b"MSG a 1 -1",
        b"MSG a 1 +1",
        b"MSG a 1 0x10",
        b"MSG a 1 1e3",
        b"MSG a 1 " + b"1" * 500_000,
        b"HMSG a 1 100 99",
        b"HMSG a 1 -1 5",
        b"HMSG a 1 " + b"1" * 100_000 + b" 5",
    ],
    ids=lambda line: ascii(line[:20]),
)
async def test_invalid_length_ends_connection(line: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with subscribed() as (peer, bridge, _):
        peer.say(line + b"\r\n")
        await until(lambda: bridge.listener.changes == CAME_BACK)
        assert ": invalid message line" in caplog.text


async def test_message_of_max_payload_with_added_headers_is_delivered() -> None:
    headers = b"NATS/1.0\r\nNats-Stream: S\r\n\r\n"
    async with subscribed() as (peer, bridge, sid):
        peer.say(message("a", sid, b"x" * MAX_PAYLOAD) + message("a", sid, b"y" * MAX_PAYLOAD, headers))
        await until(lambda: len(bridge.listener.messages) == 2)
        assert bridge.listener.changes == ["up"]


async def test_message_that_another_server_allows_is_accepted_after_one_reconnect(
    caplog: pytest.LogCaptureFixture,
) -> None:
    large = b"x" * (3 * MEBIBYTE)
    async with subscribed() as (peer, bridge, sid):
        peer.say(message("a", sid, large)[:20])
        await until(lambda: bridge.listener.changes == CAME_BACK)
        sid = await resubscribe(bridge)
        peer.say(message("a", sid, large))
        await until(lambda: bridge.listener.payloads == [large])
        assert bridge.listener.changes == CAME_BACK
        assert "From now on up to 4194304 bytes are accepted" in caplog.text
        peer.say(b"MSG a %d %d\r\n" % (sid, 4 * MEBIBYTE + 1))
        await until(lambda: bridge.listener.changes == [*CAME_BACK, "down", "up"])
        for _ in range(3):
            changes = len(bridge.listener.changes)
            peer.say(b"MSG a %d %d\r\n" % (sid, MAX_MESSAGE_BYTES + 1))
            await until(lambda: len(bridge.listener.changes) == changes + 2)  # noqa: B023
        assert caplog.text.count("bytes are accepted") == 2


@pytest.mark.parametrize("max_payload", ["-1", "0", '"x"', "true", "null", "[]", "1e999", "9" * 30])
async def test_nonsense_in_max_payload_limits_messages_nevertheless(max_payload: str) -> None:
    info = b'INFO {"max_payload":%b}\r\n' % max_payload.encode()
    async with (
        Peer(greeting=info).listening() as peer,
        supervising(servers=peer.url) as bridge,
    ):
        sid = await resubscribe(bridge)
        await check_alive(peer, bridge, sid)
        peer.say(b"MSG a %d %d\r\n" % (sid, MAX_MESSAGE_BYTES + 1))
        await until(lambda: bridge.listener.changes == CAME_BACK)


async def test_limit_of_user_in_later_info_is_not_that_of_messages() -> None:
    async with subscribed() as (peer, bridge, sid):
        peer.say(b'INFO {"max_payload":10}\r\n' + message("a", sid, b"x" * 1000))
        await check_alive(peer, bridge, sid)
        peer.say(b'INFO {"max_payload":2000000}\r\n' + message("a", sid, b"x" * 2_000_000))
        await until(lambda: len(bridge.listener.messages) == 3)
        assert bridge.listener.changes == ["up"]


# Lines


@pytest.mark.parametrize("begin", [b"INFO {", b"MSG a ", b"-ERR '", b"PONG", b"\n", b"\r"], ids=ascii)
async def test_endless_line_ends_connection(begin: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with subscribed() as (peer, bridge, _):
        writer, sent = peer.writers[-1], 0
        writer.write(begin)
        with contextlib.suppress(ConnectionError):
            while not writer.is_closing() and sent < 100 * MEBIBYTE:
                writer.write(b"\n" * MEBIBYTE if begin == b"\n" else b"x" * MEBIBYTE)
                sent += MEBIBYTE
                await writer.drain()
        # The kernel takes some.
        assert sent < 50 * MEBIBYTE
        await until(lambda: bridge.listener.changes == CAME_BACK)
        assert ": line too long" in caplog.text


@pytest.mark.parametrize(
    "info",
    [b"{", b"[1]", b"1", b"null", b"\xff", b"[" * 200_000, b'{"a":' * 100_000, b"9" * 10_000],
    ids=lambda i: ascii(i[:9]),
)
async def test_info_that_is_not_an_object_ends_connection(info: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with subscribed() as (peer, bridge, _):
        peer.say(b"INFO " + info + b"\r\n")
        await until(lambda: bridge.listener.changes == CAME_BACK)
        assert ": invalid INFO line" in caplog.text


async def test_long_error_is_cut_in_log(caplog: pytest.LogCaptureFixture) -> None:
    async with subscribed() as (peer, bridge, sid):
        peer.say(b"-ERR 'Permissions Violation for Publish to \"\x1b[2J\n%b\"'\r\n" % (b"x" * 900_000))
        await check_alive(peer, bridge, sid)
        peer.say(b"-ERR 'something unknown\n%b'\r\n" % (b"y" * 900_000))
        await until(lambda: bridge.listener.changes == CAME_BACK)
    messages = [record.getMessage() for record in caplog.records]
    assert any("reported an error: 'Permissions Violation" in text for text in messages)
    assert any("something unknown" in text for text in messages)
    assert all(len(text) < 1000 and text.isprintable() for text in messages)


async def test_long_error_of_login_is_cut_in_log(caplog: pytest.LogCaptureFixture) -> None:
    lies = Peer(welcome=b"-ERR 'no\x1b[2J%b'\r\n" % (b"x" * 300_000))
    async with lies.listening() as peer, supervising(servers=peer.url, connected=False):
        await until(lambda: "Cannot connect to NATS" in caplog.text)
        # Each attempt for another reason.
        for number in range(30):
            peer.welcome = b"-ERR 'reason %d'\r\n" % number
            accepted = peer.accepted
            async with held() as clock:
                await clock.forward_until(lambda: peer.accepted > accepted, step=0.5)  # noqa: B023
    messages = [record.getMessage() for record in caplog.records]
    assert all(len(text) < 1000 and text.isprintable() for text in messages)
    assert 1 < sum("Cannot connect" in text for text in messages) <= 20


# Floods


class Turns:
    """A count of the turns of the event loop."""

    def __init__(self) -> None:
        self.count = 0

    @contextlib.asynccontextmanager
    async def counted(self) -> AsyncIterator[None]:
        counting = asyncio.create_task(self._count())
        try:
            yield
        finally:
            counting.cancel()
            await asyncio.wait({counting})

    async def _count(self) -> None:
        while True:
            self.count += 1
            await asyncio.sleep(0)


async def test_flood_of_confirmations_leaves_turns_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    turns, seen = Turns(), list[int]()
    async with subscribed() as (peer, bridge, _), turns.counted():
        monkeypatch.setattr(Listener, "confirmed", lambda *_: seen.append(turns.count))
        peer.answers = False
        for number in range(2_000):
            bridge.supervisor.subscribe(f"b.{number}", f"b.{number}")
        await until(lambda: len([line for line in peer.lines if line.startswith(b"SUB b")]) == 2_000)
        peer.say(b"PONG\r\n" * 2_000)
        await until(lambda: len(seen) == 2_000)
    assert len(set(seen)) >= 2_000 / 16


@pytest.mark.parametrize("named", [True, False], ids=["by number", "by pattern"])
async def test_flood_of_refusals_leaves_turns_to_others(monkeypatch: pytest.MonkeyPatch, named: bool) -> None:
    turns, seen = Turns(), list[int]()
    async with subscribed() as (peer, bridge, sid), turns.counted():
        sids = {bridge.supervisor.subscribe(f"b.{number}", f"b.{number}"): f"b.{number}" for number in range(2_000)}
        await until(lambda: len(bridge.listener.answers) == 2_001)
        monkeypatch.setattr(Listener, "refused", lambda *_: seen.append(turns.count))
        for each, pattern in sids.items():
            suffix = f' (sid "{each}")' if named else ""
            peer.say(f"-ERR 'Permissions Violation for Subscription to \"{pattern}\"{suffix}'\r\n".encode())
        await until(lambda: len(seen) == 2_000)
        await check_alive(peer, bridge, sid)
    assert len(set(seen)) >= 2_000 / 16


async def test_refusal_of_all_long_patterns_leaves_turns_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    turns, seen = Turns(), list[int]()
    async with subscribed() as (peer, bridge, _), turns.counted():
        monkeypatch.setattr(Listener, "refused", lambda *_: seen.append(turns.count))
        peer.answers = False
        for number in range(2_000):
            bridge.supervisor.subscribe(f"long.{number}", f"long.{number}")
        await until(lambda: len(peer.lines) >= 4_000)
        peer.say(b"-ERR 'Maximum Control Line Exceeded'\r\n")
        await until(lambda: bridge.listener.changes == ["up", "down"])
        peer.answers = True
        await until(lambda: bridge.listener.changes == CAME_BACK)
        seen.clear()
        for number in range(2_000):
            bridge.supervisor.subscribe(f"long.{number}", f"long.{number}")
        await until(lambda: len(seen) == 2_000)
    assert len(set(seen)) >= 2_000 / 16


FLOODS = {
    "PONG": b"PONG\r\n",
    "PING": b"PING\r\n",
    "+OK": b"+OK\r\n",
    "unknown subscription": b"MSG a 4711 5\r\nhello\r\n",
    "unknown subscription with headers": b"HMSG a 4711 12 17\r\nNATS/1.0\r\n\r\nhello\r\n",
    "refusal of an unknown pattern": b"-ERR 'Permissions Violation for Subscription to \"b\"'\r\n",
    "limit of subscriptions": b"-ERR 'maximum subscriptions exceeded'\r\n",
    "INFO": b'INFO {"max_payload":1048576,"connect_urls":["10.0.0.1:4222"]}\r\n',
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS.keys())
async def test_flood_neither_ends_connection_nor_fills_log(flood: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with subscribed() as (peer, bridge, sid):
        tasks = len(asyncio.all_tasks())
        peer.say(flood * 20_000)
        await check_alive(peer, bridge, sid)
        assert len(asyncio.all_tasks()) <= tasks
        assert len(caplog.records) < 20


async def test_flood_of_different_errors_is_logged_in_part(caplog: pytest.LogCaptureFixture) -> None:
    async with subscribed() as (peer, bridge, sid):
        for number in range(5_000):
            peer.say(b"-ERR 'Permissions Violation for Publish to \"x.%d\"'\r\n" % number)
        await check_alive(peer, bridge, sid)
        assert caplog.text.count("The NATS server reported an error") == 20
        # The limit holds across connections.
        peer.say(b"", then_close=True)
        await until(lambda: bridge.listener.changes == CAME_BACK)
        peer.say(b"-ERR 'Permissions Violation for Publish to \"y\"'\r\n")
        await resubscribe(bridge)
        assert caplog.text.count("The NATS server reported an error") == 20


async def test_flood_of_fatal_errors_ends_connection_once(caplog: pytest.LogCaptureFixture) -> None:
    async with subscribed() as (peer, bridge, _):
        peer.say(b"-ERR 'something unknown'\r\n" * 10_000)
        await until(lambda: bridge.listener.changes == CAME_BACK)
        assert caplog.text.count("Disconnected from NATS") == 1
        assert len(asyncio.all_tasks()) < 50


async def test_flood_of_changing_servers_leaves_a_bounded_pool() -> None:
    async with subscribed() as (peer, bridge, sid):
        client: Any = bridge.client
        for number in range(500):
            urls = [f"10.{number // 250}.{number % 250}.{each}:4222" for each in range(200)]
            peer.say(b"INFO " + json.dumps({"connect_urls": [*urls, 1, None, "a:port", ""]}).encode() + b"\r\n")
        await check_alive(peer, bridge, sid)
        assert len(client._server_pool) == 1
        assert len(client.servers) == 1 + MAX_DISCOVERED
        assert {server.hostname.rpartition(".")[0] for server in client.discovered_servers} == {"10.1.249"}
        peer.say(b'INFO {"connect_urls":[]}\r\nINFO {"connect_urls":"x"}\r\nINFO {}\r\n')
        await until(lambda: client.discovered_servers == [])


async def test_servers_in_lame_duck_mode_are_left_once_per_second() -> None:
    first, second = Peer(), Peer()
    async with first.listening(), second.listening():
        for peer, other in ((first, second), (second, first)):
            info = {"ldm": True, "connect_urls": [f"127.0.0.1:{other.port}"]}
            peer.welcome = b"PONG\r\n" + b"INFO %b\r\n" % json.dumps(info).encode() * 100
        async with supervising(servers=first.url), held() as clock:
            began, accepted = clock.now, first.accepted + second.accepted
            await clock.forward_until(lambda: first.accepted + second.accepted >= accepted + 10, step=0.25)
            assert clock.now - began >= 9


# WebSockets


@pytest.mark.filterwarnings("ignore:parameter 'timeout' of type:DeprecationWarning")  # nats-py's call of aiohttp
async def test_long_greeting_by_websocket_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    async def greet(request: web.Request) -> web.WebSocketResponse:
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        await websocket.send_bytes(INFO[:-3] + b" " * 2_000_000 + b"}\r\n")
        async for _ in websocket:
            pass
        return websocket

    app = web.Application()
    app.router.add_get("/", greet)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        port = free_port()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        async with supervising(servers=f"ws://127.0.0.1:{port}", connected=False):
            await until(lambda: ": line too long; retrying" in caplog.text)
    finally:
        await runner.cleanup()


# The whole bridge


async def test_other_client_is_answered_while_nats_refuses_many_patterns() -> None:
    async with (
        Peer().listening() as peer,
        running(
            connected=False, servers=peer.url, subscribe=[">"], max_subscribe_rate=1e6, command_burst=10_000
        ) as bridge,
        contextlib.AsyncExitStack() as stack,
    ):
        await until(lambda: bridge.runtime.sessions.hub.connected)
        clients = [await stack.enter_async_context(bridge.websocket()) for _ in range(16)]
        for number, client in enumerate(clients):
            await client.follow(*(f"orders.{number}.{each}" for each in range(128)))
        other = await stack.enter_async_context(bridge.websocket())
        subs = [line.split() for line in peer.lines if line.startswith(b"SUB orders")]
        assert len(subs) == 2_048
        ended = list[str]()
        answers_between = 0

        async def read(client: Any) -> None:
            for _ in range(128):
                frame = await client.frame()
                assert (frame["type"], frame["code"]) == ("unsubscribed", "nats.refused")
                ended.extend(frame["subjects"])

        reading = asyncio.gather(*map(read, clients))
        peer.say(
            b"".join(
                b'-ERR \'Permissions Violation for Subscription to "%b" (sid "%b")\'\r\n' % (pattern, sid)
                for _, pattern, sid in subs
            )
        )
        while not reading.done():
            assert (await other.ask({"action": "ping"}))["message"] == "pong"
            answers_between += 0 < len(ended) < 2_048
        await reading
        assert sorted(ended) == sorted(pattern.decode() for _, pattern, _ in subs)
        assert answers_between >= 5
        assert bridge.runtime.stats().patterns == 0
