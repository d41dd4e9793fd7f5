"""A member of a consumer group against a real Kafka: what it reads, what it commits, and what it says of trouble."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import PartitionRecords
from aiokafka.errors import (
    CommitFailedError,
    CorruptRecordException,
    KafkaError,
    NotEnoughReplicasError,
    RequestTimedOutError,
    UnsupportedCodecError,
)
from aiokafka.protocol.group import HeartbeatRequest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewPartitions
from structlog.testing import capture_logs

from kafka_broker.broker import KafkaBroker, free_port
from kafka_broker.topics import QUIET, Kafka, fresh_name
from streamer import virtual_time
from streamer.core.model import Restart
from streamer.source import Source, Subscription, _Pause

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

    from aiokafka import ConsumerRecord

    from conftest import Require
    from streamer.core.model import Partition

SESSION_SECONDS = 6.0
"""The shortest that a broker allows by default."""


class Recorder:
    """A handler and an observer that notes what it is told.

    Attributes:
        told: the name of each call, in order; a commit with its result.
        generations: of each assignment, the offsets that were read, by partition.
        values: what was read, by partition and offset.
        allowed: what may be committed, by partition; where it says nothing, all that was read.
        first: of each first start, what is in its partitions.
        skips: each count of records that were gone.
        full: whether nothing more should be read.
        slow: seconds that a revocation takes.
        breaks: raised instead of taking records in.
        asked: how often it was asked what may be committed.
        confirmations: how often it was told that it may send again.
        restarts: why the consumer was made anew, each time.
    """

    def __init__(self) -> None:
        self.told: list[str] = []
        self.generations: list[dict[Partition, list[int]]] = []
        self.values: dict[tuple[str, int, int], bytes | None] = {}
        self.allowed: dict[Partition, int | None] = {}
        self.first: list[dict[Partition, range]] = []
        self.skips: list[int] = []
        self.full = False
        self.slow = 0.0
        self.breaks: Exception | None = None
        self.asked = 0
        self.confirmations = 0
        self.restarts: list[Restart] = []
        self._room = asyncio.Event()

    @property
    def count(self) -> int:
        """How many records were read, each counted once."""
        return len(self.values)

    def go_on(self) -> None:
        self.full = False
        self._room.set()

    async def room(self) -> None:
        self._room.clear()
        await self._room.wait()

    def assigned(self, partitions: frozenset[Partition]) -> None:
        self.told.append("assigned")
        self.generations.append({partition: [] for partition in partitions})

    def starts_first(self, offsets: Mapping[Partition, range]) -> None:
        assert self.told[-1] == "assigned"
        self.first.append(dict(offsets))

    async def read(self, records: Sequence[tuple[Partition, Sequence[ConsumerRecord]]]) -> None:
        self.told.append("read")
        if self.breaks is not None:
            raise self.breaks
        for partition, together in records:
            for record in together:
                self.generations[-1][partition].append(record.offset)
                self.values[(*partition, record.offset)] = record.value

    def committable(self, partition: Partition, position: int | None) -> int | None:
        self.asked += 1
        return self.allowed.get(partition, position)

    def confirmed(self) -> None:
        self.confirmations += 1

    async def revoked(self) -> None:
        self.told.append("revoked")
        await asyncio.sleep(self.slow)

    async def ended(self) -> None:
        self.told.append("ended")

    def rebalanced(self) -> None:
        pass

    def committed(self, result: str, seconds: float) -> None:
        assert seconds >= 0
        self.told.append(f"commit {result}")

    def paused(self, seconds: float) -> None:
        assert seconds >= 0

    def skipped(self, records: int) -> None:
        self.skips.append(records)

    def restarted(self, reason: Restart) -> None:
        self.restarts.append(reason)

    def assert_in_order(self) -> None:
        """Generations follow one another, are read and committed only while they last, and read each offset once."""
        state = "ended"
        allowed = {
            "ended": {"assigned"},
            "assigned": {"read", "revoked", "commit ok", "commit timeout", "commit error"},
            "revoked": {"ended", "commit ok", "commit timeout", "commit error"},
        }
        for call in self.told:
            known = {"commit rebalance": "commit error"}.get(call, call)
            assert known in allowed[state], (call, state, self.told)
            if known in allowed:
                state = known
        assert state == "ended", self.told
        for generation in self.generations:
            for offsets in generation.values():
                assert offsets == sorted(set(offsets))


def make_source(
    bootstrap: str, recorder: Recorder, topic: str = "", group: str = "", **subscription: Any
) -> Source:
    return Source(
        {"bootstrap_servers": (bootstrap,), "security_protocol": "PLAINTEXT"},
        Subscription(
            topics=(topic,) if topic else (),
            pattern=subscription.pop("pattern", None),
            group_id=group or fresh_name("group"),
            session_timeout_seconds=SESSION_SECONDS,
            **subscription,
        ),
        recorder,
        recorder,
    )


@asynccontextmanager
async def running(source: Source) -> AsyncIterator[asyncio.Task[None]]:
    """Runs a source; stops it at the end, and sees that it leaves no task behind."""
    before = asyncio.all_tasks()
    task = asyncio.create_task(source.run())
    try:
        yield task
    finally:
        source.stop()
        async with asyncio.timeout(100):
            await asyncio.gather(task, return_exceptions=True)
    if len(before) == 1:  # no other source runs
        left = asyncio.all_tasks() - before
        assert not left, left


async def until(condition: Callable[[], object], seconds: float = 100.0) -> None:
    """Waits until something is so."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


async def until_committed(
    kafka: Kafka, group: str, topic: str, wanted: dict[Partition, int]
) -> None:
    async with asyncio.timeout(100):
        while await kafka.committed(group, topic) != wanted:
            await asyncio.sleep(0.1)


def some(count: int, size: int = 10, partition: int | None = None) -> list[tuple[Any, ...]]:
    return [(b"%d" % n, b"%0*d" % (size, n), None, (), partition) for n in range(count)]


# --- reading and committing ---------------------------------------------------------------------


def test_all_is_read_in_order_and_committed_to_the_end_on_stop(kafka: Kafka) -> None:
    async def main() -> None:
        topic, group, recorder = await kafka.create_topic(), fresh_name("group"), Recorder()
        await kafka.produce(topic, some(2_000))
        async with running(make_source(kafka.bootstrap, recorder, topic, group)):
            await until(lambda: recorder.count == 2_000)
        assert await kafka.committed(group, topic) == await kafka.end_offsets(topic)
        recorder.assert_in_order()
        (generation,) = recorder.generations
        assert {p: len(o) for p, o in generation.items()} == await kafka.end_offsets(topic)

    asyncio.run(main())


def test_a_member_that_stopped_has_left_and_the_next_one_needs_not_wait(kafka: Kafka) -> None:
    async def main() -> None:
        topic, group = await kafka.create_topic(), fresh_name("group")
        for _ in range(2):
            recorder = Recorder()
            await kafka.produce(topic, some(10))
            async with running(make_source(kafka.bootstrap, recorder, topic, group)):
                # Less than its session time-out, after which a member that hadn't left would be given up.
                await until(lambda: recorder.count == 10, SESSION_SECONDS - 1)  # noqa: B023 - awaited here
            recorder.assert_in_order()

    asyncio.run(main())


def test_only_what_is_committable_is_committed(kafka: Kafka) -> None:
    async def main() -> None:
        topic = await kafka.create_topic(partitions=3)
        group, recorder = fresh_name("group"), Recorder()
        recorder.allowed = {(topic, 0): 17, (topic, 1): None}
        for partition in range(3):
            await kafka.produce(topic, some(50, partition=partition))
        wanted = {(topic, 0): 17, (topic, 2): 50}
        async with running(make_source(kafka.bootstrap, recorder, topic, group)):
            await until(lambda: recorder.count == 150)
            await until_committed(kafka, group, topic, wanted)
            recorder.allowed[topic, 0] = 31
            await until_committed(kafka, group, topic, {**wanted, (topic, 0): 31})
            recorder.allowed[topic, 0] = 33
        assert await kafka.committed(group, topic) == {**wanted, (topic, 0): 33}

    asyncio.run(main())


def test_with_nothing_pending_the_position_is_committed_past_a_transaction_s_end(
    kafka: Kafka,
) -> None:
    def produce(topic: str) -> None:
        producer = Producer(
            {"bootstrap.servers": kafka.bootstrap, "transactional.id": fresh_name("tx"), **QUIET}
        )
        producer.init_transactions(30)
        producer.begin_transaction()
        for number in range(5):
            producer.produce(topic, b"%d" % number, partition=0)
        producer.commit_transaction(30)

    async def main() -> None:
        topic = await kafka.create_topic(partitions=1)
        group, recorder = fresh_name("group"), Recorder()
        await asyncio.to_thread(produce, topic)
        async with asyncio.timeout(60):
            while await kafka.end_offsets(topic) != {(topic, 0): 6}:  # five records and a marker
                await asyncio.sleep(0.05)
        source = make_source(kafka.bootstrap, recorder, topic, group)
        async with running(source):
            await until_committed(kafka, group, topic, {(topic, 0): 6})
            assert source.lag() == {(topic, 0): 0}
        assert recorder.count == 5

    asyncio.run(main())


def test_records_without_a_value_with_an_empty_one_and_with_a_huge_one_arrive(kafka: Kafka) -> None:
    async def main() -> None:
        topic = await kafka.create_topic(partitions=2, config={"max.message.bytes": "4000000"})
        recorder = Recorder()
        huge = bytes(3_000_000)  # three times what a fetch asks of a partition
        values = [b"before", None, b"", huge, b"after"]
        await kafka.produce(topic, [(b"key", value, None, (), 0) for value in values])
        await kafka.produce(topic, some(3_000, size=1_000, partition=1))
        async with running(make_source(kafka.bootstrap, recorder, topic)):
            await until(lambda: recorder.count == 3_005)
        assert [recorder.values[topic, 0, n] for n in range(5)] == values

    asyncio.run(main())


def test_a_handler_that_breaks_ends_it_and_nothing_unread_is_committed(kafka: Kafka) -> None:
    """The position has moved past the records that the handler didn't take; committing it would lose them."""

    async def main() -> None:
        topic, group, recorder = await kafka.create_topic(), fresh_name("group"), Recorder()
        recorder.breaks = RuntimeError("a bug")
        await kafka.produce(topic, some(100))
        async with running(make_source(kafka.bootstrap, recorder, topic, group)) as task:
            await until(task.done)
            with pytest.raises(RuntimeError, match="a bug"):
                await task
        assert await kafka.committed(group, topic) == {}
        assert recorder.told[-1] == "ended"

    asyncio.run(main())


# --- what can't be decoded ----------------------------------------------------------------------


PRODUCE_WHAT_CANNOT_BE_DECODED = """
import asyncio, sys
from aiokafka import AIOKafkaProducer

class Name(str):
    def encode(self, *_):
        return b"\\xff"  # Kafka's protocol says UTF-8; brokers don't look

async def main():
    producer = AIOKafkaProducer(bootstrap_servers=sys.argv[1])
    await producer.start()
    await producer.send_and_wait(sys.argv[2], b"{}", partition=3, headers=[(Name("n"), b"v")])
    await producer.stop()

asyncio.run(main())
"""


def test_a_record_that_cannot_be_decoded_holds_its_partition_alone_and_can_be_skipped_by_hand(
    kafka: Kafka,
) -> None:
    async def main() -> None:
        topic, group = await kafka.create_topic(partitions=4), fresh_name("group")
        await kafka.produce(topic, some(5, partition=3))
        command = [sys.executable, "-c", PRODUCE_WHAT_CANNOT_BE_DECODED, kafka.bootstrap, topic]
        environment = {**os.environ, "AIOKAFKA_NO_EXTENSIONS": "1"}  # C doesn't ask a subclass
        await asyncio.to_thread(subprocess.run, command, env=environment, check=True, timeout=60)
        await kafka.produce(topic, some(5, partition=3))
        recorder = Recorder()
        source = make_source(kafka.bootstrap, recorder, topic, group)
        with capture_logs() as logs:
            async with running(source):
                for times in (1, 2):
                    await kafka.produce(topic, [(None, b"v", None, (), n % 3) for n in range(300)])
                    await until(lambda: recorder.count == 5 + 300 * times)  # noqa: B023 - awaited here
                    await until(lambda: source.undecodable)
                (why,) = source.undecodable.values()
                assert "offset 5" in why
                assert "UnicodeDecodeError" in why
                assert not source.failing
        (line,) = (line for line in logs if line["log_level"] == "error")
        assert (line["topic"], line["partition"], line["offset"]) == (topic, 3, 5)
        recorder.assert_in_order()
        assert len(recorder.generations) == 1
        assert not recorder.restarts
        wanted = {**dict.fromkeys(((topic, n) for n in range(3)), 200), (topic, 3): 5}
        assert await kafka.committed(group, topic) == wanted
        await kafka.commit(group, {(topic, 3): 6})
        async with running(make_source(kafka.bootstrap, recorder := Recorder(), topic, group)):
            await until(lambda: recorder.count == 5)
        assert recorder.generations[0][topic, 3] == list(range(6, 11))

    asyncio.run(main())


@pytest.mark.parametrize("error", [CorruptRecordException, UnsupportedCodecError, ValueError])
def test_a_record_that_can_be_decoded_after_all_is_read_and_none_beside_it_is_lost_or_read_twice(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    broken, tries, decode = True, 0, PartitionRecords._consumer_record

    def fragile(self: Any, tp: Any, record: Any) -> Any:
        nonlocal tries
        if broken and record.value == b"broken":
            tries += 1
            raise error("no")
        return decode(self, tp, record)

    monkeypatch.setattr(PartitionRecords, "_consumer_record", fragile)
    monkeypatch.setattr("streamer.source._DECODE_INTERVAL", 0.1)

    async def main() -> None:
        nonlocal broken
        topic, group, recorder = await kafka.create_topic(), fresh_name("group"), Recorder()
        await kafka.produce(topic, some(700, partition=1))
        await kafka.produce(topic, [(None, b"broken", None, (), 1)])
        await kafka.produce(topic, some(700, partition=1))
        for partition in (0, 2, 3):
            await kafka.produce(topic, some(700, partition=partition))
        source = make_source(kafka.bootstrap, recorder, topic, group)
        with capture_logs() as logs:
            async with running(source):
                await until(lambda: tries >= 10 and recorder.count == 4 * 700)
                await until_committed(kafka, group, topic, {(topic, n): 700 for n in range(4)})
                assert source._consumer is not None
                assert source._consumer._subscription._fetch_count <= 1, "idle time is watched"
                assert source.undecodable.keys() == {(topic, 1)}
                broken = False
                await until(lambda: recorder.count == 5 * 700 + 1)
                assert not source.undecodable
                await until_committed(kafka, group, topic, await kafka.end_offsets(topic))
        recorder.assert_in_order()
        assert not recorder.restarts
        (generation,) = recorder.generations
        assert generation[topic, 1] == list(range(1_401))
        assert len([line for line in logs if line["log_level"] == "error"]) == 1

    asyncio.run(main())


# --- generations --------------------------------------------------------------------------------


def test_a_generation_ends_before_the_next_begins_and_members_coming_and_going_cost_one_rebalance_each(
    kafka: Kafka,
) -> None:
    async def main() -> None:
        topic, group = await kafka.create_topic(), fresh_name("group")
        first, second, third = Recorder(), Recorder(), Recorder()
        second.slow = 2.5  # so long the others wait for their assignment: more than a commit's time

        async def produce() -> None:
            while True:
                await kafka.produce(topic, some(100))
                await asyncio.sleep(0.05)

        load = asyncio.create_task(produce())
        async with running(make_source(kafka.bootstrap, first, topic, group)):
            await until(lambda: first.count > 300)
            async with running(make_source(kafka.bootstrap, second, topic, group)):
                await until(lambda: second.count > 300)
                async with running(make_source(kafka.bootstrap, third, topic, group)):
                    await until(lambda: third.count > 300)
                await until(lambda: (len(first.generations), len(second.generations)) == (4, 3))
            await until(lambda: len(first.generations[-1]) == 4)
            load.cancel()
            await asyncio.gather(load, return_exceptions=True)
            ends = await kafka.end_offsets(topic)
            await until_committed(kafka, group, topic, ends)
        for recorder in (first, second, third):
            recorder.assert_in_order()
            assert "commit rebalance" not in recorder.told
        assert [len(r.generations) for r in (first, second, third)] == [5, 3, 1]
        # Nothing is doubled: what was read was committed before its partition went.
        seen: dict[Partition, list[int]] = defaultdict(list)
        for recorder in (first, second, third):
            for generation in recorder.generations:
                for partition, offsets in generation.items():
                    seen[partition] += offsets
        assert {p: sorted(o) for p, o in seen.items()} == {
            p: list(range(end)) for p, end in ends.items()
        }

    asyncio.run(main())


def test_a_stop_in_the_middle_of_a_rebalance_begins_no_generation_that_nobody_ends(
    kafka: Kafka,
) -> None:
    async def main() -> None:
        topic, group = await kafka.create_topic(), fresh_name("group")
        first, second, third = Recorder(), Recorder(), Recorder()
        second.slow = 1.5
        stopped = make_source(kafka.bootstrap, first, topic, group)
        async with running(make_source(kafka.bootstrap, second, topic, group)):
            await until(lambda: second.told)
            async with running(stopped):
                await until(lambda: first.told)
                async with running(make_source(kafka.bootstrap, third, topic, group)):
                    await until(lambda: first.told[-1] == "ended")
                    stopped.stop()
                    await until(lambda: third.told)
        for recorder in (first, second, third):
            recorder.assert_in_order()

    asyncio.run(main())


def test_a_handler_that_is_full_for_longer_than_the_session_keeps_its_partitions_and_sees_its_lag(
    kafka: Kafka,
) -> None:
    async def main() -> None:
        topic = await kafka.create_topic(partitions=1)
        group, recorder = fresh_name("group"), Recorder()
        recorder.full = True
        await kafka.produce(topic, some(100))
        source = make_source(kafka.bootstrap, recorder, topic, group)
        async with running(source):
            await until(lambda: source.lag() == {(topic, 0): 100})
            assert recorder.count == 0
            recorder.allowed[topic, 0] = 60
            recorder.go_on()
            await until(lambda: source.lag() == {(topic, 0): 40})
            recorder.full = True
            del recorder.allowed[topic, 0]
            await until(lambda: source.lag() == {(topic, 0): 0})
            # More than is fetched ahead, so that no fetch tells where the topic ends.
            await kafka.produce(topic, some(10_000, size=1_000))
            await asyncio.sleep(SESSION_SECONDS + 1)
            assert source.may_send(), "heartbeats confirm it"
            await until(lambda: source.lag() == {(topic, 0): 10_000})
            assert recorder.count == 100
            recorder.go_on()
            await until(lambda: recorder.count == 10_100)
        recorder.assert_in_order()
        assert len(recorder.generations) == 1
        assert await kafka.committed(group, topic) == {(topic, 0): 10_100}

    asyncio.run(main())


def test_a_member_whose_loop_stood_still_for_longer_than_the_session_comes_back(
    kafka: Kafka,
) -> None:
    async def main() -> None:
        topic, group, recorder = await kafka.create_topic(), fresh_name("group"), Recorder()
        await kafka.produce(topic, some(1_000))
        source = make_source(kafka.bootstrap, recorder, topic, group)
        async with running(source):
            await until(lambda: recorder.count == 1_000)
            assert source.may_send()
            time.sleep(SESSION_SECONDS + 2)  # noqa: ASYNC251 - blocking it is the point
            assert not source.may_send()
            await kafka.produce(topic, some(1_000))
            await until(lambda: recorder.count == 2_000 and len(recorder.generations) > 1)
            await until_committed(kafka, group, topic, await kafka.end_offsets(topic))
        recorder.assert_in_order()
        assert len(recorder.generations) == 2, "it came back once"

    asyncio.run(main())


def test_a_pattern_reads_the_topics_that_it_matches_and_new_ones_too(kafka: Kafka) -> None:
    async def main() -> None:
        name, group = fresh_name("family"), fresh_name("group")
        older = await kafka.create_topic(f"{name}.older", partitions=1)
        other = await kafka.create_topic(f"not-{name}", partitions=1)
        await kafka.produce(older, some(10))
        await kafka.produce(other, some(10))
        first, second = Recorder(), Recorder()
        pattern = rf"{name}\."
        async with running(make_source(kafka.bootstrap, first, group=group, pattern=pattern)):
            await until(lambda: first.count == 10)
            newer = await kafka.create_topic(f"{name}.newer", partitions=1)
            await kafka.produce(newer, some(10))
            # A member that joins makes the others look at once; alone they look once a minute.
            async with running(make_source(kafka.bootstrap, second, group=group, pattern=pattern)):
                await until(lambda: len(first.values.keys() | second.values.keys()) == 20)
        assert {topic for topic, _, _ in first.values.keys() | second.values.keys()} == {
            older,
            newer,
        }
        for topic in (older, newer):
            assert await kafka.committed(group, topic) == {(topic, 0): 10}

    asyncio.run(main())


# --- offsets that are gone ----------------------------------------------------------------------


@pytest.mark.parametrize(("reset", "first", "skipped"), [("earliest", 70, 30), ("latest", 100, 60)])
def test_records_that_retention_removed_before_they_were_read_are_said_and_counted(
    kafka: Kafka, reset: str, first: int, skipped: int
) -> None:
    async def main() -> None:
        topic = await kafka.create_topic(partitions=1)
        group, recorder = fresh_name("group"), Recorder()
        recorder.allowed = {(topic, 0): None}
        await kafka.produce(topic, some(100))
        await kafka.commit(group, {(topic, 0): 40})
        await kafka.delete_records((topic, 0), 70)
        source = make_source(kafka.bootstrap, recorder, topic, group, auto_offset_reset=reset)
        with capture_logs() as logs:
            async with running(source):
                await until(lambda: recorder.skips)
                await until(lambda: source.lag() == {(topic, 0): 100 - first})
                await kafka.produce(topic, some(1))
                await until(lambda: (topic, 0, 100) in recorder.values)
        assert recorder.skips == [skipped]
        assert recorder.generations[0][topic, 0] == list(range(first, 101))
        (line,) = (line for line in logs if line["log_level"] == "error")
        assert line["topic"] == topic
        assert (line["partition"], line["offset"], line["records_gone"]) == (0, 40, skipped)

    asyncio.run(main())


def test_a_topic_that_was_made_anew_is_said_and_read_from_its_beginning(kafka: Kafka) -> None:
    async def main() -> None:
        topic = await kafka.create_topic(partitions=1)
        group, recorder = fresh_name("group"), Recorder()
        await kafka.commit(group, {(topic, 0): 40})
        await kafka.produce(topic, some(10))
        source = make_source(kafka.bootstrap, recorder, topic, group)
        recorder.allowed = {(topic, 0): None}
        with capture_logs() as logs:
            async with running(source):
                await until(lambda: recorder.count == 10)
                assert source.lag() == {(topic, 0): 10}
                del recorder.allowed[topic, 0]
                await until_committed(kafka, group, topic, {(topic, 0): 10})
        assert recorder.generations[0][topic, 0] == list(range(10))
        assert sum(recorder.skips) >= 1, "an alert looks at the count"
        assert any(line["log_level"] == "error" and line["topic"] == topic for line in logs)

    asyncio.run(main())


def test_records_that_retention_removes_while_reading_pauses_are_said_and_counted(
    kafka: Kafka,
) -> None:
    """An outage of hours waits in Kafka, and retention doesn't wait for its end."""

    async def main() -> None:
        topic = await kafka.create_topic(partitions=1)
        group, recorder = fresh_name("group"), Recorder()
        recorder.allowed = {(topic, 0): 5}
        source = make_source(kafka.bootstrap, recorder, topic, group)
        await kafka.produce(topic, some(10))
        with capture_logs() as logs:
            async with running(source):
                await until(lambda: recorder.count == 10)
                recorder.full = True
                # More than is fetched ahead.
                await kafka.produce(topic, some(1_000, size=10_000))
                await kafka.delete_records((topic, 0), 900)
                recorder.go_on()
                await until(lambda: (topic, 0, 1_009) in recorder.values)
                del recorder.allowed[topic, 0]
                await until_committed(kafka, group, topic, {(topic, 0): 1_010})
        assert sum(recorder.skips) + recorder.count == 1_010
        assert recorder.skips
        assert len(recorder.generations) == 1, "what was read before is still held"
        assert any(line["log_level"] == "error" and line["topic"] == topic for line in logs)
        recorder.assert_in_order()

    asyncio.run(main())


def test_a_topic_deleted_and_made_anew_while_it_is_read_is_read_from_its_beginning(
    broker: KafkaBroker,
) -> None:
    """By hand: a broker that makes topics would make it first, since who reads it goes on asking for it."""

    async def main() -> None:
        kafka = Kafka(broker.bootstrap)
        topic = await kafka.create_topic(partitions=1)
        group, recorder = fresh_name("group"), Recorder()
        await kafka.produce(topic, some(50))
        async with running(make_source(kafka.bootstrap, recorder, topic, group)):
            await until(lambda: recorder.count == 50)
            await kafka.delete_topic(topic)
            await kafka.create_topic(topic, partitions=1)
            recorder.values.clear()
            await kafka.produce(topic, some(20))
            await until(lambda: recorder.count == 20)
            await until_committed(kafka, group, topic, {(topic, 0): 20})
        assert recorder.generations[-1][topic, 0] == list(range(20))
        recorder.assert_in_order()

    asyncio.run(main())


def test_a_committed_offset_behind_an_open_transaction_is_not_gone(kafka: Kafka) -> None:
    """The end of what is read may be the transaction's beginning; tools commit the end of the log."""

    async def main() -> None:
        topic = await kafka.create_topic(partitions=1)
        group, recorder = fresh_name("group"), Recorder()
        await kafka.produce(topic, some(5))
        producer = Producer(
            {"bootstrap.servers": kafka.bootstrap, "transactional.id": fresh_name("tx"), **QUIET}
        )
        await asyncio.to_thread(producer.init_transactions, 30)
        producer.begin_transaction()
        for number in range(5):
            producer.produce(topic, b"%d" % number, partition=0)
        await asyncio.to_thread(producer.flush, 30)
        await kafka.commit(group, {(topic, 0): 10})
        async with running(make_source(kafka.bootstrap, recorder, topic, group)):
            await until(lambda: recorder.asked > 1)
            await asyncio.to_thread(producer.commit_transaction, 30)
            await kafka.produce(topic, some(1))
            await until(lambda: recorder.count)
        assert {offset for _, _, offset in recorder.values} <= {10, 11}, "beside the marker"
        assert not recorder.skips

    asyncio.run(main())


def test_a_first_start_says_what_is_in_its_partitions(kafka: Kafka) -> None:
    """A start with committed offsets says nothing, and one with some says it of the other partitions."""

    async def main() -> None:
        topic = await kafka.create_topic(partitions=2)
        await kafka.produce(topic, some(100, partition=0))

        async def start(group: str, reset: str) -> Recorder:
            recorder = Recorder()
            source = make_source(kafka.bootstrap, recorder, topic, group, auto_offset_reset=reset)
            async with running(source):
                await until(lambda: len(source.lag()) == 2)  # they are placed
                await until(lambda: sum(source.lag().values()) == 0)
            assert not recorder.skips
            return recorder

        new = {(topic, 0): range(100), (topic, 1): range(0)}
        for reset, read in (("latest", 0), ("earliest", 100)):
            group = fresh_name("group")
            recorder = await start(group, reset)
            assert (recorder.first, recorder.count) == ([new], read)
            recorder = await start(group, reset)
            assert (recorder.first, recorder.count) == ([], 0)
        await kafka.commit(group := fresh_name("group"), {(topic, 0): 50})
        recorder = await start(group, "earliest")
        assert (recorder.first, recorder.count) == ([{(topic, 1): range(0)}], 50)

    asyncio.run(main())


# --- trouble ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def broker(require: Require) -> Iterator[KafkaBroker]:
    """A broker to be stopped and frozen, which makes no topic of itself; each test leaves it running."""
    require("java", "mvn")
    with KafkaBroker({"auto.create.topics.enable": "false"}) as broker:
        yield broker


def test_a_topic_that_does_not_exist_is_named_and_read_once_it_is_made(broker: KafkaBroker) -> None:
    async def main() -> None:
        kafka, topic, recorder = Kafka(broker.bootstrap), fresh_name("late"), Recorder()
        source = make_source(broker.bootstrap, recorder, topic)
        stopped = make_source(broker.bootstrap, Recorder(), topic)
        with capture_logs() as logs:
            async with running(source):
                async with running(stopped) as task:
                    await until(lambda: topic in source.failing and topic in stopped.failing)
                    # Just now it asks once more, and aiokafka closes no connection whose first answer is cancelled.
                    await asyncio.sleep(0.5)
                    stopped.stop()
                    await until(task.done, 2.5)  # not only when the start is given up
                await kafka.create_topic(topic)
                await kafka.produce(topic, some(10))
                await until(lambda: recorder.count == 10)
                assert not source.failing
        recorder.assert_in_order()
        assert len([line for line in logs if line["log_level"] == "error"]) == 2, (
            "each said it once"
        )

    asyncio.run(main())


def test_a_topic_that_is_misspelt_is_named_and_not_made(kafka: Kafka) -> None:
    """Though the broker makes whatever topic is asked for; one that is there beside it isn't read alone."""

    async def main() -> None:
        topic, misspelt = await kafka.create_topic(), fresh_name("misspelt")
        source = make_source(kafka.bootstrap, recorder := Recorder(), topic)
        source._subscription = replace(source._subscription, topics=(topic, misspelt))
        async with running(source):
            await until(lambda: source.failing.startswith(f"there is no topic {misspelt},"))
        admin = AdminClient({"bootstrap.servers": kafka.bootstrap, **QUIET})
        there = (await asyncio.to_thread(admin.list_topics, timeout=30)).topics
        assert topic in there
        assert misspelt not in there
        assert not recorder.told

    asyncio.run(main())


def test_a_group_that_waits_for_another_member_is_not_an_error(kafka: Kafka) -> None:
    """A member that was killed keeps the next one waiting, up to half a minute."""

    async def main() -> None:
        topic, group, recorder = await kafka.create_topic(), fresh_name("group"), Recorder()
        hung = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": group, **QUIET})
        hung.subscribe([topic])
        while not hung.assignment():
            await asyncio.to_thread(hung.poll, 0.1)
        source = make_source(kafka.bootstrap, recorder, topic, group)
        with capture_logs() as logs:
            async with running(source):
                await until(lambda: "group" in source.failing)
                await asyncio.to_thread(hung.close)
                await until(lambda: recorder.told)
                assert not source.failing
        assert not [line for line in logs if line["log_level"] in ("warning", "error")]

    asyncio.run(main())


def test_nothing_is_committed_between_a_generation_that_has_ended_and_the_next() -> None:
    """Whether a revocation ended it, or a commit was refused because it had ended: one more could reset the next.

    Nor before it is known where the next one reads from: what moved a position until then was lost with a failed read.
    """

    class FakeConsumer:
        place = tries = 0
        refuses = True

        async def position(self, _: TopicPartition) -> int:
            self.place += 1
            return self.place

        async def commit(self, _: Mapping[TopicPartition, int]) -> None:
            self.tries += 1
            if self.refuses:
                raise CommitFailedError

    async def main() -> None:
        recorder, consumer = Recorder(), FakeConsumer()
        source = make_source("127.0.0.1:9", recorder, "events")
        source._consumer = consumer
        source._lease.until = float("inf")  # no heartbeats are played here
        committing = asyncio.create_task(source._commit_regularly(consumer))

        async def tries_in_a_minute() -> int:
            before = consumer.tries
            await asyncio.sleep(60)
            return consumer.tries - before

        await source.on_partitions_assigned([TopicPartition("events", 0)])
        assert await tries_in_a_minute() == 0
        source._placed = source.assignment
        assert await tries_in_a_minute() == 1
        await source.on_partitions_revoked([])
        assert await tries_in_a_minute() == 0
        consumer.refuses = False
        await source.on_partitions_assigned([TopicPartition("events", 0)])
        source._placed = source.assignment
        assert await tries_in_a_minute() > 1
        await source.on_partitions_revoked([])
        assert await tries_in_a_minute() == 0
        recorder.assert_in_order()
        committing.cancel()

    virtual_time.run(main())


def test_partitions_come_and_go_in_a_line_each_and_commits_that_fail_are_one_until_they_work() -> (
    None
):
    class FakeConsumer:
        error: KafkaError | None = None
        hangs = False
        place = 0

        async def position(self, _: TopicPartition) -> int:
            self.place += 1
            return self.place

        async def commit(self, _: Mapping[TopicPartition, int]) -> None:
            if self.error is not None:
                raise self.error
            if self.hangs:
                await asyncio.Event().wait()

    async def main() -> None:
        recorder, consumer = Recorder(), FakeConsumer()
        recorder.slow = 1.5
        source = make_source("127.0.0.1:9", recorder, "events")
        source._consumer = consumer
        source._lease.until = float("inf")  # no heartbeats are played here
        committing = asyncio.create_task(source._commit_regularly(consumer))
        partitions = [TopicPartition("events", n) for n in (0, 1, 2, 5)]
        await source.on_partitions_assigned([*partitions, TopicPartition("others", 7)])
        source._placed = source.assignment
        await asyncio.sleep(2.5)
        consumer.error = NotEnoughReplicasError()
        await asyncio.sleep(10)
        consumer.error, consumer.hangs = None, True
        await asyncio.sleep(10)
        consumer.hangs = False
        await asyncio.sleep(10)
        await source.on_partitions_revoked([])
        committing.cancel()

    with capture_logs() as logs:
        virtual_time.run(main())
    assigned, failing, again, given_back = logs
    assert (assigned["count"], assigned["which"]) == (5, "events 0-2, 5; others 7")
    assert (failing["event"], failing["log_level"]) == (
        "commits fail; they are tried again",
        "warning",
    )
    assert "NotEnoughReplicas" in failing["reason"]
    assert (again["event"], again["log_level"]) == ("commits are answered again", "info")
    assert 20 < again["after_seconds"] < 25
    assert (given_back["why"], given_back["count"]) == ("a rebalance", 5)
    assert given_back["after_seconds"] == 1.5


def test_reading_that_pauses_for_long_is_said_and_that_it_goes_on() -> None:
    """Short pauses are how it keeps pace with a destination that is slower than Kafka."""
    pause = _Pause()
    with capture_logs() as logs:
        for tenth in range(1000):
            pause.note(tenth / 10, full=tenth % 40 != 0)
        assert logs == []
        pause.note(99, full=False)
        for tenth in range(1000):
            pause.note(100 + tenth / 10, full=True)
        pause.note(200, full=False)
        pause.note(201, full=False)
    paused, goes_on = logs
    assert (paused["log_level"], goes_on["log_level"]) == ("warning", "info")
    assert goes_on["after_seconds"] == 100.0


def test_without_a_broker_each_try_says_why_in_one_line() -> None:
    async def main() -> None:
        server = f"127.0.0.1:{free_port()}"
        source = make_source(server, Recorder(), "events")
        with capture_logs() as logs:
            async with running(source):
                await until(lambda: len(logs) >= 2)
                assert source.failing == (f"{server}: connection refused: nothing listens there")
        assert [line["reason"] for line in logs] == [source.failing] * len(logs)

    asyncio.run(main())


def test_a_broker_that_restarts_is_said_while_it_is_gone_and_costs_no_record(
    broker: KafkaBroker,
) -> None:
    async def main() -> None:
        kafka, group, recorder = Kafka(broker.bootstrap), fresh_name("group"), Recorder()
        topic = await kafka.create_topic()
        await kafka.produce(topic, some(500))
        source = make_source(broker.bootstrap, recorder, topic, group)
        with capture_logs() as logs:
            async with running(source):
                await until(lambda: recorder.count == 500)
                await asyncio.to_thread(broker.stop)
                try:
                    await until(lambda: "connection refused" in source.failing)
                finally:
                    broker.launch()
                    await asyncio.to_thread(broker.wait_until_ready)
                await kafka.produce(topic, some(500))
                await until(lambda: recorder.count == 1_000)
                await until(lambda: not source.failing)
                await until_committed(kafka, group, topic, await kafka.end_offsets(topic))
        recorder.assert_in_order()
        said = [line for line in logs if line["log_level"] == "error"]
        assert len(said) == 1, "an outage is said once"

    asyncio.run(main())


def test_a_broker_frozen_for_longer_than_the_session_costs_no_record(broker: KafkaBroker) -> None:
    async def main() -> None:
        kafka, group, recorder = Kafka(broker.bootstrap), fresh_name("group"), Recorder()
        topic = await kafka.create_topic()
        await kafka.produce(topic, some(500))
        source = make_source(broker.bootstrap, recorder, topic, group)
        with capture_logs() as logs:
            async with running(source):
                await until(lambda: recorder.count == 500)
                broker.freeze()
                try:
                    await until(lambda: not source.may_send(), SESSION_SECONDS + 1)
                    await asyncio.sleep(1)
                finally:
                    broker.thaw()
                await until(lambda: recorder.confirmations)
                assert source.may_send()
                await kafka.produce(topic, some(500))
                await until(lambda: recorder.count == 1_000)
                await until(lambda: not source.failing)
                await until_committed(kafka, group, topic, await kafka.end_offsets(topic))
        recorder.assert_in_order()
        said = [line["event"] for line in logs if "membership" in line["event"]]
        assert len(said) == 2, "once when it isn't certain, once when it is again"

    asyncio.run(main())


@pytest.mark.parametrize("moment", ["at its start", "while it reads"])
def test_a_source_whose_broker_is_frozen_stops_within_seconds(
    broker: KafkaBroker, moment: str
) -> None:
    async def main() -> None:
        kafka, recorder = Kafka(broker.bootstrap), Recorder()
        topic = await kafka.create_topic()
        await kafka.produce(topic, some(500))
        source = make_source(broker.bootstrap, recorder, topic)
        try:
            if moment == "at its start":
                broker.freeze()
            async with running(source) as task:
                if moment == "while it reads":
                    await until(lambda: recorder.count == 500)
                    broker.freeze()
                    recorder.allowed = {(topic, partition): 3 for partition in range(4)}
                    asked = recorder.asked
                    await until(lambda: recorder.asked >= asked + 4)  # a commit is under way
                else:
                    await until(lambda: "no answer in time" in source.failing)
                source.stop()
                await until(task.done, 30)  # before a request to Kafka would time out
        finally:
            broker.thaw()

    asyncio.run(main())


@pytest.mark.parametrize("moment", ["while it commits", "while it leaves the group"])
def test_a_stop_that_is_cancelled_waits_no_more_for_a_frozen_broker(
    broker: KafkaBroker, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The time for it is over, and the process has to end."""
    monkeypatch.setattr("streamer.source._STOP_TIMEOUT", 60.0)

    async def main() -> None:
        kafka, group, recorder = Kafka(broker.bootstrap), fresh_name("group"), Recorder()
        topic = await kafka.create_topic()
        await kafka.produce(topic, some(500))
        source = make_source(broker.bootstrap, recorder, topic, group)
        try:
            async with running(source) as task:
                await until_committed(kafka, group, topic, await kafka.end_offsets(topic))
                broker.freeze()
                if moment == "while it commits":
                    recorder.allowed = {(topic, partition): 3 for partition in range(4)}
                    asked = recorder.asked
                    await until(lambda: recorder.asked >= asked + 4)
                source.stop()
                await asyncio.sleep(1)  # until it has come to what hangs
                assert not task.done()
                task.cancel()
                await until(task.done, 20)
        finally:
            broker.thaw()

    asyncio.run(main())


# --- a consumer that is made anew ---------------------------------------------------------------


async def for_ever(*_: Any, **__: Any) -> Any:
    await asyncio.Event().wait()


def hang(name: str) -> Callable[[Any], None]:
    return lambda consumer: setattr(consumer, name, for_ever)


def give_up(consumer: Any) -> None:
    """Raises a cancellation that nobody asked for out of the next read, in which records were taken."""
    getmany = consumer.getmany

    async def getmany_and_give_up(*tps: Any, **options: Any) -> Any:
        if await getmany(*tps, **options):
            raise asyncio.CancelledError
        return {}

    consumer.getmany = getmany_and_give_up


def break_the_fetcher(consumer: Any) -> None:
    """What fetches in the background dies, and no read says so."""
    start = consumer.start

    async def start_and_break() -> None:
        await start()

        async def breaks(*_: Any) -> None:
            raise RuntimeError("a closed transport")

        consumer._fetcher._proc_fetch_request = breaks

    consumer.start = start_and_break


def stop_heartbeats(consumer: Any) -> None:
    send = consumer._client.send

    async def send_but_heartbeats(node: Any, request: Any, **options: Any) -> Any:
        if isinstance(request, HeartbeatRequest):
            raise RequestTimedOutError
        return await send(node, request, **options)

    consumer._client.send = send_but_heartbeats


@pytest.mark.parametrize(
    ("breaks", "reason"),
    [
        (hang("getmany"), Restart.POLL),
        (hang("commit"), Restart.COMMITS),
        (hang("beginning_offsets"), Restart.NO_ANSWER),
        (hang("start"), Restart.NO_ASSIGNMENT),
        (give_up, Restart.CANCELLED),
        (break_the_fetcher, Restart.ERROR),
        (stop_heartbeats, Restart.UNCONFIRMED),
    ],
    ids=lambda value: str(value) if isinstance(value, Restart) else "",
)
def test_a_consumer_that_stands_still_is_made_anew_and_says_why(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch, breaks: Callable[[Any], None], reason: Restart
) -> None:
    for name, value in {
        "_START_WATCH_INTERVAL": 0.1,
        "_WATCH_INTERVAL": 0.1,
        "_RETRY_DELAY": 0.1,
        "_COMMIT_INTERVAL": 0.1,
        "_COMMIT_TIMEOUTS_TO_REBUILD": 2,
    }.items():
        monkeypatch.setattr(f"streamer.source.{name}", value)

    async def main() -> None:
        topic, group, recorder = await kafka.create_topic(), fresh_name("group"), Recorder()
        await kafka.produce(topic, some(2_000))
        source = make_source(kafka.bootstrap, recorder, topic, group)
        make = source._make_consumer
        limits = (
            "_POLL_TIMEOUT",
            "_COMMIT_TIMEOUT",
            "_ASSIGNMENT_TIMEOUT",
            "_CONFIRMATION_TIMEOUT",
        )

        made: list[Any] = []

        def make_first_one_that_breaks() -> Any:
            # What is slow here isn't a fault of the second one.
            for name in limits:
                monkeypatch.setattr(f"streamer.source.{name}", 30.0 if made else 1.0)
            made.append(consumer := make())
            if len(made) == 1:
                breaks(consumer)
            return consumer

        monkeypatch.setattr(source, "_make_consumer", make_first_one_that_breaks)
        with capture_logs() as logs:
            async with running(source):
                await until(lambda: recorder.restarts)
                await until(lambda: recorder.count == 2_000)
                await until_committed(kafka, group, topic, await kafka.end_offsets(topic))
        recorder.assert_in_order()
        assert recorder.restarts == [reason]
        said = [line for line in logs if line["log_level"] == "error"]
        assert "the Kafka consumer is made anew" in [line["event"] for line in said]
        assert str(reason) in [line["reason"] for line in said]

    asyncio.run(main())


# --- what topics may be -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("isolation_level", "wanted"), [("read_committed", "b"), ("read_uncommitted", "ab")]
)
def test_what_a_transaction_took_back_is_read_only_if_it_is_asked_for(
    kafka: Kafka, isolation_level: str, wanted: str
) -> None:
    """Of two producers whose records stand between each other's, one takes back what it wrote, again and again."""

    def produce(topic: str) -> None:
        producers = {}
        for name in "ab":
            producers[name] = Producer(
                {
                    "bootstrap.servers": kafka.bootstrap,
                    "transactional.id": fresh_name("tx"),
                    "linger.ms": 0,
                    **QUIET,
                }
            )
            producers[name].init_transactions(30)
        for turn in range(3):
            for producer in producers.values():
                producer.begin_transaction()
            for _ in range(5):
                for name, producer in producers.items():
                    producer.produce(topic, f"{name}{turn}".encode(), partition=0)
                    producer.flush(30)
            producers["a"].abort_transaction(30)
            producers["b"].commit_transaction(30)

    async def main() -> None:
        topic = await kafka.create_topic(partitions=1)
        group, recorder = fresh_name("group"), Recorder()
        await asyncio.to_thread(produce, topic)
        source = make_source(
            kafka.bootstrap, recorder, topic, group, isolation_level=isolation_level
        )
        async with running(source):
            await until(lambda: recorder.count == 15 * len(wanted))
            await until_committed(kafka, group, topic, {(topic, 0): 36})  # with the markers
            assert source.lag() == {(topic, 0): 0}
        values = [value for _, value in sorted(recorder.values.items()) if value is not None]
        each = [f"{name}{turn}".encode() for turn in range(3) for _ in range(5) for name in wanted]
        assert values == each
        recorder.assert_in_order()

    asyncio.run(main())


def test_a_compacted_topic_is_read_across_its_gaps_and_with_its_tombstones(kafka: Kafka) -> None:
    async def main() -> None:
        config = {
            "cleanup.policy": "compact",
            "segment.ms": "100",
            "min.cleanable.dirty.ratio": "0.01",
            "delete.retention.ms": "86400000",
        }
        topic = await kafka.create_topic(partitions=1, config=config)
        group, recorder = fresh_name("group"), Recorder()
        versions = [(b"%d" % (n % 10), b"%d" % n) for n in range(200)]
        await kafka.produce(topic, [*versions, (b"3", None)])
        async with asyncio.timeout(60):
            while len(left := await kafka.read(topic)) > 20:
                await asyncio.sleep(0.3)
                await kafka.produce(
                    topic, [(b"end", b"")]
                )  # only what isn't appended to is compacted
        source = make_source(kafka.bootstrap, recorder, topic, group)
        async with running(source):
            await until(lambda: (topic, 0, left[-1].offset) in recorder.values)
            await until_committed(kafka, group, topic, await kafka.end_offsets(topic))
            await until(lambda: source.lag() == {(topic, 0): 0})
        assert recorder.values[topic, 0, 200] is None
        assert recorder.generations[0][topic, 0] == [record.offset for record in left]
        assert len(left) < 200
        recorder.assert_in_order()

    asyncio.run(main())


@pytest.mark.parametrize("reset", ["earliest", "latest"])
def test_a_partition_that_is_added_while_it_is_read_is_read_from_its_beginning(
    kafka: Kafka, reset: str
) -> None:
    """With `latest` too: what came into it before it was found isn't older than the start."""

    async def main() -> None:
        topic = await kafka.create_topic(partitions=1)
        group, recorder = fresh_name("group"), Recorder()
        await kafka.produce(topic, some(10))
        source = make_source(
            kafka.bootstrap,
            recorder,
            topic,
            group,
            auto_offset_reset=reset,
            metadata_max_age_seconds=600.0,
        )
        old = 10 if reset == "earliest" else 0
        async with running(source):
            await until(lambda: recorder.count == old and source.committed == {(topic, 0): 10})
            admin = AdminClient({"bootstrap.servers": kafka.bootstrap, **QUIET})
            made = admin.create_partitions([NewPartitions(topic, 3)])
            await asyncio.to_thread(made[topic].result, 30)
            fresh = Kafka(kafka.bootstrap)  # a producer that doesn't know how many there were
            await fresh.produce(topic, some(20, partition=2))
            assert len(recorder.generations) == 1, "it isn't found yet"
            assert source._consumer is not None
            source._consumer._client.force_metadata_update()
            await until(lambda: recorder.count == old + 20)
            await until_committed(
                kafka, group, topic, {(topic, 0): 10, (topic, 1): 0, (topic, 2): 20}
            )
        recorder.assert_in_order()
        assert not recorder.skips

    asyncio.run(main())


def test_with_latest_where_it_begins_is_committed_before_anything_is_read(kafka: Kafka) -> None:
    """Else who is killed at once begins at a later end, and what came meanwhile is lost."""

    async def main() -> None:
        topic, recorder = await kafka.create_topic(partitions=1), Recorder()
        await kafka.produce(topic, some(10))
        source = make_source(kafka.bootstrap, recorder, topic, auto_offset_reset="latest")
        async with running(source):
            await until(lambda: source.committed == {(topic, 0): 10})
            await kafka.produce(topic, some(5))
            await until(lambda: recorder.count == 5)
        assert recorder.told[:3] == ["assigned", "commit ok", "read"]

    asyncio.run(main())


def test_topics_of_a_pattern_come_and_go_while_the_others_are_read(kafka: Kafka) -> None:
    async def main() -> None:
        name, group, recorder = fresh_name("family"), fresh_name("group"), Recorder()
        kept = await kafka.create_topic(f"{name}.kept", partitions=2)
        gone = await kafka.create_topic(f"{name}.gone", partitions=2)
        source = make_source(
            kafka.bootstrap,
            recorder,
            group=group,
            pattern=rf"{name}\.",
            auto_offset_reset="latest",
            metadata_max_age_seconds=1.0,
        )
        async with running(source):
            await until(lambda: len(source.committed) == 4)
            await kafka.produce(kept, some(10))
            await kafka.produce(gone, some(10))
            await until(lambda: recorder.count == 20)
            new = await kafka.create_topic(f"{name}.new", partitions=2)
            await kafka.produce(new, some(10))
            await until(lambda: recorder.count == 30)
            await kafka.delete_topic(gone)
            await kafka.produce(kept, some(10))
            await until(lambda: recorder.count == 40)
            await until(lambda: {t for t, _ in source.assignment or ()} == {kept, new})
            again = await kafka.create_topic(gone, partitions=1)
            recorder.values.clear()
            fresh = Kafka(kafka.bootstrap)  # a producer that doesn't know the old one
            await fresh.produce(again, some(5))
            await kafka.produce(new, some(5))
            await until(lambda: recorder.count == 10)
            await until(lambda: not source.failing)
        assert not recorder.restarts
        for topic in (kept, new, again):
            assert await kafka.committed(group, topic) == await kafka.end_offsets(topic)
        recorder.assert_in_order()

    asyncio.run(main())
