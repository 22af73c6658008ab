"""The bytes of old messages that many clients get, because they were disconnected at the same time."""

from collections import OrderedDict
from collections.abc import Callable, Hashable

__all__ = ["EncodedSlices"]

_OVERHEAD_BYTES = 320
"""The approximate memory of a slice beside its bytes."""


class EncodedSlices:
    """Encoded messages that follow each other, by what they depend on. Those used least recently are dropped first.

    Args:
        max_bytes: The largest size of all of them together.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._slices: OrderedDict[Hashable, bytes] = OrderedDict()
        self.bytes = 0
        """The size of all slices, with their keys."""

    def get(self, key: Hashable, encode: Callable[[], bytes]) -> bytes:
        """Return the slice of a key. It is encoded if it isn't at hand."""
        data = self._slices.get(key)
        if data is not None:
            self._slices.move_to_end(key)
            return data
        data = encode()
        size = len(data) + _OVERHEAD_BYTES
        if size <= self._max_bytes:
            self._slices[key] = data
            self.bytes += size
            while self.bytes > self._max_bytes:
                _, oldest = self._slices.popitem(last=False)
                self.bytes -= len(oldest) + _OVERHEAD_BYTES
        return data

    def clear(self) -> None:
        """Drop all slices, because a stream has begun again and uses its sequences a second time."""
        self._slices.clear()
        self.bytes = 0
