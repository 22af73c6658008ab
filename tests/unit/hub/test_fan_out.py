import logging
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
