"""The browser client in Node, with `ws` and `eventsource`, from its folder and as an npm package."""

import asyncio
import contextlib
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sanic_nats_bridge import Permissions
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import WAIT_SECONDS, Bridge, Publisher, running, until
from tests.support.bridge_proxy import BridgeProxy
from tests.support.node_program import NODE, NodeProgram, running_node

BROWSER = Path(__file__).parents[2] / "sanic_nats_bridge" / "browser"
CLIENT = BROWSER / "client.js"

both = pytest.mark.parametrize("transport", ["websocket", "sse"])


def program(
    name: str, url: str, transport: str, *arguments: str
) -> contextlib.AbstractAsyncContextManager[NodeProgram]:
    return running_node(NODE / name, CLIENT, url, transport, *arguments)


def following(url: str, transport: str, *patterns: str) -> contextlib.AbstractAsyncContextManager[NodeProgram]:
    return program("follow.js", url, transport, *patterns)


@both
async def test_client_receives_messages_and_process_exits_after_close(
    bridge: Bridge, publisher: Publisher, transport: str
) -> None:
    base = publisher.base
    async with following(bridge.url, transport, f"{base}.>", f"{base}.a", "_INBOX.a") as node:
        assert await node.line() == ["ended", "subject.forbidden"]
        assert await node.line() == ["ready", [True, True, "subject.forbidden"]]
        await publisher.send(f"{base}.a", b'{"key":[1]}')
        assert [await node.line(), await node.line()] == [["message", f"{base}.a", {"key": [1]}]] * 2
        await publisher.send(f"{base}.b", b"text")
        assert await node.line() == ["message", f"{base}.b", "text"]
        node.say("close")
        assert [await node.line(), await node.line()] == [["ended", None]] * 2
        assert node.process.stdin is not None
        node.process.stdin.close()
        # Nothing of the client's keeps the process alive.
        async with asyncio.timeout(WAIT_SECONDS):
            assert await node.process.wait() == 0
        await until(lambda: not bridge.extension.sessions)


@both
async def test_client_resubscribes_and_reports_gap_after_reconnect(
    bridge: Bridge, publisher: Publisher, transport: str
) -> None:
    subject = publisher.subject("a")
    async with BridgeProxy(bridge.port).running() as proxy, following(f"{proxy.url}/nats", transport, subject) as node:
        assert await node.line() == ["ready", [True]]
        proxy.cut()
        assert await node.line() == [
            "gap",
            {"type": "gap", "subjects": [subject], "lost": None, "reason": "reconnect"},
        ]
        await until(lambda: [set(session.subscriptions) for session in bridge.extension.sessions] == [{subject}])
        node.say("iterate")
        assert await node.line() == ["iterates"]
        await publisher.send(subject, b"1")
        assert sorted([await node.line(), await node.line()]) == [["iterated", 1], ["message", subject, 1]]


@both
async def test_revoke_is_final_and_ends_subscriptions(shared_nats: NatsServer, transport: str) -> None:
    def permissions(_: object) -> Permissions:
        return Permissions(["a"], identity="ada")

    async with (
        running(servers=shared_nats.url, permissions=permissions) as bridge,
        following(bridge.url, transport, "a") as node,
    ):
        assert await node.line() == ["ready", [True]]
        await bridge.extension.revoke(identity="ada")
        kind, how = await node.line()
        assert (kind, how["code"], how["final"]) == ("close", 4403, True)
        assert await node.line() == ["ended", "closed"]


async def test_unauthorized_sse_stream_reports_http_401(shared_nats: NatsServer) -> None:
    async with (
        running(servers=shared_nats.url, permissions=lambda _: None) as bridge,
        following(bridge.url, "sse", "a") as node,
    ):
        assert await node.line() == ["close", {"code": 4401, "reason": "HTTP 401", "final": True}]
        assert await node.line() == ["ended", "closed"]


async def evaluated(bridge: Bridge, transport: str, body: str) -> Any:
    """Return the result of the body after the client's process has ended by itself."""
    async with program("evaluate.js", bridge.url, transport, body) as node:
        result = await node.line()
        async with asyncio.timeout(WAIT_SECONDS):
            assert await node.process.wait() == 0
    await until(lambda: not bridge.extension.sessions)
    return result


@both
async def test_exception_in_page_callback_does_not_affect_client(
    bridge: Bridge, publisher: Publisher, transport: str
) -> None:
    body = f"""
      const nats = client();
      nats.subscribe("_INBOX.a", null, () => {{ throw new Error("page") }});
      const {{ active }} = await nats.subscribe("{publisher.subject("a")}").ready;
      nats.close();
      return [active, errors];
    """
    assert await evaluated(bridge, transport, body) == [True, ["page"]]


@pytest.mark.parametrize("wanted", ["connected", "waiting"])
async def test_status_listener_can_close_client(bridge: Bridge, wanted: str) -> None:
    body = f"""
      const nats = client({{ url: "{wanted}" === "waiting" ? "http://127.0.0.1:1/" : "{bridge.url}" }});
      await new Promise((resolve) => nats.addEventListener("status", ({{ detail }}) => {{
        if (detail.state === "{wanted}") resolve(nats.close());
      }}));
      await turn();
      // While connected, `ws` itself has a timer until the server has closed the connection.
      return [nats.status.state, "{wanted}" === "waiting" && process.getActiveResourcesInfo().includes("Timeout")];
    """
    assert await evaluated(bridge, "websocket", body) == ["closed", False]


async def test_frame_listener_can_close_client(bridge: Bridge) -> None:
    body = """
      const nats = client();
      nats.addEventListener("frame", ({ detail }) => detail.type === "welcome" && nats.close());
      await state(nats, "closed");
      await turn();
      return nats.status.state;
    """
    assert await evaluated(bridge, "websocket", body) == "closed"


async def test_subscription_made_during_close_is_active_after_reconnect(shared_nats: NatsServer) -> None:
    async with running(servers=shared_nats.url, subscribe=[">"], unsubscribe_delay=0) as bridge:
        body = """
          let socket;
          class Ours extends WebSocket { constructor(url) { super(url); socket = this } }
          const nats = client({ WebSocket: Ours });
          await state(nats, "connected");
          let late;
          nats.addEventListener("frame", ({ detail }) => { if (detail.type === "close") late = nats.subscribe("a") });
          const close = { type: "close", code: 1001, reason: "", reconnect: true, retry: 1 };
          socket.onmessage({ data: JSON.stringify(close) });
          const { active } = await late.ready;
          nats.close();
          return active;
        """
        assert await evaluated(bridge, "websocket", body) is True


@both
async def test_unsubscribed_callback_is_not_called(bridge: Bridge, publisher: Publisher, transport: str) -> None:
    subject = publisher.subject("a")
    body = f"""
      const nats = client(), got = [];
      const first = nats.subscribe("{subject}", () => {{ got.push("first"); second.unsubscribe(); nats.close(); }});
      const second = nats.subscribe("{subject}", () => got.push("second"));
      await first.ready;
      console.log("null");
      await state(nats, "closed");
      return got;
    """
    async with program("evaluate.js", bridge.url, transport, body) as node:
        assert await node.line() is None
        await publisher.send(subject, b"1")
        assert await node.line() == ["first"]


async def test_client_retries_after_credentials_reject_without_reason(bridge: Bridge) -> None:
    body = """
      Math.random = () => 0;
      let asked = 0;
      const nats = client({ credentials: () => (asked++ ? undefined : Promise.reject()) });
      await state(nats, "connected");
      nats.close();
      return asked;
    """
    assert await evaluated(bridge, "websocket", body) == 2


async def test_reconnect_drops_credentials_that_were_asked_for_before_it(bridge: Bridge) -> None:
    body = """
      const waiting = [], urls = [];
      class Ours extends WebSocket { constructor(url) { urls.push(url); super(url) } }
      const nats = client({
        WebSocket: Ours,
        credentials: () => new Promise((resolve) => waiting.push((user) => resolve({ user }))),
      });
      await turn();
      nats.reconnect();
      waiting[0]("ada");
      await turn();
      waiting[1]("bob");
      await state(nats, "connected");
      nats.close();
      return [waiting.length, urls.map((url) => new URL(url).searchParams.get("user"))];
    """
    assert await evaluated(bridge, "websocket", body) == [2, ["bob"]]


async def test_times_beyond_31_bits_are_waited_for(bridge: Bridge) -> None:
    # Node and browsers take a longer time of `setTimeout` for 1 ms.
    body = """
      let made = 0, socket;
      class Ours extends WebSocket { constructor(url) { super(url); made++; socket = this } }
      const times = { timeout: 2 ** 40, retryBetter: 2 ** 40 };
      const nats = client({ ...times, transports: ["websocket", "sse"], WebSocket: Ours });
      const { transport } = await state(nats, "connected");
      const close = { type: "close", code: 1001, reason: "", reconnect: true, retry: 2 ** 40 };
      socket.onmessage({ data: JSON.stringify(close) });
      const { retry } = await state(nats, "waiting");
      for (let turns = 0; turns < 20; turns++) await turn();
      const { state: still } = nats.status;
      nats.close();
      return [transport, retry, still, made];
    """
    assert await evaluated(bridge, "websocket", body) == ["websocket", 2**31 - 1, "waiting", 1]


async def test_client_retries_post_after_502_from_proxy(bridge: Bridge, publisher: Publisher) -> None:
    body = f"""
      Math.random = () => 0;
      let posts = 0;
      const refusal = Response.json({{ message: "Bad gateway" }}, {{ status: 502 }});
      const nats = client({{ fetch: async (...all) => (posts++ ? fetch(...all) : refusal) }});
      await state(nats, "connected");
      const {{ active }} = await nats.subscribe("{publisher.subject("a")}").ready;
      nats.close();
      return [active, posts > 1];
    """
    assert await evaluated(bridge, "sse", body) == [True, True]


@pytest.mark.parametrize(
    ("post", "reason"),
    [
        ("async () => new Response('Bad gateway', { status: 502 })", ""),
        ("async () => { throw new TypeError('reset') }", ""),
        ("async () => new Response('<p>', { headers: { 'Sanic-Nats-Bridge': '1' } })", "POST: HTTP 200 text/plain"),
        ("async () => Response.json(null, { headers: { 'Sanic-Nats-Bridge': '1' } })", "POST: HTTP 200 application"),
        ("(url, init) => fetch(url, { ...init, headers: { 'Content-Type': 'text/plain' } })", "POST: "),
        ("(url, init) => fetch(url, { ...init, body: '' })", "POST: "),
    ],
    ids=["502", "reset", "header of the bridge, page", "header of the bridge, null", "no type", "no body"],
)
async def test_posts_that_fail_are_replaced_by_queries(shared_nats: NatsServer, post: str, reason: str) -> None:
    body = f"""
      Math.random = () => 0;
      const post = {post};
      let posts = 0, made = 0;
      class Source extends EventSource {{ constructor(...all) {{ super(...all); made++ }} }}
      const nats = client({{
        EventSource: Source,
        fetch: (url, init) => (init.method === "POST" ? (posts++, post(url, init)) : fetch(url, init)),
      }}), reasons = [];
      nats.addEventListener("status", ({{ detail }}) => reasons.push(detail.reason));
      await nats.subscribe("a").ready;
      for (const pattern of "bcd") await nats.subscribe(pattern).ready;
      const before = [posts, made];
      nats.subscribe("e,f");
      while (posts < before[0] + 3) await new Promise((resolve) => setTimeout(resolve, 10));
      const after = made;
      nats.close();
      return [before, after, reasons.some((reason) => reason?.startsWith("{reason}"))];
    """
    async with running(servers=shared_nats.url, subscribe=[">"], unsubscribe_delay=0) as bridge:
        (posts, streams), after, is_named = await evaluated(bridge, "sse", body)
    assert 1 <= posts <= 2
    assert (streams, after, is_named) == (4, 4, True)  # a pattern that no query can have ends no stream


async def test_reply_is_recognised_without_header_of_bridge(shared_nats: NatsServer) -> None:
    # A gateway may let only known headers of an answer pass.
    body = """
      const stripped = async (...all) => {
        const { status, headers, body } = await fetch(...all);
        return new Response(body, { status, headers: { "content-type": headers.get("content-type") } });
      };
      const nats = client({ fetch: stripped });
      const results = ["a", "b"].map((pattern) => nats.subscribe(pattern).ready);
      await results[0];
      results.push(nats.subscribe("c").ready);
      const codes = await Promise.all(results.map((ready) => ready.then(() => "ready", ({ code }) => code)));
      nats.close();
      return codes;
    """
    async with running(servers=shared_nats.url, subscribe=["a"]) as bridge:
        assert await evaluated(bridge, "sse", body) == ["ready", "subject.forbidden", "subject.forbidden"]


async def test_page_in_place_of_stream_is_named(bridge: Bridge) -> None:
    body = """
      class Source {
        readyState = 2;
        constructor() { setTimeout(() => this.onerror()) }
        addEventListener() {}
        close() {}
      }
      const headers = { "Content-Type": "text/html", "Sanic-Nats-Bridge": "1" };
      const reasons = [];
      for (const status of [200, 403]) {
        const nats = client({ EventSource: Source, fetch: async () => new Response("<p>", { status, headers }) });
        reasons.push((await state(nats, "waiting")).reason);
        nats.close();
      }
      return reasons;
    """
    assert await evaluated(bridge, "sse", body) == [
        "HTTP 200 text/html, not from the bridge",
        "HTTP 403 text/html, not from the bridge",
    ]


async def test_blocked_posts_are_not_tried_again_at_once_without_retry_better(bridge: Bridge) -> None:
    body = """
      Math.random = () => 0;
      const nats = client({
        retryBetter: 0,
        fetch: async (url, init) => (init.method === "POST" ? new Response("", { status: 403 }) : fetch(url, init)),
      });
      await nats.subscribe("blocked.a").ready;
      const { active } = await nats.subscribe("blocked.b").ready;
      nats.close();
      return active;
    """
    assert await evaluated(bridge, "sse", body) is True


async def test_new_session_does_not_wait_for_backoff_of_the_one_before(bridge: Bridge) -> None:
    body = """
      Math.random = () => 1e9; // a backoff that no test waits out
      let refuses = true, posts = 0;
      class Late extends WebSocket { constructor(url) { if (refuses) throw new Error("refused"); super(url) } }
      const nats = client({
        transports: ["websocket", "sse"],
        retryBetter: 1,
        WebSocket: Late,
        fetch: async (url, init) => (init.method === "POST" && posts++, new Response("", { status: 403 })),
      });
      await nats.subscribe("blocked.a").ready;
      const late = nats.subscribe("blocked.b,c").ready;
      while (!posts) await turn();
      refuses = false;
      await late;
      const { transport } = await state(nats, "connected");
      nats.close();
      return transport;
    """
    assert await evaluated(bridge, "sse", body) == "websocket"


async def test_outage_is_not_held_against_a_transport(bridge: Bridge) -> None:
    body = """
      Math.random = () => 0;
      let isDown = true;
      const tried = new Set();
      class Cut extends WebSocket {
        constructor(url) {
          tried.add("websocket");
          if (isDown) throw new Error("down");
          super(url);
          this.on("message", (text) => JSON.parse(text).type === "reply" && setTimeout(() => this.terminate(), 100));
        }
      }
      class Source extends EventSource {
        constructor(url, ...all) {
          tried.add("sse");
          super(isDown ? "http://127.0.0.1:1/" : url, ...all);
        }
      }
      const nats = client({ transports: ["websocket", "sse"], WebSocket: Cut, EventSource: Source });
      while (tried.size < 2) await state(nats, "waiting");
      isDown = false;
      const connected = [];
      while (connected.at(-1) !== "sse") connected.push((await state(nats, "connected")).transport);
      nats.close();
      return connected;
    """
    connected = await evaluated(bridge, "sse", body)
    assert connected == ["websocket"] * (len(connected) - 1) + ["sse"]
    assert 3 <= len(connected) - 1 <= 6


async def test_websocket_retry_while_waiting_opens_no_second_session(bridge: Bridge) -> None:
    body = """
      let made = 0, source;
      class Stream extends EventSource { constructor(...all) { super(...all); source = this } }
      class Late extends WebSocket {
        constructor(url) {
          if (!made++) throw new Error("blocked");
          super(url);
          if (made === 2) setTimeout(() => source.onerror());
        }
        set onmessage(read) { super.onmessage = (event) => setTimeout(read, 100, event) }
      }
      const nats = client({ transports: ["websocket", "sse"], retryBetter: 1, EventSource: Stream, WebSocket: Late });
      await state(nats, "waiting");
      await state(nats, "connecting");
      await state(nats, "connected");
      console.log("null");
      await new Promise((resolve) => process.stdin.once("data", resolve));
      process.stdin.destroy();
      nats.close();
    """
    async with program("evaluate.js", bridge.url, "sse", body) as node:
        assert await node.line() is None
        await until(lambda: len(bridge.extension.sessions) == 1)
        node.say("close")


async def test_client_falls_back_to_sse_after_3_seconds_without_welcome(bridge: Bridge) -> None:
    body = """
      const { setTimeout } = globalThis;
      globalThis.setTimeout = (callback, delay, ...all) => setTimeout(callback, delay === 3000 ? 0 : delay, ...all);
      class Silent { close() {} }
      const nats = client({ transports: ["websocket", "sse"], WebSocket: Silent });
      const { transport, why } = await state(nats, "connected");
      nats.close();
      return [transport, why];
    """
    assert await evaluated(bridge, "sse", body) == ["sse", "websocket: no welcome in 3000 ms"]


async def test_websocket_that_has_worked_fails_3_times_before_fallback(bridge: Bridge) -> None:
    body = """
      Math.random = () => 0;
      const tried = [];
      let socket;
      class Flaky extends WebSocket {
        constructor(url) {
          tried.push("websocket");
          if (socket) throw new Error("blocked");
          socket = super(url);
        }
      }
      class Stream extends EventSource {
        constructor(...all) {
          tried.push("sse");
          super(...all);
        }
      }
      const nats = client({ transports: ["websocket", "sse"], WebSocket: Flaky, EventSource: Stream });
      await state(nats, "connected");
      tried.length = 0;
      socket.terminate();
      await state(nats, "connected");
      nats.close();
      return tried;
    """
    assert await evaluated(bridge, "sse", body) == ["websocket", "websocket", "sse"]


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an application that has installed the packed npm package."""
    folder = tmp_path_factory.mktemp("application")
    modules = folder / "node_modules"
    modules.mkdir()
    command = ["npm", "pack", "--silent", "--pack-destination", str(folder), str(BROWSER)]
    name = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    subprocess.run(["tar", "-xzf", name], cwd=folder, check=True)
    (folder / "package").rename(modules / "sanic-nats-bridge")
    for module in ("eventsource", "eventsource-parser"):
        (modules / module).symlink_to(NODE / "node_modules" / module)
    (folder / "package.json").write_text('{"type": "module"}')
    shutil.copy(NODE / "share.js", folder)
    return folder


def test_npm_package_contains_both_modules_and_types(application: Path) -> None:
    files = {path.name for path in (application / "node_modules" / "sanic-nats-bridge").iterdir()}
    assert files == {"client.js", "client.d.ts", "share.js", "package.json"}


def bundled(application: Path) -> Path:
    """Bundle the application, and return its entry; the shared part is a chunk of its own."""
    esbuild = NODE / "node_modules" / ".bin" / "esbuild"
    assert esbuild.exists(), "make test installs esbuild"
    command = [
        str(esbuild),
        "share.js",
        "--bundle",
        "--splitting",
        "--format=esm",
        "--platform=node",
        "--outdir=bundle",
    ]
    subprocess.run(command, cwd=application, check=True, capture_output=True)
    entry, (chunk,) = application / "bundle" / "share.js", (application / "bundle").glob("share-*.js")
    assert "class Leader" not in entry.read_text()
    assert "Leader = class" in chunk.read_text()
    return entry


@pytest.mark.parametrize("form", ["package", "bundle"])
async def test_npm_package_clients_share_stream(
    application: Path, bridge: Bridge, publisher: Publisher, form: str
) -> None:
    subject = publisher.subject("a")
    entry = application / "share.js" if form == "package" else bundled(application)
    async with running_node(entry, bridge.url, subject) as node:
        assert await node.line() == ["ready", [True, True]]
        assert [set(session.subscriptions) for session in bridge.extension.sessions] == [{subject}]
        await publisher.send(subject, b"1")
        assert sorted([await node.line(), await node.line()]) == [["message", 0, 1], ["message", 1, 1]]
        node.say("close")
        async with asyncio.timeout(WAIT_SECONDS):
            assert await node.process.wait() == 0
    await until(lambda: not bridge.extension.sessions)
