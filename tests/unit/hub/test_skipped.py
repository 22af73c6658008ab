from hypothesis import given
from hypothesis import strategies as st

from sanic_nats_bridge.hub.skipped import SkippedMessages
from sanic_nats_bridge.protocol.encoding import EncodedMessage, MessagePrefix

PREFIXES = [MessagePrefix(pattern) for pattern in ("*", ">", "a")]


@given(st.lists(st.tuples(st.sampled_from(PREFIXES), st.sampled_from("abc")), max_size=30))
def test_newest_message_of_each_pattern_and_subject_is_found_in_order(sent: list[tuple[MessagePrefix, str]]) -> None:
    messages = [EncodedMessage(prefix, subject, b"", b"%d" % number) for number, (prefix, subject) in enumerate(sent)]
    skipped = SkippedMessages(messages)
    last = {key: number for number, key in enumerate(sent)}
    assert [(int(message.payload), older) for message, older in skipped.newest] == [
        (number, sent.count(key) - 1) for key, number in sorted(last.items(), key=lambda item: item[1])
    ]
    assert sum(skipped.by_pattern.values()) == len(messages)
    assert all(
        count == [prefix.pattern for prefix, _ in sent].count(pattern) for pattern, count in skipped.by_pattern.items()
    )
