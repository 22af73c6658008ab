"""Subscriptions that are made before it is known which stream holds their patterns."""

from collections.abc import Iterator
from typing import Any

import pytest

from sanic_nats_bridge.sessions import history as history_module
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import running
from tests.support.streams import Stream, read_to


@pytest.fixture
def server() -> Iterator[NatsServer]:
    with NatsServer(jetstream=True) as nats_server:
        yield nats_server


async def test_pattern_goes_to_the_stream_that_holds_it(server: NatsServer) -> None:
    async with Stream.made(server, storage="file") as first, Stream.made(server, storage="file") as second:
        await second.store("a", 1, 2)
        await first.store("a", 3)
        server.stop()
        settings: dict[str, Any] = {
            "subscribe": [">"],
            "history": [">"],
            "streams": dict.fromkeys((first.name, second.name)),
        }
        async with (
            running(servers=server.url, connected=False, **settings | {"confirm_timeout": 0.1}) as bridge,
            bridge.websocket() as client,
        ):
            reply = await client.ask({"subjects": [second.all, first.subject("a")], "from": "all"})
            assert (reply["success"], reply["active"]) == (True, False)
            server.start()
            frames = await read_to(client, "caught_up")
            assert [frame["data"] for frame in frames if frame["type"] == "message"] in ([1, 2, 3], [3, 1, 2])
            assert len(frames[-1]["position"].split("~")) == 2
            await second.store("a", 4)
            assert await client.data(1) == [4]


async def test_pattern_that_no_stream_holds_ends(server: NatsServer) -> None:
    async with Stream.made(server, storage="file") as stream:
        server.stop()
        settings: dict[str, Any] = {"subscribe": [">"], "history": [">"], "streams": {stream.name: None}}
        async with (
            running(servers=server.url, connected=False, **settings | {"confirm_timeout": 0.1}) as bridge,
            bridge.websocket() as client,
        ):
            reply = await client.ask({"subjects": ["other.>", stream.all], "from": "all"})
            assert (reply["success"], reply["active"]) == (True, False)
            server.start()
            frames = await read_to(client, "caught_up")
            (ended,) = (frame for frame in frames if frame["type"] == "unsubscribed")
            assert (ended["subjects"], ended["code"]) == (["other.>"], "history.unavailable")
            assert frames[-1]["subjects"] == [stream.all]


async def test_pattern_is_bound_if_the_streams_become_known_between_two_attempts(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each attempt ends before the streams are known.
    monkeypatch.setattr(history_module, "_KNOWN_SECONDS", 0)
    async with Stream.made(server, storage="file") as first, Stream.made(server, storage="file") as second:
        await second.store("a", 1, 2)
        server.stop()
        settings: dict[str, Any] = {
            "subscribe": [">"],
            "history": [">"],
            "streams": dict.fromkeys((first.name, second.name)),
        }
        async with (
            running(servers=server.url, connected=False, **settings | {"confirm_timeout": 0.1}) as bridge,
            bridge.websocket() as client,
        ):
            reply = await client.ask({"subjects": [second.all], "from": "all"})
            assert (reply["success"], reply["active"]) == (True, False)
            server.start()
            frames = await read_to(client, "caught_up")
            assert [frame["data"] for frame in frames if frame["type"] == "message"] == [1, 2]
