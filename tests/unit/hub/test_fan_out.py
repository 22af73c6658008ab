import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise, product
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanic_nats_bridge.auth.exclusions import Exclusions
from sanic_nats_bridge.hub import fan_out
from sanic_nats_bridge.hub.fan_out import FanOut
from sanic_nats_bridge.hub.interest import Interest, View
from sanic_nats_bridge.hub.interfaces import Subscriber
from sanic_nats_bridge.protocol.encoding import EncodedMessage, MessagePrefix, WireFormat
from tests.support.fakes import FakeSubscriber, granted

PATTERNS = ("a", "b", "c")
Batches = dict[View, list[EncodedMessage]]


def new_views() -> list[View]:
    return [View(Interest(grant.real), grant, MessagePrefix(grant.pattern)) for grant in granted(*PATTERNS)]


def fan_out_messages(views: Sequence[View], pattern_of: Sequence[int]) -> None:
    """Send message number k under the pattern at index k."""
    batches: Batches = {}
    for number, index in enumerate(pattern_of):
        view = views[index]
        message = EncodedMessage(view.prefix, view.pattern, b"", b"%d" % number, number)
        batches.setdefault(view, []).append(message)
    FanOut().begin(batches)


@given(
    st.lists(st.tuples(st.sets(st.integers(0, 2)), st.booleans()), max_size=8),
    st.lists(st.integers(0, 2), min_size=1, max_size=20),
)
def test_subscriber_gets_its_messages_once_in_order_in_one_write(
    follow: list[tuple[set[int], bool]], pattern_of: list[int]
) -> None:
    views = new_views()
    subscribers = []
    for indexes, is_writable in follow:
        subscriber = FakeSubscriber()
        subscriber.is_writable = is_writable
        subscribers.append(subscriber)
        for index in indexes:
            views[index].subscribers[subscriber] = None
    fan_out_messages(views, pattern_of)
    for subscriber, (indexes, is_writable) in zip(subscribers, follow, strict=True):
        numbers = [number for number, index in enumerate(pattern_of) if index in indexes]
        skipped = [int(message.payload) for message in subscriber.skipped]
        assert (subscriber.data, skipped) == ((numbers, []) if is_writable else ([], numbers))
        assert len(subscriber.writes) == (1 if numbers and is_writable else 0)


def test_failing_subscriber_does_not_affect_others(caplog: pytest.LogCaptureFixture) -> None:
    class Faulty(FakeSubscriber):
        def write(self, data: bytes) -> None:
            raise ArithmeticError

    views = new_views()
    single, both = FakeSubscriber(), FakeSubscriber(WireFormat.EVENT_STREAM)
    faulty = Faulty()
    subscribers_by_view: list[list[Subscriber]] = [[faulty], [single, both], [both]]
    for view, subscribers in zip(views, subscribers_by_view, strict=True):
        view.subscribers = dict.fromkeys(subscribers)
    with caplog.at_level(logging.ERROR):
        fan_out_messages(views, [0, 1, 2])
    assert single.data == [1]
    assert len(both.writes) == 1
    # Who of those that share a batch had it before the fault cannot be known.
    assert faulty.told == [("messages_lost", "a")]
    assert single.told == both.told == []
    assert [record.getMessage() for record in caplog.records] == ["Messages could not be delivered"]


def crowded(batches: Batches, limit: int) -> list[tuple[Subscriber, str]]:
    """Write the batches; return the subscribers with too many copies, and the subjects of these."""
    writes = FanOut(limit)
    deliveries = writes.begin(batches, counts_copies=True)
    found = release(writes)
    while writes.unfinished:
        deliveries += writes.go_on()
    return found


def release(writes: FanOut) -> list[tuple[Subscriber, str]]:
    """Release all subscribers that have too many copies; return them."""
    found = [*writes.crowded]
    writes.crowded.clear()
    for subscriber, _ in found:
        assert writes.release(subscriber)
    return found


def crowded_subjects(limit: int, copies: Sequence[int]) -> list[str]:
    """Send messages with so many copies each, under patterns of one subscriber; return the subjects reported."""
    subscriber = FakeSubscriber()
    views = []
    for index in range(max(copies)):
        pattern = ".".join(["a", *("*" for _ in range(index)), ">"]) if index else "a.>"
        view = View(Interest(pattern), granted(pattern)[0], MessagePrefix(pattern))
        view.subscribers[subscriber] = None
        views.append(view)
    batches: Batches = {view: [] for view in views}
    for number, count in enumerate(copies):
        subject = ".".join(["a"] * (count + 1))
        for view in views[:count]:
            batches[view].append(EncodedMessage(view.prefix, subject, b"", b"1", number))
    found = crowded(batches, limit)
    assert len(subscriber.data) == sum(copies)
    assert {reported for reported, _ in found} <= {subscriber}
    return [subject for _, subject in found]


@given(st.integers(1, 20), st.lists(st.integers(1, 30), min_size=1, max_size=40))
def test_subscriber_with_too_many_copies_is_reported(limit: int, copies: Sequence[int]) -> None:
    found = crowded_subjects(limit, copies)
    counts = [subject.count(".") for subject in found]
    assert all(count > limit and count in copies for count in counts)
    if limit > fan_out._OTHER_COPIES:
        assert bool(found) == any(count > limit for count in copies)
    else:
        assert bool(found) == (copies[-1] > limit)


def test_copies_that_arrive_by_themselves_count() -> None:
    subscriber = FakeSubscriber()
    patterns = [".".join(tokens) for tokens in product("a*", "b*", "c*", "d*", "e*")][:17]
    views = [View(Interest(pattern), granted(pattern)[0], MessagePrefix(pattern)) for pattern in patterns]
    for view in views:
        view.subscribers[subscriber] = None
    # The subject itself, five patterns, and two groups.
    numbers = [1, 2, 3, 4, 5, 6, 7, *[8] * 10]
    batches = {
        view: [EncodedMessage(view.prefix, "a.b.c.d.e", b"", b"1", number)]
        for view, number in zip(views, numbers, strict=True)
    }
    for limit, expected in ((17, []), (16, ["a.b.c.d.e"])):
        found = crowded(batches, limit)
        assert [subject for _, subject in found] == expected


def test_subject_that_a_view_excludes_is_not_a_copy() -> None:
    subscriber = FakeSubscriber()
    views = [View(Interest(grant.real), grant._replace(excluded=Exclusions(["a.x"])), MessagePrefix(grant.pattern))
             for grant in granted("a.>", "a.*")]  # fmt: skip
    for view in views:
        view.subscribers[subscriber] = None
    assert crowded({view: [EncodedMessage(view.prefix, "a.x", b"", b"1", 1)] for view in views}, 1) == []


# Writes of one flush in several turns of the event loop


@dataclass
class Follower:
    """A subscriber, and the numbers of the messages that it must get."""

    subscriber: FakeSubscriber = field(default_factory=FakeSubscriber)
    due: list[int] = field(default_factory=list)


def limited(cost: int, planned: int = 20_000, **options: Any) -> Any:
    """Limit the cost of one turn, and the number of subscriptions that are looked at in the first one."""
    options = {"_RESERVE": 0, "_COST_PER_TURN": cost, "_MAX_PLANNED": planned, "_SEEN_PER_TURN": 2 * cost} | options
    return mock.patch.multiple(fan_out, **options)


def follow(view: View, *subscribers: FakeSubscriber) -> None:
    for subscriber in subscribers:
        view.subscribers[subscriber] = None
        subscriber.views = [*subscriber.views, view]


class Flushes:
    """Flushes as `Broadcaster` begins and continues them, for some followers of three views."""

    def __init__(self, follow_of: Sequence[set[int]]) -> None:
        self.views = new_views()
        self.unfinished: list[FanOut] = []
        self.deliveries = self.last = 0
        self.followers = [Follower() for _ in follow_of]
        for follower, indexes in zip(self.followers, follow_of, strict=True):
            for index in indexes:
                follow(self.views[index], follower.subscriber)

    def flush(self, pattern_of: Sequence[int]) -> None:
        batches: Batches = {}
        for index in pattern_of:
            view = self.views[index]
            self.last += 1
            message = EncodedMessage(view.prefix, view.pattern, b"", b"%d" % self.last, self.last)
            batches.setdefault(view, []).append(message)
            for follower in self.followers:
                if follower.subscriber in view.subscribers:
                    follower.due.append(self.last)
        writes = FanOut()
        self.deliveries += writes.begin(batches, older=self.unfinished)
        if writes.unfinished:
            self.unfinished.append(writes)

    def go_on(self) -> None:
        if self.unfinished:
            self.deliveries += self.unfinished[0].go_on()
            self.unfinished = [each for each in self.unfinished if each.unfinished]

    def join(self, index: int) -> None:
        self.followers.append(newcomer := Follower())
        follow(self.views[index % 3], newcomer.subscriber)

    def take_out(self, follower: Follower, event: str) -> None:
        """Take a follower out of the writes, and out of its views too unless it only catches up."""
        for writes in self.unfinished:
            if event == "drop":
                writes.drop(follower.subscriber, follower.subscriber.views)
            else:
                self.deliveries += writes.catch_up(follower.subscriber)
        if event == "drop":
            follower.due = follower.subscriber.data
        assert follower.subscriber.data == follower.due
        if event != "catch_up":
            for view in follower.subscriber.views:
                del view.subscribers[follower.subscriber]
            follower.subscriber.views = ()


EVENTS = st.sampled_from(["flush", "go_on", "catch_up", "drop", "leave", "join"])


@given(
    st.lists(st.sets(st.integers(0, 2)), max_size=12),
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=4),
    st.lists(st.tuples(EVENTS, st.integers(0, 11)), max_size=30),
    st.integers(1, 6),
    st.sampled_from([0, 6, 20_000]),
    st.sampled_from([{}, {"_FEW": 0, "_BYTES_OF_ONE_COST": 0, "_OVERHEAD_BYTES": 0}, {"_RESERVE": 3}]),
)
def test_subscriber_gets_its_messages_once_and_in_order_in_spite_of_events_between_turns(
    follow_of: list[set[int]],
    patterns: list[list[int]],
    events: list[tuple[str, int]],
    cost: int,
    planned: int,
    options: dict[str, int],
) -> None:
    with limited(cost, planned, **options):
        flushes = Flushes(follow_of)
        flushes.flush(patterns.pop())
        for event, index in events:
            if event == "flush" and patterns:
                flushes.flush(patterns.pop())
            elif event == "go_on":
                flushes.go_on()
            elif event == "join":
                flushes.join(index)
            elif index < len(follow_of) and event != "flush":
                flushes.take_out(flushes.followers[index], event)
        while flushes.unfinished:
            flushes.go_on()
    followers = flushes.followers
    assert [follower.subscriber.data for follower in followers] == [follower.due for follower in followers]
    assert flushes.deliveries == sum(len(follower.due) for follower in followers)


def test_subscriber_that_waits_for_nothing_is_written_to_at_once() -> None:
    flushes = Flushes([{0}] * 100 + [{1}])
    with limited(10):
        flushes.flush([0, 0, 0])
        flushes.flush([1, 0])
        assert flushes.followers[-1].subscriber.data == [4]
        while flushes.unfinished:
            flushes.go_on()
    assert all(follower.subscriber.data == follower.due for follower in flushes.followers)


def test_few_subscribers_do_not_wait_for_many_of_the_same_flush() -> None:
    flushes = Flushes([{0}] * 100 + [{1}] + [{1, 2}] * 2)
    with limited(10, _RESERVE=5):
        flushes.flush([0, 1, 2])
        assert [follower.subscriber.data for follower in flushes.followers[100:]] == [[2], [2, 3], [2, 3]]
        assert sum(bool(follower.subscriber.data) for follower in flushes.followers[:100]) <= 10


@pytest.mark.parametrize("planned", [0, 20_000])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_cost_of_one_turn_is_limited(planned: int, count: int) -> None:
    views = new_views()
    subscribers = [FakeSubscriber() for _ in range(100)]
    batches: Batches = {}
    for number, view in enumerate(views[:count]):
        follow(view, *subscribers)
        batches[view] = [EncodedMessage(view.prefix, view.pattern, b"", b"%d" % number, number)]
    with limited(10, planned):
        writes = FanOut()
        writes.begin(batches)
        written = [sum(len(each.writes) for each in subscribers)]
        while writes.unfinished:
            writes.go_on()
            written.append(sum(len(each.writes) for each in subscribers))
    assert all(later - earlier <= 10 for earlier, later in pairwise([0, *written]))
    assert [each.data for each in subscribers] == [list(range(count))] * 100


def test_large_messages_cost_more() -> None:
    (view, *_) = new_views()
    subscribers = [FakeSubscriber() for _ in range(100)]
    follow(view, *subscribers)
    writes = FanOut()
    with limited(100):
        writes.begin({view: [EncodedMessage(view.prefix, "a", b"", b"1" * (9 * 4096 - 128), 1)]})
        assert sum(len(each.writes) for each in subscribers) == 10
        writes.go_on()
        assert sum(len(each.writes) for each in subscribers) == 20


def test_many_small_messages_cost_as_much_as_their_frames() -> None:
    (view, *_) = new_views()
    subscribers = [FakeSubscriber() for _ in range(400)]
    follow(view, *subscribers)
    writes = FanOut()
    with limited(100):
        writes.begin({view: [EncodedMessage(view.prefix, "a", b"", b"1", number) for number in range(1600)]})
    written = [len(each.writes[0]) for each in subscribers if each.writes]
    assert 0 < sum(written) <= 100 << fan_out._BYTES_OF_ONE_COST


def test_message_larger_than_turn_is_written_to_one_subscriber_at_a_time() -> None:
    (view, *_) = new_views()
    subscribers = [FakeSubscriber() for _ in range(40)]
    follow(view, *subscribers)
    writes = FanOut()
    with limited(2):
        writes.begin({view: [EncodedMessage(view.prefix, "a", b"", b"1" * 2**20, 1)]})
        for written in range(1, 20):
            assert sum(len(each.writes) for each in subscribers) == written
            writes.go_on()
        while writes.unfinished:
            writes.go_on()
    assert all(len(each.writes) == 1 for each in subscribers)


def test_bytes_are_joined_once_for_all_turns() -> None:
    (view, *_) = new_views()
    subscribers = [FakeSubscriber(list(WireFormat)[index % 2]) for index in range(100)]
    follow(view, *subscribers)
    writes = FanOut()
    with limited(10):
        writes.begin({view: [EncodedMessage(view.prefix, "a", b"", b"1", 1)] * 2})
        while writes.unfinished:
            writes.go_on()
    assert len({id(each.writes[0]) for each in subscribers}) == 2


@pytest.mark.parametrize("planned", [0, 20_000])
def test_bytes_are_joined_once_for_subscribers_that_catch_up(planned: int) -> None:
    views = new_views()[:2]
    subscribers = [FakeSubscriber() for _ in range(10)]
    for view in views:
        follow(view, *subscribers)
    writes = FanOut()
    with limited(1, planned):
        writes.begin({view: [EncodedMessage(view.prefix, view.pattern, b"", b"1", 1)] for view in views})
        for subscriber in subscribers:
            writes.catch_up(subscriber)
    assert len({id(each.writes[0]) for each in subscribers}) == 1


def test_other_subscriptions_of_crowd_count_as_looked_at() -> None:
    views, idle = new_views(), [View(Interest("z"), granted("z")[0], MessagePrefix("z")) for _ in range(7)]
    subscribers = [FakeSubscriber() for _ in range(20)]
    for view in (views[0], *idle):
        follow(view, *subscribers)
    follow(views[1], FakeSubscriber())
    written = []
    with limited(9, 0):  # 18 subscriptions
        writes = FanOut()
        writes.begin({view: [EncodedMessage(view.prefix, view.pattern, b"", b"1", 1)] for view in views[:2]})
        while writes.unfinished:
            written.append(sum(len(each.writes) for each in subscribers))
            writes.go_on()
    assert written == [*range(2, 20, 2), 20]


def test_overlap_is_counted_for_each_part_of_a_crowd() -> None:
    patterns = [".".join(tokens) for tokens in product("a*", "b*", "c*", "d*", "e*")][:17]
    views = [View(Interest(pattern), granted(pattern)[0], MessagePrefix(pattern)) for pattern in patterns]
    subscribers = [FakeSubscriber() for _ in range(5)]
    for view in views:
        follow(view, *subscribers)
    batches = {view: [EncodedMessage(view.prefix, "a.b.c.d.e", b"", b"1", 1)] for view in views}
    found = []
    with limited(2, 0):
        writes = FanOut()
        writes.begin(batches, counts_copies=True)
        while writes.unfinished:
            assert {each for each, _ in writes.crowded}.isdisjoint([each for each in subscribers if each.writes])
            found += release(writes)
            writes.go_on()
    assert sorted(map(id, subscribers)) == sorted(id(subscriber) for subscriber, _ in found)
    assert {subject for _, subject in found} == {"a.b.c.d.e"}


@pytest.mark.parametrize("first", ["crowd", "planned"])
def test_views_that_are_dropped_of_a_crowded_subscriber_are_not_written(first: str) -> None:
    views = [
        View(Interest(grant.real), grant, MessagePrefix(grant.pattern)) for grant in granted("a.>", "a.*", ">", "*.*")
    ]
    subscribers = [FakeSubscriber() for _ in range(3)]
    for view in views:
        follow(view, *subscribers)
    batches = {view: [EncodedMessage(view.prefix, "a.x", b"", b"%d" % index, 1)] for index, view in enumerate(views)}
    with limited(2, 0 if first == "crowd" else 20_000):
        writes = FanOut(1)
        writes.begin(batches, counts_copies=True)
        deliveries = 0
        while writes.unfinished:
            for subscriber, _ in writes.crowded:
                assert subscriber.data == []  # type: ignore[attr-defined]
                writes.drop(subscriber, views[1:])
                assert writes.release(subscriber) == 0
            writes.crowded.clear()
            deliveries += writes.go_on()
    assert [subscriber.data for subscriber in subscribers] == [[0]] * 3
    assert deliveries == 3


@pytest.mark.parametrize("options", [{}, {"_BYTES_OF_ONE_COST": 0}])
def test_messages_that_slow_consumers_skip_cost_more(options: dict[str, int]) -> None:
    (view, *_) = new_views()
    subscribers = [FakeSubscriber() for _ in range(100)]
    for subscriber in subscribers[:50]:
        subscriber.is_writable = False
    follow(view, *subscribers)
    batch = [EncodedMessage(view.prefix, f"a.{number}", b"", b"1", number) for number in range(80)]
    turns = [0]
    with limited(44, **options):
        writes = FanOut()
        writes.begin({view: batch})
        turns.append(sum(len(each.skipped) for each in subscribers))
        while writes.unfinished:
            writes.go_on()
            turns.append(sum(len(each.skipped) for each in subscribers))
    # Each costs 11 or more.
    assert max(later - earlier for earlier, later in pairwise(turns)) <= 4 * 80
    assert all(len(each.skipped) == 80 or len(each.data) == 80 for each in subscribers)


def test_crowd_is_looked_at_in_parts() -> None:
    looked_at: set[FakeSubscriber] = set()

    class Counted(FakeSubscriber):
        @property
        def views(self) -> Sequence[View]:
            looked_at.add(self)
            return self.all_views

        @views.setter
        def views(self, views: Sequence[View]) -> None:
            self.all_views = views

    views = new_views()
    subscribers = [Counted() for _ in range(100)]
    for view in views:
        follow(view, *subscribers)
    looked_at.clear()
    counts = []
    with limited(10, 0):
        writes = FanOut()
        writes.begin({view: [EncodedMessage(view.prefix, view.pattern, b"", b"1", 1)] for view in views})
        counts.append(len(looked_at))
        while writes.unfinished:
            writes.go_on()
            counts.append(len(looked_at))
    assert all(later - earlier <= 10 for earlier, later in pairwise([0, *counts]))
    assert len(looked_at) == 100
