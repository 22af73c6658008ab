"""What the publishers send: each payload says who has sent it, and its number."""

import base64
import json
import re
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final, NamedTuple

__all__ = ["Key", "carried", "digest", "key_of", "payload"]

_SENDER: Final = re.compile(rb"\W*([a-z]+\.\d+)\W+(\d+)\b")


class Key(NamedTuple):
    """Which message it is: one connection of one publisher, and what was counted there."""

    publisher: str
    number: int


def payload(key: Key, filler: bytes = b"") -> bytes:
    """JSON, text, and what is neither, in turn."""
    if key.number % 3 == 0:
        return _json([*key, filler.decode("latin-1")])
    stamp = f"{key.publisher} {key.number} ".encode()
    return stamp + (filler.decode("latin-1").encode() if key.number % 3 == 1 else b"\xff" + filler)


def carried(frame: Mapping[str, Any]) -> bytes | None:
    """The payload that a ``message`` carries; ``None`` if it is not written as the protocol says."""
    data = frame.get("data")
    try:
        if "encoding" not in frame:
            return b"" if data is None else _json(data)
        if frame["encoding"] == "text":
            return str(data).encode()
        return base64.b64decode(str(data), validate=True) if frame["encoding"] == "base64" else None
    except (TypeError, ValueError):
        return None


def key_of(data: bytes) -> Key | None:
    """Which message has this payload."""
    sender = _SENDER.match(data)
    return Key(sender[1].decode(), int(sender[2])) if sender else None


def digest(data: bytes) -> str:
    """By which two payloads are known to be the same."""
    return blake2b(data, digest_size=8).hexdigest()


def _json(document: Any) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
