"""NATS, or the way to it, goes and comes back."""

import asyncio
import os
import random
import signal
from pathlib import Path
from typing import Final

from .environment import Stage
from .fault import Fault
from .nats import in_touch
from .workload import until

__all__ = ["NATS_FAULTS"]

_PING_SECONDS: Final = 5
"""The bridge pings as often, by default; when between two pings a server falls silent must make no difference."""


async def _kill(stage: Stage) -> None:
    async with stage.fault():
        stage.nats.kill()
        await stage.hold(2)
        stage.nats.start()


async def _stop_in_its_tracks(stage: Stage) -> None:
    await stage.hold(random.uniform(0, _PING_SECONDS))
    async with stage.fault():
        stage.nats.pause()
        await stage.hold(15)
        stage.nats.resume()


async def _lame_duck(stage: Stage) -> None:
    async with stage.fault():
        pid = stage.nats.pid
        assert pid is not None
        os.kill(pid, signal.SIGUSR2)
        await until(lambda: _is_dead(pid), "the lame duck dies")
        stage.nats.restart()


def _is_dead(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


async def _come_late(stage: Stage) -> None:
    async with stage.fault():
        await stage.begin()
        await stage.hold(3)
        stage.nats.start()


async def _black_hole(stage: Stage) -> None:
    await stage.hold(random.uniform(0, _PING_SECONDS))
    async with stage.fault():
        stage.proxy.hold()
        await stage.hold(15)
        stage.proxy.release()


async def _hiccup(stage: Stage) -> None:
    async with stage.fault():
        stage.proxy.hold()
        await stage.hold(2)
        stage.proxy.release()


async def _kill_one_by_one(stage: Stage) -> None:
    started_last = None
    for bystander in (True, False, False, False):
        carrier = await stage.carrier()
        victim = next(each for each in stage.servers if each is not carrier) if bystander else carrier
        # A server that has just come knows only later who follows what.
        refuge = next(each for each in stage.servers if each not in (victim, started_last))
        await asyncio.gather(*(publisher.move(refuge) for publisher in stage.publishers))
        async with stage.fault():
            victim.kill()
            await stage.hold(1)
        stage.require(
            bool(stage.noticed) is not bystander, "it is noticed when the server of the bridge dies, and only then"
        )
        victim.start()
        started_last = victim
        await until(lambda: in_touch(stage.servers), "the cluster is whole again")


_LAME_DUCK: Final = "lame_duck_duration: 30s\nlame_duck_grace_period: 1s"

NATS_FAULTS: Final = (
    Fault("kill", "nats-server killed (SIGKILL), started again after 2 s", _kill),
    Fault("sigstop", "nats-server stopped (SIGSTOP) for 15 s", _stop_in_its_tracks),
    Fault("lameduck", "nats-server in lame duck mode until it ends; then another", _lame_duck, config=_LAME_DUCK),
    Fault("handover", "the same in a cluster of three", _lame_duck, config=_LAME_DUCK, servers=3),
    Fault("absent", "no nats-server at the start; it comes after 3 s", _come_late, absent=True),
    Fault("blackhole", "the connection to NATS black-holed for 15 s", _black_hole, by_proxy=True),
    Fault("hiccup", "the same for 2 s", _hiccup, by_proxy=True, within=None, harmless=True),
    Fault(
        "cluster",
        "a cluster of three: a bystander killed, then three times the server of the bridge",
        _kill_one_by_one,
        servers=3,
    ),
)
