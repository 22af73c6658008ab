"""A rolling restart: the workers of an app are restarted one after another, under a thousand clients."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..harness.processes import has_ended, raise_file_limit
from .client_pool import ClientPool
from .clients import Client
from .cluster_scenario import ClusterScenario
from .light_clients import LightEventClient, LightWebSocketClient
from .machine import Machine
from .misbehaving_clients import MisbehavingClients
from .nats import cluster
from .network import LOOPBACK
from .publisher import Publisher
from .reconnecting_clients import Reconnect
from .results import Run
from .workload import until

__all__ = ["ROLLING", "check_reconnects"]

_SUBJECTS = ("orders.eu.1", "orders.eu.2", "orders.us.1", "news.sport")
_PATTERNS = (("orders.eu.1",), ("orders.us.*",), ("news.sport",), ("orders.eu.2", "news.*"))
_CLIENTS = 1000
_SMALL_CLIENTS = 240
_WORKERS = 2
_INTERVAL_SECONDS = 1.0
_FLOOD = (4000, 8192)
"""Number and size of the messages of a flood, more than the kernel's buffers can hold."""

_OVERHEAD_SECONDS = 2.0
"""Time beyond the graceful shutdown. Sanic counts its turns of a tenth of a second, however long they take."""

_TIMEOUT_SECONDS = 60.0
_TENTHS = 10
_MAX_FULLEST_TENTH = 0.25
_MIN_RECONNECTS = 100
"""With fewer, a tenth of the time may contain more than a quarter of them by chance."""


@dataclass(frozen=True)
class _Durations:
    """Seconds over which clients reconnect, and seconds that a worker has to end."""

    reconnect_spread: float
    graceful_shutdown: float


_FULL_DURATIONS = _Durations(reconnect_spread=10.0, graceful_shutdown=15.0)
"""The defaults of the bridge and of Sanic (GRACEFUL_SHUTDOWN_TIMEOUT)."""

_SMALL_DURATIONS = _Durations(reconnect_spread=2.0, graceful_shutdown=3.0)


async def _run(result: Run, settings: Mapping[str, Any], *, small: bool) -> None:
    raise_file_limit()
    durations = _SMALL_DURATIONS if small else _FULL_DURATIONS
    async with contextlib.AsyncExitStack() as stack:
        servers = await stack.enter_async_context(cluster(1, ""))
        machine = Machine(LOOPBACK)
        config = {"GRACEFUL_SHUTDOWN_TIMEOUT": durations.graceful_shutdown}
        options = {
            "servers": servers[0].url,
            "reconnect_spread": durations.reconnect_spread,
            "config": config,
            **settings,
        }
        await stack.enter_async_context(machine.running(options, _WORKERS))
        pool = ClientPool(servers, [machine], small=small)
        await stack.enter_async_context(pool.running())
        await machine.request_each("GET", "/facts")
        before = await pool.open_files()
        await _start(pool, durations.reconnect_spread)
        for name, worker in (await machine.workers()).items():
            await _restart(pool, result, name, worker, durations)
        pool.require(bool(result.fullest_tenths), "too few clients reconnected to measure their spread")
        await pool.finish(pool.propagated)
        pool.check(result)
        await pool.close()
        await pool.check_cleanup(before, result)


async def _start(pool: ClientPool, initial_spread: float) -> None:
    """Add clients and publishers, and wait until all clients are connected."""
    for number in range(_SMALL_CLIENTS if pool.small else _CLIENTS):
        kind = (LightWebSocketClient, LightEventClient)[number % 2]
        patterns = _PATTERNS[number // 2 % len(_PATTERNS)]
        pool.add(_factory(kind, number, patterns), max_delay=initial_spread, initial_spread=initial_spread)
    for name in "ab":
        pool.add_publisher(Publisher(name, pool.servers[0], _SUBJECTS, _INTERVAL_SECONDS))
    await pool.wait_connected(initial_spread + _TIMEOUT_SECONDS)


def _factory(kind: type[Client], number: int, patterns: Sequence[str]) -> Callable[[int], Client]:
    return lambda session: kind(f"{kind.__name__}-{number}-{session}", patterns)


async def _restart(pool: ClientPool, result: Run, name: str, worker: int, durations: _Durations) -> None:
    """Restart a worker that also has misbehaving clients, and wait until all other clients have reconnected."""
    (machine,) = pool.machines
    with contextlib.closing(MisbehavingClients(machine, worker)) as misbehaving:
        await misbehaving.connect()
        await pool.publishers[0].burst("flood.1", *_FLOOD)
        await machine.restart(name)
        await until(lambda: has_ended(worker), f"{name} has ended", durations.graceful_shutdown + _TIMEOUT_SECONDS)
        stopped = machine.stopping[worker]
        result.shutdown_times.append(time.monotonic() - stopped)
    await pool.wait_connected(durations.reconnect_spread + _TIMEOUT_SECONDS)
    # In a small run the time is so short that it depends on the load of the machine.
    if not pool.small and result.shutdown_times[-1] > durations.graceful_shutdown + _OVERHEAD_SECONDS:
        result.failures.append(f"a worker ended only {result.shutdown_times[-1]:.1f} s after it began to stop")
    check_reconnects(pool.reconnects(stopped), stopped, durations.reconnect_spread, result, by_retry=pool.small)


def check_reconnects(
    reconnects: Sequence[Reconnect], stopped: float, spread: float, result: Run, *, by_retry: bool = False
) -> None:
    """Check that all clients received a time to reconnect, and that they are spread over it.

    Args:
        reconnects: The reconnects of the clients.
        stopped: The time at which their worker stopped.
        spread: The seconds over which they must be spread.
        result: The run to which the outcome is added.
        by_retry: Check the times that the clients received, not those at which they reconnected. In a short time a
            busy machine may reconnect many at the same moment.
    """
    result.reconnect_times += (round(each.reconnected - each.ended, 3) for each in reconnects)
    without_retry = sum(each.retry is None or each.retry > spread for each in reconnects)
    if without_retry:
        result.failures.append(f"{without_retry} of {len(reconnects)} sessions ended without a valid time to reconnect")
    if len(reconnects) < _MIN_RECONNECTS:
        return
    delays = [each.retry or 0.0 if by_retry else each.reconnected - stopped for each in reconnects]
    tenths = Counter(int(delay / spread * _TENTHS) for delay in delays)
    result.fullest_tenths.append(max(tenths.values()) / len(reconnects))
    if result.fullest_tenths[-1] > _MAX_FULLEST_TENTH:
        result.failures.append(
            f"{len(reconnects)} clients reconnected, by tenths of the time: {sorted(tenths.items())}"
        )


ROLLING = ClusterScenario(
    "rolling",
    f"the workers of an app restarted one after another under {_CLIENTS:,} clients, and misbehaving ones",
    _run,
)
