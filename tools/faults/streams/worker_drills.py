"""Faults of workers, of the connections to clients, and of the clients themselves."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator

from ...harness.processes import has_ended
from ..workload import until
from .environment import StreamEnvironment
from .fault import StreamFault
from .profiles import STREAMS

__all__ = ["STREAMS_CONTROL", "WORKER_DRILLS"]

_RESTARTS = 100
_SMALL_RESTARTS = 5
_END_SECONDS = 60.0
_POLL_SECONDS = 0.1
_INACTIVE_SECONDS = 90.0
"""Longer than NATS keeps an unused consumer."""


async def _stay_away(env: StreamEnvironment) -> None:
    await _return_after(env, 1, 57, small=1)


async def _exceed_limit(env: StreamEnvironment) -> None:
    await _return_after(env, 2, 10, small=3)


async def _return_after(env: StreamEnvironment, share: int, seconds: float, *, small: float) -> None:
    """Let every so many clients leave for some seconds."""
    away = await env.send_away(share)
    await env.sleep(seconds, small=small)
    async with env.fault():
        env.bring_back(away)
    await env.sleep(5)


async def _cut(env: StreamEnvironment) -> None:
    for proxy in env.proxies:
        proxy.cuts = True
    async with env.fault():
        # The connections so far aren't cut by the proxies.
        for member in env.members:
            await member.client.cut()
        await until(lambda: env.cuts > (60 if env.small else 1000), "enough connections are cut", 300)
        for proxy in env.proxies:
            proxy.cuts = False
    env.remarks.append(f"{env.cuts} connections were cut")


async def _lag(env: StreamEnvironment) -> None:
    for _ in range(2 if env.small else 4):
        async with env.fault():
            await env.post(0, f"/block?seconds={1 if env.small else 4}")
        await env.sleep(1)


async def _roll(env: StreamEnvironment) -> None:
    assert env.machine is not None
    async with env.fault():
        for name, worker in (await env.machine.workers()).items():
            await env.machine.restart(name)
            await until(lambda worker=worker: has_ended(worker), f"{name} has ended", _END_SECONDS)  # type: ignore[misc]
    await env.wait_live()


async def _restart_often(env: StreamEnvironment) -> None:
    machine = env.machine
    assert machine is not None
    workers = await machine.workers()
    count = _SMALL_RESTARTS if env.small else _RESTARTS
    async with _counting(env) as most:
        for number in range(count):
            name = list(workers)[number % len(workers)]
            old = workers[name]
            workers[name] = await machine.restart(name)
            await until(lambda old=old: has_ended(old), f"{name} has ended", _END_SECONDS)  # type: ignore[misc]
    # Some client is always disconnected while clients are cut off.
    await env.stop_cutting()
    await env.wait_live()
    before = await _names(env)
    most_allowed = len(workers) * len(STREAMS)
    env.require(len(before) <= most_allowed, f"after {count} restarts there are {len(before)} consumers")
    name, victim = next(iter(workers.items()))
    os.kill(victim, signal.SIGKILL)
    await until(lambda: has_ended(victim), "the worker has ended")
    killed = time.monotonic()
    await machine.restart(name, dead=True)
    env.start_cutting()
    left = 0
    while True:
        names = await _names(env)
        left = max(left, len(names))
        if len(names & before) <= most_allowed - len(STREAMS):
            break
        env.require(time.monotonic() - killed < _INACTIVE_SECONDS, "the consumers of a killed worker stay")
        await asyncio.sleep(_POLL_SECONDS)
    gone = time.monotonic() - killed
    env.remarks.append(
        f"{count} restarts of {len(workers)} workers with {len(STREAMS)} streams: a stream had at most {max(most)} "
        f"consumers beyond one for each process, and all {len(before)} afterwards; at most {left} after a worker was "
        f"killed, and its own were gone after {gone:.0f} s"
    )


async def _names(env: StreamEnvironment) -> set[str]:
    return {name for names in (await env.consumers()).values() for name in names}


@contextlib.asynccontextmanager
async def _counting(env: StreamEnvironment) -> AsyncIterator[list[int]]:
    """Count the consumers of each stream that are there at once, beyond one for each process."""
    most = [0]

    async def count() -> None:
        machine = env.machine
        assert machine is not None
        while True:
            consumers = await env.consumers()
            # A process that has ended since may have left its consumers a moment before.
            processes = sum(not has_ended(pid) for pid in machine.ready)
            most.append(max(len(names) for names in consumers.values()) - processes)
            await asyncio.sleep(_POLL_SECONDS)

    counting = asyncio.create_task(count())
    try:
        yield most
    finally:
        counting.cancel()
        await asyncio.wait({counting})
    if max(most) > 1:
        env.failures.append(f"a stream had {max(most)} consumers beyond one for each worker")


async def _go_on(env: StreamEnvironment) -> None:
    async with env.fault():
        await env.sleep(5, small=2)


_QUICK_SHUTDOWN = {"reconnect_spread": 1, "config": {"GRACEFUL_SHUTDOWN_TIMEOUT": 1}}

WORKER_DRILLS = (
    StreamFault(
        "streams_away", "all clients disconnected for 57 s", _stay_away, settings={"max_replay_messages": 30_000}
    ),
    StreamFault(
        "streams_backlog",
        "every second client disconnected for so long that it misses more than max_replay_messages",
        _exceed_limit,
        settings={"max_replay_messages": 100},
        gaps=frozenset({"backlog"}),
    ),
    StreamFault(
        "streams_cut",
        "1,000 connections cut by a proxy, in replays, between events and inside of events",
        _cut,
        proxied=True,
        cut_interval=0,
    ),
    StreamFault(
        "streams_lag", "two workers, one of them blocked for 4 s, four times", _lag, workers=2, cut_interval=0.05
    ),
    StreamFault(
        "streams_rolling",
        "the workers of an app restarted one after another under 1,000 clients",
        _roll,
        workers=2,
        managed=True,
        clients=1000,
        small_clients=100,
        batch=2,
        interval=0.2,
        cut_interval=0,
        settings={"reconnect_spread": 10, "config": {"GRACEFUL_SHUTDOWN_TIMEOUT": 15}},
        small_settings=_QUICK_SHUTDOWN,
    ),
    StreamFault(
        "streams_restarts",
        f"{_RESTARTS} restarts of workers, then one killed; the consumers on NATS are counted",
        _restart_often,
        workers=2,
        managed=True,
        settings={"reconnect_spread": 1, "config": {"GRACEFUL_SHUTDOWN_TIMEOUT": 5}},
        small_settings=_QUICK_SHUTDOWN,
        once=True,
    ),
)

STREAMS_CONTROL = StreamFault(
    "streams_control",
    "clients that forget their ids, so that they lose messages, which the checker must find",
    _go_on,
    new_only=True,
    forgets=True,
)
