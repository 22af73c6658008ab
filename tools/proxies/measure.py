"""Measure a page behind a proxy: wait until enough messages were published, and judge what the receivers got."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from playwright.async_api import Error, Page

from .environment import Environment, Site
from .publisher import ROLES
from .record import Record, Row
from .results import LinkResult, SetupResult
from .verdict import SLACK, Span, judge, tolerance

__all__ = ["Length", "MeasuredPage", "PageError", "link_result", "measure_page"]

_PREFIX = "/nats"

_SCRIPT = (Path(__file__).parent / "page.js").read_text()
_LEAVE_POLL_SECONDS = 0.2
_LOAD_SECONDS = 30.0
_OK = 200


@dataclass(frozen=True)
class Length:
    """The length of a measurement, in messages.

    Attributes:
        least: Messages on the busy link, at least.
        most: Messages on the busy link, at most. Between the two the measurement waits for the verdict to be good.
        quiet: Messages on the quiet link at the end, at least. At most it gets as many more as the busy link, or as a
            client may miss.
        leave_seconds: Seconds for which the bridge is watched after the page was closed.
    """

    least: int = 400
    most: int = 400
    quiet: int = 30
    leave_seconds: float = 35.0


class PageError(RuntimeError):
    """An error of a page that doesn't load through its proxy."""


class MeasuredPage:
    """A page with receivers.

    Attributes:
        records: What it has noted, by the name of the link.
    """

    def __init__(self, page: Page) -> None:
        self.records: dict[str, Record] = {}
        self._page = page

    async def load(self, site: Site) -> None:
        """Load the page.

        Raises:
            PageError: It doesn't load.
        """
        try:
            response = await self._page.goto(f"{site.origin}/page", timeout=1000 * _LOAD_SECONDS)
        except Error as error:
            raise PageError(str(error).splitlines()[0]) from None
        if response is None or response.status != _OK:
            raise PageError(f"HTTP {response and response.status}")

    async def protocol(self) -> str:
        """Return the HTTP version by which the page was loaded."""
        return str(await self._page.evaluate("performance.getEntriesByType('navigation')[0].nextHopProtocol"))

    async def load_client(self) -> None:
        """Load the module of the browser client."""
        await self._page.evaluate(f"import('{_PREFIX}/client.js')")

    async def start(self, links: Mapping[str, str], roles: Sequence[str] = ROLES) -> None:
        """Start the receivers of links.

        Args:
            links: The first tokens of the links' subjects by the names of the links.
            roles: The roles of the receivers.
        """
        self.records = {link: Record() for link in links}
        await self._page.evaluate(_SCRIPT, {"prefix": _PREFIX, "links": links, "roles": roles})

    async def collect(self) -> None:
        """Add what the page has noted to the records."""
        for milliseconds, link, role, kind, value in await self._page.evaluate("measured.take()"):
            self.records[link].rows.append(Row(milliseconds / 1000, role, kind, value))

    async def close(self) -> None:
        """Close the page."""
        await self._page.close()


async def measure_page(site: Site, env: Environment, length: Length, result: SetupResult) -> None:
    """Measure a set-up with one page. Its links are a busy and a quiet one."""
    async with env.profile(site) as profile:
        page = MeasuredPage(await profile.new_page())
        await page.load(site)
        result.protocol = await page.protocol()
        await _measure_links(page, site, env, length, result)


async def _measure_links(page: MeasuredPage, site: Site, env: Environment, length: Length, result: SetupResult) -> None:
    publisher, subject = env.publisher, site.setup.name
    links = {name: f"{name}.{subject}" for name in ("busy", "quiet")}
    allowed = tolerance(publisher.rate, site.heartbeat)
    publisher.subjects.add(links["busy"])
    try:
        first = publisher.last + 1
        await page.start(links)
        await _wait_until_started(page, env, length.least)
        await publisher.wait_for(length.least)
        result.links["busy"] = await _final_result(page, "busy", env, first, first + length.most, allowed)
        publisher.subjects.add(links["quiet"])
        first = publisher.last + 1
        await publisher.wait_for(length.quiet)
        most = first + length.quiet + max(allowed + SLACK, length.most - length.least)
        result.links["quiet"] = await _final_result(page, "quiet", env, first, most, allowed)
        result.sessions = _count_by_receiver(await env.sessions(site), site)
        publisher.subjects.discard(links["quiet"])  # a message would reveal that the page is gone
        await page.close()
        result.gone = await _watch_sessions(site, env, result.sessions, length.leave_seconds)
    finally:
        publisher.subjects -= set(links.values())


async def _wait_until_started(page: MeasuredPage, env: Environment, most: int) -> None:
    """Wait for the first message or error of the EventSource, on a slow machine too, or for a number of messages."""
    end = env.publisher.last + most
    while env.publisher.last < end and not any(page.records["busy"].of("eventsource", "message", "error")):
        await env.publisher.wait_for(1)
        await page.collect()


async def _final_result(
    page: MeasuredPage, link: str, env: Environment, first: int, most: int, allowed: int
) -> LinkResult:
    """Return the result of a link as soon as the verdict is good, or this number was published."""
    while True:
        await page.collect()
        span = Span(first, env.publisher.last, env.publisher.last_before)
        result = link_result(page.records[link], span, allowed)
        if not result.verdict.failures or span.last >= most:
            return result
        await env.publisher.wait_for(2)


def link_result(record: Record, span: Span, allowed: int) -> LinkResult:
    """Return the result of a link.

    Args:
        record: The rows of the link.
        span: The messages that were published.
        allowed: The number of messages that a client may miss before it notices.
    """
    received = {role: record.received(role, time.time(), span.last - SLACK) for role in ROLES}
    return LinkResult(span.last - span.first + 1, received, _statuses(record), judge(record, span, allowed))


def _statuses(record: Record) -> list[str]:
    lines = []
    for row in record.of("client", "status", "ready", "refused", "close", "failed"):
        at = f"{row.time - record.start:.1f}"
        if row.kind == "status":
            parts = [row.value.get(name) for name in ("state", "transport", "why", "reason")]
            lines.append(" | ".join([at, *(part for part in parts if part)]))
        else:
            lines.append(" | ".join([at, row.kind, *([str(row.value)] if row.value else [])]))
    return lines


def _count_by_receiver(sessions: Sequence[Sequence[str]], site: Site) -> dict[str, int]:
    """Return the number of sessions of a set-up for each link and role."""
    found: dict[str, int] = {}
    for patterns in sessions:
        for pattern in patterns:
            link, setup, role = pattern.split(".")
            if setup == site.setup.name:
                name = f"{link}.{role}"
                found[name] = found.get(name, 0) + 1
    return found


async def _watch_sessions(
    site: Site, env: Environment, before: Mapping[str, int], seconds: float
) -> dict[str, float | None]:
    """Return the seconds until the sessions of each receiver had ended, after the page was closed."""
    closed = time.monotonic()
    gone: dict[str, float | None] = dict.fromkeys(before)
    while None in gone.values() and time.monotonic() < closed + seconds:
        now = _count_by_receiver(await env.sessions(site), site)
        for name, at in gone.items():
            if at is None and name not in now:
                gone[name] = round(time.monotonic() - closed, 1)
        await asyncio.sleep(_LEAVE_POLL_SECONDS)
    return gone
