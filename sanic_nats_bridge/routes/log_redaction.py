"""Redaction of the queries of the bridge's routes in server logs, because they may hold credentials."""

import copy
import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["LOGGERS", "QueryRedaction"]

LOGGERS = (
    "sanic.access", "sanic.error", "sanic.root", "sanic.server", "sanic.websockets",
    "uvicorn.access", "uvicorn.error", "hypercorn.access", "hypercorn.error",
)  # fmt: skip
"""The loggers of Sanic and of the ASGI servers that log URLs."""

_REDACTED = "[redacted]"
_URL_START = r"""(?:^|[\s"'])(?:[A-Za-z]+://[^/?\s"']*)?"""


class QueryRedaction(logging.Filter):
    """A logging filter that replaces the query of each URL or path of the bridge.

    It is a filter of loggers instead of handlers, so it works with all handlers of the app's logging configuration.

    Args:
        paths: The paths of the bridge's routes.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        super().__init__()
        self._paths = tuple(paths)
        routes = "|".join(map(re.escape, self._paths))
        # Up to the next space, the only character that a request target cannot contain (RFC 9112, section 3).
        self._query = re.compile(rf"""({_URL_START}(?:{routes})/*)\?[^ ]*?(["']?)(?=\Z| )""")

    def install(self) -> None:
        """Add the filter to the loggers of this process."""
        for name in LOGGERS:
            logging.getLogger(name).addFilter(self)

    def remove(self) -> None:
        """Remove the filter from the loggers."""
        for name in LOGGERS:
            logging.getLogger(name).removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Redact the queries in a record, and let it pass."""
        record.msg = self._redact(record.msg)
        if isinstance(record.args, tuple):
            # Each argument separately, because uvicorn's formatter unpacks them.
            record.args = tuple(map(self._redact, record.args))
        elif isinstance(record.args, Mapping):
            record.args = self._redact_fields(record.args)
        if hasattr(record, "request"):  # Sanic's access log
            record.request = self._redact(record.request)
        return True

    def _redact(self, value: Any) -> Any:
        return self._query.sub(rf"\1?{_REDACTED}\2", value) if isinstance(value, str) else value

    def _redact_fields(self, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        # Hypercorn's access log also has the path as U and the query as q. Its mapping has defaults, so it is copied.
        redacted: Any = copy.copy(fields)
        for name, value in fields.items():
            redacted[name] = self._redact(value)
        if fields.get("q") and str(fields.get("U", "")).rstrip("/") in self._paths:
            redacted["q"] = _REDACTED
        return redacted  # type: ignore[no-any-return]
