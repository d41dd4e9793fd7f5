"""Which records of a stream are looked at: those of all partitions over the same time, against a real Kafka."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from aiokafka.errors import KafkaError
from aiokafka.protocol.metadata import MetadataRequest
from confluent_kafka import Producer
from hypothesis import given
from hypothesis import strategies as st

from kafka_broker.topics import QUIET, Kafka, ToProduce, fresh_name
from streamer import window as module
from streamer.onlooker import read
from streamer.window import Since, Start, Window, look

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiokafka import TopicPartition

    from streamer.core.model import Partition

START_MS = 1_762_071_240_000
"""2025-11-02 08:14 UTC."""
PATIENCE = 60.0
"""Seconds that Kafka may take on a machine that does other things: what is asked then must be answered whole."""


def connection(bootstrap: str) -> dict[str, Any]:
    return {"bootstrap_servers": (bootstrap,), "security_protocol": "PLAINTEXT"}


def at(partition: int, *seconds: float) -> list[ToProduce]:
    """Records of a partition, so many seconds after the start."""
    return [
        ToProduce(None, b"{}", START_MS + round(second * 1000), partition=partition)
        for second in seconds
    ]


async def seen(
    kafka: Kafka,
    topic: str,
    start: Start,
    number: int,
    *,
    timeout_seconds: float = PATIENCE,
    isolation_level: str = "read_committed",
    told: list[int] | None = None,
) -> Window:
    return await look(
        connection(kafka.bootstrap),
        await kafka.end_offsets(topic),
        start,
        number,
        isolation_level=isolation_level,
        timeout_seconds=timeout_seconds,
        progress=(told if told is not None else []).append,
    )


def seconds(window: Window) -> list[tuple[int, float]]:
    """The partition of each record, and how many seconds after the start it is."""
    return [(one.partition, (one.timestamp - START_MS) / 1000) for one in window.records]


def test_no_topic_is_asked_for_by_its_name(kafka: Kafka, monkeypatch: pytest.MonkeyPatch) -> None:
    """That would make one anew that is deleted meanwhile, where brokers make what is asked for."""
    asked: list[list[str] | None] = []

    def noted(topics: list[str] | None = None) -> MetadataRequest:
        asked.append(topics)
        return MetadataRequest(topics)

    async def main() -> None:
        topic = await kafka.create_topic(partitions=2)
        await kafka.produce(topic, [*at(0, 1, 2), *at(1, 1, 2)])
        monkeypatch.setattr("aiokafka.client.MetadataRequest", noted)
        assert len((await seen(kafka, topic, "end", 4)).records) == 4

    asyncio.run(main())
    assert asked
    assert not any(asked)


# --- the same time in all partitions --------------------------------------------------------------


def test_a_window_covers_the_same_time_whatever_partitions_are_busy(kafka: Kafka) -> None:
    """One has ten records a second, one a record in ten seconds, one was busy an hour ago, one is empty."""
    busy = [(0, round(n / 10, 1)) for n in range(1000)]
    quiet = [(1, n * 10 + 0.05) for n in range(10)]
    earlier = [(2, -3600.0 + n) for n in range(50)]
    everything = sorted(busy + quiet + earlier, key=lambda one: one[1])

    async def main() -> None:
        topic = await kafka.create_topic(partitions=4)
        for number, records in enumerate((busy, quiet, earlier)):
            await kafka.produce(topic, at(number, *(second for _, second in records)))

        last = await seen(kafka, topic, "end", 202)
        assert seconds(last) == everything[-202:]
        assert (last.together, last.complete, last.outside, last.missing) == (True, True, 0, [])
        assert len(last.there) == 4

        first = await seen(kafka, topic, "beginning", 111)
        assert seconds(first) == everything[:111]
        since = await seen(kafka, topic, Since(START_MS + 30_000), 100)
        assert seconds(since) == [one for one in everything if one[1] >= 30][:100]

        told: list[int] = []
        whole = await seen(kafka, topic, "end", 5000, told=told)
        assert seconds(whole) == everything
        assert told[-1] == len(everything)
        assert seconds(await seen(kafka, topic, "beginning", len(everything))) == everything

    asyncio.run(main())


def test_where_all_came_at_once_each_partition_gives_its_part(kafka: Kafka) -> None:
    """A backlog that was produced with one timestamp."""

    async def main() -> None:
        topic = await kafka.create_topic(partitions=2)
        await kafka.produce(topic, at(0, *[5] * 300))
        await kafka.produce(topic, at(1, *[5] * 100))
        starts: list[Start] = ["end", "beginning"]
        for start in starts:
            window = await seen(kafka, topic, start, 40)
            assert sorted({one for one, _ in seconds(window)}) == [0, 1]
            assert len(window.records) == 40
            assert sum(one == 1 for one, _ in seconds(window)) == 10
        offsets = [one.offset for one in window.records if one.partition == 0]
        assert offsets == list(range(30))

    asyncio.run(main())


def test_timestamps_of_the_future_and_out_of_order_are_cut_to_the_time_in_common(
    kafka: Kafka,
) -> None:
    """What is left are records of all partitions over one time, fewer than were asked for."""
    future = time.time() + 1800 - START_MS / 1000

    async def main() -> None:
        topic = await kafka.create_topic(partitions=2)
        await kafka.produce(topic, at(0, *range(100), future, *range(100, 200)))
        await kafka.produce(topic, at(1, *range(200)))
        window = await seen(kafka, topic, "end", 150)
        assert window.together
        by_partition = {
            number: [second for one, second in seconds(window) if one == number and second < 1000]
            for number in (0, 1)
        }
        assert by_partition[0] == [
            second for second in by_partition[1] if second >= by_partition[0][0]
        ]
        assert len(window.records) > 50
        assert len(window.records) + window.outside == 150

    asyncio.run(main())


def test_from_an_offset_only_the_time_in_common_counts(kafka: Kafka) -> None:
    async def main() -> None:
        topic = await kafka.create_topic(partitions=3)
        await kafka.produce(topic, at(0, *range(100)))
        await kafka.produce(topic, at(1, *range(20, 120)))
        await kafka.delete_records((topic, 1), 5)
        window = await seen(kafka, topic, 10, 60)
        assert window.missing == [(topic, 2)]
        assert seconds(window) == sorted(
            [(0, second) for second in range(30, 40)] + [(1, second) for second in range(30, 40)],
            key=lambda one: one[1],
        )
        assert window.outside == 40
        apart = await seen(kafka, topic, 10, 10)
        assert not apart.together
        assert min(seconds(apart)) == (0, 10)
        assert len(apart.records) == 10
        gone = await seen(kafka, topic, 100, 10)
        assert gone.missing == [(topic, 0), (topic, 1), (topic, 2)]
        assert gone.records == []
        assert gone.there[topic, 1] == range(5, 100)

    asyncio.run(main())


def test_of_one_partition_nothing_is_cut(kafka: Kafka) -> None:
    """Its records are a part of the stream as they are, in whatever order their timestamps."""

    async def main() -> None:
        topic = await kafka.create_topic(partitions=1)
        await kafka.produce(topic, at(0, 5, 3, 9, 1, 7, 8, 2))
        window = await seen(kafka, topic, 2, 4)
        assert sorted(one.offset for one in window.records) == [2, 3, 4, 5]
        assert [second for _, second in seconds(window)] == [1, 7, 8, 9]
        assert window.together

    asyncio.run(main())


# --- gaps, and nothing there ----------------------------------------------------------------------


def in_transactions(kafka: Kafka, topic: str, *, records: int, aborted: int = 0) -> None:
    """A transaction for each record, so that every other offset is its end; then some that are taken back."""
    producer = Producer(
        {"bootstrap.servers": kafka.bootstrap, "transactional.id": fresh_name("tx"), **QUIET}
    )
    producer.init_transactions(30)
    for number in range(records + aborted):
        producer.begin_transaction()
        producer.produce(topic, b"{}", partition=0, timestamp=START_MS + number * 1000)
        if number < records:
            producer.commit_transaction(30)
        else:
            producer.flush()
            producer.abort_transaction(30)


def test_as_many_records_as_are_wanted_come_in_spite_of_gaps(kafka: Kafka) -> None:
    async def main() -> None:
        topic = await kafka.create_topic(partitions=1)
        await asyncio.to_thread(in_transactions, kafka, topic, records=60, aborted=20)
        last = await seen(kafka, topic, "end", 20)
        assert seconds(last) == [(0, float(second)) for second in range(40, 60)]
        assert last.complete
        first = await seen(kafka, topic, "beginning", 20)
        assert seconds(first) == [(0, float(second)) for second in range(20)]
        taken_back = await seen(kafka, topic, "end", 20, isolation_level="read_uncommitted")
        assert seconds(taken_back)[-1] == (0, 79.0)

    asyncio.run(main())


def test_nothing_is_there(kafka: Kafka) -> None:
    async def main() -> None:
        topic = await kafka.create_topic(partitions=2)
        starts: list[Start] = ["end", "beginning", Since(START_MS), 0]
        for start in starts:
            window = await seen(kafka, topic, start, 10)
            assert window.records == []
            assert window.there == {(topic, 0): range(0), (topic, 1): range(0)}
        await kafka.produce(topic, at(0, 1))
        assert (await seen(kafka, topic, Since(START_MS + 1001), 10)).records == []
        assert len((await seen(kafka, topic, Since(START_MS + 1000), 10)).records) == 1
        await asyncio.to_thread(in_transactions, kafka, topic, records=0, aborted=3)
        await kafka.delete_records((topic, 0), 1)
        window = await seen(kafka, topic, "end", 10)
        assert (window.records, window.complete) == ([], True)
        assert len(window.there[topic, 0]) == 6

    asyncio.run(main())


# --- bounds ---------------------------------------------------------------------------------------


def test_what_was_read_until_the_time_was_over_is_given(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut to the time up to which all partitions were read."""

    async def some(*arguments: Any) -> Any:
        number = 0
        async for passed in read(*arguments):
            yield passed
            number += 1
            if number == 3:
                return

    async def main() -> None:
        topic = await kafka.create_topic(partitions=2)
        for partition in range(2):
            await kafka.produce(topic, at(partition, *range(500)))
        monkeypatch.setattr("streamer.window.read", some)
        window = await seen(kafka, topic, "beginning", 800)
        assert not window.complete
        by_partition = [
            {second for one, second in seconds(window) if one == number} for number in (0, 1)
        ]
        assert by_partition[0] == by_partition[1] or not window.together
        assert 0 < len(window.records) < 500

    asyncio.run(main())


def test_a_kafka_that_says_nothing_is_given_up() -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            host, port = silent.getsockname()
            began = time.monotonic()
            with pytest.raises((TimeoutError, KafkaError)):
                await look(
                    connection(f"{host}:{port}"), [("events", 0)], "end", 10,
                    isolation_level="read_committed", timeout_seconds=0.3, progress=lambda _: None,
                )  # fmt: skip
            assert time.monotonic() - began < 10

    asyncio.run(main())


def test_never_more_than_twice_as_many_records_are_held(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where gaps were expected that aren't there."""
    held: list[int] = []
    nearest = module._nearest

    def noted(records: list[Any], start: Start, number: int) -> list[Any]:
        held.append(len(records))
        return nearest(records, start, number)

    async def everything(
        _consumer: object, spans: Mapping[Partition, range], *_rest: object
    ) -> module._Plan:
        return module._Plan(dict(spans), module._ALWAYS)

    async def main() -> None:
        topic = await kafka.create_topic(partitions=2)
        for partition in range(2):
            await kafka.produce(topic, at(partition, *range(1000)))
        monkeypatch.setattr(module, "_nearest", noted)
        monkeypatch.setattr(module, "_choose", everything)
        window = await seen(kafka, topic, "end", 100)
        assert [second for _, second in seconds(window)] == [
            second for second in range(950, 1000) for _ in "ab"
        ]
        assert max(held) < 200 + 2 * 40 + 1

    asyncio.run(main())


# --- choosing offsets -----------------------------------------------------------------------------


class Found(NamedTuple):
    """What Kafka says of a time."""

    offset: int
    timestamp: int


class Times:
    """A Kafka that knows when the records of its partitions came, and nothing else."""

    def __init__(self, stamps: Mapping[Partition, list[int]]) -> None:
        self.stamps = stamps
        self.asked = 0

    async def offsets_for_times(
        self, wanted: Mapping[TopicPartition, int]
    ) -> dict[TopicPartition, Found | None]:
        self.asked += 1
        found: dict[TopicPartition, Found | None] = {}
        for tp, at_ms in wanted.items():
            stamps = self.stamps[tp.topic, tp.partition]
            place = next((n for n, stamp in enumerate(stamps) if stamp >= max(at_ms, 0)), None)
            found[tp] = None if place is None else Found(place, stamps[place])
        return found


def split(stamps: list[list[int]], before: int) -> tuple[list[int], int | None, int]:
    partitions = {("events", number): one for number, one in enumerate(stamps)}
    kafka = Times(partitions)
    spans = {partition: range(len(one)) for partition, one in partitions.items()}
    offsets, at_ms, _ = asyncio.run(module._split(kafka, spans, before, by_time=True))
    return list(offsets.values()), at_ms, kafka.asked


@given(
    st.lists(st.lists(st.integers(0, 2 * 10**12), max_size=40), min_size=1, max_size=5),
    st.data(),
)
def test_so_many_records_lie_before_the_time_that_is_chosen(
    stamps: list[list[int]], data: st.DataObject
) -> None:
    """Exactly so many; where timestamps are in order and not of the future, none of them is younger than one behind."""
    stamps = [sorted(one) for one in stamps]
    total = sum(map(len, stamps))
    before = data.draw(st.integers(0, total))
    offsets, at_ms, asked = split(stamps, before)
    assert sum(offsets) == before
    assert asked < 50
    if at_ms is not None:
        earlier = [
            stamp for one, offset in zip(stamps, offsets, strict=True) for stamp in one[:offset]
        ]
        later = [
            stamp for one, offset in zip(stamps, offsets, strict=True) for stamp in one[offset:]
        ]
        assert max(earlier, default=0) <= at_ms <= min(later, default=at_ms)


@given(
    st.lists(st.lists(st.integers(-1, 4 * 10**12), max_size=20), min_size=1, max_size=4), st.data()
)
def test_whatever_timestamps_say_as_many_are_chosen(
    stamps: list[list[int]], data: st.DataObject
) -> None:
    before = data.draw(st.integers(0, sum(map(len, stamps))))
    offsets, _, _ = split(stamps, before)
    assert sum(offsets) == before
    assert all(0 <= offset <= len(one) for offset, one in zip(offsets, stamps, strict=True))


def test_records_without_timestamps_are_shared_out() -> None:
    assert split([[-1] * 30, [-1] * 10], 20)[:2] == ([15, 5], None)
