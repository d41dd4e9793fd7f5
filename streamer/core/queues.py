"""Who waits, for what and since when.

A thousand lanes must not be gone through to find the one whose turn it is. Each has one place: in a queue, or, if it
waits for nothing but a time, among the timers. A place that is left stays in its heap until it comes to the front, or
until there are too many of them.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator

NEVER = float("inf")
_SPARE = 100  # so many places that were left may stand in a heap, beside one for each that waits

_Kind = TypeVar("_Kind", bound="Hashable")
_Who = TypeVar("_Who", bound="Hashable")


class Waiting(NamedTuple, Generic[_Who]):
    """One that waits; of two the lesser one came first.

    Attributes:
        since: since when, in seconds; among the timers until when.
        number: tells those apart that wait for as long.
        who: the one.
    """

    since: float
    number: int
    who: _Who


class Queues(Generic[_Kind, _Who]):
    """Queues by kind, and timers.

    Args:
        kinds: of the queues.
    """

    def __init__(self, kinds: Iterable[_Kind]) -> None:
        self._heaps: dict[_Kind | None, list[Waiting[_Who]]] = {kind: [] for kind in kinds}
        self._heaps[None] = []  # the timers
        self._places: dict[_Who, tuple[_Kind | None, float]] = {}
        self._numbers = count()

    def __len__(self) -> int:
        """How many places there are, those that were left and still stand in a heap included."""
        return sum(map(len, self._heaps.values()))

    def put(self, who: _Who, kind: _Kind | None, since: float) -> None:
        """Give somebody a place; another one that it has is left.

        Args:
            who: the one.
            kind: of the queue; None for the timers.
            since: since when it waits, in seconds; for the timers until when, infinity for no time.
        """
        if self._places.get(who) == (kind, since):
            return
        self._places[who] = kind, since
        if since == NEVER:
            return
        heap = self._heaps[kind]
        heappush(heap, Waiting(since, next(self._numbers), who))
        if len(heap) > 2 * len(self._places) + _SPARE:
            valid = (one for one in heap if self._places.get(one.who) == (kind, one.since))
            heap[:] = {one.who: one for one in valid}.values()
            heapify(heap)

    def head(self, kind: _Kind | None) -> Waiting[_Who] | None:
        """Give who waits longest in a queue; of the timers, whose time comes first."""
        heap = self._heaps[kind]
        while heap and self._places.get(heap[0].who) != (kind, heap[0].since):
            heappop(heap)
        return heap[0] if heap else None

    def due(self, now: float) -> Iterator[_Who]:
        """Take from the timers whose time has come, at `now` in seconds."""
        while (head := self.head(None)) is not None and head.since <= now:
            heappop(self._heaps[None])
            del self._places[head.who]
            yield head.who

    def clear(self) -> None:
        """Forget everybody."""
        self._places.clear()
        for heap in self._heaps.values():
            heap.clear()
