import asyncio
from typing import Any

import pytest

from sanic_nats_bridge.errors import BridgeError, ForbiddenSubject, InvalidCommand, InvalidSubject, RateLimitExceeded
from sanic_nats_bridge.sessions.rate_limit import CommandRateLimiter
from sanic_nats_bridge.settings import Settings


def meter(**settings: Any) -> CommandRateLimiter:
    return CommandRateLimiter(Settings.resolve(settings, {}))


def counted(meter: CommandRateLimiter, times: int) -> list[float | None]:
    """Return the delay before a retry, by command, or ``None`` if the command passed."""
    waits: list[float | None] = []
    for _ in range(times):
        try:
            meter.count()
            waits.append(None)
        except RateLimitExceeded as error:
            waits.append(error.retry_after)
    return waits


async def test_the_defaults_are_20_a_second_40_at_once_and_20_bad_ones_a_minute() -> None:
    one = meter()
    assert counted(one, 40) == [None] * 40
    assert counted(one, 1) == [pytest.approx(0.1)]
    await asyncio.sleep(0.1)
    assert counted(one, 1) == [None]
    await asyncio.sleep(10)
    assert counted(one, 80)[:40] == [None] * 40
    assert one.close_reason is None
    counted(one, 1)
    assert one.close_reason == "Too many commands"
    bad = meter()
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
async def test_only_what_no_client_should_send_is_a_bad_command(error: BridgeError, counts: bool) -> None:
    one = meter(max_bad_commands=1)
    one.count_rejection(error)
    one.count_rejection(error)
    assert (one.close_reason is not None) == counts
