"""Measure many tabs with the client, and for comparison as many tabs of another profile with an EventSource."""

import asyncio
from collections.abc import Sequence

from .environment import Environment, Site
from .measure import Length, MeasuredPage, link_result
from .publisher import Publisher
from .record import Record
from .results import LinkResult, SetupResult
from .verdict import Span, tolerance

__all__ = ["measure_tabs"]

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
                result.links = {
                    f"tab {number}": await _judged(pair, first, publisher, allowed)
                    for number, (pair, first) in enumerate(zip(pairs, starts, strict=True), 1)
                }
                if publisher.last >= most or not any(link.verdict.failures for link in result.links.values()):
                    break
                await publisher.wait_for(_BETWEEN)
        finally:
            publisher.subjects.discard(subject)


async def _judged(pair: Sequence[MeasuredPage], first: int, publisher: Publisher, allowed: int) -> LinkResult:
    await asyncio.gather(*(page.collect() for page in pair))
    span = Span(first, publisher.last, publisher.last_before)
    rows = [row for page in pair for row in page.records["tab"].rows]
    return link_result(Record(sorted(rows, key=lambda row: row.time)), span, allowed)
