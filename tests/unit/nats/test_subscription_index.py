from collections.abc import Callable

import pytest

from sanic_nats_bridge.nats.server_errors import classify_error
from sanic_nats_bridge.nats.subscription_index import SubscriptionIndex, sub_length
from tests.support.growth import assert_linear


def test_subscription_is_found_by_number_pattern_and_length() -> None:
    index = SubscriptionIndex([(1, "a"), (2, "bb"), (11, "a")])
    assert 1 in index
    assert 3 not in index
    assert index[2] == "bb"
    assert index.of("a") == [1, 11]
    assert index.of("c") == []
    assert index.at_least(4) == [2, 11]
    assert index.at_least(5) == []


def test_discarded_subscription_is_not_found() -> None:
    index = SubscriptionIndex([(1, "a"), (2, "a")])
    assert [index.discard(1), index.discard(1), index.discard(9)] == [True, False, False]
    assert 1 not in index
    assert index.of("a") == index.at_least(0) == [2]
    assert index.discard(2)
    assert index.of("a") == index.at_least(0) == []
    index.add(3, "b")
    index.clear()
    assert index.of("b") == index.at_least(0) == []


def test_length_is_that_of_sub_line() -> None:
    assert sub_length("orders.>", 12) == len("orders.> 12")


LINES = {
    "denied": """-ERR 'Permissions Violation for Subscription to "orders.{0}"'""",
    "ended": """-ERR 'Permissions Violation for Subscription to "orders.{0}" (sid "{0}")'""",
    "unknown": """-ERR 'Permissions Violation for Subscription to "other.{0}"'""",
    "too many": "-ERR 'maximum subscriptions exceeded'",
    "too long": "-ERR 'Maximum Control Line Exceeded'",
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES.keys())
def test_work_per_error_does_not_grow_with_subscriptions(line: str) -> None:
    def make(count: int) -> Callable[[], object]:
        index = SubscriptionIndex((sid, f"orders.{sid}") for sid in range(count))

        def refuse() -> None:
            for sid in range(count):
                for refused in classify_error(line.format(sid), index, sid).refused:
                    index.discard(refused)

        return refuse

    assert_linear(make, 4_000)
