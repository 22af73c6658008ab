"""The counters of one worker."""

from collections import Counter
from typing import get_args

from ..errors import CloseCode
from ..protocol.messages import GapReason, ReplayGapReason

__all__ = ["OTHER_CODES", "Counters"]

OTHER_CODES = "other"
"""The label for unusual close codes, because a client may send any of thousands."""

_USUAL_CODES = frozenset({*map(int, CloseCode), 1000, 1002, 1005, 1006, 1007, 1008})  # RFC 6455, section 7.4.1


class Counters:
    """Counters of one worker. The message path adds to them once per write, or per turn of the event loop."""

    __slots__ = (
        "closes", "control_dropped", "deliveries", "ended_bytes", "gaps", "lost", "messages", "nats_connections",
        "refused", "replay_results", "replayed", "replays", "replays_running", "replays_waiting", "slow_consumers",
        "status_messages",
    )  # fmt: skip

    def __init__(self) -> None:
        self.messages = 0
        """Messages from NATS that have a subscriber."""
        self.deliveries = 0
        """Messages written to clients, replayed ones included: a message to ten clients counts ten times."""
        self.ended_bytes = 0
        """Bytes written to sessions that have ended."""
        self.lost: Counter[str] = Counter(slow_consumer=0, subject_mismatch=0, unreadable_subject=0)
        """Messages that were skipped for one client, or for all, by reason."""
        self.gaps: Counter[str] = Counter(dict.fromkeys(get_args(GapReason), 0))
        """Subscriptions for which a gap was sent, by reason."""
        self.slow_consumers = 0
        """Times that a client became a slow consumer."""
        self.status_messages = 0
        """Messages with which NATS itself reports a state to a subscriber."""
        self.refused: Counter[str] = Counter()
        """Commands that were rejected, and requests that would have opened a session, by error code."""
        self.closes: Counter[str] = Counter()
        """Sessions that have ended, by close code."""
        self.control_dropped: Counter[str] = Counter(signature=0, stale=0, replay=0, busy=0)
        """Messages between the workers that were dropped, by reason."""
        self.nats_connections = 0
        """Connections established to NATS."""

        self.replays: Counter[str] = Counter(after=0, new=0, all=0, last=0, last_per_subject=0, slow_consumer=0)
        """Replays that have begun, by their start."""
        self.replay_results: Counter[str] = Counter(dict.fromkeys(("recovered", *get_args(ReplayGapReason)), 0))
        """Replays that have reached the present: recovered, or else each reason for which messages are missing."""
        self.replayed = 0
        """Messages written to clients by replays."""
        self.replays_running = 0
        """Replays that have begun, and neither reached the present nor ended with their subscriptions."""
        self.replays_waiting = 0
        """Those of them that wait for a turn to read from NATS."""

    def count_close(self, code: int) -> None:
        """Count the end of a session."""
        self.closes[str(int(code)) if code in _USUAL_CODES else OTHER_CODES] += 1
