"""The definition of a fault under clients that publish, and its run."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...harness.processes import raise_file_limit
from ..bridge import CONSTANTS
from ..browser_clients import NodeProcess
from ..checker import Verdict
from ..machine import Machine
from ..nats import administrator, cluster
from ..network import LOOPBACK
from ..results import Run
from ..workload import recording
from . import checker
from .authors import STREAM, identity_of
from .environment import PublishEnvironment
from .holding import HoldingProxy
from .records import Publish
from .senders import BlindSender, Page, PostSender, Sender

__all__ = ["PublishFault", "to_verdict"]

_WORKERS = 2
_CLIENTS = 24
_SMALL_CLIENTS = 6
_PACKAGE = "sanic_nats_bridge"
_ACKNOWLEDGE_SECONDS = 1.0
_SMALL_SETTINGS = {
    "ping_interval": 1,
    "connect_timeout": 2,
    "reconnect_spread": 1,
    "config": {"GRACEFUL_SHUTDOWN_TIMEOUT": 1},
    CONSTANTS: {
        f"{_PACKAGE}.nats.server_pool._MAX_BACKOFF_SECONDS": 0.1,
        f"{_PACKAGE}.publishing.publisher.ACKNOWLEDGE_SECONDS": _ACKNOWLEDGE_SECONDS,
        f"{_PACKAGE}.publishing.clients.ACKNOWLEDGE_SECONDS": _ACKNOWLEDGE_SECONDS,
    },
}
"""In a small run, the bridge waits less."""
_SETTINGS = {"reconnect_spread": 2, "config": {"GRACEFUL_SHUTDOWN_TIMEOUT": 5}}

_KINDS = ("websocket", "sse", "post")
_WAITING_INTERVAL = 0.2
_BURST_INTERVAL = 0.5
"""Together they leave half of ``publish_rate`` for repetitions."""

_COLUMNS: Mapping[str, str] = {
    "lost": "lost",
    "unsettled": "lost",
    "doubled": "duplicate",
    "order": "out_of_order",
    "stranger": "forbidden",
    "forbidden": "forbidden",
    "allowed": "forbidden",
    "stored": "forbidden",
    "altered": "forbidden",
    "author": "forbidden",
    "refused": "overstated",
    "place": "wrong_ids",
    "duplicate": "wrong_ids",
}
"""The column of the report for each kind of violation."""


@dataclass(frozen=True)
class PublishFault:
    """A fault in an environment of NATS servers with a stream in files, two workers, and clients that publish.

    Attributes:
        title: Description for the report.
        inject: Injects the fault, and ends it.
        servers: The number of NATS servers. Several form a cluster, and the stream has a replica on each.
        settings: Settings of the bridge.
        refusals: The codes with which publishes may be refused that are allowed. Without them none may be.
        repeats: Publishes must have been sent again that the stream had already.
        blind: The clients repeat without an id, so that messages are stored again, which the checker must find.
        once: It is injected in the first round only.
    """

    name: str
    title: str
    inject: Callable[[PublishEnvironment], Awaitable[None]]
    servers: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)
    refusals: frozenset[str] = frozenset()
    repeats: bool = True
    blind: bool = False
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
        servers = await stack.enter_async_context(cluster(self.servers, "", jetstream=True))
        client = await stack.enter_async_context(administrator(servers))
        env = PublishEnvironment(servers, client, small=small)
        await env.make_stream()
        await stack.enter_async_context(env.back.running())
        urls = [each.url for each in servers] if self.servers > 1 else [env.back.url]
        options = {"servers": urls, **(_SMALL_SETTINGS if small else _SETTINGS), **self.settings, **settings}
        env.machine = Machine(LOOPBACK)
        await stack.enter_async_context(env.machine.running(options, _WORKERS))
        env.front = HoldingProxy(int(env.machine.address.rpartition(":")[2]))
        await stack.enter_async_context(env.front.running())
        node = await stack.enter_async_context(NodeProcess.running("publishers.js"))
        env.senders = self._make_senders(env, node, _SMALL_CLIENTS if small else _CLIENTS)
        stack.push_async_callback(_close, env.senders)
        await env.start()
        await self.inject(env)
        stored = await env.finish()
        publishes = [each for sender in env.senders for each in sender.publishes.values()]
        found = checker.check(publishes, stored, STREAM, self.refusals)
        self._judge(found, result, env)

    def _make_senders(self, env: PublishEnvironment, node: NodeProcess, count: int) -> list[Sender]:
        """Return clients of each kind. Two have one identity: one waits for each answer, the other does not."""
        address = f"http://127.0.0.1:{env.front.port}"
        senders: list[Sender] = []
        for number in range(count):
            waits, identity = number % 2 == 0, identity_of(number // 2)
            interval = _WAITING_INTERVAL if waits else _BURST_INTERVAL
            kind = "blind" if self.blind else _KINDS[number // 2 % len(_KINDS)]
            name = f"{kind}-{number}"
            if self.blind:
                senders.append(BlindSender(name, identity, address, waits=waits, interval=interval))
            elif kind == "post":
                senders.append(PostSender(name, identity, address, waits=waits, interval=interval))
            else:
                senders.append(Page(node, kind, name, identity, address, waits=waits, interval=interval))
        return senders

    def _judge(self, found: checker.Verdict, result: Run, env: PublishEnvironment) -> None:
        result.verdict = to_verdict(found)
        result.publishes = {
            "publishes": found.publishes,
            "acknowledged": found.acknowledged,
            "stored_once": found.stored_once,
            "forbidden": found.forbidden,
            "refused": found.refused.total(),
            "unknown": found.unknown,
            "repeated": found.repeated,
            "attempts": found.attempts,
            "dropped": found.dropped,
            "doubled": found.violations["doubled"],
        }
        result.remarks += [f"refused: {code}: {count}" for code, count in sorted(found.refused.items())]
        result.clients = len(env.senders)
        result.recovered = sum(_has_recovered(each.publishes.values()) for each in env.senders)
        result.first_message_after = env.first_message_after
        result.failures += self._failures(found, result)

    def _failures(self, found: checker.Verdict, result: Run) -> Iterator[str]:
        verdict = result.verdict
        if self.blind:
            if not verdict.duplicate == verdict.broken > 0:
                yield f"clients without ids stored {verdict.duplicate} again, {verdict.notes}"
            return
        yield from verdict.notes
        if self.repeats and not found.dropped:
            yield "no client has repeated a publish that was stored"
        if result.recovered < result.clients:
            yield f"only {result.recovered} of {result.clients} clients have recovered"


def to_verdict(found: checker.Verdict) -> Verdict:
    """Return the counts of the report for the verdict on clients that publish."""
    counts = Counter[str]()
    for kind, count in found.violations.items():
        counts[_COLUMNS[kind]] += count
    return Verdict(found.stored_once, **counts, notes=found.notes)


def _has_recovered(publishes: Sequence[Publish] | Any) -> bool:
    """Return whether the last publish that is allowed was acknowledged."""
    return next((each.sequence is not None for each in reversed(list(publishes)) if not each.forbidden), False)


async def _close(senders: Sequence[Sender]) -> None:
    await asyncio.gather(*(sender.close() for sender in senders))
