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
