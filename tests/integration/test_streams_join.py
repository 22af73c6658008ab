"""Clients of streams that are cut off and reconnect, while NATS and the workers are harmed, lose and repeat nothing.

``make walks`` lets clients receive ten times as many messages. Each walk is a test of its own, whose name has its seed.
The same seed takes the same steps, but not at the same moments. ``STREAM_SEED=7`` begins with another seed.
"""

from typing import Final

import pytest

from tests.support.join.walk import MESSAGES, SEED, SETTINGS, hasten, walk
from tests.support.join.world import WorldSettings

MESSAGES_OF_A_WALK: Final = 22_000
WALKS: Final = max(1, round(MESSAGES / MESSAGES_OF_A_WALK) - 1)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [f"{SEED}.{number}" for number in range(WALKS)])
async def test_clients_of_streams_lose_and_repeat_nothing(seed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hasten(monkeypatch)
    settings = SETTINGS[int(seed.partition(".")[2]) % len(SETTINGS)]
    await walk(seed, WorldSettings(settings), MESSAGES_OF_A_WALK)
