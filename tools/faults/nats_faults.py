"""Faults of NATS, or of the connection to it."""

import asyncio
import json
import os
import random
import signal

from ..harness.processes import has_ended
from .environment import Environment
from .fault import Fault
from .names import NAME, UNANSWERING
from .nats import is_connected
from .workload import until

__all__ = ["NATS_FAULTS"]

_PING_SECONDS = 5
"""The bridge's default ``ping_interval``. The moment between two pings at which a fault begins must not matter."""


async def _kill(env: Environment) -> None:
    async with env.fault():
        env.nats.kill()
        await env.hold(2)
        env.nats.start()


async def _kill_behind_unanswering_address(env: Environment) -> None:
    if env.has_name:
        _, addresses = await env.request(f"/resolve/{NAME}")
        expected = [UNANSWERING, env.nats.host]
        env.require(json.loads(addresses) == expected, f"the addresses must be {expected}, got {addresses}")
    # The bridge remembers the addresses that it has tried, so the second time may differ from the first.
    for _ in range(2):
        await _kill(env)


async def _pause(env: Environment) -> None:
    await env.sleep(random.uniform(0, _PING_SECONDS))
    async with env.fault():
        env.nats.pause()
        await env.hold(15)
        env.nats.resume()


async def _lame_duck(env: Environment) -> None:
    async with env.fault():
        pid = env.nats.pid
        assert pid is not None
        os.kill(pid, signal.SIGUSR2)
        await until(lambda: has_ended(pid), "the lame duck has ended")
        env.nats.restart()


async def _start_late(env: Environment) -> None:
    async with env.fault():
        await env.start()
        await env.hold(3)
        env.nats.start()


async def _black_hole(env: Environment) -> None:
    await env.sleep(random.uniform(0, _PING_SECONDS))
    async with env.fault():
        env.proxy.pause()
        await env.hold(15)
        env.proxy.resume()


async def _hiccup(env: Environment) -> None:
    async with env.fault():
        env.proxy.pause()
        await env.sleep(2)
        env.proxy.resume()


async def _kill_one_by_one(env: Environment) -> None:
    restarted = None
    for spare_bridge in (True, False, False, False):
        connected = await env.connected_server()
        victim = next(each for each in env.servers if each is not connected) if spare_bridge else connected
        # A server that has just restarted learns of the subscriptions later.
        refuge = next(each for each in env.servers if each not in (victim, restarted))
        await asyncio.gather(*(publisher.move(refuge) for publisher in env.publishers))
        async with env.fault():
            victim.kill()
            await (env.sleep(1) if spare_bridge else env.hold(1))
        env.require(
            bool(env.noticed) is not spare_bridge,
            "clients must be notified if, and only if, the bridge's server is killed",
        )
        victim.start()
        restarted = victim
        await until(lambda: is_connected(env.servers), "the cluster is complete again")


_LAME_DUCK = "lame_duck_duration: 30s\nlame_duck_grace_period: 1s"

NATS_FAULTS = (
    Fault("kill", "nats-server killed (SIGKILL), restarted after 2 s", _kill),
    Fault(
        "dead_address",
        "the same, twice, by a host name whose first address doesn't answer",
        _kill_behind_unanswering_address,
        unanswering_address=True,
    ),
    Fault("sigstop", "nats-server stopped (SIGSTOP) for 15 s", _pause, silent=True),
    Fault("lameduck", "nats-server in lame duck mode until it ends, then restarted", _lame_duck, config=_LAME_DUCK),
    Fault("handover", "the same in a cluster of three", _lame_duck, config=_LAME_DUCK, servers=3),
    Fault("absent", "no nats-server at the start; started after 3 s", _start_late, nats_absent=True),
    Fault("blackhole", "the connection to NATS black-holed for 15 s", _black_hole, through_proxy=True, silent=True),
    Fault("hiccup", "the same for 2 s", _hiccup, through_proxy=True, notice_within=None, harmless=True),
    Fault(
        "cluster",
        "a cluster of three: a server without the bridge killed, then three times the bridge's server",
        _kill_one_by_one,
        servers=3,
    ),
)
