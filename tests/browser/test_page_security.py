"""The example app as a process, its page in a real browser: what hostile messages and foreign pages can do to it."""

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from playwright.sync_api import Browser, Dialog, Page, Route, expect

from sanic_nats_bridge.testing import NatsServer
from tests.support.example import ExampleApp, publish
from tests.support.page import CONNECTED, TRANSPORTS, chromium, command, follow, switch


@pytest.fixture(scope="module")
def example(shared_nats: NatsServer) -> Iterator[ExampleApp]:
    with ExampleApp("--nats", shared_nats.url) as app:
        yield app


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


HOSTILE_TEXTS = [
    '<img src=x onerror="attack()">',
    "</script><script>attack()</script>",
    "</li></ol><svg onload=attack()>",
    "javascript:attack()",
    "\"><iframe srcdoc='<script>parent.attack()</script>'></iframe>",
    "<style>*{display:none}</style><base href=//evil.example/>",
    "<form action=//evil.example><input name=subject></form>",
    "\u202e\u2066\u200b\u200d\ufeff\u2028\u2029\u0000\u001b[31m\u0085 \U0001f3f4 Zalgo\u0335\u0321",
    "data: x\n\nevent: close\ndata: {}\r\n\r\nid: 1\rretry: 1",
    "{{constructor.constructor('attack()')()}} ${attack()} <!--#exec-->",
    "<b>" + "x" * 1_000_000,
]
HOSTILE_JSON = [
    '{"__proto__":{"polluted":1},"constructor":{"prototype":{"polluted":1}}}',
    '{"type":"close","subject":"x","session":"x"}',
    '{"<img src=x onerror=attack()>":["</script><script>attack()</script>"],"then":1,"toString":null}',
    '"<img src=x onerror=attack()>"',
]
HOSTILE_TOKENS = [
    "<img/src=x/onerror=attack()>",
    "</b></li><svg/onload=attack()>",
    "</script><script>attack()</script>",
    "\u202e\u200bright-to-left",
    "__proto__",
    "'\"`${attack()}",
]
WATCH = """
  window.attacks = [];
  window.attack = () => attacks.push("ran");
  document.addEventListener("securitypolicyviolation", (event) => attacks.push(event.violatedDirective));
"""
SHAPE = """() => [...document.querySelectorAll("*")]
  .filter((element) => !element.closest("#rows tr, #subscriptions li, #frames li, #rates li, #empty, #subject"))
  .map((element) => element.outerHTML.slice(0, element.outerHTML.indexOf(">") + 1))"""
ENTRIES = """() => [...document.querySelectorAll("#rows tr")].map((row) => [
  row.querySelector(".name").textContent, row.querySelector(".by").textContent, row.querySelector(".text").textContent,
  row.querySelector(".truncated")?.textContent ?? "",
])"""
ELEMENTS = (
    """(where) => [...new Set([...document.querySelectorAll(where)].map((element) => element.localName))].sort()"""
)
LONGEST = 960  # characters of a message that are shown unasked


@pytest.fixture
def watched(browser: Browser, example: ExampleApp) -> Iterator[Page]:
    """Open the example's page, and fail the test on a dialog, a foreign request or a policy violation."""
    page = browser.new_page()
    dialogs: list[str] = []
    errors: list[str] = []
    requests: list[str] = []

    def note(dialog: Dialog) -> None:
        dialogs.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", note)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.add_init_script(WATCH)
    page.goto(example.url)
    expect(page.locator("#state")).to_have_text(CONNECTED)
    yield page
    assert page.evaluate("attacks") == []
    assert page.evaluate("({}).polluted") is None
    page.close()
    assert (dialogs, errors) == ([], [])
    assert [url for url in requests if not url.startswith((example.url, example.url.replace("http", "ws")))] == []


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_hostile_messages_are_rendered_as_text_and_run_no_script(
    watched: Page, transport: str, shared_nats: NatsServer
) -> None:
    switch(watched, transport)
    pattern = f"hostile.{transport}.>"
    follow(watched, pattern)
    watched.check("#all-frames")
    shape = watched.evaluate(SHAPE)
    expected = []
    for text in HOSTILE_TEXTS:
        publish(shared_nats, f"hostile.{transport}.text", text.encode())
        expected.append((f"hostile.{transport}.text", text))
    for document in HOSTILE_JSON:
        publish(shared_nats, f"hostile.{transport}.json", document.encode())
        expected.append((f"hostile.{transport}.json", json.loads(document)))
    for token in HOSTILE_TOKENS:
        publish(shared_nats, f"hostile.{transport}.{token}", b'"x"')
        expected.append((f"hostile.{transport}.{token}", "x"))
    expect(watched.locator("#count")).to_have_text(f"{len(expected)} messages")

    entries = watched.evaluate(ENTRIES)[::-1]
    assert [(subject, by) for subject, by, _, _ in entries] == [(subject, f"by {pattern}") for subject, _ in expected]
    texts = [text for _, _, text, _ in entries]
    assert texts[: len(HOSTILE_TEXTS)] == [text[:LONGEST] for text in HOSTILE_TEXTS]
    assert [json.loads(text) for text in texts[len(HOSTILE_TEXTS) :]] == [
        shown for _, shown in expected[len(HOSTILE_TEXTS) :]
    ]
    assert [skipped for _, _, _, skipped in entries if skipped] == ["980,003 more characters"]
    watched.locator("#rows").get_by_role("button", name="Show all").click()
    assert watched.evaluate(ELEMENTS, "#rows *") == ["button", "span", "td", "time", "tr"]
    expect(watched.locator("#rates li")).to_have_count(8)
    assert watched.evaluate(ELEMENTS, "#rates *") == ["code", "li", "polygon", "polyline", "span", "svg"]
    expect(watched.locator("#frames li").first).to_contain_text("message")
    assert watched.evaluate(ELEMENTS, "#frames *") == ["b", "li", "span", "time"]
    watched.fill("#filter", HOSTILE_TOKENS[0])
    expect(watched.locator("#rows .name")).to_have_text([f"hostile.{transport}.{HOSTILE_TOKENS[0]}"])
    assert watched.evaluate(SHAPE) == shape
    assert watched.title() == "NATS, live in the browser"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_hostile_subjects_and_commands_are_rendered_as_text(watched: Page, transport: str) -> None:
    switch(watched, transport)
    shape = watched.evaluate(SHAPE)
    subject = "<img/src=x/onerror=attack()//"
    follow(watched, subject)
    watched.fill("#subject", "<img src=x onerror=attack()>")
    watched.click("#subscribe button")
    expect(watched.get_by_role("alert")).to_contain_text("subject.invalid")
    command(watched, '{"subjects": ["<svg/onload=attack()//"], "id": "<svg onload=attack()>", "__proto__": {}}')
    expect(watched.locator("#subscriptions code")).to_have_text([subject, "<svg/onload=attack()//"])
    expect(watched.locator("#frames li").first).to_contain_text("<svg onload=attack()>")
    switch(watched, "sse")  # a gap names them
    switch(watched, "websocket")
    expect(watched.locator("#rows .note-text").first).to_contain_text(subject)
    expect(watched.locator("#announcement")).to_contain_text(subject)
    switch(watched, transport)
    assert watched.evaluate(ELEMENTS, "#rows *") == ["strong", "td", "time", "tr"]
    assert watched.evaluate(ELEMENTS, "#subscriptions *") == ["button", "code", "li"]
    assert watched.evaluate(ELEMENTS, "#frames *") == ["b", "li", "span", "time"]
    assert watched.evaluate(SHAPE) == shape


def test_content_security_policy_allows_only_own_origin(watched: Page, example: ExampleApp) -> None:
    response = watched.request.get(example.url)
    assert response.headers["content-security-policy"] == "default-src 'self'; frame-ancestors 'none'"


# A replacement for Redoc and Swagger UI, which are on other hosts: styles, images, a worker, and the document.
STAND_IN = """
  const SVG = "<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>";
  const show = async (url) => {
    const add = (name, values) => {
      const element = Object.assign(document.createElement(name), values);
      document.body.append(element);
      return element;
    };
    add("style", { textContent: "body { color: green }" });
    await add("img", { src: `data:image/svg+xml,${SVG}` }).decode();
    if (redoc) {
      await add("img", { src: "https://cdn.redoc.ly/redoc/logo-mini.svg" }).decode();
      const worker = new Worker(URL.createObjectURL(new Blob(["postMessage(1)"])));
      await new Promise((resolve) => { worker.onmessage = resolve; });
    }
    const described = await (await fetch(url)).json();
    finish([getComputedStyle(document.body).color, Object.keys(described.paths)]);
  };
  const redoc = document.querySelector("redoc");
  if (redoc) show(redoc.getAttribute("spec-url"));
  window.SwaggerUIBundle = Object.assign(({ url }) => show(url), { presets: {}, plugins: {} });
  window.SwaggerUIStandalonePreset = {};
"""
SVG = "<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>"
# Promises, because the policy doesn't let Playwright wait for a function.
FINISHED = """
  window.finished = new Promise((resolve) => { window.finish = resolve; });
  window.violated = new Promise((resolve) => { document.addEventListener("securitypolicyviolation", resolve); });
"""
RUN_SCRIPT = """() => {
  document.body.append(Object.assign(document.createElement("script"), { textContent: "attack()" }));
  return violated.then(() => attacks);
}"""


@pytest.mark.parametrize("path", ["docs", "docs/redoc", "docs/swagger"])
def test_openapi_page_works_under_its_policy(browser: Browser, example: ExampleApp, path: str) -> None:
    page = browser.new_page()
    errors: list[str] = []
    kinds: set[str] = set()

    def answer(route: Route) -> None:
        kind, url = route.request.resource_type, route.request.url
        kinds.add(kind)
        if kind == "script":
            # Swagger UI has two scripts.
            body = f"if (!window.SwaggerUIBundle) {{ {STAND_IN} }}"
            route.fulfill(content_type="text/javascript", body=body)
        elif kind == "stylesheet":
            font = "@font-face { font-family: x; src: url(https://fonts.gstatic.com/x) } body { font-family: x }"
            route.fulfill(content_type="text/css", body=font if "fonts" in url else "")
        elif kind == "image":
            route.fulfill(content_type="image/svg+xml", body=SVG)
        else:
            route.fulfill(status=404)

    page.on("pageerror", lambda error: errors.append(str(error)))
    page.add_init_script(WATCH + FINISHED)
    page.route(re.compile("^https:"), answer)
    page.goto(example.url + path)
    shown = page.evaluate("Promise.race([finished, violated.then(() => attacks)])")
    assert (shown[0], errors) == ("rgb(0, 128, 0)", [])
    assert {"/subscribe", "/events"} <= set(shown[1])
    assert page.evaluate("attacks") == []
    assert {"script", "stylesheet"} <= kinds
    assert page.evaluate(RUN_SCRIPT) == ["script-src-elem"]
    page.close()


CALL_ON = """(url) => {
  const opened = (source) => new Promise((resolve) => {
    source.onopen = () => { source.close(); resolve("open"); };
    source.onerror = () => { source.close(); resolve("refused"); };
  });
  const command = {
    method: "POST", credentials: "include", headers: { "Content-Type": "application/json", Authorization: "x" },
    body: '{"session":"x","subjects":["a"]}',
  };
  return Promise.all([
    opened(new WebSocket(url.replace("http", "ws") + "stream")),
    opened(new EventSource(url + "events", { withCredentials: true })),
    fetch(url + "subscribe", command).then((response) => response.json()).then((reply) => reply.code, () => "refused"),
  ]);
}"""


@pytest.fixture(scope="module")
def foreign_origin() -> Iterator[str]:
    """Serve an empty page of a foreign site and return its origin."""

    class Blank(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Blank) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("allowed", [False, True], ids=["not allowed", "allowed"])
def test_page_of_foreign_origin_connects_only_if_allowed(
    browser: Browser, shared_nats: NatsServer, foreign_origin: str, allowed: bool
) -> None:
    origins = {"SANIC_NATS_BRIDGE_ALLOWED_ORIGINS": foreign_origin if allowed else ""}
    with ExampleApp("--nats", shared_nats.url, **origins) as app:
        page = browser.new_page()
        page.goto(foreign_origin)
        outcome = page.evaluate(CALL_ON, app.url)
        assert outcome == (["open", "open", "session.unknown"] if allowed else ["refused"] * 3)
        page.close()


@pytest.mark.parametrize("path", ["", "docs", "docs/swagger"])
def test_no_page_may_be_framed(browser: Browser, example: ExampleApp, foreign_origin: str, path: str) -> None:
    page = browser.new_page()
    page.goto(foreign_origin)
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text))
    page.evaluate(
        """(url) => new Promise((resolve) => {
          const frame = document.createElement("iframe");
          frame.onload = resolve;
          frame.src = url;
          document.body.append(frame);
        })""",
        example.url + path,
    )
    assert [frame.url for frame in page.frames[1:]] == ["chrome-error://chromewebdata/"]
    assert any("frame-ancestors" in error for error in errors), errors
    page.close()
