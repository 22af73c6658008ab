"""The meaning of ids, as it is found from the messages that have them."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from .logs import Log, Received, Stored

__all__ = ["StreamIds"]


class StreamIds:
    """The meaning of ids: the position in each stream.

    The key of a stream is the one whose sequence is that of the stream's messages. A stream has a key for each time
    that it was created.
    """

    def __init__(
        self,
        lives: Mapping[str, Sequence[tuple[int, int]]],
        messages: Mapping[int, tuple[str, Stored]],
        logs: Iterable[Log],
    ) -> None:
        self._lives = lives
        votes: dict[str, Counter[tuple[str, int]]] = defaultdict(Counter)
        for log in logs:
            for entry in log.entries:
                if isinstance(entry, Received) and entry.number in messages:
                    stream, stored = messages[entry.number]
                    for key, seq, time in _parts(entry.id):
                        base = self._base_at(stream, time)
                        if base + seq == stored.seq:
                            votes[key][stream, base] += 1
        self._streams = {key: count.most_common(1)[0][0][0] for key, count in votes.items()}
        self._bases = {
            key: max(base for stream, base in count if stream == self._streams[key]) for key, count in votes.items()
        }

    def _base_at(self, stream: str, time: int) -> int:
        """Return what is added to the sequences of the life at a time."""
        lives = self._lives.get(stream, ())
        return max((base for start, base in lives if start <= time), default=0)

    def knows(self, stream: str) -> bool:
        """Return whether the key of a stream is known."""
        return stream in self._streams.values()

    def seqs(self, position: str) -> dict[str, int]:
        """Return the sequences that an id names, by stream."""
        found = {}
        for key, seq, time in _parts(position):
            if key in self._streams:
                # A stream without messages has no time.
                base = self._base_at(self._streams[key], time) if seq else self._bases[key]
                found[self._streams[key]] = base + seq
        return found


def _parts(position: str) -> list[tuple[str, int, int]]:
    parts = [part.split(".") for part in position.split("~") if part]
    return [(key, int(seq, 36), int(time, 36)) for key, seq, time in parts]
