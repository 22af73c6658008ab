"""One random walk with streams, and the settings of its bridges."""

import os
from typing import Any, Final

import pytest

from tools.faults.streams.checker import check

from .world import Nats, World, WorldSettings

__all__ = ["MESSAGES", "SEED", "SETTINGS", "hasten", "walk"]

MESSAGES: Final = int(os.environ.get("STREAM_MESSAGES", "100000"))
SEED: Final = int(os.environ.get("STREAM_SEED", "1"))

SETTINGS: Final[list[dict[str, Any]]] = [
    {},
    {"history_buffer_bytes": 65_536},
    {"history_buffer_bytes": 65_536, "max_pending_bytes": 32_768},
    {"flush_interval": 0.02, "max_pending_bytes": 32_768, "max_replays": 1},
]


def hasten(monkeypatch: pytest.MonkeyPatch) -> None:
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
    """Walk until the clients have received so many messages, and check what each has received."""
    with Nats(settings.servers) as servers:
        async with World.made(servers, seed, settings) as world:
            while world.messages < messages:
                await world.take()
            logs = await world.settle()
            truth = await world.truth()
    verdict = check(truth, logs)
    assert not verdict.violations, f"{verdict.violations} {settings} {world.steps}\n" + "\n".join(verdict.notes)
    assert verdict.resumed
