"""The pipeline in this process, between a real Kafka and the mock Segment: its stop, its readiness, its memory."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from contextlib import asynccontextmanager
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import aiohttp
import orjson
import pytest
from aiokafka import ConsumerRecord
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from kafka_broker.broker import free_port
from kafka_broker.topics import Kafka, ToProduce, fresh_name
from streamer import virtual_time
from streamer.backlog import look
from streamer.config import load_config
from streamer.core.aggregate import CALL_OVERHEAD, open_bytes
from streamer.core.bisection import WITNESS_BYTES
from streamer.core.model import Formatted
from streamer.core.transform import Transform
from streamer.demo.events import generate
from streamer.errors import StartError
from streamer.hooks import Hooks
from streamer.mock_segment import Fault, MockSegment
from streamer.pipeline import Pipeline, config_hash, make_transform
from whole_pipeline import WRITE_KEY

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from streamer.core.model import Partition

NEVER = "24h"
"""A flush interval that doesn't pass during a test."""


def make_pipeline(
    bootstrap: str,
    topic: str,
    segment: str,
    group: str = "",
    hooks: Hooks | None = None,
    **settings: str,
) -> Pipeline:
    """Makes one from environment variables, named without their prefix and in lower case."""
    variables = {
        "kafka__bootstrap_servers": bootstrap,
        "kafka__topics": topic,
        "kafka__group_id": group or fresh_name("group"),
        "kafka__session_timeout": "6s",
        "segment__endpoint": segment,
        "segment__write_key": WRITE_KEY,
        "server__port": "0",
        **settings,
    }
    environ = {f"STREAMER_{name.upper()}": value for name, value in variables.items()}
    return Pipeline(load_config(None, {}, environ), hooks or Hooks())


@asynccontextmanager
async def running(pipeline: Pipeline) -> AsyncIterator[asyncio.Event]:
    """Runs a pipeline; at the end it is stopped as a signal stops it."""
    stop = asyncio.Event()
    task = asyncio.create_task(pipeline.run(stop))
    try:
        await until(lambda: pipeline.port or task.done())
        yield stop
    finally:
        stop.set()
        async with asyncio.timeout(60):
            await task


async def until(condition: Callable[[], object], seconds: float = 120.0) -> None:
    """Waits until something is so."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


async def get(pipeline: Pipeline, path: str) -> tuple[int, bytes]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{pipeline.port}{path}") as response,
    ):
        return response.status, await response.read()


async def not_ready(pipeline: Pipeline) -> str:
    """What `/readyz` gives for reasons; nothing when it says that the pipeline is ready."""
    status, body = await get(pipeline, "/readyz")
    answer = orjson.loads(body)
    assert (status, answer["ready"]) == ((503, False) if answer["reasons"] else (200, True))
    return "; ".join(answer["reasons"])


async def metrics(pipeline: Pipeline) -> Counter[tuple[str, ...]]:
    """A sample's name and the values of its labels, by the order of the labels' names, to its value."""
    _, text = await get(pipeline, "/metrics")
    return Counter(
        {
            (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text.decode())
            for sample in family.samples
        }
    )


def some(count: int, seed: int) -> list[ToProduce]:
    return [ToProduce(event.key, event.value) for event in islice(generate(seed), count)]


def mains(segment: MockSegment) -> int:
    return segment.stats.accepted["page"] + segment.stats.accepted["track"]


def assert_balances(pipeline: Pipeline, produced: int) -> None:
    """After the end every record has its fate."""
    account = pipeline.account
    assert account.in_flight == 0
    assert account.consumed.total() == account.delivered + account.released
    assert account.delivered <= produced


# --- the stop -----------------------------------------------------------------------------------


def test_a_stop_sends_what_is_open_commits_it_and_leaves_the_group(kafka: Kafka) -> None:
    async def main() -> None:
        topic, group = await kafka.create_topic(), fresh_name("group")
        await kafka.produce(topic, some(300, seed=21))
        async with MockSegment() as segment:
            pipeline = make_pipeline(
                kafka.bootstrap,
                topic,
                segment.url,
                group,
                flush__interval=NEVER,
                kafka__session_timeout="120s",
            )
            async with running(pipeline):
                await until(lambda: pipeline.account.consumed.total() == 300)
                assert segment.stats.requests_total == 0
            assert mains(segment) == 300
            assert await kafka.committed(group, topic) == await kafka.end_offsets(topic)
            assert_balances(pipeline, 300)
            assert pipeline.account.delivered == 300

            # It has left: the next one gets the partitions at once, not after a session's time-out.
            second = make_pipeline(kafka.bootstrap, topic, segment.url, group)
            async with running(second):
                await kafka.produce(topic, some(10, seed=22))
                await until(lambda: mains(segment) == 310, 60)
            assert not segment.stats.duplicates

    asyncio.run(main())


def test_a_stop_while_segment_fails_ends_in_time_and_what_was_not_delivered_is_read_again(
    kafka: Kafka,
) -> None:
    async def main() -> None:
        topic, group = await kafka.create_topic(), fresh_name("group")
        await kafka.produce(topic, some(300, seed=23))
        async with MockSegment(faults=[Fault(kind="answer", status=503)]) as segment:
            pipeline = make_pipeline(
                kafka.bootstrap, topic, segment.url, group, shutdown_timeout="2s"
            )
            clock = asyncio.get_running_loop().time
            async with running(pipeline) as stop:
                await until(lambda: segment.stats.requests_total >= 3)
                assert pipeline.account.consumed.total() == 300
                stop.set()
                stopped = clock()
            assert clock() - stopped < 10
            assert_balances(pipeline, 300)
            assert pipeline.account.released == 300
            ends = await kafka.end_offsets(topic)
            assert not set((await kafka.committed(group, topic)).items()) & {
                (partition, end) for partition, end in ends.items() if end
            }
            segment.faults.set()
            second = make_pipeline(kafka.bootstrap, topic, segment.url, group)
            async with running(second):
                await until(lambda: mains(segment) == 300)
            assert await kafka.committed(group, topic) == ends
            assert second.account.delivered == 300

    asyncio.run(main())


def test_partitions_that_go_to_another_member_are_sent_and_committed_before_that(
    kafka: Kafka,
) -> None:
    async def main() -> None:
        topic, group = await kafka.create_topic(), fresh_name("group")
        await kafka.produce(topic, some(300, seed=24))
        async with MockSegment() as segment:
            first, second = (
                make_pipeline(kafka.bootstrap, topic, segment.url, group, flush__interval=NEVER)
                for _ in range(2)
            )
            async with running(first):
                await until(lambda: first.account.consumed.total() == 300)
                assert segment.stats.requests_total == 0
                async with running(second):
                    await until(lambda: mains(segment) == 300)
                    counts = await metrics(first)
                    assert counts["streamer_batches_closed_total", "rebalance"] >= 1
                    async with asyncio.timeout(60):
                        while (await metrics(first))["streamer_assigned_partitions",] != 2:
                            await asyncio.sleep(0.05)
                    await until(lambda: second.not_ready() == [])
                    assert second.account.consumed.total() == 0, "nothing of it is read again"
            assert not segment.stats.duplicates
            for pipeline in (first, second):
                assert_balances(pipeline, 300)

    asyncio.run(main())


# --- a first start ------------------------------------------------------------------------------


def page_views(count: int, visitor: str = "a") -> list[ToProduce]:
    """Of one visitor, a minute apart by Kafka's time from 2025-11-02 08:14 UTC on."""
    start_ms = 1_762_071_240_000
    event = {"event_type": "pageView", "endpoint": {"Id": visitor}}
    return [
        ToProduce(
            visitor.encode(),
            orjson.dumps({**event, "event_timestamp": start_ms + number}),
            start_ms + 60_000 * number,
        )
        for number in range(count)
    ]


async def first_starts(pipeline: Pipeline, consumed: int, lines: int = 1) -> list[Any]:
    """Runs it until it has consumed so many records and said so much of first starts; gives these lines."""
    patient = partial(look, timeout_seconds=60.0)  # Kafka shares the machine with other tests
    with capture_logs() as logs, patch("streamer.pipeline.look", patient):
        async with running(pipeline):
            await until(
                lambda: (
                    pipeline.account.consumed.total() == consumed
                    and sum(line["event"] == "a first start" for line in logs) >= lines
                    and not pipeline.account.in_flight
                    and not pipeline.not_ready()
                )
            )
    return [line for line in logs if line["event"] == "a first start"]


def test_a_first_start_says_once_what_it_reads_and_what_that_costs(kafka: Kafka) -> None:
    async def main() -> None:
        topic, group = await kafka.create_topic(), fresh_name("group")
        await kafka.produce(topic, page_views(30))
        async with MockSegment() as segment:
            (line,) = await first_starts(
                make_pipeline(kafka.bootstrap, topic, segment.url, group), consumed=30
            )
            assert segment.stats.accepted.total() == 31
            assert line == {
                "event": "a first start",
                "log_level": "info",
                "group": group,
                "records": 30,
                "billed_calls": 31,
                "starts": "from the earliest record: 30 records in 4 partitions, back to 2025-11-02 08:14 UTC",
                "costs": "about 31 billed calls (1 a record)",
                "instead": (
                    'to skip them: stop, and start with kafka.auto_offset_reset = "latest" and another kafka.group_id'
                ),
            }
            second = make_pipeline(kafka.bootstrap, topic, segment.url, group)
            assert await first_starts(second, consumed=0, lines=0) == []
            latest = make_pipeline(
                kafka.bootstrap, topic, segment.url, kafka__auto_offset_reset="latest"
            )
            (line,) = await first_starts(latest, consumed=0)
            assert line["billed_calls"] is None
            assert line["starts"] == (
                "from now on: 30 records in 4 partitions, back to 2025-11-02 08:14 UTC, stay unread"
            )
            assert "costs" not in line
            assert segment.stats.accepted.total() == 31

    asyncio.run(main())


def test_a_first_start_with_many_calls_is_a_warning(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamer.pipeline.MANY_CALLS", 31)

    async def main() -> None:
        topic = await kafka.create_topic()
        await kafka.produce(topic, page_views(30))
        async with MockSegment() as segment:
            pipeline = make_pipeline(kafka.bootstrap, topic, segment.url)
            (line,) = await first_starts(pipeline, consumed=30)
            assert line["log_level"] == "warning"

    asyncio.run(main())


def test_a_rebalance_before_the_first_commit_is_no_other_first_start() -> None:
    """A partition is announced once; of those that come later, only what is new is."""
    pipeline = make_pipeline("127.0.0.1:9", "events", "http://127.0.0.1:9/v1/batch")
    pipeline.starts_first({("events", 0): range(9), ("events", 1): range(9)})
    pipeline.starts_first({("events", 1): range(9)})
    pipeline.starts_first({("events", 1): range(9), ("events", 2): range(5)})
    queue = pipeline._first_starts
    assert [sorted(queue.get_nowait()) for _ in range(queue.qsize())] == [
        [("events", 0), ("events", 1)],
        [("events", 2)],
    ]


# --- readiness ----------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_said_with_the_setting() -> None:
    async def main() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = str(taken.getsockname()[1])
            pipeline = make_pipeline(
                "127.0.0.1:9", "events", "http://127.0.0.1:9/v1/batch", server__port=port
            )
            with pytest.raises(StartError, match=rf"port {port} .* in use.*server\.port"):
                await pipeline.run(asyncio.Event())

    asyncio.run(main())


def test_without_kafka_it_lives_is_not_ready_says_why_and_stops(kafka: Kafka) -> None:
    async def main() -> None:
        server = f"127.0.0.1:{free_port()}"
        pipeline = make_pipeline(server, "events", "http://127.0.0.1:9/v1/batch")
        async with running(pipeline) as stop:
            async with asyncio.timeout(60):
                while (await not_ready(pipeline)) != (
                    f"Kafka: {server}: connection refused: nothing listens there"
                ):
                    await asyncio.sleep(0.05)
            assert (await get(pipeline, "/healthz"))[0] == 200
            stop.set()
        topic = await kafka.create_topic()
        pipeline = make_pipeline(kafka.bootstrap, topic, "http://127.0.0.1:9/v1/batch")
        async with running(pipeline):
            async with asyncio.timeout(60):
                while await not_ready(pipeline):
                    await asyncio.sleep(0.05)

    asyncio.run(main())


def test_a_write_key_that_segment_refuses_is_said_and_drops_nothing(kafka: Kafka) -> None:
    async def main() -> None:
        topic, group = await kafka.create_topic(), fresh_name("group")
        await kafka.produce(topic, some(100, seed=25))
        async with MockSegment(faults=[Fault(kind="answer", status=401)]) as segment:
            pipeline = make_pipeline(kafka.bootstrap, topic, segment.url, group)
            async with running(pipeline) as stop:
                async with asyncio.timeout(60):
                    while "segment.write_key" not in (reason := await not_ready(pipeline)):
                        await asyncio.sleep(0.05)
                assert WRITE_KEY not in reason
                await until(lambda: pipeline.account.in_flight == 100)
                assert segment.stats.requests_total <= 2, "one probe at a time, half a minute apart"
                stop.set()
                # No probe is due before the time for the stop is over: there is nothing to wait for.
                await until(lambda: pipeline.account.released == 100, 10)
            assert pipeline.account.dead_lettered.total() == 0
            assert sum((await kafka.committed(group, topic)).values()) == 0

    asyncio.run(main())


# --- reading ------------------------------------------------------------------------------------


def consumer_records(partition: int, count: int) -> tuple[Partition, list[ConsumerRecord]]:
    records = [
        ConsumerRecord(
            topic="events", partition=partition, offset=offset, timestamp=0, timestamp_type=0, key=event.key,
            value=event.value, checksum=None, serialized_key_size=0, serialized_value_size=0, headers=(),
        )
        for offset, event in enumerate(islice(generate(partition), count))
    ]  # fmt: skip
    return ("events", partition), records


@pytest.mark.parametrize("partitions", [1, 50])
def test_a_read_gives_the_event_loop_its_turns_however_small_its_chunks_are(
    partitions: int,
) -> None:
    async def main() -> None:
        pipeline = make_pipeline("127.0.0.1:9", "events", "http://127.0.0.1:9/v1/batch")
        together = [consumer_records(n, 500 // partitions) for n in range(partitions)]
        pipeline.assigned(frozenset(partition for partition, _ in together))
        reading = asyncio.create_task(pipeline.read(together))
        turns = 0
        while not reading.done():
            turns += 1
            await asyncio.sleep(0)
        total = sum(len(record.value) + 1000 for _, records in together for record in records)
        assert turns > total / 200_000 + 1
        assert pipeline.account.in_flight == 500

    virtual_time.run(main())


def test_a_revocation_in_the_middle_of_a_read_makes_nothing_of_it_committable() -> None:
    async def main() -> None:
        pipeline = make_pipeline("127.0.0.1:9", "events", "http://127.0.0.1:9/v1/batch")
        partition, records = consumer_records(0, 500)
        pipeline.assigned(frozenset({partition}))
        reading = asyncio.create_task(pipeline.read([(partition, records)]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert sum(pipeline.account.calls_in_flight.values()) > 0, "some of it is processed"
        revoking = asyncio.create_task(pipeline.revoked())
        await reading
        assert (
            pipeline.account.calls_in_flight["page"] + pipeline.account.calls_in_flight["track"]
            < 500
        )
        await revoking
        # The position is behind all of it, and the last half was never looked at: not even if the rest is settled.
        assert pipeline.committable(partition, 500) is None
        assert pipeline._generation is not None
        (lane,) = pipeline._generation.lanes.values()
        while not lane.idle:
            lane.close("rebalance", 0.0)
            lane.settle(lane.ready.popleft(), 0.0)
        assert pipeline.committable(partition, 500) is None
        await pipeline.ended()
        assert_balances(pipeline, 500)
        assert pipeline.account.released == 500
        assert pipeline._budget.used == 0
        assert pipeline.committable(partition, 500) is None

    virtual_time.run(main())


def test_with_the_profile_altis_calls_go_out_as_php_sends_them_and_skipped_records_are_filtered() -> (
    None
):
    event = b'{"event_type":"e","endpoint":{"Id":"visitor"}}'
    values = [event, b"{}", event, None, b"5"]

    async def main() -> None:
        pipeline = make_pipeline(
            "127.0.0.1:9",
            "events",
            "http://127.0.0.1:9/v1/batch",
            transform__profile="altis",
            aggregate__suppress_for="1h",
        )
        partition, records = consumer_records(0, len(values))
        for record, value in zip(records, values, strict=True):
            record.value = value
        pipeline.assigned(frozenset({partition}))
        await pipeline.read([(partition, records)])
        account = pipeline.account
        assert account.filtered == {"empty": 2}
        assert account.merged == dict.fromkeys(account.merged, 0), "nothing merges"
        assert account.made == {"identify": 2, "group": 0, "page": 0, "track": 2}
        assert account.balance() == []
        generation = pipeline._generation
        assert generation is not None
        (lane,) = generation.lanes.values()
        assert lane.open is not None
        sent = [orjson.loads(call) for call in lane.open.calls]
        transform = Transform(write_key="", profile="altis")
        assert sent == 2 * transform.calls(event, -1)  # type: ignore[operator] # a list
        await pipeline.revoked()
        await pipeline.ended()
        assert account.balance() == []
        assert pipeline._budget.used == 0

    virtual_time.run(main())


def test_suppression_is_the_generations_and_what_was_refused_was_not_delivered() -> None:
    event = b'{"event_type":"e","endpoint":{"Id":"visitor","Attributes":{"seen":["%d"]}}}'

    async def main() -> None:
        pipeline = make_pipeline(
            "127.0.0.1:9",
            "events",
            "http://127.0.0.1:9/v1/batch",
            aggregate__suppress_for="1h",
            aggregate__ignore_traits="seen",
        )
        partition, records = consumer_records(0, 4)
        suppressed: list[int] = []

        async def read(*, refused: bool = False) -> None:
            record = records[len(suppressed)]
            record.value = event % record.offset
            await pipeline.read([(partition, [record])])
            generation = pipeline._generation
            assert generation is not None
            (lane,) = generation.lanes.values()
            lane.close("time", 0.0)
            batch = lane.ready.popleft()
            if refused:
                pipeline.refused(lane, batch, 0, "400")
                (waiting,) = pipeline._letters._waiting
                assert waiting.letter.batch == batch.name, "the log calls it so"
            lane.settle(batch, 0.0)
            suppressed.append(pipeline.account.suppressed["identify"])

        pipeline.assigned(frozenset({partition}))
        await read(refused=True)
        await read()
        await read()
        assert suppressed == [0, 0, 1]
        assert pipeline.readings().suppression_keys == 2
        await pipeline.ended()
        assert pipeline.readings().suppression_keys == 0
        pipeline.assigned(frozenset({partition}))
        await read()
        assert suppressed[-1] == 1
        await pipeline.ended()
        assert pipeline._budget.used == 0

    virtual_time.run(main())


# --- memory -------------------------------------------------------------------------------------


def budget_of_a_read(records: list[ToProduce]) -> int:
    """The most that one read of 500 records can take: the records, and the calls that are made of them."""
    transform = make_transform(
        load_config(None, {}, {"SEGMENT_API_WRITE_KEY": WRITE_KEY}), WRITE_KEY
    )
    sizes = []
    for record in records:
        made = transform.format(record.value, 0)
        assert isinstance(made, Formatted)
        size = len(record.value or b"") + len(made.main) + CALL_OVERHEAD
        for contribution in made.contributions:
            size += open_bytes(len(orjson.dumps(contribution.call)) + len(contribution.traits_json))
        sizes.append(size)
    return sum(sorted(sizes)[-500:])


def test_while_segment_hangs_memory_is_bounded_the_member_stays_and_the_backlog_drains_after(
    kafka: Kafka,
) -> None:
    async def main() -> None:
        max_bytes, concurrency = 100_000, 4
        topic, group = await kafka.create_topic(), fresh_name("group")
        records = some(20_000, seed=26)
        most = budget_of_a_read(records)
        await kafka.produce(topic, records)
        async with MockSegment() as segment:
            pipeline = make_pipeline(
                kafka.bootstrap,
                topic,
                segment.url,
                group,
                flush__max_bytes=str(max_bytes),
                flush__concurrency=str(concurrency),
                flush__memory_budget=str(4 * (max_bytes + 1024 * 1024)),
            )
            segment.faults.set(Fault(kind="hang", seconds=8, count=concurrency))
            async with running(pipeline):
                budget = pipeline._budget
                await until(lambda: pipeline._delivery.in_flight == concurrency)
                async with asyncio.timeout(60):  # what a read has brought may be spent for a moment
                    while not (await metrics(pipeline))["streamer_paused_seconds_total",]:
                        await asyncio.sleep(0.05)
                consumed = pipeline.account.consumed.total()
                await until(lambda: segment.stats.answers.get("hung", 0) >= concurrency)
                assert pipeline.account.consumed.total() == consumed < 20_000, "reading stopped"
                await until(lambda: mains(segment) == 20_000, 120)
                counts = await metrics(pipeline)
                await until(lambda: budget.used <= WITNESS_BYTES)  # one lane's
                assert counts["streamer_rebalances_total",] == 1
                assert counts["streamer_paused_seconds_total",] > 6, "longer than the session"
                # Bodies count one and a half times, for their compressed copy.
                bodies = int(concurrency * max_bytes * 1.5)
                assert budget.peak <= budget.limit + most + bodies
                assert counts["streamer_memory_budget_bytes",] == budget.limit
            assert not segment.stats.duplicates
            assert not segment.stats.discarded
            assert await kafka.committed(group, topic) == await kafka.end_offsets(topic)
            assert_balances(pipeline, 20_000)

    asyncio.run(main())


def test_the_hash_of_the_settings_changes_with_each_but_not_with_a_secret() -> None:
    def hashed(**settings: str) -> str:
        environ = {f"STREAMER_{name.upper()}": value for name, value in settings.items()}
        return config_hash(load_config(None, {}, {"SEGMENT_API_WRITE_KEY": "one", **environ}))

    first = hashed()
    assert first == hashed()
    assert first == hashed(segment__write_key="another")
    assert len({first, hashed(flush__interval="2s"), hashed(kafka__topics="another")}) == 3
