"""The attacking clients, in a process of their own."""

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, NamedTuple

from ..harness.processes import raise_file_limit
from .connections import Http, WebSocket

__all__ = ["Attacker", "Target", "pace", "repeat", "together"]

_NICENESS = 10
_AT_ONCE = 50
_FAILED_SECONDS = 0.01


class Target(NamedTuple):
    """The ports of the app and of NATS, and the size of the attack.

    Attributes:
        prefix: The first tokens of the control subjects.
        preferred: Whether the processes that are measured have a higher priority than others.
        small: Whether the attack is to be a tiny one, for a test of this tool itself.
    """

    port: int
    nats_port: int
    prefix: str
    preferred: bool
    small: bool = False

    def address(self, number: int = 0) -> str:
        """Return an address of the attacker. The honest clients have another one."""
        return f"127.0.1.{1 + number}"

    def sized(self, count: int, small: int) -> int:
        """Return a number of clients or patterns, or a smaller one for a tiny attack."""
        return small if self.small else count


class Attacker:
    """The attacking clients. Their process has a lower priority than the worker, as if they were on other machines.

    Subclasses implement `_prepare` and `_attack`.

    Attributes:
        counts: The numbers that the attackers report.
    """

    def __init__(self, target: Target) -> None:
        os.setsid()
        if not target.preferred:
            os.nice(_NICENESS)
        raise_file_limit()
        self.target = target
        self.counts: Counter[str] = Counter()
        self._loop = asyncio.new_event_loop()
        self._kept: list[WebSocket] = []

    def prepare(self) -> None:
        """Do what precedes the attack and isn't measured, such as connecting."""
        self._loop.run_until_complete(self._prepare())

    def attack(self, onset: float, seconds: float) -> dict[str, float]:
        """Attack for these times, and return what was counted in the second one. Connections stay open."""
        self._loop.run_until_complete(self._limited(onset, seconds))
        return dict(self.counts)

    async def _limited(self, onset: float, seconds: float) -> None:
        if onset:
            self._loop.call_later(onset, self.counts.clear)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(onset + seconds):
                await self._attack()
                await asyncio.Event().wait()  # tasks that read run on

    def keep(self, socket: WebSocket) -> None:
        """Keep a WebSocket open, and discard what it receives."""
        socket.drain()
        self._kept.append(socket)

    async def repeat_request(self, request: bytes, at_once: int) -> None:
        """Send a request on several connections, again after each response, until cancelled."""

        async def run() -> None:
            connection = Http(self.target.port, self.target.address())
            while True:
                try:
                    self.counts[f"status {await connection.request(request)}"] += 1
                except OSError:
                    self.counts["failed"] += 1
                    await asyncio.sleep(_FAILED_SECONDS)

        await asyncio.gather(*(run() for _ in range(at_once)))

    async def _prepare(self) -> None:
        """Do what precedes the attack."""

    async def _attack(self) -> None:
        """Attack until the end, or until cancelled."""


async def together(
    work: Callable[[int], Awaitable[Any]], count: int, at_once: int = _AT_ONCE, *, failures: Counter[str] | None = None
) -> list[Any]:
    """Call a function with each number below ``count``, some at the same time; return the results.

    Args:
        work: The function.
        count: The number of calls.
        at_once: The number of calls in progress.
        failures: Counts the calls that fail with an OSError, which have no result. Otherwise such an error is raised.
    """
    numbers = iter(range(count))
    results = []

    async def run() -> None:
        for number in numbers:
            try:
                results.append(await work(number))
            except OSError:
                if failures is None:
                    raise
                failures["refused"] += 1

    await asyncio.gather(*(run() for _ in range(min(at_once, count))))
    return results


async def repeat(work: Callable[[], Coroutine[Any, Any, Any]], at_once: int, counts: Counter[str]) -> None:
    """Repeat some work on several connections until cancelled. Failed attempts are counted, and followed by a pause."""

    async def run() -> None:
        while True:
            try:
                await work()
            except (OSError, asyncio.IncompleteReadError):
                counts["failed"] += 1
                await asyncio.sleep(_FAILED_SECONDS)

    await asyncio.gather(*(run() for _ in range(at_once)))


@contextlib.asynccontextmanager
async def pace(rate: float) -> AsyncIterator[None]:
    """Let the block and a pause after it take the time of one in so many per second."""
    loop = asyncio.get_running_loop()
    due = loop.time() + 1 / rate
    yield
    await asyncio.sleep(max(0.0, due - loop.time()))
