"""What is compared: how each server is started, and in which dialect it is spoken to."""

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from sanic_nats_bridge.testing import NatsServer

from ..harness.processes import PROJECT, Server, free_port, python_server, server
from .scenarios import Scene

__all__ = ["CONTENDERS", "DEFAULT_CONTENDERS", "Contender", "Standing", "taking_part"]

_PANINI: Final = PROJECT / ".bench/panini/bin/python"
"""In an environment of its own: it needs another version of nats-py."""


class Standing(NamedTuple):
    """A server that takes clients, and the broker behind it: for nats-server both are one process.

    Attributes:
        other: Another worker of the same app, with a port of its own.
    """

    server: Server
    broker: Server
    other: Server | None = None


@dataclass(frozen=True)
class Contender:
    """One of those that are compared.

    Attributes:
        dialect: A key of `DIALECTS`.
        start: Starts it, with this event loop (``uvloop`` or ``asyncio``) and these settings of the bridge.
        keeps_order: It promises the order of messages across the subscriptions of a client.
        scenes: Those in which it can take part; empty: all.
    """

    name: str
    title: str
    dialect: str
    start: Callable[[str, Mapping[str, Any]], AbstractContextManager[Standing]]
    keeps_order: bool = True
    scenes: tuple[str, ...] = ()


@contextlib.contextmanager
def _bridge(loop: str, settings: Mapping[str, Any], workers: int = 1) -> Iterator[Standing]:
    with NatsServer() as broker, _bridge_server(broker, loop, settings, workers) as running:
        yield Standing(running, _process(broker))


@contextlib.contextmanager
def _two_bridges(loop: str, settings: Mapping[str, Any]) -> Iterator[Standing]:
    """Started each by itself, so that a client can choose; as apps of one name they are workers of one app."""
    with (
        NatsServer() as broker,
        _bridge_server(broker, loop, settings) as running,
        _bridge_server(broker, loop, settings) as other,
    ):
        yield Standing(running, _process(broker), other)


def _bridge_server(
    broker: NatsServer, loop: str, settings: Mapping[str, Any], workers: int = 1
) -> AbstractContextManager[Server]:
    # Clients come faster here than any browsers, and to no other server there is a limit.
    options = {"servers": broker.url, "subscribe": [">"], "max_subscribe_rate": 1_000_000, **settings}
    return python_server("bridge", json.dumps(options), loop, str(workers), workers=workers)


@contextlib.contextmanager
def _plain(loop: str, settings: Mapping[str, Any]) -> Iterator[Standing]:
    with NatsServer() as broker, python_server("plain", json.dumps({"servers": broker.url}), loop) as running:
        yield Standing(running, _process(broker))


@contextlib.contextmanager
def _bare(loop: str, settings: Mapping[str, Any]) -> Iterator[Standing]:
    with NatsServer() as broker, python_server("bare", json.dumps({"servers": broker.url})) as running:
        yield Standing(running, _process(broker))


@contextlib.contextmanager
def _nats(loop: str, settings: Mapping[str, Any]) -> Iterator[Standing]:
    port = free_port()
    # It is not told of a browser (User-Agent), and so need not cut its frames at 4,096 bytes: in its favour.
    with NatsServer(config=f'websocket {{ listen: "127.0.0.1:{port}", no_tls: true }}') as broker:
        process = _process(broker)
        yield Standing(process._replace(port=port), process)


@contextlib.contextmanager
def _panini(loop: str, settings: Mapping[str, Any]) -> Iterator[Standing]:
    if not _PANINI.exists():
        raise RuntimeError("Panini is not installed: make bench-panini")
    with NatsServer() as broker:
        command = [str(_PANINI), "-m", "tools.benchmarks.servers.panini", json.dumps({"servers": broker.url})]
        with server(command) as running:
            yield Standing(running, _process(broker))


def _process(broker: NatsServer) -> Server:
    assert broker.pid is not None
    return Server(broker.pid, broker.port)


CONTENDERS: Final = {
    contender.name: contender
    for contender in (
        Contender("bridge-ws", "the bridge by WebSocket", "bridge-ws", _bridge),
        Contender("bridge-sse", "the bridge by Server-Sent Events", "bridge-sse", _bridge),
        Contender(
            "bridge-ws-2",
            "the bridge by WebSocket, with two workers",
            "bridge-ws",
            functools.partial(_bridge, workers=2),
            scenes=("workers",),
        ),
        Contender(
            "bridge-sse-2",
            "the bridge by Server-Sent Events, in two workers with ports of their own",
            "bridge-sse",
            _two_bridges,
            scenes=("relay",),
        ),
        Contender("nats-ws", "nats-server's own WebSocket port", "nats-ws", _nats),
        Contender("plain-sanic", "a Sanic app that loops over its WebSockets", "plain", _plain, keeps_order=False),
        Contender(
            "bare-write", "the floor: a loop of bare writes", "plain", _bare, scenes=("steady", "growth-clients")
        ),
        Contender("panini", "the Panini framework's gateway, asyncio", "plain", _panini, keeps_order=False),
    )
}

DEFAULT_CONTENDERS: Final = ["bridge-ws", "bridge-sse", "bridge-ws-2", "bridge-sse-2", "nats-ws", "plain-sanic"]


def taking_part(scene: Scene, names: Sequence[str]) -> Sequence[str]:
    """Those of the contenders that the scene is about."""
    about = scene.contenders or CONTENDERS
    return [name for name in names if name in about and scene.name in (CONTENDERS[name].scenes or [scene.name])]
