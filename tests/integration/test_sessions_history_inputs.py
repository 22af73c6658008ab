"""Unusual values of ``from`` and ``after``, on both transports, by POST, in a query and as Last-Event-ID."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from urllib.parse import urlencode

import pytest

from sanic_nats_bridge.streams import judgement
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import Bridge, EventClient, WebSocketClient, running
from tests.support.raw import session_of
from tests.support.streams import Stream, jetstream_fixture, read_to

WAYS = ["websocket", "POST to websocket", "POST to events", "query", "Last-Event-ID"]
FOREIGN = [
    "x" * 129,
    "x" * 5_000,
    "",
    " ",
    "a b",
    "a\u00e9",
    "~",
    "a~b",
    "..",
    "%",
    "0",
    "zzzzzzzzz.zzzzzzzzzzz.zzzzzzzzz",
    "~".join(f"zzzzzzzz{number}.1.1" for number in range(5)),
]
"""Strings other than ids, and ids of other servers."""
STARTS: list[Any] = [
    "oldest",
    "",
    {"last": 0},
    {"last": -1},
    {"last": 10_001},
    {"last": 10**30},
    {"last": 1.5},
    {"last": 1, "first": 1},
    [],
    1,
    None,
]
NO_JSON = ["{", '{"last":', '{"last":1', "[", '"new', "{'last':1}", "null", "NaN", "\x00", "\u00e9"]


server = jetstream_fixture("module")


@asynccontextmanager
async def bridge_on(server: NatsServer, *streams: Stream) -> AsyncIterator[Bridge]:
    options: dict[str, Any] = {"subscribe": [">"], "history": [">"], "streams": {each.name: None for each in streams}}
    async with running(servers=server.url, command_burst=1_000, **options) as bridge:
        yield bridge


class Asking:
    """Clients that subscribe in one of the ways, each in a new session."""

    def __init__(self, bridge: Bridge, stack: AsyncExitStack, way: str) -> None:
        self._bridge = bridge
        self._stack = stack
        self._way = way

    async def ask(self, *subjects: str, **fields: Any) -> tuple[dict[str, Any], WebSocketClient | EventClient | None]:
        """Return the reply to a subscribe, and the client if there is a session."""
        if "start" in fields:
            fields["from"] = fields.pop("start")
        if self._way in ("query", "Last-Event-ID"):
            return await self._query(subjects, fields)
        client: WebSocketClient | EventClient = await self._stack.enter_async_context(
            self._bridge.events() if self._way == "POST to events" else self._bridge.websocket()
        )
        return await self.again(client, *subjects, **fields), client

    async def again(self, client: Any, *subjects: str, **fields: Any) -> dict[str, Any]:
        """Return the reply to a subscribe in the same session; by POST for one that began with a query."""
        if self._way == "websocket":
            return dict(await client.ask({"subjects": subjects, **fields}))
        return (await self._bridge.post("/subscribe", {"session": client.session, "subjects": subjects, **fields}))[1]

    async def _query(
        self, subjects: tuple[str, ...], fields: dict[str, Any]
    ) -> tuple[dict[str, Any], EventClient | None]:
        query = [("subjects", subject) for subject in subjects]
        headers = {}
        if "from" in fields:
            start = fields["from"]
            query.append(("from", start if isinstance(start, str) else json.dumps(start)))
        if "after" in fields and self._way == "query":
            query.append(("after", fields["after"]))
        elif "after" in fields:
            headers["Last-Event-ID"] = fields["after"].encode().decode("latin-1")
        response = await self._stack.enter_async_context(
            self._bridge.http.get(f"{self._bridge.url}/events?{urlencode(query)}", headers=headers)
        )
        if response.status != 200:
            return dict(await response.json()), None
        client = EventClient(response)
        client.welcome = await client.frame()
        return await client.frame(), client


@asynccontextmanager
async def asking(bridge: Bridge, way: str) -> AsyncIterator[Asking]:
    async with AsyncExitStack() as stack:
        yield Asking(bridge, stack, way)


def data(frames: list[dict[str, Any]]) -> list[Any]:
    return [frame["data"] for frame in frames if frame["type"] == "message"]


@pytest.mark.parametrize("way", WAYS)
async def test_unreadable_id_is_unknown_and_never_an_error(server: NatsServer, way: str) -> None:
    async with Stream.made(server) as stream, bridge_on(server, stream) as bridge:
        await stream.store("a", 1, 2)
        for after in FOREIGN:
            if way == "Last-Event-ID" and not after.strip():
                continue  # none, by WHATWG HTML, section 9.2.5
            async with asking(bridge, way) as client:
                reply, session = await client.ask(stream.all, start="all", after=after)
                assert (reply["success"], reply["resumable"], reply["recovered"]) == (True, True, False), (after, reply)
                assert session is not None
                gap, *messages, caught_up = await read_to(session, "caught_up")
                assert (gap["type"], gap["reason"], gap["lost"]) == ("gap", "unknown", None), after
                assert (data(messages), caught_up["recovered"]) == ([1, 2], False), after


@pytest.mark.parametrize("way", WAYS)
async def test_numbers_of_ids_may_be_huge(server: NatsServer, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judgement, "_LAG_SECONDS", 0.05)
    async with Stream.made(server) as stream, bridge_on(server, stream) as bridge:
        await stream.store("a", 1, 2)
        async with bridge.websocket() as client:
            await client.send({"subjects": [stream.all], "from": "new"})
            key, _, time = (await read_to(client, "caught_up"))[-1]["position"].split(".")
        z = "z"
        for seq, moment, reason in [
            (z * 11, time, "reset"),
            (z * 11, z * 9, "unknown"),
            ("1", z * 9, None),
            ("2", z * 9, None),
            ("0", z * 9, None),
            (z * 12, time, "unknown"),
            (z * 11, z * 10, "unknown"),
            (z * 100, "0", "unknown"),
            ("01", time, "unknown"),
            ("-1", time, "unknown"),
        ]:
            async with asking(bridge, way) as asker:
                reply, session = await asker.ask(stream.all, start="new", after=f"{key}.{seq}.{moment}")
                assert reply["success"], (seq, moment, reply)
                assert session is not None
                frames = await read_to(session, "caught_up")
                reasons = [frame["reason"] for frame in frames if frame["type"] == "gap"]
                assert reasons == [reason] * (reason is not None), (seq, moment)
                assert frames[-1]["recovered"] is (reason is None)


@pytest.mark.parametrize("way", WAYS)
async def test_invalid_start_is_rejected(server: NatsServer, way: str) -> None:
    async with Stream.made(server) as stream, bridge_on(server, stream) as bridge:
        for start in STARTS:
            async with asking(bridge, way) as client:
                reply, session = await client.ask(stream.all, start=start)
                assert (reply["success"], reply["code"]) == (False, "command.invalid"), start
                if session is not None:
                    assert session_of(bridge, session.session).subscriptions == ()


@pytest.mark.parametrize("value", NO_JSON)
async def test_invalid_json_in_the_query_is_rejected(server: NatsServer, value: str) -> None:
    async with Stream.made(server) as stream, bridge_on(server, stream) as bridge, asking(bridge, "query") as client:
        reply, session = await client.ask(stream.all, start=value)
        assert (reply["success"], reply["code"], session) == (False, "command.invalid", None)
        assert "'from' must be" in reply["message"]


@pytest.mark.parametrize(
    "query", ["from=new&from=new", "from=all&from=new", "after=a&after=a", "from=new&after=a&after=b"]
)
@pytest.mark.parametrize("last_event_id", [{}, {"Last-Event-ID": "a"}], ids=["", "Last-Event-ID"])
async def test_repeated_start_in_the_query_is_not_supported(
    server: NatsServer, query: str, last_event_id: dict[str, str]
) -> None:
    async with Stream.made(server) as stream, bridge_on(server, stream) as bridge:
        for subjects in (f"subjects={stream.all}&", ""):
            url = f"{bridge.url}/events?{subjects}{query}"
            async with bridge.http.get(url, headers=last_event_id) as response:
                reply = await response.json()
                assert (response.status, reply["code"]) == (400, "command.unsupported")
        async with bridge.unwelcome_websocket(query) as client:
            # Neither is it on the other transport, even once.
            frame = await client.frame()
            assert (frame["type"], frame["code"], frame["reconnect"]) == ("close", 4400, False)


@pytest.mark.parametrize("way", WAYS)
async def test_pattern_that_is_held_stays_as_it_is(server: NatsServer, way: str) -> None:
    async with Stream.made(server) as stream, bridge_on(server, stream) as bridge, asking(bridge, way) as asker:
        await stream.store("a", 1, 2)
        # Twice in one command is once.
        reply, client = await asker.ask(stream.all, stream.all, start="all")
        assert reply["subjects"] == [stream.all]
        assert client is not None
        frames = await read_to(client, "caught_up")
        assert (data(frames), frames[-1]["replayed"], frames[-1]["subjects"]) == ([1, 2], 2, [stream.all])
        for fields in ({"from": "all"}, {"from": {"last": 1}}, {"after": "x"}, {"after": "x", "from": "all"}, {}):
            reply = await asker.again(client, stream.all, **fields)
            assert (reply["success"], reply["active"]) == (True, True)
            assert reply.get("resumable", True) is True
            assert "recovered" not in reply
        reply = await asker.again(client, stream.all, stream.subject("b"), **{"from": "all"})
        assert reply["success"]
        frames = await read_to(client, "caught_up")
        assert ([frame["type"] for frame in frames], frames[-1]["subjects"]) == (["caught_up"], [stream.subject("b")])
        await stream.store("a", 3)
        assert await client.data(1) == [3]


@pytest.mark.parametrize("way", WAYS)
async def test_fifth_stream_of_a_session_is_refused(server: NatsServer, way: str) -> None:
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(Stream.made(server)) for _ in range(5)]
        bridge = await stack.enter_async_context(bridge_on(server, *streams))
        asker = await stack.enter_async_context(asking(bridge, way))
        subjects = [stream.all for stream in streams]
        reply, client = await asker.ask(*subjects, start="new", after="x")
        assert (reply["success"], reply["code"], reply["subjects"]) == (False, "limit.subscriptions", subjects)
        if client is not None:
            assert session_of(bridge, client.session).subscriptions == ()
        reply, client = await asker.ask(*subjects[:4], start="new")
        assert reply["success"], reply
        assert client is not None
        assert (await read_to(client, "caught_up"))[-1]["position"].count("~") == 3
        for fields in ({"from": "new"}, {"after": "x"}, {"from": "all"}):
            reply = await asker.again(client, subjects[4], **fields)
            assert (reply["success"], reply["code"]) == (False, "limit.subscriptions")
        assert len(session_of(bridge, client.session).subscriptions) == 4
        # Without history it may be followed all the same.
        reply = await asker.again(client, subjects[4])
        assert (reply["success"], reply["active"]) == (True, True)
