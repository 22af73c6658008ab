import asyncio
import time
from collections.abc import Callable

import pytest

from sanic_nats_bridge.auth.expirations import ExpirationQueue
from sanic_nats_bridge.auth.permissions import Permissions
from sanic_nats_bridge.hub import broadcast, fan_out
from sanic_nats_bridge.hub.broadcast import Broadcaster
from sanic_nats_bridge.hub.interest import Interest
from sanic_nats_bridge.metrics.counters import Counters
from sanic_nats_bridge.protocol import encoding
from sanic_nats_bridge.protocol.encoding import WireFormat
from tests.support.bridge import until
from tests.support.fakes import ALONE, FakeSubscriber, ignore


def add_subscribers(interest: Interest, *permissions: Permissions, pattern: str | None = None) -> list[FakeSubscriber]:
    """Add one subscriber for each permissions, by the client's name for the pattern."""
    subscribers = []
    for each in permissions:
        grant = each.grant(pattern or interest.pattern)
        assert grant.real == interest.pattern
        interest.add(subscriber := FakeSubscriber(), grant)
        subscribers.append(subscriber)
    return subscribers


def new_broadcaster(expire: Callable[[list[str]], None] = ignore) -> Broadcaster:
    return Broadcaster(Counters(), ExpirationQueue(expire))


def received_subjects(subscriber: FakeSubscriber) -> list[str]:
    return [frame["subject"] for frame in subscriber.frames]


async def finished(broadcaster: Broadcaster) -> None:
    """Wait until no subscriber waits for messages."""
    await until(lambda: not broadcaster.is_behind)


def publish(broadcaster: Broadcaster, interest: Interest, *subjects: str) -> None:
    for subject in subjects:
        broadcaster.on_message(interest, subject.encode(), b"", b"1")
    broadcaster.flush()


async def test_denied_subjects_are_dropped_only_for_denied_subscribers() -> None:
    broadcaster, interest = new_broadcaster(), Interest("a.>")
    free, bound, hidden = add_subscribers(
        interest, Permissions([">"]), Permissions([">"], ["a.*.secret"]), Permissions([">"], ["a.x", "*.y.>"])
    )
    publish(broadcaster, interest, "a.x", "a.y.secret", "a.y.z", "a.z")
    assert received_subjects(free) == ["a.x", "a.y.secret", "a.y.z", "a.z"]
    assert received_subjects(bound) == ["a.x", "a.y.z", "a.z"]
    assert received_subjects(hidden) == ["a.z"]


async def test_subject_that_resembles_pattern_is_denied() -> None:
    broadcaster, interest = new_broadcaster(), Interest("a.>")
    (bound,) = add_subscribers(interest, Permissions([">"], ["a.secret.*", "a.deep.>"]))
    publish(broadcaster, interest, "a.secret.*", "a.secret.>", "a.deep.>", "a.deep.*.>", "a.secret.", "a.deep..", "a.*")
    assert received_subjects(bound) == ["a.*"]


async def test_aliased_message_shows_alias_instead_of_real_subject() -> None:
    broadcaster, interest = new_broadcaster(), Interest("tenants.42.>")
    names = Permissions([">"], aliases={"me.": "tenants.42."})
    (renamed,) = add_subscribers(interest, names, pattern="me.>")
    (other,) = add_subscribers(interest, Permissions([">"], aliases={"us.": "tenants.42."}), pattern="us.>")
    (plain,) = add_subscribers(interest, Permissions([">"]))
    publish(broadcaster, interest, "tenants.42.a", "tenants.42.tenants.42.b")
    assert [(frame["pattern"], frame["subject"]) for frame in renamed.frames] == [
        ("me.>", "me.a"),
        ("me.>", "me.tenants.42.b"),
    ]
    assert received_subjects(other) == ["us.a", "us.tenants.42.b"]
    assert received_subjects(plain) == ["tenants.42.a", "tenants.42.tenants.42.b"]


async def test_alias_applies_to_literal_pattern() -> None:
    broadcaster, interest = new_broadcaster(), Interest("tenants.42.a")
    (renamed,) = add_subscribers(interest, Permissions([">"], aliases={"me.": "tenants.42."}), pattern="me.a")
    publish(broadcaster, interest, "tenants.42.a")
    assert renamed.frames == [{"type": "message", "subject": "me.a", "data": 1}]


async def test_identical_views_share_bytes_and_payload_is_encoded_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broadcaster, interest = new_broadcaster(), Interest("t.42.>")
    ten = [Permissions([">"], [f"t.42.denied.{number}"]) for number in range(10)]
    audience = [add_subscribers(interest, *[permissions] * 3) for permissions in ten]
    renamed = add_subscribers(interest, *[Permissions([">"], aliases={"me.": "t.42."})] * 3, pattern="me.>")
    read: list[bytes] = []
    encode_payload = encoding.encode_payload

    def reading(payload: bytes) -> tuple[bytes, bytes]:
        read.append(payload)
        return encode_payload(payload)

    monkeypatch.setattr(encoding, "encode_payload", reading)
    broadcaster.on_message(interest, b"t.42.x", b"", b'{"a": 1}')
    broadcaster.flush()
    assert read == [b'{"a": 1}']
    for alike in (*audience, renamed):
        assert len({id(subscriber.writes[0]) for subscriber in alike}) == 1
    # Without skipped messages the writes don't differ.
    assert len({id(alike[0].writes[0]) for alike in audience}) == 1
    assert received_subjects(renamed[0]) == ["me.x"]


async def test_expired_sessions_end_before_messages_are_written() -> None:
    ended: list[tuple[str, int]] = []

    def expire(keys: list[str]) -> None:
        ended.extend((key, len(subscriber.writes)) for key in keys)
        subscriber.is_writable = False

    expirations = ExpirationQueue(expire)
    broadcaster, interest = Broadcaster(Counters(), expirations), Interest("a")
    (subscriber,) = add_subscribers(interest, Permissions([">"]))
    expirations.put("session", time.time() + 3600)
    publish(broadcaster, interest, "a")
    assert (ended, len(subscriber.writes)) == ([], 1)
    expirations.put("session", time.time() - 0.001)
    publish(broadcaster, interest, "a")
    publish(broadcaster, interest, "a")
    assert (ended, len(subscriber.writes)) == ([("session", 1)], 1)


async def test_message_visible_to_no_subscriber_is_not_queued() -> None:
    broadcaster, interest = new_broadcaster(), Interest("a.*")
    publish(broadcaster, interest, "a.x")
    (subscriber,) = add_subscribers(interest, Permissions([">"], ["a.x"]))
    publish(broadcaster, interest, "a.x")
    assert subscriber.writes == []
    broadcaster.on_message(interest, b"a.x", b"", b"1")
    assert broadcaster._hit == []


@pytest.mark.parametrize("wire_format", WireFormat)
async def test_every_wire_format_shows_alias_instead_of_real_subject(wire_format: WireFormat) -> None:
    broadcaster, interest = new_broadcaster(), Interest("real.>")
    grant = Permissions([">"], aliases={"own.": "real."}).grant("own.>")
    interest.add(subscriber := FakeSubscriber(wire_format), grant)
    broadcaster.on_message(interest, b"real.x", b"", b"1")
    broadcaster.flush()
    assert b"own.x" in subscriber.writes[0]
    assert b"real" not in subscriber.writes[0]


# Queue groups


def grouped(broadcaster: Broadcaster, *patterns: str) -> tuple[list[Interest], list[FakeSubscriber]]:
    """Return interests in one group, each with a subscriber, and these."""
    interests, subscribers = [], []
    for pattern in (*ALONE, *patterns):
        interests.append(interest := Interest(pattern))
        broadcaster.groups.add(interest)
        subscribers += add_subscribers(interest, Permissions([">"]))
        broadcaster.groups.update(interest)
    members = interests[len(ALONE) :]
    assert None not in {each.group for each in members}
    return members, subscribers[len(ALONE) :]


async def test_message_of_a_group_is_delivered_for_each_member_that_matches() -> None:
    broadcaster = new_broadcaster()
    interests, subscribers = grouped(broadcaster, "a.*.x", "a.>", "a.*.y")
    for sink in interests[:2]:
        publish(broadcaster, sink, "a.b.x")
    publish(broadcaster, interests[2], "a.b.y")
    received = [received_subjects(each) for each in subscribers]
    assert received == [["a.b.x"] * 2, ["a.b.x", "a.b.x", "a.b.y"], ["a.b.y"]]
    assert [each.frames[0]["pattern"] for each in subscribers] == ["a.*.x", "a.>", "a.*.y"]
    assert (broadcaster._counters.messages, broadcaster._counters.deliveries) == (3, 6)


async def test_member_without_views_passes_message_to_the_others() -> None:
    broadcaster = new_broadcaster()
    (first, second), (subscriber, other) = grouped(broadcaster, "a.*.*", "a.>")
    for view in [view for alike in first.views.values() for view in alike.values()]:
        first.remove(subscriber, view)
    broadcaster.groups.update(first)
    publish(broadcaster, first, "a.b.x")
    broadcaster.groups.discard(first)
    publish(broadcaster, first, "a.b.y")
    assert (received_subjects(subscriber), received_subjects(other)) == ([], ["a.b.x", "a.b.y"])
    assert second.group is first.group


async def test_message_outside_pattern_of_its_member_is_dropped() -> None:
    broadcaster = new_broadcaster()
    interests, subscribers = grouped(broadcaster, "a.*.*", "a.>")
    publish(broadcaster, interests[0], "b.x.y", "a.b")
    assert [each.writes for each in subscribers] == [[], []]
    assert broadcaster._counters.lost["subject_mismatch"] == 2


async def test_status_messages_of_a_group_are_counted_and_not_delivered() -> None:
    broadcaster = new_broadcaster()
    interests, subscribers = grouped(broadcaster, "a.*.*", "a.>")
    broadcaster.on_message(interests[0], b"a.b.x", b"NATS/1.0 100\r\n\r\n", b"")
    broadcaster.flush()
    assert broadcaster._counters.status_messages == 1
    assert [each.writes for each in subscribers] == [[], []]


async def test_payload_is_encoded_once_for_all_members(monkeypatch: pytest.MonkeyPatch) -> None:
    broadcaster = new_broadcaster()
    interests, subscribers = grouped(broadcaster, "a.>", "a.*.>", "a.b.>", "a.*.x", "a.b.*", "a.*.*")
    read: list[bytes] = []
    encode_payload = encoding.encode_payload

    def reading(payload: bytes) -> tuple[bytes, bytes]:
        read.append(payload)
        return encode_payload(payload)

    monkeypatch.setattr(encoding, "encode_payload", reading)
    publish(broadcaster, interests[0], "a.b.x")
    assert [len(each.writes) for each in subscribers] == [1] * 6
    assert read == [b"1"]


async def test_remembered_routes_are_bounded() -> None:
    broadcaster = new_broadcaster()
    interests, _ = grouped(broadcaster, "a.*.*", "a.>")
    group = interests[0].group
    assert group is not None
    for number in range(10_000):
        broadcaster.on_message(interests[0], b"a.b.%d" % number, b"", b"1")
        assert len(group.routes) <= 4096
    publish(broadcaster, interests[0], "a.b." + "x" * 300)
    assert all(len(subject) <= 255 for subject in group.routes)


# Writes in several turns of the event loop


@pytest.fixture
def one_write_per_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fan_out, "_COST_PER_TURN", 1)
    monkeypatch.setattr(fan_out, "_RESERVE", 0)


@pytest.mark.usefixtures("one_write_per_turn")
async def test_messages_after_a_flush_that_is_not_finished_come_last() -> None:
    broadcaster, interest = new_broadcaster(), Interest("a")
    subscribers = add_subscribers(interest, *[Permissions([">"])] * 5)
    for payload in (b"1", b"2", b"3"):
        broadcaster.on_message(interest, b"a", b"", payload)
        broadcaster.flush()
        assert broadcaster.is_behind
    await finished(broadcaster)
    assert [subscriber.data for subscriber in subscribers] == [[1, 2, 3]] * 5
    assert (broadcaster._counters.messages, broadcaster._counters.deliveries) == (3, 15)
    await finished(broadcaster)


@pytest.mark.usefixtures("one_write_per_turn")
async def test_expired_session_gets_nothing_in_later_turns() -> None:
    def expire(keys: list[str]) -> None:
        for key in keys:
            broadcaster.drop(subscribers[int(key)], interest.views["a"].values())

    expirations = ExpirationQueue(expire)
    broadcaster, interest = Broadcaster(Counters(), expirations), Interest("a")
    subscribers = add_subscribers(interest, *[Permissions([">"])] * 5)
    publish(broadcaster, interest, "a")
    waiting = [number for number, subscriber in enumerate(subscribers) if not subscriber.writes]
    assert len(waiting) == 4
    for number in waiting:
        expirations.put(str(number), time.time() - 0.001)
    broadcaster.flush_to(subscribers[waiting[0]])
    await finished(broadcaster)
    assert sum(len(subscriber.writes) for subscriber in subscribers) == 1


@pytest.mark.usefixtures("one_write_per_turn")
async def test_nothing_is_written_after_close() -> None:
    broadcaster, interest = new_broadcaster(), Interest("a")
    subscribers = add_subscribers(interest, *[Permissions([">"])] * 5)
    publish(broadcaster, interest, "a")
    waiter = asyncio.create_task(finished(broadcaster))
    await asyncio.sleep(0)
    broadcaster.close()
    await waiter
    written = sum(len(subscriber.writes) for subscriber in subscribers)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert sum(len(subscriber.writes) for subscriber in subscribers) == written < 5


@pytest.mark.usefixtures("one_write_per_turn")
async def test_error_while_overlap_is_limited_does_not_end_the_flush() -> None:
    class Faulty(FakeSubscriber):
        def limit_overlap(self, subject: str) -> None:
            raise ArithmeticError

    broadcaster = Broadcaster(Counters(), ExpirationQueue(ignore), max_overlap=1)
    interests = [Interest("a.>"), Interest("a.*")]
    subscribers = [Faulty() for _ in range(5)]
    for interest in interests:
        for subscriber in subscribers:
            interest.add(subscriber, Permissions([">"]).grant(interest.pattern))
    for interest in interests:
        broadcaster.on_message(interest, b"a.x", b"", b"1")
    errors: list[BaseException] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context["exception"]))
    broadcaster.flush()
    await finished(broadcaster)
    asyncio.get_running_loop().set_exception_handler(None)
    assert [type(error) for error in errors] == [ArithmeticError] * 5
    assert [len(subscriber.data) for subscriber in subscribers] == [2] * 5


@pytest.mark.usefixtures("one_write_per_turn")
async def test_flush_within_the_end_of_a_flush_is_the_only_one() -> None:
    class Flushing(FakeSubscriber):
        def limit_overlap(self, subject: str) -> None:
            super().limit_overlap(subject)
            broadcaster.flush()

    broadcaster = Broadcaster(Counters(), ExpirationQueue(ignore), max_overlap=1)
    interests = [Interest("a.>"), Interest("a.*")]
    subscribers = [Flushing() for _ in range(3)]
    for interest in interests:
        for subscriber in subscribers:
            interest.add(subscriber, Permissions([">"]).grant(interest.pattern))
    for payload in (b"1", b"2"):
        for interest in interests:
            broadcaster.on_message(interest, b"a.x", b"", payload)
        broadcaster.flush()
        await finished(broadcaster)
    assert [subscriber.data for subscriber in subscribers] == [[1, 1, 2, 2]] * 3
    assert {subscriber.told[0] for subscriber in subscribers} == {("limit_overlap", "a.x")}


async def feed(broadcaster: Broadcaster, interest: Interest, count: int, payload: bytes = b"1") -> list[int]:
    """Add messages as the parser does; return the numbers of those after which a turn of the loop has ended."""
    turns = []
    for number in range(count):
        if broadcaster.on_message(interest, b"a.x", b"", payload):
            turns.append(number)
            await asyncio.sleep(0)
            await broadcaster.room()
    return turns


async def test_very_many_copies_are_added_in_several_turns_but_written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broadcast, "_COPIES_PER_TURN", 5)
    broadcaster, interest = new_broadcaster(), Interest("a.*")
    subscribers = add_subscribers(interest, *[Permissions([">"], [f"a.{number}"]) for number in range(3)])
    for _ in range(2):
        assert await feed(broadcaster, interest, 7) == [1, 3, 5]
        await until(lambda: subscribers[0].writes)
        await asyncio.sleep(0)
        assert [subscriber.data for subscriber in subscribers] == [[1] * 7] * 3
        assert [len(subscriber.writes) for subscriber in subscribers] == [1] * 3
        for subscriber in subscribers:
            subscriber.writes.clear()


@pytest.mark.parametrize("interval", [0.0, 10.0])
async def test_flush_is_due_after_too_many_copies(interval: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broadcast, "_MAX_ADDED", 5)
    broadcaster, interest = Broadcaster(Counters(), ExpirationQueue(ignore), flush_interval=interval), Interest("a.*")
    subscribers = add_subscribers(interest, *[Permissions([">"], [f"a.{number}"]) for number in range(3)])
    assert await feed(broadcaster, interest, 4) == [1, 3]
    assert [len(subscriber.writes) for subscriber in subscribers] == [2] * 3
    broadcaster.close()


async def test_no_more_messages_are_added_after_flush_within_interval() -> None:
    broadcaster, interest = Broadcaster(Counters(), ExpirationQueue(ignore), flush_interval=10), Interest("a.*")
    (subscriber,) = add_subscribers(interest, Permissions([">"]))
    assert await feed(broadcaster, interest, 4, b'"%b"' % (b"1" * 400_000)) == [2]
    assert len(subscriber.data) == 3
    broadcaster.close()


@pytest.mark.usefixtures("one_write_per_turn")
async def test_no_more_messages_are_added_while_many_flushes_are_unfinished() -> None:
    broadcaster, interest = new_broadcaster(), Interest("a")
    subscribers = add_subscribers(interest, *[Permissions([">"])] * 5)
    full = []
    for _ in range(9):
        publish(broadcaster, interest, "a")
        full.append(broadcaster.is_full)
    assert full == [False] * 7 + [True] * 2
    await broadcaster.room()
    assert (broadcaster.is_full, broadcaster.is_behind) == (False, True)
    await finished(broadcaster)
    await broadcaster.room()
    assert [subscriber.data for subscriber in subscribers] == [[1] * 9] * 5
    publish(broadcaster, interest, "a")
    broadcaster.close()
    assert not broadcaster.is_full


@pytest.mark.usefixtures("one_write_per_turn")
def test_app_that_runs_again_waits_in_its_new_event_loop() -> None:
    broadcaster, interest = new_broadcaster(), Interest("a")
    subscribers = add_subscribers(interest, *[Permissions([">"])] * 5)

    async def main() -> None:
        for _ in range(8):
            publish(broadcaster, interest, "a")
        assert broadcaster.is_full
        await broadcaster.room()
        await finished(broadcaster)

    for _ in range(2):
        asyncio.run(main())
    assert [subscriber.data for subscriber in subscribers] == [[1] * 16] * 5
