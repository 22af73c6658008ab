import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sanic_nats_bridge.auth.exclusions import Exclusions
from sanic_nats_bridge.auth.permissions import Permissions
from sanic_nats_bridge.errors import BridgeError, CloseCode, NatsRefused, SubscriptionLimitExceeded
from sanic_nats_bridge.hub.hub import Hub, refused_by_nats
from sanic_nats_bridge.hub.interest import Interest, State, View
from sanic_nats_bridge.hub.skipped import SkippedMessages
from sanic_nats_bridge.protocol.encoding import WireFormat
from sanic_nats_bridge.protocol.messages import Action, Command, Reply
from sanic_nats_bridge.sessions.pending import PendingConnection
from sanic_nats_bridge.sessions.registry import SessionRegistry
from sanic_nats_bridge.sessions.session import Session
from sanic_nats_bridge.settings import Settings
from tests.support.bridge import until
from tests.support.clock import leaping
from tests.support.fakes import (
    ALONE,
    FakeLink,
    FakeSubscriber,
    FakeTransport,
    granted,
    ignore,
    read_websocket_frames,
)
from tests.support.growth import assert_linear


async def follow(hub: Hub, subscriber: FakeSubscriber, *patterns: str, seconds: float = 5) -> list[View]:
    """Subscribe as a session does."""
    interests = hub.acquire(patterns)
    try:
        await hub.confirm(interests, seconds)
        refused = [interest.pattern for interest in interests if interest.state is State.REFUSED]
        if refused:
            raise refused_by_nats(refused)
    except BaseException:
        hub.release(interests)
        raise
    return hub.attach(subscriber, zip(interests, granted(*patterns), strict=True))


async def follower(hub: Hub, *patterns: str, wire_format: WireFormat = WireFormat.WEBSOCKET) -> FakeSubscriber:
    subscriber = FakeSubscriber(wire_format)
    await follow(hub, subscriber, *patterns)
    return subscriber


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


# Commands


async def test_concurrent_subscribers_share_and_await_one_subscription() -> None:
    link, hub = FakeLink.with_hub()
    waiting = [asyncio.create_task(follower(hub, "a")) for _ in range(2)]
    await turns()
    assert link.sent == [("SUB", "a")]
    assert not any(task.done() for task in waiting)
    link.confirm("a")
    first, second = await asyncio.gather(*waiting)
    link.deliver("a")
    await turns()
    assert first.data == second.data == [1]


async def test_refusal_fails_all_waiting_subscribers_and_drops_pattern() -> None:
    link, hub = FakeLink.with_hub()
    waiting = [asyncio.create_task(follower(hub, "a")) for _ in range(2)]
    await turns()
    link.refuse("a")
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [outcome.subjects for outcome in outcomes if isinstance(outcome, NatsRefused)] == [("a",), ("a",)]
    assert hub.patterns == ()
    again = asyncio.create_task(follower(hub, "a"))
    await turns()
    link.confirm("a")
    assert (await again).told == []
    assert link.sent == [("SUB", "a"), ("SUB", "a")]


async def test_refusal_of_one_pattern_releases_all_patterns_of_command() -> None:
    link, hub = FakeLink.with_hub()
    waiting = asyncio.create_task(follower(hub, "a", "b", "c"))
    await turns()
    link.confirm("a")
    link.refuse("b")
    link.confirm("c")
    with pytest.raises(NatsRefused) as refused:
        await waiting
    assert refused.value.subjects == ("b",)
    await until(lambda: hub.patterns == ())
    assert link.patterns == []
    assert link.faults == []


async def test_resubscribing_within_unsubscribe_delay_sends_nothing_to_nats() -> None:
    link, hub = FakeLink.with_hub(confirms=True, unsubscribe_delay=5)
    views = await follow(hub, first := FakeSubscriber(), "a")
    hub.detach(first, views)
    await asyncio.sleep(4)
    second = await follower(hub, "a")
    await asyncio.sleep(60)
    link.deliver("a")
    await turns()
    assert link.sent == [("SUB", "a")]
    assert (first.data, second.data) == ([], [1])


async def test_last_release_unsubscribes_after_unsubscribe_delay() -> None:
    link, hub = FakeLink.with_hub(confirms=True, unsubscribe_delay=5)
    held = [(subscriber := FakeSubscriber(), await follow(hub, subscriber, "a")) for _ in range(2)]
    hub.detach(*held[0])
    await asyncio.sleep(60)
    assert link.sent == [("SUB", "a")]
    hub.detach(*held[1])
    await asyncio.sleep(4)
    assert link.patterns == ["a"]
    await asyncio.sleep(2)
    assert link.sent == [("SUB", "a"), ("UNSUB", "a")]
    assert hub.patterns == ()


async def test_cancelled_pending_command_releases_its_claims() -> None:
    link, hub = FakeLink.with_hub()
    waiting = asyncio.create_task(follower(hub, "a", "b"))
    await turns()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    link.confirm("a", "b")
    await until(lambda: hub.patterns == ())
    assert link.patterns == []


async def test_subscribe_pending_at_disconnect_is_resent_on_reconnect() -> None:
    link, hub = FakeLink.with_hub()
    waiting = asyncio.create_task(follow(hub, subscriber := FakeSubscriber(), "a"))
    await turns()
    link.lose()
    (view,) = await waiting
    assert view.interest.state is State.DISCONNECTED
    link.come_back()
    link.confirm("a")
    link.deliver("a")
    await turns()
    assert subscriber.data == [1]
    assert link.sent == [("SUB", "a"), ("SUB", "a")]


async def test_late_confirmation_notifies_subscriber() -> None:
    link, hub = FakeLink.with_hub()
    (view,) = await follow(hub, subscriber := FakeSubscriber(), "a", seconds=0.01)
    before = view.interest.state
    assert subscriber.told == []
    link.confirm("a")
    assert (before, view.interest.state) == (State.PENDING, State.ACTIVE)
    assert subscriber.told == [("subscription_active", "a")]


async def test_late_refusal_delivers_messages_then_ends_subscription() -> None:
    link, hub = FakeLink.with_hub()
    await follow(hub, subscriber := FakeSubscriber(), "a", seconds=0.01)
    link.deliver("a")
    link.refuse("a")
    assert subscriber.data == [1]
    assert subscriber.told == [("nats.refused", "a")]
    assert hub.patterns == ()


async def test_idle_pattern_is_not_resubscribed_on_reconnect_until_acquired() -> None:
    link, hub = FakeLink.with_hub(confirms=True, unsubscribe_delay=60)
    hub.detach(subscriber := FakeSubscriber(), await follow(hub, subscriber, "a"))
    link.lose()
    link.come_back()
    assert link.patterns == []
    await follow(hub, subscriber, "a")
    assert link.patterns == ["a"]


# Messages


async def test_messages_of_one_turn_keep_order_for_every_subscription_set() -> None:
    link, hub = FakeLink.with_hub(confirms=True)
    sets: list[tuple[str, ...]] = [("a", "b", "c"), ("c", "a"), ("b",), ("*", "a"), ("d",)]
    subscribers_by_view = {patterns: await follower(hub, *patterns) for patterns in sets}
    for number, subject in enumerate("abcacb"):
        link.deliver(subject, b"%d" % number)
    await turns()
    seen = {patterns: subscriber.data for patterns, subscriber in subscribers_by_view.items()}
    doubled = seen.pop(("*", "a"))
    assert seen == {("a", "b", "c"): [0, 1, 2, 3, 4, 5], ("c", "a"): [0, 2, 3, 4], ("b",): [1, 5], ("d",): []}
    assert doubled == sorted([0, 1, 2, 3, 4, 5, 0, 3])


async def test_subscriber_gets_one_write_per_loop_turn() -> None:
    link, hub = FakeLink.with_hub(confirms=True)
    both, one = await follower(hub, "a", "b"), await follower(hub, "b")
    for subject in "abab":
        link.deliver(subject)
    await turns()
    link.deliver("b")
    await turns()
    assert (len(both.writes), len(one.writes)) == (2, 2)
    assert (len(both.data), len(one.data)) == (5, 3)


@pytest.mark.parametrize("subjects", [["a", "a"], ["a", "b"]], ids=["one pattern", "several patterns"])
async def test_subscribers_with_same_wire_format_share_one_bytes_object(subjects: list[str]) -> None:
    link, hub = FakeLink.with_hub(confirms=True)
    firsts, seconds = [
        [await follower(hub, "a", "b", wire_format=wire_format) for wire_format in WireFormat] for _ in range(2)
    ]
    for subject in subjects:
        link.deliver(subject)
    await turns()
    written = [subscriber.writes for subscriber in firsts]
    assert all(first.writes[0] is second.writes[0] for first, second in zip(firsts, seconds, strict=True))
    assert len({writes[0] for writes in written}) == len(WireFormat)


async def test_attach_and_detach_take_effect_within_loop_turn() -> None:
    link, hub = FakeLink.with_hub(confirms=True)
    views = await follow(hub, leaver := FakeSubscriber(), "a")
    stayer = await follower(hub, "a")
    joiner, claims = FakeSubscriber(), hub.acquire(["a"])
    link.deliver("a", b"1")
    hub.attach(joiner, zip(claims, granted("a"), strict=True))
    link.deliver("a", b"2")
    hub.detach(leaver, views)
    link.deliver("a", b"3")
    await turns()
    assert (leaver.data, joiner.data, stayer.data) == ([1, 2], [2, 3], [1, 2, 3])


@pytest.mark.parametrize("pattern", ["*", ">", "*.>", "*.b"])
@pytest.mark.parametrize("subject", ["$SYS.b", "_INBOX.b", "$b", "_b"])
async def test_leading_wildcard_does_not_deliver_reserved_subjects(pattern: str, subject: str) -> None:
    link, hub = FakeLink.with_hub(confirms=True)
    wide, exact = await follower(hub, pattern), await follower(hub, subject)
    (interest,) = (sink for sink in link.standing.values() if sink.pattern == pattern)
    hub.on_message(interest, subject.encode(), b"", b"1")
    hub.on_message(interest, b"open" if pattern == "*" else b"open.b", b"", b"2")
    link.deliver(subject, b"3")
    await turns()
    assert wide.data == [2]
    assert exact.data == [3]


async def test_message_with_non_utf8_subject_is_dropped_and_counted() -> None:
    link, hub = FakeLink.with_hub(confirms=True)
    subscriber = await follower(hub, "a.>")
    link.deliver(b"a.\xff\xfe", b"1")
    link.deliver("a.\N{SNOWMAN}", b"2")
    await turns()
    assert [frame["subject"] for frame in subscriber.frames] == ["a.\N{SNOWMAN}"]
    assert hub._counters.lost["unreadable_subject"] == 1


# Subscribers that do not keep up


@pytest.mark.parametrize("subjects", [["a", "a"], ["a", "b"]], ids=["one pattern", "several patterns"])
async def test_slow_subscriber_is_skipped_and_others_still_share_bytes(
    subjects: list[str],
) -> None:
    link, hub = FakeLink.with_hub(confirms=True)
    slow, first, second = [await follower(hub, "a", "b") for _ in range(3)]
    slow.is_writable = False
    for number, subject in enumerate(subjects):
        link.deliver(subject, b"%d" % number)
    await turns()
    assert slow.writes == []
    assert [(left.subject, left.payload) for left in slow.skipped] == [(subjects[0], b"0"), (subjects[1], b"1")]
    assert first.data == [0, 1]
    assert first.writes[0] is second.writes[0]


async def test_message_skipped_for_all_subscribers_is_not_encoded() -> None:
    link, hub = FakeLink.with_hub(confirms=True)
    slow = await follower(hub, "a")
    slow.is_writable = False
    link.deliver("a")
    await turns()
    (left,) = slow.skipped
    assert (left.json, left.frame) == (None, None)


async def test_subscriber_is_skipped_only_while_not_writable() -> None:
    link, hub = FakeLink.with_hub(confirms=True)
    full, other = await follower(hub, "a"), await follower(hub, "a")
    link.deliver("a", b"1")
    hub.flush()
    full.is_writable = False
    link.deliver("a", b"2")
    hub.flush()
    full.is_writable = True
    link.deliver("a", b"3")
    hub.flush()
    assert (full.data, len(full.skipped)) == ([1, 3], 1)
    assert other.data == [1, 2, 3]


@pytest.mark.parametrize("subjects", [["a"], ["a", "b"]], ids=["one pattern", "several patterns"])
async def test_detach_during_skip_does_not_affect_other_subscribers(subjects: list[str]) -> None:
    link, hub = FakeLink.with_hub(confirms=True)

    class Leaver(FakeSubscriber):
        views: Sequence[View] = ()

        def skip(self, skipped: SkippedMessages) -> None:
            super().skip(skipped)
            hub.detach(self, self.views)

    others = [await follower(hub, "a", "b")]
    leavers = [Leaver(), Leaver()]
    for leaver in leavers:
        leaver.views, leaver.is_writable = await follow(hub, leaver, "a", "b"), False
        others.append(await follower(hub, "a", "b"))
    for _ in range(2):
        for subject in subjects:
            link.deliver(subject)
        await turns()
    assert [other.data for other in others] == [[1] * 2 * len(subjects)] * 3
    assert [len(leaver.skipped) for leaver in leavers] == [len(subjects)] * 2


# A flush interval

INTERVAL = 0.5


async def test_messages_of_flush_interval_are_sent_in_one_write() -> None:
    link, hub = FakeLink.with_hub(confirms=True, flush_interval=INTERVAL)
    subscriber = await follower(hub, "a", "b")
    for number, subject in enumerate("abab"):
        link.deliver(subject, b"%d" % number)
        await turns()
    assert subscriber.writes == []
    await until(lambda: subscriber.writes)
    assert subscriber.data == [0, 1, 2, 3]
    assert len(subscriber.writes) == 1


async def test_flush_interval_ends_early_when_over_1_mib_is_pending() -> None:
    link, hub = FakeLink.with_hub(confirms=True, flush_interval=1)
    subscriber = await follower(hub, "a")
    for _ in range(10):
        link.deliver("a", b'"' + b"x" * 200_000 + b'"')
    assert [len(write) > 2**20 for write in subscriber.writes] == [True]
    hub.flush()
    assert len(subscriber.data) == 10


async def test_messages_are_flushed_after_close_and_reconnect() -> None:
    link, hub = FakeLink.with_hub(confirms=True, flush_interval=INTERVAL)
    await follower(hub, "a")
    link.deliver("a", b"1")
    hub.close()
    link.lose()
    link.come_back()
    subscriber = await follower(hub, "a")
    link.deliver("a", b"2")
    await until(lambda: subscriber.data == [2])


async def test_flush_interval_restarts_after_explicit_flush() -> None:
    link, hub = FakeLink.with_hub(confirms=True, flush_interval=INTERVAL)
    subscriber = await follower(hub, "a")
    for number in range(3):
        link.deliver("a", b"%d" % number)
        hub.flush()
        link.deliver("a", b"%d" % number)
        await until(lambda number=number: len(subscriber.data) == 2 * number + 2)  # type: ignore[misc]
    assert subscriber.data == [0, 0, 1, 1, 2, 2]
    assert len(subscriber.writes) == 6


async def test_message_waits_at_most_one_flush_interval() -> None:
    loop = leaping()
    waited: list[float] = []

    class Clocked(FakeSubscriber):
        def write(self, data: bytes) -> None:
            waited.extend(loop.now - frame["data"] for frame in read_websocket_frames(data))

    link, hub = FakeLink.with_hub(confirms=True, flush_interval=1)
    await follow(hub, Clocked(), "a")
    for pause in (0.3, 0.3, 0.9, 0.0, 1.2, 5.0, 0.1):
        link.deliver("a", b"%f" % loop.now)
        if pause == 0.9:
            hub.flush()
        await asyncio.sleep(pause)
    await asyncio.sleep(1)
    assert len(waited) == 7
    assert max(waited) <= 1.001


async def test_attach_and_detach_take_effect_within_flush_interval() -> None:
    link, hub = FakeLink.with_hub(confirms=True, flush_interval=1)
    views = await follow(hub, leaver := FakeSubscriber(), "a")
    stayer = await follower(hub, "a")
    joiner, claims = FakeSubscriber(), hub.acquire(["a"])
    link.deliver("a", b"1")
    hub.attach(joiner, zip(claims, granted("a"), strict=True))
    link.deliver("a", b"2")
    hub.detach(leaver, views)
    link.deliver("a", b"3")
    hub.flush()
    assert (leaver.data, joiner.data, stayer.data) == ([1, 2], [2, 3], [1, 2, 3])


@pytest.mark.parametrize("event", ["refuse", "lose"])
async def test_refusal_and_disconnect_flush_pending_messages_first(event: str) -> None:
    link, hub = FakeLink.with_hub(confirms=True, flush_interval=1)
    subscriber = await follower(hub, "a")
    link.deliver("a")
    getattr(link, event)(*(["a"] if event == "refuse" else []))
    assert subscriber.data == [1]


# What waits for its turn in the pacing


async def acquire_and_release(hub: Hub, *patterns: str) -> None:
    """Acquire the patterns and release them, and wait until their unsubscribe delay has expired."""
    interests = hub.acquire(patterns)
    await hub.confirm(interests, 5)
    hub.release(interests)
    await until(lambda: all(interest.unsubscribe_timer is None for interest in interests))


async def test_pattern_released_repeatedly_while_queued_is_unsubscribed_once() -> None:
    link, hub = FakeLink.with_hub(confirms=True, unsubscribe_delay=0, max_subscribe_rate=10)
    for _ in range(3):
        await acquire_and_release(hub, "a")
    await acquire_and_release(hub, "b")
    await until(lambda: hub.patterns == ())
    assert link.sent == [("SUB", "a"), ("UNSUB", "a"), ("SUB", "b"), ("UNSUB", "b")]


async def test_pattern_evicted_while_queued_is_unsubscribed_once() -> None:
    link, hub = FakeLink.with_hub(confirms=True, unsubscribe_delay=0, max_subscribe_rate=10, max_patterns=1)
    await acquire_and_release(hub, "a")
    await acquire_and_release(hub, "b")
    await until(lambda: link.patterns == [] and hub.patterns == ())
    assert link.sent == [("SUB", "a"), ("UNSUB", "a"), ("SUB", "b"), ("UNSUB", "b")]


async def test_pattern_refused_while_queued_sends_neither_sub_nor_unsub() -> None:
    link, hub = FakeLink.with_hub(confirms=True, unsubscribe_delay=0, max_subscribe_rate=10)
    await acquire_and_release(hub, "a")
    subscriber = await follower(hub, "a")
    link.refuse("a")
    assert subscriber.told == [("nats.refused", "a")]
    await acquire_and_release(hub, "b")
    await until(lambda: hub.patterns == ())
    assert link.sent == [("SUB", "a"), ("SUB", "b"), ("UNSUB", "b")]


async def test_nats_subscriptions_exceed_max_patterns_by_at_most_one() -> None:
    link, hub = FakeLink.with_hub(confirms=True, unsubscribe_delay=0, max_subscribe_rate=1000, max_patterns=20)
    most = 0

    async def flip(number: int) -> None:
        nonlocal most
        for turn in range(15):
            claims = hub.acquire([f"{number}.{turn}"], number)
            await hub.confirm(claims, 5)
            most = max(most, len(link.patterns))
            hub.release(claims)

    await asyncio.gather(*map(flip, range(20)))
    assert most <= 21
    await until(lambda: link.patterns == [])


async def test_requested_idle_patterns_are_not_evicted_to_make_room() -> None:
    link, hub = FakeLink.with_hub(confirms=True, unsubscribe_delay=60, max_patterns=2)
    hub.release(hub.acquire(["a", "b"]))
    with pytest.raises(SubscriptionLimitExceeded):
        hub.acquire(["a", "b", "c"])
    hub.acquire(["a", "c"])
    assert set(hub.patterns) == {"a", "c"}
    assert link.sent == [("SUB", "a"), ("SUB", "b"), ("UNSUB", "b"), ("SUB", "c")]


def test_command_does_not_visit_all_patterns() -> None:
    def make(count: int) -> Callable[[], object]:
        loop = asyncio.new_event_loop()

        async def build() -> Hub:
            _, hub = FakeLink.with_hub(max_patterns=2 * count, unsubscribe_delay=1000, max_subscribe_rate=10)
            hub.acquire([f"a.{number}" for number in range(count)])
            hub.release(hub.acquire([f"b.{number}" for number in range(count)]))
            return hub

        hub = loop.run_until_complete(build())

        async def commands() -> None:
            for number in range(count):
                hub.acquire([f"a.{number // 2}", f"c.{number}"])

        def run() -> None:
            loop.run_until_complete(commands())
            loop.close()

        return run

    assert_linear(make, 2_000)


# The order of status and gap


class Recorder:
    """A recorder of changes in the link's state."""

    def __init__(self) -> None:
        self.heard: list[str] = []

        self.callbacks: dict[str, Any] = {
            f"on_{event}": self._callback(event) for event in ("disconnected", "established", "connected")
        }

    def _callback(self, event: str) -> Callable[..., None]:
        def note(*proceed: Callable[[], None]) -> None:
            self.heard.append(event)
            for each in proceed:
                each()

        return note


async def test_connected_is_reported_after_nats_answers_for_every_pattern() -> None:
    recorder = Recorder()
    link, hub = FakeLink.with_hub(confirms=True, **recorder.callbacks)
    await follower(hub, "a", "b", "c")
    recorder.heard.clear()
    link.confirms = False
    link.lose()
    link.come_back()
    link.confirm("a")
    link.refuse("b")
    assert recorder.heard == ["disconnected", "established"]
    assert not hub.connected
    link.confirm("c")
    assert recorder.heard == ["disconnected", "established", "connected"]


async def test_new_subscriptions_do_not_delay_connected_after_reconnect() -> None:
    recorder = Recorder()
    link, hub = FakeLink.with_hub(**recorder.callbacks)
    hub.acquire(["a"])
    recorder.heard.clear()
    link.lose()
    link.come_back()
    hub.acquire(["b"])
    link.confirm("a")
    assert recorder.heard == ["disconnected", "established", "connected"]


async def test_messages_are_written_before_disconnect_is_reported() -> None:
    written: list[int] = []
    subscribers: list[FakeSubscriber] = []
    link, hub = FakeLink.with_hub(confirms=True, on_disconnected=lambda: written.append(len(subscribers[0].writes)))
    subscribers.append(await follower(hub, "a"))
    link.deliver("a")
    link.lose()
    assert written == [1]


# Races


class SteeredLoop(asyncio.SelectorEventLoop):
    """An event loop with a clock that moves only on request."""

    now = 0.0

    def time(self) -> float:
        return self.now


LINGER, TIMEOUT = 1.0, 5.0
PATTERNS = st.sampled_from(["a", "b", "*"])


class Races(RuleBasedStateMachine):
    """SessionRegistry, hub and a NATS server that answers, refuses, goes and returns when it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = SteeredLoop()
        self.faults: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.faults.append(context))
        self.commands: dict[asyncio.Task[Reply | BridgeError], tuple[Session, list[str]]] = {}
        self.expected: dict[Session, set[str]] = {}
        self.transports: dict[Session, FakeTransport] = {}
        self.loop.run_until_complete(self.build())

    async def build(self) -> None:
        options = Settings.resolve({"heartbeat": 86_400, "confirm_timeout": TIMEOUT, "unsubscribe_delay": LINGER}, {})
        self.link = FakeLink()
        self.sessions = SessionRegistry(options, self.link, on_opened=ignore, on_closed=ignore)
        self.hub = self.sessions.hub
        self.link.serve(self.hub)
        for _ in range(2):
            self.open()

    def open(self) -> None:
        transport = FakeTransport()
        session = self.sessions.open(transport, Permissions([">"]), PendingConnection())
        assert session is not None
        self.transports[session], self.expected[session] = transport, set()

    def run(self, step: Any, *arguments: Any) -> None:
        """Do a step in the loop, and let everything that follows from it happen."""

        async def inside() -> None:
            step(*arguments)
            await turns(10 + 3 * len(self.commands))

        self.loop.run_until_complete(inside())
        for task in [task for task in self.commands if task.done()]:
            self.settle(*self.commands.pop(task), task.result())

    def settle(self, session: Session, patterns: list[str], outcome: Reply | BridgeError) -> None:
        if isinstance(outcome, BridgeError):
            assert outcome.code in ("nats.refused", "subject.not_subscribed", "session.unknown")
        elif outcome.action == "subscribe":
            self.expected[session] |= set(patterns)
        else:
            self.expected[session] -= set(patterns)

    def command(self, action: Action, index: int, patterns: list[str]) -> None:
        session = list(self.expected)[index % len(self.expected)]

        async def carry_out() -> Reply | BridgeError:
            outcome = await session.execute(Command(action=action, subjects=patterns))
            return outcome.error or outcome.reply

        self.run(lambda: self.commands.update({self.loop.create_task(carry_out()): (session, patterns)}))

    @rule(index=st.integers(0, 2), patterns=st.lists(PATTERNS, min_size=1, max_size=2, unique=True))
    def subscribe(self, index: int, patterns: list[str]) -> None:
        self.command("subscribe", index, patterns)

    @rule(index=st.integers(0, 2), pattern=PATTERNS)
    def unsubscribe(self, index: int, pattern: str) -> None:
        self.command("unsubscribe", index, [pattern])

    @rule(pattern=PATTERNS)
    def confirm(self, pattern: str) -> None:
        self.run(self.link.confirm, pattern)

    @rule(pattern=PATTERNS)
    def refuse(self, pattern: str) -> None:
        if pattern in self.link.patterns:
            for held in self.expected.values():
                held.discard(pattern)
        self.run(self.link.refuse, pattern)

    @precondition(lambda self: self.link.up)
    @rule()
    def lose(self) -> None:
        self.run(self.link.lose)

    @precondition(lambda self: not self.link.up)
    @rule()
    def come_back(self) -> None:
        self.run(self.link.come_back)

    @rule(seconds=st.sampled_from([LINGER / 2, LINGER, TIMEOUT]))
    def wait(self, seconds: float) -> None:
        self.loop.now += seconds
        self.run(lambda: None)

    @rule(index=st.integers(0, 2))
    def leave(self, index: int) -> None:
        session = list(self.expected)[index % len(self.expected)]
        self.expected.pop(session)
        self.run(session.close, CloseCode.GOING_AWAY, "test")
        self.run(self.open)
        for task, (owner, _) in tuple(self.commands.items()):
            if owner is session:
                del self.commands[task]

    @rule(subject=st.sampled_from(["a", "b", "c"]))
    def publish(self, subject: str) -> None:
        before = {session: len(self.transports[session].data) for session in self.expected}
        self.run(self.link.deliver, subject)
        for session, held in self.expected.items():
            matching = held & {subject, "*"} if self.link.up else set()
            assert len(self.transports[session].data) - before[session] == len(matching)

    @invariant()
    def session_subscriptions_match_replies(self) -> None:
        assert {session: set(session.subscriptions) for session in self.expected} == self.expected

    @invariant()
    def nats_has_every_subscription_and_no_unknown_pattern(self) -> None:
        assert self.faults == []
        assert self.link.faults == []
        followed = {pattern for held in self.expected.values() for pattern in held}
        if self.link.up:
            assert followed <= set(self.link.patterns) <= set(self.hub.patterns)
        assert followed <= set(self.hub.patterns)

    def teardown(self) -> None:
        try:
            self.run(self.sessions.close_all, "test")
            for seconds in (TIMEOUT, LINGER):
                self.loop.now += seconds
                self.run(lambda: None)
            assert (self.link.patterns, self.hub.patterns, len(self.sessions)) == ([], (), 0)
            assert (self.faults, self.link.faults) == ([], [])
            assert asyncio.all_tasks(self.loop) == set()
        finally:
            self.loop.close()


TestRaces = Races.TestCase
TestRaces.settings = settings(stateful_step_count=40, database=None, phases=[Phase.generate, Phase.shrink])


async def test_release_after_close_leaves_no_timer_or_pattern() -> None:
    _, hub = FakeLink.with_hub(unsubscribe_delay=0)
    interests = hub.acquire(["a"])
    hub.close()
    hub.release(interests)
    assert interests[0].unsubscribe_timer is None
    assert (hub.patterns, hub.connected) == ((), False)


# Queue groups


async def test_fault_in_delivery_for_a_group_is_reported_to_all_its_members() -> None:
    link, hub = FakeLink.with_hub(confirms=True)
    alone = [await follower(hub, pattern) for pattern in ALONE]
    members = [await follower(hub, pattern) for pattern in ("a.*.x", "a.>", "b.>")]
    hub.delivery_failed(next(each for each in link.standing.values() if each.pattern == "a.*.x"))
    assert [each.told for each in alone] == [[]] * len(ALONE)
    assert [each.told for each in members] == [[("messages_lost", "a.*.x")], [("messages_lost", "a.>")], []]


async def test_refused_member_of_a_group_gets_no_more_messages() -> None:
    link, hub = FakeLink.with_hub(confirms=True)
    first, *_ = [await follower(hub, pattern) for pattern in ALONE]
    second, third = [await follower(hub, pattern) for pattern in ("a.*.x", "a.>")]
    link.deliver("a.b.x", b"1")
    link.refuse("a.*.x")
    link.deliver("a.b.x", b"2")
    await turns()
    assert (first.data, second.data, third.data) == ([1, 2], [1], [1, 2])
    assert second.told == [("nats.refused", "a.*.x")]


async def test_groups_end_with_the_hub() -> None:
    _, hub = FakeLink.with_hub(confirms=True)
    assert [each.group is None for each in hub.acquire([*ALONE, "a.>"])] == [True] * len(ALONE) + [False]
    hub.close()
    (interest,) = hub.acquire(["a.>"])
    assert interest.group is None


# Many at once


async def test_refusal_ends_subscriptions_of_many_subscribers_over_turns_of_the_loop() -> None:
    link, hub = FakeLink.with_hub(confirms=True)
    subscribers = [await follower(hub, "a") for _ in range(1_000)]
    last = await follower(hub, "b")
    link.refuse("a")
    link.refuse("b")
    seen: list[int] = []
    while len(seen) < 100 and last.told == []:
        seen.append(sum(bool(subscriber.told) for subscriber in subscribers))
        await asyncio.sleep(0)
    assert 0 < seen[0] < seen[1] < 1_000
    assert len(seen) >= 10
    assert all(subscriber.told == [("nats.refused", "a")] for subscriber in subscribers)
    assert last.told == [("nats.refused", "b")]
    assert hub.patterns == ()


async def test_subscriber_that_left_or_changed_after_refusal_is_notified_at_most_once() -> None:
    link, hub = FakeLink.with_hub(confirms=True)
    subscribers = [FakeSubscriber() for _ in range(300)]
    views = [(await follow(hub, subscriber, "a"))[0] for subscriber in subscribers]
    link.refuse("a")
    hub.detach(subscribers[-1], [views[-1]])
    (other,) = granted("a")
    hub.change(subscribers[-2], views[-2], other._replace(excluded=Exclusions(["a.b"])))
    await turns(10)
    assert subscribers[-1].told == []
    assert [subscriber.told for subscriber in subscribers[:-1]] == [[("nats.refused", "a")]] * 299
    again = await follower(hub, "a")
    link.deliver("a")
    await turns()
    assert again.data == [1]
    assert subscribers[0].data == []


async def test_fault_of_one_subscriber_does_not_keep_refusal_from_others() -> None:
    class Faulty(FakeSubscriber):
        def subscription_ended(self, pattern: str, error: BridgeError) -> None:
            raise RuntimeError("fault")

    link, hub = FakeLink.with_hub(confirms=True)
    await follow(hub, Faulty(), "a")
    subscriber = await follower(hub, "a")
    with pytest.raises(RuntimeError):
        link.refuse("a")
    await turns()
    assert subscriber.told == [("nats.refused", "a")]
    other = await follower(hub, "b")
    link.refuse("b")
    assert other.told == [("nats.refused", "b")]


async def late_followers(count: int) -> tuple[FakeLink, Hub, list[FakeSubscriber], list[View]]:
    """Return subscribers of a pattern that NATS has not confirmed in time."""
    link, hub = FakeLink.with_hub()
    subscribers = [FakeSubscriber() for _ in range(count)]
    views = [(await follow(hub, subscriber, "a", seconds=0))[0] for subscriber in subscribers]
    assert hub.connected
    return link, hub, subscribers, views


async def test_confirmation_is_reported_to_many_subscribers_over_turns_of_the_loop() -> None:
    link, hub, subscribers, _ = await late_followers(1_000)
    last = FakeSubscriber()
    await follow(hub, last, "b", seconds=0)
    link.confirm("a")
    link.confirm("b")
    link.deliver("a")
    seen: list[int] = []
    while last.told == []:
        seen.append(sum(bool(subscriber.told) for subscriber in subscribers))
        await asyncio.sleep(0)
    assert 0 < seen[0] < seen[1] < 1_000
    assert all(subscriber.told == [("subscription_active", "a")] for subscriber in subscribers)
    assert [subscriber.data for subscriber in subscribers] == [[1]] * 1_000
    assert last.told == [("subscription_active", "b")]


async def test_confirmation_is_not_reported_after_unsubscribe_or_loss() -> None:
    link, hub, subscribers, views = await late_followers(1_000)
    link.confirm("a")
    hub.detach(subscribers[-1], [views[-1]])
    await turns(10)
    assert subscribers[-1].told == []
    assert subscribers[-2].told == [("subscription_active", "a")]
    link, hub, subscribers, _ = await late_followers(1_000)
    link.confirm("a")
    link.lose()
    await turns(10)
    assert 0 < sum(bool(subscriber.told) for subscriber in subscribers) < 1_000
    link.come_back()
    link.confirm("a")
    assert hub.connected


async def test_fault_of_one_subscriber_does_not_keep_confirmation_from_others() -> None:
    class Faulty(FakeSubscriber):
        def subscription_active(self, pattern: str) -> None:
            raise RuntimeError("fault")

    link, hub, (subscriber,), _ = await late_followers(1)
    await follow(hub, Faulty(), "a", seconds=0)
    await follow(hub, after := FakeSubscriber(), "a", seconds=0)
    with pytest.raises(RuntimeError):
        link.confirm("a")
    await turns()
    assert subscriber.told == after.told == [("subscription_active", "a")]


async def test_nothing_is_subscribed_until_loss_is_announced() -> None:
    waiting: list[Callable[[], None]] = []
    link, hub = FakeLink.with_hub(confirms=True, on_established=waiting.append)
    waiting.pop()()
    await follower(hub, "a")
    link.lose()
    link.come_back()
    late = asyncio.create_task(follower(hub, "b"))
    await turns()
    assert late.done()
    assert link.patterns == []
    assert not hub.connected
    # Lost again: what waited for the first connection does nothing.
    link.lose()
    link.come_back()
    first, second = waiting
    first()
    assert link.patterns == []
    second()
    second()
    await hub.subscribed()
    assert link.patterns == ["a", "b"]
    await turns()
    assert hub.connected
    assert link.faults == []


async def test_new_connection_subscribes_to_many_patterns_over_turns_of_the_loop() -> None:
    link, hub = FakeLink.with_hub(confirms=True, max_subscribe_rate=1e9)
    patterns = [f"a.{number}" for number in range(1_000)]
    await follower(hub, *patterns)
    link.lose()
    link.sent.clear()
    link.come_back()
    assert 0 < len(link.sent) < 1_000
    await hub.subscribed()
    assert link.sent == [("SUB", pattern) for pattern in patterns]
    await turns()
    assert hub.connected


async def test_pattern_acquired_while_others_are_subscribed_is_subscribed_once() -> None:
    link, hub = FakeLink.with_hub(confirms=True, max_subscribe_rate=1e9)
    await follower(hub, *[f"a.{number}" for number in range(600)])
    link.lose()
    link.come_back()
    waiting = asyncio.create_task(follower(hub, "a.599", "b"))
    await waiting
    await hub.subscribed()
    assert sorted(link.patterns) == sorted({*[f"a.{number}" for number in range(600)], "b"})
    assert link.faults == []


async def test_pattern_released_while_others_are_subscribed_is_not_subscribed() -> None:
    link, hub = FakeLink.with_hub(confirms=True, max_subscribe_rate=1e9)
    await follower(hub, *[f"a.{number}" for number in range(600)])
    leaving = FakeSubscriber()
    views = await follow(hub, leaving, "b")
    link.lose()
    link.come_back()
    hub.detach(leaving, views)
    await hub.subscribed()
    assert "b" not in link.patterns
    await asyncio.sleep(1)
    assert hub.connected
    assert "b" not in hub.patterns


async def test_connection_lost_while_patterns_are_subscribed_sends_no_more() -> None:
    link, hub = FakeLink.with_hub(confirms=True, max_subscribe_rate=1e9)
    await follower(hub, *[f"a.{number}" for number in range(1_000)])
    link.lose()
    link.come_back()
    link.lose()
    await hub.subscribed()
    assert link.patterns == []
    link.come_back()
    await hub.subscribed()
    await turns()
    assert len(link.patterns) == 1_000
    assert hub.connected
    assert link.faults == []


def test_work_for_view_does_not_grow_with_views_of_pattern() -> None:
    def make(count: int) -> Callable[[], object]:
        interest = Interest("a.>")
        (grant,) = granted("a.>")
        grants = [grant._replace(excluded=Exclusions([f"a.{number}"])) for number in range(count)]

        subscriber = FakeSubscriber()
        views = deque(interest.add(subscriber, grant) for grant in grants)

        def replace_each() -> None:
            for grant in grants:
                interest.remove(subscriber, views.popleft())
                views.append(interest.add(subscriber, grant))

        return replace_each

    assert_linear(make, 2_000)
