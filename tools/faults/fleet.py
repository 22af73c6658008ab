"""A fleet: two machines on a cluster of NATS servers. Each NATS server is killed in turn, and then a worker."""

import asyncio
import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, islice
from typing import Any
from urllib.parse import urlencode

from sanic_nats_bridge.testing import NatsServer

from ..harness.processes import has_ended
from .client_pool import ClientPool
from .clients import Client, EventClient, Receiver, WebSocketClient
from .cluster_scenario import ClusterScenario
from .machine import Machine
from .nats import cluster, is_connected, knows_subscriptions
from .network import network
from .permission_profiles import PROFILES
from .posts import PostingClient, describe_posts
from .publisher import Publisher
from .results import Run
from .workload import InjectionError, until

__all__ = ["FLEET"]

_SUBJECTS = ("orders.eu.1", "orders.eu.2", "orders.us.1", "news.sport", "secret.plans")
_SOCKETS = (
    ("open", ("orders.>",)),
    ("eu", ("orders.eu.1",)),
    ("not-us", ("orders.>", "orders.eu.*", "news.sport")),
    ("own", ("mine.>", "mine.2")),
)
"""Profile and patterns of each WebSocket client."""

_STREAMS = (
    ("open", ("news.sport",), ("orders.*.1",)),
    ("own", ("mine.*",), ("mine.2", "mine.>")),
    ("not-us", ("orders.>",), ("orders.eu.2", "news.*")),
    ("open", ("orders.us.1",), ("news.*", "orders.eu.*")),
)
"""Profile and patterns of each event stream. The last ones are unsubscribed and subscribed by POST."""

_FIXED = [(profile, patterns) for profile, patterns, *_ in (*_SOCKETS, *_STREAMS)]
_FIXED_SUBSCRIPTIONS = sorted(
    {PROFILES[profile].profile.real_name(each) for profile, patterns in _FIXED for each in patterns}
)
"""The subscriptions at NATS that don't change while all clients are connected."""

_ALL_SUBSCRIPTIONS = {
    *_FIXED_SUBSCRIPTIONS,
    *(PROFILES[profile].profile.real_name(each) for profile, _, changing in _STREAMS for each in changing),
}
"""The subscriptions at NATS when all clients have settled."""

_WORKERS = 2
_CONNECT_SECONDS = 60.0
_CHECKED_SESSIONS = 3


async def _run(result: Run, settings: Mapping[str, Any], *, small: bool) -> None:
    async with contextlib.AsyncExitStack() as stack:
        net = stack.enter_context(network())
        if not net.isolated:
            result.remarks.append("no permission to create network namespaces: everything ran on loopback")
        servers = await stack.enter_async_context(cluster(3, "", [net.add_host() for _ in range(3)]))
        machines = [Machine(net.add_host()) for _ in range(2)]
        for number, machine in enumerate(machines):
            # Each machine prefers a different server.
            urls = [server.url for server in islice(cycle(servers), number, number + len(servers))]
            await stack.enter_async_context(machine.running({"servers": urls, **settings}, _WORKERS))
        pool = ClientPool(servers, machines, small=small)
        await stack.enter_async_context(pool.running())
        await _inject(pool, result, max_delay=1.0 if small else 10.0)


async def _inject(pool: ClientPool, result: Run, max_delay: float) -> None:
    before = await _open_files(pool)
    await _start(pool, max_delay)
    for server in pool.servers:
        await _kill_server(pool, server)
    await _kill_worker(pool, result, max_delay)
    await pool.finish(pool.propagated)
    _check_subscriptions(pool, result)
    pool.check(result)
    await pool.close()
    await pool.check_cleanup(before, result)


async def _open_files(pool: ClientPool) -> dict[int, int]:
    """Return the open files of each worker after it has served a request, without any clients."""
    await asyncio.gather(*(machine.request_each("GET", "/facts") for machine in pool.machines))
    return await pool.open_files()


async def _start(pool: ClientPool, max_delay: float) -> None:
    """Connect all clients, and begin to publish when all servers know of their subscriptions."""
    for copy in range(2 if pool.small else 4):
        for number, (profile, patterns) in enumerate(_SOCKETS):
            pool.add(_socket(f"socket-{number}-{copy}", profile, patterns), max_delay=max_delay)
        for number, (profile, patterns, changing) in enumerate(_STREAMS):
            factory = _stream(f"stream-{number}-{copy}", profile, patterns, changing, pool.addresses)
            pool.add(factory, max_delay=max_delay)
    await pool.wait_connected(_CONNECT_SECONDS)
    await until(
        lambda: all(knows_subscriptions(server, _FIXED_SUBSCRIPTIONS) for server in pool.servers),
        "the cluster knows of all subscriptions",
    )
    for name, server in zip("ab", pool.servers[1:], strict=True):
        pool.add_publisher(Publisher(name, server, _SUBJECTS))
    await pool.wait_for_messages(time.monotonic())


def _socket(name: str, profile: str, patterns: Sequence[str]) -> Callable[[int], Client]:
    return lambda number: WebSocketClient(f"{name}-{number}", patterns, profile)


def _stream(
    name: str, profile: str, patterns: Sequence[str], changing: Sequence[str], addresses: Sequence[str]
) -> Callable[[int], Client]:
    return lambda number: PostingClient(f"{name}-{number}", patterns, profile, changing=changing, addresses=addresses)


async def _kill_server(pool: ClientPool, victim: NatsServer) -> None:
    """Kill a NATS server to which no publisher is connected, and restart it. No session ends."""
    refuge = next(each for each in pool.servers if each is not victim)
    for publisher in pool.publishers:
        if publisher.server is victim:
            await publisher.move(refuge)
    async with pool.fault():
        victim.kill()
        await pool.sleep(2)
    victim.start()
    # A restarted server delivers only to the subscriptions that it already knows of.
    await until(
        lambda: is_connected(pool.servers) and knows_subscriptions(victim, _FIXED_SUBSCRIPTIONS),
        "the cluster is complete again",
    )


async def _kill_worker(pool: ClientPool, result: Run, max_delay: float) -> None:
    """Kill the worker that holds the most streams, have Sanic restart it, and wait until its clients reconnect."""
    streams = Counter(client.worker for client in pool.bystanders if isinstance(client, EventClient))
    worker = int(streams.most_common(1)[0][0] or 0)
    machine, name = await _find_worker(pool.machines, worker)
    before = list(pool.bystanders)
    killed = time.monotonic()
    os.kill(worker, signal.SIGKILL)
    await until(lambda: has_ended(worker), "the worker has ended")
    await machine.restart(name, dead=True)
    await until(
        lambda: not any(_is_held_by(client, worker) and client.connected for client in before),
        "the streams of the worker have ended",
    )
    await pool.wait_connected(max_delay + _CONNECT_SECONDS)
    result.reconnect_times = [round(each.reconnected - each.ended, 3) for each in pool.reconnects(killed)]
    pool.require(len(result.reconnect_times) >= streams[str(worker)], "not all sessions of the worker have ended")
    await _check_ended_sessions(pool, [client for client in before if not client.connected], result)


def _is_held_by(client: Receiver, worker: int) -> bool:
    return isinstance(client, EventClient) and client.worker == str(worker)


async def _find_worker(machines: Sequence[Machine], worker: int) -> tuple[Machine, str]:
    for machine in machines:
        for name, pid in (await machine.workers()).items():
            if pid == worker:
                return machine, name
    raise InjectionError(f"no machine has the worker {worker}")


async def _check_ended_sessions(pool: ClientPool, ended: Sequence[Receiver], result: Run) -> None:
    """Check that every worker answers commands for ended sessions by 404."""
    for client in ended[:_CHECKED_SESSIONS]:
        body = {"session": client.session, "subjects": list(client.patterns)}
        for machine in pool.machines:
            answers = await machine.request_each("POST", f"/nats/subscribe?{urlencode(client.query)}", body)
            result.failures += (
                f"worker {worker} answers {status}, not 404, for an ended session"
                for worker, (status, _) in answers.items()
                if status != 404
            )


def _check_subscriptions(pool: ClientPool, result: Run) -> None:
    """Check that the workers have exactly the expected subscriptions at NATS, and each worker each of them once."""
    subscriptions = pool.subscriptions()
    if {pattern for patterns in subscriptions for pattern in patterns} != _ALL_SUBSCRIPTIONS:
        result.failures.append(f"NATS has the subscriptions {subscriptions}, not {sorted(_ALL_SUBSCRIPTIONS)}")
    result.failures += (f"a worker has duplicates in {each}" for each in subscriptions if len(each) > len(set(each)))
    posting = [session for member in pool.members for session in member.sessions if isinstance(session, PostingClient)]
    result.failures += (failed for client in posting for failed in client.failed_commands)
    result.remarks.append(describe_posts(posting))


FLEET = ClusterScenario(
    "fleet",
    "two machines of two workers on a cluster of three: each server killed in turn, then a worker",
    _run,
)
