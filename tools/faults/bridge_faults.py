"""Faults of the bridge itself, and those that clients and publishers cause."""

import asyncio
import contextlib
import resource
import socket
from collections.abc import Iterator

from .clients import EventClient, WebSocketClient
from .environment import Environment
from .fault import Fault
from .publisher import FuzzPublisher
from .workload import until

__all__ = ["BRIDGE_FAULTS", "CONTROL"]

_DROP_ONE_IN = 1000
_FLOOD = (4000, 8192)
"""Number and size of the messages of a flood, more than the kernel's buffers can hold."""


async def _block(env: Environment) -> None:
    async with env.fault():
        await env.request("/block?seconds=5", b"")


async def _flood_while_blocked(env: Environment) -> None:
    await env.connect(WebSocketClient("flooded", ("flood.*",)))
    await env.connect(EventClient("flooded too", ("flood.>",)))
    async with env.fault():
        blocked = asyncio.create_task(env.request("/block?seconds=5", b""))
        # The first flood may come before the bridge is blocked.
        while not blocked.done() and not env.nats.monitor("/varz")["slow_consumers"]:
            await env.publishers[0].burst("flood.1", *_FLOOD)
        await blocked
        slow_consumers = env.nats.monitor("/varz")["slow_consumers"]
        env.require(slow_consumers > 0, "NATS did not disconnect the bridge as a slow consumer")


async def _exhaust_files(env: Environment) -> None:
    soft, hard = resource.prlimit(env.bridge.pid, resource.RLIMIT_NOFILE)
    limit = env.open_files() + 20
    resource.prlimit(env.bridge.pid, resource.RLIMIT_NOFILE, (limit, hard))

    def exhausted() -> bool:
        return env.open_files() >= limit - 1

    async with env.fault():
        with _connections(env.bridge.port, 60):
            await until(exhausted, "all files of the bridge are open")
            env.nats.kill()
            await env.hold(0.5)
            # These connections take the file descriptor of the lost connection to NATS.
            with _connections(env.bridge.port, 20):
                await until(exhausted, "all files of the bridge are open again")
                env.nats.start()
                await env.sleep(2)
                env.require(exhausted(), f"only {env.open_files()} of {limit} files are open")
    resource.prlimit(env.bridge.pid, resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def _connections(port: int, count: int) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        yield


async def _stall(env: Environment) -> None:
    stalled = await env.connect(WebSocketClient("stalled", ("flood.*", "orders.>")))
    async with env.fault():
        stalled.stall()
        await env.publishers[0].burst("flood.1", *_FLOOD)
        await env.sleep(3)
        stalled.resume()
        await until(lambda: stalled.first_frame_time(0, "gap") is not None, "the stalled client receives a gap")


async def _publish_random_bytes(env: Environment) -> None:
    await env.connect(WebSocketClient("listener", ("noise.>",)))
    await env.connect(EventClient("listener too", ("noise.*", "noise.>")))
    async with env.fault():
        env.add_publisher(FuzzPublisher("noise", env.nats, "noise", seed=env.seed))
        await env.sleep(5)


async def _publish_many(env: Environment) -> None:
    async with env.fault():
        for publisher in env.publishers:
            await publisher.burst("orders.eu.1", 500 if env.small else 2000, 16)


BRIDGE_FAULTS = (
    Fault("blocked", "the bridge's event loop blocked for 5 s", _block, notice_within=None, harmless=True),
    Fault(
        "slow_consumer",
        "the same under a flood of 32 MiB: NATS disconnects the bridge as a slow consumer",
        _flood_while_blocked,
        config="max_pending: 1048576\nwrite_deadline: '1s'",
    ),
    Fault("files", "the bridge's file descriptors exhausted; NATS killed and restarted meanwhile", _exhaust_files),
    Fault("stalled", "a client reads nothing for 3 s while 32 MiB arrive for it", _stall, harmless=True),
    Fault(
        "bytes",
        "a publisher of random bytes in subjects, headers and payloads",
        _publish_random_bytes,
        settings={"expose_headers": ["X-Any"]},
        notice_within=None,
        harmless=True,
    ),
)

CONTROL = Fault(
    "control",
    f"a bridge that loses one message in {_DROP_ONE_IN:,}, which the checker must find",
    _publish_many,
    drop_one_in=_DROP_ONE_IN,
    notice_within=None,
)
