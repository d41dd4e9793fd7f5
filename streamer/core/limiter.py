"""How fast requests may follow one another."""

from __future__ import annotations


class RateLimit:
    """A token bucket of one second's tenth: at most `per_second` requests on average, few at once.

    Args:
        per_second: requests.
    """

    __slots__ = ("_burst", "_full_at", "_interval")

    def __init__(self, per_second: float) -> None:
        self._interval = 1.0 / per_second
        self._burst = max(1.0, per_second / 10) * self._interval
        self._full_at = float("-inf")

    def ready_at(self, now: float) -> float:
        """Say when the next request may be made: `now`, or later. In seconds of the caller's clock."""
        return max(now, self._full_at - self._burst + self._interval)

    def take(self, now: float) -> None:
        """Note a request."""
        self._full_at = max(self._full_at, now) + self._interval
