"""Queue groups, by which NATS sends a message once for all overlapping patterns of a worker.

NATS sends a connection one copy of a message for each of its subscriptions that match, and clients choose the patterns.
So a wildcard pattern that overlaps too many others is subscribed in a queue group: of all subscriptions of one group
that match a message, NATS picks one. The worker then finds the other patterns by the subject.

- Each connection has groups of its own, so that no other connection takes its messages.
- A pattern is subscribed without a group only if it overlaps few others without one. So few of these match any one
  message.
- Each first token has its own group, and patterns that begin with a wildcard have another one. If the account imports
  one stream under two names, its messages arrive under both. In a common group they would arrive under one.
- A pattern keeps its group as long as it exists, because messages could be lost if it changed.
"""

from ..protocol.pattern_set import PatternSet
from ..protocol.subjects import has_wildcard
from .interest import Interest, QueueGroup

__all__ = ["MAX_COPIES", "QueueGroups"]

MAX_COPIES = 8
"""The largest number of copies of one message that NATS sends to a worker."""

_MAX_ALONE = MAX_COPIES - 3
"""Of these, those for patterns without a group. The others are those for the subject itself, the group of its first
token, and the group of patterns that begin with a wildcard."""

_WILD = "*"
"""The key of the group of patterns that begin with a wildcard."""


class QueueGroups:
    """The wildcard interests of a worker, and the queue groups of those that overlap many others."""

    def __init__(self) -> None:
        self._patterns = PatternSet()
        self._interests: list[Interest | None] = []
        self._alone = 0
        """The interests without a group, by their numbers in the set."""
        self._shown = 0
        """The interests in a group that have views, by their numbers in the set."""
        self._groups: dict[str, QueueGroup] = {}
        self._last = 0

    def add(self, interest: Interest) -> None:
        """Add a new interest, to a group if its pattern overlaps too many without one."""
        if not has_wildcard(interest.pattern):
            return
        others = self._patterns.overlapping(interest.pattern, self._alone)
        interest.number = number = self._patterns.add(interest.pattern)
        if number == len(self._interests):
            self._interests.append(interest)
        else:
            self._interests[number] = interest
        if others < _MAX_ALONE:
            self._alone |= 1 << number
            return
        key = _key(interest.pattern)
        group = self._groups.get(key)
        if group is None:
            self._last += 1
            group = self._groups[key] = QueueGroup(self._last)
        group.members[interest] = None
        interest.join(group)

    def discard(self, interest: Interest) -> None:
        """Remove an interest. It stays the sink of messages that NATS has sent to it for its group before."""
        if interest.number is None:
            return
        self._shown &= ~(1 << interest.number)
        self._alone &= ~(1 << interest.number)
        self._patterns.discard(interest.number)
        self._interests[interest.number] = None
        interest.number = None
        group = interest.group
        if group is not None:
            del group.members[interest]
            group.routes.clear()
            if not group.members:
                del self._groups[_key(interest.pattern)]

    def update(self, interest: Interest) -> None:
        """Note that an interest may have got its first view, or lost its last one."""
        if interest.group is None or interest.number is None:
            return
        bit = 1 << interest.number
        if bool(self._shown & bit) != bool(interest.views):
            self._shown ^= bit
            interest.group.routes.clear()

    def route(self, group: QueueGroup, subject: str) -> tuple[Interest, ...]:
        """Return the interests of a group that match a subject and have views."""
        found = [self._interests[number] for number in self._patterns.matching(subject, self._shown)]
        return tuple([interest for interest in found if interest is not None and interest.group is group])


def _key(pattern: str) -> str:
    first = pattern.partition(".")[0]
    return _WILD if has_wildcard(first) else first
