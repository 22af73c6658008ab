import asyncio
import gc
import hashlib
import tracemalloc
import types
import weakref
from typing import Any

import pytest

from sanic_nats_bridge.auth.permissions import Permissions
from sanic_nats_bridge.errors import CloseCode, UnknownSession
from sanic_nats_bridge.protocol.encoding import WireFormat
from sanic_nats_bridge.protocol.session_ids import digest, worker_of
from sanic_nats_bridge.sessions.session import Session
from tests.support.bridge import until
from tests.support.clock import WallClock, leaping, turns
from tests.support.fakes import FakeTransport
from tests.unit.sessions.test_session import EVERYTHING, Worker, act


async def test_full_worker_rejects_new_session_until_another_ends() -> None:
    worker = Worker(max_sessions=2)
    (first, _), _ = worker.open(), worker.open()
    transport = FakeTransport()
    with worker.sessions.pending_connections.connecting() as pending:
        assert worker.sessions.open(transport, EVERYTHING, pending) is None
    assert len(worker.sessions) == 2
    (close,) = transport.frames
    assert (close["type"], close["code"], close["reconnect"]) == ("close", 1013, True)
    assert close["retry"] >= 5_000
    first.connection_lost(1000)
    worker.open()
    assert len(worker.sessions) == 2


async def test_session_ids_are_unique_and_unguessable() -> None:
    worker = Worker()
    ids = {worker.open()[1].frames[0]["session"] for _ in range(500)}
    assert len(ids) == 500
    assert min(map(len, ids)) >= 22


async def test_session_id_is_not_retained() -> None:
    worker = Worker()
    session, transport = worker.open()
    secret = transport.frames[0]["session"]
    await act(session, "subscribe", "a")
    held, seen = [session, worker.sessions], set[int]()
    while held:
        thing = held.pop()
        assert thing != secret
        if id(thing) not in seen and not isinstance(
            thing, FakeTransport | type | types.ModuleType | types.FunctionType
        ):
            seen.add(id(thing))
            held += gc.get_referents(thing)
    assert session.key == hashlib.sha256(secret.encode()).hexdigest()


async def test_session_is_found_by_key_only_while_open() -> None:
    worker = Worker()
    session, transport = worker.open()
    secret = transport.frames[0]["session"]
    assert worker.sessions.get(digest(secret), None) is session
    for unknown in (secret, "", "x", digest(session.key)):
        with pytest.raises(UnknownSession):
            worker.sessions.get(unknown, None)
    session.connection_lost(1000)
    with pytest.raises(UnknownSession):
        worker.sessions.get(session.key, None)


async def test_restarted_registry_has_new_worker_id() -> None:
    worker = Worker()
    before = worker.sessions.worker
    worker.sessions.close_all("test")
    worker.sessions.start()
    session, transport = worker.open()
    assert worker_of(transport.frames[0]["session"]) == worker.sessions.worker != before
    assert not session.closed


async def test_opened_and_closed_callbacks_are_called_once() -> None:
    worker = Worker()
    session, _ = worker.open()
    assert (worker.opened, worker.closed) == ([session.key], [])
    session.close(CloseCode.INTERNAL, "test")
    session.connection_lost(1006)
    assert (worker.opened, worker.closed) == ([session.key], [(session.key, 1011)])


async def test_close_all_closes_every_session_with_1001() -> None:
    worker = Worker()
    transports = [worker.open()[1] for _ in range(3)]
    worker.sessions.close_all("test")
    assert len(worker.sessions) == 0
    assert [transport.types for transport in transports] == [["welcome", "close"]] * 3
    closes = [transport.frames[-1] for transport in transports]
    assert {(close["code"], close["reconnect"]) for close in closes} == {(1001, True)}
    assert all(0 <= close["retry"] <= 10_000 for close in closes)


@pytest.mark.parametrize("ending", ["gone", "close"])
async def test_ended_session_releases_subscriptions_and_memory(ending: str) -> None:
    worker = Worker()

    async def live() -> weakref.ref[Session]:
        session, _ = worker.open()
        await act(session, "subscribe", "a", "b.>")
        if ending == "gone":
            session.connection_lost(1006)
        else:
            session.close(CloseCode.GOING_AWAY, "test")
        return weakref.ref(session)

    remains = await live()
    await until(lambda: worker.hub.patterns == ())
    gc.collect()
    assert remains() is None
    assert worker.link.patterns == []


async def test_shared_subscription_remains_after_one_session_ends() -> None:
    worker = Worker()
    (leaver, _), (stayer, transport) = worker.open(), worker.open()
    for session in (leaver, stayer):
        await act(session, "subscribe", "a")
    leaver.connection_lost(1006)
    worker.link.deliver("a")
    await until(lambda: transport.data == [1])
    assert worker.link.sent == [("SUB", "a")]


async def test_new_session_is_rejected_after_close_all() -> None:
    worker = Worker()
    worker.sessions.close_all("test")
    transport = FakeTransport()
    with worker.sessions.pending_connections.connecting() as pending:
        assert worker.sessions.open(transport, EVERYTHING, pending) is None
    (close,) = transport.frames
    assert (close["type"], close["code"], close["reason"], close["reconnect"]) == ("close", 1001, "test", True)


# The age of event streams

EVENT_PADDING = b"event: padding\n" + b": x\n" * 1_000 + b"\n"


def open_stream(worker: Worker, permissions: Permissions = EVERYTHING) -> tuple[Session, FakeTransport]:
    return worker.open(permissions, WireFormat.EVENTS)


async def test_event_streams_opened_together_end_one_after_another() -> None:
    worker = Worker(max_stream_age=1000, write_timeout=7)
    began = asyncio.get_running_loop().time()
    ended: dict[str, float] = {}
    worker.sessions._on_closed = lambda session, _: ended.update({session.key: asyncio.get_running_loop().time()})
    transports = [open_stream(worker)[1] for _ in range(200)]
    websocket, _ = worker.open()
    await asyncio.sleep(740)
    assert len(worker.sessions) == 201
    await asyncio.sleep(261)
    assert list(worker.sessions) == [websocket]
    ages = sorted(at - began for at in ended.values())
    assert len(set(ages)) == 200
    assert 750 <= ages[0] < 800
    assert 950 < ages[-1] <= 1000.001
    for transport in transports:
        close = transport.frames[-1]
        assert (close["type"], close["code"], close["reconnect"]) == ("close", 1001, True)
        assert 0 <= close["retry"] <= 100
        assert transport.finish_seconds == 7
    assert worker.sessions.counters.closes == {"1001": 200}
    await asyncio.sleep(80_000)
    assert not websocket.closed


async def test_event_stream_has_no_age_if_setting_is_zero() -> None:
    worker = Worker(max_stream_age=0)
    session, _ = open_stream(worker)
    await asyncio.sleep(1_000_000)
    assert not session.closed


async def test_age_does_not_follow_the_wall_clock(wall_clock: WallClock) -> None:
    worker = Worker(max_stream_age=1000)
    session, _ = open_stream(worker)
    wall_clock.set_by(100_000)
    await asyncio.sleep(700)
    assert not session.closed
    wall_clock.set_by(-200_000)
    await asyncio.sleep(301)
    assert session.closed


async def test_ended_streams_leave_nothing_in_queue_of_ages() -> None:
    worker = Worker(max_stream_age=1000)
    for _ in range(300):
        session, _ = open_stream(worker)
        session.connection_lost(1006)
    assert worker.sessions._stream_ages._queue == []
    assert worker.sessions._stream_ages._timer is None


@pytest.mark.parametrize("overflow", ["gap", "latest"])
async def test_old_stream_gets_all_that_was_received_before_its_close(overflow: str) -> None:
    worker = Worker(max_stream_age=1000, flush_interval=1, overflow=overflow)
    session, transport = open_stream(worker)
    await act(session, "subscribe", "a", "b")
    worker.link.deliver("a", b"1")
    worker.hub.flush()
    transport.limit = 1_000
    transport.write(EVENT_PADDING)
    worker.link.deliver("a", b"2")
    worker.hub.flush()
    # Not even flushed when the stream ends.
    worker.link.deliver("b", b"3")
    session.end_old_stream()
    await asyncio.sleep(2)
    kept: list[tuple[Any, ...]] = [("gap", "a"), ("gap", "b")]
    if overflow == "latest":
        kept = [("message", 2), ("message", 3)]
    shown = [(frame["type"], *frame.get("subjects", [frame.get("data")])) for frame in transport.frames]
    assert shown[2:] == [("message", 1), *kept, ("close", None)]
    assert worker.sessions.counters.lost["slow_consumer"] == (2 if overflow == "gap" else 0)


async def test_permissions_that_expire_first_decide_the_end_of_a_stream(wall_clock: WallClock) -> None:
    worker = Worker(max_stream_age=1000)
    session, transport = open_stream(worker, Permissions([">"], expires=wall_clock.time() + 700))
    late, late_transport = open_stream(worker, Permissions([">"], expires=wall_clock.time() + 5000))
    await asyncio.sleep(2000)
    assert session.closed
    assert late.closed
    assert [each.frames[-1]["code"] for each in (transport, late_transport)] == [4401, 1001]
    # Both at once: what the permissions no longer allow isn't written.
    session, transport = open_stream(worker, Permissions([">"], expires=wall_clock.time() + 500))
    await act(session, "subscribe", "a")
    worker.link.deliver("a")
    leaping().block(600)
    session.end_old_stream()
    assert [frame["type"] for frame in transport.frames] == ["welcome", "reply", "close"]
    assert transport.frames[-1]["code"] == 4401


async def test_old_streams_that_end_each_other_end_once() -> None:
    worker = Worker(max_stream_age=1000, overflow="close")
    streams = [open_stream(worker) for _ in range(3)]
    for session, transport in streams:
        await act(session, "subscribe", "a")
        transport.limit = 1_000
        transport.write(EVENT_PADDING)
    worker.link.deliver("a")
    leaping().block(1001)
    worker.sessions._stream_ages.expire_due()
    assert [transport.frames[-1]["code"] for _, transport in streams] == [1013] * 3
    assert len(worker.closed) == 3


# Many sessions


async def test_close_all_ends_many_sessions_over_turns_of_the_loop() -> None:
    worker = Worker()
    opened = [worker.open() for _ in range(500)]
    await act(opened[-1][0], "subscribe", "a")
    worker.sessions.close_all("test")
    assert 0 < len(worker.sessions) < 500
    opened[-2][0].connection_lost(1000)
    with worker.sessions.pending_connections.connecting() as pending:
        assert worker.sessions.open(FakeTransport(), EVERYTHING, pending) is None
    counts = []
    while worker.sessions:
        counts.append(len(worker.sessions))
        await asyncio.sleep(0)
    assert len(counts) >= 5
    await worker.sessions.closed()
    assert [transport.types[-1] for _, transport in opened[:-2]] == ["close"] * 498
    assert opened[-2][1].types == ["welcome"]


async def test_closed_waits_for_last_session() -> None:
    worker = Worker()
    await worker.sessions.closed()
    for _ in range(500):
        worker.open()
    worker.sessions.close_all("test")
    await worker.sessions.closed()
    assert len(worker.sessions) == 0


async def test_change_of_connection_is_reported_to_many_sessions_over_turns_of_the_loop() -> None:
    worker = Worker(max_sessions=3_000)
    transports = [worker.open()[1] for _ in range(1_500)]

    def told(status: str) -> int:
        return sum(frame == {"type": "status", "nats": status} for each in transports for frame in each.frames)

    worker.link.lose()
    assert 0 < told("disconnected") < 1_500
    await until(lambda: told("disconnected") == 1_500)
    worker.link.come_back()
    while told("connected") == 0:
        await turns(1)
    assert told("connected") < 1_500
    await until(lambda: told("connected") == 1_500)


async def test_session_is_not_notified_of_outdated_change() -> None:
    worker = Worker(max_sessions=3_000)
    transports = [worker.open()[1] for _ in range(1_500)]
    for times in range(1, 4):
        worker.link.lose()
        worker.link.come_back()
        while statuses(transports[0]).count("connected") < times:
            await turns(1)
    await until(lambda: statuses(transports[-1])[-1:] == ["connected"])
    assert statuses(transports[0]) == ["disconnected", "connected"] * 3
    assert {statuses(each)[-1] for each in transports} == {"connected"}
    assert len(statuses(transports[-1])) < 6


def statuses(transport: FakeTransport) -> list[str]:
    return [frame["nats"] for frame in transport.frames if frame["type"] == "status"]


async def subscribed(worker: Worker, count: int, *patterns: str) -> list[tuple[Session, FakeTransport]]:
    """Open sessions that are subscribed to the patterns."""
    opened = [worker.open() for _ in range(count)]
    for session, transport in opened:
        await act(session, "subscribe", *patterns)
        transport.writes.clear()
    return opened


def gaps(opened: list[tuple[Session, FakeTransport]]) -> list[int]:
    """Return the number of gaps that each session has got."""
    return [transport.types.count("gap") for _, transport in opened]


async def test_gaps_of_many_sessions_precede_all_messages_of_the_new_connection() -> None:
    worker = Worker(max_sessions=3_000)
    opened = await subscribed(worker, 1_500, "a", "b")
    worker.link.lose()
    await until(lambda: opened[-1][1].types == ["status"])
    worker.link.come_back()
    seen = [sum(gaps(opened))]
    commands = 0
    while seen[-1] < 1_500:
        assert worker.link.patterns == []
        # Other work runs in between.
        commands += (await act(opened[-1][0], "ping")).success
        await asyncio.sleep(0)
        seen.append(sum(gaps(opened)))
    assert 0 < seen[0] < seen[1] < seen[2] < 1_500
    assert commands >= 5
    await until(lambda: worker.hub.connected)
    worker.link.deliver("a")
    await turns()
    for _, transport in opened[:-1]:
        assert transport.types == ["status", "gap", "status", "message"]
        assert transport.frames[1]["subjects"] == ["a", "b"]
    assert [kind for kind in opened[-1][1].types if kind != "reply"] == ["status", "gap", "status", "message"]
    assert worker.sessions.counters.gaps["nats_reconnect"] == 3_000


async def test_status_of_the_loss_precedes_gap_if_connection_is_back_at_once() -> None:
    worker = Worker(max_sessions=3_000)
    opened = await subscribed(worker, 1_500, "a")
    worker.link.lose()
    for session, _ in opened[:700]:
        session.connection_lost(1006)
    worker.link.come_back()
    await until(lambda: worker.hub.connected)
    await until(lambda: opened[-1][1].types == ["status", "gap", "status"])
    assert all(transport.types == ["status", "gap", "status"] for _, transport in opened[700:])


async def test_loss_while_gaps_are_sent_brings_another_gap() -> None:
    worker = Worker(max_sessions=3_000)
    opened = await subscribed(worker, 1_500, "a")
    worker.link.lose()
    await until(lambda: opened[-1][1].types == ["status"])
    worker.link.come_back()
    first = gaps(opened)
    assert 0 < sum(first) < 1_500
    worker.link.lose()
    await turns(20)
    assert gaps(opened) == first
    assert worker.link.patterns == []
    worker.link.come_back()
    await until(lambda: worker.hub.connected)
    assert gaps(opened) == [1 + count for count in first]
    assert worker.link.faults == []


async def test_subscription_made_while_gaps_are_sent_has_none() -> None:
    worker = Worker(max_sessions=3_000)
    await subscribed(worker, 1, "b")
    opened = await subscribed(worker, 1_500, "a")
    worker.link.lose()
    await until(lambda: opened[-1][1].types == ["status"])
    worker.link.come_back()
    session, transport = opened[-1]
    assert (await act(session, "subscribe", "b", "c")).active is False
    await act(session, "unsubscribe", "c")
    late, late_transport = worker.open()
    assert (await act(late, "subscribe", "a")).active is False
    await until(lambda: transport.types[-1] == late_transport.types[-1] == "status")
    assert [frame["subjects"] for frame in transport.frames if frame["type"] == "gap"] == [["a"]]
    assert late_transport.types == ["welcome", "reply", "status"]
    assert sorted(worker.link.patterns) == ["a", "b"]


async def test_pattern_lost_before_its_confirmation_has_gap_although_it_is_requested_again() -> None:
    worker = Worker()
    ((session, transport),) = await subscribed(worker, 1, "a")
    worker.link.lose()
    worker.link.confirms = False
    worker.link.come_back()
    worker.link.lose()
    assert (await act(session, "subscribe", "a")).active is False
    worker.link.come_back()
    assert transport.types == ["status", "gap", "reply", "gap"]


async def test_refused_pattern_has_no_gap_in_later_loss() -> None:
    worker = Worker(max_sessions=3_000)
    opened = await subscribed(worker, 300, "a", "b")
    worker.link.lose()
    worker.link.come_back()
    await until(lambda: worker.hub.connected)
    worker.link.refuse("a")
    worker.link.lose()
    await until(lambda: "unsubscribed" in opened[-1][1].types)
    worker.link.come_back()
    await until(lambda: worker.hub.connected)
    for _, transport in opened:
        assert [frame["subjects"] for frame in transport.frames if frame["type"] == "gap"] == [["a", "b"], ["b"]]


# Many sessions that expire at once


async def test_many_expired_sessions_end_over_turns_and_get_no_message_meanwhile(wall_clock: WallClock) -> None:
    worker = Worker(max_sessions=3_000)
    expires = wall_clock.time() + 100
    opened = [worker.open(Permissions([">"], expires=expires)) for _ in range(1_000)]
    stayer, _ = worker.open()
    for session, _ in opened:
        await act(session, "subscribe", "a")
    worker.link.deliver("a", b"1")
    await turns()
    worker.link.deliver("a", b"2")
    leaping().block(101)
    worker.hub.flush()
    assert all(session.closed for session, _ in opened)
    counts = [len(worker.sessions)]
    while counts[-1] > 1:
        worker.link.deliver("a", b"3")
        assert (await act(stayer, "ping")).success
        await asyncio.sleep(0)
        counts.append(len(worker.sessions))
    assert 1_000 > counts[0] > counts[1] > counts[2] > 1
    assert len(counts) >= 10
    for _, transport in opened:
        assert transport.types == ["welcome", "reply", "message", "close"]
        assert (transport.data, transport.frames[-1]["code"]) == ([1], 4401)
        assert transport.finished is not None
    assert worker.sessions.counters.closes == {"4401": 1_000}
    assert list(worker.sessions) == [stayer]
    await until(lambda: worker.hub.patterns == ())


async def open_expiring(worker: Worker, wall_clock: WallClock) -> tuple[Session, FakeTransport]:
    """Return a session that expires after many others."""
    for _ in range(399):
        worker.open(Permissions([">"], expires=wall_clock.time() + 100))
    session, transport = worker.open(Permissions([">"], identity="ada", expires=wall_clock.time() + 100.5))
    await act(session, "subscribe", "a")
    transport.writes.clear()
    return session, transport


def expire(worker: Worker, session: Session) -> None:
    """Let the sessions expire. This one has its turn to end later."""
    leaping().block(101)
    worker.sessions.expirations.expire_due()
    assert session.closed
    assert session in list(worker.sessions)


async def expired(worker: Worker, wall_clock: WallClock) -> tuple[Session, FakeTransport]:
    """Return a session that has expired, but has its turn to end later."""
    session, transport = await open_expiring(worker, wall_clock)
    expire(worker, session)
    return session, transport


async def test_expired_session_executes_no_command_before_its_end(wall_clock: WallClock) -> None:
    session, transport = await expired(Worker(), wall_clock)
    with pytest.raises(UnknownSession):
        await act(session, "subscribe", "b")
    assert session.subscriptions == ("a",)
    await turns(20)
    assert transport.types == ["close"]


async def test_new_permissions_do_not_renew_expired_session(wall_clock: WallClock) -> None:
    worker = Worker()
    _, transport = await expired(worker, wall_clock)
    assert worker.sessions.update_permissions(EVERYTHING, "ada", None) == 0
    assert worker.sessions.revoke("ada", None) == 0
    await turns(20)
    assert (transport.types, transport.frames[-1]["code"]) == (["close"], 4401)
    assert len(worker.sessions) == 0


async def test_connection_lost_before_end_of_expired_session_ends_it_once(wall_clock: WallClock) -> None:
    worker = Worker()
    session, transport = await expired(worker, wall_clock)
    session.connection_lost(1000)
    assert session not in list(worker.sessions)
    await turns(20)
    assert transport.types == []
    assert [code for key, code in worker.closed if key == session.key] == [4401]
    assert len(worker.sessions) == 0


@pytest.mark.parametrize("overflow", ["gap", "latest", "close"])
async def test_expired_session_of_slow_client_gets_nothing_before_its_end(wall_clock: WallClock, overflow: str) -> None:
    worker = Worker(overflow=overflow)
    session, transport = await open_expiring(worker, wall_clock)
    transport.limit = 1_000
    transport.write(EVENT_PADDING)
    transport.writes.clear()
    expire(worker, session)
    waiting = asyncio.create_task(session.wait_until_writable())
    for _ in range(2):
        worker.link.deliver("a")
        worker.hub.flush()
        transport.take()
    assert transport.writes == []
    await turns(20)
    assert transport.types == ["close"]
    await waiting


async def test_command_in_progress_fails_when_session_expires(wall_clock: WallClock) -> None:
    worker = Worker()
    session, transport = await open_expiring(worker, wall_clock)
    worker.link.confirms = False
    command = asyncio.create_task(act(session, "subscribe", "b"))
    await turns()
    worker.link.confirm("b")
    expire(worker, session)
    with pytest.raises(UnknownSession):
        await command
    assert session.subscriptions == ("a",)
    await turns(20)
    assert transport.types == ["close"]
    await until(lambda: worker.hub.patterns == ())


async def test_expired_session_gets_no_gap_before_its_end(wall_clock: WallClock) -> None:
    worker = Worker()
    session, transport = await expired(worker, wall_clock)
    worker.link.lose()
    session.send_gaps()
    assert (transport.types, worker.sessions.counters.gaps["nats_reconnect"]) == ([], 0)


async def test_closed_waits_for_expired_sessions(wall_clock: WallClock) -> None:
    worker = Worker()
    await expired(worker, wall_clock)
    worker.sessions.close_all("test")
    await worker.sessions.closed()
    assert len(worker.sessions) == 0
    assert worker.sessions.counters.closes == {"4401": 400}


async def test_many_old_streams_end_over_turns_of_the_loop() -> None:
    worker = Worker(max_stream_age=1000)
    for _ in range(500):
        open_stream(worker)
    leaping().block(1001)
    worker.sessions._stream_ages.expire_due()
    counts = [len(worker.sessions)]
    while counts[-1]:
        await asyncio.sleep(0)
        counts.append(len(worker.sessions))
    assert 500 > counts[0] > counts[1] > 0
    assert worker.sessions.counters.closes == {"1001": 500}


async def test_loss_of_connection_looks_at_no_session() -> None:
    class Unseen(dict[str, Any]):
        def values(self) -> Any:
            raise AssertionError("a look at all sessions")

    worker = Worker()
    opened = await subscribed(worker, 3, "a")
    worker.sessions._context.nats = "disconnected"
    sessions, worker.sessions._sessions = worker.sessions._sessions, Unseen()
    worker.link.lose()
    worker.sessions._sessions = sessions
    worker.link.come_back()
    assert gaps(opened) == [1] * 3


async def test_session_that_ends_before_its_notification_gets_no_status() -> None:
    worker = Worker(max_sessions=3_000)
    opened = [worker.open() for _ in range(1_500)]
    worker.link.lose()
    session, transport = opened[-1]
    session.close(CloseCode.INTERNAL, "test")
    await turns()
    assert transport.types == ["welcome", "close"]


@pytest.mark.parametrize("pattern", [None, "a"])
async def test_streams_that_no_client_uses_take_no_memory_for_each_session(pattern: str | None) -> None:
    count = 300

    async def size_of(**settings: Any) -> int:
        worker = Worker(**settings)
        sessions = []
        gc.collect()
        tracemalloc.start()
        try:
            for _ in range(count):
                session, transport = worker.open()
                if pattern is not None:
                    await act(session, "subscribe", pattern)
                # A transport keeps nothing that was written.
                transport.writes.clear()
                sessions.append(session)
            gc.collect()
            return tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()

    await size_of()
    without, unused = await size_of(), await size_of(streams={"ORDERS": ["a"]})
    assert unused - without <= 100 * count
    # At least the dictionary of the session's subscriptions.
    assert without > 100 * count
