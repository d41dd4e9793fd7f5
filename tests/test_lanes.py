"""Many lanes: those that don't deliver leave the others their slots, and memory bounds all; in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from aiokafka import ConsumerRecord
from structlog.testing import capture_logs

import virtual_time
from streamer.config import load_config
from streamer.core.account import Account
from streamer.core.aggregate import Lane, Merging
from streamer.core.batch import Limits
from streamer.core.budget import Budget
from streamer.core.model import Delivered, Formatted, Response, Retry
from streamer.core.offsets import Chunk
from streamer.core.suppression import DIGEST_BYTES
from streamer.delivery import Delivery
from streamer.hooks import Hooks
from streamer.pipeline import Pipeline
from streamer.segment import Answer

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamer.core.batch import Batch

TIMEOUT = 15.0
LATENCY = 0.08
STEP = 0.5
CALL = orjson.dumps({"type": "page", "messageId": "x", "padding": "x" * 4000})
TIMED_OUT = Retry("timeout", "no answer in 15 s")


class FakeSegment:
    """A transport: keys for which `hangs` is true get no answer, the others one after `LATENCY`."""

    def __init__(self, hangs: Callable[[str], bool] = lambda _: False) -> None:
        self.hangs = hangs
        self.latency = LATENCY
        self.attempts: Counter[str] = Counter()
        self.running: Counter[str] = Counter()

    async def attempt(self, write_key: str, body: bytes, tries: int) -> Answer:
        assert body
        assert tries >= 0
        self.attempts[write_key] += 1
        self.running[write_key] += 1
        hangs = self.hangs(write_key)
        try:
            await asyncio.sleep(TIMEOUT if hangs else self.latency)
        finally:
            self.running[write_key] -= 1
        outcome = TIMED_OUT if hangs else Delivered(200)
        return Answer(outcome, Response(200, {}, "{}"), len(body), 0.1)


class World:
    """Delivery with lanes whose calls come steadily.

    Args:
        segment: the transport.
        healthy: how many keys are called `ok-…`.
        failing: how many are called `bad-…`.
        concurrency: of delivery.
    """

    def __init__(
        self, segment: FakeSegment, healthy: int, failing: int, concurrency: int | None
    ) -> None:
        self.accepted: list[tuple[float, float]] = []  # when each healthy call was, and how old
        self.answered_keys: dict[str, float] = {}
        self.segment = segment
        self.keys = [f"ok-{n}" for n in range(healthy)] + [f"bad-{n}" for n in range(failing)]
        random.Random(5).shuffle(self.keys)
        self._ledger = Account().ledger()
        self._share = Budget(10**12).share()
        self._number = 0
        self.delivery = Delivery(
            segment, self, self, concurrency=concurrency, max_requests_per_second=1000,
            interval_seconds=1.0, jitter=random.Random(1),
        )  # fmt: skip
        self.begin()

    def begin(self) -> None:
        self.lanes = {key: self._lane(key) for key in self.keys}

    def _lane(self, key: str) -> Lane:
        lane = Lane(
            write_key=key, limits=Limits(), merging=Merging(), nonce=b"n" * 16, ledger=self._ledger,
            share=self._share,
        )  # fmt: skip
        self.delivery.begin(lane)
        return lane

    def add(self, key: str) -> None:
        now = asyncio.get_running_loop().time()
        chunk = Chunk((key, 0), [self._number], [1], [None], read_at=now)
        self._number += 1
        self.lanes[key].add(Formatted((), "page", CALL), chunk, 0)
        chunk.let_go()

    async def flow(self, seconds: float) -> None:
        """Give each key a call every half second, and leave those that fail with a few."""
        clock = asyncio.get_running_loop().time
        ends = clock() + seconds
        while clock() < ends:
            for key, lane in self.lanes.items():
                if key.startswith("ok") or lane.open is None:
                    self.add(key)
            self.delivery.notify()
            await asyncio.sleep(STEP)

    def calls_since(self, at: float) -> list[float]:
        return sorted(age for when, age in self.accepted if when >= at)

    # What delivery tells.
    def delivered(self, batch: Batch, piece: tuple[int, int], *_: Any) -> None:
        now = asyncio.get_running_loop().time()
        chunks = [batch.chunks[n] for n in batch.chunk_numbers[slice(*piece)]]
        key = chunks[0].partition[0]
        self.answered_keys.setdefault(key, now)
        if key.startswith("ok"):
            self.accepted += [(now, now - chunk.read_at) for chunk in chunks]

    def closed(self, batch: Batch) -> None: ...
    def attempted(self, *_: Any) -> None: ...
    def refused(self, *_: Any) -> None: ...
    def answered(self, *_: Any) -> None: ...
    def settled(self, batch: Batch) -> None: ...
    def progressed(self) -> None: ...


def run(main: Any) -> None:
    with capture_logs():
        virtual_time.run(main)


@pytest.mark.parametrize(
    ("concurrency", "delivered_before", "found_out"),
    [(None, False, 60), (None, True, 120), (4, False, 60), (4, True, 240)],
)
def test_five_hundred_keys_that_time_out_do_not_slow_the_others(
    concurrency: int | None, delivered_before: bool, found_out: int
) -> None:
    """Once it is known who doesn't deliver, the others' calls are as early as without; none is left behind."""

    async def main() -> None:
        over = False
        segment = FakeSegment(lambda key: over and key.startswith("bad"))
        world = World(segment, 20, 500, concurrency)
        running = asyncio.create_task(world.delivery.run())
        if delivered_before:
            await world.flow(20)
        over = True
        begins = asyncio.get_running_loop().time()
        await world.flow(found_out + 60)
        made = 20 * (found_out + 60) / STEP
        assert len(world.calls_since(begins)) > 0.97 * made
        ages = world.calls_since(begins + found_out)
        assert ages[len(ages) * 99 // 100] < 2.0
        flowing = [one for one in world.delivery.served if one.flowing]
        assert len(flowing) >= 20
        running.cancel()

    run(main())


def test_requests_beside_the_limit_are_one_a_key_and_bounded() -> None:
    async def main() -> None:
        segment = FakeSegment(lambda _: True)
        world = World(segment, 0, 500, 4)
        running = asyncio.create_task(world.delivery.run())
        most = 0
        for _ in range(60):
            await world.flow(1)
            most = max(most, sum(segment.running.values()))
            assert max(segment.running.values(), default=0) <= 4
        assert most == 192, "each is a key of which nobody knows"
        running.cancel()

    run(main())


def test_new_keys_that_deliver_get_every_slot_that_is_free() -> None:
    async def main() -> None:
        world = World(FakeSegment(), 1000, 0, 8)
        running = asyncio.create_task(world.delivery.run())
        begins = asyncio.get_running_loop().time()
        for key in world.keys:
            world.add(key)
        world.delivery.notify()
        await asyncio.sleep(20)
        assert len(world.answered_keys) == 1000
        took = max(world.answered_keys.values()) - begins
        assert took < 1.0 + 1000 * LATENCY / 8 + 1
        running.cancel()

    run(main())


def test_a_new_key_is_served_beside_hundreds_that_fail() -> None:
    async def main() -> None:
        segment = FakeSegment(lambda key: key.startswith("bad"))
        world = World(segment, 4, 200, 8)
        running = asyncio.create_task(world.delivery.run())
        await world.flow(120)
        world.keys.append("ok-new")
        world.lanes["ok-new"] = world._lane("ok-new")
        begins = asyncio.get_running_loop().time()
        await world.flow(20)
        assert world.answered_keys["ok-new"] - begins < 18
        running.cancel()

    run(main())


def test_if_all_are_slow_nobody_is_given_up() -> None:
    """That an answer takes five seconds is no fault of its key where no other key gets one sooner."""

    async def main() -> None:
        segment = FakeSegment()
        world = World(segment, 12, 0, 8)
        running = asyncio.create_task(world.delivery.run())
        await world.flow(10)
        segment.latency = 5.0
        begins = asyncio.get_running_loop().time()
        await world.flow(60)
        assert all(one.flowing for one in world.delivery.served)
        assert len(world.calls_since(begins)) > 12 * 60 / STEP * 0.6
        running.cancel()

    run(main())


def test_a_lone_key_is_waited_for_however_slow() -> None:
    async def main() -> None:
        segment = FakeSegment()
        segment.latency = 14.0
        world = World(segment, 1, 0, 1)
        running = asyncio.create_task(world.delivery.run())
        await world.flow(60)
        assert segment.attempts["ok-0"] == 4 + 1
        assert world.delivery.served[0].proven
        assert len(world.accepted) > 60
        running.cancel()

    run(main())


# --- memory ---------------------------------------------------------------------------------------


def test_batches_that_close_before_a_long_interval_is_over_leave_nothing_behind() -> None:
    """Each open one has its time; most are full hours before that."""

    async def main() -> None:
        world = World(FakeSegment(), 3, 0, 8)
        world.delivery.interval_seconds = 24 * 3600.0
        running = asyncio.create_task(world.delivery.run())
        for _ in range(200):
            for key, lane in world.lanes.items():
                world.add(key)
                world.delivery.notify()
                await asyncio.sleep(0.001)
                lane.close("calls", asyncio.get_running_loop().time())
            world.delivery.notify()
            await asyncio.sleep(LATENCY * 2)
        assert len(world.accepted) == 600
        assert len(world.delivery._timers) < 300
        running.cancel()

    run(main())


def make_pipeline(segment: FakeSegment, sites: int, **settings: str) -> Pipeline:
    keys = {str(site): f"ok-{site}" for site in range(sites)}
    variables = {
        "segment__write_key": "ok",
        "segment__endpoint": "http://127.0.0.1:9/v1/batch",
        "segment__sites__field": "attributes.blogId",
        "segment__sites__write_keys": orjson.dumps(keys).decode(),
        "kafka__bootstrap_servers": "127.0.0.1:9",
        **settings,
    }
    environ = {f"STREAMER_{name.upper()}": value for name, value in variables.items()}
    pipeline = Pipeline(load_config(None, {}, environ), Hooks())
    pipeline._delivery._transport = segment
    pipeline._source._lease.until = float("inf")  # there is no group that would confirm it
    pipeline.assigned(frozenset({("events", 0)}))
    return pipeline


def records(start: int, count: int, sites: int, padding: int) -> list[ConsumerRecord[Any, Any]]:
    def value(number: int) -> bytes:
        return orjson.dumps(
            {
                "event_type": "pageView",
                "endpoint": {
                    "Id": f"visitor-{number}",
                    "Attributes": {"Note": ["x" * padding]},
                },
                "attributes": {"blogId": str(number % sites)},
            }
        )

    return [
        ConsumerRecord(
            topic="events", partition=0, offset=number, timestamp=1_700_000_000_000,
            timestamp_type=0, key=None, value=value(number), checksum=None, serialized_key_size=0,
            serialized_value_size=0, headers=(),
        )
        for number in range(start, start + count)
    ]  # fmt: skip


def test_a_thousand_open_lanes_with_a_long_interval_do_not_stop_reading() -> None:
    """Batches close for memory, and reading goes on, long before any interval is over."""

    async def main() -> None:
        sites = 999
        segment = FakeSegment()
        pipeline = make_pipeline(segment, sites, flush__interval="10m")
        running = asyncio.create_task(pipeline._delivery.run())
        clock = asyncio.get_running_loop().time
        begins, waited = clock(), 0.0
        for read in range(40):
            if pipeline.full:
                since = clock()
                async with asyncio.timeout(60):
                    await pipeline.room()
                waited += clock() - since
            await pipeline.read([(("events", 0), records(read * 500, 500, sites, 300))])
            await asyncio.sleep(0.5)
        assert waited < 20
        assert clock() - begins < 60
        assert len(segment.attempts) > 500
        triggers = {
            sample.labels["trigger"]
            for family in pipeline.registry.collect()
            for sample in family.samples
            if sample.name == "streamer_batches_closed_total" and sample.value
        }
        assert triggers == {"memory"}
        assert pipeline._budget.peak < pipeline._budget.limit * 1.2
        await pipeline.revoked()
        await pipeline.ended()
        assert pipeline._budget.used == 0
        assert pipeline.account.balance() == []
        running.cancel()

    run(main())


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happened_nothing_stays_in_the_budget(seed: int) -> None:
    """Time-outs, pauses, refusals, dead letters that aren't acknowledged; then all is well, or the generation ends."""

    async def main() -> None:
        chance = random.Random(seed)
        ill = True
        segment = FakeSegment(lambda _: ill and chance.random() < 0.3)
        pipeline = make_pipeline(segment, 5, flush__max_bytes="33000", aggregate__suppress_for="1m")
        running = asyncio.create_task(pipeline._delivery.run())
        offset = 0
        for _ in range(30):
            batch = records(offset, chance.randrange(1, 60), 5, chance.randrange(2000))
            offset += len(batch)
            await pipeline.read([(("events", 0), batch)])
            await asyncio.sleep(chance.random() * 3)
        assert pipeline._budget.used > 0
        ill = False
        if seed % 2:
            async with asyncio.timeout(600):
                while pipeline.account.in_flight:
                    await asyncio.sleep(1)
            assert pipeline._generation is not None
            remembered = DIGEST_BYTES * len(pipeline._generation.digests)
            assert 0 <= pipeline._budget.used - remembered < 5 * 5000, "a witness for each lane"
            assert pipeline.account.delivered == offset
        await pipeline.revoked()
        await pipeline.ended()
        assert pipeline._budget.used == 0
        assert pipeline.account.balance() == []
        running.cancel()

    run(main())
