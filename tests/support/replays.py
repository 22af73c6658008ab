"""A client that replays messages of streams in memory."""

import asyncio
from collections.abc import Callable, Sequence

from sanic_nats_bridge.protocol.start import Start
from sanic_nats_bridge.streams.jetstream import JetStreamUnavailable
from sanic_nats_bridge.streams.positions import Point
from sanic_nats_bridge.streams.reader import StreamReader
from sanic_nats_bridge.streams.replay import Missed, Replay, Step
from sanic_nats_bridge.streams.replay_limits import ReplayLimits
from tests.support.fake_stream import FakeStream, FakeWorker, matches

ALL, NEW, STATE = Start("all"), Start("new"), Start("last_per_subject")
PATTERNS = ("a.*", "a.1", "b.>")


def last(count: int) -> Start:
    return Start("last", count)


class Client:
    """A client that follows patterns of some streams, and what it gets in a replay."""

    def __init__(
        self, *workers: FakeWorker, patterns: Sequence[str] = PATTERNS, cutoff: int | None = None, **limits: int
    ) -> None:
        self.workers = workers
        self.patterns = patterns
        turns = asyncio.Semaphore(1)
        known = [(each, [each.feed.get(name) or each.follow(name)[0] for name in patterns]) for each in workers]
        readers = [StreamReader(each.feed, followed, each.feed.point, turns) for each, followed in known]
        bounds = {"messages": 10_000, "size": 10**7, "subjects": 10_000} | limits
        self.replay = Replay(readers, ReplayLimits(**bounds), cutoff)
        self.steps: list[Step] = []
        self.missed: list[Missed] = []

    async def prepare(self, start: Start, points: dict[str, Point] | None = None) -> None:
        for _ in range(200):
            try:
                await self.replay.prepare(points, start)
            except JetStreamUnavailable:
                continue
            if points is None:
                self.check_times()
            return
        raise AssertionError("preparing has no end")

    async def run(self, most: int = 7, then: Callable[[], object] = lambda: None) -> None:
        """Read to the present, as a session does."""
        for _ in range(3_000):
            steps = self.take_window(most) or self.replay.take_present(most)
            self.missed += self.replay.take_missed()
            if steps is None:
                try:
                    await self.replay.read()
                except JetStreamUnavailable:
                    continue
            elif steps:
                self.steps += steps
                self.check_positions(steps)
            else:
                return
            then()
        raise AssertionError("the replay has no end")

    def check_times(self) -> None:
        """Check that no position is older than its message, so that it would seem to be of an earlier stream."""
        for worker in self.workers:
            point = self.replay.positions[worker.feed]
            older = [each.time for seq, each in worker.stream.messages.items() if seq <= point.seq]
            assert max(older, default=0) <= point.time

    def take_window(self, most: int) -> list[Step]:
        (reader, *_) = self.replay.readers
        records = self.replay.take_window(most)
        return [Step(each, reader.followed, reader.feed, Point(each.seq, each.time)) for each in records]

    def check_positions(self, steps: Sequence[Step]) -> None:
        assert len({each.feed for each in steps}) == 1
        assert self.replay.positions[steps[-1].feed] == steps[-1].point

    def got(self, worker: FakeWorker) -> list[tuple[int, str]]:
        """Return the sequences of the messages, with their patterns."""
        steps = [step for step in self.steps if step.feed is worker.feed]
        return [(step.record.seq, followed.pattern) for step in steps for followed in step.followed]

    def seqs(self) -> list[int]:
        return [step.record.seq for step in self.steps]

    def expected(self, worker: FakeWorker, after: int) -> list[tuple[int, str]]:
        found = worker.stream.matching(">", after + 1, worker.feed.seq)
        return [(each.seq, name) for each in found for name in self.patterns if matches(name, each.subject)]

    @property
    def reasons(self) -> list[str]:
        return [each.reason for each in self.missed]


def worker_of(*subjects: str, name: str = "S", later: Sequence[str] = ()) -> FakeWorker:
    stream = FakeStream(name)
    stream.publish(*subjects)
    worker = FakeWorker(stream)
    worker.follow(*PATTERNS)
    stream.publish(*later)
    worker.receive()
    return worker
