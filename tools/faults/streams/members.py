"""Clients of streams that reconnect, to any worker."""

import asyncio
import functools
import random
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from typing import Any

from ..patterns import matches
from .clients import EventsClient, SocketClient, StreamClient
from .profiles import PROFILES
from .publisher import SUBJECTS

__all__ = ["Member", "make_members"]

_MIN_DELAY = 0.02


class Member:
    """A client with its reconnects.

    Args:
        client: The client.
        ports: The ports of the workers.
        rng: Decides on worker and delay.
        max_delay: The longest delay before it reconnects, in seconds.

    Attributes:
        present: Cleared while the client must stay away.
        reconnects: The number of its reconnects.
    """

    def __init__(self, client: StreamClient, ports: Sequence[int], rng: random.Random, max_delay: float) -> None:
        self.client = client
        self.present = asyncio.Event()
        self.present.set()
        self.reconnects = 0
        self._ports = ports
        self._rng = rng
        self._max_delay = max_delay
        self._task: asyncio.Task[None] | None = None

    @functools.cached_property
    def subjects(self) -> dict[str, list[str]]:
        """The subjects that each of its patterns shows."""
        profile = self.client.profile
        shown = [each for each in SUBJECTS if not profile.hides(each)]
        return {
            pattern: [each for each in shown if matches(profile.real(pattern)[1], each)]
            for pattern in self.client.followed
        }

    def has_all(self, latest: Mapping[str, int]) -> bool:
        """Return whether it has the newest message of each pattern, given the newest number of each subject."""
        newest = self.client.newest
        return all(
            newest.get(pattern, 0) >= max((latest.get(each, 0) for each in self.subjects.get(pattern, ())), default=0)
            for pattern in self.client.followed
        )

    def has_after(self, number: int) -> bool:
        """Return whether it has a message with a larger number. A client that can't get any has."""
        can = any(self.subjects.get(pattern) for pattern in self.client.followed)
        return not can or max(self.client.newest.values(), default=0) > number

    def start(self) -> None:
        """Connect, and reconnect whenever the connection ends."""
        self._task = asyncio.create_task(self._run())

    async def leave(self) -> None:
        """Stay away until `present` is set again."""
        self.present.clear()
        await self.client.cut()

    async def close(self) -> None:
        """Disconnect, and don't reconnect."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        await self.client.close()

    async def _run(self) -> None:
        await asyncio.sleep(self._rng.uniform(0, self._max_delay))
        while True:
            await self.present.wait()
            if await self.client.connect(self._rng.choice(self._ports)):
                self.reconnects += 1
                await self.client.wait_ended()
            delay = self.client.retry
            await asyncio.sleep(self._rng.uniform(_MIN_DELAY, self._max_delay) if delay is None else delay)


def make_members(
    count: int, ports: Sequence[int], seed: str, *, max_delay: float, new_only: bool = False
) -> list[Member]:
    """Return clients on both transports, with each of the profiles, and with one or several patterns.

    Args:
        count: The number of clients.
        ports: The ports of the workers.
        seed: Decides on the rest.
        max_delay: As for `Member`.
        new_only: None of them asks for anything before its start.
    """
    rng = random.Random(seed)
    profiles = [each for each in PROFILES if not each.toggled]
    members = []
    for number, profile in enumerate(islice(cycle(profiles), count)):
        user = f"{profile.name}-{number}"
        patterns = rng.sample(profile.patterns, 1 + number // len(profiles) % 3)
        past = profile.history and not new_only
        start: Any = rng.choice(("new", "new", "all", {"last": 10}, "last_per_subject")) if past else "new"
        own = random.Random(rng.random())
        client: StreamClient
        if number // len(profiles) % 2:
            client = EventsClient(user, profile, own, patterns, start)
        else:
            client = socket = SocketClient(user, profile, own)
            socket.starts = dict.fromkeys(patterns, start)
        members.append(Member(client, ports, own, max_delay))
    return members
