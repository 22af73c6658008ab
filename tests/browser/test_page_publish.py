"""The example's composer, on its own bridge, and on one whose answers to publishes and requests the test gives."""

import json
import os
import re
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, WebSocketRoute, expect

from sanic_nats_bridge.testing import NatsServer
from tests.browser.test_page import AXE, press_until
from tests.support.example import ExampleApp
from tests.support.page import TRANSPORTS, chromium, follow, switch
from tests.support.page import opened as opened_page

REPLIES: dict[str, dict[str, Any]] = {
    "test.page": {"success": True, "message": "", "stream": "EXAMPLE", "sequence": 42, "duplicate": False},
    "test.twice": {"success": True, "message": "", "stream": "EXAMPLE", "sequence": 43, "duplicate": True},
    "test.none": {
        "success": False,
        "code": "publish.unstored",
        "message": "Not stored: 'test.none'",
        "description": "no stream",
    },
    "$JS.x": {"success": False, "code": "publish.forbidden", "message": "Not allowed: '$JS.x'"},
    "example.echo": {"success": True, "message": "", "subject": "example.echo", "data": {"text": "Hello"}},
    "example.broken": {
        "success": False,
        "code": "request.failed",
        "message": "Nothing to echo",
        "service_code": "400",
    },
    "example.none": {"success": False, "code": "request.no_responders", "message": "No service answers"},
}


@pytest.fixture(scope="module")
def example(shared_nats: NatsServer) -> Iterator[ExampleApp]:
    with ExampleApp("--nats", shared_nats.url) as app:
        yield app


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


class FakeBridge:
    """The example's bridge, which has other features, and answers publishes and requests itself."""

    def __init__(self, features: list[str]) -> None:
        self.features = features
        self.received: list[dict[str, Any]] = []

    def __call__(self, route: WebSocketRoute) -> None:
        server = route.connect_to_server()

        def from_page(text: str | bytes) -> None:
            command = json.loads(text)
            if command.get("action") not in ("publish", "request"):
                server.send(text)
                return
            self.received.append(command)
            head = {"type": "reply", "id": command["id"], "action": command["action"]}
            route.send(json.dumps(head | REPLIES[command["subject"]]))

        def from_server(text: str | bytes) -> None:
            frame = json.loads(text)
            if frame["type"] == "welcome":
                frame["features"] = self.features
            route.send(json.dumps(frame))

        route.on_message(from_page)
        server.on_message(from_server)


def opened(browser: Browser, example: ExampleApp, bridge: FakeBridge, **options: Any) -> Page:
    page = browser.new_page(**options)
    page.route_web_socket(re.compile("/stream"), bridge)
    page.goto(example.url)
    expect(page.locator("#state")).to_have_text("Connected")
    return page


def send(page: Page, subject: str, data: str = "1", how: str | None = None) -> None:
    if how is not None:
        page.get_by_label("Wait for").select_option(how)
    page.get_by_role("region", name="Publish").get_by_label("Subject").fill(subject)
    page.get_by_label("Data: JSON, or else text").fill(data)
    page.locator("#publish button").click()


def test_composer_lists_the_outcome_of_each_message(browser: Browser, example: ExampleApp) -> None:
    bridge = FakeBridge(["publish", "request"])
    page = opened(browser, example, bridge)
    items = page.get_by_role("list", name="Sent, newest first").get_by_role("listitem")
    send(page, "test.page", '{"text": "Hello"}')
    expect(items.first).to_contain_text("number 42 in EXAMPLE")
    send(page, "test.twice", "plain text")
    expect(items.first).to_contain_text("Stored")
    expect(items.first).to_contain_text("number 43 in EXAMPLE, by an earlier attempt")
    send(page, "test.none", "")
    expect(items.first).to_contain_text("Not stored: 'test.none': no stream (publish.unstored)")
    send(page, "$JS.x", how="publish")
    expect(items.first).to_contain_text("Refused")
    expect(items.first).to_contain_text("Not allowed: '$JS.x' (publish.forbidden)")
    expect(page.get_by_role("status")).to_contain_text("Refused: $JS.x")
    expect(items).to_have_count(4)
    sent = [{name: each[name] for name in each if name not in ("id", "msg_id")} for each in bridge.received]
    assert sent == [
        {"action": "publish", "ack": True, "subject": "test.page", "data": {"text": "Hello"}},
        {"action": "publish", "ack": True, "subject": "test.twice", "data": "plain text", "encoding": "text"},
        {"action": "publish", "ack": True, "subject": "test.none"},
        {"action": "publish", "ack": False, "subject": "$JS.x", "data": 1},
    ]
    page.close()


def test_composer_shows_answers_to_requests(browser: Browser, example: ExampleApp) -> None:
    page = opened(browser, example, FakeBridge(["publish", "request"]))
    items = page.get_by_role("list", name="Sent, newest first").get_by_role("listitem")
    page.get_by_label("Wait for").select_option("request")
    subject = page.get_by_role("region", name="Publish").get_by_label("Subject")
    expect(subject).to_have_value("example.echo")
    page.get_by_role("button", name="Request", exact=True).click()
    expect(items.first).to_contain_text("Answered")
    expect(items.first).to_contain_text('{ "text": "Hello" }')
    send(page, "example.broken")
    expect(items.first).to_contain_text("Nothing to echo (request.failed 400)")
    send(page, "example.none")
    expect(items.first).to_contain_text("No answer")
    # A subject that was typed is kept.
    page.get_by_label("Wait for").select_option("ack")
    expect(subject).to_have_value("example.none")
    page.close()


@pytest.mark.parametrize(
    ("features", "shown"),
    [
        ([], []),
        (["publish"], ["ack", "publish"]),
        (["request"], ["request"]),
        (["publish", "request"], ["ack", "publish", "request"]),
    ],
)
def test_composer_shows_the_features_of_the_bridge(
    browser: Browser, example: ExampleApp, features: list[str], shown: list[str]
) -> None:
    page = opened(browser, example, FakeBridge(features))
    expect(page.locator("#publish-view")).to_be_visible(visible=bool(shown))
    assert page.locator("#how option:not([hidden])").evaluate_all("(all) => all.map(({ value }) => value)") == shown
    page.close()


def test_composer_shows_outcomes_of_its_own_bridge(browser: Browser) -> None:
    with ExampleApp() as app:
        for transport in TRANSPORTS:
            with opened_page(browser, app.url) as page:
                switch(page, transport)
                follow(page, "test.page")
                region = page.get_by_role("region", name="Publish")
                newest = page.get_by_role("list", name="Sent, newest first").get_by_role("listitem").first
                expect(region.get_by_label("Subject, matching test.> or orders.>")).to_have_value("test.page")
                region.get_by_role("button", name="Publish").click()
                expect(newest).to_contain_text(re.compile(r"Stored.*number \d+ in EXAMPLE$"))
                expect(page.locator("#rows tr").first).to_contain_text('{ "text": "Hello" }')
                send(page, "test.page", "é plain", "publish")
                expect(newest).to_contain_text("Sent")
                expect(page.locator("#rows tr").first).to_contain_text("é plain")
                send(page, "rooms.7", how="ack")
                expect(newest).to_contain_text("Refused")
                expect(newest).to_contain_text("Not allowed to publish to: 'rooms.7' (publish.forbidden)")
                send(page, "example.echo", "[1,  2]", "request")
                expect(newest).to_contain_text("Answered")
                expect(newest).to_contain_text("[1, 2]")
                expect(region.get_by_label("Subject, matching example.*")).to_be_visible()
                send(page, "example.echo", "")
                expect(newest).to_contain_text("Nothing to echo (request.failed 400)")
                send(page, "example.none")
                expect(newest).to_contain_text("No answer")
                expect(newest).to_contain_text("(request.no_responders)")
                expect(page.get_by_role("status")).to_contain_text("No answer: example.none")


def test_composer_waits_for_nats(browser: Browser) -> None:
    with ExampleApp() as app, opened_page(browser, app.url) as page:
        (server,) = app.nats_servers()
        newest = page.get_by_role("list", name="Sent, newest first").get_by_role("listitem").first
        os.kill(server, signal.SIGSTOP)
        send(page, "test.page")
        expect(newest).to_contain_text("Sending…")
        os.kill(server, signal.SIGCONT)
        expect(newest).to_contain_text("in EXAMPLE")


def test_composer_is_usable_by_keyboard(browser: Browser, example: ExampleApp) -> None:
    bridge = FakeBridge(["publish", "request"])
    page = opened(browser, example, bridge)
    press_until(page, "Tab", "#publish-subject")
    page.keyboard.press("Enter")
    expect(page.locator("#sent li")).to_have_count(1)
    press_until(page, "Tab", "#how")
    page.keyboard.press("End")
    press_until(page, "Tab", "#publish button")
    page.keyboard.press("Space")
    expect(page.locator("#sent li")).to_have_count(2)
    press_until(page, "Tab", "#sent")
    assert [each["action"] for each in bridge.received] == ["publish", "request"]
    page.close()


@pytest.mark.parametrize(("size", "scheme"), [((1280, 800), "light"), ((360, 740), "dark")], ids=["desktop", "phone"])
def test_composer_meets_wcag_aa_without_horizontal_scrolling(
    browser: Browser, example: ExampleApp, size: tuple[int, int], scheme: Any
) -> None:
    viewport: Any = {"width": size[0], "height": size[1]}
    page = opened(browser, example, FakeBridge(["publish", "request"]), viewport=viewport, color_scheme=scheme)
    REPLIES["long." * 20 + "x"] = REPLIES["$JS.x"]
    send(page, "test.page")
    send(page, "long." * 20 + "x", "y" * 600)
    expect(page.locator("#sent li.failed")).to_have_count(1)
    assert page.evaluate("document.documentElement.scrollWidth") == size[0]
    page.evaluate(AXE.read_text())
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    found = page.evaluate("(tags) => axe.run({ runOnly: tags })", tags)
    assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found["violations"]] == []
    page.close()
