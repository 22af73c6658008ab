"""JetStream beside the bridge: messages that it delivers under other subjects than those that were subscribed."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import nats
import pytest
from nats.js.api import AckPolicy, ConsumerConfig, RePublish, StreamConfig

from sanic_nats_bridge import Permissions
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import Bridge, EventClient, WebSocketClient, running, until
from tests.support.streams import jetstream_fixture

jetstream = jetstream_fixture("module")


async def permissions(_: object) -> Permissions:
    return Permissions(["users.42.>", "live.>"], deny=["src.secret.>"], aliases={"me.": "users.42."})


@asynccontextmanager
async def follower(bridge: Bridge, route: str, pattern: str) -> AsyncIterator[EventClient | WebSocketClient]:
    if route == "events":
        async with bridge.events(pattern) as events:
            yield events
    else:
        async with bridge.websocket() as client:
            await client.follow(pattern)
            yield client


@pytest.mark.parametrize("route", ["websocket", "events"])
@pytest.mark.parametrize(
    ("deliver", "pattern"),
    [("live.exact", "live.exact"), ("live.w.1", "live.w.*"), ("live.deep", "live.>"), ("users.42.feed", "me.feed"),
     ("users.42.feed", "me.*")],
)  # fmt: skip
async def test_push_consumer_shows_no_client_its_original_subjects(
    jetstream: NatsServer, route: str, deliver: str, pattern: str
) -> None:
    client = await nats.connect(jetstream.url)
    stream = client.jetstream()
    await stream.add_stream(name="S", subjects=["src.>"])
    try:
        async with (
            running(servers=jetstream.url, permissions=permissions) as bridge,
            follower(bridge, route, pattern) as browser,
        ):
            # The consumer starts when its deliver subject itself is subscribed to.
            await client.subscribe(deliver)
            consumer = ConsumerConfig(durable_name="c", deliver_subject=deliver, ack_policy=AckPolicy.NONE)
            await stream.add_consumer("S", consumer)
            for subject in ("src.secret.private.token", "src.open", "src.users.42.feed"):
                await stream.publish(subject, b'"secret"')
            await until(lambda: bridge.extension.stats().lost["subject_mismatch"] == 3)
            await client.publish(deliver, b'"open"')
            await client.flush()
            assert await browser.data(1) == ["open"]
    finally:
        await stream.delete_stream("S")
        await client.close()


async def test_idle_heartbeats_of_consumer_are_counted_and_not_delivered(jetstream: NatsServer) -> None:
    client = await nats.connect(jetstream.url)
    stream = client.jetstream()
    await stream.add_stream(name="S", subjects=["src.>"])
    try:
        async with running(servers=jetstream.url, permissions=permissions) as bridge, bridge.websocket() as browser:
            await browser.follow("live.beats")
            consumer = ConsumerConfig(
                durable_name="c",
                deliver_subject="live.beats",
                idle_heartbeat=0.1,
                flow_control=True,
                ack_policy=AckPolicy.NONE,
            )
            await stream.add_consumer("S", consumer)
            await until(lambda: bridge.extension.stats().status_messages > 2)
            await client.publish("live.beats", b'"open"')
            await client.flush()
            assert await browser.data(1) == ["open"]
    finally:
        await stream.delete_stream("S")
        await client.close()


async def test_republished_messages_arrive_under_their_new_subject(jetstream: NatsServer) -> None:
    client = await nats.connect(jetstream.url)
    stream = client.jetstream()
    await stream.add_stream(StreamConfig(name="S", subjects=["src.>"], republish=RePublish(src="src.>", dest="live.>")))
    try:
        async with running(servers=jetstream.url, permissions=permissions) as bridge, bridge.websocket() as browser:
            await browser.follow("live.>")
            await stream.publish("src.secret.42", b'"republished"')
            assert await browser.data(1) == ["republished"]
    finally:
        await stream.delete_stream("S")
        await client.close()
