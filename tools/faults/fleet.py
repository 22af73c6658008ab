"""Two machines on a cluster of NATS: its servers are killed one by one, and then a worker."""

import asyncio
import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, islice
from typing import Any, Final
from urllib.parse import urlencode

from sanic_nats_bridge.testing import NatsServer

from .client_pool import Crowd, cluster
from .clients import Client, EventClient, WebSocketClient
from .cluster_scenario import Drill
from .machine import Machine, has_ended
from .nats import has_heard, in_touch
from .network import network
from .permission_profiles import VIEWS
from .posts import PostingClient
from .publisher import Publisher
from .results import Run
from .workload import NotDoneError, until

__all__ = ["FLEET"]

_SUBJECTS: Final = ("orders.eu.1", "orders.eu.2", "orders.us.1", "news.sport", "secret.plans")
_SOCKETS: Final = (
    ("open", ("orders.>",)),
    ("eu", ("orders.eu.1",)),
    ("not-us", ("orders.>", "orders.eu.*", "news.sport")),
    ("own", ("mine.>", "mine.2")),
)
_STREAMS: Final = (
    ("open", ("news.sport",), ("orders.*.1",)),
    ("own", ("mine.*",), ("mine.2", "mine.>")),
    ("not-us", ("orders.>",), ("orders.eu.2", "news.*")),
    ("open", ("orders.us.1",), ("news.*", "orders.eu.*")),
)
"""The last are those that come and go by POST."""

_FOLLOWERS: Final = [(view, patterns) for view, patterns, *_ in (*_SOCKETS, *_STREAMS)]
_BASE: Final = sorted({VIEWS[view].view.real(each) for view, patterns in _FOLLOWERS for each in patterns})
"""What NATS is asked for as long as all are there."""

_FOLLOWED: Final = {*_BASE, *(VIEWS[view].view.real(each) for view, _, changing in _STREAMS for each in changing)}
"""The same when all have settled."""

_WORKERS: Final = 2
_SPREADING_SECONDS: Final = 1.0
_JOIN_SECONDS: Final = 30.0
_ASKED: Final = 3


async def _do(result: Run, settings: Mapping[str, Any], *, small: bool) -> None:
    async with contextlib.AsyncExitStack() as stack:
        net = stack.enter_context(network())
        if not net.isolated:
            result.remarks.append("no network namespaces could be made: all was done on loopback")
        servers = await stack.enter_async_context(cluster(3, "", [net.place() for _ in range(3)]))
        machines = [Machine(net.place()) for _ in range(2)]
        for number, machine in enumerate(machines):
            # Each machine prefers another server.
            urls = [server.url for server in islice(cycle(servers), number, number + len(servers))]
            await stack.enter_async_context(machine.running({"servers": urls, **settings}, _WORKERS))
        crowd = Crowd(servers, machines, small=small)
        crowd.spreading = _SPREADING_SECONDS
        await stack.enter_async_context(crowd.gathered())
        await _harm(crowd, result, longest=1.0 if small else 10.0)


async def _harm(crowd: Crowd, result: Run, longest: float) -> None:
    before = await _files(crowd)
    await _gather(crowd, longest)
    for server in crowd.servers:
        await _kill_server(crowd, server)
    await _kill_worker(crowd, result, longest)
    await crowd.hold(_SPREADING_SECONDS)
    await crowd.finish()
    _look_around(crowd, result)
    crowd.judge(result)
    await crowd.leave()
    await crowd.nothing_is_left(before, result)


async def _files(crowd: Crowd) -> dict[int, int]:
    """What the processes have open when each worker has served somebody, and nobody is there."""
    await asyncio.gather(*(machine.ask_each("GET", "/facts") for machine in crowd.machines))
    return await crowd.open_files()


async def _gather(crowd: Crowd, longest: float) -> None:
    """Have everybody come, and messages, when all servers know who follows what."""
    for copy in range(2 if crowd.small else 4):
        for number, (view, patterns) in enumerate(_SOCKETS):
            crowd.come(_socket(f"socket-{number}-{copy}", view, patterns), longest=longest)
        for number, (view, patterns, changing) in enumerate(_STREAMS):
            crowd.come(_stream(f"stream-{number}-{copy}", view, patterns, changing, crowd.addresses), longest=longest)
    await crowd.all_are_present(_JOIN_SECONDS)
    await until(lambda: all(has_heard(server, _BASE) for server in crowd.servers), "the cluster knows what is followed")
    for name, server in zip("ab", crowd.servers[1:], strict=True):
        crowd.publish_by(Publisher(name, server, _SUBJECTS))
    await crowd.all_get_messages(time.monotonic())


def _socket(name: str, view: str, patterns: Sequence[str]) -> Callable[[int], Client]:
    return lambda number: WebSocketClient(f"{name}-{number}", patterns, view)


def _stream(
    name: str, view: str, patterns: Sequence[str], changing: Sequence[str], addresses: Sequence[str]
) -> Callable[[int], Client]:
    return lambda number: PostingClient(f"{name}-{number}", patterns, view, changing=changing, addresses=addresses)


async def _kill_server(crowd: Crowd, victim: NatsServer) -> None:
    """Kill one NATS server, and start it again; nobody publishes to it meanwhile, and no session ends."""
    refuge = next(each for each in crowd.servers if each is not victim)
    for publisher in crowd.publishers:
        if publisher.server is victim:
            await publisher.move(refuge)
    async with crowd.fault():
        victim.kill()
        await crowd.hold(2)
    victim.start()
    # What is published to a server that has just come reaches only who is followed there.
    await until(lambda: in_touch(crowd.servers) and has_heard(victim, _BASE), "the cluster is whole again")


async def _kill_worker(crowd: Crowd, result: Run, longest: float) -> None:
    """Kill the worker that holds most streams, and have Sanic start another; its clients come back to whichever."""
    streams = Counter(client.worker for client in crowd.audience if isinstance(client, EventClient))
    worker = int(streams.most_common(1)[0][0] or 0)
    machine, name = await _found(crowd.machines, worker)
    before = list(crowd.audience)
    struck = time.monotonic()
    os.kill(worker, signal.SIGKILL)
    await until(lambda: has_ended(worker), "the worker dies")
    await machine.restart(name, dead=True)
    await until(lambda: not any(_held(client, worker) and client.connected for client in before), "its streams end")
    await crowd.all_are_present(longest + _JOIN_SECONDS)
    result.returns = [round(each.back - each.left, 3) for each in crowd.returns(struck)]
    crowd.require(len(result.returns) >= streams[str(worker)], "all of the worker's sessions end")
    await _expect_404(crowd, [client for client in before if not client.connected], result)


def _held(client: Client, worker: int) -> bool:
    return isinstance(client, EventClient) and client.worker == str(worker)


async def _found(machines: Sequence[Machine], worker: int) -> tuple[Machine, str]:
    for machine in machines:
        for name, pid in (await machine.workers()).items():
            if pid == worker:
                return machine, name
    raise NotDoneError(f"no machine knows the worker {worker}")


async def _expect_404(crowd: Crowd, ended: Sequence[Client], result: Run) -> None:
    """No process knows any more the id of a session that has ended."""
    for client in ended[:_ASKED]:
        body = {"session": client.session, "subjects": list(client.patterns)}
        for machine in crowd.machines:
            answers = await machine.ask_each("POST", f"/nats/subscribe?{urlencode(client.query)}", body)
            result.failures += (
                f"worker {worker} answers {status} for a session that has ended"
                for worker, (status, _) in answers.items()
                if status != 404
            )


def _look_around(crowd: Crowd, result: Run) -> None:
    """When all is quiet, each worker's connection to NATS has at most what is followed, each pattern once."""
    followed = crowd.followed()
    if {pattern for patterns in followed for pattern in patterns} != _FOLLOWED:
        result.failures.append(f"NATS has the subscriptions {followed}, the audience follows {sorted(_FOLLOWED)}")
    result.failures += (f"one worker has twice in {each}" for each in followed if len(each) > len(set(each)))
    posting = [client for visitor in crowd.visitors for client in visitor.clients if isinstance(client, PostingClient)]
    result.failures += (stuck for client in posting for stuck in client.stuck)
    statuses = sum((client.statuses for client in posting), Counter[int]())
    elsewhere = sum(client.elsewhere for client in posting)
    result.remarks.append(
        f"{statuses.total()} POSTs, {elsewhere} of them to workers that do not hold the session, answered "
        + ", ".join(f"{status or 'not at all'}: {count}" for status, count in sorted(statuses.items()))
    )


FLEET: Final = Drill(
    "fleet",
    "two machines of two workers on a cluster of three: each server killed in turn, then a worker",
    _do,
)
