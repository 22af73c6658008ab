"""The rule of the table, without I/O.

The browser client gets every message that a bare EventSource on the same page gets, or announces a gap. And it never
has the status "connected" while the EventSource gets messages and it doesn't. All limits are numbers of messages, so
that the verdict doesn't depend on the speed of the machine.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from .record import Record

__all__ = ["SLACK", "Span", "Verdict", "judge", "tolerance"]

SLACK = 10
"""Messages that may be on their way."""

_SILENCE = 2
"""Heartbeats within which the client must notice that a connection is silent."""
_SHARE = 0.9
"""The share of the EventSource's messages that the client must get in the second half, if some are lost there too."""


@dataclass(frozen=True)
class Span:
    """The numbers of the messages that were published on a link.

    Attributes:
        first: The first of them.
        last: The last of them.
        last_before: Returns the last number that was published before a moment.
    """

    first: int
    last: int
    last_before: Callable[[float], int]


@dataclass
class Verdict:
    """The comparison of the client with the bare EventSource.

    Attributes:
        compared: Messages that the EventSource got since the client's subscription was ready for the first time.
        missed: How many of them the client didn't get.
        unannounced: How many of them are missing between two messages of the client, without a gap.
        pretended: The most messages that the EventSource got in a row while the client was "connected" and got none.
        late: The number of messages of the second half.
        late_client: How many of them the client got.
        late_eventsource: How many of them the EventSource got.
        failures: The broken parts of the rule.
    """

    compared: int = 0
    missed: int = 0
    unannounced: int = 0
    pretended: int = 0
    late: int = 0
    late_client: int = 0
    late_eventsource: int = 0
    failures: list[str] = field(default_factory=list)

    @property
    def settled(self) -> bool:
        """True if the client got as many messages as the EventSource in the second half."""
        share = 1 if self.late_eventsource == self.late else _SHARE
        return self.late_client >= share * self.late_eventsource


def tolerance(rate: float, heartbeat: float) -> int:
    """Return the number of messages after which a client must have noticed that its connection is silent."""
    return SLACK + round(rate * _SILENCE * heartbeat)


def judge(record: Record, span: Span, allowed: int) -> Verdict:
    """Compare the receivers of a link.

    Args:
        record: The rows of the link.
        span: The messages that were published.
        allowed: The result of `tolerance`.
    """
    verdict = Verdict()
    client, source = record.numbers("client"), record.numbers("eventsource")
    if record.ready is not None:
        compared = {number for number in source if number > span.last_before(record.ready)}
        verdict.compared = len(compared)
        verdict.missed = len({number for number in compared - client if number <= span.last - SLACK})
        verdict.unannounced = _unannounced(record, compared - client)
    verdict.pretended = _pretended(record, span)
    pause = _longest_pause(record, span)
    late = range((span.first + span.last) // 2, span.last - SLACK - pause + 1)
    verdict.late = len(late)
    verdict.late_client = sum(number in client for number in late)
    verdict.late_eventsource = sum(number in source for number in late)
    if verdict.unannounced:
        verdict.failures.append(f"{verdict.unannounced} messages are missing without a gap")
    if verdict.pretended > allowed + pause:
        verdict.failures.append(f'"connected" while only the EventSource got {verdict.pretended} messages')
    if not verdict.settled:
        verdict.failures.append(
            f"in the second half {verdict.late_client} messages, the EventSource {verdict.late_eventsource}"
        )
    return verdict


def _unannounced(record: Record, missing: set[int]) -> int:
    """Return how many of the missing messages lie between two messages of the client without a gap."""
    count, last, gap = 0, 0, True
    for row in record.of("client", "message", "gap"):
        if row.kind == "gap":
            gap = True
            continue
        if not gap:
            count += sum(last < number < row.value for number in missing)
        last, gap = max(last, row.value), False
    return count


def _pretended(record: Record, span: Span) -> int:
    """Return the most messages of the EventSource since the client's last one, or since its last status."""
    most, last, connected, waiting = 0, 0, False, 0
    for row in record.rows:
        if (row.role, row.kind) == ("client", "status"):
            before, connected = connected, row.value["state"] == "connected"
            if connected and not before:
                last, waiting = max(last, span.last_before(row.time)), 0
        elif (row.role, row.kind) == ("client", "message"):
            last, waiting = max(last, row.value), 0
        elif (row.role, row.kind) == ("eventsource", "message") and connected and row.value > last:
            waiting += 1
            most = max(most, waiting)
    return most


def _longest_pause(record: Record, span: Span) -> int:
    """Return the number of messages that were published in the longest pause of the EventSource."""
    times = [row.time for row in record.of("eventsource", "message")]
    pauses = (span.last_before(after) - span.last_before(before) for before, after in itertools.pairwise(times))
    return max(pauses, default=0)
