"""Lost, forged and limited history, as clients see it, with a real nats-server."""

import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from nats.js.api import StreamConfig

from sanic_nats_bridge.streams import judgement
from sanic_nats_bridge.streams.positions import PointEncoder, decode_position
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import WebSocketClient, running, until
from tests.support.streams import Stream, jetstream_fixture, read_to

Frames = list[dict[str, Any]]
Change = Callable[[Stream], Awaitable[None]]


server = jetstream_fixture("module")


def settings(*streams: Stream, **options: Any) -> dict[str, Any]:
    """Return the settings of a bridge whose clients may read everything of these streams."""
    return {"subscribe": [">"], "history": [">"], "streams": {each.name: None for each in streams}} | options


async def subscribe(client: WebSocketClient, *subjects: str, **fields: Any) -> Frames:
    """Send a subscribe, and return the frames from the reply to ``caught_up``."""
    if "start" in fields:
        fields["from"] = fields.pop("start")
    await client.send({"action": "subscribe", "subjects": subjects, **fields})
    reply = await client.frame()
    assert reply["success"], reply
    return [reply, *await read_to(client, "caught_up")]


async def with_new_worker(server: NatsServer, *streams: Stream, options: Any = (), **fields: Any) -> Frames:
    """Subscribe to everything with a worker that was just started, so that its windows are empty."""
    all_settings = settings(*streams, **dict(options))
    async with running(servers=server.url, **all_settings) as bridge, bridge.websocket() as client:
        return await subscribe(client, *[each.all for each in streams], **fields)


async def position_in(server: NatsServer, *streams: Stream) -> str:
    position: str = (await with_new_worker(server, *streams, start="new"))[-1]["position"]
    return position


def data(frames: Frames) -> list[Any]:
    return [frame["data"] for frame in frames if frame["type"] == "message"]


def gaps(frames: Frames) -> list[tuple[str, int | None]]:
    return [(frame["reason"], frame["lost"]) for frame in frames if frame["type"] == "gap"]


def check(frames: Frames, *reasons: str) -> list[Any]:
    """Check that the frames have these gaps, before all messages; return the data of the messages."""
    assert [reason for reason, _ in gaps(frames)] == list(reasons)
    kinds = [frame["type"] for frame in frames]
    assert kinds == ["reply"] + ["gap"] * len(reasons) + ["message"] * kinds.count("message") + ["caught_up"]
    assert frames[0]["recovered"] is frames[-1]["recovered"] is not reasons
    assert frames[-1]["replayed"] == kinds.count("message")
    return data(frames)


async def nothing(stream: Stream) -> None:
    """Leave the stream as it is."""


async def purge(stream: Stream) -> None:
    await stream.jetstream.purge_stream(stream.name)


async def purge_up_to_position(stream: Stream) -> None:
    await stream.jetstream.purge_stream(stream.name, seq=4)


async def purge_above_position(stream: Stream) -> None:
    await stream.jetstream.purge_stream(stream.name, seq=5)


async def delete_one(stream: Stream) -> None:
    await stream.jetstream.delete_msg(stream.name, 5)


async def delete_first_ones(stream: Stream) -> None:
    for seq in range(1, 5):
        await stream.jetstream.delete_msg(stream.name, seq)


async def recreate(stream: Stream) -> None:
    await stream.jetstream.delete_stream(stream.name)
    await stream.create()
    await stream.store("a", *range(10, 18))


async def recreate_shorter(stream: Stream) -> None:
    await stream.jetstream.delete_stream(stream.name)
    await stream.create()
    await stream.store("a", 10)


async def expire(stream: Stream) -> None:
    await stream.jetstream.update_stream(
        StreamConfig(name=stream.name, subjects=[stream.all], allow_direct=True, storage="memory", max_age=0.1)  # type: ignore[arg-type]
    )
    messages = 1
    while messages:
        messages = (await stream.jetstream.stream_info(stream.name)).state.messages


CHANGES: dict[str, tuple[dict[str, Any], Change, list[str], list[int]]] = {
    "nothing": ({}, nothing, [], [4, 5, 6]),
    "bounded, but not passed": ({"max_msgs": 5}, nothing, [], [4, 5, 6]),
    "max_msgs": ({"max_msgs": 2}, nothing, ["expired"], [5, 6]),
    "max_bytes": ({"max_bytes": 70}, nothing, ["expired"], [5, 6]),
    "max_age": ({}, expire, ["expired"], []),
    "purge": ({}, purge, ["expired"], []),
    "purge of what was received": ({}, purge_up_to_position, [], [4, 5, 6]),
    "purge of more": ({}, purge_above_position, ["expired"], [5, 6]),
    "deleted message inside": ({}, delete_one, [], [4, 6]),
    "deleted messages before": ({}, delete_first_ones, ["expired"], [5, 6]),
    "recreated": ({}, recreate, ["reset"], list(range(10, 18))),
    "recreated and shorter": ({}, recreate_shorter, ["reset"], [10]),
    "overwritten": ({"max_msgs_per_subject": 1}, nothing, [], [6]),
    "overwritten and emptied": ({"max_msgs_per_subject": 1}, purge, ["expired"], []),
    "overwritten and bounded": ({"max_msgs_per_subject": 1, "max_msgs": 5}, nothing, ["expired"], [6]),
    "read one by one": ({"allow_direct": False}, nothing, [], [4, 5, 6]),
    "read one by one, purged": ({"allow_direct": False}, purge, ["expired"], []),
}


@pytest.mark.parametrize("name", CHANGES)
async def test_change_of_a_stream_while_a_client_is_disconnected(server: NatsServer, name: str) -> None:
    config, change, reasons, shown = CHANGES[name]
    async with Stream.made(server, **config) as stream:
        await stream.store("a", 1, 2, 3)
        after = await position_in(server, stream)
        await stream.store("a", 4, 5, 6)
        await change(stream)
        assert check(await with_new_worker(server, stream, after=after, start="all"), *reasons) == shown
        if reasons:
            assert check(await with_new_worker(server, stream, after=after, start="new"), *reasons) == []
            assert check(await with_new_worker(server, stream, after=after), *reasons) == []


async def test_windows_have_messages_that_the_stream_has_lost(server: NatsServer) -> None:
    async with Stream.made(server) as stream, running(servers=server.url, **settings(stream)) as bridge:
        async with bridge.websocket() as client:
            after = (await subscribe(client, stream.all, start="new"))[-1]["position"]
            await stream.store("a", 1, 2, 3)
            assert await client.data(3) == [1, 2, 3]
            await purge(stream)
        async with bridge.websocket() as client:
            assert check(await subscribe(client, stream.all, after=after)) == [1, 2, 3]


def lose_messages(folder: Path) -> None:
    """Remove the messages of the only stream of a server, but not the stream."""
    (messages,) = folder.rglob("streams/*/msgs")
    shutil.rmtree(messages)


@pytest.mark.parametrize("stored", [2, 3, 6])
async def test_server_that_has_lost_its_messages_uses_their_numbers_again(stored: int, tmp_path: Path) -> None:
    with NatsServer(config=f'jetstream {{ store_dir: "{tmp_path}" }}') as server:
        async with Stream.made(server, storage="file") as stream:
            await stream.store("a", 1, 2, 3)
            after = await position_in(server, stream)
            created = (await stream.jetstream.stream_info(stream.name)).created
            server.kill()
            lose_messages(tmp_path)
            server.start()
            await until(lambda: stream.client.stats["reconnects"] and stream.client.is_connected)
            await stream.store("a", *range(10, 10 + stored))
            assert (await stream.jetstream.stream_info(stream.name)).created == created
            frames = await with_new_worker(server, stream, after=after, start="all")
            assert check(frames, "reset") == list(range(10, 10 + stored))


# Ids


async def test_forged_ids_of_clients_that_may_read_the_past(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judgement, "_LAG_SECONDS", 0.1)
    async with Stream.made(server) as stream, Stream.made(server) as other:
        await stream.store("a", 1, 2, 3, 4)
        await other.store("a", 1)
        ((key, point),) = (decode_position(await position_in(server, stream)) or {}).items()
        foreign = await position_in(server, other)
        now = int(time.time() * 1000)
        encode = PointEncoder(key).encode
        forged = {
            "unknown": ["garbage", f"{key}.1", "~", foreign, encode(10**6, now + 10**7)],
            "reset": [encode(2, 1), encode(10**6, now), f"{key[:5]}zzzz.1.1"],
        }
        async with running(servers=server.url, **settings(stream)) as bridge:
            for reason, ids in forged.items():
                for each in ids:
                    async with bridge.websocket() as client:
                        frames = await subscribe(client, stream.all, after=each, start="all")
                        assert check(frames, reason) == [1, 2, 3, 4]
            async with bridge.websocket() as client:
                # The position of a client that has nothing. It misses nothing, because it gets everything.
                assert check(await subscribe(client, stream.all, after=encode(0, 1), start="all")) == [1, 2, 3, 4]
            async with bridge.websocket() as client:
                # The time is not trusted, and need not be right.
                assert check(await subscribe(client, stream.all, after=encode(2, now))) == [3, 4]
        assert point.seq == 4


@pytest.mark.parametrize("window", [0, 120])
@pytest.mark.parametrize("allowed", [True, False])
async def test_age_of_messages_is_judged_by_the_stream(server: NatsServer, window: int, allowed: bool) -> None:
    async with Stream.made(server) as stream:
        await stream.store("a", 1)
        ((key, _),) = (decode_position(await position_in(server, stream)) or {}).items()
        await stream.store("a", 2, 3)
        options = {"resume_window": window, "history": [">"] if allowed else []}
        for live in (False, True):
            async with (
                running(servers=server.url, **settings(stream, **options)) as bridge,
                bridge.websocket() as first,
                bridge.websocket() as client,
            ):
                if live:
                    await subscribe(first, stream.all, start="new")
                    await stream.store("a", 4)
                    await first.data(1)
                after = PointEncoder(key).encode(1, int(time.time() * 1000))
                frames = await subscribe(client, stream.all, after=after)
                if allowed or window:
                    assert check(frames) == [2, 3, 4][: 3 if live else 2]
                else:
                    assert check(frames, "expired") == []


async def test_streams_are_judged_one_by_one(server: NatsServer) -> None:
    async with Stream.made(server) as kept, Stream.made(server) as purged, Stream.made(server) as new:
        for stream in (kept, purged, new):
            await stream.store("a", f"{stream.prefix} 1")
        after = await position_in(server, kept, purged)
        for stream in (kept, purged, new):
            await stream.store("a", f"{stream.prefix} 2", f"{stream.prefix} 3")
        await purge(purged)
        await purged.store("a", f"{purged.prefix} 4")
        frames = await with_new_worker(server, kept, purged, new, after=after, start={"last": 1})
        by_reason = {frame["reason"]: frame["subjects"] for frame in frames if frame["type"] == "gap"}
        assert by_reason == {"expired": [purged.all], "unknown": [new.all]}
        shown = [f"{kept.prefix} 2", f"{kept.prefix} 3", f"{purged.prefix} 4", f"{new.prefix} 3"]
        assert sorted(data(frames)) == sorted(shown)
        assert check(await with_new_worker(server, kept, purged, new, after=frames[-1]["position"])) == []


async def test_client_that_is_cut_off_between_two_streams(server: NatsServer) -> None:
    async with Stream.made(server) as one, Stream.made(server) as two:
        after = await position_in(server, one, two)
        await one.store("a", 1, 2)
        await two.store("a", 3, 4)
        messages = [each for each in await with_new_worker(server, one, two, after=after) if each["type"] == "message"]
        for count, message in enumerate(messages, 1):
            rest = check(await with_new_worker(server, one, two, after=message["id"]))
            assert sorted([each["data"] for each in messages[:count]] + rest) == [1, 2, 3, 4]


# Limits


@pytest.mark.parametrize("direct", [True, False])
async def test_number_of_messages_is_bounded(server: NatsServer, direct: bool) -> None:
    async with Stream.made(server, allow_direct=direct) as stream:
        await stream.store("a", 0)
        after = await position_in(server, stream)
        await stream.store("a", *range(1, 41))
        await stream.store("b", *range(41, 51))
        options = {"max_replay_messages": 20}
        frames = await with_new_worker(server, stream, after=after, options=options)
        assert gaps(frames) == [("backlog", 30)]
        assert check(frames, "backlog") == list(range(31, 51))
        frames = await with_new_worker(server, stream, start="all", options=options)
        assert check(frames, "backlog") == list(range(31, 51))
        async with running(servers=server.url, **settings(stream, **options)) as bridge, bridge.websocket() as client:
            patterns = [stream.subject(name) for name in ("a", "b", "*", "none")]
            frames = await subscribe(client, *patterns, after=after)
            # The patterns overlap, so each message counts twice.
            assert 16 <= len(check(frames, "backlog")) <= 20
            assert frames[-2]["data"] == 50


async def test_number_of_bytes_is_bounded(server: NatsServer) -> None:
    async with Stream.made(server) as stream:
        after = await position_in(server, stream)
        await stream.store("a", *["x" * 10_000] * 200)
        frames = await with_new_worker(server, stream, after=after, options={"max_replay_bytes": 500_000})
        kinds = [frame["type"] for frame in frames]
        # The gap is where reading has stopped.
        assert kinds.index("gap") == len(frames) - 2
        assert gaps(frames) == [("backlog", None)]
        assert 50 <= kinds.count("message") < 150
        assert (frames[0]["recovered"], frames[-1]["recovered"]) == (True, False)


async def test_too_large_state_is_refused_or_skipped(server: NatsServer) -> None:
    async with Stream.made(server) as stream:
        for number in range(6):
            await stream.store(f"k.{number}", number)
        options = {"max_snapshot_subjects": 5}
        async with running(servers=server.url, **settings(stream, **options)) as bridge, bridge.websocket() as client:
            request = {"action": "subscribe", "subjects": [stream.all], "from": "last_per_subject"}
            reply = await client.ask(request)
            assert (reply["success"], reply["code"]) == (False, "history.unavailable")
            assert reply["message"] == f"The state exceeds max_snapshot_subjects of this server: '{stream.all}'"
            frames = await subscribe(client, stream.all, after="garbage", start="last_per_subject")
            assert check(frames, "unknown") == []
            await stream.store("k.1", "live")
            assert await client.data(1) == ["live"]
        assert await stream.consumers() == []


@pytest.mark.parametrize("direct", [True, False])
async def test_last_messages_of_several_patterns_share_the_limit(server: NatsServer, direct: bool) -> None:
    async with Stream.made(server, allow_direct=direct) as stream, Stream.made(server) as other:
        await stream.store("rare", *range(3))
        await stream.store("a", *range(10, 60))
        await stream.store("b", *range(100, 150))
        await other.store("a", *range(200, 250))
        options = settings(stream, other, max_replay_messages=20)
        async with running(servers=server.url, **options) as bridge:
            patterns = [stream.subject(name) for name in ("rare", "a", "b", "none")]
            async with bridge.websocket() as client:
                frames = await subscribe(client, *patterns, start={"last": 20})
                assert check(frames, "backlog") == [*range(3), *range(52, 60), *range(141, 150)]
                assert gaps(frames) == [("backlog", None)]
                assert next(each["subjects"] for each in frames if each["type"] == "gap") == patterns
            async with bridge.websocket() as client:
                assert check(await subscribe(client, *patterns, start={"last": 5})) == [
                    *range(3), *range(55, 60), *range(145, 150)
                ]  # fmt: skip
            async with bridge.websocket() as client:
                frames = await subscribe(client, stream.subject("a"), other.all, start={"last": 20})
                assert sorted(check(frames, "backlog")) == [*range(50, 60), *range(240, 250)]
                assert frames[-1]["recovered"] is False


@pytest.mark.parametrize("hidden", [False, True])
async def test_number_of_lost_messages_is_exact_or_null(server: NatsServer, hidden: bool) -> None:
    async with Stream.made(server) as stream:
        await stream.store("a", *range(30))
        for seq in (3, 4, 9):
            await stream.jetstream.delete_msg(stream.name, seq)
        options: dict[str, Any] = {"max_replay_messages": 20, "deny": [stream.subject("secret")] if hidden else []}
        lost = None if hidden else 7
        assert gaps(await with_new_worker(server, stream, start="all", options=options)) == [("backlog", lost)]


# Disconnected


async def test_client_that_resumes_while_nats_is_disconnected() -> None:
    with NatsServer(jetstream=True) as server:
        async with (
            Stream.made(server, storage="file") as stream,
            running(servers=server.url, **settings(stream)) as bridge,
            bridge.websocket() as client,
        ):
            after = (await subscribe(client, stream.all, start="new"))[-1]["position"]
            await stream.store("a", 1, 2, 3)
            await client.data(3)
            server.kill()
            await until(lambda: bridge.extension.client is None)
            async with bridge.websocket() as other:
                assert check(await subscribe(other, stream.all, after=after)) == [1, 2, 3]
                server.start()
                await until(lambda: stream.client.stats["reconnects"] and stream.client.is_connected)
                await stream.store("a", 4)
                assert data(await read_to(other, "message")) == [4]
