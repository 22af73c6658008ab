"""Keeps the queries of the bridge's own routes out of what servers log; they may hold what only the app may know."""

import copy
import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

__all__ = ["LOGGERS", "QueryRedaction"]

LOGGERS: Final = (
    "sanic.access", "sanic.error", "sanic.root", "sanic.server", "sanic.websockets",
    "uvicorn.access", "uvicorn.error", "hypercorn.access", "hypercorn.error",
)  # fmt: skip
"""The loggers to which Sanic and the ASGI servers hand URLs."""

_REDACTED: Final = "[redacted]"
_START: Final = r"""(?:^|[\s"'])(?:[A-Za-z]+://[^/?\s"']*)?"""


class QueryRedaction(logging.Filter):
    """Leaves the query out wherever a record holds a URL, or a path, of the bridge.

    A filter of loggers, not of handlers: it holds whatever handlers the app's logging configuration has.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        super().__init__()
        self._paths = tuple(paths)
        routes = "|".join(map(re.escape, self._paths))
        # To the next blank: that alone cannot stand in the target of a request (RFC 9112, section 3).
        self._query = re.compile(rf"""({_START}(?:{routes})/*)\?[^ ]*?(["']?)(?=\Z| )""")

    def install(self) -> None:
        """Begin to filter, in this process."""
        for name in LOGGERS:
            logging.getLogger(name).addFilter(self)

    def remove(self) -> None:
        """Filter no more."""
        for name in LOGGERS:
            logging.getLogger(name).removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass, without the queries."""
        record.msg = self._redacted(record.msg)
        if isinstance(record.args, tuple):
            # Each by itself: uvicorn's formatter takes them apart.
            record.args = tuple(map(self._redacted, record.args))
        elif isinstance(record.args, Mapping):
            record.args = self._redacted_fields(record.args)
        if hasattr(record, "request"):  # Sanic's access log
            record.request = self._redacted(record.request)
        return True

    def _redacted(self, value: Any) -> Any:
        return self._query.sub(rf"\1?{_REDACTED}\2", value) if isinstance(value, str) else value

    def _redacted_fields(self, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        # Hypercorn's access log gives the path as U and the query as q too; what it gives has defaults of its own.
        changed: Any = copy.copy(fields)
        for name, value in fields.items():
            changed[name] = self._redacted(value)
        if fields.get("q") and str(fields.get("U", "")).rstrip("/") in self._paths:
            changed["q"] = _REDACTED
        return changed  # type: ignore[no-any-return]
