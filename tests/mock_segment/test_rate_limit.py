"""A write key gets its requests per second, and is told how long to wait for the next."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.mock_segment.rate_limit import RateLimit


def test_says_how_long_to_wait_and_lets_pass_after_it() -> None:
    now = 100.0
    limit = RateLimit(2, clock=lambda: now)
    assert [limit.wait_seconds("key") for _ in range(3)] == [0, 0, 0.5]
    now += 0.25
    assert limit.wait_seconds("key") == 0.25
    now += 0.25
    assert limit.wait_seconds("key") == 0


def test_write_keys_do_not_share_a_limit() -> None:
    limit = RateLimit(1, clock=lambda: 0.0)
    assert limit.wait_seconds("a") == 0
    assert limit.wait_seconds("a") > 0
    assert limit.wait_seconds("b") == 0


@pytest.mark.parametrize("rate", [0, -1, float("nan")])
def test_a_rate_must_be_above_zero(rate: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        RateLimit(rate)


@settings(deadline=None)
@given(rate=st.floats(0.5, 50), gaps=st.lists(st.floats(0, 2, allow_subnormal=False), max_size=200))
def test_never_lets_more_pass_than_a_full_bucket_and_the_rate(
    rate: float, gaps: list[float]
) -> None:
    now = 0.0
    limit = RateLimit(rate, clock=lambda: now)
    passed = 0
    for gap in gaps:
        now += gap
        passed += limit.wait_seconds("key") == 0
    assert passed <= max(1, rate) + now * rate + 1e-6
