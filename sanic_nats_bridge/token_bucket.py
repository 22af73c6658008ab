"""The token bucket, which limits a rate of events."""

__all__ = ["TokenBucket"]


class TokenBucket:
    """A bucket that fills with ``rate`` tokens per second up to ``burst``; each event takes one.

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

    @property
    def overdrawn(self) -> bool:
        """True if the debt exceeds its limit."""
        return self._tokens < -self._burst

    def wait(self, now: float) -> float:
        """Return the seconds until a token is available."""
        self._fill(now)
        return max(0.0, (1 - self._tokens) / self._rate)

    def _fill(self, now: float) -> None:
        self._tokens = min(self._burst, self._tokens + (now - self._updated_at) * self._rate)
        self._updated_at = now
