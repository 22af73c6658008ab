"""The check of event streams that are cut finds what it must find, and the proxy's responses end at their places."""

import random
from typing import Any

import pytest

from tests.support.event_cuts import Cuts, Place, Receiver, Response

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
EVENTS = [
    b"retry: 100\nevent: welcome\ndata: {}\n\n",
    b"data: 1\n\n",
    b"event: caught_up\ndata: {}\n\n",
    b"data: 2\n\n",
]
WHOLE = HEAD + b"".join(EVENTS)


def position(number: int) -> str:
    return f"ordersabc.{number}.1"


def message(number: int, line: int | None = None, pattern: str = "x.>") -> tuple[Any, ...]:
    return "message", pattern, number, position(number), position(number if line is None else line)


def received(*entries: tuple[Any, ...], patterns: tuple[str, ...] = ("x.>",)) -> Receiver:
    receiver = Receiver(patterns, "new")
    for entry in entries:
        receiver.note(*entry)
    return receiver


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize(
    ("place", "end", "kind"),
    [
        (Place(is_live=False, events=0, more=5), 5, ("start", True)),
        (Place(is_live=False, events=1, more=0), len(HEAD + EVENTS[0]), ("replay", False)),
        (Place(is_live=False, events=1, more=3), len(HEAD + EVENTS[0]) + 3, ("replay", True)),
        (Place(is_live=True, events=1, more=0), len(WHOLE) - len(EVENTS[3]), ("live", False)),
        (Place(is_live=True, events=1, more=4), len(WHOLE) - len(EVENTS[3]) + 4, ("live", True)),
    ],
)
def test_response_ends_at_its_place(size: int, place: Place, end: int, kind: tuple[str, bool]) -> None:
    response, passed, is_cut = Response(place), b"", False
    for begin in range(0, len(WHOLE), size):
        part, is_cut = response.take(WHOLE[begin : begin + size])
        passed += part
        if is_cut:
            break
    assert (passed, is_cut, response.kind) == (WHOLE[:end], True, kind)
    assert response.in_header is (end == 5)


def test_response_without_a_place_goes_through() -> None:
    response = Response(Cuts(random.Random(1), 0).place())
    assert response.take(WHOLE) == (WHOLE, False)


def test_right_events_pass() -> None:
    receiver = received(("caught_up", position(3)), message(5), ("open",), message(6))
    assert receiver.is_complete(lambda _: [2, 5, 6])
    receiver.check(lambda _: [2, 5, 6])


@pytest.mark.parametrize("entries", [[message(5), message(5)], [message(6), message(5)], [message(5, line=4)]])
def test_wrong_events_fail(entries: list[tuple[Any, ...]]) -> None:
    with pytest.raises(AssertionError):
        received(*entries)


def test_lost_message_fails() -> None:
    receiver = received(("caught_up", position(3)), message(5))
    with pytest.raises(AssertionError):
        receiver.check(lambda _: [4, 5])


def test_overlapping_patterns_repeat_the_last_message_after_a_cut_alone() -> None:
    patterns = ("x.>", "x.1")
    before = [message(4, 3), message(4, 3, "x.1"), message(5, 4), message(5, 4, "x.1"), ("open",)]
    assert received(*before, message(5, 4), message(5, 4, "x.1"), patterns=patterns).repeats == 2
    for wrong in (message(4, 3), message(6, 6)):
        with pytest.raises(AssertionError):
            received(*before, wrong, patterns=patterns)
    with pytest.raises(AssertionError):
        received(*before, message(6, 5), message(6, 5), patterns=patterns)
