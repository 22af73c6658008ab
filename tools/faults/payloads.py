"""The payloads of the publishers, each of which contains its publisher and its number."""

import base64
import json
import re
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, NamedTuple

__all__ = ["Key", "digest", "frame_payload", "key_of", "payload"]

_KEY = re.compile(rb"\W*([a-z]+\.\d+)\W+(\d+)\b")


class Key(NamedTuple):
    """The identity of a message: one connection of one publisher, and the number of the message on it."""

    publisher: str
    number: int


def payload(key: Key, filler: bytes = b"") -> bytes:
    """Return JSON, text, or bytes that are neither, in turn by the number of the message."""
    if key.number % 3 == 0:
        return _json([*key, filler.decode("latin-1")])
    stamp = f"{key.publisher} {key.number} ".encode()
    return stamp + (filler.decode("latin-1").encode() if key.number % 3 == 1 else b"\xff" + filler)


def frame_payload(frame: Mapping[str, Any]) -> bytes | None:
    """Return the payload of a ``message`` frame, or None if its encoding violates the protocol."""
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
    """Return the key of the message with this payload, or None if no publisher has made it."""
    found = _KEY.match(data)
    return Key(found[1].decode(), int(found[2])) if found else None


def digest(data: bytes) -> str:
    """Return a hash by which payloads are compared."""
    return blake2b(data, digest_size=8).hexdigest()


def _json(document: Any) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
