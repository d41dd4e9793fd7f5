"""`streamer preview`: what real records would come to, without taking part."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, NamedTuple

import orjson
import typer
from aiokafka.errors import (
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    TopicAuthorizationFailedError,
)
from rich.console import Console
from rich.progress import Progress
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from streamer.backlog import count
from streamer.cli import AltisOption
from streamer.cli.kafka import KAFKA_TIMEOUT, NOT_READ, reach
from streamer.cli.run import secrets_of
from streamer.cli.transform import CHUNK_LINES, PLACEHOLDER_WRITE_KEY, Said, with_write_key
from streamer.config import duration_text, load_config, parse_duration
from streamer.core.model import Filtered, Reject
from streamer.core.tally import Changes, Tally
from streamer.core.transform import PROFILES
from streamer.errors import ConfigError, StartError
from streamer.formatter import Made, Value
from streamer.handlers import left_behind
from streamer.hooks import registered
from streamer.logs import configure, masker
from streamer.pipeline import make_formatter, make_transform
from streamer.plugins import load_plugins
from streamer.simulation import Played, play
from streamer.trace import Recorder, Trace, parse_trace
from streamer.window import Since, Start, Window, look

if TYPE_CHECKING:
    from aiokafka import ConsumerRecord

    from streamer.config import Config
    from streamer.core.model import Partition

RECORDS = 1000
"""So many records are looked at."""
RECORDED = 10_000
"""So many if a trace is recorded."""

_SHOWN_REJECTS = 10
_LISTED_REJECTS = 100
"""So many rejected records are in the JSON."""
_SHOWN_TRAITS = 10
_NAMED = 5
_PIPED_WIDTH = 120
_SHORT_SECONDS = 5.0
"""Over less than that a rate says little."""
_STANDARD_OUTPUT = Path("-")
# What a terminal may take for more than a character, in text that is printed: controls, and what turns the direction.
_CONTROLS = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def preview(
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", metavar="FILE", help="The TOML file."),
    ] = None,
    altis: AltisOption = None,
    records: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=200_000,
            metavar="N",
            help=f"How many records, over all partitions. [default: {RECORDS:,}; with --record {RECORDED:,}]",
        ),
    ] = None,
    start: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="WHERE",
            help="end: the last N; beginning; a time such as 2026-11-02T08:14 (UTC unless it says otherwise); 10m: so"
            " long ago; or an offset, of each partition.",
        ),
    ] = "end",
    partition: Annotated[
        int | None, typer.Option(min=0, help="Look at this partition of each topic alone.")
    ] = None,
    show: Annotated[
        int, typer.Option(min=0, max=1000, help="Of how many records the calls are shown.")
    ] = 3,
    record: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write a trace for `streamer tune`: when records came and the sizes of their calls, ids hashed and"
            " without content; - for standard output.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Let --record replace a file that is there.")
    ] = False,
    request_time: Annotated[
        str, typer.Option(metavar="DURATION", help="How long Segment takes for a request.")
    ] = "100ms",
    timeout: Annotated[
        str, typer.Option(metavar="DURATION", help="How long reading from Kafka may take.")
    ] = "30s",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of text.")
    ] = False,
) -> None:
    """Read real records, and say what they would come to: their calls, rejects, requests, lateness and the bill.

    Reads without joining the group; nothing is committed, sent or made. All partitions are read over the same time,
    so that rates and merging are those of the stream. What the settings in force would do is played with streamer's
    own code for merging and sending, as one process that reads all of it.

    Site code has its say as in `streamer run`, but for actions. The exit status is 0 also if records are rejected: that
    is what was asked for, and nothing is lost by it.
    """
    configure("error")
    logging.getLogger("streamer.handlers").setLevel(logging.CRITICAL + 1)  # said with the records
    # What aiokafka logs while it tries is said in one sentence, here.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL + 1)
    asked = _Asked(
        where=parse_start(start),
        number=records or (RECORDED if record else RECORDS),
        partition=partition,
        timeout_seconds=_duration("--timeout", timeout),
        request_seconds=_duration("--request-time", request_time),
        show=show,
    )
    settings = load_config(config, altis=altis)
    configure("error", secrets=secrets_of(settings))
    load_plugins(settings.plugins, settings.file)
    asyncio.run(_preview(settings, asked, record, force=force, as_json=as_json))


class _Asked(NamedTuple):
    """What is to be looked at, and how.

    Attributes:
        where: where the window begins.
        number: how many records it has at most.
        partition: the number of the only partition to look at; None for all.
        timeout_seconds: how long reading may take.
        request_seconds: how long Segment takes for a request.
        show: of how many records the calls are shown.
    """

    where: Start
    number: int
    partition: int | None
    timeout_seconds: float
    request_seconds: float
    show: int


def parse_start(text: str) -> Start:
    """Read where a window begins, as people write it.

    Args:
        text: `end`, `beginning`, a time, how long ago, or an offset.

    Raises:
        ConfigError: it is none of these.
    """
    if text in {"end", "beginning"}:
        return "end" if text == "end" else "beginning"
    if text.isascii() and text.isdigit():
        return int(text)
    try:
        at = datetime.now(UTC).timestamp() - parse_duration(text)
    except ValueError:
        try:
            moment = datetime.fromisoformat(text)
            at = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            at = -1.0
    if at < 0:
        raise ConfigError(
            f"--from = {text!r}: must be end, beginning, a time such as 2026-11-02T08:14, how long ago such as 10m, or"
            " an offset"
        )
    return Since(round(at * 1000))


def _duration(option: str, text: str) -> float:
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise ConfigError(f"{option} = {text!r}: {error}") from None
    if not seconds:
        raise ConfigError(f"{option} = {text!r}: must be longer than nothing")
    return seconds


@contextmanager
def _trace_file(file: Path | None, *, force: bool) -> Iterator[BinaryIO | None]:
    """Open what a trace is written into: it gets its name when all of it is there, so that there is never half of one.

    Raises:
        StartError: the file can't be written, or is there and may not be replaced.
    """
    if file is None or file == _STANDARD_OUTPUT:
        yield None if file is None else typer.get_binary_stream("stdout")
        return
    file = Path(os.path.realpath(file))  # a link goes on pointing at it
    _require_free(file, force=force)
    beside = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as opened:  # noqa: PTH123 - of what is open already
            yield opened
            opened.flush()
            os.fsync(descriptor)
        _require_free(file, force=force)
        beside.replace(file)
    except OSError as error:
        raise StartError(f"--record = {str(file)!r}: can't be written: {error.strerror}") from None
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def _require_free(file: Path, *, force: bool) -> None:
    if not file.exists():
        return
    if not file.is_file():
        raise StartError(f"--record = {str(file)!r}: is there, and no file that could be replaced")
    if not force:
        raise StartError(f"--record = {str(file)!r}: is there already; --force replaces it")


# --- reading --------------------------------------------------------------------------------------


async def _preview(
    settings: Config, asked: _Asked, record: Path | None, *, force: bool, as_json: bool
) -> None:
    hidden = secrets_of(settings)
    settings = with_write_key(settings)
    transform = make_transform(settings, PLACEHOLDER_WRITE_KEY)
    formatter = make_formatter(settings, transform, registered, Said())
    with _trace_file(record, force=force) as trace_file:
        window = await _window(settings, asked)
        finding = _Finding(settings, asked, window)
        remaining = window.records[::-1]
        window.records.clear()
        while (
            remaining
        ):  # they are let go as they are looked at: their calls take more memory than they do
            chunk = [remaining.pop() for _ in range(min(CHUNK_LINES, len(remaining)))]
            values = [Value(one.value, one.timestamp) for one in chunk]
            finding.add(chunk, await formatter.format(values))
        formatter.close()
        # In a thread: the play has an event loop of its own.
        found = await asyncio.to_thread(finding.finish, trace_file)
    hidden += finding.write_keys - {PLACEHOLDER_WRITE_KEY}
    said = _Report(settings, found, masker(hidden), to_stderr=record == _STANDARD_OUTPUT)
    if as_json:
        said.as_json(record)
    else:
        said.as_text(record)
    if left_behind:  # an event loop that closes would wait for it
        sys.stdout.flush()
        os._exit(0)


async def _window(settings: Config, asked: _Asked) -> Window:
    """Read what was asked for.

    Raises:
        StartError: Kafka can't be reached or read, or there is nothing to see.
    """
    clock = asyncio.get_running_loop().time
    end = clock() + asked.timeout_seconds
    reached = await reach(settings, min(KAFKA_TIMEOUT, asked.timeout_seconds))
    partitions = reached.partitions
    if asked.partition is not None:
        partitions = [one for one in partitions if one[1] == asked.partition]
        if not partitions:
            topics = ", ".join(sorted({topic for topic, _ in reached.partitions}))
            raise StartError(
                f"--partition = {asked.partition}: there is none of that number in {topics}"
            )
    console = Console(stderr=True)
    try:
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("reading", total=asked.number)
            window = await look(
                settings.kafka.connection(),
                partitions,
                asked.where,
                asked.number,
                isolation_level=settings.kafka.isolation_level,
                timeout_seconds=max(end - clock(), 0.001),
                progress=lambda number: progress.update(task, completed=number),
            )
    except TopicAuthorizationFailedError:
        raise StartError(NOT_READ) from None
    except (TimeoutError, KafkaTimeoutError, KafkaConnectionError):
        raise StartError(
            f"Kafka told its topics, but gave no records of them within {asked.timeout_seconds:g} s"
        ) from None
    except (KafkaError, ValueError) as error:  # what can't be decoded is one of both
        raise StartError(
            f"Kafka's records can't be read: {str(error) or type(error).__name__}"
        ) from None
    if not window.records:
        raise StartError(_nothing(window, asked))
    return window


def _nothing(window: Window, asked: _Asked) -> str:
    """Say why there is nothing to see."""
    where, there = asked.where, window.there
    topics = ", ".join(sorted({topic for topic, _ in there}))
    if not any(there.values()):
        return f"there is nothing to preview: {topics} {_has(there)} no records"
    if isinstance(where, int) and len(window.missing) == len(there):
        return "\n".join(_missing(window, where))
    if not window.complete:
        return f"Kafka gave no record within {asked.timeout_seconds:g} s: --timeout gives it longer"
    if isinstance(where, Since):
        return f"there is no record of {_time(where.at_ms)} UTC or younger in {topics}"
    return f"there are offsets in {topics}, but no records: compaction or aborted transactions took them"


def _has(there: Mapping[Partition, range]) -> str:
    return "has" if len({topic for topic, _ in there}) == 1 else "have"


def _missing(window: Window, offset: int) -> list[str]:
    """Say of partitions that they don't have an offset."""
    lines = []
    for topic, number in window.missing[:_NAMED]:
        span = window.there[topic, number]
        what = "is gone" if offset < span.start else "isn't there yet"
        has = f"has {span.start:,} to {span.stop - 1:,}" if span else "is empty"
        lines.append(f"offset {offset:,} of {topic} {number} {what}: the partition {has}")
    more = len(window.missing) - _NAMED
    return [*lines, f"the same of {count(more, 'other partition')}"] if more > 0 else lines


# --- finding out ----------------------------------------------------------------------------------


class _Rejected(NamedTuple):
    """A record that can't become calls, and where it stands."""

    topic: str
    partition: int
    offset: int
    reason: str
    detail: str


class _Shown(NamedTuple):
    """A record whose calls are shown, as one JSON list."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    calls: bytes


@dataclass(frozen=True, slots=True)
class _Found:
    """What was found.

    Attributes:
        asked: what was to be looked at.
        window: what was read, but for the records.
        tally: what the records come to.
        times: timestamps of the first and the last record, in milliseconds; None if none has one.
        timeless: how many records have no timestamp, and weren't played.
        played: what the settings in force would do; None if nothing could be played.
        seconds: from the first record that was played to the last: rates are over that.
        rejected: the first records that are rejected.
        shown: some records with their calls.
    """

    asked: _Asked
    window: Window
    tally: Tally
    times: tuple[int, int] | None
    timeless: int
    played: Played | None
    seconds: float
    rejected: list[_Rejected]
    shown: list[_Shown]


class _Finding:
    """Finds out what some records come to.

    Args:
        settings: those in force.
        asked: what is to be looked at.
        window: what was read.

    Attributes:
        write_keys: those of the calls.
    """

    def __init__(self, settings: Config, asked: _Asked, window: Window) -> None:
        self.write_keys: set[str] = set()
        self._settings = settings
        self._asked = asked
        self._window = window
        ignored = frozenset(settings.aggregate.ignore_traits)
        self._tally, self._recorder = Tally(ignored), Recorder(ignored)
        self._lines: list[bytes] = []
        self._times: tuple[int, int] | None = None
        self._rejected: list[_Rejected] = []
        self._shown: list[_Shown] = []

    def add(self, records: Sequence[ConsumerRecord], made: Sequence[Made]) -> None:
        """Take in records, by their timestamps, and what came of them."""
        for record, (write_key, result) in zip(records, made, strict=True):
            place, stamp = (record.topic, record.partition), record.timestamp
            self.write_keys.add(write_key)
            self._tally.add(place, write_key, result)
            if isinstance(result, Reject):
                if len(self._rejected) < _LISTED_REJECTS:
                    one = _Rejected(*place, record.offset, result.reason, result.detail)
                    self._rejected.append(one)
            elif not isinstance(result, Filtered):
                self._shown.append(_Shown(*place, record.offset, stamp, result.as_json()))
                if len(self._shown) > self._asked.show:  # of the last records the last
                    self._shown.pop(0 if self._asked.where == "end" else -1)
            if stamp >= 0:
                size = len(record.value or b"")
                self._lines.append(self._recorder.line(place, stamp, size, write_key, result))
                self._times = (self._times[0] if self._times else stamp), stamp

    def finish(self, trace_file: BinaryIO | None) -> _Found:
        """Write the trace, and play it.

        Args:
            trace_file: where it goes; None if nobody wants it.

        Raises:
            StartError: a trace is wanted, and there can't be one.
        """
        head, trace = self._recorder.head(self._settings.transform.profile), None
        if self._lines and self._window.together:
            trace = parse_trace([head, *self._lines], "what was read")
        if trace_file is not None:
            _require_trace(trace)
            trace_file.writelines(line + b"\n" for line in [head, *self._lines])
            trace_file.flush()
        timeless = self._tally.records - len(self._lines)
        self._lines.clear()
        played = play(self._settings, trace, self._asked.request_seconds) if trace else None
        seconds = trace.seconds if trace else 0.0
        return _Found(
            self._asked, self._window, self._tally, self._times, timeless, played, seconds,
            self._rejected, self._shown,
        )  # fmt: skip


def _require_trace(trace: Trace | None) -> None:
    if trace is None:
        raise StartError(
            "no trace can be made of these records: they have no timestamps, or the partitions have no time in common"
            " from there on (--partition takes one alone)"
        )


# --- saying it ------------------------------------------------------------------------------------


class _Report:
    """Prints what was found.

    Args:
        settings: those in force.
        found: what was found.
        mask: takes secrets out of a line; see `masker`.
        to_stderr: whether standard output is for something else.
    """

    def __init__(
        self, settings: Config, found: _Found, mask: Callable[..., Any], *, to_stderr: bool
    ) -> None:
        self._settings = settings
        self._found = found
        self._mask = mask
        self._console = Console(stderr=to_stderr, highlight=False)
        if not self._console.is_terminal:
            self._console.width = _PIPED_WIDTH

    def as_json(self, record: Path | None) -> None:
        """Print one JSON object."""
        found, window, played = self._found, self._found.window, self._found.played
        tally = found.tally
        times = found.times
        merged = played.merged + played.suppressed if played else 0
        numbers: dict[str, Any] = {
            "topics": sorted({topic for topic, _ in window.there}),
            "partitions": len(window.there),
            "records": tally.records,
            "from": _iso(times[0]) if times else None,
            "until": _iso(times[1]) if times else None,
            "seconds": found.seconds,
            "complete": window.complete,
            "same_time_in_all_partitions": window.together,
            "outside_of_that_time": window.outside,
            "without_timestamp": found.timeless,
            "without_the_offset": [f"{topic} {number}" for topic, number in window.missing],
            "rejects": {
                "reasons": {str(reason): number for reason, number in tally.rejects.items()},
                "records": [one._asdict() for one in found.rejected],
            },
            "filtered": {str(reason): number for reason, number in tally.filtered.items()},
            "calls": dict(tally.calls),
            "calls_a_record": _ratio(tally.calls.total(), tally.records),
            "settings": {
                "flush.interval": duration_text(self._settings.flush.interval),
                "aggregate.suppress_for": duration_text(self._settings.aggregate.suppress_for),
                "aggregate.ignore_traits": list(self._settings.aggregate.ignore_traits),
                "request_seconds": found.asked.request_seconds,
            },
            "played": played
            and {
                "records_per_second": self._per_second(played.records),
                "requests_per_second": self._per_second(played.requests),
                "calls_made": played.made,
                "calls_merged": played.merged,
                "calls_suppressed": played.suppressed,
                "calls_billed": played.made - merged,
                "calls_billed_per_second": self._per_second(played.made - merged),
                "calls_billed_a_record": _ratio(played.made - merged, played.records),
                "saved": round(played.saved, 4),
                "lateness_seconds": {
                    f"p{percent}": round(played.lateness(percent), 4) for percent in (50, 95, 99)
                },
                "batches": {
                    "closed": dict(played.triggers),
                    "calls": _spread(played.sizes),
                    "bytes": _spread(played.bodies),
                },
            },
            "changes": {kind: _changes_json(changes) for kind, changes in tally.changes.items()},
            "users": {"seen": tally.users, "in_several_partitions": tally.scattered},
            "shown": [
                {**one._asdict(), "calls": orjson.Fragment(one.calls)} for one in found.shown
            ],
            "trace": None if record is None else str(record),
        }
        self._write(orjson.dumps(numbers).decode())

    def as_text(self, record: Path | None) -> None:
        """Print it for a person."""
        for one in self._found.shown:
            self._calls(one)
        for line in self._covered():
            self._line(line)
        if record is not None:
            written = self._found.tally.records - self._found.timeless
            self._line(
                f"trace of {count(written, 'record')}: {record}; `streamer tune` plays it with other settings"
            )
        self._line()
        for line in self._records():
            self._line(line)
        self._line()
        for line in self._predicted():
            self._line(line)
        if PROFILES[self._settings.transform.profile].mends:
            for kind, whose in (("identify", "user"), ("group", "user in the group")):
                self._changes(kind, whose, self._found.tally.changes[kind])
            self._line()
            self._line(self._users())

    def _calls(self, one: _Shown) -> None:
        at = f", {_time(one.timestamp_ms)} UTC" if one.timestamp_ms >= 0 else ""
        text = one.calls.decode()
        if not self._console.is_terminal:
            self._write(text)
            return
        self._line(f"{one.topic} {one.partition}, offset {one.offset:,}{at}")
        with suppress(TypeError, orjson.JSONDecodeError):  # nested too deeply to be indented
            text = orjson.dumps(orjson.loads(text), option=orjson.OPT_INDENT_2).decode()
        shown = Syntax(
            self._clean(text), "json", theme="ansi_dark", background_color="default", word_wrap=True
        )
        self._console.print(shown)
        self._line()

    def _covered(self) -> Iterator[str]:
        found, window = self._found, self._found.window
        topics = sorted({topic for topic, _ in window.there})
        text = (
            f"topic{'' if len(topics) == 1 else 's'} {', '.join(topics)}: {count(found.tally.records, 'record')} of"
            f" {count(len(window.there), 'partition')}"
        )
        times = found.times
        if times:
            text += f", {_time(times[0])} to {_time(times[1])} UTC"
        if found.played:
            text += self._rate(found.played.records)
        yield text
        if isinstance(found.asked.where, int):
            yield from _missing(window, found.asked.where)
        if not window.complete:
            yield (
                f"{found.asked.timeout_seconds:g} s were over before all was read that was asked for: --timeout gives"
                " it longer"
            )
        if not window.together:
            yield (
                "the partitions have no time in common from there on, so no rates can be said; --partition takes one"
                " alone"
            )
        if window.outside:
            yield (
                f"{count(window.outside, 'more record')} left out: of another time than what was read of all partitions"
            )
        if found.timeless:
            yield (
                f"{count(found.timeless, 'record')} without a Kafka timestamp: not played, and in no trace"
            )

    def _records(self) -> Iterator[str]:
        tally, found = self._found.tally, self._found
        without = tally.rejects.total() + tally.filtered.total()
        yield f"calls are made of {tally.records - without:,} of {count(tally.records, 'record')}"
        if tally.rejects:
            yield f"rejected, which `streamer run` keeps as dead letters: {_listed(tally.rejects)}"
            for one in found.rejected[:_SHOWN_REJECTS]:
                yield f"  {one.topic} {one.partition}, offset {one.offset:,}: {one.reason}: {one.detail}"
            more = tally.rejects.total() - _SHOWN_REJECTS
            if more > 0:
                yield f"  and {more:,} more; --json lists {_LISTED_REJECTS}"
        if tally.filtered:
            yield f"filtered, by your own settings: {_listed(tally.filtered)}"

    def _predicted(self) -> Iterator[str]:
        played, tally = self._found.played, self._found.tally
        made = tally.calls.total()
        yield f"calls: {made:,}, {_number(_ratio(made, tally.records))} a record: {_listed(tally.calls)}"
        if played is None:
            return
        settings = self._settings
        suppress_for = settings.aggregate.suppress_for
        billed = played.made - played.merged - played.suppressed
        yield (
            f"with flush.interval {duration_text(settings.flush.interval)} and aggregate.suppress_for"
            f" {duration_text(suppress_for)}, one process, and a Segment that takes"
            f" {duration_text(self._found.asked.request_seconds)} for a request:"
        )
        suppressed = (
            f", {_percent(played.suppressed, played.made)} are left out" if suppress_for else ""
        )
        yield (
            f"  billed calls  {billed:,}, {_number(_ratio(billed, played.records))} a record"
            f"{self._rate(billed)}: {_percent(played.merged, played.made)} merge{suppressed}"
        )
        if suppress_for and suppress_for > played.seconds:
            yield "                the window is shorter than suppress_for: over a longer time more is left out"
        yield f"  requests      {self._requests(played)}"
        if played.sizes:
            calls, bodies = _spread(played.sizes), _spread(played.bodies)
            yield (
                f"  batches       p50 {calls['p50']:,} calls, {bodies['p50']:,} bytes; largest {calls['max']:,} calls,"
                f" {bodies['max']:,} bytes; closed by {_listed(played.triggers)}"
            )
        else:
            yield "  batches       none closes within so short a time"
        late = ", ".join(f"p{one} {_number(played.lateness(one))} s" for one in (50, 95, 99))
        yield f"  lateness      {late}"
        seconds = self._found.seconds
        if not seconds:
            yield (
                "  all records have one timestamp, as a backlog has that was produced at once: no rates can be said"
            )
        elif seconds < _SHORT_SECONDS:
            yield f"  that is of {seconds:.3g} s only: --records takes more"

    def _per_second(self, number: float) -> float | None:
        seconds = self._found.seconds
        return round(number / seconds, 4) if seconds else None

    def _rate(self, number: float) -> str:
        per_second = self._per_second(number)
        return "" if per_second is None else f", {_number(per_second)} a second"

    def _requests(self, played: Played) -> str:
        per_second = self._per_second(played.requests)
        if per_second is not None:
            return f"{_number(per_second)} a second"
        return _number(played.requests) if played.requests >= 1 else "less than 1"

    def _changes(self, kind: str, whose: str, changes: Changes) -> None:
        if not changes.following:
            return
        self._line()
        text = f"{count(changes.following, f'{kind} call')} follow another of their {whose}"
        if not changes.changed:
            self._line(f"{text}, and no trait changes")
        else:
            self._line(
                f"{text}. changed: in how many of these the trait isn't as in that one; alone: how many of the"
                f" {changes.compared:,} that could be left out say nothing new but of that trait"
            )
            table = Table("trait", box=None, pad_edge=False, header_style="bold")
            table.add_column("changed", justify="right")
            table.add_column("alone", justify="right")
            for name, number in changes.most_changed()[:_SHOWN_TRAITS]:
                alone = changes.alone(name)
                table.add_row(
                    Text(self._clean(name), overflow="fold"),
                    _percent(number, changes.following),
                    _percent(alone, changes.compared),
                )
            self._console.print(table)
            unsaid = len(changes.changed) - _SHOWN_TRAITS
            if unsaid > 0:
                self._line(f"and {count(unsaid, 'more trait')}")
        if not changes.compared:
            return
        ignored = self._settings.aggregate.ignore_traits
        beside = f" but of {', '.join(ignored)}" if ignored else ""
        self._line(
            f"{_percent(changes.same, changes.compared)} of {changes.compared:,} say nothing new{beside}"
        )
        names, more = changes.suggestion()
        if names:
            listed = ", ".join(f'"{name}"' for name in names)
            share = _percent(changes.same + more, changes.compared)
            self._line(
                f"with {listed} in aggregate.ignore_traits it would be {share}: those aggregate.suppress_for can leave"
                " out"
            )

    def _users(self) -> str:
        tally, window = self._found.tally, self._found.window
        suppress_for = self._settings.aggregate.suppress_for
        if len(window.there) == 1:
            return "one partition says nothing of whether users stay in theirs"
        if not tally.scattered:
            return f"none of {count(tally.users, 'user')} was seen in two partitions: aggregate.suppress_for needs that"
        text = f"{tally.scattered:,} of {count(tally.users, 'user')} were seen in more than one partition: "
        why = "a process knows only what it sent itself"
        if suppress_for:
            return (
                f"{text}with aggregate.suppress_for, which is {duration_text(suppress_for)}, calls that Segment needs"
                f" may be left out, since {why}; key the records by user, or switch it off"
            )
        return (
            f"{text}leave aggregate.suppress_for off until records are keyed by user, since {why}"
        )

    def _line(self, text: str = "") -> None:
        self._console.print(self._clean(text), markup=False, soft_wrap=True)

    def _write(self, text: str) -> None:
        typer.echo(self._clean(text), file=self._console.file)

    def _clean(self, text: str) -> str:
        """Take secrets out, and write what a terminal would obey as JSON would."""
        masked: str = self._mask(None, "", text)
        return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", masked)


def _changes_json(changes: Changes) -> dict[str, Any]:
    names, more = changes.suggestion()
    return {
        "following": changes.following,
        "changed": {
            name: {"calls": number, "alone": changes.alone(name)}
            for name, number in changes.most_changed()
        },
        "compared": changes.compared,
        "same": changes.same,
        "suggested": {"ignore_traits": names, "same": changes.same + more},
    }


def _spread(ascending: Sequence[int]) -> dict[str, int]:
    if not ascending:
        return {}
    return {"p50": ascending[(len(ascending) - 1) // 2], "max": ascending[-1]}


def _listed(numbers: Mapping[Any, int]) -> str:
    ordered = sorted(numbers.items(), key=lambda one: (-one[1], one[0]))
    return ", ".join(f"{name} {number:,}" for name, number in ordered if number) or "none"


def _ratio(part: float, whole: float) -> float:
    return round(part / whole, 4) if whole else 0.0


def _percent(part: float, whole: float) -> str:
    if not whole:
        return "-"
    share = 100 * part / whole
    return "<1 %" if 0 < share < 1 else f"{share:.0f} %"


def _number(number: float) -> str:
    if number != number:  # noqa: PLR0124 - not a number: nothing was delivered
        return "-"
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _moment(timestamp_ms: int) -> datetime | None:
    try:
        return datetime.fromtimestamp(timestamp_ms / 1000, UTC)
    except (OverflowError, ValueError, OSError):
        return None  # what a producer gave for a time is none


def _time(timestamp_ms: int) -> str:
    moment = _moment(timestamp_ms)
    return f"{moment:%Y-%m-%d %H:%M:%S}" if moment else f"{timestamp_ms:,} ms"


def _iso(timestamp_ms: int) -> str:
    moment = _moment(timestamp_ms)
    return moment.isoformat(timespec="milliseconds") if moment else str(timestamp_ms)
