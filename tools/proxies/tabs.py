"""Measure many tabs with the client, and for comparison as many tabs of another profile with an EventSource."""

import asyncio
from collections.abc import Sequence

from .environment import Environment, Site
from .measure import Length, MeasuredPage, link_result
from .publisher import Publisher
from .record import Record
from .results import LinkResult, SetupResult
from .verdict import Span, tolerance

__all__ = ["measure_tabs", "ranked"]

_BETWEEN = 3
"""Messages between the starts of two tabs."""


async def measure_tabs(site: Site, env: Environment, length: Length, result: SetupResult) -> None:
    """Measure a set-up with several tabs. Its links are the tabs."""
    publisher, subject, count = env.publisher, f"tab.{site.setup.name}", site.setup.tabs
    allowed = tolerance(publisher.rate, site.heartbeat)
    async with env.profile(site) as clients, env.profile(site) as sources:
        # All are loaded before, because the seventh can't be loaded once six streams are open.
        pairs = [(MeasuredPage(await clients.new_page()), MeasuredPage(await sources.new_page())) for _ in range(count)]
        await asyncio.gather(*(page.load(site) for pair in pairs for page in pair))
        await asyncio.gather(*(client.load_client() for client, _ in pairs))
        result.protocol = await pairs[0][0].protocol()
        publisher.subjects.add(subject)
        try:
            starts = []
            for client, source in pairs:
                starts.append(publisher.last + 1)
                await client.start({"tab": subject}, ["client"])
                await source.start({"tab": subject}, ["eventsource"])
                await publisher.wait_for(_BETWEEN)
            await publisher.wait_for(length.least)
            most = starts[0] + length.most
            while True:
                result.links = await _judged(pairs, starts, publisher, allowed)
                if publisher.last >= most or not any(link.verdict.failures for link in result.links.values()):
                    break
                await publisher.wait_for(_BETWEEN)
        finally:
            publisher.subjects.discard(subject)


async def _judged(
    pairs: Sequence[tuple[MeasuredPage, MeasuredPage]], starts: Sequence[int], publisher: Publisher, allowed: int
) -> dict[str, LinkResult]:
    await asyncio.gather(*(page.collect() for pair in pairs for page in pair))
    records = [tuple(page.records["tab"] for page in pair) for pair in pairs]
    counts = [(len(client.numbers("client")), len(source.numbers("eventsource"))) for client, source in records]
    links: dict[str, LinkResult] = {}
    for client, source in ranked(counts):
        span = Span(max(starts[client], starts[source]), publisher.last, publisher.last_before)
        rows = [*records[client][0].rows, *records[source][1].rows]
        links[f"tab {client + 1}"] = link_result(Record(sorted(rows, key=lambda row: row.time)), span, allowed)
    return links


def ranked(counts: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the tabs of the client, each with the tab of the other profile that got messages as it did.

    Which six tabs of a profile have a connection depends on the browser. So the tab with the most messages of one
    profile is compared with that of the other, and so on.

    Args:
        counts: The messages of the client and of the EventSource in the tabs of each number.
    """
    tabs = range(len(counts))
    clients, sources = (sorted(tabs, key=lambda tab: -counts[tab][of]) for of in (0, 1))
    return sorted(zip(clients, sources, strict=True))
