"""How often something may happen: the token bucket."""

__all__ = ["TokenBucket"]


class TokenBucket:
    """Fills with ``rate`` tokens a second, up to ``burst``; each event takes one.

    It may run into debt, down to ``burst`` below nothing: so it tells who goes on regardless from who was
    a little too fast. Times are those of a monotonic clock, in seconds.
    """

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._at = now

    def take(self, now: float) -> bool:
        """Take a token, into debt if there is none; returns whether there was one."""
        self._fill(now)
        there = self._tokens >= 1
        self._tokens = max(self._tokens - 1, -self._burst - 1)
        return there

    @property
    def overdrawn(self) -> bool:
        """Whether the debt has reached its end."""
        return self._tokens < -self._burst

    def wait(self, now: float) -> float:
        """Seconds until there is a token again."""
        self._fill(now)
        return max(0.0, (1 - self._tokens) / self._rate)

    def _fill(self, now: float) -> None:
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
