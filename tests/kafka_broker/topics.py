"""What tests ask of a Kafka cluster: topics, records put in and read back, and offsets.

All of it goes through librdkafka and not through aiokafka, which the code under test uses: a bug of
one client should not hide from the test because the test has it too.
"""

from __future__ import annotations

import asyncio
import functools
import threading
import time
import uuid
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import AlterConfigOpType, ConfigEntry, ConfigResource
from confluent_kafka.admin._resource import ResourceType
from confluent_kafka.cimpl import NewTopic

if TYPE_CHECKING:
    from collections.abc import Iterable

Partition: TypeAlias = tuple[str, int]
"""A topic's name and a partition's number."""

TIMEOUT_SECONDS = 60.0
_TRY_SECONDS = 5.0
"""How long one request to make a topic may take: a broker that was frozen loses some on the way to its controller."""
_UNANSWERED = {KafkaError._TIMED_OUT, KafkaError._TRANSPORT, KafkaError.REQUEST_TIMED_OUT}
_COORDINATOR = {
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
}
_LEADER = {
    KafkaError.NOT_LEADER_FOR_PARTITION,  # of a fresh topic, which it may not know yet
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError._UNKNOWN_PARTITION,  # what librdkafka says while a broker that was frozen has no partitions back yet
}
QUIET = {"log_level": 0}
"""librdkafka logs to stderr; what goes wrong here is raised instead."""


class ToProduce(NamedTuple):
    """A record to be produced. A plain tuple of its first fields does as well.

    Attributes:
        key: decides the partition, by Kafka's own hash; None is spread at random.
        value: None is a tombstone.
        timestamp_ms: milliseconds since 1970; None is now.
        headers: names and values, in order.
        partition: where it goes; None leaves it to the key.
    """

    key: bytes | None
    value: bytes | None
    timestamp_ms: int | None = None
    headers: tuple[tuple[str, bytes], ...] = ()
    partition: int | None = None


@dataclass(frozen=True, slots=True)
class ReadRecord:
    """A record as it stands in a topic.

    Attributes:
        topic: the topic.
        partition: its partition.
        offset: its offset there.
        key: the key's bytes.
        value: the value's bytes; None for a tombstone.
        timestamp_ms: milliseconds since 1970.
        headers: names and values, in order.
    """

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    timestamp_ms: int
    headers: tuple[tuple[str, bytes | None], ...]


def fresh_name(kind: str) -> str:
    """A name that no other test has, for a topic or a group.

    Args:
        kind: how it begins.
    """
    return f"{kind}-{uuid.uuid4().hex[:12]}"


class Kafka:
    """A running cluster, as a test sees it.

    Args:
        bootstrap: its address, `host:port`; several with commas between.
        replicas: how many nodes hold each record of a topic that is created.
        patience_seconds: how long a record that is produced may wait for its acknowledgement.
    """

    def __init__(
        self, bootstrap: str, *, replicas: int = 1, patience_seconds: float = TIMEOUT_SECONDS
    ) -> None:
        self.bootstrap = bootstrap
        self._replicas = replicas
        self._patience_seconds = patience_seconds
        self._producing = threading.Lock()  # callbacks come to whichever thread polls the producer

    @cached_property
    def _admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.bootstrap, **QUIET})

    @cached_property
    def _producer(self) -> Producer:
        """Kept, because an idempotent producer takes a second to get its id."""
        return Producer(
            {
                "bootstrap.servers": self.bootstrap,
                "acks": "all",
                "enable.idempotence": True,
                "partitioner": "murmur2_random",  # what Java's producers and aiokafka do with a key
                "delivery.timeout.ms": int(self._patience_seconds * 1000),
                "reconnect.backoff.max.ms": 1000,  # how late it finds a broker that is back: 10 s by default
                "topic.metadata.propagation.max.ms": 5000,  # how long a topic may be unknown: 30 s by default
                "message.max.bytes": 100_000_000,  # a record too large is for the broker to refuse
                **QUIET,
            }
        )

    async def create_topic(
        self, name: str | None = None, *, partitions: int = 4, config: dict[str, str] | None = None
    ) -> str:
        """Creates a topic, and waits until each of its partitions has a leader.

        Args:
            name: what it is called; a fresh name if not given.
            partitions: how many it has.
            config: the topic's settings, such as `{"cleanup.policy": "compact"}`.

        Returns:
            The name.

        Raises:
            KafkaException: the cluster refused.
        """
        name = name or fresh_name("events")
        await asyncio.to_thread(self._create_topic, name, partitions, config or {})
        return name

    async def delete_topic(self, name: str) -> None:
        """Deletes a topic.

        Args:
            name: what it is called.

        Raises:
            KafkaException: the cluster refused.
        """
        done = self._admin.delete_topics([name], operation_timeout=TIMEOUT_SECONDS)
        await asyncio.to_thread(done[name].result, TIMEOUT_SECONDS)

    async def configure_topic(self, name: str, config: dict[str, str]) -> None:
        """Changes settings of a topic.

        Args:
            name: what it is called.
            config: the new settings, beside those that it has.

        Raises:
            KafkaException: the cluster refused.
        """
        entries = [
            ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET)
            for key, value in config.items()
        ]
        resource = ConfigResource(ResourceType.TOPIC, name, incremental_configs=entries)
        done = self._admin.incremental_alter_configs([resource])
        await asyncio.to_thread(done[resource].result, TIMEOUT_SECONDS)

    async def leader(self, topic: str, partition: int) -> int:
        """Reads which node leads a partition.

        Args:
            topic: its name.
            partition: the partition's number.
        """
        found = await asyncio.to_thread(self._admin.list_topics, topic, timeout=TIMEOUT_SECONDS)
        return int(found.topics[topic].partitions[partition].leader)

    async def coordinator(self, group: str) -> int:
        """Reads which node coordinates a consumer group.

        Args:
            group: its `group.id`.
        """
        done = self._admin.describe_consumer_groups([group])
        found = await asyncio.to_thread(done[group].result, TIMEOUT_SECONDS)
        return int(found.coordinator.id)

    async def produce(
        self, topic: str, records: Iterable[ToProduce | tuple[Any, ...]]
    ) -> list[tuple[int, int]]:
        """Produces records, each acknowledged by all replicas, in order and none twice.

        Args:
            topic: where they go.
            records: see `ToProduce`.

        Returns:
            The partition and offset of each record, in the order of the records.

        Raises:
            KafkaException: a record was not acknowledged.
        """
        wanted = [ToProduce(*record) for record in records]
        return await asyncio.to_thread(self._produce, topic, wanted)

    async def read(self, topic: str) -> list[ReadRecord]:
        """Reads a whole topic, up to its end as it is now.

        Args:
            topic: its name.

        Returns:
            The records, by partition and offset.

        Raises:
            KafkaException: the topic isn't there, or can't be read.
        """
        return await asyncio.to_thread(self._read, topic)

    async def committed(self, group: str, topic: str) -> dict[Partition, int]:
        """Reads what a consumer group has committed.

        The admin client's call for that isn't used: it crashed the interpreter while the group's coordinator wasn't
        available yet.

        Args:
            group: its `group.id`.
            topic: whose partitions are asked for.

        Returns:
            The committed offset of each partition that has one.
        """
        return await asyncio.to_thread(self._committed, group, topic)

    async def commit(self, group: str, offsets: dict[Partition, int]) -> None:
        """Commits for a consumer group without members, as one that was here before would have.

        Args:
            group: its `group.id`.
            offsets: by partition.
        """
        for topic, _ in offsets:
            await self.committed(group, topic)  # waits until the group has a coordinator
        await asyncio.to_thread(self._commit, group, offsets)

    async def delete_records(self, partition: Partition, before: int) -> None:
        """Removes the first records of a partition, as retention does.

        Args:
            partition: whose.
            before: the offset of the first record that stays.
        """
        done = self._admin.delete_records([TopicPartition(*partition, before)])
        for future in done.values():
            await asyncio.to_thread(future.result, TIMEOUT_SECONDS)

    async def end_offsets(self, topic: str) -> dict[Partition, int]:
        """Reads where a topic ends.

        Args:
            topic: its name.

        Returns:
            The offset that the next record of each partition will get.

        Raises:
            KafkaException: the topic isn't there.
        """
        return await asyncio.to_thread(self._end_offsets, topic)

    def _create_topic(self, name: str, partitions: int, config: dict[str, str]) -> None:
        topic = NewTopic(
            name, num_partitions=partitions, replication_factor=self._replicas, config=config
        )
        deadline = time.monotonic() + TIMEOUT_SECONDS
        tried = False
        while True:
            done = self._admin.create_topics(
                [topic], operation_timeout=_TRY_SECONDS, request_timeout=_TRY_SECONDS
            )
            try:
                done[name].result(TIMEOUT_SECONDS)
                break
            except KafkaException as error:
                code = error.args[0].code()
                if code == KafkaError.TOPIC_ALREADY_EXISTS and tried:
                    break  # a try that got no answer made it
                if code not in _UNANSWERED or time.monotonic() > deadline:
                    raise
                tried = True
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            found = self._admin.list_topics(name, timeout=TIMEOUT_SECONDS).topics[name]
            leaders = [partition.leader for partition in found.partitions.values()]
            if len(leaders) == partitions and -1 not in leaders:
                return
            time.sleep(0.02)
        raise TimeoutError(f"topic {name} has no leaders after {TIMEOUT_SECONDS:.0f} s")

    def _partitions(self, topic: str) -> list[int]:
        found = self._admin.list_topics(topic, timeout=TIMEOUT_SECONDS).topics[topic]
        if found.error:
            raise KafkaException(found.error)
        return sorted(found.partitions)

    def _consumer(self, group: str = "never-joined") -> Consumer:
        return Consumer(
            {
                "bootstrap.servers": self.bootstrap,
                "group.id": group,  # librdkafka wants one; partitions are assigned by hand
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 10,  # an end is told by a fetch that waited in vain
                "fetch.queue.backoff.ms": 10,
                **QUIET,
            }
        )

    def _committed(self, group: str, topic: str) -> dict[Partition, int]:
        wanted = [TopicPartition(topic, number) for number in self._partitions(topic)]
        consumer = self._consumer(group)
        try:
            deadline = time.monotonic() + TIMEOUT_SECONDS
            while True:
                try:
                    found = consumer.committed(wanted, TIMEOUT_SECONDS)
                    break
                except KafkaException as error:  # a fresh cluster is still making its offsets topic
                    if error.args[0].code() not in _COORDINATOR or time.monotonic() > deadline:
                        raise
                    time.sleep(0.1)
        finally:
            consumer.close()
        return {(part.topic, part.partition): part.offset for part in found if part.offset >= 0}

    def _commit(self, group: str, offsets: dict[Partition, int]) -> None:
        consumer = self._consumer(group)
        try:
            parts = [TopicPartition(*partition, offset) for partition, offset in offsets.items()]
            consumer.commit(offsets=parts, asynchronous=False)
        finally:
            consumer.close()

    def _end_offsets(self, topic: str) -> dict[Partition, int]:
        consumer = self._consumer()
        try:
            return {
                (topic, number): self._end_offset(consumer, TopicPartition(topic, number))
                for number in self._partitions(topic)
            }
        finally:
            consumer.close()

    def _end_offset(self, consumer: Consumer, partition: TopicPartition) -> int:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while True:
            try:
                _, end = consumer.get_watermark_offsets(partition, TIMEOUT_SECONDS)
            except KafkaException as error:
                if error.args[0].code() not in _LEADER or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return end

    def _produce(self, topic: str, records: list[ToProduce]) -> list[tuple[int, int]]:
        with self._producing:
            return self._produce_alone(topic, records)

    def _produce_alone(self, topic: str, records: list[ToProduce]) -> list[tuple[int, int]]:
        producer = self._producer
        positions: list[tuple[int, int]] = [(-1, -1)] * len(records)
        refused: list[KafkaError] = []
        pending = len(records)

        def settled(index: int, error: KafkaError | None, message: Message) -> None:
            nonlocal pending
            pending -= 1
            if error is not None:
                refused.append(error)
            else:
                positions[index] = (cast("int", message.partition()), cast("int", message.offset()))

        for index, record in enumerate(records):
            produce = functools.partial(
                producer.produce,
                topic,
                value=record.value,
                key=record.key,
                partition=-1 if record.partition is None else record.partition,
                on_delivery=functools.partial(settled, index),
                timestamp=record.timestamp_ms or 0,
                headers=list(record.headers),
            )
            while True:
                try:
                    produce()
                    break
                except BufferError:  # the client's queue is full: wait until some are acknowledged
                    producer.poll(0.1)
            producer.poll(0)
        while pending:  # each record is acknowledged or refused within the delivery time-out
            producer.poll(0.1)
        if refused:
            raise KafkaException(refused[0])
        return positions

    def _read(self, topic: str) -> list[ReadRecord]:
        unread = set(self._partitions(topic))
        consumer = self._consumer()
        consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in unread])
        records: list[ReadRecord] = []
        deadline = time.monotonic() + TIMEOUT_SECONDS
        try:
            while unread:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"topic {topic} was not read within {TIMEOUT_SECONDS:.0f} s")
                for message in consumer.consume(500, timeout=0.05):
                    error = message.error()
                    if error is None:
                        records.append(_read_record(message))
                    elif error.code() == KafkaError._PARTITION_EOF:
                        unread.discard(cast("int", message.partition()))
                    else:
                        raise KafkaException(error)
        finally:
            consumer.close()
        return sorted(records, key=lambda record: (record.partition, record.offset))


def _read_record(message: Message) -> ReadRecord:
    headers = message.headers() or []
    pairs = headers.items() if isinstance(headers, dict) else headers
    return ReadRecord(
        topic=cast("str", message.topic()),
        partition=cast("int", message.partition()),
        offset=cast("int", message.offset()),
        key=message.key(),
        value=message.value(),
        timestamp_ms=message.timestamp()[1],
        headers=tuple(
            (name, value.encode() if isinstance(value, str) else value) for name, value in pairs
        ),
    )
