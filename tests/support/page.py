"""The example's page in a real Chromium."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, ConsoleMessage, Page, ViewportSize, expect, sync_playwright

from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import WAIT_SECONDS
from tools.harness.chromium import launch_options

expect.set_options(timeout=WAIT_SECONDS * 1000)

CONNECTED = "Connected"
NAMES = {"websocket": "WebSocket", "sse": "Server-Sent Events"}
TRANSPORTS = list(NAMES)
PANINI_COMMAND = '{"subjects": ["test.subject"], "action": "subscribe"}'
# Chromium itself notes every refused POST, and every connection that fails.
_OF_CHROMIUM = ("Failed to load resource", "WebSocket connection to")
_WATCH = """
  window.violations = [];
  document.addEventListener("securitypolicyviolation", (event) => violations.push(event.violatedDirective));
"""


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(**launch_options())
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, url: str, size: tuple[int, int] = (1280, 800)) -> Iterator[Page]:
    """Open the page, and fail the test if it raises, logs an error or breaks its policy."""
    complaints: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not message.text.startswith(_OF_CHROMIUM):
            complaints.append(message.text)

    page = browser.new_page(viewport=ViewportSize(width=size[0], height=size[1]))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", note)
    page.add_init_script(_WATCH)
    page.goto(url)
    expect(page.locator("#state")).to_have_text(CONNECTED)
    yield page
    assert page.evaluate("violations") == []
    page.close()
    assert complaints == []


def switch(page: Page, transport: str) -> None:
    page.check(f"input[value={transport}]")
    expect(page.locator("#state")).to_have_text(CONNECTED)
    expect(page.locator("#used")).to_have_text(NAMES[transport])


def follow(page: Page, pattern: str) -> None:
    """Follow it, and wait until NATS has the subscription."""
    page.fill("#subject", pattern)
    page.click("#subscribe button")
    expect(page.locator("#subscriptions li:not(.pending) code").get_by_text(pattern, exact=True)).to_be_visible()


def command(page: Page, text: str) -> None:
    page.fill("#command", text)
    page.click("#send button.main")


@contextmanager
def publishing(server: NatsServer, subject: str, numbers: range, rate: int) -> Iterator[None]:
    """Publish a message for each number, so many per second at most; wait at the end of the block until all are sent.

    Their number is fixed: a page that is slow, because the machine is busy, would never catch up with a rate.
    """

    def publish() -> None:
        with socket.create_connection(("127.0.0.1", server.port), WAIT_SECONDS) as connection:
            connection.sendall(b'CONNECT {"verbose": false}\r\n')
            head, batch = subject.encode(), rate // 100
            for start in range(0, len(numbers), batch):
                payloads = [b'{"number": %d, "list": [1, 2, 3]}' % number for number in numbers[start : start + batch]]
                connection.sendall(b"".join(b"PUB %s %d\r\n%s\r\n" % (head, len(text), text) for text in payloads))
                time.sleep(0.01)
            connection.sendall(b"PING\r\n")
            answers = b""
            while b"PONG" not in answers:
                part = connection.recv(4096)
                assert part, answers
                answers += part

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield
    finally:
        thread.join()
