"""NATS servers on the hosts of a network, and clusters of them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

import nats
import nats.errors
from nats.aio.client import Client
from nats.js.client import JetStreamContext
from nats.js.errors import APIError

from sanic_nats_bridge.testing import NatsServer

from ..harness.processes import free_port
from .network import LOOPBACK, Host
from .workload import InjectionError, until

__all__ = [
    "HostedServer",
    "administrator",
    "cluster",
    "is_connected",
    "knows_subscriptions",
    "repeated",
    "stream_leader",
    "subscriptions_propagated",
]

_TRIES = 100


class HostedServer(NatsServer):
    """A NATS server on a host of the network."""

    def __init__(self, host: Host, config: str, *, jetstream: bool = False) -> None:
        super().__init__(jetstream=jetstream, config=config, host=host.address)
        self._host = host

    def start(self) -> None:
        """Start the server, as `NatsServer.start` does."""
        with self._host.entered():
            super().start()


@contextlib.asynccontextmanager
async def cluster(
    count: int, config: str, hosts: Sequence[Host] = (LOOPBACK,), *, jetstream: bool = False
) -> AsyncIterator[list[NatsServer]]:
    """Run NATS servers, which form a cluster if there are several.

    Args:
        count: The number of servers.
        config: The configuration of each server.
        hosts: The hosts on which the servers run, in turn.
        jetstream: Whether they have JetStream.
    """
    hosts = [hosts[number % len(hosts)] for number in range(count)]
    listening = [f"{host.address}:{_free_port(host)}" for host in hosts]
    routes = ", ".join(f'"nats://{each}"' for each in listening)
    with contextlib.ExitStack() as stack:
        servers: list[NatsServer] = []
        for number, (host, listen) in enumerate(zip(hosts, listening, strict=True)):
            own = f"server_name: n{number}\ncluster {{ name: faults, listen: '{listen}', routes: [{routes}] }}\n"
            server = HostedServer(host, (own if count > 1 else "") + config, jetstream=jetstream)
            servers.append(stack.enter_context(server))
        if count > 1:
            await until(lambda: is_connected(servers), "the servers of the cluster are connected")
        yield servers


@contextlib.asynccontextmanager
async def administrator(servers: Sequence[NatsServer]) -> AsyncIterator[Client]:
    """Connect to NATS, and reconnect whenever the connection is lost, until the end of the context."""

    async def ignore(_: Exception) -> None:
        pass

    client = await nats.connect(
        [each.url for each in servers],
        max_reconnect_attempts=-1,
        reconnect_time_wait=0.05,
        ping_interval=1,
        connect_timeout=1,
        error_cb=ignore,
        pending_size=64 * 1024 * 1024,
    )
    try:
        yield client
    finally:
        await client.close()


async def repeated(operation: Callable[[], Awaitable[Any]]) -> Any:
    """Return the result of an operation on NATS, as soon as it succeeds.

    Raises:
        InjectionError: It never does.
    """
    failure: Exception | None = None
    for _ in range(_TRIES):
        try:
            return await operation()
        except (APIError, nats.errors.Error, TimeoutError) as error:
            failure = error
        await asyncio.sleep(0.1)
    raise InjectionError(f"NATS doesn't do it: {failure!r}")


async def stream_leader(jetstream: JetStreamContext, servers: Sequence[NatsServer], name: str) -> NatsServer:
    """Return the server that leads a stream.

    Raises:
        InjectionError: There is none.
    """
    info = await repeated(lambda: jetstream.stream_info(name))
    if info.cluster is None or info.cluster.leader is None:
        return servers[0]
    return servers[int(info.cluster.leader.removeprefix("n"))]


def is_connected(servers: Sequence[NatsServer]) -> bool:
    """Return True if each server of the cluster is connected to every other one."""
    return all(
        len({route["remote_id"] for route in server.monitor("/routez")["routes"] or ()}) == len(servers) - 1
        for server in servers
    )


def knows_subscriptions(server: NatsServer, patterns: Sequence[str]) -> bool:
    """Return True if the server knows of subscriptions to all patterns, its own or those of other servers."""
    routes = server.monitor("/routez?subs=1")["routes"] or ()
    known = {pattern for route in routes for pattern in route.get("subscriptions_list", ())}
    return known.union(server.subscriptions()) >= set(patterns)


def subscriptions_propagated(servers: Sequence[NatsServer]) -> bool:
    """Return True if each server of the cluster knows of all subscriptions of the clients of every other one."""
    own = {server.monitor("/varz")["server_id"]: set(server.subscriptions()) for server in servers}
    return all(_knows(server.monitor("/routez?subs=1"), own) for server in servers)


def _knows(routez: Mapping[str, Any], own: Mapping[str, set[str]]) -> bool:
    known: dict[str, set[str]] = {}
    # Two servers may be connected by several routes.
    for route in routez["routes"] or ():
        known.setdefault(route["remote_id"], set()).update(route.get("subscriptions_list", ()))
    return all(known.get(name, set()) >= own[name] for name in own if name != routez["server_id"])


def _free_port(host: Host) -> int:
    with host.entered():
        return free_port()
