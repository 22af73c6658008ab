import logging
from collections.abc import Sequence
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanic_nats_bridge.auth.exclusions import Exclusions
from sanic_nats_bridge.hub import broadcast
from sanic_nats_bridge.hub.broadcast import fan_out
from sanic_nats_bridge.hub.interest import Interest, View
from sanic_nats_bridge.hub.interfaces import Subscriber
from sanic_nats_bridge.protocol.encoding import EncodedMessage, MessagePrefix, WireFormat
from tests.support.fakes import FakeSubscriber, granted

PATTERNS = ("a", "b", "c")


def new_views() -> list[View]:
    return [View(Interest(grant.real), grant, MessagePrefix(grant.pattern)) for grant in granted(*PATTERNS)]


def fan_out_messages(views: Sequence[View], pattern_of: Sequence[int]) -> None:
    """Send message number k under the pattern at index k."""
    batches: dict[View, list[EncodedMessage]] = {}
    for number, index in enumerate(pattern_of):
        view = views[index]
        message = EncodedMessage(view.prefix, view.pattern, b"", b"%d" % number, number)
        batches.setdefault(view, []).append(message)
    fan_out(batches)


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


def crowded_subjects(limit: int, copies: Sequence[int]) -> list[str]:
    """Send messages with so many copies each, under patterns of one subscriber; return the subjects reported."""
    subscriber = FakeSubscriber()
    views = []
    for index in range(max(copies)):
        pattern = ".".join(["a", *("*" for _ in range(index)), ">"]) if index else "a.>"
        view = View(Interest(pattern), granted(pattern)[0], MessagePrefix(pattern))
        view.subscribers[subscriber] = None
        views.append(view)
    batches: dict[View, list[EncodedMessage]] = {view: [] for view in views}
    for number, count in enumerate(copies):
        subject = ".".join(["a"] * (count + 1))
        for view in views[:count]:
            batches[view].append(EncodedMessage(view.prefix, subject, b"", b"1", number))
    found: list[tuple[Subscriber, str]] = []
    fan_out(batches, limit, found)
    assert len(subscriber.data) == sum(copies)
    assert {reported for reported, _ in found} <= {subscriber}
    return [subject for _, subject in found]


@given(st.integers(1, 20), st.lists(st.integers(1, 30), min_size=1, max_size=40))
def test_subscriber_with_too_many_copies_is_reported(limit: int, copies: Sequence[int]) -> None:
    found = crowded_subjects(limit, copies)
    counts = [subject.count(".") for subject in found]
    assert all(count > limit and count in copies for count in counts)
    if limit > broadcast._OTHER_COPIES:
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
        found: list[tuple[Subscriber, str]] = []
        fan_out(batches, limit, found)
        assert [subject for _, subject in found] == expected


def test_subject_that_a_view_excludes_is_not_a_copy() -> None:
    subscriber = FakeSubscriber()
    views = [View(Interest(grant.real), grant._replace(excluded=Exclusions(["a.x"])), MessagePrefix(grant.pattern))
             for grant in granted("a.>", "a.*")]  # fmt: skip
    for view in views:
        view.subscribers[subscriber] = None
    found: list[tuple[Subscriber, str]] = []
    fan_out({view: [EncodedMessage(view.prefix, "a.x", b"", b"1", 1)] for view in views}, 1, found)
    assert found == []
