"""The encoded messages that clients share."""

import pytest

from sanic_nats_bridge.streams.slices import EncodedSlices
from tests.support.growth import memory_of
from tests.support.stored import FollowedStream


def size_of(data: bytes) -> int:
    """Return the size of a slice."""
    slices = EncodedSlices(1_000_000)
    slices.get("a", lambda: data)
    return slices.bytes


def test_slice_is_encoded_once() -> None:
    slices = EncodedSlices(1_000)
    calls: list[int] = []

    def encode() -> bytes:
        calls.append(1)
        return b"x" * 10

    assert slices.get("a", encode) is slices.get("a", encode)
    assert len(calls) == 1


def test_slices_used_least_recently_make_room() -> None:
    slices = EncodedSlices(3 * size_of(b"x" * 10))
    for key in "abc":
        slices.get(key, lambda: b"x" * 10)
    slices.get("a", lambda: b"")
    slices.get("d", lambda: b"x" * 10)
    assert slices.bytes == 3 * size_of(b"x" * 10)
    assert slices.get("a", lambda: b"again") == b"x" * 10
    assert slices.get("b", lambda: b"again") == b"again"


def test_slice_larger_than_the_memory_is_not_kept() -> None:
    slices = EncodedSlices(size_of(b"x" * 9))
    assert slices.get("a", lambda: b"x" * 10) == b"x" * 10
    assert slices.bytes == 0


async def test_slices_of_another_life_of_a_stream_are_dropped() -> None:
    stream = FollowedStream(["a.1"], seq=1)
    stream.hub.slices.get("a", lambda: b"old")
    stream.hub.was_reset(stream.feed)
    assert stream.hub.slices.get("a", lambda: b"new") == b"new"
    assert stream.hub.slices.bytes == size_of(b"new")


@pytest.mark.parametrize("size", [1, 150, 5_000])
def test_memory_of_slices_is_bounded(size: int) -> None:
    limit = 200_000

    def fill() -> EncodedSlices:
        slices = EncodedSlices(limit)
        for seq in range(1_000_000, 1_000_000 + 3 * limit // size_of(bytes(size))):
            # A key of the usual kind.
            slices.get(("stream-key", None, True, 0, seq, seq + 256), lambda: bytes(size))
        return slices

    assert memory_of(fill) < 1.1 * limit
