"""The parts of a server's INFO that the bridge uses. It may be malformed, or contain nonsense."""

import json
from itertools import islice
from typing import Any

from .parser import MalformedLineError
from .server_pool import MAX_DISCOVERED, is_usable

__all__ = ["decode_info", "domain_of", "max_payload_of", "usable_addresses"]

_DEFAULT_MAX_PAYLOAD = 1024 * 1024


def decode_info(document: bytes) -> dict[str, Any]:
    """Return the object of an INFO line.

    Raises:
        MalformedLineError: The document isn't a JSON object.
    """
    try:
        info = json.loads(document)
    except (ValueError, RecursionError):
        info = None
    if not isinstance(info, dict):
        raise MalformedLineError("invalid INFO line")
    return info


def max_payload_of(info: dict[str, Any]) -> int:
    """Return the largest payload that the server accepts; the default of NATS if it names no number above 0."""
    value = info.get("max_payload")
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        return _DEFAULT_MAX_PAYLOAD
    return value


def domain_of(info: dict[str, Any]) -> str:
    """Return the JetStream domain of the server; empty if it names none."""
    value = info.get("domain")
    return value if isinstance(value, str) else ""


def usable_addresses(announced: object) -> list[str]:
    """Return the first `MAX_DISCOVERED` usable addresses of ``connect_urls``."""
    if not isinstance(announced, list):
        return []
    usable = (each for each in announced if isinstance(each, str) and is_usable(each))
    return list(dict.fromkeys(islice(usable, MAX_DISCOVERED)))
