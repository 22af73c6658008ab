"""The stats of one worker, which `NatsBridge.stats` returns."""

from collections.abc import Mapping
from dataclasses import dataclass

from ..protocol.messages import NatsState

__all__ = ["Stats"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stats:
    """The status of one worker. Counters begin at the start of its process."""

    sessions: Mapping[str, int]
    """Open sessions by transport: ``websocket`` and ``sse``."""
    patterns: int
    """Patterns to which the worker is subscribed in NATS."""
    messages: int
    """Messages from NATS that have a subscriber."""
    deliveries: int
    """Messages written to clients: a message to ten clients counts ten times."""
    sent_bytes: int
    """Bytes written to clients, in frames of all kinds except the last ``close``."""
    lost: Mapping[str, int]
    """Skipped messages by reason: ``slow_consumer`` for one client, ``subject_mismatch`` (outside the
    subscribed pattern) and ``unreadable_subject`` (not UTF-8) for all.
    Messages that NATS delivered while it was disconnected can't be counted; see `gaps`."""
    gaps: Mapping[str, int]
    """Subscriptions for which a gap was sent, by reason: ``slow_consumer``, ``nats_reconnect`` and ``internal``."""
    slow_consumers: int
    """Times that a client exceeded ``max_pending_bytes``."""
    status_messages: int
    """Messages with which NATS itself reports a state, such as the idle heartbeats of a JetStream consumer. No client
    gets them."""
    refused: Mapping[str, int]
    """Commands rejected by this worker, by error code, such as ``subject.forbidden``."""
    closes: Mapping[str, int]
    """Sessions that have ended, by close code; ``other`` for unusual codes of clients."""
    nats: NatsState
    """``connected`` once the bridge's NATS server has confirmed every pattern."""
    control: NatsState
    """``connected`` while the bridge's NATS server delivers the messages between this worker and the others."""
    control_dropped: Mapping[str, int]
    """Messages between the workers that were dropped, by reason: ``signature``, ``stale`` and ``replay`` for those that
    no worker of this app has sent just now, ``busy`` for requests beyond ``max_relays``."""
    nats_reconnects: int
    """Connections to NATS after the first."""
    loop_lag: float
    """The largest delay of the event loop within the last 15 to 30 seconds, in seconds."""
