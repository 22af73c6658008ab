from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanic_nats_bridge.metrics.counters import Tally
from sanic_nats_bridge.protocol.encoding import Delivery, Form, Source
from sanic_nats_bridge.protocol.messages import Gap
from sanic_nats_bridge.sessions.slow_consumer import LeftOut

SOURCES = {pattern: Source(pattern) for pattern in ("a", "b", "*")}


def message(pattern: str, subject: str, payload: bytes = b"1") -> Delivery:
    return Delivery(SOURCES[pattern], subject, b"", payload)


def size(*messages: Delivery, form: Form = Form.WEBSOCKET) -> int:
    return sum(len(each.encoded(form)) + 128 for each in messages)


def encoded(*messages: Delivery, form: Form = Form.WEBSOCKET) -> list[bytes]:
    return [each.encoded(form) for each in messages]


def test_without_room_every_message_is_counted_for_its_pattern() -> None:
    left_out = LeftOut(Form.WEBSOCKET, 0, Tally())
    left_out.add([message("a", "a"), message("*", "a"), message("a", "a")])
    left_out.add([message("*", "b")])
    assert dict(left_out.lost) == {"a": 2, "*": 2}
    assert list(left_out.kept) == []


def test_without_room_nothing_is_encoded() -> None:
    left = message("a", "a")
    LeftOut(Form.WEBSOCKET, 0, Tally()).add([left])
    assert (left.json, left.frame) == (None, None)


def test_the_newest_of_each_subject_is_kept_in_the_order_of_arrival() -> None:
    left_out = LeftOut(Form.WEBSOCKET, 10_000, Tally())
    first, second, other, third = (message("*", subject) for subject in ("x", "y", "z", "x"))
    left_out.add([first, second])
    left_out.add([other, third])
    assert list(left_out.kept) == encoded(second, other, third)
    assert dict(left_out.lost) == {"*": 1}


def test_one_subject_under_two_patterns_is_kept_twice() -> None:
    left_out = LeftOut(Form.WEBSOCKET, 10_000, Tally())
    left_out.add([message("a", "a"), message("*", "a")])
    assert list(left_out.kept) == encoded(message("a", "a"), message("*", "a"))
    assert dict(left_out.lost) == {}


@pytest.mark.parametrize("form", Form)
def test_the_oldest_gives_way_when_the_room_is_full(form: Form) -> None:
    messages = [message("*", subject) for subject in "xyz"]
    left_out = LeftOut(form, size(*messages[1:], form=form), Tally())
    left_out.add(messages)
    assert list(left_out.kept) == encoded(*messages[1:], form=form)
    assert dict(left_out.lost) == {"*": 1}


def test_the_room_of_a_message_that_gives_way_is_free_again() -> None:
    old, new = (message("a", "a", payload) for payload in (b"1" * 300, b"2" * 10))
    rest = message("b", "b")
    left_out = LeftOut(Form.WEBSOCKET, size(old), Tally())
    left_out.add([old, new, rest])
    assert list(left_out.kept) == encoded(new, rest)
    assert dict(left_out.lost) == {"a": 1}


def test_a_message_that_has_no_room_at_all_takes_the_place_of_no_other() -> None:
    small, giant = message("a", "a"), message("b", "b", b"2" * 1000)
    left_out = LeftOut(Form.WEBSOCKET, size(small), Tally())
    left_out.add([small, giant])
    assert list(left_out.kept) == encoded(small)
    assert dict(left_out.lost) == {"b": 1}


def test_what_is_taken_is_kept_no_longer_and_counts_as_lost() -> None:
    left_out = LeftOut(Form.WEBSOCKET, 10_000, Tally())
    left_out.add([message("*", "x"), message("*", "x"), message("*", "y"), message("a", "a")])
    assert left_out.take("*") == Gap(subjects=["*"], lost=3, reason="slow_consumer")
    assert left_out.take("*") is None
    assert list(left_out.kept) == encoded(message("a", "a"))
    assert dict(left_out.lost) == {}


MESSAGES = st.builds(
    message, st.sampled_from([*SOURCES]), st.sampled_from("abc"), st.integers(0, 60).map(lambda digits: b"1" * digits)
)


@given(st.lists(st.lists(MESSAGES, max_size=6), max_size=12), st.integers(60, 600), st.sampled_from(Form))
def test_what_is_kept_and_what_is_lost_are_those_of_a_simple_model(
    batches: list[list[Delivery]], room: int, form: Form
) -> None:
    left_out = LeftOut(form, room, Tally())
    kept: list[Delivery] = []
    for batch in batches:
        left_out.add(batch)
        for new in batch:
            kept = [old for old in kept if (old.source, old.subject) != (new.source, new.subject)]
            if size(new, form=form) <= room:
                kept.append(new)
            while size(*kept, form=form) > room:
                del kept[0]
    assert list(left_out.kept) == encoded(*kept, form=form)
    left = Counter(each.source.pattern for batch in batches for each in batch)
    assert Counter(dict(left_out.lost)) == left - Counter(each.source.pattern for each in kept)


def test_what_is_not_for_the_client_any_more_is_lost() -> None:
    messages = [message("*", "x"), message("*", "y"), message("a", "a")]
    left_out = LeftOut(Form.WEBSOCKET, 10_000, Tally())
    left_out.add(messages)
    left_out.drop(lambda pattern, subject: (pattern, subject) == ("*", "x"))
    assert list(left_out.kept) == encoded(*messages[1:])
    assert dict(left_out.lost) == {"*": 1}
