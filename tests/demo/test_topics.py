"""The topics of a run: made, read, and removed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from aiokafka import AIOKafkaProducer

from kafka_broker.topics import fresh_name
from streamer.demo.broker import EmbeddedBroker
from streamer.demo.topics import Letter, Letters, let_make, make, remove
from streamer.errors import StartError

if TYPE_CHECKING:
    from kafka_broker.topics import Kafka


def test_letters_are_read_as_they_come() -> None:
    async def main() -> Letters:
        async with EmbeddedBroker() as broker:
            await let_make(broker.bootstrap, ["letters"])
            producer = AIOKafkaProducer(bootstrap_servers=broker.bootstrap)
            await producer.start()
            letters = Letters(broker.bootstrap, "letters")
            following = asyncio.create_task(letters.follow())
            for number in range(30):
                said = {"reason": "not_json", "detail": f"no {number}", "partition": "2"}
                headers = [(f"streamer-{name}", text.encode()) for name, text in said.items()]
                headers.append(("streamer-offset", str(number).encode()))
                await producer.send_and_wait("letters", b"x", headers=headers, partition=1)
            await letters.until(30, 60)
            await letters.until(31, 0.1)  # which doesn't come
            following.cancel()
            await asyncio.wait({following})
            await producer.stop()
            return letters

    letters = asyncio.run(main())
    assert letters.counts == {"not_json": 30}
    assert len(letters.last) == 20
    assert letters.last[-1] == Letter("not_json", "no 29", "2/29")


def test_topics_are_made_and_removed(kafka: Kafka) -> None:
    name = fresh_name("demo")

    async def main() -> None:
        await make(kafka.bootstrap, [name])
        with pytest.raises(StartError, match=rf"{name}: .*AlreadyExists"):
            await make(kafka.bootstrap, [name])
        async with asyncio.timeout(60):  # Kafka tells it a moment later
            while name not in kafka._admin.list_topics(timeout=20).topics:
                await asyncio.sleep(0.05)
        assert len(kafka._admin.list_topics(timeout=20).topics[name].partitions) == 4
        await remove(kafka.bootstrap, [name], name)
        with pytest.raises(StartError, match=f"{name} can't be removed: .*Unknown"):
            await remove(kafka.bootstrap, [name], name)

    asyncio.run(main())


def test_a_kafka_that_is_not_there_is_a_sentence() -> None:
    with pytest.raises(StartError, match=r"can't be reached at 127\.0\.0\.1:1: connection refused"):
        asyncio.run(make("127.0.0.1:1", ["events"]))
