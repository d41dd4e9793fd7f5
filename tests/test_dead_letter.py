"""Dead letters are written, in order, before they count: to a real Kafka, to files, and to a sink that fails."""

from __future__ import annotations

import asyncio
import resource
import signal
import time
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson
import pytest
import structlog

from kafka_broker.broker import KafkaBroker, free_port
from kafka_broker.topics import Kafka, ReadRecord
from streamer import virtual_time
from streamer.core.budget import Budget
from streamer.core.model import DeadLetter, Reason
from streamer.dead_letter import LETTER_OVERHEAD, DeadLetters, FileSink, KafkaSink
from streamer.errors import StartError
from streamer.virtual_time import START

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from conftest import Require

A_RECORD = DeadLetter(
    kind="record",
    reason=Reason.NOT_JSON,
    detail="The record is no JSON: \u201cunexpected\u201d.",
    topic="events",
    partition=3,
    offset=42,
    timestamp_ms=1_700_000_000_123,
    key=b"\x00key",
    value=b"{broken\xff",
    headers=(("trace", b"\x01\x02"), ("trace", b"again"), ("nothing", None)),  # type: ignore[arg-type] # Kafka allows it
)
A_CALL = replace(
    A_RECORD,
    kind="call",
    reason=Reason.REFUSED,
    value=b'{"type":"page"}',
    headers=(),
    tries=7,
    batch="0a1b2c3d4e",
)


def letters(count: int) -> list[DeadLetter]:
    return [replace(A_CALL, offset=number, key=b"%d" % number) for number in range(count)]


def said(record: ReadRecord) -> dict[str, str | None]:
    """The headers that streamer adds."""
    found = [(name, value) for name, value in record.headers if name.startswith("streamer-")]
    assert len(dict(found)) == len(found), "each once"
    return {name: value.decode() if value else None for name, value in found}


def offsets(records: Sequence[ReadRecord]) -> list[int]:
    """The original offsets of letters, sorted."""
    return sorted(int(str(said(record)["streamer-offset"])) for record in records)


def sink_to(kafka: Kafka, topic: str) -> KafkaSink:
    return KafkaSink(topic, {"bootstrap_servers": kafka.bootstrap})


# --- Kafka ----------------------------------------------------------------------------------------


def test_a_letter_in_kafka(kafka: Kafka) -> None:
    """Key, value, headers and timestamp are the record's; more headers say what happened to it."""

    async def main() -> None:
        topic = await kafka.create_topic(partitions=1)
        sink = sink_to(kafka, topic)
        assert await sink.write([A_RECORD, A_CALL]) == (2, "")
        await sink.close()
        record, call = await kafka.read(topic)
        assert (record.key, record.value) == (A_RECORD.key, A_RECORD.value)
        assert record.timestamp_ms == call.timestamp_ms == 1_700_000_000_123
        assert record.headers[:3] == A_RECORD.headers
        headers = said(record)
        assert time.time() - 60 < _seconds(str(headers.pop("streamer-time"))) <= time.time()
        assert headers == {
            "streamer-kind": "record",
            "streamer-reason": "not_json",
            "streamer-detail": A_RECORD.detail,
            "streamer-topic": "events",
            "streamer-partition": "3",
            "streamer-offset": "42",
            "streamer-tries": "0",
        }
        assert call.value == A_CALL.value
        assert said(call)["streamer-kind"] == "call"
        assert said(call)["streamer-reason"] == "refused"
        assert said(call)["streamer-tries"] == "7"
        assert said(call)["streamer-batch"] == "0a1b2c3d4e"

    asyncio.run(main())


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [(None, b"x", b"x"), (b"k", None, None), (b"k", b"", b""), (None, None, b"")],
)
def test_what_a_record_lacks(
    kafka: Kafka, key: bytes | None, value: bytes | None, expected: bytes | None
) -> None:
    """Tombstones, records without a key or a timestamp, and records without anything can be dead letters."""

    async def main() -> None:
        topic = await kafka.create_topic(partitions=1)
        sink = sink_to(kafka, topic)
        letter = replace(A_RECORD, key=key, value=value, timestamp_ms=None, headers=())
        assert await sink.write([letter]) == (1, "")
        await sink.close()
        [record] = await kafka.read(topic)
        assert (record.key, record.value) == (key, expected)
        assert record.timestamp_ms >= (time.time() - 60) * 1000

    asyncio.run(main())


def test_many_letters_are_written_once_each_in_order(kafka: Kafka) -> None:
    """More than a batch of Kafka's holds."""

    async def main() -> None:
        topic = await kafka.create_topic(partitions=2)
        sink = sink_to(kafka, topic)
        assert await sink.write(letters(500)) == (500, "")
        assert await sink.write(letters(1)) == (1, "")
        await sink.close()
        records = await kafka.read(topic)
        assert offsets(records) == [0, *range(500)]
        for partition in (0, 1):
            order = [int(record.key or b"") for record in records if record.partition == partition]
            assert order[:-1] == sorted(order[:-1])

    asyncio.run(main())


def test_a_letter_that_kafka_refuses_for_its_size_is_written_in_part(kafka: Kafka) -> None:
    """The letters around it arrive as they are, once each, and the sink goes on."""

    async def main() -> None:
        topic = await kafka.create_topic(partitions=1)
        large = replace(
            A_RECORD, value=b"x" * 1_500_000, headers=(("h", b"y" * 200_000),), offset=5
        )
        fits = replace(A_RECORD, value=b"x" * 900_000, headers=(), offset=6)
        together = [*letters(5), large, fits, replace(large, offset=7), *letters(12)[8:]]
        sink = sink_to(kafka, topic)
        with structlog.testing.capture_logs() as logs:
            assert await sink.write(together) == (len(together), "")
        assert await sink.write(letters(13)[12:]) == (1, "")
        await sink.close()
        records = await kafka.read(topic)
        assert offsets(records) == list(range(13))
        by_offset = {int(str(said(record)["streamer-offset"])): record for record in records}
        for offset in (5, 7):
            assert by_offset[offset].value == b"x" * 100_000
            assert by_offset[offset].key == large.key
            assert by_offset[offset].timestamp_ms == large.timestamp_ms
            assert said(by_offset[offset])["streamer-truncated"] == "1500000"
            assert said(by_offset[offset])["streamer-topic"] == "events"
        assert by_offset[6].value == fits.value
        whole = {offset: record for offset, record in by_offset.items() if offset not in {5, 7}}
        assert not any("streamer-truncated" in said(record) for record in whole.values())
        assert [line["offset"] for line in logs] == [5, 7]

    asyncio.run(main())


def test_a_topic_that_takes_little_gets_what_it_takes(kafka: Kafka) -> None:
    """Where even a part of the value is too much, the coordinates of the record are written."""

    async def main() -> None:
        topic = await kafka.create_topic(partitions=1, config={"max.message.bytes": "2000"})
        sink = sink_to(kafka, topic)
        large = replace(A_RECORD, value=b"x" * 3000, key=b"k" * 3000, offset=50)
        together = [*letters(50), large]  # a batch of which is too large, though each letter isn't
        assert await sink.write(together) == (51, "")
        await sink.close()
        records = await kafka.read(topic)
        assert offsets(records) == list(range(51))
        assert [record.value for record in records] == [A_CALL.value] * 50 + [b""]
        assert said(records[-1])["streamer-truncated"] == "3000"

    asyncio.run(main())


def test_a_timestamp_that_kafka_refuses_stands_in_a_header(kafka: Kafka) -> None:
    """Kafka refuses what is over an hour ahead; the letters around it keep theirs."""

    async def main() -> None:
        topic = await kafka.create_topic(partitions=1)
        ahead = int(time.time() * 1000) + 86_400_000
        sink = sink_to(kafka, topic)
        together = [*letters(3), replace(A_CALL, offset=3, timestamp_ms=ahead)]
        assert await sink.write(together) == (4, "")
        await sink.close()
        records = await kafka.read(topic)
        assert offsets(records) == [0, 1, 2, 3]
        late = [record for record in records if "streamer-timestamp" in said(record)]
        assert [said(record)["streamer-timestamp"] for record in late] == [str(ahead)]
        assert {record.timestamp_ms for record in records if record not in late} == {
            A_CALL.timestamp_ms
        }

    asyncio.run(main())


@pytest.fixture(scope="module")
def broker(require: Require) -> Iterator[KafkaBroker]:
    """A broker that these tests may stop, and that makes no topics by itself."""
    require("java", "mvn")
    with KafkaBroker({"auto.create.topics.enable": "false"}) as running:
        yield running


def test_a_topic_that_is_missing_says_so(broker: KafkaBroker) -> None:
    """And nothing is acknowledged."""

    async def main() -> None:
        sink = KafkaSink("nowhere", {"bootstrap_servers": broker.bootstrap}, timeout_seconds=1.0)
        written, why = await sink.write([A_CALL])
        assert written == 0
        assert why
        await sink.close()

    asyncio.run(main())


def test_letters_outlive_their_broker(broker: KafkaBroker) -> None:
    """What is put while it is away is written when it is back: none lost, no CPU burnt, nothing left behind."""

    async def main() -> None:
        kafka = Kafka(broker.bootstrap)
        topic = await kafka.create_topic(partitions=2)
        failures: list[float] = []
        dead_letters = DeadLetters(
            KafkaSink(topic, {"bootstrap_servers": kafka.bootstrap}, timeout_seconds=3.0),
            lambda: failures.append(time.monotonic()),
        )
        share = Budget(10**9).share()
        acknowledged: list[int] = []

        def put(some: Sequence[DeadLetter]) -> None:
            for letter in some:
                dead_letters.put(letter, share, partial(acknowledged.append, letter.offset))

        before = asyncio.all_tasks()
        writing = asyncio.create_task(dead_letters.run())
        put(letters(100))
        assert await dead_letters.drain(10.0)
        stopping = asyncio.create_task(asyncio.to_thread(broker.stop))
        for number in range(100, 150):  # some meet the broker while it stops
            put(letters(number + 1)[number:])
            await asyncio.sleep(0.02)
        await stopping
        cpu, wall = time.process_time(), time.monotonic()
        put(letters(200)[150:])
        while len(failures) < 2:
            await asyncio.sleep(0.05)
        assert time.process_time() - cpu < 0.25 * (time.monotonic() - wall)
        assert len(acknowledged) < 200
        assert dead_letters.failing
        broker.launch()
        await asyncio.to_thread(broker.wait_until_ready)
        assert await dead_letters.drain(20.0)
        assert acknowledged == list(range(200))
        assert share.used == 0
        assert not dead_letters.failing
        assert set(offsets(await kafka.read(topic))) == set(range(200))
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == before, "no producer goes on in the dark"

    with structlog.testing.capture_logs() as logs:
        asyncio.run(main())
    assert [line["log_level"] for line in of_writing(logs)] == ["error", "info"]


def test_a_stop_without_kafka_is_quick(unused_address: str) -> None:
    """What can't be written doesn't hold the process."""

    async def main() -> None:
        dead_letters = DeadLetters(KafkaSink("topic", {"bootstrap_servers": unused_address}))
        writing = asyncio.create_task(dead_letters.run())
        dead_letters.put(A_CALL, Budget(1).share(), lambda: None)
        await asyncio.sleep(0.2)
        started = time.monotonic()
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        assert time.monotonic() - started < 10.0
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


@pytest.fixture
def unused_address() -> str:
    """Where nothing listens."""
    return f"127.0.0.1:{free_port()}"


# --- files ----------------------------------------------------------------------------------------


def lines(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def test_a_letter_in_a_file(tmp_path: Path) -> None:
    """A line each; what isn't UTF-8 is base64-encoded."""
    path = tmp_path / "letters.ndjson"

    async def main() -> None:
        sink = FileSink(path)
        assert await sink.write([A_RECORD]) == (1, "")
        tombstone = replace(A_CALL, value=None, key=None, timestamp_ms=None)
        assert await sink.write([A_CALL, tombstone]) == (2, "")
        await sink.close()

    asyncio.run(main())
    record, call, tombstone = lines(path)
    assert time.time() - 60 < _seconds(record.pop("time")) <= time.time()
    assert record == {
        "kind": "record",
        "reason": "not_json",
        "detail": A_RECORD.detail,
        "topic": "events",
        "partition": 3,
        "offset": 42,
        "timestamp": 1_700_000_000_123,
        "tries": 0,
        "key": "\x00key",
        "value_base64": "e2Jyb2tlbv8=",
        "headers": [["trace", "\x01\x02"], ["trace", "again"], ["nothing", None]],
    }
    assert (call["kind"], call["value"], call["tries"]) == ("call", '{"type":"page"}', 7)
    assert call["batch"] == "0a1b2c3d4e"
    assert (tombstone["value"], tombstone["key"], tombstone["timestamp"]) == (None, None, None)


def test_binary_headers_in_a_file(tmp_path: Path) -> None:
    """They stand in place of the text."""
    path = tmp_path / "letters.ndjson"
    letter = replace(A_RECORD, headers=(("h", b"\xff"),), key=b"\xfe")
    assert asyncio.run(FileSink(path).write([letter])) == (1, "")
    [line] = lines(path)
    assert line["headers"] == [["h", {"base64": "/w=="}]]
    assert line["key_base64"] == "/g=="


def test_a_line_that_was_cut_off_does_not_spoil_the_next(tmp_path: Path) -> None:
    """A killed process may leave one; its letter wasn't acknowledged, and is written again."""
    path = tmp_path / "letters.ndjson"
    path.write_bytes(b'{"kind":"record"}\n{"kind":"rec')
    assert asyncio.run(FileSink(path).write([A_CALL])) == (1, "")
    first, torn, second = path.read_bytes().splitlines()
    assert orjson.loads(first) == {"kind": "record"}
    assert torn == b'{"kind":"rec'
    assert orjson.loads(second)["kind"] == "call"


def test_a_file_that_cannot_be_written_says_which_and_why(tmp_path: Path) -> None:
    """A folder that isn't there, for one."""
    path = tmp_path / "missing" / "letters.ndjson"
    written, why = asyncio.run(FileSink(path).write([A_CALL]))
    assert written == 0
    assert why == f"{path}: No such file or directory"


def test_a_full_disk_leaves_no_half_lines(tmp_path: Path) -> None:
    """What was written of them is taken back, since they are written again."""
    path = tmp_path / "letters.ndjson"
    sink = FileSink(path)
    assert asyncio.run(sink.write([A_CALL])) == (1, "")
    whole = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 400, limits[1]))
    try:
        written, why = asyncio.run(sink.write(letters(10)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert (written, why) == (0, f"{path}: File too large")
    assert path.read_bytes() == whole
    assert asyncio.run(sink.write(letters(10))) == (10, "")
    assert len(lines(path)) == 11


def test_letters_wait_for_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    """Tried again, then acknowledged."""
    path = tmp_path / "later" / "letters.ndjson"

    async def main() -> None:
        failed = asyncio.Event()
        dead_letters = DeadLetters(FileSink(path), failed.set)
        share = Budget(10**6).share()
        acknowledged: list[str] = []
        writing = asyncio.create_task(dead_letters.run())
        dead_letters.put(A_CALL, share, lambda: acknowledged.append("yes"))
        await failed.wait()
        assert acknowledged == []
        assert share.used
        path.parent.mkdir()
        assert await dead_letters.drain(5.0)
        assert acknowledged == ["yes"]
        assert len(lines(path)) == 1
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)

    with structlog.testing.capture_logs():
        asyncio.run(main())


# --- the queue before a sink ----------------------------------------------------------------------


class FakeSink:
    """Writes into a list, as long as `failing` is empty, and at most `at_once` letters of each write."""

    def __init__(self) -> None:
        self.written: list[DeadLetter] = []
        self.tries: list[float] = []
        self.failing = ""
        self.at_once = 10**9
        self.latency = 0.1
        self.closed = 0

    async def write(self, letters: Sequence[DeadLetter]) -> tuple[int, str]:
        self.tries.append(asyncio.get_running_loop().time() - START)
        await asyncio.sleep(self.latency)
        if self.failing:
            return 0, self.failing
        some = letters[: self.at_once]
        self.written += some
        return len(some), "" if len(some) == len(letters) else "no more"

    async def close(self) -> None:
        self.closed += 1


class Story:
    """Dead letters on a fake sink, in virtual time."""

    def __init__(self) -> None:
        self.sink = FakeSink()
        self.failures = 0
        self.dead_letters = DeadLetters(self.sink, self._failed)
        self.budget = Budget(10**9)
        self.share = self.budget.share()
        self.acknowledged: list[int] = []

    async def __aenter__(self) -> Story:  # noqa: PYI034 - never subclassed
        self._writing = asyncio.create_task(self.dead_letters.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writing.cancel()
        await asyncio.gather(self._writing, return_exceptions=True)
        assert self.sink.closed == 1

    def put(self, some: Sequence[DeadLetter]) -> None:
        for letter in some:
            self.dead_letters.put(letter, self.share, self._acknowledge(letter))

    def _acknowledge(self, letter: DeadLetter) -> Any:
        def acknowledged() -> None:
            assert letter in self.sink.written, "only what is written"
            self.acknowledged.append(letter.offset)

        return acknowledged

    def _failed(self) -> None:
        self.failures += 1


def tell(story: Any) -> list[Any]:
    """Run a story in virtual time, and give what the log says of the writing."""
    with structlog.testing.capture_logs() as logs:
        virtual_time.run(story())
    return of_writing(logs)


def of_writing(logs: Sequence[Any]) -> list[Any]:
    """Leave out the lines about letters that are written."""
    return [line for line in logs if line["event"] != "dead letters"]


def test_a_letter_counts_once_it_is_written() -> None:
    """Not before; in order; and then its memory is free."""

    async def story() -> None:
        async with Story() as it:
            it.put(letters(3))
            assert len(it.dead_letters) == 3
            assert it.budget.used >= 3 * LETTER_OVERHEAD
            await asyncio.sleep(0.05)
            assert it.acknowledged == []
            assert await it.dead_letters.drain(1.0)
            assert it.acknowledged == [0, 1, 2]
            assert it.sink.tries == [0.0]
            assert it.budget.used == 0
            assert len(it.dead_letters) == 0

    assert tell(story) == []


def test_a_letter_is_held_with_all_it_has() -> None:
    """Key and headers take memory too."""
    heavy = replace(A_RECORD, key=b"k" * 1000, value=b"v" * 1000, headers=(("h", b"h" * 1000),))
    share = Budget(10**9).share()

    async def main() -> None:
        DeadLetters(FakeSink()).put(heavy, share, lambda: None)

    asyncio.run(main())
    assert share.used >= 3000 + LETTER_OVERHEAD


def test_what_comes_during_a_write_is_written_next() -> None:
    """Together, in order."""

    async def story() -> None:
        async with Story() as it:
            some = letters(2000)
            it.put(some[:1])
            await asyncio.sleep(0.05)
            it.put(some[1:])
            assert await it.dead_letters.drain(10.0)
            assert it.acknowledged == list(range(2000))
            assert it.sink.written == some
            assert len(it.sink.tries) == 1 + 4

    tell(story)


def test_a_sink_that_fails_is_tried_again_for_ever() -> None:
    """Every failure counts; one line says that it began, one that it ended."""

    async def story() -> None:
        async with Story() as it:
            it.sink.failing = "disk full"
            it.put(letters(2))
            await asyncio.sleep(3600.0)
            assert it.acknowledged == []
            assert it.dead_letters.failing == "disk full"
            assert it.failures == len(it.sink.tries)
            pauses = [b - a for a, b in zip(it.sink.tries, it.sink.tries[1:], strict=False)]
            assert pauses[:5] == pytest.approx([0.6, 1.1, 2.1, 4.1, 8.1])
            assert max(pauses) == pytest.approx(10.1)
            it.put(letters(3)[2:])
            it.sink.failing = ""
            assert await it.dead_letters.drain(11.0)
            assert it.acknowledged == [0, 1, 2]
            assert not it.dead_letters.failing

    logs = tell(story)
    assert [(line["log_level"], line.get("reason")) for line in logs] == [
        ("error", "disk full"),
        ("info", None),
    ]


def test_what_is_written_of_a_write_counts() -> None:
    """The rest is tried again, not all of it."""

    async def story() -> None:
        async with Story() as it:
            it.sink.at_once = 2
            it.put(letters(5))
            assert await it.dead_letters.drain(60.0)
            assert it.acknowledged == [0, 1, 2, 3, 4]
            assert it.sink.written == letters(5)

    tell(story)


def test_draining_gives_up_at_its_time() -> None:
    """And says that not all is written."""

    async def story() -> None:
        async with Story() as it:
            assert await it.dead_letters.drain(0.0)
            it.sink.failing = "no"
            it.put(letters(1))
            started = asyncio.get_running_loop().time()
            assert not await it.dead_letters.drain(5.0)
            assert asyncio.get_running_loop().time() - started == pytest.approx(5.0)

    tell(story)


def test_a_generation_that_ended_is_forgotten() -> None:
    """What is on its way isn't acknowledged any more, and the next generation's letters aren't mistaken for it."""

    async def story() -> None:
        async with Story() as it:
            it.put(letters(3))
            await asyncio.sleep(0.05)
            it.dead_letters.forget()
            assert it.budget.used == 0
            it.share.end()
            it.share = it.budget.share()
            it.put(letters(3))
            await asyncio.sleep(0.06)
            assert len(it.sink.written) == 3
            assert it.acknowledged == []
            assert await it.dead_letters.drain(1.0)
            assert it.acknowledged == [0, 1, 2]
            assert it.budget.used == 0

    tell(story)


def test_forgetting_ends_a_drain() -> None:
    """There is nothing left to wait for."""

    async def story() -> None:
        async with Story() as it:
            it.sink.failing = "no"
            it.put(letters(1))
            draining = asyncio.create_task(it.dead_letters.drain(100.0))
            await asyncio.sleep(1.0)
            it.dead_letters.forget()
            assert await draining
            assert asyncio.get_running_loop().time() - START == pytest.approx(1.0)

    tell(story)


def test_letters_that_are_written_together_are_a_line_for_each_reason_and_batch() -> None:
    """It shows the first of them, and comes when they are kept: a write that fails is another line."""

    async def story() -> None:
        async with Story() as it:
            it.sink.failing = "no"
            first, second, third = (replace(A_RECORD, offset=number) for number in range(3))
            calls = [replace(A_CALL, offset=3), replace(A_CALL, batch="5", offset=4)]
            it.put([first, replace(second, reason=Reason.EMPTY), third, *calls, calls[0]])
            await asyncio.sleep(1)
            it.sink.failing = ""
            assert await it.dead_letters.drain(10.0)

    with structlog.testing.capture_logs() as logs:
        virtual_time.run(story())
    failing, *kept, again = logs
    assert (failing["reason"], failing["waiting"]) == ("no", 6)
    assert [
        (line["reason"], line["letters"], line["offset"], line.get("batch")) for line in kept
    ] == [
        ("not_json", 2, 0, None),
        ("empty", 1, 1, None),
        ("refused", 2, 3, "0a1b2c3d4e"),
        ("refused", 1, 4, "5"),
    ]
    assert {line["event"] for line in kept} == {"dead letters"}
    assert 1.0 < again["after_seconds"] < 2.0


def test_a_file_that_cannot_be_written_is_said_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"dead_letter.file = .*/nope/x.ndjson: can't be written"):
        FileSink(tmp_path / "nope" / "x.ndjson").check()
    with pytest.raises(StartError, match="can't be written: Is a directory"):
        FileSink(tmp_path).check()
    FileSink(tmp_path / "x.ndjson").check()
    assert (tmp_path / "x.ndjson").read_bytes() == b""


def test_no_more_is_written_together_than_a_slow_cluster_takes() -> None:
    """One letter at least, however large."""

    async def story() -> None:
        async with Story() as it:
            it.sink.latency = 0.0
            large = [replace(letter, value=b"v" * 400_000) for letter in letters(5)]
            it.put([*large, replace(large[0], value=b"v" * 3_000_000, offset=5)])
            assert await it.dead_letters.drain(1.0)
            assert it.acknowledged == [0, 1, 2, 3, 4, 5]
            assert len(it.sink.tries) == 4

    tell(story)


def test_letters_that_were_acknowledged_before_the_time_was_over_are_not_written_again() -> None:
    """Of a topic that takes them slowly, some in each time-out."""

    class SlowProducer:
        sent = 0

        async def send(self, _: str, **__: Any) -> asyncio.Future[None]:
            future = asyncio.get_running_loop().create_future()
            self.sent += 1
            if self.sent <= 2:
                future.set_result(None)
            return future

    class SlowSink(KafkaSink):
        async def _connected(self) -> Any:
            return SlowProducer()

    async def main() -> None:
        sink = SlowSink("topic", {}, timeout_seconds=1.0)
        assert await sink.write(letters(5)) == (2, "no acknowledgement within 1 s")

    virtual_time.run(main())
