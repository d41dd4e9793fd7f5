"""Sends the batches of every lane: slots, attempts, retries, bisection.

A slot is a concurrency permit, a rate token and a lane whose destination may be asked. Slots go to the lane with the
oldest call; destinations of which nobody knows whether they deliver have others than those that do. With none free
nothing closes for its age: batches go on filling, so pressure makes them larger instead of more. A batch that has to be
tried again goes back to its lane and takes a slot like any other.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from itertools import islice
from typing import TYPE_CHECKING, Protocol, TypedDict

import structlog

from streamer.core.batch import body as make_body
from streamer.core.bisection import Bisection, Witnesses
from streamer.core.destination import Destination, State, backoff
from streamer.core.limiter import Concurrency, RateLimit
from streamer.core.model import Delivered, Misconfigured, Reason, Refused, Retry
from streamer.core.queues import NEVER, Queues

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from streamer.core.aggregate import Lane
    from streamer.core.batch import Batch
    from streamer.core.bisection import Piece, Verdict
    from streamer.core.destination import Permit
    from streamer.core.model import Outcome, Response

log = structlog.get_logger()
_level = logging.getLogger(__name__)  # structlog's takes longer to say that a level isn't wanted

_TOO_MUCH = {"rate_limited", "timeout"}  # the reasons to retry that ask for fewer requests
_LOOK_INTERVAL = 1.0  # seconds between two looks at every lane for what is to be given up
_REMEMBERED = 1000  # so many destinations that are held outlive their lanes: keys may come from what visitors send
_DOUBTFUL = 192  # so many requests may run beside the limit, one for each key that may not deliver
_PATIENCE = 1.0  # seconds; a request without an answer for longer, and for so many times as long as others take, ...
_SLOWER = 4.0  # ... is no reason to let others wait
_BODY_FACTOR = 1.5  # a body and its compressed copy, in bytes of the body
_PROBED_BATCHES = 8  # so many batches are closed to be probes; with more, pressure would no longer make batches larger
_UNPROVEN = " (for segment.max_hold; nothing else was accepted, so the destination may be at fault)"


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


class _Class(Enum):
    """What is known of a destination, for the sharing out of slots."""

    PROVEN = "delivered last"
    DOUBTFUL = "new, failed last, or leaves a request unanswered"
    ASKED = "doubtful, and a request is under way"
    HELD = "doesn't flow"


@dataclass(slots=True, eq=False)
class _Route:
    """A lane with what delivery knows of it.

    Attributes:
        bisection: judges what Segment refuses of it.
        refusal: what Segment said when it last refused something.
        alone_since: since when its destination is held while others deliver, in seconds; infinity while that isn't so.
    """

    lane: Lane
    destination: Destination
    bisection: Bisection
    refusal: str = ""
    alone_since: float = NEVER


@dataclass(slots=True)
class _Attempt:
    """A request that is under way.

    Attributes:
        route: its lane's.
        permit: its destination's.
        started: when, in seconds.
        regular: whether it has one of the slots for destinations that deliver.
    """

    route: _Route
    permit: Permit
    started: float
    regular: bool


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
        max_hold_seconds: float = NEVER,
        may_send: Callable[[], bool] = lambda: True,
        jitter: random.Random | None = None,
    ) -> None:
        self.interval_seconds = interval_seconds
        self._max_hold = max_hold_seconds
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
        self._witnesses = Witnesses()
        self._attempts: dict[asyncio.Task[None], _Attempt] = {}
        # Requests under way, by whose slots they have.
        self._regular = self._doubtful = self._probing = 0
        self._proven: set[Destination] = set()
        self._latency = 0.0
        # Who waits: a change of a lane is looked at once, however many lanes there are.
        self._unseen: dict[_Route, None] = {}  # a set in order
        self._queues: Queues[_Class, _Route] = Queues(_Class)
        self._spent = False
        self._wake = asyncio.Event()
        self._progress = asyncio.Event()
        self._closing: str | None = None
        self._early = False  # whether the last batch closed for memory before its time

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
        self.notify()

    def begin(self, lane: Lane, name: str = "") -> None:
        """Take a lane in.

        Args:
            lane: the lane.
            name: what a person calls its destination.
        """
        destination = self.destinations.setdefault(lane.write_key, Destination(name))
        route = self._routes[lane] = _Route(lane, destination, Bisection(self._max_hold))
        self._note(route)

    def notify(self) -> None:
        """Look at all lanes: something was added, or holds for all."""
        self._mark_all()
        self._wake.set()

    async def run(self) -> None:
        """Send until cancelled.

        Raises:
            ExceptionGroup: a bug; what is expected of a request is an Outcome.
        """
        clock = asyncio.get_running_loop().time
        looked, give_up_at = -NEVER, NEVER
        async with asyncio.TaskGroup() as group:
            while True:
                self._wake.clear()
                now = clock()
                due = NEVER
                if self._may_send():
                    if now >= min(give_up_at, looked + _LOOK_INTERVAL):
                        looked, give_up_at = now, self._give_up(now)
                    else:
                        due = looked + _LOOK_INTERVAL
                    due = min(due, give_up_at, self._start(group, now))
                else:
                    self._concurrency.binds(now, binding=False)
                    if not self.in_flight:
                        self._progress.set()  # a drain has nothing left to wait for
                try:
                    async with asyncio.timeout_at(None if due == NEVER else due):
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
        for route in self._routes.values():
            if self._witnesses.of(route.lane, clock()) is not None:
                route.bisection.hurry(clock())
        try:
            async with asyncio.timeout_at(deadline):
                self.notify()
                while any(self._hopeful(route, deadline) for route in self._routes.values()):
                    self._progress.clear()
                    self._wake.set()
                    await self._progress.wait()
        except TimeoutError:
            pass
        finally:
            self._closing = None
            self.notify()
        return all(lane.idle for lane in self._routes)

    async def end(self) -> None:
        """Forget every lane, and cancel what is being sent of them; of their destinations, those that flow."""
        for route in self._routes.values():
            for batch in route.lane.ready:
                _follow("a batch goes back to Kafka", route.destination, batch)
        self._routes.clear()
        self._witnesses.clear()
        self._queues.clear()
        self._unseen.clear()
        self._proven.clear()
        held = [(key, one) for key, one in self.destinations.items() if not one.flowing]
        self.destinations = dict(held[-_REMEMBERED:])
        tasks = list(self._attempts)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- which batch is next --------------------------------------------------------------------

    def _start(self, group: asyncio.TaskGroup, now: float) -> float:
        """Start every attempt that may start now.

        Returns:
            When to look again, in seconds; infinity for when something happens.
        """
        spent, self._spent = self._spent, self._memory_spent()
        if spent != self._spent:
            self._mark_all()
        self._unseen.update(dict.fromkeys(self._queues.due(now)))
        while self._unseen:
            self._look(self._unseen.popitem()[0], now)
        due = NEVER
        waits = False
        while (chosen := self._turn()) is not None:
            token = self._rate.ready_at(now)
            if token > now:
                due = token
                break
            batch, _ = self._next(chosen, now)
            if batch is not None:  # a batch that closed for memory may have been enough
                self._rate.take(now)
                self._attempt(group, chosen, batch, now)
            self._look(chosen, now)
        else:
            waits = self._queues.head(_Class.PROVEN if self._proven else _Class.ASKED) is not None
        self._spent = self._memory_spent()  # what has closed gives some back
        self._concurrency.binds(now, binding=waits)
        if waits:
            due = self._doubt(now)
        timer = self._queues.head(None)  # whoever was just started may have set it
        return due if timer is None else min(due, timer.since)  # or an attempt that ends wakes us

    def _mark_all(self) -> None:
        """Have all lanes looked at."""
        self._unseen.update(dict.fromkeys(self._routes.values()))

    def _memory_spent(self) -> bool:
        return any(lane.share.spent for lane in islice(self._routes, 1))  # they share one budget

    def _look(self, route: _Route, now: float) -> None:
        """Put a lane into the queue in which it belongs, or note when to look at it again."""
        destination, kind = route.destination, None
        batch, since = self._next(route, now)
        if batch is not None:
            since = batch.oldest
            if not destination.flowing:
                kind = _Class.HELD
                since = max(since, destination.until)  # so that each gets its turn
            elif destination.proven:
                kind = _Class.PROVEN
            else:
                kind = _Class.ASKED if destination.attempts else _Class.DOUBTFUL
        self._queues.put(route, kind, since)

    def _turn(self) -> _Route | None:
        """Say whose turn it is: of those that wait for a slot and may have one, who waits longest."""
        limit = self.concurrency
        may_have_one = {
            _Class.PROVEN: self._regular < limit,
            _Class.DOUBTFUL: self._doubtful < _DOUBTFUL,
            # Nobody else has a use for the slot.
            _Class.ASKED: not self._proven and self.in_flight < limit,
            _Class.HELD: self._probing < max(1, limit // 4),
        }
        heads = [self._queues.head(kind) for kind, may in may_have_one.items() if may]
        waiting = [head for head in heads if head is not None]
        return min(waiting).who if waiting else None

    def _doubt(self, now: float) -> float:
        """Doubt destinations that leave requests unanswered for long: their slots are for who waits.

        Returns:
            When to look again, in seconds; infinity for when something happens.
        """
        patience = max(_PATIENCE, _SLOWER * self._latency)
        for attempt in self._attempts.values():  # the one that was started first, first
            destination, overdue_at = attempt.route.destination, attempt.started + patience
            if not attempt.regular or destination.delivered_at > attempt.started:
                continue
            if self._proven <= {destination}:
                continue  # there is nobody else
            if self._doubtful >= _DOUBTFUL:
                return NEVER
            if now < overdue_at:
                return overdue_at
            attempt.regular = False
            self._regular -= 1
            self._doubtful += 1
            destination.doubt(now)
            self._note(attempt.route)
            self._wake.set()
        return NEVER

    def _note(self, route: _Route) -> None:
        """Note whether a destination is proven, after what it did; and that its lane has to be looked at."""
        destination = route.destination
        if destination.proven and destination not in self._proven:
            self._proven.add(destination)
            for attempt in self._attempts.values():
                if attempt.route is route and not attempt.regular:
                    attempt.regular = True
                    self._regular += 1
                    self._doubtful -= 1
        elif not destination.proven:
            self._proven.discard(destination)
        self._unseen[route] = None

    def _next(self, route: _Route, now: float) -> tuple[Batch | None, float]:
        """Choose the lane's next batch: a closed one, or the open one if it should close now.

        Returns:
            The batch, None if there is none now; and then when to look again (infinity: when something happens).
        """
        lane, destination = route.lane, route.destination
        if not destination.may_start(now):
            return None, NEVER if destination.attempts else destination.until
        waiting = [batch for batch in lane.ready if not route.bisection.blocked(batch)]
        due = [batch for batch in waiting if batch.not_before <= now]
        closes = NEVER
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
        return None, min(closes, *(batch.not_before for batch in waiting), NEVER)

    # --- what is given up -----------------------------------------------------------------------

    def _give_up(self, now: float) -> float:
        """Give up what a destination has held too long while others deliver, so that commits don't wait for ever.

        Returns:
            When to look again, in seconds; infinity for when something happens.
        """
        due = NEVER
        delivered = max((one.delivered_at for one in self.served if one.flowing), default=-NEVER)
        for route in self._routes.values():
            lane = route.lane
            if (
                delivered <= route.destination.held_since
            ):  # it flows, or no other delivers: then all wait
                route.alone_since = NEVER
                continue
            route.alone_since = since = min(route.alone_since, delivered)
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
        if batch not in route.bisection:
            route.bisection.begin(batch)
        places = route.bisection.left(batch)
        log.error(
            "segment.max_hold is over for a destination while others deliver: its calls become dead letters",
            destination=destination.name,
            batch=batch.name,
            calls=len(places),
            held_seconds=round(now - destination.held_since),
            reason=destination.reason,
        )
        batch.refused += len(places)
        for place in places:
            self._handler.refused(
                route.lane, batch, place, destination.reason, Reason.DESTINATION_UNAVAILABLE
            )
        route.lane.ready.remove(batch)
        self._settle(route, batch, now)
        self._unseen[route] = None  # what was behind it may be sent
        self._progress.set()

    # --- one attempt ----------------------------------------------------------------------------

    def _attempt(self, group: asyncio.TaskGroup, route: _Route, batch: Batch, now: float) -> None:
        """Send what is next of a batch that `_next` chose."""
        lane, destination = route.lane, route.destination
        if batch is lane.open:
            lane.close(self._closing or ("memory" if lane.share.spent else "time"), now)
        lane.ready.remove(batch)
        if batch not in route.bisection:
            route.bisection.begin(batch)
            self._observer.closed(batch)
            self._say_memory_closes(batch)
            _follow(
                "a batch is closed",
                destination,
                batch,
                trigger=batch.trigger,
                calls=len(batch),
                bytes=batch.size,
                open_seconds=round(batch.closed_at - batch.oldest, 3),
                waited_for_a_slot_seconds=round(now - batch.closed_at, 3),
            )
        witness = self._witnesses.of(lane, now)
        probes = destination.state is State.MISCONFIGURED
        piece = route.bisection.take(batch, probes=probes, witness=witness is not None)
        _follow("a request is sent", destination, batch, piece=_range(piece), tries=batch.tries)
        attempt = _Attempt(route, destination.start(), now, regular=destination.proven)
        self.in_flight += 1
        self._regular += attempt.regular
        self._doubtful += not attempt.regular
        self._probing += attempt.permit.probe
        lane.in_flight += 1
        task = group.create_task(self._send(attempt, batch, piece, witness))
        self._attempts[task] = attempt

        def ended(task: asyncio.Task[None]) -> None:
            del self._attempts[task]
            if task.cancelled():  # perhaps before its first step
                destination.abandon()
                _follow("a batch goes back to Kafka", destination, batch)
            self.in_flight -= 1
            self._regular -= attempt.regular
            self._doubtful -= not attempt.regular
            self._probing -= attempt.permit.probe
            lane.in_flight -= 1
            if lane in self._routes:
                self._note(route)
            self._wake.set()
            self._progress.set()
            self._handler.progressed()

        task.add_done_callback(ended)

    def _say_memory_closes(self, batch: Batch) -> None:
        """Say that the interval is longer than memory allows, when that begins."""
        waited = batch.closed_at - batch.oldest
        before = self._early
        self._early = batch.trigger == "memory" and waited < self.interval_seconds
        if self._early and not before:
            log.warning(
                "flush.memory_budget is spent: batches close before flush.interval",
                batch=batch.name,
                after_seconds=round(waited, 3),
                interval_seconds=self.interval_seconds,
                calls=len(batch),
                advice="raise flush.memory_budget or shorten flush.interval; see streamer_batches_closed_total",
            )

    async def _send(
        self, attempt: _Attempt, batch: Batch, piece: Piece | None, witness: bytes | None
    ) -> None:
        """Make an attempt at a part of a batch; at the witness, a call of the lane's past, if there is no part."""
        route, permit = attempt.route, attempt.permit
        lane = route.lane
        if piece is not None:
            body, tries = batch.body(_now_iso(), *piece), batch.tries
        elif witness is not None:
            body, tries = make_body([witness], _now_iso()), 0
        else:
            raise RuntimeError("neither a part of a batch nor a witness is to be sent")
        held = int(len(body) * _BODY_FACTOR)
        lane.share.take(held)
        if lane.share.spent and not self._spent:
            self._wake.set()  # what is open closes
        try:
            answer = await self._transport.attempt(lane.write_key, body, tries)
        finally:
            lane.share.give(held)
        now = asyncio.get_running_loop().time()
        self._observer.attempted(answer.outcome, answer.seconds)
        if piece is not None:
            self._handler.answered(batch, piece, answer)
        outcome = answer.outcome
        self._learn(attempt, outcome, len(body), now)
        held_since = route.destination.held_since
        changed = route.destination.finish(permit, outcome, now, self._jitter())
        _follow(
            "a request is accepted" if isinstance(outcome, Delivered) else "a request failed",
            route.destination,
            batch,
            piece=_range(piece),
            answer=_answer(outcome),
            seconds=round(answer.seconds, 3),
        )
        if changed:
            _log_state(route.destination, batch, now, held_since)
        if lane not in self._routes:
            return  # its generation has ended: what completes late counts nowhere
        self._note(route)
        if piece is not None and not isinstance(outcome, Delivered):
            batch.tries += 1
        match outcome:
            case Delivered():
                self._delivered(attempt, batch, piece, len(body), answer, now)
            case Retry():
                batch.failures += 1
                if route.destination.flowing:  # else the destination says when, for all its batches
                    batch.not_before = now + backoff(batch.failures, self._jitter())
                route.bisection.back(batch, piece)
                lane.ready.append(batch)
            case Misconfigured():
                route.bisection.misconfigured(batch, piece, now)
                lane.ready.append(batch)
            case Refused():
                batch.failures = 0
                self._refused(route, batch, piece, outcome, now)

    def _learn(self, attempt: _Attempt, outcome: Outcome, size: int, now: float) -> None:
        """Tell the limit what came of an attempt, but of a destination that is held, or alone in failing."""
        destination, seconds = attempt.route.destination, now - attempt.started
        delivered = isinstance(outcome, Delivered)
        if delivered:
            self._latency += (seconds - self._latency) / 8 if self._latency else seconds
        if attempt.permit.probe or not (attempt.regular or self._proven <= {destination}):
            return
        self._concurrency.ended(now, size if delivered else 0)
        if destination.flowing and isinstance(outcome, Retry) and outcome.reason in _TOO_MUCH:
            self._concurrency.overloaded(now, attempt.started, destination.attempts)

    def _delivered(
        self,
        attempt: _Attempt,
        batch: Batch,
        piece: Piece | None,
        body_bytes: int,
        answer: Answer,
        now: float,
    ) -> None:
        route = attempt.route
        batch.failures = 0
        if piece is not None:
            ledger = route.lane.ledger
            for kind, calls in batch.counts(*piece):
                ledger.delivered(kind, calls, batch.further(kind, *piece))
            self._observer.delivered(batch, piece, body_bytes, answer.wire_bytes, answer.seconds)
            self._witnesses.delivered(route.lane, batch, piece, now)
        verdict = route.bisection.accepted(batch, piece, attempt.started, now)
        self._judge(route, batch, verdict, now)

    def _refused(
        self, route: _Route, batch: Batch, piece: Piece | None, outcome: Refused, now: float
    ) -> None:
        lane, bisection = route.lane, route.bisection
        route.refusal = _answer(outcome)
        began = bisection.trial
        verdict = bisection.refused(
            batch,
            piece,
            now,
            too_large=outcome.status == 413,
            held=route.destination.state is State.MISCONFIGURED,
            quiet=lane.open is None and not lane.ready and not lane.waiting_calls,
        )
        if began is None and bisection.trial is batch:
            log.info(
                "Segment refused a batch; halving it to find the calls at fault",
                destination=route.destination.name,
                batch=batch.name,
                calls=len(batch),
                answer=route.refusal,
            )
        if self._closing is not None and self._witnesses.of(lane, now) is not None:
            bisection.hurry(now)
        self._judge(route, batch, verdict, now)

    def _judge(self, route: _Route, batch: Batch, verdict: Verdict, now: float) -> None:
        """Do what follows from an answer to a part of a batch, and put the batch back for what is left of it."""
        detail = f"{route.refusal}{_UNPROVEN if verdict.unproven else ''}"
        batch.refused += len(verdict.guilty)
        for place in verdict.guilty:
            self._handler.refused(route.lane, batch, place, detail)
        destination = route.destination
        if verdict.blames:
            reason = f"refuses batch after batch, call by call: {route.refusal}"
            if destination.state is State.MISCONFIGURED:
                reason = destination.reason
            if destination.misconfigured(reason, now):
                _log_state(destination, batch, now, now)
        if route.bisection.done(batch):
            self._settle(route, batch, now)
        else:
            route.lane.ready.append(batch)

    def _settle(self, route: _Route, batch: Batch, now: float) -> None:
        facts = {
            "delivered": len(batch) - batch.refused,
            "dead_letters": batch.refused,
            "failed_requests": batch.tries,
            "seconds": round(now - batch.closed_at, 3),
        }
        if route.bisection.trial is batch:
            destination = route.destination.name
            log.info(
                "a refused batch is settled", destination=destination, batch=batch.name, **facts
            )
        else:
            _follow("a batch is settled", route.destination, batch, **facts)
        route.bisection.forget(batch)
        self._handler.settled(batch)
        route.lane.settle(batch, now)

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


def _now_iso() -> bytes:
    return (
        datetime.fromtimestamp(time.time(), UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:23].encode()
        + b"Z"
    )


def _follow(event: str, destination: Destination, batch: Batch, **facts: object) -> None:
    """Log a step of a batch for who asked for `debug`; else it costs a look at the level."""
    if _level.isEnabledFor(logging.DEBUG):
        log.debug(event, destination=destination.name, batch=batch.name, **facts)


def _range(piece: Piece | None) -> str:
    """Say which calls of a batch a request has: the first and the last, counted from 0."""
    return "witness" if piece is None else f"{piece[0]}-{piece[1] - 1}"


def _answer(outcome: Outcome) -> str:
    match outcome:
        case Delivered():
            return str(outcome.status)
        case Retry():
            return outcome.detail
        case Refused() | Misconfigured():
            return f"{outcome.status} {outcome.detail}".strip()


def _log_state(destination: Destination, batch: Batch, now: float, held_since: float) -> None:
    if destination.flowing:
        log.info(
            "Segment accepts calls again",
            destination=destination.name,
            batch=batch.name,
            after_seconds=round(now - held_since, 1),
        )
        return
    log.log(
        logging.ERROR if destination.state is State.MISCONFIGURED else logging.WARNING,
        "Segment doesn't accept calls",
        destination=destination.name,
        batch=batch.name,
        state=str(destination.state),
        reason=destination.reason,
        asked_again_in_seconds=round(destination.until - now, 1),
    )


def states(destinations: Iterable[Destination]) -> dict[str, int]:
    """Count destinations by state."""
    counts = dict.fromkeys((str(state) for state in State), 0)
    for destination in destinations:
        counts[str(destination.state)] += 1
    return counts
