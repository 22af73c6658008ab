"""Run a fault once: set up its environment, inject it, and check the outcome."""

import asyncio
import contextlib
import json
import math
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

import aiohttp

from ..harness.processes import python_server
from ..harness.tcp_proxy import Proxy
from .checker import check
from .clients import WebSocketClient
from .environment import SUBSCRIBED, Environment
from .fault import Fault
from .names import LIVE, NAME, own_hosts, unanswering_host
from .nats import cluster, subscriptions_propagated
from .network import LOOPBACK
from .posts import PostingClient, describe_posts
from .results import Run
from .workload import SMALL_REORDERING_SECONDS, recording

__all__ = ["late_notices", "run"]

_AFTERMATH_SECONDS = 1.0
_CLEANUP_SECONDS = 60.0
_SMALL_SETTINGS = {"unsubscribe_delay": 0.1, "ping_interval": 60}
_SMALL_SILENT_SETTINGS = {**_SMALL_SETTINGS, "ping_interval": 1}
"""A slow NATS server isn't given up, unless the fault is that it is silent."""


async def run(fault: Fault, number: int, *, settings: Mapping[str, Any] | None = None, small: bool = False) -> Run:
    """Run the fault once. The run that is returned contains the failures."""
    result = Run(fault.name, number)
    async with _environment(fault, settings or {}, result.remarks, small=small, seed=number) as env:
        with recording(result.failures):
            before = await _start(fault, env)
            await fault.inject(env)
            await env.request_forbidden()
            if not fault.drop_one_in:
                await env.connect(WebSocketClient("newcomer", ("orders.*.1", "news.sport")))
            # Messages go on for a while, because a fault may have effects after the clients have recovered.
            await env.sleep(_AFTERMATH_SECONDS)
            await env.finish(lambda: subscriptions_propagated(env.servers))
            result.recovered = sum(client.has_last_messages for client in env.bystanders)
            result.failures += (
                f"{client.log.client} did not receive the last messages"
                for client in env.others
                if not (client.closed or client.has_last_messages)
            )
            result.dropped = (await env.facts())["dropped"]
            posting = [client for client in env.others if isinstance(client, PostingClient)]
            result.failures += (failed for client in posting for failed in client.failed_commands)
            if posting:
                result.remarks.append(describe_posts(posting))
            result.failures += await _leftovers(env, before)
            if fault.harmless:
                result.failures += (
                    f"{client.log.client} received a gap"
                    for client in env.bystanders
                    if client.first_frame_time(0, "gap")
                )
        result.clients = len(env.bystanders)
        result.noticed, result.first_message_after = env.noticed, env.first_message_after
    logs = [client.log for client in env.clients]
    if small and fault.servers > 1:
        for log in logs:
            log.reordering_seconds = SMALL_REORDERING_SECONDS
    result.verdict = check(env.publications, logs)
    result.failures += _failures(fault, result)
    if not small:
        result.failures += late_notices(fault, result)
    return result


@contextlib.asynccontextmanager
async def _environment(
    fault: Fault, settings: Mapping[str, Any], remarks: list[str], *, small: bool, seed: int
) -> AsyncIterator[Environment]:
    """Set up everything for the fault but clients and publishers, which `Environment.start` adds."""
    async with contextlib.AsyncExitStack() as stack:
        host = LIVE if fault.unanswering_address else LOOPBACK
        servers = await stack.enter_async_context(cluster(fault.servers, fault.config, [host]))
        if fault.nats_absent:
            servers[0].stop()
        proxy = await stack.enter_async_context(Proxy(servers[0].port).running())
        url = proxy.url if fault.through_proxy else servers[0].url
        prefix: Sequence[str] = ()
        if fault.unanswering_address:
            stack.enter_context(unanswering_host(servers[0].port))
            own = stack.enter_context(own_hosts())
            if own is None:
                remarks.append("no permission to give the bridge a hosts file: it connected without a name")
            else:
                prefix, url = own, f"nats://{NAME}:{servers[0].port}"
        defaults = (_SMALL_SILENT_SETTINGS if fault.silent else _SMALL_SETTINGS) if small else {}
        options = {"servers": url, **defaults, **fault.settings, **settings}
        arguments = ("tools.faults.bridge", json.dumps(options), str(fault.drop_one_in))
        bridge = stack.enter_context(python_server(*arguments, prefix=prefix))
        peer = stack.enter_context(python_server(*arguments, prefix=prefix)) if fault.with_peer else None
        connector = aiohttp.TCPConnector(force_close=True)
        http = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        # In a cluster the other servers learn of new subscriptions later, so changes would lose messages.
        churn = len(servers) == 1 and not fault.drop_one_in
        has_name = bool(prefix)
        env = Environment(
            servers, proxy, bridge, http, peer=peer, has_name=has_name, churn=churn, small=small, seed=seed
        )
        try:
            yield env
        finally:
            await asyncio.gather(*(publisher.abort() for publisher in env.publishers))
            await asyncio.gather(*(client.close() for client in env.clients))


async def _start(fault: Fault, env: Environment) -> dict[str, Any] | None:
    """Start clients and publishers, and return the state of the bridge's process, if NATS is running."""
    if fault.nats_absent:
        return None
    await env.start()
    await env.wait_for_messages(time.monotonic())
    await env.request_forbidden()
    return await env.facts()


async def _leftovers(env: Environment, before: Mapping[str, Any] | None) -> list[str]:
    """Disconnect all clients but the bystanders, and return what remains of the fault after a minute at most."""
    await asyncio.gather(*(client.close() for client in env.others))
    deadline = time.monotonic() + _CLEANUP_SECONDS
    while True:
        now = await env.facts()
        left = [] if now["subscriptions"] == SUBSCRIBED else [f"NATS has the subscriptions {now['subscriptions']}"]
        if before is not None:
            left += [
                f"{now[name]} {name}, not {before[name]}" for name in ("tasks", "files") if now[name] > before[name]
            ]
        if not left or time.monotonic() > deadline:
            return left
        await asyncio.sleep(0.1)


def _failures(fault: Fault, result: Run) -> Iterator[str]:
    verdict = result.verdict
    if fault.drop_one_in:
        if not verdict.lost == verdict.broken == result.dropped > 0:
            yield f"the bridge lost {result.dropped} copies, the checker found {verdict.lost}, {verdict.notes}"
    else:
        yield from verdict.notes
    if fault.notice_within is not None and not result.noticed:
        yield "no client was notified"
    if result.recovered < result.clients:
        yield f"only {result.recovered} of {result.clients} clients have recovered"


def late_notices(fault: Fault, result: Run) -> Iterator[str]:
    """Return a failure for each notice that came later than it must."""
    limit = math.inf if fault.notice_within is None else fault.notice_within
    return (f"clients were notified only after {each:.1f} s" for each in result.noticed if each > limit)
