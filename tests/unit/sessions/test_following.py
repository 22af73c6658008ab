"""The patterns that a session follows without a command, on a hub with a fake link."""

import asyncio
import random
import time
from dataclasses import replace
from typing import Any

import pytest

from sanic_nats_bridge.auth.permissions import Permissions
from sanic_nats_bridge.errors import CloseCode
from sanic_nats_bridge.protocol.encoding import WireFormat
from sanic_nats_bridge.protocol.messages import Command
from sanic_nats_bridge.sessions.session import Session
from tests.support.bridge import subscribed, until
from tests.support.clock import leaping
from tests.support.fakes import FakeTransport
from tests.unit.sessions.test_session import Worker, act, execute, turns

NOTICE = Permissions(["a", "b"], follow=["news", "users.7.notice"], aliases={"me.": "users.7."}, identity="ada")
FOLLOWED = ("news", "me.notice")


async def begun(
    worker: Worker,
    permissions: Permissions = NOTICE,
    query: Command | None = None,
    wire_format: WireFormat = WireFormat.WEBSOCKET,
) -> tuple[Session, FakeTransport]:
    session, transport = worker.open(permissions, wire_format)
    await session.begin(query)
    return session, transport


def beginning(worker: Worker, *patterns: str) -> tuple[Session, FakeTransport, asyncio.Task[None]]:
    """Open a session; with patterns, those of a query."""
    session, transport = worker.open(NOTICE)
    task = asyncio.create_task(session.begin(query_of(*patterns) if patterns else None))
    return session, transport, task


def query_of(*patterns: str) -> Command:
    return Command(action="subscribe", subjects=[*patterns])


def notices(transport: FakeTransport) -> list[tuple[Any, ...]]:
    """Return in short how the client was notified of subscriptions since its welcome."""
    return [short(frame) for frame in transport.frames[1:] if frame["type"] in ("reply", "unsubscribed")]


def short(frame: dict[str, Any]) -> tuple[Any, ...]:
    if frame["type"] == "unsubscribed" or not frame["success"]:
        return frame["type"], frame["code"], *frame["subjects" if "subjects" in frame else "message"]
    return frame["type"], *frame.get("subjects", [frame["action"]])


def update(worker: Worker, permissions: Permissions) -> None:
    worker.sessions.update_permissions(permissions, "ada", None)


def assert_nothing_is_left(worker: Worker) -> None:
    assert len(worker.sessions) == 0
    assert len(worker.sessions._context.shares) == 0
    assert [interest.claims for interest in worker.hub._interests.values() if interest.claims] == []
    assert worker.link.faults == []


# The start


async def test_reply_without_id_names_followed_patterns_after_welcome() -> None:
    worker = Worker()
    session, transport = await begun(worker)
    assert transport.frames[1:] == [subscribed(*FOLLOWED)]
    assert session.subscriptions == FOLLOWED
    assert worker.link.patterns == ["news", "users.7.notice"]
    worker.link.deliver("users.7.notice", b"1")
    await turns()
    assert transport.frames[-1] == {"type": "message", "subject": "me.notice", "data": 1}


@pytest.mark.parametrize("permissions", [Permissions(["a"]), Permissions(follow=["a.b"], deny=["a.>"])])
async def test_session_that_follows_nothing_gets_no_reply(permissions: Permissions) -> None:
    session, transport = await begun(Worker(), permissions)
    assert transport.types == ["welcome"]
    assert not session.subscriptions


async def test_reply_comes_before_messages_and_before_replies_to_commands() -> None:
    worker = Worker(confirms=False)
    session, transport, start = beginning(worker)
    await turns(1)
    command = asyncio.create_task(act(session, "ping"))
    worker.link.confirm("news")
    for _ in range(3):
        worker.link.deliver("news", b'"before"')
        await turns()
    assert transport.types == ["welcome"]
    worker.link.confirm("users.7.notice")
    await asyncio.gather(start, command)
    worker.link.deliver("news", b'"after"')
    await turns()
    assert notices(transport) == [("reply", *FOLLOWED), ("reply", "ping")]
    assert transport.types[1] == "reply"
    assert transport.data[-1] == "after"


@pytest.mark.parametrize("settings", [{}, {"confirm_timeout": 0.5}])
async def test_unconfirmed_patterns_are_not_active_and_commands_do_not_wait_long(settings: dict[str, Any]) -> None:
    worker = Worker(confirms=False, **settings)
    _, transport, start = beginning(worker)
    await start
    assert leaping().now == settings.get("confirm_timeout", 1)
    assert transport.frames[1:] == [subscribed(*FOLLOWED) | {"active": False}]
    worker.link.confirm("news", "users.7.notice")
    await turns()
    assert transport.frames[-1] == {"type": "status", "nats": "connected"}


async def test_session_follows_while_nats_is_disconnected() -> None:
    worker = Worker()
    worker.link.lose()
    _, transport = await begun(worker)
    assert transport.frames[1:] == [subscribed(*FOLLOWED) | {"active": False}]
    worker.link.come_back()
    await turns(9)
    assert transport.frames[-1] == {"type": "status", "nats": "connected"}
    worker.link.deliver("news")
    await turns()
    assert transport.types[-1] == "message"


async def test_denied_subjects_inside_followed_patterns_are_skipped() -> None:
    worker = Worker()
    _, transport = await begun(worker, Permissions(follow=["a.>"], deny=["a.secret.>"], identity="ada"))
    for subject in ("a.secret.1", "a.open"):
        worker.link.deliver(subject)
    await turns()
    assert [frame["subject"] for frame in transport.frames if frame["type"] == "message"] == ["a.open"]
    update(worker, Permissions(follow=["a.>"], deny=["a.open"]))
    for subject in ("a.open", "a.secret.1"):
        worker.link.deliver(subject)
    await turns()
    assert [frame["subject"] for frame in transport.frames[-1:]] == ["a.secret.1"]
    assert notices(transport) == [("reply", "a.>")]


async def test_wildcards_are_followed_although_the_client_may_not_use_any() -> None:
    _, transport = await begun(Worker(), Permissions(follow=["a.*"], allow_wildcards=False))
    assert notices(transport) == [("reply", "a.*")]


async def test_thousand_sessions_follow_a_pattern_of_their_own() -> None:
    worker = Worker(confirm_timeout=60, max_subscribe_rate=100_000)
    opened = [worker.open(Permissions(follow=[f"users.{number}.notice"])) for number in range(1000)]
    await asyncio.gather(*(session.begin() for session, _ in opened))
    await until(lambda: all(len(transport.writes) >= 2 for _, transport in opened))
    for number in range(1000):
        worker.link.deliver(f"users.{number}.notice", b"%d" % number)
    await until(lambda: worker.hub.flush() or all(transport.data for _, transport in opened))
    assert [notices(transport) for _, transport in opened] == [[("reply", f"users.{n}.notice")] for n in range(1000)]
    assert [transport.data for _, transport in opened] == [[number] for number in range(1000)]
    for session, _ in opened:
        session.connection_lost(1000)
    assert_nothing_is_left(worker)


# The query of an event stream


async def test_one_reply_names_followed_patterns_and_those_of_the_query() -> None:
    session, transport = await begun(Worker(), query=query_of("a", "me.notice", "b"), wire_format=WireFormat.EVENTS)
    assert transport.frames[1:] == [subscribed(*FOLLOWED, "a", "b")]
    assert session.subscriptions == (*FOLLOWED, "a", "b")


async def test_query_without_followed_patterns_has_its_reply() -> None:
    session, transport = await begun(Worker(), Permissions(["a"]), query_of("a"))
    assert transport.frames[1:] == [subscribed("a")]
    assert session.subscriptions == ("a",)


async def test_failed_query_follows_the_reply_for_followed_patterns() -> None:
    worker = Worker(confirms=False)
    session, transport, start = beginning(worker, "a", "b")
    await turns()
    worker.link.confirm("news", "users.7.notice", "a")
    worker.link.refuse("b")
    await start
    assert notices(transport) == [("reply", *FOLLOWED), ("reply", "nats.refused", "b")]
    assert session.subscriptions == FOLLOWED
    assert worker.sessions.stats(0).refused == {"nats.refused": 1}


async def test_query_succeeds_without_a_followed_pattern_that_nats_refuses() -> None:
    worker = Worker(confirms=False)
    session, transport, start = beginning(worker, "a")
    await turns()
    worker.link.confirm("users.7.notice", "a")
    worker.link.refuse("news")
    await start
    await turns()
    assert notices(transport) == [("reply", "me.notice", "a"), ("unsubscribed", "nats.refused", "news")]
    assert session.subscriptions == ("me.notice", "a")


async def test_query_for_a_followed_pattern_that_nats_refuses_fails() -> None:
    worker = Worker(confirms=False)
    session, transport, start = beginning(worker, "a", "news")
    await turns()
    worker.link.confirm("users.7.notice", "a")
    worker.link.refuse("news")
    await start
    await turns()
    assert notices(transport) == [
        ("reply", "me.notice"),
        ("reply", "nats.refused", "news"),
        ("unsubscribed", "nats.refused", "news"),
    ]
    assert session.subscriptions == ("me.notice",)


async def test_query_beyond_the_limits_fails_but_followed_patterns_stay() -> None:
    worker = Worker(max_patterns_per_client=3)
    session, transport = await begun(worker, query=query_of("a", "b"))
    assert notices(transport) == [("reply", *FOLLOWED), ("reply", "limit.subscriptions", "a", "b")]
    assert session.subscriptions == FOLLOWED


async def test_followed_patterns_are_not_counted_as_commands_of_the_client() -> None:
    worker = Worker(command_burst=2)
    permissions = Permissions(["a", "b"], follow=[f"n.{number}" for number in range(100)])
    session, transport = await begun(worker, permissions, query_of("a"))
    assert len(session.subscriptions) == 101
    assert (await act(session, "subscribe", "b")).success
    assert not (await execute(session, "ping")).reply.success
    assert len(notices(transport)) == 2


# Refusals and limits


async def test_pattern_that_nats_refuses_ends_and_the_others_are_followed() -> None:
    worker = Worker(confirms=False)
    session, transport, start = beginning(worker)
    await turns()
    worker.link.confirm("users.7.notice")
    worker.link.refuse("news")
    await start
    await turns()
    assert notices(transport) == [("reply", "me.notice"), ("unsubscribed", "nats.refused", "news")]
    assert transport.frames[-1]["message"] == "NATS does not allow this server to subscribe to 'news'"
    assert session.subscriptions == ("me.notice",)
    assert worker.sessions.stats(0).refused == {"nats.refused": 1}
    assert not session.closed


async def test_no_reply_names_nothing_if_nats_refuses_all() -> None:
    worker = Worker(confirms=False)
    session, transport, start = beginning(worker)
    await turns()
    worker.link.refuse("news", "users.7.notice")
    await start
    await turns()
    assert notices(transport) == [("unsubscribed", "nats.refused", *FOLLOWED)]
    worker.link.confirms = True
    assert (await act(session, "subscribe", "news")).success  # once it is allowed, although not in `subscribe`
    assert session.subscriptions == ("news",)


async def test_patterns_beyond_the_limit_of_the_client_end() -> None:
    worker = Worker(max_patterns_per_client=5)
    permissions = Permissions(follow=[f"n.{number}" for number in range(8)], identity="ada")
    session, transport = await begun(worker, permissions)
    await turns()
    names = [f"n.{number}" for number in range(8)]
    assert notices(transport) == [("reply", *names[:4]), ("unsubscribed", "limit.subscriptions", *names[4:])]
    assert session.subscriptions == tuple(names[:4])
    # The patterns of one client count once.
    _, transport = await begun(worker, permissions)
    assert notices(transport)[0] == ("reply", *names[:4])


async def test_followed_patterns_count_in_max_subscriptions() -> None:
    worker = Worker(max_subscriptions=3)
    session, transport = await begun(worker)
    await act(session, "subscribe", "a")
    assert (await execute(session, "subscribe", "b")).reply.code == "limit.subscriptions"
    update(worker, replace(NOTICE, follow=["news", "users.7.notice", "more"]))
    await turns()
    assert notices(transport)[2:] == [("unsubscribed", "limit.subscriptions", "more")]
    assert session.subscriptions == (*FOLLOWED, "a")
    await act(session, "unsubscribe", "a")
    await act(session, "subscribe", "more")
    assert session.subscriptions == (*FOLLOWED, "more")


async def test_followed_patterns_count_in_max_overlap() -> None:
    worker = Worker(max_overlap=2)
    session, transport = await begun(worker, Permissions(["a.b.*"], follow=["a.b.c", "a.>"]))
    await act(session, "subscribe", "a.b.*")
    worker.link.deliver("a.b.c")
    await turns()
    assert notices(transport)[-1] == ("unsubscribed", "limit.overlap", "a.b.*")
    assert session.subscriptions == ("a.b.c", "a.>")


# Commands


async def test_followed_patterns_cannot_be_unsubscribed() -> None:
    session, transport = await begun(Worker())
    await act(session, "subscribe", "a")
    for patterns in (["news"], ["a", "me.notice"], ["b", "news"]):
        reply = (await execute(session, "unsubscribe", *patterns)).reply
        assert (reply.code, reply.success) == ("subject.forbidden", False)
    assert list(session.subscriptions) == [*FOLLOWED, "a"]
    await act(session, "unsubscribe", "a")
    assert list(session.subscriptions) == [*FOLLOWED]
    assert not session.closed
    assert transport.types == ["welcome", "reply", "reply", "reply"]


async def test_many_refused_unsubscribes_do_not_end_the_session() -> None:
    session, _ = await begun(Worker(command_burst=100, max_bad_commands=1))
    for _ in range(30):
        assert (await execute(session, "unsubscribe", "news")).reply.code == "subject.forbidden"
    assert not session.closed


async def test_subscribe_to_a_followed_pattern_succeeds_and_changes_nothing() -> None:
    worker = Worker()
    session, transport = await begun(worker)
    sent = list(worker.link.sent)
    await act(session, "subscribe", "news", "me.notice")
    assert (session.subscriptions, worker.link.sent) == (FOLLOWED, sent)
    worker.link.deliver("news")
    await turns()
    assert transport.types == ["welcome", "reply", "reply", "message"]


async def test_pattern_of_another_name_for_a_followed_subject_stays_forbidden() -> None:
    session, _ = await begun(Worker())
    for pattern in ("users.7.notice", "me.>", "news.>"):
        assert (await execute(session, "subscribe", pattern)).reply.code == "subject.forbidden"


# Updates


async def test_update_adds_and_takes_away() -> None:
    worker = Worker()
    session, transport = await begun(worker)
    update(worker, replace(NOTICE, follow=["users.7.notice", "c"]))
    assert notices(transport)[1:] == [("unsubscribed", "subject.forbidden", "news")]
    await turns()
    assert transport.frames[-1] == subscribed("c")
    assert session.subscriptions == ("me.notice", "c")
    update(worker, replace(NOTICE, follow=[]))
    await turns()
    assert notices(transport)[3:] == [("unsubscribed", "subject.forbidden", name) for name in ("me.notice", "c")]
    assert not session.subscriptions


async def test_update_is_the_first_that_follows() -> None:
    worker = Worker()
    _, transport = await begun(worker, Permissions(identity="ada"))
    update(worker, NOTICE)
    update(worker, replace(NOTICE, expires=time.time() + 60))
    await turns()
    assert transport.frames[1:] == [subscribed(*FOLLOWED)]
    update(worker, NOTICE)
    await turns()
    assert len(transport.frames) == 2


async def test_pattern_that_the_client_has_subscribed_to_becomes_followed_and_stays() -> None:
    worker = Worker()
    session, transport = await begun(worker, replace(NOTICE, follow=[]))
    await act(session, "subscribe", "a", "b")
    sent = list(worker.link.sent)
    update(worker, replace(NOTICE, follow=["a"]))
    await turns()
    assert notices(transport)[-1] == ("reply", "a")
    assert (session.subscriptions, worker.link.sent) == (("a", "b"), sent)
    assert (await execute(session, "unsubscribe", "a", "b")).reply.code == "subject.forbidden"
    worker.link.deliver("a")
    await turns()
    assert transport.data == [1]


@pytest.mark.parametrize("asks", ["before", "while it is followed", "in the query", "and unsubscribes", "never"])
async def test_pattern_that_is_not_followed_any_more_stays_if_the_client_has_asked_for_it(asks: str) -> None:
    worker = Worker()
    followed = replace(NOTICE, follow=["a"])
    permissions = replace(NOTICE, follow=[]) if asks == "before" else followed
    session, transport = await begun(worker, permissions, query_of("a") if asks == "in the query" else None)
    if asks in ("before", "while it is followed", "and unsubscribes"):
        await act(session, "subscribe", "a")
    if asks == "and unsubscribes":
        assert not (await execute(session, "unsubscribe", "a")).reply.success
    update(worker, followed)
    await turns()
    update(worker, replace(NOTICE, follow=[]))
    await turns()
    if asks in ("never", "and unsubscribes"):
        assert notices(transport)[-1] == ("unsubscribed", "subject.forbidden", "a")
        assert not session.subscriptions
        await act(session, "subscribe", "a")
    assert list(session.subscriptions) == ["a"]
    await act(session, "unsubscribe", "a")
    assert not session.subscriptions
    assert len(worker.sessions._context.shares) == 0


async def test_client_that_asked_for_a_pattern_loses_it_if_nothing_allows_it() -> None:
    worker = Worker()
    session, transport = await begun(worker)
    await act(session, "subscribe", "news")
    update(worker, replace(NOTICE, follow=["users.7.notice"]))
    assert notices(transport)[-1] == ("unsubscribed", "subject.forbidden", "news")
    assert session.subscriptions == ("me.notice",)


async def test_alias_with_another_target_is_another_pattern() -> None:
    worker = Worker()
    session, transport = await begun(worker)
    update(worker, replace(NOTICE, follow=["users.8.notice"], aliases={"me.": "users.8."}))
    await turns()
    assert set(notices(transport)[1:3]) == {("unsubscribed", "subject.forbidden", name) for name in FOLLOWED}
    assert notices(transport)[3:] == [("reply", "me.notice")]
    for number in (7, 8):
        worker.link.deliver(f"users.{number}.notice", b"%d" % number)
    await turns()
    assert (transport.data, session.subscriptions) == ([8], ("me.notice",))


async def test_update_during_the_start_is_not_lost() -> None:
    worker = Worker(confirms=False)
    session, transport, start = beginning(worker)
    await turns()
    update(worker, replace(NOTICE, follow=["users.7.notice", "more"]))
    await turns()
    worker.link.confirm("news", "users.7.notice")
    await turns(9)
    worker.link.confirm("more")
    await start
    await turns()
    assert notices(transport) == [("reply", "me.notice", "more")]
    assert session.subscriptions == ("me.notice", "more")


async def test_update_after_the_last_pattern_was_confirmed_has_its_own_reply() -> None:
    worker = Worker(confirms=False)
    session, transport, start = beginning(worker)
    await turns()
    worker.link.confirm("news", "users.7.notice")
    await start
    update(worker, replace(NOTICE, follow=["news", "users.7.notice", "c", "d"]))
    await turns()
    update(worker, replace(NOTICE, follow=["news", "users.7.notice", "c", "e"]))
    await turns()
    worker.link.confirm("c", "d")
    await turns(9)
    worker.link.confirm("e")
    await turns(9)
    assert notices(transport) == [("reply", *FOLLOWED), ("reply", "c", "e")]
    assert session.subscriptions == (*FOLLOWED, "c", "e")


async def test_pattern_that_may_be_subscribed_to_but_is_not_followed_any_more_ends_after_the_start() -> None:
    worker = Worker(confirms=False)
    session, transport, start = beginning(worker)
    await turns()
    update(worker, Permissions(["news"], follow=["users.7.notice"], aliases={"me.": "users.7."}))
    worker.link.confirm("news", "users.7.notice")
    await start
    await turns()
    assert notices(transport) == [("reply", *FOLLOWED), ("unsubscribed", "subject.forbidden", "news")]
    assert session.subscriptions == ("me.notice",)
    worker.link.deliver("news")
    await turns()
    assert transport.data == []


async def test_update_of_a_session_with_a_query_during_the_start() -> None:
    worker = Worker(confirms=False)
    session, transport, start = beginning(worker, "a", "b")
    await turns()
    update(worker, replace(NOTICE, subscribe=["a"], follow=["news"]))
    worker.link.confirm("news", "users.7.notice", "a", "b")
    await start
    assert notices(transport) == [("reply", "news"), ("reply", "subject.forbidden", "b")]
    assert session.subscriptions == ("news",)


async def test_update_waits_for_the_command_in_progress() -> None:
    worker = Worker()
    session, transport = await begun(worker)
    worker.link.confirms = False
    command = asyncio.create_task(act(session, "subscribe", "a"))
    await turns()
    update(worker, replace(NOTICE, follow=["news", "users.7.notice", "c"]))
    worker.link.confirms = True
    worker.link.confirm("a")
    await command
    await turns(9)
    assert notices(transport)[1:] == [("reply", "a"), ("reply", "c")]


async def test_update_right_after_the_reply_to_another_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker()
    session, transport = await begun(worker, replace(NOTICE, follow=[]))
    names = [f"n.{number}" for number in range(20)]
    write, loop = session.write, asyncio.get_running_loop()

    def follow(count: int) -> None:
        update(worker, replace(NOTICE, follow=names[:count]))

    def hooked(data: bytes) -> None:
        write(data)
        if (count := len(transport.frames)) <= len(names):
            loop.call_soon(follow, count)

    monkeypatch.setattr(session, "write", hooked)
    follow(1)
    await until(lambda: len(session.subscriptions) == len(names))
    assert notices(transport) == [("reply", name) for name in names]


async def test_pattern_that_nats_refuses_later_is_followed_again_after_a_subscribe() -> None:
    worker = Worker()
    session, transport = await begun(worker)
    worker.link.refuse("news")
    await turns()
    update(worker, replace(NOTICE, expires=time.time() + 60))
    await turns()
    assert notices(transport)[1:] == [("unsubscribed", "nats.refused", "news")]
    assert (await execute(session, "unsubscribe", "news")).reply.code == "subject.not_subscribed"
    await act(session, "subscribe", "news")
    assert (await execute(session, "unsubscribe", "news")).reply.code == "subject.forbidden"


async def test_reply_to_an_update_does_not_wait_for_a_slow_client() -> None:
    worker = Worker()
    session, transport = await begun(worker)
    transport.limit = 100
    transport.write(b"\x81\x7e\x00\x91" + b'{"type":"padding","padding":"' + b"x" * 114 + b'"}')
    assert transport.full
    update(worker, replace(NOTICE, follow=["c"]))
    await turns()
    assert session.subscriptions == ("c",)
    worker.link.deliver("c")
    await turns()
    transport.take()
    assert transport.types[-1] in ("gap", "message")


# The end of the session


@pytest.mark.parametrize("patterns", [(), ("a",)], ids=["websocket", "query"])
@pytest.mark.parametrize("ending", ["gone", "close", "revoke", "expiry", "task"])
async def test_session_that_ends_during_the_start_leaves_nothing(ending: str, patterns: tuple[str, ...]) -> None:
    worker = Worker(confirms=False, unsubscribe_delay=0)
    session, transport, start = beginning(worker, *patterns)
    await turns()
    if ending == "gone":
        session.connection_lost(1006)
    elif ending == "close":
        session.close(CloseCode.GOING_AWAY, "test")
    elif ending == "revoke":
        worker.sessions.revoke("ada", None)
    elif ending == "expiry":
        update(worker, replace(NOTICE, expires=time.time() - 1))
    else:
        start.cancel()
        await asyncio.gather(start, return_exceptions=True)
        session.connection_lost(1006)
    worker.link.confirm("news", "users.7.notice", "a")
    await asyncio.gather(start, return_exceptions=True)
    await turns(9)
    assert start.cancelled() or start.exception() is None
    assert [frame for frame in transport.types if frame != "close"] == ["welcome"]
    assert_nothing_is_left(worker)


async def test_session_that_ends_during_an_update_leaves_nothing() -> None:
    worker = Worker()
    session, transport = await begun(worker)
    worker.link.confirms = False
    update(worker, replace(NOTICE, follow=["c"]))
    await turns()
    session.connection_lost(1006)
    worker.link.confirm("c")
    await turns(9)
    assert [frame["type"] for frame in transport.frames if "c" in frame.get("subjects", ())] == []
    assert_nothing_is_left(worker)


async def test_nats_lost_during_the_start_is_reported_later() -> None:
    worker = Worker(confirms=False)
    session, transport, start = beginning(worker, "a")
    await turns()
    worker.link.lose()
    await start
    assert notices(transport) == [("reply", *FOLLOWED, "a")]
    worker.link.come_back()
    await turns()
    worker.link.confirm("news", "users.7.notice", "a")
    await turns(9)
    assert transport.frames[-1] == {"type": "status", "nats": "connected"}
    assert session.subscriptions == (*FOLLOWED, "a")


async def test_internal_error_ends_the_session(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker()
    session, transport = worker.open(NOTICE)
    monkeypatch.setattr(session._subscriptions, "policy", None)
    await session.begin()
    (record,) = caplog.records
    assert record.getMessage().startswith("Internal error while a session followed subjects; it was closed.")
    assert (transport.types, transport.frames[-1]["code"]) == (["welcome", "close"], 1011)


# What the app may name


async def test_update_with_too_many_patterns_is_an_error_and_changes_nothing() -> None:
    worker = Worker(max_subscriptions=2)
    session, transport = await begun(worker)
    with pytest.raises(ValueError, match=r"^follow must be at most max_subscriptions \(2\) patterns, got 3$"):
        update(worker, replace(NOTICE, follow=["c", "d", "e"]))
    assert session.permissions == NOTICE
    assert transport.types == ["welcome", "reply"]


async def test_error_of_an_update_is_found_without_a_session() -> None:
    worker = Worker(max_subscriptions=2)
    with worker.sessions.pending_connections.connecting() as pending:
        with pytest.raises(ValueError, match="follow must be"):
            update(worker, replace(NOTICE, follow=["c", "d", "e"]))
        assert pending.updates == {}


class RandomSession:
    """A session whose client, app and NATS server act at random, and what its client knows."""

    names = tuple("abcdef")

    def __init__(self, seed: int) -> None:
        self.choose = random.Random(seed)
        self.worker = Worker(confirms=False, unsubscribe_delay=0, max_bad_commands=10_000, command_burst=10_000)
        self.permissions = self.any_permissions()
        self.session, self.transport = self.worker.open(self.permissions)
        query = query_of(*self.some()) if self.choose.random() < 0.5 else None
        self.commands = [asyncio.create_task(self.session.begin(query))]

    def some(self) -> list[str]:
        return self.choose.sample(self.names, self.choose.randrange(1, 4))

    def any_permissions(self) -> Permissions:
        deny = [self.choose.choice(self.names)] if self.choose.random() < 0.1 else []
        return Permissions(self.some(), deny, follow=self.some()[self.choose.randrange(2) :], identity="ada")

    async def command(self) -> None:
        outcome = await execute(self.session, self.choose.choice(["subscribe", "unsubscribe"]), *self.some())
        self.session.send(outcome.reply)

    async def act(self) -> None:
        link = self.worker.link
        match self.choose.randrange(12):
            case 0 | 1 | 2:
                self.permissions = self.any_permissions()
                update(self.worker, self.permissions)
            case 3 | 4 | 5:
                self.commands.append(asyncio.create_task(self.command()))
            case 6 | 7 if link.patterns:
                link.confirm(self.choose.choice(link.patterns))
            case 8 if link.patterns and self.choose.random() < 0.3:
                link.refuse(self.choose.choice(link.patterns))
            case 9 if link.up and self.choose.random() < 0.3:
                link.lose()
            case 10 if not link.up:
                link.come_back()
            case 11 if link.up:
                link.deliver(self.choose.choice(self.names))
        await turns(self.choose.randrange(3))

    async def settle(self) -> None:
        link = self.worker.link
        if not link.up:
            link.come_back()
        link.confirms = True
        while True:
            link.confirm(*link.patterns)
            await asyncio.sleep(0.1)
            follows = self.session._following._task
            if all(task.done() for task in self.commands) and (follows is None or follows.done()):
                break
        await asyncio.gather(*self.commands)
        await turns()

    def known(self) -> set[str]:
        """Return the subscriptions as the client knows them; fail if a message came for another."""
        held: set[str] = set()
        for frame in self.transport.frames:
            if frame["type"] == "unsubscribed":
                held -= {*frame["subjects"]}
            elif frame["type"] == "reply" and frame["success"]:
                change = held.update if frame["action"] == "subscribe" else held.difference_update
                change(frame["subjects"])
            elif frame["type"] == "message":
                assert frame["subject"] in held
        return held


@pytest.mark.parametrize("first", range(0, 400, 50))
async def test_client_always_knows_its_subscriptions(first: int) -> None:
    for seed in range(first, first + 50):
        each = RandomSession(seed)
        for _ in range(60):
            await each.act()
        await each.settle()
        held = {*each.session.subscriptions}
        assert each.known() == held, seed
        refused = {
            name
            for frame in each.transport.frames
            if frame["type"] == "unsubscribed" and frame["code"] == "nats.refused"
            for name in frame["subjects"]
        }
        assert {*each.permissions.follow} - {*each.permissions.deny} <= held | refused, seed
        assert held <= {*each.permissions.follow, *each.permissions.subscribe} - {*each.permissions.deny}, seed
        assert each.worker.sessions._context.shares.count("identity ada") == len(held), seed
        assert not each.session.closed
        each.session.connection_lost(1000)
        await turns()
        assert_nothing_is_left(each.worker)
