import logging
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanic_nats_bridge.fan_out import fan_out
from sanic_nats_bridge.interest import Interest, Subscriber
from sanic_nats_bridge.wire import Delivery, Form

from .fakes import FakeSubscriber

PATTERNS = ("a", "b", "c")


def fanned_out(interests: Sequence[Interest], pattern_of: Sequence[int]) -> None:
    """Number k goes out under the pattern that stands there."""
    batches: dict[Interest, list[Delivery]] = {}
    for number, index in enumerate(pattern_of):
        interest = interests[index]
        delivery = Delivery(interest.source, interest.pattern, b"", b"%d" % number, number)
        batches.setdefault(interest, []).append(delivery)
    fan_out(batches)


@given(
    st.lists(st.tuples(st.sets(st.integers(0, 2)), st.booleans()), max_size=8),
    st.lists(st.integers(0, 2), min_size=1, max_size=20),
)
def test_each_gets_what_it_follows_once_in_order_and_in_one_write(
    follow: list[tuple[set[int], bool]], pattern_of: list[int]
) -> None:
    interests = [Interest(pattern) for pattern in PATTERNS]
    subscribers = []
    for indexes, keeps_up in follow:
        subscriber = FakeSubscriber()
        subscriber.keeps_up = keeps_up
        subscribers.append(subscriber)
        for index in indexes:
            interests[index].subscribers[subscriber] = None
    fanned_out(interests, pattern_of)
    for subscriber, (indexes, keeps_up) in zip(subscribers, follow, strict=True):
        numbers = [number for number, index in enumerate(pattern_of) if index in indexes]
        left_out = [int(delivery.payload) for delivery in subscriber.left_out]
        assert (subscriber.data, left_out) == ((numbers, []) if keeps_up else ([], numbers))
        assert len(subscriber.writes) == (1 if numbers and keeps_up else 0)


def test_a_fault_with_some_does_not_keep_the_batch_from_others(caplog: pytest.LogCaptureFixture) -> None:
    class Faulty(FakeSubscriber):
        def write(self, data: bytes) -> None:
            raise ArithmeticError

    interests = [Interest(pattern) for pattern in PATTERNS]
    single, both = FakeSubscriber(), FakeSubscriber(Form.EVENT_STREAM)
    followers: list[list[Subscriber]] = [[Faulty()], [single, both], [both]]
    for interest, subscribers in zip(interests, followers, strict=True):
        interest.subscribers = dict.fromkeys(subscribers)
    with caplog.at_level(logging.ERROR):
        fanned_out(interests, [0, 1, 2])
    assert single.data == [1]
    assert len(both.writes) == 1
    assert [record.getMessage() for record in caplog.records] == ["Messages could not be delivered"]
