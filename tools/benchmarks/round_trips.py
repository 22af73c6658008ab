"""Messages from a publisher to the clients, and the figures that they give."""

from collections.abc import Sequence

from ..harness.processes import busy_ticks
from ..harness.remote import Remote
from .load import Load
from .publisher import Publication, Publisher

__all__ = ["busy_percent", "quantile", "round_trip"]


def round_trip(publication: Publication, load: Remote[Load], publisher: Remote[Publisher]) -> float:
    """Publish, read until all messages have arrived, and return the seconds from the first to the last."""
    load.begin(Load.read, publication.end)
    first: int = publisher.call(Publisher.publish, publication)
    last: int = load.result()
    return (last - first) / 1e9


def busy_percent(since: tuple[int, int]) -> float:
    """Return the share of the time since an earlier `busy_ticks` in which the machine was busy."""
    busy, total = (now - before for now, before in zip(busy_ticks(), since, strict=True))
    return 100 * busy / max(total, 1)


def quantile(ordered: Sequence[int], share: float) -> float:
    """Return a quantile of times in nanoseconds, in milliseconds."""
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] / 1e6
