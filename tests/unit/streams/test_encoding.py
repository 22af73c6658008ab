"""The ids of messages and clients, and messages that share their payloads."""

import pytest

from sanic_nats_bridge.protocol.encoding import MessagePrefix
from sanic_nats_bridge.streams.encoding import encode_record, ids_of, position_of
from sanic_nats_bridge.streams.followed import IdLine
from sanic_nats_bridge.streams.positions import Point, decode_position
from sanic_nats_bridge.streams.window import Record
from tests.unit.streams.test_hub import made

RECORD = Record(12, 1012, "a.b", b"", b"1")


@pytest.mark.parametrize("line", IdLine)
def test_id_is_ahead_of_the_feed_and_its_line_as_the_scope_has_it(line: IdLine) -> None:
    hub, _ = made("ONE", "TWO")
    one, two = hub.feeds
    for feeds in ([one], [one, two]):
        position, event_id = ids_of(hub.scope(feeds, line), one, RECORD)
        before = {feed.key: Point(10, 1000) for feed in feeds}
        assert decode_position(position) == before | {one.key: Point(12, 1012)}
        expected = {IdLine.OWN: position, IdLine.NONE: "", IdLine.BEFORE: position_of({f: f.point for f in feeds})}
        assert event_id == expected[line]
        assert line is not IdLine.BEFORE or decode_position(event_id) == before


def test_position_of_a_client_does_not_depend_on_the_order_of_its_streams() -> None:
    hub, _ = made("ONE", "TWO")
    one, two = hub.feeds
    points = {one: Point(1, 1001), two: Point(2, 1002)}
    assert position_of(points) == position_of(dict(reversed(points.items())))
    assert decode_position(position_of(points)) == {one.key: points[one], two.key: points[two]}


def test_copies_of_a_message_share_its_payload() -> None:
    hub, _ = made("ONE")
    (feed,) = hub.feeds
    first = encode_record(RECORD, MessagePrefix("a.*"), 1, "x", "", feed=feed)
    other = encode_record(RECORD, MessagePrefix("a.b"), 1, "y", "z", first, feed=feed)
    assert (other.first, other.position, other.event_id) == (first, "y", "z")
    assert (first.seq, first.time, first.stream) == (other.seq, other.time, other.stream) == (12, 1012, feed)
