"""The workers of the app that have announced themselves to this worker.

Clients can make up session ids, and each id names a worker. A question over NATS for each of them would be a load for
NATS and all workers. If a client of the NATS account subscribes to everything, NATS doesn't even report that no
worker has the subject. So workers announce themselves, and NATS is asked about a worker that is known.

A worker that isn't known may exist all the same: it has just started, or a link between NATS servers has just been
repaired. So a few questions per second are asked for unknown workers too, and any number until the others
have had the time to announce themselves.
"""

from collections import OrderedDict

from ..token_bucket import TokenBucket

__all__ = ["KnownWorkers"]

_FORGET_SECONDS = 600.0
"""Time for which a silent worker stays known. It may be behind a link between NATS servers that will be repaired."""
_MAX_KNOWN = 10_000
_MAX_ENDED = 10_000
_COMPLETE_SECONDS = 2.0
_UNKNOWN_RATE = 20.0
_UNKNOWN_BURST = 20


class KnownWorkers:
    """The ids of the other workers. Times are those of a monotonic clock, in seconds."""

    def __init__(self) -> None:
        self._heard: OrderedDict[str, float] = OrderedDict()
        """The times of the last announcements of living workers, in this order."""
        self._ended: OrderedDict[str, None] = OrderedDict()
        """Workers that have announced their end. Their ids are never used again."""
        self._complete_at = 0.0
        self._unknown = TokenBucket(_UNKNOWN_RATE, _UNKNOWN_BURST, 0)

    def connected(self, now: float) -> None:
        """Note that the others may have been missed until now, and announce themselves."""
        self._complete_at = now + _COMPLETE_SECONDS

    def heard(self, worker: str, now: float) -> None:
        """Note that a worker has announced itself."""
        if worker in self._ended:
            return
        self._heard[worker] = now
        self._heard.move_to_end(worker)
        if len(self._heard) > _MAX_KNOWN:
            # Another program announces workers that don't exist, and has displaced one that may.
            self._complete_at = now + _FORGET_SECONDS
            self._heard.popitem(last=False)
        while next(iter(self._heard.values())) < now - _FORGET_SECONDS:
            self._heard.popitem(last=False)

    def ended(self, worker: str) -> None:
        """Note that a worker has announced its end."""
        self._heard.pop(worker, None)
        self._ended[worker] = None
        if len(self._ended) > _MAX_ENDED:
            self._ended.popitem(last=False)

    def may_exist(self, worker: str, now: float) -> bool:
        """Return whether NATS should be asked about a worker. A call may use up a question for unknown workers."""
        if worker in self._ended:
            return False
        if worker in self._heard or now < self._complete_at:
            return True
        return not self._unknown.wait(now) and self._unknown.take(now)
