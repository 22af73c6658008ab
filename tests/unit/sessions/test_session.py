import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanic_nats_bridge.auth.permissions import Grant, Permissions
from sanic_nats_bridge.errors import (
    BridgeError,
    CloseCode,
    ForbiddenSubject,
    InternalError,
    InvalidSubject,
    NatsRefused,
    RateLimitExceeded,
    SubscriptionLimitExceeded,
    UnknownSession,
)
from sanic_nats_bridge.hub import broadcast, fan_out
from sanic_nats_bridge.protocol import encoding
from sanic_nats_bridge.protocol.encoding import WireFormat
from sanic_nats_bridge.protocol.messages import Action, Command, Outcome, Reply
from sanic_nats_bridge.sessions.registry import SessionRegistry
from sanic_nats_bridge.sessions.session import Session
from sanic_nats_bridge.settings import Settings
from tests.support.bridge import until
from tests.support.clock import WallClock, leaping
from tests.support.fakes import FakeLink, FakeTransport

PADDING = encoding.websocket_frame(b'{"type":"padding","padding":"%b"}' % (b"x" * 1_000))


EVERYTHING = Permissions([">"])


class Worker:
    """SessionRegistry on a hub with a fake link."""

    def __init__(self, *, confirms: bool = True, **settings: Any) -> None:
        options = Settings.resolve(settings, {})
        self.link = FakeLink(confirms=confirms)
        # By their keys: the sessions themselves must be released when they have ended.
        self.opened: list[str] = []
        self.closed: list[tuple[str, int]] = []
        self.sessions = SessionRegistry(
            options,
            self.link,
            on_opened=lambda session: self.opened.append(session.key),
            on_closed=lambda session, code: self.closed.append((session.key, code)),
        )
        self.hub = self.sessions.hub
        self.link.serve(self.hub)

    def open(
        self, permissions: Permissions = EVERYTHING, wire_format: WireFormat = WireFormat.WEBSOCKET
    ) -> tuple[Session, FakeTransport]:
        transport = FakeTransport(wire_format)
        with self.sessions.pending_connections.connecting() as pending:
            session = self.sessions.open(transport, permissions, pending)
        assert session is not None
        return session, transport


async def act(session: Session, action: Action, *patterns: str) -> Reply:
    """Carry a command out and write its reply, as a route does."""
    outcome = await execute(session, action, *patterns)
    if outcome.error is not None:
        raise outcome.error
    session.send(outcome.reply)
    return outcome.reply


async def execute(session: Session, action: Action, *patterns: str) -> Outcome:
    return await session.execute(Command(action=action, subjects=list(patterns)))


async def received(session: Session, frame: str) -> Outcome:
    outcome = await session.receive(frame)
    assert outcome is not None
    return outcome


def fill(transport: FakeTransport) -> None:
    """Let more wait for the client than may."""
    transport.limit = 1_000
    transport.write(PADDING)
    assert transport.full


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


# Heartbeats


async def test_heartbeats_are_sent_while_session_is_idle() -> None:
    _, transport = Worker(heartbeat=10).open()
    await asyncio.sleep(31)
    assert transport.types[0] == "welcome"
    assert transport.types.count("heartbeat") >= 3


async def test_no_heartbeat_is_sent_between_frequent_messages() -> None:
    worker = Worker(heartbeat=4)
    session, transport = worker.open()
    await act(session, "subscribe", "a")
    for _ in range(300):
        worker.link.deliver("a")
        await asyncio.sleep(1)
    assert transport.data == [1] * 300
    assert "heartbeat" not in transport.types


async def test_closed_session_sends_no_heartbeats() -> None:
    session, transport = Worker(heartbeat=10).open()
    session.close(CloseCode.GOING_AWAY, "test")
    written = len(transport.writes)
    await asyncio.sleep(60)
    assert len(transport.writes) == written


# Commands


async def test_commands_are_executed_in_arrival_order() -> None:
    worker = Worker(confirms=False)
    session, transport = worker.open()
    commands: list[tuple[Action, tuple[str, ...]]] = [
        ("subscribe", ("a",)),
        ("ping", ()),
        ("subscribe", ("b",)),
        ("unsubscribe", ("a",)),
    ]
    tasks = [asyncio.create_task(act(session, action, *patterns)) for action, patterns in commands]
    await turns()
    assert transport.types == ["welcome"]
    worker.link.confirm("a")
    await turns()
    worker.link.confirm("b")
    await asyncio.gather(*tasks)
    assert [frame["action"] for frame in transport.frames[1:]] == [action for action, _ in commands]
    assert session.subscriptions == ("b",)


async def test_exception_in_command_is_logged_counted_and_not_exposed(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker()
    session, _ = worker.open()
    monkeypatch.setattr(session._subscriptions, "policy", None)
    reply, error = await received(session, '{"subjects": ["a"], "id": "x"}')
    assert isinstance(error, InternalError)
    assert (reply.code, reply.id, reply.action) == ("internal", "x", "subscribe")
    assert "NoneType" not in reply.message
    (record,) = caplog.records
    assert (record.levelname, record.exc_info is not None) == ("ERROR", True)
    assert worker.sessions.stats(0).refused == {"internal": 1}
    assert not session.closed


async def test_subscribe_reply_precedes_first_message() -> None:
    worker = Worker(confirms=False)
    session, transport = worker.open()
    command = asyncio.create_task(act(session, "subscribe", "a"))
    await turns()
    worker.link.confirm("a")
    for _ in range(5):
        worker.link.deliver("a")
        await turns(1)
    await command
    worker.link.deliver("a", b'"after"')
    await turns()
    assert transport.types[:2] == ["welcome", "reply"]
    assert transport.data[-1] == "after"


@pytest.mark.parametrize("held", [["a", "b"], []], ids=["across commands", "in one command"])
async def test_subscribe_beyond_session_limit_is_rejected(held: list[str]) -> None:
    worker = Worker(max_subscriptions=3)
    session, _ = worker.open()
    if held:
        await act(session, "subscribe", *held)
    with pytest.raises(SubscriptionLimitExceeded):
        await act(session, "subscribe", *{"c", "d", "a", "b"} - set(held))
    assert list(session.subscriptions) == worker.link.patterns == held
    await act(session, "subscribe", *{"a", "b", "c"})
    assert set(session.subscriptions) == {"a", "b", "c"}


async def test_session_subscribes_to_all_its_patterns_at_once_and_again_after_reconnect() -> None:
    worker = Worker()
    patterns = [f"rooms.{number}" for number in range(128)]
    for _ in range(5):
        session, transport = worker.open()
        await act(session, "subscribe", *patterns)
        assert list(session.subscriptions) == patterns
        transport.abort()
        session.connection_lost(1006)


async def test_only_new_patterns_count_and_are_authorized(monkeypatch: pytest.MonkeyPatch) -> None:
    decided: list[str] = []
    authorize = Permissions.authorize

    def count(permissions: Permissions, pattern: str) -> Grant:
        decided.append(pattern)
        return authorize(permissions, pattern)

    monkeypatch.setattr(Permissions, "authorize", count)
    worker = Worker()
    session, _ = worker.open()
    patterns = [f"rooms.{number}" for number in range(128)]
    await act(session, "subscribe", *patterns)
    for _ in range(32):
        await act(session, "subscribe", *patterns)
    with pytest.raises(RateLimitExceeded):
        await act(session, "subscribe", *patterns)
    assert decided == patterns
    session.update_permissions(Permissions(["rooms.*"], ["rooms.7"]))
    assert decided == patterns * 2
    assert "rooms.7" not in session.subscriptions
    assert len(session.subscriptions) == 127


async def test_rejected_patterns_count_and_are_not_decided() -> None:
    worker = Worker(command_burst=10)
    session, _ = worker.open(Permissions(["a"]))
    for _ in range(2):
        with pytest.raises(ForbiddenSubject):
            await act(session, "subscribe", *(f"b.{number}" for number in range(80)))
    with pytest.raises(RateLimitExceeded):
        await act(session, "subscribe", "a")


async def test_invalid_and_surplus_patterns_are_rejected_before_they_count() -> None:
    worker = Worker(command_burst=8)
    session, _ = worker.open()
    for _ in range(3):
        with pytest.raises(SubscriptionLimitExceeded):
            await act(session, "subscribe", *(f"b.{number}" for number in range(129)))
        with pytest.raises(InvalidSubject):
            await act(session, "subscribe", *(f"b.{number}" for number in range(127)), "b..c")
    await act(session, "subscribe", *(f"b.{number}" for number in range(32)))


async def test_repeated_subscribe_causes_no_duplicate_messages() -> None:
    worker = Worker()
    session, transport = worker.open()
    await act(session, "subscribe", "a")
    assert (await act(session, "subscribe", "a", "a")).success
    worker.link.deliver("a")
    await turns()
    assert transport.data == [1]
    await act(session, "unsubscribe", "a")
    await until(lambda: worker.hub.patterns == ())


async def test_repeated_subscribe_fails_if_nats_refuses_pattern_meanwhile() -> None:
    worker = Worker(confirms=False)
    session, transport = worker.open()
    first = asyncio.create_task(act(session, "subscribe", "a"))
    await turns()
    worker.link.confirm("a")
    await first
    second = asyncio.create_task(act(session, "subscribe", "a", "b"))
    await turns()
    worker.link.refuse("a")
    worker.link.confirm("b")
    with pytest.raises(NatsRefused) as refused_by_nats:
        await second
    assert refused_by_nats.value.subjects == ("a",)
    assert session.subscriptions == ()
    assert transport.types == ["welcome", "reply", "unsubscribed"]
    await until(lambda: worker.hub.patterns == ())


# The end


async def test_no_frame_follows_first_close() -> None:
    worker = Worker(heartbeat=10)
    session, transport = worker.open()
    await act(session, "subscribe", "a")
    worker.link.deliver("a")
    session.close(CloseCode.GOING_AWAY, "test")
    session.close(CloseCode.INTERNAL, "again")
    worker.link.deliver("a")
    worker.link.lose()
    worker.link.come_back()
    session.connection_lost(1006)
    await asyncio.sleep(60)
    assert transport.types == ["welcome", "reply", "message", "close"]
    assert transport.finished is not None
    assert transport.finished.code == 1001


async def test_reply_is_dropped_after_close() -> None:
    worker = Worker(confirms=False)
    session, transport = worker.open()
    waiting = asyncio.create_task(act(session, "subscribe", "a"))
    await turns()
    session.close(CloseCode.GOING_AWAY, "test")
    worker.link.confirm("a")
    with pytest.raises(UnknownSession):
        await waiting
    session.send(Reply(success=True, message="late"))
    assert transport.types == ["welcome", "close"]
    await until(lambda: worker.hub.patterns == ())


@pytest.mark.parametrize("action", ["subscribe", "unsubscribe", "ping"])
async def test_command_to_closed_session_is_rejected(action: Action) -> None:
    session, transport = Worker().open()
    session.connection_lost(1000)
    with pytest.raises(BridgeError, match="No such session"):
        await act(session, action, "a")
    assert transport.types == ["welcome"]


# A client that does not keep up


async def full_session(**settings: Any) -> tuple[Worker, Session, FakeTransport]:
    """Open a session that follows `a` and `b`, with a client that is over its limit."""
    worker = Worker(**settings)
    session, transport = worker.open()
    await act(session, "subscribe", "a", "b")
    fill(transport)
    return worker, session, transport


async def test_slow_client_receives_gap_per_pattern_after_catching_up() -> None:
    worker, _, transport = await full_session()
    for subject in "abaab":
        worker.link.deliver(subject)
        await turns()
    assert transport.types[2:] == ["padding"]
    transport.take()
    worker.link.deliver("b")
    await turns()
    assert transport.frames[3:5] == [
        {"type": "gap", "subjects": ["a"], "lost": 3, "reason": "slow_consumer"},
        {"type": "gap", "subjects": ["b"], "lost": 2, "reason": "slow_consumer"},
    ]
    assert transport.types[5:] == ["message"]


async def test_session_becomes_writable_at_quarter_of_limit() -> None:
    worker, session, transport = await full_session()
    worker.link.deliver("a")
    await turns()
    transport.take(transport.pending - 251)
    assert not session.is_writable
    transport.take(1)
    assert session.is_writable
    assert transport.types[-1] == "gap"


async def test_gap_counts_only_messages_lost_since_previous_gap() -> None:
    worker, _, transport = await full_session()
    for count in (2, 3):
        for _ in range(count):
            worker.link.deliver("a")
        await turns()
        transport.take()
        transport.write(PADDING)
    assert [frame["lost"] for frame in transport.frames if frame["type"] == "gap"] == [2, 3]


async def test_overflow_latest_sends_newest_messages_after_all_gaps() -> None:
    worker, _, transport = await full_session(overflow="latest")
    for number, subject in enumerate("abaab"):
        worker.link.deliver(subject, b"%d" % number)
    await turns()
    transport.take()
    await turns()
    assert transport.types[3:] == ["gap", "gap", "message", "message"]
    assert lost(transport) == {"a": 2, "b": 1}
    assert transport.data == [3, 4]


async def test_session_is_not_writable_if_kept_message_exceeds_limit() -> None:
    worker, session, transport = await full_session(overflow="latest")
    worker.link.deliver("a", b"1" * 2_000)
    await turns()
    ping = asyncio.create_task(act(session, "ping"))
    transport.take()
    worker.link.deliver("a", b"2")
    await turns()
    assert not session.is_writable
    assert not ping.done()
    assert transport.types[3:] == ["message"]
    transport.take()
    assert (await ping).success
    assert transport.types[3:] == ["message", "message", "reply"]
    assert transport.data[-1] == 2


@pytest.mark.parametrize("misses", [False, True])
async def test_overflow_close_ends_session_on_first_dropped_message(misses: bool) -> None:
    worker, session, transport = await full_session(overflow="close")
    await turns()
    assert not session.closed
    if misses:
        worker.link.deliver("a")
        await turns()
        assert session.closed
        assert transport.finished is not None
        assert (transport.finished.code, transport.finished.reconnect) == (1013, True)
    transport.take()
    await turns()
    assert "gap" not in transport.types
    assert session.closed == misses
    assert len(worker.sessions) == int(not misses)


async def test_status_gap_and_reply_frames_are_never_dropped() -> None:
    worker, session, transport = await full_session()
    worker.link.deliver("a")
    await turns()
    worker.link.lose()
    worker.link.come_back()
    await turns()
    session.send(Reply(success=True, message="test"))
    worker.link.deliver("a")
    await turns()
    assert transport.types[3:] == ["status", "gap", "status", "reply"]
    transport.take()
    assert transport.frames[7:] == [{"type": "gap", "subjects": ["a"], "lost": 2, "reason": "slow_consumer"}]


@pytest.mark.parametrize("overflow", ["gap", "latest"])
async def test_gap_precedes_unsubscribed_frame_for_slow_client(overflow: str) -> None:
    worker, _, transport = await full_session(overflow=overflow)
    for subject in "aab":
        worker.link.deliver(subject)
    worker.link.refuse("a")
    assert transport.types[3:] == ["gap", "unsubscribed"]
    assert (transport.frames[3]["subjects"], transport.frames[3]["lost"]) == (["a"], 2)
    transport.take()
    assert transport.types[5:] == (["gap"] if overflow == "gap" else ["message"])
    assert "b" in (transport.frames[5].get("subject"), *transport.frames[5].get("subjects", ()))


async def test_ended_subscription_without_lost_messages_has_no_gap() -> None:
    worker, _, transport = await full_session()
    worker.link.deliver("b")
    worker.link.refuse("a")
    assert transport.types[3:] == ["unsubscribed"]


async def test_commands_wait_in_order_until_client_catches_up() -> None:
    worker, session, transport = await full_session()
    commands: list[tuple[Action, str]] = [("subscribe", "c"), ("unsubscribe", "a"), ("subscribe", "a")]
    tasks = [asyncio.create_task(act(session, *command)) for command in commands]
    worker.link.deliver("a")
    await turns()
    assert list(session.subscriptions) == ["a", "b"]
    assert worker.link.patterns == ["a", "b"]
    transport.take()
    await asyncio.gather(*tasks)
    assert transport.types[3:] == ["gap", "reply", "reply", "reply"]
    assert [frame["action"] for frame in transport.frames[4:]] == [action for action, _ in commands]
    assert list(session.subscriptions) == ["b", "c", "a"]


async def test_command_in_progress_completes_while_client_is_behind() -> None:
    worker = Worker(confirms=False)
    session, transport = worker.open()
    command = asyncio.create_task(act(session, "subscribe", "a"))
    await turns()
    fill(transport)
    worker.link.confirm("a")
    assert (await command).active
    worker.link.deliver("a")
    await turns()
    transport.take()
    assert transport.types == ["welcome", "padding", "reply", "gap"]


@pytest.mark.parametrize("end", ["gone", "closed"])
async def test_waiting_commands_fail_when_slow_session_ends(end: str) -> None:
    worker, session, transport = await full_session()
    waiting = [asyncio.create_task(act(session, "subscribe", pattern)) for pattern in "cd"]
    worker.link.deliver("a")
    await turns()
    if end == "gone":
        session.connection_lost(1006)
    else:
        session.close(CloseCode.GOING_AWAY, "test")
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(outcome, UnknownSession) for outcome in outcomes)
    transport.take()
    assert transport.types[3:] == (["close"] if end == "closed" else [])
    await until(lambda: worker.hub.patterns == ())


@pytest.mark.parametrize("overflow", ["gap", "latest", "close"])
async def test_overflow_applies_when_client_falls_behind_mid_turn(
    overflow: str,
) -> None:
    worker = Worker(overflow=overflow)
    (slow, slow_outlet), (other, other_outlet) = worker.open(), worker.open()
    for session in (slow, other):
        await act(session, "subscribe", "a", "b")
    slow_outlet.limit = 400
    for number, subject in enumerate("abab"):
        worker.link.deliver(subject, b"%-100d" % number)
    worker.hub.flush()
    assert slow_outlet.full
    for number, subject in enumerate("ba"):
        worker.link.deliver(subject, b"%d" % (4 + number))
    worker.hub.flush()
    slow_outlet.take()
    worker.link.deliver("a", b"6")
    await turns()
    assert other_outlet.data == list(range(7))
    assert slow_outlet.data == {"gap": [0, 1, 2, 3, 6], "latest": list(range(7)), "close": [0, 1, 2, 3]}[overflow]
    assert slow_outlet.types.count("gap") == {"gap": 2, "latest": 0, "close": 0}[overflow]
    assert slow.closed == (overflow == "close")


async def test_gap_precedes_messages_when_client_catches_up_mid_turn() -> None:
    worker, _, transport = await full_session()
    worker.link.deliver("a", b"1")
    worker.hub.flush()
    worker.link.deliver("a", b"2")
    transport.take()
    worker.link.deliver("b", b"3")
    worker.hub.flush()
    assert transport.types[3:] == ["gap", "message", "message"]
    assert transport.frames[3]["lost"] == 1
    assert transport.data == [2, 3]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.sampled_from("abc")),
        st.tuples(st.just("take"), st.integers(1, 800)),
        st.tuples(st.sampled_from(["subscribe", "unsubscribe", "refuse"]), st.sampled_from("ab*")),
        st.tuples(st.sampled_from(["flush", "nats"]), st.none()),
    ),
    max_size=60,
)


class Mishaps:
    """A session whose client takes what it likes, among messages, commands, refusals and losses of NATS."""

    def __init__(self, overflow: str) -> None:
        self.worker = Worker(overflow=overflow, max_pending_bytes=1_024, heartbeat=86_400)
        self.session, self.transport = self.worker.open()
        self.transport.limit = 300
        self.sent: Counter[str] = Counter()
        self.commands: list[asyncio.Task[Reply]] = []

    async def publish(self, subject: str) -> None:
        self.sent.update(pattern for pattern in self.session.subscriptions if pattern in (subject, "*"))
        self.worker.link.deliver(subject, b"%d" % self.sent.total())

    async def take(self, size: int) -> None:
        self.transport.take(size)

    async def flush(self, _: None) -> None:
        await turns()

    async def refuse(self, pattern: str) -> None:
        self.worker.link.refuse(pattern)

    async def nats(self, _: None) -> None:
        self.worker.link.lose()
        self.worker.link.come_back()
        await turns()

    async def subscribe(self, pattern: str) -> None:
        self.commands.append(asyncio.create_task(act(self.session, "subscribe", pattern)))
        await turns(20)

    async def unsubscribe(self, pattern: str) -> None:
        self.commands.append(asyncio.create_task(act(self.session, "unsubscribe", pattern)))
        await turns(20)

    async def end(self) -> None:
        """Let the client take everything, and what follows from that."""
        await turns()
        for _ in range(len(self.commands) + 3):
            self.transport.take()
            await turns(20)
        await asyncio.gather(*self.commands, return_exceptions=True)
        assert self.worker.link.faults == []
        self.session.connection_lost(1006)


@pytest.mark.parametrize("overflow", ["gap", "latest"])
@given(steps=STEPS)
def test_every_message_is_delivered_or_counted_as_lost(overflow: str, steps: list[tuple[str, Any]]) -> None:
    async def scene() -> Mishaps:
        mishaps = Mishaps(overflow)
        for step, detail in steps:
            await getattr(mishaps, step)(detail)
        await mishaps.end()
        return mishaps

    mishaps = asyncio.run(scene())
    transport = mishaps.transport
    assert transport.data == sorted(transport.data)
    messages = [frame for frame in transport.frames if frame["type"] == "message"]
    arrived = Counter(frame.get("pattern", frame["subject"]) for frame in messages)
    assert arrived + lost(transport) == mishaps.sent
    assert_within_subscriptions(transport.frames)


def lost(transport: FakeTransport) -> Counter[str]:
    """Count the missed messages that gaps reported to the client, by pattern."""
    counted: Counter[str] = Counter()
    for frame in transport.frames:
        if frame["type"] == "gap" and frame["reason"] == "slow_consumer":
            (pattern,) = frame["subjects"]
            assert frame["lost"] > 0
            counted[pattern] += frame["lost"]
    return counted


def assert_within_subscriptions(frames: list[dict[str, Any]]) -> None:
    """Check that messages and gaps follow the reply to a subscribe, and precede the end of the subscription."""
    held: set[str] = set()
    for frame in frames:
        if frame["type"] in ("message", "gap"):
            assert held & {frame.get("pattern", frame.get("subject")), *frame.get("subjects", ())}
        elif frame.get("action") == "subscribe":
            held |= set(frame["subjects"])
        elif frame.get("action") == "unsubscribe" or frame["type"] == "unsubscribed":
            held -= set(frame["subjects"])


# A flush interval


async def test_flush_interval_preserves_frame_order() -> None:
    worker = Worker(flush_interval=1)
    session, transport = worker.open()
    await act(session, "subscribe", "a", "b")
    worker.link.deliver("a", b"1")
    await act(session, "unsubscribe", "a")
    worker.link.deliver("b", b"2")
    await act(session, "subscribe", "a")
    worker.link.deliver("a", b"3")
    worker.link.refuse("a")
    worker.link.deliver("b", b"4")
    worker.link.lose()
    worker.link.come_back()
    await turns()
    assert transport.types == [
        *("welcome", "reply", "message", "reply", "message", "reply", "message", "unsubscribed"),
        *("message", "status", "gap", "status"),
    ]
    assert transport.data == [1, 2, 3, 4]


async def test_pending_messages_are_flushed_before_close_frame() -> None:
    worker = Worker(flush_interval=1)
    session, transport = worker.open()
    await act(session, "subscribe", "a")
    worker.link.deliver("a")
    session.close(CloseCode.GOING_AWAY, "test")
    assert transport.types == ["welcome", "reply", "message", "close"]


# What the connection to NATS brings


async def test_nats_outage_sends_gap_only_to_sessions_with_subscriptions() -> None:
    worker = Worker()
    follower, transport = worker.open()
    _, idle = worker.open()
    await act(follower, "subscribe", "a", "b")
    worker.link.lose()
    worker.link.come_back()
    worker.link.deliver("a")
    await turns()
    assert transport.types == ["welcome", "reply", "status", "gap", "status", "message"]
    assert transport.frames[3] == {"type": "gap", "subjects": ["a", "b"], "lost": None, "reason": "nats_reconnect"}
    assert [frame["nats"] for frame in transport.frames if frame["type"] == "status"] == ["disconnected", "connected"]
    assert idle.types == ["welcome", "status", "status"]


async def test_status_connected_is_delayed_until_subscription_is_confirmed() -> None:
    worker = Worker(confirm_timeout=0)
    session, transport = worker.open()
    bystander, other = worker.open()
    await act(bystander, "subscribe", "a")
    await turns()
    worker.link.confirms = False
    worker.link.lose()
    worker.link.come_back()
    assert (await act(session, "subscribe", "b")).active is False
    worker.link.confirm("a")
    assert [frame["nats"] for frame in other.frames if frame["type"] == "status"][-1] == "connected"
    assert transport.types == ["welcome", "status", "reply"]
    worker.link.confirm("b")
    assert transport.types == ["welcome", "status", "reply", "status"]
    assert transport.frames[-1]["nats"] == "connected"


async def test_pattern_subscribed_during_nats_outage_has_no_gap() -> None:
    worker = Worker()
    session, transport = worker.open()
    worker.link.lose()
    assert (await act(session, "subscribe", "a")).active is False
    worker.link.come_back()
    await turns()
    assert transport.types == ["welcome", "status", "reply", "status"]


async def test_gap_excludes_pattern_unsubscribed_during_nats_outage() -> None:
    worker = Worker()
    session, transport = worker.open()
    await act(session, "subscribe", "a", "b")
    worker.link.lose()
    await act(session, "unsubscribe", "a")
    worker.link.come_back()
    assert worker.link.patterns == ["b"]
    assert transport.frames[-1]["subjects"] == ["b"]


async def test_outage_before_all_patterns_are_confirmed_sends_new_gap() -> None:
    worker = Worker()
    session, transport = worker.open()
    await act(session, "subscribe", "a", "b")
    worker.link.confirms = False
    worker.link.lose()
    assert (await act(session, "subscribe", "a")).active is False
    worker.link.come_back()
    worker.link.confirm("a")
    worker.link.deliver("a")
    worker.link.lose()
    worker.link.come_back()
    gaps = [frame["subjects"] for frame in transport.frames if frame["type"] == "gap"]
    assert gaps == [["a", "b"], ["a", "b"]]


async def test_late_confirmations_send_single_connected_status() -> None:
    worker = Worker(confirms=False, confirm_timeout=0)
    session, transport = worker.open()
    assert (await act(session, "subscribe", "a", "b")).active is False
    worker.link.confirm("a")
    assert transport.types == ["welcome", "reply"]
    worker.link.confirm("b")
    assert transport.frames[2:] == [{"type": "status", "nats": "connected"}]


async def test_late_refusal_ends_subscription() -> None:
    worker = Worker(confirms=False, confirm_timeout=0)
    session, transport = worker.open()
    await act(session, "subscribe", "a", "b")
    worker.link.refuse("a")
    (frame,) = transport.frames[2:]
    assert (frame["type"], frame["subjects"], frame["code"]) == ("unsubscribed", ["a"], "nats.refused")
    assert session.subscriptions == ("b",)


async def test_late_refusal_of_last_unconfirmed_pattern_sends_status() -> None:
    worker = Worker(confirms=False, confirm_timeout=0)
    session, transport = worker.open()
    await act(session, "subscribe", "a", "b")
    worker.link.confirm("a")
    worker.link.refuse("b")
    assert transport.types[2:] == ["unsubscribed", "status"]


async def test_unsubscribe_of_last_unconfirmed_pattern_sends_status() -> None:
    worker = Worker(confirms=False, confirm_timeout=0)
    session, transport = worker.open()
    await act(session, "subscribe", "a", "b")
    worker.link.confirm("a")
    await act(session, "unsubscribe", "b")
    assert sorted(transport.types[2:]) == ["reply", "status"]


# Permissions that end or change


@pytest.mark.parametrize("end", ["expire", "revoke"])
async def test_slow_client_receives_only_close_when_permissions_end(end: str) -> None:
    worker = Worker(overflow="latest", write_timeout=7)
    session, transport = worker.open(Permissions([">"], identity="ada"))
    await act(session, "subscribe", "a", "b")
    fill(transport)
    worker.link.deliver("a")
    worker.hub.flush()
    before = len(transport.frames)
    worker.link.deliver("b")
    if end == "revoke":
        assert worker.sessions.revoke("ada", None) == 1
    else:
        worker.sessions.update_permissions(Permissions([">"], expires=time.time() - 1), "ada", None)
    worker.hub.flush()
    transport.take()
    await turns()
    code = {"expire": 4401, "revoke": 4403}[end]
    assert [(frame["type"], frame["code"]) for frame in transport.frames[before:]] == [("close", code)]
    assert transport.finish_seconds == 7
    assert len(worker.sessions) == 0


async def test_sessions_expiring_together_drop_pending_messages(
    wall_clock: WallClock,
) -> None:
    worker = Worker()
    expires = wall_clock.time() + 2
    transports = [worker.open(Permissions([">"], expires=at)) for at in (expires, expires, expires + 3600)]
    for session, _ in transports:
        await act(session, "subscribe", "a")
    worker.link.deliver("a")
    leaping().block(3)
    worker.hub.flush()
    assert [transport.types[2:] for _, transport in transports] == [["close"], ["close"], ["message"]]


async def test_kept_messages_are_filtered_by_new_permissions() -> None:
    worker = Worker(overflow="latest", max_pending_bytes=10_000)
    session, transport = worker.open()
    await act(session, "subscribe", "a.*", "b")
    fill(transport)
    for subject in ("a.x", "a.y", "b"):
        worker.link.deliver(subject, f'"{subject}"'.encode())
    worker.hub.flush()
    before = len(transport.frames)
    session.update_permissions(Permissions(["a.*"], ["a.x"]))
    transport.take()
    await turns()
    assert [(frame["type"], frame.get("subjects"), frame.get("data")) for frame in transport.frames[before:]] == [
        ("gap", ["b"], None),
        ("unsubscribed", ["b"], None),
        ("gap", ["a.*"], None),
        ("message", None, "a.y"),
    ]
    assert [frame["lost"] for frame in transport.frames[before:] if frame["type"] == "gap"] == [1, 1]


async def test_new_permissions_apply_only_to_later_messages() -> None:
    worker = Worker()
    session, transport = worker.open()
    await act(session, "subscribe", "a")
    worker.link.deliver("a", b"1")
    session.update_permissions(Permissions())
    worker.link.deliver("a", b"2")
    await turns()
    assert transport.types[2:] == ["message", "unsubscribed"]
    assert transport.data == [1]
    assert session.subscriptions == ()


async def test_pending_command_leaves_no_subscription_after_expiration() -> None:
    worker = Worker(confirms=False)
    session, transport = worker.open(Permissions([">"], identity="ada"))
    waiting = asyncio.create_task(execute(session, "subscribe", "a"))
    await turns()
    worker.sessions.update_permissions(Permissions([">"], expires=time.time() - 1), "ada", None)
    worker.link.confirm("a")
    assert isinstance((await waiting).error, UnknownSession)
    assert transport.types == ["welcome", "close"]
    await until(lambda: worker.hub.patterns == ())


@pytest.mark.parametrize("end", ["expiry", "overflow"])
async def test_command_leaves_no_subscription_if_flush_ends_session(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    worker = Worker(confirms=False, flush_interval=1, overflow="close")
    expires = time.time() + 3600
    session, transport = worker.open(Permissions([">"], expires=expires))
    first = asyncio.create_task(execute(session, "subscribe", "a"))
    await turns()
    worker.link.confirm("a")
    await first
    second = asyncio.create_task(execute(session, "subscribe", "b"))
    await turns()
    if end == "overflow":
        fill(transport)
    worker.link.deliver("a")
    worker.link.confirm("b")
    if end == "expiry":
        monkeypatch.setattr(time, "time", lambda: expires)
    assert isinstance((await second).error, UnknownSession)
    worker.link.deliver("b")
    worker.hub.flush()
    assert transport.types[-1] == "close"
    assert transport.data == []
    await until(lambda: worker.hub.patterns == ())


async def test_expired_session_drops_kept_message_before_timer_fires(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Worker(overflow="latest")
    expires = time.time() + 3600
    session, transport = worker.open(Permissions([">"], expires=expires))
    await act(session, "subscribe", "a")
    fill(transport)
    worker.link.deliver("a")
    worker.hub.flush()
    monkeypatch.setattr(time, "time", lambda: expires)
    transport.take()
    assert transport.types == ["welcome", "reply", "padding", "close"]


async def test_expired_session_rejects_command_before_timer_fires(
    wall_clock: WallClock,
) -> None:
    worker = Worker()
    session, transport = worker.open(Permissions([">"], expires=wall_clock.time() + 1))
    leaping().block(2)
    assert isinstance((await received(session, '{"action": "ping"}')).error, UnknownSession)
    assert transport.types == ["welcome", "close"]


@pytest.mark.parametrize("event", ["lose", "come_back"])
async def test_expired_session_receives_no_nats_status(event: str, wall_clock: WallClock) -> None:
    worker = Worker()
    if event == "come_back":
        worker.link.lose()
    _, transport = worker.open(Permissions([">"], expires=wall_clock.time() + 1))
    leaping().block(2)
    getattr(worker.link, event)()
    assert transport.types == ["welcome", "close"]


@pytest.mark.parametrize("where", ["batch", "fan_out"])
async def test_delivery_error_sends_gap_to_affected_sessions_only(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    worker = Worker()
    session, transport = worker.open()
    _, bystander = worker.open()
    await act(session, "subscribe", "a.*")
    worker.link.deliver("a.x", b"1")
    with monkeypatch.context() as patched:
        if where == "fan_out":
            worker.hub.flush()
            patched.setattr(encoding, "join", lambda *_: 1 / 0)
            worker.link.deliver("a.x", b"2")
            worker.hub.flush()
        else:
            # What the connection does when `on_message` has raised.
            worker.hub.delivery_failed(next(iter(worker.link.standing.values())))
    worker.link.deliver("a.x", b"3")
    worker.hub.flush()
    assert transport.types[2:] == ["message", "gap", "message"]
    assert transport.frames[3] == {"type": "gap", "subjects": ["a.*"], "lost": None, "reason": "internal"}
    assert bystander.types == ["welcome"]


# Overlapping subscriptions


def masks(count: int) -> list[str]:
    """Return patterns that match "a.b.c.d.e.f", none of which includes another."""
    tokens = ["b", "c", "d", "e", "f"]
    return [".".join(["a", *("*" if mask >> place & 1 else token for place, token in enumerate(tokens))])
            for mask in range(32) if mask.bit_count() in (2, 3)][:count]  # fmt: skip


def ended_by_overlap(transport: FakeTransport) -> list[str]:
    frames = [frame for frame in transport.frames if frame["type"] == "unsubscribed"]
    assert {frame["code"] for frame in frames} <= {"limit.overlap"}
    return [subject for frame in frames for subject in frame["subjects"]]


async def test_newest_of_too_many_overlapping_subscriptions_end() -> None:
    worker = Worker(max_overlap=5, unsubscribe_delay=1)
    session, transport = worker.open()
    patterns = [*masks(4), "a.b.c.d.e.f", "a.>", *masks(6)[4:], "b.>"]
    await act(session, "subscribe", *patterns[:3])
    await act(session, "subscribe", *patterns[3:])
    worker.link.deliver("a.b.c.d.e.f", b"1")
    await turns()
    assert ended_by_overlap(transport) == patterns[5:8]
    assert session.subscriptions == (*patterns[:5], "b.>")
    assert transport.data == [1] * 5
    assert worker.sessions.counters.refused["limit.overlap"] == 3
    worker.link.deliver("a.b.c.d.e.f", b"2")
    worker.link.deliver("b.x", b"3")
    await turns()
    assert transport.data[5:] == [2] * 5 + [3]
    await asyncio.sleep(10)
    assert set(worker.link.patterns) == {*patterns[:5], "b.>"}
    assert worker.link.faults == []


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8, 9, 16])
async def test_overlap_in_queue_groups_is_limited_by_one_message(limit: int) -> None:
    worker = Worker(max_overlap=limit)
    session, transport = worker.open()
    patterns = masks(20)
    await act(session, "subscribe", *patterns)
    worker.link.deliver("a.b.c.d.e.f")
    await turns()
    assert session.subscriptions == tuple(patterns[:limit])
    assert ended_by_overlap(transport) == patterns[limit:]


@pytest.mark.parametrize("limit", [3, 8, 16])
async def test_several_names_of_one_pattern_are_copies(limit: int) -> None:
    worker = Worker(max_overlap=limit)
    names = [f"name{number}.>" for number in range(20)]
    session, transport = worker.open(Permissions([">"], aliases={name[:-1]: "t." for name in names}))
    await act(session, "subscribe", *names)
    worker.link.deliver("t.x")
    await turns()
    assert session.subscriptions == tuple(names[:limit])
    assert ended_by_overlap(transport) == names[limit:]


async def test_subscriptions_that_end_by_overlap_are_reported_by_one_frame_after_the_messages() -> None:
    worker = Worker(max_overlap=3)
    session, transport = worker.open()
    await act(session, "subscribe", *masks(20), "b.>")
    worker.link.deliver("b.x", b"3")
    for number in range(3):
        worker.link.deliver("a.b.c.d.e.f", b"%d" % number)
    await turns()
    assert transport.types[2:] == ["message"] * 10 + ["unsubscribed"]
    assert transport.data == [3, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert transport.frames[-1]["subjects"] == masks(20)[3:]


async def test_many_sessions_are_limited_in_several_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broadcast, "_LIMITED_PER_TURN", 2)
    worker = Worker(max_overlap=3)
    opened = [worker.open() for _ in range(10)]
    for session, _ in opened:
        await act(session, "subscribe", *masks(20))
    worker.link.deliver("a.b.c.d.e.f", b"1")
    worker.hub.flush()
    limited = []
    while worker.hub.is_behind:
        limited.append(sum(bool(ended_by_overlap(transport)) for _, transport in opened))
        await turns(1)
    assert limited[:5] == [0, 2, 4, 6, 8]
    assert [transport.data for _, transport in opened] == [[1] * 3] * 10


async def test_overlap_within_limit_ends_nothing() -> None:
    worker = Worker(max_overlap=7)
    session, transport = worker.open()
    await act(session, "subscribe", *masks(5), "a.>", "a.b.c.d.e.f")
    for number in range(20):
        worker.link.deliver("a.b.c.d.e.f", b"%d" % number)
        await turns()
    assert transport.data == [number for number in range(20) for _ in range(7)]
    assert ended_by_overlap(transport) == []


async def test_nats_sends_few_copies_for_overlapping_subscriptions() -> None:
    worker = Worker()
    sessions = [worker.open() for _ in range(4)]
    for number, (session, _) in enumerate(sessions):
        await act(session, "subscribe", *masks(20)[number * 4 : number * 4 + 4], "a.>")
    worker.link.deliver("a.b.c.d.e.f")
    await turns()
    assert [transport.data for _, transport in sessions] == [[1] * 5] * 4
    assert worker.link.copies <= 8
    assert worker.sessions.counters.messages == worker.link.copies


async def test_denied_messages_do_not_count_as_overlapping() -> None:
    worker = Worker(max_overlap=2)
    session, transport = worker.open(Permissions([">"], ["*.secret"]))
    await act(session, "subscribe", "a.*", "a.>", ">", "*.*")
    worker.link.deliver("a.secret")
    await turns()
    assert (transport.data, ended_by_overlap(transport)) == ([], [])
    worker.link.deliver("a.x")
    await turns()
    assert ended_by_overlap(transport) == [">", "*.*"]


async def test_overlapping_subscriptions_of_slow_client_end_too() -> None:
    worker = Worker(max_overlap=2)
    session, transport = worker.open()
    await act(session, "subscribe", "a.*", "a.>", ">", "*.*")
    fill(transport)
    worker.link.deliver("a.x")
    await turns()
    assert session.subscriptions == ("a.*", "a.>")
    transport.take()
    gaps = {frame["subjects"][0]: frame["lost"] for frame in transport.frames if frame["type"] == "gap"}
    assert gaps == {"a.*": 1, "a.>": 1}
    assert ended_by_overlap(transport) == [">", "*.*"]


async def test_subscribe_again_to_pattern_that_ends_meanwhile_by_overlap() -> None:
    worker = Worker(confirms=False, max_overlap=2)
    session, transport = worker.open()
    first = asyncio.create_task(act(session, "subscribe", "a.*", "a.>"))
    await turns()
    worker.link.confirm("a.*", "a.>")
    await first
    third = asyncio.create_task(act(session, "subscribe", "*.*"))
    await turns()
    worker.link.confirm("*.*")
    await third
    again = asyncio.create_task(act(session, "subscribe", "*.*", "new"))
    await turns()
    worker.link.deliver("a.x")
    await turns()
    assert ended_by_overlap(transport) == ["*.*"]
    worker.link.confirm("new")
    assert (await again).success
    assert "*.*" in session.subscriptions
    worker.link.deliver("a.x")
    await turns()
    assert session.subscriptions == ("a.*", "a.>", "new")


async def test_session_that_ends_with_overlapping_messages_is_closed_once() -> None:
    worker = Worker(max_overlap=2)
    session, transport = worker.open()
    await act(session, "subscribe", "a.*", "a.>", ">", "*.*")
    worker.link.deliver("a.x")
    session.close(CloseCode.GOING_AWAY, "test")
    await turns()
    assert transport.types[-1] == "close"
    assert ended_by_overlap(transport) == []
    await asyncio.sleep(10)
    assert (worker.link.patterns, worker.link.faults) == ([], [])


# A flush that takes several turns of the event loop


@pytest.fixture(params=[20_000, 0], ids=["planned", "crowd"])
def one_write_per_turn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fan_out, "_COST_PER_TURN", 1)
    monkeypatch.setattr(fan_out, "_RESERVE", 0)
    monkeypatch.setattr(fan_out, "_MAX_PLANNED", request.param)


async def behind(worker: Worker, count: int = 4) -> list[tuple[Session, FakeTransport]]:
    """Return sessions of which all but one wait for two messages, which were flushed."""
    opened = [worker.open(Permissions([">"], identity=f"user {number}")) for number in range(count)]
    for session, _ in opened:
        await act(session, "subscribe", "a", "b")
    for number, subject in enumerate("ab"):
        worker.link.deliver(subject, b"%d" % number)
    worker.hub.flush()
    assert worker.hub.is_behind
    return sorted(opened, key=lambda each: each[1].data == [])


@pytest.mark.usefixtures("one_write_per_turn")
async def test_all_sessions_get_messages_of_flush_in_order() -> None:
    worker = Worker()
    opened = await behind(worker, 20)
    await until(lambda: not worker.hub.is_behind)
    worker.link.deliver("a", b"2")
    await until(lambda: all(transport.data == [0, 1, 2] for _, transport in opened))
    assert worker.sessions.counters.deliveries == 60


FRAMES: dict[str, Callable[[Session], object]] = {
    "pong": lambda session: act(session, "ping"),
    "unsubscribe": lambda session: act(session, "unsubscribe", "a"),
    "subscribe": lambda session: act(session, "subscribe", "c"),
    "permissions": lambda session: session.update_permissions(Permissions(["b"])),
    "gap": lambda session: session.messages_lost("a"),
    "close": lambda session: session.close(CloseCode.GOING_AWAY, "bye"),
    "age": lambda session: session.end_old_stream(),
}


@pytest.mark.usefixtures("one_write_per_turn")
@pytest.mark.parametrize("frame", FRAMES)
async def test_frame_follows_messages_that_wait(frame: str) -> None:
    worker = Worker()
    opened = await behind(worker)
    for session, transport in opened:
        waited = FRAMES[frame](session)
        if asyncio.iscoroutine(waited):
            await waited
        assert transport.types[2:4] == ["message", "message"]
        assert len(transport.types) == 5
    await until(lambda: not worker.hub.is_behind)
    assert all(transport.data == [0, 1] for _, transport in opened)


@pytest.mark.usefixtures("one_write_per_turn")
@pytest.mark.parametrize(("event", "frame"), [("lose", "status"), ("refuse", "unsubscribed")])
async def test_event_of_nats_follows_messages_that_wait(event: str, frame: str) -> None:
    worker = Worker()
    opened = await behind(worker)
    getattr(worker.link, event)(*(["a"] if event == "refuse" else []))
    await until(lambda: all(frame in transport.types for _, transport in opened))
    assert all(transport.types[2:] == ["message", "message", frame] for _, transport in opened)


@pytest.mark.usefixtures("one_write_per_turn")
async def test_session_of_lost_connection_waits_for_nothing() -> None:
    worker = Worker()
    opened = await behind(worker)
    for session, _ in opened:
        session.connection_lost(1006)
    await until(lambda: not worker.hub.is_behind)
    await turns()
    assert len(worker.sessions) == 0


@pytest.mark.usefixtures("one_write_per_turn")
@pytest.mark.parametrize("end", ["revoke", "expire"])
async def test_session_without_access_gets_no_message_that_waits(end: str, wall_clock: WallClock) -> None:
    worker = Worker()
    opened = await behind(worker)
    (session, transport) = opened[-1]
    assert transport.data == []
    if end == "revoke":
        worker.sessions.revoke(session.identity, None)
    else:
        expiring = Permissions([">"], expires=wall_clock.time() + 1, identity=session.identity)
        worker.sessions.expirations.put(session.key, expiring.expires_at)
        leaping().block(2)
    await until(lambda: not worker.hub.is_behind)
    await until(lambda: session.closed)
    assert transport.types == ["welcome", "reply", "close"]
    assert [other.data for _, other in opened[:-1]] == [[0, 1]] * 3


@pytest.mark.usefixtures("one_write_per_turn")
async def test_new_subscription_gets_no_message_that_waits() -> None:
    worker = Worker()
    opened = await behind(worker)
    session, transport = worker.open()
    await act(session, "subscribe", "a")
    await until(lambda: not worker.hub.is_behind)
    worker.link.deliver("a", b"2")
    await until(lambda: all(other.data == [0, 1, 2] for _, other in opened))
    assert transport.data in ([], [2])
    await until(lambda: transport.data == [2])


@pytest.mark.usefixtures("one_write_per_turn")
async def test_slow_client_keeps_messages_that_wait() -> None:
    worker = Worker(overflow="latest")
    (_, _), (session, transport), *_ = await behind(worker)
    assert transport.data == []
    session.pause_writing()
    await until(lambda: not worker.hub.is_behind)
    assert transport.data == []
    session.resume_writing()
    assert transport.data == [0, 1]


@pytest.mark.usefixtures("one_write_per_turn")
async def test_other_work_is_done_between_the_turns_of_a_flush() -> None:
    worker = Worker()
    opened = await behind(worker, 20)
    seen = []
    while worker.hub.is_behind:
        seen.append(sum(transport.data == [0, 1] for _, transport in opened))
        await asyncio.sleep(0)
    assert seen[:19] == list(range(1, 20))


async def waiting_for(worker: Worker, subjects: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Session, Any]]:
    """Return a session for each subject. All of them wait for a message, of which a turn may write three."""
    monkeypatch.setattr(fan_out, "_MAX_PLANNED", 0)
    monkeypatch.setattr(fan_out, "_FEW", 0)
    others = [worker.open() for _ in range(6)]
    opened = [worker.open() for _ in subjects]
    for (session, _), subject in zip([*others, *opened], [*"c" * 6, *subjects], strict=True):
        await act(session, "subscribe", subject)
    worker.link.deliver("c")
    for subject in dict.fromkeys(subjects):
        worker.link.deliver(subject, b'"%b"' % (b"x" * 6_000))
    monkeypatch.setattr(fan_out, "_COST_PER_TURN", 6)
    worker.hub.flush()
    assert [len(transport.data) for _, transport in [*others, *opened]] == [1] * 6 + [0] * len(subjects)
    return opened


@pytest.mark.parametrize("subjects", ["aaaabb", "aabbbb"])
@pytest.mark.parametrize("index", range(6))
async def test_end_of_slow_client_keeps_no_messages_from_others(
    subjects: str, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(overflow="close")
    opened = await waiting_for(worker, subjects, monkeypatch)
    fill(opened[index][1])
    await until(lambda: not worker.hub.is_behind)
    assert [session.closed for session, _ in opened] == [other == index for other in range(6)]
    assert [len(transport.data) for _, transport in opened] == [int(other != index) for other in range(6)]


async def test_session_that_expires_at_the_end_of_slow_client_gets_no_message(
    monkeypatch: pytest.MonkeyPatch, wall_clock: WallClock
) -> None:
    worker = Worker(overflow="close")
    (expiring, transport), *_, (_, slow) = await waiting_for(worker, "ab", monkeypatch)
    fill(slow)
    worker.sessions.expirations.put(expiring.key, wall_clock.time() + 1)

    def skip_late(session: Session, messages: Any) -> None:
        leaping().block(2)
        skip(session, messages)

    skip = Session.skip
    monkeypatch.setattr(Session, "skip", skip_late)
    await until(lambda: not worker.hub.is_behind)
    assert transport.types == ["welcome", "reply", "close"]


def test_commands_are_executed_in_another_event_loop() -> None:
    async def ended() -> Worker:
        worker = Worker()
        await worker.sessions._context.turns.take("a", 16)
        # Before the turn after the command.
        first.stop()
        return worker

    async def again(worker: Worker) -> None:
        worker.sessions.start()
        session, _ = worker.open()
        for _ in range(20):
            assert (await act(session, "ping")).success
        session.close(CloseCode.GOING_AWAY, "bye")

    first = asyncio.new_event_loop()
    task = first.create_task(ended())
    first.run_forever()
    first.close()
    asyncio.run(asyncio.wait_for(again(task.result()), 30))
