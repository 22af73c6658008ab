"""The definition of a fault under clients of streams, and its run."""

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nats.js.api import StorageType

from ...harness.processes import python_server, raise_file_limit
from ..bridge import CONSTANTS
from ..checker import Verdict
from ..machine import Machine
from ..nats import administrator, cluster
from ..network import LOOPBACK
from ..results import Run
from ..workload import recording
from . import checker
from .cutting import CuttingProxy
from .environment import StreamEnvironment
from .members import Member, make_members
from .profiles import STREAMS

__all__ = ["SMALL_BUFFER", "StreamFault", "to_verdict"]

_SETTINGS: Mapping[str, Any] = {
    "streams": dict.fromkeys(STREAMS),
    "heartbeat": 1,
    "command_rate": 1000,
    "command_burst": 10_000,
}
_SMALL_SETTINGS = {"ping_interval": 1, "connect_timeout": 2, "confirm_timeout": 2}
_PACKAGE = "sanic_nats_bridge"
_SMALL_CONSTANTS = {
    f"{_PACKAGE}.nats.server_pool._MAX_BACKOFF_SECONDS": 0.1,
    f"{_PACKAGE}.streams.feed.HEARTBEAT_SECONDS": 0.5,
    f"{_PACKAGE}.streams.feed._SILENT_SECONDS": 1.5,
    f"{_PACKAGE}.streams.feed._MAX_BACKOFF": 0.2,
    f"{_PACKAGE}.streams.feed.INFO_SECONDS": 1.0,
    f"{_PACKAGE}.streams.feed.GONE_SECONDS": 2.0,
    f"{_PACKAGE}.streams.stream_check.INFO_SECONDS": 1.0,
    f"{_PACKAGE}.streams.stream_check.GONE_SECONDS": 2.0,
    f"{_PACKAGE}.streams.jetstream._HEARTBEAT_NS": 500_000_000,
    f"{_PACKAGE}.streams.jetstream._INACTIVE_NS": 3_000_000_000,
    f"{_PACKAGE}.sessions.resumption._MAX_BACKOFF": 0.2,
}
"""In a small run, the bridge notices sooner that something is wrong."""

SMALL_BUFFER = 65_536
"""The memory for the newest messages in every second round, so that more is read from NATS."""

_CONSUMER_SECONDS = 60.0
_MAX_DELAY = 1.5
_SMALL_MAX_DELAY = 0.2
_SMALL_CLIENTS = 16

_COLUMNS: Mapping[str, str] = {
    "lost": "lost",
    "unfinished": "lost",
    "state": "lost",
    "last": "lost",
    "duplicate": "duplicate",
    "late id": "duplicate",
    "order": "out_of_order",
    "forbidden": "forbidden",
    "stray": "forbidden",
    "stray gap": "forbidden",
    "stray caught_up": "forbidden",
    "refused": "forbidden",
    "ended": "forbidden",
    "false gap": "overstated",
    "wrong number": "overstated",
    "recovered": "false_recovered",
    "count": "false_recovered",
    "early id": "wrong_ids",
    "partial id": "wrong_ids",
    "long id": "wrong_ids",
}
"""The column of the report for each kind of violation."""


@dataclass(frozen=True)
class StreamFault:
    """A fault in an environment of NATS servers with two streams, workers, clients that resume, and a publisher.

    Attributes:
        title: Description for the report.
        inject: Injects the fault, and ends it.
        servers: The number of NATS servers. Several form a cluster.
        replicas: The replicas of the streams, or None for one on each server.
        storage: The storage of the streams.
        config: Configuration of the NATS servers.
        workers: The number of workers.
        managed: Whether Sanic's manager runs the workers, so that they can be restarted.
        clients: The number of clients.
        small_clients: The same in a small run.
        batch: The number of messages that are published at once.
        interval: Seconds between two batches.
        cut_interval: The mean time until the next client is cut off, in seconds; 0 to cut off none.
        settings: Settings of the bridge.
        small_settings: Others in a small run.
        gaps: The reasons of gaps that clients must get, and no others. Without them no client may get a gap.
        codes: The codes with which subscriptions must end. Without them none may end.
        new_only: No client asks for old messages at its start.
        proxied: Whether clients connect by a proxy that cuts connections.
        forgets: Clients reconnect without their ids, so that they lose messages, which the checker must find.
        once: It is injected in the first round only.
    """

    name: str
    title: str
    inject: Callable[[StreamEnvironment], Awaitable[None]]
    servers: int = 1
    replicas: int | None = None
    storage: StorageType = StorageType.FILE
    config: str = ""
    workers: int = 1
    managed: bool = False
    clients: int = 32
    small_clients: int = _SMALL_CLIENTS
    batch: int = 10
    interval: float = 0.05
    cut_interval: float = 0.15
    settings: Mapping[str, Any] = field(default_factory=dict)
    small_settings: Mapping[str, Any] = field(default_factory=dict)
    gaps: frozenset[str] = frozenset()
    codes: frozenset[str] = frozenset()
    new_only: bool = False
    proxied: bool = False
    forgets: bool = False
    once: bool = False
    drop_one_in: int = 0

    async def run(self, number: int, *, settings: Mapping[str, Any] | None = None, small: bool = False) -> Run:
        """Run the fault once. The run that is returned contains the failures."""
        result = Run(self.name, number)
        raise_file_limit()
        with recording(result.failures):
            async with contextlib.AsyncExitStack() as stack:
                await self._run(stack, result, settings or {}, small=small)
        return result

    async def _run(
        self, stack: contextlib.AsyncExitStack, result: Run, settings: Mapping[str, Any], *, small: bool
    ) -> None:
        servers = await stack.enter_async_context(cluster(self.servers, self.config, jetstream=True))
        client = await stack.enter_async_context(administrator(servers))
        seed = f"{self.name} {result.round}"
        env = StreamEnvironment(
            servers,
            client,
            small=small,
            seed=seed,
            storage=self.storage,
            replicas=self.servers if self.replicas is None else self.replicas,
            batch=self.batch,
            interval=self.interval,
            cut_interval=self.cut_interval,
        )
        # A worker that finds no stream looks again only later.
        await env.make_streams()
        options: dict[str, Any] = {"servers": [each.url for each in servers], **_SETTINGS}
        if small:
            options |= _SMALL_SETTINGS | {CONSTANTS: _SMALL_CONSTANTS}
        if result.round % 2:
            options["history_buffer_bytes"] = SMALL_BUFFER
        options |= {**self.settings, **(self.small_settings if small else {}), **settings}
        workers = await stack.enter_async_context(contextlib.AsyncExitStack())
        await self._start_workers(workers, env, options)
        if self.proxied:
            env.proxies = [CuttingProxy(port, random.Random(f"{seed} {port}")) for port in env.ports]
            env.ports = [(await stack.enter_async_context(proxy.running())).port for proxy in env.proxies]
        env.members = self._make_members(env.ports, seed, small=small)
        stack.push_async_callback(_close, env)
        await env.start()
        await self.inject(env)
        truth = await env.finish()
        # The logs end here, before the clients disconnect.
        logs = [replace(each.client.log, entries=list(each.client.log.entries)) for each in env.members]
        await self._check_consumers(env, result)
        await _close(env)
        found = checker.check(truth, logs, self.gaps, self.codes)
        self._judge(found, result, env)
        await workers.aclose()
        await _check_none_left(env, result)

    async def _start_workers(
        self, stack: contextlib.AsyncExitStack, env: StreamEnvironment, options: Mapping[str, Any]
    ) -> None:
        if self.managed:
            env.machine = Machine(LOOPBACK)
            await stack.enter_async_context(env.machine.running(options, self.workers))
            env.ports = [int(env.machine.address.rpartition(":")[2])]
        else:
            arguments = ("tools.faults.bridge", json.dumps(options), "0")
            env.ports = [stack.enter_context(python_server(*arguments)).port for _ in range(self.workers)]

    def _make_members(self, ports: Sequence[int], seed: str, *, small: bool) -> list[Member]:
        members = make_members(
            self.small_clients if small else self.clients,
            ports,
            seed,
            max_delay=_SMALL_MAX_DELAY if small else _MAX_DELAY,
            new_only=self.new_only,
        )
        for member in members:
            member.client.forgets = self.forgets
        return members

    async def _check_consumers(self, env: StreamEnvironment, result: Run) -> None:
        """Check that NATS has a consumer for each worker and stream, which may take until lost ones are removed."""
        deadline = time.monotonic() + _CONSUMER_SECONDS
        while True:
            consumers = await env.consumers()
            if all(len(names) <= self.workers for names in consumers.values()):
                return
            if time.monotonic() > deadline:
                result.failures.append(f"{self.workers} workers have the consumers {consumers}")
                return
            await asyncio.sleep(0.2)

    def _judge(self, found: checker.Verdict, result: Run, env: StreamEnvironment) -> None:
        result.verdict = to_verdict(found)
        result.resumes, result.gaps, result.ended = found.resumed, dict(found.gaps), found.ended
        result.clients = len(env.members)
        result.recovered = sum(each.has_all(env.record.latest) for each in env.members)
        result.first_message_after = env.first_message_after
        result.remarks += env.remarks
        result.failures += env.failures
        result.failures += self._failures(found, result.verdict)

    def _failures(self, found: checker.Verdict, verdict: Verdict) -> Iterator[str]:
        if not found.resumed:
            yield "no client has resumed"
        if self.forgets:
            if not verdict.lost == verdict.broken > 0:
                yield f"clients without ids lost {verdict.lost}, {verdict.notes}"
            return
        yield from verdict.notes
        if missing := self.gaps - found.gaps.keys():
            yield f"no client received a gap with the reasons {sorted(missing)}"
        if self.codes and not found.ended:
            yield "no subscription has ended"


def to_verdict(found: checker.Verdict) -> Verdict:
    """Return the counts of the report for the verdict on clients of streams."""
    counts = Counter[str]()
    for kind, count in found.violations.items():
        counts[_COLUMNS[kind]] += count
    return Verdict(found.delivered, found.announced, **counts, notes=found.notes)


async def _close(env: StreamEnvironment) -> None:
    await env.stop_cutting()
    await env.publisher.stop()
    await asyncio.gather(*(member.close() for member in env.members))


async def _check_none_left(env: StreamEnvironment, result: Run) -> None:
    """Check that no consumer is left within a minute after the workers have stopped."""
    deadline = time.monotonic() + _CONSUMER_SECONDS
    while any((left := await env.consumers()).values()):
        if time.monotonic() > deadline:
            result.failures.append(f"a minute after all workers have stopped, NATS has the consumers {left}")
            return
        await asyncio.sleep(0.2)
