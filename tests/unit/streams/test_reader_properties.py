import asyncio
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanic_nats_bridge.streams.followed import Followed
from sanic_nats_bridge.streams.jetstream import JetStreamUnavailable, StoredMessage
from sanic_nats_bridge.streams.positions import Point
from sanic_nats_bridge.streams.reader import Hit, StreamReader, record_of
from sanic_nats_bridge.streams.window import Record
from tests.support.fake_stream import FakeStream, FakeWorker, failing, matches

Seen = list[tuple[int, tuple[str, ...]]]


def reader_of(worker: FakeWorker, followed: Sequence[Followed], seq: int = 0) -> StreamReader:
    return StreamReader(worker.feed, followed, Point(seq, 0), asyncio.Semaphore(2))


def shown(hits: Sequence[Hit]) -> Seen:
    return [(record.seq, tuple(each.pattern for each in followed)) for record, followed in hits]


async def read(reader: StreamReader, most: int = 100) -> Seen:
    """Read everything, as a replay does."""
    found: Seen = []
    for _ in range(3_000):
        before = reader.seq
        if not reader.is_in_windows:
            try:
                hits = await reader.fetch()
            except JetStreamUnavailable:
                continue
        else:
            hits = reader.take_from_windows(most)
            if not hits and reader.seq == before:
                return found
        found += shown(hits)
        assert all(before < seq <= reader.seq for seq, _ in shown(hits))
    raise AssertionError("reading has no end")


def expected(stream: FakeStream, patterns: Sequence[str], after: int, end: int) -> Seen:
    found = [(each.seq, each.subject) for each in stream.matching(">", after + 1, end)]
    by_seq = [(seq, tuple(each for each in patterns if matches(each, subject))) for seq, subject in found]
    return [each for each in by_seq if each[1]]


PATTERNS = st.lists(
    st.sampled_from([">", "a.*", "a.1", "a.2", "b.>", "*.1", "c", "none"]), min_size=1, max_size=4, unique=True
)
SUBJECTS = st.lists(st.sampled_from(["a.1", "a.2", "b.1", "b.2.x", "c"]), max_size=40)
ACTIONS = st.lists(
    st.sampled_from(["publish", "receive", "receive all", "evict", "evict all", "fail", "lag", "sync", "nothing"]),
    max_size=60,
)


class Interference:
    """Changes while a reader waits for NATS: one before, and one after, each request."""

    def __init__(self, worker: FakeWorker, actions: Sequence[str]) -> None:
        self.worker = worker
        self.left = list(actions)
        worker.stream.interrupt = self

    def __call__(self, request: str) -> None:
        action = self.left.pop(0) if self.left else "sync"
        stream, worker = self.worker.stream, self.worker
        if action == "publish":
            stream.publish("a.1", "b.1", "c")
        elif action == "receive":
            worker.receive(1)
        elif action == "receive all":
            worker.receive()
        elif action == "evict":
            worker.evict(2)
        elif action == "evict all":
            worker.evict(1_000)
        elif action == "fail":
            raise JetStreamUnavailable("interrupted")
        elif action == "lag":
            stream.lag = 3
        elif action == "sync":
            stream.lag = 0


@given(
    SUBJECTS, SUBJECTS, SUBJECTS, st.sets(st.integers(1, 80)), PATTERNS, PATTERNS, st.integers(0, 50),
    st.integers(1, 20), st.integers(1, 6), st.booleans(), ACTIONS,
)  # fmt: skip
async def test_every_message_is_read_once_and_in_order(
    older: list[str],
    middle: list[str],
    newest: list[str],
    deleted: set[int],
    early: list[str],
    late: list[str],
    after: int,
    most: int,
    batch: int,
    direct: bool,
    actions: list[str],
) -> None:
    stream = FakeStream()
    if not direct:
        stream.configure(allow_direct=False)
    stream.publish(*older)
    worker = FakeWorker(stream)
    followed = worker.follow(*early)
    stream.publish(*middle)
    worker.receive()
    followed += worker.follow(*[pattern for pattern in late if pattern not in early])
    stream.publish(*newest)
    stream.delete(*[seq for seq in deleted if seq <= worker.feed.seq and seq <= len(older)])
    after = min(after, worker.feed.seq)
    Interference(worker, actions)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sanic_nats_bridge.streams.reader._BATCH", batch)
        patch.setattr("sanic_nats_bridge.streams.reader._LEAST_BATCH", 1)
        reader = reader_of(worker, followed, after)
        found = await read(reader, most)
    assert found == expected(stream, [each.pattern for each in followed], after, worker.feed.seq)
    assert reader.seq == worker.feed.seq


async def test_windows_that_begin_at_different_sequences() -> None:
    stream = FakeStream()
    stream.publish(*["a", "b"] * 5)
    worker = FakeWorker(stream)
    first = worker.follow("a")
    stream.publish(*["a", "b"] * 5)
    worker.receive()
    second = worker.follow("b")
    # Both begin before the window of the second pattern, and the first is in its own.
    reader = reader_of(worker, [*first, *second], 12)
    assert await read(reader) == expected(stream, ["a", "b"], 12, 20)
    assert len([each for each in stream.requests if each == "fetch"]) == 2


async def test_messages_of_windows_are_counted_with_those_of_nats() -> None:
    stream = FakeStream()
    stream.publish(*["a"] * 10)
    worker = FakeWorker(stream)
    followed = worker.follow("a")
    stream.publish(*["a"] * 500)
    worker.receive()
    reader = reader_of(worker, followed, 5)
    hits = await reader.fetch()
    assert len(hits) + sum(await reader.count_pending()) == 505


@pytest.mark.parametrize("direct", [True, False])
async def test_pending_messages_are_counted_for_each_pattern(direct: bool) -> None:
    stream = FakeStream()
    stream.configure(allow_direct=direct)
    stream.publish(*["a", "a", "b"] * 400)
    worker = FakeWorker(stream)
    reader = reader_of(worker, worker.follow("a", "b", ">", "c"))
    hits = await reader.fetch()
    counts = await reader.count_pending()
    read_of = [sum(pattern in followed for _, followed in shown(hits)) for pattern in ("a", "b", ">", "c")]
    assert [sum(pair) for pair in zip(counts, read_of, strict=True)] == [800, 400, 1_200, 0]


async def test_replica_that_lags_does_not_end_reading() -> None:
    stream = FakeStream()
    stream.publish(*["a"] * 20)
    worker = FakeWorker(stream)
    followed = worker.follow("a")
    stream.lag = 5
    reader = reader_of(worker, followed)
    assert len(await reader.fetch()) == 16
    assert sum(await reader.count_pending()) == 4
    assert [seq for seq, _ in await read(reader)] == list(range(17, 21))


async def test_failed_request_loses_nothing() -> None:
    stream = FakeStream()
    stream.publish(*["a", "b"] * 10)
    worker = FakeWorker(stream)
    reader = reader_of(worker, worker.follow("a", "b"))
    stream.interrupt = failing("next", "fetch", error=JetStreamUnavailable("x"))
    for _ in range(2):
        with pytest.raises(JetStreamUnavailable):
            await reader.fetch()
        assert not reader.turns.locked()
    assert await read(reader) == expected(stream, ["a", "b"], 0, 20)


async def test_messages_before_the_first_one_of_a_pattern_are_skipped() -> None:
    stream = FakeStream()
    stream.publish(*["a", "b"] * 5)
    worker = FakeWorker(stream)
    followed = worker.follow("a", "b")
    for window in (False, True):
        if window:
            for each in followed:
                each.restart_window(0)
                for message in stream.matching(each.pattern):
                    each.window.add(record_of(message, frozenset()))
        reader = reader_of(worker, followed)
        reader.skip_before([7, 4])
        assert await read(reader, 2) == [(4, ("b",)), (6, ("b",)), (7, ("a",)), (8, ("b",)), (9, ("a",)), (10, ("b",))]


async def test_sequence_after_which_nats_was_asked_is_noted() -> None:
    stream = FakeStream()
    stream.publish(*["a"] * 5)
    worker = FakeWorker(stream)
    followed = worker.follow("a")
    stream.publish("a")
    worker.receive()
    reader = reader_of(worker, followed, 2)
    await reader.fetch()
    assert reader.unchecked == 2
    reader.move_to(Point(5, 0))
    assert reader.unchecked is None
    assert len(reader.take_from_windows(10)) == 1
    assert reader.unchecked is None


@given(SUBJECTS, st.integers(0, 30), st.integers(0, 60))
async def test_newest_messages_of_windows(subjects: list[str], after: int, most: int) -> None:
    stream = FakeStream()
    worker = FakeWorker(stream)
    followed = worker.follow("a.*", "a.1", "b.>")
    stream.publish(*subjects)
    worker.receive()
    after = min(after, len(subjects))
    reader = reader_of(worker, followed, after)
    point = reader.newest_in_windows(most)

    def copies(seq: int) -> int:
        return sum(len(patterns) for _, patterns in expected(stream, ["a.*", "a.1", "b.>"], seq, len(subjects)))

    assert copies(point.seq) <= most
    assert point.seq == after or copies(point.seq - 1) > most
    assert point.seq == 0 or point.time >= stream.messages[point.seq].time


def test_stored_message_is_shown_as_a_live_one() -> None:
    block = b"NATS/1.0\r\nA: 1\r\nKV-Operation: DEL\r\nB: 2\r\n\r\n"
    message = StoredMessage(3, 30, "a.1", block, b"x")
    assert record_of(message, frozenset(["A"])) == Record(3, 30, "a.1", b'{"A":["1"]}', b"x", "delete")
    assert record_of(message, frozenset()) == Record(3, 30, "a.1", b"", b"x", "delete")
    assert record_of(message._replace(headers=b""), frozenset(["A"])) == Record(3, 30, "a.1", b"", b"x")


async def test_older_messages_in_windows() -> None:
    stream = FakeStream()
    worker = FakeWorker(stream)
    followed = worker.follow("a", "b")
    stream.publish("a", "b", "a")
    worker.receive()
    reader = reader_of(worker, followed)
    time: Callable[[int], int] = lambda seq: stream.messages[seq].time  # noqa: E731
    assert not reader.has_older_in_windows(time(1))
    assert reader.has_older_in_windows(time(1) + 1)
    reader.move_to(Point(1, 0))
    assert not reader.has_older_in_windows(time(2))
    assert reader.has_older_in_windows(time(2) + 1)
    reader.move_to(Point(3, 0))
    assert not reader.has_older_in_windows(10**15)
