import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanic_nats_bridge.token_bucket import TokenBucket


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
