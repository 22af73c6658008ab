"""Messages that NATS delivers outside the pattern of their subscription."""

import asyncio
import math

from ..log_limits import limited_logger
from ..metrics.counters import Counters

__all__ = ["SubjectMismatches"]

logger = limited_logger()

_LOG_SECONDS = 60.0
_MAX_SHOWN = 100


class SubjectMismatches:
    """The messages that were dropped because their subject is outside the pattern of their subscription.

    A JetStream push consumer, for one, delivers to its ``deliver_subject`` but keeps the subject of the stored message.
    No permission was checked for that subject, so no client may see it.
    """

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._unlogged = 0
        self._next_log = -math.inf

    def add(self, pattern: str, subject: bytes) -> None:
        """Count a message, and log it unless another one was logged within the last minute."""
        self._counters.lost["subject_mismatch"] += 1
        self._unlogged += 1
        now = asyncio.get_running_loop().time()
        if now >= self._next_log:
            logger.warning(
                "Dropped messages from NATS: %d, the last one with subject %a, which is outside the subscribed pattern "
                "%a. A JetStream push consumer keeps the original subject; republish to a subject of the pattern "
                "instead. Logged once per minute at most.",
                self._unlogged,
                subject[:_MAX_SHOWN].decode("utf-8", "backslashreplace"),
                pattern,
            )
            self._unlogged = 0
            self._next_log = now + _LOG_SECONDS
