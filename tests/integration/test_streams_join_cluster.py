"""The same as test_streams_join, with a cluster of three servers."""

from typing import Final

import pytest

from tests.support.join.walk import MESSAGES, SEED, SETTINGS, hasten, walk
from tests.support.join.world import WorldSettings

MESSAGES_OF_A_CLUSTER: Final = 12_000
CLUSTERS: Final = max(1, round(MESSAGES / 100_000))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [f"{SEED}.{number}" for number in range(CLUSTERS)])
async def test_clients_of_a_cluster_lose_and_repeat_nothing(seed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hasten(monkeypatch)
    settings = SETTINGS[(int(seed.partition(".")[2]) + 1) % len(SETTINGS)]
    await walk(f"cluster {seed}", WorldSettings(settings, servers=3), MESSAGES_OF_A_CLUSTER)
