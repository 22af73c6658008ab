import asyncio
from typing import Any

import pytest

from sanic_nats_bridge.errors import BridgeError, CloseCode, NatsRefused, SessionUnknown, SubscriptionLimit
from sanic_nats_bridge.permissions import Permissions
from sanic_nats_bridge.protocol import Action, Command, Reply
from sanic_nats_bridge.session import Session
from sanic_nats_bridge.sessions import Sessions
from sanic_nats_bridge.settings import Settings

from .fakes import FakeLink, FakeOutlet
from .support import until


class Worker:
    """Sessions on a hub with a fake link."""

    def __init__(self, *, confirms: bool = True, **settings: Any) -> None:
        options = Settings.resolve(settings, {})
        self.link, self.hub = FakeLink.with_hub(confirms=confirms)
        self.sessions = Sessions(options, self.hub, Permissions([">"]))
        self.sessions.nats_connected()

    def open(self) -> tuple[Session, FakeOutlet]:
        outlet = FakeOutlet()
        session = self.sessions.open(outlet)
        assert session is not None
        return session, outlet


async def act(session: Session, action: Action, *patterns: str) -> Reply:
    """Carry a command out and write its reply, as a door does."""
    reply = await session.handle(Command(action=action, subjects=list(patterns)))
    session.send(reply)
    return reply


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


# Heartbeats


async def test_heartbeats_go_out_while_nothing_else_does() -> None:
    _, outlet = Worker(heartbeat=0.1).open()
    await until(lambda: outlet.types.count("heartbeat") >= 3)
    assert outlet.types[0] == "welcome"


async def test_no_heartbeat_goes_out_between_frequent_messages() -> None:
    worker = Worker(heartbeat=4)
    session, outlet = worker.open()
    await act(session, "subscribe", "a")
    for _ in range(30):
        worker.link.deliver("a")
        await asyncio.sleep(0.08)
    assert outlet.data == [1] * 30
    assert "heartbeat" not in outlet.types


async def test_a_closed_session_has_no_pulse() -> None:
    session, outlet = Worker(heartbeat=0.1).open()
    session.close(CloseCode.GOING_AWAY, "test")
    written = len(outlet.writes)
    await asyncio.sleep(0.15)
    assert len(outlet.writes) == written


# Commands


async def test_commands_are_carried_out_in_the_order_of_their_arrival() -> None:
    worker = Worker(confirms=False)
    session, outlet = worker.open()
    commands: list[tuple[Action, tuple[str, ...]]] = [
        ("subscribe", ("a",)),
        ("ping", ()),
        ("subscribe", ("b",)),
        ("unsubscribe", ("a",)),
    ]
    tasks = [asyncio.create_task(act(session, action, *patterns)) for action, patterns in commands]
    await turns()
    assert outlet.types == ["welcome"]
    worker.link.confirm("a")
    await turns()
    worker.link.confirm("b")
    await asyncio.gather(*tasks)
    assert [frame["action"] for frame in outlet.frames[1:]] == [action for action, _ in commands]
    assert session.subscriptions == ("b",)


async def test_the_reply_stands_before_the_first_message() -> None:
    worker = Worker(confirms=False)
    session, outlet = worker.open()
    command = asyncio.create_task(act(session, "subscribe", "a"))
    await turns()
    worker.link.confirm("a")
    for _ in range(5):
        worker.link.deliver("a")
        await turns(1)
    await command
    worker.link.deliver("a", b'"after"')
    await turns()
    assert outlet.types[:2] == ["welcome", "reply"]
    assert outlet.data[-1] == "after"


@pytest.mark.parametrize("held", [["a", "b"], []], ids=["across commands", "in one command"])
async def test_a_session_holds_no_more_than_its_limit(held: list[str]) -> None:
    worker = Worker(max_subscriptions=3)
    session, _ = worker.open()
    if held:
        await act(session, "subscribe", *held)
    with pytest.raises(SubscriptionLimit):
        await act(session, "subscribe", *{"c", "d", "a", "b"} - set(held))
    assert list(session.subscriptions) == worker.link.patterns == held
    await act(session, "subscribe", *{"a", "b", "c"})
    assert set(session.subscriptions) == {"a", "b", "c"}


async def test_a_pattern_that_is_held_already_brings_no_second_copy() -> None:
    worker = Worker()
    session, outlet = worker.open()
    await act(session, "subscribe", "a")
    assert (await act(session, "subscribe", "a", "a")).success
    worker.link.deliver("a")
    await turns()
    assert outlet.data == [1]
    await act(session, "unsubscribe", "a")
    await until(lambda: worker.hub.patterns == ())


async def test_a_held_pattern_that_is_refused_while_its_repetition_waits_fails_the_command() -> None:
    worker = Worker(confirms=False, confirm_timeout=0.05)
    session, outlet = worker.open()
    first = asyncio.create_task(act(session, "subscribe", "a"))
    await turns()
    worker.link.confirm("a")
    await first
    second = asyncio.create_task(act(session, "subscribe", "a", "b"))
    await turns()
    worker.link.refuse("a")
    worker.link.confirm("b")
    with pytest.raises(NatsRefused) as refusal:
        await second
    assert refusal.value.subjects == ("a",)
    assert session.subscriptions == ()
    assert outlet.types == ["welcome", "reply", "unsubscribed"]
    await until(lambda: worker.hub.patterns == ())


# The end


async def test_close_is_the_last_frame_and_nothing_comes_after_it() -> None:
    worker = Worker(heartbeat=0.1)
    session, outlet = worker.open()
    await act(session, "subscribe", "a")
    worker.link.deliver("a")
    session.close(CloseCode.GOING_AWAY, "test")
    session.close(CloseCode.INTERNAL, "again")
    worker.link.deliver("a")
    worker.link.lose()
    worker.link.come_back()
    session.gone(1006)
    await asyncio.sleep(0.15)
    assert outlet.types == ["welcome", "reply", "message", "close"]
    assert outlet.finished is not None
    assert outlet.finished.code == 1001


async def test_a_reply_after_the_close_is_not_written() -> None:
    worker = Worker(confirms=False)
    session, outlet = worker.open()
    waiting = asyncio.create_task(act(session, "subscribe", "a"))
    await turns()
    session.close(CloseCode.GOING_AWAY, "test")
    worker.link.confirm("a")
    with pytest.raises(SessionUnknown):
        await waiting
    session.send(Reply(success=True, message="late"))
    assert outlet.types == ["welcome", "close"]
    await until(lambda: worker.hub.patterns == ())


@pytest.mark.parametrize("action", ["subscribe", "unsubscribe", "ping"])
async def test_a_command_to_a_closed_session_is_refused(action: Action) -> None:
    session, outlet = Worker().open()
    session.gone(1000)
    with pytest.raises(BridgeError, match="No such session"):
        await act(session, action, "a")
    assert outlet.types == ["welcome"]


# What the connection to NATS brings


async def test_the_loss_of_nats_is_told_in_order_and_only_who_missed_something_gets_a_gap() -> None:
    worker = Worker()
    follower, outlet = worker.open()
    _, idle = worker.open()
    await act(follower, "subscribe", "a", "b")
    worker.link.lose()
    worker.link.come_back()
    worker.link.deliver("a")
    await turns()
    assert outlet.types == ["welcome", "reply", "status", "gap", "status", "message"]
    assert outlet.frames[3] == {"type": "gap", "subjects": ["a", "b"], "lost": None, "reason": "nats_reconnect"}
    assert [frame["nats"] for frame in outlet.frames if frame["type"] == "status"] == ["disconnected", "connected"]
    assert idle.types == ["welcome", "status", "status"]


async def test_what_was_subscribed_while_nats_was_away_has_no_gap() -> None:
    worker = Worker()
    session, outlet = worker.open()
    worker.link.lose()
    assert (await act(session, "subscribe", "a")).active is False
    worker.link.come_back()
    await turns()
    assert outlet.types == ["welcome", "status", "reply", "status"]


async def test_what_was_unsubscribed_while_nats_was_away_has_no_gap() -> None:
    worker = Worker()
    session, outlet = worker.open()
    await act(session, "subscribe", "a", "b")
    worker.link.lose()
    await act(session, "unsubscribe", "a")
    worker.link.come_back()
    assert worker.link.patterns == ["b"]
    assert outlet.frames[-1]["subjects"] == ["b"]


async def test_messages_missed_before_all_patterns_were_answered_make_a_gap() -> None:
    worker = Worker()
    session, outlet = worker.open()
    await act(session, "subscribe", "a", "b")
    worker.link.confirms = False
    worker.link.lose()
    assert (await act(session, "subscribe", "a")).active is False
    worker.link.come_back()
    worker.link.confirm("a")
    worker.link.deliver("a")
    worker.link.lose()
    worker.link.come_back()
    gaps = [frame["subjects"] for frame in outlet.frames if frame["type"] == "gap"]
    assert gaps == [["a", "b"], ["a", "b"]]


async def test_a_late_confirmation_is_told_by_a_status_and_once() -> None:
    worker = Worker(confirms=False, confirm_timeout=0)
    session, outlet = worker.open()
    assert (await act(session, "subscribe", "a", "b")).active is False
    worker.link.confirm("a")
    assert outlet.types == ["welcome", "reply"]
    worker.link.confirm("b")
    assert outlet.frames[2:] == [{"type": "status", "nats": "connected"}]


async def test_a_late_refusal_ends_the_subscription() -> None:
    worker = Worker(confirms=False, confirm_timeout=0)
    session, outlet = worker.open()
    await act(session, "subscribe", "a", "b")
    worker.link.refuse("a")
    (frame,) = outlet.frames[2:]
    assert (frame["type"], frame["subjects"], frame["code"]) == ("unsubscribed", ["a"], "nats.refused")
    assert session.subscriptions == ("b",)


async def test_a_late_refusal_of_the_last_pattern_in_doubt_lets_the_others_be_told_connected() -> None:
    worker = Worker(confirms=False, confirm_timeout=0)
    session, outlet = worker.open()
    await act(session, "subscribe", "a", "b")
    worker.link.confirm("a")
    worker.link.refuse("b")
    assert outlet.types[2:] == ["unsubscribed", "status"]


async def test_a_late_unsubscribe_of_the_last_pattern_in_doubt_lets_the_others_be_told_connected() -> None:
    worker = Worker(confirms=False, confirm_timeout=0)
    session, outlet = worker.open()
    await act(session, "subscribe", "a", "b")
    worker.link.confirm("a")
    await act(session, "unsubscribe", "b")
    assert sorted(outlet.types[2:]) == ["reply", "status"]
