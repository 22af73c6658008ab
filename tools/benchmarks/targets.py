"""The servers that are compared: how each one is started, and the protocol that its clients speak."""

import asyncio
import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import nats
from nats.js.api import KeyValueConfig, StorageType, StreamConfig

from sanic_nats_bridge.testing import NatsServer

from ..harness.processes import PROJECT, Server, free_port, python_server, server
from .scenarios import Scenario

__all__ = ["BUCKET", "DEFAULT_TARGETS", "STREAM", "TARGETS", "RunningTarget", "Target", "applicable_targets"]

STREAM, BUCKET = "HISTORY", "KV_history"
"""The streams of the servers that have some. No subject of the scenarios without history is in them."""

_SERVERS = "tools.benchmarks.servers"
_STREAMS = {
    "streams": {STREAM: None, BUCKET: None},
    "subscribe": [">", "$KV.history.>"],
    "history": [">", "$KV.history.>"],
}
_PANINI = PROJECT / ".bench/panini/bin/python"
"""The Python of an environment of its own, because Panini needs another version of nats-py."""


class RunningTarget(NamedTuple):
    """A server that accepts clients, and its broker. nats-server is both in one process.

    Attributes:
        other_worker: Another worker of the same app, with a port of its own.
        monitor: Returns the JSON object of a monitoring endpoint of nats-server.
    """

    server: Server
    broker: Server
    other_worker: Server | None = None
    monitor: Callable[[str], dict[str, Any]] = lambda path: {}


@dataclass(frozen=True)
class Target:
    """A server to measure.

    Attributes:
        protocol: A key of `CLIENT_PROTOCOLS`.
        start: Starts the server with an event loop (``uvloop`` or ``asyncio``) and settings of the bridge.
        keeps_order: The server guarantees the order of messages across the subscriptions of a client.
        scenarios: The scenarios that apply to the server; empty for all.
    """

    name: str
    title: str
    protocol: str
    start: Callable[[str, Mapping[str, Any]], AbstractContextManager[RunningTarget]]
    keeps_order: bool = True
    scenarios: tuple[str, ...] = ()


@contextlib.contextmanager
def _bridge(loop: str, settings: Mapping[str, Any], workers: int = 1) -> Iterator[RunningTarget]:
    with NatsServer(jetstream="streams" in settings) as broker:
        if "streams" in settings:
            asyncio.run(_create_streams(broker.url))
        with _bridge_server(broker, loop, settings, workers) as bridge:
            yield RunningTarget(bridge, _process(broker))


@contextlib.contextmanager
def _two_bridges(loop: str, settings: Mapping[str, Any]) -> Iterator[RunningTarget]:
    """Start two apps of the same name, which are workers of one app to each other. A client can choose by the port."""
    with (
        NatsServer() as broker,
        _bridge_server(broker, loop, settings) as bridge,
        _bridge_server(broker, loop, settings) as other,
    ):
        yield RunningTarget(bridge, _process(broker), other)


@contextlib.contextmanager
def _bridge_with_streams(loop: str, settings: Mapping[str, Any], workers: int = 1) -> Iterator[RunningTarget]:
    """Start one or two workers with ports of their own, which serve a stream and a bucket."""
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(NatsServer(jetstream=True))
        asyncio.run(_create_streams(broker.url))
        all_settings = {**_STREAMS, **settings}
        bridge, *others = [stack.enter_context(_bridge_server(broker, loop, all_settings)) for _ in range(workers)]
        yield RunningTarget(bridge, _process(broker), others[0] if others else None, broker.monitor)


async def _create_streams(url: str) -> None:
    client = await nats.connect(url)
    jetstream = client.jetstream()
    config = StreamConfig(name=STREAM, subjects=["history.>"], storage=StorageType.MEMORY, allow_direct=True)
    await jetstream.add_stream(config)
    await jetstream.create_key_value(KeyValueConfig(BUCKET.removeprefix("KV_"), storage=StorageType.MEMORY))
    await client.close()


def _bridge_server(
    broker: NatsServer, loop: str, settings: Mapping[str, Any], workers: int = 1
) -> AbstractContextManager[Server]:
    # These clients subscribe faster than browsers, and the other servers have no limit.
    # All clients have one address.
    unlimited = {"max_subscribe_rate": 1_000_000, "max_patterns_per_client": 1_000_000, "request_rate": 0}
    options = {"servers": broker.url, "subscribe": [">"], **unlimited, **settings}
    return python_server(f"{_SERVERS}.bridge", json.dumps(options), loop, str(workers), workers=workers)


@contextlib.contextmanager
def _plain(loop: str, settings: Mapping[str, Any]) -> Iterator[RunningTarget]:
    with (
        NatsServer() as broker,
        python_server(f"{_SERVERS}.plain", json.dumps({"servers": broker.url}), loop) as gateway,
    ):
        yield RunningTarget(gateway, _process(broker))


@contextlib.contextmanager
def _bare(loop: str, settings: Mapping[str, Any]) -> Iterator[RunningTarget]:
    with NatsServer() as broker, python_server(f"{_SERVERS}.bare", json.dumps({"servers": broker.url})) as gateway:
        yield RunningTarget(gateway, _process(broker))


@contextlib.contextmanager
def _nats(loop: str, settings: Mapping[str, Any]) -> Iterator[RunningTarget]:
    port = free_port()
    # Without a browser's User-Agent it doesn't split frames at 4,096 bytes, which is in its favor.
    config, has_streams = f'websocket {{ listen: "127.0.0.1:{port}", no_tls: true }}', "streams" in settings
    with NatsServer(config=config, jetstream=has_streams) as broker:
        if has_streams:
            asyncio.run(_create_streams(broker.url))
        process = _process(broker)
        yield RunningTarget(process._replace(port=port), process)


@contextlib.contextmanager
def _panini(loop: str, settings: Mapping[str, Any]) -> Iterator[RunningTarget]:
    if not _PANINI.exists():
        raise RuntimeError("Panini is not installed; install it with: make bench-panini")
    with NatsServer() as broker:
        command = [str(_PANINI), "-m", f"{_SERVERS}.panini", json.dumps({"servers": broker.url})]
        with server(command) as gateway:
            yield RunningTarget(gateway, _process(broker))


def _process(broker: NatsServer) -> Server:
    assert broker.pid is not None
    return Server(broker.pid, broker.port)


TARGETS = {
    target.name: target
    for target in (
        Target("bridge-ws", "the bridge by WebSocket", "bridge-ws", _bridge),
        Target(
            "bridge-ws-streams",
            "the bridge by WebSocket, with JetStream streams",
            "bridge-ws",
            _bridge_with_streams,
            scenarios=(
                *("steady", "burst", "own", "idle", "connect"),
                *("history-replay", "history-stored", "history-bucket", "history-memory"),
            ),
        ),
        Target(
            "bridge-ws-streams-2",
            "the bridge by WebSocket, with JetStream streams, in two workers with ports of their own",
            "bridge-ws",
            functools.partial(_bridge_with_streams, workers=2),
            scenarios=("history-herd", "history-replay"),
        ),
        Target("bridge-sse", "the bridge by Server-Sent Events", "bridge-sse", _bridge),
        Target(
            "bridge-ws-2",
            "the bridge by WebSocket, with two workers",
            "bridge-ws",
            functools.partial(_bridge, workers=2),
            scenarios=("workers",),
        ),
        Target(
            "bridge-sse-2",
            "the bridge by Server-Sent Events, in two workers with ports of their own",
            "bridge-sse",
            _two_bridges,
            scenarios=("relay",),
        ),
        Target("nats-ws", "nats-server's own WebSocket port", "nats-ws", _nats),
        Target("plain-sanic", "a Sanic app that loops over its WebSockets", "plain", _plain, keeps_order=False),
        Target(
            "bare-write",
            "a loop of bare writes, the lower limit of the cost",
            "plain",
            _bare,
            scenarios=("steady", "growth-clients"),
        ),
        Target("panini", "the Panini framework's gateway, asyncio", "plain", _panini, keeps_order=False),
    )
}

DEFAULT_TARGETS = (
    *("bridge-ws", "bridge-ws-streams", "bridge-ws-streams-2", "bridge-sse", "bridge-ws-2", "bridge-sse-2"),
    *("nats-ws", "plain-sanic"),
)


def applicable_targets(scenario: Scenario, names: Sequence[str]) -> Sequence[str]:
    """Return those of the targets to which the scenario applies."""
    targets = scenario.targets or TARGETS
    return [name for name in names if name in targets and scenario.name in (TARGETS[name].scenarios or [scenario.name])]
