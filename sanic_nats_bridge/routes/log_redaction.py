"""Redaction of the queries of the bridge's routes in server logs, because they may hold credentials."""

import copy
import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["LOGGERS", "QueryRedaction"]

LOGGERS = (
    "sanic.access", "sanic.error", "sanic.root", "sanic.root.nats_bridge", "sanic.server", "sanic.websockets",
    "uvicorn.access", "uvicorn.error", "hypercorn.access", "hypercorn.error",
)  # fmt: skip
"""The loggers of Sanic, of the ASGI servers and of the bridge that log URLs, or errors of the app that have one."""

_REDACTED = "[redacted]"
# A space is the only character that Sanic accepts nowhere in a request target.
_TOKEN = re.compile(r"[^ ]+")
_QUERY_START = re.compile(r"[?#]|%(?:25)*(?:3[fF]|23)")
_PARAMETERS_START = re.compile(r";|%(?:25)*3[bB]")
_PARAMETERS = re.compile(r";[^/]*")
_QUOTES = "\"'"
_URL_BOUNDARY = re.compile(r"""[\s"']""")
# A URL may follow punctuation, such as `url=` or `(` in error messages. Or its host alone precedes the path, because
# several proxies have put "a.example, b.example" into X-Forwarded-Host. This is only so at the start of a string: later
# it may be a part of the URL of another route.
_BEFORE_URL = r"""[^\s"'/?]*(?:[(<>\[{=,|]|[^\s"'/?:](?=/))"""
_URL_START = rf"""(?:^(?:{_BEFORE_URL})?|[\s"'])(?:[A-Za-z][A-Za-z0-9+.-]*:(?://[^/\s"']*/+|/(?!/))|/*)"""
_AUTHORITY = re.compile(r"""[A-Za-z][A-Za-z0-9+.-]*://[^/\s"']*""")
_DOT_SEGMENT = re.compile(r"""(?:^|[/\s"'])\.{1,2}(?:/|$)""")
_SLASHES = re.compile(r"(?<!:)//+")
# Escaped spaces and quotes stay, because they don't separate a URL from the text around it.
_ESCAPE = re.compile(r"%((?!2[027])[2-7][0-9A-Fa-f])")
_MAX_ENCODINGS = 4

_STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({})))


class QueryRedaction(logging.Filter):
    """A logging filter that replaces the query of each URL or path of the bridge.

    A path is compared with those of the bridge after percent-decoding, merging slashes, cutting parameters (``;…``) and
    resolving dot segments, because a client or a proxy may spell it in any of these ways. A path below the prefix
    counts even if there is no such route.

    It is a filter of loggers instead of handlers, so it works with all handlers of the app's logging configuration.

    Args:
        prefix: The path below which the bridge's routes are registered.
        paths: The paths of the bridge's routes, which count alone if the prefix is empty.
    """

    def __init__(self, prefix: str, paths: Iterable[str]) -> None:
        super().__init__()
        own = [_spelled(prefix) + r"""(?:[/\s"']|$)"""] if prefix else [_spelled(path) + "/*$" for path in paths]
        self._own_url = re.compile(f"{_URL_START}(?:{'|'.join(own)})")

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
        for name in vars(record).keys() - _STANDARD_FIELDS:  # such as `request` of Sanic's access log
            setattr(record, name, self._redact(getattr(record, name)))
        if record.exc_info and record.exc_info[0] is not None:
            self._redact_traceback(record)
        return True

    def _redact_traceback(self, record: logging.LogRecord) -> None:
        """Replace the exception of a record by its text if that has a query."""
        text = record.exc_text or logging.Formatter().formatException(record.exc_info)  # type: ignore[arg-type]
        redacted = self._redact_text(text)
        if redacted != text:
            record.exc_text, record.exc_info = redacted, None

    def _redact(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._redact_text(value)
        if isinstance(value, BaseException | bytes):
            text = str(value)
            redacted = self._redact_text(text)
            return value if redacted == text else redacted
        return value

    def _redact_text(self, text: str) -> str:
        if _QUERY_START.search(text) is None and _PARAMETERS_START.search(text) is None:
            return text
        return _TOKEN.sub(lambda token: self._redact_token(token[0]), text)

    def _redact_token(self, token: str) -> str:
        """Redact the part of a string without spaces that follows a path of the bridge."""
        begin = 0
        for start in _QUERY_START.finditer(token):
            if self._is_own(token[begin : start.start()], at_start=begin == 0):
                return self._cut(token, begin, start.start(), start.end())
            begin = start.end()
            if _URL_BOUNDARY.search(token, begin) is None:
                return token
        last = token[begin:]
        start_of_parameters = _PARAMETERS_START.search(last)
        if start_of_parameters is not None and self._is_own(last, at_start=begin == 0):
            return self._cut(token, begin, len(token), len(token))
        return token

    def _is_own(self, text: str, *, at_start: bool = True) -> bool:
        """Return whether the string before a query ends with a path of the bridge.

        Args:
            text: The string.
            at_start: Whether a path may begin at its start.
        """
        text = _decoded(text if at_start else f"?{text}").replace("\\", "/")
        text = _PARAMETERS.sub("", text)
        if self._own_url.search(text):
            return True
        if _DOT_SEGMENT.search(text) is None:
            return False
        # A quote may be a part of the path, or precede it. A proxy may merge slashes before it resolves dot segments.
        starts = {text, _URL_BOUNDARY.split(text)[-1]}
        return any(
            self._own_url.search(_without_dots(form)) for start in starts for form in {start, _SLASHES.sub("/", start)}
        )

    def _cut(self, token: str, begin: int, end: int, rest: int) -> str:
        """Replace the end of a token by a mark.

        Args:
            token: The token.
            begin: The index at which the string with the path begins.
            end: The index at which that ends, if it has no parameters.
            rest: The index at which the query begins.
        """
        parameters = _PARAMETERS_START.search(token, begin, end)
        if parameters is not None:
            end, rest = parameters.start(), parameters.end()
        secret = token[rest:]
        quote = secret[-1:] if secret[-1:] in _QUOTES else ""
        return token if secret == quote else f"{token[:end]}?{_REDACTED}{quote}"

    def _redact_fields(self, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        # Hypercorn's access log also has the path as U and the query as q. Its mapping has defaults, so it is copied.
        redacted: Any = copy.copy(fields)
        for name, value in fields.items():
            redacted[name] = self._redact(value)
        if fields.get("q") and self._is_own(str(fields.get("U", ""))):
            redacted["q"] = _REDACTED
        return redacted  # type: ignore[no-any-return]


def _spelled(path: str) -> str:
    """Return a pattern for a path without its first slash, with any number of slashes in place of one."""
    return "/+".join(map(re.escape, path.strip("/").split("/")))


def _decoded(text: str) -> str:
    """Return the text without percent-encoding, even if it was encoded more than once."""
    for _ in range(_MAX_ENCODINGS):
        if "%" not in text:
            break
        text = _ESCAPE.sub(lambda escape: chr(int(escape[1], 16)), text)
    return text


def _without_dots(text: str) -> str:
    """Resolve the dot segments of a path (RFC 3986, section 5.2.4). They don't lead above its root."""
    path_start = max((authority.end() for authority in _AUTHORITY.finditer(text)), default=0)
    path = text[path_start:]
    root = 1 if path.startswith("/") else 0
    segments: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            del segments[max(root, len(segments) - 1) :]
        elif segment != ".":
            segments.append(segment)
    return text[:path_start] + "/".join(segments)
