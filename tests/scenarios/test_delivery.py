"""Events go from Kafka to Segment, through what happens to streams: each story ends in the same assertion."""

from __future__ import annotations

import asyncio
import time
from itertools import islice
from typing import TYPE_CHECKING

import orjson
import pytest

from kafka_broker.topics import Kafka, ToProduce
from reference.interpreter import Interpreter
from streamer.core.mapping import BUILTIN_CALLBACKS, default_mapping
from streamer.mock_segment import Fault
from whole_pipeline import WRITE_KEY, Stage, some

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]  # CI may be slow; a hang still ends


def test_a_hundred_thousand_events_arrive_once_each(kafka: Kafka) -> None:
    async def story() -> None:
        async with Stage(kafka) as stage:
            await stage.produce(some(100_000, seed=1))
            member = await stage.start()
            await stage.until_committed()
            assert (await member.get("/readyz"))[0] == 200
            assert (await member.get("/healthz"))[0] == 200
            await stage.assert_accounted_for()
            assert await member.stop() == 0

    asyncio.run(story())


def test_a_killed_member_loses_nothing_and_the_next_one_doubles_nothing(kafka: Kafka) -> None:
    async def story() -> None:
        async with Stage(kafka) as stage:
            await stage.produce(some(100_000, seed=2))
            member = await stage.start()
            await stage.until_committed(30_000)
            await member.kill()
            assert await stage.committed() < 100_000, "it was killed in the middle"
            await stage.start()
            await stage.until_committed()
            await stage.assert_accounted_for(once=False)
            assert stage.segment.stats.duplicates, "the crash was survived by redelivery"

    asyncio.run(story())


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_segment_says_when_to_come_back_and_nothing_comes_before(kafka: Kafka, form: str) -> None:
    async def story() -> None:
        async with Stage(kafka) as stage:
            records = some(4_000, seed=5)
            await stage.start()
            await stage.produce(islice(records, 2_000))
            await stage.until_committed()
            stage.segment.faults.set(
                Fault(
                    kind="answer", status=429, retry_after_seconds=5, retry_after_form=form, count=1
                )
            )
            before = stage.segment.stats.requests_total
            await stage.produce(records)
            async with asyncio.timeout(30):
                while stage.segment.stats.answers.get("429", 0) < 1:
                    await asyncio.sleep(0.05)
            # The requests that were under way beside the one refused still end; then there is silence.
            await asyncio.sleep(1)
            settled = stage.segment.stats.requests_total
            assert settled - before <= 8
            await asyncio.sleep(2)
            assert stage.segment.stats.requests_total == settled
            await stage.until_committed()
            await stage.assert_accounted_for()

    asyncio.run(story())


def test_the_adaptive_limit_shrinks_while_segment_says_429_and_comes_back(kafka: Kafka) -> None:
    """As `streamer_segment_concurrency_limit` shows it; small batches, so that the limit binds."""

    async def story() -> None:
        slow = Fault(kind="delay", seconds=0.2)
        too_many = Fault(kind="answer", status=429, probability=0.3)
        settings = {"STREAMER_FLUSH__MAX_CALLS": "20", "STREAMER_FLUSH__INTERVAL": "100ms"}
        async with Stage(kafka, settings, faults=[slow]) as stage:
            await stage.produce(some(30_000, seed=9))
            member = await stage.start()

            async def until(reached: Callable[[float], bool]) -> None:
                async with asyncio.timeout(120):
                    while not reached(
                        (await member.metrics())["streamer_segment_concurrency_limit",]
                    ):
                        await asyncio.sleep(0.05)

            await until(lambda limit: limit > 12)
            stage.segment.faults.set(slow, too_many)
            await until(lambda limit: limit <= 4)
            stage.segment.faults.set(slow)
            await until(lambda limit: limit > 12)
            stage.segment.faults.clear()
            await stage.until_committed()
            await stage.assert_accounted_for()

    asyncio.run(story())


def test_one_poisonous_call_in_a_batch_of_2500_is_found_and_its_siblings_arrive(
    kafka: Kafka,
) -> None:
    def click(number: int, kind: str = "click") -> ToProduce:
        visitor = f"visitor-{number}"
        event = {"event_type": kind, "endpoint": {"Id": visitor}}
        return ToProduce(visitor.encode(), orjson.dumps(event), int(time.time() * 1000))

    async def story() -> None:
        records = [click(number) for number in range(6_000)]
        records[2_345] = poisonous = click(2_345, "poison")
        interpreter = Interpreter(WRITE_KEY, default_mapping(), [], BUILTIN_CALLBACKS)
        calls = interpreter.calls(poisonous.value, poisonous.timestamp_ms or -1)
        assert isinstance(calls, list)
        # Batches are closed by nothing but their size.
        async with Stage(
            kafka,
            {"STREAMER_FLUSH__INTERVAL": "5s", "STREAMER_FLUSH__MAX_CALLS": "2500"},
            faults=[Fault(kind="refuse", event="poison")],
        ) as stage:
            await stage.produce(records)
            await stage.start()
            await stage.until_committed()
            assert stage.segment.stats.max_calls == 2_500, "batches were full"
            refusals = stage.segment.stats.answers["400"]
            assert refusals <= 14, "the batch, twelve halvings, and the call alone once more"
            await stage.assert_accounted_for(refused=frozenset({calls[-1]["messageId"]}))

    asyncio.run(story())


def test_what_the_settings_keep_back_is_filtered_accounted_for_and_committed(kafka: Kafka) -> None:
    """Dropped types, users outside of a sample, and keys of traits and properties: none of it reaches Segment."""

    async def story() -> None:
        records = list(some(6_000, seed=8))
        excluded = {
            "drop_events": ["click"],
            "sample": {"pageView": 0.4},
            "drop_traits": ["Email", "country"],
            "drop_properties": ["url"],
        }
        settings = {
            "STREAMER_TRANSFORM__DROP_EVENTS": "click",
            "STREAMER_TRANSFORM__SAMPLE": '{"pageView": 0.4}',
            "STREAMER_TRANSFORM__DROP_TRAITS": "Email,country",
            "STREAMER_TRANSFORM__DROP_PROPERTIES": "url",
        }
        async with Stage(kafka, settings, excluded=excluded) as stage:
            await stage.produce(records)
            member = await stage.start()
            await stage.until_committed()
            await stage.assert_accounted_for()
            metrics = await member.metrics()
            filtered = [
                metrics["streamer_events_settled_total", "filtered", reason]
                for reason in ("dropped_event", "sampled_out")
            ]
            assert min(filtered) > 300
            profiles = [*stage.segment.profiles.values(), *stage.segment.group_profiles.values()]
            assert any("SubscriptionLevel" in traits for traits in profiles)
            assert not any({"Email", "country"} & traits.keys() for traits in profiles)
            assert await member.stop() == 0

    asyncio.run(story())
