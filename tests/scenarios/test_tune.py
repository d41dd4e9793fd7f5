"""What `streamer tune` says of another interval is what a real run at that interval then shows."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from documents import run_streamer
from lateness import LATENCY, PERCENTILES, measure
from whole_pipeline import GROUP_FIELD, GROUP_TRAITS

if TYPE_CHECKING:
    from pathlib import Path

    from kafka_broker.topics import Kafka
    from lateness import Measured

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

RATE = 60
SECONDS = 30.0
WITHIN = 0.15


def test_a_prediction_holds_within_15_percent(kafka: Kafka, tmp_path: Path) -> None:
    """Recorded at an interval of 1 s, played at 3 s, and held against other events that really go at 3 s."""
    recorded = asyncio.run(measure(kafka, rate=RATE, seconds=SECONDS / 2, interval="1s"))
    said = _predicted(kafka, recorded, tmp_path)
    for interval, real, seconds in (
        ("1s", recorded, SECONDS / 2),
        ("3s", asyncio.run(measure(kafka, rate=RATE, seconds=SECONDS, interval="3s")), SECONDS),
    ):
        _assert_near(said[interval], real, seconds)
    slower = said["3s"]["requests_per_second"] / said["1s"]["requests_per_second"]
    assert slower == pytest.approx(1 / 3, rel=WITHIN)  # or any prediction would do


def _predicted(kafka: Kafka, recorded: Measured, folder: Path) -> dict[str, dict[str, Any]]:
    """Record the trace as a person does, and ask what it comes to, by the interval."""
    group = {"field": GROUP_FIELD, "traits": GROUP_TRAITS, "each": True}
    settings = {
        "STREAMER_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap,
        "STREAMER_KAFKA__TOPICS": recorded.topic,
        "STREAMER_GROUPS": orjson.dumps([group]).decode(),
    }
    done = run_streamer("preview --from beginning --record trace.ndjson", folder, **settings)
    assert done.returncode == 0, done.stderr
    answer = run_streamer(
        f"tune trace.ndjson --interval 1s,3s --request-time {LATENCY.seconds * 1000:.0f}ms --json",
        folder,
    )
    assert answer.returncode == 0, answer.stderr
    document = orjson.loads(answer.stdout)
    assert document["records"] == recorded.produced
    return {row["settings"]["flush.interval"]: row for row in document["settings"]}


def _assert_near(said: dict[str, Any], real: Measured, seconds: float) -> None:
    late = {f"p{percent}": real.judged.percentile(percent) for percent in PERCENTILES}
    assert said["lateness_seconds"] == pytest.approx(late, rel=WITHIN)
    assert said["requests_per_second"] == pytest.approx(real.requests / seconds, rel=WITHIN)
    assert said["calls_per_request"] == pytest.approx(real.calls / real.requests, rel=WITHIN)
