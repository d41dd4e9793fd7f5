"""With suppression fewer calls are sent, and profiles end as without it: each story ends in the one assertion."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING

import orjson
import pytest

from kafka_broker.topics import Kafka, ToProduce
from streamer.demo.events import generate
from whole_pipeline import Stage

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

SUPPRESS = {"STREAMER_AGGREGATE__SUPPRESS_FOR": "1h", "STREAMER_FLUSH__INTERVAL": "200ms"}


def visits(count: int, seed: int) -> Iterator[ToProduce]:
    """Few visitors who come often. Their traits change from session to session, and back: three sessions in turn."""
    now = int(time.time() * 1000)
    sessions: Counter[str] = Counter()
    for event in islice(generate(seed, users=200, broken=0.002), count):
        value = event.value
        try:
            parsed = orjson.loads(value)
        except orjson.JSONDecodeError:
            yield ToProduce(event.key, value, now)
            continue
        endpoint = parsed["endpoint"]
        sessions[endpoint["Id"]] += 1
        session = f"s{sessions[endpoint['Id']] // 20 % 3}"
        endpoint["Attributes"] |= {"lastSession": [session], "lastPageSession": [session]}
        endpoint["Metrics"] = {"sessions": 1.0}
        yield ToProduce(event.key, orjson.dumps(parsed), now)


async def in_pieces(stage: Stage, records: list[ToProduce], pieces: int, pause: float) -> None:
    size = -(-len(records) // pieces)
    for start in range(0, len(records), size):
        await stage.produce(records[start : start + size])
        await asyncio.sleep(pause)


def test_fewer_calls_are_sent_and_profiles_end_the_same(kafka: Kafka) -> None:
    async def story() -> None:
        async with Stage(kafka, SUPPRESS) as stage:
            member = await stage.start()
            await in_pieces(stage, list(visits(20_000, seed=31)), pieces=20, pause=0.3)
            await stage.until_committed()
            await stage.assert_accounted_for()
            metrics = await member.metrics()
            suppressed = metrics["streamer_calls_total", "suppressed", "identify"]
            assert suppressed > metrics["streamer_calls_total", "delivered", "identify"] > 0
            assert metrics["streamer_calls_total", "suppressed", "group"] > 0
            assert metrics["streamer_suppression_keys",] > 200
            assert await member.stop() == 0

    asyncio.run(story())


def test_a_kill_and_members_that_come_and_go_leave_profiles_right(kafka: Kafka) -> None:
    async def story() -> None:
        async with Stage(kafka, SUPPRESS) as stage:
            records = list(visits(30_000, seed=32))
            first = await stage.start()
            load = asyncio.create_task(in_pieces(stage, records, pieces=60, pause=0.3))
            await stage.until_committed(6_000)
            assert (await first.metrics())["streamer_calls_total", "suppressed", "identify"] > 0
            await first.kill()
            second = await stage.start()
            await stage.until_committed(15_000)
            third = await stage.start()
            async with asyncio.timeout(60):
                while (await third.metrics())["streamer_assigned_partitions",] != 2:
                    await asyncio.sleep(0.1)
            await load
            await stage.until_committed()
            await stage.assert_accounted_for(once=False)
            for member in (second, third):
                assert await member.stop() == 0
            records_with_calls = stage.segment.stats.accepted["page"]
            records_with_calls += stage.segment.stats.accepted["track"]
            assert stage.segment.stats.accepted["identify"] < records_with_calls / 2

    asyncio.run(story())
