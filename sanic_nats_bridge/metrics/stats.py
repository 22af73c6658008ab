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
    """Messages written to clients, replayed ones included: a message to ten clients counts ten times."""
    sent_bytes: int
    """Bytes written to clients, in frames of all kinds except the last ``close``."""
    lost: Mapping[str, int]
    """Skipped messages by reason: ``slow_consumer`` for one client, ``subject_mismatch`` (outside the
    subscribed pattern) and ``unreadable_subject`` (not UTF-8) for all.
    Messages that NATS delivered while it was disconnected can't be counted; see `gaps`."""
    gaps: Mapping[str, int]
    """Subscriptions for which a gap was sent, by reason: ``slow_consumer``, ``nats_reconnect`` and ``internal``; with
    history also ``unknown``, ``reset``, ``expired`` and ``backlog``."""
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
    published: Mapping[str, int]
    """Publishes of clients that have succeeded, by result: ``sent`` without ``ack``, ``stored`` by JetStream, and
    ``duplicate`` if JetStream had the message already. Those that have failed are in `refused`."""
    answered_requests: int
    """Requests of clients that were answered. Those that have failed are in `refused`."""
    current_publishes: Mapping[str, int]
    """Publishes with ``ack`` (``publish``) and requests (``request``) of clients whose answer is awaited, or waits for
    a slow client."""
    replays: Mapping[str, int]
    """Replays that have begun: ``after`` a position, by the ``from`` of a client (``new``, ``all``, ``last`` and
    ``last_per_subject``), and ``slow_consumer`` for clients that have caught up."""
    replay_results: Mapping[str, int]
    """Replays that have reached the present: ``recovered``, or one for each reason (``unknown``, ``reset``,
    ``expired`` and ``backlog``) for which messages are missing."""
    replayed: int
    """Messages written to clients by replays. `deliveries` includes them."""
    current_replays: Mapping[str, int]
    """Replays in progress: ``running``, and ``waiting`` for others to have read from NATS."""
    feeds_reading: Mapping[str, bool]
    """For each stream whether this worker reads it now. It does so while a client follows it."""
    streams_available: Mapping[str, bool]
    """For each stream whether clients can get its history, as far as is known. The log has the reason if not."""
    feed_lag: Mapping[str, int]
    """For each stream the number of its messages that this worker hasn't read yet, as far as NATS has reported."""
    history_bytes: int
    """Bytes of messages that are kept for clients that return, at most ``history_buffer_bytes``."""
    jetstream_requests: int
    """Requests to JetStream."""
    loop_lag: float
    """The largest delay of the event loop within the last 15 to 30 seconds, in seconds."""
