"""What `streamer preview` says of the records that it read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
import typer
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from streamer.backlog import count
from streamer.cli.terminal import number_text, open_console, percent_text
from streamer.config import duration_text
from streamer.core.tally import Changes, Tally
from streamer.core.transform import PROFILES
from streamer.simulation import Played
from streamer.trace import STANDARD_OUTPUT
from streamer.window import Start, Window

if TYPE_CHECKING:
    from streamer.config import Config
    from streamer.core.model import Partition

_SHOWN_REJECTS = 10
LISTED_REJECTS = 100
"""So many rejected records are in the JSON."""
_SHOWN_TRAITS = 10
_NAMED = 5
_SHORT_SECONDS, _SHORT_INTERVALS = 5.0, 3
"""Over less than that, or than so many intervals, a rate says little."""
# What a terminal may take for more than a character, in text that is printed: controls, and what turns the direction.
_CONTROLS = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


class Asked(NamedTuple):
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


class Rejected(NamedTuple):
    """A record that can't become calls, and where it stands."""

    topic: str
    partition: int
    offset: int
    reason: str
    detail: str


class Shown(NamedTuple):
    """A record whose calls are shown, as one JSON list."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    calls: bytes


@dataclass(frozen=True, slots=True)
class Found:
    """What was found.

    Attributes:
        asked: what was to be looked at.
        window: what was read, but for the records.
        tally: what the records come to.
        times: timestamps of the first and the last record, in milliseconds; None if none has one.
        timeless: how many records have no timestamp, or one that is no time, and weren't played.
        played: what the settings in force would do; None if nothing could be played.
        seconds: from the first record that was played to the last: rates are over that.
        rejected: the first records that are rejected.
        shown: some records with their calls.
    """

    asked: Asked
    window: Window
    tally: Tally
    times: tuple[int, int] | None
    timeless: int
    played: Played | None
    seconds: float
    rejected: list[Rejected]
    shown: list[Shown]


class Report:
    """Prints what was found.

    Args:
        settings: those in force.
        found: what was found.
        mask: takes secrets out of a line; see `masker`.
        to_stderr: whether standard output is for something else.
    """

    def __init__(
        self, settings: Config, found: Found, mask: Callable[[str], str], *, to_stderr: bool
    ) -> None:
        self._settings = settings
        self._found = found
        self._mask = mask
        self._console = open_console(to_stderr=to_stderr)

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
                "requests_per_second": self._per_second(played.requests, played.seconds),
                "calls_made": played.made,
                "calls_merged": played.merged,
                "calls_suppressed": played.suppressed,
                "calls_billed": played.made - merged,
                "calls_billed_per_second": self._per_second(played.made - merged, played.seconds),
                "calls_billed_a_record": _ratio(played.made - merged, played.records),
                "saved": round(played.saved, 4),
                "behind_seconds": round(played.behind_seconds, 3),
                "keeps_up": played.keeps_up,
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
            where = "on standard output" if record == STANDARD_OUTPUT else record
            self._line(
                f"trace of {count(written, 'record')}: {where}; `streamer tune` plays it with other settings"
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

    def _calls(self, one: Shown) -> None:
        at = f", {moment_text(one.timestamp_ms)} UTC" if one.timestamp_ms >= 0 else ""
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
            text += f", {moment_text(times[0])} to {moment_text(times[1])} UTC"
        if found.played:
            text += self._rate(found.played.records)
        yield text
        if isinstance(found.asked.where, int):
            yield from missing(window, found.asked.where)
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
                f"{count(found.timeless, 'record')} without a Kafka timestamp that is one: not played, and in no trace"
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
                yield f"  and {more:,} more; --json lists {LISTED_REJECTS}"
        if tally.filtered:
            yield f"filtered, by your own settings: {_listed(tally.filtered)}"

    def _predicted(self) -> Iterator[str]:
        played, tally = self._found.played, self._found.tally
        made = tally.calls.total()
        yield f"calls: {made:,}, {number_text(_ratio(made, tally.records))} a record: {_listed(tally.calls)}"
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
            f", {percent_text(played.suppressed, played.made)} are left out" if suppress_for else ""
        )
        yield (
            f"  billed calls  {billed:,}, {number_text(_ratio(billed, played.records))} a record"
            f"{self._rate(billed, played.seconds)}: {percent_text(played.merged, played.made)} merge{suppressed}"
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
        late = ", ".join(f"p{one} {number_text(played.lateness(one))} s" for one in (50, 95, 99))
        yield f"  lateness      {late}"
        seconds = self._found.seconds
        if not played.keeps_up:
            yield (
                f"  these records come faster than they are sent: {number_text(played.behind_seconds)} s behind at"
                " their end"
            )
        if not seconds:
            yield (
                "  all records have one timestamp, as a backlog has that was produced at once: no rates can be said"
            )
        elif seconds < max(_SHORT_SECONDS, _SHORT_INTERVALS * settings.flush.interval):
            yield f"  that is of {seconds:.3g} s only: --records takes more"

    def _per_second(self, number: float, seconds: float | None = None) -> float | None:
        """Give a rate, over the records' time or so many seconds; None if the records took no time to come."""
        if not self._found.seconds:
            return None
        return round(number / (seconds or self._found.seconds), 4)

    def _rate(self, number: float, seconds: float | None = None) -> str:
        per_second = self._per_second(number, seconds)
        return "" if per_second is None else f", {number_text(per_second)} a second"

    def _requests(self, played: Played) -> str:
        per_second = self._per_second(played.requests, played.seconds)
        if per_second is not None:
            return f"{number_text(per_second)} a second"
        return number_text(played.requests) if played.requests >= 1 else "less than 1"

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
                    Text(self._clean_line(name), overflow="fold"),
                    percent_text(number, changes.following),
                    percent_text(alone, changes.compared),
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
            f"{percent_text(changes.same, changes.compared)} of {changes.compared:,} say nothing new{beside}"
        )
        names, more = changes.suggestion()
        if names:
            listed = ", ".join(f'"{name}"' for name in names)
            share = percent_text(changes.same + more, changes.compared)
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
        words = (
            self._console.is_terminal
        )  # a terminal would break within them; a pipe gets a line a sentence
        self._console.print(self._clean_line(text), markup=False, soft_wrap=not words)

    def _write(self, text: str) -> None:
        typer.echo(self._clean(text), file=self._console.file)

    def _clean(self, text: str) -> str:
        """Take secrets out, and write what a terminal would obey as JSON would."""
        return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", self._mask(text))

    def _clean_line(self, text: str) -> str:
        """Do that, and let no text begin a line of its own."""
        return self._clean(text).replace("\n", "\\n")


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


def _moment(timestamp_ms: int) -> datetime | None:
    try:
        return datetime.fromtimestamp(timestamp_ms / 1000, UTC)
    except (OverflowError, ValueError, OSError):
        return None  # what a producer gave for a time is none


def moment_text(timestamp_ms: int) -> str:
    """Write a timestamp of Kafka's, in milliseconds since the epoch, as a time of UTC."""
    moment = _moment(timestamp_ms)
    return f"{moment:%Y-%m-%d %H:%M:%S}" if moment else f"{timestamp_ms:,} ms"


def _iso(timestamp_ms: int) -> str:
    moment = _moment(timestamp_ms)
    return moment.isoformat(timespec="milliseconds") if moment else str(timestamp_ms)


def has(there: Mapping[Partition, range]) -> str:
    """Say `has` or `have` of the topics of some partitions."""
    return "has" if len({topic for topic, _ in there}) == 1 else "have"


def missing(window: Window, offset: int) -> list[str]:
    """Say of partitions that they don't have an offset."""
    lines = []
    for topic, number in window.missing[:_NAMED]:
        span = window.there[topic, number]
        what = "is gone" if offset < span.start else "isn't there yet"
        has = f"has {span.start:,} to {span.stop - 1:,}" if span else "is empty"
        lines.append(f"offset {offset:,} of {topic} {number} {what}: the partition {has}")
    more = len(window.missing) - _NAMED
    return [*lines, f"the same of {count(more, 'other partition')}"] if more > 0 else lines
