"""Clients that publish numbered messages at a steady rate: pages with client.js, and programs that POST."""

import asyncio
import contextlib
import json
import random
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import aiohttp

from ..browser_clients import NodeProcess
from .authors import SUBJECTS, is_forbidden, real_subject
from .records import ACKNOWLEDGED, PENDING, UNKNOWN, Publish

__all__ = ["BlindSender", "Page", "PostSender", "Sender"]

_PADS = (0, 10, 600, 5000)
_GIVE_UP_SECONDS = 100.0
"""A stream knows a message for two minutes."""
_ANSWER_SECONDS = 10.0
_FIRST_RETRY_SECONDS = 0.1
_MAX_RETRY_SECONDS = 3.0
_REPEATED = frozenset(
    {"disconnected", "internal", "limit.publish", "limit.rate", "nats.unavailable", "session.unreachable", UNKNOWN}
)
"""Codes after which a program repeats."""
_UNCERTAIN = frozenset({"disconnected", "internal", "session.unreachable", UNKNOWN})
"""Those after which the message may be stored."""


class Sender(ABC):
    """A client that publishes from `start` to `stop`.

    Args:
        name: A name that no other client has.
        identity: The identity, which other clients may have too.
        address: The address of the bridge.
        waits: It waits for each answer before the next publish. Otherwise it publishes several messages at once.
        interval: Seconds between two publishes, or two times several.

    Attributes:
        publishes: All its publishes, by number.
    """

    def __init__(self, name: str, identity: str, address: str, *, waits: bool, interval: float) -> None:
        self.name = name
        self.identity = identity
        self.url = f"{address}/nats"
        self.query = urlencode({"author": identity})
        self.waits = waits
        self.interval = interval
        self.burst = 1 if waits else 3
        self.publishes: dict[int, Publish] = {}

    @abstractmethod
    def start(self) -> None:
        """Begin to publish."""

    @abstractmethod
    def stop(self) -> None:
        """Publish nothing more. What is in progress goes on."""

    @abstractmethod
    async def close(self) -> None:
        """End everything."""

    @property
    def settled(self) -> bool:
        """True if every publish has an answer."""
        return all(each.outcome != PENDING for each in self.publishes.values())

    def acknowledged_since(self, at: float) -> bool:
        """Return whether a publish that began after this time is acknowledged."""
        return any(each.started > at and each.outcome == ACKNOWLEDGED for each in reversed(self.publishes.values()))

    def _note(self, number: int, subject: str, data: Any, started: float) -> Publish:
        real = real_subject(self.identity, subject)
        publish = self.publishes[number] = Publish(
            self.name,
            number,
            self.identity,
            real,
            data,
            waited=self.waits,
            forbidden=is_forbidden(real),
            started=started,
        )
        return publish


class Page(Sender):
    """A page with client.js, in a process of Node.

    Args:
        node: The process.
        transport: The transport of the page.
        sender: As for `Sender`.

    Attributes:
        number: Its number in its process.
    """

    def __init__(self, node: NodeProcess, transport: str, *sender: str, waits: bool, interval: float) -> None:
        super().__init__(*sender, waits=waits, interval=interval)
        self.number = -1
        self._node = node
        self._transport = transport
        self._ended = asyncio.Event()

    def start(self) -> None:
        """Open the page."""
        options = {
            "name": self.name,
            "url": f"{self.url}?{self.query}",
            "transports": [self._transport],
            "waits": self.waits,
            "burst": self.burst,
            "interval": self.interval * 1000,
            "subjects": SUBJECTS,
            "pads": _PADS,
        }
        self._node.open(self, options)

    def stop(self) -> None:
        """Let the page publish nothing more."""
        self._node.act("stop", self)

    async def close(self) -> None:
        """Close the page. Its process ends with its own context."""
        self._node.close(self)

    def note(self, at: float, event: Mapping[str, Any]) -> None:
        """Note a publish, or what became of it."""
        number = event["number"]
        if event["type"] == "sent":
            self._note(number, event["subject"], event["data"], at)
            return
        publish = self.publishes[number]
        publish.attempts = event["attempts"]
        if "reply" in event:
            publish.acknowledge(event["reply"])
        else:
            publish.outcome = event["code"]

    def note_end(self) -> None:
        """Note that the process has ended."""
        self._ended.set()


class PostSender(Sender):
    """A program that sends POSTs, each over a connection of its own, and repeats until it has an answer."""

    repeats_id = True
    """True if a repetition has the ``msg_id`` of the first attempt."""

    def __init__(self, name: str, identity: str, address: str, *, waits: bool, interval: float) -> None:
        super().__init__(name, identity, address, waits=waits, interval=interval)
        self._rng = random.Random(name)
        self._running: asyncio.Task[None] | None = None
        self._tasks = set[asyncio.Task[None]]()
        self._stopped = False

    def start(self) -> None:
        """Begin to publish."""
        self._running = asyncio.create_task(self._run())

    def stop(self) -> None:
        """Publish nothing more."""
        self._stopped = True

    async def close(self) -> None:
        """End everything."""
        tasks = [each for each in (self._running, *self._tasks) if each is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _run(self) -> None:
        number = 0
        while not self._stopped:
            for _ in range(self.burst):
                number += 1
                task = asyncio.create_task(self._publish(number))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            if self.waits:
                await asyncio.wait({task})
            await asyncio.sleep(self.interval)

    async def _publish(self, number: int) -> None:
        subject = SUBJECTS[number % len(SUBJECTS)]
        data = {"sender": self.name, "number": number, "pad": "x" * _PADS[number % len(_PADS)]}
        publish = self._note(number, subject, data, time.monotonic())
        command: dict[str, Any] = {"subject": subject, "data": data, "ack": True}
        if self.repeats_id:
            command["msg_id"] = uuid.uuid4().hex
        uncertain = False
        while True:
            publish.attempts += 1
            reply = await self._post(command)
            if reply["success"]:
                return publish.acknowledge(reply)
            code = reply["code"]
            uncertain = uncertain or code in _UNCERTAIN
            again = code in _REPEATED or (uncertain and code == "publish.unstored")
            if not again or time.monotonic() > publish.started + _GIVE_UP_SECONDS:
                publish.outcome = UNKNOWN if uncertain else code
                return None
            # All of them together must not keep the workers from what they need to recover.
            longest = min(_MAX_RETRY_SECONDS, _FIRST_RETRY_SECONDS * 2.0**publish.attempts)
            await asyncio.sleep(reply.get("retry", 0) / 1000 or self._rng.uniform(longest / 2, longest))

    async def _post(self, command: Mapping[str, Any]) -> Mapping[str, Any]:
        timeout = aiohttp.ClientTimeout(total=_ANSWER_SECONDS)
        connector = aiohttp.TCPConnector(force_close=True)
        with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError, json.JSONDecodeError):
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout) as http,
                http.post(f"{self.url}/publish?{self.query}", json=command) as response,
            ):
                reply: Mapping[str, Any] = await response.json()
                return reply
        return {"success": False, "code": "disconnected"}


class BlindSender(PostSender):
    """A program that repeats without an id, so that the stream can't know a repetition."""

    repeats_id = False
