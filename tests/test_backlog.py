"""What waits in Kafka for a group, and what it would cost: against a real Kafka, without touching the group."""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError
from confluent_kafka import Producer
from hypothesis import given
from hypothesis import strategies as st

from kafka_broker.topics import QUIET, Kafka, ToProduce, fresh_name
from streamer.backlog import Backlog, Calls, Sample, look, places, stand
from streamer.config import load_config
from streamer.core.model import Reason
from streamer.pipeline import make_calls, make_transform

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streamer.core.model import Partition

START_MS = 1_762_071_240_000
"""2025-11-02 08:14 UTC."""
KEY = "a-write-key-of-thirty-two-chars-0"
PATIENCE = 60.0
"""Seconds that Kafka may take on a machine that does other things: what is asked then must be answered whole."""


def connection(bootstrap: str) -> dict[str, Any]:
    return {"bootstrap_servers": (bootstrap,), "security_protocol": "PLAINTEXT"}


def calls(**settings: Any) -> Calls:
    config = load_config(None, {name.replace("__", "."): value for name, value in settings.items()})
    return make_calls(config, KEY, make_transform(config, KEY))


def page_view(visitor: int, number: int, **more: Any) -> bytes:
    event = {"event_type": "pageView", "event_timestamp": START_MS + number}
    return orjson.dumps({**event, "endpoint": {"Id": f"visitor-{visitor}"}, **more})


def visits(visitor: int, views: int, partition: int = 0, minute: int = 0) -> list[ToProduce]:
    """Page views of one visitor, a minute apart from a minute of Kafka's time on."""
    return [
        ToProduce(
            None,
            page_view(visitor, number),
            START_MS + 60_000 * (minute + number),
            partition=partition,
        )
        for number in range(views)
    ]


async def first_start(kafka: Kafka, topic: str, counting: Calls | None = None) -> Backlog:
    reach = connection(kafka.bootstrap)
    partitions = await kafka.end_offsets(topic)
    standing = await stand(reach, fresh_name("group"), partitions, PATIENCE)
    assert standing.first.keys() == partitions.keys()
    assert not standing.behind
    assert not standing.gone
    return await look(reach, standing.first, counting or calls(), PATIENCE)


# --- where a group stands -----------------------------------------------------------------------


def test_a_partition_is_new_behind_or_its_offset_is_gone(kafka: Kafka) -> None:
    async def main() -> None:
        topic = await kafka.create_topic(partitions=5)
        other = await kafka.create_topic(partitions=1)
        group = fresh_name("group")
        for partition in range(4):
            await kafka.produce(topic, visits(1, 10, partition))
        await kafka.delete_records((topic, 0), 5)
        await kafka.commit(group, {(topic, 0): 4, (topic, 1): 7, (topic, 2): 10, (topic, 3): 11})
        partitions = [*await kafka.end_offsets(topic), (other, 0)]
        standing = await stand(connection(kafka.bootstrap), group, partitions, PATIENCE)
        assert standing.behind == {(topic, 1): range(7, 10), (topic, 2): range(10, 10)}
        assert standing.gone == {(topic, 0): range(5, 10), (topic, 3): range(10)}
        assert standing.first == {(topic, 4): range(0), (other, 0): range(0)}

    asyncio.run(main())


def test_an_active_group_goes_on_undisturbed(kafka: Kafka) -> None:
    """Nobody joins it, its member keeps its partitions, and nothing is committed."""

    async def main() -> None:
        topic, group = await kafka.create_topic(partitions=2), fresh_name("group")
        await kafka.produce(topic, visits(1, 10))
        member = AIOKafkaConsumer(
            topic,
            bootstrap_servers=kafka.bootstrap,
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
        )
        await member.start()
        try:
            generation = member._coordinator.generation
            reach = connection(kafka.bootstrap)
            standing = await stand(reach, group, await kafka.end_offsets(topic), PATIENCE)
            assert standing.first == {(topic, 0): range(10), (topic, 1): range(0)}
            assert (await look(reach, standing.first, calls(), PATIENCE)).calls == 11
            assert await kafka.committed(group, topic) == {}
            found = await member.getmany(timeout_ms=10_000)
            assert [len(records) for records in found.values()] == [10]
            await member.commit({tp: records[-1].offset + 1 for tp, records in found.items()})
            assert member._coordinator.generation == generation
        finally:
            await member.stop()
        assert await kafka.committed(group, topic) == {(topic, 0): 10}

    asyncio.run(main())


@pytest.mark.parametrize("question", ["stand", "look"])
def test_a_kafka_that_says_nothing_is_given_up(question: str) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            reach = connection(f"127.0.0.1:{silent.getsockname()[1]}")
            started = time.monotonic()
            if question == "stand":
                with pytest.raises((KafkaError, TimeoutError)):
                    await stand(reach, "streamer", [("events", 0)], timeout_seconds=0.3)
            else:
                backlog = await look(reach, {("events", 0): range(9)}, calls(), timeout_seconds=0.3)
                assert backlog.calls is None
                assert backlog.error is not None
                start, cost = backlog.first_start("earliest")
                assert start == "from the earliest record: 9 records in 1 partition"
                assert "isn't known" in cost
            assert time.monotonic() - started < 5

    asyncio.run(main())


# --- what a backlog holds and costs -------------------------------------------------------------


def test_a_small_backlog_is_read_whole_and_counted_exactly(kafka: Kafka) -> None:
    """Three visitors with ten page views each: thirty page calls, and an identify call for each visitor."""

    async def main() -> None:
        topic = await kafka.create_topic(partitions=4)
        for visitor in range(3):
            await kafka.produce(topic, visits(visitor, 10, visitor, minute=visitor))
        backlog = await first_start(kafka, topic)
        assert (backlog.offsets, backlog.oldest_ms, backlog.calls) == (30, START_MS, 33)
        assert backlog.first_start("earliest") == [
            "from the earliest record: 30 records in 4 partitions, back to 2025-11-02 08:14 UTC",
            "about 33 billed calls (1.1 a record)",
        ]
        assert backlog.first_start("latest") == [
            "from now on: 30 records in 4 partitions, back to 2025-11-02 08:14 UTC, stay unread"
        ]
        apart = await first_start(kafka, topic, calls(aggregate__identify="false"))
        assert apart.estimate() == "about 60 billed calls (2 a record)"

    asyncio.run(main())


def test_what_retention_took_is_not_in_it(kafka: Kafka) -> None:
    async def main() -> None:
        topic = await kafka.create_topic(partitions=2)
        for partition in range(2):
            await kafka.produce(topic, visits(partition, 20, partition))
        await kafka.delete_records((topic, 0), 15)
        await kafka.delete_records((topic, 1), 6)
        backlog = await first_start(kafka, topic)
        assert (backlog.offsets, backlog.calls) == (19, 21)
        assert backlog.oldest_ms == START_MS + 6 * 60_000
        # It may take more between the question and the reading.
        late = await look(connection(kafka.bootstrap), {(topic, 0): range(20)}, calls(), PATIENCE)
        assert late.sample.records == 5
        assert late.error is None

    asyncio.run(main())


def test_of_a_large_backlog_a_part_is_read_and_stands_for_the_rest(kafka: Kafka) -> None:
    """Its first half can't become calls; the sample knows both halves."""

    async def main() -> None:
        topic = await kafka.create_topic(partitions=1)
        await kafka.produce(topic, [ToProduce(None, b"none", START_MS)] * 10_000)
        await kafka.produce(topic, visits(1, 10_000))
        backlog = await first_start(kafka, topic, calls(aggregate__identify="false"))
        assert backlog.sample == Sample(4000, 4000, 4000, backlog.sample.rejects)
        assert backlog.sample.rejects == {Reason.NOT_JSON: 2000}
        assert backlog.calls == 20_000
        assert backlog.estimate() == (
            "about 20,000 billed calls (1 a record, judged by 4,000 of them);"
            " 50 % would become dead letters, most of them: not_json"
        )

    asyncio.run(main())


def test_group_calls_count_and_follow_the_configuration(kafka: Kafka) -> None:
    async def main() -> None:
        topic = await kafka.create_topic(partitions=1)
        event = page_view(1, 1, team="a")
        await kafka.produce(topic, [ToProduce(None, event + b" " * n) for n in range(10)])
        groups = [{"field": "team", "traits": {}}]
        merged = await first_start(kafka, topic, calls(groups=groups))
        assert merged.calls == 12
        apart = await first_start(kafka, topic, calls(groups=groups, aggregate__group="false"))
        assert apart.calls == 21

    asyncio.run(main())


def test_records_that_are_filtered_make_no_calls(kafka: Kafka) -> None:
    async def main() -> None:
        topic = await kafka.create_topic(partitions=1)
        await kafka.produce(topic, visits(1, 10))
        backlog = await first_start(kafka, topic, calls(transform__drop_events=["pageView"]))
        assert (backlog.offsets, backlog.calls, backlog.sample.rejects.total()) == (10, 0, 0)
        assert backlog.estimate() == "no billed calls"

    asyncio.run(main())


def test_offsets_without_records_make_the_number_an_upper_bound(kafka: Kafka) -> None:
    """The end of a transaction takes an offset, as a record does that compaction took."""

    def produce(topic: str) -> None:
        name = fresh_name("tx")
        producer = Producer(
            {"bootstrap.servers": kafka.bootstrap, "transactional.id": name, **QUIET}
        )
        producer.init_transactions(30)
        for views in (visits(1, 5), visits(1, 4)):
            producer.begin_transaction()
            for view in views:
                producer.produce(topic, view.value, partition=0)
            producer.commit_transaction(30)

    async def main() -> None:
        topic = await kafka.create_topic(partitions=1)
        await asyncio.to_thread(produce, topic)
        backlog = await first_start(kafka, topic)
        assert (backlog.offsets, backlog.sample.records, backlog.calls) == (11, 9, 10)
        assert backlog.records().startswith("up to 11 records in 1 partition, back to 20")

    asyncio.run(main())


def test_nothing_there_is_said_without_a_figure(kafka: Kafka) -> None:
    async def main() -> None:
        topic = await kafka.create_topic(partitions=3)
        backlog = await first_start(kafka, topic)
        for reset in ("earliest", "latest"):
            assert backlog.first_start(reset) == ["with nothing to read yet in 3 partitions"]

    asyncio.run(main())


# --- places and words ---------------------------------------------------------------------------


@given(
    st.dictionaries(
        st.tuples(st.sampled_from("ab"), st.integers(0, 20)),
        st.tuples(st.integers(0, 10**6), st.sampled_from([0, 1, 300, 999, 5_000, 10**9])),
        max_size=20,
    )
)
def test_places_lie_in_the_backlog_and_cover_a_small_one(
    spans: dict[Partition, tuple[int, int]],
) -> None:
    """No offset is read twice, none at all is read that isn't of the backlog, and the work is bounded."""
    offsets = {partition: range(start, start + n) for partition, (start, n) in spans.items()}
    chosen = places(offsets)
    for partition, span in offsets.items():
        parts = [place[partition] for place in chosen if partition in place]
        assert all(part.start in span and part[-1] in span for part in parts)
        ordered = sorted(parts, key=lambda part: part.start)
        for one, following in itertools.pairwise(ordered):
            assert one.stop <= following.start
    total = sum(map(len, offsets.values()))
    assert sum(sum(map(len, place.values())) for place in chosen) == min(total, 4000)
    assert all(chosen)


@pytest.mark.parametrize(
    ("sample", "says"),
    [
        (
            {"calls": 9_600},
            "about 2.9 million billed calls (2.4 a record, judged by 4,000 of them)",
        ),
        ({"calls": 0}, "no billed calls, judged by 4,000 of them"),
        ({"records": 0}, "no record stands at the 4,000 offsets that were looked at"),
        (
            {"calls": 4000, "rejects": {Reason.NO_IDENTITY: 3, Reason.EMPTY: 1}},
            (
                "about 1.2 million billed calls (1 a record, judged by 4,000 of them);"
                " less than 1 % would become dead letters, most of them: no_identity"
            ),
        ),
    ],
)
def test_a_figure_has_as_many_digits_as_a_sample_gives(
    sample: Mapping[str, Any], says: str
) -> None:
    values = {"offsets": 4000, "records": 4000, **sample}
    found = Sample(**values)
    found.rejects = type(Sample().rejects)(values.get("rejects", {}))
    assert Backlog(4, 1_210_000, START_MS, found).estimate() == says


@pytest.mark.parametrize("oldest_ms", [None, 10**15])
def test_records_without_a_date_have_none(oldest_ms: int | None) -> None:
    """Old records have no timestamp; what a producer gave for one may lie beyond every calendar."""
    assert Backlog(1, 1_000, oldest_ms).records() == "1,000 records in 1 partition"
