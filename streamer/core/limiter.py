"""How many requests may be under way at a time, and how fast they may follow one another.

`Concurrency` finds the number by itself, from what it does to the throughput: it measures at the number in effect,
tries another one for as long as it takes to tell the two apart, and takes that or goes back. A smaller and a greater
one are tried in turn: further off after a success, nearer after a failure, the more seldom the more often it failed.

Throughput is accepted bytes a second, because by latency a fuller batch can't be told from a busy destination. Batches
that change in size meanwhile would still pass for a gain in bytes (where time doesn't go with the bytes), or in
requests (where it does); so what is tried has to do well in both. A greater number has to earn itself: without a fifth
of the throughput that it promises, its requests only wait at the destination.
"""

from __future__ import annotations

from math import ceil, expm1, log, sqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

START = 8
"""Requests at a time, before anything is known: some 40 MB a second of full batches at 80 ms."""
MOST = 64
"""The greatest number that is tried: at 64 ms it reaches the 1,000 requests a second that Segment allows, and each
request is a body in memory and a connection at the destination."""

_WORTH = 0.2  # by so much has ln(throughput) to grow with ln(number)
_FINEST, _COARSEST = 1 / 12, 1.0  # how far a trial goes, as a share of the number
_SAMPLES = 6.0  # a measurement has so many requests, over the square of ln(tried/number): noise falls with the root
_ROUNDS = 3  # ... and so many of each slot at least
_LONGEST = 10.0  # seconds; rather than measure longer, what is tried is further off
_LOST_CAUSE = 1.4  # a trial that takes so many times as long as it should has failed
_OTHER = 2.0  # a destination that takes so many times as long as it did is another one
_REST = 20.0  # after many failures nothing is tried for so many measurements
_LONGEST_REST = 20.0  # seconds; ... nor longer than this
_SHRINK = 0.3  # so much of what it had under way is taken from a lane that asks for less
_STALE = 30.0  # seconds; what was measured before a longer lull isn't compared with what follows


class Concurrency:
    """How many requests may be under way at a time: a number that adapts, or a fixed one.

    Args:
        fixed: the number; None for one that adapts, from 1 to `MOST`.
        jitter: gives random numbers from 0 to 1, so that processes don't try in step.

    Attributes:
        fixed: the same.
        limit: the number that holds now.
        adapts: whether that ever changes; if not, nothing has to be told.
    """

    def __init__(self, fixed: int | None = None, jitter: Callable[[], float] = lambda: 0.5) -> None:
        self.fixed = fixed
        self.limit = fixed or START
        self.adapts = fixed is None
        self._jitter = jitter
        self._now = float("-inf")
        self._binding = False
        self._bound_at = self._now
        self._changed_at = self._now
        # What trials start from and go back to; its throughput, once that is measured.
        self._base = self.limit
        self._bytes_per_second = 0.0
        self._requests_per_second = 0.0
        # The next trial. The first is a smaller number: of one that is far too great it would take long to tell.
        self._up = False
        self._step = _COARSEST
        self._last_gain_up: bool | None = None
        self._rest = 1.0
        # The measurement under way.
        self._begin(self.limit)

    # --- what happens ---------------------------------------------------------------------------

    def binds(self, now: float, *, binding: bool) -> None:
        """Say whether a request waits for nothing but this limit; whenever that was looked at.

        Only the time in which it binds is measured: a lull says nothing of the destination.

        Args:
            now: in seconds.
            binding: whether it binds from now on.
        """
        if not self.adapts:
            return
        self._pass(now)
        if binding and not self._binding and now - self._bound_at > _STALE:
            self._return()
        if binding or self._binding:
            self._bound_at = now
        self._binding = binding

    def ended(self, now: float, accepted_bytes: int) -> None:
        """Note that a request has ended, one of a lane that flows.

        Args:
            now: in seconds.
            accepted_bytes: what the destination accepted with it; 0 if nothing.
        """
        if not self.adapts:
            return
        self._pass(now)
        if self._settling:
            self._settling -= 1
            self._measured_from = self._clock
        elif self._binding and accepted_bytes:
            self._requests += 1
            self._bytes += accepted_bytes
        if self._binding:
            self._judge()

    def overloaded(self, now: float, started: float, under_way: int) -> None:
        """Note a 429 or a time-out, of a lane that flows: a trial has failed, or the number is too great.

        Args:
            now: in seconds.
            started: when the request began: of those that ran side by side only the first one counts.
            under_way: requests of its lane, itself included: what it says is about these.
        """
        if not self.adapts or started < self._changed_at:
            return
        self._pass(now)
        if self.limit > self._base:
            self._failed()
            return
        self._base = max(1, round(self.limit - _SHRINK * min(under_way, self.limit)))
        self._step = max(self._finest, _SHRINK / 2)
        self._up = True
        self._last_gain_up = None
        self._rest = 1.0
        self._return()

    def _pass(self, now: float) -> None:
        if self._binding:
            self._clock += now - self._now
        self._now = now

    # --- measuring ------------------------------------------------------------------------------

    def _begin(self, limit: int) -> None:
        """Begin to measure at a limit."""
        self._unsettled = self._settling = max(self.limit, limit)  # begun before, or as many anew
        self.limit = limit
        self._changed_at = self._now
        self._wanted = self._needed()
        self._clock = 0.0  # seconds in which it bound
        self._measured_from = 0.0
        self._requests = 0
        self._bytes = 0

    def _return(self) -> None:
        """Go back to what trials start from, and measure it anew before the next."""
        self._bytes_per_second = 0.0
        self._begin(self._base)

    def _needed(self) -> int:
        """How many requests tell the throughput from that of the trial, or the base: full rounds, since they bunch."""
        at_base = self.limit == self._base
        distance = log((self._target() if at_base else self.limit) / self._base)
        needed = self.limit * max(_ROUNDS, ceil(_SAMPLES / distance**2 / self.limit))
        if not at_base or not self._bytes_per_second:
            return needed
        rest = self._rest * (0.75 + self._jitter() / 2)
        longest = max(needed, round(_LONGEST_REST * self._requests_per_second))
        return min(round(needed * max(1.0, rest)), longest)

    def _judge(self) -> None:
        """See whether enough was measured, and go on."""
        seconds = self._clock - self._measured_from
        enough = self._requests >= self._wanted and seconds > 0
        if self.limit != self._base:
            if enough:
                self._compare(self._bytes / seconds, self._requests / seconds)
            elif self._clock * self._requests_per_second > _LOST_CAUSE * (
                self._wanted + self._unsettled
            ):
                self._failed()
        elif enough:
            self._measured(self._bytes / seconds, self._requests / seconds)
            self._begin(self._target())
        elif seconds * self._requests_per_second > _OTHER * (self._requests + _ROUNDS * self.limit):
            self._changed()

    def _measured(self, bytes_per_second: float, requests_per_second: float) -> None:
        """Keep the throughput at the base."""
        self._base = self.limit
        self._bytes_per_second = bytes_per_second
        self._requests_per_second = requests_per_second
        self._step = max(self._step, self._finest)

    # --- trials ---------------------------------------------------------------------------------

    @property
    def _finest(self) -> float:
        """How far a trial goes at least."""
        if not self._requests_per_second:
            return _FINEST
        told = expm1(sqrt(_SAMPLES / self._requests_per_second / _LONGEST))
        return min(max(_FINEST, told), _COARSEST)

    def _target(self) -> int:
        """Choose what is tried next; at an end of what there is, the other way."""
        base = self._base
        if base == 1:
            self._up = True
        elif base == MOST:
            self._up = False
        if self._up:
            return min(MOST, base + ceil(base * self._step))
        return max(1, int(base / (1 + self._step)))

    def _compare(self, bytes_per_second: float, requests_per_second: float) -> None:
        gain = min(
            bytes_per_second / self._bytes_per_second,
            requests_per_second / self._requests_per_second,
        )
        if log(gain) <= _WORTH * log(self.limit / self._base):
            self._failed()
            return
        again = self._last_gain_up in (self._up, None)
        self._last_gain_up = self._up
        self._step = min(_COARSEST, self._step * 2) if again else self._step / 2
        self._rest = 1.0
        self._measured(bytes_per_second, requests_per_second)
        self._begin(self._target())

    def _changed(self) -> None:
        """Begin anew, from a destination that has become much slower."""
        self._up = False
        self._step = _COARSEST
        self._last_gain_up = None
        self._rest = 1.0
        self._requests_per_second = 0.0
        self._return()

    def _failed(self) -> None:
        """Go back, and try the other way next."""
        self._up = not self._up
        if self._step > self._finest:
            self._step = max(self._finest, self._step / 2)
        else:
            self._rest = min(_REST, self._rest * 2)
        self._begin(self._base)


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
