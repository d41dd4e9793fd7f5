"""Bytes held in memory, against a limit.

The budget covers everything that grows with traffic: records being processed, waiting calls, open and closed batches,
request bodies with their compressed copies, and dead letters that aren't acknowledged. When it is spent, reading
stops; what is held is never thrown away for it.
"""

from __future__ import annotations


def compact(data: bytes) -> bytes:
    """Copy what is kept, into as much memory as its length.

    `orjson.dumps` gives bytes in a buffer that it grows by doubling, with room for every character to be escaped, and
    never cuts: 4 KB for a call of 400 bytes, 64 KB for one of 28,000.
    """
    return b"".join((data, b""))


class Budget:
    """How many bytes the process holds.

    Args:
        limit: bytes; from there on the budget counts as spent.
    """

    __slots__ = ("limit", "peak", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.peak = 0

    @property
    def spent(self) -> bool:
        """Whether reading has to stop."""
        return self.used >= self.limit

    def share(self) -> Share:
        """Open a share, for one generation."""
        return Share(self)


class Share:
    """What one generation holds of the budget; given back as a whole when the generation ends."""

    __slots__ = ("_budget", "_ended", "used")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._ended = False
        self.used = 0

    @property
    def spent(self) -> bool:
        """Whether reading has to stop."""
        return self._budget.spent

    def take(self, size: int) -> None:
        """Hold `size` bytes more. It never refuses: the budget may be passed by what one read brought."""
        if self._ended:
            return
        self.used += size
        budget = self._budget
        budget.used += size
        if budget.used > budget.peak:
            budget.peak = budget.used

    def give(self, size: int) -> None:
        """Hold `size` bytes less. Once the share has ended this changes nothing.

        Raises:
            RuntimeError: more is given than was taken.
        """
        if self._ended:
            return
        if size > self.used:
            raise RuntimeError(f"{size} bytes given back to the memory budget, {self.used} taken")
        self.used -= size
        self._budget.used -= size

    def grow(self, size: int) -> None:
        """Hold `size` bytes more, or less if it is negative."""
        if size >= 0:
            self.take(size)
        else:
            self.give(-size)

    def end(self) -> None:
        """Give back all that is held, once."""
        if not self._ended:
            self._budget.used -= self.used
            self.used = 0
            self._ended = True
