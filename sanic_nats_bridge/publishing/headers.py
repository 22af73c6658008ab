"""The headers of NATS messages that were received (ADR-4)."""

from collections.abc import Mapping

__all__ = ["header_values"]

_MAX_LINES = 256


def header_values(block: bytes) -> Mapping[str, list[str]]:
    """Return the values of each header of a block. It never raises, and reads 256 lines at most."""
    values: dict[str, list[str]] = {}
    for line in block.split(b"\r\n", _MAX_LINES)[1:_MAX_LINES]:
        name, colon, value = line.partition(b":")
        if colon:
            values.setdefault(name.decode("utf-8", "replace"), []).append(value.strip().decode("utf-8", "replace"))
    return values
