"""The faults: how each is done, and healed."""

import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from .clients import EventClient, WebSocketClient
from .nats import in_touch
from .publisher import NoisyPublisher
from .stage import FOLLOWED, OPEN, Stage, until

__all__ = ["CONTROL", "FAULTS", "Fault"]

_DROP_ONE_IN: Final = 1000


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        title: What is done, for the report.
        do: Does it, and heals it.
        config: Of the NATS servers.
        servers: How many there are; several are a cluster.
        absent: NATS is not there at the start.
        by_proxy: The bridge reaches NATS by the stage's proxy.
        settings: Of the bridge, beside the defaults.
        drop: The bridge loses one in so many messages.
        within: In how many seconds the clients must have been told; ``None`` where there is nothing to tell.
        harmless: Nobody of the audience may miss anything, announced or not.
    """

    name: str
    title: str
    do: Callable[[Stage], Awaitable[None]]
    config: str = ""
    servers: int = 1
    absent: bool = False
    by_proxy: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    drop: int = 0
    within: float | None = 10.0
    harmless: bool = False


# NATS goes, and comes back


async def _kill(stage: Stage) -> None:
    async with stage.fault():
        stage.nats.kill()
        await stage.hold(2)
        stage.nats.start()


async def _stop_in_its_tracks(stage: Stage) -> None:
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
    async with stage.fault():
        stage.proxy.hold()
        await stage.hold(15)
        stage.proxy.release()


async def _short_black_hole(stage: Stage) -> None:
    async with stage.fault():
        stage.proxy.hold()
        await stage.hold(2)
        stage.proxy.release()


async def _bring_the_cluster_down_one_by_one(stage: Stage) -> None:
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
        victim.start()
        started_last = victim
        await until(lambda: in_touch(stage.servers), "the cluster is whole again")


# NATS does not let the bridge do something


def _users(password: str) -> str:
    users = [{"user": "bridge", "password": password}, {"user": "publisher", "password": "p"}]
    return f"authorization: {json.dumps({'users': users})}\nno_auth_user: publisher"


async def _revoke(stage: Stage) -> None:
    async with stage.fault():
        stage.nats.config = _users("changed")
        stage.nats.reload()
        await stage.hold(3)
        stage.nats.config = _users("b")
        stage.nats.reload()


async def _follow_too_much(stage: Stage) -> None:
    greedy = await stage.join(WebSocketClient("greedy", ("deep.0",), ("deep.>",)))
    async with stage.fault():
        number, reply = 0, None
        while reply is None or reply["success"]:
            number += 1
            reply = await greedy.ask("subscribe", [f"deep.{number}"])
        await stage.hold(1)
        await greedy.leave()


async def _publish_too_much(stage: Stage) -> None:
    stage.nats.config = "max_payload: 1024"
    stage.nats.reload()
    await until(lambda: stage.nats.monitor("/varz")["max_payload"] == 1024, "NATS has read its limit")
    async with stage.fault():
        await stage.ask_bridge("/publish/deep.0", bytes(2048))
    status, answer = await stage.ask_bridge("/publish/deep.0", bytes(512))
    stage.require(status == 204, f"a payload under the limit was not taken: {status} {answer}")


async def _ask_for_too_long_a_subject(stage: Stage) -> None:
    rude = await stage.join(WebSocketClient("rude", ("deep.0",), ("deep.>",)))
    async with stage.fault():
        await rude.ask("subscribe", ["deep." + "x" * 250])
        await stage.hold(1)
    await rude.leave()


# The bridge is in trouble


async def _block(stage: Stage) -> None:
    async with stage.fault():
        await stage.ask_bridge("/block?seconds=5", b"")


async def _flood_while_blocked(stage: Stage) -> None:
    await stage.join(WebSocketClient("flooded", ("flood.*",), ("flood.*",)))
    await stage.join(EventClient("flooded too", ("flood.>",), ("flood.>",)))
    async with stage.fault():
        blocked = asyncio.create_task(stage.ask_bridge("/block?seconds=5", b""))
        await asyncio.sleep(0.2)
        await stage.publishers[0].burst("flood.1", 4000, 8192)
        await blocked
        stage.require(stage.nats.monitor("/varz")["slow_consumers"] > 0, "NATS has dropped no slow consumer")


async def _use_up_files(stage: Stage) -> None:
    soft, hard = resource.prlimit(stage.bridge.pid, resource.RLIMIT_NOFILE)
    limit = stage.open_files() + 20
    resource.prlimit(stage.bridge.pid, resource.RLIMIT_NOFILE, (limit, hard))
    async with stage.fault():
        with _connections(stage.bridge.port, 60):
            await stage.hold(1)
            stage.nats.kill()
            await stage.hold(0.5)
            # Those take the place of the connection to NATS.
            with _connections(stage.bridge.port, 20):
                await stage.hold(0.5)
                stage.nats.start()
                await stage.hold(2)
                stage.require(stage.open_files() >= limit - 1, f"only {stage.open_files()} of {limit} files are open")
    resource.prlimit(stage.bridge.pid, resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def _connections(port: int, count: int) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        yield


# A client, or a publisher, does what nobody should


async def _stall(stage: Stage) -> None:
    stalled = await stage.join(WebSocketClient("stalled", ("flood.*", "orders.>"), OPEN))
    async with stage.fault():
        stalled.stall()
        await stage.publishers[0].burst("flood.1", 4000, 8192)
        await stage.hold(3)
        stalled.go_on()
        await until(lambda: stalled.first(0, "gap") is not None, "the client that stalled is told of what it missed")


async def _make_noise(stage: Stage) -> None:
    await stage.join(WebSocketClient("listener", ("noise.>",), ("noise.>",)))
    await stage.join(EventClient("listener too", ("noise.*", "noise.>"), ("noise.>",)))
    async with stage.fault():
        stage.publish_by(NoisyPublisher("noise", stage.nats, "noise", seed=len(stage.publications)))
        await stage.hold(5)


async def _publish_much(stage: Stage) -> None:
    async with stage.fault():
        for publisher in stage.publishers:
            await publisher.burst("orders.eu.1", 2000, 16)


FAULTS: Final = {
    fault.name: fault
    for fault in (
        Fault("kill", "nats-server killed (SIGKILL), started again after 2 s", _kill),
        Fault("sigstop", "nats-server stopped (SIGSTOP) for 15 s", _stop_in_its_tracks),
        Fault(
            "lameduck",
            "nats-server in lame duck mode until it ends; then another",
            _lame_duck,
            config="lame_duck_duration: 30s\nlame_duck_grace_period: 1s",
        ),
        Fault("absent", "no nats-server at the start; it comes after 3 s", _come_late, absent=True),
        Fault(
            "credentials",
            "the bridge's credentials revoked, given back after 3 s",
            _revoke,
            config=_users("b"),
            settings={"user": "bridge", "password": "b"},
        ),
        Fault(
            "max_subscriptions",
            "a client goes over NATS's max_subscriptions",
            _follow_too_much,
            config=f"max_subscriptions: {FOLLOWED + 5}",
            harmless=True,
        ),
        Fault("max_payload", "the app goes over a max_payload of NATS that was lowered meanwhile", _publish_too_much),
        Fault(
            "max_control_line",
            "a client asks for a subject over NATS's max_control_line",
            _ask_for_too_long_a_subject,
            config="max_control_line: 256",
        ),
        Fault(
            "slow_consumer",
            "the bridge blocked for 5 s under a flood of 32 MiB: NATS drops it as a slow consumer",
            _flood_while_blocked,
            config="max_pending: 1048576\nwrite_deadline: '1s'",
        ),
        Fault("blackhole", "the connection to NATS black-holed for 15 s", _black_hole, by_proxy=True),
        Fault("hiccup", "the same for 2 s", _short_black_hole, by_proxy=True, within=None, harmless=True),
        Fault(
            "bytes",
            "a publisher of arbitrary bytes in subjects, headers and payloads",
            _make_noise,
            settings={"headers": ["X-Any"]},
            within=None,
            harmless=True,
        ),
        Fault("stalled", "a client reads nothing for 3 s while 32 MiB come for it", _stall, harmless=True),
        Fault(
            "cluster",
            "a cluster of three: a bystander killed, then three times the one that carries the bridge",
            _bring_the_cluster_down_one_by_one,
            servers=3,
        ),
        Fault("blocked", "the bridge's event loop blocked for 5 s", _block, within=None, harmless=True),
        Fault("files", "the bridge's file descriptors used up; NATS killed and started again meanwhile", _use_up_files),
    )
}

CONTROL: Final = Fault(
    "control",
    f"a bridge that loses one message in {_DROP_ONE_IN:,}, which must be caught",
    _publish_much,
    drop=_DROP_ONE_IN,
    within=None,
)
