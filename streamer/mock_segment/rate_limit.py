"""Segment's ceiling on requests, for each write key."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class RateLimit:
    """A token bucket for each write key, holding one second's worth of requests."""

    def __init__(
        self, requests_per_second: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Make the buckets full.

        Args:
            requests_per_second: how many requests a write key may make in a second.
            clock: gives monotonic seconds.

        Raises:
            ValueError: the rate isn't above zero.
        """
        if not requests_per_second > 0:
            raise ValueError(
                f"requests per second must be above 0, and {requests_per_second} isn't"
            )
        self._rate = requests_per_second
        self._capacity = max(1.0, requests_per_second)
        self._clock = clock
        self._buckets: dict[str | None, tuple[float, float]] = {}

    def wait_seconds(self, key_digest: str | None) -> float:
        """Take a token.

        Args:
            key_digest: whose bucket; None for requests without a usable write key.

        Returns:
            0 if there was a token, else the seconds until there is one.
        """
        now = self._clock()
        tokens, since = self._buckets.get(key_digest, (self._capacity, now))
        tokens = min(self._capacity, tokens + (now - since) * self._rate)
        if tokens >= 1:
            self._buckets[key_digest] = (tokens - 1, now)
            return 0.0
        self._buckets[key_digest] = (tokens, now)
        return (1 - tokens) / self._rate
