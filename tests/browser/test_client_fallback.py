"""The browser client behind proxies that let only some data through: it goes on, or reports why not."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from sanic import Request

from sanic_nats_bridge import Permissions
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import Bridge, Publisher, until
from tests.support.chromium import Chromium, ChromiumProfile, ChromiumTab
from tests.support.client import BEGIN, RECONNECT_GAP, back, begin, both, ready, serving, true
from tools.proxies.middlebox import Middlebox
from tools.proxies.rules import Answer, Flow, Kind, Rewrite, Rule

pytestmark = pytest.mark.asyncio(loop_scope="module")

PAGE = "<!doctype html><title>From the proxy</title>"
FORBIDDEN = Rule(Answer(403, PAGE))
LOGIN = Rule(Answer(200, PAGE))
REDIRECT = Rule(Answer(302, location="/login"))

QUICK = """
  const { setTimeout } = window;
  const { timeout } = AbortSignal;
  window.setTimeout = (callback, delay, ...all) => setTimeout(callback, delay / 20, ...all);
  AbortSignal.timeout = (delay) => timeout.call(AbortSignal, delay / 20);
"""
"""Makes the timeouts of a page shorter."""

Rules = dict[Kind, Rule]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def chromium(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Chromium]:
    async with Chromium.running(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="module")
async def profile(chromium: Chromium) -> AsyncIterator[ChromiumProfile]:
    async with chromium.profile() as profile:
        await profile.add_script(BEGIN)
        yield profile


@pytest_asyncio.fixture(loop_scope="module")
async def tab(profile: ChromiumProfile) -> ChromiumTab:
    return await profile.tab()


@pytest_asyncio.fixture(loop_scope="module")
async def publisher(shared_nats: NatsServer) -> AsyncIterator[Publisher]:
    async with Publisher.connected(shared_nats) as publisher:
        yield publisher


@contextlib.asynccontextmanager
async def behind(nats: NatsServer, rules: Rules, **settings: Any) -> AsyncIterator[tuple[Bridge, str]]:
    """Serve a bridge behind a proxy whose rules the test may change; yield it and the proxy's address."""
    async with serving(nats, **settings) as (bridge, _), Middlebox(bridge.port, rules).running() as proxy:
        yield bridge, f"http://127.0.0.1:{proxy.port}"


async def receives(tab: ChromiumTab, publisher: Publisher, *subjects: str) -> None:
    """Check that a message for each subject arrives."""
    await tab.evaluate("messages.length = 0")
    for subject in subjects:
        await publisher.send(subject, b"1")
    await true(tab, f"messages.length === {len(subjects)}")
    assert await tab.evaluate("messages.map(({ subject }) => subject)") == [*subjects]


STATES = "seen('status').map(({ state, transport }) => [state, transport])"

# A transport is proven by its first reply


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        (Rule(up=Flow(lost_after=0)), "websocket: no reply in 300 ms"),
        (Rule(up=Flow(cut_after_bytes=0)), "websocket: 1006"),
        (Rule(down=Flow(hold_bytes=2**30)), "websocket: no welcome in 300 ms"),
    ],
    ids=["up lost", "cut at first frame", "down held"],
)
async def test_websocket_without_reply_is_not_connected(
    tab: ChromiumTab, shared_nats: NatsServer, publisher: Publisher, rule: Rule, why: str
) -> None:
    subject = publisher.subject("a")
    async with behind(shared_nats, {"websocket": rule}) as (_, url):
        await tab.goto(url)
        # A longer timeout lets the cut come first.
        await begin(tab, {"timeout": 300 if "300" in why else 60_000}, subject)
        await ready(tab, "sse")
        await receives(tab, publisher, subject)
        assert ["connected", "websocket"] not in await tab.evaluate(STATES)
        assert await tab.evaluate("nats.status.why") == why


async def test_websocket_without_subscriptions_is_proven_too(tab: ChromiumTab, shared_nats: NatsServer) -> None:
    async with behind(shared_nats, {"websocket": Rule(up=Flow(lost_after=0))}) as (_, url):
        await tab.goto(url)
        await begin(tab, {"timeout": 300})
        await true(tab, "nats.status.state === 'connected'")
        assert await tab.evaluate("nats.status.transport") == "sse"
        assert ["connected", "websocket"] not in await tab.evaluate(STATES)


async def test_known_subjects_need_no_post(tab: ChromiumTab, shared_nats: NatsServer, publisher: Publisher) -> None:
    subjects = [publisher.subject(name) for name in "abc"]
    async with behind(shared_nats, {"websocket": FORBIDDEN, "post": Rule(swallow=True)}) as (bridge, url):
        await tab.goto(url)
        await begin(tab, {}, *subjects)
        await ready(tab, "sse")
        await receives(tab, publisher, *subjects)
        assert await tab.evaluate(STATES) == [
            ["connecting", "sse"],
            ["subscribing", "sse"],
            ["connected", "sse"],
        ]
        assert len(bridge.extension.sessions) == 1


async def test_patterns_beyond_the_query_are_sent_by_post(
    tab: ChromiumTab, shared_nats: NatsServer, publisher: Publisher
) -> None:
    patterns = [publisher.subject(f"{number}.{'x' * 60}") for number in range(80)] + [publisher.subject("with,comma")]
    urls: list[str] = []
    tab.page.on("request", lambda request: urls.append(request.url))
    async with behind(shared_nats, {}, max_subscriptions=100) as (bridge, url):
        await tab.goto(url)
        await begin(tab, {"transports": ["sse"]}, *patterns)
        await ready(tab, "sse")
        (session,) = bridge.extension.sessions
        assert set(session.subscriptions) == {*patterns}
    (stream,) = (each for each in urls if "/nats/events" in each)
    assert 1_000 < len(stream) < 2_200
    assert any(each.endswith("/nats/subscribe?") or "/nats/subscribe" in each for each in urls)


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        (FORBIDDEN, "POST: HTTP 403 text/html, not from the bridge"),
        (LOGIN, "POST: HTTP 200 text/html, not from the bridge"),
        (REDIRECT, "POST: redirected to "),
        (Rule(swallow=True), "POST: no answer in 10000 ms; over HTTP/1.1"),
        (Rule(cut_after=0), "no reply"),
    ],
    ids=["403", "login page", "redirect", "swallowed", "cut"],
)
async def test_stream_is_opened_again_if_post_does_not_get_through(
    tab: ChromiumTab, shared_nats: NatsServer, publisher: Publisher, rule: Rule, reason: str
) -> None:
    first, second, third = (publisher.subject(name) for name in "abc")
    await tab.page.add_init_script(QUICK)
    async with behind(shared_nats, {"websocket": FORBIDDEN, "post": rule}) as (bridge, url):
        await tab.goto(url)
        await begin(tab, {}, first)
        await ready(tab, "sse")
        for subject in (second, third):
            await tab.evaluate(f"void followed.push(nats.subscribe('{subject}', (_, m) => messages.push(m)))")
            await ready(tab, "sse")
        await true(tab, "nats.status.state === 'connected'")
        (session,) = bridge.extension.sessions
        assert set(session.subscriptions) == {first, second, third}
        await receives(tab, publisher, first, second, third)
        reasons = await tab.evaluate(
            "seen('status').filter(({ state }) => state === 'subscribing').map(({ reason }) => reason)"
        )
        assert [each for each in reasons if each.startswith(reason)], reasons
        gaps = await tab.evaluate(RECONNECT_GAP)
        assert gaps[0] == [[first], None, "reconnect"]


async def test_client_reports_stream_that_a_proxy_holds_back(
    tab: ChromiumTab, shared_nats: NatsServer, publisher: Publisher
) -> None:
    await tab.page.add_init_script(QUICK)
    rules: Rules = {"websocket": FORBIDDEN, "events": Rule(down=Flow(hold_bytes=2**30))}
    async with behind(shared_nats, rules) as (_, url):
        await tab.goto(url)
        await begin(tab, {}, publisher.subject("a"))
        await true(tab, "nats.status.state === 'waiting'")
        assert await tab.evaluate("nats.status.reason") == (
            "no welcome in 15000 ms; a proxy may hold the event stream back"
        )
        assert "connected" not in [state for state, _ in await tab.evaluate(STATES)]


async def test_client_reports_connections_used_up_by_streams(
    tab: ChromiumTab, shared_nats: NatsServer, publisher: Publisher
) -> None:
    await tab.page.add_init_script(QUICK)
    async with behind(shared_nats, {"websocket": FORBIDDEN}) as (bridge, url):
        await tab.goto(url)
        await tab.evaluate("import('/nats/client.js').then(() => 0)")
        await tab.evaluate("window.sources = Array.from({ length: 6 }, () => new EventSource('/nats/events')), 0")
        await until(lambda: len(bridge.extension.sessions) == 6)
        await begin(tab, {"transports": ["sse"]}, publisher.subject("a"))
        await true(tab, "nats.status.state === 'waiting'")
        assert 'use HTTP/2 or the option "share"' in await tab.evaluate("nats.status.reason")
        await tab.evaluate("sources[0].close()")
        await ready(tab, "sse")


# The answer of a proxy is temporary


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 410, 451])
async def test_status_of_proxy_is_not_final(
    tab: ChromiumTab, shared_nats: NatsServer, publisher: Publisher, status: int
) -> None:
    subject = publisher.subject("a")
    rules: Rules = {"websocket": FORBIDDEN}
    async with behind(shared_nats, rules, reconnect_spread=0) as (bridge, url):
        await tab.goto(url)
        await tab.evaluate("Math.random = () => 0")
        await begin(tab, {}, subject)
        await ready(tab, "sse")
        rules["events"] = rules["head"] = rules["post"] = Rule(Answer(status, PAGE))
        bridge.runtime.sessions.close_all("The server is going away")
        await true(tab, f"nats.status.reason === 'HTTP {status} text/html, not from the bridge'")
        await true(tab, "seen('status').filter(({ reason }) => reason?.startsWith('HTTP')).length > 3")
        rules.clear()
        bridge.runtime.sessions.stop_reason = None
        await back(tab, bridge, publisher, subject)
        assert await tab.evaluate("seen('close')") == []


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        (LOGIN, "HTTP 200 text/html, not from the bridge"),
        (REDIRECT, "redirected, perhaps to a login page"),
        (Rule(Answer(401, PAGE)), "HTTP 401 text/html, not from the bridge"),
    ],
    ids=["page", "redirect", "401"],
)
async def test_login_page_of_proxy_asks_for_credentials(
    tab: ChromiumTab, shared_nats: NatsServer, publisher: Publisher, rule: Rule, reason: str
) -> None:
    subject = publisher.subject("a")
    rules: Rules = dict.fromkeys(("websocket", "events", "post", "head"), rule)
    async with behind(shared_nats, rules) as (bridge, url):
        await tab.goto(url)
        await tab.evaluate("window.asked = 0; Math.random = () => 1e9")  # a backoff that no test waits out
        await tab.evaluate("(subject) => begin({ credentials: async () => void asked++ }, subject)", subject)
        # Once at once, then with backoff.
        await true(tab, "asked === 2 && nats.status.retry > 1_000_000")
        assert await tab.evaluate("nats.status.reason") == reason
        rules.clear()
        await tab.evaluate("nats.reconnect()")
        await back(tab, bridge, publisher, subject)
        assert await tab.evaluate("asked") == 3


async def test_page_of_refused_origin_is_served_by_queries(
    tab: ChromiumTab, shared_nats: NatsServer, publisher: Publisher
) -> None:
    # As Vite's proxy with `changeOrigin` does it. A GET of the page's own origin has no Origin header.
    own_host = Rule(rewrite=Rewrite(own_host=True, forwarded=False))
    rules: Rules = dict.fromkeys(("websocket", "events", "post", "head"), own_host)
    first, second = publisher.subject("a"), publisher.subject("b")
    errors: list[str] = []
    tab.page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    async with behind(shared_nats, rules) as (_, url):
        await tab.goto(url)
        await begin(tab, {}, first)
        await ready(tab, "sse")
        await tab.evaluate(f"void followed.push(nats.subscribe('{second}', (_, m) => messages.push(m)))")
        await ready(tab, "sse")
        await receives(tab, publisher, first, second)
        origin = f'the bridge refuses the origin {url}: "allowed_origins" must name it'
        assert [error for error in errors if "allowed_origins" in error] == [f"{url}/nats/: {origin}"]


async def test_client_reports_foreign_origin_to_the_console(
    tab: ChromiumTab, shared_nats: NatsServer, publisher: Publisher
) -> None:
    errors: list[str] = []
    tab.page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    async with behind(shared_nats, {}) as (_, url), behind(shared_nats, {}) as (_, other):
        await tab.goto(f"{other}/open")
        await begin(tab, {"url": f"{url}/nats/"}, publisher.subject("a"))
        await true(tab, "nats.status.reason?.includes('allowed_origins')")
        assert await tab.evaluate("nats.status.state") == "waiting"
        (reported,) = (error for error in errors if "must name it" in error)
        assert other in reported


async def test_error_page_of_proxy_is_not_taken_for_a_refused_origin(
    tab: ChromiumTab, shared_nats: NatsServer, publisher: Publisher
) -> None:
    # A page of another origin sees nothing of an answer that has no CORS headers.
    subject = publisher.subject("a")
    errors: list[str] = []
    tab.page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    rules: Rules = {"websocket": FORBIDDEN}
    async with (
        behind(shared_nats, {}) as (_, other),
        behind(shared_nats, rules, allowed_origins=[other]) as (bridge, url),
    ):
        await tab.goto(f"{other}/open")
        await begin(tab, {"url": f"{url}/nats/"}, subject)
        await ready(tab, "sse")
        rules |= dict.fromkeys(("events", "post", "head", "other"), Rule(Answer(502, PAGE)))
        bridge.runtime.sessions.close_all("The server is going away")
        await true(tab, "seen('status').filter(({ reason }) => reason?.startsWith('TypeError')).length > 1")
        del rules["events"], rules["post"], rules["head"], rules["other"]
        bridge.runtime.sessions.stop_reason = None
        await back(tab, bridge, publisher, subject)
        assert await tab.evaluate("seen('status').some(({ reason }) => reason?.includes('origin'))") is False
        assert [error for error in errors if "allowed_origins" in error] == []


# Pages


async def test_prerendered_page_connects_when_it_is_shown(
    tab: ChromiumTab, shared_nats: NatsServer, publisher: Publisher
) -> None:
    subject = publisher.subject("a")
    async with serving(shared_nats) as (_, proxy):
        await tab.goto(proxy.url)
        await tab.evaluate(
            """(subject) => {
              Object.defineProperty(document, "prerendering", { value: true, configurable: true });
              window.made = 0;
              window.WebSocket = class extends WebSocket { constructor(url) { super(url); made++ } };
              return begin({ timeout: 1 }, subject);
            }""",
            subject,
        )
        await tab.evaluate("fetch('/nats/health/live').then(() => 0)")
        assert await tab.evaluate("[made, nats.status.state, nats.status.why]") == [0, "connecting", ""]
        await tab.evaluate("delete document.prerendering, document.dispatchEvent(new Event('prerenderingchange'))")
        await true(tab, "made && nats.status.state === 'connected'")
        await receives(tab, publisher, subject)


@pytest.mark.parametrize("share", [None, "ada"])
async def test_relative_address_is_that_of_the_page_at_the_start(
    profile: ChromiumProfile, shared_nats: NatsServer, publisher: Publisher, share: str | None
) -> None:
    subject = publisher.subject("a")
    options = {"transports": ["sse"], "url": "nats/", "share": share} if share else {"url": "nats/"}
    async with serving(shared_nats) as (bridge, proxy):
        tabs = [await profile.tab() for _ in range(2)]
        for tab in tabs:
            await tab.goto(f"{proxy.url}/open")
            await begin(tab, options, subject)
            await true(tab, "nats.status.state === 'connected'")
            await tab.evaluate("history.pushState(null, '', '/orders/5/'), 0")
        await tabs[0].close()  # one of them leads, if they share a stream
        await until(lambda: len(bridge.extension.sessions) == 1)
        await tabs[1].evaluate("nats.reconnect()")
        await back(tabs[1], bridge, publisher, subject)
        assert not [path for path in proxy.paths if path.startswith("/orders")]


async def test_stream_that_a_proxy_forwards_now_and_then_is_waited_for(
    tab: ChromiumTab, shared_nats: NatsServer, publisher: Publisher
) -> None:
    subject = publisher.subject("a")
    rules: Rules = {"websocket": FORBIDDEN, "events": Rule(down=Flow(flush_every=2.5))}
    async with behind(shared_nats, rules) as (_, url):
        await tab.goto(url)
        await tab.evaluate(f"(() => {{ {QUICK} }})()")  # 0.75 s for the first welcome
        await begin(tab, {}, subject)
        await ready(tab, "sse")
        await receives(tab, publisher, subject)
        reasons = await tab.evaluate("seen('status').map(({ reason }) => reason)")
        assert "no welcome in 15000 ms; a proxy may hold the event stream back" in reasons


# Clocks


@both
@pytest.mark.parametrize("hours", [-1, 1])
async def test_clock_that_is_set_changes_nothing(
    tab: ChromiumTab, shared_nats: NatsServer, publisher: Publisher, transport: str, hours: int
) -> None:
    subject = publisher.subject("a")
    async with serving(shared_nats, heartbeat=1) as (bridge, proxy):
        await tab.goto(proxy.url)
        await begin(tab, {"transports": [transport]}, subject)
        await ready(tab, transport)
        await tab.evaluate(
            """(hours) => {
              const { now } = Date;
              Date.now = () => now() + 3_600_000 * hours;
              window.beats = 0;
              nats.addEventListener("frame", ({ detail }) => detail.type === "heartbeat" && beats++);
            }""",
            hours,
        )
        await true(tab, "beats >= 4")
        assert await tab.evaluate("seen('status').some(({ reason }) => reason === 'silence')") is False
        proxy.silent = True
        await true(tab, "seen('status').some(({ reason }) => reason === 'silence')")
        proxy.silent = False
        proxy.cut()
        await back(tab, bridge, publisher, subject)


async def test_transport_remembered_by_another_clock_is_forgotten(
    tab: ChromiumTab, shared_nats: NatsServer, publisher: Publisher
) -> None:
    rules: Rules = {"websocket": FORBIDDEN}
    subject = publisher.subject("a")
    async with behind(shared_nats, rules, heartbeat=4) as (_, url):
        await tab.goto(url)
        await tab.evaluate("{ const { now } = Date; Date.now = () => now() + 1e11 }")
        await begin(tab, {"retryBetter": 500}, subject)
        await ready(tab, "sse")
        await tab.reload()  # with the browser's own clock, which is years earlier
        rules.clear()
        await begin(tab, {"retryBetter": 500}, subject)
        await true(tab, "nats.status.transport === 'websocket' && nats.status.state === 'connected'")


# Transports that work, and break


async def test_websocket_that_is_cut_three_times_is_left_for_the_stream(
    tab: ChromiumTab, shared_nats: NatsServer, publisher: Publisher
) -> None:
    subject = publisher.subject("a")
    async with behind(shared_nats, {"websocket": Rule(cut_after=0.5)}) as (bridge, url):
        await tab.goto(url)
        await tab.evaluate("Math.random = () => 1")
        await begin(tab, {}, subject)
        await true(tab, "nats.status.transport === 'sse' && nats.status.state === 'connected'")
        assert await tab.evaluate("nats.status.why") == "websocket: 1006"
        states = await tab.evaluate(STATES)
        assert states.count(["connected", "websocket"]) == 3
        # A link that carried replies isn't a failure, however short it was.
        waits = await tab.evaluate("seen('status').filter(({ state }) => state === 'waiting').map((s) => s.retry)")
        assert waits == [2000] * 3
        await back(tab, bridge, publisher, subject)


async def test_websocket_that_was_bad_is_left_at_its_first_cut_later(
    tab: ChromiumTab, shared_nats: NatsServer, publisher: Publisher
) -> None:
    subject = publisher.subject("a")
    async with behind(shared_nats, {"websocket": Rule(cut_after=0.5)}, heartbeat=4) as (_, url):
        await tab.goto(url)
        await tab.evaluate("Math.random = () => 0")
        await begin(tab, {"retryBetter": 1_000}, subject)
        await true(tab, "seen('status').filter((s) => s.transport === 'sse' && s.state === 'connected').length >= 3")
        connected = [transport for state, transport in await tab.evaluate(STATES) if state == "connected"]
        assert connected[:8] == ["websocket"] * 3 + ["sse", "websocket"] * 2 + ["sse"]


async def test_client_keeps_transport_that_lives_longer_if_both_are_cut(
    tab: ChromiumTab, shared_nats: NatsServer, publisher: Publisher
) -> None:
    subject = publisher.subject("a")
    rules: Rules = {"websocket": Rule(cut_after=0.2), "events": Rule(cut_after=2)}
    async with behind(shared_nats, rules) as (_, url):
        await tab.goto(url)
        await tab.evaluate("Math.random = () => 0")
        await begin(tab, {}, subject)
        await true(tab, "seen('status').filter((s) => s.transport === 'sse' && s.state === 'connected').length >= 5")
        connected = [transport for state, transport in await tab.evaluate(STATES) if state == "connected"]
        assert connected[-5:] == ["sse"] * 5


# The address of the bridge

CONNECT = """async (url) => {
  const { connect } = await import("/app/nats/client.js");
  const nats = connect(url === null ? {} : { url });
  await nats.subscribe("a").ready;
  nats.close();
}"""


@pytest.mark.parametrize("url", [None, "nats", "nats/", "/app/nats", "nats/?tenant=7", "nats#x"])
async def test_address_is_relative_to_the_base_of_the_document(
    tab: ChromiumTab, shared_nats: NatsServer, url: str | None
) -> None:
    tenants: list[Any] = []

    def permissions(request: Request) -> Permissions:
        tenants.append(request.args.get("tenant"))
        return Permissions([">"])

    async with serving(shared_nats, prefix="/app/nats", permissions=permissions) as (_, proxy):
        await tab.goto(f"{proxy.url}/open")
        await tab.evaluate("document.head.append(Object.assign(document.createElement('base'), { href: '/app/' }))")
        await tab.evaluate(CONNECT, url)
    assert set(tenants) == {"7" if url and "tenant" in url else None}


WORKER = """async (url) => {
  const code = `import { connect } from "${location.origin}/app/nats/client.js";
    const nats = connect(${JSON.stringify(url === null ? {} : { url })});
    nats.subscribe("a").ready.then(() => { nats.close(); postMessage("ready"); });`;
  const worker = new Worker(URL.createObjectURL(new Blob([code], { type: "text/javascript" })), { type: "module" });
  return new Promise((resolve, reject) => {
    worker.onmessage = ({ data }) => resolve(data);
    worker.onerror = ({ message }) => reject(new Error(message));
  });
}"""

SRCDOC = """(url) => new Promise((resolve) => {
  addEventListener("message", ({ data }) => resolve(data), { once: true });
  const frame = document.createElement("iframe");
  frame.srcdoc = `<script type="module">
    import { connect } from "/app/nats/client.js";
    const nats = connect(${JSON.stringify(url === null ? {} : { url })});
    nats.subscribe("a").ready.then(() => { nats.close(); parent.postMessage("ready"); });
  </` + "script>";
  document.body.append(frame);
})"""


@pytest.mark.parametrize("url", [None, "/app/nats/"])
@pytest.mark.parametrize("place", [WORKER, SRCDOC], ids=["worker of a blob", "frame without an address"])
async def test_address_is_that_of_the_page_without_one_of_its_own(
    tab: ChromiumTab, shared_nats: NatsServer, place: str, url: str | None
) -> None:
    async with serving(shared_nats, prefix="/app/nats") as (_, proxy):
        await tab.goto(f"{proxy.url}/open")
        assert await tab.evaluate(place, url) == "ready"


# Connecting again


@both
async def test_reconnect_asks_for_credentials_and_keeps_subscriptions(
    tab: ChromiumTab, shared_nats: NatsServer, publisher: Publisher, transport: str
) -> None:
    subject = publisher.subject("a")

    def permissions(request: Request) -> Permissions:
        return Permissions([">"], identity=request.args.get("user"))

    async with serving(shared_nats, permissions=permissions) as (bridge, proxy):
        await tab.goto(proxy.url)
        await tab.evaluate(
            """([transports, subject]) => {
              window.user = "ada";
              return begin({ transports, credentials: async () => ({ user }) }, subject);
            }""",
            [[transport], subject],
        )
        await ready(tab, transport)
        assert [session.identity for session in bridge.extension.sessions] == ["ada"]
        await tab.evaluate("window.user = 'bob'; nats.reconnect()")
        await until(lambda: [session.identity for session in bridge.extension.sessions] == ["bob"])
        await back(tab, bridge, publisher, subject)
        assert await tab.evaluate(RECONNECT_GAP) == [[[subject], None, "reconnect"]]
