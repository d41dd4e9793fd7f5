"""What breaks around a member, and comes back: everything arrives after, and a stop in the middle loses nothing.

Each fault has a beginning and an end. Two stories are told of it: a member lives through it; and a member is stopped
while it lasts, in time, after which the next one does what is left, and meets the next fault.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from functools import partial
from signal import SIGINT, SIGTERM
from typing import TYPE_CHECKING, TypeAlias

import orjson
import pytest

from kafka_broker.topics import Kafka, ToProduce
from streamer.mock_segment import Fault, digest
from whole_pipeline import SCALE, Member, Stage, noted, some

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

    from kafka_broker.broker import KafkaBroker, KafkaCluster

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

SITES = {"1": "the-key-of-site-1", "2": "the-key-of-site-2", "3": "the-key-of-site-3"}
"""Events without a site have the stage's own key: with it they are four, of which two go down."""


def answers(status: int, **options: float | str) -> Fault:
    return Fault(kind="answer", status=status, **options)  # type: ignore[arg-type] # of several types


Step: TypeAlias = "Callable[[], Awaitable[object]]"
"""The beginning or the end of a fault."""

DROPPED, BURSTS, REFUSED = "connections are dropped", "5xx in bursts", "401"
SOME_SITES = "half of the sites are down"
FAULTS: dict[str, tuple[float, list[Fault]]] = {
    DROPPED: (120, [Fault(kind="drop")]),
    "429 in both forms": (
        30,
        [
            answers(429, retry_after_seconds=2, duration_seconds=4, probability=0.7),
            answers(429, retry_after_seconds=2, retry_after_form="date", start_seconds=4),
        ],
    ),
    BURSTS: (
        30,
        [
            answers(status, start_seconds=start, duration_seconds=1.5)
            for status, start in zip((500, 502, 503, 504) * 3, range(0, 24, 2), strict=True)
        ],
    ),
    "accepted, then dropped": (30, [Fault(kind="drop", accept=True, probability=0.7)]),
    REFUSED: (60, [answers(401)]),
    SOME_SITES: (60, [Fault(kind="drop", key_digest=digest(SITES[site])) for site in ("1", "2")]),
}
"""What Segment does, and for how many seconds at full length."""
NOTHING_ANSWERED = [Fault(kind="hang", seconds=30)]


def by_site(seed: int) -> Iterator[ToProduce]:
    """Events of which each visitor keeps to one site: a profile's order is that of one write key."""
    sites = (*SITES, "4")
    for record in some(None, seed):
        try:
            event = orjson.loads(record.value or b"")
        except orjson.JSONDecodeError:
            yield record
            continue
        visitor = event["endpoint"].get("User", {}).get("UserId") or event["endpoint"].get("Id", "")
        event["attributes"]["blogId"] = sites[sum(visitor.encode()) % len(sites)]
        yield record._replace(value=orjson.dumps(event))


async def stop_in_each(
    stage: Stage,
    records: Iterator[ToProduce],
    faults: Iterable[tuple[str, Step, Step]],
) -> None:
    """Under load, stops a member in the middle of each fault; the next one goes on."""
    numbers = itertools.cycle((SIGTERM, SIGINT))
    member = await stage.start()
    async with stage.stream(records):
        for name, begin, end in faults:
            with noted(f"during the fault: {name}"):
                await stage.until_committed(await stage.committed() + 500)
                await begin()
                try:
                    await asyncio.sleep(
                        2
                    )  # some moment: whenever the signal comes, it ends in time
                    await member.stop_in_time(next(numbers))
                finally:
                    await end()
                member = await stage.start()
    await stage.until_committed()
    await stage.assert_accounted_for(once=False)


# --- Segment --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", FAULTS)
def test_everything_arrives_after_segment_fails(kafka: Kafka, fault: str) -> None:
    async def story() -> None:
        seconds, faults = FAULTS[fault]
        async with Stage(kafka, write_keys=SITES if fault == SOME_SITES else {}) as stage:
            member = await stage.start()
            async with stage.stream(by_site(81) if fault == SOME_SITES else some(None, 81)):
                await stage.until_committed(1_000)
                before = stage.segment.stats.requests_total
                stage.segment.faults.set(*faults)
                await asyncio.sleep(SCALE.outage(seconds))
                applied = stage.segment.faults.as_json()["applied"]
                met = applied[:1] if fault == BURSTS else applied  # a backoff may outlast a burst
                assert all(met), "the fault was met"
                requests = stage.segment.stats.requests_total - before
                if fault == DROPPED:
                    assert requests < 60, "a destination that fails is asked seldom"
                if fault == REFUSED:
                    assert requests < 20, "one that refuses is asked once in a while"
                stage.segment.faults.clear()
            await stage.until_committed()
            assert (await member.get("/readyz"))[0] == 200
            await stage.assert_accounted_for()

    asyncio.run(story())


def test_a_stop_while_segment_fails_is_in_time_and_loses_nothing(kafka: Kafka) -> None:
    async def story() -> None:
        async with Stage(kafka, write_keys=SITES) as stage:

            async def begin(faults: list[Fault]) -> None:
                stage.segment.faults.set(*faults)

            async def end() -> None:
                stage.segment.faults.clear()

            faults = {name: faults for name, (_, faults) in FAULTS.items()}
            faults["nothing is answered"] = NOTHING_ANSWERED
            steps = [(name, partial(begin, each), end) for name, each in faults.items()]
            await stop_in_each(stage, by_site(82), steps)

    asyncio.run(story())


def test_a_second_signal_ends_it_at_once_and_nothing_is_lost(kafka: Kafka) -> None:
    async def story() -> None:
        async with Stage(kafka) as stage:
            member = await stage.start(STREAMER_SHUTDOWN_TIMEOUT="1h")
            async with stage.stream(some(None, 83)):
                await stage.until_committed(1_000)
                stage.segment.faults.set(*NOTHING_ANSWERED)
                async with asyncio.timeout(60):
                    while not stage.segment.stats.in_flight:
                        await asyncio.sleep(0.05)
                member.signal(SIGTERM)
                async with asyncio.timeout(60):
                    while "stopping:" not in member.log.read_text():
                        await asyncio.sleep(0.05)
                member.signal(SIGINT)
                async with asyncio.timeout(10):
                    assert await member.wait() == 128 + SIGINT
                stage.segment.faults.clear()
            stage.members.clear()
            await stage.start()
            await stage.until_committed()
            await stage.assert_accounted_for(once=False)

    asyncio.run(story())


# --- Kafka ----------------------------------------------------------------------------------------


async def kill(broker: KafkaBroker) -> None:
    await asyncio.to_thread(broker.kill)


async def start_again(broker: KafkaBroker) -> None:
    broker.launch()
    await asyncio.to_thread(broker.wait_until_ready)


async def freeze(broker: KafkaBroker) -> None:
    broker.freeze()


async def thaw(broker: KafkaBroker) -> None:
    broker.thaw()


BROKER_FAULTS = {"killed": (30, kill, start_again), "frozen": (40, freeze, thaw)}


@pytest.mark.parametrize("fault", BROKER_FAULTS)
def test_everything_arrives_after_the_broker_is_back(broker: KafkaBroker, fault: str) -> None:
    async def story() -> None:
        seconds, begin, end = BROKER_FAULTS[fault]
        async with Stage(Kafka(broker.bootstrap)) as stage:
            member = await stage.start()
            async with stage.stream(some(None, 84)):
                await stage.until_committed(1_000)
                await begin(broker)
                try:
                    await asyncio.sleep(SCALE.outage(seconds))
                finally:
                    await end(broker)
            await stage.until_committed()
            await until_ready(member)
            await stage.assert_accounted_for(once=False)

    asyncio.run(story())


def test_a_stop_without_the_broker_is_in_time_and_loses_nothing(broker: KafkaBroker) -> None:
    async def story() -> None:
        async with Stage(Kafka(broker.bootstrap)) as stage:
            steps = [
                (name, partial(begin, broker), partial(end, broker))
                for name, (_, begin, end) in BROKER_FAULTS.items()
            ]
            await stop_in_each(stage, some(None, 85), steps)

    asyncio.run(story())


@pytest.mark.parametrize("role", ["leader", "coordinator"])
def test_everything_arrives_though_one_of_three_brokers_is_lost(
    cluster: KafkaCluster, role: str
) -> None:
    async def story() -> None:
        async with Stage(Kafka(cluster.bootstrap, replicas=3)) as stage:
            member = await stage.start()
            async with stage.stream(some(None, 86)):
                await stage.until_committed(1_000)
                lost = await node(stage, cluster, role)
                await kill(lost)
                try:
                    await stage.until_committed(len(stage.produced) + 1_000)  # without it
                finally:
                    await start_again(lost)
            await stage.until_committed()
            await until_ready(member)
            await stage.assert_accounted_for(once=False)
        await asyncio.to_thread(cluster.wait_until_whole)

    asyncio.run(story())


def test_a_stop_while_one_of_three_brokers_is_lost_is_in_time_and_loses_nothing(
    cluster: KafkaCluster,
) -> None:
    async def story() -> None:
        async with Stage(Kafka(cluster.bootstrap, replicas=3)) as stage:
            lost: list[KafkaBroker] = []

            async def begin() -> None:
                lost.append(await node(stage, cluster, "coordinator"))
                await kill(lost[0])

            async def end() -> None:
                await start_again(lost[0])

            await stop_in_each(stage, some(None, 87), [("a broker is lost", begin, end)])
        await asyncio.to_thread(cluster.wait_until_whole)

    asyncio.run(story())


async def node(stage: Stage, cluster: KafkaCluster, role: str) -> KafkaBroker:
    """The broker that leads a partition of the stage's topic, or coordinates its group."""
    if role == "coordinator":
        return cluster.brokers[await stage.kafka.coordinator(stage.group)]
    return cluster.brokers[await stage.kafka.leader(stage.topic, 0)]


async def until_ready(member: Member) -> None:
    """Waits until a member says that it is: it asks Kafka every few seconds."""
    async with asyncio.timeout(60):
        while (await member.get("/readyz"))[0] != 200:
            await asyncio.sleep(0.1)


# --- dead letters ---------------------------------------------------------------------------------


@pytest.mark.parametrize("stops", [False, True])
def test_dead_letters_that_cannot_be_written_hold_back_their_own_partition_only(
    broker: KafkaBroker, *, stops: bool
) -> None:
    """Their topic is missing for a minute, and broken records come in partition 0 only."""

    async def story() -> None:
        kafka = Kafka(broker.bootstrap)
        async with Stage(kafka) as stage:
            member = await stage.start()
            async with stage.stream(some(None, 88, broken=0)):
                await stage.until_committed(1_000)
                await kafka.delete_topic(stage.dead_letters)
                await stage.produce(broken(10))
                first = min(one.offset for one in stage.produced if one.record.value == BROKEN)
                await asyncio.sleep(SCALE.outage(60))
                ends = await kafka.end_offsets(stage.topic)
                held = ends.pop((stage.topic, 0))
                async with asyncio.timeout(60):
                    while not (
                        (committed := await kafka.committed(stage.group, stage.topic))
                        and all(committed[partition] >= end for partition, end in ends.items())
                        and "dead letters can't be written" in member.log.read_text()
                    ):
                        await asyncio.sleep(0.2)
                assert committed[stage.topic, 0] <= first < held
                metrics = await member.metrics()
                assert metrics["streamer_dead_letter_write_failures_total",] > 0
                assert (await member.get("/readyz"))[0] == 200
                if stops:
                    await member.stop_in_time()
                    member = await stage.start()
                    await stage.produce(broken(10))
                await kafka.create_topic(stage.dead_letters, partitions=1)
            await stage.until_committed()
            await stage.assert_accounted_for(once=not stops)

    asyncio.run(story())


def test_a_dead_letter_that_kafka_never_takes_is_written_truncated(kafka: Kafka) -> None:
    """A record of 2 MB, and a dead-letter topic that takes 1 MB, as Kafka's topics do by default."""

    async def story() -> None:
        async with Stage(kafka) as stage:
            await kafka.configure_topic(stage.topic, {"max.message.bytes": "3000000"})
            await stage.start()
            records = some(4_000, 89)
            await stage.produce(itertools.islice(records, 2_000))
            await stage.produce([ToProduce(b"huge", b"[" * 2_000_000, int(time.time() * 1000))])
            await stage.produce(records)
            await stage.until_committed()
            await stage.assert_accounted_for(truncated=True)

    asyncio.run(story())


BROKEN = b'{"event_type": "click"'


def broken(count: int) -> Iterator[ToProduce]:
    """Records that can't become calls, all in partition 0."""
    now = int(time.time() * 1000)
    return itertools.repeat(ToProduce(b"broken", BROKEN, now, partition=0), count)
