"""The input of the browser client: options, addresses, credentials, patterns and commands; in Node."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from sanic_nats_bridge import Permissions
from sanic_nats_bridge.testing import NatsServer
from tests.browser.test_client_node import evaluated
from tests.support.bridge import Bridge, running


@pytest_asyncio.fixture
async def bridge(shared_nats: NatsServer) -> AsyncIterator[Bridge]:
    async with running(servers=shared_nats.url, permissions=lambda _: Permissions(["a", "b"])) as bridge:
        yield bridge


COUNTING = """
  const made = { websocket: 0, sse: 0 }, urls = [];
  class Socket extends WebSocket { constructor(url) { super(url); made.websocket++; urls.push(url) } }
  class Source extends EventSource { constructor(url, ...all) { super(url, ...all); made.sse++; urls.push(url) } }
  const settled = ({ ready }) => ready.then(() => "ready", ({ code, message }) => [code, message]);
"""


@pytest.mark.parametrize("name", ["transports", "timeout", "retryBetter", "WebSocket", "fetch", "share", "credentials"])
async def test_option_that_is_undefined_is_that_of_the_default(bridge: Bridge, name: str) -> None:
    body = f"""
      globalThis.WebSocket = WebSocket;
      const nats = client({{ transports: ["websocket", "sse"], {name}: undefined }});
      const {{ transport }} = await state(nats, "connected");
      nats.close();
      return transport;
    """
    assert await evaluated(bridge, "websocket", body) == "websocket"


@pytest.mark.parametrize("text", ["null", "5", "", "{bad", '{"index":1}', "7 9e15", "-1 9e15", "1", "1 x", "1 NaN"])
async def test_tab_storage_with_anything_in_it_is_ignored(bridge: Bridge, text: str) -> None:
    body = f"""
      globalThis.sessionStorage = {{ getItem: () => {json.dumps(text)}, setItem() {{}} }};
      const nats = client({{ transports: ["websocket", "sse"] }});
      const {{ transport, why }} = await state(nats, "connected");
      nats.close();
      return [transport, why];
    """
    assert await evaluated(bridge, "websocket", body) == ["websocket", ""]


# Addresses


@pytest.mark.parametrize(
    "url", ["file:///nats/", "data:,", "ftp://127.0.0.1/nats/", "http://ada:secret@127.0.0.1/nats/"]
)
async def test_address_that_no_browser_connects_to_throws(bridge: Bridge, url: str) -> None:
    body = f"""
      try {{ client({{ url: "{url}" }}) }} catch ({{ message }}) {{ return message }}
    """
    message = await evaluated(bridge, "sse", body)
    assert message.startswith('connect() needs a "url" with http: or https: and without a user, got ')
    assert "secret" not in message


@pytest.mark.parametrize("transport", ["websocket", "sse"])
async def test_address_may_have_scheme_of_websockets(bridge: Bridge, transport: str) -> None:
    url = bridge.url.replace("http:", "ws:")
    body = f"""
      const nats = client({{ url: "{url}" }});
      const {{ active }} = await nats.subscribe("a").ready;
      nats.close();
      return active;
    """
    assert await evaluated(bridge, transport, body) is True


@pytest.mark.parametrize("transport", ["websocket", "sse"])
@pytest.mark.parametrize(
    "options", ['{ url: "%s?subjects=secret&x=1" }', '{ url: "%s?x=1", credentials: () => ({ subjects: "b..a" }) }']
)
async def test_subjects_in_query_of_page_are_dropped(bridge: Bridge, options: str, transport: str) -> None:
    body = f"""
      {COUNTING}
      const nats = client({{ WebSocket: Socket, EventSource: Source, ...{options % bridge.url} }});
      const result = await settled(nats.subscribe("a"));
      nats.close();
      return [result, urls.map((url) => [...new URL(url).searchParams])];
    """
    subjects = [["subjects", "a"]] if transport == "sse" else []
    assert await evaluated(bridge, transport, body) == ["ready", [[["x", "1"], *subjects]]]


# Credentials


@pytest.mark.parametrize(
    "credentials", ["{ token: 't' }", "'token=t'", "new URLSearchParams({ token: 't' })", "new Map([['token', 't']])"]
)
async def test_credentials_of_any_form_become_a_query(bridge: Bridge, credentials: str) -> None:
    body = f"""
      {COUNTING}
      const nats = client({{ WebSocket: Socket, credentials: () => ({credentials}) }});
      await state(nats, "connected");
      nats.close();
      return urls.map((url) => new URL(url).search);
    """
    assert await evaluated(bridge, "websocket", body) == ["?token=t"]


async def test_status_names_credentials_that_do_not_come(bridge: Bridge) -> None:
    body = """
      let resolve;
      const nats = client({ credentials: () => new Promise((given) => (resolve = given)) });
      const { state: before, reason } = await state(nats, "connecting");
      resolve();
      const { reason: after } = await state(nats, "connected");
      nats.close();
      return [before, reason, after];
    """
    expected = ["connecting", "credentials: no result yet", ""]
    assert await evaluated(bridge, "websocket", body) == expected


# Patterns and commands


@pytest.mark.parametrize("transport", ["websocket", "sse"])
@pytest.mark.parametrize(
    "pattern", ["'a.\\ud83d'", "'a b'", "''", "'ä'", "undefined", "null", "{}", "'漢'.repeat(900)"]
)
async def test_invalid_pattern_ends_its_subscription_alone(bridge: Bridge, pattern: str, transport: str) -> None:
    body = f"""
      {COUNTING}
      process.on("unhandledRejection", ({{ message }}) => errors.push(message));
      const nats = client({{ WebSocket: Socket, EventSource: Source }}), ended = [];
      nats.addEventListener("unsubscribed", ({{ detail }}) => ended.push(detail.code));
      const invalid = [nats.subscribe({pattern})], valid = nats.subscribe("a");
      await valid.ready;
      invalid.push(nats.subscribe({pattern}));
      const results = await Promise.all([...invalid.map(settled), settled(nats.subscribe("b"))]);
      nats.close();
      return [results.map(([code]) => code), ended, errors, made];
    """
    codes, ended, errors, made = await evaluated(bridge, transport, body)
    assert codes == ["subject.invalid", "subject.invalid", "r"]  # of "ready"
    assert (ended, errors) == (["subject.invalid"] * 2, [])
    assert made == {"websocket": int(transport == "websocket"), "sse": int(transport == "sse")}


@pytest.mark.parametrize("transport", ["websocket", "sse"])
async def test_command_that_cannot_be_sent_throws_and_changes_nothing(bridge: Bridge, transport: str) -> None:
    body = """
      const { setTimeout } = globalThis;
      const nats = client();
      await state(nats, "connected");
      const timers = [];
      globalThis.setTimeout = (...all) => (timers.push(all[1]), setTimeout(...all));
      const big = await nats.send({ subjects: [1n] }).catch(({ name }) => name);
      const before = timers.length;
      const [first, second] = await Promise.allSettled([1, 2].map(() => nats.send({ id: "same", subjects: [] })));
      const third = await nats.send({ id: "same", subjects: [] });
      nats.close();
      return [big, before, first.value?.code, second.reason?.code, third.code];
    """
    expected = ["TypeError", 0, "command.invalid", "command.invalid", "command.invalid"]
    assert await evaluated(bridge, transport, body) == expected


LISTENERS: Any = [("frame", "welcome"), ("frame", "reply"), ("status", "subscribing"), ("status", "connected")]


@pytest.mark.parametrize(("event", "kind"), LISTENERS)
async def test_client_closed_by_listener_during_takeover_stays_closed(bridge: Bridge, event: str, kind: str) -> None:
    # The WebSocket is tried beside the event stream, and replaces it.
    body = f"""
      let refuses = true;
      class Late extends WebSocket {{ constructor(url) {{ if (refuses) throw new Error("refused"); super(url) }} }}
      const nats = client({{ transports: ["websocket", "sse"], retryBetter: 1, WebSocket: Late }}), states = [];
      nats.subscribe("a");
      await state(nats, "connected");
      nats.addEventListener("status", ({{ detail }}) => states.push(detail.state));
      nats.addEventListener("{event}", ({{ detail }}) => {{
        if ((detail.type ?? detail.state) === "{kind}") nats.close();
      }});
      refuses = false;
      await state(nats, "closed");
      for (let turns = 0; turns < 20; turns++) await turn();
      return [states.at(-1), nats.status.state, !!nats.welcome];
    """
    assert await evaluated(bridge, "sse", body) == ["closed", "closed", False]
