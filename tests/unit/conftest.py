import asyncio
import time
from collections.abc import Mapping

import pytest

from tests.support.clock import LeapingLoop, WallClock


def pytest_asyncio_loop_factories() -> Mapping[str, type[asyncio.AbstractEventLoop]]:
    """Have every test of this folder run in an event loop that never waits."""
    return {"leaping": LeapingLoop}


@pytest.fixture
async def wall_clock(monkeypatch: pytest.MonkeyPatch) -> WallClock:
    """Replace the wall clock by one that follows the clock of the test's event loop."""
    clock = WallClock(asyncio.get_running_loop())
    monkeypatch.setattr(time, "time", clock.time)
    return clock
