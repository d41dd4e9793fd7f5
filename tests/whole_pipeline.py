"""What whole-pipeline tests share: members of a consumer group, each a process, and the one assertion they end in.

The judge is what the mock Segment accepted, held against what was produced. What the calls should be is read off the
mapping's specification by the reference interpreter; nothing of the product's own mapping is asked.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import tempfile
import time
from collections import Counter
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING, Any, Self

import aiohttp
import orjson
from prometheus_client.parser import text_string_to_metric_families

from kafka_broker.topics import Kafka, ToProduce, fresh_name
from reference.interpreter import Interpreter
from streamer.core.mapping import BUILTIN_CALLBACKS, default_mapping
from streamer.core.model import FilterReason, Reason
from streamer.demo.events import generate
from streamer.mock_segment import Fault, MockSegment

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Mapping

DIE_WITH_PARENT = Path(__file__).with_name("kafka_broker") / "die_with_parent.py"
WRITE_KEY = "a-write-key-of-thirty-two-chars-0"
GROUP_FIELD = "endpoint.Attributes.AudienceId"
GROUP_TRAITS = {
    "country": "endpoint.User.UserAttributes.country.0",
    "device": "endpoint.Attributes.DeviceType.0",
}
TIMEOUT_SECONDS = 240.0
A_LITTLE = 3.0
"""Seconds of grace for a process that ends: its interpreter, and a machine that does much else."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How long stories take, and how much flows in them.

    Attributes:
        session_seconds: `kafka.session_timeout` of members.
        shutdown_seconds: their `shutdown_timeout`.
        outage_seconds: the longest that a fault lasts.
        events_per_second: of a `stream`, unless a story says otherwise.
        kills: how many members die in a row.
    """

    session_seconds: int
    shutdown_seconds: int
    outage_seconds: float
    events_per_second: int
    kills: int

    def outage(self, seconds: float) -> float:
        """How long a fault lasts that lasts so many seconds at full length."""
        return min(seconds, self.outage_seconds)


SCALE = (
    Scale(45, 25, 120.0, 1000, 20) if os.environ.get("FULL") == "1" else Scale(6, 5, 8.0, 500, 5)
)
"""Members as they are configured by default and faults of minutes with FULL=1 in the environment, else in short."""


@contextmanager
def noted(fact: str) -> Iterator[None]:
    """Says a fact with whatever fails in it, such as the seed of a story."""
    try:
        yield
    except BaseException as error:
        error.add_note(fact)
        raise


def some(count: int | None, seed: int, broken: float = 0.002) -> Iterator[ToProduce]:
    """Generated events, a few of which can't become calls; without an end if the count is None."""
    events = generate(seed, broken=broken, missing_ids=broken, oversized=broken / 4)
    for event in islice(events, count):
        now = int(time.time() * 1000)
        yield ToProduce(event.key, event.value, now, (("trace", b"\x00\xff"),))


@dataclass(frozen=True, slots=True)
class Produced:
    """A record as it stands in Kafka."""

    partition: int
    offset: int
    record: ToProduce


class Member:
    """A `streamer run` of its own: one process, one member of the group."""

    def __init__(self, environment: Mapping[str, str], log: Path, *arguments: str) -> None:
        self._environment = environment
        self._arguments = arguments
        self.log = log
        self.process: asyncio.subprocess.Process | None = None
        self.url = ""

    async def start(self) -> Self:
        with self.log.open("wb") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, DIE_WITH_PARENT, str(os.getpid()),
                Path(sys.executable).with_name("streamer"), "run", *self._arguments,
                env={**os.environ, **self._environment}, stderr=log, stdin=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while not (found := re.search(r"(http://[\d.]+:\d+)/metrics", self.log.read_text())):
                assert self.process.returncode is None, self.log.read_text()
                await asyncio.sleep(0.05)
        self.url = found[1]
        return self

    async def get(self, path: str) -> tuple[int, str]:
        async with aiohttp.ClientSession() as session, session.get(self.url + path) as response:
            return response.status, await response.text()

    async def metrics(self) -> Counter[tuple[str, ...]]:
        """One scrape: a sample's name and its labels' values, by the order of the labels' names, to its value."""
        _, text = await self.get("/metrics")
        return Counter(
            {
                (sample.name, *(v for _, v in sorted(sample.labels.items()))): sample.value
                for family in text_string_to_metric_families(text)
                for sample in family.samples
            }
        )

    async def stop_in_time(self, number: Signals = Signals.SIGTERM) -> None:
        """Stops it by a signal, and asserts that it ends in good order within `shutdown_timeout` and a little."""
        self.signal(number)
        await self.stopped_in_time()

    async def stopped_in_time(self) -> None:
        """Asserts that it, who has just been told to, ends in good order within `shutdown_timeout` and a little."""
        began = time.monotonic()
        status = await self.wait()
        took = time.monotonic() - began
        log = self.log.read_text()[-4000:]
        assert status == 0, log
        assert took < SCALE.shutdown_seconds + A_LITTLE, f"it took {took:.1f} s\n{log}"

    def signal(self, number: Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    async def stop(self) -> int:
        """SIGTERM; gives the exit status."""
        self.signal(Signals.SIGTERM)
        return await self.wait()

    async def kill(self) -> None:
        self.signal(Signals.SIGKILL)
        await self.wait()

    async def wait(self) -> int:
        assert self.process is not None
        async with asyncio.timeout(TIMEOUT_SECONDS):
            return await self.process.wait()


@dataclass
class Stage:
    """A topic, a group, a mock Segment and the members that a test starts; all of them are gone when it ends.

    Args:
        kafka: the cluster.
        settings: environment variables of every member, over those of the stage.
        faults: of the mock, from the start.
        excluded: what the settings keep back, as the interpreter takes it.
        write_keys: those of sites, by `blogId`; all others have the stage's own.
    """

    kafka: Kafka
    settings: Mapping[str, str] = field(default_factory=dict)
    faults: Iterable[Fault] = ()
    excluded: Mapping[str, Any] = field(default_factory=dict)
    write_keys: Mapping[str, str] = field(default_factory=dict)
    group: str = field(default_factory=lambda: fresh_name("group"))
    topic: str = ""
    dead_letters: str = ""
    produced: list[Produced] = field(default_factory=list)
    members: list[Member] = field(default_factory=list)

    async def __aenter__(self) -> Self:
        self.topic = await self.kafka.create_topic(partitions=4)
        self.dead_letters = await self.kafka.create_topic(f"{self.topic}.dead-letter", partitions=1)
        self.segment = await MockSegment(faults=self.faults).__aenter__()
        self._folder = tempfile.TemporaryDirectory()
        return self

    async def __aexit__(self, *_: object) -> None:
        for member in self.members:
            if member.process is not None and member.process.returncode is None:
                await member.kill()
        await self.segment.__aexit__(None, None, None)
        self._folder.cleanup()

    async def start(self, **settings: str) -> Member:
        """Starts one more member, with environment variables of its own."""
        group = {"field": GROUP_FIELD, "traits": GROUP_TRAITS, "each": True}
        environment = {
            "STREAMER_KAFKA__BOOTSTRAP_SERVERS": self.kafka.bootstrap,
            "STREAMER_KAFKA__TOPICS": self.topic,
            "STREAMER_KAFKA__GROUP_ID": self.group,
            "STREAMER_KAFKA__SESSION_TIMEOUT": f"{SCALE.session_seconds}s",
            "STREAMER_SHUTDOWN_TIMEOUT": f"{SCALE.shutdown_seconds}s",
            "STREAMER_GROUPS": orjson.dumps([group]).decode(),
            "STREAMER_SEGMENT__ENDPOINT": self.segment.url,
            "STREAMER_SERVER__PORT": "0",
            "SEGMENT_API_WRITE_KEY": WRITE_KEY,
            **self._sites(),
            **self.settings,
            **settings,
        }
        log = Path(self._folder.name) / f"member-{len(self.members)}.log"
        member = Member(environment, log)
        self.members.append(member)
        return await member.start()

    def _sites(self) -> dict[str, str]:
        keys = orjson.dumps(self.write_keys).decode()
        return {"STREAMER_SEGMENT__SITES__WRITE_KEYS": keys} if self.write_keys else {}

    async def produce(self, records: Iterable[ToProduce]) -> None:
        records = list(records)
        places = await self.kafka.produce(self.topic, records)
        self.produced += [
            Produced(partition, offset, record)
            for (partition, offset), record in zip(places, records, strict=True)
        ]

    @asynccontextmanager
    async def stream(
        self, records: Iterator[ToProduce], per_second: int = SCALE.events_per_second
    ) -> AsyncIterator[None]:
        """Produces records at a steady rate for as long as this lasts, so that a fault meets a stream.

        Args:
            records: without an end.
            per_second: how many of them.
        """
        over = asyncio.Event()

        async def produce() -> None:
            while not over.is_set():
                await self.produce(islice(records, per_second // 2))
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.5):
                        await over.wait()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(produce())
            try:
                yield
            finally:
                over.set()

    async def committed(self) -> int:
        """How many records are committed, over all partitions."""
        return sum((await self.kafka.committed(self.group, self.topic)).values())

    async def until_committed(
        self, records: int | None = None, seconds: float = TIMEOUT_SECONDS
    ) -> None:
        """Waits until so many records are committed; all that were produced if none is given."""
        wanted = len(self.produced) if records is None else records
        async with asyncio.timeout(seconds):
            while await self.committed() < wanted:
                dead = [m for m in self.members if m.process and (m.process.returncode or 0) > 0]
                assert not dead, dead[0].log.read_text()[-4000:]
                await asyncio.sleep(0.2)

    async def assert_accounted_for(
        self, *, refused: frozenset[str] = frozenset(), once: bool = True, truncated: bool = False
    ) -> None:
        """The one assertion.

        - What was produced is accounted for: each record is a delivered page or track call, or filtered, or a dead
          letter with its reason, key, value, timestamp and headers.
        - The mock accepted each expected page and track call exactly once, and nothing else of that kind; it discarded
          nothing.
        - Each profile ends with the traits that the input ends with.
        - The committed offsets are the ends of the partitions.
        - The account of every member that still runs balances, and the counts agree with the mock's.

        Args:
            refused: ids of calls that the mock refuses by a fault: each is a dead letter of the kind `call`.
            once: whether one member did everything: then nothing may have been sent twice, and its counts are exact.
            truncated: whether some dead letters were too large for their topic, which has a part of them.
        """
        expected = _expect(self.produced, self.excluded, write_keys=self.write_keys)
        accepted = Counter(
            line.message_id
            for line in self.segment.lines
            if line.fate == "accepted" and line.type in ("page", "track")
        )
        stats = self.segment.stats
        assert not stats.discarded, stats.discards
        assert set(accepted.values()) <= {1}
        assert accepted.keys() == expected.mains.keys() - refused
        assert refused <= expected.mains.keys()

        letters = await self.kafka.read(self.dead_letters)
        records = [letter for letter in letters if _header(letter, "kind") == "record"]
        found = {
            (int(_header(letter, "partition")), int(_header(letter, "offset"))): letter
            for letter in records
        }
        assert found.keys() == expected.rejects.keys()
        cut = 0
        for place, (reason, produced) in expected.rejects.items():
            letter = found[place]
            assert _header(letter, "reason") == reason
            assert _header(letter, "topic") == self.topic
            assert letter.key == produced.key
            if truncated and any(name == "streamer-truncated" for name, _ in letter.headers):
                assert int(_header(letter, "truncated")) == len(produced.value or b"")
                assert (produced.value or b"").startswith(letter.value or b"")
                cut += 1
                continue
            assert letter.value == produced.value
            assert letter.headers[: len(produced.headers)] == produced.headers
        assert bool(cut) == truncated
        calls = [letter for letter in letters if _header(letter, "kind") == "call"]
        assert {orjson.loads(letter.value or b"")["messageId"] for letter in calls} == refused
        if once:
            assert len(records) == len(found)
            assert len(calls) == len(refused)

        users, groups = self.segment.profiles, self.segment.group_profiles
        assert users.keys() == expected.users.keys()
        assert {user: t for user, t in users.items() if t != expected.users[user]} == {}
        assert groups.keys() == expected.groups.keys()
        assert {key: t for key, t in groups.items() if t != expected.groups[key]} == {}

        committed = await self.kafka.committed(self.group, self.topic)
        ends = await self.kafka.end_offsets(self.topic)
        assert {p: committed.get(p, 0) for p in ends} == ends

        for member in self.members:
            if member.process is not None and member.process.returncode is None:
                _assert_balances(await member.metrics())
        if once:
            (member,) = self.members
            _assert_agrees(await member.metrics(), self, expected, len(refused))


@dataclass
class _Expected:
    """What the input should become.

    Attributes:
        mains: id of each page and track call to its type.
        rejects: partition and offset of each record that can't become calls, with the reason and the record.
        filtered: how many records are kept back, by reason.
        users, groups: the traits in which each profile ends.
    """

    mains: dict[str, str] = field(default_factory=dict)
    rejects: dict[tuple[int, int], tuple[str, ToProduce]] = field(default_factory=dict)
    filtered: Counter[str] = field(default_factory=Counter)
    users: dict[str, dict[str, Any]] = field(default_factory=dict)
    groups: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)


def _expect(
    produced: Iterable[Produced],
    excluded: Mapping[str, Any],
    write_key: str = WRITE_KEY,
    write_keys: Mapping[str, str] | None = None,
) -> _Expected:
    group = {"field": GROUP_FIELD, "traits": GROUP_TRAITS, "each": True}
    interpreters = {
        key: Interpreter(key, default_mapping(), [group], BUILTIN_CALLBACKS, **excluded)
        for key in (write_key, *(write_keys or {}).values())
    }
    expected = _Expected()
    partitions: dict[str, int] = {}
    for place in produced:
        record = place.record
        key = write_keys.get(_site(record.value), write_key) if write_keys else write_key
        calls = interpreters[key].calls(record.value, record.timestamp_ms or -1)
        if isinstance(calls, Reason):
            expected.rejects[place.partition, place.offset] = (calls, record)
            continue
        if isinstance(calls, FilterReason):
            expected.filtered[calls] += 1
            continue
        for call in calls:
            user = str(call.get("userId", call.get("anonymousId")))
            # The order of a user's calls is Kafka's only within one partition.
            assert partitions.setdefault(user, place.partition) == place.partition
            match call["type"]:
                case "identify":
                    expected.users.setdefault(user, {}).update(call.get("traits", {}))
                case "group":
                    membership = (user, call["groupId"])
                    expected.groups.setdefault(membership, {}).update(call.get("traits", {}))
                case main:
                    assert call["messageId"] not in expected.mains, "the input has an event twice"
                    expected.mains[call["messageId"]] = main
    return expected


def _site(value: bytes | None) -> str:
    try:
        return str(orjson.loads(value or b"")["attributes"]["blogId"])
    except orjson.JSONDecodeError:
        return ""  # it is rejected, whatever its site


def _assert_balances(metrics: Counter[tuple[str, ...]]) -> None:
    consumed = _sum(metrics, "streamer_events_consumed_total")
    settled = _sum(metrics, "streamer_events_settled_total")
    released = metrics["streamer_events_released_total",]
    assert consumed == settled + released + metrics["streamer_inflight_events",]


def _assert_agrees(
    metrics: Counter[tuple[str, ...]], stage: Stage, expected: _Expected, refused: int
) -> None:
    """The counts of the one member are those of the input and of the mock."""
    rejects = len(expected.rejects)
    filtered = {
        str(r): metrics["streamer_events_settled_total", "filtered", r] for r in FilterReason
    }
    assert filtered == {str(r): expected.filtered[r] for r in FilterReason}
    assert _sum(metrics, "streamer_events_consumed_total") == len(stage.produced)
    assert _sum(metrics, "streamer_events_settled_total", "dead_lettered") == rejects + refused
    delivered = len(stage.produced) - rejects - refused - expected.filtered.total()
    assert metrics["streamer_events_settled_total", "delivered", ""] == delivered
    assert metrics["streamer_events_released_total",] == 0
    assert metrics["streamer_inflight_events",] == 0
    assert metrics["streamer_event_age_seconds_count",] == delivered
    calls = {
        kind: metrics["streamer_calls_total", "delivered", kind]
        for kind in ("identify", "group", "page", "track")
    }
    assert {kind: n for kind, n in calls.items() if n} == dict(stage.segment.stats.accepted)
    assert _sum(metrics, "streamer_inflight_calls") == 0


def _sum(metrics: Counter[tuple[str, ...]], *labels: str) -> float:
    return sum(value for key, value in metrics.items() if key[: len(labels)] == labels)


def _header(letter: Any, name: str) -> str:
    return str(dict(letter.headers)[f"streamer-{name}"].decode())
