"""NATS servers on the hosts of a network, and clusters of them."""

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from sanic_nats_bridge.testing import NatsServer

from ..harness.processes import free_port
from .network import LOOPBACK, Host
from .workload import until

__all__ = ["HostedServer", "cluster", "is_connected", "knows_subscriptions", "subscriptions_propagated"]


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
