"""The examples: each runs by the command in its header and does what the header claims."""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, Route, WebSocket, expect
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import WAIT_SECONDS, free_port, wait_until
from tests.support.page import chromium
from tests.support.process import APP_ENVIRONMENT

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
NODE_MODULES = ROOT / "tests" / "support" / "node" / "node_modules"
SOURCES = {
    "hello.py": EXAMPLES / "hello.py",
    "event_source.py": EXAMPLES / "event_source.py",
    "orders.py": EXAMPLES / "orders.py",
    "login": EXAMPLES / "login" / "server.py",
    "state.py": EXAMPLES / "state.py",
    "settings_table.py": EXAMPLES / "settings_table.py",
    "resume.py": EXAMPLES / "resume.py",
    "chat.py": EXAMPLES / "chat.py",
    "workers.py": EXAMPLES / "workers.py",
    "node": EXAMPLES / "node" / "follow.js",
    "react": EXAMPLES / "react" / "src" / "main.tsx",
    "publish.py": EXAMPLES / "publish.py",
    "streams.py": EXAMPLES / "streams.py",
}
START_SECONDS = 60
PASSWORDS = {"ada": "correct horse", "bob": "battery staple"}

# `python FILE`, with another port than Sanic's default.
AT_PORT = """
import functools, runpy, sys
from sanic import Sanic
Sanic.run = functools.partialmethod(Sanic.run, port=int(sys.argv.pop(1)))
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def header(source: Path) -> dict[str, str]:
    """Return the three lines at the top of an example, by name."""
    text = source.read_text()
    lines = text.split('"""')[1].splitlines() if source.suffix == ".py" else text.replace("// ", "").splitlines()[:3]
    shows, run, attempt = (line for line in lines if line)
    assert run.startswith("Run: ")
    assert attempt.startswith("Try: ")
    return {"shows": shows, "run": run.removeprefix("Run: "), "try": attempt.removeprefix("Try: ")}


@dataclass
class Example:
    """An example that is served."""

    url: str
    nats: NatsServer
    log: Path

    def subscribed(self, subject: str) -> None:
        """Wait until NATS has the subscription."""
        wait_until(lambda: subject in self.nats.subscriptions(), self.log.read_text)

    def publish(self, subject: str, payload: str) -> None:
        run_script(["python", "examples/publish.py", subject, payload], self.nats)

    def publish_as_in(self, source: Path) -> None:
        """Publish with the command from the header of the example."""
        _, _, arguments = header(source)["try"].partition("python examples/publish.py ")
        subject, payload = shlex.split(arguments)
        self.publish(subject, payload)

    def post(self, path: str, body: bytes = b"", **headers: str) -> int:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(f"{self.url}{path}", body, named, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=WAIT_SECONDS) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code


def run_script(words: list[str], nats: NatsServer) -> None:
    environment = os.environ | {"NATS_URL": nats.url}
    subprocess.run(command(words), cwd=ROOT, env=environment, check=True, timeout=START_SECONDS)


def command(arguments: list[str]) -> list[str]:
    """Return a command with the programs of this environment."""
    program = {"python": sys.executable, "sanic": str(Path(sys.executable).with_name("sanic"))}
    return [program[arguments[0]], *arguments[1:]]


@contextlib.contextmanager
def running(name: str, nats: NatsServer, folder: Path, **environment: str) -> Iterator[Example]:
    """Serve an example by the command in its header, at a free port."""
    port = free_port()
    words = shlex.split(header(SOURCES[name])["run"])
    words = [word for word in words if not re.match("[A-Z]+=", word)]
    if words[0] == "python":
        arguments = [sys.executable, "-c", AT_PORT, str(port), *words[1:]]
    else:
        arguments = [*command(words), "--port", str(port)]
    workers = int(words[words.index("--workers") + 1]) if "--workers" in words else 1
    example = Example(f"http://127.0.0.1:{port}/", nats, folder / "log")
    variables: Mapping[str, str] = os.environ | APP_ENVIRONMENT | {"SANIC_NATS_BRIDGE_SERVERS": nats.url} | environment
    with example.log.open("wb") as log:
        # Sanic's manager may kill its whole process group, which must not be that of the tests.
        process = subprocess.Popen(arguments, cwd=ROOT, env=variables, stdout=log, stderr=log, start_new_session=True)
    try:
        ready = b"Worker ready"
        wait_until(lambda: process.poll() is not None or example.log.read_bytes().count(ready) >= workers)
        assert process.poll() is None, example.log.read_text()
        yield example
    finally:
        process.terminate()
        try:
            process.wait(START_SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """Open pages that must not raise an error."""
    errors: list[str] = []
    with browser.new_context() as context:
        context.on("weberror", lambda error: errors.append(str(error.error)))
        yield context
    assert errors == []


@pytest.fixture
def jetstream_server() -> Iterator[NatsServer]:
    """Start a nats-server with the streams of the examples, made by the command in the header of theirs."""
    with NatsServer(jetstream=True) as server:
        for _ in range(2):  # what exists stays as it is
            run_script(shlex.split(header(SOURCES["streams.py"])["run"]), server)
        yield server


def open_page(context: BrowserContext, url: str) -> Page:
    page = context.new_page()
    page.goto(url)
    return page


def wait_for(page: Page, fact: Callable[[], object]) -> None:
    """Wait for a fact that the events of a page bring about."""
    # The events are handled meanwhile.
    wait_until(fact, pause=lambda: page.evaluate("new Promise(requestAnimationFrame)"))


def shows(shown: Locator, text: str | list[str]) -> None:
    expect(shown).to_have_text(text)


def is_visible(shown: Locator) -> None:
    expect(shown).to_be_visible()


def test_table_of_examples_matches_their_headers() -> None:
    rows = re.findall(
        r"^\| \[(.+?)\]\((.+?)\) \| (.+?) \| `(.+)` \|$", (EXAMPLES / "README.md").read_text(), re.MULTILINE
    )
    assert {name for name, *_ in rows} == SOURCES.keys()
    for name, link, shows, run in rows:
        source = SOURCES[name]
        assert EXAMPLES / link == source
        stated = header(source)
        assert f"{shows}." == stated["shows"].replace("``", "`")
        assert run == stated["run"]


def test_every_file_belongs_to_an_example() -> None:
    names = {path.name for path in EXAMPLES.iterdir()} - {"README.md", "__pycache__"}
    assert names == SOURCES.keys()


def test_hello_has_at_most_ten_lines_of_code() -> None:
    code = re.sub(r'^ *""".*?"""$', "", SOURCES["hello.py"].read_text(), flags=re.DOTALL | re.MULTILINE)
    lines = [line for line in code.splitlines() if line.strip()]
    assert lines[-1] == "app.run(single_process=True)"
    assert len(lines) <= 10


def test_hello_example_shows_published_message(
    shared_nats: NatsServer, context: BrowserContext, tmp_path: Path
) -> None:
    with running("hello.py", shared_nats, tmp_path) as example:
        page = open_page(context, example.url)
        example.subscribed("hello.>")
        example.publish_as_in(SOURCES["hello.py"])
        shows(page.locator("body"), "Hi")


def test_event_source_example_shows_prices_and_gap(
    nats_server: NatsServer, context: BrowserContext, tmp_path: Path
) -> None:
    with running("event_source.py", nats_server, tmp_path) as example:
        requested: list[str] = []
        context.on("request", lambda request: requested.append(request.url.removeprefix(example.url)))
        page = open_page(context, example.url)
        state, prices = page.locator("#state"), page.locator("#prices li")
        shows(state, "Live")
        example.subscribed("prices.*")
        example.publish_as_in(SOURCES["event_source.py"])
        shows(prices, ["tea: 3"])
        example.publish("prices.milk", '{"euros": 1}')
        example.publish("prices.tea", '{"euros": 4}')
        shows(prices, ["milk: 1", "tea: 4"])
        nats_server.restart()
        shows(state, "Some prices were missed")
        assert {url for url in requested if url != "favicon.ico"} == {"", "nats/events?subjects=prices.*"}


def test_orders_example_validates_and_shows_orders(
    nats_server: NatsServer, context: BrowserContext, tmp_path: Path
) -> None:
    with running("orders.py", nats_server, tmp_path) as example:
        pages = [open_page(context, example.url) for _ in range(2)]
        for page in pages:
            shows(page.locator("output"), "Live")
        example.subscribed("orders.*")
        pages[0].fill("input", "<b>tea</b>")
        pages[0].click("button")
        for page in pages:
            shows(page.locator("li"), ["<b>tea</b>"])
        shows(pages[0].locator("output"), "Ordered")

        order = b'{"item": "tea"}'
        assert example.post("orders", order, Content_Type="application/json") == 202
        assert example.post("orders", order, Content_Type="text/plain") == 415
        for wrong in (b"[]", b"{", b"{}", b'{"item": 1}', b'{"item": ""}'):
            assert example.post("orders", wrong, Content_Type="application/json") == 400
        nats_server.stop()
        wait_until(lambda: example.post("orders", order, Content_Type="application/json") == 503, example.log.read_text)


def test_state_example_misses_no_change_between_rendering_and_connecting(
    jetstream_server: NatsServer, context: BrowserContext, tmp_path: Path
) -> None:
    with running("state.py", jetstream_server, tmp_path) as example:
        held: list[Route] = []
        page = context.new_page()
        page.route("**/nats/client.js", lambda route: held.append(route))
        page.goto(example.url, wait_until="commit")
        wait_for(page, lambda: held)
        tea, output = page.locator("#stock\\.tea"), page.locator("output")
        shows(tea, "30")
        # Changes that the page could only have missed.
        assert [example.post("stock/tea") for _ in range(2)] == [204, 204]
        shows(tea, "30")
        held[0].continue_()
        shows(output, "Live")
        shows(tea, "28")

        other = open_page(context, example.url)
        shows(other.locator("#stock\\.tea"), "28")
        shows(other.locator("output"), "Live")
        other.click("[name=milk]")
        for each in (page, other):
            shows(each.locator("#stock\\.milk"), "49")
            shows(each.locator("output"), "Live")
        assert example.post("stock/gold") == 404


def test_state_example_asks_for_a_reload_if_changes_are_missing(
    jetstream_server: NatsServer, context: BrowserContext, tmp_path: Path
) -> None:
    with running("state.py", jetstream_server, tmp_path, SANIC_NATS_BRIDGE_RESUME_WINDOW="0") as example:
        held: list[Route] = []
        page = context.new_page()
        page.route("**/nats/client.js", lambda route: held.append(route))
        page.goto(example.url, wait_until="commit")
        wait_for(page, lambda: held)
        assert example.post("stock/tea") == 204
        held[0].continue_()
        shows(page.locator("output"), "Reload the page: some changes are missing")


def test_settings_table_example_shows_keys_and_their_changes(
    jetstream_server: NatsServer, context: BrowserContext, tmp_path: Path
) -> None:
    with running("settings_table.py", jetstream_server, tmp_path) as example:
        example.publish("$KV.settings.language", '"en"')
        example.publish("$KV.settings.theme", '"light"')
        pages = [open_page(context, example.url) for _ in range(2)]
        for page in pages:
            shows(page.locator("output"), "Live")
            shows(page.locator("tr"), ["languageenDelete", "themelightDelete"])
        example.publish_as_in(SOURCES["settings_table.py"])
        for page in pages:
            shows(page.locator("tr"), ["languageenDelete", "themedarkDelete"])
        pages[0].click("tr:has-text('language') button")
        for page in pages:
            shows(page.locator("tr"), ["themedarkDelete"])
        late = open_page(context, example.url)
        shows(late.locator("output"), "Live")
        shows(late.locator("tr"), ["themedarkDelete"])


def test_resume_example_misses_no_line_while_its_stream_ends_again_and_again(
    jetstream_server: NatsServer, context: BrowserContext, tmp_path: Path
) -> None:
    # With the shortest age, each event stream ends within a second of its start.
    with running("resume.py", jetstream_server, tmp_path, SANIC_NATS_BRIDGE_MAX_STREAM_AGE="1") as example:
        for number in range(12):
            example.publish("log.web", f"old {number}")
        streams: list[str] = []
        context.on("request", lambda request: streams.append(request.url) if "/nats/events" in request.url else None)
        page = open_page(context, example.url)
        shows(page.locator("#state"), "Live")
        lines = [f"old {number}" for number in range(2, 12)]
        shows(page.locator("li"), lines)
        while len(streams) < 5:
            lines.append(f"line {len(lines)}")
            example.publish("log.web", lines[-1])
            page.wait_for_timeout(20)  # the events of the page are handled meanwhile
        example.publish_as_in(SOURCES["resume.py"])
        shows(page.locator("li"), [*lines, "Started"])


def test_chat_example_shows_each_message_once_with_its_author(
    jetstream_server: NatsServer, context: BrowserContext, tmp_path: Path
) -> None:
    with running("chat.py", jetstream_server, tmp_path) as example:
        ada, bob = pages = [open_page(context, f"{example.url}?name={name}") for name in ("ada", "b%C3%B6b")]
        for page in pages:
            shows(page.locator("output"), "Live")

        def write(page: Page, text: str) -> None:
            page.get_by_label("Message").fill(text)
            page.get_by_role("button", name="Send").click()

        write(ada, "Hi, <b>all</b>")
        shows(ada.locator("output"), "Sent")
        write(bob, "Hi, Ada")
        lines = ["ada: Hi, <b>all</b>", "böb: Hi, Ada"]
        for page in pages:
            shows(page.locator("li"), lines)
        write(ada, "x" * 501)
        shows(ada.locator("output"), "Not sent: A message has 1 to 500 characters")
        expect(ada.get_by_label("Message")).to_have_value("x" * 501)

        # No user publishes in the name of another, or data of another form.
        def posted(body: str) -> int:
            return example.post("nats/publish?name=eve", body.encode(), Content_Type="application/json")

        assert posted('{"subject": "rooms.lobby", "data": "Hi"}') == 422
        assert posted('{"subject": "chat.lobby", "data": {"text": "Hi"}}') == 403
        named = '{"subject": "rooms.lobby", "data": {"text": "Hi"}, "headers": {"bridge-identity": ["ada"]}}'
        assert posted(named) == 403

        jetstream_server.stop()
        write(bob, "Still there?")
        shows(bob.locator("output"), "Sending")
        jetstream_server.start()
        shows(bob.locator("output"), "Sent")
        late = open_page(context, f"{example.url}?name=eve")
        for page in (*pages, late):
            shows(page.locator("li"), [*lines, "böb: Still there?"])


def test_login_example_limits_users_to_their_subjects(
    shared_nats: NatsServer, browser: Browser, context: BrowserContext, tmp_path: Path
) -> None:
    with running("login", shared_nats, tmp_path, PASSWORDS=json.dumps(PASSWORDS)) as example:

        def log_in(context: BrowserContext, user: str) -> Page:
            page = open_page(context, example.url)
            page.fill("[name=user]", user)
            page.fill("[name=password]", PASSWORDS[user])
            page.click("button")
            shows(page.locator("output"), "connected")
            return page

        page = open_page(context, example.url)
        page.fill("[name=user]", "ada")
        page.fill("[name=password]", PASSWORDS["bob"])
        page.click("button")
        shows(page.locator("output"), "Wrong user or password")
        assert context.cookies() == []

        page = log_in(context, "ada")
        (cookie,) = context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"], cookie["secure"]) == (True, "Lax", False)
        example.subscribed("users.ada.>")
        example.subscribed("teams.red.>")
        with browser.new_context() as other:
            page_of_bob = log_in(other, "bob")
            example.subscribed("users.bob.>")
            example.publish("users.bob.inbox", "Hi")
            example.publish("teams.red.drafts.a", "secret")
            example.publish("teams.red.plans", "ready")
            example.publish_as_in(SOURCES["login"])
            shows(page.locator("li"), ['me.inbox: "Hi"', 'team.plans: "ready"'])
            shows(page_of_bob.locator("li"), ['me.inbox: "Hi"'])

            assert rejection_codes(example, cookie["value"]) == ["subject.forbidden"] * 3
            assert close_code(example, "guessed") == 4401
            assert example.post("login", b"", Sec_Fetch_Site="cross-site") == 403
            assert example.post("logout", b"", Sec_Fetch_Site="cross-site") == 403

            second = open_page(context, example.url)
            shows(second.locator("output"), "connected")
            second.click("button")
            is_visible(second.locator("[name=user]"))
            is_visible(page.locator("a"))
            shows(page.locator("li"), [])
            assert context.cookies() == []
            shows(page_of_bob.locator("output"), "connected")
            shows(page_of_bob.locator("li"), ['me.inbox: "Hi"'])
        page.click("a")
        is_visible(page.locator("[name=user]"))


def websocket(example: Example, cookie: str) -> ClientConnection:
    """Connect as the page of a browser that has this cookie."""
    url = f"{example.url.replace('http', 'ws')}nats/stream"
    return connect(url, additional_headers={"Cookie": f"login={cookie}"})


def rejection_codes(example: Example, cookie: str) -> list[str]:
    """Ask for another user's subjects, and for one's own by their real name; return the codes of the replies."""
    codes = []
    with websocket(example, cookie) as connection:
        connection.recv(WAIT_SECONDS)
        for subject in ("users.bob.inbox", "teams.blue.>", "users.ada.inbox"):
            connection.send(json.dumps({"action": "subscribe", "subjects": [subject]}))
            codes.append(json.loads(connection.recv(WAIT_SECONDS))["code"])
    return codes


def close_code(example: Example, cookie: str) -> int | None:
    with websocket(example, cookie) as connection:
        with contextlib.suppress(ConnectionClosed):
            while True:
                connection.recv(WAIT_SECONDS)
        return connection.close_code


def test_workers_example_spreads_jobs_over_both_workers(
    shared_nats: NatsServer, context: BrowserContext, tmp_path: Path
) -> None:
    with running("workers.py", shared_nats, tmp_path) as example:
        page = open_page(context, example.url)
        shows(page.locator("output"), "Live")
        wait_until(lambda: shared_nats.subscriptions().count("jobs.new") == 2, example.log.read_text)
        rows, jobs = page.locator("li"), 0
        # NATS chooses at random, so the second worker is chosen sooner or later.
        while len(set(rows.all_text_contents())) < 2:
            page.click("button")
            jobs += 1
            expect(rows).to_have_count(jobs)


def npm_installed(name: str, folder: Path) -> Path:
    """Return a copy of an example as npm install makes it, without the registry.

    It has the tests' own packages, and a link to the folder that is named.
    """
    copy = folder / "examples" / name
    shutil.copytree(EXAMPLES / name, copy, ignore=shutil.ignore_patterns("node_modules", "dist"))
    package = json.loads((copy / "package.json").read_text())
    needed = package["dependencies"] | package.get("devDependencies", {})
    tested = json.loads((NODE_MODULES.parent / "package.json").read_text())["devDependencies"]
    bridge = needed.pop("sanic-nats-bridge")
    assert needed == {each: tested[each] for each in needed}
    modules = {each: NODE_MODULES / each for each in (*needed, ".bin")}
    modules["sanic-nats-bridge"] = (EXAMPLES / name / bridge.removeprefix("file:")).resolve()
    assert json.loads((modules["sanic-nats-bridge"] / "package.json").read_text())["name"] == "sanic-nats-bridge"
    for each, target in modules.items():
        assert target.is_dir(), f"make test installs {each}"
        link = copy / "node_modules" / each
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)
    return copy


def test_node_example_prints_published_message(shared_nats: NatsServer, tmp_path: Path) -> None:
    node = shutil.which("node")
    assert node is not None, "make test installs node"
    npm_installed("node", tmp_path)
    _, _, run = header(SOURCES["node"])["run"].partition(" && node ")
    with running("hello.py", shared_nats, tmp_path) as example:
        arguments = shlex.split(run.replace("http://127.0.0.1:8000/", example.url))
        with subprocess.Popen([node, *arguments], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
            try:
                example.subscribed("hello.>")
                example.publish("hello.world", "Hi")
                assert process.stdout is not None
                assert process.stdout.readline() == 'hello.world "Hi"\n'
                process.send_signal(signal.SIGINT)
                assert process.wait(WAIT_SECONDS) == 0
            finally:
                process.kill()


@contextlib.contextmanager
def vite(folder: Path, bridge: str) -> Iterator[str]:
    """Serve an example by Vite, with a proxy to a bridge; yield its URL."""
    port = free_port()
    log = folder / "log"
    arguments = ["npm", "run", "dev", "--", "--port", str(port), "--strictPort"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            arguments,
            cwd=folder,
            env=os.environ | {"BRIDGE": bridge},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        wait_until(lambda: process.poll() is not None or b"ready in" in log.read_bytes())
        assert process.poll() is None, log.read_text()
        yield f"http://localhost:{port}/"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(START_SECONDS)


def test_react_example_subscribes_while_its_component_is_mounted(
    nats_server: NatsServer, context: BrowserContext, tmp_path: Path
) -> None:
    folder = npm_installed("react", tmp_path)
    with running("hello.py", nats_server, tmp_path) as example, vite(folder, example.url) as url:
        sent: list[str] = []

        def watch(socket: WebSocket) -> None:
            socket.on("framesent", lambda payload: sent.append(str(payload)))

        context.on("page", lambda page: page.on("websocket", watch))
        page = open_page(context, url)
        state, rows, button = page.locator("output"), page.locator("li"), page.locator("button")
        shows(state, "connected, websocket")
        example.subscribed("hello.>")
        example.publish_as_in(SOURCES["react"])
        shows(rows, ['hello.world: "Hi"'])
        # StrictMode has mounted the component twice, and the client has subscribed once.
        assert [json.loads(frame)["action"] for frame in sent if "subscribe" in frame] == ["subscribe"]

        button.click()
        wait_until(lambda: "hello.>" not in nats_server.subscriptions(), example.log.read_text)
        button.click()
        example.subscribed("hello.>")
        shows(rows, [])
        example.publish("hello.again", "1")
        shows(rows, ["hello.again: 1"])
        nats_server.restart()
        shows(page.locator("p"), "Some messages were missed.")


def test_build_of_react_example_has_no_path_of_this_machine(tmp_path: Path) -> None:
    folder = npm_installed("react", tmp_path)
    built = subprocess.run(["npm", "run", "build"], cwd=folder, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    files = [path for path in (folder / "dist").rglob("*") if path.is_file()]
    assert any(path.suffix == ".js" for path in files)
    for path in files:
        assert [trace for trace in ("file:///", str(ROOT), str(tmp_path)) if trace in path.read_text()] == []
