from collections.abc import Callable

import pytest

from sanic_nats_bridge.errors import SubscriptionLimitExceeded
from sanic_nats_bridge.sessions.pattern_shares import PatternShares
from tests.support.growth import assert_linear


def test_patterns_of_all_sessions_of_client_count_once_each() -> None:
    shares = PatternShares(3)
    for _ in range(5):
        shares.add("ada", ["a", "b"])
    assert shares.count("ada") == 2
    shares.add("ada", ["b", "c"])
    shares.add("bob", ["d", "e", "f"])
    with pytest.raises(SubscriptionLimitExceeded, match=r"At most 3 .*max_patterns_per_client") as refused:
        shares.add("ada", ["a", "d"], ["me.a", "me.d"])
    assert refused.value.subjects == ("me.a", "me.d")
    assert shares.count("ada") == 3


def test_refused_patterns_are_not_counted() -> None:
    shares = PatternShares(1)
    with pytest.raises(SubscriptionLimitExceeded):
        shares.add("ada", ["a", "b"])
    assert (shares.count("ada"), len(shares)) == (0, 0)
    shares.add("ada", ["a", "a"])


def test_pattern_is_held_until_it_was_removed_as_often_as_added() -> None:
    shares = PatternShares(1)
    shares.add("ada", ["a"])
    shares.add("ada", ["a"])
    shares.remove("ada", ["a"])
    with pytest.raises(SubscriptionLimitExceeded):
        shares.add("ada", ["b"])
    shares.remove("ada", ["a"])
    shares.add("ada", ["b"])
    shares.remove("ada", ["b"])
    assert len(shares) == 0


def test_client_without_patterns_takes_no_memory() -> None:
    shares = PatternShares(1)
    shares.add("ada", [])
    shares.remove("ada", [])
    assert len(shares) == 0


def test_time_of_change_does_not_grow_with_patterns() -> None:
    def make(count: int) -> Callable[[], object]:
        shares = PatternShares(count)

        def change() -> None:
            for number in range(count):
                shares.add("ada", [f"a.{number}"])
                shares.add(f"user {number}", ["b"])
            for number in range(count):
                shares.remove("ada", [f"a.{number}"])

        return change

    assert_linear(make, 10_000)
