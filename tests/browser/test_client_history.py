"""The browser client on a bridge with history: it goes on where it was, and begins where the page asks it to."""

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sanic_nats_bridge.testing import NatsServer
from tests.browser.test_client_node import CLIENT, both, evaluated
from tests.support.bridge import running
from tests.support.history import CUTS, Numbers, Stream, serving
from tests.support.node_program import NODE, NodeProgram, running_node
from tests.support.streams import jetstream_fixture

jetstream = jetstream_fixture("module")


@pytest.fixture
async def stream(jetstream: NatsServer) -> AsyncIterator[Stream]:
    async with Stream.created(jetstream) as stream:
        yield stream


def resuming(
    url: str, transport: str, *followed: tuple[str, dict[str, Any]]
) -> contextlib.AbstractAsyncContextManager[NodeProgram]:
    return running_node(NODE / "resume.js", CLIENT, f"{url}/nats/", transport, json.dumps(followed))


async def lines(node: NodeProgram, count: int) -> list[Any]:
    return [await node.line() for _ in range(count)]


def caught_up(*patterns: str, replayed: int, recovered: bool = True) -> list[Any]:
    return ["caught_up", {"subjects": list(patterns), "replayed": replayed, "recovered": recovered}]


# Resuming


@both
async def test_client_resumes_after_its_last_message_without_a_gap(
    jetstream: NatsServer, stream: Stream, transport: str
) -> None:
    pattern = stream.subject("a.>")
    async with serving(jetstream, stream) as (_, proxy), resuming(proxy.url, transport, (pattern, {})) as node:
        assert await node.line() == caught_up(pattern, replayed=0)
        await stream.send("a.1", b"1", b"2")
        assert [line[3] for line in await lines(node, 2)] == [1, 2]
        proxy.down = True
        proxy.cut()
        await stream.send("a.2", b"3", b"4")
        proxy.down = False
        assert [line[3] for line in await lines(node, 2)] == [3, 4]
        assert await node.line() == caught_up(pattern, replayed=2)
        await stream.send("a.1", b"5")
        assert (await node.line())[3] == 5


@both
async def test_client_that_had_no_message_goes_on_after_its_start(
    jetstream: NatsServer, stream: Stream, transport: str
) -> None:
    pattern = stream.subject("a")
    async with serving(jetstream, stream) as (_, proxy), resuming(proxy.url, transport, (pattern, {})) as node:
        assert await node.line() == caught_up(pattern, replayed=0)
        proxy.down = True
        proxy.cut()
        await stream.send("a", b"1")
        proxy.down = False
        assert (await node.line())[3] == 1
        assert await node.line() == caught_up(pattern, replayed=1)


@both
async def test_client_reports_the_gap_of_the_bridge_alone_if_messages_are_gone(
    jetstream: NatsServer, stream: Stream, transport: str
) -> None:
    pattern = stream.subject("a")
    async with (
        serving(jetstream, stream, history=[], resume_window=0) as (_, proxy),
        resuming(proxy.url, transport, (pattern, {})) as node,
    ):
        assert await node.line() == caught_up(pattern, replayed=0)
        proxy.down = True
        proxy.cut()
        await stream.send("a", b"1", b"2")
        proxy.down = False
        gap = ["gap", {"type": "gap", "subjects": [pattern], "lost": None, "reason": "expired"}]
        assert await lines(node, 2) == [gap, caught_up(pattern, replayed=0, recovered=False)]
        await stream.send("a", b"3")
        assert (await node.line())[3] == 3


@both
async def test_subscription_that_no_stream_has_is_as_without_history(
    jetstream: NatsServer, stream: Stream, transport: str
) -> None:
    stored, other = stream.subject("a"), f"other.{stream.name}"
    followed: list[tuple[str, dict[str, Any]]] = [(stored, {}), (other, {})]
    async with serving(jetstream, stream) as (bridge, proxy), resuming(proxy.url, transport, *followed) as node:
        assert await node.line() == caught_up(stored, replayed=0)
        proxy.cut()
        events = await lines(node, 2)
        gap = ["gap", {"type": "gap", "subjects": [other], "lost": None, "reason": "reconnect"}]
        assert sorted(events) == [caught_up(stored, replayed=0), gap]
        assert bridge.extension.client is not None
        await bridge.extension.client.publish(other, b"1")
        assert (await node.line())[2:4] == [other, 1]


async def test_client_follows_without_history_if_the_stream_is_gone(jetstream: NatsServer, stream: Stream) -> None:
    pattern = stream.subject("a")
    body = f"""
      let socket;
      class Ours extends WebSocket {{ constructor(url) {{ super(url); socket = this }} }}
      const sent = [], gaps = [], ended = [];
      const nats = client({{ WebSocket: Ours }});
      nats.addEventListener("gap", ({{ detail }}) => gaps.push([detail.subjects, detail.reason]));
      const subscription = nats.subscribe("{pattern}", null, (error) => ended.push(error));
      await subscription.caughtUp;
      const send = socket.send.bind(socket);
      socket.send = (text) => {{ sent.push(JSON.parse(text)); send(text) }};
      const frame = {{ type: "unsubscribed", subjects: ["{pattern}"], code: "history.unavailable", message: "gone" }};
      send(JSON.stringify({{ action: "unsubscribe", subjects: ["{pattern}"] }})); // so does the bridge
      socket.onmessage({{ data: JSON.stringify(frame) }});
      while (!gaps.length) await turn();
      const before = ended.length;
      nats.close();
      return [sent.map(({{ id, ...command }}) => command), gaps, before];
    """
    async with serving(jetstream, stream) as (bridge, _):
        assert await evaluated(bridge, "websocket", body) == [
            [{"action": "subscribe", "subjects": [pattern]}],
            [[[pattern], "reconnect"]],
            0,
        ]


# The place to begin


@both
@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("all", ["a1", "b1", "a2", "b2"]),
        ({"last": 1}, ["b2"]),
        ("last_per_subject", ["a2", "b2"]),
        ("new", []),
    ],
    ids=["all", "last", "last per subject", "new"],
)
async def test_subscription_begins_at_the_place_that_the_page_names(
    jetstream: NatsServer, stream: Stream, transport: str, start: Any, expected: list[str]
) -> None:
    for data in ("a1", "b1", "a2", "b2"):
        await stream.send(data[0], json.dumps(data).encode())
    pattern = stream.subject("*")
    body = f"""
      const nats = client(), got = [];
      const from = {json.dumps(start)};
      const {{ ready, caughtUp }} = nats.subscribe("{pattern}", {{ from }}, (data, {{ id }}) => got.push([data, !!id]));
      const {{ resumable }} = await ready;
      const recovery = await caughtUp;
      const joined = await nats.subscribe("{pattern}").caughtUp;
      nats.close();
      return [resumable, recovery, got, joined];
    """
    async with serving(jetstream, stream) as (bridge, _):
        assert await evaluated(bridge, transport, body) == [
            True,
            {"replayed": len(expected), "recovered": True},
            [[data, True] for data in expected],
            {"replayed": 0, "recovered": True},
        ]


@both
async def test_subscription_begins_after_the_position_of_the_page(
    jetstream: NatsServer, stream: Stream, transport: str
) -> None:
    await stream.send("a", b"1", b"2", b"3")
    body = f"""
      const nats = client(), got = [], gaps = [];
      nats.addEventListener("gap", ({{ detail }}) => gaps.push(detail.reason));
      const follow = (pattern, after) => nats.subscribe(pattern, {{ after }}, (data) => got.push(data)).caughtUp;
      for await (const {{ id }} of nats.subscribe("{stream.subject("a")}", {{ from: "all" }})) {{
        var position = id;
        break;
      }}
      const known = await follow("{stream.subject("*")}", position);
      const unknown = await follow("{stream.subject("b")}", "x");
      nats.close();
      return [known, got, unknown, gaps];
    """
    async with serving(jetstream, stream) as (bridge, _):
        assert await evaluated(bridge, transport, body) == [
            {"replayed": 2, "recovered": True},
            [2, 3],
            {"replayed": 0, "recovered": False},
            ["unknown"],
        ]


@both
async def test_subscription_begins_after_the_position_of_a_rendered_page(
    jetstream: NatsServer, stream: Stream, transport: str
) -> None:
    pattern = stream.subject("a")
    async with serving(jetstream, stream) as (bridge, _):
        await stream.send("a", b"1")
        after = await bridge.extension.position(pattern)
        await stream.send("a", b"2", b"3")
        body = f"""
          const nats = client(), got = [];
          const {{ caughtUp }} = nats.subscribe("{pattern}", {{ after: "{after}" }}, (data) => got.push(data));
          const {{ recovered }} = await caughtUp;
          nats.close();
          return [recovered, got];
        """
        assert await evaluated(bridge, transport, body) == [True, [2, 3]]


@both
async def test_refused_past_ends_its_subscription_alone(jetstream: NatsServer, stream: Stream, transport: str) -> None:
    body = f"""
      const nats = client();
      const codes = (subscription) => Promise.all([subscription.ready, subscription.caughtUp].map(
        (promise) => promise.then(() => "ready", ({{ code }}) => code)));
      const live = nats.subscribe("{stream.subject("a")}");
      const past = [
        ["{stream.subject("b")}", "all"], ["none.{stream.name}", "all"], ["open.{stream.name}", "all"],
        ["{stream.subject("open")}", {{ last: 10_001 }}], ["a", "old"], ["a", {{ last: 0 }}], ["a", null], ["a", {{}}],
      ].map(([pattern, from]) => nats.subscribe(pattern, {{ from }}));
      const result = await Promise.all([live, ...past].map(codes));
      nats.close();
      return result;
    """
    allowed = [stream.subject("open"), "open.>"]
    async with serving(jetstream, stream, history=allowed) as (bridge, _):
        live, *past = await evaluated(bridge, transport, body)
    assert live == ["ready", "ready"]
    assert past == [
        [code, code] for code in ["history.forbidden"] * 2 + ["history.unavailable"] + ["command.invalid"] * 5
    ]


@both
async def test_pattern_that_is_followed_has_one_place(jetstream: NatsServer, stream: Stream, transport: str) -> None:
    await stream.send("a", b"1")
    pattern = stream.subject("a")
    body = f"""
      const nats = client(), got = [[], [], [], []];
      const follow = (index, options) => nats.subscribe("{pattern}", options, (data) => got[index].push(data));
      const code = ({{ ready }}) => ready.then(() => "ready", ({{ code }}) => code);
      const both = [follow(0, {{ from: "all" }}), follow(1, {{ from: "all" }})];
      const codes = [await Promise.all(both.map(code)), await code(follow(2, {{ from: "all" }}))];
      await both[0].caughtUp;
      for (const subscription of both) subscription.unsubscribe();
      const again = follow(3, {{ from: "all" }}); // while the session holds it
      const {{ replayed }} = await again.caughtUp;
      nats.close();
      return [codes, replayed, got];
    """
    async with serving(jetstream, stream) as (bridge, _):
        assert await evaluated(bridge, transport, body) == [
            [["ready", "ready"], "command.invalid"],
            1,
            [[1], [1], [], [1]],
        ]


# The wire


WIRE = """
  const sent = [];
  const note = (text) => { const { id, session, ...rest } = JSON.parse(text); sent.push(rest) };
  class Socket extends WebSocket { send(text) { note(text); super.send(text) } }
  class Source extends EventSource { constructor(url, ...all) { super(url, ...all); sent.push(new URL(url).search) } }
  const post = (url, init) => {
    if (init.method === "POST") note(init.body);
    return fetch(url, init);
  };
  const options = { WebSocket: Socket, EventSource: Source, fetch: post };
"""


@both
async def test_nothing_changes_on_the_wire_without_history(shared_nats: NatsServer, transport: str) -> None:
    body = f"""
      {WIRE}
      const nats = client(options);
      const {{ caughtUp }} = nats.subscribe("a");
      const recovery = await caughtUp;
      const later = await nats.subscribe("b").caughtUp;
      const after = await nats.subscribe("c", {{ after: "x" }}).caughtUp;
      const codes = [];
      for (const from of ["all", {{ last: 3 }}]) {{
        await nats.subscribe("d", {{ from }}).ready.catch(({{ code }}) => codes.push(code));
      }}
      nats.close();
      return [sent, [recovery, later, after], codes];
    """
    async with running(servers=shared_nats.url, subscribe=[">"]) as bridge:
        sent, recoveries, codes = await evaluated(bridge, transport, body)
    subscribe = [{"action": "subscribe", "subjects": [subject]} for subject in "abc"]
    first = [{"action": "ping"}, subscribe[0]] if transport == "websocket" else ["?subjects=a"]
    assert sent == [*first, *subscribe[1:]]
    assert recoveries == [{"replayed": 0, "recovered": recovered} for recovered in (True, True, False)]
    assert codes == ["history.unavailable"] * 2


@both
async def test_places_that_differ_are_asked_for_in_separate_commands(
    jetstream: NatsServer, stream: Stream, transport: str
) -> None:
    names = [stream.subject(name) for name in "abcd"]
    body = f"""
      {WIRE}
      const nats = client(options), names = {json.dumps(names)};
      const froms = ["new", "all", undefined, "all"];
      await Promise.all(names.map((name, index) => nats.subscribe(name, {{ from: froms[index] }}).caughtUp));
      nats.close();
      return sent;
    """
    async with serving(jetstream, stream) as (bridge, _):
        sent = await evaluated(bridge, transport, body)
    new, past = ([names[index] for index in pair] for pair in ((0, 2), (1, 3)))
    command = {"action": "subscribe", "subjects": past, "from": "all"}
    if transport == "websocket":
        assert sent == [{"action": "ping"}, {"action": "subscribe", "subjects": new, "from": "new"}, command]
    else:
        # The first stream shows that the bridge has history.
        query = "?" + "&".join(f"subjects={name}" for name in new)
        assert sent == [query, f"{query}&from=new", command]


async def test_query_is_repeated_without_history_if_a_worker_has_none(
    jetstream: NatsServer, stream: Stream, shared_nats: NatsServer
) -> None:
    # Another release, or other settings, while a deployment is in progress.
    async with serving(jetstream, stream) as (bridge, _), running(servers=shared_nats.url, subscribe=[">"]) as other:
        body = f"""
          Math.random = () => 0;
          let target = "{bridge.url}", source;
          class Source extends EventSource {{
            constructor(url, ...all) {{ super(url.replace("{bridge.url}", target), ...all); source = this }}
          }}
          const moved = (url, init) => fetch(url.replace("{bridge.url}", target), init);
          const nats = client({{ EventSource: Source, fetch: moved }}), gaps = [];
          nats.addEventListener("gap", ({{ detail }}) => gaps.push(detail.reason));
          await nats.subscribe("{stream.subject("a")}").caughtUp;
          target = "{other.url}";
          source.onerror();
          while (!gaps.length) await turn();
          const {{ features }} = nats.welcome;
          nats.close();
          return [features.includes("history"), gaps];
        """
        assert await evaluated(bridge, "sse", body) == [False, ["reconnect"]]


async def test_streams_without_posts_have_all_patterns_in_the_query(jetstream: NatsServer, stream: Stream) -> None:
    names = [stream.subject(name) for name in "ab"]
    body = f"""
      {WIRE}
      Math.random = () => 0;
      let source;
      class Ours extends Source {{ constructor(...all) {{ super(...all); source = this }} }}
      const refusal = new Response("", {{ status: 403 }});
      const refuse = async (url, init) => (init.method === "POST" ? refusal.clone() : fetch(url, init));
      const nats = client({{ EventSource: Ours, fetch: refuse }}), gaps = [], got = [];
      nats.addEventListener("gap", ({{ detail }}) => gaps.push(detail.subjects));
      const follow = (name) => nats.subscribe(name, (data) => got.push(data)).caughtUp;
      await follow("{names[0]}");
      await follow("{names[1]}");
      console.log("null");
      while (got.length < 1) await turn();
      source.onerror();
      while (gaps.length < 2) await turn();
      nats.close();
      return [sent.length, gaps];
    """
    async with (
        serving(jetstream, stream) as (bridge, _),
        running_node(NODE / "evaluate.js", CLIENT, bridge.url, "sse", body) as node,
    ):
        assert await node.line() is None
        await stream.send("a", b"1")
        streams, gaps = await node.line()
    # The places of both differ after the message, and one query can name one only.
    assert (streams, gaps) == (4, [names[:1], names])


# Cut connections


@both
async def test_cut_connections_lose_and_double_nothing(jetstream: NatsServer, stream: Stream, transport: str) -> None:
    numbers = Numbers(stream, "x.>", "x.1", ">", "y")
    # The first three overlap. The last one has a place of its own at first.
    starts: list[dict[str, Any]] = [{}, {}, {}, {"from": "all"}]
    followed = zip(numbers.patterns, starts, strict=True)
    async with serving(jetstream, stream) as (_, proxy), resuming(proxy.url, transport, *followed) as node:

        async def read() -> None:
            kind, *rest = await node.line()
            assert kind in ("message", "caught_up"), (numbers.seed, kind, rest)
            if kind == "message":
                numbers.note(rest[0], rest[2])

        for _ in range(2):
            await read()
        async with numbers.publishing("x.1", "x.2", "y", "z"):
            for _ in range(CUTS):
                for _ in range(numbers.choose.choice([0, 1, 2, 30, 200])):
                    await read()
                proxy.cut()
        while not numbers.are_complete:
            await read()
    numbers.check()
