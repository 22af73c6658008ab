"""The streams of a worker: which sessions get which ids, and the patterns that no session follows any more."""

from typing import Any

import pytest

from sanic_nats_bridge import Permissions
from sanic_nats_bridge.auth.expirations import ExpirationQueue
from sanic_nats_bridge.errors import SubscriptionLimitExceeded
from sanic_nats_bridge.hub.broadcast import Broadcaster
from sanic_nats_bridge.metrics.counters import Counters
from sanic_nats_bridge.protocol.encoding import WireFormat
from sanic_nats_bridge.settings import Settings
from sanic_nats_bridge.streams.feed import Feed, StreamLife
from sanic_nats_bridge.streams.followed import IdLine
from sanic_nats_bridge.streams.hub import StreamHub
from sanic_nats_bridge.streams.positions import Point, decode_position
from sanic_nats_bridge.streams.window import Record
from tests.support.fakes import FakeSubscriber


def made(*names: str, **options: Any) -> tuple[StreamHub, Broadcaster]:
    """Return a hub whose feeds are at the positions of streams that exist."""
    settings = Settings.resolve({"streams": {name: ["a.>"] for name in names}, **options}, {})
    counters = Counters()
    broadcaster = Broadcaster(counters, ExpirationQueue(lambda keys: None))
    hub = StreamHub(settings, broadcaster, counters, prefix="_X")
    for number, feed in enumerate(hub.feeds):
        feed.life = StreamLife(f"key{number:06}", Point(0, 0))
        feed.seq, feed.time = 10, 1000
    return hub, broadcaster


def deliver(hub: StreamHub, feed: Feed, seq: int, subject: str = "a.b") -> None:
    """Deliver a message as the feed does."""
    followed = tuple(each for each in feed.followed if subject.startswith(each.pattern[:2]))
    hub.deliver(feed, Record(seq, 1000 + seq, subject, b"", b"1"), followed)
    feed.seq, feed.time = seq, 1000 + seq


def grant(pattern: str, **options: Any) -> Any:
    return Permissions(["a.>"], **options).grant(pattern)


async def test_ids_hold_the_streams_of_the_scope() -> None:
    hub, broadcaster = made("ONE", "TWO")
    one, two = hub.feeds
    followed = hub.follow(one, "a.>")
    clients = [FakeSubscriber(), FakeSubscriber(WireFormat.EVENTS), FakeSubscriber(WireFormat.EVENTS)]
    scopes = [hub.scope([one], IdLine.OWN), hub.scope([two, one], IdLine.OWN), hub.scope([one], IdLine.BEFORE)]
    for client, scope in zip(clients, scopes, strict=True):
        hub.attach(client, followed, grant("a.>"), scope)
    deliver(hub, one, 12)
    broadcaster.flush()
    alone, both, before = (b"".join(client.writes).decode("latin-1") for client in clients)
    assert decode_position(alone.partition('"id":"')[2].partition('"')[0]) == {one.key: (12, 1012)}
    expected = {one.key: (12, 1012), two.key: (10, 1000)}
    assert decode_position(both.partition('"id":"')[2].partition('"')[0]) == expected
    assert decode_position(both.partition("id: ")[2].partition("\n")[0]) == expected
    assert decode_position(before.partition("id: ")[2].partition("\n")[0]) == {one.key: (10, 1000)}
    assert decode_position(before.partition('"id":"')[2].partition('"')[0]) == {one.key: (12, 1012)}


async def test_denied_subjects_are_not_delivered() -> None:
    hub, broadcaster = made("ONE")
    (feed,) = hub.feeds
    followed = hub.follow(feed, "a.>")
    open_client, other = FakeSubscriber(), FakeSubscriber()
    hub.attach(open_client, followed, grant("a.>"), hub.scope([feed], IdLine.OWN))
    hub.attach(other, followed, grant("a.>", deny=["a.secret"]), hub.scope([feed], IdLine.OWN))
    deliver(hub, feed, 11, "a.secret")
    deliver(hub, feed, 12, "a.open")
    broadcaster.flush()
    assert b"".join(open_client.writes).count(b'"type":"message"') == 2
    assert b"a.secret" not in b"".join(other.writes)
    assert b"a.open" in b"".join(other.writes)


async def test_detached_subscriber_gets_nothing_more() -> None:
    hub, broadcaster = made("ONE")
    (feed,) = hub.feeds
    followed = hub.follow(feed, "a.>")
    client = FakeSubscriber()
    view = hub.attach(client, followed, grant("a.>"), hub.scope([feed], IdLine.OWN))
    deliver(hub, feed, 11)
    hub.detach(client, view)
    assert b"".join(client.writes).count(b'"type":"message"') == 1
    deliver(hub, feed, 12)
    broadcaster.flush()
    assert b"".join(client.writes).count(b'"type":"message"') == 1
    assert followed.channels == {}
    assert [record.seq for record in followed.window.after(10)] == [11, 12]


async def test_pattern_is_kept_for_clients_that_return() -> None:
    hub, _ = made("ONE")
    (feed,) = hub.feeds
    followed = hub.follow(feed, "a.>")
    hub.release(feed, followed)
    assert feed.get("a.>") is followed
    assert hub.follow(feed, "a.>") is followed


async def test_idle_patterns_make_room() -> None:
    hub, _ = made("ONE", max_patterns=2)
    (feed,) = hub.feeds
    first, second = hub.follow(feed, "a.1"), hub.follow(feed, "a.2")
    with pytest.raises(SubscriptionLimitExceeded):
        hub.follow(feed, "a.3")
    hub.release(feed, first)
    hub.follow(feed, "a.3")
    assert [each.pattern for each in feed.followed] == ["a.2", "a.3"]
    assert first.window.is_closed
    assert not second.window.is_closed


async def test_first_stream_that_may_hold_a_pattern_is_found() -> None:
    hub, _ = made("ONE", "TWO")
    assert hub.find("a.b") is hub.feeds[0]
    assert hub.find("b.a") is None
