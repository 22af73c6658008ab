"""The workers of an app are restarted one after another, under a thousand clients."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ..harness.processes import raise_file_limit
from .client_pool import Crowd, cluster
from .clients import Client
from .cluster_scenario import Drill
from .light_clients import LightEventClient, LightWebSocketClient
from .machine import Machine, has_ended
from .misbehaving_clients import HostileClients
from .network import LOOPBACK
from .publisher import Publisher
from .reconnecting_clients import Return
from .results import Run
from .workload import until

__all__ = ["ROLLING", "judge_returns"]

_SUBJECTS: Final = ("orders.eu.1", "orders.eu.2", "orders.us.1", "news.sport")
_PATTERNS: Final = (("orders.eu.1",), ("orders.us.*",), ("news.sport",), ("orders.eu.2", "news.*"))
_CLIENTS: Final = 1000
_FEW_CLIENTS: Final = 240
_WORKERS: Final = 2
_INTERVAL_SECONDS: Final = 1.0
_FLOOD: Final = (4000, 8192)
"""So many messages of so many bytes: more than the kernel's buffers hold."""

_BESIDE_SECONDS: Final = 2.0
"""What Sanic takes beside it: it counts its turns of a tenth of a second, however long they take."""

_PATIENCE_SECONDS: Final = 30.0
_TENTHS: Final = 10
_FULLEST: Final = 0.25
_FEWEST: Final = 100
"""Of fewer, a tenth of the time may hold more than a quarter by chance."""


@dataclass(frozen=True)
class _Terms:
    """What the app is told: over how many seconds its clients come back, and how many a worker has for its end."""

    reconnect_spread: float
    graceful: float


_LONG_TERMS: Final = _Terms(reconnect_spread=10.0, graceful=15.0)
"""The defaults, of the bridge and of Sanic (GRACEFUL_SHUTDOWN_TIMEOUT)."""

_SHORT_TERMS: Final = _Terms(reconnect_spread=2.0, graceful=3.0)


async def _do(result: Run, settings: Mapping[str, Any], *, small: bool) -> None:
    raise_file_limit()
    terms = _SHORT_TERMS if small else _LONG_TERMS
    async with contextlib.AsyncExitStack() as stack:
        servers = await stack.enter_async_context(cluster(1, "", [LOOPBACK]))
        machine = Machine(LOOPBACK)
        config = {"GRACEFUL_SHUTDOWN_TIMEOUT": terms.graceful}
        options = {"servers": servers[0].url, "reconnect_spread": terms.reconnect_spread, "config": config, **settings}
        await stack.enter_async_context(machine.running(options, _WORKERS))
        crowd = Crowd(servers, [machine], small=small)
        await stack.enter_async_context(crowd.gathered())
        await machine.ask_each("GET", "/facts")
        before = await crowd.open_files()
        await _gather(crowd, terms.reconnect_spread)
        for name, worker in (await machine.workers()).items():
            await _restart(crowd, result, name, worker, terms)
        crowd.require(bool(result.fullest), "enough clients come back to tell how they are spread")
        await crowd.finish()
        crowd.judge(result)
        await crowd.leave()
        await crowd.nothing_is_left(before, result)


async def _gather(crowd: Crowd, first_within: float) -> None:
    for number in range(_FEW_CLIENTS if crowd.small else _CLIENTS):
        kind = (LightWebSocketClient, LightEventClient)[number % 2]
        patterns = _PATTERNS[number // 2 % len(_PATTERNS)]
        crowd.come(_made(kind, number, patterns), longest=first_within, first_within=first_within)
    for name in "ab":
        crowd.publish_by(Publisher(name, crowd.servers[0], _SUBJECTS, _INTERVAL_SECONDS))
    await crowd.all_are_present(first_within + _PATIENCE_SECONDS)


def _made(kind: type[Client], number: int, patterns: Sequence[str]) -> Callable[[int], Client]:
    return lambda life: kind(f"{kind.__name__}-{number}-{life}", patterns)


async def _restart(crowd: Crowd, result: Run, name: str, worker: int, terms: _Terms) -> None:
    """Restart one worker, on which hostile clients are too; returns when all others are back."""
    (machine,) = crowd.machines
    with contextlib.closing(HostileClients(machine, worker)) as hostile:
        await hostile.come()
        await crowd.publishers[0].burst("flood.1", *_FLOOD)
        await machine.restart(name)
        await until(lambda: has_ended(worker), f"{name} ends", terms.graceful + _PATIENCE_SECONDS)
        stopped = machine.stopping[worker]
        result.ends.append(time.monotonic() - stopped)
    await crowd.all_are_present(terms.reconnect_spread + _PATIENCE_SECONDS)
    if result.ends[-1] > terms.graceful + _BESIDE_SECONDS:
        result.failures.append(f"a worker was there for {result.ends[-1]:.1f} s after it was told to stop")
    judge_returns(crowd.returns(stopped), stopped, terms.reconnect_spread, result, as_told=crowd.small)


def judge_returns(
    returns: Sequence[Return], stopped: float, drain: float, result: Run, *, as_told: bool = False
) -> None:
    """Whether the clients were sent away as they should, and came back spread over the time that they were told.

    ``as_told``: how spread they were told to come, since a busy machine brings many back at one moment of a short time.
    """
    result.returns += (round(each.back - each.left, 3) for each in returns)
    lost = sum(each.told is None or each.told > drain for each in returns)
    if lost:
        result.failures.append(f"{lost} of {len(returns)} sessions ended without a word of when to come back")
    if len(returns) < _FEWEST:
        return
    waits = [each.told or 0.0 if as_told else each.back - stopped for each in returns]
    tenths = Counter(int(wait / drain * _TENTHS) for wait in waits)
    result.fullest.append(max(tenths.values()) / len(returns))
    if result.fullest[-1] > _FULLEST:
        result.failures.append(f"{len(returns)} clients came back, by tenths of the time: {sorted(tenths.items())}")


ROLLING: Final = Drill(
    "rolling",
    f"the workers of an app restarted one after another under {_CLIENTS:,} clients, and hostile ones",
    _do,
)
