"""The docs site, built strictly, as a browser shows it."""

import functools
import http.server
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Request, ViewportSize, expect

from tests.support.docs import ROOT
from tests.support.page import chromium

PAGES = [
    path.relative_to(ROOT / "docs").with_suffix("").as_posix()
    for path in (ROOT / "docs").rglob("*.md")
    if path.name != "pypi.md"  # not a page of the site
]
SIZES = {"desktop": (1280, 800), "phone": (360, 740)}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002 - its name there

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=site)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


def url_of(address: str, page: str) -> str:
    return address if page == "index" else f"{address}{page}/"


@pytest.fixture(params=SIZES)
def tab(request: pytest.FixtureRequest, browser: Browser, address: str) -> Iterator[Page]:
    """Open a browser tab, and fail the test if a page raises an error or loads from another host."""
    complaints: list[str] = []

    def note(sent: Request) -> None:
        if not sent.url.startswith((address, "data:")):
            complaints.append(sent.url)

    width, height = SIZES[request.param]
    page = browser.new_page(viewport=ViewportSize(width=width, height=height))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("request", note)
    yield page
    page.close()
    assert complaints == []


def test_pages_fit_window_and_load_from_own_host_only(tab: Page, address: str) -> None:
    for page in PAGES:
        answer = tab.goto(url_of(address, page))
        assert answer is not None
        assert answer.status == 200, page
        expect(tab.locator("h1")).to_have_count(1)
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), page


def test_search_finds_setting(tab: Page, address: str) -> None:
    tab.goto(url_of(address, "quickstart"))
    opener = tab.locator("label.md-header__button[for=__search]")
    if opener.is_visible():  # on a phone
        opener.click()
    tab.locator("input[name=query]").press_sequentially("unsubscribe_delay")
    expect(tab.locator(".md-search-result__link[href*='/reference/settings/']").first).to_be_attached()


def test_api_page_describes_each_method(tab: Page, address: str) -> None:
    tab.goto(url_of(address, "reference/api"))
    for name in ("revoke", "update_permissions", "stats"):
        assert tab.locator(f"[id='sanic_nats_bridge.NatsBridge.{name}']").count() == 1


def test_site_files_load_nothing_from_other_hosts(site: Path) -> None:
    loads = re.compile(
        r"<(?:script|img|iframe)[^>]+src=\"https?:[^\"]+|<link[^>]+href=\"https?:[^\"]+|url\(https?:[^)]+"
    )
    found = {
        match.group()
        for path in site.rglob("*")
        if path.suffix in (".html", ".css")
        for match in loads.finditer(path.read_text())
    }
    assert found == set()
