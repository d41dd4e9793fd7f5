"""What streamer says of its lateness is what the judge at the other end measured.

How late it is stands in no assertion: that is a claim about a machine, and `benchmarks/lateness.py` makes it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from lateness import PERCENTILES, measure

if TYPE_CHECKING:
    from kafka_broker.topics import Kafka

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def test_streamers_own_histogram_agrees_with_the_judge_within_a_bucket(kafka: Kafka) -> None:
    """Over 10 s of 1,000 events a second, each of which is accounted for."""
    measured = asyncio.run(measure(kafka, rate=1000, seconds=10))
    assert measured.produced > 1000
    assert sum(measured.buckets) == measured.judged.total
    for percent in PERCENTILES:
        apart = measured.own_bucket(percent) - measured.judged_bucket(percent)
        assert abs(apart) <= 1, f"p{percent}: {measured.judged.as_json()}, own {measured.buckets}"
