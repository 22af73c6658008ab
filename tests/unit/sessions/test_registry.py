import gc
import hashlib
import types
import weakref

import pytest

from sanic_nats_bridge.errors import CloseCode, UnknownSession
from sanic_nats_bridge.protocol.session_ids import digest, worker_of
from sanic_nats_bridge.sessions.session import Session
from tests.support.bridge import until
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
