"""Many lanes: those that don't deliver leave the others their slots, and memory bounds all; in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from aiokafka import ConsumerRecord
from structlog.testing import capture_logs

from fake_segment import LATENCY, OK, FakeSegment, clock
from streamer import virtual_time
from streamer.config import load_config
from streamer.core.account import Account
from streamer.core.aggregate import Lane, Merging
from streamer.core.batch import Limits
from streamer.core.budget import Budget
from streamer.core.model import (
    Contribution,
    Delivered,
    Formatted,
    Misconfigured,
    Reason,
    Refused,
    Response,
    Retry,
)
from streamer.core.offsets import Chunk
from streamer.core.suppression import DIGEST_BYTES
from streamer.delivery import Delivery
from streamer.hooks import Hooks
from streamer.pipeline import Pipeline
from streamer.segment import Answer

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamer.core.batch import Batch
    from streamer.core.model import Outcome

TIMEOUT = 15.0
STEP = 0.5
CALL = b'{"type": "page", "messageId": "%d", "padding": "' + b"x" * 4000 + b'"}'
TIMED_OUT = Retry("timeout", "no answer in 15 s")


def hanging(ill: Callable[[str], bool]) -> FakeSegment:
    """Segment that leaves requests for some keys unanswered."""
    segment = FakeSegment(lambda one: TIMED_OUT if clock() - one.at > TIMEOUT - 0.5 else OK)
    segment.latency = lambda one: TIMEOUT if ill(one.key) else LATENCY
    return segment


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
        self.lanes[key].add(Formatted((), "page", CALL % self._number), chunk, 0)
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
    [
        (None, False, 60),
        pytest.param(None, True, 120, marks=pytest.mark.no_cover),
        (4, False, 60),
        pytest.param(4, True, 240, marks=pytest.mark.no_cover),
    ],
)
def test_five_hundred_keys_that_time_out_do_not_slow_the_others(
    concurrency: int | None, delivered_before: bool, found_out: int
) -> None:
    """Once it is known who doesn't deliver, the others' calls are as early as without; none is left behind."""

    async def main() -> None:
        over = False
        segment = hanging(lambda key: over and key.startswith("bad"))
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
        segment = hanging(lambda _: True)
        world = World(segment, 0, 500, 4)
        running = asyncio.create_task(world.delivery.run())
        most = 0
        for _ in range(60):
            await world.flow(1)
            most = max(most, len(segment.running))
            assert max(Counter(one.key for one in segment.running).values(), default=0) <= 4
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
        segment = hanging(lambda key: key.startswith("bad"))
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
        segment.latency = lambda _: 5.0
        begins = asyncio.get_running_loop().time()
        await world.flow(60)
        assert all(one.flowing for one in world.delivery.served)
        assert len(world.calls_since(begins)) > 12 * 60 / STEP * 0.6
        running.cancel()

    run(main())


def test_a_lone_key_is_waited_for_however_slow() -> None:
    async def main() -> None:
        segment = FakeSegment()
        segment.latency = lambda _: 14.0
        world = World(segment, 1, 0, 1)
        running = asyncio.create_task(world.delivery.run())
        await world.flow(60)
        assert len(segment.attempts) == 4 + 1
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
        assert len(world.delivery._queues) < 300
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


@pytest.mark.no_cover
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
        assert len({one.key for one in segment.attempts}) > 500
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
        segment = hanging(lambda _: ill and chance.random() < 0.3)
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


# --- everything at once ---------------------------------------------------------------------------

MODES = ["ok", "ok", "ok", "flaky", "hang", "503", "429", "401"]
ANSWERS: dict[str, Outcome] = {
    "503": Retry("server_error", "503", 503),
    "429": Retry("rate_limited", "429", 429, after_seconds=20.0),
    "401": Misconfigured(401, "who are you"),
}


class Turmoil:
    """Delivery with few or many lanes, all of which may fail in every way, and what it says of them.

    Args:
        seed: of everything that is left to chance.
    """

    def __init__(self, seed: int) -> None:
        self.chance = chance = random.Random(seed)
        self.keys = [f"key-{number}" for number in range(chance.choice([1, 2, 3, 40]))]
        self.modes: dict[str, str] = {}
        self.certain = True
        self.made: dict[str, bool] = {}  # ids of this generation's page calls; whether one is bad
        self.accepted: set[str] = set()
        self.refusals: dict[str, Reason] = {}
        self.account = Account()
        self.budget = Budget(chance.choice([100_000, 10_000_000]))
        self.delivery = Delivery(
            self, self, self, concurrency=chance.choice([None, 1, 4]),
            max_requests_per_second=chance.choice([10, 1000]), interval_seconds=1.0,
            max_hold_seconds=chance.choice([60.0, 6 * 3600.0]), may_send=lambda: self.certain,
            jitter=random.Random(seed),
        )  # fmt: skip
        self.starts, self._start = 0, self.delivery._start
        self.delivery._start = self.start  # type: ignore[method-assign]
        self.begin()

    def begin(self) -> None:
        self.lanes: dict[str, Lane] = {}
        self.ledger, self.share = self.account.ledger(), self.budget.share()
        self.made.clear()

    def start(self, group: asyncio.TaskGroup, now: float) -> float:
        self.starts += 1
        due = self._start(group, now)
        assert due > now
        return due

    async def attempt(self, write_key: str, body: bytes, tries: int) -> Answer:
        assert tries >= 0
        calls = orjson.loads(body)["batch"]
        mode = self.modes.get(write_key, "ok")
        if mode == "flaky":
            mode = self.chance.choice(MODES)
        await asyncio.sleep(TIMEOUT if mode == "hang" else self.chance.uniform(0.02, 0.3))
        outcome = TIMED_OUT if mode == "hang" else ANSWERS.get(mode, Delivered(200))
        if isinstance(outcome, Delivered):
            if any("bad" in call for call in calls):
                outcome = Refused(400, "bad")
            else:
                ids = {call["messageId"] for call in calls}
                assert not ids & self.refusals.keys()
                assert len(calls) == 1 or not ids & self.accepted, "only a witness comes again"
                self.accepted |= ids
        return Answer(outcome, Response(200, {}, "{}"), len(body), 0.1)

    def add(self, key: str) -> None:
        now = asyncio.get_running_loop().time()
        if key not in self.lanes:
            lane = self.lanes[key] = Lane(
                write_key=key, limits=Limits(max_calls=12, max_bytes=40_000), merging=Merging(),
                nonce=b"n" * 16, ledger=self.ledger, share=self.share,
            )  # fmt: skip
            self.delivery.begin(lane)
        chunk = Chunk((key, 0), [0], [1], [None], read_at=now)
        self.ledger.consumed("events", 1, 1)
        number = self.account.consumed.total()
        said = []
        if self.chance.random() < 0.5:
            user = self.chance.choice("abc")
            call = {"type": "identify", "messageId": "", "userId": user, "traits": None}
            own_hash = blake2b(b"%d" % number, digest_size=16)
            said = [
                Contribution("identify", user, (user, None), call, {"n": 1}, b'{"n":1}', own_hash)
            ]
            self.ledger.made("identify")
        bad = self.chance.random() < 0.06
        page = {"type": "page", "messageId": f"page-{number}", **({"bad": 1} if bad else {})}
        page["padding"] = "x" * self.chance.choice([10, 200, 2000])
        self.ledger.made("page")
        self.made[f"page-{number}"] = bad
        self.lanes[key].add(Formatted(tuple(said), "page", orjson.dumps(page)), chunk, 0)
        chunk.let_go()

    async def flow(self) -> None:
        chance = self.chance
        for _ in range(chance.randrange(1, 8)):
            for key in chance.sample(self.keys, chance.randrange(1, len(self.keys) + 1)):
                for _ in range(chance.choice([1, 1, 1, 14])):
                    if not self.budget.spent:
                        self.add(key)
            self.delivery.notify()
            await asyncio.sleep(chance.choice([0.01, 0.3, 1, 5, 40]))

    async def trouble(self) -> None:
        """Do one of the things that happen to it from outside."""
        delivery, chance = self.delivery, self.chance
        match chance.randrange(8):
            case 0:
                delivery.tune(
                    concurrency=chance.choice([None, 1, 4, 64]),
                    max_requests_per_second=chance.choice([5, 1000]),
                    interval_seconds=chance.choice([0.2, 1, 30, 600]),
                )
            case 1:
                await delivery.drain("rebalance", chance.choice([0.0, 0.5, 5]))
            case 2:
                self.certain = False
                await asyncio.sleep(chance.choice([0.1, 5, 60]))
                self.certain = True
                delivery.notify()
            case 3:
                await delivery.end()
                self.assert_counted(under_way=0)
                self.ledger.end()
                self.share.end()
                assert self.budget.used == 0
                self.begin()
            case 4:
                self.keys.append(f"key-{len(self.keys)}")

    def assert_counted(self, under_way: int | None = None) -> None:
        delivery, attempts = self.delivery, list(self.delivery._attempts.values())
        regular = sum(attempt.regular for attempt in attempts)
        assert delivery.in_flight == len(attempts)
        assert under_way in {None, len(attempts)}
        assert (delivery._regular, delivery._doubtful) == (regular, len(attempts) - regular)
        assert delivery._probing == sum(attempt.permit.probe for attempt in attempts)

    async def look(self) -> None:
        """See again and again that what is counted is there, and that nobody waits who may be sent."""
        delivery, clock = self.delivery, asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(self.chance.uniform(0.05, 0.5))
            for _ in range(12):  # so that all that is due now has its turn
                await asyncio.sleep(0)
            self.assert_counted()
            proven = {one for one in delivery.served if one.proven}
            assert delivery._proven == proven
            if not self.certain or delivery._rate.ready_at(clock()) > clock():
                continue
            for route in delivery._routes.values():
                one = route.destination
                if delivery._next(route, clock())[0] is None:
                    continue
                if not one.flowing:
                    assert delivery._probing >= max(1, delivery.concurrency // 4)
                elif one.proven:
                    assert delivery._regular >= delivery.concurrency
                elif one.attempts:
                    assert proven or delivery.in_flight >= delivery.concurrency
                else:
                    assert delivery._doubtful >= 192

    async def end_well(self) -> None:
        """All is well from now on; lanes that know of no call but bad ones get others, as witnesses."""
        clock = asyncio.get_running_loop().time
        self.modes.clear()
        self.delivery.tune(concurrency=None, max_requests_per_second=1000, interval_seconds=1.0)
        ends = clock() + 1800
        while not all(lane.idle for lane in self.lanes.values()):
            assert clock() < ends
            await asyncio.sleep(60)
            for key, lane in self.lanes.items():
                if not lane.idle and clock() < ends - 900:
                    self.add(key)
            self.delivery.notify()
        self.assert_counted(under_way=0)
        assert self.account.balance() == []
        assert self.account.in_flight == 0
        assert self.budget.used <= 4096 * len(self.lanes), "a witness for each lane"
        for name, bad in self.made.items():
            reason = self.refusals.get(name)
            assert (name in self.accepted) is (reason is None)
            assert reason is not Reason.REFUSED or bad
            assert not bad or reason is not None

    # What delivery tells.
    def refused(
        self, lane: Lane, batch: Batch, place: int, detail: str, reason: Reason = Reason.REFUSED
    ) -> None:
        assert detail
        call = orjson.loads(batch.calls[place])
        assert call["messageId"] not in self.accepted | self.refusals.keys()
        self.refusals[call["messageId"]] = reason
        lane.ledger.refused(call["type"], reason if batch.decides(place) else None)

    def delivered(self, *_: Any) -> None: ...
    def closed(self, batch: Batch) -> None: ...
    def attempted(self, *_: Any) -> None: ...
    def answered(self, *_: Any) -> None: ...
    def settled(self, batch: Batch) -> None: ...
    def progressed(self) -> None: ...


@pytest.mark.parametrize("seed", range(9))
def test_whatever_happens_nobody_waits_who_may_be_sent_and_all_ends_well(seed: int) -> None:
    """Every failure, other settings, drains, lost leases and generations that end, in an order by chance."""

    async def main() -> None:
        turmoil = Turmoil(seed)
        clock = asyncio.get_running_loop().time
        begins = clock()
        running = asyncio.create_task(turmoil.delivery.run())
        looking = asyncio.create_task(turmoil.look())
        for _ in range(15):
            for key in turmoil.keys:
                if turmoil.chance.random() < 0.3:
                    turmoil.modes[key] = turmoil.chance.choice(MODES)
            await turmoil.flow()
            await turmoil.trouble()
        await turmoil.end_well()
        assert turmoil.starts < 20 * (clock() - begins), "it doesn't spin"
        for task in (running, looking):
            task.cancel()
        with pytest.raises(asyncio.CancelledError):  # what ended one of them before is raised here
            await asyncio.gather(running, looking)

    run(main())
