"""What streamer would do with a stream under other settings: its own lanes and delivery, in virtual time.

Merging, suppression, batches, slots, rate and back-pressure are the code that runs in `streamer run`. Played are only
both ends: records come from a trace when Kafka had them, and Segment accepts each request after a fixed time. What a
record costs in CPU isn't in it; docs/tuning.md says when that matters.
"""

from __future__ import annotations

import asyncio
import random
from array import array
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from math import ceil
from typing import TYPE_CHECKING, NamedTuple

from streamer import virtual_time
from streamer.core.account import Account
from streamer.core.budget import Budget
from streamer.core.model import Delivered, FilterReason, Formatted, Response
from streamer.core.offsets import Chunk
from streamer.delivery import Delivery
from streamer.pipeline import make_digests, make_lane, make_pace

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from streamer.config import Config
    from streamer.core.aggregate import Lane
    from streamer.core.batch import Batch
    from streamer.core.bisection import Piece
    from streamer.core.model import Outcome, Partition, Reason
    from streamer.delivery import Answer
    from streamer.trace import Arrival, Trace

READ_SECONDS = 0.01
"""Records that come within so long are read together; Kafka answers a fetch that waits as soon as there is one."""
READ_RECORDS = 500
"""So many are read together at most; see `streamer.source`."""
READ_BYTES = 512 * 1024
"""From where on a partition gives no more at once."""

LATE_PERCENT = 95
"""How late records are is said by the age that so many of them don't pass."""

FEWEST_POINTS = 3
"""With fewer there is nothing between the first and the last, and no knee."""

_TURN = 1e-6  # seconds in which delivery sees to what was read
_ANY = float("inf")
_NOTHING = 0.05  # of what is compared
_HARDLY = 0.002
_STEPS = 6
_OK = Response(200, {}, '{"success":true}')


@dataclass(slots=True)
class Played:
    """What came of a trace under some settings.

    Rates and batches are those of the time from the first record to the last; a batch that is open at its end counts by
    how far it has come. If the records come faster than they can be sent, the time goes on until those batches are sent
    that were closed by then. Lateness is that of every record.

    Attributes:
        seconds: that time.
        records: how many came.
        ages: how old each record was when Segment had accepted its page or track call, in seconds, ascending.
        requests: how many batches closed.
        calls: how many calls stood in these.
        body_bytes: bytes of their bodies, before compression.
        made, merged, suppressed: calls that were made of the records, merged into others, and left out.
        triggers: why batches closed.
        sizes: calls of each batch that closed, ascending.
        bodies: bytes of each of their bodies, before compression, ascending.
        peak_bytes: the most that was held of the memory budget.
        spent_seconds: how long reading waited for memory.
        behind_seconds: how much of the time is behind the last record.
        keeps_up: whether that is little; else lateness grows for as long as records come like that.
    """

    seconds: float
    records: int = 0
    ages: array[float] = field(default_factory=lambda: array("d"))
    requests: float = 0.0
    calls: int = 0
    body_bytes: int = 0
    made: int = 0
    merged: int = 0
    suppressed: int = 0
    triggers: Counter[str] = field(default_factory=Counter)
    sizes: list[int] = field(default_factory=list)
    bodies: list[int] = field(default_factory=list)
    peak_bytes: int = 0
    spent_seconds: float = 0.0
    behind_seconds: float = 0.0
    keeps_up: bool = True

    def lateness(self, percent: float) -> float:
        """Give a percentile of the records' ages at their delivery, in seconds; NaN if none was delivered.

        Args:
            percent: of the records that are at most so old, from 0 to 100.
        """
        ages = self.ages
        if not ages:
            return float("nan")
        return ages[max(ceil(len(ages) * percent / 100) - 1, 0)]

    @property
    def requests_per_second(self) -> float:
        """Requests a second, on average."""
        return self.requests / self.seconds

    @property
    def calls_per_request(self) -> float:
        """Calls in a request, on average."""
        return self.calls / self.requests if self.requests else float("nan")

    @property
    def bytes_per_second(self) -> float:
        """Bytes of bodies a second, before compression."""
        return self.body_bytes / self.seconds

    @property
    def billed(self) -> int:
        """How many calls Segment bills: those that were made, without those that were merged or left out."""
        return self.made - self.merged - self.suppressed

    @property
    def saved(self) -> float:
        """The share of the bill that merging and suppression save: of the calls that were made, those never sent."""
        return (self.merged + self.suppressed) / self.made if self.made else 0.0


def play(config: Config, trace: Trace, request_seconds: float) -> Played:
    """Play a trace under some settings.

    Args:
        config: all settings, of which those of `[aggregate]` and `[flush]` count.
        trace: what comes.
        request_seconds: how long Segment takes for a request.

    Returns:
        What came of it.

    Raises:
        RuntimeError: it is called where an event loop runs.
    """
    settings = config.transform.model_copy(update={"profile": trace.profile})
    config = config.model_copy(update={"transform": settings})
    return virtual_time.run(_Play(config, trace, request_seconds).run())


class _Accepted(NamedTuple):
    """The answer to a request; see `streamer.delivery.Answer`."""

    outcome: Outcome
    response: Response | Exception
    wire_bytes: int
    seconds: float


class _Play:
    """One play: Delivery's transport, handler and observer, and what reads."""

    def __init__(self, config: Config, trace: Trace, request_seconds: float) -> None:
        self._config = config
        self._arrivals = trace.arrivals
        self._request_seconds = request_seconds
        self._start_ms = trace.arrivals[0].at_ms
        self._budget = Budget(config.flush.memory_budget)
        self._share = self._budget.share()
        self._digests = make_digests(config, self._share)
        self._account = Account()
        self._ledger = self._account.ledger()
        self._lanes: dict[str, Lane] = {}
        self._room = asyncio.Event()
        self._over = False
        self._left: set[Batch] = set()
        self._settled = asyncio.Event()
        # A trace whose records all have one timestamp is a backlog, which takes no time to come.
        self._seconds = max(trace.seconds, READ_SECONDS)
        self._played = Played(self._seconds, records=len(trace.arrivals))
        self._delivery = Delivery(
            self,
            handler=self,
            observer=self,
            **make_pace(config),
            jitter=random.Random(0),  # noqa: S311 - reproducible on purpose
        )

    async def run(self) -> Played:
        sending = asyncio.create_task(self._delivery.run())
        try:
            await self._read()
            self._end_of_arrivals()
            while self._account.in_flight:
                self._settled.clear()
                await self._settled.wait()
        finally:
            sending.cancel()
            await asyncio.wait({sending})
        played, account = self._played, self._account
        played.made = sum(account.made.values())
        played.merged = sum(account.merged.values())
        played.suppressed = sum(account.suppressed.values())
        played.peak_bytes = self._budget.peak
        played.ages = array("d", sorted(played.ages))
        played.sizes.sort()
        played.bodies.sort()
        return played

    # --- records in -----------------------------------------------------------------------------

    async def _read(self) -> None:
        clock = asyncio.get_running_loop().time
        arrivals, begin = self._arrivals, 0
        while begin < len(arrivals):
            await asyncio.sleep(max(self._there_at(arrivals[begin]) - clock(), _TURN))
            waited = clock()
            while self._budget.spent:
                self._room.clear()
                await self._room.wait()
            self._played.spent_seconds += clock() - waited
            together = self._readable(begin, clock())
            self._add(together, clock())
            begin += len(together)

    def _there_at(self, arrival: Arrival) -> float:
        """Say when a record is read at the earliest: by the first of the reads, at regular times, that finds it."""
        number = -(-(arrival.at_ms - self._start_ms) // round(READ_SECONDS * 1000))
        return virtual_time.START + number * READ_SECONDS

    def _readable(self, begin: int, now: float) -> list[Arrival]:
        """Give what is read at once: what is there, as much as one read brings."""
        taken: list[Arrival] = []
        sizes: Counter[Partition] = Counter()
        until = max(now, self._there_at(self._arrivals[begin]))
        for arrival in islice(self._arrivals, begin, begin + READ_RECORDS):
            if self._there_at(arrival) > until or sizes[arrival.partition] >= READ_BYTES:
                break
            sizes[arrival.partition] += arrival.size
            taken.append(arrival)
        return taken

    def _add(self, arrivals: Sequence[Arrival], now: float) -> None:
        by_partition: dict[Partition, list[Arrival]] = {}
        for arrival in arrivals:
            by_partition.setdefault(arrival.partition, []).append(arrival)
        for partition, records in by_partition.items():
            chunk = Chunk(
                partition,
                range(len(records)),
                [record.at_ms for record in records],
                [None] * len(records),
                self._share,
                now,
            )
            size = sum(record.size for record in records)
            self._ledger.consumed(partition[0], len(records), size)
            self._share.take(size)
            for number, record in enumerate(records):
                self._take(record, chunk, number)
            chunk.let_go()
            self._share.give(size)
        self._delivery.notify()

    def _take(self, record: Arrival, chunk: Chunk, number: int) -> None:
        ledger = self._ledger
        if record.made is None:
            ledger.filtered(FilterReason.EMPTY)  # or rejected: no call is made of it
            return
        calls = record.made.calls()
        lane = self._lanes.get(record.write_key)
        if lane is None:
            lane = self._begin_lane(record.write_key)
        if isinstance(calls, Formatted):
            for contribution in calls.contributions:
                ledger.made(contribution.type)
            ledger.made(calls.type)
            lane.add(calls, chunk, number)
        else:
            for call in calls.taken:
                ledger.made(call.type)
            lane.add_changed(calls, chunk, number)
            if not calls.decided:
                ledger.settled(1)

    def _begin_lane(self, write_key: str) -> Lane:
        lane = self._lanes[write_key] = make_lane(
            self._config, write_key, self._ledger, self._share, self._digests
        )
        self._delivery.begin(lane)
        return lane

    def _end_of_arrivals(self) -> None:
        """Count the batches that are open by how far they have come; rates end here."""
        now, flush = asyncio.get_running_loop().time(), self._config.flush
        for lane in self._lanes.values():
            for waiting in lane.ready:
                self.closed(waiting)
                self._left.add(waiting)
            batch = lane.open
            if batch is not None:
                waited = (now - batch.oldest) / flush.interval
                filled = max(batch.size / flush.max_bytes, len(batch) / flush.max_calls)
                self._played.requests += min(max(waited, filled), 1.0)
                self._count(batch)
        self._over = True
        self._goes_on(now)

    def _goes_on(self, now: float) -> None:
        """Note that some of what came is sent only now."""
        played = self._played
        played.seconds = max(now - virtual_time.START, played.seconds)
        played.behind_seconds = played.seconds - self._seconds
        little = max(_NOTHING * self._seconds, 2 * self._request_seconds)
        played.keeps_up = played.behind_seconds <= little

    def _count(self, batch: Batch) -> None:
        self._played.calls += len(batch)
        self._played.body_bytes += batch.size

    # --- what delivery asks ---------------------------------------------------------------------

    async def attempt(self, write_key: str, body: bytes, tries: int) -> Answer:  # noqa: ARG002 - all are alike
        """Accept a request, after a while."""
        await asyncio.sleep(self._request_seconds)
        return _Accepted(Delivered(200), _OK, len(body), self._request_seconds)

    def closed(self, batch: Batch) -> None:
        """Count a batch."""
        if not self._over:
            played = self._played
            played.requests += 1
            played.triggers[batch.trigger or ""] += 1
            played.sizes.append(len(batch))
            played.bodies.append(batch.size)
            self._count(batch)
        elif batch in self._left:
            self._goes_on(asyncio.get_running_loop().time())

    def attempted(self, outcome: Outcome, seconds: float) -> None:
        """Nothing to count: each attempt delivers."""

    def delivered(
        self,
        batch: Batch,
        piece: Piece,  # noqa: ARG002 - it is the whole batch: nothing is refused
        body_bytes: int,  # noqa: ARG002
        wire_bytes: int,  # noqa: ARG002
        seconds: float,  # noqa: ARG002
    ) -> None:
        """Note how old the records are."""
        clock = asyncio.get_running_loop().time()
        now_ms = self._start_ms + (clock - virtual_time.START) * 1000
        self._played.ages.extend((now_ms - stamp) / 1000 for stamp in batch.timestamps())

    def refused(
        self, lane: Lane, batch: Batch, place: int, detail: str, reason: Reason | None = None
    ) -> None:
        """Never: Segment accepts everything."""
        raise AssertionError(detail, lane, batch, place, reason)

    def answered(self, batch: Batch, piece: Piece, answer: Answer) -> None:
        """Nobody wants to know."""

    def settled(self, batch: Batch) -> None:
        """Nobody wants to know."""

    def progressed(self) -> None:
        """Go on reading, or end."""
        if not self._budget.spent:
            self._room.set()
        self._settled.set()


class Point(NamedTuple):
    """What a trace comes to at one flush interval, the other settings being equal.

    Attributes:
        interval_seconds: `flush.interval`.
        played: what came of it.
    """

    interval_seconds: float
    played: Played

    @property
    def late(self) -> float:
        """How old the latest records are, but for one in twenty, in seconds."""
        return self.played.lateness(LATE_PERCENT)


def knee(points: Sequence[Point]) -> Point | None:
    """Find where going on costs more than it gains: the point farthest below the line from the first to the last.

    Args:
        points: by rising interval, of which those count that keep up; lateness and requests a second are seen relative
            to the range that they span.

    Returns:
        The point; None if there is no such bend: where batches are full before they are old, intervals change nothing.
    """
    points = [point for point in points if point.played.keeps_up]
    if len(points) < FEWEST_POINTS:
        return None
    first, last = points[0], points[-1]
    later = last.late - first.late
    fewer = first.played.requests_per_second - last.played.requests_per_second
    if later <= 0 or fewer <= _NOTHING * first.played.requests_per_second:
        return None
    below = [
        1
        - (point.late - first.late) / later
        - (point.played.requests_per_second - last.played.requests_per_second) / fewer
        for point in points
    ]
    most = max(below)
    return points[below.index(most)] if most > _NOTHING else None


@dataclass(frozen=True, slots=True)
class Aim:
    """What is wanted.

    Attributes:
        max_lateness: seconds that 95 % of the records may be late at most; infinity for any.
        max_requests: requests a second, at most; infinity for any.
    """

    max_lateness: float = _ANY
    max_requests: float = _ANY

    def met(self, point: Point) -> bool:
        """Whether a point is as wanted; never if records come faster than they are sent."""
        return (
            point.played.keeps_up
            and point.late <= self.max_lateness
            and point.played.requests_per_second <= self.max_requests
        )


def recommend(points: Sequence[Point], aim: Aim, at: Callable[[float], Point]) -> Point | None:
    """Find the interval that meets an aim best: the longest that is late enough, or the shortest with few requests.

    Where lateness is limited, the longest interval costs least, or one that costs as little; where only requests are,
    the shortest is least late.

    Args:
        points: by rising interval.
        aim: what is wanted.
        at: plays another interval, in seconds.

    Returns:
        The point, one of those given or at an interval of two digits between them; None if none meets the aim.
    """
    longest = aim.max_lateness != _ANY
    ordered = list(reversed(points)) if longest else list(points)
    place = next((n for n, point in enumerate(ordered) if aim.met(point)), None)
    if place is None:
        if aim.max_requests == _ANY or not longest:
            return None
        # Between two of them: the longest that is late enough has the fewest requests.
        best = recommend(points, Aim(aim.max_lateness), at)
        return best if best is not None and aim.met(best) else None
    best = ordered[place]
    missed = ordered[place - 1].interval_seconds if place else best.interval_seconds
    for _ in range(_STEPS):
        tried = _two_digits((best.interval_seconds * missed) ** 0.5)
        if not min(best.interval_seconds, missed) < tried < max(best.interval_seconds, missed):
            break
        point = at(tried)
        if aim.met(point):
            best = point
        else:
            missed = tried
    if not longest:
        return best
    # Where batches are full it costs nothing to wait for less long, and in quieter hours it is less late.
    good = [point for point in (*points, best) if aim.met(point)]
    fewest = min(point.played.requests_per_second for point in good)
    cheapest = [one for one in good if one.played.requests_per_second <= (1 + _HARDLY) * fewest]
    return min(cheapest, key=lambda point: point.interval_seconds)


def _two_digits(seconds: float) -> float:
    return float(f"{seconds:.1e}")
