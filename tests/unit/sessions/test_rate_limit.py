import asyncio
from typing import Any

import pytest

from sanic_nats_bridge.errors import BridgeError, ForbiddenSubject, InvalidCommand, InvalidSubject, RateLimitExceeded
from sanic_nats_bridge.sessions.rate_limit import CommandRateLimiter
from sanic_nats_bridge.settings import Settings


def rate_limiter(**settings: Any) -> CommandRateLimiter:
    return CommandRateLimiter(Settings.resolve(settings, {}))


def retry_delays(rate_limiter: CommandRateLimiter, times: int) -> list[float | None]:
    """Return the delay before a retry, by command, or ``None`` if the command passed."""
    waits: list[float | None] = []
    for _ in range(times):
        try:
            rate_limiter.count()
            waits.append(None)
        except RateLimitExceeded as error:
            waits.append(error.retry_after)
    return waits


async def test_defaults_are_20_per_second_burst_of_40_and_20_bad_per_minute() -> None:
    one = rate_limiter()
    assert retry_delays(one, 40) == [None] * 40
    assert retry_delays(one, 1) == [pytest.approx(0.1)]
    await asyncio.sleep(0.1)
    assert retry_delays(one, 1) == [None]
    await asyncio.sleep(10)
    assert retry_delays(one, 80)[:40] == [None] * 40
    assert one.close_reason is None
    retry_delays(one, 1)
    assert one.close_reason == "Too many commands"
    bad = rate_limiter()
    for _ in range(20):
        bad.count_rejection(InvalidCommand("x"))
    await asyncio.sleep(60.01)
    for _ in range(20):
        bad.count_rejection(InvalidCommand("x"))
    assert bad.close_reason is None
    await asyncio.sleep(59)
    bad.count_rejection(InvalidCommand("x"))
    assert bad.close_reason == "Too many invalid commands"


@pytest.mark.parametrize(("patterns", "units"), [(0, 1), (1, 1), (16, 1), (17, 2), (32, 2), (33, 3), (128, 8)])
async def test_command_counts_once_for_each_16_new_patterns(patterns: int, units: int) -> None:
    one = rate_limiter(command_burst=100)
    for _ in range(3):
        one.count()
        one.count_patterns(patterns)
    assert retry_delays(one, 101 - 3 * units) == [None] * (100 - 3 * units) + [pytest.approx(0.1)]


async def test_command_with_too_many_patterns_is_counted_once_and_passes_after_its_delay() -> None:
    one = rate_limiter()
    assert retry_delays(one, 35) == [None] * 35
    for _ in range(2):
        one.count()
        with pytest.raises(RateLimitExceeded, match="At most 320 new subjects per second") as refused:
            one.count_patterns(128)
    assert refused.value.retry_after == pytest.approx((8 - 3) / 20)
    await asyncio.sleep(refused.value.retry_after or 0)
    one.count()
    one.count_patterns(128)
    assert retry_delays(one, 1) == [pytest.approx(0.1)]
    assert one.close_reason is None


async def test_command_that_costs_more_than_the_burst_needs_all_of_it() -> None:
    one = rate_limiter(command_burst=4)
    one.count()
    one.count_patterns(10_000)
    assert retry_delays(one, 1) == [pytest.approx(0.1)]
    await asyncio.sleep(0.2)
    one.count()
    with pytest.raises(RateLimitExceeded):
        one.count_patterns(10_000)


@pytest.mark.parametrize(
    ("error", "counts"),
    [
        (InvalidCommand("x"), True),
        (InvalidSubject("x"), True),
        (ForbiddenSubject("x"), False),
        (RateLimitExceeded("x"), False),
    ],
    ids=lambda value: getattr(value, "code", value),
)
async def test_only_invalid_commands_count_as_bad(error: BridgeError, counts: bool) -> None:
    one = rate_limiter(max_bad_commands=1)
    one.count_rejection(error)
    one.count_rejection(error)
    assert (one.close_reason is not None) == counts


async def test_replayed_messages_count_as_commands_but_never_close() -> None:
    limiter = rate_limiter(command_rate=0.001, command_burst=10)
    limiter.count()
    limiter.count_replayed(511)
    assert retry_delays(limiter, 1) == [None]
    limiter.count_replayed(1 + 3 * 512)
    assert retry_delays(limiter, 4) == [None] * 4
    limiter.count_replayed(10**9)
    assert retry_delays(limiter, 4).count(None) == 0
    assert limiter.close_reason is None
