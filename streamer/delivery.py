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
from typing import TYPE_CHECKING, Protocol

import structlog

from streamer.core.bisection import Pieces
from streamer.core.destination import PROBE_INTERVAL, Destination, State, backoff
from streamer.core.limiter import RateLimit
from streamer.core.model import CALL_TYPES, Delivered, Misconfigured, Refused, Retry

if TYPE_CHECKING:
    from collections.abc import Iterable

    from streamer.core.aggregate import Lane
    from streamer.core.batch import Batch
    from streamer.core.bisection import Piece
    from streamer.core.destination import Permit
    from streamer.core.model import Outcome

log = structlog.get_logger()

_NEVER = float("inf")
_BODY_FACTOR = 1.5  # a body and its compressed copy, in bytes of the body
_PAGE, _TRACK = CALL_TYPES.index("page"), CALL_TYPES.index("track")


class Answer(Protocol):
    """What a transport gives for an attempt; see `streamer.segment.Answer`."""

    @property
    def outcome(self) -> Outcome:
        """What the answer means."""

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

    def refused(self, lane: Lane, batch: Batch, place: int, detail: str) -> None:
        """Make a dead letter of a call that is at fault; it has to hold the call's chunk before this returns."""

    def progressed(self) -> None:
        """Look whether there is room to read again: an attempt has ended."""


@dataclass(slots=True)
class _Route:
    """A lane with what delivery knows of it.

    Attributes:
        pieces: of each batch that isn't settled and was sent before, what is left to send.
        bisecting: the one batch that is being bisected.
        bisecting_since: when its first part was refused, in seconds.
        others_refused: how many other batches were refused since then, while nothing was accepted.
        probes: how many probes were refused, so that each takes another call.
    """

    lane: Lane
    destination: Destination
    pieces: dict[Batch, Pieces] = field(default_factory=dict)
    bisecting: Batch | None = None
    bisecting_since: float = 0.0
    others_refused: int = 0
    probes: int = 0
    refusal: str = ""


class Delivery:
    """Sends what the lanes of the current generation close.

    Args:
        transport: makes an attempt.
        handler: takes what can't be delivered.
        observer: is told what the metrics need.
        concurrency: requests side by side.
        max_requests_per_second: on average.
        interval_seconds: how old the oldest call of a batch becomes before it closes, if a slot is free.
        jitter: gives random numbers from 0 to 1.
    """

    def __init__(
        self,
        transport: Transport,
        handler: Handler,
        observer: Observer,
        *,
        concurrency: int,
        max_requests_per_second: float,
        interval_seconds: float,
        jitter: random.Random | None = None,
    ) -> None:
        self.concurrency = concurrency
        self.interval_seconds = interval_seconds
        self.in_flight = 0
        self.destinations: dict[str, Destination] = {}
        self._transport = transport
        self._handler = handler
        self._observer = observer
        self._rate = RateLimit(max_requests_per_second)
        self._jitter = (jitter or random.SystemRandom()).random
        self._routes: dict[Lane, _Route] = {}
        self._tasks: dict[asyncio.Task[None], Lane] = {}
        self._wake = asyncio.Event()
        self._progress = asyncio.Event()
        self._closing: str | None = None

    def begin(self, lane: Lane) -> None:
        """Take a lane in."""
        destination = self.destinations.setdefault(lane.write_key, Destination())
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
                due = self._start(group, clock())
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
        """Forget every lane, and cancel what is being sent of them."""
        self._routes.clear()
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
            token = self._rate.ready_at(now)
            due = _NEVER
            best: _Route | None = None
            best_oldest = _NEVER
            for route in self._routes.values():
                oldest, at = self._oldest(route, now)
                due = min(due, at)
                if at <= now and oldest < best_oldest:
                    best, best_oldest = route, oldest
            if best is None:
                return due
            if token > now:
                return token
            self._rate.take(now)
            self._attempt(group, best, now)
        return _NEVER  # an attempt that ends wakes us

    def _oldest(self, route: _Route, now: float) -> tuple[float, float]:
        """Say how old the lane's next batch is, and when it may be sent (infinity: not before something happens)."""
        destination = route.destination
        if not destination.flowing and destination.attempts:
            return _NEVER, _NEVER
        held = 0.0 if destination.flowing else destination.until
        at = _NEVER
        for batch in route.lane.ready:
            if not self._blocked(route, batch):
                if batch.not_before <= now:
                    return batch.oldest, max(held, now)
                at = min(at, batch.not_before)
        unclosed = route.lane.open
        if unclosed is not None:
            early = self._closing is not None or route.lane.share.spent
            closes = now if early else unclosed.oldest + self.interval_seconds
            if closes <= now:
                return unclosed.oldest, max(held, now)
            at = min(at, closes)
        return _NEVER, max(held, at)

    def _blocked(self, route: _Route, batch: Batch) -> bool:
        """Whether a batch that Segment refused has to wait until another one is bisected."""
        pieces = route.pieces.get(batch)
        if route.bisecting is None or route.bisecting is batch or pieces is None:
            return False
        return pieces.bisecting and not route.pieces[route.bisecting].undecided

    def _take(self, route: _Route, now: float) -> Batch:
        """Take the lane's next batch, which `_oldest` found."""
        lane = route.lane
        for index, batch in enumerate(lane.ready):
            if batch.not_before <= now and not self._blocked(route, batch):
                del lane.ready[index]
                return batch
        spent = "memory" if lane.share.spent else "time"
        lane.close(self._closing or spent, now)
        return lane.ready.pop()

    # --- one attempt ----------------------------------------------------------------------------

    def _attempt(self, group: asyncio.TaskGroup, route: _Route, now: float) -> None:
        batch = self._take(route, now)
        pieces = route.pieces.get(batch)
        if pieces is None:
            pieces = route.pieces[batch] = Pieces(len(batch))
            self._observer.closed(batch)
        permit = route.destination.start()
        single = None
        if route.destination.state is State.MISCONFIGURED:
            single = _probe_place(batch, route.probes)
        piece = pieces.take(single)
        self.in_flight += 1
        route.lane.in_flight += 1
        task = group.create_task(self._send(route, batch, piece, permit))
        self._tasks[task] = route.lane

        def ended(task: asyncio.Task[None]) -> None:
            del self._tasks[task]
            self.in_flight -= 1
            self._wake.set()
            self._progress.set()
            self._handler.progressed()

        task.add_done_callback(ended)

    async def _send(self, route: _Route, batch: Batch, piece: Piece, permit: Permit) -> None:
        lane = route.lane
        clock = asyncio.get_running_loop().time
        started = clock()
        body = batch.body(_now_iso(), *piece)
        held = int(len(body) * _BODY_FACTOR)
        lane.share.take(held)
        finished = False
        try:
            answer = await self._transport.attempt(lane.write_key, body, batch.tries)
            finished = True
        finally:
            lane.share.give(held)
            lane.in_flight -= 1
            if not finished:
                route.destination.abandon()
        now = clock()
        self._observer.attempted(answer.outcome, answer.seconds)
        outcome = answer.outcome
        if route.destination.finish(permit, outcome, now, self._jitter()):
            _log_state(route.destination)
        if lane not in self._routes:
            return  # its generation has ended: what completes late counts nowhere
        match outcome:
            case Delivered():
                self._delivered(route, batch, piece, len(body), answer, started, now)
            case Retry():
                batch.tries += 1
                if route.destination.flowing:  # else the destination says when, for all its batches
                    batch.not_before = now + backoff(batch.tries, self._jitter())
                self._back(route, batch, piece)
            case Misconfigured():
                batch.tries += 1
                route.probes += 1
                self._back(route, batch, piece)
            case Refused():
                self._refused(route, batch, piece, outcome, now)

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
            lane.ledger.delivered(kind, calls)
        self._observer.delivered(batch, piece, body_bytes, answer.wire_bytes, answer.seconds)
        other = route.bisecting
        if other is not None and other is not batch and started >= route.bisecting_since:
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
        self._convict(route, batch, pieces.accepted())
        self._go_on(route, batch, now)

    def _refused(
        self, route: _Route, batch: Batch, piece: Piece, outcome: Refused, now: float
    ) -> None:
        pieces = route.pieces[batch]
        batch.tries += 1
        route.refusal = f"{outcome.status} {outcome.detail}".strip()
        if route.destination.state is State.MISCONFIGURED:
            route.probes += 1
            route.destination.misconfigured(route.destination.reason, now)
            self._back(route, batch, piece)
            return
        if outcome.status == 413 and piece[1] - piece[0] == 1:
            self._convict(route, batch, (piece[0],))
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
            if pieces.only_suspects or pieces.done:
                self._convict(route, batch, (piece[0], *pieces.convict()))
                self._go_on(route, batch, now)
                return
            pieces.back(piece)
            self._blame_destination(route, now)
            route.lane.ready.appendleft(batch)
            return
        if other is None:
            route.bisecting = batch
            route.bisecting_since = now
            route.others_refused = 0
            log.info(
                "Segment refused a batch; halving it to find the calls at fault",
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
        """Two batches were refused and nothing was accepted: hold the destination, and drop every suspicion."""
        for batch, pieces in route.pieces.items():
            if pieces.bisecting:
                pieces.reset()
                batch.not_before = now
        route.bisecting = None
        if route.destination.misconfigured(
            f"refuses batch after batch, call by call: {route.refusal}", now
        ):
            _log_state(route.destination)

    def _go_on(self, route: _Route, batch: Batch, now: float) -> None:
        """Settle a batch of which nothing is left, or put it back in front for what is."""
        if route.pieces[batch].done:
            self._settle(route, batch, now)
        else:
            route.lane.ready.appendleft(batch)

    def _back(self, route: _Route, batch: Batch, piece: Piece) -> None:
        route.pieces[batch].back(piece)
        route.lane.ready.appendleft(batch)

    def _settle(self, route: _Route, batch: Batch, now: float) -> None:
        del route.pieces[batch]
        if route.bisecting is batch:
            route.bisecting = None
        route.lane.settle(batch, now)

    def _convict(self, route: _Route, batch: Batch, places: tuple[int, ...]) -> None:
        for place in places:
            self._handler.refused(route.lane, batch, place, route.refusal)

    def _hopeful(self, route: _Route, deadline: float) -> bool:
        """Whether waiting until the deadline can bring this lane on."""
        if route.lane.idle:
            return False
        destination = route.destination
        if destination.flowing:
            return True
        return destination.state is not State.MISCONFIGURED and destination.until < deadline


def _probe_place(batch: Batch, probes: int) -> int | None:
    """Choose the call of a probe: a page or track call, since their order doesn't count; each time another one."""
    mains = [place for place, kind in enumerate(batch.types) if kind in (_PAGE, _TRACK)]
    return mains[probes % len(mains)] if mains else None


def _now_iso() -> bytes:
    return (
        datetime.fromtimestamp(time.time(), UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:23].encode()
        + b"Z"
    )


def _log_state(destination: Destination) -> None:
    if destination.flowing:
        log.info("Segment accepts calls again")
    else:
        log.warning(
            "Segment doesn't accept calls", state=str(destination.state), reason=destination.reason
        )


def states(destinations: Iterable[Destination]) -> dict[str, int]:
    """Count destinations by state."""
    counts = dict.fromkeys((str(state) for state in State), 0)
    for destination in destinations:
        counts[str(destination.state)] += 1
    return counts
