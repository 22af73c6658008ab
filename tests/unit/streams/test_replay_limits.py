import pytest

from sanic_nats_bridge.streams.jetstream import JetStreamUnavailable
from sanic_nats_bridge.streams.positions import Point
from sanic_nats_bridge.streams.reader import MAX_TURN_BYTES
from sanic_nats_bridge.streams.replay import Missed
from tests.support.fake_stream import FakeStream, FakeWorker
from tests.support.replays import ALL, NEW, Client, worker_of


@pytest.mark.parametrize("in_windows", [True, False])
async def test_newest_messages_are_sent_if_there_are_too_many(in_windows: bool) -> None:
    subjects = ["a.1"] * 100
    worker = worker_of(later=subjects) if in_windows else worker_of(*subjects)
    for points in (None, {worker.feed.key: Point(0, 1_000_001)}):
        client = Client(worker, patterns=["a.1"], messages=30)
        await client.prepare(ALL, points)
        await client.run()
        assert client.missed == [Missed("backlog", ["a.1"], 70)]
        assert client.seqs() == list(range(71, 101))
    client = Client(worker, patterns=["a.1"], messages=100)
    await client.prepare(ALL)
    await client.run()
    assert client.missed == []


@pytest.mark.parametrize("change", ["publish", "delete", "replicas", "nothing"])
async def test_number_of_skipped_messages_is_exact_or_not_known(change: str) -> None:
    worker = worker_of(*["a.1", "c"] * 100)
    counts = 0

    def interrupt(request: str) -> None:
        nonlocal counts
        counts += request == "count"
        if request == "count" and change == "publish":
            worker.stream.publish("a.1")
        if request == "count" and change == "delete":
            worker.stream.delete(next(iter(worker.stream.messages)))

    worker.stream.interrupt = interrupt
    if change == "replicas":
        worker.stream.configure(num_replicas=3)
    client = Client(worker, patterns=["a.1"], messages=30)
    await client.prepare(ALL)
    assert client.replay.take_missed() == [Missed("backlog", ["a.1"], 70 if change == "nothing" else None)]
    assert counts == (0 if change == "replicas" else 2)


async def test_messages_that_arrive_during_the_search_are_not_counted_as_lost() -> None:
    worker = worker_of(*["a.1"] * 100)

    def publish(request: str) -> None:
        if request == "last":
            worker.stream.publish(*["a.1"] * 5)

    worker.stream.interrupt = publish
    client = Client(worker, patterns=["a.1"], messages=30)
    await client.prepare(ALL)
    ((lost,),) = [[each.lost] for each in client.replay.take_missed()]
    assert lost is not None
    worker.receive()
    await client.run()
    assert client.seqs() == list(range(lost + 1, worker.stream.last_seq + 1))


async def test_limit_counts_the_messages_of_the_windows_too() -> None:
    worker = worker_of(*["a.1"] * 10, later=["a.1"] * 90)
    client = Client(worker, patterns=["a.1"], messages=30)
    await client.prepare(ALL)
    await client.run()
    assert client.missed == [Missed("backlog", ["a.1"], 70)]
    assert client.seqs() == list(range(71, 101))


@pytest.mark.parametrize("in_windows", [True, False])
async def test_overlapping_patterns_share_the_limit(in_windows: bool) -> None:
    subjects = ["a.1"] * 100
    worker = worker_of(later=subjects) if in_windows else worker_of(*subjects)
    client = Client(worker, patterns=["a.*", "a.1"], messages=30)
    await client.prepare(ALL)
    await client.run()
    assert client.reasons == ["backlog"]
    assert client.seqs() == list(range(86, 101))


@pytest.mark.parametrize("in_windows", [True, False])
@pytest.mark.parametrize("rare", [0, 1, 5])
async def test_rare_and_missing_patterns_do_not_empty_a_replay(rare: int, in_windows: bool) -> None:
    subjects = ["b.1"] * rare + ["a.1"] * 100
    worker = worker_of(later=subjects) if in_windows else worker_of(*subjects)
    client = Client(worker, patterns=["a.1", "b.>"], messages=30)
    await client.prepare(ALL)
    await client.run()
    assert client.reasons == ["backlog"]
    assert 25 <= len(client.steps) <= 30
    assert client.seqs()[-1] == 100 + rare


async def test_streams_share_the_limit_by_their_need() -> None:
    first, second = worker_of(*["a.1"] * 80, name="S"), worker_of(*["a.1"] * 10, name="T")
    client = Client(first, second, patterns=["a.1"], messages=100)
    await client.prepare(ALL)
    await client.run()
    assert client.missed == []
    client = Client(first, second, patterns=["a.1"], messages=50)
    await client.prepare(ALL)
    await client.run()
    assert client.missed == [Missed("backlog", ["a.1"], 40)]
    assert len(client.got(first)) == 40
    assert len(client.got(second)) == 10


async def test_bytes_bound_the_reading_of_all_streams() -> None:
    workers = [worker_of(name=name) for name in ("S", "T")]
    for worker in workers:
        worker.stream.publish(*["a.1"] * 1_000, payload=b"x" * 1_000)
        worker.receive()
        worker.evict(10_000)
    client = Client(*workers, patterns=["a.1"], size=600_000)
    await client.prepare(ALL)
    await client.run()
    assert set(client.reasons) == {"backlog"}
    # The gaps are where the reading stops, also the second one with the same reason.
    assert len(client.missed) == 2
    assert 400 <= len(client.steps) <= 1_100
    assert client.replay.positions == {worker.feed: worker.feed.point for worker in workers}


async def test_old_messages_are_not_sent_after_the_cutoff() -> None:
    worker = worker_of(*["a.1"] * 10)
    time = worker.stream.messages[8].time
    client = Client(worker, cutoff=time)
    await client.prepare(NEW, {worker.feed.key: Point(2, 10**13)})
    await client.run()
    assert (client.reasons, client.seqs()) == (["expired"], [])
    client = Client(worker, cutoff=time)
    await client.prepare(NEW, {worker.feed.key: Point(7, 10**13)})
    await client.run()
    assert (client.reasons, set(client.seqs())) == ([], {8, 9, 10})


async def test_state_of_the_stream_must_be_known() -> None:
    worker = worker_of("a.1")
    worker.feed._current.clear()
    client = Client(worker)
    with pytest.raises(JetStreamUnavailable, match="the state of stream 'S' is not known yet"):
        await client.replay.prepare(None, ALL)


@pytest.mark.parametrize("patterns", [["a.1"], ["a.*", "a.1"]])
@pytest.mark.parametrize("in_windows", [True, False])
async def test_large_messages_are_written_in_several_turns(in_windows: bool, patterns: list[str]) -> None:
    stream = FakeStream()
    worker = FakeWorker(stream)
    if in_windows:
        worker.follow(*patterns)
    stream.publish(*["a.1"] * 20, payload=b"x" * (MAX_TURN_BYTES // 3))
    if in_windows:
        worker.receive()
    else:
        worker = FakeWorker(stream)
        worker.follow(*patterns)
    client = Client(worker, patterns=patterns)
    await client.prepare(ALL, {worker.feed.key: Point(0, 1_000_001)})
    turns: list[int] = []
    while len(client.steps) + sum(turns) < 20:
        steps = client.replay.take_present(256)
        if steps is None:
            await client.replay.read()
        else:
            turns.append(len(steps))
            assert 1 <= sum(len(step.followed) for step in steps) <= 3


async def test_large_messages_of_a_window_end_at_the_same_ones_for_all_clients() -> None:
    worker = worker_of()
    worker.stream.publish(*["a.1"] * 40, payload=b"x" * (MAX_TURN_BYTES // 10))
    worker.receive()
    ends: list[set[int]] = []
    for after in (0, 3, 9):
        client = Client(worker, patterns=["a.1"])
        await client.prepare(NEW, {worker.feed.key: Point(after, 1_000_000 + after)})
        ends.append(set())
        while records := client.replay.take_window(256):
            assert sum(len(record.payload) for record in records) <= MAX_TURN_BYTES
            ends[-1].add(records[-1].seq)
    assert ends[2] <= ends[1] <= ends[0]


async def test_bytes_of_attempts_that_failed_do_not_count() -> None:
    worker = worker_of(*["a.1"] * 2000)
    failures = 0

    def fail(request: str) -> None:
        nonlocal failures
        if request == "info" and "fetch" in worker.stream.requests and failures < 50:
            failures += 1
            worker.stream.requests.clear()
            raise JetStreamUnavailable("timeout")

    worker.stream.interrupt = fail
    client = Client(worker, patterns=["a.1"], size=1_000_000)
    await client.prepare(ALL, {worker.feed.key: Point(1, 1_000_001)})
    await client.run()
    assert failures == 50
    assert client.missed == []
    assert client.seqs() == list(range(2, 2001))
