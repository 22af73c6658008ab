import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanic_nats_bridge.token_bucket import ClientBuckets, SpacedBucket, TokenBucket


def test_bucket_allows_burst_then_fixed_rate() -> None:
    bucket = TokenBucket(rate=2, burst=3, now=100.0)
    assert [bucket.take(100.0) for _ in range(3)] == [True] * 3
    assert bucket.wait(100.0) == pytest.approx(0.5)
    assert bucket.wait(100.5) == 0
    assert bucket.take(100.5)
    assert bucket.wait(1000.0) == 0
    assert [bucket.take(1000.0) for _ in range(4)] == [True, True, True, False]


def test_repeated_takes_overdraw_bucket_until_it_refills() -> None:
    bucket = TokenBucket(rate=1, burst=2, now=0.0)
    for _ in range(2):
        assert bucket.take(0.0)
    for _ in range(2):
        assert not bucket.take(0.0)
    assert not bucket.overdrawn
    assert bucket.wait(0.0) == pytest.approx(3)
    assert not bucket.take(0.0)
    assert bucket.overdrawn
    assert not bucket.take(0.0)
    assert bucket.wait(0.0) == pytest.approx(4)
    assert bucket.take(4.0)
    assert not bucket.overdrawn


def test_event_that_costs_several_tokens_takes_all_or_one() -> None:
    bucket = TokenBucket(rate=2, burst=10, now=0.0)
    assert bucket.take(0.0)
    assert bucket.take_more(0.0, 8)
    assert bucket.wait(0.0) == 0
    assert bucket.take(0.0)
    assert not bucket.take_more(0.0, 3)
    assert bucket.wait(0.0, 3) == pytest.approx(1)
    assert bucket.take(1.0)
    assert bucket.take_more(1.0, 3)
    assert bucket.wait(1.0) == pytest.approx(0.5)


def test_no_event_costs_more_than_the_burst() -> None:
    bucket = TokenBucket(rate=2, burst=4, now=0.0)
    assert bucket.take(0.0)
    assert bucket.take_more(0.0, 100)
    assert bucket.wait(0.0, 100) == pytest.approx(2)
    assert bucket.take(1.9)
    assert not bucket.take_more(1.9, 100)
    assert not bucket.overdrawn


@given(st.floats(0.1, 1000), st.integers(1, 50), st.lists(st.integers(1, 60), min_size=1, max_size=50))
def test_event_passes_after_its_wait(rate: float, burst: int, costs: list[int]) -> None:
    bucket, now = TokenBucket(rate, burst, 1e6), 1e6
    for cost in costs:
        now += bucket.wait(now, cost) + 1e-9
        assert bucket.take(now)
        assert bucket.take_more(now, cost)


@given(st.floats(0.1, 100), st.integers(1, 50), st.lists(st.floats(0, 10, allow_nan=False), min_size=1, max_size=200))
def test_no_interval_exceeds_rate_plus_one_burst(rate: float, burst: int, pauses: list[float]) -> None:
    bucket, now, passed = TokenBucket(rate, burst, 0.0), 0.0, []
    for pause in pauses:
        now += pause
        if not bucket.wait(now) and bucket.take(now):
            passed.append(now)
    for start, first in enumerate(passed):
        for end in range(start, len(passed)):
            assert end - start + 1 <= burst + (passed[end] - first) * rate + 1e-6


def test_spending_never_leads_into_debt() -> None:
    bucket = TokenBucket(rate=1, burst=2, now=0.0)
    assert [bucket.spend(0.0) for _ in range(100)] == [True] * 2 + [False] * 98
    assert bucket.wait(0.0) == pytest.approx(1)
    assert bucket.spend(1.0)


def test_refund_gives_a_token_back_up_to_burst() -> None:
    bucket = TokenBucket(rate=1, burst=1, now=0.0)
    bucket.refund()
    assert bucket.spend(0.0)
    bucket.refund()
    assert [bucket.spend(0.0) for _ in range(2)] == [True, False]


def test_debt_ends_at_half_of_the_burst() -> None:
    bucket = TokenBucket(1, 10, 0)
    bucket.owe(0, 3)
    assert bucket.wait(0, 7) == 0
    bucket.owe(0, 100)
    assert bucket.wait(0) == 6
    for _ in range(3):
        bucket.take(0)
    bucket.owe(0, 1)
    assert bucket.wait(0) == 9


def test_rejected_events_that_are_repeated_at_their_times_pass_at_the_full_rate() -> None:
    bucket = SpacedBucket(rate=20, burst=4, now=0.0, places=100)
    waiting, passed = [(0.0, number) for number in range(40)], []
    while waiting:
        waiting.sort()
        now, number = waiting.pop(0)
        if wait := bucket.admit(now):
            waiting.append((now + wait, number))
        else:
            passed.append((now, number))
    assert [number for _, number in passed] == list(range(40))
    assert passed[-1][0] == pytest.approx(36 / 20)


def test_rejected_events_get_only_so_many_times() -> None:
    bucket = SpacedBucket(rate=2, burst=1, now=10.0, places=3)
    assert not bucket.admit(10.0)
    waits = []
    for expected in (False, False, True, True):
        waits.append(bucket.admit(10.0))
        assert bucket.is_overrun(10.0) is expected
    assert waits == [pytest.approx(wait) for wait in (0.5, 1, 1.5, 1.5)]
    assert not bucket.is_overrun(10.1)
    # They took no tokens, and their times have passed.
    assert bucket.admit(12.0) == 0
    assert bucket.admit(12.0) == pytest.approx(0.5)


def test_clients_have_buckets_of_their_own() -> None:
    buckets = ClientBuckets(rate=2, burst=3)
    assert [buckets.spend("ada", 0.0) for _ in range(4)] == [0, 0, 0, pytest.approx(0.5)]
    assert buckets.spend("bob", 0.0) == 0
    buckets.refund("ada")
    assert [buckets.spend("ada", 0.0) for _ in range(2)] == [0, pytest.approx(0.5)]
    buckets.refund("eve")
    assert len(buckets) == 2


def test_client_is_forgotten_when_its_bucket_is_full_again() -> None:
    buckets = ClientBuckets(rate=2, burst=3)
    for number in range(10):
        buckets.spend(str(number), 0.0)
    for number in range(10):
        buckets.spend(f"new {number}", 1.5)
    assert len(buckets) == 10
    assert buckets.spend("0", 1.5) == 0


def test_client_that_was_silent_for_longest_is_forgotten_beyond_ten_thousand() -> None:
    buckets = ClientBuckets(rate=0.001, burst=1)
    for number in range(10_000):
        buckets.spend(str(number), 0.0)
    assert buckets.spend("0", 0.0) > 0
    buckets.spend("new", 0.0)
    assert len(buckets) == 10_000
    assert buckets.spend("0", 0.0) > 0
    assert buckets.spend("1", 0.0) == 0
