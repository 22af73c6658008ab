"""The last message of each subject, and key-value buckets, with a real nats-server."""

import asyncio
import json
from typing import Any

import pytest

from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import WAIT_SECONDS, running, until
from tests.support.streams import Stream, jetstream_fixture, read_to

Frames = list[dict[str, Any]]


server = jetstream_fixture("module")


def settings(stream: Stream, **options: Any) -> dict[str, Any]:
    return {"subscribe": [">"], "history": [">"], "streams": {stream.name: None}} | options


async def state_of(server: NatsServer, stream: Stream, *patterns: str, after: str | None = None) -> Frames:
    """Return the frames of a client that asks for the state, from the reply to ``caught_up``."""
    async with running(servers=server.url, **settings(stream)) as bridge, bridge.websocket() as client:
        command: dict[str, Any] = {"action": "subscribe", "subjects": patterns, "from": "last_per_subject"}
        reply = await client.ask(command | ({} if after is None else {"after": after}))
        assert reply["success"], reply
        frames = await read_to(client, "caught_up")
        await until(lambda: not bridge.runtime.sessions.streams or bridge.runtime.sessions.streams.feeds[0].is_standing)
        # Only that of the feed.
        assert len(await stream.consumers()) == 1
        return [reply, *frames]


def shown(frames: Frames, *keys: str) -> list[Any]:
    messages = [frame for frame in frames if frame["type"] == "message"]
    return [tuple(frame.get(key) for key in keys) for frame in messages]


@pytest.mark.parametrize("config", [{}, {"allow_direct": False}, {"max_msgs_per_subject": 1}])
async def test_state_is_the_last_message_of_each_subject(server: NatsServer, config: dict[str, Any]) -> None:
    async with Stream.made(server, **config) as stream:
        await stream.store("a", 1, 2)
        await stream.store("b", 3)
        await stream.store("c", 4)
        await stream.store("a", 5)
        frames = await state_of(server, stream, stream.all)
        subjects = [stream.subject(name) for name in "bca"]
        assert shown(frames, "subject", "data") == list(zip(subjects, [3, 4, 5], strict=True))
        assert (frames[-1]["replayed"], frames[-1]["recovered"]) == (3, True)
        # It goes on from there.
        await stream.store("c", 6)
        assert shown(await state_of(server, stream, stream.all, after=frames[-1]["position"]), "data") == [(6,)]


async def test_patterns_that_overlap_or_include_each_other(server: NatsServer) -> None:
    async with Stream.made(server) as stream:
        await stream.store("a.x", 1, 2)
        await stream.store("b.x", 3)
        await stream.store("b.y", 4)
        patterns = [stream.subject(name) for name in (">", "b.*", "*.x", "none")]
        frames = await state_of(server, stream, *patterns)
        for pattern, expected in zip(patterns, ([2, 3, 4], [3, 4], [2, 3], []), strict=True):
            own = [frame["data"] for frame in frames if frame.get("pattern") == pattern]
            assert own == expected
        assert frames[-1]["replayed"] == 7
        await stream.store("b.x", 5)
        frames = await state_of(server, stream, *patterns, after=frames[-1]["position"])
        assert shown(frames, "pattern", "data") == [(pattern, 5) for pattern in patterns[:3]]


async def test_empty_state(server: NatsServer) -> None:
    async with Stream.made(server) as stream:
        await stream.store("a", 1)
        frames = await state_of(server, stream, stream.subject("b"), stream.subject("c.*"))
        assert [frame["type"] for frame in frames] == ["reply", "caught_up"]
        await stream.store("b", 2)
        frames = await state_of(server, stream, stream.subject("b"), after=frames[-1]["position"])
        assert (shown(frames, "data"), frames[-1]["recovered"]) == ([(2,)], True)


async def test_bucket_of_many_keys(server: NatsServer) -> None:
    async with Stream.made(server, max_msgs_per_subject=1) as stream:
        await publish_keys(stream, range(10_000))
        await publish_keys(stream, range(0, 10_000, 7), add=1)
        frames = await state_of(server, stream, stream.all)
        expected = {stream.subject(f"k.{key}"): key + (key % 7 == 0) for key in range(10_000)}
        assert dict(shown(frames, "subject", "data")) == expected
        assert frames[-1]["replayed"] == 10_000
        ids = [frame["id"] for frame in frames if frame["type"] == "message"]
        # A client that is cut off in between gets all of it again.
        assert len(set(ids[:-1])) == 1
        again = await state_of(server, stream, stream.all, after=ids[5_000])
        assert dict(shown(again, "subject", "data")) == expected
        assert "gap" not in {frame["type"] for frame in again}


async def test_largest_state_of_the_default_settings(server: NatsServer) -> None:
    async with (
        Stream.made(server, max_msgs_per_subject=1) as stream,
        running(servers=server.url, **settings(stream)) as bridge,
    ):
        most = bridge.runtime.settings.max_snapshot_subjects
        for first in range(0, most, 10_000):
            await publish_keys(stream, range(first, first + 10_000))
        query = {"subjects": stream.all, "from": '"last_per_subject"'}

        async def read_up_to(end: bytes) -> bytes:
            async with bridge.http.get(f"{bridge.url}/events", params=query) as response:
                assert response.status == 200
                events = bytearray()
                while end not in events[-2_000:]:
                    part = await response.content.readany()
                    assert part, events[-2_000:]
                    events += part
                return bytes(events)

        events = await read_up_to(b"event: caught_up")
        assert events.count(b'"type":"message"') == most
        assert f'"replayed":{most},"recovered":true'.encode() in events
        await stream.store("k.more", 1)
        events = await read_up_to(b"event: reply")
        assert b'"success":false,"code":"history.unavailable"' in events
        assert b"The state exceeds max_snapshot_subjects of this server" in events


async def publish_keys(stream: Stream, keys: range, add: int = 0) -> None:
    for key in keys[:-1]:
        await stream.client.publish(stream.subject(f"k.{key}"), b"%d" % (key + add))
    await stream.store(f"k.{keys[-1]}", keys[-1] + add)


async def test_keys_that_change_while_the_state_is_read(server: NatsServer) -> None:
    async with Stream.made(server, max_msgs_per_subject=1) as stream:
        await publish_keys(stream, range(2_000))
        is_over = asyncio.Event()

        async def change() -> None:
            number = 0
            while not is_over.is_set():
                number += 1
                await stream.store(f"k.{number * 37 % 2_000}", number)

        changing = asyncio.create_task(change())
        try:
            async with running(servers=server.url, **settings(stream)) as bridge:
                for _ in range(10):
                    async with bridge.websocket() as client:
                        await client.send({"subjects": [stream.all], "from": "last_per_subject"})
                        frames = await read_to(client, "caught_up")
                        assert {each for (each,) in shown(frames, "subject")} == {
                            stream.subject(f"k.{key}") for key in range(2_000)
                        }
                        for subject in (stream.subject(f"k.{key}") for key in range(0, 2_000, 100)):
                            own = [frame["id"] for frame in frames if frame.get("subject") == subject]
                            assert len(own) == len(set(own))
        finally:
            is_over.set()
            await changing


async def test_deleted_purged_and_expired_keys(server: NatsServer) -> None:
    async with Stream.made(server, max_msgs_per_subject=1) as stream:
        config = (await ask(stream, "STREAM.INFO"))["config"]
        limit = {"allow_msg_ttl": True, "subject_delete_marker_ttl": 3_600_000_000_000, "allow_rollup_hdrs": True}
        await ask(stream, "STREAM.UPDATE", **config | limit)
        await stream.store("kept", 1)
        await stream.store("deleted", 2)
        await stream.store("purged", 3)
        await stream.store("expired", 4, headers={"Nats-TTL": "1s"})
        await stream.store("deleted", None, headers={"KV-Operation": "DEL"})
        await stream.store("purged", None, headers={"KV-Operation": "PURGE", "Nats-Rollup": "sub"})
        async with running(servers=server.url, **settings(stream)) as bridge, bridge.websocket() as client:
            await client.send({"subjects": [stream.all], "from": "new"})
            await read_to(client, "caught_up")
            # The marker of the expired key.
            live = await client.frame()
            assert (live["subject"], live["operation"]) == (stream.subject("expired"), "purge")
        frames = await state_of(server, stream, stream.all)
        assert shown(frames, "subject", "operation") == [
            (stream.subject("kept"), None),
            (stream.subject("deleted"), "delete"),
            (stream.subject("purged"), "purge"),
            (stream.subject("expired"), "purge"),
        ]


async def ask(stream: Stream, operation: str, **request: Any) -> dict[str, Any]:
    subject = f"$JS.API.{operation}.{stream.name}"
    reply = await stream.client.request(subject, json.dumps(request).encode() if request else b"", WAIT_SECONDS)
    answer: dict[str, Any] = json.loads(reply.data)
    assert "error" not in answer, answer
    return answer
