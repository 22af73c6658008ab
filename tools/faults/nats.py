"""NATS servers that know each other, and what is asked of them."""

import contextlib
from collections.abc import Iterator, Sequence

from sanic_nats_bridge.testing import NatsServer

from ..harness.processes import free_port
from .network import LOOPBACK, Place

__all__ = ["PlacedServer", "has_heard", "in_touch", "nats_servers"]


class PlacedServer(NatsServer):
    """A NATS server that is started at a place."""

    def __init__(self, place: Place, config: str) -> None:
        super().__init__(config=config, host=place.host)
        self._place = place

    def start(self) -> None:
        """Start the server, as `NatsServer.start` says."""
        with self._place.entered():
            super().start()


@contextlib.contextmanager
def nats_servers(count: int, config: str, places: Sequence[Place] = (LOOPBACK,)) -> Iterator[list[PlacedServer]]:
    """So many servers, in a cluster if they are several; ``config`` is of each; at these places by turns."""
    places = [places[number % len(places)] for number in range(count)]
    listening = [f"{place.host}:{_port_at(place)}" for place in places]
    routes = ", ".join(f'"nats://{each}"' for each in listening)
    with contextlib.ExitStack() as stack:
        servers = []
        for number, (place, listen) in enumerate(zip(places, listening, strict=True)):
            own = f"server_name: n{number}\ncluster {{ name: faults, listen: '{listen}', routes: [{routes}] }}\n"
            server = PlacedServer(place, (own if count > 1 else "") + config)
            servers.append(stack.enter_context(server))
        yield servers


def in_touch(servers: Sequence[NatsServer]) -> bool:
    """Whether each of them is connected to every other."""
    return all(
        len({route["remote_id"] for route in server.monitor("/routez")["routes"] or ()}) == len(servers) - 1
        for server in servers
    )


def has_heard(server: NatsServer, patterns: Sequence[str]) -> bool:
    """Whether the server knows that somebody follows these, at itself or at another."""
    routes = server.monitor("/routez?subs=1")["routes"] or ()
    heard = {pattern for route in routes for pattern in route.get("subscriptions_list", ())}
    return heard.union(server.subscriptions()) >= set(patterns)


def _port_at(place: Place) -> int:
    with place.entered():
        return free_port()
