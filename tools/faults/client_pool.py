"""Browsers that come back, at apps of several workers: what they got, and what they have left behind."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

from sanic_nats_bridge.testing import NatsServer

from .checker import judge
from .clients import Client
from .machine import Machine, open_files
from .nats import in_touch, nats_servers
from .network import Place
from .reconnecting_clients import Return, Visitor
from .results import Run
from .workload import Scene, until

__all__ = ["Crowd", "cluster"]

_CONTROL: Final = "_NATSBRIDGE."
_REST_SECONDS: Final = 15.0
_TURN_SECONDS: Final = 0.1


class Crowd(Scene):
    """All browsers, at all machines.

    Attributes:
        visitors: The browsers.
        spreading: As in the checker's `Log`.
        running: How many processes all apps have.
    """

    def __init__(self, servers: Sequence[NatsServer], machines: Sequence[Machine], *, small: bool) -> None:
        super().__init__(small=small)
        self.servers: Final = servers
        self.machines: Final = machines
        self.visitors: list[Visitor] = []
        self.addresses: Final = [machine.address for machine in machines]
        self.running: Final = sum(len(machine.processes) for machine in machines)
        self.spreading = 0.0

    @contextlib.asynccontextmanager
    async def gathered(self) -> AsyncIterator[None]:
        """Whatever comes, nobody stays."""
        try:
            yield
        finally:
            await asyncio.gather(*(publisher.abort() for publisher in self.publishers))
            await self.leave()

    def come(self, make: Callable[[int], Client], *, longest: float, first_within: float = 0.0) -> None:
        """Have one more browser, as `Visitor` says."""

        def made(number: int) -> Client:
            client = make(number)
            client.log.spreading = self.spreading
            return client

        self.visitors.append(Visitor(made, self.addresses, longest=longest, first_within=first_within))
        self.visitors[-1].start()

    async def all_are_present(self, seconds: float) -> None:
        """Wait until each browser has a session, for at most so long; they are the audience from then on."""
        await until(lambda: all(visitor.present for visitor in self.visitors), "all clients have a session", seconds)
        self.audience = [visitor.client for visitor in self.visitors]

    def returns(self, since: float) -> list[Return]:
        """Of the sessions that have ended since the moment."""
        return [each for visitor in self.visitors for each in visitor.returns if each.left >= since]

    async def leave(self) -> None:
        """Have all browsers go."""
        await asyncio.gather(*(visitor.leave() for visitor in self.visitors))

    def judge(self, result: Run) -> None:
        """Have the checker say what became of the messages, in every session that there was."""
        clients = [client for visitor in self.visitors for client in visitor.clients]
        result.verdict = judge(self.publications, [client.log for client in clients])
        result.failures += result.verdict.notes
        result.clients = len(self.visitors)
        result.recovered = sum(client.has_all for client in self.audience)
        result.noticed, result.back = self.noticed, self.back
        if result.recovered < result.clients:
            result.failures.append(f"only {result.recovered} of {result.clients} clients got the last messages")

    # What is left behind

    def followed(self) -> list[list[str]]:
        """For each connection to NATS its subscriptions, but for those by which the workers speak to each other."""
        connections = [
            each for server in self.servers for each in server.monitor("/connz?subs=1&limit=4096")["connections"]
        ]
        return [
            sorted(pattern for pattern in each.get("subscriptions_list", ()) if not pattern.startswith(_CONTROL))
            for each in connections
        ]

    async def open_files(self) -> dict[int, int]:
        """How many each worker has.

        Sanic's manager is left out: it keeps the ends of a worker that has ended until it starts another.
        """
        workers = [pid for machine in self.machines for pid in (await machine.workers()).values()]
        return {pid: open_files(pid) for pid in workers}

    async def nothing_is_left(self, before: dict[int, int], result: Run) -> None:
        """When all have gone, NATS has no subscription, and no worker more open files than before any came."""
        deadline = time.monotonic() + _REST_SECONDS
        left = await self._left(before)
        while left and time.monotonic() < deadline:
            await asyncio.sleep(_TURN_SECONDS)
            left = await self._left(before)
        result.failures += left

    async def _left(self, before: dict[int, int]) -> list[str]:
        now, most = await self.open_files(), max(before.values())
        found = [f"NATS has the subscriptions {each}" for each in self.followed() if each]
        found += (
            f"worker {pid} has {files} open files, not {before.get(pid, most)}"
            for pid, files in now.items()
            if files > before.get(pid, most)
        )
        running = sum(len(machine.processes) for machine in self.machines)
        if running != self.running:
            found.append(f"{running} processes, not {self.running}")
        return found


@contextlib.asynccontextmanager
async def cluster(count: int, config: str, places: Sequence[Place]) -> AsyncIterator[list[NatsServer]]:
    """So many NATS servers, which know each other."""
    with nats_servers(count, config, places) as servers:
        if count > 1:
            await until(lambda: in_touch(servers), "the servers of the cluster find each other")
        yield list(servers)
