import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from sanic_nats_bridge.errors import RateLimitExceeded
from sanic_nats_bridge.sessions.request_limit import RequestLimiter
from sanic_nats_bridge.settings import Settings
from tests.support.growth import assert_linear


def limiter(**settings: Any) -> RequestLimiter:
    return RequestLimiter(Settings.resolve(settings, {}))


def allowed(limiter: RequestLimiter, address: str, times: int, identity: str | None = None) -> int:
    """Return how many of these requests are allowed."""
    count = 0
    for _ in range(times):
        try:
            limiter.count(address)
            limiter.count_identity(address, identity)
        except RateLimitExceeded:
            continue
        count += 1
    return count


async def test_defaults_are_50_per_second_and_burst_of_500() -> None:
    requests = limiter()
    assert allowed(requests, "a", 600) == 500
    with pytest.raises(RateLimitExceeded, match="request_rate") as refused:
        requests.count("a")
    assert refused.value.retry_after == pytest.approx(0.02)
    assert allowed(requests, "b", 1) == 1
    await asyncio.sleep(1)
    assert allowed(requests, "a", 600) == 50


async def test_rejected_requests_do_not_delay_later_ones() -> None:
    requests = limiter(request_rate=1, request_burst=10)
    assert allowed(requests, "a", 1_000) == 10
    await asyncio.sleep(1)
    assert allowed(requests, "a", 1_000) == 1


async def test_zero_turns_limit_off() -> None:
    requests = limiter(request_rate=0, request_burst=1)
    assert allowed(requests, "a", 100, "ada") == 100
    assert len(requests) == 0


async def test_users_behind_one_address_have_limits_of_their_own() -> None:
    requests = limiter(request_rate=1, request_burst=10)
    for user in range(20):
        assert allowed(requests, "a", 10, f"user {user}") == 10
    assert allowed(requests, "a", 20) == 10


async def test_requests_over_limit_of_identity_use_up_that_of_address() -> None:
    requests = limiter(request_rate=1, request_burst=10)
    assert allowed(requests, "a", 100, "ada") == 10
    # Only so many calls of the app's function could follow.
    assert allowed(requests, "a", 1, "bob") == 0
    assert allowed(requests, "b", 1, "bob") == 1


async def test_identity_is_limited_across_addresses() -> None:
    requests = limiter(request_rate=1, request_burst=10)
    assert sum(allowed(requests, f"a{number}", 1, "ada") for number in range(30)) == 10


async def test_client_that_may_send_a_full_burst_is_forgotten() -> None:
    requests = limiter(request_rate=10, request_burst=10)
    for number in range(100):
        requests.count(f"a{number}")
    assert len(requests) == 100
    await asyncio.sleep(1)
    for _ in range(60):
        requests.count("b")
        await asyncio.sleep(0.1)
    assert len(requests) == 1


async def test_flood_of_addresses_uses_bounded_memory() -> None:
    requests = limiter()
    for number in range(25_000):
        requests.count(f"{number}")
    assert len(requests) == 10_000
    assert allowed(requests, "24999", 500) == 499


async def test_time_of_request_does_not_grow_with_clients() -> None:
    def make(count: int) -> Callable[[], object]:
        requests = limiter()

        def count_all() -> None:
            for number in range(count):
                requests.count(f"{number}")

        return count_all

    assert_linear(make, 4_000)
    assert_linear(make, 20_000)
