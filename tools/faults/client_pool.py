"""A pool of clients that reconnect to apps of several workers, and checks of their messages and of leftovers."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

from sanic_nats_bridge.testing import NatsServer

from ..harness.processes import open_files
from .checker import check
from .clients import Client, Receiver
from .machine import Machine
from .nats import subscriptions_propagated
from .reconnecting_clients import Reconnect, ReconnectingClient
from .results import Run
from .workload import SMALL_REORDERING_SECONDS, Workload, until

__all__ = ["ClientPool"]

_CONTROL_PREFIX = "_NATSBRIDGE."
_CLEANUP_SECONDS = 60.0
_POLL_SECONDS = 0.1


class Member(Protocol):
    """A client that reconnects, with all of its logs. Its attributes are those of `ReconnectingClient`."""

    reconnects: list[Reconnect]

    @property
    def sessions(self) -> Sequence[Receiver]:
        """Logs of the client, of which the last is the current one."""

    @property
    def current(self) -> Receiver:
        """The newest of them."""

    @property
    def connected(self) -> bool:
        """True if it has a session with its subscriptions."""

    async def close(self) -> None:
        """Disconnect, and don't reconnect."""


class ClientPool(Workload):
    """All clients of all machines.

    Attributes:
        members: The clients, each with all of its sessions.
        propagations: As in the checker's `Log`.
        process_count: The number of processes of all apps at the start.
    """

    def __init__(self, servers: Sequence[NatsServer], machines: Sequence[Machine], *, small: bool) -> None:
        super().__init__(small=small)
        self.servers = servers
        self.machines = machines
        self.members: list[Member] = []
        self.addresses = [machine.address for machine in machines]
        self.process_count = sum(len(machine.processes) for machine in machines)
        self.propagations: list[tuple[float, float]] = []

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Observe the propagation of subscriptions, and stop all publishers and clients at the end of the context."""
        observing = asyncio.create_task(self._observe_propagation())
        try:
            yield
        finally:
            observing.cancel()
            await asyncio.wait({observing})
            await asyncio.gather(*(publisher.abort() for publisher in self.publishers))
            await self.close()

    def propagated(self) -> bool:
        """Return True if all NATS servers know of all subscriptions."""
        return subscriptions_propagated(self.servers)

    async def _observe_propagation(self) -> None:
        while len(self.servers) > 1:
            started = time.monotonic()
            # A killed server doesn't answer.
            with contextlib.suppress(OSError):
                if await asyncio.to_thread(self.propagated):
                    self.propagations.append((started, time.monotonic()))
            await asyncio.sleep(_POLL_SECONDS)

    def add(self, factory: Callable[[int], Client], *, max_delay: float, initial_spread: float = 0.0) -> None:
        """Add a client, and start it. The arguments are those of `ReconnectingClient`."""

        def new_session(number: int) -> Client:
            client = factory(number)
            if len(self.servers) > 1:
                client.log.propagations = self.propagations
                if self.small:
                    client.log.reordering_seconds = SMALL_REORDERING_SECONDS
            return client

        member = ReconnectingClient(new_session, self.addresses, max_delay=max_delay, initial_spread=initial_spread)
        self.members.append(member)
        member.start()

    async def wait_connected(self, seconds: float) -> None:
        """Wait until each client has a session. These sessions become the bystanders."""
        await until(lambda: all(member.connected for member in self.members), "all clients have a session", seconds)
        self.bystanders = [member.current for member in self.members]

    def reconnects(self, since: float) -> list[Reconnect]:
        """Return the reconnects after sessions that have ended at or after ``since``."""
        return [each for member in self.members for each in member.reconnects if each.ended >= since]

    async def close(self) -> None:
        """Disconnect all clients."""
        await asyncio.gather(*(member.close() for member in self.members))

    def check(self, result: Run) -> None:
        """Check the messages of all sessions, and record the outcome."""
        sessions = [session for member in self.members for session in member.sessions]
        result.verdict = check(self.publications, [session.log for session in sessions])
        result.failures += result.verdict.notes
        result.clients = len(self.members)
        result.recovered = sum(client.has_last_messages for client in self.bystanders)
        result.noticed, result.first_message_after = self.noticed, self.first_message_after
        if result.recovered < result.clients:
            result.failures.append(f"only {result.recovered} of {result.clients} clients got the last messages")

    # Leftovers

    def subscriptions(self) -> list[list[str]]:
        """Return the subscriptions of each connection to NATS, without those of the workers' control channel."""
        connections = [
            each for server in self.servers for each in server.monitor("/connz?subs=1&limit=4096")["connections"]
        ]
        return [
            sorted(pattern for pattern in each.get("subscriptions_list", ()) if not pattern.startswith(_CONTROL_PREFIX))
            for each in connections
        ]

    async def open_files(self) -> dict[int, int]:
        """Return the number of open files of each worker.

        Sanic's manager isn't included, because it keeps the pipes of an ended worker until it starts another.
        """
        workers = [pid for machine in self.machines for pid in (await machine.workers()).values()]
        return {pid: open_files(pid) for pid in workers}

    async def check_cleanup(self, before: dict[int, int], result: Run) -> None:
        """Record a failure for each leftover a minute after all clients have disconnected.

        NATS must have no subscriptions, and no worker more open files than ``before``.
        """
        deadline = time.monotonic() + _CLEANUP_SECONDS
        leftovers = await self._leftovers(before)
        while leftovers and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_SECONDS)
            leftovers = await self._leftovers(before)
        result.failures += leftovers

    async def _leftovers(self, before: dict[int, int]) -> list[str]:
        now, most = await self.open_files(), max(before.values())
        found = [f"NATS has the subscriptions {each}" for each in self.subscriptions() if each]
        found += (
            f"worker {pid} has {files} open files, not {before.get(pid, most)}"
            for pid, files in now.items()
            if files > before.get(pid, most)
        )
        processes = sum(len(machine.processes) for machine in self.machines)
        if processes != self.process_count:
            found.append(f"{processes} processes, not {self.process_count}")
        return found
