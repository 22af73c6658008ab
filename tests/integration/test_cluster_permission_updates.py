import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Coroutine
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from sanic import Request

from sanic_nats_bridge import Permissions
from sanic_nats_bridge.cluster.permission_updates import PermissionUpdates
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import Bridge, running, until
from tests.support.clock import held
from tests.support.nats import Proxy
from tests.unit.sessions.test_session import EVERYTHING, Worker, act


async def permissions(request: Request) -> Permissions | None:
    """Return permissions with the identity from the cookie, which isn't verified."""
    return Permissions(["*.open", "*.staff"], identity=request.cookies.get("user"))


@contextlib.asynccontextmanager
async def workers(server: NatsServer, **settings: Any) -> AsyncIterator[tuple[Bridge, Bridge]]:
    """Serve two bridges that are workers of one app."""
    options: dict[str, Any] = {"servers": server.url, "control_prefix": f"_T.{uuid4().hex}", "permissions": permissions}
    options |= settings
    async with running(**options) as here, running(**options) as there:
        yield here, there


async def test_revoke_closes_sessions_on_every_worker(shared_nats: NatsServer) -> None:
    async with (
        workers(shared_nats) as (here, there),
        here.events(Cookie="user=ada") as mine,
        there.events(Cookie="user=ada") as theirs,
        there.events(Cookie="user=bob") as other,
    ):
        assert await here.extension.revoke(identity="ada") == (1, True)
        for client in (mine, theirs):
            frame = await client.frame()
            assert (frame["type"], frame["code"], frame["reconnect"]) == ("close", 4403, False)
        assert await there.extension.revoke(identity="bob") == (1, True)
        assert (await other.frame())["code"] == 4403


async def test_browsers_that_fill_nats_limit_cannot_prevent_revocation(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "sanic.root.nats_bridge")
    subjects = [f"{number}.open" for number in range(12)]
    with NatsServer(config="max_subscriptions: 8") as server:
        async with workers(server) as (here, there), there.events(Cookie="user=ada") as client:
            server.stop()
            await until(lambda: not there.runtime.sessions.hub.connected)
            # Requested while NATS is disconnected, and so subscribed to as soon as it is back.
            command = {"session": client.session, "subjects": subjects}
            assert (await there.post("/subscribe", command, Cookie="user=ada"))[1]["active"] is False
            server.start()
            refused: list[str] = []
            while len(refused) < len(subjects) - 5:
                frame = await client.frame()
                if frame["type"] == "unsubscribed":
                    assert frame["code"] == "nats.refused"
                    refused += frame["subjects"]
            await until(lambda: here.runtime.control.ready and there.runtime.control.ready)
            assert "cannot reach each other" not in caplog.text
            assert await here.extension.revoke(identity="ada") == (0, True)
            while (frame := await client.frame())["type"] != "close":
                pass
            assert frame["code"] == 4403


@pytest.mark.parametrize("name", ["session", "key"])
async def test_session_on_other_worker_is_revoked_by_id_or_key(shared_nats: NatsServer, name: str) -> None:
    async with workers(shared_nats) as (here, there), there.events() as client, there.events() as other:
        assert await here.extension.revoke(session=getattr(client, name)) == (0, True)
        assert (await client.frame())["code"] == 4403
        assert [session.key for session in there.extension.sessions] == [other.key]


async def test_update_permissions_reaches_sessions_on_other_workers(shared_nats: NatsServer) -> None:
    async with (
        workers(shared_nats) as (here, there),
        there.events("a.open", "a.staff", Cookie="user=ada") as client,
        there.events("a.staff", Cookie="user=bob") as other,
    ):
        narrower = Permissions(["*.open"], identity="ada", expires=datetime.fromtimestamp(time.time() + 60, UTC))
        assert await here.extension.update_permissions(narrower, identity="ada") == (0, True)
        frame = await client.frame()
        assert (frame["type"], frame["subjects"], frame["code"]) == ("unsubscribed", ["a.staff"], "subject.forbidden")
        (session,) = (each for each in there.extension.sessions if each.key == client.key)
        assert session.permissions == Permissions(["*.open"], identity="ada", expires=narrower.expires_at)
        assert await here.extension.update_permissions(Permissions([], identity="bob"), session=other.key) == (0, True)
        assert (await other.frame())["type"] == "unsubscribed"


async def test_history_reaches_sessions_on_other_workers(shared_nats: NatsServer) -> None:
    async with workers(shared_nats) as (here, there), there.events("a.open", Cookie="user=ada"):
        (session,) = there.extension.sessions
        assert not session.permissions.history
        wider = Permissions(["*.open"], history=["{who}.open"], variables={"who": "a"}, identity="ada")
        assert await here.extension.update_permissions(wider, identity="ada") == (0, True)
        await until(lambda: session.permissions == wider)
        assert session.permissions.allows_history(session.permissions.grant("a.open"))
        assert not session.permissions.allows_history(session.permissions.grant("b.open"))
        await here.extension.update_permissions(Permissions(["*.open"], identity="ada"), identity="ada")
        await until(lambda: not session.permissions.history)


async def test_last_update_during_nats_outage_is_sent_after_reconnect(nats_server: NatsServer) -> None:
    options: dict[str, Any] = {"control_prefix": f"_T.{uuid4().hex}", "permissions": permissions}
    async with (
        Proxy.before(nats_server) as proxy,
        running(servers=proxy.url, connect_timeout=1, **options) as here,
        running(servers=nats_server.url, ping_interval=86_400, **options) as there,
        there.events("a.staff", Cookie="user=ada") as client,
    ):
        proxy.hole = True
        async with held() as clock:
            await clock.forward_until(lambda: here.extension.client is None, step=10)
        await here.extension.update_permissions(Permissions(["*.open"]), identity="ada")
        await here.extension.revoke(identity="ada")
        proxy.hole = False
        # The last decision alone.
        assert (await client.frame())["code"] == 4403
        await until(lambda: not here.runtime.permission_updates._unsent)


class AnnouncementRecorder:
    def __init__(self) -> None:
        self.payloads: list[bytes] = []
        self.error: Exception | None = None
        self.undelivered: Exception | None = None
        self.may_deliver = asyncio.Event()
        self.may_deliver.set()

    async def announce(self, payload: bytes) -> Coroutine[Any, Any, None]:
        if self.error is not None:
            raise self.error
        self.payloads.append(payload)
        return self._delivered()

    async def _delivered(self) -> None:
        await self.may_deliver.wait()
        if self.undelivered is not None:
            raise self.undelivered


async def test_received_permissions_equal_sent_permissions() -> None:
    recorder, here, there = AnnouncementRecorder(), Worker(), Worker()
    written = Permissions(
        ["shop.{tenant}.>", "me.42.>"],
        ["shop.*.internal"],
        {"tenant": "7"},
        {"me.": "me.42."},
        allow_wildcards=False,
        identity="ada",
        expires=time.time() + 60,
        publish=["shop.{tenant}.say"],
        request=["svc.>"],
        follow=["shop.{tenant}.notice"],
    )
    session, _ = there.open(Permissions([">"], identity="ada"))
    await PermissionUpdates(here.sessions, recorder.announce).update_permissions(written, "ada", None)
    PermissionUpdates(there.sessions, AnnouncementRecorder().announce).receive(recorder.payloads[0])
    assert session.permissions == written
    assert session.permissions.grant("shop.7.a").real == "shop.7.a"


async def test_worker_ignores_its_own_updates() -> None:
    recorder, worker = AnnouncementRecorder(), Worker()
    permission_updates = PermissionUpdates(worker.sessions, recorder.announce)
    await permission_updates.update_permissions(Permissions(["a"]), "ada", None)
    session, _ = worker.open(Permissions([">"], identity="ada"))
    permission_updates.receive(recorder.payloads[0])
    assert session.permissions == Permissions([">"], identity="ada")


async def test_only_latest_unsent_update_per_identity_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, worker = AnnouncementRecorder(), Worker()
    permission_updates = PermissionUpdates(worker.sessions, recorder.announce)
    recorder.error = ConnectionError("away")
    for identity in ("ada", "bob", "ada"):
        await permission_updates.update_permissions(Permissions([identity]), identity, None)
    await permission_updates.revoke("ada", None)
    recorder.error = None
    monkeypatch.setattr("sanic_nats_bridge.cluster.permission_updates._OTHERS_RECONNECT_SECONDS", 0)
    await permission_updates.nats_connected()
    assert [(json.loads(each)["identity"], json.loads(each)["permissions"] is None) for each in recorder.payloads] == [
        ("bob", False),
        ("ada", True),
    ]
    await permission_updates.nats_connected()
    assert len(recorder.payloads) == 2


async def test_updates_are_published_in_order_when_nats_is_slow() -> None:
    class Slow(AnnouncementRecorder):
        may_take = asyncio.Event()
        asked = 0

        async def announce(self, payload: bytes) -> Coroutine[Any, Any, None]:
            self.asked += 1
            if self.asked == 1:
                await self.may_take.wait()
            return await super().announce(payload)

    slow, worker = Slow(), Worker()
    permission_updates = PermissionUpdates(worker.sessions, slow.announce)
    first = asyncio.create_task(permission_updates.update_permissions(Permissions([">"]), "ada", None))
    await until(lambda: slow.asked)
    second = asyncio.create_task(permission_updates.revoke("ada", None))
    await asyncio.sleep(0)
    slow.may_take.set()
    await asyncio.gather(first, second)
    assert [json.loads(each)["permissions"] is None for each in slow.payloads] == [False, True]


async def test_cancelled_caller_neither_cancels_nor_repeats_the_update() -> None:
    recorder = AnnouncementRecorder()
    recorder.may_deliver.clear()
    updates = PermissionUpdates(Worker().sessions, recorder.announce)
    handler = asyncio.create_task(updates.update_permissions(Permissions(["old.>"]), "ada", None))
    await until(lambda: len(recorder.payloads) == 1)
    handler.cancel()
    with pytest.raises(asyncio.CancelledError):
        await handler
    recorder.may_deliver.set()
    await until(lambda: not updates._unsent and not updates._tasks)
    await updates.revoke("bob", None)
    await updates.nats_connected()
    assert [json.loads(payload)["identity"] for payload in recorder.payloads] == ["ada", "bob"]


async def test_update_in_flight_is_not_sent_again_and_delays_no_other_on_connect() -> None:
    recorder = AnnouncementRecorder()
    recorder.may_deliver.clear()
    updates = PermissionUpdates(Worker().sessions, recorder.announce)
    handler = asyncio.create_task(updates.update_permissions(Permissions(["old.>"]), "ada", None))
    await until(lambda: len(recorder.payloads) == 1)
    async with held():
        returning = asyncio.create_task(updates.nats_connected())
        await until(returning.done)
        other = asyncio.create_task(updates.revoke("bob", None))
        await until(lambda: len(recorder.payloads) == 2)
        recorder.may_deliver.set()
        assert [await handler, await other] == [(0, True)] * 2
    assert [json.loads(payload)["identity"] for payload in recorder.payloads] == ["ada", "bob"]
    assert not updates._unsent


async def test_updates_are_sent_before_earlier_ones_are_delivered() -> None:
    recorder = AnnouncementRecorder()
    recorder.may_deliver.clear()
    updates = PermissionUpdates(Worker().sessions, recorder.announce)
    handlers = [asyncio.create_task(updates.revoke(str(number), None)) for number in range(100)]
    await until(lambda: len(recorder.payloads) == 100)
    recorder.may_deliver.set()
    assert [await handler for handler in handlers] == [(0, True)] * 100


async def test_undelivered_update_is_sent_again_as_of_the_time_it_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sanic_nats_bridge.cluster.permission_updates._OTHERS_RECONNECT_SECONDS", 0)
    recorder, there = AnnouncementRecorder(), Worker()
    session, _ = there.open(Permissions([">"], identity="ada"))
    receiver = PermissionUpdates(there.sessions, AnnouncementRecorder().announce)
    updates = PermissionUpdates(Worker().sessions, recorder.announce)
    recorder.undelivered = ConnectionError("NATS is disconnected")
    assert await updates.update_permissions(Permissions(["old"]), "ada", None) == (0, False)
    recorder.undelivered = None
    receiver.receive(update(permissions=WRITTEN | {"subscribe": ["new"]}))
    await updates.nats_connected()
    assert len(recorder.payloads) == 2
    receiver.receive(recorder.payloads[1])
    assert session.permissions.subscribe == ("new",)


async def test_waiting_permissions_are_dropped_when_another_worker_sends_newer_ones() -> None:
    recorder = AnnouncementRecorder()
    updates = PermissionUpdates(Worker().sessions, recorder.announce)
    recorder.error = ConnectionError("NATS is disconnected")
    await updates.update_permissions(Permissions(["old"]), "ada", None)
    await updates.revoke("bob", None)
    for identity in ("ada", "bob"):
        updates.receive(update(identity=identity, permissions=WRITTEN))
    assert list(updates._unsent) == [("bob", None)]


async def test_waiting_updates_are_bounded_and_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sanic_nats_bridge.cluster.permission_updates._MAX_RECORDED", 10)
    recorder = AnnouncementRecorder()
    updates = PermissionUpdates(Worker().sessions, recorder.announce)
    recorder.error = ConnectionError("NATS does not let the workers reach each other")
    for number in range(30):
        await updates.revoke(str(number), None)
    assert list(updates._unsent) == [(str(number), None) for number in range(20, 30)]
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "A revoke or update_permissions has not reached the other workers",
        "More than 10 revoke and update_permissions wait for the other workers; the oldest are dropped",
    ]


async def test_delayed_update_does_not_override_newer_unless_revoke(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sanic_nats_bridge.cluster.permission_updates._OTHERS_RECONNECT_SECONDS", 0)
    cut_off, present, there = AnnouncementRecorder(), AnnouncementRecorder(), Worker()
    session, _ = there.open(Permissions([">"], identity="ada"))
    first, second = (PermissionUpdates(Worker().sessions, recorder.announce) for recorder in (cut_off, present))
    receiver = PermissionUpdates(there.sessions, AnnouncementRecorder().announce)
    cut_off.error = ConnectionError("away")
    await first.update_permissions(Permissions(["wide.>"]), "ada", None)
    await second.update_permissions(Permissions(["narrow"]), "ada", None)
    receiver.receive(present.payloads[0])
    cut_off.error = None
    await first.nats_connected()
    receiver.receive(cut_off.payloads[0])
    assert session.permissions.subscribe == ("narrow",)
    # What nothing newer contradicts holds, however late.
    cut_off.error = ConnectionError("away")
    await first.update_permissions(Permissions(["later"]), "ada", None)
    cut_off.error = None
    await first.nats_connected()
    receiver.receive(cut_off.payloads[1])
    assert session.permissions.subscribe == ("later",)
    # And a revoke always.
    cut_off.error = ConnectionError("away")
    await first.revoke("ada", None)
    await second.update_permissions(Permissions(["narrow"]), "ada", None)
    receiver.receive(present.payloads[1])
    cut_off.error = None
    await first.nats_connected()
    receiver.receive(cut_off.payloads[2])
    assert session.closed


async def test_update_waits_while_other_workers_reconnect() -> None:
    recorder, worker = AnnouncementRecorder(), Worker()
    permission_updates = PermissionUpdates(worker.sessions, recorder.announce)
    recorder.error = ConnectionError("away")
    await permission_updates.revoke("ada", None)
    recorder.error = None
    async with held() as clock:
        returning = asyncio.create_task(permission_updates.nats_connected())
        await until(lambda: permission_updates._awaiting_others)
        await permission_updates.revoke("bob", None)
        assert recorder.payloads == []
        await clock.forward_until(returning.done)
    assert [json.loads(each)["identity"] for each in recorder.payloads] == ["ada", "bob"]


async def test_oldest_recorded_updates_are_dropped_at_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sanic_nats_bridge.cluster.permission_updates._MAX_RECORDED", 3)
    permission_updates = PermissionUpdates(Worker().sessions, AnnouncementRecorder().announce)
    for name in "abcda":
        await permission_updates.revoke(name, None)
    assert list(permission_updates._updated_at) == [("c", None), ("d", None), ("a", None)]


@pytest.mark.parametrize("name", ["identity", "session"])
async def test_non_string_identity_or_session_is_rejected(name: str) -> None:
    recorder, worker = AnnouncementRecorder(), Worker()
    permission_updates = PermissionUpdates(worker.sessions, recorder.announce)
    target: dict[str, Any] = {"identity": None, "session": None, name: 42}
    with pytest.raises(TypeError, match=f"{name} must be a str, got int"):
        await permission_updates.revoke(**target)
    with pytest.raises(TypeError, match=f"{name} must be a str, got int"):
        await permission_updates.update_permissions(Permissions(["a"]), **target)
    assert (recorder.payloads, permission_updates._unsent) == ([], {})


async def test_update_permissions_rejects_dict() -> None:
    recorder, worker = AnnouncementRecorder(), Worker()
    session, _ = worker.open(Permissions([">"], identity="ada"))
    rules: Any = {"subscribe": ["a"]}
    with pytest.raises(TypeError, match="must be Permissions, got dict"):
        await PermissionUpdates(worker.sessions, recorder.announce).update_permissions(rules, "ada", None)
    assert (recorder.payloads, session.permissions.subscribe) == ([], (">",))


async def test_identity_can_be_str_subclass() -> None:
    class Name(str):
        __slots__ = ()

    recorder, there = AnnouncementRecorder(), Worker()
    session, _ = there.open(Permissions([">"], identity="ada"))
    permission_updates, receiver = (
        PermissionUpdates(Worker().sessions, recorder.announce),
        PermissionUpdates(there.sessions, AnnouncementRecorder().announce),
    )
    await permission_updates.update_permissions(Permissions(["a"], identity=Name("ada")), Name("ada"), None)
    await permission_updates.revoke(Name("ada"), None)
    receiver.receive(recorder.payloads[0])
    assert session.permissions.subscribe == ("a",)
    receiver.receive(recorder.payloads[1])
    assert session.closed


async def test_unpublishable_update_is_logged_and_does_not_block_others(caplog: pytest.LogCaptureFixture) -> None:
    recorder, worker = AnnouncementRecorder(), Worker()
    permission_updates = PermissionUpdates(worker.sessions, recorder.announce)
    recorder.error = ValueError("larger than NATS takes")
    assert await permission_updates.revoke("ada", None) == (0, False)
    assert "larger than NATS takes" in caplog.text
    recorder.error = None
    await permission_updates.revoke("bob", None)
    assert len(recorder.payloads) == 1


def update(**fields: Any) -> bytes:
    whole = {"worker": "x", "identity": "ada", "session": None, "permissions": None}
    return json.dumps(whole | fields).encode()


WRITTEN = {
    "subscribe": ["a"],
    "deny": [],
    "variables": {},
    "aliases": {},
    "allow_wildcards": True,
    "identity": None,
    "expires_at": None,
}


LATER: dict[str, Any] = {"history": ["b"], "publish": ["c"], "request": ["d"], "follow": ["e"]}
"""The lists that came in later versions."""


async def test_update_of_version_without_later_lists_allows_nothing_by_them() -> None:
    worker = Worker()
    session, _ = worker.open(Permissions([">"], identity="ada", **LATER))
    PermissionUpdates(worker.sessions, AnnouncementRecorder().announce).receive(update(permissions=WRITTEN))
    assert session.permissions == Permissions(["a"], identity="ada")


async def test_update_is_read_by_versions_with_other_fields() -> None:
    """Ignore the fields of a later version, as an earlier one ignores `history`."""
    recorder, worker = AnnouncementRecorder(), Worker()
    permissions = Permissions(["a"], **LATER)
    await PermissionUpdates(worker.sessions, recorder.announce).update_permissions(permissions, "ada", None)
    (payload,) = recorder.payloads
    assert json.loads(payload)["permissions"] == WRITTEN | LATER
    session, _ = worker.open(Permissions([">"], identity="ada"))
    receiver = PermissionUpdates(worker.sessions, recorder.announce)
    receiver.receive(update(permissions=WRITTEN | LATER | {"of_a_later_version": [1]}))
    assert session.permissions == replace(permissions, identity="ada")


JUNK = [
    b"",
    b"null",
    b"\xff",
    b"[" * 100_000,
    b"{}",
    update(identity=None),
    update(session="0" * 64),
    update(identity=5),
    update(permissions={}),
    update(permissions=WRITTEN | {"subscribe": ["a..b"]}),
    update(permissions=WRITTEN | {"subscribe": ["{nothing}"]}),
    update(permissions=WRITTEN | {"history": ["{nothing}"]}),
    update(permissions=WRITTEN | {"history": None}),
    update(permissions=WRITTEN | {"publish": ["_NATSBRIDGE.x"]}),
    update(permissions=WRITTEN | {"request": "a"}),
    update(permissions=WRITTEN | {"follow": ["a..b"]}),
    update(permissions=WRITTEN | {"identity": "bob"}),
    update(permissions=WRITTEN | {"identity": ""}),
    update(permissions=WRITTEN | {"allow_wildcards": 1}),
]


@pytest.mark.parametrize("junk", JUNK, ids=range(len(JUNK)))
async def test_malformed_update_is_logged_and_changes_nothing(junk: bytes, caplog: pytest.LogCaptureFixture) -> None:
    worker = Worker()
    session, _ = worker.open(Permissions([">"], identity="ada"))
    anybody, _ = worker.open(EVERYTHING)
    await act(session, "subscribe", "b")
    PermissionUpdates(worker.sessions, AnnouncementRecorder().announce).receive(junk)
    assert (session.closed, anybody.closed, session.subscriptions) == (False, False, ("b",))
    assert "Cannot apply a revoke or update_permissions" in caplog.text


async def test_internal_error_while_applying_update_is_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker()
    monkeypatch.setattr(worker.sessions, "revoke", None)
    PermissionUpdates(worker.sessions, AnnouncementRecorder().announce).receive(update())
    assert "Applying a revoke or update_permissions" in caplog.text
