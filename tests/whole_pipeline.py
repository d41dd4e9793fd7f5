"""What whole-pipeline tests share: members of a consumer group, each a process, and the one assertion they end in.

The judge is what the mock Segment accepted, held against what was produced. What the calls should be is read off the
mapping's specification by the reference interpreter; nothing of the product's own mapping is asked.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import aiohttp
import orjson
from prometheus_client.parser import text_string_to_metric_families

from kafka_broker.topics import Kafka, ToProduce, fresh_name
from reference.interpreter import Interpreter
from streamer.core.mapping import BUILTIN_CALLBACKS, default_mapping
from streamer.core.model import FilterReason, Reason
from streamer.mock_segment import Fault, MockSegment

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DIE_WITH_PARENT = Path(__file__).with_name("kafka_broker") / "die_with_parent.py"
WRITE_KEY = "a-write-key-of-thirty-two-chars-0"
GROUP_FIELD = "endpoint.Attributes.AudienceId"
GROUP_TRAITS = {
    "country": "endpoint.User.UserAttributes.country.0",
    "device": "endpoint.Attributes.DeviceType.0",
}
TIMEOUT_SECONDS = 240.0


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

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    async def stop(self) -> int:
        """SIGTERM; gives the exit status."""
        self.signal(signal.SIGTERM)
        return await self.wait()

    async def kill(self) -> None:
        self.signal(signal.SIGKILL)
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
    """

    kafka: Kafka
    settings: Mapping[str, str] = field(default_factory=dict)
    faults: Iterable[Fault] = ()
    excluded: Mapping[str, Any] = field(default_factory=dict)
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
            "STREAMER_KAFKA__SESSION_TIMEOUT": "6s",
            "STREAMER_GROUPS": orjson.dumps([group]).decode(),
            "STREAMER_SEGMENT__ENDPOINT": self.segment.url,
            "STREAMER_SERVER__PORT": "0",
            "SEGMENT_API_WRITE_KEY": WRITE_KEY,
            **self.settings,
            **settings,
        }
        log = Path(self._folder.name) / f"member-{len(self.members)}.log"
        member = Member(environment, log)
        self.members.append(member)
        return await member.start()

    async def produce(self, records: Iterable[ToProduce]) -> None:
        records = list(records)
        places = await self.kafka.produce(self.topic, records)
        self.produced += [
            Produced(partition, offset, record)
            for (partition, offset), record in zip(places, records, strict=True)
        ]

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
        self, *, refused: frozenset[str] = frozenset(), once: bool = True
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
        """
        expected = _expect(self.produced, self.excluded)
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
        for place, (reason, produced) in expected.rejects.items():
            letter = found[place]
            assert _header(letter, "reason") == reason
            assert _header(letter, "topic") == self.topic
            assert (letter.key, letter.value) == (produced.key, produced.value)
            assert letter.headers[: len(produced.headers)] == produced.headers
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
    produced: Iterable[Produced], excluded: Mapping[str, Any], write_key: str = WRITE_KEY
) -> _Expected:
    group = {"field": GROUP_FIELD, "traits": GROUP_TRAITS, "each": True}
    interpreter = Interpreter(write_key, default_mapping(), [group], BUILTIN_CALLBACKS, **excluded)
    expected = _Expected()
    partitions: dict[str, int] = {}
    for place in produced:
        record = place.record
        calls = interpreter.calls(record.value, record.timestamp_ms or -1)
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
                    key = (user, call["groupId"])
                    expected.groups.setdefault(key, {}).update(call.get("traits", {}))
                case main:
                    assert call["messageId"] not in expected.mains, "the input has an event twice"
                    expected.mains[call["messageId"]] = main
    return expected


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
