"""`streamer tune`: what other flush settings would do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from zlib import crc32

import orjson
import typer
from rich.console import Console
from rich.progress import Progress

from streamer.cli import AltisOption, ConfigOption
from streamer.cli.terminal import duration_of, open_console, request_time_of
from streamer.cli.tune_report import Result, Setting, draw, numbers, report, require_drawable
from streamer.config import change_live, duration_text, load_config, parse_duration
from streamer.demo.events import GROUPS, START_MS, everyday
from streamer.errors import ConfigError, StartError
from streamer.logs import configure
from streamer.pipeline import make_transform
from streamer.plugins import load_plugins
from streamer.simulation import LATE_PERCENT, Aim, Point, knee, play, recommend
from streamer.trace import Recorder, Trace, parse_trace, read_trace, shown

if TYPE_CHECKING:
    from streamer.config import Config

INTERVALS = ("250ms", "500ms", "1s", "2s", "5s", "10s", "30s", "1m")
"""The intervals that are tried where none are given."""
MOST_EVENTS = 20_000
"""So many events are made up at most where no length is given."""
LONGEST = "5m"
"""So long they come at most, then."""

_PARTITIONS = 4
_FEWEST_INTERVALS = 3
"""A trace has to be so many times as long as an interval, or it says little of it."""


def _option_of(key: str) -> str:
    return "--" + key.rpartition(".")[2].replace("_", "-")


def _refuse_options_of_made_up_events(context: typer.Context) -> None:
    given = [
        option
        for name, option in (("rate", "--rate"), ("duration", "--for"), ("seed", "--seed"))
        if (source := context.get_parameter_source(name)) and source.name == "COMMANDLINE"
    ]
    if given:
        raise ConfigError(f"{', '.join(given)}: only of made-up events, and a trace has its own")


def _listed(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def tune(
    context: typer.Context,
    trace: Annotated[
        Path | None,
        typer.Argument(
            metavar="TRACE",
            help="What `streamer preview --record` wrote; without it, made-up events.",
        ),
    ] = None,
    config: ConfigOption = None,
    altis: AltisOption = None,
    interval: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help=f"Values of flush.interval, with commas. \\[default: {', '.join(INTERVALS)}]",
        ),
    ] = None,
    max_calls: Annotated[
        str | None, typer.Option(metavar="LIST", help="Values of flush.max_calls.")
    ] = None,
    max_bytes: Annotated[
        str | None, typer.Option(metavar="LIST", help="Values of flush.max_bytes.")
    ] = None,
    concurrency: Annotated[
        str | None, typer.Option(metavar="LIST", help="Values of flush.concurrency.")
    ] = None,
    max_requests_per_second: Annotated[
        str | None, typer.Option(metavar="LIST", help="Values of flush.max_requests_per_second.")
    ] = None,
    suppress_for: Annotated[
        str | None, typer.Option(metavar="LIST", help="Values of aggregate.suppress_for.")
    ] = None,
    request_time: Annotated[
        str,
        typer.Option(metavar="DURATION", help="How long Segment takes for a request."),
    ] = "100ms",
    max_lateness: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help=f"The aim: {LATE_PERCENT} % of the events are no later. The longest such interval is recommended.",
        ),
    ] = None,
    max_requests: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            metavar="N",
            help="The aim: so many requests a second at most. The shortest such interval is recommended.",
        ),
    ] = None,
    rate: Annotated[int, typer.Option(min=1, help="Of made-up events: how many a second.")] = 100,
    duration: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="DURATION",
            help=f"Of made-up events: how long they come. \\[default: {LONGEST}, or {MOST_EVENTS:,} events]",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of made-up events.")] = 1,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw the trade-off into this file, such as out.svg."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of tables.")
    ] = False,
) -> None:
    """Say what other flush settings would do: how late, how many requests, how many billed calls.

    Plays a trace, or made-up events, to the code that merges, batches and sends, in virtual time: an hour takes
    seconds, and nothing is sent. Each combination of the settings given is one row. Marks the knee, where going on
    costs more lateness than it saves requests, and recommends an interval for an aim.

    What an event costs in CPU isn't played, and Segment takes the same time for each request.
    """
    configure("error")
    settings = load_config(config, altis=altis)
    if trace is None and not settings.groups:
        settings = load_config(config, {"groups": GROUPS}, altis=altis)
    request_seconds = request_time_of(request_time, settings)
    aim = Aim(
        **(
            {}
            if max_lateness is None
            else {"max_lateness": duration_of("--max-lateness", max_lateness)}
        ),
        **({} if max_requests is None else {"max_requests": max_requests}),
    )
    if plot is not None:
        require_drawable(plot)
    lists = {
        "flush.interval": _listed(interval),
        "flush.max_calls": _listed(max_calls),
        "flush.max_bytes": _listed(max_bytes),
        "flush.concurrency": _listed(concurrency),
        "flush.max_requests_per_second": _listed(max_requests_per_second),
        "aggregate.suppress_for": _listed(suppress_for),
    }
    for key, values in lists.items():
        for value in values:
            # What is wrong is said before anything is played.
            change_live(settings, {key: value}, _option_of(key))
    console, progress = open_console(), Console(stderr=True)
    if trace is None:
        load_plugins(settings.plugins, settings.file)
        seconds = _length(rate, duration)
        with progress.status("making events up"):
            loaded, what = made_up(settings, rate, seconds, seed), _made_up_text(rate, seconds)
    else:
        _refuse_options_of_made_up_events(context)
        with progress.status("reading the trace"):
            loaded, what = read_trace(trace), shown(trace)
    if not loaded.seconds:
        raise StartError(
            f"{what}: all records have one timestamp, so nothing can be said of intervals. Was it a backlog that"
            " was produced at once?"
        )
    if all(one.made is None for one in loaded.arrivals):
        raise StartError(f"{what}: no calls are made of any of these records")
    if lists["flush.interval"]:
        long = _too_long(lists["flush.interval"], loaded.seconds)
        note = f"That is too short to say much of {', '.join(long)}." if long else ""
    else:
        lists["flush.interval"], note = _intervals(settings, loaded.seconds)

    def at(values: dict[str, str], seconds: float | None = None) -> Point:
        changed = {"flush.interval": _interval_text(seconds)} if seconds is not None else {}
        played = change_live(settings, {**values, **changed})
        return Point(played.flush.interval, play(played, loaded, request_seconds))

    rows = list(_sweep(lists, at, progress))
    with progress.status("looking between them"):
        result = _conclude(rows, aim, at, settings)
    if plot is not None:
        draw(plot, result, what)
    if as_json:
        typer.echo(orjson.dumps(numbers(what, loaded, request_seconds, result)).decode())
        return
    report(console, what, loaded, request_time, result, aim, note)
    if plot is not None:
        console.print(f"Drawn into {plot}.", markup=False)


# --- the load -------------------------------------------------------------------------------------


def _length(rate: int, duration: str | None) -> float:
    if duration is not None:
        return duration_of("--for", duration)
    return min(parse_duration(LONGEST), MOST_EVENTS / rate)


def _made_up_text(rate: int, seconds: float) -> str:
    return f"made-up events, {rate:,} a second for {duration_text(round(seconds, 1))}"


def made_up(settings: Config, rate: int, seconds: float, seed: int) -> Trace:
    """Make a trace of the demo's events.

    Args:
        settings: say what calls are made of them.
        rate: events a second.
        seconds: how long they come.
        seed: equal seeds give equal events.
    """
    recorder, write_key = Recorder(), "made up"
    make = make_transform(settings, write_key).format
    now = START_MS

    def lines() -> Iterator[bytes]:
        nonlocal now
        yield recorder.head(settings.transform.profile)
        events = islice(everyday(seed, rate, lambda: now), round(rate * seconds))
        for number, event in enumerate(events, start=1):
            partition = ("made-up", crc32(event.key or b"") % _PARTITIONS)
            calls = make(event.value, now)
            yield recorder.line(partition, now, len(event.value), write_key, calls)
            now = START_MS + number * 1000 // rate

    return parse_trace(lines(), "what was made up")


def _intervals(settings: Config, seconds: float) -> tuple[list[str], str]:
    """Choose the intervals to try, and say which can't be."""
    now = duration_text(settings.flush.interval)
    known = sorted({*INTERVALS, now}, key=parse_duration)
    left = [one for one in _too_long(known, seconds) if one != now]
    note = f"That is too short to say anything of {', '.join(left)}." if left else ""
    return [one for one in known if one not in left], note


def _too_long(intervals: list[str], seconds: float) -> list[str]:
    longest = 1.01 * seconds / _FEWEST_INTERVALS  # its last record stands before its end
    return [one for one in intervals if parse_duration(one) > longest]


# --- playing --------------------------------------------------------------------------------------


def _sweep(
    lists: dict[str, list[str]],
    at: Callable[[dict[str, str]], Point],
    console: Console,
) -> Iterator[Setting]:
    """Play every combination, by rising interval."""
    given = {key: values for key, values in lists.items() if values}
    combinations = [dict(zip(given, values, strict=True)) for values in product(*given.values())]
    combinations.sort(key=lambda values: parse_duration(values["flush.interval"]))
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for values in progress.track(combinations, description="playing"):
            yield Setting(values, at(values))


def _conclude(
    rows: list[Setting],
    aim: Aim,
    at: Callable[[dict[str, str], float], Point],
    settings: Config,
) -> Result:
    groups: dict[tuple[tuple[str, str], ...], list[Setting]] = {}
    for row in rows:
        groups.setdefault(row.others, []).append(row)
    knees, found = [], []
    for others, group in groups.items():
        points = [row.point for row in group]
        bend = knee(points)
        if bend is not None:
            knees.append(group[points.index(bend)])
        best = bend if aim == Aim() else recommend(points, aim, partial(at, dict(others)))
        if best is not None:
            values = {**group[0].values, "flush.interval": _interval_text(best.interval_seconds)}
            played = next((row for row in group if row.point is best), None)
            found.append(played or Setting(values, best))
    recommended = min(found, key=lambda row: _cost(row, aim), default=None)
    if recommended is not None and recommended not in rows:
        rows = sorted([*rows, recommended], key=lambda row: row.point.interval_seconds)
    now = next((row for row in rows if _in_force(row, settings)), None)
    return Result(rows, now, knees, recommended)


def _interval_text(seconds: float) -> str:
    return f"{seconds:g}s" if 1 < seconds < 60 else duration_text(seconds)


def _cost(row: Setting, aim: Aim) -> tuple[float, int]:
    """What is to be small, of settings that are all as wanted; where they are about equal, the bill."""
    first = row.point.played.requests_per_second
    if aim.max_lateness == Aim().max_lateness and aim != Aim():
        first = row.point.late
    return float(f"{first:.1e}"), row.point.played.billed


def _in_force(row: Setting, settings: Config) -> bool:
    changed = change_live(settings, row.values)
    return changed.flush == settings.flush and changed.aggregate == settings.aggregate
