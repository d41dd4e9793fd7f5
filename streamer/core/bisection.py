"""Which of a refused batch's calls Segment does not like.

Segment answers 400 for a whole batch. Either one of its calls is at fault, or the destination is. The batch is halved,
depth first and in order, until the refused calls stand alone. Such a call is only a suspect until Segment accepts
something after it, or the whole batch is through and Segment accepted something of it: then it is at fault. A suspect
that is sent once more and accepted clears all of them: the destination refused what it takes, so each is sent again.

After 2·log2(n) + 2 refusals in a row the bisection stops undecided and steps aside. The lane's next batch is the
witness: accepted, the suspects are at fault and the bisection goes on; refused too, the destination is at fault, and
nothing of what was undecided is dropped.
"""

from __future__ import annotations

from bisect import insort
from math import ceil, log2
from typing import TypeAlias

Piece: TypeAlias = tuple[int, int]
"""The first call of a part of a batch, and the call behind its last one."""


class Pieces:
    """What of a batch is still to be sent, in parts.

    One part is under way at a time. `back`, `accepted` or `refused` ends it; none of them if its one call was found at
    fault in another way.

    Args:
        calls: how many calls the batch has.

    Attributes:
        bisecting: whether Segment refused a part of it.
        undecided: whether the bisection has stepped aside to wait for a witness.
    """

    __slots__ = (
        "_accepted", "_limit", "_open", "_refusals", "_suspects", "_took_suspect", "bisecting", "undecided",
    )  # fmt: skip

    def __init__(self, calls: int) -> None:
        self._open: list[Piece] = [(0, calls)]  # the first one last
        self._limit = 2 * ceil(log2(calls)) + 2
        self._suspects: list[int] = []  # the first one first
        self._took_suspect = False  # whether the part under way is one
        self._accepted = False
        self._refusals = 0
        self.bisecting = False
        self.undecided = False

    @property
    def done(self) -> bool:
        """Whether nothing is left to send or to decide. A part that was taken isn't seen here until it is ended."""
        return not self._open and not self._suspects

    def take(self) -> Piece:
        """Take the part that is to be sent next: the first one, or the first suspect when nothing else is left."""
        self._took_suspect = not self._open
        if self._took_suspect:
            place = self._suspects.pop(0)
            return (place, place + 1)
        return self._open.pop()

    def back(self, piece: Piece) -> None:
        """Give a part back, or a part of it: nothing was decided, and it takes its place again."""
        if self._took_suspect:
            insort(self._suspects, piece[0])
        else:
            insort(self._open, piece, key=lambda part: -part[0])

    def accepted(self) -> tuple[int, ...]:
        """Note that Segment accepted the part that was taken.

        Returns:
            The places of the calls that are found at fault by that.
        """
        self._accepted = True
        if self._took_suspect:
            self._open = [(place, place + 1) for place in reversed(self._suspects)]
            self._suspects.clear()
        return self.testified()

    def testified(self) -> tuple[int, ...]:
        """Note that Segment accepted something else of the same lane, sent after what it refused here.

        Returns:
            The places of the calls that are found at fault by that.
        """
        self._refusals = 0
        self.undecided = False
        return self._convict()

    def refused(self, piece: Piece) -> tuple[int, ...]:
        """Note that Segment refused the part that was taken: halve it, or suspect the one call in it.

        Returns:
            The places of the calls that are found at fault by that.
        """
        start, stop = piece
        self.bisecting = True
        self._refusals += 1
        if stop - start > 1:
            middle = (start + stop) // 2
            self._open += [(middle, stop), (start, middle)]
        else:
            insort(self._suspects, start)
        if self._refusals >= self._limit or (not self._open and not self._accepted):
            self.undecided = True
        elif not self._open:
            return self._convict()
        return ()

    def reset(self) -> None:
        """Drop every suspicion: the destination is at fault. All that isn't accepted is to be sent again, in order."""
        left = sorted([*self._open, *((place, place + 1) for place in self._suspects)])
        self._suspects.clear()
        self._open.clear()
        for start, stop in reversed(left):
            if self._open and self._open[-1][0] == stop:
                stop = self._open.pop()[1]  # noqa: PLW2901 - neighbours become one part again
            self._open.append((start, stop))
        self._refusals = 0
        self._took_suspect = self.bisecting = self.undecided = False

    def _convict(self) -> tuple[int, ...]:
        found = tuple(self._suspects)
        self._suspects.clear()
        return found
