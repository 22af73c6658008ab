"""Faults of NATS, of workers and of the network, while clients publish."""

import asyncio
import os
import signal

from ...harness.processes import has_ended
from ..nats import is_connected
from ..workload import until
from .environment import PublishEnvironment
from .fault import PublishFault
from .holding import HoldingProxy

__all__ = ["PUBLISHES_CONTROL", "PUBLISH_DRILLS"]

_END_SECONDS = 60.0
_NO_LEADER = frozenset({"publish.unstored"})
"""A stream without a leader takes no messages, and NATS has no other interest in its subjects."""


async def _kill(env: PublishEnvironment) -> None:
    for _ in range(2 if env.small else 5):
        async with env.fault():
            await env.store_unanswered(env.back)
            env.servers[0].kill()
            env.back.cut()
            await env.sleep(2)
            env.servers[0].start()
        await env.sleep(2)


async def _pause(env: PublishEnvironment) -> None:
    for _ in range(1 if env.small else 2):
        async with env.fault():
            env.servers[0].pause()
            await env.sleep(10, small=2)
            env.servers[0].resume()
        await env.sleep(2)


async def _cut_nats(env: PublishEnvironment) -> None:
    await _cut(env, env.back)


async def _cut_clients(env: PublishEnvironment) -> None:
    await _cut(env, env.front)


async def _cut(env: PublishEnvironment, proxy: HoldingProxy) -> None:
    for _ in range(2 if env.small else 5):
        async with env.fault():
            await env.store_unanswered(proxy)
            proxy.down = True
            proxy.cut()
            await env.sleep(3)
            proxy.down = False
        await env.sleep(2)


async def _hang_nats(env: PublishEnvironment) -> None:
    await _hang(env, env.back, 8, small=2)


async def _hang_clients(env: PublishEnvironment) -> None:
    # Longer than any client waits for an answer.
    await _hang(env, env.front, 15, small=12)


async def _hang(env: PublishEnvironment, proxy: HoldingProxy, seconds: float, *, small: float) -> None:
    """Let nothing through, and deliver it late."""
    for _ in range(1 if env.small else 2):
        async with env.fault():
            proxy.pause()
            await env.sleep(seconds, small=small)
            proxy.resume()
        await env.sleep(2)


async def _kill_workers(env: PublishEnvironment) -> None:
    for _ in range(1 if env.small else 3):
        for name, worker in (await env.machine.workers()).items():
            async with env.fault():
                await env.store_unanswered(env.back)
                os.kill(worker, signal.SIGKILL)
                env.back.release()
                await until(lambda worker=worker: has_ended(worker), f"{name} has ended", _END_SECONDS)  # type: ignore[misc]
                await env.sleep(2)
                await env.machine.restart(name, dead=True)
            await env.sleep(1)


async def _roll(env: PublishEnvironment) -> None:
    for _ in range(1 if env.small else 3):
        async with env.fault():
            for name, worker in (await env.machine.workers()).items():
                await env.machine.restart(name)
                await until(lambda worker=worker: has_ended(worker), f"{name} has ended", _END_SECONDS)  # type: ignore[misc]
        await env.sleep(1)


async def _kill_leader(env: PublishEnvironment) -> None:
    for _ in range(1 if env.small else 3):
        leader = await env.leader()
        async with env.fault():
            leader.kill()
            await env.sleep(5, small=1)
        leader.start()
        await until(lambda: is_connected(env.servers), "the cluster is complete again")
        await env.sleep(3)


async def _lose_quorum(env: PublishEnvironment) -> None:
    for _ in range(1 if env.small else 3):
        leader = await env.leader()
        followers = [each for each in env.servers if each is not leader]
        async with env.fault():
            for server in followers:
                server.pause()
            # After 10 s the leader would step down.
            await env.sleep(7, small=2)
            for server in followers:
                server.resume()
        await env.sleep(3)


async def _step_down(env: PublishEnvironment) -> None:
    async with env.fault():
        for _ in range(3 if env.small else 20):
            await env.step_down()
            await asyncio.sleep(1)


PUBLISH_DRILLS = (
    PublishFault(
        "publish_kill",
        "nats-server killed (SIGKILL) with its answers on their way, restarted after 2 s, 5 times",
        _kill,
    ),
    PublishFault("publish_sigstop", "nats-server stopped (SIGSTOP) for 10 s, twice", _pause),
    PublishFault(
        "publish_nats_cut", "connections to NATS cut with answers on their way, none for 3 s, 5 times", _cut_nats
    ),
    PublishFault("publish_nats_hang", "everything to and from NATS held back for 8 s, twice", _hang_nats),
    PublishFault(
        "publish_worker_kill",
        "two workers killed (SIGKILL) in turn with answers on their way, restarted after 2 s, 3 times",
        _kill_workers,
    ),
    PublishFault("publish_rolling", "two workers restarted one after another, 3 times", _roll, repeats=False),
    PublishFault(
        "publish_client_cut",
        "connections of clients cut with answers on their way, none for 3 s, 5 times",
        _cut_clients,
    ),
    PublishFault("publish_client_hang", "everything to and from clients held back for 15 s, twice", _hang_clients),
    PublishFault(
        "publish_leader",
        "a cluster of three: the stream's leader killed, restarted after 5 s, 3 times",
        _kill_leader,
        servers=3,
        repeats=False,
        refusals=_NO_LEADER,
    ),
    PublishFault(
        "publish_quorum",
        "a cluster of three: all but the stream's leader stopped (SIGSTOP) for 7 s, 3 times",
        _lose_quorum,
        servers=3,
        refusals=_NO_LEADER,
    ),
    PublishFault(
        "publish_stepdown",
        "a cluster of three: the stream's leader steps down every second, 20 times",
        _step_down,
        servers=3,
        repeats=False,
        refusals=_NO_LEADER,
    ),
)

PUBLISHES_CONTROL = PublishFault(
    "publish_control",
    "publish_client_cut with clients that repeat without an id, so that messages are stored again, which the checker "
    "must find",
    _cut_clients,
    blind=True,
)
