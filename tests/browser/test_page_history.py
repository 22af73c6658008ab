"""The example's page on the app's own nats-server, which has streams."""

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from sanic_nats_bridge.testing import NatsServer
from tests.support.example import ExampleApp
from tests.support.page import TRANSPORTS, chromium, follow, opened, switch


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def example() -> Iterator[ExampleApp]:
    with ExampleApp() as app:
        yield app


@pytest.fixture(params=TRANSPORTS)
def page(request: pytest.FixtureRequest, browser: Browser, example: ExampleApp) -> Iterator[Page]:
    with opened(browser, example.url) as page:
        switch(page, request.param)
        yield page


def test_subscription_begins_with_the_selected_messages(page: Page) -> None:
    page.select_option("#from", label="all stored ones")
    follow(page, "test.>")
    expect(page.locator("tr.note.good", has_text="caught up on test.>.")).to_have_count(1)
    page.select_option("#from", label="the last 10")
    follow(page, "orders.>")
    page.select_option("#from", label="the last of each subject")
    follow(page, "orders.lima")
    page.select_option("#from", label="new messages")
    follow(page, "test.subject")
    expect(page.locator("tr.note.good").first).to_be_visible()
    expect(page.locator("tr.note:not(.good)")).to_have_count(0)


def test_page_shows_resumption_in_place_of_a_gap(page: Page) -> None:
    follow(page, "test.>")
    expect(page.locator("#rows .name").first).to_have_text("test.subject")
    page.evaluate("dispatchEvent(new Event('online'))")
    note = page.locator("tr.note.good", has_text="caught up on test.>.")
    expect(note).to_contain_text("Resumed")
    # Another transport goes on in the same place.
    switch(page, "sse" if page.locator("#used").inner_text() == "WebSocket" else "websocket")
    expect(note).to_have_count(2)
    expect(page.locator("tr.note:not(.good)")).to_have_count(0)


def test_rows_of_the_bucket_change_in_place_and_vanish(page: Page) -> None:
    keys = page.locator("#state-rows th")
    rows = page.locator("#state-rows tr")
    expect(rows.first).to_be_visible()
    row = rows.first.element_handle()
    assert row is not None
    before = rows.first.inner_text()
    expect(rows.first).not_to_have_text(before, use_inner_text=True)
    # The publisher deletes each fifth key that it writes, and writes each again later.
    page.evaluate(
        """new MutationObserver((changes) => changes.forEach(({ removedNodes }) =>
             removedNodes.forEach((node) => (document.body.dataset.removed = node.firstChild.textContent)))
           ).observe(document.getElementById("state-rows"), { childList: true })"""
    )
    expect(page.locator("body")).to_have_attribute("data-removed", re.compile("."))
    texts = keys.all_inner_texts()
    assert texts == sorted(texts)


def test_page_without_history_has_no_controls_for_it(browser: Browser, shared_nats: NatsServer) -> None:
    with ExampleApp("--nats", shared_nats.url) as app, opened(browser, app.url) as page:
        expect(page.locator("#history")).to_be_hidden()
        expect(page.locator("#state-view")).to_be_hidden()
        follow(page, "test.>")
        expect(page.locator("#rows .name").first).to_have_text("test.subject")
