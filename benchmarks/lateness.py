"""How late events arrive at 1,000 a second: the claim is that 99 of 100 do within 1.3 s at a flush interval of 1 s.

A real Apache Kafka, `streamer run` as a process of its own, a producer in another, and mock Segment here, which takes
80 ms for every answer and measures from Kafka's timestamp of a record to the acceptance of its page or track call.
Every record is accounted for before the figures count. At 1,000 a second batches are full before they are due; with
`--rate 200` they aren't, and what is measured is the interval.

    python benchmarks/lateness.py [--rate 1000] [--interval 1s] [--seconds 20]

Needs Java 17 and Maven. The exit status is 1 if the claim fails.
"""

# ruff: noqa: T201 - a script, which prints

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
from pathlib import Path

# The tests of the whole pipeline have what this needs.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from kafka_broker.broker import KafkaBroker
from kafka_broker.topics import Kafka
from lateness import PERCENTILES, measure
from streamer.config import parse_duration
from streamer.metrics import AGE_BUCKETS

ROUND_TRIP_SECONDS = 0.3
"""What may come to the flush interval: 80 ms of mock Segment, and the rest for Kafka and streamer."""


def main() -> int:
    """Measure once, print the figures, and give the exit status."""
    parser = argparse.ArgumentParser(
        description="How late events arrive, from Kafka's timestamp to acceptance."
    )
    parser.add_argument("--rate", type=int, default=1000, help="events a second (default: 1000)")
    parser.add_argument("--interval", default="1s", help="the flush interval (default: 1s)")
    parser.add_argument("--seconds", type=float, default=20, help="how long (default: 20)")
    wanted = parser.parse_args()
    lacking = [program for program in ("java", "mvn") if shutil.which(program) is None]
    if lacking:
        sys.exit(f"{' and '.join(lacking)} missing: apt-get install default-jre-headless maven")
    with KafkaBroker() as broker:
        measured = asyncio.run(
            measure(
                Kafka(broker.bootstrap),
                rate=wanted.rate,
                seconds=wanted.seconds,
                interval=wanted.interval,
            )
        )
    print(f"{measured.produced} events in {wanted.seconds:g} s, {measured.requests} requests,")
    print(f"flush interval {wanted.interval}, {os.cpu_count()} cores; every event accounted for")
    print()
    print("       at mock Segment   streamer's own bucket")
    edges = [0.0, *AGE_BUCKETS, float("inf")]
    for percent in PERCENTILES:
        own = measured.own_bucket(percent)
        late = measured.judged.percentile(percent)
        print(f"  p{percent}  {late:>13.3f} s   {edges[own]:g} to {edges[own + 1]:g} s")
    limit = parse_duration(wanted.interval) + ROUND_TRIP_SECONDS
    late = measured.judged.percentile(99)
    holds = late < limit
    print()
    print(f"p99 under {limit:g} s: {'holds' if holds else 'FAILS'}")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
