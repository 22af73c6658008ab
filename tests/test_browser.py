"""The example app as a process, its page in a real browser: a native WebSocket and a native EventSource."""

import re
import shutil
import signal
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

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


def test_markup_in_a_message_is_shown_as_text(page: Page, shared_nats: NatsServer) -> None:
    page.fill("#subject", "markup")
    page.click("#follow button")
    expect(page.locator("#log")).to_contain_text("'markup'")
    publish(shared_nats, "markup", b"<img src=x onerror=\"document.body.textContent='broken'\">")
    expect(page.locator("#log li").first).to_contain_text("<img src=x onerror=")
    assert page.locator("#log img").count() == 0


def test_the_page_allows_nothing_but_its_own_origin(page: Page, example: ExampleApp) -> None:
    response = page.request.get(example.url)
    assert response.headers["content-security-policy"] == "default-src 'self'"


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
