"""Clients of streams that are cut off and reconnect, while NATS and the workers are harmed, lose and repeat nothing.

``make walks STREAM_MESSAGES=1000000`` lets clients receive so many messages. ``STREAM_SEED=7`` begins with
another seed. Each walk is a test of its own, whose name has its seed. The same seed takes the same steps, but not at
the same moments.
"""

import os
from typing import Any, Final

import pytest

from tests.support.join.world import Nats, World, WorldSettings
from tools.faults.streams.checker import check

MESSAGES: Final = int(os.environ.get("STREAM_MESSAGES", "100000"))
SEED: Final = int(os.environ.get("STREAM_SEED", "1"))
MESSAGES_OF_A_WALK: Final = 22_000
WALKS: Final = max(1, round(MESSAGES / MESSAGES_OF_A_WALK) - 1)
MESSAGES_OF_A_CLUSTER: Final = 12_000
CLUSTERS: Final = max(1, WALKS // 4)

SETTINGS: Final[list[dict[str, Any]]] = [
    {},
    {"history_buffer_bytes": 65_536},
    {"history_buffer_bytes": 65_536, "max_pending_bytes": 32_768},
    {"flush_interval": 0.02, "max_pending_bytes": 32_768, "max_replays": 1},
]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the bridges wait less between two attempts, and notice sooner that NATS is silent."""
    monkeypatch.setattr("sanic_nats_bridge.nats.server_pool._MAX_BACKOFF_SECONDS", 0.1)
    monkeypatch.setattr("sanic_nats_bridge.streams.feed.HEARTBEAT_SECONDS", 0.5)
    monkeypatch.setattr("sanic_nats_bridge.streams.feed._SILENT_SECONDS", 1.5)
    monkeypatch.setattr("sanic_nats_bridge.streams.feed._MAX_BACKOFF", 0.2)
    monkeypatch.setattr("sanic_nats_bridge.streams.stream_check.INFO_SECONDS", 2.0)
    monkeypatch.setattr("sanic_nats_bridge.streams.hub._LINGER_SECONDS", 0.5)
    monkeypatch.setattr("sanic_nats_bridge.streams.jetstream._HEARTBEAT_NS", 500_000_000)
    monkeypatch.setattr("sanic_nats_bridge.sessions.resumption._MAX_BACKOFF", 0.2)


async def walk(seed: str, settings: WorldSettings, messages: int) -> None:
    with Nats(settings.servers) as servers:
        async with World.made(servers, seed, settings) as world:
            while world.messages < messages:
                await world.take()
            logs = await world.settle()
            truth = await world.truth()
    verdict = check(truth, logs)
    assert not verdict.violations, f"{verdict.violations} {settings} {world.steps}\n" + "\n".join(verdict.notes)
    assert verdict.resumed


@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [f"{SEED}.{number}" for number in range(WALKS)])
async def test_clients_of_streams_lose_and_repeat_nothing(seed: str) -> None:
    settings = SETTINGS[int(seed.partition(".")[2]) % len(SETTINGS)]
    await walk(seed, WorldSettings(settings), MESSAGES_OF_A_WALK)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [f"{SEED}.{number}" for number in range(CLUSTERS)])
async def test_clients_of_a_cluster_lose_and_repeat_nothing(seed: str) -> None:
    settings = SETTINGS[(int(seed.partition(".")[2]) + 1) % len(SETTINGS)]
    await walk(f"cluster {seed}", WorldSettings(settings, servers=3), MESSAGES_OF_A_CLUSTER)
