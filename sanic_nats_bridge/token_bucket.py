"""The token bucket, which limits a rate of events."""

from collections import OrderedDict
from collections.abc import Callable

__all__ = ["ClientBuckets", "SpacedBucket", "TokenBucket"]

_ROUNDING = 1e-6
"""More than the error of a sum of times, so that an event passes after the time that `TokenBucket.wait` has given."""
_MAX_CLIENTS = 10_000
_FORGOTTEN_PER_EVENT = 2


class TokenBucket:
    """A bucket that fills with ``rate`` tokens per second up to ``burst``; each event takes one or more.

    The bucket may go into debt, down to ``burst`` below zero. This distinguishes a client that ignores rejections
    from one that was slightly too fast. Times are those of a monotonic clock, in seconds.
    """

    __slots__ = ("_burst", "_rate", "_tokens", "_updated_at")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._updated_at = now

    def take(self, now: float) -> bool:
        """Take a token, into debt if there is none; return whether there was one."""
        self._fill(now)
        available = self._tokens >= 1
        self._tokens = max(self._tokens - 1, -self._burst - 1)
        return available

    def spend(self, now: float) -> bool:
        """Take a token, but never into debt; return whether there was one."""
        self._fill(now)
        available = self._tokens >= 1 - _ROUNDING
        if available:
            self._tokens -= 1
        return available

    def admit(self, now: float) -> float:
        """Take a token; return 0, or without one the seconds until there is one."""
        return 0.0 if self.spend(now) else self.wait(now)

    def owe(self, now: float, tokens: float) -> None:
        """Take tokens, into debt if there aren't enough, but no further than half of ``burst``."""
        self._fill(now)
        self._tokens = max(self._tokens - tokens, min(self._tokens, -self._burst / 2))

    def refund(self) -> None:
        """Give a token back that was taken."""
        self._tokens = min(self._burst, self._tokens + 1)

    def take_more(self, now: float, tokens: float) -> bool:
        """Take more tokens for an event that costs several, or none if there aren't enough; return whether there were.

        An event never costs more than ``burst``.

        Args:
            now: The time.
            tokens: The cost of the event, of which `take` has taken one.
        """
        self._fill(now)
        more = min(tokens, self._burst) - 1
        available = self._tokens >= more - _ROUNDING
        if available:
            self._tokens -= more
        return available

    @property
    def overdrawn(self) -> bool:
        """True if the debt exceeds its limit."""
        return self._tokens < -self._burst

    def wait(self, now: float, tokens: float = 1) -> float:
        """Return the seconds until as many tokens are available, but at most ``burst``."""
        self._fill(now)
        return max(0.0, (min(tokens, self._burst) - self._tokens) / self._rate)

    def _fill(self, now: float) -> None:
        self._tokens = min(self._burst, self._tokens + (now - self._updated_at) * self._rate)
        self._updated_at = now


class SpacedBucket(TokenBucket):
    """A bucket that gives each rejected event a time of its own, at which it passes if it is repeated then.

    A client may have many events that it repeats. If all of them were repeated at the same time, all but one would be
    rejected again; and if rejected events took tokens, none might ever pass.

    Args:
        rate: The tokens per second, more than zero.
        burst: The most tokens.
        now: The time.
        places: The times of their own that are given at most. Further rejected events get the last one.
    """

    __slots__ = ("_next", "_places")

    def __init__(self, rate: float, burst: float, now: float, places: float) -> None:
        super().__init__(rate, burst, now)
        self._next = now
        self._places = places

    def admit(self, now: float) -> float:
        """Take a token; return 0, or without one the seconds after which the event may be repeated."""
        if self.spend(now):
            return 0.0
        last = now + self._places / self._rate
        self._next = max(min(self._next + 1 / self._rate, last), now + self.wait(now))
        return self._next - now

    def is_overrun(self, now: float) -> bool:
        """Return whether no times are left, because the client repeats events before theirs."""
        return self._next - now >= (self._places - _ROUNDING) / self._rate


class ClientBuckets:
    """A bucket for each client.

    A client is forgotten once its bucket must be full again. Beyond 10,000 clients, the one that was silent for the
    longest time is forgotten.

    Args:
        rate: The events per second of one client, more than zero.
        burst: The events of one client at once.
        create: Creates the bucket of a client, of the rate, the burst and the time.
    """

    def __init__(
        self, rate: float, burst: float, create: Callable[[float, float, float], TokenBucket] = TokenBucket
    ) -> None:
        self._rate = rate
        self._burst = burst
        self._create = create
        # A plain dict takes long to find its first key if many before it were removed.
        self._buckets: OrderedDict[str, tuple[TokenBucket, float]] = OrderedDict()
        """The bucket of each client, and the time of its last event, by which they are sorted."""

    def __len__(self) -> int:
        return len(self._buckets)

    def spend(self, client: str, now: float) -> float:
        """Take a token of a client; return 0, or without one the seconds until there is one."""
        self._forget_idle(now)
        bucket, _ = self._buckets.pop(client, (None, now))
        if bucket is None:
            bucket = self._create(self._rate, self._burst, now)
            if len(self._buckets) >= _MAX_CLIENTS:
                self._buckets.popitem(last=False)
        self._buckets[client] = bucket, now
        return bucket.admit(now)

    def refund(self, client: str) -> None:
        """Give a token back that was taken."""
        if (counted := self._buckets.get(client)) is not None:
            counted[0].refund()

    def _forget_idle(self, now: float) -> None:
        full_after = self._burst / self._rate
        for _ in range(min(_FORGOTTEN_PER_EVENT, len(self._buckets))):
            client, (_, last) = next(iter(self._buckets.items()))
            if now - last < full_after:
                return
            del self._buckets[client]
