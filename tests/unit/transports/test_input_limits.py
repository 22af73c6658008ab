import itertools
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanic_nats_bridge.transports.input_limits import SMALL_BYTES, FrameLimits, PartLimit
from tests.support.frames import BINARY, CLOSE, CONT, PING, PONG, TEXT, frame
from tests.support.growth import assert_linear

MAX_BYTES = 200
MASKS = st.none() | st.binary(min_size=4, max_size=4)
CONTROLS = st.builds(frame, st.sampled_from([PING, PONG, CLOSE]), st.binary(max_size=125), mask=MASKS)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """Draw a message within the limit, in any number of fragments with control frames between them."""
    payload = draw(st.binary(max_size=MAX_BYTES))
    cuts = [0, *sorted(draw(st.lists(st.integers(0, len(payload)), max_size=4))), len(payload)]
    sent = b""
    for index, (start, end) in enumerate(itertools.pairwise(cuts)):
        opcode = CONT if index else draw(st.sampled_from([TEXT, BINARY]))
        is_last = index == len(cuts) - 2
        sent += frame(opcode, payload[start:end], fin=is_last, mask=draw(MASKS), width=draw(st.sampled_from([0, 2, 8])))
        if not is_last:
            sent += draw(st.just(b"") | CONTROLS)
    return sent


GOOD = st.lists(messages() | CONTROLS, max_size=5).map(b"".join)
CUTS = st.lists(st.integers(1, 20), max_size=60)


def feed(limits: FrameLimits, data: bytes, cuts: Sequence[int]) -> bytes:
    """Check the data in parts of these sizes, and return all that may be parsed."""
    passed = b""
    for size in cuts:
        passed += limits.check(data[:size])
        data = data[size:]
    return passed + limits.check(data)


def started(size: int) -> bytes:
    """Return a fragment of a message that isn't complete."""
    return frame(TEXT, bytes(size), fin=False)


TOO_LARGE: dict[str, tuple[bytes, bytes]] = {
    "one frame": (b"", frame(TEXT, length=MAX_BYTES + 1)),
    "a binary frame": (b"", frame(BINARY, length=70_000)),
    "2^63 bytes": (b"", frame(TEXT, length=2**63)),
    "a second fragment": (started(150), frame(CONT, length=51)),
    "the last fragment": (started(150) + frame(CONT, bytes(50), fin=False), frame(CONT, length=1)),
    "fragments around a ping": (started(MAX_BYTES) + frame(PING, b"a"), frame(CONT, length=1, fin=False)),
}
MASK_BYTES = 4


@given(GOOD, CUTS)
def test_messages_within_limit_are_passed_on_unchanged(data: bytes, cuts: Sequence[int]) -> None:
    limits = FrameLimits(MAX_BYTES)
    assert feed(limits, data, cuts) == data
    assert (limits.code, limits.incomplete) == (None, False)


@given(GOOD, st.sampled_from(list(TOO_LARGE.values())), CUTS)
def test_too_large_message_is_rejected_at_header_of_its_last_frame(
    before: bytes, large: tuple[bytes, bytes], cuts: Sequence[int]
) -> None:
    begin, header = large
    limits = FrameLimits(MAX_BYTES)
    assert feed(limits, before + begin + header[:-MASK_BYTES], cuts) == before + begin
    assert limits.code == 1009
    assert not limits.incomplete


@given(GOOD, st.binary(min_size=201, max_size=600), CUTS)
def test_only_close_frame_follows_too_large_message(before: bytes, payload: bytes, cuts: Sequence[int]) -> None:
    closing = frame(CLOSE, b"\x03\xf1")
    data = before + frame(TEXT, payload) + frame(PING, b"a") + frame(BINARY, b"next") + closing
    limits = FrameLimits(MAX_BYTES)
    assert feed(limits, data, cuts) == before + closing
    assert limits.code == 1009


@given(GOOD, st.sampled_from([PING, PONG, CLOSE]), st.sampled_from([126, 70_000, 2**63]), CUTS)
def test_long_control_frame_is_rejected_at_its_header(
    before: bytes, opcode: int, length: int, cuts: Sequence[int]
) -> None:
    limits = FrameLimits(MAX_BYTES)
    assert feed(limits, before + frame(opcode, length=length) + frame(TEXT, b"a"), cuts) == before
    assert limits.code == 1002


@pytest.mark.parametrize("opcode", [3, 7])
def test_reserved_opcode_is_left_to_parser(opcode: int) -> None:
    data = frame(opcode, b"a")
    assert FrameLimits(MAX_BYTES).check(data) == data


@given(messages(), st.integers(0, 10_000), CUTS)
def test_message_is_incomplete_until_its_last_byte(message: bytes, at: int, cuts: Sequence[int]) -> None:
    limits = FrameLimits(MAX_BYTES)
    split = at % len(message)
    feed(limits, message[:split], cuts)
    assert limits.incomplete is (split > 0)
    assert limits.begun == (split > 0)
    feed(limits, message[split:], cuts)
    assert not limits.incomplete
    assert limits.begun == 1


@given(st.lists(messages() | CONTROLS, max_size=5), CUTS)
def test_begun_counts_messages_and_control_frames_outside_of_them(units: list[bytes], cuts: Sequence[int]) -> None:
    limits = FrameLimits(MAX_BYTES)
    feed(limits, b"".join(units), cuts)
    assert limits.begun == len(units)


@pytest.mark.parametrize("length", range(132))
@pytest.mark.parametrize("left", range(3))
def test_single_frame_of_any_length_is_followed(length: int, left: int) -> None:
    limits = FrameLimits(1_000)
    sent, next_frame = frame(TEXT, bytes(length)), frame(TEXT, bytes(5))
    sent, rest = sent[: len(sent) - left], sent[len(sent) - left :]
    limits.check(sent)
    assert limits.incomplete is bool(left)
    assert feed(limits, rest + next_frame, [left]) == rest + next_frame
    assert (limits.incomplete, limits.begun) == (False, 2)


@given(st.lists(messages() | CONTROLS | st.sampled_from([large for _, large in TOO_LARGE.values()]), max_size=5))
def test_limits_are_the_same_for_whole_frames_and_for_single_bytes(units: list[bytes]) -> None:
    at_once, by_bytes = FrameLimits(MAX_BYTES), FrameLimits(MAX_BYTES)
    for unit in units:
        assert at_once.check(unit) == feed(by_bytes, unit, [1] * len(unit))
        assert (at_once.code, at_once.incomplete, at_once.is_idle) == (
            by_bytes.code,
            by_bytes.incomplete,
            by_bytes.is_idle,
        )
        assert at_once.begun == by_bytes.begun


@pytest.mark.parametrize("max_bytes", [64, 124, 125, 126, 131, 132, 70_000])
def test_small_limit_applies_to_single_frame(max_bytes: int) -> None:
    limits = FrameLimits(max_bytes)
    assert limits.check(frame(TEXT, bytes(max_bytes)))
    assert limits.check(frame(TEXT, bytes(max_bytes + 1))) == b""
    assert limits.code == 1009


def test_whole_frames_are_passed_on_without_copy() -> None:
    data = frame(TEXT, b"a") * 3
    assert FrameLimits(MAX_BYTES).check(data) is data


def small_frames(n: int) -> bytes:
    return (frame(TEXT, fin=False) + frame(CONT, b"a", fin=False) * 98 + frame(CONT)) * (n // 100)


SPLITS: dict[str, Callable[[bytes], list[bytes]]] = {
    "at once": lambda data: [data],
    "one byte at a time": lambda data: [data[at : at + 1] for at in range(len(data))],
    "in slices": lambda data: [data[at : at + 4_096] for at in range(0, len(data), 4_096)],
}


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
def test_time_grows_with_input_only(split: Callable[[bytes], list[bytes]]) -> None:
    def make(n: int) -> Callable[[], object]:
        parts, limits = split(small_frames(n)), FrameLimits(MAX_BYTES)
        return lambda: [limits.check(part) for part in parts]

    assert_linear(make, 10_000)


@pytest.mark.parametrize("after", [[], [600, SMALL_BYTES]])
def test_small_parts_over_limit_are_rejected(after: list[int]) -> None:
    limit = PartLimit(3)
    assert all(limit.add(size) for size in [1, 600, SMALL_BYTES - 1, SMALL_BYTES, 0, *after])
    assert not limit.add(1)


def test_large_parts_are_not_limited() -> None:
    limit = PartLimit(1)
    assert all(limit.add(SMALL_BYTES) for _ in range(10_000))


def test_turn_ends_after_some_parts() -> None:
    limit = PartLimit(1_000)
    turns = 0
    for _ in range(160):
        limit.add(1)
        turns += limit.turn_ends
    assert turns == 10
