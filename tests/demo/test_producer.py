"""The producer: its rate, its ends, the timestamps of its records, and how far it goes ahead."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import orjson
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from streamer.demo.broker import EmbeddedBroker
from streamer.demo.producer import _LARGEST_BYTES, Order, Producer, _Ahead
from streamer.demo.topics import let_make
from streamer.errors import StartError

TOPIC = "events"


async def read(bootstrap: str) -> list[Any]:
    """Everything that stands in the topic."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    try:
        tps = [TopicPartition(TOPIC, number) for number in range(4)]
        consumer.assign(tps)
        total = sum((await consumer.end_offsets(tps)).values())
        found: list[Any] = []
        while len(found) < total:
            for records in (await consumer.getmany(timeout_ms=200)).values():
                found += records
        return found
    finally:
        await consumer.stop()


def test_a_records_timestamp_is_that_of_its_event_and_of_its_making() -> None:
    async def main() -> tuple[Producer, list[Any], float, float]:
        async with EmbeddedBroker() as broker:
            await let_make(broker.bootstrap, [TOPIC])
            order = Order(bootstrap=broker.bootstrap, topic=TOPIC, rate=1000, events=700)
            async with Producer(order) as producer:
                begun = time.time()
                producer.committed({})
                await producer.follow()
                return producer, await read(broker.bootstrap), begun, time.time()

    producer, records, begun, ended = asyncio.run(main())
    assert (producer.produced, producer.failed, producer.done) == (700, 0, True)
    assert len(records) == 700
    stamps = [record.timestamp / 1000 for record in records]
    assert begun - 0.002 <= min(stamps)
    assert max(stamps) <= ended
    assert max(stamps) - min(stamps) > 0.5, "700 events at 1,000 a second take their time"
    whole = 0
    for record in records:
        try:
            event = orjson.loads(record.value)
        except orjson.JSONDecodeError:
            continue  # broken on purpose
        whole += 1
        assert event["event_timestamp"] == record.timestamp
    assert whole > 650


def test_it_stops_when_it_is_told_to() -> None:
    """What was sent is acknowledged and counted."""

    async def main() -> tuple[int, int]:
        async with EmbeddedBroker() as broker:
            await let_make(broker.bootstrap, [TOPIC])
            order = Order(bootstrap=broker.bootstrap, topic=TOPIC, rate=500, seconds=600)
            async with Producer(order) as producer:
                producer.committed({})
                following = asyncio.create_task(producer.follow())
                while producer.produced < 50:
                    await asyncio.sleep(0.02)
                producer.finish()
                await following
                return producer.produced, len(await read(broker.bootstrap))

    counted, found = asyncio.run(main())
    assert counted == found >= 50


def test_it_waits_for_commits_and_goes_on_with_them() -> None:
    """In each partition it stays within the limit; one that isn't committed holds it."""

    async def main() -> tuple[int, int, int]:
        async with EmbeddedBroker() as broker:
            await let_make(broker.bootstrap, [TOPIC])
            limit = 300_000
            order = Order(
                bootstrap=broker.bootstrap, topic=TOPIC, rate=20_000, most_ahead_bytes=limit
            )
            async with Producer(order) as producer:
                producer.committed({})
                following = asyncio.create_task(producer.follow())
                while not producer.held:
                    await asyncio.sleep(0.02)
                await asyncio.sleep(0.3)
                held = producer.produced
                sizes = [0] * 4
                for record in await read(broker.bootstrap):
                    sizes[record.partition] += len(record.value)
                producer.committed(dict.fromkeys(range(4), 10_000))
                while producer.produced == held:
                    await asyncio.sleep(0.02)
                producer.finish()
                await following
                return held, max(sizes), limit

    held, largest, limit = asyncio.run(main())
    assert held > 0
    assert limit / 2 < largest < limit


def test_a_broker_that_is_not_there_is_a_sentence() -> None:
    async def main() -> None:
        async with Producer(Order(bootstrap="127.0.0.1:1", topic=TOPIC, rate=1)):
            pass

    with pytest.raises(StartError, match=r"can't produce to 127\.0\.0\.1:1"):
        asyncio.run(main())


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 50_000), st.booleans()), max_size=80))
def test_what_is_ahead_is_what_is_not_committed(steps: list[tuple[int, int, bool]]) -> None:
    """Whatever is acknowledged and committed in whatever order, it is the bytes from the committed offset on."""
    limit = 400_000
    ahead = _Ahead(limit)
    sizes: dict[int, list[int]] = {0: [], 1: [], 2: []}
    committed = [0, 0, 0]
    for partition, size, commit in steps:
        ahead.sent(partition, size)
        ahead.acknowledged(partition, len(sizes[partition]), size)
        sizes[partition].append(size)
        if commit:
            committed[partition] = (committed[partition] + len(sizes[partition]) + 1) // 2
            ahead.committed(partition, committed[partition])
        for number, known in sizes.items():
            bytes_ahead = sum(known[committed[number] :])
            assert ahead.has_room([number]) is (bytes_ahead + _LARGEST_BYTES <= limit)


def test_what_was_never_acknowledged_is_not_ahead() -> None:
    ahead = _Ahead(_LARGEST_BYTES + 10)
    ahead.sent(0, 11)
    assert not ahead.has_room([0])
    ahead.failed(0, 11)
    assert ahead.has_room([0, 1])


def test_without_a_limit_there_is_always_room() -> None:
    ahead = _Ahead(None)
    ahead.sent(0, 1 << 40)
    assert ahead.has_room([0])
