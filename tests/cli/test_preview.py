"""Behaviour of `streamer preview`, against a real Kafka."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import stat
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

import orjson
import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import (
    CorruptRecordException,
    KafkaConnectionError,
    KafkaTimeoutError,
    TopicAuthorizationFailedError,
)
from typer.testing import CliRunner

from cli.test_kafka import closed_port
from documents import assert_printed, run_streamer, transcripts
from kafka_broker.topics import Kafka, ToProduce, fresh_name
from streamer.cli import app
from streamer.cli.preview import parse_start
from streamer.core.transform import Transform
from streamer.demo.events import generate
from streamer.errors import ConfigError, StreamerError
from streamer.hooks import registered
from streamer.trace import read_trace
from streamer.window import Since

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from typer.testing import Result

KEY = "wk_9fJ2mQ7xTz"
START_MS = 1_762_071_240_000  # 2025-11-02 08:14 UTC
PATIENCE = "60s"
COMMAND = Path(sys.executable).parent / "streamer"


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("SEGMENT_API_WRITE_KEY", raising=False)
    levels = {name: logging.getLogger(name).level for name in ("aiokafka", "streamer.handlers")}
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture
def file(tmp_path: Path, kafka: Kafka) -> Callable[..., Path]:
    """Writes a configuration for the shared Kafka."""

    def write(topic: str, more: str = "", **settings: str) -> Path:
        path = tmp_path / "streamer.toml"
        lines = {"bootstrap_servers": kafka.bootstrap, "topics": topic, **settings}
        toml = "".join(f'{key} = "{value}"\n' for key, value in lines.items() if value)
        letters = '[dead_letter]\nfile = "letters.ndjson"'
        path.write_text(f'[segment]\nwrite_key = "{KEY}"\n{letters}\n[kafka]\n{toml}{more}\n')
        return path

    return write


def preview(config: Path, *arguments: str, patience: str = PATIENCE) -> Result:
    result = CliRunner().invoke(
        app, ["preview", "--config", str(config), "--timeout", patience, *arguments]
    )
    if result.exception and not isinstance(result.exception, SystemExit | StreamerError):
        raise result.exception
    return result


def numbers(config: Path, *arguments: str) -> dict[str, Any]:
    result = preview(config, "--json", *arguments)
    assert result.exit_code == 0, result.exception
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


def refusal(config: Path, *arguments: str, patience: str = PATIENCE) -> str:
    """What is said instead; `main` prints it and exits with status 2."""
    result = preview(config, *arguments, patience=patience)
    assert isinstance(result.exception, StreamerError), result.output
    assert result.stdout == ""
    return str(result.exception)


def event(visitor: str = "v", **more: Any) -> bytes:
    made = {"event_type": "scroll", "event_timestamp": START_MS, "endpoint": {"Id": visitor}}
    return orjson.dumps({**made, **more})


def scrolls(count: int, partition: int = 0, every_ms: int = 1000) -> list[ToProduce]:
    """Of one visitor of the partition."""
    return [
        ToProduce(
            None,
            event(f"visitor-{partition}"),
            START_MS + every_ms * number,
            partition=partition,
        )
        for number in range(count)
    ]


def filled(kafka: Kafka, *records: ToProduce, partitions: int = 2) -> str:
    async def main() -> str:
        topic = await kafka.create_topic(partitions=partitions)
        await kafka.produce(topic, records)
        return topic

    return asyncio.run(main())


def demo(
    kafka: Kafka, count: int = 400, partitions: int = 2, *, rate: float = 20, **more: Any
) -> str:
    """Made-up events, by visitor."""
    events = islice(generate(1, round(rate * 2), rate=rate, start_ms=START_MS, **more), count)
    records = [
        ToProduce(
            one.key, one.value, one.timestamp_ms, partition=crc32(one.key or b"") % partitions
        )
        for one in events
    ]
    return filled(kafka, *records, partitions=partitions)


# --- nothing is touched ---------------------------------------------------------------------------


def test_a_group_at_work_goes_on_undisturbed(kafka: Kafka, file: Callable[..., Path]) -> None:
    """Its member keeps its partitions, and its committed offsets are as they were."""
    topic, group = filled(kafka, *scrolls(20)), fresh_name("group")

    async def main() -> None:
        await kafka.commit(group, {(topic, 0): 7})
        member = AIOKafkaConsumer(
            topic, bootstrap_servers=kafka.bootstrap, group_id=group, enable_auto_commit=False
        )
        await member.start()
        try:
            generation = member._coordinator.generation
            found = await asyncio.to_thread(numbers, file(topic, group_id=group))
            assert found["records"] == 20
            await member.getmany(timeout_ms=0)
            assert member._coordinator.generation == generation
            assert len(member.assignment()) == 2
        finally:
            await member.stop()
        assert await kafka.committed(group, topic) == {(topic, 0): 7}

    asyncio.run(main())


def test_a_topic_that_is_not_there_is_said_and_not_made(
    kafka: Kafka, file: Callable[..., Path]
) -> None:
    name = fresh_name("missing")
    for _ in range(2):
        assert f"kafka.topics: {name} does not exist in Kafka" in refusal(file(name))
    assert "no topic matches" in refusal(file("", topic_pattern=f"{name}.*"))
    assert name not in kafka._admin.list_topics(timeout=60).topics


# --- what is read ---------------------------------------------------------------------------------


def test_the_last_the_first_those_since_a_time_and_those_from_an_offset(
    kafka: Kafka, file: Callable[..., Path]
) -> None:
    topic = filled(kafka, *scrolls(100, 0), *scrolls(100, 1))
    config = file(topic)

    def times(*arguments: str) -> tuple[str, str, int]:
        found = numbers(config, *arguments)
        return found["from"][14:19], found["until"][14:19], found["records"]

    assert times() == ("14:00", "15:39", 200)
    assert times("--records", "20") == ("15:30", "15:39", 20)
    assert times("--records", "20", "--from", "beginning") == ("14:00", "14:09", 20)
    assert times("--records", "20", "--from", "2025-11-02T08:15") == ("15:00", "15:09", 20)
    assert times("--from", "2025-11-02T10:15:10+02:00") == ("15:10", "15:39", 60)
    assert times("--from", "40", "--records", "20") == ("14:40", "14:49", 20)
    assert times("--from", "40", "--records", "10", "--partition", "1") == ("14:40", "14:49", 10)
    found = numbers(config, "--records", "20")
    assert found["topics"] == [topic]
    assert (found["partitions"], found["complete"]) == (2, True)
    assert found["played"]["records_per_second"] == round(20 / 9, 4)
    pattern = numbers(file("", topic_pattern=topic[:-1]), "--records", "20")
    assert (pattern["topics"], pattern["records"]) == ([topic], 20)


def test_offsets_that_are_not_there_are_said(kafka: Kafka, file: Callable[..., Path]) -> None:
    topic = filled(kafka, *scrolls(20, 0), *scrolls(10, 1))
    asyncio.run(kafka.delete_records((topic, 0), 5))
    config = file(topic)
    assert refusal(config, "--from", "50").splitlines() == [
        f"offset 50 of {topic} 0 isn't there yet: the partition has 5 to 19",
        f"offset 50 of {topic} 1 isn't there yet: the partition has 0 to 9",
    ]
    assert refusal(config, "--from", "3", "--partition", "0") == (
        f"offset 3 of {topic} 0 is gone: the partition has 5 to 19"
    )
    result = preview(config, "--from", "3", "--show", "0")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[1] == (
        f"offset 3 of {topic} 0 is gone: the partition has 5 to 19"
    )
    assert numbers(config, "--from", "3")["without_the_offset"] == [f"{topic} 0"]
    assert "there is none of that number" in refusal(config, "--partition", "2")


def test_nothing_there_is_one_sentence(kafka: Kafka, file: Callable[..., Path]) -> None:
    topic = filled(kafka)
    assert refusal(file(topic)) == f"there is nothing to preview: {topic} has no records"
    assert refusal(file(topic), "--from", "3").startswith("there is nothing to preview")
    asyncio.run(kafka.produce(topic, scrolls(3)))
    assert refusal(file(topic), "--from", "2030-01-01") == (
        f"there is no record of 2030-01-01 00:00:00 UTC or younger in {topic}"
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--from", "soon"), "--from = 'soon': must be end, beginning, a time"),
        (("--from", "-5"), "--from = '-5': must be end"),
        (("--from", "1950-01-01"), "--from = '1950-01-01': must be end"),
        (("--timeout", "long"), '--timeout = "long": must be a duration'),
        (("--timeout", "0s"), '--timeout = "0s": must be more than nothing'),
        (("--request-time", "1"), '--request-time = "1": must be a duration'),
    ],
)
def test_an_option_that_is_wrong_is_said(
    arguments: tuple[str, ...], says: str, tmp_path: Path
) -> None:
    file = tmp_path / "streamer.toml"
    file.touch()
    assert says in refusal(file, *arguments)


def test_where_a_window_begins_is_read_as_people_write_it() -> None:
    assert parse_start("end") == "end"
    assert parse_start("beginning") == "beginning"
    assert parse_start("0") == 0
    assert parse_start("2025-11-02T08:14") == Since(START_MS)
    assert parse_start("2025-11-02 08:14Z") == Since(START_MS)
    assert parse_start("2025-11-02T10:14:00.250+02:00") == Since(START_MS + 250)
    ago = parse_start("10m")
    assert isinstance(ago, Since)
    assert -1 <= time.time() * 1000 - 600_000 - ago.at_ms < 60_000
    with pytest.raises(ConfigError):
        parse_start("²")


def test_a_kafka_that_cannot_be_reached_is_said_as_check_says_it(tmp_path: Path) -> None:
    port = closed_port()
    config = tmp_path / "streamer.toml"
    config.write_text(f'[kafka]\nbootstrap_servers = "127.0.0.1:{port}"\n')
    assert refusal(config) == (
        f"Kafka at 127.0.0.1:{port}: connection refused: nothing listens there"
    )
    # What aiokafka and handlers of hooks log is said there, and with the records.
    for name in ("aiokafka.consumer.fetcher", "streamer.handlers"):
        assert not logging.getLogger(name).isEnabledFor(logging.CRITICAL)


def test_timestamps_that_are_no_time_are_counted_and_not_played(
    kafka: Kafka, file: Callable[..., Path]
) -> None:
    """Such as microseconds where Kafka means thousandths; and a time between them that is only far away."""

    async def main() -> str:
        topic = await kafka.create_topic(partitions=1)
        limits = {
            f"message.timestamp.{side}.max.ms": str(2**63 - 1) for side in ("before", "after")
        }
        await kafka.configure_topic(topic, limits)
        odd = [START_MS * 1000, 1, 32_503_680_000_001]
        await kafka.produce(topic, [ToProduce(None, event(), at, partition=0) for at in odd])
        return topic

    config = file(asyncio.run(main()))
    found = numbers(config)
    assert found["without_timestamp"] == 1
    assert found["records"] == 3
    assert found["played"]["batches"]["closed"] == {"time": 1}
    assert found["seconds"] == 32_503_680_000
    assert "1 record without a Kafka timestamp that is one" in preview(config).stdout


def test_what_a_visitor_sent_begins_no_line(kafka: Kafka, file: Callable[..., Path]) -> None:
    forged = "a\n100 % of 9 say nothing new"
    events = [
        event(endpoint={"Id": "v", "User": {"UserAttributes": {forged: [str(number)]}}})
        for number in range(9)
    ]
    topic = filled(kafka, *(ToProduce(None, value, START_MS, partition=0) for value in events))
    text = preview(file(topic), "--show", "0").stdout
    assert "a\\n100 % of 9 say" in text
    assert not any(line.startswith("100 % of 9") for line in text.splitlines())


def test_a_kafka_that_says_nothing_is_given_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        config = tmp_path / "streamer.toml"
        config.write_text(f'[kafka]\nbootstrap_servers = "127.0.0.1:{port}"\n')
        began = time.monotonic()
        assert "no answer in time" in refusal(config, patience="300ms")
        assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (TimeoutError(), "Kafka told its topics, but gave no records of them within 60 s"),
        (KafkaTimeoutError(), "Kafka told its topics, but gave no records of them within 60 s"),
        (KafkaConnectionError(), "Kafka told its topics, but gave no records of them within 60 s"),
        (TopicAuthorizationFailedError("x"), "kafka.topics: it needs READ on them"),
        (
            CorruptRecordException("a checksum"),
            "can't be read: [Error 2] CorruptRecordException: a",
        ),
        (UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"), "can't be read: 'utf-8' codec can't"),
    ],
)
def test_what_keeps_kafka_from_giving_records_is_said(
    error: Exception,
    says: str,
    kafka: Kafka,
    file: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def look(*_arguments: object, **_more: object) -> None:
        raise error

    monkeypatch.setattr("streamer.cli.preview.look", look)
    assert says in refusal(file(filled(kafka, *scrolls(1))))


# --- what is said ---------------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_stream(kafka: Kafka, file: Callable[..., Path]) -> None:
    topic = demo(kafka, broken=0.05)
    config = file(topic, '[transform]\ndrop_events = ["click"]\n[flush]\ninterval = "2s"')
    found = numbers(config)
    assert found["records"] == 400
    rejected = found["rejects"]["reasons"]["not_json"]
    dropped = found["filtered"]["dropped_event"]
    assert rejected > 5
    assert dropped > 5
    forwarded = 400 - rejected - dropped
    assert found["calls"]["identify"] == forwarded
    assert found["calls"]["page"] + found["calls"]["track"] == forwarded
    assert found["calls_a_record"] == round(2 * forwarded / 400, 4)
    played = found["played"]
    assert played["calls_made"] == 2 * forwarded
    assert played["calls_billed"] == 2 * forwarded - played["calls_merged"]
    assert played["calls_suppressed"] == 0
    assert played["saved"] == round(played["calls_merged"] / (2 * forwarded), 4)
    assert played["saved"] > 0.05
    assert played["requests_per_second"] == pytest.approx(0.5, abs=0.06)
    assert 0.5 < played["lateness_seconds"]["p50"] < played["lateness_seconds"]["p99"] < 2.5
    batches = played["batches"]
    assert batches["closed"] == {"time": pytest.approx(400 / 20 / 2, abs=2)}
    assert 10 < batches["calls"]["p50"] <= batches["calls"]["max"] < 150
    assert batches["calls"]["max"] * 100 < batches["bytes"]["max"] < 475_000
    changes = found["changes"]["identify"]
    assert changes["following"] > 200
    assert next(iter(changes["changed"])) in {"pageViews", "lastPageSession"}
    assert "pageViews" in changes["suggested"]["ignore_traits"]
    assert changes["suggested"]["same"] > changes["same"] > 0
    assert found["users"] == {"seen": pytest.approx(30, abs=10), "in_several_partitions": 0}
    where = found["rejects"]["records"][0]
    stored = {(one.partition, one.offset): one.value for one in asyncio.run(kafka.read(topic))}
    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(stored[where["partition"], where["offset"]] or b"")
    assert (where["topic"], where["reason"]) == (topic, "not_json")
    assert "The record is no JSON" in where["detail"]


def test_a_person_reads_the_same(kafka: Kafka, file: Callable[..., Path]) -> None:
    """Where output goes into a pipe the calls of a few records are a JSON array a line, as of `transform`."""
    topic = demo(kafka, broken=0.05)
    more = '[transform]\ndrop_events = ["click"]\n[flush]\ninterval = "2s"'
    config = file(topic, more)
    found, result = numbers(config), preview(config)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    last = [one.value for one in asyncio.run(kafka.read(topic))]
    calls = [json.loads(line) for line in lines[:3]]
    transform = Transform(write_key=KEY)
    made = [transform.calls(value or b"", START_MS) for value in last]
    ids = [one[-1]["messageId"] for one in made if isinstance(one, list)]
    assert all(one[-1]["messageId"] in ids for one in calls)
    assert [one["calls"] for one in found["shown"]] == calls
    text = "\n".join(lines[3:])
    assert text.startswith(
        f"topic {topic}: 400 records of 2 partitions, 2025-11-02 08:14:00 to 2025-11-02 08:14:"
    )
    rejected = found["rejects"]["reasons"]["not_json"]
    assert f"dead letters: not_json {rejected}\n  {topic} " in text
    assert f"and {rejected - 10} more; --json lists 100" in text
    assert (
        f"filtered, by your own settings: dropped_event {found['filtered']['dropped_event']}"
        in text
    )
    assert f"billed calls  {found['played']['calls_billed']:,}" in text
    assert "with flush.interval 2s and aggregate.suppress_for 0s" in text
    assert "lateness      p50" in text
    assert "closed by time" in text
    assert " s only: --records takes more" not in text
    assert f"{found['changes']['identify']['following']} identify calls follow another" in text
    assert "pageViews" in text
    assert "in aggregate.ignore_traits it would be" in text
    assert "users was seen in two partitions: aggregate.suppress_for needs that" in text
    assert preview(config, "--show", "0").stdout.splitlines() == lines[3:]


@pytest.mark.parametrize("document", ["README.md", "docs/tuning.md"])
def test_it_prints_what_the_documents_show(
    document: str, kafka: Kafka, file: Callable[..., Path], tmp_path: Path
) -> None:
    """Figures apart; of the demo's events."""
    topic = demo(kafka, 1500, 4, broken=0.02, missing_ids=0.01, rate=100)
    groups = '[[groups]]\nfield = "endpoint.Attributes.AudienceId"\neach = true'
    file(topic, groups)
    shown = {
        command.removeprefix("streamer "): output
        for command, output in transcripts(document).items()
        if command.startswith("streamer preview ")
    }
    assert shown
    for arguments, output in shown.items():
        done = run_streamer(arguments, tmp_path)
        assert done.returncode == 0, done.stderr
        printed = done.stdout.replace(topic, "analytics-events")
        assert_printed(output, printed.replace("1,500 records", "10,000 records"), figures=False)


def test_a_terminal_gets_colours_and_no_controls(
    kafka: Kafka, file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What events say can't move the cursor, set the title, or turn the text."""
    evil = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202eab\x7f\r"
    value = event(attributes={"title": evil}, endpoint={"Id": "v", "Attributes": {evil: ["1"]}})
    topic = filled(
        kafka,
        *(ToProduce(None, value, START_MS + n, partition=0) for n in range(3)),
        ToProduce(None, event(event_timestamp=evil), START_MS + 5, partition=0),
    )
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    config = file(topic)
    shown = preview(config, "--show", "4").stdout
    assert "\x1b[" in shown  # rich's own colours
    assert f"{topic} 0, offset 2, 2025-11-02 08:14:00 UTC" in shown
    monkeypatch.setenv("NO_COLOR", "1")
    for text in (shown, preview(config, "--json").stdout):
        for control in ("\x1b]", "\x1b[2J", "\x07", "\x9b", "\u202e", "\x7f", "\r"):
            assert control not in text, repr(control)
        assert "owned" in text


def test_nothing_secret_is_said(kafka: Kafka, file: Callable[..., Path], tmp_path: Path) -> None:
    """Not even where an event or site code repeats it."""
    topic = filled(kafka, ToProduce(None, event(attributes={"title": KEY}), START_MS, partition=0))
    config = file(topic)
    trace = tmp_path / "t.ndjson"
    result = preview(config, "--record", str(trace))
    assert "[secret]" in result.stdout
    for said in (result.output, preview(config, "--json").output, trace.read_text()):
        assert KEY not in said


def test_users_in_two_partitions_are_said_with_what_it_means(
    kafka: Kafka, file: Callable[..., Path]
) -> None:
    records = [
        ToProduce(None, event("both"), START_MS + number, partition=number % 2)
        for number in range(4)
    ]
    topic = filled(kafka, *records, ToProduce(None, event("one"), START_MS, partition=0))
    off = preview(file(topic)).stdout
    assert (
        "1 of 2 users were seen in more than one partition: leave aggregate.suppress_for off" in off
    )
    on = preview(file(topic, '[aggregate]\nsuppress_for = "1h"')).stdout
    assert (
        "with aggregate.suppress_for, which is 1h, calls that Segment needs may be left out" in on
    )
    assert "the window is shorter than suppress_for" in on
    alone = preview(file(topic), "--partition", "0").stdout
    assert "one partition says nothing" in alone


def test_site_code_has_its_say(
    kafka: Kafka, file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves calls out, and chooses a write key that nothing shows."""
    name = fresh_name("site").replace("-", "_")
    (tmp_path / f"{name}.py").write_text(
        "from streamer.hooks import filter\n"
        "@filter('altis.analytics.segment.formatted_data')\n"
        "def only_main(data):\n"
        "    return [calls[-1:] if calls[-1]['anonymousId'] != 'gone' else [] for calls in data]\n"
        "@filter('altis.analytics.segment.api_write_key')\n"
        "def key(key, event):\n"
        "    return 'a-site-code-key'\n"
    )
    before = {hook: list(handlers) for hook, handlers in registered._handlers.items()}
    topic = filled(kafka, *scrolls(5), ToProduce(None, event("gone"), START_MS + 9999, partition=1))
    config = file(topic)
    config.write_text(f'plugins = ["{name}"]\n{config.read_text()}')
    monkeypatch.syspath_prepend(str(tmp_path))
    trace = tmp_path / "trace.ndjson"
    try:
        result = preview(config, "--json", "--record", str(trace))
    finally:
        registered._handlers.clear()
        registered._handlers.update(before)
    found = json.loads(result.stdout)
    assert found["calls"] == {"track": 5}
    assert found["filtered"] == {"hook": 1}
    assert "a-site-code-key" not in result.output + trace.read_text()
    assert len(read_trace(trace).arrivals) == 6


def test_the_profile_altis_is_said_without_what_merges(
    kafka: Kafka, file: Callable[..., Path], tmp_path: Path
) -> None:
    topic = demo(kafka, 200)
    trace = tmp_path / "trace.ndjson"
    config = file(topic, '[transform]\nprofile = "altis"')
    result = preview(config, "--record", str(trace))
    assert result.exit_code == 0
    assert "0 % merge" in result.stdout
    assert "follow another" not in result.stdout
    assert read_trace(trace).profile == "altis"


def test_records_without_calls_leave_nothing_to_divide_by(
    kafka: Kafka, file: Callable[..., Path]
) -> None:
    topic = filled(kafka, *(ToProduce(None, b"{", START_MS, partition=0) for _ in range(3)))
    result = preview(file(topic))
    assert result.exit_code == 0
    assert "calls are made of 0 of 3 records" in result.stdout
    assert "calls: 0, 0 a record: none" in result.stdout
    assert "all records have one timestamp" in result.stdout
    found = numbers(file(topic))
    assert found["played"]["requests_per_second"] is None
    assert found["played"]["lateness_seconds"]["p50"] is None


# --- the trace ------------------------------------------------------------------------------------


def test_a_trace_is_what_was_read_and_nobody_elses(
    kafka: Kafka, file: Callable[..., Path], tmp_path: Path
) -> None:
    """As many records as were asked for, in a file for its owner alone, of which there is never half."""
    topic = demo(kafka, 1200)
    config, trace = file(topic), tmp_path / "trace.ndjson"
    result = preview(config, "--record", str(trace), "--show", "0")
    assert result.exit_code == 0
    assert f"trace of 1,200 records: {trace}" in result.stdout
    assert stat.S_IMODE(trace.stat().st_mode) == 0o600
    loaded = read_trace(trace)
    stored = asyncio.run(kafka.read(topic))
    assert [one.at_ms for one in loaded.arrivals] == sorted(one.timestamp_ms for one in stored)
    assert loaded.size == sum(len(one.value or b"") for one in stored)
    assert {one.partition for one in loaded.arrivals} == {(topic, 0), (topic, 1)}
    assert b"visitor" not in trace.read_bytes()
    assert sorted(tmp_path.iterdir()) == [config, trace]
    assert numbers(config)["records"] == 1000


def test_a_file_that_is_there_stays_unless_forced(
    kafka: Kafka, file: Callable[..., Path], tmp_path: Path
) -> None:
    config, trace = file(filled(kafka, *scrolls(5))), tmp_path / "trace.ndjson"
    trace.write_text("precious")
    link = tmp_path / "link"
    link.symlink_to(trace)
    for name in (trace, link):
        said = refusal(config, "--record", str(name))
        assert said == f"--record = {str(trace)!r}: is there already; --force replaces it"
    assert trace.read_text() == "precious"
    assert preview(config, "--record", str(link), "--force").exit_code == 0
    assert link.is_symlink()
    assert len(read_trace(trace).arrivals) == 5
    assert "no file that could be replaced" in refusal(config, "--record", str(tmp_path), "--force")
    nowhere = tmp_path / "missing" / "trace"
    assert "can't be written: No such file" in refusal(config, "--record", str(nowhere))


def test_what_fails_leaves_no_file(kafka: Kafka, file: Callable[..., Path], tmp_path: Path) -> None:
    config = file(filled(kafka))
    assert "no records" in refusal(config, "--record", str(tmp_path / "trace"))
    assert list(tmp_path.iterdir()) == [config]


def test_partitions_without_a_common_time_make_no_trace(
    kafka: Kafka, file: Callable[..., Path], tmp_path: Path
) -> None:
    late = [one._replace(timestamp_ms=(one.timestamp_ms or 0) + 10**8) for one in scrolls(50, 1)]
    config = file(filled(kafka, *scrolls(50), *late))
    arguments = ("--from", "5", "--records", "10")
    result = preview(config, *arguments)
    assert result.exit_code == 0
    assert "no time in common from there on, so no rates can be said" in result.stdout
    assert "billed" not in result.stdout
    assert numbers(config, *arguments)["played"] is None
    said = refusal(config, *arguments, "--record", str(tmp_path / "trace"))
    assert said.startswith("no trace can be made of these records")
    assert preview(config, *arguments, "--partition", "1").exit_code == 0


def test_a_window_that_is_short_beside_the_interval_is_said(
    kafka: Kafka, file: Callable[..., Path]
) -> None:
    config = file(filled(kafka, *scrolls(21)), '[flush]\ninterval = "10s"')
    assert "that is of 20 s only: --records takes more" in preview(config).stdout


def test_a_terminal_breaks_lines_between_words(
    kafka: Kafka, file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = file(filled(kafka, *scrolls(5), *scrolls(5, 1)))
    longest = max(map(len, preview(config, "--show", "0").stdout.splitlines()))
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "60")
    lines = preview(config, "--show", "0").stdout.splitlines()
    assert longest > 100
    assert max(map(len, lines)) <= 60


def test_a_trace_on_standard_output_is_all_that_is_there(
    kafka: Kafka, file: Callable[..., Path], tmp_path: Path
) -> None:
    """The rest goes to standard error; `main` ends with status 0, without colours or a bar."""
    config = file(filled(kafka, *scrolls(5)))
    done = subprocess.run(
        [COMMAND, "preview", "--config", config, "--record", "-", "--timeout", PATIENCE],
        capture_output=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0
    trace = tmp_path / "trace"
    trace.write_bytes(done.stdout)
    assert len(read_trace(trace).arrivals) == 5
    assert b"trace of 5 records: on standard output; " in done.stderr
    assert b"\x1b" not in done.stderr


def test_a_mistake_is_status_2(file: Callable[..., Path], kafka: Kafka) -> None:
    done = subprocess.run(
        [COMMAND, "preview", "--config", file(filled(kafka)), "--timeout", PATIENCE],
        capture_output=True, check=False, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("streamer: there is nothing to preview: events-")


def test_site_code_that_hangs_is_left_behind(
    kafka: Kafka, file: Callable[..., Path], tmp_path: Path
) -> None:
    """Its records are rejects, and the command ends, with its trace."""
    topic = filled(kafka, *scrolls(3))
    config, trace = file(topic), tmp_path / "trace"
    (tmp_path / "hanging.py").write_text(
        "import asyncio\n"
        "from streamer.hooks import filter\n"
        "@filter('altis.analytics.segment.formatted_data')\n"
        "async def hang(data):\n"
        "    while True:\n"
        "        try: await asyncio.sleep(3600)\n"
        "        except asyncio.CancelledError: pass\n"
    )
    config.write_text(f'plugins = ["hanging"]\nhook_timeout = "200ms"\n{config.read_text()}')
    done = subprocess.run(
        [COMMAND, "preview", "--config", config, "--record", trace, "--timeout", PATIENCE],
        capture_output=True, check=False, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "hook_failed 3" in done.stdout
    assert [one.reason for one in read_trace(trace).arrivals] == ["hook_failed"] * 3
