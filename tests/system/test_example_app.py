import asyncio
import base64
import hashlib
import json
import signal
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urlsplit

import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import NoRespondersError
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import WAIT_SECONDS, alive, wait_until
from tests.support.example import ROOT, ExampleApp

STRICT_POLICY = "default-src 'self'; frame-ancestors 'none'"


@pytest.fixture(scope="module")
def example() -> Iterator[ExampleApp]:
    with ExampleApp("--workers", "2") as app:
        yield app


async def messages(url: str, count: int) -> list[dict[str, object]]:
    async with asyncio.timeout(WAIT_SECONDS), connect(url) as websocket:
        await websocket.recv()
        await websocket.send('{"subjects":["test.subject"],"action":"subscribe"}')
        assert json.loads(await websocket.recv())["success"]
        return [json.loads(await websocket.recv())["data"] for _ in range(count)]


async def test_only_one_worker_publishes(example: ExampleApp) -> None:
    before = {each["cid"]: each["in_msgs"] for each in await asyncio.to_thread(example.connections)}
    received = await messages(example.url.replace("http", "ws") + "stream", 20)
    after = {each["cid"]: each["in_msgs"] for each in await asyncio.to_thread(example.connections)}
    # Each worker has a connection for messages, and one for streams.
    assert len(before) == 4
    assert before.keys() == after.keys()
    # The workers also exchange a few messages with each other. The publisher sends three each second.
    *idle, publishing = sorted(after[each] - before[each] for each in before)
    assert all(count < 20 for count in idle)
    assert publishing >= 3 * (20 - 1)
    first, second, third = received[:3]
    for message in (first, second, third):
        kinds = {key: type(value) for key, value in message.items()}
        expected = [str, int, float, list, dict, dict, type(None)]
        assert kinds == {f"key{number}": kind for number, kind in enumerate(expected, 1)}
    assert len({str(message["key3"]) for message in (first, second, third)}) == 3


async def test_echo_service_answers_requests_and_reports_errors(shared_nats: NatsServer) -> None:
    with ExampleApp("--nats", shared_nats.url):
        client = await nats.connect(shared_nats.url)
        try:
            answers = [await _answer(client, data) for data in (b'{"a":1}', b"")]
        finally:
            await client.close()
    assert [(answer.data, answer.headers) for answer in answers] == [
        (b'{"a":1}', None),
        (b"", {"Nats-Service-Error-Code": "400", "Nats-Service-Error": "Nothing to echo"}),
    ]


async def _answer(client: Client, data: bytes) -> Msg:
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            try:
                return await client.request("example.echo", data, timeout=WAIT_SECONDS)
            except NoRespondersError:  # the service starts later than the page
                await asyncio.sleep(0.1)


def test_one_nats_server_serves_all_workers(example: ExampleApp) -> None:
    assert len(example.nats_servers()) == 1


def test_every_page_has_content_security_policy(example: ExampleApp) -> None:
    files = sorted(f"static/{file.name}" for file in (ROOT / "example_app" / "static").iterdir())
    assert {"static/index.html", "static/page.js", "static/page.css", "static/icon.svg"} < set(files)
    for path in ("", "client.js", *files):
        with urllib.request.urlopen(example.url + path) as response:
            assert response.headers["Content-Security-Policy"] == STRICT_POLICY


class Resources(HTMLParser):
    """The sources that a page of sanic-ext needs, by the directive of the policy that must allow them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.needed: dict[str, set[str]] = defaultdict(set)
        self._inline_script = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        source = attributes.get("src") or attributes.get("href")
        self._inline_script = tag == "script" and source is None
        if tag == "style":
            self.needed["style-src"].add("'unsafe-inline'")
        elif source is not None:
            # A tag of another kind fails here: the test must learn what allows it.
            self.needed[{"script": "script-src", "link": "style-src"}[tag]].add(source)

    def handle_data(self, data: str) -> None:
        if self._inline_script and data.strip():
            digest = base64.b64encode(hashlib.sha256(data.encode()).digest()).decode()
            self.needed["script-src"].add(f"'sha256-{digest}'")


def allows(sources: list[str], resource: str) -> bool:
    """Return True if a directive with these sources allows a keyword, a hash or a URL."""
    prefixes = [source if source.endswith("/") else f"{source}/" for source in sources if source.startswith("https:")]
    return resource in sources or resource.startswith(tuple(prefixes))


@pytest.mark.parametrize(
    ("path", "hosts"),
    [
        ("docs", {"fonts.googleapis.com", "cdn.redoc.ly"}),
        ("docs/redoc", {"fonts.googleapis.com", "cdn.redoc.ly"}),
        ("docs/swagger", {"cdnjs.cloudflare.com"}),
    ],
)
def test_policy_of_openapi_page_allows_its_resources(example: ExampleApp, path: str, hosts: set[str]) -> None:
    with urllib.request.urlopen(example.url + path) as response:
        policy, needed = response.headers["Content-Security-Policy"], Resources(response.read().decode()).needed
    directives = {name: sources for name, *sources in (part.split() for part in policy.split(";"))}
    for directive, resources in needed.items():
        assert not {resource for resource in resources if not allows(directives[directive], resource)}
    resources = set().union(*needed.values())
    assert {urlsplit(resource).netloc for resource in resources if resource.startswith("https:")} == hosts
    # No other inline script runs, and the page requests only what the app serves.
    assert {source for source in directives["script-src"] if source.startswith("'")} == {
        resource for resource in needed["script-src"] if resource.startswith("'")
    }
    assert (directives["default-src"], directives["connect-src"]) == (["'none'"], ["'self'"])
    assert directives["frame-ancestors"] == ["'none'"]


def test_openapi_document_of_example_app_lists_its_routes(example: ExampleApp) -> None:
    with urllib.request.urlopen(f"{example.url}docs/openapi.json") as response:
        listed = set(json.load(response)["paths"])
    commands = {"/subscribe", "/unsubscribe", "/publish", "/request"}
    assert listed == {"/", "/events", "/health/live", "/health/ready"} | commands


def test_unknown_path_below_docs_has_strict_policy(example: ExampleApp) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{example.url}docs/none")
    with caught.value as error:
        assert (error.code, error.headers["Content-Security-Policy"]) == (404, STRICT_POLICY)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_nats_server_ends_when_app_ends(number: signal.Signals) -> None:
    with ExampleApp() as app:
        servers = app.nats_servers()
        assert len(servers) == 1
        family = app.family()
        app.end(number)
        ending = servers if number is signal.SIGKILL else family
        wait_until(lambda: not any(map(alive, ending)))


@pytest.mark.parametrize("way", ["option", "environment"])
async def test_app_uses_given_nats_server(way: str) -> None:
    with NatsServer() as server:
        example = ExampleApp("--nats", server.url) if way == "option" else ExampleApp(NATS_URL=server.url)
        with example:
            assert example.nats_servers() == set()
            client = await nats.connect(server.url)
            subscription = await client.subscribe("test.subject")
            message = await subscription.next_msg(WAIT_SECONDS)
            assert set(json.loads(message.data)) == {f"key{number}" for number in range(1, 8)}
            await client.close()


UNKNOWN_HOST = "evil.example"
"""The name of a page that lets it resolve to the app's address."""


def status_to_host(example: ExampleApp, path: str, host: str) -> int:
    request = urllib.request.Request(example.url + path, headers={"Host": host})
    try:
        with urllib.request.urlopen(request) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize("path", ["", "static/page.js", "docs", "client.js", "events?subjects=test.subject", "nothing"])
def test_page_of_another_name_for_the_app_reads_nothing(example: ExampleApp, path: str) -> None:
    for host in (UNKNOWN_HOST, f"{UNKNOWN_HOST}:{example.port}", "localhost.evil.example"):
        assert status_to_host(example, path, host) == 403
    for host in ("localhost", f"127.0.0.1:{example.port}", "[::1]:5001", "192.0.2.1"):
        assert status_to_host(example, path, host) == (404 if path == "nothing" else 200)


async def test_websocket_of_another_name_for_the_app_reads_nothing(example: ExampleApp) -> None:
    address = example.url.replace("http", "ws") + "stream"
    origin: Any = f"http://{UNKNOWN_HOST}"
    with pytest.raises(InvalidStatus) as refused:
        async with connect(address, origin=origin, additional_headers={"Host": UNKNOWN_HOST}):
            pass
    assert refused.value.response.status_code == 403


def test_named_hosts_are_allowed() -> None:
    with ExampleApp("--allow-host", "dev.example", "--allow-host", "*.lan.example") as app:
        for host in ("dev.example:5001", "box.lan.example", "localhost"):
            assert status_to_host(app, "", host) == status_to_host(app, "client.js", host) == 200
        assert status_to_host(app, "", UNKNOWN_HOST) == status_to_host(app, "client.js", UNKNOWN_HOST) == 403
