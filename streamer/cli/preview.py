"""`streamer preview`: what real records would come to, without taking part."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer
from aiokafka.errors import (
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    TopicAuthorizationFailedError,
)
from rich.console import Console
from rich.progress import Progress

from streamer.cli import AltisOption, ConfigOption
from streamer.cli.kafka import KAFKA_TIMEOUT, NOT_READ, reach
from streamer.cli.preview_report import (
    LISTED_REJECTS,
    Asked,
    Found,
    Rejected,
    Report,
    Shown,
    has,
    missing,
    moment_text,
)
from streamer.cli.run import secrets_of
from streamer.cli.terminal import duration_of, request_time_of
from streamer.cli.transform import CHUNK_LINES, PLACEHOLDER_WRITE_KEY, Said, with_write_key
from streamer.config import load_config, parse_duration
from streamer.core.model import Filtered, Reject
from streamer.core.tally import Tally
from streamer.errors import ConfigError, StartError
from streamer.formatter import Made, Value
from streamer.handlers import left_behind
from streamer.hooks import registered
from streamer.logs import configure, masker
from streamer.pipeline import make_formatter, make_transform
from streamer.plugins import load_plugins
from streamer.simulation import play
from streamer.trace import MAX_AT_MS, STANDARD_OUTPUT, Recorder, Trace, parse_trace, trace_file
from streamer.window import Since, Start, Window, look

if TYPE_CHECKING:
    from aiokafka import ConsumerRecord

    from streamer.config import Config

RECORDS = 1000
"""So many records are looked at."""
RECORDED = 10_000
"""So many if a trace is recorded."""


def preview(
    config: ConfigOption = None,
    altis: AltisOption = None,
    records: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=200_000,
            metavar="N",
            help=f"How many records, over all partitions. \\[default: {RECORDS:,}; with --record {RECORDED:,}]",
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
    settings = load_config(config, altis=altis)
    asked = Asked(
        where=parse_start(start),
        number=records or (RECORDED if record else RECORDS),
        partition=partition,
        timeout_seconds=duration_of("--timeout", timeout),
        request_seconds=request_time_of(request_time, settings),
        show=show,
    )
    configure("error", secrets=secrets_of(settings))
    logging.getLogger("streamer.handlers").setLevel(logging.CRITICAL + 1)  # said with the records
    # What aiokafka logs while it tries is said in one sentence, here.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL + 1)
    load_plugins(settings.plugins, settings.file)
    asyncio.run(_preview(settings, asked, record, force=force, as_json=as_json))


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


# --- reading --------------------------------------------------------------------------------------


async def _preview(
    settings: Config, asked: Asked, record: Path | None, *, force: bool, as_json: bool
) -> None:
    hidden = secrets_of(settings)
    settings = with_write_key(settings)
    transform = make_transform(settings, PLACEHOLDER_WRITE_KEY)
    formatter = make_formatter(settings, transform, registered, Said())
    with trace_file(record, force=force) as opened:
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
        found = await asyncio.to_thread(finding.finish, opened)
    hidden += finding.write_keys - {PLACEHOLDER_WRITE_KEY}
    said = Report(settings, found, masker(hidden), to_stderr=record == STANDARD_OUTPUT)
    if as_json:
        said.as_json(record)
    else:
        said.as_text(record)
    if left_behind:  # an event loop that closes would wait for it
        sys.stdout.flush()
        os._exit(0)


async def _window(settings: Config, asked: Asked) -> Window:
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


def _nothing(window: Window, asked: Asked) -> str:
    """Say why there is nothing to see."""
    where, there = asked.where, window.there
    topics = ", ".join(sorted({topic for topic, _ in there}))
    if not any(there.values()):
        return f"there is nothing to preview: {topics} {has(there)} no records"
    if isinstance(where, int) and len(window.missing) == len(there):
        return "\n".join(missing(window, where))
    if not window.complete:
        return f"Kafka gave no record within {asked.timeout_seconds:g} s: --timeout gives it longer"
    if isinstance(where, Since):
        return f"there is no record of {moment_text(where.at_ms)} UTC or younger in {topics}"
    return f"there are offsets in {topics}, but no records: compaction or aborted transactions took them"


# --- finding out ----------------------------------------------------------------------------------


class _Finding:
    """Finds out what some records come to.

    Args:
        settings: those in force.
        asked: what is to be looked at.
        window: what was read.

    Attributes:
        write_keys: those of the calls.
    """

    def __init__(self, settings: Config, asked: Asked, window: Window) -> None:
        self.write_keys: set[str] = set()
        self._settings = settings
        self._asked = asked
        self._window = window
        ignored = frozenset(settings.aggregate.ignore_traits)
        self._tally, self._recorder = Tally(ignored), Recorder(ignored)
        self._lines: list[bytes] = []
        self._times: tuple[int, int] | None = None
        self._rejected: list[Rejected] = []
        self._shown: list[Shown] = []

    def add(self, records: Sequence[ConsumerRecord], made: Sequence[Made]) -> None:
        """Take in records, by their timestamps, and what came of them."""
        for record, (write_key, result) in zip(records, made, strict=True):
            place, stamp = (record.topic, record.partition), record.timestamp
            self.write_keys.add(write_key)
            self._tally.add(place, write_key, result)
            if isinstance(result, Reject):
                if len(self._rejected) < LISTED_REJECTS:
                    one = Rejected(*place, record.offset, result.reason, result.detail)
                    self._rejected.append(one)
            elif not isinstance(result, Filtered):
                self._shown.append(Shown(*place, record.offset, stamp, result.as_json()))
                if len(self._shown) > self._asked.show:  # of the last records the last
                    self._shown.pop(0 if self._asked.where == "end" else -1)
            if 0 <= stamp <= MAX_AT_MS:
                size = len(record.value or b"")
                self._lines.append(self._recorder.line(place, stamp, size, write_key, result))
                self._times = (self._times[0] if self._times else stamp), stamp

    def finish(self, trace_file: BinaryIO | None) -> Found:
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
        return Found(
            self._asked, self._window, self._tally, self._times, timeless, played, seconds,
            self._rejected, self._shown,
        )  # fmt: skip


def _require_trace(trace: Trace | None) -> None:
    if trace is None:
        raise StartError(
            "no trace can be made of these records: they have no timestamps, or the partitions have no time in common"
            " from there on (--partition takes one alone)"
        )
