"""What is missing from one subscription of one client, and whether it was told."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final

from .payloads import Key

__all__ = ["OVERTAKING_SECONDS", "Findings", "Publication", "Subscription", "findings"]

OVERTAKING_SECONDS: Final = 1.0
"""Messages of different publishers may overtake each other in NATS, but not by more than this."""


@dataclass(slots=True)
class Publication:
    """A message that was published.

    Attributes:
        subject: ``None`` where it is not UTF-8: such a message is nobody's.
        sent: When it was begun to be sent, in seconds of a clock that only goes forward.
        confirmed: When the server was known to have it; ``None`` where the connection broke before.
    """

    key: Key
    subject: str | None
    digest: str
    sent: float
    confirmed: float | None = None


@dataclass
class Subscription:
    """One pattern that a client followed, and what it got by it; all places are those in the client's log.

    Attributes:
        since: When the client had read that NATS has the subscription; ``None`` if it never has.
        closed: Where it ended, if that was before the end of the log.
    """

    pattern: str
    opened: int
    since: float | None
    closed: int | None = None
    delivered: dict[Key, int] = field(default_factory=dict)
    gaps: list[tuple[int, int | None]] = field(default_factory=list)


@dataclass
class Findings:
    """How many are missing and announced, what is missing in silence, how many too many are announced."""

    announced: int = 0
    missing: list[Publication] = field(default_factory=list)
    overstated: int = 0


@dataclass
class _Stretch:
    """Gaps next to each other, and what is missing at their places: what must have been, and what may have been."""

    first: int
    last: int
    due: list[Publication] = field(default_factory=list)
    possible: int = 0


def findings(subscription: Subscription, publications: Sequence[Publication], end: int, *, complete: bool) -> Findings:
    """Judge what is missing of these publications, all of which match the pattern.

    ``end`` is where the log ends, ``complete`` says that the client followed until all was published. What belongs
    behind the last message of a subscription that ended before may have been on its way: it need not be there.
    """
    found = Findings()
    order = _Order(subscription, publications)
    places = [place for place, _ in subscription.gaps]
    stretches = [_Stretch(index, index) for index in range(len(places))]
    for publication in publications:
        if publication.key in subscription.delivered:
            continue
        after, before = order.bounds(publication)
        due = publication.confirmed is not None and _within(subscription, publication)
        if before is None:
            due = due and complete and subscription.closed is None
            before = end if subscription.closed is None else subscription.closed
        first, last = bisect_right(places, after), bisect_left(places, before) - 1
        if first <= last:
            stretch = _Stretch(first, last, [publication] if due else [], int(not due))
            stretches.append(stretch)
        elif due:
            found.missing.append(publication)
    for stretch in _merged(stretches):
        _settle(stretch, [lost for _, lost in subscription.gaps[stretch.first : stretch.last + 1]], found)
    return found


def _within(subscription: Subscription, publication: Publication) -> bool:
    return subscription.since is not None and publication.sent >= subscription.since


def _settle(stretch: _Stretch, told: Sequence[int | None], found: Findings) -> None:
    due = len(stretch.due)
    numbers = [lost for lost in told if lost is not None]
    if len(numbers) < len(told):
        found.announced += due
        return
    total = sum(numbers)
    found.announced += min(due, total)
    found.missing += stretch.due[total:]
    found.overstated += max(0, total - due - stretch.possible)


def _merged(stretches: Iterable[_Stretch]) -> Iterator[_Stretch]:
    """Those that share a gap made one."""
    current: _Stretch | None = None
    for stretch in sorted(stretches, key=lambda each: each.first):
        if current is not None and stretch.first <= current.last:
            current.last = max(current.last, stretch.last)
            current.due += stretch.due
            current.possible += stretch.possible
        else:
            if current is not None:
                yield current
            current = stretch
    if current is not None:
        yield current


class _Order:
    """Where among the messages that were delivered a missing one belongs."""

    def __init__(self, subscription: Subscription, publications: Sequence[Publication]) -> None:
        self._opened = subscription.opened
        self._own: dict[str, tuple[list[int], list[int]]] = {}
        for key, place in sorted(subscription.delivered.items()):
            numbers, places = self._own.setdefault(key.publisher, ([], []))
            numbers.append(key.number)
            places.append(place)
        got = [(each, subscription.delivered[each.key]) for each in publications if each.key in subscription.delivered]
        ended = sorted((each.confirmed, place) for each, place in got if each.confirmed is not None)
        begun = sorted((each.sent, place) for each, place in got)
        self._ended = [moment for moment, _ in ended]
        self._furthest = list(accumulate((place for _, place in ended), max))
        self._begun = [moment for moment, _ in begun]
        self._nearest = list(accumulate((place for _, place in reversed(begun)), min))[::-1]

    def bounds(self, publication: Publication) -> tuple[int, int | None]:
        """The place of the last that is known to come before it, and of the first that is known to come behind it."""
        after, before = [self._opened], []
        numbers, places = self._own.get(publication.key.publisher, ([], []))
        index = bisect_left(numbers, publication.key.number)
        after += places[index - 1 : index] if index else []
        before += places[index : index + 1]
        index = bisect_right(self._ended, publication.sent - OVERTAKING_SECONDS)
        after += self._furthest[index - 1 : index] if index else []
        if publication.confirmed is not None:
            index = bisect_left(self._begun, publication.confirmed + OVERTAKING_SECONDS)
            before += self._nearest[index : index + 1]
        return max(after), min(before, default=None)
