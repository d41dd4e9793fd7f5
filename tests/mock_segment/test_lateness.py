"""The histogram of latenesses: percentiles a hundredth fine, in bounded memory."""

from __future__ import annotations

import math

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.mock_segment import Lateness


def of(*seconds: float) -> Lateness:
    lateness = Lateness()
    for each in seconds:
        lateness.add(each)
    return lateness


@given(
    st.lists(st.floats(0.001, 1e9), min_size=1, max_size=60),
    st.sampled_from([1, 50, 95, 99, 99.9, 100]),
)
def test_a_percentile_is_at_most_a_hundredth_too_high(values: list[float], percent: float) -> None:
    exact = sorted(values)[math.ceil(len(values) * percent / 100) - 1]
    found = of(*values).percentile(percent)
    assert found is not None
    assert exact * 0.999_999 <= found <= exact * 1.010_001 + 1e-6


def test_what_is_early_or_at_once_counts_as_in_time() -> None:
    assert of(-5, 0, 0.000_1).percentile(100) == 0.001


def test_nothing_has_no_percentiles() -> None:
    assert Lateness().percentile(50) is None
    assert Lateness().total == 0


def test_it_stays_small() -> None:
    lateness = of(*(n * 0.0007 for n in range(100_000)))
    assert lateness.total == 100_000
    assert len(lateness.as_json()["buckets"]) < 1_200


def test_the_difference_of_two_readings_is_what_came_between() -> None:
    earlier, later = of(1, 1, 1), of(1, 1, 1, 7, 7)
    assert later.since(earlier).total == 2
    assert later.since(earlier).percentile(1) == pytest.approx(7, rel=0.01)


def test_it_travels_as_json() -> None:
    lateness = of(0.5, 1.5, 90)
    document = orjson.loads(orjson.dumps(lateness.as_json()))
    assert Lateness.from_json(document).as_json() == lateness.as_json()
    assert document["total"] == 3
    assert document["p50"] == pytest.approx(1.5, rel=0.01)
