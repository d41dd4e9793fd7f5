"""Delivery's promises, on real lanes, against a Segment that is played at the transport, in virtual time."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import blake2b
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Self

import orjson
import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from fake_segment import LATENCY, OK, Attempt, FakeSegment, clock, reply
from streamer import virtual_time
from streamer.core.account import Account, Ledger
from streamer.core.aggregate import Lane, Merging
from streamer.core.batch import Limits
from streamer.core.bisection import WITNESS_BYTES
from streamer.core.budget import Budget
from streamer.core.destination import MAX_BACKOFF, PROBE_INTERVAL, State, backoff
from streamer.core.model import (
    Contribution,
    Formatted,
    Misconfigured,
    Reason,
    Refused,
    Retry,
)
from streamer.core.offsets import Chunk
from streamer.delivery import Delivery, states

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from streamer.core.batch import Batch
    from streamer.core.bisection import Piece
    from streamer.core.model import Outcome
    from streamer.delivery import Answer

BAD_REQUEST = Refused(400, "no")
UNAUTHORIZED = Misconfigured(401, "who are you")
UNAVAILABLE = Retry("server_error", "503", 503)
HOUR = 3600.0
FLOOR_MS = 0.001
ROOMY = Limits()


def refuse(*bad: str) -> Callable[[Attempt], Outcome]:
    """Answer as Segment does when it dislikes single calls."""
    return lambda attempt: BAD_REQUEST if set(bad) & set(attempt.ids) else OK


class FullJitter(random.Random):
    """Every backoff takes its longest."""

    def random(self) -> float:
        return 1.0


@dataclass(slots=True)
class Notes:
    """Delivery's handler and observer: keeps what it is told, and acknowledges each dead letter at once."""

    closed_batches: list[Batch] = field(default_factory=list)
    refusals: list[tuple[str, str, int]] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    delivered_calls: int = 0
    progress: int = 0

    def closed(self, batch: Batch) -> None:
        self.closed_batches.append(batch)

    def attempted(self, outcome: Outcome, seconds: float) -> None:
        assert seconds >= 0
        self.outcomes.append(outcome)

    def delivered(
        self, batch: Batch, piece: Piece, body_bytes: int, wire_bytes: int, seconds: float
    ) -> None:
        assert body_bytes > 0
        assert (wire_bytes, seconds) == (10, LATENCY)
        assert piece[1] <= len(batch)
        self.delivered_calls += piece[1] - piece[0]

    def refused(
        self, lane: Lane, batch: Batch, place: int, detail: str, reason: Reason = Reason.REFUSED
    ) -> None:
        chunk = batch.chunks[batch.chunk_numbers[place]]
        chunk.hold()  # must still be possible: the batch lets go afterwards
        call = orjson.loads(batch.calls[place])
        self.refusals.append((call["messageId"], detail, batch.tries))
        lane.ledger.refused(call["type"], reason)
        chunk.let_go()

    def answered(self, batch: Batch, piece: Piece, answer: Answer) -> None:
        assert answer.outcome is self.outcomes[-1]
        assert 0 <= piece[0] < piece[1] <= len(batch)

    def settled(self, batch: Batch) -> None:
        assert batch.calls

    def progressed(self) -> None:
        self.progress += 1

    @property
    def triggers(self) -> list[str | None]:
        return [batch.trigger for batch in self.closed_batches]

    @property
    def convicted(self) -> list[str]:
        return [name for name, _, _ in self.refusals]


class Rig:
    """A running delivery, with all that it needs around it.

    Args:
        segment: the transport.
        limits: of a batch.
        memory: bytes of the budget.
        settings: of delivery.
    """

    def __init__(
        self,
        segment: FakeSegment,
        *,
        limits: Limits = ROOMY,
        memory: int = 100_000_000,
        **settings: Any,
    ) -> None:
        self.segment = segment
        self.notes = Notes()
        self.account = Account()
        self.budget = Budget(memory)
        self.chunks: list[Chunk] = []
        self.generations: list[Ledger] = []
        self.limits = limits
        usual: dict[str, Any] = {
            "concurrency": 8,
            "max_requests_per_second": 1000,
            "interval_seconds": 1.0,
        }
        self.delivery = Delivery(
            segment,
            handler=self.notes,
            observer=self.notes,
            jitter=FullJitter(),
            **(usual | settings),
        )

    async def __aenter__(self) -> Self:
        self._running = asyncio.create_task(self.delivery.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self._running  # what ended it before is a bug, and raised here
        assert not self.segment.running
        assert self.delivery.in_flight == 0

    @property
    def ended(self) -> bool:
        """Whether delivery ended by itself, which only a bug does."""
        return self._running.done()

    def lane(self, key: str = "key") -> Lane:
        """Begin a generation with one lane."""
        ledger = self.account.ledger()
        self.generations.append(ledger)
        lane = Lane(
            write_key=key,
            limits=self.limits,
            merging=Merging(),
            nonce=b"n" * 16,
            ledger=ledger,
            share=self.budget.share(),
        )
        self.delivery.begin(lane)
        return lane

    def add(self, lane: Lane, *ids: str, user: str | None = None, padding: int = 0) -> None:
        """Read a record for each id, whose page call has this id; with a user, it is identified too."""
        for name in ids:
            now = asyncio.get_running_loop().time()
            stamps = [1_700_000_000_000]
            chunk = Chunk(("events", 0), [len(self.chunks)], stamps, [None], read_at=now)
            self.chunks.append(chunk)
            lane.ledger.consumed("events", 1, 1)
            page = {"type": "page", "messageId": name, "padding": "x" * padding}
            said = () if user is None else (identify(user, len(self.chunks)),)
            formatted = Formatted(said, "page", orjson.dumps(page))
            for made in (*(one.type for one in said), "page"):
                lane.ledger.made(made)
            lane.add(formatted, chunk, 0)
            chunk.let_go()
        self.delivery.notify()

    async def idle(self, *lanes: Lane, within: float = 60.0) -> None:
        """Wait until nothing is left in these lanes."""
        deadline = clock() + within
        while not all(lane.idle for lane in lanes):
            assert clock() < deadline, f"still not delivered after {within:g} s"
            await asyncio.sleep(0.05)

    def assert_settled(self) -> None:
        """Nothing is held any more but the witnesses, and the account balances."""
        assert self.account.balance() == []
        assert self.account.in_flight == 0
        assert sum(self.account.calls_in_flight.values()) == 0
        assert self.notes.delivered_calls == len(self.segment.accepted), "a witness isn't counted"
        assert self.budget.used <= WITNESS_BYTES * len(self.delivery.served)
        assert [chunk.holders for chunk in self.chunks] == [0] * len(self.chunks)


def identify(user: str, number: int) -> Contribution:
    """An identify call that says `n` of its user."""
    call = {"type": "identify", "messageId": "", "userId": user, "traits": None}
    own_hash = blake2b(b"i%d" % number, digest_size=16)
    return Contribution(
        "identify", user, (user, None), call, {"n": number}, b'{"n":%d}' % number, own_hash
    )


def tell(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a story in virtual time."""
    with structlog.testing.capture_logs():
        virtual_time.run(story())


def names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


# --- when a batch closes --------------------------------------------------------------------------


def test_a_batch_closes_when_its_oldest_call_is_as_old_as_the_interval() -> None:
    """Calls that come meanwhile go along; the interval counts from the first."""

    async def story() -> None:
        async with Rig(FakeSegment(), interval_seconds=1.5) as rig:
            lane = rig.lane()
            rig.add(lane, "a")
            await asyncio.sleep(1.0)
            rig.add(lane, "b")
            await rig.idle(lane)
            [attempt] = rig.segment.attempts
            assert attempt.at == pytest.approx(1.5)
            assert attempt.ids == ["a", "b"]
            assert rig.notes.triggers == ["time"]
            rig.assert_settled()

    tell(story)


@pytest.mark.parametrize(
    ("limits", "trigger"),
    [(Limits(max_calls=3), "calls"), (Limits(max_bytes=1200), "bytes")],
)
def test_a_full_batch_is_sent_at_once(limits: Limits, trigger: str) -> None:
    """Size doesn't wait for the interval."""

    async def story() -> None:
        async with Rig(FakeSegment(), limits=limits) as rig:
            lane = rig.lane()
            rig.add(lane, *names("p", 4), padding=300)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert [attempt.at for attempt in rig.segment.attempts] == [0.0]
            assert rig.notes.triggers == [trigger]
            await rig.idle(lane)
            assert rig.segment.accepted == names("p", 4)

    tell(story)


def test_what_is_open_closes_in_time_while_a_full_batch_of_its_lane_is_under_way() -> None:
    """It became the lane's next one only when the full one was sent."""

    async def story() -> None:
        async with Rig(FakeSegment(), limits=Limits(max_calls=2)) as rig:
            rig.segment.latency = lambda attempt: 10.0 if "a" in attempt.ids else LATENCY
            lane = rig.lane()
            rig.add(lane, "first")
            await rig.idle(lane)
            began = clock()
            rig.add(lane, "a", "b", "c")
            await rig.idle(lane)
            sent = {attempt.ids[0]: attempt.at - began for attempt in rig.segment.attempts}
            assert sent["a"] == 0.0
            assert sent["c"] == pytest.approx(1.0)
            rig.assert_settled()

    tell(story)


def test_a_budget_that_a_body_spends_closes_what_is_open() -> None:
    """Nothing else may happen until that request has its answer."""

    async def story() -> None:
        async with Rig(
            FakeSegment(), limits=Limits(max_calls=1), interval_seconds=600.0, memory=5000
        ) as rig:
            rig.segment.latency = lambda attempt: 10.0 if "large" in attempt.ids else LATENCY
            other = rig.lane("other")
            rig.limits = ROOMY
            lane = rig.lane()
            rig.add(lane, "small")
            rig.add(other, "large", padding=2500)
            assert not rig.budget.spent
            await asyncio.sleep(1.0)
            assert rig.budget.spent
            assert [attempt.ids for attempt in rig.segment.attempts] == [["large"], ["small"]]
            await rig.idle(lane, other)
            rig.assert_settled()

    tell(story)


def test_what_is_behind_a_batch_that_is_given_up_is_sent_at_once() -> None:
    """Nothing else tells its lane that there is something to send, until the time of what was given up."""

    async def story() -> None:
        def answer(attempt: Attempt) -> Outcome:
            if attempt.key != "held" or "later" in attempt.ids:
                return OK
            return Retry("rate_limited", "429", 429, 1.0) if attempt.at < 1.0 else BAD_REQUEST

        async with Rig(
            FakeSegment(answer),
            limits=Limits(max_calls=2),
            interval_seconds=600.0,
            max_hold_seconds=20.0,
        ) as rig:
            lane, other = rig.lane("held"), rig.lane("other")
            rig.add(lane, "first", user="u")
            await asyncio.sleep(1.0)
            rig.add(other, "a", "b")
            await asyncio.sleep(4.0)
            rig.add(lane, "later", user="u")  # its identify call waits for the other one
            assert rig.notes.convicted == []
            await rig.idle(lane, other)
            assert len(rig.notes.convicted) == 2
            assert rig.segment.attempts[-1].at < 25.0
            rig.assert_settled()

    tell(story)


def test_with_no_slot_free_a_batch_goes_on_filling() -> None:
    """Pressure makes batches larger instead of more."""

    async def story() -> None:
        async with Rig(FakeSegment(), concurrency=1) as rig:
            rig.segment.latency = lambda attempt: 10.0 if "first" in attempt.ids else LATENCY
            lane = rig.lane()
            rig.add(lane, "first")
            await asyncio.sleep(0.5)
            for name in names("p", 9):
                await asyncio.sleep(1.0)
                rig.add(lane, name)
            await rig.idle(lane)
            assert [attempt.ids for attempt in rig.segment.attempts] == [
                ["first"],
                names("p", 9),
            ]
            assert rig.segment.attempts[1].at == pytest.approx(11.0)
            assert rig.notes.triggers == ["time", "time"]

    tell(story)


def test_a_spent_budget_closes_what_is_open() -> None:
    """Before its interval and its size, so that memory comes free; and the handler is told that it did."""

    async def story() -> None:
        async with Rig(FakeSegment(), interval_seconds=600.0, memory=1000) as rig:
            lane = rig.lane()
            rig.add(lane, "a")
            await asyncio.sleep(5.0)
            assert not rig.segment.attempts
            rig.add(lane, "b", padding=900)
            assert rig.budget.spent
            with capture_logs() as logs:
                await rig.idle(lane, within=1.0)
            (line,) = logs
            assert "batches close before flush.interval" in line["event"]
            assert (line["after_seconds"], line["interval_seconds"]) == (5.0, 600.0)
            assert rig.segment.attempts[0].at == pytest.approx(5.0)
            assert rig.notes.triggers == ["memory"]
            assert rig.notes.progress == 1
            with capture_logs() as more:
                rig.add(lane, "c", padding=900)
                await rig.idle(lane, within=1.0)
            assert more == [], "it is said once, and again after a while"
            rig.assert_settled()

    tell(story)


def test_a_body_counts_in_the_budget_with_its_compressed_copy_while_it_is_under_way() -> None:
    async def story() -> None:
        async with Rig(FakeSegment()) as rig:
            lane = rig.lane()
            rig.add(lane, "p", padding=1000)
            before = rig.budget.used
            await asyncio.sleep(1.0 + LATENCY / 2)
            assert len(rig.segment.running) == 1
            assert rig.budget.used > before + 1500
            await rig.idle(lane)
            rig.assert_settled()

    tell(story)


# --- slots ----------------------------------------------------------------------------------------


def test_concurrency_is_used_and_never_exceeded() -> None:
    """As many requests side by side as there are slots."""

    async def story() -> None:
        async with Rig(FakeSegment(), concurrency=4, limits=Limits(max_calls=1)) as rig:
            lane = rig.lane()
            rig.add(lane, *names("p", 50))
            await rig.idle(lane)
            assert rig.segment.most_running == 4
            assert sorted(rig.segment.accepted) == sorted(names("p", 50))

    tell(story)


@pytest.mark.parametrize("concurrency", [8, None])
def test_a_load_that_one_or_two_requests_carry_is_as_early_as_with_a_fixed_number(
    concurrency: int | None,
) -> None:
    """An adaptive limit that doesn't bind holds nothing up, for however long."""

    async def story() -> None:
        segment = FakeSegment()
        jitter = random.Random(1)
        segment.latency = lambda _: jitter.uniform(0.05, 0.08)
        added: list[float] = []
        async with Rig(segment, concurrency=concurrency, limits=Limits(max_calls=40)) as rig:
            lane = rig.lane()
            for number in range(3_000):
                rig.add(lane, f"p{number}")
                added.append(clock())
                await asyncio.sleep(0.01)
            await rig.idle(lane)
            assert rig.delivery.concurrency == 8
            waited = [
                attempt.at - added[int(name[1:])]
                for attempt in segment.attempts
                for name in attempt.ids
            ]
            assert max(waited) <= 1.0 + 1e-6
            assert sum(waited) / len(waited) < 0.25, "most batches close for their size"

    tell(story)


@pytest.mark.no_cover
def test_an_adaptive_limit_grows_under_a_load_that_needs_more() -> None:
    """Calls wait for nothing but slots, and the destination serves more than there are."""

    async def story() -> None:
        async with Rig(FakeSegment(), concurrency=None, limits=Limits(max_calls=1)) as rig:
            lane = rig.lane()
            rig.add(lane, *names("p", 3_000))
            await rig.idle(lane)
            assert rig.segment.most_running == 64
            assert sorted(rig.segment.accepted) == sorted(names("p", 3_000))
            rig.assert_settled()

    tell(story)


@pytest.mark.no_cover
def test_a_429_shrinks_an_adaptive_limit_and_it_comes_back() -> None:
    """A destination that refuses what is beyond its capacity gets no more than it serves, but for trials."""

    async def story() -> None:
        capacity = 3
        too_many = Retry("rate_limited", "429", 429)
        segment = FakeSegment()
        segment.answer = lambda _: too_many if len(segment.running) >= capacity else OK
        async with Rig(segment, concurrency=None, limits=Limits(max_calls=1)) as rig:
            lane = rig.lane()
            rig.add(lane, *names("p", 4_000))
            await asyncio.sleep(20.0)
            assert rig.delivery.concurrency <= capacity + 1
            capacity = 1_000
            await asyncio.sleep(40.0)
            assert rig.delivery.concurrency >= 12
            await rig.idle(lane)
            rig.assert_settled()

    tell(story)


@pytest.mark.parametrize(
    "failure", [UNAVAILABLE, Retry("timeout", "no answer"), Retry("rate_limited", "429", 429)]
)
def test_a_lane_that_does_not_flow_does_not_move_the_adaptive_limit(failure: Retry) -> None:
    """However often it fails; what failed before it was held costs the others no more than one step."""

    async def story() -> None:
        segment = FakeSegment(lambda attempt: failure if attempt.key == "bad" else OK)
        async with Rig(segment, concurrency=None, limits=Limits(max_calls=1)) as rig:
            bad, good = rig.lane("bad"), rig.lane("good")
            rig.add(bad, *names("b", 30))
            await asyncio.sleep(1.0)
            held_at = rig.delivery.concurrency
            assert held_at >= (8 if failure is UNAVAILABLE else 5)
            for number in range(600):
                rig.add(good, f"g{number}")
                await asyncio.sleep(1.0)
            assert rig.delivery.concurrency == held_at
            assert len(segment.accepted) == 600

    tell(story)


def test_requests_per_second_hold_their_ceiling() -> None:
    """However many slots and batches there are; no second sees more than the ceiling and its burst of a tenth."""

    async def story() -> None:
        async with Rig(
            FakeSegment(), max_requests_per_second=20, limits=Limits(max_calls=1), concurrency=50
        ) as rig:
            lane = rig.lane()
            rig.add(lane, *names("p", 100))
            await rig.idle(lane)
            times = [attempt.at for attempt in rig.segment.attempts]
            assert times[-1] == pytest.approx((100 - 2) / 20)
            for first, later in zip(times, times[22:], strict=False):
                assert later - first >= 1.0 - 1e-6

    tell(story)


def test_the_lane_with_the_oldest_call_goes_first() -> None:
    """Whatever the order in which lanes came."""

    async def story() -> None:
        async with Rig(FakeSegment(), concurrency=1) as rig:
            rig.segment.latency = lambda _: 5.0
            lanes = {key: rig.lane(key) for key in ("a", "b", "c", "busy")}
            rig.add(lanes["busy"], "first")
            await asyncio.sleep(1.0)
            for key in ("b", "c", "a"):
                rig.add(lanes[key], f"of {key}")
                await asyncio.sleep(0.1)
            await rig.idle(*lanes.values())
            assert [attempt.key for attempt in rig.segment.attempts] == ["busy", "b", "c", "a"]

    tell(story)


def test_keys_that_fail_take_at_most_a_quarter_of_the_slots() -> None:
    """However many fail, and however long their requests hang."""

    async def story() -> None:
        async with Rig(FakeSegment(), concurrency=8) as rig:
            bad = [rig.lane(f"bad{number}") for number in range(12)]
            rig.segment.answer = lambda attempt: UNAUTHORIZED if "bad" in attempt.key else OK
            for lane in bad:
                rig.add(lane, f"of {lane.write_key}")
            await asyncio.sleep(10.0)
            rig.segment.latency = lambda attempt: 20.0 if "bad" in attempt.key else LATENCY
            await asyncio.sleep(25.0)
            assert len(rig.segment.running) == 2
            good = rig.lane("good")
            rig.add(good, "p")
            await rig.idle(good, within=1.2)
            probed: set[str] = set()
            for _ in range(40):
                await asyncio.sleep(20.0)
                assert len(rig.segment.running) <= 2
                probed |= {attempt.key for attempt in rig.segment.attempts[12:]}
            assert len(probed) == 13, "each gets its turn"

    tell(story)


# --- what may succeed later -----------------------------------------------------------------------


def test_a_failed_batch_is_sent_again_later_and_later() -> None:
    """Exponential, from half a second to a minute, without an end; each attempt says how often it was tried."""

    async def story() -> None:
        async with Rig(FakeSegment(lambda _: UNAVAILABLE), interval_seconds=0.0) as rig:
            lane = rig.lane()
            rig.add(lane, "p")
            await asyncio.sleep(2 * HOUR)
            attempts = rig.segment.attempts
            assert [attempt.tries for attempt in attempts] == list(range(len(attempts)))
            waits = [later.at - first.at - LATENCY for first, later in pairwise(attempts)]
            # Two of its own, then the destination's: it failed three times in a row.
            expected = [backoff(1, 1), backoff(2, 1), *(backoff(n, 1) for n in range(1, 200))]
            assert waits == pytest.approx(expected[: len(waits)])
            assert waits[-1] == pytest.approx(MAX_BACKOFF)
            rig.segment.answer = lambda _: OK
            await rig.idle(lane, within=MAX_BACKOFF + 1)
            assert rig.segment.accepted == ["p"]
            assert states(rig.delivery.destinations.values()) == {
                "flowing": 1,
                "paused": 0,
                "backing_off": 0,
                "misconfigured": 0,
            }
            rig.assert_settled()

    tell(story)


def test_a_destination_outlives_its_lane_only_while_it_is_held() -> None:
    """A pause holds across a rebalance; keys that visitors choose don't pile up, nor count as served."""

    async def story() -> None:
        async with Rig(FakeSegment(lambda _: UNAUTHORIZED)) as rig:
            lane, other = rig.lane(), rig.lane("other")
            rig.add(lane, "a")
            await asyncio.sleep(5)
            assert len(rig.delivery.served) == 2
            assert rig.delivery.destinations["key"].state is State.MISCONFIGURED
            assert other.idle
            held = rig.delivery.destinations["key"]
            await rig.delivery.end()
            assert rig.delivery.served == []
            assert rig.delivery.destinations == {"key": held}
            rig.delivery.begin(lane)
            assert rig.delivery.served == [held]
            await rig.delivery.end()

    tell(story)


def by_key(**answers: Outcome) -> Callable[[Attempt], Outcome]:
    """Answer each write key in its own way."""
    return lambda attempt: answers[attempt.key]


@pytest.mark.parametrize(
    "trouble", [UNAUTHORIZED, UNAVAILABLE, Retry("rate_limited", "429", 429, 300.0)]
)
def test_a_dead_key_holds_nothing_back_for_longer_than_it_may_while_others_deliver(
    trouble: Outcome,
) -> None:
    async def story() -> None:
        segment = FakeSegment(by_key(dead=trouble, alive=OK))
        async with Rig(segment, max_hold_seconds=HOUR, limits=Limits(max_calls=2)) as rig:
            dead, alive = rig.lane("dead"), rig.lane("alive")
            rig.add(dead, "d1")
            rig.add(dead, "d2")
            rig.add(dead, "d3")
            rig.add(dead, "d4")  # two full batches: what comes late is in one of its own
            for minute in range(59):
                rig.add(alive, f"a{minute}")
                await asyncio.sleep(60)
            assert not rig.notes.refusals
            rig.add(dead, "late")
            for minute in range(59, 63):
                rig.add(alive, f"a{minute}")
                await asyncio.sleep(60)
            assert sorted(name for name, *_ in rig.notes.refusals) == ["d1", "d2", "d3", "d4"]
            assert rig.account.dead_lettered == {"destination_unavailable": 4}
            assert not dead.idle, "what came later has its own time"
            asked = [one.at for one in segment.attempts if one.key == "dead"]
            assert asked[-1] > HOUR, "it is asked on"
            segment.answer = lambda _: OK
            await rig.idle(dead, within=400)
            assert "late" in segment.accepted
            assert len(segment.accepted) == 64
            rig.assert_settled()

    tell(story)


def test_if_no_key_delivers_all_wait_however_long() -> None:
    """And when one delivers again, the others have all their time: they may need a moment more."""

    async def story() -> None:
        segment = FakeSegment(by_key(one=UNAVAILABLE, two=UNAUTHORIZED, unused=OK))
        async with Rig(segment, max_hold_seconds=HOUR) as rig:
            one, two, _ = rig.lane("one"), rig.lane("two"), rig.lane("unused")
            rig.add(one, "a")
            rig.add(two, "b")
            await asyncio.sleep(10 * HOUR)
            assert not rig.notes.refusals
            segment.answer = lambda _: OK
            await rig.idle(one, within=60)
            await rig.idle(two, within=60)
            assert sorted(segment.accepted) == ["a", "b"]
            rig.assert_settled()

    tell(story)


def test_one_failure_delays_only_its_own_batch() -> None:
    """A destination that answers others isn't held for it."""

    async def story() -> None:
        async with Rig(FakeSegment(), limits=Limits(max_calls=1)) as rig:
            rig.segment.answer = lambda attempt: (
                UNAVAILABLE if attempt.ids == ["p0"] and not attempt.tries else OK
            )
            lane = rig.lane()
            rig.add(lane, "p0")
            await asyncio.sleep(0.2)
            rig.add(lane, "p1", "p2")
            await rig.idle(lane)
            assert [(attempt.ids, attempt.at) for attempt in rig.segment.attempts] == [
                (["p0"], 0.0),
                (["p1"], pytest.approx(0.2)),
                (["p2"], pytest.approx(0.2)),
                (["p0"], pytest.approx(0.6)),
            ]

    tell(story)


def test_an_outage_is_probed_one_request_at_a_time() -> None:
    """After three failures in a row; then all flows again."""

    async def story() -> None:
        segment = FakeSegment(lambda _: OK if clock() > 30 else UNAVAILABLE)
        async with Rig(segment, limits=Limits(max_calls=1)) as rig:
            lane = rig.lane()
            rig.add(lane, *names("p", 20))
            await asyncio.sleep(1.0)
            segment.most_running = len(segment.running)
            await asyncio.sleep(28.0)
            assert segment.most_running == 1
            await rig.idle(lane)
            assert segment.most_running == 8
            assert sorted(segment.accepted) == sorted(names("p", 20))

    tell(story)


def test_retry_after_pauses_its_key_once_and_starts_again_with_one_request() -> None:
    """Another key goes on."""

    async def story() -> None:
        limit = Retry("rate_limited", "429", 429, 7.0)
        segment = FakeSegment(lambda attempt: limit if attempt.key == "a" and clock() < 6 else OK)
        async with Rig(segment, limits=Limits(max_calls=1), concurrency=4) as rig:
            lane, other = rig.lane("a"), rig.lane("b")
            rig.add(lane, *names("p", 4))
            await asyncio.sleep(1.0)
            assert len(segment.attempts) == 4
            rig.add(lane, *names("q", 4))
            rig.add(other, "o")
            await rig.idle(other, within=0.3)
            await rig.idle(lane)
            later = [attempt.at for attempt in segment.attempts if attempt.key == "a"][4:]
            assert later[0] == pytest.approx(7.5 + LATENCY), "nothing was sent before"
            rounds = [2, 2, 3, 3, 3, 3, 4]
            assert later[1:] == pytest.approx([7.5 + LATENCY * n for n in rounds]), "one, two, four"
            assert len(segment.attempts) == 4 + 8 + 1
            rig.assert_settled()

    tell(story)


def test_no_pause_is_longer_than_five_minutes() -> None:
    """Whatever Retry-After says."""

    async def story() -> None:
        segment = FakeSegment(
            lambda attempt: OK if attempt.tries else Retry("rate_limited", "", 429, 1e9)
        )
        async with Rig(segment) as rig:
            lane = rig.lane()
            rig.add(lane, "p")
            await rig.idle(lane, within=400)
            assert segment.attempts[1].at - segment.attempts[0].at == pytest.approx(300.5 + LATENCY)

    tell(story)


def test_every_attempt_has_a_time_of_its_own() -> None:
    """Segment corrects clock skew with sentAt, so it says when this attempt was made."""
    sent: list[tuple[float, float]] = []

    def answer(attempt: Attempt) -> Outcome:
        sent.append((datetime.fromisoformat(attempt.sent_at).timestamp(), time.time()))
        seen = time.time()
        while time.time() < seen + 2 * FLOOR_MS:
            pass  # the wall clock isn't virtual
        return OK if attempt.tries == 3 else UNAVAILABLE

    async def story() -> None:
        async with Rig(FakeSegment(answer)) as rig:
            lane = rig.lane()
            rig.add(lane, "p")
            await rig.idle(lane)

    before = time.time() - FLOOR_MS
    tell(story)
    assert len(sent) == 4
    for said, received in sent:
        assert before <= said <= received
        before = said + FLOOR_MS


# --- what a person has to mend --------------------------------------------------------------------


def test_a_key_that_is_refused_is_probed_with_one_call_every_thirty_seconds() -> None:
    """Each time another one; nothing is dropped, and when it is mended few requests deliver all, once."""

    async def story() -> None:
        segment = FakeSegment(lambda _: UNAUTHORIZED)
        async with Rig(segment) as rig:
            lane = rig.lane()
            rig.add(lane, *names("p", 100), user="u")
            await asyncio.sleep(HOUR)
            probes = segment.attempts[1:]
            assert len(segment.attempts[0].ids) == 101
            assert {len(attempt.ids) for attempt in probes} == {1}
            pauses = [later.at - first.at for first, later in pairwise(probes)]
            assert pauses == pytest.approx([PROBE_INTERVAL + LATENCY] * len(pauses))
            assert len({attempt.ids[0] for attempt in probes}) == 100, "each page call had its turn"
            assert rig.delivery.destinations["key"].state is State.MISCONFIGURED
            assert "401" in rig.delivery.destinations["key"].reason
            assert rig.notes.refusals == []
            before = len(segment.attempts)
            segment.answer = lambda _: OK
            await rig.idle(lane, within=PROBE_INTERVAL + 1)
            assert len(segment.attempts) - before <= 3
            assert len(segment.accepted) == len(set(segment.accepted)) == 101
            rig.assert_settled()

    tell(story)


def test_a_probe_of_what_is_left_of_a_batch_is_small_too() -> None:
    """Of a batch that is half delivered, a call that is left is asked."""

    async def story() -> None:
        segment = FakeSegment(refuse("p7"))
        async with Rig(segment) as rig:
            lane = rig.lane()
            rig.add(lane, *names("p", 8))
            while not segment.accepted:
                await asyncio.sleep(0.05)
            segment.answer = lambda _: UNAUTHORIZED
            await asyncio.sleep(HOUR)
            assert {len(attempt.ids) for attempt in segment.attempts[3:]} == {1}
            segment.answer = refuse("p7")
            await rig.idle(lane, within=PROBE_INTERVAL + 2)
            assert rig.notes.convicted == ["p7"]
            assert sorted(segment.accepted) == names("p", 7)
            rig.assert_settled()

    tell(story)


def test_identify_calls_keep_their_order_through_probes() -> None:
    """A batch without a page or track call is probed from its beginning."""

    async def story() -> None:
        segment = FakeSegment()
        async with Rig(segment) as rig:
            lane = rig.lane()
            rig.add(lane, "p0", user="u")
            await asyncio.sleep(1.05)
            segment.answer = lambda _: UNAUTHORIZED
            rig.add(lane, "p1", user="u")  # waits, and moves on alone
            await asyncio.sleep(10 * PROBE_INTERVAL)
            segment.answer = lambda _: OK
            await rig.idle(lane, within=PROBE_INTERVAL + 2)
            said = [
                segment.calls[name]["traits"]["n"] for name in segment.accepted if name[:3] == "s1-"
            ]
            assert said == sorted(said)
            assert said[-1] == 2
            rig.assert_settled()

    tell(story)


# --- what Segment refuses -------------------------------------------------------------------------


def test_one_bad_call_in_a_full_batch_is_found_by_halving() -> None:
    """Its siblings are delivered once, in a few requests, while other batches flow."""

    async def story() -> None:
        segment = FakeSegment(refuse("p1234"))
        async with Rig(segment) as rig:
            lane = rig.lane()
            rig.add(lane, *names("p", 2500))
            await asyncio.sleep(0.05)
            rig.add(lane, "other")
            await rig.idle(lane, within=5.0)
            assert rig.notes.convicted == ["p1234"]
            assert sorted(segment.accepted) == sorted({*names("p", 2500), "other"} - {"p1234"})
            assert len(segment.attempts) <= 2 * 12 + 2
            assert rig.account.delivered == 2500
            assert rig.account.dead_lettered == {Reason.REFUSED: 1}
            rig.assert_settled()

    tell(story)


def test_a_dead_letter_says_what_segment_said_and_how_often_it_was_sent() -> None:
    """One batch of two: refused whole, then its second half alone."""

    async def story() -> None:
        async with Rig(FakeSegment(refuse("bad"))) as rig:
            lane = rig.lane()
            rig.add(lane, "good", "bad")
            await rig.idle(lane)
            assert rig.notes.refusals == [("bad", "400 no", 2)]
            assert [(attempt.ids, attempt.tries) for attempt in rig.segment.attempts] == [
                (["good", "bad"], 0),
                (["good"], 1),
                (["bad"], 1),
            ]

    tell(story)


@pytest.mark.parametrize("place", [0, 1, 5, 6, 7])
def test_a_bad_call_is_found_wherever_it_stands(place: int) -> None:
    """In the last batch of a quiet lane too: what is accepted of it is witness enough."""

    async def story() -> None:
        segment = FakeSegment(refuse(f"p{place}"))
        async with Rig(segment) as rig:
            lane = rig.lane()
            rig.add(lane, *names("p", 8))
            await rig.idle(lane, within=5.0)
            assert rig.notes.convicted == [f"p{place}"]
            assert len(segment.accepted) == len(set(segment.accepted)) == 7
            rig.assert_settled()

    tell(story)


def test_two_batches_with_a_bad_call_each_are_halved_one_after_the_other() -> None:
    """And the destination isn't blamed."""

    async def story() -> None:
        segment = FakeSegment(refuse("p3", "p12"))
        async with Rig(segment, limits=Limits(max_calls=8)) as rig:
            lane = rig.lane()
            rig.add(lane, *names("p", 16))
            await rig.idle(lane, within=10.0)
            assert sorted(rig.notes.convicted) == ["p12", "p3"]
            assert len(segment.accepted) == len(set(segment.accepted)) == 14
            rig.assert_settled()

    tell(story)


def test_many_bad_calls_in_two_batches_are_found() -> None:
    """Though halving stops undecided, with half of one batch at fault, and needs what comes later as its witness."""

    async def story() -> None:
        bad = [*names("p", 32)[16:], "q0"]
        segment = FakeSegment(refuse(*bad))
        async with Rig(segment, limits=Limits(max_calls=32)) as rig:
            lane = rig.lane()
            rig.add(lane, *names("p", 32), "q0", *names("r", 31))
            witnesses = 0
            while not lane.idle:
                assert clock() < 10 * PROBE_INTERVAL
                rig.add(lane, f"w{witnesses}")
                witnesses += 1
                await asyncio.sleep(7.0)
            assert sorted(rig.notes.convicted) == sorted(bad)
            assert len(segment.accepted) == len(set(segment.accepted)) == 16 + 31 + witnesses
            rig.assert_settled()

    tell(story)


def test_an_undecided_batch_waits_for_a_witness() -> None:
    """A batch in which every call is refused is judged by the lane's next batch."""

    async def story() -> None:
        segment = FakeSegment(refuse("a", "b"))
        async with Rig(segment) as rig:
            lane = rig.lane()
            rig.add(lane, "a", "b")
            await asyncio.sleep(10.0)
            assert rig.notes.convicted == []
            assert rig.delivery.destinations["key"].flowing
            rig.add(lane, "c")
            await rig.idle(lane, within=1.5)
            assert rig.notes.convicted == ["a", "b"]
            assert segment.accepted == ["c"]
            assert [attempt.ids for attempt in segment.attempts[-3:]] == [["c"], ["a"], ["b"]]
            rig.assert_settled()

    tell(story)


def test_a_request_that_was_under_way_before_is_no_witness() -> None:
    """Segment may have taken it before it began to refuse."""

    async def story() -> None:
        segment = FakeSegment(refuse("bad"))
        segment.latency = lambda attempt: 2.0 if attempt.ids == ["early"] else LATENCY
        async with Rig(segment, limits=Limits(max_calls=1)) as rig:
            lane = rig.lane()
            rig.add(lane, "early", "bad")
            await asyncio.sleep(3.0)
            assert segment.accepted == ["early"]
            assert rig.notes.convicted == []
            rig.add(lane, "later")
            await rig.idle(lane, within=1.0)
            assert rig.notes.convicted == ["bad"]

    tell(story)


@pytest.mark.parametrize("calls", [1, 2, 3, 8, 9, 100])
@pytest.mark.parametrize("batches", [1, 3])
def test_a_destination_that_refuses_everything_is_at_fault(calls: int, batches: int) -> None:
    """It is misconfigured, nothing becomes a dead letter, and when it is mended all is delivered once."""

    async def story() -> None:
        segment = FakeSegment(lambda _: BAD_REQUEST)
        async with Rig(segment, limits=Limits(max_calls=calls)) as rig:
            lane = rig.lane()
            rig.add(lane, *names("p", calls * batches))
            await asyncio.sleep(2 * PROBE_INTERVAL)
            destination = rig.delivery.destinations["key"]
            assert destination.state is State.MISCONFIGURED
            assert "400 no" in destination.reason
            before = len(segment.attempts)
            await asyncio.sleep(HOUR)
            assert len(segment.attempts) - before <= HOUR / PROBE_INTERVAL
            assert {len(attempt.ids) for attempt in segment.attempts[before:]} == {1}
            assert rig.notes.refusals == []
            segment.answer = lambda _: OK
            before = len(segment.attempts)
            await rig.idle(lane, within=PROBE_INTERVAL + 5)
            assert len(segment.attempts) - before <= batches + 2
            assert rig.notes.refusals == []
            assert sorted(segment.accepted) == sorted(names("p", calls * batches))
            rig.assert_settled()

    tell(story)


@pytest.mark.parametrize("calls", [1, 3, 16, 64])
@pytest.mark.parametrize("seconds", [0.6, 2.0, 5.0, 31.0])
def test_a_destination_that_refuses_everything_for_a_while_costs_no_call(
    seconds: float, calls: int
) -> None:
    """Whenever it is well again: what it refused alone by then is sent once more."""

    async def story() -> None:
        segment = FakeSegment()
        async with Rig(segment) as rig:
            lane = rig.lane()
            rig.add(lane, "before")
            await rig.idle(lane)
            made = names("p", calls)
            rig.add(lane, *made)
            well = clock() + 1.0 + seconds  # the calls go out in a second
            segment.answer = lambda _: BAD_REQUEST if clock() < well else OK
            await rig.idle(lane, within=3 * PROBE_INTERVAL)
            assert BAD_REQUEST in rig.notes.outcomes
            assert rig.notes.refusals == []
            assert sorted(segment.accepted) == sorted(["before", *made])
            rig.assert_settled()

    tell(story)


@pytest.mark.parametrize("pause", [1.0, 20.0, 45.0, 100.0])
def test_a_trickle_into_a_destination_that_refuses_everything_loses_nothing(pause: float) -> None:
    """However slowly its calls come: none is judged by itself."""

    async def story() -> None:
        segment = FakeSegment(lambda _: BAD_REQUEST)
        async with Rig(segment) as rig:
            lane = rig.lane()
            for name in names("p", 20):
                rig.add(lane, name)
                await asyncio.sleep(pause)
            assert rig.notes.refusals == []
            assert segment.accepted == []
            segment.answer = lambda _: OK
            await rig.idle(lane, within=PROBE_INTERVAL + 5)
            assert rig.notes.refusals == []
            assert sorted(segment.accepted) == sorted(names("p", 20))

    tell(story)


@pytest.mark.parametrize("pause", [10.0, 40.0, 1000.0])
def test_bad_calls_of_a_quiet_lane_are_found_once_another_call_is_accepted(pause: float) -> None:
    """Alone they can't be told from a destination at fault, so they wait; and they hold nothing good up for long."""

    async def story() -> None:
        segment = FakeSegment(refuse("bad1", "bad2"))
        async with Rig(segment) as rig:
            lane = rig.lane()
            for name in ("bad1", "bad2"):
                rig.add(lane, name)
                await asyncio.sleep(pause)
            assert rig.notes.convicted == []
            rig.add(lane, "good")
            await asyncio.sleep(PROBE_INTERVAL + 2)
            assert segment.accepted == ["good"]
            for number in range(2):
                await asyncio.sleep(pause)
                rig.add(lane, f"good{number}")
            await rig.idle(lane, within=3 * PROBE_INTERVAL)
            assert sorted(rig.notes.convicted) == ["bad1", "bad2"]
            assert rig.delivery.destinations["key"].flowing
            rig.assert_settled()

    tell(story)


@pytest.mark.parametrize("size", [1, 3])
def test_a_bad_call_alone_in_a_quiet_lane_is_judged_by_a_call_that_was_delivered(size: int) -> None:
    """It is sent once more, alone; a request, but no call: Segment has its id."""

    async def story() -> None:
        bad = names("bad", size)
        segment = FakeSegment(refuse(*bad))
        async with Rig(segment) as rig:
            lane = rig.lane()
            rig.add(lane, "good", user="u")
            await rig.idle(lane)
            await asyncio.sleep(HOUR)
            before = len(segment.attempts)
            rig.add(lane, *bad)
            await rig.idle(lane, within=PROBE_INTERVAL + 3)
            assert rig.notes.convicted == bad
            assert segment.repeated == ["good"]
            assert len(segment.attempts) - before == 3 * size
            witness = segment.attempts[-1 - size]
            assert (witness.ids, witness.tries) == (["good"], 0)
            assert [attempt.ids for attempt in segment.attempts[-size:]] == [[one] for one in bad]
            assert len(rig.notes.outcomes) == len(segment.attempts)
            assert rig.account.calls_delivered["page"] == 1
            assert rig.delivery.destinations["key"].flowing
            rig.assert_settled()

    tell(story)


def test_a_bad_call_alone_is_given_up_after_max_hold_if_the_lane_never_delivered() -> None:
    """It was answered all the time; a time without answers doesn't count."""

    async def story() -> None:
        segment = FakeSegment(refuse("bad"))
        async with Rig(segment, max_hold_seconds=HOUR) as rig:
            lane = rig.lane()
            rig.add(lane, "bad")
            await asyncio.sleep(HOUR / 2)
            segment.answer = lambda _: UNAVAILABLE
            await asyncio.sleep(5 * HOUR)
            segment.answer = refuse("bad")
            await asyncio.sleep(HOUR / 2 - 2 * PROBE_INTERVAL)
            assert rig.notes.convicted == []
            await rig.idle(lane, within=5 * PROBE_INTERVAL)
            assert rig.notes.convicted == ["bad"]
            assert "the destination may be at fault" in rig.notes.refusals[0][1]
            assert rig.account.dead_lettered == {Reason.REFUSED: 1}
            rig.add(lane, "good")
            await rig.idle(lane, within=PROBE_INTERVAL + 2)
            assert segment.accepted == ["good"]
            rig.assert_settled()

    tell(story)


@pytest.mark.parametrize("delivered", [0, 1])
@pytest.mark.parametrize("pause", [HOUR / 2, 5 * HOUR])
def test_a_slow_trickle_into_a_destination_that_refuses_everything_loses_nothing(
    delivered: int, pause: float
) -> None:
    """Whether or not it worked before, which makes a witness."""

    async def story() -> None:
        segment = FakeSegment()
        async with Rig(segment, max_hold_seconds=6 * HOUR) as rig:
            lane = rig.lane()
            rig.add(lane, *names("before", delivered))
            await asyncio.sleep(5)
            segment.answer = lambda _: BAD_REQUEST
            made = names("p", 6)
            for name in made:
                rig.add(lane, name)
                await asyncio.sleep(pause)
            assert rig.notes.refusals == []
            assert rig.delivery.destinations["key"].state is State.MISCONFIGURED
            assert len(segment.attempts) <= 6 * pause / PROBE_INTERVAL + 20
            segment.answer = lambda _: OK
            await rig.idle(lane, within=2 * PROBE_INTERVAL + 5)
            assert rig.notes.refusals == []
            assert sorted(segment.accepted) == sorted([*names("before", delivered), *made])
            rig.assert_settled()

    tell(story)


def test_pauses_and_failures_amid_a_bisection_delay_it_and_change_nothing() -> None:
    """Nothing is sent before Retry-After is over, the witness neither."""
    trouble = {
        3: Retry("rate_limited", "429", 429, 20.0),
        4: UNAVAILABLE,
        6: UNAVAILABLE,
        7: Retry("server_error", "503", 503, 100.0),
    }

    async def story() -> None:
        honest = refuse("p1", "p3")
        segment = FakeSegment(lambda attempt: trouble.get(len(segment.attempts)) or honest(attempt))
        async with Rig(segment, concurrency=1) as rig:
            lane = rig.lane()
            rig.add(lane, *names("p", 4))
            await rig.idle(lane, within=300.0)
            assert sorted(rig.notes.convicted) == ["p1", "p3"]
            assert segment.accepted == ["p0", "p2"]
            for number, outcome in trouble.items():
                if outcome.after_seconds is not None:
                    later = segment.attempts[number].at - segment.attempts[number - 1].at
                    assert later >= outcome.after_seconds
            rig.assert_settled()

    tell(story)


def test_a_witness_waits_for_a_pause_and_convicts_after_it() -> None:
    """Its answer, too, may be a 429."""

    async def story() -> None:
        segment = FakeSegment()
        async with Rig(segment) as rig:
            lane = rig.lane()
            rig.add(lane, "good")
            await rig.idle(lane)
            too_many = Retry("rate_limited", "429", 429, 50.0)
            segment.answer = lambda attempt: BAD_REQUEST if "bad" in attempt.ids else too_many
            rig.add(lane, "bad")
            await asyncio.sleep(PROBE_INTERVAL + 2)
            assert segment.attempts[-1].ids == ["good"]
            segment.answer = refuse("bad")
            await asyncio.sleep(48.0)
            assert rig.notes.convicted == []
            await rig.idle(lane, within=5.0)
            assert [attempt.ids for attempt in segment.attempts[2:]] == [
                ["good"],
                ["good"],
                ["bad"],
            ]
            assert rig.notes.convicted == ["bad"]
            rig.assert_settled()

    tell(story)


def test_a_witness_that_is_refused_blames_the_destination() -> None:
    """The suspect is delivered when that is mended."""

    async def story() -> None:
        segment = FakeSegment()
        async with Rig(segment) as rig:
            lane = rig.lane()
            rig.add(lane, "good")
            await rig.idle(lane)
            segment.answer = lambda _: BAD_REQUEST
            rig.add(lane, "later")
            await asyncio.sleep(PROBE_INTERVAL + 3)
            assert [attempt.ids for attempt in segment.attempts[1:]] == [["later"], ["good"]]
            assert rig.delivery.destinations["key"].state is State.MISCONFIGURED
            segment.answer = lambda _: OK
            await rig.idle(lane, within=PROBE_INTERVAL + 2)
            assert segment.accepted == ["good", "later"]
            assert rig.notes.refusals == []
            rig.assert_settled()

    tell(story)


def test_draining_sends_the_witness_at_once() -> None:
    """Nothing else comes, so that the bad call is settled before the stop."""

    async def story() -> None:
        segment = FakeSegment(refuse("bad", "worse"))
        async with Rig(segment) as rig:
            lane = rig.lane()
            rig.add(lane, "good")
            await rig.idle(lane)
            rig.add(lane, "bad")
            await asyncio.sleep(3.0)
            assert rig.notes.convicted == []
            assert await rig.delivery.drain("rebalance", 5.0)
            assert rig.notes.convicted == ["bad"]
            rig.add(lane, "worse")
            assert await rig.delivery.drain("shutdown", 5.0)
            assert rig.notes.convicted == ["bad", "worse"]
            assert segment.repeated == ["good", "good"]
            rig.assert_settled()

    tell(story)


def test_a_batch_of_which_only_a_suspect_is_left_is_settled_though_halving_was_not_undecided() -> (
    None
):
    """Its last other call was too large, and the suspect waited for another try while a witness came."""
    script: dict[tuple[int, tuple[str, ...]], Outcome] = {
        (0, ("a", "b", "c", "d")): BAD_REQUEST,
        (1, ("a", "b")): OK,
        (1, ("c", "d")): BAD_REQUEST,
        (2, ("c",)): BAD_REQUEST,
        (3, ("d",)): Refused(413, "too large"),
        (4, ("c",)): Retry("timeout", "no answer"),
        (5, ("c",)): BAD_REQUEST,
    }

    async def story() -> None:
        segment = FakeSegment(lambda attempt: script.get((attempt.tries, tuple(attempt.ids)), OK))
        async with Rig(segment, concurrency=1) as rig:
            lane = rig.lane()
            rig.add(lane, "a", "b", "c", "d")
            await asyncio.sleep(1.05)
            rig.add(lane, "w")
            await rig.idle(lane, within=30.0)
            assert [attempt.ids for attempt in segment.attempts[-2:]] == [["w"], ["c"]]
            assert rig.notes.convicted == ["d", "c"]
            assert segment.accepted == ["a", "b", "w"]
            rig.assert_settled()

    tell(story)


def test_a_single_call_that_is_too_large_is_at_fault_itself() -> None:
    """413 for one call needs no witness."""

    async def story() -> None:
        too_large = Refused(413, "too large")
        segment = FakeSegment(lambda attempt: too_large if "big" in attempt.ids else OK)
        async with Rig(segment) as rig:
            lane = rig.lane()
            rig.add(lane, "big")
            await rig.idle(lane, within=2.0)
            assert rig.notes.refusals == [("big", "413 too large", 1)]
            rig.assert_settled()

    tell(story)


# --- the end of a generation, and of the process --------------------------------------------------


@pytest.mark.parametrize("trigger", ["rebalance", "shutdown"])
def test_draining_sends_what_is_open_at_once(trigger: str) -> None:
    """And says why it closed."""

    async def story() -> None:
        async with Rig(FakeSegment(), interval_seconds=60.0) as rig:
            lane = rig.lane()
            rig.add(lane, "p0", user="u")
            assert await rig.delivery.drain(trigger, 5.0)
            assert clock() == pytest.approx(LATENCY)
            assert rig.notes.triggers == [trigger]
            rig.assert_settled()
            rig.add(lane, "p1")
            await asyncio.sleep(59.0)
            assert lane.open is not None, "afterwards batches fill again"

    tell(story)


def test_draining_sends_what_waited_too() -> None:
    """What waits for a batch in flight moves on and is sent in the same drain."""

    async def story() -> None:
        async with Rig(FakeSegment()) as rig:
            rig.segment.latency = lambda _: 1.0
            lane = rig.lane()
            rig.add(lane, "p0", user="u")
            await asyncio.sleep(1.5)
            rig.add(lane, "p1", user="u")
            assert await rig.delivery.drain("rebalance", 5.0)
            assert lane.idle
            rig.assert_settled()

    tell(story)


def test_draining_ends_at_its_deadline() -> None:
    """With what hangs still under way."""

    async def story() -> None:
        async with Rig(FakeSegment()) as rig:
            rig.segment.latency = lambda _: 100.0
            lane = rig.lane()
            rig.add(lane, "p")
            assert not await rig.delivery.drain("rebalance", 5.0)
            assert clock() == pytest.approx(5.0)

    tell(story)


@pytest.mark.parametrize(
    "outcome",
    [UNAUTHORIZED, Retry("rate_limited", "429", 429, 60.0)],
    ids=["misconfigured", "paused for longer"],
)
def test_draining_does_not_wait_for_what_cannot_come(outcome: Outcome) -> None:
    """Only for the lanes that flow."""

    async def story() -> None:
        segment = FakeSegment(lambda attempt: outcome if attempt.key == "bad" else OK)
        async with Rig(segment) as rig:
            bad, good = rig.lane("bad"), rig.lane("good")
            rig.add(bad, "b")
            await asyncio.sleep(2.0)
            rig.add(good, "g")
            assert not await rig.delivery.drain("shutdown", 20.0)
            assert clock() == pytest.approx(2.0 + LATENCY)
            assert segment.accepted == ["g"]

    tell(story)


def test_draining_does_not_wait_for_a_batch_that_waits_for_its_witness() -> None:
    """None comes while nothing is read."""

    async def story() -> None:
        async with Rig(FakeSegment(refuse("bad"))) as rig:
            lane = rig.lane()
            rig.add(lane, "bad")
            await asyncio.sleep(2.0)
            assert not await rig.delivery.drain("shutdown", 20.0)
            assert clock() == pytest.approx(2.0)

    tell(story)


def test_draining_waits_for_a_pause_that_ends_in_time() -> None:
    """And sends then."""

    async def story() -> None:
        segment = FakeSegment(
            lambda attempt: OK if attempt.tries else Retry("rate_limited", "429", 429, 3.0)
        )
        async with Rig(segment) as rig:
            lane = rig.lane()
            rig.add(lane, "p")
            assert await rig.delivery.drain("shutdown", 20.0)
            assert clock() == pytest.approx(3.5 + 2 * LATENCY)

    tell(story)


def test_the_end_of_a_generation_cancels_what_is_under_way() -> None:
    """Its calls count as released, and nothing of it is held."""

    async def story() -> None:
        async with Rig(FakeSegment()) as rig:
            rig.segment.latency = lambda _: 100.0
            lane = rig.lane()
            rig.add(lane, "p0", user="u")
            await asyncio.sleep(1.5)
            rig.add(lane, "p1", user="u")
            await rig.delivery.end()
            lane.ledger.end()
            lane.share.end()
            assert not rig.segment.running
            assert rig.delivery.in_flight == 0
            assert rig.notes.outcomes == []
            assert rig.account.released == 2
            assert rig.account.balance() == []
            assert rig.budget.used == 0
            await asyncio.sleep(HOUR)
            assert len(rig.segment.attempts) == 1

    tell(story)


@pytest.mark.parametrize("outcome", [OK, UNAVAILABLE, BAD_REQUEST, UNAUTHORIZED], ids=str)
def test_an_answer_after_the_end_counts_nowhere(outcome: Outcome) -> None:
    """Even from a transport that doesn't let itself be cancelled."""

    class Stubborn(FakeSegment):
        async def attempt(self, write_key: str, body: bytes, tries: int) -> Answer:
            try:
                return await super().attempt(write_key, body, tries)
            except asyncio.CancelledError:
                return reply(outcome)

    async def story() -> None:
        async with Rig(Stubborn()) as rig:
            lane = rig.lane()
            rig.add(lane, "p0", "p1")
            await asyncio.sleep(1.05)
            await rig.delivery.end()
            lane.ledger.end()
            lane.share.end()
            assert rig.account.delivered == 0
            assert rig.account.released == 2
            assert rig.account.balance() == []
            assert rig.notes.refusals == []
            assert rig.notes.delivered_calls == 0

    tell(story)


def test_a_request_that_is_cancelled_before_it_began_leaves_no_trace() -> None:
    """A held destination would otherwise wait for ever for an attempt that nobody makes."""

    async def story() -> None:
        segment = FakeSegment(lambda _: UNAUTHORIZED)
        async with Rig(segment) as rig:
            first = rig.lane()
            rig.add(first, "p")
            await asyncio.sleep(1.5)
            destination = rig.delivery.destinations["key"]
            assert destination.state is State.MISCONFIGURED
            while rig.delivery.in_flight == 0:  # until the task is made, and hasn't run
                await asyncio.sleep(0 if clock() > 31.1 - 1e-6 else 31.1 - clock())
                assert clock() < 40
            assert len(segment.attempts) == 1
            await rig.delivery.end()
            assert destination.attempts == 0
            segment.answer = lambda _: OK
            second = rig.lane()
            rig.add(second, "p")
            await rig.idle(second, within=2 * PROBE_INTERVAL)
            assert segment.accepted == ["p"]

    tell(story)


def test_what_is_known_of_a_key_outlives_the_generation() -> None:
    """A rebalance is no reason to ask a misconfigured destination again before its time."""

    async def story() -> None:
        segment = FakeSegment(lambda _: UNAUTHORIZED)
        async with Rig(segment) as rig:
            rig.add(rig.lane(), "p")
            await asyncio.sleep(2.0)
            await rig.delivery.end()
            rig.add(rig.lane(), "p")
            await asyncio.sleep(20.0)
            assert len(segment.attempts) == 1
            await asyncio.sleep(20.0)
            assert len(segment.attempts) == 2

    tell(story)


def test_a_bug_in_the_transport_ends_delivery() -> None:
    """It isn't an outcome, and nothing goes on as if it were."""

    def answer(_: Attempt) -> Outcome:
        raise ZeroDivisionError

    async def story() -> None:
        rig = Rig(FakeSegment(answer))
        running = asyncio.create_task(rig.delivery.run())
        rig.add(rig.lane(), "p")
        with pytest.raises(ExceptionGroup) as caught:
            await running
        assert caught.group_contains(ZeroDivisionError)

    tell(story)


# --- every script of outcomes ---------------------------------------------------------------------

SCRIPTED = st.sampled_from(
    [
        UNAVAILABLE,
        Retry("timeout", "no answer"),
        Retry("rate_limited", "429", 429, 3.0),
        BAD_REQUEST,
        Refused(413, "too large"),
        UNAUTHORIZED,
        None,  # an honest answer
    ]
)


@settings(deadline=None, max_examples=150)
@given(
    script=st.lists(SCRIPTED, max_size=40),
    bad=st.sets(st.integers(0, 29), max_size=8),
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    max_calls=st.integers(1, 20),
    concurrency=st.integers(1, 8),
    seed=st.integers(0, 1000),
)
def test_every_call_is_delivered_once_or_found_at_fault(
    script: list[Outcome | None],
    bad: set[int],
    sizes: list[int],
    max_calls: int,
    concurrency: int,
    seed: int,
) -> None:
    """Whatever Segment answers at first, once it answers honestly and something else is sent now and then."""
    poison = {f"p{number}" for number in bad}
    honest = refuse(*poison)
    answers = iter(script)
    dice = random.Random(seed)

    async def story() -> None:
        segment = FakeSegment(lambda attempt: next(answers, None) or honest(attempt))
        segment.latency = lambda _: dice.choice([0.0, 0.05, 0.3, 2.0])
        async with Rig(segment, limits=Limits(max_calls=max_calls), concurrency=concurrency) as rig:
            lane = rig.lane()
            made: list[str] = []
            for size in sizes:
                some = [f"p{len(made) + number}" for number in range(size)]
                made += some
                for name in some:
                    rig.add(lane, name, user=f"u{dice.randrange(4)}")
                await asyncio.sleep(dice.choice([0.0, 0.5, 5.0]))
            while not lane.idle:
                assert clock() < 3 * HOUR, "it never ends"
                assert not rig.ended
                rig.add(lane, f"w{len(made)}", user=f"u{dice.randrange(4)}")
                made.append(f"w{len(made)}")
                await asyncio.sleep(20.0)
            convicted = set(rig.notes.convicted)
            assert len(convicted) == len(rig.notes.convicted)
            assert len(set(segment.accepted)) == len(segment.accepted)
            pages = [name for name in (*segment.accepted, *convicted) if name[:3] != "s1-"]
            assert sorted(pages) == sorted(made)
            assert not poison & set(segment.accepted)
            if not any(isinstance(outcome, Refused) for outcome in script):
                assert convicted == poison & set(made), "nothing good was found at fault"
            for user in names("u", 4):
                said = [
                    call["traits"]["n"]
                    for call in map(segment.calls.__getitem__, segment.accepted)
                    if call["type"] == "identify" and call["userId"] == user
                ]
                assert said == sorted(said), "traits arrive in order"
            assert segment.most_running <= concurrency
            rig.assert_settled()

    tell(story)


def test_a_failure_in_the_middle_of_a_bisection_delays_it_as_a_first_failure_does() -> None:
    """The refusals before it were answers: they say nothing of how long to wait."""
    calls = [f"c{number}" for number in range(64)]

    def answer(attempt: Any) -> Outcome:
        if attempt.tries == 6:
            return Retry("server_error", "503", 503)
        return BAD_REQUEST if "c0" in attempt.ids else OK

    async def story() -> None:
        segment = FakeSegment(answer)
        async with Rig(segment) as rig:
            lane = rig.lane()
            rig.add(lane, *calls)
            await rig.idle(lane, within=3.0)
            assert rig.notes.convicted == ["c0"]
            assert sorted(segment.accepted) == sorted(calls[1:])
            rig.assert_settled()

    tell(story)


# --- settings that change -------------------------------------------------------------------------


def test_a_shorter_interval_holds_for_what_is_open_already() -> None:
    async def story() -> None:
        async with Rig(FakeSegment(), interval_seconds=600.0) as rig:
            lane = rig.lane()
            rig.add(lane, "a")
            await asyncio.sleep(2.0)
            assert not rig.segment.attempts
            rig.delivery.tune(concurrency=8, max_requests_per_second=1000, interval_seconds=1.0)
            await rig.idle(lane, within=0.5)
            rig.assert_settled()

    tell(story)


def test_another_concurrency_and_rate_hold_at_once() -> None:
    async def story() -> None:
        async with Rig(FakeSegment(), limits=Limits(1, 475_000), concurrency=2) as rig:
            lane = rig.lane()
            rig.add(lane, *names("a", 100))
            await asyncio.sleep(LATENCY * 3)
            assert rig.segment.most_running == 2
            rig.delivery.tune(concurrency=16, max_requests_per_second=1000, interval_seconds=1.0)
            await asyncio.sleep(LATENCY * 2)
            assert rig.segment.most_running == 16
            rig.delivery.tune(concurrency=1, max_requests_per_second=1000, interval_seconds=1.0)
            await asyncio.sleep(LATENCY * 2)
            assert len(rig.segment.running) <= 1
            rig.delivery.tune(concurrency=None, max_requests_per_second=1, interval_seconds=1.0)
            before = len(rig.segment.attempts)
            await asyncio.sleep(10.0)
            assert 9 <= len(rig.segment.attempts) - before <= 12
            rig.delivery.tune(concurrency=None, max_requests_per_second=1000, interval_seconds=1.0)
            await rig.idle(lane)
            rig.assert_settled()

    tell(story)


# --- the log --------------------------------------------------------------------------------------


def followed(story: Callable[[], Coroutine[Any, Any, None]]) -> list[dict[str, Any]]:
    """Run a story, and give what the log says at the level `debug`."""
    level = logging.getLogger("streamer.delivery")
    level.setLevel(logging.DEBUG)
    try:
        with capture_logs() as logs:
            virtual_time.run(story())
    finally:
        level.setLevel(logging.NOTSET)
    return [dict(line) for line in logs]


def test_a_batch_is_followed_by_its_name_from_its_closing_to_its_settlement() -> None:
    """Through a failure and a pause; nobody who didn't ask for it sees more than changes of the destination."""
    outcomes: list[Outcome] = [
        UNAVAILABLE,
        Retry("rate_limited", "429 slow down", 429, 3.0),
        OK,
        OK,
    ]

    async def story() -> None:
        async with Rig(FakeSegment(lambda _: outcomes.pop(0))) as rig:
            lane = rig.lane()
            rig.add(lane, "a", "b")
            await rig.idle(lane)
            rig.add(lane, "c")
            await rig.idle(lane)

    lines = followed(story)
    name, other = dict.fromkeys(line["batch"] for line in lines)
    assert re.fullmatch("[0-9a-f]{10}", name)
    first = [line for line in lines if line["batch"] == name]
    assert [(line["event"], line["log_level"]) for line in first] == [
        ("a batch is closed", "debug"),
        ("a request is sent", "debug"),
        ("a request failed", "debug"),
        ("a request is sent", "debug"),
        ("a request failed", "debug"),
        ("Segment doesn't accept calls", "warning"),
        ("a request is sent", "debug"),
        ("a request is accepted", "debug"),
        ("Segment accepts calls again", "info"),
        ("a batch is settled", "debug"),
    ]
    closed, *sent, settled = first
    assert (closed["trigger"], closed["calls"], closed["open_seconds"]) == ("time", 2, 1.0)
    assert [line["piece"] for line in sent if "piece" in line] == ["0-1"] * 6
    assert [line["tries"] for line in sent if "tries" in line] == [0, 1, 2]
    assert [line["answer"] for line in sent if "answer" in line] == ["503", "429 slow down", "200"]
    paused, again = sent[4], sent[7]
    assert (paused["state"], paused["asked_again_in_seconds"]) == ("paused", 3.5)
    assert again["after_seconds"] == 3.6
    assert (settled["delivered"], settled["dead_letters"], settled["failed_requests"]) == (2, 0, 2)
    assert other != name
    outcomes[:] = [UNAVAILABLE, OK, OK]
    with capture_logs() as quiet:
        virtual_time.run(story())
    assert quiet == []


def test_who_follows_a_refused_batch_sees_which_calls_each_request_had() -> None:
    """Who doesn't sees where it began and what it came to."""

    async def story() -> None:
        async with Rig(FakeSegment(refuse("p2"))) as rig:
            lane = rig.lane()
            rig.add(lane, *names("p", 4))
            await rig.idle(lane)

    lines = followed(story)
    (name,) = {line["batch"] for line in lines}
    sent = [line["piece"] for line in lines if line["event"] == "a request is sent"]
    assert sent == ["0-3", "0-1", "2-3", "2-2", "3-3", "2-2"]
    with capture_logs() as said:
        virtual_time.run(story())
    refused, settled = said
    assert "halving it" in refused["event"]
    assert refused["batch"] == settled["batch"] == name
    assert (settled["delivered"], settled["dead_letters"]) == (3, 1)
    assert {line["log_level"] for line in said} == {"info"}


def test_what_is_given_up_and_what_goes_back_to_kafka_is_named() -> None:
    async def story() -> None:
        segment = FakeSegment(lambda attempt: OK if attempt.key == "good" else UNAUTHORIZED)
        async with Rig(segment, max_hold_seconds=100.0) as rig:
            good, bad = rig.lane("good"), rig.lane("bad")
            for number in range(100):
                rig.add(good, f"g{number}")
                rig.add(bad, *names(f"b{number}-", number < 2))
                await asyncio.sleep(1.5)
            rig.add(bad, "late")
            await asyncio.sleep(1.5)
            segment.latency = lambda _: 100.0
            rig.add(good, "flying")
            await asyncio.sleep(1.5)
            await rig.delivery.end()

    lines = followed(story)
    given_up = [line for line in lines if "max_hold" in line["event"]]
    assert [line["calls"] for line in given_up] == [1, 1]
    assert {line["log_level"] for line in given_up} == {"error"}
    returned = [line["batch"] for line in lines if line["event"] == "a batch goes back to Kafka"]
    assert len(returned) == 2
    closed = [line["batch"] for line in lines if line["event"] == "a batch is closed"]
    settled = [line["batch"] for line in lines if line["event"] == "a batch is settled"]
    assert sorted(closed) == sorted(settled + returned), "each story has an end"
    assert {line["batch"] for line in given_up} < set(settled)


def test_a_destination_that_a_person_has_to_mend_is_an_error_and_the_others_are_warnings() -> None:
    async def story() -> None:
        segment = FakeSegment(lambda _: UNAUTHORIZED if clock() < 5.0 else OK)
        async with Rig(segment) as rig:
            lane = rig.lane()
            rig.add(lane, "a")
            await rig.idle(lane)

    with capture_logs() as logs:
        virtual_time.run(story())
    wrong, mended = logs
    assert (wrong["log_level"], wrong["state"]) == ("error", "misconfigured")
    assert wrong["asked_again_in_seconds"] == PROBE_INTERVAL
    assert mended["after_seconds"] == pytest.approx(PROBE_INTERVAL + LATENCY)
