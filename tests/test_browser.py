"""The example app as a process, its page in a real browser: a native WebSocket and a native EventSource."""

import json
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Dialog, Page, expect, sync_playwright

from sanic_nats_bridge.testing import NatsServer

from .support_example import ExampleApp, publish

PANINI_COMMAND = '{"subjects":["test.subject"],"action":"subscribe"}'
TRANSPORTS = ["websocket", "events"]


@pytest.fixture(scope="module")
def example(shared_nats: NatsServer) -> Iterator[ExampleApp]:
    with ExampleApp("--nats", shared_nats.url) as app:
        yield app


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    assert chromium is not None, "make test installs chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, example: ExampleApp) -> Iterator[Page]:
    """The example's page, connected; it must not raise or log an error."""
    complaints: list[str] = []

    def note(message: ConsoleMessage) -> None:
        # Chromium itself notes every refused POST.
        if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
            complaints.append(message.text)

    page = browser.new_page()
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", note)
    page.goto(example.url)
    expect(page.locator("#state")).to_have_text("connected")
    yield page
    page.close()
    assert complaints == []


def switch(page: Page, transport: str) -> None:
    page.check(f"input[value={transport}]")
    expect(page.locator("#state")).to_have_text("connected")


def entries(page: Page, title: str) -> int:
    return page.locator("#log li", has=page.get_by_text(title, exact=True)).count()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_panini_command_brings_a_message_a_second_until_unsubscribe(page: Page, transport: str) -> None:
    switch(page, transport)
    page.fill("#command", PANINI_COMMAND)
    page.click("#send button")
    expect(page.locator("#log")).to_contain_text("Successfully connected to events: 'test.subject'")
    newest = page.locator("#log li").first
    expect(page.locator("#count")).to_have_text("3 messages")
    for key in range(1, 8):
        expect(newest).to_contain_text(f'"key{key}":')

    page.fill("#command", PANINI_COMMAND.replace("subscribe", "unsubscribe"))
    page.click("#send button")
    expect(newest).to_contain_text("Successfully disconnected from events: 'test.subject'")
    seen = entries(page, "test.subject")
    page.wait_for_timeout(2200)
    assert entries(page, "test.subject") == seen


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_subjects_are_followed_and_unfollowed_by_the_simple_controls(page: Page, transport: str) -> None:
    switch(page, transport)
    page.fill("#subject", "test.*")
    page.click("#follow button")
    expect(page.locator("#followed code")).to_have_text(["test.*"])
    expect(page.locator("#log")).to_contain_text("test.subject (test.*)")
    page.click("#followed button")
    expect(page.locator("#followed li")).to_have_count(0)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_refusal_is_shown(page: Page, transport: str) -> None:
    switch(page, transport)
    page.fill("#subject", "$SYS.>")
    page.click("#follow button")
    expect(page.locator("#log .failed").first).to_contain_text("subject.forbidden", timeout=5000)


def test_switching_the_transport_keeps_what_is_followed(page: Page) -> None:
    page.click("#follow button")
    expect(page.locator("#followed code")).to_have_text(["test.subject"])
    switch(page, "events")
    page.click("#clear")
    expect(page.locator("#count")).to_have_text(re.compile(r"[1-9] messages?"))


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
SHAPE = """() => [...document.querySelectorAll("*")].filter((element) => !element.closest("#log li, #followed li"))
  .map((element) => element.outerHTML.slice(0, element.outerHTML.indexOf(">") + 1))"""
ENTRIES = """() => [...document.querySelectorAll("#log li")].map((item) => [
  item.firstChild.textContent, [...item.childNodes].slice(1).map((node) => node.textContent).join(""),
  [...item.querySelectorAll("*")].map((element) => element.outerHTML.match(/^<[^ >]+/)[0]).join(),
])"""


@pytest.fixture
def watched(browser: Browser, example: ExampleApp) -> Iterator[Page]:
    """The example's page, in which nothing may run, be asked, or break its policy."""
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
    expect(page.locator("#state")).to_have_text("connected")
    yield page
    assert page.evaluate("attacks") == []
    assert page.evaluate("({}).polluted") is None
    page.close()
    assert (dialogs, errors) == ([], [])
    assert [url for url in requests if not url.startswith((example.url, example.url.replace("http", "ws")))] == []


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_hostile_messages_are_shown_as_text_and_nothing_runs(
    watched: Page, transport: str, shared_nats: NatsServer
) -> None:
    switch(watched, transport)
    watched.fill("#subject", f"hostile.{transport}.>")
    watched.click("#follow button")
    expect(watched.locator("#followed code")).to_have_count(1)
    shape = watched.evaluate(SHAPE)
    expected = []
    for text in HOSTILE_TEXTS:
        publish(shared_nats, f"hostile.{transport}.text", text.encode())
        expected.append((f"hostile.{transport}.text", text))
    for document in HOSTILE_JSON:
        publish(shared_nats, f"hostile.{transport}.json", document.encode())
        shown = json.loads(document)
        expected.append((f"hostile.{transport}.json", shown if isinstance(shown, str) else document))
    for token in HOSTILE_TOKENS:
        publish(shared_nats, f"hostile.{transport}.{token}", b'"x"')
        expected.append((f"hostile.{transport}.{token}", "x"))
    expect(watched.locator("#count")).to_have_text(f"{len(expected)} messages")

    entries = watched.evaluate(ENTRIES)[: len(expected)][::-1]
    assert [(title, text) for title, text, _ in entries] == [
        (f"{subject} (hostile.{transport}.>)", text) for subject, text in expected
    ]
    assert {elements for _, _, elements in entries} == {"<b"}
    assert watched.evaluate(SHAPE) == shape
    assert watched.title() == "NATS, live in the browser"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_hostile_subjects_and_commands_of_ones_own_are_shown_as_text(watched: Page, transport: str) -> None:
    switch(watched, transport)
    shape = watched.evaluate(SHAPE)
    subject = "<img/src=x/onerror=attack()//"
    watched.fill("#subject", subject)
    watched.click("#follow button")
    expect(watched.locator("#followed code")).to_have_text([subject])
    watched.fill("#subject", "<img src=x onerror=attack()>")
    watched.click("#follow button")
    expect(watched.locator("#log .failed b").first).to_have_text("refused: subject.invalid")
    watched.fill("#command", '{"subjects": ["<svg/onload=attack()>"], "id": "<svg onload=attack()>", "__proto__": {}}')
    watched.click("#send button")
    expect(watched.locator("#log .failed")).to_have_count(2)
    assert watched.locator("#log *:not(li, b), #followed *:not(li, code, button)").count() == 0
    assert watched.evaluate(SHAPE) == shape


def test_the_page_allows_nothing_but_its_own_origin(page: Page, example: ExampleApp) -> None:
    response = page.request.get(example.url)
    assert response.headers["content-security-policy"] == "default-src 'self'"


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
def elsewhere() -> Iterator[str]:
    """The origin of a page of somebody else."""

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
def test_the_page_of_another_origin_comes_in_where_it_is_allowed(
    browser: Browser, shared_nats: NatsServer, elsewhere: str, allowed: bool
) -> None:
    origins = {"SANIC_NATS_BRIDGE_ALLOWED_ORIGINS": elsewhere if allowed else ""}
    with ExampleApp("--nats", shared_nats.url, **origins) as app:
        page = browser.new_page()
        page.goto(elsewhere)
        outcome = page.evaluate(CALL_ON, app.url)
        assert outcome == (["open", "open", "session.unknown"] if allowed else ["refused"] * 3)
        page.close()


def test_the_page_comes_back_when_the_server_does(browser: Browser) -> None:
    with ExampleApp() as app:
        page = browser.new_page()
        page.goto(app.url)
        page.click("#follow button")
        expect(page.locator("#followed code")).to_have_text(["test.subject"])
        app.restart(signal.SIGKILL)
        expect(page.locator("#state")).to_have_text("connected", timeout=20_000)
        page.click("#clear")
        expect(page.locator("#count")).to_have_text(re.compile(r"[1-9]\d* messages?"), timeout=10_000)
        page.close()
