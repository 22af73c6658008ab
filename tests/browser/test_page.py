"""Tests of the example's page."""

import json
import re
import signal
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, WebSocketRoute, expect

from sanic_nats_bridge.testing import NatsServer
from tests.support.example import ExampleApp, publish
from tests.support.page import (
    PANINI_COMMAND,
    TRANSPORTS,
    chromium,
    command,
    follow,
    opened,
    publishing,
    switch,
)

AXE = Path(__file__).parents[1] / "support" / "node" / "node_modules" / "axe-core" / "axe.min.js"

both = pytest.mark.parametrize("transport", TRANSPORTS)


@pytest.fixture(scope="module")
def example(shared_nats: NatsServer) -> Iterator[ExampleApp]:
    with ExampleApp("--nats", shared_nats.url) as app:
        yield app


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, example: ExampleApp) -> Iterator[Page]:
    with opened(browser, example.url) as page:
        yield page


def chips(page: Page) -> Locator:
    return page.get_by_role("list", name="Subscribed patterns").get_by_role("listitem")


def rows(page: Page) -> Locator:
    return page.locator("#rows tr")


def texts(shown: Locator) -> list[str]:
    """Return the text contents.

    A row that isn't drawn yet has no inner text, due to its `content-visibility`.
    """
    return shown.all_text_contents()


def frames(page: Page) -> Locator:
    return page.locator("#frames li")


@both
def test_panini_command_delivers_messages_until_unsubscribe(
    page: Page, transport: str, shared_nats: NatsServer
) -> None:
    switch(page, transport)
    command(page, PANINI_COMMAND)
    expect(frames(page).first).to_contain_text("Successfully connected to events: 'test.subject'")
    expect(page.locator("#subscriptions code")).to_have_text(["test.subject"])
    expect(page.locator("#count")).to_have_text(re.compile(r"^([2-9]|\d\d+) messages$"))
    newest = rows(page).first
    expect(newest.locator(".subject")).to_have_text("test.subject")
    for key in range(1, 8):
        expect(newest).to_contain_text(f'"key{key}":')

    command(page, PANINI_COMMAND.replace("subscribe", "unsubscribe"))
    expect(frames(page).first).to_contain_text("Successfully disconnected from events: 'test.subject'")
    expect(chips(page)).to_have_count(0)
    page.click("#clear")
    follow(page, f"marker.{transport}")
    publish(shared_nats, "test.subject", b"1")
    publish(shared_nats, f"marker.{transport}", b"1")
    expect(page.locator("#rows .subject .name")).to_have_text([f"marker.{transport}"])


@both
def test_chips_list_and_unsubscribe_patterns(page: Page, transport: str, shared_nats: NatsServer) -> None:
    switch(page, transport)
    follow(page, f"chips.{transport}.*")
    follow(page, f"chips.{transport}.a")
    publish(shared_nats, f"chips.{transport}.a", b"1")
    expect(rows(page)).to_have_count(2)
    expect(page.locator("#rows .subject .name")).to_have_text([f"chips.{transport}.a"] * 2)
    expect(page.locator("#rows .subject .by")).to_have_text([f"by chips.{transport}.*"])
    page.get_by_role("button", name=f"Unsubscribe from chips.{transport}.*").click()
    expect(page.locator("#subscriptions code")).to_have_text([f"chips.{transport}.a"])
    publish(shared_nats, f"chips.{transport}.a", b"2")
    expect(rows(page)).to_have_count(3)
    page.click("#subscriptions button")
    expect(chips(page)).to_have_count(0)


@both
def test_rejected_pattern_shows_alert_and_marks_input_invalid(page: Page, transport: str) -> None:
    switch(page, transport)
    page.fill("#subject", "$SYS.>")
    page.click("#subscribe button")
    expect(page.get_by_role("alert")).to_contain_text("subject.forbidden")
    expect(chips(page)).to_have_count(0)
    expect(page.locator("#subject")).to_have_attribute("aria-invalid", "true")
    follow(page, "refusal.none")
    expect(page.get_by_role("alert")).to_be_empty()
    expect(page.locator("#subject")).to_have_attribute("aria-invalid", "false")


def test_payloads_are_pretty_printed_and_collapsed_if_long(page: Page, shared_nats: NatsServer) -> None:
    follow(page, "pretty")
    long = {"name": "x" * 40, "list": [1, 2, {"a": None}], "empty": {}}
    shown = {
        b'{"a":1,"b":[true,null]}': '{ "a": 1, "b": [true, null] }',
        b"text, not JSON": "text, not JSON",
        b'"JSON"': '"JSON"',
        b"": "null",
        b"\xff\xfe": "base64//4=",
        json.dumps(
            long
        ).encode(): f'{{\n  "name": "{"x" * 40}",\n  "list": [1, 2, {{ "a": null }}],\n  "empty": {{}}\n}}',
    }
    for payload in shown:
        publish(shared_nats, "pretty", payload)
    expect(rows(page)).to_have_count(len(shown))
    assert texts(page.locator("#rows .data")) == [*shown.values()][::-1]

    publish(shared_nats, "pretty", json.dumps([["y" * 60] for _ in range(30)]).encode())
    newest = page.locator("#rows .data").first
    newest.get_by_role("button", name="Show all").click()
    assert texts(newest.locator(".text"))[0].count("yyy") == 30 * 20
    newest.get_by_role("button", name="Show less").click()
    assert texts(newest.locator(".text"))[0].count("\n") == 11

    publish(shared_nats, "pretty", b"[" * 900 + b"]" * 900)
    expect(rows(page)).to_have_count(len(shown) + 2)
    newest.get_by_role("button", name="Show all").click()
    assert texts(newest.locator(".text"))[0].count("[") == 900


def test_messages_during_pause_are_counted_and_shown_on_resume(page: Page, shared_nats: NatsServer) -> None:
    follow(page, "pause")
    publish(shared_nats, "pause", b"1")
    expect(rows(page)).to_have_count(1)
    page.get_by_role("button", name="Pause", exact=True).click()
    publish(shared_nats, "pause", b"2")
    publish(shared_nats, "pause", b"3")
    expect(page.locator("#count")).to_have_text("3 messages · paused, 2 new")
    assert texts(page.locator("#rows .data")) == ["1"]
    page.fill("#filter", "pause")
    page.fill("#filter", "")
    assert texts(page.locator("#rows .data")) == ["1"]
    page.get_by_role("button", name="Resume").click()
    expect(page.locator("#rows .data")).to_have_text(["3", "2", "1"])
    expect(page.locator("#count")).to_have_text("3 messages")


def test_filter_matches_subjects_and_data(page: Page, shared_nats: NatsServer) -> None:
    follow(page, "filter.*")
    publish(shared_nats, "filter.apple", b'{"colour": "green"}')
    publish(shared_nats, "filter.pear", b'{"colour": "yellow"}')
    subjects = page.locator("#rows .subject .name")
    expect(subjects).to_have_count(2)
    page.get_by_label("Filter by subject or data").fill("PEAR")
    expect(subjects).to_have_text(["filter.pear"])
    page.fill("#filter", "green")
    expect(subjects).to_have_text(["filter.apple"])
    publish(shared_nats, "filter.lime", b'{"colour": "green"}')
    publish(shared_nats, "filter.plum", b'{"colour": "blue"}')
    expect(subjects).to_have_text(["filter.lime", "filter.apple"])
    expect(page.locator("#count")).to_have_text("4 messages")
    page.fill("#filter", "nothing has this")
    expect(page.locator("#empty")).to_have_text("No message matches the filter.")
    page.fill("#filter", "")
    expect(subjects).to_have_text(["filter.plum", "filter.lime", "filter.pear", "filter.apple"])
    page.click("#clear")
    expect(rows(page)).to_have_count(0)
    expect(page.locator("#count")).to_have_text("0 messages")


def test_each_subject_shows_rate_and_chart(page: Page, shared_nats: NatsServer) -> None:
    follow(page, "rates.*")
    for _ in range(3):
        publish(shared_nats, "rates.b", b"1")
        publish(shared_nats, "rates.a", b"1")
    lines = page.locator("#rates li")
    expect(lines.locator("code")).to_have_text(["rates.a", "rates.b"])
    expect(lines.first.locator(".rate")).to_have_text(re.compile(r"[0-3]\.\d/s"))
    points = lines.first.locator("polyline")
    expect(points).to_have_attribute("points", re.compile(r"^\d+\.\d,\d+\.\d( \d+\.\d,\d+\.\d)+$"))


def test_gaps_are_shown_in_order_with_messages(browser: Browser) -> None:
    with (
        NatsServer() as server,
        ExampleApp("--nats", server.url) as app,
        opened(browser, app.url) as page,
    ):
        follow(page, "gap.here")
        publish(server, "gap.here", b'"before"')
        expect(rows(page)).to_have_count(1)
        server.kill()
        expect(page.locator("#state")).to_have_text("Connected; NATS is disconnected")
        expect(page.locator("#nats")).to_have_text("disconnected")
        server.start()
        expect(page.locator("#state")).to_have_text("Connected")
        publish(server, "gap.here", b'"after"')
        expect(page.locator("#rows tr td:last-child")).to_have_text(
            [
                '"after"',
                "Gap Messages may have been lost on gap.here: the bridge was disconnected from NATS.",
                '"before"',
            ]
        )
        page.fill("#filter", "after")
        expect(page.locator("#rows tr td:last-child")).to_have_text(['"after"', re.compile("Gap")])

        page.fill("#filter", "")
        app.restart(signal.SIGKILL)
        expect(page.locator("#state")).to_have_text("Connected")
        expect(rows(page).first).to_contain_text("this browser was disconnected")
        expect(page.locator("#subscriptions code")).to_have_text(["gap.here"])
        publish(server, "gap.here", b'"at last"')
        expect(rows(page).first).to_contain_text("at last")


def test_switching_transport_keeps_subscriptions_and_shows_reason(page: Page, shared_nats: NatsServer) -> None:
    expect(page.locator("#used")).to_have_text("WebSocket")
    expect(page.locator("#why")).to_have_text("it works")
    follow(page, "switch")
    switch(page, "sse")
    expect(page.locator("#why")).to_have_text("selected on this page")
    expect(rows(page).first).to_contain_text("the transport was switched")
    expect(page.locator("#subscriptions li:not(.pending)")).to_have_count(1)
    publish(shared_nats, "switch", b"1")
    expect(page.locator("#rows .data")).to_have_text(["1"])
    switch(page, "websocket")
    expect(page.locator("#subscriptions li:not(.pending)")).to_have_count(1)
    publish(shared_nats, "switch", b"2")
    expect(page.locator("#rows .data")).to_have_text(["2", "1"])


def test_page_shows_reason_for_sse_fallback(browser: Browser, example: ExampleApp, shared_nats: NatsServer) -> None:
    context = browser.new_context()

    def reject(route: WebSocketRoute) -> None:
        route.close(code=3000, reason="no WebSocket here")

    context.route_web_socket(re.compile("/stream"), reject)
    page = context.new_page()
    page.goto(example.url)
    expect(page.locator("#used")).to_have_text("Server-Sent Events")
    expect(page.locator("#why")).to_have_text("the WebSocket failed (3000 no WebSocket here)")
    follow(page, "fallback")
    publish(shared_nats, "fallback", b"1")
    expect(rows(page)).to_have_count(1)
    page.reload()
    expect(page.locator("#why")).to_have_text("it worked in this tab before")
    context.close()


def test_console_shows_commands_and_replies(page: Page, shared_nats: NatsServer) -> None:
    expect(frames(page).first).to_contain_text('"type":"welcome"')
    assert re.search(r'"session":"[\w-]{4}…"', texts(frames(page))[0])
    command(page, '{"action": "ping", "id": "mine"}')
    expect(frames(page).first).to_contain_text('"message":"pong"')
    expect(frames(page).first).to_contain_text('"id":"mine"')
    expect(frames(page).nth(1)).to_contain_text('{"action":"ping","id":"mine"}')
    command(page, '{"subjects": ["a..b"]}')
    expect(frames(page).first).to_contain_text('"code":"subject.invalid"')
    expect(frames(page).first).to_have_class(re.compile("failed"))
    for text in ("{", "[]", "null"):
        command(page, text)
        expect(frames(page).first).to_contain_text("failed")
        page.click("#clear-frames")
        expect(frames(page)).to_have_count(0)

    follow(page, "console")
    publish(shared_nats, "console", b"1")
    expect(rows(page)).to_have_count(1)
    expect(frames(page)).to_have_count(0)
    page.get_by_label("All frames").check()
    publish(shared_nats, "console", b"2")
    expect(frames(page).first).to_contain_text('{"type":"message","subject":"console","data":2}')


def test_console_keeps_at_most_100_frames(page: Page, shared_nats: NatsServer) -> None:
    page.get_by_label("All frames").check()
    follow(page, "console.load")
    with publishing(shared_nats, "console.load", range(1_000), 1_000):
        expect(frames(page)).to_have_count(100)
    expect(frames(page).first).to_contain_text('"number":999')
    expect(frames(page)).to_have_count(100)


def press_until(page: Page, key: str, selector: str) -> None:
    """Press the key until the element has the focus."""
    for _ in range(60):
        if page.evaluate("(selector) => document.activeElement?.matches(selector)", selector):
            return
        page.keyboard.press(key)
    raise AssertionError(f"{selector} is not reached by {key}")


def test_page_is_fully_usable_by_keyboard(page: Page, shared_nats: NatsServer) -> None:
    keyboard = page.keyboard
    keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the messages"
    press_until(page, "Tab", "#subject")
    for pattern in ("keys.one", "keys.two"):
        keyboard.press("ControlOrMeta+A")
        keyboard.type(pattern)
        keyboard.press("Enter")
    expect(page.locator("#subscriptions code")).to_have_text(["keys.one", "keys.two"])
    press_until(page, "Tab", "#subscriptions button")
    keyboard.press("Enter")
    expect(page.locator("#subscriptions code")).to_have_text(["keys.two"])
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Unsubscribe from keys.two"

    press_until(page, "Tab", "input[name=transport]")
    keyboard.press("ArrowRight")
    keyboard.press("ArrowRight")
    expect(page.locator("#used")).to_have_text("Server-Sent Events")
    expect(page.locator("#subscriptions li:not(.pending)")).to_have_count(1)

    press_until(page, "Tab", "#command")
    keyboard.press("ControlOrMeta+A")
    keyboard.type('{"subjects": ["keys.three"]}')
    press_until(page, "Tab", "#send button.main")
    keyboard.press("Enter")
    expect(page.locator("#subscriptions code")).to_have_text(["keys.two", "keys.three"])

    press_until(page, "Tab", "#pause")
    keyboard.press("Space")
    publish(shared_nats, "keys.two", b"1")
    expect(page.locator("#count")).to_have_text("1 message · paused, 1 new")
    keyboard.press("Space")
    expect(page.locator("#rows .data")).to_have_text(["1"])
    press_until(page, "Tab", ".scroll")
    press_until(page, "Shift+Tab", "#subscriptions li:last-child button")
    keyboard.press("Enter")
    keyboard.press("Enter")
    expect(chips(page)).to_have_count(0)
    assert page.evaluate("document.activeElement.id") == "subject"


RECORD_ANNOUNCEMENTS = """() => {
  window.announced = [];
  const region = document.getElementById("announcement");
  const record = () => announced.push([performance.now(), region.textContent]);
  new MutationObserver(record).observe(region, { childList: true });
}"""


@both
def test_page_remains_responsive_at_1000_messages_per_second(
    page: Page, transport: str, shared_nats: NatsServer
) -> None:
    switch(page, transport)
    subject = f"load.{transport}"
    follow(page, subject)
    page.evaluate(RECORD_ANNOUNCEMENTS)
    with publishing(shared_nats, subject, range(3_000), 1_000):
        expect(rows(page)).to_have_count(200)
        expect(page.locator("#count")).to_have_text(re.compile(r"^([2-9]|\d\d+),\d{3} messages$"))
        page.get_by_role("button", name="Pause", exact=True).click()
        expect(page.locator("#count")).to_contain_text("paused")
        shown = page.locator("#rows").text_content()
    with publishing(shared_nats, subject, range(3_000, 6_000), 1_000):
        expect(page.locator("#count")).to_have_text(re.compile(r"paused, [\d,]*\d,\d{3} new"))
        assert page.locator("#rows").text_content() == shown
        page.select_option("#kept", "100")
        page.get_by_role("button", name="Resume").click()
        page.fill("#filter", '"number": 1')
        page.fill("#filter", "")
        expect(rows(page)).to_have_count(100)
    expect(page.locator("#count")).to_have_text("6,000 messages")
    expect(rows(page)).to_have_count(100)
    numbers = [int(text) for text in re.findall(r'"number": (\d+)', page.locator("#rows").text_content() or "")]
    assert numbers == list(range(5_999, 5_899, -1))
    assert page.locator("#rates .rate").count() == 1
    assert len(page.evaluate("announced")) < 60


def test_announcements_are_summarized_and_at_least_3_s_apart(
    browser: Browser, example: ExampleApp, shared_nats: NatsServer
) -> None:
    page = browser.new_page()
    page.clock.install()
    page.goto(example.url)
    page.evaluate(RECORD_ANNOUNCEMENTS)
    said = page.get_by_role("status")
    expect(said).to_have_text("Connected")
    follow(page, "announced")
    publish(shared_nats, "announced", b"1")
    publish(shared_nats, "announced", b"2")
    expect(rows(page)).to_have_count(2)
    expect(said).to_have_text("Connected")
    page.clock.fast_forward(15_000)
    expect(said).to_have_text("2 new messages")
    switch(page, "sse")
    page.clock.fast_forward(3000)
    expect(said).to_contain_text("Gap: Messages may have been lost on announced: the transport was switched.")
    times: list[float] = [time for time, _ in page.evaluate("announced")]
    assert len(times) >= 2
    assert all(after - before >= 3000 for before, after in pairwise(times)), "it never says two things at once"
    page.close()


def test_page_elements_have_accessible_names_and_roles(page: Page, shared_nats: NatsServer) -> None:
    follow(page, "roles.*")
    publish(shared_nats, "roles.a", b"1")
    for region in ("Subscriptions", "Rates over the last minute", "Connection", "Console"):
        expect(page.get_by_role("region", name=region, exact=True)).to_be_visible()
    table = page.get_by_role("table", name="Messages")
    expect(table.get_by_role("columnheader")).to_have_text(["Time", "Subject", "Data"])
    expect(table.get_by_role("row").nth(1).get_by_role("cell")).to_have_count(3)
    group = page.get_by_role("group", name="Transport")
    assert [group.get_by_role("radio").nth(at).get_attribute("value") for at in range(3)] == ["auto", *TRANSPORTS]
    for name in ("Command (JSON)", "All frames", "Keep", "Filter by subject or data"):
        expect(page.get_by_label(name)).to_have_count(1)


@pytest.mark.parametrize(("size", "scheme"), [((1280, 800), "light"), ((360, 740), "dark")], ids=["desktop", "phone"])
def test_page_meets_wcag_aa_without_horizontal_scrolling(
    browser: Browser, example: ExampleApp, shared_nats: NatsServer, size: tuple[int, int], scheme: Any
) -> None:
    """Check axe-core's rules for WCAG 2.2 AA and that the page doesn't scroll sideways."""
    assert AXE.is_file(), "make test installs axe-core"
    with opened(browser, example.url, size) as page:
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        follow(page, "access.>")
        publish(shared_nats, "access." + ".".join(["long"] * 20), json.dumps({"key": "x" * 3000}).encode())
        publish(shared_nats, "access.binary", b"\xff")
        expect(rows(page)).to_have_count(2)
        expect(page.locator("#rates li")).to_have_count(2)
        switch(page, "sse")  # a gap
        page.fill("#subject", "$SYS.>")
        page.click("#subscribe button")
        expect(page.get_by_role("alert")).not_to_be_empty()
        assert page.evaluate("document.documentElement.scrollWidth") == size[0]
        page.evaluate(AXE.read_text())
        tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
        found = page.evaluate("(tags) => axe.run({ runOnly: tags })", tags)
        assert len(found["passes"]) > 20
        assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found["violations"]] == []
