"""Log lines whose content a NATS server decides."""

import asyncio

__all__ = ["LineFilter", "printable"]

_SECONDS = 60.0
_MAX_REMEMBERED = 100
_MAX_SHOWN = 500


class LineFilter:
    """A filter for log lines of one kind, of which it lets each pass once per minute.

    The logger limits the number of different lines.
    """

    def __init__(self) -> None:
        self._passed: dict[str, float] = {}
        """The time of each line of the last minute, the oldest first, up to a number."""

    def allows(self, line: str) -> bool:
        """Return whether a line may be logged now.

        Args:
            line: The line, or the part that distinguishes it from others of its kind.
        """
        now = asyncio.get_running_loop().time()
        while self._passed and now >= next(iter(self._passed.values())) + _SECONDS:
            del self._passed[next(iter(self._passed))]
        if line in self._passed:
            return False
        if len(self._passed) < _MAX_REMEMBERED:
            self._passed[line] = now
        return True


def printable(text: str) -> str:
    """Return the beginning of a string of the server, with a mark in place of each character that isn't printable."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text[:_MAX_SHOWN])
