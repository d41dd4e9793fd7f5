"""Site code and sites, in members of a real group: each story ends in what Segment accepted of what was produced."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING

import orjson
import pytest

from kafka_broker.topics import Kafka, ToProduce
from reference.interpreter import Interpreter
from streamer.core.mapping import BUILTIN_CALLBACKS, default_mapping
from streamer.demo.events import generate
from streamer.mock_segment import Fault, digest
from whole_pipeline import WRITE_KEY, Stage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

RUDE = """
import asyncio, time
from streamer import hooks

@hooks.filter("altis.analytics.segment.api_write_key")
async def same_key(key, event):
    await asyncio.sleep(0)
    return key

@hooks.filter("altis.analytics.segment.formatted_data")
def same_calls(data):
    time.sleep(0.005)
    return data

@hooks.action("altis.analytics.segment.request_success")
def raises(response, batch):
    raise RuntimeError(response.status)

@hooks.action("altis.analytics.segment.request_failure")
async def hangs(response, batch):
    await asyncio.sleep(3600)

@hooks.action("altis.analytics.segment.after_send")
def blocks(results, batches, events):
    time.sleep(0.5)
"""


def some(count: int, seed: int) -> Iterator[ToProduce]:
    now = int(time.time() * 1000)
    for event in islice(generate(seed, broken=0.002, missing_ids=0.002), count):
        yield ToProduce(event.key, event.value, now)


def test_handlers_that_change_nothing_change_nothing_however_rude_actions_are(
    kafka: Kafka, tmp_path: Path
) -> None:
    async def story() -> None:
        (tmp_path / "rude.py").write_text(RUDE)
        settings = {
            "PYTHONPATH": str(tmp_path),
            "STREAMER_PLUGINS": "rude",
            "STREAMER_HOOK_TIMEOUT": "2s",
            "STREAMER_SHUTDOWN_TIMEOUT": "10s",
        }
        async with Stage(kafka, settings) as stage:
            await stage.produce(some(15_000, seed=51))
            member = await stage.start()
            await stage.until_committed(5_000)
            await member.kill()
            member = await stage.start()
            await stage.until_committed()
            await stage.assert_accounted_for(once=False)
            metrics = await member.metrics()
            assert metrics["streamer_hook_failures_total", "request_success", "raised"] > 0
            assert await member.stop() == 0

    asyncio.run(story())


def test_every_site_goes_to_its_own_key_once_and_one_without_a_key_goes_nowhere(
    kafka: Kafka,
) -> None:
    async def story() -> None:
        keys = {"1": "key-of-site-1", "2": "key-of-site-2", "3": ""}
        settings = {
            "STREAMER_SEGMENT__SITES__WRITE_KEYS": orjson.dumps(keys).decode(),
            "STREAMER_GROUPS": "[]",
        }
        async with Stage(kafka, settings) as stage:
            records = list(some(10_000, seed=52))
            await stage.produce(records)
            member = await stage.start()
            await stage.until_committed()
            expected: Counter[tuple[str, str]] = Counter()
            kept_back = 0
            for record in records:
                try:
                    blog = orjson.loads(record.value or b"")["attributes"].get("blogId")
                except orjson.JSONDecodeError:
                    continue
                key = keys.get(blog, WRITE_KEY)
                kept_back += not key
                calls = Interpreter(key, default_mapping(), [], BUILTIN_CALLBACKS).calls(
                    record.value, record.timestamp_ms or -1
                )
                if key and isinstance(calls, list):
                    expected[digest(key), calls[-1]["messageId"]] += 1
            found = Counter(
                (line.key_digest, line.message_id)
                for line in stage.segment.lines
                if line.type in ("page", "track") and line.fate == "accepted"
            )
            assert found == expected
            assert len({key for key, _ in found}) > 1
            metrics = await member.metrics()
            outcome = "streamer_events_settled_total", "filtered", "no_write_key"
            assert metrics[outcome] == kept_back > 0
            assert not stage.segment.stats.discarded
            log = member.log.read_text()
            assert not [key for key in (*keys.values(), WRITE_KEY) if key and key in log]
            assert await member.stop() == 0

    asyncio.run(story())


STUBBORN = """
import asyncio, sys
from streamer import hooks

@hooks.filter("altis.analytics.segment.formatted_data")
async def never_ends(data):
    while True:
        try:
            await asyncio.sleep(3600)
        except BaseException:
            pass

@hooks.action("altis.analytics.segment.request_success")
async def never_ends_either(response, batch):
    await never_ends(batch)
"""


def test_a_handler_that_nothing_ends_holds_no_stop_back_and_its_records_are_kept(
    kafka: Kafka, tmp_path: Path
) -> None:
    async def story() -> None:
        (tmp_path / "stubborn.py").write_text(STUBBORN)
        settings = {
            "PYTHONPATH": str(tmp_path),
            "STREAMER_PLUGINS": "stubborn",
            "STREAMER_HOOK_TIMEOUT": "500ms",
            "STREAMER_SHUTDOWN_TIMEOUT": "5s",
        }
        async with Stage(kafka, settings) as stage:
            await stage.produce(some(20, seed=53))
            member = await stage.start()
            await stage.until_committed()
            letters = await kafka.read(stage.dead_letters)
            assert len(letters) == 20
            assert member.process is not None
            async with asyncio.timeout(20):
                assert await member.stop() == 0
            assert "left behind" in member.log.read_text()

    asyncio.run(story())


def test_a_key_that_is_refused_for_too_long_holds_no_commit_of_the_others_back(
    kafka: Kafka,
) -> None:
    async def story() -> None:
        settings = {
            "STREAMER_SEGMENT__SITES__WRITE_KEYS": '{"2": "a-dead-key"}',
            "STREAMER_SEGMENT__MAX_HOLD": "4s",
            "STREAMER_GROUPS": "[]",
        }
        dead = Fault(kind="answer", status=401, key_digest=digest("a-dead-key"))
        async with Stage(kafka, settings, faults=[dead]) as stage:
            records = list(some(1_000, seed=54))
            await stage.produce(records)
            member = await stage.start()
            flowing = asyncio.create_task(_keep_flowing(stage))
            try:
                await stage.until_committed(len(records))
            finally:
                flowing.cancel()
            await stage.until_committed()
            letters = await kafka.read(stage.dead_letters)
            reasons = Counter(dict(one.headers)["streamer-reason"] for one in letters)
            assert reasons[b"destination_unavailable"] > 100
            found = {line.key_digest for line in stage.segment.lines if line.fate == "accepted"}
            assert found == {digest(WRITE_KEY)}
            metrics = await member.metrics()
            settled = sum(n for k, n in metrics.items() if k[0] == "streamer_events_settled_total")
            assert settled == metrics["streamer_events_consumed_total", stage.topic]
            assert await member.stop() == 0

    asyncio.run(story())


async def _keep_flowing(stage: Stage) -> None:
    """Produce an event a second of a site that is well: only while others deliver is one key given up."""
    for number in range(120):
        event = {
            "event_type": "click",
            "endpoint": {"Id": f"steady-{number}"},
            "attributes": {"blogId": "1"},
        }
        await stage.produce([ToProduce(b"steady", orjson.dumps(event), int(time.time() * 1000))])
        await asyncio.sleep(1)
