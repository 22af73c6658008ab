"""Clients that do not keep up, on both transports and on both event loops."""

import asyncio
import contextlib
import functools
import inspect
import itertools
import json
import re
import resource
import select
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from functools import partial
from typing import Any, Final

import pytest
import uvloop

from sanic_nats_bridge import Session
from sanic_nats_bridge.errors import CloseCode, InternalError
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import WAIT_SECONDS, Bridge, Publisher, WebSocketClient, running, until
from tests.support.clock import held
from tests.support.process import app_process
from tests.support.raw import UPGRADE, client_frame, raw_connection, session_of, sessions

LIMIT: Final = 64 * 1024
KERNEL_BYTES: Final = 32 * 1024  # what the kernel may hold for a client, on either side
# Offsets of tcpi_unacked and tcpi_snd_wnd in linux/tcp.h, each of four bytes.
UNACKNOWLEDGED, WINDOW = 24, 228
SIZE: Final = 4096  # of a message

ROUTES: Final = ("websocket", "events")
LOOPS: Final[dict[str, Callable[[], asyncio.AbstractEventLoop]]] = {
    "asyncio": asyncio.SelectorEventLoop,
    "uvloop": uvloop.new_event_loop,
}


def on_both_loops(test: Callable[..., Coroutine[Any, Any, None]]) -> Any:
    """Run the app and its clients on the loop of asyncio, and on that of uvloop."""

    @functools.wraps(test)
    def run(*, loop: str, **arguments: Any) -> None:
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            runner.run(test(**arguments))

    signature = inspect.signature(test)
    parameters = [*signature.parameters.values(), inspect.Parameter("loop", inspect.Parameter.KEYWORD_ONLY)]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return pytest.mark.parametrize("loop", LOOPS)(run)


def on_both_transports(test: Any) -> Any:
    return pytest.mark.parametrize("route", ROUTES)(test)


class SlowClient:
    """A client that reads only on request, and sorts the frames that it has read."""

    def __init__(self, route: str, connection: socket.socket, bridge: Bridge) -> None:
        self.route = route
        self.connection = connection
        self.frames: list[dict[str, Any]] = []
        self.pings: list[bytes] = []
        self.answers_pings = True
        self.close_code: int | None = None
        self.ended = False
        self.received = 0
        self._bridge = bridge
        self._rest = b""
        self._sort = self._sort_head

    @property
    def session(self) -> Session:
        """The server's side."""
        return session_of(self._bridge, self.session_id)

    @property
    def session_id(self) -> str:
        return str(self.frames[0]["session"])

    @property
    def types(self) -> list[str]:
        return [frame["type"] for frame in self.frames]

    @property
    def numbers(self) -> list[int]:
        """Those of the messages."""
        return [frame["data"]["n"] for frame in self.frames if frame["type"] == "message"]

    def has_caught_up(self, last: int) -> bool:
        """Return whether the client has read the last message, or the gap that covers it, and nothing waits for it."""
        has_read = self.numbers[-1] == last or self.types[-1] == "gap"
        # Otherwise the gap may be one of several.
        return has_read and not self.session._transport.pending

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.connection, data)

    async def command(self, **command: Any) -> None:
        await self.send(client_frame(json.dumps(command).encode()))

    async def read(self, size: int = 2**16) -> None:
        """Read what is there, or comes, up to so many bytes."""
        data = b""
        with contextlib.suppress(ConnectionError):
            data = await asyncio.get_running_loop().sock_recv(self.connection, size)
        self.received += len(data)
        self.ended = not data
        self._rest += data
        while self._rest and self._sort():
            pass
        while self.pings and self.answers_pings:
            await self.send(client_frame(self.pings.pop(0), opcode=10))

    async def read_until(self, fact: Callable[[], object]) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while not fact():
                assert not self.ended, "the connection has ended"
                await self.read()

    async def read_to_the_end(self) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while not self.ended:
                await self.read()

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """Read on, beside what else is done."""
        task = asyncio.create_task(self.read_until(lambda: False))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    def _sort_head(self) -> bool:
        head, end, self._rest = self._rest.partition(b"\r\n\r\n")
        if not end:
            self._rest = head
            return False
        self._sort = self._sort_websocket if self.route == "websocket" else self._sort_events
        return True

    def _sort_websocket(self) -> bool:
        data = self._rest
        if len(data) < 2:
            return False
        extended = {126: 2, 127: 8}.get(data[1], 0)
        start = 2 + extended
        size = int.from_bytes(data[2:start]) if extended else data[1]
        if len(data) < start or len(data) < start + size:
            return False
        payload, self._rest = data[start : start + size], data[start + size :]
        if data[0] == 0x81:
            self.frames.append(json.loads(payload))
        elif data[0] == 0x88:
            self.close_code = int.from_bytes(payload[:2])
        elif data[0] == 0x89:
            self.pings.append(payload)
        return True

    def _sort_events(self) -> bool:
        line, end, self._rest = self._rest.partition(b"\n")
        if not end:
            self._rest = line
            return False
        if line.startswith(b"data: "):
            self.frames.append(json.loads(line[6:]))
        elif line == b"0\r":
            self.ended = True
        return True


@contextlib.asynccontextmanager
async def slow_client(bridge: Bridge, route: str, *patterns: str) -> AsyncIterator[SlowClient]:
    """Connect a client that follows these patterns, has read the reply, and then reads only on request."""
    connection = socket.socket()
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BYTES)
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", bridge.port))
        client = SlowClient(route, connection, bridge)
        query = "&".join(f"subjects={pattern}" for pattern in patterns)
        target, head = ("/stream", UPGRADE) if route == "websocket" else (f"/events?{query}", "Host: x\r\n")
        await client.send(f"GET {bridge.prefix}{target} HTTP/1.1\r\n{head}\r\n".encode())
        await client.read_until(lambda: client.frames)
        socket_of(client.session).setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BYTES)
        if patterns and route == "websocket":
            await client.command(action="subscribe", subjects=patterns)
        if patterns:
            await client.read_until(lambda: len(client.frames) == 2)
            assert client.frames[1]["active"]
        yield client
    finally:
        connection.close()


def receive_window_is_closed(connection: Any) -> bool:
    """Return True if the client's kernel takes no more data.

    The first failed write doesn't prove that. The kernel delays data smaller than a segment, 64 KiB on a loopback (RFC
    9293, section 3.8.6.2.1).
    """
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, WINDOW + 4)
    _, writable, _ = select.select([], [connection.fileno()], [], 0)
    return not writable and not any(struct.unpack_from("I", info, offset)[0] for offset in (UNACKNOWLEDGED, WINDOW))


def transport_of(session: Session) -> Any:
    return session._transport._transport  # type: ignore[attr-defined]


def socket_of(session: Session) -> Any:
    return transport_of(session).get_extra_info("socket")


class Feed:
    """A publisher of numbered messages on these subjects in turn; a witness receives each of them."""

    def __init__(self, publisher: Publisher, witness: WebSocketClient, subjects: list[str], size: int) -> None:
        self._padding = "x" * size
        self.sent: list[tuple[str, int]] = []
        self._publisher = publisher
        self._witness = witness
        self._subjects = itertools.cycle(subjects)
        self._numbers = itertools.count()

    @property
    def last(self) -> int:
        return self.sent[-1][1]

    async def publish(self, count: int = 1) -> None:
        """Publish; returns when the bridge has handed every message to all that follow."""
        for _ in range(count):
            subject, number = next(self._subjects), next(self._numbers)
            self.sent.append((subject, number))
            await self._publisher.send(subject, json.dumps({"n": number, "padding": self._padding}).encode())
        assert [data["n"] for data in await self._witness.data(count)] == [n for _, n in self.sent[-count:]]

    async def until_full(self, session: Session) -> None:
        """Publish until the client is over its limit, and the kernel takes no more for it."""
        connection = socket_of(session)
        while session.is_writable and not session.closed:
            assert len(self.sent) < 1_000
            await self.publish()
            await until(lambda: session.is_writable or session.closed or receive_window_is_closed(connection))

    async def lose_nats(self, bridge: Bridge) -> None:
        """End the bridge's connection to NATS, and wait until the bridge has reconnected."""
        assert bridge.extension.client is not None
        await bridge.extension.client.close()
        assert [frame["type"] for frame in await self._witness.frames(3)] == ["status", "gap", "status"]

    def by_pattern(self, *patterns: str) -> dict[str, list[int]]:
        """Return the numbers sent for each pattern; a pattern with a wildcard matches by its prefix."""
        return {
            pattern: [n for subject, n in self.sent if subject == pattern or subject.startswith(pattern.rstrip("*"))]
            for pattern in patterns
        }


@contextlib.asynccontextmanager
async def feed(
    bridge: Bridge, server: NatsServer, *rest: str, size: int = SIZE
) -> AsyncIterator[tuple[Feed, list[str]]]:
    """Yield a feed for subjects with these endings, and the subjects."""
    async with Publisher.connected(server) as publisher, bridge.websocket() as witness:
        subjects = [publisher.subject(each) for each in rest]
        await witness.follow(*subjects)
        yield Feed(publisher, witness, subjects, size), subjects


def serve(server: NatsServer, **settings: Any) -> contextlib.AbstractAsyncContextManager[Bridge]:
    limits = {"max_pending_bytes": LIMIT, "write_timeout": 3600, "unsubscribe_delay": 0}
    return running(servers=server.url, subscribe=[">"], **{**limits, **settings})


def assert_complete(frames: list[dict[str, Any]], sent: dict[str, list[int]]) -> None:
    """Check that each pattern has every number in order, except for those counted by a gap in their place."""
    place: Counter[str] = Counter()
    for frame in frames:
        if frame["type"] == "gap":
            (pattern,) = frame["subjects"]
            place[pattern] += frame["lost"]
        elif frame["type"] == "message":
            pattern = frame.get("pattern", frame["subject"])
            assert frame["data"]["n"] == sent[pattern][place[pattern]]
            place[pattern] += 1
    assert place == {pattern: len(numbers) for pattern, numbers in sent.items()}


def received_by(client: SlowClient, pattern: str) -> list[int]:
    return [
        frame["data"]["n"]
        for frame in client.frames
        if frame["type"] == "message" and pattern == frame.get("pattern", frame["subject"])
    ]


def lost_by(client: SlowClient, pattern: str) -> int:
    return sum(frame["lost"] for frame in client.frames if frame["type"] == "gap" and frame["subjects"] == [pattern])


# Skipped messages


@on_both_loops
@on_both_transports
async def test_stalled_client_gets_one_gap_per_pattern_then_new_messages(shared_nats: NatsServer, route: str) -> None:
    async with serve(shared_nats) as bridge, feed(bridge, shared_nats, "a", "b.1", "b.2") as (flow, (a, b, _)):
        patterns = [a, b.replace("b.1", "b.*")]
        async with slow_client(bridge, route, *patterns) as client:
            await flow.until_full(client.session)
            await flow.publish(100)
            async with client.reading():
                await until(lambda: client.session.is_writable)
                await flow.publish(5)
                await until(lambda: client.numbers[-1] == flow.last)
    assert_complete(client.frames, flow.by_pattern(*patterns))
    gaps = [frame for frame in client.frames if frame["type"] == "gap"]
    assert sorted(frame["subjects"] for frame in gaps) == sorted([pattern] for pattern in patterns)
    assert all(frame["lost"] > 30 and frame["reason"] == "slow_consumer" for frame in gaps)


@on_both_loops
@on_both_transports
async def test_newest_message_of_each_subject_follows_gaps_in_order(shared_nats: NatsServer, route: str) -> None:
    async with (
        serve(shared_nats, overflow="latest") as bridge,
        feed(bridge, shared_nats, "a", "b.1", "b.2", "b.3") as (flow, (a, b, *_)),
    ):
        patterns = [a, b.replace("b.1", "b.*")]
        async with slow_client(bridge, route, *patterns) as client:
            await flow.until_full(client.session)
            await flow.publish(99)
            newest = sorted(dict(flow.sent).values())
            async with client.reading():
                await until(lambda: client.session.is_writable)
                await flow.publish(5)
                await until(lambda: client.numbers[-1] == flow.last)
    assert client.numbers == sorted(client.numbers)
    gap = client.types.index("gap")
    assert client.types[gap : gap + 6] == ["gap", "gap", *["message"] * 4]
    assert [frame["data"]["n"] for frame in client.frames[gap + 2 : gap + 6]] == newest
    for pattern, sent in flow.by_pattern(*patterns).items():
        assert len(received_by(client, pattern)) + lost_by(client, pattern) == len(sent)


@on_both_loops
@on_both_transports
async def test_kept_messages_are_bounded_and_oldest_are_dropped(shared_nats: NatsServer, route: str) -> None:
    subjects = [f"{number:02}" for number in range(30)]
    async with (
        serve(shared_nats, overflow="latest") as bridge,
        feed(bridge, shared_nats, *subjects) as (flow, (first, *_)),
    ):
        pattern = f"{first[:-2]}*"
        async with slow_client(bridge, route, pattern) as client:
            await flow.until_full(client.session)
            await flow.publish(100)
            async with client.reading():
                await until(lambda: client.session.is_writable)
                await flow.publish(1)
                await until(lambda: client.numbers[-1] == flow.last)
    sent = flow.by_pattern(pattern)[pattern]
    assert len(client.numbers) + lost_by(client, pattern) == len(sent)
    (gap,) = (index for index, frame in enumerate(client.frames) if frame["type"] == "gap")
    kept = [frame["data"]["n"] for frame in client.frames[gap + 1 :]]
    assert kept == sent[-len(kept) :]
    assert LIMIT / 2 - 2 * SIZE < (len(kept) - 1) * SIZE <= LIMIT / 2


@on_both_loops
@on_both_transports
@pytest.mark.parametrize("overflow", ["gap", "latest", "close"])
async def test_client_that_missed_nothing_gets_no_gap_after_full_buffer(
    shared_nats: NatsServer, route: str, overflow: str
) -> None:
    async with (
        serve(shared_nats, overflow=overflow) as bridge,
        feed(bridge, shared_nats, "a") as (flow, [subject]),
        slow_client(bridge, route, subject) as client,
    ):
        await flow.until_full(client.session)
        async with client.reading():
            await until(lambda: client.session.is_writable)
            await flow.publish()
            await until(lambda: client.numbers[-1:] == [flow.last])
        assert client.numbers == [number for _, number in flow.sent]
        assert set(client.types) == {"welcome", "reply", "message"}


@on_both_loops
@on_both_transports
async def test_client_is_closed_when_first_message_would_be_skipped(shared_nats: NatsServer, route: str) -> None:
    async with (
        serve(shared_nats, overflow="close") as bridge,
        feed(bridge, shared_nats, "a") as (flow, [subject]),
        no_leftovers(bridge),
        slow_client(bridge, route, subject) as client,
    ):
        session = client.session
        await flow.until_full(session)
        assert not session.closed
        await flow.publish()
        assert session.closed
        assert len(sessions(bridge)) == 1
        await client.read_until(lambda: client.ended or client.close_code)
        assert client.numbers == [number for _, number in flow.sent[:-1]]
        assert client.types[-1] == "close"
        close = client.frames[-1]
        assert (close["code"], close["reconnect"]) == (1013, True)
        assert 2_000 <= close["retry"] <= 4_000
        assert client.close_code == (1013 if route == "websocket" else None)
        if route == "websocket":
            await client.send(client_frame((1013).to_bytes(2), opcode=8))
            await client.read_to_the_end()


@on_both_loops
@on_both_transports
@pytest.mark.parametrize("size", [4_096, 100_000], ids=["under the limit", "over the limit"])
async def test_pending_bytes_stay_within_limit_plus_one_message(shared_nats: NatsServer, route: str, size: int) -> None:
    async with (
        serve(shared_nats) as bridge,
        feed(bridge, shared_nats, "a", size=size) as (flow, [subject]),
        slow_client(bridge, route, subject) as client,
    ):
        waited = []
        for _ in range(100):
            await flow.publish()
            await client.read(1)
            waited.append(transport_of(client.session).get_write_buffer_size())
        async with client.reading():
            await until(lambda: client.session.is_writable)
            await flow.publish()
            await until(lambda: client.numbers[-1] == flow.last)
    assert LIMIT < max(waited) <= LIMIT + size + 200
    assert "gap" in client.types
    assert_complete(client.frames, flow.by_pattern(subject))


@pytest.fixture(scope="module")
def generous_nats() -> Iterator[NatsServer]:
    """Start a nats-server that takes messages of 8 MiB."""
    with NatsServer(config="max_payload: 8388608") as server:
        yield server


@on_both_loops
@on_both_transports
@pytest.mark.parametrize("overflow", ["gap", "latest", "close"])
async def test_message_over_limit_reaches_client_with_little_pending(
    generous_nats: NatsServer, route: str, overflow: str
) -> None:
    giant = "x" * 3 * 2**20
    async with (
        serve(generous_nats, overflow=overflow) as bridge,
        Publisher.connected(generous_nats) as publisher,
        slow_client(bridge, route, subject := publisher.subject("a")) as client,
    ):
        for number in range(2):
            await publisher.send(subject, json.dumps({"n": number, "padding": giant}).encode())
            await until(lambda: not client.session.is_writable)
            await client.read_until(lambda number=number: client.numbers == list(range(number + 1)))  # type: ignore[misc]
            assert client.frames[-1]["data"]["padding"] == giant
            await until(lambda: client.session.is_writable)
    assert client.types == ["welcome", "reply", "message", "message"]


# A client that takes nothing


@contextlib.asynccontextmanager
async def no_leftovers(bridge: Bridge) -> AsyncIterator[None]:
    """Check that the body of the context leaves no session, task or pattern behind."""

    tasks = asyncio.all_tasks()

    def held() -> tuple[int, int, tuple[str, ...]]:
        return len(sessions(bridge)), len(asyncio.all_tasks() - tasks), bridge.runtime.sessions.hub.patterns

    before = held()
    yield
    await until(lambda: held() == before)


@on_both_loops
@on_both_transports
@pytest.mark.parametrize(
    ("overflow", "by"),
    [("gap", "the bridge"), ("latest", "the bridge"), ("close", "the bridge"), ("gap", "the kernel")],
)
async def test_client_that_accepts_no_data_is_disconnected(
    shared_nats: NatsServer, monkeypatch: pytest.MonkeyPatch, route: str, overflow: str, by: str
) -> None:
    if by == "the bridge":
        monkeypatch.delattr(socket, "TCP_USER_TIMEOUT")
    else:
        monkeypatch.setattr("sanic_nats_bridge.sessions.keepalive.Keepalive._has_stalled", lambda self, pending: False)
    async with (
        serve(shared_nats, overflow=overflow, write_timeout=1.5 if by == "the bridge" else 3600) as bridge,
        feed(bridge, shared_nats, "a") as (flow, [subject]),
        no_leftovers(bridge),
        contextlib.AsyncExitStack() as stack,
    ):
        clock = await stack.enter_async_context(held()) if by == "the bridge" else None
        client = await stack.enter_async_context(slow_client(bridge, route, subject))
        session = client.session
        await flow.until_full(session)
        await flow.publish(2)

        def cut_off() -> bool:
            return session.closed and transport_of(session).is_closing()

        if clock is None:
            connection = transport_of(session).get_extra_info("socket")
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1_500)
            await until(cut_off)
        else:
            await clock.forward_until(cut_off)
        await client.read_to_the_end()
        assert client.received < LIMIT + 4 * KERNEL_BYTES
        assert "close" not in client.types


# Commands


@on_both_loops
async def test_websocket_command_waits_until_client_has_caught_up(shared_nats: NatsServer) -> None:
    async with (
        serve(shared_nats) as bridge,
        feed(bridge, shared_nats, "a", "late") as (flow, (subject, late)),
        slow_client(bridge, "websocket", subject) as client,
    ):
        await flow.until_full(client.session)
        await client.send(client_frame(b"no command"))
        await client.command(action="subscribe", subjects=[late], id="late")
        await client.command(action="ping", id="ping")
        await flow.publish(20)
        assert client.session.subscriptions == (subject,)
        await client.read_until(lambda: client.types.count("reply") == 4)
        await flow.publish(4)
        await client.read_until(lambda: client.numbers[-1] == flow.last)
    frames = client.frames[client.types.index("gap") :]
    assert [frame["type"] for frame in frames[:4]] == ["gap", "reply", "reply", "reply"]
    assert [(frame.get("id"), frame["success"]) for frame in frames[1:4]] == [
        (None, False),
        ("late", True),
        ("ping", True),
    ]
    assert [frame["data"]["n"] for frame in frames[4:]] == [number for _, number in flow.sent[-4:]]


@on_both_loops
@on_both_transports
async def test_post_command_waits_until_client_has_caught_up(shared_nats: NatsServer, route: str) -> None:
    async with (
        serve(shared_nats) as bridge,
        feed(bridge, shared_nats, "a", "late") as (flow, (subject, late)),
        slow_client(bridge, route, subject) as client,
    ):
        session = client.session
        await flow.until_full(session)
        subscribe, unsubscribe = (
            asyncio.create_task(bridge.post(path, {"session": client.session_id, "subjects": [each]}))
            for path, each in (("/subscribe", late), ("/unsubscribe", subject))
        )
        await flow.publish(20)
        assert not subscribe.done()
        assert not unsubscribe.done()
        assert session.subscriptions == (subject,)
        async with client.reading():
            assert [(await task)[0] for task in (subscribe, unsubscribe)] == [200, 200]
            before = len(flow.sent)
            await flow.publish(4)
            expected = [number for sent_on, number in flow.sent[before:] if sent_on == late]
            await until(lambda: client.numbers[-1] == expected[-1])
    gap = client.types.index("gap")
    assert [frame["data"]["n"] for frame in client.frames[gap + 1 :]] == expected
    sent = sum(1 for sent_on, _ in flow.sent[:before] if sent_on == subject)
    assert len(received_by(client, subject)) + lost_by(client, subject) == sent


@on_both_loops
@pytest.mark.parametrize("opcode", [1, 9], ids=["commands", "pings"])
async def test_reading_stops_if_client_sends_without_reading(shared_nats: NatsServer, opcode: int) -> None:
    padding = "x" * 80
    rate = {"command_rate": 1e9, "command_burst": 10**9}
    async with serve(shared_nats, **rate) as bridge, slow_client(bridge, "websocket") as client:
        transport = transport_of(client.session)
        sent = 0
        while client.session.is_writable or transport.is_reading():
            assert sent < 40_000, "it is read on and on"
            payloads = [f'{{"action":"ping","id":"{padding}{number:06}"}}' for number in range(sent, sent + 100)]
            await client.send(b"".join(client_frame(payload.encode(), opcode) for payload in payloads))
            sent += 100
            await asyncio.sleep(0)
        if opcode == 1:
            await client.read_until(lambda: client.types.count("reply") == sent)
            assert [int(frame["id"][-6:]) for frame in client.frames[1:]] == list(range(sent))


# A client that is slow, and moves


def impatient(app: Any) -> None:
    app.config.RESPONSE_TIMEOUT = 1
    app.config.WEBSOCKET_PING_INTERVAL = app.config.WEBSOCKET_PING_TIMEOUT = 0.5


@on_both_loops
async def test_slow_client_that_keeps_reading_outlives_sanic_timeouts(
    shared_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(socket, "TCP_USER_TIMEOUT")  # the kernel's clock can't be held
    async with (
        serve(shared_nats, heartbeat=0.5, write_timeout=1, prepare=impatient) as bridge,
        feed(bridge, shared_nats, "a") as (flow, [subject]),
        held() as clock,
        contextlib.AsyncExitStack() as stack,
    ):
        clients = [await stack.enter_async_context(slow_client(bridge, route, subject)) for route in ROUTES]
        for _ in range(250):
            await flow.publish()
            for client in clients:
                await client.read(1024)
            await clock.forward(0.01)
        for client in clients:
            await client.read_until(lambda client=client: client.has_caught_up(flow.last))  # type: ignore[misc]
        await flow.publish()
        for client in clients:
            await client.read_until(lambda client=client: client.numbers[-1] == flow.last)  # type: ignore[misc]
            assert "gap" in client.types
            assert_complete(client.frames, flow.by_pattern(subject))


# The end of a client for which more waits than may


@contextlib.asynccontextmanager
async def full(bridge: Bridge, flow: Feed, route: str, subject: str) -> AsyncIterator[tuple[SlowClient, Session]]:
    """Yield a client over its limit that misses messages and has pending commands, and its session."""
    async with slow_client(bridge, route, subject) as client:
        session = client.session
        await flow.until_full(session)
        body = {"session": client.session_id, "subjects": [f"{subject}.more"]}
        post = asyncio.create_task(bridge.post("/subscribe", body, Connection="close"))
        if route == "websocket":
            await client.command(action="subscribe", subjects=[f"{subject}.others"])
        await flow.publish(5)
        assert not post.done()
        yield client, session
        assert (await post)[0] == 404


@on_both_loops
@on_both_transports
@pytest.mark.parametrize("end", ["client closes", "client resets", "the bridge closes", "the bridge fails"])
async def test_client_that_ends_over_limit_leaves_nothing_behind(
    shared_nats: NatsServer, monkeypatch: pytest.MonkeyPatch, route: str, end: str
) -> None:
    monkeypatch.setattr("sanic_nats_bridge.sessions.session.CLOSE_SECONDS", 0.2)
    async with (
        serve(shared_nats) as bridge,
        feed(bridge, shared_nats, "a") as (flow, [subject]),
        no_leftovers(bridge),
        full(bridge, flow, route, subject) as (client, session),
    ):
        if end == "client closes":
            client.connection.close()
        elif end == "client resets":
            client.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.connection.close()
        elif end == "the bridge closes":
            session.close(CloseCode.GOING_AWAY, "test")
        else:
            session.close_with_error(InternalError("test"))
        await until(lambda: session.closed)


@on_both_loops
async def test_server_stop_with_clients_over_limit_leaves_nothing_behind(
    shared_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sanic_nats_bridge.sessions.session.CLOSE_SECONDS", 0.2)
    async with contextlib.AsyncExitStack() as stack:
        async with serve(shared_nats) as bridge, feed(bridge, shared_nats, "a") as (flow, [subject]):
            for route in ROUTES:
                client = await stack.enter_async_context(slow_client(bridge, route, subject))
                await flow.until_full(client.session)
            await flow.publish(5)
        assert len(sessions(bridge)) == 0
        assert bridge.runtime.sessions.hub.patterns == ()
        await until(lambda: len(asyncio.all_tasks()) == 1)


# NATS lost and back


@on_both_loops
@on_both_transports
async def test_client_over_limit_gets_nats_status_and_exact_gap_counts(shared_nats: NatsServer, route: str) -> None:
    async with (
        serve(shared_nats) as bridge,
        feed(bridge, shared_nats, "a") as (flow, [subject]),
        slow_client(bridge, route, subject) as client,
    ):
        await flow.until_full(client.session)
        await flow.publish(20)
        await flow.lose_nats(bridge)
        await flow.publish(20)
        async with client.reading():
            await until(lambda: client.session.is_writable)
            await flow.publish()
            await until(lambda: client.numbers[-1] == flow.last)
    behind = [frame for frame in client.frames[2:] if frame["type"] != "message"]
    assert [frame["type"] for frame in behind] == ["status", "gap", "status", "gap"]
    assert [frame["nats"] for frame in behind[0:3:2]] == ["disconnected", "connected"]
    assert (behind[1]["reason"], behind[1]["lost"]) == ("nats_reconnect", None)
    client.frames.remove(behind[1])
    assert_complete(client.frames, flow.by_pattern(subject))


# Many of them


CLIENTS: Final = 1_000
STALLED: Final = 100
ROUNDS: Final = 16
BATCH: Final = 16  # messages for one client in each round, and so at most in one turn of the loop
SLACK_BYTES: Final = 24 * 2**20  # for what the bridge reads at once, in both forms, and what the allocator keeps


@pytest.fixture
def many_files() -> Iterator[None]:
    """Raise the limit of open files for the connections, in this process and its children."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4 * CLIENTS)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Member(asyncio.Protocol):
    """A client of many that keeps all data it receives."""

    def __init__(self, number: int, *patterns: str) -> None:
        self.received = bytearray()
        self.patterns = patterns
        self.is_websocket = self.is_to_ask = number % 2 == 0

    def itself(self) -> "Member":
        return self

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        query = "&".join(f"subjects={pattern}" for pattern in self.patterns)
        target, head = ("/nats/stream", UPGRADE) if self.is_websocket else (f"/nats/events?{query}", "Host: x\r\n")
        transport.write(f"GET {target} HTTP/1.1\r\n{head}\r\n".encode())

    def data_received(self, data: bytes) -> None:
        self.received += data
        if self.is_to_ask and b'"welcome"' in self.received:
            self.is_to_ask = False
            self.transport.write(client_frame(json.dumps({"subjects": self.patterns}).encode()))

    def numbers(self, subject: str) -> list[int]:
        found = re.finditer(rb'"type":"message","subject":"([^"]+)","data":\{"n": (\d+)', self.received)
        return [int(each[2]) for each in found if each[1].decode() == subject]

    def lost(self, subject: str) -> int:
        found = re.finditer(rb'"type":"gap","subjects":\["([^"]+)"\],"lost":(\d+)', self.received)
        return sum(int(each[2]) for each in found if each[1].decode() == subject)


async def connect_members(port: int, shared: str, own: Sequence[str]) -> list[Member]:
    """Connect clients that follow the shared subject; the first of them also follow a subject of their own."""
    members = [Member(number, shared, *own[number : number + 1]) for number in range(CLIENTS)]
    for member in members:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BYTES)
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(connection, ("127.0.0.1", port))
        await loop.create_connection(partial(Member.itself, member), sock=connection)
    await until(lambda: all(b'"active":true' in member.received for member in members))
    return members


@pytest.mark.usefixtures("many_files")
@pytest.mark.parametrize("uvloop_is_used", [False, True], ids=["asyncio", "uvloop"])
async def test_100_stalled_clients_of_1000_use_memory_within_limits(
    nats_server: NatsServer, uvloop_is_used: bool
) -> None:
    # A subscription that is confirmed late, on a busy machine, isn't reported as active.
    settings = {"servers": nats_server.url, "subscribe": [">"], "confirm_timeout": WAIT_SECONDS}
    settings |= {"max_pending_bytes": LIMIT, "write_timeout": 3600}
    async with (
        app_process(
            settings | {"send_buffer": KERNEL_BYTES}, wrapper=("env", f"SANIC_USE_UVLOOP={uvloop_is_used}")
        ) as app,
        Publisher.connected(nats_server) as publisher,
    ):
        async with raw_connection(app.ports[0], "GET /nats/events HTTP/1.1\r\nHost: x\r\n\r\n") as (reader, _):
            await reader.readuntil(b'"nats":"connected"}')
        shared, own = publisher.subject("shared"), [publisher.subject(f"own{n}") for n in range(STALLED)]
        members = await connect_members(app.ports[0], shared, own)
        stalled, healthy = members[:STALLED], members[STALLED:]
        resident: list[int] = []

        async def share(receivers: list[Member]) -> None:
            number = len(resident)
            await publisher.send(shared, json.dumps({"n": number}).encode())
            await until(lambda: all(b'{"n": %d}' % number in member.received[-100:] for member in receivers))
            resident.append(app.resident_bytes)

        await share(members)
        for member in stalled:
            member.transport.pause_reading()
        for first in range(0, ROUNDS * BATCH, BATCH):
            for subject in own:
                messages = ({"n": number, "padding": "x" * SIZE} for number in range(first, first + BATCH))
                await publisher.send(subject, *(json.dumps(message).encode() for message in messages))
            await share(healthy)
        for member in stalled:
            member.transport.resume_reading()
        await until(lambda: all(b'"gap"' in member.received for member in stalled))
        await share(members)
        assert max(resident) - resident[0] < STALLED * (LIMIT + BATCH * SIZE) + SLACK_BYTES
        for member in healthy:
            assert member.numbers(shared) == list(range(len(resident)))
        for member, subject in zip(stalled, own, strict=True):
            for followed, count in ((subject, ROUNDS * BATCH), (shared, len(resident))):
                numbers = member.numbers(followed)
                assert numbers == sorted(set(numbers))
                assert len(numbers) + member.lost(followed) == count
            assert member.lost(subject) > ROUNDS * BATCH / 2
        for member in members:
            member.transport.close()
