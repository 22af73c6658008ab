"""Analysis of one subscription of one client: the missing messages, and the gaps that announce them."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from .payloads import Key

__all__ = ["REORDERING_SECONDS", "GapAnalysis", "Publication", "Subscription", "analyze_gaps"]

REORDERING_SECONDS = 1.0
"""The longest time by which NATS may reorder messages of different publishers."""


@dataclass(slots=True)
class Publication:
    """A published message.

    Attributes:
        subject: The subject, or None if it isn't UTF-8. No client receives such a message.
        sent: The time at which sending began, in seconds of a monotonic clock.
        confirmed: The time at which the server had confirmed it, or None if the connection was lost before.
    """

    key: Key
    subject: str | None
    digest: str
    sent: float
    confirmed: float | None = None


@dataclass
class Subscription:
    """One subscription of a client, and the messages received for it. All places are indexes of the client's log.

    Attributes:
        opened: The place at which it began.
        since: The time at which the client learned that the subscription is active; None if it never did.
        closed: The place at which it ended, if that was before the end of the log.
        delivered: The place of each message.
        gaps: The place of each gap, and its number of lost messages if it has one.
    """

    pattern: str
    opened: int
    since: float | None
    closed: int | None = None
    delivered: dict[Key, int] = field(default_factory=dict)
    gaps: list[tuple[int, int | None]] = field(default_factory=list)


@dataclass
class GapAnalysis:
    """The result of an analysis.

    Attributes:
        announced: The number of missing messages that a gap announces.
        missing: The messages that are missing without a gap.
        overstated: The number of announced messages beyond those that are missing.
    """

    announced: int = 0
    missing: list[Publication] = field(default_factory=list)
    overstated: int = 0


@dataclass
class _GapGroup:
    """Gaps next to each other, and the messages missing at their places.

    Attributes:
        first: The index of the first gap.
        last: The index of the last gap.
        due: The missing messages that the client must have received.
        possible: The number of missing messages that the client may have received.
    """

    first: int
    last: int
    due: list[Publication] = field(default_factory=list)
    possible: int = 0


def analyze_gaps(
    subscription: Subscription,
    publications: Sequence[Publication],
    end: int,
    *,
    complete: bool,
    reordering_seconds: float = REORDERING_SECONDS,
) -> GapAnalysis:
    """Find the missing messages of a subscription, and compare them with its gaps.

    Messages that belong after the last one of a subscription that ended early may be missing, because they may have
    been in transit.

    Args:
        subscription: The subscription.
        publications: All published messages that match its pattern.
        end: The place of the end of the log.
        complete: The client was subscribed until everything was published.
        reordering_seconds: The longest time by which NATS may reorder messages of different publishers.
    """
    analysis = GapAnalysis()
    order = _Order(subscription, publications, reordering_seconds)
    places = [place for place, _ in subscription.gaps]
    groups = [_GapGroup(index, index) for index in range(len(places))]
    for publication in publications:
        if publication.key in subscription.delivered:
            continue
        after, before = order.bounds(publication)
        due = publication.confirmed is not None and _is_active(subscription, publication)
        if before is None:
            due = due and complete and subscription.closed is None
            before = end if subscription.closed is None else subscription.closed
        first, last = bisect_right(places, after), bisect_left(places, before) - 1
        if first <= last:
            groups.append(_GapGroup(first, last, [publication] if due else [], int(not due)))
        elif due:
            analysis.missing.append(publication)
    for group in _merged(groups):
        _count(group, [lost for _, lost in subscription.gaps[group.first : group.last + 1]], analysis)
    return analysis


def _is_active(subscription: Subscription, publication: Publication) -> bool:
    return subscription.since is not None and publication.sent >= subscription.since


def _count(group: _GapGroup, announced: Sequence[int | None], analysis: GapAnalysis) -> None:
    due = len(group.due)
    numbers = [lost for lost in announced if lost is not None]
    if len(numbers) < len(announced):
        analysis.announced += due
        return
    total = sum(numbers)
    analysis.announced += min(due, total)
    analysis.missing += group.due[total:]
    analysis.overstated += max(0, total - due - group.possible)


def _merged(groups: Iterable[_GapGroup]) -> Iterator[_GapGroup]:
    """Merge the groups that share a gap."""
    current: _GapGroup | None = None
    for group in sorted(groups, key=lambda each: each.first):
        if current is not None and group.first <= current.last:
            current.last = max(current.last, group.last)
            current.due += group.due
            current.possible += group.possible
        else:
            if current is not None:
                yield current
            current = group
    if current is not None:
        yield current


class _Order:
    """The order of a subscription's messages, to find the place of a missing one among those delivered."""

    def __init__(
        self, subscription: Subscription, publications: Sequence[Publication], reordering_seconds: float
    ) -> None:
        self._opened = subscription.opened
        self._reordering_seconds = reordering_seconds
        self._by_publisher: dict[str, tuple[list[int], list[int]]] = {}
        for key, place in sorted(subscription.delivered.items()):
            numbers, places = self._by_publisher.setdefault(key.publisher, ([], []))
            numbers.append(key.number)
            places.append(place)
        delivered = [
            (each, subscription.delivered[each.key]) for each in publications if each.key in subscription.delivered
        ]
        by_end = sorted((each.confirmed, place) for each, place in delivered if each.confirmed is not None)
        by_start = sorted((each.sent, place) for each, place in delivered)
        self._ends = [moment for moment, _ in by_end]
        self._last_places = list(accumulate((place for _, place in by_end), max))
        self._starts = [moment for moment, _ in by_start]
        self._first_places = list(accumulate((place for _, place in reversed(by_start)), min))[::-1]

    def bounds(self, publication: Publication) -> tuple[int, int | None]:
        """Return the place of the last message known to precede it, and of the first one known to follow it."""
        after, before = [self._opened], []
        numbers, places = self._by_publisher.get(publication.key.publisher, ([], []))
        index = bisect_left(numbers, publication.key.number)
        after += places[index - 1 : index] if index else []
        before += places[index : index + 1]
        index = bisect_right(self._ends, publication.sent - self._reordering_seconds)
        after += self._last_places[index - 1 : index] if index else []
        if publication.confirmed is not None:
            index = bisect_left(self._starts, publication.confirmed + self._reordering_seconds)
            before += self._first_places[index : index + 1]
        return max(after), min(before, default=None)
