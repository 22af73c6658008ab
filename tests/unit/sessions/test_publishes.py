import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from sanic_nats_bridge.auth.permissions import Permissions
from sanic_nats_bridge.errors import CloseCode
from sanic_nats_bridge.publishing.clients import ClientPublisher
from sanic_nats_bridge.publishing.publications import PublishFunctions
from sanic_nats_bridge.publishing.publisher import Publisher
from sanic_nats_bridge.sessions.deadlines import Deadlines
from sanic_nats_bridge.sessions.registry import SessionRegistry
from sanic_nats_bridge.sessions.session import Session
from sanic_nats_bridge.settings import Settings
from tests.support.clock import WallClock, turns
from tests.support.fakes import FakeLink, FakeOutlet, FakePublishLink, FakeTransport

ALLOWED = Permissions(publish=["rooms.>"], request=["svc.>"], identity="ada")
STORED = b'{"stream":"S","seq":7}'


class Worker:
    """A worker whose clients can publish, with one session."""

    def __init__(self, **options: Any) -> None:
        settings, link, self.publish_link = Settings.resolve(options, {}), FakeLink(), FakePublishLink()
        self.publisher, self.functions, deadlines = Publisher(self.publish_link), PublishFunctions(), Deadlines()
        self.clients = ClientPublisher(settings, self.publisher, settings.publish_policy(), self.functions, deadlines)
        self.codes: list[int] = []
        self.sessions = SessionRegistry(
            settings,
            link,
            on_opened=lambda session: None,
            on_closed=lambda session, code: self.codes.append(code),
            deadlines=deadlines,
            publishing=self.clients,
        )
        link.serve(self.sessions.hub)
        self.publisher.start("_BRIDGE.answer.w")
        self.publisher.established()
        self.session, self.transport = self.open(ALLOWED)

    def open(self, permissions: Permissions) -> tuple[Session, FakeTransport]:
        transport = FakeTransport()
        with self.sessions.pending_connections.connecting() as pending:
            session = self.sessions.open(transport, permissions, pending)
        assert session is not None
        return session, transport

    @property
    def outlet(self) -> FakeOutlet:
        assert self.publish_link.connection is not None
        return self.publish_link.connection

    @property
    def payloads(self) -> list[Any]:
        return [json.loads(payload) for _, payload, _ in self.outlet.messages]

    @property
    def replies(self) -> list[dict[str, Any]]:
        return [frame for frame in self.transport.frames if frame["type"] == "reply"]

    @property
    def ids(self) -> list[Any]:
        return [reply.get("id") for reply in self.replies]

    async def send(self, action: str, data: Any = 1, **fields: Any) -> None:
        """Send a command as the route does, and let this turn of the event loop end."""
        await self.receive(action, data, **fields)
        await asyncio.sleep(0)

    async def receive(self, action: str, data: Any = 1, **fields: Any) -> None:
        """Send a command as the route does."""
        subject = {"publish": "rooms.7", "request": "svc.a"}[action]
        frame = json.dumps({"action": action, "subject": subject, "data": data} | fields)
        outcome = await self.session.receive(frame)
        if outcome is not None:
            self.session.respond(outcome.reply)

    def hold_checks(self) -> asyncio.Event:
        """Let the app's function wait until the event is set."""
        proceed = asyncio.Event()

        async def check(_: Any) -> None:
            await proceed.wait()

        self.functions.add("rooms.>", None, check)
        return proceed


@pytest.fixture
async def make() -> AsyncIterator[Callable[..., Worker]]:
    made = []

    def create(**options: Any) -> Worker:
        made.append(Worker(**options))
        return made[-1]

    yield create
    for worker in made:
        worker.session.close(CloseCode.GOING_AWAY, "")
        await turns()
        assert (worker.publisher.in_progress, worker.clients.in_progress) == (0, 0)
        assert len(worker.clients._checks) == 0


async def test_features_are_in_the_welcome(make: Callable[..., Worker]) -> None:
    worker = make()
    assert worker.transport.frames[0]["features"] == ["publish", "request"]


async def test_replies_of_one_turn_are_written_together(
    make: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = make()
    writes: list[int] = []
    write = worker.session.write

    def hooked(data: bytes) -> None:
        write(data)
        writes.append(len(worker.ids))

    monkeypatch.setattr(worker.session, "write", hooked)
    for number in range(3):
        await worker.receive("publish", id=number)
    assert worker.ids == []
    await asyncio.sleep(0)
    assert (worker.ids, writes) == ([0, 1, 2], [3])


async def test_reply_to_another_command_is_written_at_once_and_after_the_earlier_ones(
    make: Callable[..., Worker],
) -> None:
    worker = make()
    await worker.receive("publish", id=1)
    outcome = await worker.session.receive('{"action":"ping","id":2}')
    assert outcome is not None
    worker.session.respond(outcome.reply)
    assert worker.ids == [1, 2]


async def test_replies_that_wait_precede_the_end(make: Callable[..., Worker]) -> None:
    worker = make()
    await worker.receive("publish", id=1)
    worker.session.close(CloseCode.GOING_AWAY, "")
    assert [frame["type"] for frame in worker.transport.frames] == ["welcome", "reply", "close"]


async def test_replies_that_wait_are_dropped_with_expired_permissions(make: Callable[..., Worker]) -> None:
    worker = make()
    await worker.receive("publish", id=1)
    worker.session.withhold()
    await asyncio.sleep(0)
    worker.session.expire()
    assert [frame["type"] for frame in worker.transport.frames] == ["welcome", "close"]


async def test_every_publish_and_request_is_answered(make: Callable[..., Worker]) -> None:
    worker = make()
    await worker.send("publish", id=1)
    await worker.send("publish", id=2, ack=True)
    await worker.send("request", id=3)
    await worker.send("publish", id=4, subject="secret")
    await worker.send("publish", id=5, data="x", encoding="base64")
    await worker.send("publish")
    worker.outlet.answer(b"[3]", sid=2)
    worker.outlet.answer(STORED, sid=1)
    await turns()
    assert worker.ids == [1, 4, 5, None, 3, 2]
    assert [reply["success"] for reply in worker.replies] == [True, False, False, True, True, True]
    assert worker.replies[1]["code"] == "publish.forbidden"
    assert worker.replies[2]["code"] == "command.invalid"
    assert worker.replies[4]["data"] == [3]
    assert (worker.replies[5]["stream"], worker.replies[5]["sequence"]) == ("S", 7)


async def test_publishes_leave_in_order_while_the_app_checks_one_at_a_time(make: Callable[..., Worker]) -> None:
    worker = make()
    checking: list[str] = []

    async def check(publication: Any) -> None:
        checking.append(publication.data)
        assert len(checking) == 1
        # The later ones are quicker.
        await asyncio.sleep(5 - publication.data)
        checking.clear()

    worker.functions.add("rooms.>", None, check)
    for number in range(4):
        await worker.send("publish", number, id=number)
    await worker.send("publish", 4, id=4, subject="rooms.7", ack=True)
    await asyncio.sleep(16)
    worker.outlet.answer(STORED)
    await turns()
    assert worker.payloads == [0, 1, 2, 3, 4]
    assert worker.ids == [0, 1, 2, 3, 4]


async def test_nothing_else_waits_for_the_check_of_the_app(make: Callable[..., Worker]) -> None:
    worker = make()
    proceed = worker.hold_checks()
    worker.functions.add("free", None, lambda publication: None)
    await worker.send("publish", 1, id=1)
    await worker.send("request", 2, id=2)
    worker.outlet.answer(b"2")
    await turns()
    outcome = await worker.session.receive('{"action":"ping","id":3}')
    assert outcome is not None
    worker.session.respond(outcome.reply)
    assert worker.ids == [2, 3]
    proceed.set()
    await turns()
    assert worker.ids == [2, 3, 1]
    assert worker.payloads == [2, 1]


async def test_publishes_that_await_the_check_are_limited(make: Callable[..., Worker]) -> None:
    worker = make(publish_rate=1000, publish_burst=3)
    proceed = worker.hold_checks()
    for number in range(5):
        await worker.send("publish", number, id=number)
        await asyncio.sleep(1)
    assert worker.ids == [3, 4]
    assert {reply["code"] for reply in worker.replies} == {"limit.publish"}
    assert worker.replies[0]["retry"] == 1000
    proceed.set()
    await turns()
    assert worker.payloads == [0, 1, 2]
    # Not one more is held once they are gone.
    await worker.send("publish", 5, id=5)
    await turns()
    assert worker.payloads == [0, 1, 2, 5]


async def test_bytes_that_await_the_check_are_limited(make: Callable[..., Worker]) -> None:
    worker = make(max_pending_bytes=1024, publish_headers=["Trace"])
    proceed = worker.hold_checks()
    worker.outlet.publish_limit = 10_000
    # One alone may have any size.
    await worker.send("publish", "a" * 1100, id=0)
    await worker.send("publish", "b", id=1)
    assert [reply["code"] for reply in worker.replies] == ["limit.publish"]
    assert worker.replies[0]["message"].startswith("At most 1024 bytes of publishes of a session await")
    proceed.set()
    await turns()
    proceed.clear()
    for number in range(2, 5):
        await worker.send("publish", "c", id=number, headers={"Trace": ["x" * 500]})
    assert worker.ids == [1, 0, 4]
    proceed.set()
    await turns()
    assert worker.ids == [1, 0, 4, 2, 3]
    await worker.send("publish", "d" * 1000, id=5)
    await turns()
    assert [reply["success"] for reply in worker.replies] == [False, True, False, True, True, True]


async def test_requests_of_all_sessions_of_a_client_leave_some_for_others(make: Callable[..., Worker]) -> None:
    worker = make(max_requests=2, max_requests_per_worker=8)
    sessions = [worker.session, *(worker.open(ALLOWED)[0] for _ in range(4))]
    other, transport = worker.open(Permissions(request=["svc.>"], identity="bob"))
    for session in sessions * 2:
        await session.receive('{"action":"request","subject":"svc.a","id":1}')
    assert worker.clients.in_progress == 4
    for _ in range(3):
        outcome = await other.receive('{"action":"request","subject":"svc.a","id":1}')
    assert outcome is not None
    assert outcome.reply.code == "limit.requests"
    assert worker.clients.in_progress == 6
    for session in (*sessions, other):
        session.close(CloseCode.GOING_AWAY, "")
    await turns()
    assert len(transport.frames) == 2


async def test_rate_is_a_budget_apart_from_commands(make: Callable[..., Worker]) -> None:
    worker = make(publish_rate=1, publish_burst=3, command_rate=1, command_burst=1)
    for number in range(5):
        await worker.send("publish", id=number, subject="secret" if number % 2 else "rooms.7")
    codes = [reply.get("code") for reply in worker.replies]
    assert codes == [None, "publish.forbidden", None, "limit.publish", "limit.publish"]
    assert [reply["retry"] for reply in worker.replies[3:]] == [1000, 2000]
    outcome = await worker.session.receive('{"action":"ping"}')
    assert outcome is not None
    assert outcome.reply.success
    await asyncio.sleep(3)
    await worker.send("publish", id=9)
    assert worker.replies[-1]["success"]


async def test_client_that_ignores_the_rate_is_closed(make: Callable[..., Worker]) -> None:
    worker = make(publish_rate=0.001, publish_burst=3)
    for _ in range(3 * 26 - 1):
        await worker.send("publish")
    assert not worker.codes
    await worker.send("publish")
    assert worker.codes == [CloseCode.TOO_MANY_COMMANDS]
    assert worker.transport.frames[-1]["reason"] == "Too many publishes"
    assert len(worker.payloads) == 3


async def test_publishes_at_once_all_leave_if_each_is_repeated_after_its_retry(make: Callable[..., Worker]) -> None:
    worker = make(publish_rate=20, publish_burst=4)

    async def publish(number: int) -> None:
        while True:
            await worker.send("publish", number, id=number)
            reply = next(reply for reply in reversed(worker.replies) if reply["id"] == number)
            if reply["success"]:
                return
            await asyncio.sleep(reply["retry"] / 1000)

    loop = asyncio.get_running_loop()
    began = loop.time()
    await asyncio.gather(*map(publish, range(100)))
    assert worker.payloads == list(range(100))
    assert loop.time() - began < 96 / 20 + 0.1
    assert not worker.codes


async def test_refusals_by_the_app_close_no_session(make: Callable[..., Worker]) -> None:
    worker = make(publish_rate=1000, publish_burst=1000)

    def check(_: Any) -> None:
        raise ValueError("no")

    worker.functions.add(">", None, check)
    for number in range(100):
        await worker.send("publish", id=number)
        await turns()
    assert {(reply["code"], reply["message"]) for reply in worker.replies} == {("publish.invalid", "no")}
    assert len(worker.replies) == 100
    assert not worker.codes
    # Commands that no client should send do.
    for _ in range(21):
        await worker.send("publish", subject="a..b")
    assert worker.codes == [CloseCode.TOO_MANY_COMMANDS]


async def test_permissions_count_as_they_are_when_the_publish_leaves(make: Callable[..., Worker]) -> None:
    worker = make()
    proceed = worker.hold_checks()
    await worker.send("publish", 1, id=1)
    await worker.send("publish", 2, id=2)
    worker.session.update_permissions(Permissions(publish=["other"]))
    proceed.set()
    await turns()
    assert [(reply["id"], reply["code"]) for reply in worker.replies] == [
        (1, "publish.forbidden"),
        (2, "publish.forbidden"),
    ]
    assert not worker.payloads


async def test_app_is_asked_again_if_the_name_means_another_subject(make: Callable[..., Worker]) -> None:
    worker = make()
    subjects: list[str] = []

    async def check(publication: Any) -> None:
        subjects.append(publication.subject)
        if len(subjects) == 1:
            worker.session.update_permissions(Permissions(publish=["rooms.>"], aliases={"rooms.7.": "rooms.9."}))

    worker.functions.add("rooms.>", None, check)
    await worker.send("publish", subject="rooms.7.say")
    await turns()
    assert subjects == ["rooms.7.say", "rooms.9.say"]
    assert [subject for subject, _, _ in worker.outlet.messages] == [b"rooms.9.say"]


async def test_update_without_an_identity_leaves_the_author(make: Callable[..., Worker]) -> None:
    worker = make()
    worker.sessions.update_permissions(replace(ALLOWED, identity=None), ALLOWED.identity, None)
    await worker.send("publish")
    (message,) = worker.outlet.messages
    assert f"Bridge-Identity: {ALLOWED.identity}\r\n".encode() in message[2]


async def test_end_of_the_session_cancels_all(make: Callable[..., Worker]) -> None:
    worker = make()
    await worker.send("publish", 0, ack=True)
    proceed = worker.hold_checks()
    for number in (1, 2):
        await worker.send("publish", number)
    await worker.send("request", 3, id=3)
    assert worker.publisher.in_progress == 2
    worker.session.connection_lost(1006)
    await turns()
    assert (worker.publisher.in_progress, worker.clients.in_progress) == (0, 0)
    proceed.set()
    await turns()
    assert worker.payloads == [0, 3]
    assert not worker.replies


async def test_expired_client_gets_no_answer(make: Callable[..., Worker], wall_clock: WallClock) -> None:
    worker = make()
    worker.session, worker.transport = worker.open(
        Permissions(publish=["rooms.>"], request=["svc.>"], expires=wall_clock.time() + 10)
    )
    proceed = worker.hold_checks()
    await worker.send("publish", 1)
    await worker.send("request", 2, id=2)
    wall_clock.set_by(11)
    worker.outlet.answer(b"secret")
    proceed.set()
    await turns()
    assert not worker.replies
    assert worker.payloads == [2]
    assert worker.codes == [CloseCode.UNAUTHORIZED]


async def test_session_may_expire_while_the_app_checks(make: Callable[..., Worker], wall_clock: WallClock) -> None:
    worker = make()
    worker.session, worker.transport = worker.open(Permissions(publish=["rooms.>"], expires=wall_clock.time() + 10))
    proceed = worker.hold_checks()
    for number in range(3):
        await worker.send("publish", number)
    (checks,) = asyncio.all_tasks() - {asyncio.current_task()}
    wall_clock.set_by(11)
    proceed.set()
    await turns()
    assert checks.cancelled()
    assert worker.codes == [CloseCode.UNAUTHORIZED]
    assert not worker.replies
    assert not worker.payloads


async def test_reply_to_a_slow_client_is_held_and_counts_until_it_is_written(make: Callable[..., Worker]) -> None:
    worker = make(max_requests=2)
    for number in range(2):
        await worker.send("request", number, id=number)
    worker.session.pause_writing()
    for sid in (1, 2):
        worker.outlet.answer(b'"%d"' % sid, sid=sid)
    await turns()
    assert not worker.replies
    assert (worker.publisher.in_progress, worker.clients.in_progress) == (0, 2)
    worker.session.resume_writing()
    await turns()
    assert worker.ids == [0, 1]
    assert worker.clients.in_progress == 0


async def test_held_reply_ends_with_the_session(make: Callable[..., Worker]) -> None:
    worker = make()
    await worker.send("request", id=1)
    worker.session.pause_writing()
    worker.outlet.answer(b"1")
    await turns()
    worker.session.connection_lost(1006)
    await turns()
    assert worker.clients.in_progress == 0


async def test_refusal_is_counted(make: Callable[..., Worker]) -> None:
    worker = make()
    await worker.send("request", id=1)
    worker.outlet.answer(b"", b"NATS/1.0 503\r\n\r\n")
    await worker.send("publish", subject="secret")
    await turns()
    counted = worker.sessions.counters.refused
    assert (counted["request.no_responders"], counted["publish.forbidden"]) == (1, 1)


async def test_internal_error_is_the_reply_to_its_publish_only(
    make: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = make()
    proceed = worker.hold_checks()
    await worker.send("publish", 1, id=1)
    await worker.send("publish", 2, id=2)

    def fail(*_: object) -> None:
        monkeypatch.undo()
        raise ZeroDivisionError

    monkeypatch.setattr(worker.clients, "send", fail)
    proceed.set()
    await turns()
    assert [(reply["id"], reply.get("code")) for reply in worker.replies] == [(1, "internal"), (2, None)]
