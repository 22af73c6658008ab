"""The payloads of messages that the app publishes."""

from typing import Any

import msgspec

__all__ = ["encode_data"]


def encode_data(data: Any) -> bytes:
    """Return bytes as they are, a string in UTF-8, and anything else as JSON.

    Raises:
        TypeError: The data has a type that msgspec doesn't encode.
        ValueError: A string can't be encoded.
    """
    if isinstance(data, str):
        return data.encode()
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data)
    return msgspec.json.encode(data)
