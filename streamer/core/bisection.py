"""Which calls Segment does not like.

Segment answers 400 for a whole batch. Either one of its calls is at fault, or the destination is. The batch is halved,
depth first and in order, until the refused calls stand alone. That makes a call a suspect, no more. It is at fault

- when it is refused alone, Segment accepts something of the lane that was sent after that, and the call, sent after
  that in turn, is refused alone again: the first time the destination may have refused everything for a while,
- when it is the second half of a refused part of which Segment accepted the first half,
- or when it is an identify or group call that is refused alone, and Segment accepts one that is behind it in its batch:
  sent after that, it would lay old traits over new ones.

The destination is at fault when one batch is undecided and another batch, or a call that the lane delivered before, is
refused too, or when the undecided call is refused again for want of these. Then every suspicion is dropped.

Nothing here waits or sends: `Bisection` is told what came of each part of a batch, and says what follows from it.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass
from math import ceil, inf, log2
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from streamer.core.batch import FURTHER, MAIN_TYPES
from streamer.core.destination import PROBE_INTERVAL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamer.core.aggregate import Lane
    from streamer.core.batch import Batch

Piece: TypeAlias = tuple[int, int]
"""The first call of a part of a batch, and the call behind its last one."""

WITNESS_BYTES = 4096
"""No larger call is remembered as a witness."""
WITNESSES_BYTES = 250_000
"""The witnesses of all lanes together: a small part of the least that `flush.memory_budget` may be."""
WITNESS_AGE = 12 * 3600.0
"""Seconds since its delivery for which a call is a witness: half of what Segment remembers ids for, at least."""
WITNESS_RENEWAL = 3600.0
"""Seconds after which a lane's next delivery gives it a newer one."""


class Verdict(NamedTuple):
    """What follows from an answer.

    Attributes:
        guilty: the places of the batch's calls that are at fault; they are to be sent no more.
        blames: whether the destination is at fault, as far as anybody can tell.
        unproven: whether the call is given up though it may be the destination that is at fault.
    """

    guilty: list[int]
    blames: bool = False
    unproven: bool = False


class Pieces:
    """What of a batch is still to be sent, in parts.

    One part is under way at a time. `back`, `accepted` or `refused` ends it; none of them if its one call was found at
    fault in another way.

    Args:
        calls: how many calls the batch has.

    Attributes:
        bisecting: whether Segment refused a part of it.
        undecided: whether the bisection has stepped aside to wait for a witness.
        alone: of the calls that were refused alone, when that was first, in seconds, and how often so far.
        again: whether the part under way is a call that was refused alone before Segment accepted something.
    """

    __slots__ = (
        "_limit", "_open", "_refusals", "_refused", "_second", "_suspects", "again", "alone", "bisecting", "undecided",
    )  # fmt: skip

    def __init__(self, calls: int) -> None:
        self._open: list[Piece] = [(0, calls)]  # the first one last
        self._limit = 2 * ceil(log2(calls)) + 2
        self._suspects: list[int] = []  # the first one first
        self._refusals = 0
        self._refused: Piece | None = None  # the last part that was halved
        self._second: Piece | None = None  # its second half, once its first half was accepted
        self.bisecting = False
        self.undecided = False
        self.alone: dict[int, tuple[float, int]] = {}
        self.again = False

    @property
    def done(self) -> bool:
        """Whether nothing is left to send or to decide. A part that was taken isn't seen here until it is ended."""
        return not self._open and not self._suspects

    def take(self) -> Piece:
        """Take the part that is to be sent next: the first one, or the first suspect when nothing else is left."""
        if self._open:
            return self._open.pop()
        place = self._suspects.pop(0)
        return (place, place + 1)

    def back(self, piece: Piece) -> None:
        """Give a part back, or a part of it: nothing was decided, and it takes its place again."""
        insort(self._open, piece, key=lambda part: -part[0])

    def overtaken(self, piece: Piece, types: Sequence[int]) -> list[int]:
        """Find the suspects that can't be sent again once a part is accepted, since their order counts.

        Args:
            piece: the part.
            types: of the batch's calls.
        """
        if not self._suspects or all(
            types[place] & ~FURTHER in MAIN_TYPES for place in range(*piece)
        ):
            return []
        return [
            place
            for place in self._suspects
            if place < piece[0] and types[place] & ~FURTHER not in MAIN_TYPES
        ]

    def accepted(self, piece: Piece, overtaken: Sequence[int] = ()) -> None:
        """Note that Segment accepted the part that was taken, and that these suspects are not to be sent again."""
        self._suspects = [place for place in self._suspects if place not in overtaken]
        self._second = None
        if self._refused is not None and self._refused[0] == piece[0]:
            self._second = (piece[1], self._refused[1])
        self._refused = None
        self.testified()

    def testified(self) -> None:
        """Note that Segment accepted something of the lane, sent after the suspects: each is sent again."""
        self._refusals = 0
        self.undecided = False
        for place in self._suspects:
            self.back((place, place + 1))
        self._suspects.clear()

    def refused(self, piece: Piece) -> list[int]:
        """Note that Segment refused the part that was taken: halve it, or suspect the one call in it.

        Returns:
            The place of the call that is found at fault by that, if it is.
        """
        start, stop = piece
        self.bisecting = True
        self._refusals += 1
        found = []
        if stop - start > 1:
            self._refused = piece
            middle = (start + stop) // 2
            self._open += [(middle, stop), (start, middle)]
        elif piece == self._second:
            found.append(start)
        else:
            self._refused = None
            insort(self._suspects, start)
        self._second = None
        self.undecided = bool(self._suspects) and not self._open
        if self._refusals >= self._limit and not self.done:
            self.undecided = True
        return found

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
        self._refused = self._second = None
        self.bisecting = self.undecided = False


class Bisection:
    """Judges the calls of one lane, and its destination.

    Each attempt begins with `take` and ends with `back`, `accepted`, `refused` or `misconfigured`; `forget` ends a
    batch. When a batch may be sent again is written into it (`Batch.not_before`).

    Args:
        max_hold_seconds: how long a call that is all there is of its lane is refused, alone and again, while nothing
            shows whose fault that is; then it is given up.

    Attributes:
        trial: the one batch that is being bisected.
    """

    __slots__ = (
        "_accepted", "_ask", "_gave_up", "_most_refusals", "_others_refused", "_pieces", "_probes", "_since", "trial",
    )  # fmt: skip

    def __init__(self, max_hold_seconds: float = inf) -> None:
        self._most_refusals = max(2.0, max_hold_seconds / PROBE_INTERVAL)
        self._pieces: dict[Batch, Pieces] = {}
        self.trial: Batch | None = None
        self._since = -inf  # when a part of it was last refused
        self._others_refused = False  # whether another batch was, since something was accepted
        self._accepted = -inf  # when the last was sent that was accepted since the last blame
        self._ask = False  # whether the witness is next, in the place of a call that was refused
        self._gave_up = False  # whether a call was given up since something was accepted
        self._probes = 0

    def __contains__(self, batch: Batch) -> bool:
        return batch in self._pieces

    def begin(self, batch: Batch) -> None:
        """Take in a batch that is about to be sent for the first time."""
        self._pieces[batch] = Pieces(len(batch))

    def forget(self, batch: Batch) -> None:
        """Forget a batch that is settled."""
        del self._pieces[batch]
        if self.trial is batch:
            self.trial = None

    def done(self, batch: Batch) -> bool:
        """Whether nothing is left of a batch, of which nothing is under way."""
        return self._pieces[batch].done

    def left(self, batch: Batch) -> list[int]:
        """Take all that is left of a batch, of which nothing is under way: it is given up."""
        pieces = self._pieces[batch]
        pieces.reset()
        places: list[int] = []
        while not pieces.done:
            places += range(*pieces.take())
        return places

    def blocked(self, batch: Batch) -> bool:
        """Whether a batch that was refused has to wait until another one is bisected."""
        pieces = self._pieces.get(batch)
        if self.trial is None or self.trial is batch or pieces is None:
            return False
        return pieces.bisecting and not self._pieces[self.trial].undecided

    def take(self, batch: Batch, *, probes: bool, witness: bool) -> Piece | None:
        """Take what is to be sent next of a batch.

        Args:
            batch: one that isn't blocked and of which nothing is under way.
            probes: whether the destination is misconfigured, so that one call is enough.
            witness: whether there is a witness: a call that the lane delivered before.

        Returns:
            The part; None for the witness, to be sent in its place.
        """
        if witness and self._ask and (probes or self.trial is batch):
            return None
        pieces = self._pieces[batch]
        piece = pieces.take()
        if probes:
            piece = self._one_of(batch, pieces, piece)
        first, _ = pieces.alone.get(piece[0], (inf, 0))
        pieces.again = first <= self._accepted
        return piece

    def back(self, batch: Batch, piece: Piece | None) -> None:
        """End an attempt that decided nothing."""
        if piece is None:
            return
        pieces = self._pieces[batch]
        pieces.back(piece)
        if not pieces.bisecting:
            pieces.reset()  # what a probe cut out becomes one part with the rest again

    def misconfigured(self, batch: Batch, piece: Piece | None, now: float) -> None:
        """End an attempt whose answer says that the destination is at fault: another batch is the next probe."""
        self.back(batch, piece)
        batch.not_before = now
        self._probes += piece is not None
        self._drop_suspicions(now)

    def accepted(self, batch: Batch, piece: Piece | None, started: float, now: float) -> Verdict:
        """End an attempt that Segment accepted.

        Args:
            batch: the batch.
            piece: the part of it; None for the witness in its place.
            started: when it was sent, in seconds.
            now: in seconds.
        """
        self._accepted = max(self._accepted, started)
        self._gave_up = False
        guilty: list[int] = []
        if piece is not None:
            pieces = self._pieces[batch]
            guilty = pieces.overtaken(piece, batch.types)
            pieces.accepted(piece, guilty)
        trial = self.trial
        if trial is None:
            self._ask = False
        elif started >= self._since:
            self._ask = self._others_refused = False
            if trial is not batch or piece is None:
                pieces = self._pieces[trial]
                if pieces.undecided:
                    trial.not_before = now
                pieces.testified()
        return Verdict(guilty)

    def refused(
        self,
        batch: Batch,
        piece: Piece | None,
        now: float,
        *,
        too_large: bool = False,
        held: bool = False,
        quiet: bool = False,
    ) -> Verdict:
        """End an attempt that Segment refused.

        Args:
            batch: the batch.
            piece: the part of it; None for the witness in its place.
            now: in seconds.
            too_large: whether the answer was 413.
            held: whether the destination is misconfigured.
            quiet: whether nothing else waits in the lane.
        """
        if piece is None:
            return self._blame(batch, piece, now, ask=False)
        pieces = self._pieces[batch]
        place = piece[0]
        alone = piece[1] - place == 1
        first, times = pieces.alone.get(place, (now, 0))
        if alone:
            pieces.alone[place] = first, times + 1
        if held:
            if alone and quiet and self._gives_up(pieces, times + 1):
                return Verdict([place], blames=True, unproven=True)
            return self._blame(batch, piece, now)
        if alone and (too_large or pieces.again):
            return Verdict([place])
        if self.trial is not None and self.trial is not batch:
            if self._pieces[self.trial].undecided:
                pieces.bisecting = True
                return self._blame(batch, piece, now)
            self._others_refused = pieces.bisecting = True  # it is bisected when its turn has come
            self.back(batch, piece)
            return Verdict([])
        if pieces.undecided:  # this was a suspect again, for want of a witness
            return self._blame(batch, piece, now)
        if self.trial is None:
            self.trial = batch
            self._others_refused = False
        self._since = now
        guilty = pieces.refused(piece)
        if pieces.undecided:
            if self._others_refused:
                return self._blame(batch, None, now)._replace(guilty=guilty)
            self._ask = True
            batch.not_before = now + PROBE_INTERVAL
        return Verdict(guilty)

    def hurry(self, now: float) -> None:
        """Let the witness be sent now instead of later: nothing else comes that could be one."""
        if self.trial is not None and self._ask:
            self.trial.not_before = min(self.trial.not_before, now)

    def _gives_up(self, pieces: Pieces, times: int) -> bool:
        """Whether to give up the one call there is.

        Once until something is accepted: a destination that refuses everything would have one after the other.
        """
        if times < self._most_refusals or len(self._pieces) > 1 or not pieces.done or self._gave_up:
            return False
        self._gave_up = True
        return True

    def _blame(self, batch: Batch, piece: Piece | None, now: float, *, ask: bool = True) -> Verdict:
        """Blame the destination: it refused twice, and nothing was accepted."""
        self._ask = ask
        self.misconfigured(batch, piece, now)
        return Verdict([], blames=True)

    def _drop_suspicions(self, now: float) -> None:
        """Forget what was found so far: it can't be told from what the destination does wrong."""
        for batch, pieces in self._pieces.items():
            pieces.again = False
            if pieces.bisecting:
                pieces.reset()
                batch.not_before = now
        self.trial = None
        self._accepted = -inf

    def _one_of(self, batch: Batch, pieces: Pieces, piece: Piece) -> Piece:
        """Cut one call out of a part that was taken: a probe is small, and each time it is another call.

        A page or track call, since their order doesn't count; or else the first one.
        """
        start, stop = piece
        mains = [place for place in range(start, stop) if batch.types[place] in MAIN_TYPES]
        place = mains[self._probes % len(mains)] if mains else start
        for rest in ((place + 1, stop), (start, place)):
            if rest[0] < rest[1]:
                pieces.back(rest)
        return place, place + 1


@dataclass(frozen=True, slots=True)
class _Witness:
    call: bytes
    at: float


class Witnesses:
    """Of each lane one page or track call that it delivered, to be sent again where nothing else can be a witness.

    Segment drops it then, by its id, and an answer is all that is wanted. Identify and group calls would lay old traits
    over new ones. What is held counts in the lane's share of the memory budget.
    """

    __slots__ = ("_bytes", "_of")

    def __init__(self) -> None:
        self._of: dict[Lane, _Witness] = {}  # the oldest first
        self._bytes = 0

    def of(self, lane: Lane, now: float) -> bytes | None:
        """Give the witness of a lane, if it has one."""
        witness = self._of.get(lane)
        if witness is not None and now - witness.at >= WITNESS_AGE:
            self._drop(lane)
            return None
        return None if witness is None else witness.call

    def delivered(self, lane: Lane, batch: Batch, piece: Piece, now: float) -> None:
        """Remember one of the calls that Segment accepted, if the lane's witness isn't a new one."""
        old = self._of.get(lane)
        if old is not None and now - old.at < WITNESS_RENEWAL:
            return
        for place in range(*piece):
            call = batch.calls[place]
            if batch.types[place] & ~FURTHER in MAIN_TYPES and len(call) <= WITNESS_BYTES:
                break
        else:
            return
        if old is not None:
            self._drop(lane)
        self._of[lane] = _Witness(call, now)
        self._bytes += len(call)
        lane.share.take(len(call))
        while self._bytes > WITNESSES_BYTES:
            self._drop(next(iter(self._of)))

    def clear(self) -> None:
        """Forget all: the lanes' generation has ended."""
        for lane in list(self._of):
            self._drop(lane)

    def _drop(self, lane: Lane) -> None:
        witness = self._of.pop(lane)
        self._bytes -= len(witness.call)
        lane.share.give(len(witness.call))
