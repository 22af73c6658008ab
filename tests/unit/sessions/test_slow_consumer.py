from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanic_nats_bridge.hub.skipped import SkippedMessages
from sanic_nats_bridge.metrics.counters import Counters
from sanic_nats_bridge.protocol.encoding import EncodedMessage, MessagePrefix, WireFormat
from sanic_nats_bridge.protocol.messages import Gap
from sanic_nats_bridge.sessions.slow_consumer import SlowConsumer

SOURCES = {pattern: MessagePrefix(pattern) for pattern in ("a", "b", "*")}


def message(pattern: str, subject: str, payload: bytes = b"1") -> EncodedMessage:
    return EncodedMessage(SOURCES[pattern], subject, b"", payload)


def size(*messages: EncodedMessage, wire_format: WireFormat = WireFormat.WEBSOCKET) -> int:
    return sum(len(each.encoded(wire_format)) + 128 for each in messages)


def encoded(*messages: EncodedMessage, wire_format: WireFormat = WireFormat.WEBSOCKET) -> list[bytes]:
    return [each.encoded(wire_format) for each in messages]


def test_lost_messages_are_counted_per_pattern_if_room_is_zero() -> None:
    slow_consumer = SlowConsumer(WireFormat.WEBSOCKET, 0, Counters())
    slow_consumer.add(SkippedMessages([message("a", "a"), message("*", "a"), message("a", "a")]))
    slow_consumer.add(SkippedMessages([message("*", "b")]))
    assert dict(slow_consumer.lost) == {"a": 2, "*": 2}
    assert list(slow_consumer.kept) == []


def test_message_is_not_encoded_if_room_is_zero() -> None:
    left = message("a", "a")
    SlowConsumer(WireFormat.WEBSOCKET, 0, Counters()).add(SkippedMessages([left]))
    assert (left.json, left.frame) == (None, None)


def test_newest_message_of_each_subject_is_kept_in_arrival_order() -> None:
    slow_consumer = SlowConsumer(WireFormat.WEBSOCKET, 10_000, Counters())
    first, second, other, third = (message("*", subject) for subject in ("x", "y", "z", "x"))
    slow_consumer.add(SkippedMessages([first, second]))
    slow_consumer.add(SkippedMessages([other, third]))
    assert list(slow_consumer.kept) == encoded(second, other, third)
    assert dict(slow_consumer.lost) == {"*": 1}


def test_subject_is_kept_once_per_matching_pattern() -> None:
    slow_consumer = SlowConsumer(WireFormat.WEBSOCKET, 10_000, Counters())
    slow_consumer.add(SkippedMessages([message("a", "a"), message("*", "a")]))
    assert list(slow_consumer.kept) == encoded(message("a", "a"), message("*", "a"))
    assert dict(slow_consumer.lost) == {}


@pytest.mark.parametrize("wire_format", WireFormat)
def test_oldest_message_is_dropped_when_room_is_full(wire_format: WireFormat) -> None:
    messages = [message("*", subject) for subject in "xyz"]
    slow_consumer = SlowConsumer(wire_format, size(*messages[1:], wire_format=wire_format), Counters())
    slow_consumer.add(SkippedMessages(messages))
    assert list(slow_consumer.kept) == encoded(*messages[1:], wire_format=wire_format)
    assert dict(slow_consumer.lost) == {"*": 1}


def test_replaced_message_frees_its_room() -> None:
    old, new = (message("a", "a", payload) for payload in (b"1" * 300, b"2" * 10))
    rest = message("b", "b")
    slow_consumer = SlowConsumer(WireFormat.WEBSOCKET, size(old), Counters())
    slow_consumer.add(SkippedMessages([old, new, rest]))
    assert list(slow_consumer.kept) == encoded(new, rest)
    assert dict(slow_consumer.lost) == {"a": 1}


def test_message_larger_than_room_drops_no_other_message() -> None:
    small, giant = message("a", "a"), message("b", "b", b"2" * 1000)
    slow_consumer = SlowConsumer(WireFormat.WEBSOCKET, size(small), Counters())
    slow_consumer.add(SkippedMessages([small, giant]))
    assert list(slow_consumer.kept) == encoded(small)
    assert dict(slow_consumer.lost) == {"b": 1}


def test_remove_drops_kept_messages_and_counts_them_as_lost() -> None:
    slow_consumer = SlowConsumer(WireFormat.WEBSOCKET, 10_000, Counters())
    slow_consumer.add(SkippedMessages([message("*", "x"), message("*", "x"), message("*", "y"), message("a", "a")]))
    assert slow_consumer.remove("*") == Gap(subjects=["*"], lost=3, reason="slow_consumer")
    assert slow_consumer.remove("*") is None
    assert list(slow_consumer.kept) == encoded(message("a", "a"))
    assert dict(slow_consumer.lost) == {}


MESSAGES = st.builds(
    message, st.sampled_from([*SOURCES]), st.sampled_from("abc"), st.integers(0, 60).map(lambda digits: b"1" * digits)
)


@given(st.lists(st.lists(MESSAGES, max_size=6), max_size=12), st.integers(60, 600), st.sampled_from(WireFormat))
def test_kept_and_lost_messages_match_simple_model(
    batches: list[list[EncodedMessage]], room: int, wire_format: WireFormat
) -> None:
    slow_consumer = SlowConsumer(wire_format, room, Counters())
    kept: list[EncodedMessage] = []
    for batch in batches:
        slow_consumer.add(SkippedMessages(batch))
        # Those that a newer one of the same batch replaces displace no others.
        newest = {(each.prefix, each.subject): number for number, each in enumerate(batch)}
        for new in [each for number, each in enumerate(batch) if newest[each.prefix, each.subject] == number]:
            kept = [old for old in kept if (old.prefix, old.subject) != (new.prefix, new.subject)]
            if size(new, wire_format=wire_format) <= room:
                kept.append(new)
            while size(*kept, wire_format=wire_format) > room:
                del kept[0]
    assert list(slow_consumer.kept) == encoded(*kept, wire_format=wire_format)
    left = Counter(each.prefix.pattern for batch in batches for each in batch)
    assert Counter(dict(slow_consumer.lost)) == left - Counter(each.prefix.pattern for each in kept)


def test_excluded_messages_are_dropped_and_counted_as_lost() -> None:
    messages = [message("*", "x"), message("*", "y"), message("a", "a")]
    slow_consumer = SlowConsumer(WireFormat.WEBSOCKET, 10_000, Counters())
    slow_consumer.add(SkippedMessages(messages))
    slow_consumer.drop_excluded(lambda pattern, subject: (pattern, subject) == ("*", "x"))
    assert list(slow_consumer.kept) == encoded(*messages[1:])
    assert dict(slow_consumer.lost) == {"*": 1}
