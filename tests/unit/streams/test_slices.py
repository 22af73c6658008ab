"""The encoded messages that clients share."""

from sanic_nats_bridge.streams.slices import EncodedSlices
from tests.support.stored import FollowedStream


def test_slice_is_encoded_once() -> None:
    slices = EncodedSlices(100)
    calls: list[int] = []

    def encode() -> bytes:
        calls.append(1)
        return b"x" * 10

    assert slices.get("a", encode) is slices.get("a", encode)
    assert len(calls) == 1


def test_slices_used_least_recently_make_room() -> None:
    slices = EncodedSlices(30)
    for key in "abc":
        slices.get(key, lambda: b"x" * 10)
    slices.get("a", lambda: b"")
    slices.get("d", lambda: b"x" * 10)
    assert slices.bytes == 30
    assert slices.get("a", lambda: b"again") == b"x" * 10
    assert slices.get("b", lambda: b"again") == b"again"


def test_slice_larger_than_the_memory_is_not_kept() -> None:
    slices = EncodedSlices(5)
    assert slices.get("a", lambda: b"x" * 10) == b"x" * 10
    assert slices.bytes == 0


async def test_slices_of_another_life_of_a_stream_are_dropped() -> None:
    stream = FollowedStream(["a.1"], seq=1)
    stream.hub.slices.get("a", lambda: b"old")
    stream.hub.was_reset(stream.feed)
    assert stream.hub.slices.get("a", lambda: b"new") == b"new"
    assert stream.hub.slices.bytes == 3
