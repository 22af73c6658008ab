"""Reading several patterns of one stream, of which each has its own window."""

import itertools

import pytest

from sanic_nats_bridge.streams.positions import Point
from sanic_nats_bridge.streams.reader import Hit, StreamReader
from tests.support.replays import NEW, Client, worker_of
from tests.support.stored import FollowedStream


async def read_all(reader: StreamReader) -> list[tuple[int, list[str]]]:
    """Return the sequences and the patterns of all messages up to the present."""
    hits: list[Hit] = []
    for _ in range(100):
        if reader.is_in_windows:
            before = reader.seq
            found = reader.take_from_windows(10)
            if not found and reader.seq == before:
                return [(record.seq, [each.pattern for each in followed]) for record, followed in hits]
        else:
            found = await reader.fetch()
        hits += found
    raise AssertionError(f"reading doesn't get beyond {reader.seq}")


@pytest.mark.parametrize("begins", [(3, 7), (7, 3), (5, 5)])
@pytest.mark.parametrize("after", [0, 4, 9])
async def test_windows_that_begin_at_different_messages(begins: tuple[int, int], after: int) -> None:
    stream = FollowedStream([f"a.{seq % 3}" for seq in range(1, 13)], seq=0)
    for pattern, begin in sorted(zip(("a.>", "a.1"), begins, strict=True), key=lambda pair: pair[1]):
        stream.arrive(begin)
        stream.hub.follow(stream.feed, pattern)
    stream.arrive(12)
    reader = stream.reader("a.>", "a.1")
    reader.move_to(Point(after, 0))
    hits = await read_all(reader)
    assert hits == [(seq, ["a.>", "a.1"] if seq % 3 == 1 else ["a.>"]) for seq in range(after + 1, 13)]


async def test_messages_of_the_window_count_as_left() -> None:
    stream = FollowedStream(["a.1"] * 12, seq=5)
    reader = stream.reader("a.1")
    stream.arrive(12)
    reader.move_to(Point(2, 0))
    hits = await reader.fetch()
    assert len(hits) + sum(await reader.count_pending()) == 10


async def test_windows_are_merged_in_full() -> None:
    subjects = ["a.0"] * 12 + ["a.1"] * 20
    stream = FollowedStream(subjects, seq=0)
    reader = stream.reader("a.>", "a.1")
    stream.arrive(len(subjects))
    reader.move_to(Point(11, 0))
    assert await read_all(reader) == [(12, ["a.>"]), *((seq, ["a.>", "a.1"]) for seq in range(13, 33))]


@pytest.mark.parametrize("evicts_at", range(6))
async def test_messages_are_added_to_a_window_only_up_to_its_floor(evicts_at: int) -> None:
    worker = worker_of(*["a.1"] * 10, *["b.1"] * 400, later=["a.1"] * 20)
    fetches = 0

    def evict(request: str) -> None:
        nonlocal fetches
        if request == "fetch":
            fetches += 1
            if fetches == 2 * evicts_at + 1:
                worker.evict(20)

    worker.stream.interrupt = evict
    point = Point(5, 1_000_006)
    await Client(worker, patterns=["a.1", "b.>"]).prepare(NEW, {worker.feed.key: point})
    worker.stream.interrupt = lambda request: None
    other = Client(worker, patterns=["a.1"])
    await other.prepare(NEW, {worker.feed.key: point})
    await other.run()
    assert other.got(worker) == other.expected(worker, 5)


@pytest.mark.parametrize("takes_at", [1, 7, 9, 30])
async def test_window_that_is_emptied_while_it_is_read_repeats_nothing(takes_at: int) -> None:
    worker = worker_of(*["a.1"] * 40, later=["a.1"] * 20)
    client = Client(worker, patterns=["a.1"])
    await client.prepare(NEW, {worker.feed.key: Point(5, 1_000_006)})
    turns = itertools.count(1)

    def evict() -> None:
        if next(turns) == takes_at:
            worker.evict(100)

    await client.run(most=5, then=evict)
    assert client.got(worker) == client.expected(worker, 5)
