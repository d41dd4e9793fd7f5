"""Requests never follow one another faster than they may."""

from __future__ import annotations

from itertools import accumulate, combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.core.limiter import RateLimit


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
