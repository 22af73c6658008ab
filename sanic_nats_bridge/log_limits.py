"""The logger of the bridge, which limits the lines that others can cause.

Clients, publishers and NATS servers can repeat the cause of a log line, as fast as the network lets them. So each
kind of line, which is each message before its arguments are filled in, has `LINES` lines per `SECONDS`. The others are
counted, and one line with their number follows.
"""

import asyncio
import contextlib
import logging
import re
import sys
import time
from collections.abc import Callable
from typing import Any

__all__ = ["LINES", "SECONDS", "LimitedLogger", "limited_logger"]

LINES = 20
"""Lines of one kind within `SECONDS`."""
SECONDS = 60.0

_MAX_KINDS = 200
_REST = ""
"""The kind of every line beyond `_MAX_KINDS` kinds."""
_CALLER = 3  # frames between a caller and the standard logger
_PLACEHOLDER = re.compile("%[adrs]")


class _Kind:
    """The lines of one kind within the present period."""

    __slots__ = ("began", "level", "lines", "suppressed")

    def __init__(self) -> None:
        self.began = -float("inf")
        self.lines = 0
        self.suppressed = 0
        self.level: int = logging.NOTSET


class LimitedLogger:
    """A logger whose lines are limited by their kind.

    A message must be a literal: beyond a number of kinds, the others share one limit.

    Args:
        logger: The logger that writes the lines.
        clock: Returns monotonic seconds.
    """

    def __init__(self, logger: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self.unlimited = logger
        """The logger itself, for lines that only the operator can cause, once at a start."""
        self._clock = clock
        self._kinds: dict[str, _Kind] = {}

    def debug(self, message: str, *args: object, exc_info: Any = None) -> bool:
        """Log a line at level DEBUG, unless there were too many of its kind; return whether it was."""
        return self._log(logging.DEBUG, message, args, exc_info)

    def info(self, message: str, *args: object, exc_info: Any = None) -> bool:
        """Log a line at level INFO, unless there were too many of its kind; return whether it was."""
        return self._log(logging.INFO, message, args, exc_info)

    def warning(self, message: str, *args: object, exc_info: Any = None) -> bool:
        """Log a line at level WARNING, unless there were too many of its kind; return whether it was."""
        return self._log(logging.WARNING, message, args, exc_info)

    def error(self, message: str, *args: object, exc_info: Any = None) -> bool:
        """Log a line at level ERROR, unless there were too many of its kind; return whether it was."""
        return self._log(logging.ERROR, message, args, exc_info)

    def exception(self, message: str, *args: object) -> bool:
        """Log the current traceback at level ERROR, unless there were too many of its kind; return whether it was."""
        return self._log(logging.ERROR, message, args, sys.exc_info())

    def _log(self, level: int, message: str, args: tuple[object, ...], exc_info: Any) -> bool:
        if not self.unlimited.isEnabledFor(level):
            return False
        name, kind = self._kind(message)
        now = self._clock()
        if now >= kind.began + SECONDS:
            self._report(name)
            kind.began, kind.lines, kind.level = now, 0, level
        if kind.lines < LINES:
            kind.lines += 1
            self.unlimited.log(level, message, *args, exc_info=exc_info, stacklevel=_CALLER)
            return True
        kind.suppressed += 1
        if kind.suppressed == 1:
            # Without a loop, the next line reports them.
            with contextlib.suppress(RuntimeError):
                asyncio.get_running_loop().call_later(kind.began + SECONDS - now, self._report, name)
        return False

    def _kind(self, message: str) -> tuple[str, _Kind]:
        name = message if message in self._kinds or len(self._kinds) < _MAX_KINDS else _REST
        return name, self._kinds.setdefault(name, _Kind())

    def _report(self, name: str) -> None:
        """Log how many lines of a kind were suppressed since the last report, if any."""
        kind = self._kinds.get(name)
        if kind is not None and kind.suppressed:
            count, kind.suppressed = kind.suppressed, 0
            shown = _PLACEHOLDER.sub("…", name) or "(lines of many kinds)"
            message = "Suppressed %d log lines within %d s, like: %s"
            self.unlimited.log(kind.level, message, count, SECONDS, shown)

    def reset(self) -> None:
        """Forget every line, as at the start of the process. For tests."""
        self._kinds.clear()


_logger = LimitedLogger(logging.getLogger("sanic.root.nats_bridge"))


def limited_logger() -> LimitedLogger:
    """Return the bridge's logger.

    It is a child of "sanic.root", so that its records get the handlers and the level of Sanic's log.
    """
    return _logger
