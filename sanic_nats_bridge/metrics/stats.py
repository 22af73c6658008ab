"""What ``NatsBridge.stats`` tells of one worker."""

from collections.abc import Mapping
from dataclasses import dataclass

from ..protocol.messages import NatsState

__all__ = ["Stats"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stats:
    """How one worker fares. What is counted is counted from the start of its process."""

    sessions: Mapping[str, int]
    """Sessions now, by transport: ``websocket`` and ``sse``."""
    patterns: int
    """Patterns now that NATS is asked for."""
    messages: int
    """Messages that have come from NATS and that somebody follows."""
    deliveries: int
    """Messages handed to the connections of clients: one to each of ten are ten."""
    sent_bytes: int
    """Bytes written to the connections of sessions, frames of all kinds but the last ``close`` included."""
    lost: Mapping[str, int]
    """Messages that a client was not given, by why (``slow_consumer``), or that nobody was
    (``unreadable_subject``: not UTF-8). How many NATS has sent while it was away nobody knows: see `gaps`."""
    gaps: Mapping[str, int]
    """Subscriptions whose client was told of a gap, by its reason: ``slow_consumer``, ``nats_reconnect``,
    ``internal``."""
    slow_consumers: int
    """How often a client went over ``max_pending_bytes``."""
    refused: Mapping[str, int]
    """Commands that were refused here, by the code of the error, such as ``subject.forbidden``."""
    closes: Mapping[str, int]
    """Sessions that have ended, by close code; ``other`` for codes of clients' own."""
    nats: NatsState
    """Whether NATS has answered for all that is followed."""
    nats_reconnects: int
    """Connections to NATS after the first."""
    loop_lag: float
    """The largest delay of the event loop within about the last 15 to 30 seconds, in seconds."""
