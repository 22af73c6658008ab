"""Subscriptions that are moved to the streams that hold their patterns."""

from dataclasses import replace
from typing import Any

from sanic_nats_bridge import Permissions
from sanic_nats_bridge.sessions.binding import MAX_STREAMS, bind
from sanic_nats_bridge.sessions.resumption import Entry
from sanic_nats_bridge.streams.feed import Feed
from sanic_nats_bridge.streams.followed import IdLine
from sanic_nats_bridge.streams.hub import StreamHub
from tests.support.stored import info_of
from tests.unit.streams.test_hub import made


def know(feed: Feed, *subjects: str) -> None:
    feed.info = replace(info_of(1), name=feed.name, subjects=subjects)


def entry(hub: StreamHub, pattern: str) -> Entry:
    """Return a subscription to a pattern, on the first stream that may hold it."""
    feed = hub.find(pattern)
    assert feed is not None
    return Entry(Permissions([">"]).grant(pattern), feed, hub.follow(feed, pattern), IdLine.OWN)


async def test_nothing_changes_before_all_streams_are_known() -> None:
    hub, _ = made("ONE", "TWO")
    one, two = hub.feeds
    entries = [entry(hub, "a.1"), entry(hub, "a.2")]
    know(one, "a.1")
    assert bind(entries, [], hub) is None
    assert [(each.feed, each.is_bound) for each in entries] == [(one, False)] * 2
    know(two, "a.2")
    binding = bind(entries, [], hub)
    assert binding is not None
    assert (binding.unheld, binding.refused) == ([], [])
    assert [(each.feed, each.is_bound) for each in entries] == [(one, True), (two, True)]
    assert [each.followed.claims for each in entries] == [1, 1]
    assert entries[1].followed in two.followed


async def test_pattern_that_no_stream_holds_stays_unbound() -> None:
    hub, _ = made("ONE")
    both = [entry(hub, "a.1"), entry(hub, "a.2")]
    know(hub.feeds[0], "a.1")
    binding = bind(both, [], hub)
    assert binding is not None
    assert (binding.unheld, [each.is_bound for each in both]) == (both[1:], [True, False])


async def test_stream_that_had_ended_the_pattern_is_followed_again() -> None:
    hub, _ = made("ONE")
    (feed,) = hub.feeds
    only = entry(hub, "a.1")
    ended, only.followed.is_ended = only.followed, True
    feed.remove(ended)
    know(feed, "a.>")
    assert bind([only], [], hub) is not None
    assert only.followed is not ended
    assert only.followed in feed.followed


async def test_limits_refuse_single_patterns() -> None:
    hub, _ = made(*(f"S{number}" for number in range(MAX_STREAMS + 2)))
    entries = [entry(hub, f"a.{number}") for number in range(MAX_STREAMS + 2)]
    for number, feed in enumerate(hub.feeds):
        know(feed, f"a.{number}")
    binding = bind(entries, [hub.feeds[1]], hub)
    assert binding is not None
    refused: list[Any] = [(each.grant.pattern, error.code) for (each,), error in binding.refused]
    assert refused == [("a.4", "limit.subscriptions"), ("a.5", "limit.subscriptions")]
    assert [each.is_bound for each in entries] == [True] * 4 + [False] * 2


async def test_limit_of_the_worker_refuses_single_patterns() -> None:
    hub, _ = made("ONE", "TWO", max_patterns=2)
    one, two = hub.feeds
    entries = [entry(hub, "a.1"), entry(hub, "a.2")]
    know(one, "a.1")
    know(two, "a.2")
    binding = bind(entries, [], hub)
    assert binding is not None
    ((refused, error),) = binding.refused
    assert (refused, error.code) == (entries[1:], "limit.subscriptions")
    assert entries[1].followed.claims == 1
