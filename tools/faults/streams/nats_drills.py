"""Faults of NATS, of its streams and of the permissions for them."""

import asyncio
import json
from collections.abc import Collection, Sequence

from nats.js.api import StorageType

from sanic_nats_bridge.testing import NatsServer

from ..nats import is_connected
from ..workload import until
from .environment import StreamEnvironment
from .fault import SMALL_BUFFER, StreamFault
from .profiles import STREAMS
from .publisher import SUBJECTS

__all__ = ["NATS_DRILLS"]

_AWAY_SHARE = 4
"""The share of clients that are disconnected during a whole fault: one in this number."""

_BURST = (4000, 1000)
"""Number and size of the messages of a burst. NATS waits for an answer of the consumer after 2 MB at the latest."""


async def _kill(env: StreamEnvironment) -> None:
    away = await env.send_away(_AWAY_SHARE)
    async with env.fault():
        env.servers[0].kill()
        await env.sleep(2)
        env.servers[0].start()
        await env.sleep(5)
        env.bring_back(away)
    await env.sleep(5)


async def _pause(env: StreamEnvironment) -> None:
    await _pause_server(env, env.servers[0])


async def _pause_server(env: StreamEnvironment, server: NatsServer) -> None:
    away = await env.send_away(_AWAY_SHARE)
    async with env.fault():
        server.pause()
        await env.sleep(15, small=3)
        server.resume()
        env.bring_back(away)
    await env.sleep(5)


async def _lose_memory(env: StreamEnvironment) -> None:
    await _kill_memory(env, env.servers[0], STREAMS)


async def _lose_memory_of_cluster(env: StreamEnvironment) -> None:
    leaders = {name: await env.leader(name) for name in STREAMS}
    victim = leaders["ORDERS"]
    await _kill_memory(env, victim, [name for name, leader in leaders.items() if leader is victim])


async def _kill_memory(env: StreamEnvironment, victim: NatsServer, lost: Collection[str]) -> None:
    """Kill a server that alone has some streams, and create them again if the server has forgotten them."""
    away = await env.send_away(_AWAY_SHARE)
    async with env.fault():
        victim.kill()
        # Acknowledgements from before may still be on their way.
        await asyncio.sleep(1)
        for name in lost:
            env.record.begin_life(name)
        victim.start()
        await _until_whole(env)
        for name in lost:
            await env.make_stream(name)
        env.bring_back(away)
    await env.sleep(5)


async def _until_whole(env: StreamEnvironment) -> None:
    if len(env.servers) > 1:
        await until(lambda: is_connected(env.servers), "the cluster is complete again")


async def _kill_leaders(env: StreamEnvironment) -> None:
    for name in ["ORDERS"] if env.small else STREAMS:
        leader = await env.leader(name)
        away = await env.send_away(_AWAY_SHARE)
        async with env.fault():
            leader.kill()
            await env.sleep(5, small=1)
            env.bring_back(away)
        leader.start()
        await _until_whole(env)
        await env.sleep(3)


async def _pause_leader(env: StreamEnvironment) -> None:
    await _pause_server(env, await env.leader("ORDERS"))


async def _step_down(env: StreamEnvironment) -> None:
    count = 0
    async with env.fault():
        for _ in range(3 if env.small else 20):
            for name in STREAMS:
                answer = await env.request(f"$JS.API.STREAM.LEADER.STEPDOWN.{name}")
                count += bool(answer.get("success"))
            await asyncio.sleep(1)
    env.require(count > 0, "no leader has stepped down")


async def _delete_consumers(env: StreamEnvironment) -> None:
    for _ in range(1 if env.small else 3):
        async with env.fault():
            for name, consumers in (await env.consumers()).items():
                env.require(bool(consumers), f"stream '{name}' has no consumer")
                for consumer in consumers:
                    await env.jetstream.delete_consumer(name, consumer)
        await env.sleep(3)


async def _purge(env: StreamEnvironment) -> None:
    away = await env.send_away(_AWAY_SHARE)
    # More than the bridge has in memory.
    await env.publisher.publish(SUBJECTS * 8, 1000)
    # A message that is removed before the bridge has it can't be distinguished from one that has never existed.
    await env.rest()
    async with env.fault():
        for name in STREAMS:
            env.record.remove(name)
            await env.jetstream.purge_stream(name)
        env.start_cutting()
        await env.publisher.start()
        await env.sleep(3)
        env.bring_back(away)
    await env.sleep(5)


async def _recreate(env: StreamEnvironment) -> None:
    away = await env.send_away(_AWAY_SHARE)
    async with env.fault():
        for name in STREAMS:
            await env.jetstream.delete_stream(name)
        # Acknowledgements from before may still be on their way.
        await asyncio.sleep(1)
        for name in STREAMS:
            env.record.begin_life(name)
            await env.make_stream(name)
        env.bring_back(away)
    await env.sleep(5)


async def _edit(env: StreamEnvironment) -> None:
    await env.sleep(3, small=1)
    # Who reconnects afterwards gets what no stream holds, without history.
    await env.rest()
    env.publisher.subjects = [each for each in SUBJECTS if not each.startswith("trades.")]
    await env.publisher.start()
    changed = env.config("TRADES")
    changed.subjects = ["elsewhere.>"]
    async with env.fault():
        await env.jetstream.update_stream(changed)
        await until(
            lambda: not any(each.startswith("trades.") for member in env.members for each in member.client.followed),
            "all subscriptions to what the stream no longer holds have ended",
            120,
        )
    await env.jetstream.update_stream(env.config("TRADES"))


def _users(*, flow_control: bool) -> str:
    denied: Sequence[str] = () if flow_control else ("$JS.FC.>",)
    bridge = {"user": "bridge", "password": "b", "permissions": {"publish": {"allow": [">"], "deny": denied}}}
    users = {"users": [bridge, {"user": "admin", "password": "a"}]}
    return f"authorization: {json.dumps(users)}\nno_auth_user: admin"


async def _deny_flow_control(env: StreamEnvironment) -> None:
    server = env.servers[0]
    async with env.fault():
        server.config = _users(flow_control=False)
        server.reload()
        count, size = _BURST
        await env.publisher.publish(["orders.1.1"] * count, size)
        await env.publisher.flush()
        await env.sleep(10)
        server.config = _users(flow_control=True)
        server.reload()
    await env.sleep(3)


NATS_DRILLS = (
    StreamFault("streams_kill", "nats-server killed (SIGKILL), restarted after 2 s", _kill),
    StreamFault("streams_sigstop", "nats-server stopped (SIGSTOP) for 15 s", _pause),
    StreamFault(
        "streams_memory",
        "the same as streams_kill, with streams in memory, which begin again",
        _lose_memory,
        storage=StorageType.MEMORY,
        gaps=frozenset({"reset"}),
        new_only=True,
    ),
    StreamFault(
        "streams_memory_sigstop",
        "the same as streams_sigstop, with streams in memory",
        _pause,
        storage=StorageType.MEMORY,
    ),
    StreamFault(
        "streams_cluster_memory",
        "a cluster of three: the server killed that alone has a stream, in memory",
        _lose_memory_of_cluster,
        servers=3,
        replicas=1,
        storage=StorageType.MEMORY,
        gaps=frozenset({"reset"}),
        new_only=True,
    ),
    StreamFault("streams_leader", "a cluster of three: the leader of each stream killed", _kill_leaders, servers=3),
    StreamFault(
        "streams_leader_sigstop", "a cluster of three: a stream's leader stopped for 15 s", _pause_leader, servers=3
    ),
    StreamFault(
        "streams_stepdown", "a cluster of three: the leaders step down every second, for 20 s", _step_down, servers=3
    ),
    StreamFault("streams_consumers", "the bridge's consumers deleted by hand, three times", _delete_consumers),
    StreamFault(
        "streams_purge",
        "the streams purged while some clients are disconnected",
        _purge,
        settings={"history_buffer_bytes": SMALL_BUFFER},
        gaps=frozenset({"expired"}),
        new_only=True,
    ),
    StreamFault(
        "streams_recreated",
        "the streams deleted and created again",
        _recreate,
        gaps=frozenset({"reset"}),
        new_only=True,
    ),
    StreamFault(
        "streams_edited",
        "the subjects of a stream replaced by others",
        _edit,
        codes=frozenset({"history.unavailable"}),
    ),
    StreamFault(
        "streams_permission",
        "the permission for $JS.FC revoked under a burst of 4 MB, restored after 10 s",
        _deny_flow_control,
        config=_users(flow_control=True),
        settings={"user": "bridge", "password": "b"},
    ),
)
