"""Requests never follow one another faster than they may, and as many run at a time as the destination serves best."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field
from itertools import accumulate, combinations
from math import exp, log, pi, sin, sqrt
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.core.limiter import MOST, START, Concurrency, RateLimit

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    Sizes: TypeAlias = Callable[[float, random.Random], int]


def starts(per_second: float, wanted: list[float]) -> list[float]:
    """When the requests that were wanted at some times were made, one after the other."""
    limit = RateLimit(per_second)
    made: list[float] = []
    now = 0.0
    for time in wanted:
        now = limit.ready_at(max(now, time))
        limit.take(now)
        made.append(now)
    return made


def test_a_tenth_of_a_second_goes_out_at_once_and_the_rest_evenly() -> None:
    made = starts(100, [5.0] * 15)
    assert made[:10] == [5.0] * 10
    assert made[10:] == pytest.approx([5.01, 5.02, 5.03, 5.04, 5.05])


def test_a_low_rate_sends_one_at_a_time() -> None:
    assert starts(2, [0.0] * 4) == pytest.approx([0.0, 0.5, 1.0, 1.5])


def test_a_long_silence_saves_no_more_than_one_burst() -> None:
    made = starts(20, [0.0, 3600.0, 3600.0, 3600.0, 3600.0])
    assert made == pytest.approx([0.0, 3600.0, 3600.0, 3600.05, 3600.1])


def test_asking_when_takes_nothing() -> None:
    limit = RateLimit(1)
    assert [limit.ready_at(7.0) for _ in range(3)] == [7.0] * 3
    limit.take(7.0)
    assert [limit.ready_at(7.0) for _ in range(3)] == [8.0] * 3


def test_when_it_said_a_request_may_be_made_it_may() -> None:
    limit = RateLimit(3)
    now = 1e6
    for _ in range(1000):
        now = limit.ready_at(now)
        assert limit.ready_at(now) == now
        limit.take(now)


@settings(deadline=None, max_examples=200)
@given(
    per_second=st.one_of(st.integers(1, 100_000), st.floats(0.1, 5_000)),
    gaps=st.lists(
        st.one_of(st.just(0.0), st.floats(0, 0.1), st.floats(0, 30)), min_size=1, max_size=40
    ),
)
def test_no_span_of_time_has_more_requests_than_the_rate_and_a_burst(
    per_second: float, gaps: list[float]
) -> None:
    wanted = list(accumulate(gaps))
    made = starts(per_second, wanted)
    burst = max(1.0, per_second / 10)
    assert all(time >= want for time, want in zip(made, wanted, strict=True))
    for first, last in combinations(range(len(made)), 2):
        assert last - first + 1 <= per_second * (made[last] - made[first]) + burst + 1e-5


@settings(deadline=None, max_examples=50)
@given(per_second=st.integers(1, 5_000), requests=st.integers(1, 200))
def test_under_pressure_the_whole_rate_is_used(per_second: int, requests: int) -> None:
    made = starts(per_second, [0.0] * requests)
    burst = max(1.0, per_second / 10)
    assert made[-1] == pytest.approx(max(0.0, (requests - burst) / per_second), abs=1e-6)


# --- how many at a time ---------------------------------------------------------------------------

FULL = 475_000
SECONDS = 0.08


def full(_now: float, _random: random.Random) -> int:
    """Nothing but full bodies."""
    return FULL


def any_size(_now: float, random_: random.Random) -> int:
    """Full and small bodies in any order."""
    return random_.choice((FULL, FULL, FULL // 2, FULL // 8))


def in_waves(now: float, _random: random.Random) -> int:
    """From a tenth of a full body to a full one and back, in a minute."""
    return int(FULL * (0.55 + 0.45 * sin(now * 2 * pi / 60)))


@dataclass
class Simulated:
    """A destination that serves at most so many requests at a time, asked by a sender that always has more to send.

    Args:
        shape: what becomes of requests beyond `capacity`:
            `queue`: they wait until one of the slots is free;
            `slows`: all take longer, by the square of how far too many they are, so that throughput falls;
            `slows smoothly`: the same, without an edge: throughput is best at `capacity` and worse on both sides;
            `refuses`: they are answered with 429.
        capacity: so many.
        noise: standard deviation of a request's time, as a share of it.
        sizes: bytes of the body that is sent at a time.
        fixed: the limit; None to let it adapt.
    """

    shape: str
    capacity: int
    noise: float = 0.3
    sizes: Sizes = full
    fixed: int | None = None
    seed: int = 0
    now: float = 0.0
    accepted: list[tuple[float, int]] = field(default_factory=list)
    refused: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(f"{self.shape} {self.capacity} {self.seed}")
        self.limit = Concurrency(self.fixed, self.random.random)
        self.under_way: list[tuple[float, int, int, float]] = []
        self.slots_free_at = [0.0] * self.capacity
        self.started = self.serving = 0

    def run(self, until: float) -> Simulated:
        """Send as much as the limit allows."""
        while self.now < until:
            while len(self.under_way) < self.limit.limit:
                self._start()
            self.limit.binds(self.now, binding=True)
            self.now, _, size, started = heapq.heappop(self.under_way)
            self.limit.ended(self.now, size)
            if size:
                self.serving -= 1
                self.accepted.append((self.now, size))
            else:
                self.refused += 1
                self.limit.overloaded(self.now, started, len(self.under_way) + 1)
        return self

    def _start(self) -> None:
        size = self.sizes(self.now, self.random)
        spread = sqrt(log(1 + self.noise**2))
        takes = SECONDS * (0.5 + 0.5 * size / FULL)  # what is fixed, and what comes with the bytes
        takes *= exp(self.random.gauss(-spread * spread / 2, spread))
        load = (len(self.under_way) + 1) / self.capacity
        start = self.now
        if self.shape == "queue":
            start = max(start, heapq.heappop(self.slots_free_at))
            heapq.heappush(self.slots_free_at, start + takes)
        elif self.shape == "slows":
            takes *= max(1.0, load**2)
        elif self.shape == "slows smoothly":
            takes *= (1 + load**2) / 2
        elif self.serving >= self.capacity:
            size, takes = 0, SECONDS / 2
        self.serving += size > 0
        self.started += 1
        heapq.heappush(self.under_way, (start + takes, self.started, size, self.now))

    def rate(self, since: float) -> float:
        """Accepted bytes a second."""
        return sum(size for at, size in self.accepted if at >= since) / (self.now - since)


@pytest.mark.no_cover
@pytest.mark.parametrize(
    ("shape", "noise", "sizes", "step"),
    [
        ("queue", 0.5, any_size, 1),
        ("slows", 0.3, any_size, 1),
        ("slows smoothly", 0.3, None, 3),
        ("refuses", 0.3, any_size, 1),
        ("queue", 0.0, None, 5),
        ("slows", 0.0, None, 5),
        ("queue", 0.3, in_waves, 7),
        ("slows", 0.3, in_waves, 7),
        ("refuses", 0.3, in_waves, 7),
    ],
)
def test_it_reaches_nine_tenths_of_what_the_best_number_does(
    shape: str, noise: float, sizes: Sizes | None, step: int
) -> None:
    """Whatever the best number is, from 1 to 64, and without being told; how fast is in another test."""
    reached: dict[int, float] = {}
    for capacity in range(1, MOST + 1, step):
        until = 8 + 118 / sqrt(capacity)  # what is slow has fewer requests to learn from
        if sizes is in_waves:
            until += 10  # a good part of a wave
        adaptive = Simulated(shape, capacity, noise, sizes or full).run(until)
        if sizes is in_waves:  # the same part of the wave
            fixed = Simulated(shape, capacity, noise, sizes, fixed=capacity).run(until)
            best = fixed.rate(until / 2)
        else:
            size = 1.0 if sizes is None else (1 + 1 + 0.5 + 0.125) / 4
            best = capacity * FULL * size / (SECONDS * (0.5 + 0.5 * size))
        reached[capacity] = adaptive.rate(until / 2) / best
    assert min(reached.values()) >= 0.9, sorted(reached.items(), key=lambda one: one[1])[:5]


@pytest.mark.no_cover
@pytest.mark.parametrize("shape", ["queue", "slows", "slows smoothly", "refuses"])
@pytest.mark.parametrize("capacity", [1, 5, 23])
def test_no_fixed_number_does_better_than_the_capacity(shape: str, capacity: int) -> None:
    """What the test before takes for the best is, and is what the formula says."""
    rates = {
        number: Simulated(shape, capacity, fixed=number).run(30.0).rate(10.0)
        for number in (max(1, capacity // 2), capacity, capacity + 1, 2 * capacity)
    }
    assert rates[capacity] >= 0.96 * max(rates.values())
    assert rates[capacity] == pytest.approx(capacity * FULL / SECONDS, rel=0.06)


@pytest.mark.parametrize("shape", ["queue", "slows", "refuses"])
@pytest.mark.parametrize(("capacity", "within"), [(1, 60.0), (4, 10.0), (16, 5.0), (64, 5.0)])
def test_it_gets_there_in_seconds(shape: str, capacity: int, within: float) -> None:
    simulated = Simulated(shape, capacity).run(within)
    assert simulated.limit.limit == pytest.approx(capacity, rel=0.5, abs=1)


@pytest.mark.parametrize(("before", "after"), [(4, 40), (40, 4)])
def test_it_follows_when_the_destination_changes(before: int, after: int) -> None:
    simulated = Simulated("slows", before).run(60.0)
    assert simulated.limit.limit == pytest.approx(before, abs=before / 4 + 1)
    simulated.capacity = after
    simulated.run(240.0)
    assert simulated.rate(180.0) >= 0.9 * after * FULL / SECONDS


def test_what_is_refused_is_tried_more_and_more_seldom() -> None:
    """A destination that refuses what is too much isn't pestered."""
    simulated = Simulated("refuses", 3).run(120.0)
    before = simulated.refused
    simulated.run(240.0)
    assert simulated.refused - before <= 60
    assert simulated.rate(120.0) >= 0.95 * 3 * FULL / SECONDS


def test_a_number_that_is_given_stays() -> None:
    simulated = Simulated("refuses", 3, fixed=7).run(20.0)
    assert simulated.refused > 100
    assert simulated.limit.limit == 7


def test_a_limit_that_does_not_bind_neither_grows_nor_shrinks() -> None:
    """However slow or fast the few requests are that come."""
    limit = Concurrency()
    for number in range(5_000):
        limit.binds(number * 1.0, binding=False)
        limit.ended(number + 0.05 * (1 + number % 17), FULL)
        assert limit.limit == START


def test_lulls_are_no_samples() -> None:
    """Bursts with nothing between them lead to the number to which an unbroken load leads."""
    simulated = Simulated("queue", 32)
    now, seconds = 0.0, 0.0
    while seconds < 20.0:
        start = simulated.now
        simulated.run(start + 0.5)
        seconds += 0.5
        # What is under way ends in a lull of twenty seconds.
        now = simulated.now
        while simulated.under_way:
            simulated.limit.binds(now, binding=False)
            now, _, size, _ = heapq.heappop(simulated.under_way)
            simulated.serving -= 1
            simulated.limit.ended(now, size)
        simulated.now = now + 20.0
    assert 25 <= simulated.limit.limit <= MOST


def test_after_a_long_lull_nothing_is_compared_with_what_was_before() -> None:
    """A trial that was under way is over: what comes next starts from the number that was known to be good."""
    simulated = Simulated("slows", 8).run(30.0)
    limit = simulated.limit
    while limit.limit == limit._base:
        simulated.run(simulated.now + 0.01)
    limit.binds(simulated.now, binding=False)
    limit.binds(simulated.now + 3600.0, binding=True)
    assert limit.limit == limit._base


def test_a_429_shrinks_once_for_those_that_ran_side_by_side() -> None:
    limit = Concurrency()
    limit.overloaded(1.0, 0.5, 8)
    assert limit.limit == 6
    for _ in range(7):
        limit.overloaded(1.1, 0.5, 7)
    assert limit.limit == 6
    limit.overloaded(2.0, 1.5, 6)
    assert limit.limit == 4


def test_it_never_falls_below_one() -> None:
    limit = Concurrency()
    for number in range(1, 30):
        limit.overloaded(number + 0.5, number, limit.limit)
    assert limit.limit == 1


def test_a_429_of_a_lane_with_a_small_share_costs_the_others_little() -> None:
    """It says that the requests of its key are too many, not all of them."""
    limit = Concurrency()
    for number in range(1, 30):
        limit.overloaded(number + 0.5, number, 1)
    assert limit.limit == START


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 1 << 30),
    steps=st.lists(
        st.tuples(st.sampled_from(["binds", "lull", "ok", "fails", "429"]), st.floats(0, 50)),
        max_size=300,
    ),
)
def test_whatever_happens_it_stays_within_its_bounds(
    seed: int, steps: list[tuple[str, float]]
) -> None:
    limit = Concurrency(jitter=random.Random(seed).random)
    now = 0.0
    for what, seconds in steps:
        now += seconds
        if what in ("binds", "lull"):
            limit.binds(now, binding=what == "binds")
        for _ in range(10 if what == "ok" else what == "fails"):
            limit.ended(now, FULL if what == "ok" else 0)
        if what == "429":
            limit.overloaded(now, now - seconds, limit.limit)
        assert 1 <= limit.limit <= MOST
