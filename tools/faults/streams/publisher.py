"""A publisher of numbered messages, and the record of what the streams have held."""

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Iterable, Mapping, Sequence

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from ..workload import until
from .logs import Stored, Truth
from .profiles import STREAMS

__all__ = ["SUBJECTS", "Publisher", "Record"]

SUBJECTS = (
    *(f"orders.{first}.{second}" for first in range(5) for second in range(8)),
    *(f"trades.{first}.{second}" for first in range(3) for second in range(4)),
)
_PADS = (0, 0, 10, 600)
_LIFE = 10**9
"""The distance between the sequences of two lives of a stream. No stream has so many messages."""


def stream_of(subject: str) -> str:
    """Return the name of the stream of a subject."""
    return "TRADES" if subject.startswith("trades.") else "ORDERS"


class Record:
    """The acknowledgements of NATS, life by life of each stream."""

    def __init__(self) -> None:
        self._lives: dict[str, list[tuple[int, int]]] = {name: [(0, 0)] for name in STREAMS}
        self._acknowledged: dict[str, dict[int, Stored]] = {name: {} for name in STREAMS}
        self._removed: dict[str, dict[int, Stored]] = {name: {} for name in STREAMS}
        self._guessed: dict[int, tuple[str, Stored]] = {}
        """Messages that were perhaps stored at the end of a life."""
        self.latest: dict[str, int] = {}
        """The number of the newest message of each subject that is acknowledged."""
        self.pending: dict[int, str] = {}
        """The subjects of messages that aren't acknowledged, by number, in order."""

    def published(self, number: int, subject: str) -> None:
        """Note that a message is about to be published."""
        self.pending[number] = subject

    def acknowledged(self, number: int, seq: int) -> None:
        """Note an acknowledgement."""
        subject = self.pending.pop(number, None)
        if subject is not None:
            self._guessed.pop(number, None)
            self.latest[subject] = max(number, self.latest.get(subject, 0))
            name = stream_of(subject)
            self._acknowledged[name][number] = Stored(self._base(name) + seq, subject, number)

    def refused(self, number: int) -> None:
        """Note that no stream has stored a message."""
        self.pending.pop(number, None)
        self._guessed.pop(number, None)

    def _base(self, name: str) -> int:
        return self._lives[name][-1][1]

    def remove(self, name: str) -> None:
        """Note that the stream no longer has what it has acknowledged."""
        self._removed[name] |= self._acknowledged[name]
        self._acknowledged[name].clear()

    def begin_life(self, name: str) -> None:
        """Note that a stream begins again. What is acknowledged from now on is of its new life."""
        last = max((each.seq for each in self._acknowledged[name].values()), default=self._base(name))
        self.remove(name)
        for number, subject in self.pending.items():
            if stream_of(subject) == name:
                # NATS stores the messages of one connection in order.
                last += 1
                self._guessed[number] = name, Stored(last, subject, number)
        self._lives[name].append((int(time.time() * 1000), self._base(name) + _LIFE))

    def truth(self, content: Mapping[str, Sequence[Stored]]) -> Truth:
        """Return what the streams have held, given what they hold at the end."""
        stored = {}
        unsure = set[int]()
        for name, held in content.items():
            base = self._base(name)
            messages = {each.number: each._replace(seq=base + each.seq) for each in held}
            guessed = {
                number: each for number, (stream, each) in self._guessed.items()
                if stream == name and number not in messages
            }  # fmt: skip
            unsure |= guessed.keys()
            everything = {**self._removed[name], **guessed, **messages}
            stored[name] = sorted(everything.values())
        return Truth(stored, self._lives, frozenset(unsure))


class Publisher:
    """A publisher on any of the subjects.

    Args:
        client: The connection to NATS.
        record: What it notes everything in.
        rng: Decides on subjects and sizes.
        batch: The number of messages at once.
        interval: Seconds between two batches.
    """

    def __init__(self, client: Client, record: Record, rng: random.Random, *, batch: int, interval: float) -> None:
        self.number = 0
        """The number of the last message."""
        self.subjects: Sequence[str] = SUBJECTS
        self._client = client
        self._record = record
        self._rng = rng
        self._batch = batch
        self._interval = interval
        self._inbox = client.new_inbox()
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Subscribe to the acknowledgements."""
        await self._client.subscribe(f"{self._inbox}.*", cb=self._on_answer)
        await self._client.flush()

    async def start(self) -> None:
        """Begin to publish, or go on."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Publish no more for now."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            self._task = None

    async def publish(self, subjects: Iterable[str], size: int | None = None) -> None:
        """Publish a message on each subject, of a random size or of this one."""
        for subject in subjects:
            self.number += 1
            pad = "x" * (self._rng.choice(_PADS) if size is None else size)
            self._record.published(self.number, subject)
            with contextlib.suppress(nats.errors.Error):
                data = json.dumps({"n": self.number, "pad": pad}).encode()
                await self._client.publish(subject, data, reply=f"{self._inbox}.{self.number}")

    async def publish_last(self) -> None:
        """Publish one more message on each subject, until the stream has acknowledged it."""
        missing = list(self.subjects)
        while missing:
            before = self.number
            await self.publish(missing)
            with contextlib.suppress(TimeoutError):
                await until(lambda before=before: not self._pending(before), "the last messages are stored", 5)  # type: ignore[misc]
            missing = self._pending(before)

    def _pending(self, before: int) -> list[str]:
        return [subject for number, subject in self._record.pending.items() if number > before]

    async def flush(self) -> None:
        """Wait until everything that was published is acknowledged."""
        await until(lambda: not self._record.pending, "everything that was published is stored")

    async def _run(self) -> None:
        while True:
            await self.publish(self._rng.choices(self.subjects, k=self._batch))
            await asyncio.sleep(self._interval)

    async def _on_answer(self, message: Msg) -> None:
        number = int(message.subject.rpartition(".")[2])
        answer = json.loads(message.data or "{}")
        if "seq" in answer:
            self._record.acknowledged(number, answer["seq"])
        else:
            self._record.refused(number)
