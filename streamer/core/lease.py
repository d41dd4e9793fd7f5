"""Until when a member of a consumer group can be certain that its partitions are its own."""

from __future__ import annotations

_NEVER = float("-inf")


class Lease:
    """What the answers of the group's coordinator promise, counted from when they were asked for.

    The coordinator counts from when it was asked, or later. So this ends before a partition can go to another member:
    when the session is over, or when a rebalance that began right after the last answer has gone on without this one.

    Args:
        session_seconds: without a sign of life for so long, a member is given up.
        rebalance_seconds: for so long a rebalance waits for a member.

    Attributes:
        until: when it ends, in seconds of whoever's clock gives the times; minus infinity without one.
    """

    def __init__(self, session_seconds: float, rebalance_seconds: float) -> None:
        self.until = _NEVER
        self._session = session_seconds
        self._rebalance = rebalance_seconds
        self._confirmed = _NEVER

    def confirm(self, sent: float) -> None:
        """The coordinator said that the member has its partitions.

        Args:
            sent: when it was asked.
        """
        self._confirmed = sent
        self.until = sent + min(self._session, self._rebalance)

    def rebalancing(self, sent: float) -> None:
        """The coordinator said that the member lives, and that the group shares its partitions out anew.

        Args:
            sent: when it was asked.
        """
        self.until = min(sent + self._session, self._confirmed + self._rebalance)

    def lose(self) -> None:
        """The member left, or the coordinator doesn't know it any more."""
        self.until = self._confirmed = _NEVER
