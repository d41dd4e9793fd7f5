"""The whole pipeline under any interleaving of what Kafka, Segment and the dead letters' topic can do to it.

Members are real: `Pipeline.run` with its source, lanes, delivery and dead letters. What stands around them is played,
in virtual time: a consumer group in place of aiokafka's consumer, Segment's judge behind a transport that misbehaves,
and a sink for dead letters that fails. What the records should become is read off the mapping's specification.
"""

from __future__ import annotations

import asyncio
import random
import sys
from base64 import b64encode
from collections import Counter, deque
from contextlib import ExitStack, asynccontextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self
from unittest.mock import patch

import orjson
import pytest
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError
from aiokafka.protocol.group import HeartbeatRequest, SyncGroupRequest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from structlog.testing import capture_logs

from reference.interpreter import Interpreter
from streamer import pipeline as pipeline_module
from streamer import source as source_module
from streamer.config import load_config
from streamer.core.mapping import BUILTIN_CALLBACKS, default_mapping
from streamer.core.model import FilterReason, Reason, Response, Retry
from streamer.core.suppression import DIGEST_BYTES
from streamer.delivery import Delivery
from streamer.hooks import Hooks
from streamer.mock_segment.judge import Judge
from streamer.mock_segment.request import Request
from streamer.pipeline import Pipeline, make_transform
from streamer.segment import Answer, classify
from streamer.virtual_time import VirtualTimeLoop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping, Sequence

    from aiokafka import ConsumerRebalanceListener

    from streamer.config import Config
    from streamer.core.model import DeadLetter, Outcome, Partition
    from streamer.core.transform import Transform

TOPIC = "events"
PARTITIONS = [(TOPIC, 0), (TOPIC, 1)]
KEYS = {"1": "the-default-key", "2": "the-key-of-site-2"}
GROUPS = [{"field": "endpoint.Attributes.Team", "traits": {"size": "endpoint.Metrics.size"}}]
USERS = ["ann", "bob", "cleo", "bad"]
"""Each has a partition and a site of its own; what is said of the last one may be poisonous."""
LATENCY = 0.05
TIMEOUT = 15.0
PATIENCE = 60
"""Rounds of half a minute, at the end, in which all has to be settled once nothing is wrong any more."""


def partition_of(user: str) -> Partition:
    return PARTITIONS[USERS.index(user) % 2]


def site_of(user: str) -> str:
    return "12"[USERS.index(user) // 2]


# --- what is produced, and what it should become ----------------------------------------------------


@dataclass(repr=False)
class Record:
    """A record of the log, with what should become of it.

    Attributes:
        expected: its calls, or why there are none.
        marks: traits that no other record says, of its user and of its user's group.
    """

    partition: Partition
    offset: int
    value: bytes | None
    expected: list[dict[str, Any]] | Reason | FilterReason

    def __repr__(self) -> str:
        return f"<{self.partition[1]} at {self.offset}>"

    @property
    def main(self) -> str:
        assert isinstance(self.expected, list)
        return str(self.expected[-1]["messageId"])


def event(
    user: str,
    *,
    number: int,
    kind: str = "track",
    device: str = "d1",
    traits: Mapping[str, Any] | None = None,
    team: str | None = None,
    size: int = 0,
    poison: str = "",
) -> bytes:
    said = {name: [value] for name, value in (traits or {}).items()}
    if poison == "traits":
        said["poison"] = ["yes"]
    attributes = {"blogId": site_of(user), "n": str(number)}
    if poison == "main":
        attributes["poison"] = "yes"
        attributes["title"] = "poison"
    return orjson.dumps(
        {
            "event_type": {"page": "pageView"}.get(kind, kind),
            "endpoint": {
                "Id": f"{user}-{device}",
                "User": {"UserId": user, "UserAttributes": said},
                "Attributes": {"Team": [team]} if team else {},
                "Metrics": {"size": size},
            },
            "attributes": attributes,
        }
    )


_events = st.fixed_dictionaries(
    {
        "user": st.sampled_from(USERS),
        "kind": st.sampled_from(["track", "track", "page", "secret", "broken"]),
        "device": st.sampled_from(["d1", "d1", "d2"]),
        "x": st.integers(0, 2),
        "marked": st.booleans(),
        "team": st.sampled_from([None, "red", "red", "blue"]),
        "size": st.integers(1, 2),
        "poison": st.sampled_from(["", "", "", "", "main", "traits"]),
    }
)
"""`secret` isn't forwarded, and what is `broken` becomes a dead letter."""


SESSION = 6.0

_pauses = st.sampled_from([0.0, 0.06, 0.3, 1.01, 2.5])
"""Seconds. A batch closes after a tenth of a second or after a second, commits go out once a second."""


@lru_cache(maxsize=2)
def interpreter(key: str) -> Interpreter:
    return Interpreter(key, default_mapping(), GROUPS, BUILTIN_CALLBACKS, drop_events=["secret"])


# --- Kafka ------------------------------------------------------------------------------------------


@dataclass
class Log:
    """A partition: its records in order, and the offset behind the last one; gaps are control records."""

    records: list[Record] = field(default_factory=list)
    end: int = 0
    settled: int = 0  # so many of the first records are known to be settled


class Group:
    """A topic's partitions and the consumer group that reads them; rebalances are eager, as aiokafka's are.

    Attributes:
        committed: what was committed, by partition.
        wrong: what no member may do, as it is seen.

    Args:
        join_seconds: from the last revocation of a rebalance to the assignment.
    """

    def __init__(self, join_seconds: float) -> None:
        self._join_seconds = join_seconds
        self.logs = {partition: Log() for partition in PARTITIONS}
        self.committed = dict.fromkeys(PARTITIONS, 0)
        self.consumers: list[Consumer] = []
        self.wrong: list[str] = []
        self.commit_faults: deque[str] = deque()
        self.fetch_faults = 0
        self.tasks: set[asyncio.Task[None]] = set()
        self._stale = False
        self._sharing: asyncio.Task[None] | None = None

    def produced(self) -> None:
        for consumer in self.consumers:
            consumer.wake.set()

    def rebalance(self) -> None:
        """Share the partitions out anew, once more if that is under way."""
        self._stale = True
        if self._sharing is None or self._sharing.done():
            self._sharing = asyncio.create_task(self._share())

    async def _share(self) -> None:
        while self._stale:
            self._stale = False
            await asyncio.gather(*(one.revoke() for one in list(self.consumers)))
            await asyncio.sleep(self._join_seconds)
            joined = [one for one in self.consumers if one.phase == "joining"]
            for number, one in enumerate(joined):
                await one.assign(PARTITIONS[number :: len(joined)])


class Consumer:
    """Stands where aiokafka's consumer would, with as much of it as `Source` asks.

    Attributes:
        phase: `new`, `owning`, `revoking` (it may still commit), `joining` (it must not), `evicted` (the group has gone
            on without it, and it doesn't know), or `gone`.
    """

    listener: ConsumerRebalanceListener

    def __init__(self, group: Group, member: Member) -> None:
        self.group = group
        self.member = member
        self.phase = "new"
        self.refused = False  # whether a commit was, since the last assignment
        self.tps: set[TopicPartition] = set()
        self.positions: dict[Partition, int] = {}
        self.wake = asyncio.Event()
        self._started = asyncio.Event()
        # `Source` listens to it, and closes it if there was no time to leave: here the group knows at once.
        self._client = SimpleNamespace(send=self._coordinate, close=self.stop)
        self._silent = False  # whether the coordinator doesn't hear of it
        self._coordinator = None
        self._fetcher = SimpleNamespace(
            error_future=asyncio.get_running_loop().create_future(), close=self._fetch_no_more
        )
        self._subscription = SimpleNamespace()

    def subscribe(self, *, pattern: str, listener: ConsumerRebalanceListener) -> None:
        assert pattern
        self.listener = listener

    async def start(self) -> None:
        self.group.consumers.append(self)
        self.group.rebalance()
        await self._started.wait()
        beating = asyncio.create_task(self._beat())
        self.group.tasks.add(beating)
        beating.add_done_callback(self.group.tasks.discard)

    async def stop(self) -> None:
        if self.phase != "gone":
            self.leave()
            self.group.rebalance()
        await asyncio.sleep(0)

    async def _fetch_no_more(self) -> None:
        self.positions = {}

    def leave(self) -> None:
        self.phase = "gone"
        if self in self.group.consumers:
            self.group.consumers.remove(self)

    # --- heartbeats ---

    async def _coordinate(self, _node: int, request: object) -> Any:
        """Answer as the coordinator does, by error code."""
        if self._silent:
            raise KafkaError("no answer")
        code = {"owning": 0, "revoking": 27, "joining": 27}.get(self.phase, 25)
        return SimpleNamespace(error_code=0 if isinstance(request, SyncGroupRequest) else code)

    async def _beat(self) -> None:
        while self.phase != "gone":
            with suppress(KafkaError):
                await self._client.send(0, object.__new__(HeartbeatRequest))
            await asyncio.sleep(2.0)

    # --- rebalances ---

    async def revoke(self) -> None:
        if self.phase in ("owning", "evicted"):
            self.phase = "revoking" if self.phase == "owning" else "evicted"
            await self.listener.on_partitions_revoked(self.tps)
        if self.phase != "gone":
            self.phase = "joining"
            self.positions = {}

    async def assign(self, partitions: Iterable[Partition]) -> None:
        if self.phase != "joining":
            return
        if self.member.requests:
            self.group.wrong.append("requests of a generation that has ended are under way")
        self.phase = "owning"
        self.refused = False
        self.tps = {TopicPartition(*partition) for partition in partitions}
        self.positions = {(tp.topic, tp.partition): -1 for tp in self.tps}
        self._silent = False
        self._started.set()
        self.wake.set()
        await self._client.send(0, object.__new__(SyncGroupRequest))
        await self.listener.on_partitions_assigned(self.tps)  # begins before anything else runs

    async def evicted_for(self, seconds: float) -> None:
        """Be thrown out of the group after a session without a heartbeat, and learn of it later."""
        self._silent = True
        await asyncio.sleep(SESSION)
        if (
            self.phase != "owning" or not self._silent
        ):  # it left, or a rebalance began, before this ran
            return
        self.group.consumers.remove(self)
        self.phase = "evicted"
        self.group.rebalance()
        await asyncio.sleep(seconds)
        if self.phase == "evicted":
            await self.revoke()
            if self.phase != "gone":
                self.group.consumers.append(self)
                self.group.rebalance()

    # --- reading ---

    async def getmany(
        self, *tps: TopicPartition, timeout_ms: int, max_records: int = 0
    ) -> dict[TopicPartition, list[ConsumerRecord]]:
        if tps:  # for what isn't there
            await asyncio.sleep(timeout_ms / 1000)
            return {}
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                while not (found := self._fetch(max_records)):
                    self.wake.clear()
                    await self.wake.wait()
        except TimeoutError:
            return {}
        return found

    def _fetch(self, most: int) -> dict[TopicPartition, list[ConsumerRecord]]:
        found = {}
        if self.phase not in ("owning", "evicted"):
            return {}
        for partition, position in self.positions.items():
            begin = self.group.committed[partition] if position < 0 else position
            log = self.group.logs[partition]
            records = [one for one in log.records if one.offset >= begin][:most]
            self.positions[partition] = records[-1].offset + 1 if records else max(log.end, begin)
            if records:
                found[TopicPartition(*partition)] = [
                    ConsumerRecord(
                        topic=TOPIC, partition=partition[1], offset=one.offset, timestamp=1_700_000_000_000,
                        timestamp_type=0, key=None, value=one.value, checksum=None, serialized_key_size=0,
                        serialized_value_size=0, headers=(),
                    )
                    for one in records
                ]  # fmt: skip
        if found and self.group.fetch_faults:
            self.group.fetch_faults -= 1
            raise KafkaError("a record of another partition is broken; what was taken is lost")
        return found

    async def position(self, tp: TopicPartition) -> int:
        position = self.positions.get((tp.topic, tp.partition), -1)
        if position < 0:
            raise KafkaError("not known yet")
        return position

    def seek(self, tp: TopicPartition, offset: int) -> None:
        if (tp.topic, tp.partition) not in self.positions:
            raise IllegalStateError
        self.positions[tp.topic, tp.partition] = offset

    def subscription(self) -> set[str]:
        return {TOPIC}

    def partitions_for_topic(self, topic: str) -> set[int]:
        assert topic == TOPIC
        return {number for _, number in PARTITIONS}

    async def committed(self, tp: TopicPartition) -> int:
        await asyncio.sleep(0)
        return self.group.committed[tp.topic, tp.partition]

    async def beginning_offsets(self, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(tps, 0)

    async def end_offsets(self, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return {tp: self.group.logs[tp.topic, tp.partition].end for tp in tps}

    async def topics(self) -> set[str]:
        return {TOPIC}

    # --- commits ---

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        fault = self.group.commit_faults.popleft() if self.group.commit_faults else ""
        if self.phase in ("joining", "new") or self.refused:
            self.group.wrong.append(f"a commit while {self.phase}, {self.refused=}: {offsets}")
            raise CommitFailedError
        match fault:
            case "error":
                raise KafkaError("the coordinator has moved")
            case "hangs":
                await asyncio.sleep(1000)
            case "slow":
                await asyncio.sleep(4)
        if self.phase not in ("owning", "revoking"):
            self.refused = True
            raise CommitFailedError
        for tp, offset in offsets.items():
            partition = (tp.topic, tp.partition)
            if offset < self.group.committed[partition]:
                self.group.wrong.append(f"a commit goes back: {partition} to {offset}")
            self.group.committed[partition] = offset
        if fault == "lost":
            await asyncio.sleep(1000)


# --- Segment, and the topic of dead letters ---------------------------------------------------------


class World:
    """What every member meets: the judge behind its faults, and the dead letters.

    Attributes:
        faults: what happens to the next requests, one after the other.
        states: how a write key is answered for a time, if not as it should be.
        held: requests that are answered when a rule says how.
        letters: what was acknowledged.
    """

    def __init__(self) -> None:
        self.judge = Judge(keep_calls=True)
        self.faults: deque[str] = deque()
        self.states: dict[str, str] = {}
        self.held: list[asyncio.Future[str]] = []
        self.sink_faults: deque[str] = deque()
        self.letters: list[DeadLetter] = []
        self.requests = 0

    def take(self, key: str, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        """Segment gets a request and answers."""
        calls = orjson.loads(body)["batch"]
        if any(is_poisonous(call) for call in calls):
            return 400, {}, b"a call of this batch was refused"
        credentials = b64encode(f"{key}:".encode()).decode()
        headers = {"Authorization": f"Basic {credentials}", "Content-Type": "application/json"}
        self.requests += 1
        answer = self.judge.take(Request(headers, body), self.requests, 0.0)
        return answer.status, answer.headers, answer.body


def is_poisonous(call: Mapping[str, Any]) -> bool:
    said = {**call.get("traits", {}), **call.get("properties", {})}
    return "poison" in said or said.get("title") == "poison"


STATUSES: dict[str, tuple[int, dict[str, str], bytes]] = {
    "401": (401, {}, b"who are you"),
    "503": (503, {}, b"later"),
    "429": (429, {"Retry-After": "20"}, b"too fast"),
    "429 for an hour": (429, {"Retry-After": "3600"}, b"too fast"),
}


class Transport:
    """Stands where `Segment` would."""

    def __init__(self, world: World, member: Member) -> None:
        self.world = world
        self.member = member

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        assert not self.member.requests, "every request has ended"

    async def attempt(self, write_key: str, body: bytes, tries: int) -> Answer:
        assert tries >= 0
        assert write_key in KEYS.values()
        self.member.requests += 1
        clock = asyncio.get_running_loop().time
        started = clock()
        outcome: Outcome
        response: Response | Exception
        try:
            async with asyncio.timeout(TIMEOUT):
                status, headers, text = await self._exchange(write_key, body)
            outcome = classify(status, headers, text, strict=False)
            response = Response(status, dict(headers), text.decode())
        except TimeoutError as error:
            outcome, response = Retry("timeout", "no answer"), error
        finally:
            self.member.requests -= 1
        return Answer(outcome, response, len(body), clock() - started)

    async def _exchange(self, key: str, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        world = self.world
        fault = world.faults.popleft() if world.faults else world.states.get(key, "")
        await asyncio.sleep(LATENCY)
        if fault in ("held", "answer held"):
            answered = world.take(key, body) if fault == "answer held" else None
            future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            world.held.append(future)
            try:
                fault = await future
            finally:
                world.held.remove(future)
            if answered is not None and not fault:
                return answered
        match fault:
            case "lost":  # Segment has it, and the connection breaks
                world.take(key, body)
                raise TimeoutError
            case "silent":
                await asyncio.sleep(1000)
        return STATUSES[fault] if fault else world.take(key, body)


class FakeSink:
    """Stands where the topic of dead letters would."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def write(self, letters: Sequence[DeadLetter]) -> tuple[int, str]:
        fault = self.world.sink_faults.popleft() if self.world.sink_faults else ""
        await asyncio.sleep(15.0 if fault == "hangs" else 0.02)
        acknowledged = {"": len(letters), "part": len(letters) // 2}.get(fault, 0)
        self.world.letters += letters[:acknowledged]
        return acknowledged, fault

    async def close(self) -> None:
        pass


# --- members ----------------------------------------------------------------------------------------


class Member:
    """A pipeline that runs."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.consumer: Consumer | None = None
        self.requests = 0
        self.pipeline: Pipeline
        self.task: asyncio.Task[None]


_member: ContextVar[Member] = ContextVar("member")


@lru_cache(maxsize=200)
def configured(
    max_calls: int, concurrency: str, suppress_for: str, merge: str, interval: str, *, sites: bool
) -> Config:
    variables = {
        "segment__write_key": KEYS["1"],
        "segment__endpoint": "http://127.0.0.1:9/v1/batch",
        "kafka__bootstrap_servers": "127.0.0.1:9",
        "kafka__topic_pattern": f"^{TOPIC}$",
        "kafka__session_timeout": f"{SESSION:.0f}s",
        "dead_letter__topic": "letters",
        "groups": orjson.dumps(GROUPS).decode(),
        "transform__drop_events": "secret",
        "flush__max_calls": str(max_calls),
        "flush__concurrency": concurrency,
        "flush__interval": interval,
        "aggregate__suppress_for": suppress_for,
        "aggregate__identify": merge,
        "aggregate__group": merge,
    }
    if sites:
        variables["segment__sites__write_keys"] = orjson.dumps(KEYS).decode()
    return load_config(
        None, {}, {f"STREAMER_{name.upper()}": value for name, value in variables.items()}
    )


@lru_cache(maxsize=1)
def transform() -> Transform:
    """Compiled once: what the machine chooses is none of the mapping's business."""
    return make_transform(configured(2, "1", "0s", "true", "1s", sites=False), KEYS["1"], Hooks())


@asynccontextmanager
async def no_server(*_: object) -> AsyncIterator[int]:
    yield 0


class AnyWorld(RuleBasedStateMachine):
    """Members, Kafka, Segment and dead letters, in any order of what may happen."""

    @initialize(
        max_calls=st.sampled_from([2, 3, 7, 100]),
        concurrency=st.sampled_from(["1", "3", "adaptive"]),
        suppress_for=st.sampled_from(["0s", "1h"]),
        merge=st.sampled_from(["true", "true", "true", "false"]),
        sites=st.booleans(),
        stretches=st.booleans(),
        memory=st.sampled_from([None, None, 15_000]),
        interval=st.sampled_from(["100ms", "1s"]),
        join_seconds=st.sampled_from([0.0, 2.0]),
    )
    def begin(
        self,
        max_calls: int,
        concurrency: str,
        suppress_for: str,
        merge: str,
        *,
        sites: bool,
        stretches: bool,
        memory: int | None,
        interval: str,
        join_seconds: float,
    ) -> None:
        self.config = configured(max_calls, concurrency, suppress_for, merge, interval, sites=sites)
        self.sites = sites
        self.memory = memory
        self.loop = VirtualTimeLoop()
        self.number = 0
        self.spoilt: set[Any] = (
            set()
        )  # users and groups of users of whom nobody can say where they end
        self.members: list[Member] = []
        self.ended: list[Member] = []
        self.background: set[asyncio.Task[None]] = set()
        self.group = Group(join_seconds)
        self.world = World()
        self.stack = ExitStack()
        self.lines = self.stack.enter_context(capture_logs())
        world, loop = self.world, self.loop

        def consumer(**_: object) -> Consumer:
            member = _member.get()
            member.consumer = Consumer(self.group, member)
            return member.consumer

        for module, name, fake in [
            (pipeline_module, "Segment", lambda *_, **__: Transport(world, _member.get())),
            (pipeline_module, "KafkaSink", lambda *_: FakeSink(world)),
            (pipeline_module, "Delivery", partial(Delivery, jitter=random.Random(1))),
            (pipeline_module, "make_transform", lambda *_: transform()),
            (pipeline_module, "serve", no_server),
            (source_module, "AIOKafkaConsumer", consumer),
            (source_module, "failure", reachable),
            (source_module, "time", SimpleNamespace(monotonic=loop.time)),
            (source_module, "_clock", loop.time),
        ]:
            self.stack.enter_context(patch.object(module, name, fake))
        if stretches:  # the loop has a turn after each record
            self.stack.enter_context(patch.object(pipeline_module, "SLICE_BYTES", 1))
        self.join()

    def run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self.loop.run_until_complete(coroutine)

    def call(self, function: Any, *arguments: Any) -> None:
        """Call something that needs the running loop."""

        async def calling() -> None:
            function(*arguments)

        self.run(calling())

    # --- Kafka ---

    @rule(drawn=st.lists(_events, min_size=1, max_size=4), pause=_pauses)
    def produce(self, drawn: list[dict[str, Any]], pause: float) -> None:
        for one in drawn:
            self.number += 1
            user, kind = one["user"], one["kind"]
            poison = one["poison"]
            if poison == "traits":
                poison = "traits" if user == "bad" else ""
            traits = {"x": str(one["x"])} | ({f"r{self.number}": "1"} if one["marked"] else {})
            value = event(
                user, number=self.number, kind="click" if kind == "track" else kind, device=one["device"],
                traits=traits, team=one["team"], size=one["size"], poison=poison,
            )  # fmt: skip
            self.append(user, value[:-3] if kind == "broken" else value)
        self.call(self.group.produced)
        self.wait(pause)

    def append(self, user: str, value: bytes | None) -> None:
        log = self.group.logs[partition_of(user)]
        key = KEYS[site_of(user) if self.sites else "1"]
        expected = interpreter(key).calls(value, 1_700_000_000_000)
        log.records.append(Record(partition_of(user), log.end, value, expected))
        log.end += 1

    @precondition(lambda self: any(log.records for log in self.group.logs.values()))
    @rule(data=st.data())
    def produce_again(self, data: st.DataObject) -> None:
        """A producer has sent a record twice: the same bytes, behind what came since then."""
        logs = self.group.logs.values()
        old = data.draw(
            st.sampled_from([one for log in logs for one in log.records]), label="record"
        )
        log = self.group.logs[old.partition]
        log.records.append(Record(old.partition, log.end, old.value, old.expected))
        log.end += 1
        self.call(self.group.produced)

    @rule(partition=st.sampled_from(PARTITIONS), offsets=st.integers(1, 3))
    def produce_control_records(self, partition: Partition, offsets: int) -> None:
        self.group.logs[partition].end += offsets
        self.call(self.group.produced)

    @precondition(lambda self: len(self.members) < 3)
    @rule()
    def join(self) -> None:
        member = Member()

        async def joining() -> None:
            _member.set(member)
            member.pipeline = Pipeline(self.config, Hooks())
            if self.memory is not None:
                member.pipeline._budget.limit = self.memory
            member.task = asyncio.create_task(member.pipeline.run(member.stop))

        self.run(joining())
        self.members.append(member)

    @precondition(lambda self: self.members)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        """SIGTERM: it goes on until it has ended."""
        self.member(data).stop.set()

    @precondition(lambda self: self.members)
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        """What is under way ends where it stands; Segment may have had it."""
        member = self.member(data)
        self.members.remove(member)

        async def killing() -> None:
            if member.consumer is not None:
                member.consumer.leave()
            member.task.cancel()
            await asyncio.wait({member.task})
            self.group.rebalance()

        self.run(killing())

    @precondition(lambda self: self.group.consumers)
    @rule(data=st.data(), seconds=st.sampled_from([0.1, 2.0, 20.0]))
    def evict(self, data: st.DataObject, seconds: float) -> None:
        """The group goes on without a member, which learns of it later and may send what it holds until then."""
        consumers = self.group.consumers
        consumer = consumers[data.draw(st.integers(0, len(consumers) - 1), label="consumer")]
        if consumer.phase != "owning":
            return
        partitions = {(tp.topic, tp.partition) for tp in consumer.tps}
        self.spoilt |= {user for user in USERS if partition_of(user) in partitions}

        async def evicting() -> None:
            task = asyncio.create_task(consumer.evicted_for(seconds))
            self.background.add(task)

        self.run(evicting())

    @rule(pause=_pauses)
    def rebalance(self, pause: float) -> None:
        self.call(self.group.rebalance)
        self.wait(pause)

    @rule(
        faults=st.lists(st.sampled_from(["error", "hangs", "slow", "lost"]), min_size=1, max_size=3)
    )
    def commits_fail(self, faults: list[str]) -> None:
        self.group.commit_faults += faults

    @rule()
    def a_fetch_fails(self) -> None:
        self.group.fetch_faults += 1

    def member(self, data: st.DataObject) -> Member:
        return self.members[data.draw(st.integers(0, len(self.members) - 1), label="member")]

    # --- Segment and dead letters ---

    @rule(
        faults=st.lists(
            st.sampled_from(["401", "503", "429", "lost", "silent", "held", "held", "answer held"]),
            min_size=1,
            max_size=4,
        )
    )
    def requests_fail(self, faults: list[str]) -> None:
        self.world.faults += faults

    @rule(
        site=st.sampled_from("12"),
        state=st.sampled_from(["", "401", "503", "429", "429 for an hour", "silent", "lost"]),
    )
    def segment_changes(self, site: str, state: str) -> None:
        self.world.states[KEYS[site]] = state

    @precondition(lambda self: self.world.held)
    @rule(data=st.data(), answer=st.sampled_from(["", "", "", "503", "429", "lost"]), pause=_pauses)
    def answer(self, data: st.DataObject, answer: str, pause: float) -> None:
        held = self.world.held
        future = held[data.draw(st.integers(0, len(held) - 1), label="request")]
        if not future.done():
            self.call(future.set_result, answer)
        self.wait(pause)

    @rule(
        faults=st.lists(
            st.sampled_from(["part", "fails", "hangs", "hangs"]), min_size=1, max_size=3
        )
    )
    def letters_fail(self, faults: list[str]) -> None:
        self.world.sink_faults += faults

    # --- time ---

    @rule(turns=st.integers(1, 12))
    def turn(self, turns: int) -> None:
        async def turning() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)

        self.run(turning())

    @rule(seconds=_pauses | st.sampled_from([6.0, 32.0]))
    def wait(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    # --- what holds after every step ---

    def settled(self, record: Record) -> bool:
        """Whether nothing of a record can be lost any more."""
        if isinstance(record.expected, FilterReason):
            return True
        place = (record.partition[1], record.offset)
        if isinstance(record.expected, Reason):
            return any(
                (one.kind, one.partition, one.offset, one.reason)
                == ("record", *place, record.expected)
                for one in self.world.letters
            )
        if not (record.main in self.world.judge._accepted or record.main in self.letter_ids()):
            return False
        for call in record.expected[:-1]:
            profile = self.profile(call)
            if call["userId"] == "bad":
                continue
            marks = {name for name in call.get("traits", {}) if name.startswith("r")}
            if not marks <= (profile or {}).keys() or profile is None:
                return False
        return True

    def profile(self, call: dict[str, Any]) -> dict[str, Any] | None:
        judge = self.world.judge
        if call["type"] == "identify":
            return judge.profiles.get(call["userId"])
        return judge.group_profiles.get((call["userId"], call["groupId"]))

    def letter_ids(self) -> set[str]:
        return {
            orjson.loads(one.value or b"")["messageId"]
            for one in self.world.letters
            if one.kind == "call"
        }

    @invariant()
    def nothing_is_committed_before_it_is_settled(self) -> None:
        assert self.group.wrong == [], self.group.wrong
        for partition, log in self.group.logs.items():
            said = [self.group.committed[partition]]
            for member in self.members:
                committable = member.pipeline.committable(partition, None)
                if committable is not None:
                    said.append(committable)
            while log.settled < len(log.records):
                record = log.records[log.settled]
                if record.offset >= max(said):
                    break
                assert self.settled(record), (
                    f"{record} isn't settled, and {max(said)} is committable"
                )
                log.settled += 1

    @invariant()
    def every_account_balances(self) -> None:
        for member in [*self.members, *self.ended]:
            assert member.pipeline.account.balance() == []
            assert member.pipeline._budget.used >= 0

    @invariant()
    def members_run_until_they_are_stopped(self) -> None:
        for member in [one for one in self.members if one.task.done()]:
            member.task.result()
            assert member.stop.is_set()
            self.members.remove(member)
            self.ended.append(member)
            assert member.pipeline.account.in_flight == 0
            assert member.pipeline._budget.used == 0
        for task in [one for one in self.background if one.done()]:
            task.result()
            self.background.remove(task)

    @invariant()
    def only_what_segment_refuses_is_refused(self) -> None:
        assert not self.world.judge.stats.discards
        for letter in self.world.letters:
            if letter.kind == "call":
                assert is_poisonous(orjson.loads(letter.value or b"")), letter

    @invariant()
    def nothing_is_logged_with_a_traceback(self) -> None:
        assert [line for line in self.lines if line.get("exc_info")] == []

    # --- the end ---

    def teardown(self) -> None:
        if not hasattr(self, "stack"):
            return
        try:
            if sys.exc_info()[0] is None:  # else it is the step that is to be told of
                self.finish()
        finally:
            while tasks := asyncio.all_tasks(self.loop):  # what is cancelled may begin others
                for task in tasks:
                    task.cancel()
                self.loop.run_until_complete(asyncio.wait(tasks))
            self.stack.close()
            self.loop.close()

    def finish(self) -> None:
        """Nothing is wrong any more: all is settled and committed, and ends as the input does."""
        world, group = self.world, self.group
        world.faults.clear()
        world.states.clear()
        world.sink_faults.clear()
        group.commit_faults.clear()
        group.fetch_faults = 0
        for future in world.held:
            if not future.done():
                self.call(future.set_result, "")
        if all(member.stop.is_set() for member in self.members):
            self.run(asyncio.sleep(30))
            self.check()
            self.join()
        ends = None
        for _ in range(PATIENCE):
            self.run(asyncio.sleep(31))
            self.check()
            ends = {partition: log.end for partition, log in group.logs.items()}
            if group.committed == ends:
                break
            for user in USERS:  # what is refused alone waits for a witness
                self.number += 1
                self.append(user, event(user, number=self.number, traits={"x": "0"}))
            self.call(group.produced)
        assert group.committed == ends
        for member in self.members:
            pipeline = member.pipeline
            assert pipeline.account.in_flight == 0
            digests = pipeline._generation.digests if pipeline._generation else ()
            witnesses = pipeline._delivery._witnesses._of.values()
            held = DIGEST_BYTES * len(digests) + sum(len(one.call) for one in witnesses)
            assert pipeline._budget.used == held, "at rest nothing else is held"
            member.stop.set()
        self.run(asyncio.sleep(30))
        self.check()
        assert self.members == []
        self.check_end()

    def check(self) -> None:
        self.nothing_is_committed_before_it_is_settled()
        self.every_account_balances()
        self.members_run_until_they_are_stopped()
        self.only_what_segment_refuses_is_refused()
        self.nothing_is_logged_with_a_traceback()

    def check_end(self) -> None:
        judge = self.world.judge
        records = [one for log in self.group.logs.values() for one in log.records]
        mains: set[str] = set()
        refused: set[str] = set()
        users: dict[str, dict[str, Any]] = {}
        groups: dict[tuple[str, str], dict[str, Any]] = {}
        for record in records:
            assert self.settled(record)
            if not isinstance(record.expected, list):
                continue
            *profiles, main = record.expected
            (refused if is_poisonous(main) else mains).add(main["messageId"])
            for call in profiles:
                user = call["userId"]
                if call["type"] == "identify":
                    users.setdefault(user, {}).update(call.get("traits", {}))
                else:
                    groups.setdefault((user, call["groupId"]), {}).update(call.get("traits", {}))
        accepted = Counter(
            line.message_id
            for line in judge.lines
            if line.fate == "accepted" and line.type in ("page", "track")
        )
        assert accepted.keys() == mains
        assert set(accepted.values()) <= {1}
        assert self.letter_ids() >= refused
        for user, traits in users.items():
            if user not in self.spoilt and user != "bad":
                assert judge.profiles[user] == traits
        for (user, group), traits in groups.items():
            if user not in self.spoilt:
                assert judge.group_profiles[user, group] == traits
        assert self.world.held == []


async def reachable(*_: object) -> None:
    """Say that nothing keeps anybody from the broker."""


TestAnyWorld = pytest.mark.timeout(600)(
    AnyWorld.TestCase
)  # to shrink a story may take some minutes
TestAnyWorld.settings = settings(
    deadline=None,
    max_examples=60,
    stateful_step_count=40,
    suppress_health_check=[HealthCheck.too_slow],
)
