import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanic_nats_bridge.streams.positions import (
    MAX_PARTS,
    MAX_POSITION_LENGTH,
    Point,
    PointEncoder,
    decode_position,
    join_parts,
    same_name,
    stream_key,
)

CREATED = "2026-11-30T16:19:43.88764354Z"
TIME = 1_796_055_583_887
KEY = stream_key("ORDERS", CREATED)

SEQUENCES = st.one_of(st.integers(0, 2**53), st.integers(0, 3_000))
TIMES = st.one_of(st.integers(0, 36**9 - 1), st.integers(TIME, TIME + 3_000))
POINTS = st.builds(Point, SEQUENCES, TIMES)


def encoded(points: dict[str, Point]) -> str:
    return join_parts(PointEncoder(key).encode(*point) for key, point in points.items())


@given(st.dictionaries(st.builds(stream_key, st.text(), st.text()), POINTS, min_size=1, max_size=MAX_PARTS))
def test_position_survives_encoding(points: dict[str, Point]) -> None:
    text = encoded(points)
    assert decode_position(text) == points
    assert re.fullmatch(r"[A-Za-z0-9._~-]+", text)
    assert len(text) <= MAX_POSITION_LENGTH


@given(st.lists(POINTS, min_size=1, max_size=50))
def test_part_does_not_depend_on_the_points_before(points: list[Point]) -> None:
    encoder = PointEncoder(KEY)
    parts = [encoder.encode(*point) for point in points]
    assert parts == [PointEncoder(KEY).encode(*point) for point in points]
    assert [decode_position(part) for part in parts] == [{KEY: point} for point in points]


@pytest.mark.parametrize("first", [0, 36 - 2, 36**2 - 2, 2 * 36**2 - 2, 36**3 - 2, 2**53 - 2])
def test_consecutive_points_have_consecutive_numbers(first: int) -> None:
    encoder = PointEncoder(KEY)
    for number in [*range(first, first + 4), *range(first + 4, first, -1)]:
        _, seq, time = encoder.encode(number, number).split(".")
        assert int(seq, 36) == int(time, 36) == number
        assert seq == time == (seq.lstrip("0") or "0")


def test_four_streams_with_the_largest_sequences_fit_an_id() -> None:
    keys = [stream_key(f"STREAM{number}", CREATED) for number in range(MAX_PARTS)]
    points = {key: Point(2**53, 36**9 - 1) for key in keys}
    assert len(encoded(points)) <= MAX_POSITION_LENGTH
    assert decode_position(encoded(points)) == points


ALPHABET = string.ascii_lowercase + string.digits + "AZ._~-\n ²٣\ud800"


@given(st.one_of(st.text(), st.text(ALPHABET, max_size=140)))
def test_garbage_is_unreadable_or_an_id(text: str) -> None:
    points = decode_position(text)
    assert points is None or encoded(points) == text


PART = f"{KEY}.m2k.sz3k1x"


@given(st.integers(0, len(PART)), st.sampled_from(ALPHABET))
def test_changed_id_is_unreadable_or_another_one(index: int, character: str) -> None:
    for text in (PART[:index] + character + PART[index:], PART[:index] + character + PART[index + 1 :]):
        points = decode_position(text)
        assert points is None or encoded(points) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "~",
        ".",
        KEY,
        f"{KEY}.1",
        f"{KEY}.1.1.1",
        f"{KEY}..1",
        f"{KEY}.1.",
        f"{KEY}.01.1",
        f"{KEY}.1.01",
        f"{KEY}.-1.1",
        f"{KEY}.+1.1",
        f"{KEY}.1_0.1",
        f"{KEY}. 1.1",
        f"{KEY}.A.1",
        f"{KEY}.²٣.1",
        f"{KEY}.1.1\n",
        f"{KEY}.{'z' * 12}.1",
        f"{KEY}.1.{'z' * 10}",
        f"{KEY[1:]}.1.1",
        f"0{KEY}.1.1",
        f"{KEY}.1.1~",
        f"~{KEY}.1.1",
        f"{KEY}.1.1~{KEY}.2.2",
        join_parts(f"aaaaaaaa{number}.1.1" for number in range(MAX_PARTS + 1)),
        "~" * 1_000_000,
    ],
    ids=lambda text: ascii(text[:40]),
)
def test_unreadable_id(text: str) -> None:
    assert decode_position(text) is None


def test_recreated_stream_has_the_same_name_and_another_key() -> None:
    recreated, foreign = stream_key("ORDERS", "2026-11-30T16:19:43.88764355Z"), stream_key("EVENTS", CREATED)
    assert len({KEY, recreated, foreign}) == 3
    assert same_name(KEY, recreated)
    assert not same_name(KEY, foreign)
    assert stream_key("ORDERS", CREATED) == KEY


def test_keys_of_many_streams_differ() -> None:
    keys = {stream_key(f"S{number}", CREATED) for number in range(1_000)}
    assert len(keys) == 1_000
    assert {len(key) for key in keys} == {9}
    assert len({stream_key("S", f"2026-11-30T16:19:{number}Z") for number in range(300)}) > 290
