"""Sends the batches of every lane: slots, attempts, retries, bisection.

A slot is a concurrency permit, a rate token and a lane whose destination may be asked. Slots go to the lane with the
oldest call. With none free nothing closes for its age: batches go on filling, so pressure makes them larger instead of
more. A batch that has to be tried again goes back to its lane and takes a slot like any other.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol, TypedDict

import structlog

from streamer.core.batch import MAIN_TYPES
from streamer.core.bisection import Pieces
from streamer.core.destination import PROBE_INTERVAL, Destination, State, backoff
from streamer.core.limiter import Concurrency, RateLimit
from streamer.core.model import Delivered, Misconfigured, Reason, Refused, Retry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from streamer.core.aggregate import Lane
    from streamer.core.batch import Batch
    from streamer.core.bisection import Piece
    from streamer.core.destination import Permit
    from streamer.core.model import Outcome, Response

log = structlog.get_logger()

_NEVER = float("inf")
_TOO_MUCH = {"rate_limited", "timeout"}  # the reasons to retry that ask for fewer requests
_SAY_AGAIN = 600.0
_REMEMBERED = 1000  # so many destinations that are held outlive their lanes: keys may come from what visitors send
_BODY_FACTOR = 1.5  # a body and its compressed copy, in bytes of the body
_PROBED_BATCHES = 8  # so many batches are closed to be probes; with more, pressure would no longer make batches larger


class Answer(Protocol):
    """What a transport gives for an attempt; see `streamer.segment.Answer`."""

    @property
    def outcome(self) -> Outcome:
        """What the answer means."""

    @property
    def response(self) -> Response | Exception:
        """What Segment answered, or why there is no answer."""

    @property
    def wire_bytes(self) -> int:
        """Bytes of the body as it was sent."""

    @property
    def seconds(self) -> float:
        """How long the attempt took."""


class Transport(Protocol):
    """Makes one attempt; see `streamer.segment.Segment.attempt`, which raises nothing but cancellations."""

    async def attempt(self, write_key: str, body: bytes, tries: int) -> Answer:
        """Send one body and say what came of it."""


class Observer(Protocol):
    """Is told what the metrics need."""

    def closed(self, batch: Batch) -> None:
        """A batch is about to be sent for the first time."""

    def attempted(self, outcome: Outcome, seconds: float) -> None:
        """An attempt has ended."""

    def delivered(
        self, batch: Batch, piece: Piece, body_bytes: int, wire_bytes: int, seconds: float
    ) -> None:
        """Segment accepted a part of a batch."""


class Handler(Protocol):
    """What the pipeline does with what delivery says."""

    def refused(
        self, lane: Lane, batch: Batch, place: int, detail: str, reason: Reason = Reason.REFUSED
    ) -> None:
        """Make a dead letter of a call that is given up; it has to hold the call's chunk before this returns."""

    def answered(self, batch: Batch, piece: Piece, answer: Answer) -> None:
        """An attempt at a part of a batch has ended."""

    def settled(self, batch: Batch) -> None:
        """Nothing of a batch is left to send."""

    def progressed(self) -> None:
        """Look whether there is room to read again: an attempt has ended."""


class Pace(TypedDict):
    """What may change while it runs.

    Attributes:
        concurrency: requests side by side; None for a number that adapts.
        max_requests_per_second: on average.
        interval_seconds: how old the oldest call of a batch becomes before it closes, if a slot is free.
    """

    concurrency: int | None
    max_requests_per_second: float
    interval_seconds: float


@dataclass(slots=True)
class _Route:
    """A lane with what delivery knows of it.

    Attributes:
        pieces: of each batch that isn't settled and was sent before, what is left to send.
        bisecting: the one batch that is being bisected.
        bisecting_since: when its first part was refused, in seconds.
        others_refused: how many other batches were refused since then, while nothing was accepted.
        probes: how many probes were refused, so that each takes another call.
        refusal: what Segment said when it last refused something.
        refused_alone: calls, as batch and place, that were refused alone, and when.
        accused: those of them after which Segment accepted something else; refused alone again, they are at fault.
        alone_since: since when its destination is held while others deliver, in seconds; infinity while that isn't so.
    """

    lane: Lane
    destination: Destination
    pieces: dict[Batch, Pieces] = field(default_factory=dict)
    bisecting: Batch | None = None
    bisecting_since: float = 0.0
    others_refused: int = 0
    probes: int = 0
    refusal: str = ""
    refused_alone: dict[tuple[Batch, int], float] = field(default_factory=dict)
    accused: set[tuple[Batch, int]] = field(default_factory=set)
    alone_since: float = _NEVER


class Delivery:
    """Sends what the lanes of the current generation close.

    Args:
        transport: makes an attempt.
        handler: takes what can't be delivered.
        observer: is told what the metrics need.
        concurrency, max_requests_per_second, interval_seconds: see `Pace`.
        max_hold_seconds: how long a batch waits for a destination that is held while others deliver; then its calls
            become dead letters.
        may_send: says whether what is in the lanes is still this process's to send; `notify` when it is again.
        jitter: gives random numbers from 0 to 1.
    """

    def __init__(
        self,
        transport: Transport,
        handler: Handler,
        observer: Observer,
        *,
        concurrency: int | None,
        max_requests_per_second: float,
        interval_seconds: float,
        max_hold_seconds: float = _NEVER,
        may_send: Callable[[], bool] = lambda: True,
        jitter: random.Random | None = None,
    ) -> None:
        self.interval_seconds = interval_seconds
        self._max_hold = max_hold_seconds
        self._say_given_up_at = 0.0
        self._may_send = may_send
        self.in_flight = 0
        self.destinations: dict[str, Destination] = {}
        self._transport = transport
        self._handler = handler
        self._observer = observer
        self._rate = RateLimit(max_requests_per_second)
        self._jitter = (jitter or random.SystemRandom()).random
        self._concurrency = Concurrency(concurrency, self._jitter)
        self._routes: dict[Lane, _Route] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._probing = 0
        self._wake = asyncio.Event()
        self._progress = asyncio.Event()
        self._closing: str | None = None
        self._say_memory_at = 0.0

    @property
    def concurrency(self) -> int:
        """How many requests may be under way now."""
        return self._concurrency.limit

    @property
    def served(self) -> list[Destination]:
        """The destinations of the lanes there are now."""
        return [route.destination for route in self._routes.values()]

    def tune(
        self, *, concurrency: int | None, max_requests_per_second: float, interval_seconds: float
    ) -> None:
        """Go on with other settings at once; see `Pace`."""
        self.interval_seconds = interval_seconds
        self._rate = RateLimit(max_requests_per_second)
        if concurrency != self._concurrency.fixed:
            self._concurrency = Concurrency(concurrency, self._jitter)
        self._wake.set()

    def begin(self, lane: Lane, name: str = "") -> None:
        """Take a lane in.

        Args:
            lane: the lane.
            name: what a person calls its destination.
        """
        destination = self.destinations.setdefault(lane.write_key, Destination(name))
        self._routes[lane] = _Route(lane, destination)

    def notify(self) -> None:
        """Look at the lanes: something was added to one."""
        self._wake.set()

    async def run(self) -> None:
        """Send until cancelled.

        Raises:
            ExceptionGroup: a bug; what is expected of a request is an Outcome.
        """
        clock = asyncio.get_running_loop().time
        async with asyncio.TaskGroup() as group:
            while True:
                self._wake.clear()
                now = clock()
                due = _NEVER
                if self._may_send():
                    due = min(self._give_up(now), self._start(group, now))
                else:
                    self._concurrency.binds(now, binding=False)
                try:
                    async with asyncio.timeout_at(None if due == _NEVER else due):
                        await self._wake.wait()
                except TimeoutError:
                    pass

    async def drain(self, trigger: str, timeout_seconds: float) -> bool:
        """Close and send what can be sent within a time.

        Args:
            trigger: `rebalance` or `shutdown`: why.
            timeout_seconds: how long to wait. What can't be asked before that isn't waited for.

        Returns:
            Whether nothing is left in any lane.
        """
        clock = asyncio.get_running_loop().time
        deadline = clock() + timeout_seconds
        self._closing = trigger
        try:
            async with asyncio.timeout_at(deadline):
                while any(self._hopeful(route, deadline) for route in self._routes.values()):
                    self._progress.clear()
                    self._wake.set()
                    await self._progress.wait()
        except TimeoutError:
            pass
        finally:
            self._closing = None
        return all(lane.idle for lane in self._routes)

    async def end(self) -> None:
        """Forget every lane, and cancel what is being sent of them; of their destinations, those that flow."""
        self._routes.clear()
        held = [(key, one) for key, one in self.destinations.items() if not one.flowing]
        self.destinations = dict(held[-_REMEMBERED:])
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- which batch is next --------------------------------------------------------------------

    def _start(self, group: asyncio.TaskGroup, now: float) -> float:
        """Start every attempt that may start now.

        Returns:
            When to look again, in seconds; infinity for when something happens.
        """
        while self.in_flight < self.concurrency:
            due = _NEVER
            best: tuple[_Route, Batch] | None = None
            best_since = _NEVER
            for route in self._routes.values():
                batch, at = self._next(route, now)
                due = min(due, at)
                if batch is None:
                    continue
                # A lane that is held waits since the end of its pause, so that each gets its turn.
                since = max(
                    batch.oldest, 0.0 if route.destination.flowing else route.destination.until
                )
                if since < best_since:
                    best, best_since = (route, batch), since
            if best is None:
                self._concurrency.binds(now, binding=False)
                return due
            token = self._rate.ready_at(now)
            if token > now:
                self._concurrency.binds(now, binding=False)
                return token
            self._rate.take(now)
            self._attempt(group, *best, now)
        if self._concurrency.adapts:
            waits = any(
                route.destination.flowing and self._next(route, now)[0] is not None
                for route in self._routes.values()
            )
            self._concurrency.binds(now, binding=waits)
        return _NEVER  # an attempt that ends wakes us

    def _next(self, route: _Route, now: float) -> tuple[Batch | None, float]:
        """Choose the lane's next batch: a closed one, or the open one if it should close now.

        Returns:
            The batch, None if there is none now; and then when to look again (infinity: when something happens).
        """
        lane, destination = route.lane, route.destination
        if not destination.flowing and self._probing >= max(1, self.concurrency // 4):
            return None, _NEVER
        if not destination.may_start(now):
            return None, _NEVER if destination.attempts else destination.until
        waiting = [batch for batch in lane.ready if not self._blocked(route, batch)]
        due = [batch for batch in waiting if batch.not_before <= now]
        closes = _NEVER
        if lane.open is not None:
            early = self._closing is not None or lane.share.spent
            closes = now if early else lane.open.oldest + self.interval_seconds
        probe = destination.state is State.MISCONFIGURED
        # The calls of one batch may all be at fault: what came later is the better probe.
        if closes <= now and (not due or (probe and len(lane.ready) < _PROBED_BATCHES)):
            return lane.open, now
        if due and probe:
            return min(due, key=lambda batch: (batch.not_before, batch.oldest)), now
        if due:
            return min(due, key=lambda batch: batch.oldest), now
        return None, min(closes, *(batch.not_before for batch in waiting), _NEVER)

    def _blocked(self, route: _Route, batch: Batch) -> bool:
        """Whether a batch that Segment refused has to wait until another one is bisected."""
        pieces = route.pieces.get(batch)
        if route.bisecting is None or route.bisecting is batch or pieces is None:
            return False
        return pieces.bisecting and not route.pieces[route.bisecting].undecided

    # --- what is given up -----------------------------------------------------------------------

    def _give_up(self, now: float) -> float:
        """Give up what a destination has held too long while others deliver, so that commits don't wait for ever.

        Returns:
            When to look again, in seconds; infinity for when something happens.
        """
        due = _NEVER
        delivered = max((one.delivered_at for one in self.served if one.flowing), default=-_NEVER)
        for route in self._routes.values():
            lane = route.lane
            if (
                delivered <= route.destination.held_since
            ):  # it flows, or no other delivers: then all wait
                route.alone_since = _NEVER
                continue
            route.alone_since = since = min(route.alone_since, now)
            if lane.open is not None and self._given_up_at(lane.open, since) <= now:
                lane.close("time", now)
            for batch in list(lane.ready):
                at = self._given_up_at(batch, since)
                if at <= now:
                    self._drop(route, batch, now)
                    due = now  # what waited for it has moved on
                else:
                    due = min(due, at)
            if lane.open is not None:
                due = min(due, self._given_up_at(lane.open, since))
        return due

    def _given_up_at(self, batch: Batch, alone_since: float) -> float:
        return max(batch.oldest, alone_since) + self._max_hold

    def _drop(self, route: _Route, batch: Batch, now: float) -> None:
        """Make dead letters of all that is left of a closed batch."""
        destination = route.destination
        pieces = route.pieces.setdefault(batch, Pieces(len(batch)))
        pieces.reset()
        calls = 0
        while not pieces.done:
            for place in range(*pieces.take()):
                self._handler.refused(
                    route.lane, batch, place, destination.reason, Reason.DESTINATION_UNAVAILABLE
                )
                calls += 1
        route.lane.ready.remove(batch)
        self._settle(route, batch, now)
        if now >= self._say_given_up_at:
            self._say_given_up_at = now + _SAY_AGAIN
            log.error(
                "segment.max_hold is over for a destination while others deliver: its calls become dead letters",
                destination=destination.name,
                calls=calls,
                held_seconds=round(now - destination.held_since),
                reason=destination.reason,
            )

    # --- one attempt ----------------------------------------------------------------------------

    def _attempt(self, group: asyncio.TaskGroup, route: _Route, batch: Batch, now: float) -> None:
        """Send what is next of a batch that `_next` chose."""
        lane, destination = route.lane, route.destination
        if batch is lane.open:
            lane.close(self._closing or ("memory" if lane.share.spent else "time"), now)
            if batch.trigger == "memory":
                self._say_memory_closes(batch, now)
        lane.ready.remove(batch)
        pieces = route.pieces.get(batch)
        if pieces is None:
            pieces = route.pieces[batch] = Pieces(len(batch))
            self._observer.closed(batch)
        piece = pieces.take()
        if destination.state is State.MISCONFIGURED:
            piece = _probe(batch, pieces, piece, route.probes)
        permit = destination.start()
        self.in_flight += 1
        self._probing += permit.probe
        lane.in_flight += 1
        task = group.create_task(self._send(route, batch, piece, permit))
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if task.cancelled():  # perhaps before its first step
                destination.abandon()
            self.in_flight -= 1
            self._probing -= permit.probe
            lane.in_flight -= 1
            self._wake.set()
            self._progress.set()
            self._handler.progressed()

        task.add_done_callback(ended)

    def _say_memory_closes(self, batch: Batch, now: float) -> None:
        """Say that the interval is longer than memory allows: at the first time, and then each ten minutes."""
        waited = now - batch.oldest
        if waited < self.interval_seconds and now >= self._say_memory_at:
            self._say_memory_at = now + _SAY_AGAIN
            log.warning(
                "flush.memory_budget is spent: batches close before flush.interval",
                after_seconds=round(waited, 3),
                interval_seconds=self.interval_seconds,
                calls=len(batch),
                advice="raise flush.memory_budget or shorten flush.interval; see streamer_batches_closed_total",
            )

    async def _send(self, route: _Route, batch: Batch, piece: Piece, permit: Permit) -> None:
        lane = route.lane
        clock = asyncio.get_running_loop().time
        started = clock()
        body = batch.body(_now_iso(), *piece)
        held = int(len(body) * _BODY_FACTOR)
        lane.share.take(held)
        try:
            answer = await self._transport.attempt(lane.write_key, body, batch.tries)
        finally:
            lane.share.give(held)
        now = clock()
        self._observer.attempted(answer.outcome, answer.seconds)
        self._handler.answered(batch, piece, answer)
        outcome = answer.outcome
        self._learn(route.destination, permit, outcome, len(body), started, now)
        if route.destination.finish(permit, outcome, now, self._jitter()):
            _log_state(route.destination)
        if lane not in self._routes:
            return  # its generation has ended: what completes late counts nowhere
        match outcome:
            case Delivered():
                self._delivered(route, batch, piece, len(body), answer, started, now)
            case Retry():
                batch.tries += 1
                batch.failures += 1
                if route.destination.flowing:  # else the destination says when, for all its batches
                    batch.not_before = now + backoff(batch.failures, self._jitter())
                self._back(route, batch, piece)
            case Misconfigured():
                batch.tries += 1
                batch.not_before = now  # another batch is the next probe
                route.probes += 1
                self._back(route, batch, piece)
                self._drop_suspicions(route, now)
            case Refused():
                self._refused(route, batch, piece, outcome, now)

    def _learn(
        self,
        destination: Destination,
        permit: Permit,
        outcome: Outcome,
        size: int,
        started: float,
        now: float,
    ) -> None:
        """Tell the limit what came of an attempt; nothing of a destination that is held moves it."""
        if permit.probe:
            return
        self._concurrency.ended(now, size if isinstance(outcome, Delivered) else 0)
        if destination.flowing and isinstance(outcome, Retry) and outcome.reason in _TOO_MUCH:
            self._concurrency.overloaded(now, started, destination.attempts)

    def _delivered(
        self,
        route: _Route,
        batch: Batch,
        piece: Piece,
        body_bytes: int,
        answer: Answer,
        started: float,
        now: float,
    ) -> None:
        lane = route.lane
        for kind, calls in batch.counts(*piece):
            lane.ledger.delivered(kind, calls, batch.further(kind, *piece))
        self._observer.delivered(batch, piece, body_bytes, answer.wire_bytes, answer.seconds)
        route.accused |= {call for call, since in route.refused_alone.items() if since <= started}
        other = route.bisecting
        if other is batch:
            route.others_refused = 0
        elif other is not None and started >= route.bisecting_since:
            route.others_refused = 0
            witnessed = route.pieces[other]
            was_undecided = witnessed.undecided
            self._convict(route, other, witnessed.testified())
            if was_undecided:
                other.not_before = now
            if witnessed.done and other in lane.ready:
                lane.ready.remove(other)
                self._settle(route, other, now)
        pieces = route.pieces[batch]
        batch.failures = 0
        self._convict(route, batch, pieces.accepted())
        self._go_on(route, batch, now)

    def _refused(
        self, route: _Route, batch: Batch, piece: Piece, outcome: Refused, now: float
    ) -> None:
        pieces = route.pieces[batch]
        batch.tries += 1
        batch.failures = 0
        route.refusal = f"{outcome.status} {outcome.detail}".strip()
        place, alone = piece[0], piece[1] - piece[0] == 1
        if alone:
            route.refused_alone.setdefault((batch, place), now)
        if route.destination.state is State.MISCONFIGURED:
            batch.not_before = now  # another batch is the next probe
            route.probes += 1
            route.destination.misconfigured(route.destination.reason, now)
            self._back(route, batch, piece)
            return
        if alone and (outcome.status == 413 or (batch, place) in route.accused):
            self._convict(route, batch, (place,))
            self._go_on(route, batch, now)
            return
        other = route.bisecting
        if other is not None and other is not batch:
            route.others_refused += 1
            pieces.bisecting = True  # when its turn has come
            self._back(route, batch, piece)
            if route.pieces[other].undecided:
                self._blame_destination(route, now)
            return
        if pieces.undecided:  # this was the probe, for want of a witness
            self._back(route, batch, piece)
            self._blame_destination(route, now)
            return
        if other is None:
            route.bisecting = batch
            route.bisecting_since = now
            route.others_refused = 0
            log.info(
                "Segment refused a batch; halving it to find the calls at fault",
                destination=route.destination.name,
                calls=len(batch),
                answer=route.refusal,
            )
        self._convict(route, batch, pieces.refused(piece))
        if pieces.undecided:
            if route.others_refused:
                self._blame_destination(route, now)
            else:
                batch.not_before = now + PROBE_INTERVAL
        self._go_on(route, batch, now)

    def _blame_destination(self, route: _Route, now: float) -> None:
        """Hold the destination: it refused twice, and nothing was accepted."""
        self._drop_suspicions(route, now)
        if route.destination.misconfigured(
            f"refuses batch after batch, call by call: {route.refusal}", now
        ):
            _log_state(route.destination)

    def _drop_suspicions(self, route: _Route, now: float) -> None:
        """Forget what bisection found so far: it can't be told from what the destination does wrong."""
        for batch, pieces in route.pieces.items():
            if pieces.bisecting:
                pieces.reset()
                batch.not_before = now
        route.bisecting = None
        route.accused.clear()

    def _go_on(self, route: _Route, batch: Batch, now: float) -> None:
        """Settle a batch of which nothing is left, or put it back for what is."""
        if route.pieces[batch].done:
            self._settle(route, batch, now)
        else:
            route.lane.ready.append(batch)

    def _back(self, route: _Route, batch: Batch, piece: Piece) -> None:
        pieces = route.pieces[batch]
        pieces.back(piece)
        if not pieces.bisecting:
            pieces.reset()  # what a probe cut out becomes one part with the rest again
        route.lane.ready.append(batch)

    def _settle(self, route: _Route, batch: Batch, now: float) -> None:
        del route.pieces[batch]
        if route.bisecting is batch:
            route.bisecting = None
        for call in [call for call in route.refused_alone if call[0] is batch]:
            del route.refused_alone[call]
            route.accused.discard(call)
        self._handler.settled(batch)
        route.lane.settle(batch, now)

    def _convict(self, route: _Route, batch: Batch, places: tuple[int, ...]) -> None:
        for place in places:
            self._handler.refused(route.lane, batch, place, route.refusal)

    def _hopeful(self, route: _Route, deadline: float) -> bool:
        """Whether waiting until the deadline can bring this lane on."""
        lane, destination = route.lane, route.destination
        if lane.idle or destination.state is State.MISCONFIGURED:
            return False
        if lane.in_flight:
            return True
        if not self._may_send():
            return False
        if not destination.flowing and destination.until >= deadline:
            return False
        return lane.open is not None or any(batch.not_before < deadline for batch in lane.ready)


def _probe(batch: Batch, pieces: Pieces, piece: Piece, probes: int) -> Piece:
    """Cut one call out of a part that was taken: a probe is small, and each time it is another call.

    A page or track call, since their order doesn't count; or else the first one.
    """
    start, stop = piece
    mains = [place for place in range(start, stop) if batch.types[place] in MAIN_TYPES]
    place = mains[probes % len(mains)] if mains else start
    for rest in ((place + 1, stop), (start, place)):
        if rest[0] < rest[1]:
            pieces.back(rest)
    return place, place + 1


def _now_iso() -> bytes:
    return (
        datetime.fromtimestamp(time.time(), UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:23].encode()
        + b"Z"
    )


def _log_state(destination: Destination) -> None:
    if destination.flowing:
        log.info("Segment accepts calls again", destination=destination.name)
    else:
        log.warning(
            "Segment doesn't accept calls",
            destination=destination.name,
            state=str(destination.state),
            reason=destination.reason,
        )


def states(destinations: Iterable[Destination]) -> dict[str, int]:
    """Count destinations by state."""
    counts = dict.fromkeys((str(state) for state in State), 0)
    for destination in destinations:
        counts[str(destination.state)] += 1
    return counts
