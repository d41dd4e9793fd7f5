"""What is known of one destination (a write key at an endpoint), and when it may be asked again.

    flowing ──3 failures in a row──▶ backing_off ◀──a failure once the pause is over── paused
    flowing, backing_off ──Retry-After──▶ paused
    any ──a person has to mend it──▶ misconfigured
    any ──success──▶ flowing

The three held states let one request at a time through, once its time has come. After its success two may run, and
each further success lets one more run beside the others: a destination that has just recovered isn't flooded. A single
failure of a destination that answers other requests delays only its own batch.

Of requests that were under way when the state changed, a Retry-After and a refused key still count, and a success ends
backing off, because it shows that the destination answers. Their other failures tell the same story again, and their
successes nothing of a pause that was asked for later, or of a key that was refused later.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from streamer.core.model import Delivered, Misconfigured, Refused, Retry

if TYPE_CHECKING:
    from streamer.core.model import Outcome

FIRST_BACKOFF = 0.5
"""Seconds; the first delay lies between zero and this. What Segment's own libraries start from."""
MAX_BACKOFF = 60.0
"""Seconds; no delay of backing off is longer."""
MAX_PAUSE = 300.0
"""Seconds; a longer Retry-After counts as this, as in Segment's own libraries."""
PROBE_INTERVAL = 30.0
"""Seconds between two probes of a destination that is misconfigured."""
FAILURES_TO_BACK_OFF = 3
"""So many failures in a row, without an answer that delivers, hold the destination."""

_UNBOUNDED = float("inf")


class State(StrEnum):
    """A destination's states."""

    FLOWING = "flowing"
    PAUSED = "paused"  # Segment said when to come back
    BACKING_OFF = "backing_off"  # it fails, nobody knows for how long
    MISCONFIGURED = "misconfigured"  # it refuses everything until a person mends something


def backoff(tries: int, jitter: float) -> float:
    """Say how long to wait: exponential with full jitter.

    Args:
        tries: failures so far, 1 or more.
        jitter: a random number from 0 to 1.

    Returns:
        Seconds.
    """
    return float(jitter * min(MAX_BACKOFF, FIRST_BACKOFF * 2.0 ** min(tries - 1, 16)))


@dataclass(frozen=True, slots=True)
class Permit:
    """Leave to make one attempt.

    Attributes:
        epoch: the number of the state under which it was given.
        probe: whether the destination is held, so that a small request is the better one.
    """

    epoch: int
    probe: bool


class Destination:
    """The state machine of one destination.

    Args:
        name: what a person calls it; not its write key.

    Attributes:
        name: the same.
        state: see `State`.
        since: when it came into this state, in seconds; the caller's clock.
        until: when the next attempt may be made, in seconds, while it is held.
        reason: why it is held, for a person.
        held_since: since when it hasn't flowed, whatever kept it, in seconds; infinity while it flows.
        delivered_at: when it last accepted something, in seconds; minus infinity before that.
        attempts: requests that are under way.
    """

    __slots__ = (
        "_doubted_at", "_epoch", "_failures", "_most", "attempts", "delivered_at", "held_since", "name", "reason",
        "since", "state", "until",
    )  # fmt: skip

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.state = State.FLOWING
        self.since = 0.0
        self.until = 0.0
        self.reason = ""
        self.held_since = _UNBOUNDED
        self.delivered_at = -_UNBOUNDED
        self.attempts = 0
        self._failures = 0
        self._doubted_at = -_UNBOUNDED
        self._epoch = 0
        self._most = _UNBOUNDED  # requests side by side, while it flows

    @property
    def flowing(self) -> bool:
        """Whether requests go out side by side."""
        return self.state is State.FLOWING

    @property
    def proven(self) -> bool:
        """Whether it flows, and the last that is known of it is that it delivered."""
        return self.flowing and not self._failures and self.delivered_at > self._doubted_at

    def doubt(self, now: float) -> None:
        """Count as not proven until it delivers again: at `now`, in seconds, an answer was long overdue."""
        self._doubted_at = now

    def may_start(self, now: float) -> bool:
        """Whether an attempt may be made now: one at a time while it is held, a growing number once it flows again."""
        if self.flowing:
            return self.attempts < self._most
        return now >= self.until and not self.attempts

    def start(self) -> Permit:
        """Begin an attempt that `may_start` allows; `finish` or `abandon` ends it."""
        self.attempts += 1
        return Permit(self._epoch, probe=not self.flowing)

    def abandon(self) -> None:
        """End an attempt of which nothing came: it was cancelled."""
        self.attempts -= 1

    def finish(self, permit: Permit, outcome: Outcome, now: float, jitter: float) -> bool:
        """End an attempt and learn from what came of it.

        Args:
            permit: what `start` gave.
            outcome: of the attempt. `Refused` says nothing of the destination: bisection finds out.
            now: in seconds.
            jitter: a random number from 0 to 1.

        Returns:
            Whether the state is another one now, which is worth a line in the log.
        """
        self.attempts -= 1
        match outcome:
            case Delivered():
                return self._delivered(permit, now)
            case Retry(after_seconds=None):
                return self._failed(permit, outcome.detail, now, jitter)
            case Retry(after_seconds=after):
                # A little longer: "now", or a date that has passed here, is no leave to ask without end, and processes
                # that were told the same don't come back together.
                until = now + min(after or 0.0, MAX_PAUSE) + backoff(1, jitter)
                if self.state is State.MISCONFIGURED:  # still for a person to mend, and asked later
                    self.until = max(until, self.until, now + PROBE_INTERVAL)
                    return False
                if self.state is State.PAUSED:
                    # Requests that were under way together tell the same story: the latest end counts.
                    until = max(until, self.until)
                return self._hold(State.PAUSED, until, outcome.detail, now)
            case Misconfigured():
                return self.misconfigured(f"{outcome.status}: {outcome.detail}", now)
            case Refused():
                return False

    def misconfigured(self, reason: str, now: float) -> bool:
        """Hold it until a probe is accepted.

        Returns:
            Whether that is a change.
        """
        until = now + PROBE_INTERVAL
        if self.state in (State.PAUSED, State.MISCONFIGURED):
            until = max(until, self.until)  # Segment may have asked for a longer pause
        return self._hold(State.MISCONFIGURED, until, reason, now)

    def _delivered(self, permit: Permit, now: float) -> bool:
        self._failures = 0
        self.delivered_at = now
        if self.flowing:
            self._most += 1
            return False
        if permit.epoch != self._epoch and self.state is not State.BACKING_OFF:
            return False  # it was on its way before Segment asked for a pause, or before the key was refused
        self._change(State.FLOWING, "", now)
        return True

    def _failed(self, permit: Permit, reason: str, now: float, jitter: float) -> bool:
        if permit.epoch != self._epoch:
            return False
        self._failures += 1
        if self.state is State.MISCONFIGURED:
            return self.misconfigured(self.reason, now)
        if self.flowing and self._failures < FAILURES_TO_BACK_OFF:
            return False
        tries = self._failures - FAILURES_TO_BACK_OFF + 1
        return self._hold(State.BACKING_OFF, now + backoff(max(tries, 1), jitter), reason, now)

    def _hold(self, state: State, until: float, reason: str, now: float) -> bool:
        self.until = until
        self.reason = reason
        if self.state is state:
            return False
        self._change(state, reason, now)
        return True

    def _change(self, state: State, reason: str, now: float) -> None:
        self.held_since = _UNBOUNDED if state is State.FLOWING else min(self.held_since, now)
        self.state = state
        self.since = now
        self.reason = reason
        self._most = 2.0  # the one whose success ended the hold is over
        self._epoch += 1
