"""Deploys: an app is replaced by another process, and meanwhile the proxies before it answer in its place."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from ..harness.processes import raise_file_limit
from ..proxies.middlebox import Middlebox
from ..proxies.rules import Answer, Kind, Rule, Rules
from .browser_clients import BrowserClient, NodeProcess
from .checker import check
from .client_pool import ClientPool
from .cluster_scenario import ClusterScenario
from .machine import Machine
from .nats import cluster
from .network import LOOPBACK
from .publisher import Publisher
from .results import Run
from .rolling import check_reconnects
from .workload import until

__all__ = ["DEPLOY", "check_attempts", "fullest_second"]

_SUBJECTS = ("orders.eu.1", "orders.eu.2", "orders.us.1", "news.sport")
_PATTERNS = (("orders.eu.1",), ("orders.us.*", "orders.us.1"), ("news.sport",), ("orders.eu.2", "news.*"))
_TRANSPORTS = (None, ("sse",))
"""Those of every second client: the default, and only event streams."""

_PROXIES = 4
_CLIENTS = 200
_SMALL_CLIENTS = 32
_NEWCOMERS = 8
"""Those of the clients that open during each deploy, one of each kind at each proxy."""

_WORKERS = 2
_INTERVAL_SECONDS = 1.0
_TIMEOUT_SECONDS = 60.0
_LONGEST_BACKOFF_SECONDS = 20.0
_MIN_REFUSED = 0.5
"""The share of the clients that a proxy must have refused in a deploy. The bridge may ask the others to wait longer."""

_MAX_FULLEST_SECOND = 0.25
"""The largest share of the attempts in one of the ten seconds of a deploy."""

_KINDS: tuple[Kind, ...] = ("websocket", "events", "post", "head", "other")
_PAGE = "<!doctype html><title>{}</title>"
_LOGIN = Rule(Answer(200, _PAGE.format("Log in")))
_UNAUTHORIZED = Rule(Answer(401, _PAGE.format("Log in")))
_FORBIDDEN = Rule(Answer(403, _PAGE.format("Blocked")))
_NOT_FOUND = Rule(Answer(404, _PAGE.format("Not found")))
_NOT_ALLOWED = Rule(Answer(405, _PAGE.format("Not allowed")))
_REDIRECT = Rule(Answer(302, location="/login"))


def _every(rule: Rule) -> Rules:
    return dict.fromkeys(_KINDS, rule)


_DEPLOYS: Sequence[Sequence[Rules]] = (
    [_every(_NOT_FOUND)] * _PROXIES,
    [
        _every(_UNAUTHORIZED),
        {**_every(_FORBIDDEN), "head": _NOT_ALLOWED},
        _every(_LOGIN),
        {**_every(_REDIRECT), "other": _LOGIN},
    ],
)
"""The answers of each proxy in each deploy. Each has a quarter of the clients."""


@dataclass(frozen=True)
class _Durations:
    """Seconds over which clients reconnect, seconds that a worker has to end, and seconds of a deploy."""

    reconnect_spread: float
    graceful_shutdown: float
    deploy: float


_FULL_DURATIONS = _Durations(reconnect_spread=10.0, graceful_shutdown=15.0, deploy=10.0)
"""The first two are the defaults of the bridge and of Sanic (GRACEFUL_SHUTDOWN_TIMEOUT)."""

_SMALL_DURATIONS = _Durations(reconnect_spread=1.0, graceful_shutdown=3.0, deploy=0.0)


class _Site:
    """An app and the proxies before it.

    Args:
        machine: The machine of the app.
        options: The settings of the app.

    Attributes:
        urls: The address of the bridge behind each proxy.
        shutdown_times: The seconds that the app took to end, for each deploy.
    """

    def __init__(self, machine: Machine, options: Mapping[str, Any]) -> None:
        self.urls: list[str] = []
        self.shutdown_times: list[float] = []
        self._machine = machine
        self._options = options
        self._app = contextlib.AsyncExitStack()
        self._rules: list[dict[Kind, Rule]] = []

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Run the app and the proxies until the end of the context."""
        async with self._app, contextlib.AsyncExitStack() as stack:
            await self._start_app()
            _, _, port = self._machine.address.rpartition(":")
            for _ in range(_PROXIES):
                self._rules.append({})
                proxy = await stack.enter_async_context(Middlebox(int(port), self._rules[-1]).running())
                self.urls.append(f"http://127.0.0.1:{proxy.port}/nats")
            yield self

    @contextlib.asynccontextmanager
    async def deploying(self, answers: Sequence[Rules]) -> AsyncIterator[None]:
        """Replace the app by a new process. Until the end of the context the proxies answer new requests themselves."""
        # A proxy looks for the rule of each request.
        for rules, answer in zip(self._rules, answers, strict=True):
            rules.update(answer)
        began = time.monotonic()
        await self._app.aclose()
        self.shutdown_times.append(time.monotonic() - began)
        await self._start_app()
        yield
        for rules in self._rules:
            rules.clear()

    async def _start_app(self) -> None:
        await self._app.enter_async_context(self._machine.running(self._options, _WORKERS))


async def _run(result: Run, settings: Mapping[str, Any], *, small: bool) -> None:
    raise_file_limit()
    durations = _SMALL_DURATIONS if small else _FULL_DURATIONS
    async with contextlib.AsyncExitStack() as stack:
        servers = await stack.enter_async_context(cluster(1, ""))
        machine = Machine(LOOPBACK)
        options = {
            "servers": servers[0].url,
            "reconnect_spread": durations.reconnect_spread,
            "config": {"GRACEFUL_SHUTDOWN_TIMEOUT": durations.graceful_shutdown},
            **settings,
        }
        node = await stack.enter_async_context(NodeProcess.running())
        site = await stack.enter_async_context(_Site(machine, options).running())
        pool = ClientPool(servers, [machine], small=small)
        await stack.enter_async_context(pool.running())
        await machine.request_each("GET", "/facts")
        before = await pool.open_files()
        clients = await _start(pool, node, site)
        for answers in _DEPLOYS:
            began = time.monotonic()
            async with site.deploying(answers):
                clients += _open(pool, node, site, _NEWCOMERS)
                await _check_control(node, site)
                await _let_try(clients, began + durations.deploy, small=small)
                _check_none_ended(clients)
                refusals = _check_refusals(pool, clients, began, result)
            reconnects = await _reconnects(pool, clients, began)
            share = f"{100 * fullest_second(reconnects):.0f} % of {len(reconnects)} reconnects"
            result.remarks.append(f"{refusals}, and then {share}")
            # The bridge spreads the first attempts, which a proxy refuses, and the backoff spreads the others.
            check_reconnects(pool.reconnects(began), began, durations.reconnect_spread, result, by_retry=True)
        result.shutdown_times = site.shutdown_times
        await pool.finish(pool.propagated)
        pool.check(result)
        _check_gaps(pool, clients, result)
        await pool.close()
        await pool.check_cleanup(before, result)


def _open(pool: ClientPool, node: NodeProcess, site: _Site, count: int) -> list[BrowserClient]:
    """Open more clients."""
    opened = []
    for number in range(len(pool.members), len(pool.members) + count):
        # Each proxy has clients of all transports and patterns.
        kind, proxy = divmod(number, _PROXIES)
        transports = _TRANSPORTS[kind % len(_TRANSPORTS)]
        patterns = _PATTERNS[kind // len(_TRANSPORTS) % len(_PATTERNS)]
        opened.append(BrowserClient(f"browser-{number}", patterns, node, site.urls[proxy], transports))
    pool.members += opened
    return opened


async def _start(pool: ClientPool, node: NodeProcess, site: _Site) -> list[BrowserClient]:
    """Open the clients that are there from the start, begin to publish, and wait until all receive messages."""
    clients = _open(pool, node, site, (_SMALL_CLIENTS if pool.small else _CLIENTS) - len(_DEPLOYS) * _NEWCOMERS)
    for name in "ab":
        pool.add_publisher(Publisher(name, pool.servers[0], _SUBJECTS, _INTERVAL_SECONDS))
    await pool.wait_connected(_TIMEOUT_SECONDS)
    await pool.wait_for_messages(time.monotonic())
    return clients


async def _check_control(node: NodeProcess, site: _Site) -> None:
    """Check that clients end if they take the answer of the first proxy for one of the bridge."""
    control = [
        BrowserClient(f"control-{number}", _PATTERNS[0], node, site.urls[0], transports, trusting=True)
        for number, transports in enumerate(_TRANSPORTS)
    ]
    await until(lambda: all(client.has_ended for client in control), "the clients of the control have ended")


async def _let_try(clients: Sequence[BrowserClient], end: float, *, small: bool) -> None:
    """Wait until the end of a deploy, or in a small run until each client was refused."""
    if small:
        await until(lambda: all(client.failures or client.has_ended for client in clients), "each client was refused")
    else:
        await asyncio.sleep(end - time.monotonic())


def _check_none_ended(clients: Sequence[BrowserClient]) -> None:
    """Check that each client goes on trying.

    Raises:
        ConnectionError: Some clients don't.
    """
    ended = [client for client in clients if client.has_ended]
    if ended:
        raise ConnectionError(f"{len(ended)} of {len(clients)} clients have ended: {ended[0].status.get('reason')}")


def _check_refusals(pool: ClientPool, clients: Sequence[BrowserClient], began: float, result: Run) -> str:
    """Check that most clients were refused in a deploy, and that their attempts were spread. Returns a description."""
    failures = [client.failures for client in clients]
    refused = sum(map(bool, failures))
    pool.require(refused >= _MIN_REFUSED * len(clients), f"only {refused} of {len(clients)} clients were refused")
    attempts = [at - began for client in clients for at in client.attempts if at >= began]
    if not pool.small:
        check_attempts(attempts, result)
    share = f"{100 * fullest_second(attempts):.0f} % of {len(attempts)} attempts"
    seconds = time.monotonic() - began
    return f"{refused} of {len(clients)} clients refused in {seconds:.1f} s, at most {share} in one second"


def check_attempts(times: Sequence[float], result: Run) -> None:
    """Check that the clients don't all try to connect in the same seconds of a deploy."""
    share = fullest_second(times)
    if share > _MAX_FULLEST_SECOND:
        result.failures.append(f"{share:.0%} of {len(times)} attempts to connect were in one second")


def fullest_second(times: Sequence[float]) -> float:
    """Return the share of the times that are in the fullest second."""
    return max(Counter(map(int, times)).values()) / len(times)


async def _reconnects(pool: ClientPool, clients: Sequence[BrowserClient], began: float) -> list[float]:
    """Wait until all clients are connected, now that the proxies pass their requests, and receive messages.

    Returns:
        The seconds from now until each client that had a session before had another.
    """
    passed = time.monotonic()
    await until(
        lambda: all(client.connected or client.has_ended for client in clients),
        "all clients are connected",
        _LONGEST_BACKOFF_SECONDS + _TIMEOUT_SECONDS,
    )
    _check_none_ended(clients)
    pool.bystanders = list(clients)
    pool.first_message_after.append(await pool.wait_for_messages(passed) - passed)
    reconnects = pool.reconnects(began)
    pool.noticed.append(min(each.ended for each in reconnects) - began)
    return [each.reconnected - passed for each in reconnects]


def _check_gaps(pool: ClientPool, clients: Sequence[BrowserClient], result: Run) -> None:
    """Check that messages were missed, and that the checker finds them in the log of a client without gaps."""
    log = clients[0].log
    unannounced = replace(log, entries=[(at, frame) for at, frame in log.entries if frame["type"] != "gap"])
    if not check(pool.publications, [unannounced]).lost:
        result.failures.append("the checker found no loss in a log without gaps")


DEPLOY = ClusterScenario(
    "deploy",
    f"an app replaced under {_CLIENTS} browser clients, while proxies answer by 404 for 10 s, then by login pages",
    _run,
)
