"""What one worker has done so far, in plain numbers."""

from collections import Counter
from typing import Final

from ..errors import CloseCode

__all__ = ["OTHER_CODES", "Counters"]

OTHER_CODES: Final = "other"
"""All close codes that are none of the bridge's, nor usual: a client may send any of thousands."""

_USUAL_CODES: Final = frozenset({*map(int, CloseCode), 1000, 1002, 1005, 1006, 1007, 1008})  # RFC 6455, section 7.4.1


class Counters:
    """Numbers that only grow. Whoever is on the way of a message adds once for each write, or turn of the loop."""

    __slots__ = (
        "closes", "deliveries", "ended_bytes", "gaps", "lost", "messages", "nats_connections", "refused",
        "slow_consumers",
    )  # fmt: skip

    def __init__(self) -> None:
        self.messages = 0
        """Messages of NATS that somebody follows."""
        self.deliveries = 0
        """Messages handed to the connections of clients: one to each of ten are ten."""
        self.ended_bytes = 0
        """Bytes written to clients that are gone."""
        self.lost: Counter[str] = Counter(slow_consumer=0, unreadable_subject=0)
        """Messages that a client is not given, or nobody is, by why."""
        self.gaps: Counter[str] = Counter(slow_consumer=0, nats_reconnect=0, internal=0)
        """Subscriptions whose client was told of a gap, by its reason."""
        self.slow_consumers = 0
        """How often a client went over its limit."""
        self.refused: Counter[str] = Counter()
        """Commands that were refused, by the code of the error."""
        self.closes: Counter[str] = Counter()
        """Sessions that have ended, by the close code."""
        self.nats_connections = 0
        """Connections to NATS that stood."""

    def count_close(self, code: int) -> None:
        """A session has ended with this close code."""
        self.closes[str(int(code)) if code in _USUAL_CODES else OTHER_CODES] += 1
