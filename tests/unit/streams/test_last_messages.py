import bisect
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanic_nats_bridge.streams.last_messages import find_first_of_last
from tests.support.fake_stream import FakeJetStream, FakeLink, FakeStream


class Stored:
    """The messages of one pattern in a stream of a certain length."""

    def __init__(self, seqs: list[int], first: int, last: int, *, max_read: int = 256, most_read: int = 1_000) -> None:
        self.seqs = seqs
        self.first_seq = first
        self.last_seq = last
        self.max_read = max_read
        self.most_read = most_read
        self.requests = 0

    async def last(self) -> int | None:
        self.requests += 1
        return self.seqs[-1] if self.seqs else None

    async def first_from(self, seq: int) -> int | None:
        found = await self.read(seq, 1)
        return found[0] if found else None

    async def count_from(self, seq: int) -> tuple[int, int]:
        self.requests += 1
        index = bisect.bisect_left(self.seqs, seq)
        return (self.seqs[index] if index < len(self.seqs) else seq), len(self.seqs) - index

    async def read(self, seq: int, count: int) -> list[int]:
        self.requests += 1
        index = bisect.bisect_left(self.seqs, seq)
        return self.seqs[index : index + min(count, self.most_read)]

    def following(self, seq: int) -> int:
        return len(self.seqs) - bisect.bisect_left(self.seqs, seq)


async def check_exact(stored: Stored, count: int) -> None:
    start, is_older = await find_first_of_last(stored, count)
    assert stored.following(start) == min(count, len(stored.seqs))
    assert is_older is (len(stored.seqs) > count)
    assert stored.requests <= 18


@given(st.sets(st.integers(5, 400)), st.integers(0, 600), st.integers(1, 50), st.sampled_from([1, 4, 256]))
async def test_short_stream_is_searched_exactly(found: set[int], count: int, rest: int, max_read: int) -> None:
    seqs = sorted(found)
    await check_exact(Stored(seqs, 3, (seqs[-1] if seqs else 3) + rest, max_read=max_read), max(1, count))


@given(
    st.integers(1, 10**9),
    st.integers(1, 10**7),
    st.lists(st.integers(1, 10**6), min_size=1, max_size=300),
    st.integers(1, 400),
    st.integers(1, 300),
)
async def test_never_more_messages_follow_than_were_asked_for(
    first: int, rest: int, distances: list[int], count: int, most_read: int
) -> None:
    seqs = [first]
    for distance in distances:
        seqs.append(seqs[-1] + distance)
    stored = Stored(seqs, first, seqs[-1] + rest, max_read=32, most_read=most_read)
    start, is_older = await find_first_of_last(stored, count)
    assert 1 <= stored.following(start) <= count
    assert is_older is (stored.following(start) < len(seqs))
    assert stored.requests <= 18


@pytest.mark.parametrize("count", [1, 2, 10, 100, 1_000, 10_000])
@pytest.mark.parametrize("share", [1.0, 0.1, 0.001])
async def test_evenly_spread_messages_are_found_exactly(count: int, share: float) -> None:
    generator = random.Random(count)
    seqs = [seq for seq in range(1, 1_000_001) if generator.random() < share]
    stored = Stored(seqs, 1, 1_000_000)
    await check_exact(stored, count)
    assert stored.requests <= 12


def bursts(*firsts: int) -> list[int]:
    return [first + number for first in firsts for number in range(3_000)]


@pytest.mark.parametrize("count", [2, 100, 5_000])
async def test_bursts_are_found_exactly(count: int) -> None:
    await check_exact(Stored(bursts(10, 50_000, 100_000, 400_000), 1, 10**6), count)


async def test_search_ends_with_fewer_messages_if_the_requests_do_not_suffice() -> None:
    stored = Stored(bursts(10, 10**6, 5 * 10**8, 10**9), 1, 2 * 10**9)
    start, is_older = await find_first_of_last(stored, 5_000)
    assert (stored.following(start), is_older) == (3_000, True)
    assert stored.requests == 17


async def test_empty_pattern_begins_after_the_stream() -> None:
    assert await find_first_of_last(Stored([], 4, 90), 10) == (91, False)


async def test_all_messages_are_exactly_the_last_ones() -> None:
    assert await find_first_of_last(Stored([1, 5, 9], 1, 9), 3) == (1, False)
    assert (await find_first_of_last(Stored([40, 45, 49], 1, 49), 3))[1] is False
    assert (await find_first_of_last(Stored([40, 45, 49], 40, 49), 2))[1] is True


async def test_large_messages_are_not_read_again_and_again() -> None:
    stored = Stored(list(range(1, 10_001)), 1, 10_000, most_read=1)
    await check_exact(stored, 300)


PATTERNS = st.lists(st.sampled_from([">", "a.*", "a.1", "b", "none"]), min_size=1, max_size=4, unique=True)


@given(st.lists(st.sampled_from(["a.1", "a.2", "b", "c"]), max_size=300), PATTERNS, st.integers(1, 300), st.booleans())
async def test_last_messages_of_several_patterns(
    subjects: list[str], patterns: list[str], count: int, direct: bool
) -> None:
    stream = FakeStream()
    stream.configure(allow_direct=direct)
    stream.publish(*subjects)
    jetstream = FakeJetStream(stream, FakeLink())
    first = await jetstream.first_of_last_of_all("S", patterns, count, stream.info)

    def following(seq: int) -> int:
        return sum(len(stream.matching(pattern, seq)) for pattern in patterns)

    # A message counts for each of its patterns, so the number can't always be met.
    assert following(first) < count + len(patterns)
    assert following(first) > min(count, following(0)) - len(patterns)
