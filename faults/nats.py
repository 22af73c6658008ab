"""NATS servers that know each other, and what is asked of them."""

import contextlib
from collections.abc import Iterator

from benchmarks.processes import free_port
from sanic_nats_bridge.testing import NatsServer

__all__ = ["in_touch", "nats_servers"]


@contextlib.contextmanager
def nats_servers(count: int, config: str) -> Iterator[list[NatsServer]]:
    """So many servers, in a cluster if they are several; ``config`` is of each."""
    ports = [free_port() for _ in range(count)]
    routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in ports)
    with contextlib.ExitStack() as stack:
        servers = []
        for number, port in enumerate(ports):
            own = (
                f"server_name: n{number}\ncluster {{ name: faults, listen: '127.0.0.1:{port}', routes: [{routes}] }}\n"
            )
            server = NatsServer(config=(own if count > 1 else "") + config)
            servers.append(stack.enter_context(server))
        yield servers


def in_touch(servers: list[NatsServer]) -> bool:
    """Whether each of them is connected to every other."""
    return all(
        len({route["remote_id"] for route in server.monitor("/routez")["routes"] or ()}) == len(servers) - 1
        for server in servers
    )
