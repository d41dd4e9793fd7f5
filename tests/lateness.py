"""How late events arrive, measured at mock Segment against Kafka's timestamps, beside what streamer says of itself.

The producer is the demo's: a process of its own, whose records have their events' `event_timestamp` as their timestamp
in Kafka, so that each call's `timestamp` carries it to the judge.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kafka_broker.topics import ToProduce
from streamer.demo.producer import Order, Producer
from streamer.metrics import AGE_BUCKETS
from streamer.mock_segment import Fault, Lateness
from whole_pipeline import TIMEOUT_SECONDS, Produced, Stage

if TYPE_CHECKING:
    from collections import Counter

    from kafka_broker.topics import Kafka

LATENCY = Fault(kind="delay", seconds=0.08)
"""What every request waits for at mock Segment: a round trip to the real one."""
PERCENTILES = (50, 95, 99)


@dataclass(frozen=True, slots=True)
class Measured:
    """What one run showed.

    Attributes:
        topic: in which the events are.
        records: that were produced, as they stand there.
        judged: by mock Segment: from Kafka's timestamp to the acceptance of the page or track call.
        buckets: streamer's own histogram, `streamer_event_age_seconds`: how many in each bucket, the last without end.
        requests: that mock Segment got.
        calls: that it accepted.
    """

    topic: str
    records: list[Produced]
    judged: Lateness
    buckets: list[int]
    requests: int
    calls: int

    @property
    def produced(self) -> int:
        """How many records were produced."""
        return len(self.records)

    def judged_bucket(self, percent: float) -> int:
        """The bucket in which the judge's percentile lies, as its index in `AGE_BUCKETS`."""
        late = self.judged.percentile(percent)
        assert late is not None
        return bisect_left(AGE_BUCKETS, late)

    def own_bucket(self, percent: float) -> int:
        """The bucket in which streamer's percentile lies."""
        wanted = sum(self.buckets) * percent / 100
        seen = 0
        for number, count in enumerate(self.buckets):
            seen += count
            if seen >= wanted:
                return number
        raise AssertionError("nothing was delivered")


async def measure(kafka: Kafka, *, rate: int, seconds: float, interval: str = "1s") -> Measured:
    """Run `streamer run` as a process under a steady load, and hold it to its account.

    Args:
        kafka: the cluster.
        rate: events a second.
        seconds: how long.
        interval: the flush interval.
    """
    settings = {"STREAMER_FLUSH__INTERVAL": interval}
    async with Stage(kafka, settings=settings, faults=[LATENCY]) as stage:
        member = await stage.start()
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while (await member.get("/readyz"))[0] != 200:
                await asyncio.sleep(0.1)
        order = Order(bootstrap=kafka.bootstrap, topic=stage.topic, rate=rate, seconds=seconds)
        async with Producer(order) as producer:
            producer.committed({})
            await producer.follow()
            assert producer.failed == 0
        stage.produced += [
            Produced(
                record.partition,
                record.offset,
                ToProduce(record.key, record.value, record.timestamp_ms),
            )
            for record in await kafka.read(stage.topic)
        ]
        assert len(stage.produced) == producer.produced
        await stage.until_committed()
        await stage.assert_accounted_for()
        return Measured(
            stage.topic,
            stage.produced,
            stage.segment.stats.lateness,
            _buckets(await member.metrics()),
            stage.segment.stats.requests_total,
            stage.segment.stats.accepted.total(),
        )


def _buckets(metrics: Counter[tuple[str, ...]]) -> list[int]:
    edges = [*(str(edge) for edge in AGE_BUCKETS), "+Inf"]
    at_most = [int(metrics["streamer_event_age_seconds_bucket", edge]) for edge in edges]
    return [n - before for n, before in zip(at_most, [0, *at_most], strict=False)]
