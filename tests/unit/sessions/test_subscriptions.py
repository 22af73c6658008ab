import asyncio

import pytest

from sanic_nats_bridge.auth.permissions import Permissions
from sanic_nats_bridge.auth.policy import SubscriptionPolicy
from sanic_nats_bridge.errors import BridgeError, SubscriptionLimitExceeded, UnknownSession
from sanic_nats_bridge.hub.hub import Hub
from sanic_nats_bridge.sessions.pattern_shares import PatternShares
from sanic_nats_bridge.sessions.subscriptions import Subscriptions
from tests.support.bridge import until
from tests.support.fakes import FakeLink, FakeSubscriber

OWN = {"me.": "t.42."}


def subscriptions(hub: Hub, permissions: Permissions, most: int = 10) -> tuple[Subscriptions, FakeSubscriber]:
    subscriber, shares = FakeSubscriber(), PatternShares(100)
    return Subscriptions(subscriber, hub, SubscriptionPolicy(most), permissions, shares, "a client"), subscriber


async def test_nats_gets_real_subject_and_client_gets_alias() -> None:
    link, hub = FakeLink.with_hub(confirms=True)
    mine, subscriber = subscriptions(hub, Permissions([">"], aliases=OWN))
    assert await mine.subscribe(["me.x", "me.>", "plain", "me.x"], 5) == (["me.x", "me.>", "plain"], True)
    assert link.patterns == ["t.42.x", "t.42.>", "plain"]
    assert mine.patterns == ("me.x", "me.>", "plain")
    link.refuse("t.42.x")
    assert subscriber.told == [("nats.refused", "me.x")]


async def test_nats_refusal_names_alias_instead_of_real_subject() -> None:
    link, hub = FakeLink.with_hub()
    mine, _ = subscriptions(hub, Permissions([">"], aliases=OWN))
    waiting = asyncio.create_task(mine.subscribe(["me.x", "b"], 5))
    await until(lambda: len(link.patterns) == 2)
    link.refuse("t.42.x")
    link.confirm("b")
    with pytest.raises(BridgeError) as refused:
        await waiting
    assert (refused.value.code, refused.value.subjects) == ("nats.refused", ("me.x",))
    assert "t.42" not in str(refused.value)
    assert mine.patterns == ()
    await until(lambda: hub.patterns == ())


async def test_two_aliases_of_one_pattern_share_one_nats_subscription() -> None:
    link, hub = FakeLink.with_hub(confirms=True)
    mine, subscriber = subscriptions(hub, Permissions([">"], aliases=OWN | {"us.": "t.42."}))
    await mine.subscribe(["me.>", "us.>"], 5)
    link.deliver("t.42.x")
    hub.flush()
    assert [frame["subject"] for frame in subscriber.frames] == ["me.x", "us.x"]
    assert link.patterns == ["t.42.>"]
    assert mine.unsubscribe(["me.>"]) == ["me.>"]
    link.deliver("t.42.x")
    hub.flush()
    assert [frame["subject"] for frame in subscriber.frames[2:]] == ["us.x"]
    mine.close()
    await until(lambda: link.patterns == [])


async def test_narrowed_permissions_end_subscriptions_and_filter_messages() -> None:
    link, hub = FakeLink.with_hub(confirms=True)
    mine, subscriber = subscriptions(hub, Permissions([">"], aliases=OWN))
    await mine.subscribe(["a.>", "b.>", "me.>", "c"], 5)
    for subject in ("a.x", "b.x", "t.42.x"):
        link.deliver(subject, b"1")
    ended = mine.update_permissions(Permissions(["a.>", "c", "t.>"], ["a.x"], aliases={"me.": "t.43."}))
    assert ended == ["b.>", "me.>"]
    assert subscriber.data == [1, 1, 1]
    for subject in ("a.x", "a.y", "b.x", "t.42.x", "t.43.x", "c"):
        link.deliver(subject, b"2")
    hub.flush()
    assert [frame["subject"] for frame in subscriber.frames[3:]] == ["a.y", "c"]
    assert mine.patterns == ("a.>", "c")
    await until(lambda: set(link.patterns) == {"a.>", "c"})


async def test_widened_permissions_deliver_more_without_second_sub() -> None:
    link, hub = FakeLink.with_hub(confirms=True)
    mine, subscriber = subscriptions(hub, Permissions([">"], ["a.x"]))
    other, other_subscriber = subscriptions(hub, Permissions([">"], ["a.x"]))
    await mine.subscribe(["a.>"], 5)
    await other.subscribe(["a.>"], 5)
    link.deliver("a.x", b"1")
    assert mine.update_permissions(Permissions([">"])) == []
    link.deliver("a.x", b"2")
    hub.flush()
    assert subscriber.data == [2]
    assert other_subscriber.data == []
    assert link.sent == [("SUB", "a.>")]


async def test_permission_change_applies_to_pending_subscribe_command() -> None:
    link, hub = FakeLink.with_hub()
    mine, _ = subscriptions(hub, Permissions([">"]))
    refused = asyncio.create_task(mine.subscribe(["a", "b"], 5))
    await until(lambda: len(link.patterns) == 2)
    mine.update_permissions(Permissions(["a"]))
    link.confirm("a", "b")
    with pytest.raises(BridgeError) as error:
        await refused
    assert (error.value.code, error.value.subjects) == ("subject.forbidden", ("b",))
    assert mine.patterns == ()
    narrowed = asyncio.create_task(mine.subscribe(["a"], 5))
    await asyncio.sleep(0)
    mine.update_permissions(Permissions(["a"], ["b"]))
    assert await narrowed == (["a"], True)


async def test_pending_subscribe_succeeds_if_permissions_are_restored() -> None:
    link, hub = FakeLink.with_hub()
    everything = Permissions([">"])
    mine, _ = subscriptions(hub, everything)
    first = asyncio.create_task(mine.subscribe(["a"], 5))
    await until(lambda: link.patterns == ["a"])
    link.confirm("a")
    await first
    both = asyncio.create_task(mine.subscribe(["a", "b"], 5))
    await until(lambda: link.patterns == ["a", "b"])
    assert mine.update_permissions(Permissions(["b"])) == ["a"]
    mine.update_permissions(everything)
    link.confirm("b")
    assert await both == (["a", "b"], True)
    assert mine.patterns == ("a", "b")


async def test_pending_subscribe_of_ended_session_leaves_no_pattern() -> None:
    link, hub = FakeLink.with_hub()
    mine, _ = subscriptions(hub, Permissions([">"]))
    waiting = asyncio.create_task(mine.subscribe(["a"], 5))
    await until(lambda: link.patterns == ["a"])
    mine.close()
    link.confirm("a")
    with pytest.raises(UnknownSession):
        await waiting
    await until(lambda: hub.patterns == ())


async def test_max_patterns_rejects_new_pattern_unless_one_is_idle() -> None:
    link, hub = FakeLink.with_hub(confirms=True, unsubscribe_delay=60, max_patterns=3)
    mine, _ = subscriptions(hub, Permissions([">"]))
    other, other_subscriber = subscriptions(hub, Permissions([">"]))
    await other.subscribe(["o"], 5)
    await mine.subscribe(["a", "b"], 5)
    with pytest.raises(SubscriptionLimitExceeded):
        await mine.subscribe(["c"], 5)
    assert await mine.subscribe(["o"], 5) == (["o"], True)
    mine.unsubscribe(["a"])
    assert link.patterns == ["o", "a", "b"]
    assert await mine.subscribe(["c"], 5) == (["c"], True)
    assert hub.patterns == ("o", "b", "c")
    await until(lambda: link.patterns == ["o", "b", "c"])
    with pytest.raises(SubscriptionLimitExceeded):
        await mine.subscribe(["d", "e"], 5)
    link.deliver("o")
    hub.flush()
    assert other_subscriber.data == [1]
