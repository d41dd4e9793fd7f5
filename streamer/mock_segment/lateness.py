"""How late calls come in: a histogram whose size has a bound, and whose percentiles are a hundredth fine."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

_FINEST_SECONDS = 0.001
_GROWTH = 1.01
_LOG_GROWTH = math.log(_GROWTH)


class Lateness:
    """Counts latenesses in buckets of which each ends a hundredth higher than the one before, from 1 ms on.

    Sixty years have 2,800 buckets: it stays small however many calls come in and however late they are.

    Args:
        counts: how many fell into each bucket, by its number.
    """

    __slots__ = ("_counts",)

    def __init__(self, counts: Mapping[int, int] | None = None) -> None:
        self._counts = Counter(counts)

    def add(self, seconds: float) -> None:
        """Count one; what comes from the future counts as in time."""
        ratio = seconds / _FINEST_SECONDS
        self._counts[math.ceil(math.log(ratio) / _LOG_GROWTH) if ratio > 1 else 0] += 1

    @property
    def total(self) -> int:
        """How many were counted."""
        return self._counts.total()

    def percentile(self, percent: float) -> float | None:
        """Give the lateness that so many percent don't exceed.

        Args:
            percent: above 0, at most 100.

        Returns:
            Seconds: the upper end of the bucket in which it lies, so at most a hundredth too much. None of nothing.
        """
        wanted = math.ceil(self.total * percent / 100)
        seen = 0
        for number in sorted(self._counts):
            seen += self._counts[number]
            if seen >= wanted:
                return round(_FINEST_SECONDS * _GROWTH**number, 6)
        return None

    def since(self, earlier: Lateness) -> Lateness:
        """Give what came in after an earlier reading of the same histogram."""
        return Lateness(self._counts - earlier._counts)

    def as_json(self) -> dict[str, Any]:
        """Give the usual percentiles in seconds, and the buckets, of which `from_json` makes the same again."""
        return {
            "total": self.total,
            "p50": self.percentile(50),
            "p95": self.percentile(95),
            "p99": self.percentile(99),
            "buckets": {str(number): count for number, count in sorted(self._counts.items())},
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Read what `as_json` gave."""
        return cls({int(number): count for number, count in document["buckets"].items()})
