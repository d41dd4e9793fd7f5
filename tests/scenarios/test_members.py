"""Members of a group that die, freeze, come and go: what they leave is done by others, once."""

from __future__ import annotations

import asyncio
import random
import time
from itertools import count
from signal import SIGCONT, SIGSTOP, SIGTERM
from typing import TYPE_CHECKING

import orjson
import pytest

from kafka_broker.topics import Kafka, ToProduce
from streamer.mock_segment import Fault
from whole_pipeline import SCALE, Member, Stage, noted, some

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]


async def until_assigned(*members: Member) -> None:
    """Waits until these members share the four partitions, and no others do."""
    async with asyncio.timeout(4 * SCALE.session_seconds + 60):
        while True:
            shares = [(await one.metrics())["streamer_assigned_partitions",] for one in members]
            if all(shares) and sum(shares) == 4:
                return
            await asyncio.sleep(0.1)


def test_members_that_are_killed_one_after_another_lose_and_double_nothing(kafka: Kafka) -> None:
    seed = random.randrange(1 << 32)

    async def story() -> None:
        chance = random.Random(seed)
        async with Stage(kafka) as stage:
            members = [await stage.start() for _ in range(3)]
            async with stage.stream(some(None, 71), per_second=200):
                await stage.until_committed(1_000)
                for _ in range(SCALE.kills):
                    # While the group waits for the last one that died, and while all flows again.
                    await asyncio.sleep(chance.uniform(0, SCALE.session_seconds + 4))
                    await members.pop(chance.randrange(len(members))).kill()
                    members.append(await stage.start())
            await stage.until_committed()
            await stage.assert_accounted_for(once=False)
            await asyncio.gather(*(member.stop_in_time() for member in members))

    with noted(f"seed {seed}"):
        asyncio.run(story())


def test_from_one_member_to_three_and_back_under_load_little_is_sent_twice(kafka: Kafka) -> None:
    async def story() -> None:
        async with Stage(kafka, settings={"STREAMER_FLUSH__INTERVAL": "300ms"}) as stage:
            first = await stage.start()
            async with stage.stream(some(None, 72)):
                await stage.until_committed(1_000)
                second, third = await asyncio.gather(stage.start(), stage.start())
                await until_assigned(first, second, third)
                await stage.until_committed(await stage.committed() + 2_000)
                await asyncio.gather(second.stop_in_time(), third.stop_in_time())
                await until_assigned(first)
            await stage.until_committed()
            await stage.assert_accounted_for(once=False)
            assert stage.segment.stats.duplicates.total() < len(stage.produced) / 20

    asyncio.run(story())


def changing(visitors: int = 50) -> Iterator[ToProduce]:
    """Clicks of a few visitors, each of whom has another trait every time."""
    for number in count():
        visitor = f"visitor-{number % visitors}"
        endpoint = {"Id": visitor, "Attributes": {"lastSession": [f"session-{number}"]}}
        event = {
            "event_type": "click",
            "endpoint": endpoint,
            "session": {"session_id": str(number)},
        }
        yield ToProduce(visitor.encode(), orjson.dumps(event), int(time.time() * 1000) + number)


@pytest.mark.parametrize("then", ["it goes on", "it is stopped"])
def test_a_process_frozen_past_its_session_sends_nothing_more(kafka: Kafka, then: str) -> None:
    """It holds calls when it freezes; another one delivers them, and newer ones, before it wakes up."""

    async def story() -> None:
        async with Stage(kafka) as stage:
            first, second = await stage.start(), await stage.start()
            async with stage.stream(changing()):
                await until_assigned(first, second)
                await stage.until_committed(1_000)
                stage.segment.faults.set(Fault(kind="drop"))
                async with asyncio.timeout(60):
                    while (await first.metrics())["streamer_inflight_events",] < 100:
                        await asyncio.sleep(0.1)
                first.signal(SIGSTOP)
                stage.segment.faults.clear()
                await until_assigned(second)
            await stage.until_committed()
            if then == "it is stopped":
                first.signal(SIGTERM)  # comes when it wakes up
                first.signal(SIGCONT)
                await first.stopped_in_time()
            else:
                first.signal(SIGCONT)
                await until_assigned(first, second)
            await stage.assert_accounted_for(once=False)

    asyncio.run(story())
