"""Publishes and requests of the browser client on a bridge with a real stream, in Chromium, Firefox and Node."""

import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import nats
import pytest
import pytest_asyncio
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import StreamConfig

from sanic_nats_bridge import Publication
from sanic_nats_bridge.testing import NatsServer
from tests.browser.test_client import RUNNING
from tests.browser.test_client_node import program
from tests.support.bridge import WAIT_SECONDS, Bridge, until
from tests.support.bridge_proxy import BridgeProxy
from tests.support.browsers import BROWSERS, Browser, Profile, Tab
from tests.support.client import BEGIN, begin, both, serving, true
from tests.support.streams import jetstream_fixture

pytestmark = pytest.mark.asyncio(loop_scope="module")

PUBLISH = """
  Math.random = ((random) => () => random() / 50)(Math.random); // short delays before it reconnects
  window.outcomes = [];
  window.pending = 0;
  window.left = [];
  addEventListener("unhandledrejection", ({ reason }) => left.push(`${reason}`));
  // Returns the replies and the errors, without fields that are missing.
  window.settle = async (...promises) => {
    const noted = promises.map((promise) => promise.then(
      ({ stream, sequence, duplicate, data }) => ({ stream, sequence, duplicate, data }),
      (error) => ({ ...error, message: error.message }),
    ));
    return JSON.parse(JSON.stringify(await Promise.all(noted)));
  };
  window.publishOften = async (subject, first, count, pause) => {
    for (let number = first; number < first + count; number++) {
      pending++;
      nats.publish(subject, number, { ack: true }).then(
        ({ duplicate }) => outcomes.push([number, duplicate ? "duplicate" : "stored"]),
        ({ code }) => outcomes.push([number, code]),
      ).finally(() => pending--);
      if (pause) await new Promise((resolve) => setTimeout(resolve, pause));
    }
  };
"""

CUTS = 20

jetstream = jetstream_fixture("module")


class Rooms:
    """A stream with subjects that no other test uses, and services beside it."""

    def __init__(self, client: Client) -> None:
        self.name = f"R{uuid4().hex[:12]}"
        self.client = client
        self.context = client.jetstream(timeout=WAIT_SECONDS)

    @classmethod
    @contextlib.asynccontextmanager
    async def created(cls, server: NatsServer) -> AsyncIterator["Rooms"]:
        client = await nats.connect(server.url, connect_timeout=WAIT_SECONDS, max_reconnect_attempts=-1)
        try:
            rooms = cls(client)
            await rooms.context.add_stream(StreamConfig(name=rooms.name, subjects=[f"{rooms.name}.rooms.>"]))
            await client.subscribe(f"{rooms.name}.echo", cb=rooms._echo)
            await client.subscribe(f"{rooms.name}.broken", cb=rooms._fail)
            await client.subscribe(f"{rooms.name}.silent")
            await client.flush(WAIT_SECONDS)
            yield rooms
        finally:
            await client.close()

    async def _echo(self, message: Msg) -> None:
        await self.client.publish(message.reply, message.data)

    async def _fail(self, message: Msg) -> None:
        headers = {"Nats-Service-Error-Code": "409", "Nats-Service-Error": "sold out"}
        await self.client.publish(message.reply, headers=headers)

    async def stored(self, subject: str) -> list[bytes]:
        """Return the payloads of a subject in their order."""
        last = (await self.context.stream_info(self.name)).state.last_seq
        messages = [await self.context.get_msg(self.name, seq=number) for number in range(1, last + 1)]
        return [message.data or b"" for message in messages if message.subject == f"{self.name}.{subject}"]


@contextlib.asynccontextmanager
async def open_bridge(
    jetstream: NatsServer, rooms: Rooms, **settings: Any
) -> AsyncIterator[tuple[Bridge, BridgeProxy]]:
    """Serve a bridge on which clients may publish and ask, behind a proxy."""
    options: dict[str, Any] = {
        "publish": [f"{rooms.name}.rooms.>", f"{rooms.name}.live"],
        "request": [f"{rooms.name}.*"],
        "publish_headers": ["Trace"],
        "publish_rate": 1000,
        "publish_burst": 1000,
    }
    async with serving(jetstream, **options | settings) as (bridge, proxy):
        yield bridge, proxy


@pytest_asyncio.fixture(loop_scope="module")
async def rooms(jetstream: NatsServer) -> AsyncIterator[Rooms]:
    async with Rooms.created(jetstream) as rooms:
        yield rooms


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=BROWSERS)
async def browser(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Browser]:
    async with RUNNING[request.param](tmp_path_factory.mktemp(request.param)) as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="module")
async def profile(browser: Browser) -> AsyncIterator[Profile]:
    async with browser.profile() as profile:
        await profile.add_script(BEGIN + PUBLISH)
        yield profile


@pytest_asyncio.fixture(loop_scope="module")
async def tab(profile: Profile) -> AsyncIterator[Tab]:
    tab = await profile.tab()
    yield tab
    assert await tab.evaluate("[pending, left]") == [0, []]


async def opened(tab: Tab, proxy: BridgeProxy, options: dict[str, Any]) -> None:
    await tab.goto(f"{proxy.url}/")
    await begin(tab, options)
    await true(tab, "nats.status.state === 'connected'")


OUTCOMES = """
  const room = `${name}.rooms.7`;
  return settle(
    nats.publish(room, { text: "é" }, { ack: true, msg_id: "0123456789012345678901", headers: { trace: ["1", "2"] } }),
    nats.publish(room, { text: "é" }, { ack: true, msg_id: "0123456789012345678901" }),
    nats.publish(room, "AAH/", { ack: true, encoding: "base64" }),
    nats.publish(room, { text: " " }, { ack: true }),
    nats.publish(room, { txt: 1 }, { ack: true }),
    nats.publish(`${name}.live`, { text: "b" }),
    nats.publish(`${name}.live`, null, { ack: true }),
    nats.publish(`${name}.other`, { text: "c" }, { ack: true }),
    nats.publish(`${name}.rooms.*`, { text: "c" }, { ack: true }),
    nats.publish(room, { text: "c" }, { ack: true, headers: { "Nats-Msg-Id": ["1"] } }),
    nats.publish(room, { text: "x".repeat(65_000) }, { ack: true }),
    nats.request(`${name}.echo`, { sku: [7] }),
    nats.request(`${name}.echo`, "plain", { encoding: "text" }),
    nats.request(`${name}.broken`),
    nats.request(`${name}.none`),
    nats.request(`${name}.silent`, 1, { timeout: 0.2 }),
    nats.request("other", 1),
  );
"""

EXPECTED_CODES = [
    *[None] * 3,
    *["publish.invalid"] * 2,
    None,
    "publish.unstored",
    "publish.forbidden",
    "subject.invalid",
    "publish.forbidden",
    "limit.size",
    *[None] * 2,
    "request.failed",
    "request.no_responders",
    "request.timeout",
    "request.forbidden",
]


def say(publication: Publication[Any]) -> None:
    if isinstance(publication.data, dict):
        if set(publication.data) != {"text"}:
            raise ValueError("Not a message")
        if not publication.data["text"].strip():
            raise ValueError("An empty message")


async def check_outcomes(settled: list[dict[str, Any]], rooms: Rooms) -> None:
    assert [each.get("code") for each in settled] == EXPECTED_CODES
    first, twice, binary, blank, odd, live, unstored, *rest = settled
    assert first["stream"] == rooms.name
    assert twice["sequence"] == first["sequence"]
    # A POST may be overtaken by another.
    assert {first["duplicate"], twice["duplicate"]} == {False, True}
    assert binary["stream"] == rooms.name
    assert (blank["message"], odd["message"]) == ("An empty message", "Not a message")
    assert live == {}
    assert "no stream" in unstored["message"]
    assert rest[4]["data"] == {"sku": [7]}
    assert rest[5]["data"] == "plain"
    assert rest[6]["serviceCode"] == "409"
    assert "sold out" in rest[6]["message"]
    assert Counter(await rooms.stored("rooms.7")) == Counter(['{"text":"é"}'.encode(), b"\x00\x01\xff"])


@both
async def test_outcomes_in_a_browser(tab: Tab, jetstream: NatsServer, rooms: Rooms, transport: str) -> None:
    async with open_bridge(jetstream, rooms) as (bridge, proxy):
        bridge.extension.on_publish(f"{rooms.name}.rooms.*")(say)
        await opened(tab, proxy, {"transports": [transport]})
        settled = await tab.evaluate(f"(name) => {{ {OUTCOMES} }}", rooms.name)
        await check_outcomes(settled, rooms)
        assert await tab.evaluate("seen('gap').length + seen('close').length") == 0


@both
async def test_outcomes_in_node(jetstream: NatsServer, rooms: Rooms, transport: str) -> None:
    async with open_bridge(jetstream, rooms) as (bridge, _):
        bridge.extension.on_publish(f"{rooms.name}.rooms.*")(say)
        body = f"""
          globalThis.crypto ??= (await import("node:crypto")).webcrypto;
          globalThis.window = globalThis;
          globalThis.addEventListener ??= () => {{}};
          process.on("unhandledRejection", (error) => errors.push(`${{error}}`));
          const nats = client();
          const name = "{rooms.name}";
          {PUBLISH}
          await state(nats, "connected");
          const settled = await (async () => {{ {OUTCOMES} }})();
          nats.close();
          await turn();
          return [settled, errors];
        """
        async with program("evaluate.js", bridge.url, transport, body) as node:
            settled, errors = await node.line()
        assert errors == []
        await check_outcomes(settled, rooms)


@both
async def test_cut_connections_store_each_publish_once(
    tab: Tab, jetstream: NatsServer, rooms: Rooms, transport: str
) -> None:
    async with open_bridge(jetstream, rooms) as (_, proxy):
        await opened(tab, proxy, {"transports": [transport]})
        subject = f"{rooms.name}.rooms.7"
        for first in range(0, 10 * CUTS, 10):
            await tab.evaluate(f"publishOften('{subject}', {first}, 10, 2)")
            proxy.cut()
        await true(tab, "!pending")
        outcomes = await tab.evaluate("outcomes")
        assert Counter(map(int, await rooms.stored("rooms.7"))) == Counter(range(10 * CUTS))
        assert sorted(number for number, _ in outcomes) == list(range(10 * CUTS))
        assert {outcome for _, outcome in outcomes} <= {"stored", "duplicate"}


@both
async def test_publishes_wait_for_nats_and_others_fail_at_once(tab: Tab, transport: str) -> None:
    with NatsServer(jetstream=True) as server:
        async with Rooms.created(server) as rooms, open_bridge(server, rooms) as (_, proxy):
            await opened(tab, proxy, {"transports": [transport]})
            subject = f"{rooms.name}.rooms.7"
            await tab.evaluate(f"publishOften('{subject}', 0, 10, 0)")
            server.kill()
            await true(tab, "nats.status.nats === 'disconnected'")
            await tab.evaluate(f"publishOften('{subject}', 10, 10, 0)")
            fails = f"settle(nats.publish('{rooms.name}.live', 1), nats.request('{rooms.name}.echo', 1))"
            assert [each["code"] for each in await tab.evaluate(fails)] == ["nats.unavailable"] * 2
            server.start()
            await true(tab, "!pending")
            assert {outcome for _, outcome in await tab.evaluate("outcomes")} <= {"stored", "duplicate"}
            await until(lambda: rooms.client.is_connected)
            assert Counter(map(int, await rooms.stored("rooms.7"))) == Counter(range(20))
            # The service reconnects too, sooner or later.
            await true(tab, f"settle(nats.request('{rooms.name}.echo', 1)).then(([{{ code }}]) => !code)")
            assert await tab.evaluate("seen('gap').filter(({ reason }) => reason === 'reconnect')") == []


@both
async def test_publishes_over_the_rate_are_all_stored(
    tab: Tab, jetstream: NatsServer, rooms: Rooms, transport: str
) -> None:
    # At this rate it is exceeded on the slowest machine too.
    async with open_bridge(jetstream, rooms, publish_rate=2, publish_burst=5) as (bridge, proxy):
        await opened(tab, proxy, {"transports": [transport]})
        await tab.evaluate(f"publishOften('{rooms.name}.rooms.7', 0, 15, 0)")
        live = [f"nats.publish('{rooms.name}.live', {number})" for number in range(10)]
        codes = [each.get("code") for each in await tab.evaluate(f"settle({', '.join(live)})")]
        assert set(codes) <= {"limit.publish", None}
        assert "limit.publish" in codes
        await true(tab, "!pending")
        assert {outcome for _, outcome in await tab.evaluate("outcomes")} == {"stored"}
        assert Counter(map(int, await rooms.stored("rooms.7"))) == Counter(range(15))
        assert await tab.evaluate("seen('gap').length + seen('close').length") == 0
        assert bridge.extension.stats().refused["limit.publish"] < 150


async def test_tabs_that_share_a_stream_publish_without_the_leader(
    profile: Profile, jetstream: NatsServer, rooms: Rooms
) -> None:
    tabs = [await profile.tab() for _ in range(3)]
    async with open_bridge(jetstream, rooms) as (bridge, proxy):
        for tab in tabs:
            await opened(tab, proxy, {"transports": ["sse"], "share": "ada"})
            assert await tab.evaluate("nats.status.shared") is True
        assert len(bridge.extension.sessions) == 1
        for index, tab in enumerate(tabs):
            await tab.evaluate(f"publishOften('{rooms.name}.rooms.7', {10 * index}, 10, 0)")
        await true(tabs[0], "!pending")
        await tabs[0].close()
        for index, tab in enumerate(tabs[1:], 3):
            await tab.evaluate(f"publishOften('{rooms.name}.rooms.7', {10 * index}, 10, 0)")
            (answer,) = await tab.evaluate(f"settle(nats.request('{rooms.name}.echo', {index}))")
            assert answer.get("data") in (index, None), answer
        proxy.cut()
        for tab in tabs[1:]:
            await true(tab, "!pending")
            assert {outcome for _, outcome in await tab.evaluate("outcomes")} <= {"stored", "duplicate"}
            assert await tab.evaluate("left") == []
        assert Counter(map(int, await rooms.stored("rooms.7"))) == Counter(range(50))


@both
async def test_closed_client_settles_all_that_wait(
    tab: Tab, jetstream: NatsServer, rooms: Rooms, transport: str
) -> None:
    async with open_bridge(jetstream, rooms) as (bridge, proxy):
        await opened(tab, proxy, {"transports": [transport]})
        waiting = f"settle(nats.request('{rooms.name}.silent', 1, {{ timeout: 5 }}))"
        await tab.evaluate(f"window.waiting = {waiting}, 0")
        publishing = bridge.runtime.sessions.publishing
        assert publishing is not None
        await until(lambda: publishing.in_progress == 1)
        await tab.evaluate("nats.close()")
        assert (await tab.evaluate("waiting"))[0]["code"] in ("disconnected", "request.timeout")
        (late,) = await tab.evaluate(f"settle(nats.publish('{rooms.name}.rooms.7', 1, {{ ack: true }}))")
        assert late["code"] == "disconnected"
