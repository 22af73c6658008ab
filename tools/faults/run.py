"""Doing a fault once, and judging what came of it."""

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, Final

import aiohttp

from sanic_nats_bridge.testing import NatsServer

from ..harness.processes import server
from ..harness.tcp_proxy import Proxy
from .checker import judge
from .clients import WebSocketClient
from .environment import FOLLOWED, Stage
from .fault import Fault
from .nats import in_touch, nats_servers
from .results import Run
from .workload import noting, until

__all__ = ["run"]

_SETTLE_SECONDS: Final = 1.0
_REST_SECONDS: Final = 10.0
_SMALL_LINGER_SECONDS: Final = 0.1


async def run(fault: Fault, number: int, *, settings: Mapping[str, Any] | None = None, small: bool = False) -> Run:
    """Do the fault; what goes wrong is in what is returned."""
    result = Run(fault.name, number)
    async with _staged(fault, settings or {}, small=small, seed=number) as stage:
        with noting(result.failures):
            before = await _begin(fault, stage)
            await fault.do(stage)
            await stage.ask_for_what_is_forbidden()
            if not fault.drop:
                await stage.join(WebSocketClient("newcomer", ("orders.*.1", "news.sport")))
            await stage.hold(_SETTLE_SECONDS)
            await stage.finish()
            result.recovered = sum(client.has_all for client in stage.audience)
            result.failures += (
                f"{client.log.client} is not served" for client in stage.others if not (client.left or client.has_all)
            )
            result.dropped = (await stage.facts())["dropped"]
            result.failures += await _left_behind(stage, before)
            if fault.harmless:
                result.failures += (
                    f"{client.log.client} misses something" for client in stage.audience if client.first(0, "gap")
                )
        result.clients = len(stage.audience)
        result.noticed, result.back = stage.noticed, stage.back
    result.verdict = judge(stage.publications, [client.log for client in stage.clients])
    result.failures += _failures(fault, result)
    return result


@contextlib.asynccontextmanager
async def _staged(fault: Fault, settings: Mapping[str, Any], *, small: bool, seed: int) -> AsyncIterator[Stage]:
    """Set everything up for the fault; the clients and publishers come with `Stage.begin`."""
    async with contextlib.AsyncExitStack() as stack:
        servers = list[NatsServer](stack.enter_context(nats_servers(fault.servers, fault.config)))
        if len(servers) > 1:
            await until(lambda: in_touch(servers), "the servers of the cluster find each other")
        if fault.absent:
            servers[0].stop()
        proxy = await stack.enter_async_context(Proxy(servers[0].port).running())
        url = proxy.url if fault.by_proxy else servers[0].url
        linger = {"unsubscribe_delay": _SMALL_LINGER_SECONDS} if small else {}
        options = {"servers": url, **linger, **fault.settings, **settings}
        bridge = stack.enter_context(
            server([sys.executable, "-m", "tools.faults.bridge", json.dumps(options), str(fault.drop)])
        )
        connector = aiohttp.TCPConnector(force_close=True)
        http = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        # In a cluster the other servers hear only later of what is newly subscribed.
        calm = len(servers) > 1 or fault.drop > 0
        stage = Stage(servers, proxy, bridge, http, calm=calm, small=small, seed=seed)
        try:
            yield stage
        finally:
            await asyncio.gather(*(publisher.abort() for publisher in stage.publishers))
            await asyncio.gather(*(client.leave() for client in stage.clients))


async def _begin(fault: Fault, stage: Stage) -> dict[str, Any] | None:
    """Have everything run as always; what the bridge's process holds then, where that can be told."""
    if fault.absent:
        return None
    await stage.begin()
    await stage.all_get_messages(time.monotonic())
    await stage.ask_for_what_is_forbidden()
    return await stage.facts()


async def _left_behind(stage: Stage, before: Mapping[str, Any] | None) -> list[str]:
    """What is not as it was before the fault, when only the audience is there, and after a while."""
    await asyncio.gather(*(client.leave() for client in stage.others))
    deadline = time.monotonic() + _REST_SECONDS
    while True:
        now = await stage.facts()
        left = [] if now["subscriptions"] == FOLLOWED else [f"NATS has the subscriptions {now['subscriptions']}"]
        if before is not None:
            left += [
                f"{now[what]} {what}, not {before[what]}" for what in ("tasks", "files") if now[what] > before[what]
            ]
        if not left or time.monotonic() > deadline:
            return left
        await asyncio.sleep(0.1)


def _failures(fault: Fault, result: Run) -> Iterator[str]:
    verdict = result.verdict
    if fault.drop:
        if not verdict.lost == verdict.broken == result.dropped > 0:
            yield f"of {result.dropped} that the bridge has lost {verdict.lost} were caught, {verdict.notes}"
    else:
        yield from verdict.notes
    if fault.within is not None and not result.noticed:
        yield "nobody was told"
    yield from (f"told only after {each:.1f} s" for each in result.noticed if each > (fault.within or each))
    if result.recovered < result.clients:
        yield f"only {result.recovered} of {result.clients} clients have recovered"
