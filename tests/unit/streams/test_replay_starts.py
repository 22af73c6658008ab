import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanic_nats_bridge.protocol.start import Start
from sanic_nats_bridge.streams.jetstream import JetStreamUnavailable
from sanic_nats_bridge.streams.judgement import NOWHERE
from sanic_nats_bridge.streams.positions import Point
from sanic_nats_bridge.streams.replay import Missed
from sanic_nats_bridge.streams.replay_limits import shared
from sanic_nats_bridge.streams.snapshot import SnapshotTooLarge
from tests.support.fake_stream import FakeWorker, failing, point_of
from tests.support.replays import ALL, NEW, PATTERNS, STATE, Client, last, worker_of

# Starts

SUBJECTS = st.lists(st.sampled_from(["a.1", "a.2", "b.1", "b.2.x", "c"]), max_size=40)
ACTIONS = st.lists(st.sampled_from(["publish", "receive", "evict", "evict all", "fail", "lag", "nothing"]), max_size=60)
STARTS = st.one_of(st.sampled_from([ALL, NEW, STATE]), st.integers(1, 30).map(last), st.none())


class Interference:
    """Changes whenever a replay waits for NATS, or has written messages."""

    def __init__(self, actions: Sequence[str], workers: Sequence[FakeWorker]) -> None:
        self.left = list(actions)
        self.workers = workers
        for worker in workers:
            worker.stream.interrupt = self

    def __call__(self, request: str) -> None:
        action = self.left.pop(0) if self.left else "receive"
        for worker in self.workers:
            worker.stream.lag = 2 if action == "lag" else 0
            if action == "publish":
                worker.stream.publish("a.1", "b.1", "a.2", "c")
            elif action == "receive":
                worker.receive(None if not self.left else 2)
            elif action == "evict":
                worker.evict(2)
            elif action == "evict all":
                worker.evict(1_000)
        if action == "fail" and request:
            raise JetStreamUnavailable("interrupted")


@given(st.lists(st.tuples(SUBJECTS, SUBJECTS), min_size=1, max_size=2), STARTS, st.integers(0, 60), ACTIONS)
async def test_replay_returns_the_messages_from_its_start_on(
    streams: list[tuple[list[str], list[str]]], start: Start | None, after: int, actions: list[str]
) -> None:
    workers = [worker_of(*older, name=f"S{number}", later=later) for number, (older, later) in enumerate(streams)]
    client = Client(*workers)
    points = None
    if start is None:
        own = [point_of(each.stream.messages[after]) if after in each.stream.messages else each.feed.point
               for each in workers]  # fmt: skip
        points = {each.feed.key: point for each, point in zip(workers, own, strict=True)}
    begun = [each.stream.last_seq for each in workers]
    interference = Interference(actions, workers)
    await client.prepare(start or NEW, points)
    prepared = [each.stream.last_seq for each in workers]
    await client.run(then=lambda: interference(""))
    assert client.missed == []
    assert client.replay.recovered
    for number, worker in enumerate(workers):
        got = client.got(worker)
        assert client.replay.positions[worker.feed] == worker.feed.point
        if start is STATE:
            check_state(client, worker, got, begun[number])
            continue
        assert got == sorted(got, key=lambda each: each[0])
        if start is not None and start.kind == "last":
            check_last(client, worker, got, start.count, begun[number], prepared[number])
            continue
        if points is not None:
            first = points[worker.feed.key].seq
        else:
            first = 0 if start == ALL else sum(map(len, streams[number]))
        if start == NEW:
            # Those that the feed received after the start.
            assert got == client.expected(worker, got[0][0] - 1 if got else worker.feed.seq)
        else:
            assert got == client.expected(worker, first)


def check_state(client: Client, worker: FakeWorker, got: list[tuple[int, str]], begun: int) -> None:
    """Check that the client knows the last message of each subject, and gets none before an older one."""
    for pattern in client.patterns:
        own = [seq for seq, name in got if name == pattern]
        assert len(set(own)) == len(own)
        assert own == sorted(own)
        newest = {each.subject: each.seq for each in worker.stream.matching(pattern, 1, worker.feed.seq)}
        assert set(newest.values()) <= set(own)
        at_start = {each.subject: each.seq for each in worker.stream.matching(pattern, 1, begun)}
        assert all(seq in at_start.values() for seq in own if seq <= begun)


def check_last(
    client: Client, worker: FakeWorker, got: list[tuple[int, str]], count: int, begun: int, prepared: int
) -> None:
    for pattern in client.patterns:
        own = [seq for seq, name in got if name == pattern]
        all_of = [each.seq for each in worker.stream.matching(pattern, 1, worker.feed.seq)]
        assert own == all_of[len(all_of) - len(own) :]
        # The last ones at some moment between the beginning and the end of the search.
        before = [seq for seq in all_of if seq <= begun]
        after = [seq for seq in all_of if seq <= prepared]
        assert sum(seq <= begun for seq in own) <= count
        assert len(own) >= min(count, len(before)) - (len(after) - len(before))


async def test_positions_follow_the_messages() -> None:
    worker = worker_of("a.1", "b.1", "c", later=["a.2"])
    client = Client(worker)
    await client.prepare(ALL)
    assert client.replay.positions == {worker.feed: Point(0, worker.stream.messages[1].time)}
    await client.run(1)
    assert [step.point for step in client.steps] == [point_of(worker.stream.messages[seq]) for seq in (1, 2, 4)]


@pytest.mark.parametrize("messages", [2, 100])
async def test_position_before_the_last_messages_holds_for_a_worker_that_is_behind(messages: int) -> None:
    worker = worker_of("a.1")
    worker.stream.publish(*["a.1"] * 10)
    client = Client(worker, patterns=["a.1"], messages=messages)
    await client.prepare(last(4))
    point = client.replay.positions[worker.feed]
    assert point.seq > worker.feed.seq
    assert worker.stream.messages[point.seq].time <= point.time


async def test_position_in_an_emptied_stream_is_as_old_as_its_last_message() -> None:
    worker = worker_of("a.1", "a.1")
    worker.stream.messages.clear()
    client = Client(worker)
    await client.prepare(ALL)
    assert client.replay.positions == {worker.feed: Point(2, worker.stream.last_time)}


@pytest.mark.parametrize("in_windows", [True, False])
async def test_last_messages_are_bounded_for_all_patterns_and_streams(in_windows: bool) -> None:
    subjects = ["a.1", "b.1"] * 50
    names = ("S", "T")
    workers = [worker_of(later=subjects, name=name) if in_windows else worker_of(*subjects, name=name)
               for name in names]  # fmt: skip
    client = Client(*workers, patterns=["a.*", "b.>"], messages=20)
    await client.prepare(last(20))
    await client.run()
    assert client.seqs() == list(range(91, 101)) * 2
    assert client.missed == [Missed("backlog", ["a.*", "b.>"], None)]
    assert not client.replay.recovered


@pytest.mark.parametrize("in_windows", [True, False])
async def test_last_messages_of_frequent_patterns_make_room_for_rare_ones(in_windows: bool) -> None:
    subjects = ["b.1"] * 4 + ["a.1"] * 100
    worker = worker_of(later=subjects) if in_windows else worker_of(*subjects)
    client = Client(worker, patterns=["a.1", "b.>", "c"], messages=20)
    await client.prepare(last(20))
    await client.run()
    assert client.seqs() == [1, 2, 3, 4, *range(89, 105)]
    assert client.reasons == ["backlog"]
    # Nothing is missing if all of them fit.
    for count, messages in ((10, 20), (16, 20), (20, 24)):
        client = Client(worker, patterns=["a.1", "b.>", "c"], messages=messages)
        await client.prepare(last(count))
        await client.run()
        assert client.seqs() == [1, 2, 3, 4, *range(105 - count, 105)]
        assert client.missed == []


async def test_last_messages_share_the_limit_with_those_after_a_position() -> None:
    workers = [worker_of(*["a.1"] * 50, name=name) for name in ("S", "T")]
    after = point_of(workers[0].stream.messages[20])
    client = Client(*workers, patterns=["a.1"], messages=40)
    await client.prepare(last(30), {workers[0].feed.key: after})
    await client.run()
    assert client.got(workers[0]) == [(seq, "a.1") for seq in range(31, 51)]
    assert client.got(workers[1]) == [(seq, "a.1") for seq in range(31, 51)]
    assert set(client.reasons) == {"unknown", "backlog"}


@pytest.mark.parametrize(
    ("counts", "most", "shares"),
    [
        ([5, 5], 20, [5, 5]),
        ([50, 50], 20, [10, 10]),
        ([50, 3], 20, [17, 3]),
        ([3, 50, 4, 50], 27, [3, 10, 4, 10]),
        ([0, 9], 5, [0, 5]),
        ([9, 9, 9], 2, [0, 1, 1]),
        ([], 5, []),
    ],
)
def test_rare_messages_leave_their_share_to_others(counts: list[int], most: int, shares: list[int]) -> None:
    assert shared(counts, most) == shares


# States


async def test_client_that_has_a_part_of_a_state_gets_all_of_it() -> None:
    worker = worker_of("a.1", "a.2", "c", "b.1", "c")
    client = Client(worker, patterns=["a.*", "b.>"])
    await client.prepare(STATE)
    assert client.replay.positions == {worker.feed: NOWHERE}
    await client.run(2)
    assert [step.point for step in client.steps] == [NOWHERE, NOWHERE, point_of(worker.stream.messages[5])]
    again = Client(worker, patterns=["a.*", "b.>"])
    await again.prepare(STATE, {worker.feed.key: NOWHERE})
    await again.run()
    assert (again.reasons, again.seqs()) == ([], [1, 2, 4])


async def test_messages_after_an_empty_state_have_their_own_positions() -> None:
    worker = worker_of("c")
    client = Client(worker)
    await client.prepare(STATE)
    assert client.replay.positions == {worker.feed: worker.feed.point}
    worker.stream.publish("a.1", "b.1")
    worker.receive()
    await client.run()
    assert [step.point for step in client.steps] == [point_of(worker.stream.messages[seq]) for seq in (2, 3)]


async def test_replay_waits_for_a_feed_that_is_behind_the_state() -> None:
    worker = worker_of("a.1", "b.1")
    worker.stream.publish("a.1", "a.1")
    client = Client(worker, patterns=["a.*"])
    await client.prepare(STATE)
    running = asyncio.ensure_future(client.run())
    await asyncio.sleep(20)
    assert client.seqs() == [4]
    assert not running.done()
    worker.receive()
    await running
    # The live messages begin after the state.
    assert client.seqs() == [4]


async def test_replaced_messages_of_a_state_come_before_its_end() -> None:
    worker = worker_of()
    worker.stream.configure(max_msgs_per_subject=1)
    worker.stream.publish("a.1", "a.2", "a.3")
    worker.receive()
    client = Client(worker, patterns=["a.*"])

    def replace(request: str) -> None:
        if request == "delivery" and worker.stream.last_seq == 3:
            # A new subject takes the place of the second message.
            worker.stream.publish("a.4", "a.2")

    worker.stream.interrupt = replace
    await client.prepare(STATE)
    running = asyncio.ensure_future(client.run())
    worker.receive(1)
    await asyncio.sleep(20)
    # The feed is at the end of what was read, but the message that has replaced the second one is missing.
    assert client.seqs() == [1, 3, 4]
    assert not running.done()
    worker.receive()
    await running
    assert client.seqs() == [1, 3, 4, 5]


async def test_state_of_which_the_rest_is_deleted() -> None:
    worker = worker_of("a.1", "a.2", "a.3")

    def delete(request: str) -> None:
        if request == "delivery":
            worker.stream.delete(2, 3)

    worker.stream.interrupt = delete
    client = Client(worker, patterns=["a.*"])
    await client.prepare(STATE)
    await client.run()
    assert client.seqs() == [1]


async def test_too_many_subjects_or_bytes() -> None:
    worker = worker_of("a.1", "a.2", "b.1", "b.1")
    # Only what the stream has counts: here three subjects of three characters.
    for limits, setting in (({"subjects": 2}, "max_snapshot_subjects"), ({"size": 8}, "max_replay_bytes")):
        client = Client(worker, patterns=["a.*", "b.>"], **limits)
        with pytest.raises(SnapshotTooLarge, match=f"^{setting}$") as raised:
            await client.replay.prepare(None, STATE)
        assert raised.value.setting == setting
        assert client.replay.recovered
    for limits in ({"subjects": 3}, {"size": 9}):
        client = Client(worker, patterns=["a.*", "b.>"], **limits)
        await client.prepare(STATE)
        await client.run()
        assert client.seqs() == [1, 2, 4]


async def test_states_of_several_streams_share_the_limit() -> None:
    workers = [worker_of("a.1", "a.2", "a.3", name=name) for name in ("S", "T")]
    with pytest.raises(SnapshotTooLarge):
        await Client(*workers, patterns=["a.*"], subjects=5).replay.prepare(None, STATE)
    await Client(*workers, patterns=["a.*"], subjects=6).replay.prepare(None, STATE)


async def test_state_of_one_stream_is_not_shown_without_that_of_the_others() -> None:
    first, second = worker_of("a.1", "a.2", name="S"), worker_of("a.1", "a.2", "a.3", name="T")
    for points in (None, {}, {first.feed.key: NOWHERE}):
        client = Client(first, second, patterns=["a.*"], subjects=4)
        with pytest.raises(SnapshotTooLarge):
            await client.replay.prepare(points, STATE)
        assert client.replay.recovered
        await client.prepare(NEW, {} if points is None else points)
        first.stream.publish("a.9")
        first.receive()
        await client.run()
        # Live messages only, and a gap for both streams.
        assert client.got(first) == [(first.stream.last_seq, "a.*")]
        assert client.got(second) == []
        assert {(each.reason, *each.patterns) for each in client.missed} == {("unknown", "a.*")}


async def test_state_that_is_too_large_after_an_absence() -> None:
    worker = worker_of("a.1", "a.2", "a.3")
    client = Client(worker, subjects=2)
    with pytest.raises(SnapshotTooLarge):
        await client.replay.prepare({}, STATE)
    await client.prepare(NEW, {})
    await client.run()
    assert client.missed == [Missed("unknown", list(PATTERNS))]
    assert client.steps == []


# Missing messages


async def test_expired_position() -> None:
    worker = worker_of(*["a.1"] * 10)
    point = point_of(worker.stream.messages[3])
    worker.stream.expire(5)
    client = Client(worker)
    await client.prepare(last(2), {worker.feed.key: point})
    assert not client.replay.recovered
    await client.run()
    assert client.missed == [Missed("expired", list(PATTERNS))]
    assert client.seqs() == [9, 10]
    assert not client.replay.recovered


@pytest.mark.parametrize("fetches", [1, 2, 3])
async def test_messages_that_expire_while_they_are_read(fetches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sanic_nats_bridge.streams.reader._BATCH", 10)
    monkeypatch.setattr("sanic_nats_bridge.streams.reader._LEAST_BATCH", 10)
    worker = worker_of(*["a.1"] * 100)
    client = Client(worker, patterns=["a.1"])
    left = 2 * fetches - 1

    def expire(request: str) -> None:
        nonlocal left
        left -= request == "fetch"
        if not left:
            worker.stream.expire(90)

    worker.stream.interrupt = expire
    await client.prepare(ALL, {worker.feed.key: Point(0, worker.stream.messages[1].time)})
    await client.run()
    assert client.reasons == ["expired"]
    assert client.seqs() == [*range(1, 10 * fetches - 9), *range(91, 101)]


@pytest.mark.parametrize("start", [ALL, last(50), STATE], ids=["all", "last", "state"])
async def test_beginning_of_a_stream_may_expire_before_it_is_read(start: Start) -> None:
    worker = worker_of(*["a.1"] * 100)
    client = Client(worker, patterns=["a.1"])

    def expire(request: str) -> None:
        if request != "info":
            worker.stream.expire(90)

    worker.stream.interrupt = expire
    await client.prepare(start)
    await client.run()
    assert client.missed == []
    assert client.seqs() == ([100] if start is STATE else list(range(91, 101)))


async def test_streams_are_judged_one_by_one() -> None:
    first, second, third, fourth = (worker_of(*["a.1"] * 3, name=name) for name in "STUV")
    point = point_of(first.stream.messages[2])
    changed = third.feed.key[:5] + "zzzz"
    points = {first.feed.key: point, changed: point, fourth.feed.key: Point(10**6, 1)}
    client = Client(first, second, third, fourth, patterns=["a.1", "b.>"])
    await client.prepare(last(1), points)
    await client.run()
    assert client.missed == [Missed("unknown", ["a.1", "b.>"]), Missed("reset", ["a.1", "b.>"])]
    assert client.seqs() == [3, 3, 3, 3]


async def test_stream_that_begins_again_during_a_replay() -> None:
    for created in (None, "2027-01-01T00:00:00Z"):
        worker = worker_of(*["a.1"] * 20, later=["a.1"] * 20)
        client = Client(worker, patterns=["a.1"])
        await client.prepare(ALL)
        client.steps += client.replay.take_present(5) or []
        worker.stream.begin_again(created)
        worker.stream.publish(*["a.1"] * 8)
        worker.look()
        await client.run()
        assert client.reasons == ["reset"]
        assert client.seqs() == [1, 2, 3, 4, 5]
        assert client.replay.positions == {worker.feed: point_of(worker.stream.messages[8])}


async def test_stream_that_begins_again_while_it_is_read() -> None:
    worker = worker_of(*["a.1"] * 20)
    client = Client(worker, patterns=["a.1"])

    def begin_again(request: str) -> None:
        if request == "fetch" and worker.stream.last_seq == 20:
            worker.stream.begin_again()
            worker.stream.publish(*["a.1"] * 8)
            worker.look()

    worker.stream.interrupt = begin_again
    await client.prepare(NEW, {worker.feed.key: point_of(worker.stream.messages[5])})
    await client.run()
    assert client.steps == []
    assert "reset" in client.reasons
    assert client.replay.positions == {worker.feed: worker.feed.point}


@pytest.mark.parametrize("request_name", ["info", "next", "fetch", "last", "snapshot"])
async def test_failed_requests_cause_no_gaps(request_name: str) -> None:
    for start in (ALL, last(3), STATE):
        for known, gaps in ((None, []), ({}, [Missed("unknown", list(PATTERNS))])):
            worker = worker_of(*["a.1", "b.1"] * 5)
            client = Client(worker)
            worker.stream.interrupt = failing(*[request_name] * 3, error=JetStreamUnavailable("x"))
            await client.prepare(start, known)
            await client.run()
            assert client.missed == gaps


@pytest.mark.parametrize("patterns", [["a.*"], ["a.*", "a.1"]])
async def test_state_after_a_position_that_has_expired_is_shown_in_full(patterns: list[str]) -> None:
    worker = worker_of(*[f"a.{number}" for number in range(20)] * 5)
    worker.stream.configure(max_age_ns=10**9)
    worker.stream.expire(40)
    client = Client(worker, patterns=patterns, messages=30)
    await client.prepare(STATE, {worker.feed.key: Point(10, 1_000_010)})
    await client.run()
    assert client.reasons == ["expired"]
    state = [f"a.{number}" for number in range(20)] + ["a.1"] * (len(patterns) - 1)
    assert [step.record.subject for step in client.steps] == state
