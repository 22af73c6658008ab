"""Limits for log lines whose content a NATS server decides."""

import asyncio

from ..log_limits import limited_logger

__all__ = ["LogLimit", "printable"]

logger = limited_logger()

_SECONDS = 60.0
_MAX_LINES = 20
_MAX_SHOWN = 500


class LogLimit:
    """A limit for the log lines of one kind: each line once per minute, and 20 different lines."""

    def __init__(self) -> None:
        self._logged: dict[str, float] = {}
        """The time of each line of the last minute, the oldest first."""
        self._suppressed = 0

    def allows(self, line: str) -> bool:
        """Return whether a line may be logged now.

        Args:
            line: The line, or the part that distinguishes it from others of its kind. The number of different lines
                that were suppressed is logged before the next one.
        """
        now = asyncio.get_running_loop().time()
        while self._logged and now >= next(iter(self._logged.values())) + _SECONDS:
            del self._logged[next(iter(self._logged))]
        if line in self._logged:
            return False
        if len(self._logged) >= _MAX_LINES:
            self._suppressed += 1
            return False
        self._logged[line] = now
        if self._suppressed:
            logger.warning("%d log lines like the next one were suppressed", self._suppressed)
            self._suppressed = 0
        return True


def printable(text: str) -> str:
    """Return the beginning of a string of the server, with a mark in place of each character that isn't printable."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text[:_MAX_SHOWN])
