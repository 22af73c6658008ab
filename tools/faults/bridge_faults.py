"""The bridge is in trouble by itself, or by what clients and publishers do."""

import asyncio
import contextlib
import resource
import socket
from collections.abc import Iterator
from typing import Final

from .clients import EventClient, WebSocketClient
from .environment import Stage
from .fault import Fault
from .publisher import NoisyPublisher
from .workload import until

__all__ = ["BRIDGE_FAULTS", "CONTROL"]

_DROP_ONE_IN: Final = 1000
_FLOOD: Final = (4000, 8192)
"""So many messages of so many bytes: more than the kernel's buffers hold."""


async def _block(stage: Stage) -> None:
    async with stage.fault():
        await stage.ask_bridge("/block?seconds=5", b"")


async def _flood_while_blocked(stage: Stage) -> None:
    await stage.join(WebSocketClient("flooded", ("flood.*",)))
    await stage.join(EventClient("flooded too", ("flood.>",)))
    async with stage.fault():
        blocked = asyncio.create_task(stage.ask_bridge("/block?seconds=5", b""))
        await asyncio.sleep(0.2)
        await stage.publishers[0].burst("flood.1", *_FLOOD)
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


async def _stall(stage: Stage) -> None:
    stalled = await stage.join(WebSocketClient("stalled", ("flood.*", "orders.>")))
    async with stage.fault():
        stalled.stall()
        await stage.publishers[0].burst("flood.1", *_FLOOD)
        await stage.hold(3)
        stalled.go_on()
        await until(lambda: stalled.first(0, "gap") is not None, "the client that stalled is told of what it missed")


async def _make_noise(stage: Stage) -> None:
    await stage.join(WebSocketClient("listener", ("noise.>",)))
    await stage.join(EventClient("listener too", ("noise.*", "noise.>")))
    async with stage.fault():
        stage.publish_by(NoisyPublisher("noise", stage.nats, "noise", seed=stage.seed))
        await stage.hold(5)


async def _publish_much(stage: Stage) -> None:
    async with stage.fault():
        for publisher in stage.publishers:
            await publisher.burst("orders.eu.1", 500 if stage.small else 2000, 16)


BRIDGE_FAULTS: Final = (
    Fault("blocked", "the bridge's event loop blocked for 5 s", _block, within=None, harmless=True),
    Fault(
        "slow_consumer",
        "the same under a flood of 32 MiB: NATS drops the bridge as a slow consumer",
        _flood_while_blocked,
        config="max_pending: 1048576\nwrite_deadline: '1s'",
    ),
    Fault("files", "the bridge's file descriptors used up; NATS killed and started again meanwhile", _use_up_files),
    Fault("stalled", "a client reads nothing for 3 s while 32 MiB come for it", _stall, harmless=True),
    Fault(
        "bytes",
        "a publisher of arbitrary bytes in subjects, headers and payloads",
        _make_noise,
        settings={"expose_headers": ["X-Any"]},
        within=None,
        harmless=True,
    ),
)

CONTROL: Final = Fault(
    "control",
    f"a bridge made to lose one message in {_DROP_ONE_IN:,}, which must be caught",
    _publish_much,
    drop=_DROP_ONE_IN,
    within=None,
)
