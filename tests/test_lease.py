"""Who may have lost its partitions sends nothing more: delivery in virtual time, and members that were suspended."""

from __future__ import annotations

import asyncio
import signal
import time
from itertools import islice
from typing import TYPE_CHECKING

import pytest

from fake_segment import OK, FakeSegment, clock
from kafka_broker.topics import Kafka, ToProduce
from streamer.demo.events import generate
from test_delivery import HOUR, UNAUTHORIZED, UNAVAILABLE, Rig, names, tell
from whole_pipeline import Member, Stage

if TYPE_CHECKING:
    from streamer.core.model import Outcome

RECORDS = 200
"""Fewer than fill a batch: what a member has read waits for its interval."""


# --- delivery -------------------------------------------------------------------------------------


def test_nothing_is_started_while_it_may_not_be_sent_and_all_of_it_once_it_may_again() -> None:
    """Neither what is due, nor what is full, nor a retry; what was under way is heard to its end."""
    certain = True
    outcomes: dict[str, Outcome] = {"retried": UNAVAILABLE}

    async def story() -> None:
        nonlocal certain
        segment = FakeSegment(lambda attempt: outcomes.get(attempt.ids[0], OK))
        async with Rig(segment, may_send=lambda: certain) as rig:
            lane = rig.lane()
            rig.add(lane, "retried")
            await asyncio.sleep(1.05)  # it is under way
            certain = False
            rig.add(lane, *names("held", 6_000))  # more than two batches
            await asyncio.sleep(HOUR)
            assert [attempt.ids for attempt in segment.attempts] == [["retried"]]
            assert rig.notes.outcomes == [UNAVAILABLE]
            outcomes.clear()
            certain = True
            rig.delivery.notify()
            await rig.idle(lane)
            assert sorted(segment.accepted) == sorted(["retried", *names("held", 6_000)])
            rig.assert_settled()

    tell(story)


def test_a_drain_that_may_not_send_waits_for_what_is_under_way_alone() -> None:
    certain = True

    async def story() -> None:
        nonlocal certain
        async with Rig(FakeSegment(), may_send=lambda: certain) as rig:
            lane = rig.lane()
            rig.add(lane, "under way")
            await asyncio.sleep(1.05)
            rig.add(lane, "held")
            certain = False
            started = clock()
            assert not await rig.delivery.drain("rebalance", 5.0)
            assert clock() - started < 1.0
            assert rig.segment.accepted == ["under way"]
            await rig.delivery.end()
            assert len(rig.segment.attempts) == 1
            lane.ledger.end()

    tell(story)


def test_a_drain_ends_when_the_membership_does() -> None:
    """What waits for another try then isn't this process's to send any more."""
    certain = True

    async def story() -> None:
        nonlocal certain
        segment = FakeSegment(lambda _: UNAVAILABLE)
        async with Rig(segment, may_send=lambda: certain) as rig:
            lane = rig.lane()
            rig.add(lane, "a")
            while not segment.attempts:
                await asyncio.sleep(0.1)
            draining = asyncio.create_task(rig.delivery.drain("rebalance", HOUR))
            await asyncio.sleep(120)  # backing off, up to a minute between two tries
            assert not draining.done()
            certain = False
            attempts = len(segment.attempts)
            assert await asyncio.wait_for(draining, 120) is False
            assert len(segment.attempts) <= attempts + 1

    tell(story)


def test_no_probe_is_sent_and_nothing_is_given_up_while_it_may_not_be_sent() -> None:
    """A write key is held for longer than `max_hold` while others deliver; then the membership ends."""
    certain = True

    async def story() -> None:
        nonlocal certain
        segment = FakeSegment(lambda attempt: UNAUTHORIZED if attempt.key == "bad" else OK)
        async with Rig(segment, may_send=lambda: certain, max_hold_seconds=HOUR) as rig:
            bad, good = rig.lane("bad"), rig.lane("good")
            rig.add(bad, "a")
            await asyncio.sleep(5)
            rig.add(good, "b")
            await rig.idle(good)
            certain = False
            attempts = len(segment.attempts)
            await asyncio.sleep(2 * HOUR)
            assert len(segment.attempts) == attempts
            assert rig.notes.refusals == []
            certain = True
            rig.delivery.notify()
            await rig.idle(bad)
            assert rig.notes.convicted == ["a"], "now it is"
            rig.assert_settled()

    tell(story)


# --- members ----------------------------------------------------------------------------------------


def some(start: int) -> list[ToProduce]:
    """Events of which calls can be made, from one of them on."""
    now = int(time.time() * 1000)
    events = islice(generate(3), start, start + RECORDS)
    return [ToProduce(event.key, event.value, now) for event in events]


async def until_ready(member: Member) -> None:
    async with asyncio.timeout(60):
        while (await member.get("/readyz"))[0] != 200:
            await asyncio.sleep(0.1)


@pytest.mark.e2e
@pytest.mark.timeout(300)
def test_a_member_that_was_suspended_for_longer_than_its_session_sends_nothing_of_what_it_held(
    kafka: Kafka,
) -> None:
    """Another one has sent it meanwhile: the zombie would send it again, when it is due or when its partitions go."""

    async def story() -> None:
        settings = {"STREAMER_FLUSH__INTERVAL": "10s"}
        async with Stage(kafka, settings=settings) as stage:
            zombie = await stage.start()
            await until_ready(zombie)
            await stage.produce(some(0))
            async with asyncio.timeout(10):
                while (await zombie.metrics())["streamer_inflight_events",] < RECORDS:
                    await asyncio.sleep(0.05)
            zombie.signal(signal.SIGSTOP)
            assert stage.segment.stats.requests_total == 0, "the test was too slow"
            await stage.start(STREAMER_FLUSH__INTERVAL="1s")
            await stage.until_committed()
            requests = stage.segment.stats.requests_total
            zombie.signal(signal.SIGCONT)
            async with asyncio.timeout(60):
                while (await zombie.metrics())["streamer_events_released_total",] < RECORDS:
                    await asyncio.sleep(0.1)
            assert stage.segment.stats.requests_total == requests
            assert stage.segment.stats.duplicates_total == 0
            assert "membership in the consumer group isn't certain" in zombie.log.read_text()
            await until_ready(zombie)  # it is a member again, and sends its share of what comes
            await stage.produce(some(RECORDS))
            await stage.until_committed()
            for member in stage.members:
                assert (await member.metrics())["streamer_calls_total", "delivered", "page"] > 0
            await stage.assert_accounted_for(once=False)

    asyncio.run(story())
