"""`streamer tune`: what other flush settings would do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice, product
from math import log10
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from zlib import crc32

import orjson
import typer
from rich.console import Console, ConsoleDimensions
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from streamer.cli import AltisOption
from streamer.config import change_live, duration_text, load_config, parse_duration
from streamer.demo.events import GROUPS, START_MS, everyday
from streamer.errors import ConfigError, StartError
from streamer.logs import configure
from streamer.pipeline import make_transform
from streamer.simulation import LATE_PERCENT, Aim, Played, Point, knee, play, recommend
from streamer.trace import Recorder, Trace, parse_trace, read_trace

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
_PERCENTS = (50, LATE_PERCENT, 99)
_PLOT_WIDTH, _PLOT_HEIGHT, _PLOT_MARGIN = 56, 14, 24
_PIPED_WIDTH = 120


@dataclass(frozen=True, slots=True)
class _Setting:
    """One combination of settings, and what came of it.

    Attributes:
        values: dotted key to value, as a person writes it.
        point: what came of it.
    """

    values: dict[str, str]
    point: Point

    @property
    def others(self) -> tuple[tuple[str, str], ...]:
        """The settings but for the interval."""
        return tuple((key, value) for key, value in self.values.items() if key != "flush.interval")

    @property
    def full(self) -> bool:
        """Whether most batches close before they are old."""
        triggers = self.point.played.triggers
        return triggers["bytes"] + triggers["calls"] > triggers["time"]

    def as_json(self) -> dict[str, Any]:
        """Give what `--json` prints of it."""
        played = self.point.played
        return {
            "settings": self.values,
            "lateness_seconds": {f"p{n}": round(played.lateness(n), 4) for n in _PERCENTS},
            "requests_per_second": round(played.requests_per_second, 4),
            "calls_per_request": round(played.calls_per_request, 2),
            "bytes_per_second": round(played.bytes_per_second),
            "calls_made": played.made,
            "calls_merged": played.merged,
            "calls_suppressed": played.suppressed,
            "calls_billed": played.billed,
            "batches_closed": dict(played.triggers),
            "waited_for_memory_seconds": round(played.spent_seconds, 3),
        }


def _listed(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def tune(
    trace: Annotated[
        Path | None,
        typer.Argument(
            metavar="[TRACE]",
            help="What `streamer preview --record` wrote; without it, made-up events.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            metavar="FILE",
            help="The TOML file; its settings are the ones in force.",
        ),
    ] = None,
    altis: AltisOption = None,
    interval: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help=f"Values of flush.interval, with commas. [default: {','.join(INTERVALS)}]",
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
            help=f"Of made-up events: how long they come. [default: {LONGEST}, or {MOST_EVENTS:,} events]",
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
    request_seconds = _duration("--request-time", request_time)
    aim = Aim(
        **(
            {}
            if max_lateness is None
            else {"max_lateness": _duration("--max-lateness", max_lateness)}
        ),
        **({} if max_requests is None else {"max_requests": max_requests}),
    )
    if plot is not None:
        _require_matplotlib()
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
            change_live(settings, {key: value})  # what is wrong is said before anything is played
    if trace is None:
        seconds = _length(rate, duration)
        loaded, what = made_up(settings, rate, seconds, seed), _made_up_text(rate, seconds)
    else:
        loaded, what = read_trace(trace), str(trace)
    if not loaded.seconds:
        raise StartError(
            f"{what}: all records have one timestamp, so nothing can be said of intervals. Was it a backlog that"
            " was produced at once?"
        )
    note = ""
    if not lists["flush.interval"]:
        lists["flush.interval"], note = _intervals(settings, loaded.seconds)

    progress = Console(stderr=True)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.size = ConsoleDimensions(_PIPED_WIDTH, console.height)

    def at(values: dict[str, str], seconds: float | None = None) -> Point:
        changed = {"flush.interval": _interval_text(seconds)} if seconds is not None else {}
        played = change_live(settings, {**values, **changed})
        return Point(played.flush.interval, play(played, loaded, request_seconds))

    rows = list(_sweep(lists, at, progress))
    result = _conclude(rows, aim, at, settings)
    if plot is not None:
        _draw(plot, result, what)
    if as_json:
        typer.echo(orjson.dumps(_json(what, loaded, request_seconds, result)).decode())
        return
    _report(console, what, loaded, request_time, result, aim, note)


def _duration(option: str, text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise ConfigError(f"{option} = {text!r}: {error}") from None


# --- the load -------------------------------------------------------------------------------------


def _length(rate: int, duration: str | None) -> float:
    if duration is not None:
        return _duration("--for", duration)
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
    longest = 1.01 * seconds / _FEWEST_INTERVALS  # its last record stands before its end
    fit = [one for one in known if one == now or parse_duration(one) <= longest]
    left = [one for one in known if one not in fit]
    note = f"That is too short to say anything of {', '.join(left)}." if left else ""
    return fit, note


# --- playing --------------------------------------------------------------------------------------


def _sweep(
    lists: dict[str, list[str]],
    at: Callable[[dict[str, str]], Point],
    console: Console,
) -> Iterator[_Setting]:
    """Play every combination, by rising interval."""
    given = {key: values for key, values in lists.items() if values}
    combinations = [dict(zip(given, values, strict=True)) for values in product(*given.values())]
    combinations.sort(key=lambda values: parse_duration(values["flush.interval"]))
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for values in progress.track(combinations, description="playing"):
            yield _Setting(values, at(values))


@dataclass(frozen=True, slots=True)
class _Result:
    """What is said.

    Attributes:
        rows: every setting that was played, by rising interval, what is recommended included.
        now: the settings in force; None if they weren't played.
        knees: of each combination of the other settings, where there is one.
        recommended: what meets the aim best; None if nothing does, or there is no knee.
    """

    rows: list[_Setting]
    now: _Setting | None
    knees: list[_Setting]
    recommended: _Setting | None


def _conclude(
    rows: list[_Setting],
    aim: Aim,
    at: Callable[[dict[str, str], float], Point],
    settings: Config,
) -> _Result:
    groups: dict[tuple[tuple[str, str], ...], list[_Setting]] = {}
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
            found.append(played or _Setting(values, best))
    recommended = min(found, key=lambda row: _cost(row, aim), default=None)
    if recommended is not None and recommended not in rows:
        rows = sorted([*rows, recommended], key=lambda row: row.point.interval_seconds)
    now = next((row for row in rows if _in_force(row, settings)), None)
    return _Result(rows, now, knees, recommended)


def _interval_text(seconds: float) -> str:
    return f"{seconds:g}s" if 1 < seconds < 60 else duration_text(seconds)


def _cost(row: _Setting, aim: Aim) -> tuple[float, int]:
    """What is to be small, of settings that are all as wanted; where they are about equal, the bill."""
    first = row.point.played.requests_per_second
    if aim.max_lateness == Aim().max_lateness and aim != Aim():
        first = row.point.late
    return float(f"{first:.1e}"), row.point.played.billed


def _in_force(row: _Setting, settings: Config) -> bool:
    changed = change_live(settings, row.values)
    return changed.flush == settings.flush and changed.aggregate == settings.aggregate


# --- saying it ------------------------------------------------------------------------------------


def _report(
    console: Console,
    what: str,
    trace: Trace,
    request_time: str,
    result: _Result,
    aim: Aim,
    note: str,
) -> None:
    played = result.rows[0].point.played
    rejects = Counter(one.reason for one in trace.arrivals if one.made is None)
    left_out = ", ".join(f"{number:,} {reason}" for reason, number in rejects.most_common())
    console.print(
        f"{what}: {len(trace.arrivals):,} records in {_seconds(trace.seconds)} s"
        f" ({_number(len(trace.arrivals) / trace.seconds)} a second), which make {played.made:,} calls"
        + (f"; of some no calls are made: {left_out}" if left_out else "")
        + f". Segment takes {request_time} for a request."
        + (f" {note}" if note else "")
    )
    console.print()
    console.print(_table(result))
    console.print()
    console.print(_terminal_plot(result, console), markup=False)
    console.print()
    for line in _sentences(result, aim):
        console.print(line)


def _table(result: _Result) -> Table:
    rows = result.rows
    keys = list(rows[0].values)
    suppressed = any(row.point.played.suppressed for row in rows)
    table = Table(
        box=None, pad_edge=False, padding=(0, 1, 0, 0), collapse_padding=True, header_style="bold"
    )
    table.add_column("", no_wrap=True, min_width=1)
    for key in keys:
        table.add_column(_short(key), justify="right", no_wrap=True)
    for percent in _PERCENTS:
        table.add_column(f"p{percent}\nlate s", justify="right", no_wrap=True)
    for name in ("req.\nper s", "calls\nper req.", "kB\nper s", "billed\nper s", "merged"):
        table.add_column(name, justify="right", no_wrap=True)
    if suppressed:
        table.add_column("left\nout", justify="right", no_wrap=True)
    table.add_column("closed by", no_wrap=True)
    for row in rows:
        played = row.point.played
        table.add_row(
            "".join(mark for mark, _, those in _marks(result) if any(row is one for one in those)),
            *row.values.values(),
            *(_seconds(played.lateness(n)) for n in _PERCENTS),
            _number(played.requests_per_second),
            f"{played.calls_per_request:,.0f}",
            _number(played.bytes_per_second / 1000),
            _number(played.billed / played.seconds),
            _percent(played.merged, played.made),
            *([_percent(played.suppressed, played.made)] if suppressed else []),
            _closed_by(played),
            style="bold green" if row is result.recommended else "",
        )
    return table


def _marks(result: _Result) -> list[tuple[str, str, list[_Setting]]]:
    """Give the marks of rows, with what they mean and whose they are."""
    return [
        ("•", "in force", [] if result.now is None else [result.now]),
        ("◆", "the knee", result.knees),
        ("★", "recommended", [] if result.recommended is None else [result.recommended]),
    ]


def _short(key: str) -> str:
    return key.rpartition(".")[2].replace("max_requests_per_second", "max_requests")


def _closed_by(played: Played) -> str:
    total = played.triggers.total()
    if not total:
        return "none closed"
    trigger, number = played.triggers.most_common(1)[0]
    return trigger if number == total else f"{trigger} {_percent(number, total)}"


def _sentences(result: _Result, aim: Aim) -> Iterator[str]:
    yield "  ".join(f"{mark} {what}" for mark, what, rows in _marks(result) if rows)
    full = [row for row in result.rows if row.full]
    if full:
        first = full[0].values["flush.interval"]
        others = "" if len(_curves(result)) == 1 else " with some of these settings"
        yield (
            f"From {first} on batches are full before they are old{others}: a longer interval changes nothing."
        )
    elif not result.knees:
        yield "There is no knee: in this range, going on costs about as much as it gains."
    best = result.recommended
    if aim != Aim():
        wanted = [
            *(
                [f"{LATE_PERCENT} % of the events at most {_seconds(aim.max_lateness)} s late"]
                if aim.max_lateness != Aim().max_lateness
                else []
            ),
            *(
                [f"at most {aim.max_requests:g} requests a second"]
                if aim.max_requests != Aim().max_requests
                else []
            ),
        ]
        yield f"Wanted: {' and '.join(wanted)}."
        if best is None:
            yield "None of these settings does that. The nearest are the first or the last rows."
    if best is None:
        return
    settings = ", ".join(
        f"{key} = {_toml(value)}"
        for key, value in best.values.items()
        if key == "flush.interval" or len({row.values[key] for row in result.rows}) > 1
    )
    why = (
        "" if aim != Aim() else ", for want of an aim (--max-lateness, --max-requests), is the knee"
    )
    now = result.now
    beside = "" if now is None or now is best else f"; now {_trade(now)}"
    yield f"Recommended{why}: {settings}: {_trade(best)}{beside}."


def _trade(row: _Setting) -> str:
    requests = row.point.played.requests_per_second
    return f"{_seconds(row.point.late)} s late (p{LATE_PERCENT}) at {_number(requests)} requests a second"


def _toml(value: str) -> str:
    return value if value.replace(".", "").replace("_", "").isdigit() else f'"{value}"'


def _seconds(seconds: float) -> str:
    if seconds != seconds:  # noqa: PLR0124 - not a number: nothing was delivered
        return "-"
    return f"{seconds:,.2f}" if seconds < 100 else f"{seconds:,.0f}"


def _number(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "-"


def _json(what: str, trace: Trace, request_seconds: float, result: _Result) -> dict[str, Any]:
    return {
        "what": what,
        "records": len(trace.arrivals),
        "seconds": trace.seconds,
        "request_seconds": request_seconds,
        "settings": [row.as_json() for row in result.rows],
        "in_force": result.now and result.now.values,
        "knees": [row.values for row in result.knees],
        "recommended": result.recommended and result.recommended.values,
    }


# --- drawing it -----------------------------------------------------------------------------------


def _curves(result: _Result) -> dict[str, list[_Setting]]:
    """Give the rows of each combination of the settings but for the interval, by what a person calls it."""
    curves: dict[str, list[_Setting]] = {}
    for row in result.rows:
        name = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in row.others)
        curves.setdefault(name, []).append(row)
    return curves


def _terminal_plot(result: _Result, console: Console) -> Text:
    """Draw requests a second over lateness, both by their logarithms."""
    import plotille  # noqa: PLC0415 - no other command draws

    figure = plotille.Figure()
    figure.width = max(min(_PLOT_WIDTH, console.width - _PLOT_MARGIN), 20)
    figure.height = _PLOT_HEIGHT
    figure.with_colors = console.is_terminal and console.color_system is not None
    figure.color_mode = "names"
    figure.origin = False
    figure.x_label, figure.y_label = f"p{LATE_PERCENT} late s", "req. per s"
    figure.x_ticks_fkt = lambda low, _: f"{10**low:.2g}"
    figure.y_ticks_fkt = lambda low, _: f"{10**low:.2g}"
    colors = ("blue", "magenta", "yellow", "cyan", "red", "white")
    curves = _curves(result)
    for number, (name, rows) in enumerate(curves.items()):
        drawn = [row for row in rows if row.point.played.requests and row.point.late > 0]
        xs = [log10(row.point.late) for row in drawn]
        ys = [log10(row.point.played.requests_per_second) for row in drawn]
        if xs:
            figure.plot(xs, ys, lc=colors[number % len(colors)], label=name or "tried")
    for mark, what, marked in _marks(result):
        xs = [log10(row.point.late) for row in marked]
        ys = [log10(row.point.played.requests_per_second) for row in marked]
        if xs:
            figure.scatter(xs, ys, lc="green", marker=mark, label=what)
    return Text.from_ansi(figure.show(legend=True))


def _require_matplotlib() -> None:
    try:
        import matplotlib as mpl  # noqa: F401, PLC0415 - heavy, and only for this
    except ImportError:
        raise StartError(
            "--plot draws with matplotlib, which isn't installed: pip install 'altis-streamer[plot]'"
        ) from None


def _draw(file: Path, result: _Result, what: str) -> None:
    """Draw lateness and requests a second over the interval."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - heavy, and only for this

    figure = Figure(figsize=(8, 6), layout="constrained")
    late, requests = figure.subplots(2, 1, sharex=True)
    several = len(_curves(result)) > 1
    for name, rows in _curves(result).items():
        xs = [row.point.interval_seconds for row in rows]
        (line,) = requests.plot(
            xs, [row.point.played.requests_per_second for row in rows], marker="o", label=name
        )
        for percent, style in zip(_PERCENTS, (":", "-", "--"), strict=True):
            late.plot(
                xs,
                [row.point.played.lateness(percent) for row in rows],
                style,
                color=line.get_color(),
                label=f"p{percent}" + (f", {name}" if several else ""),
            )
    for row, text in ((result.now, "in force"), (result.recommended, "recommended")):
        for axes in (late, requests):
            if row is not None:
                axes.axvline(row.point.interval_seconds, color="gray", linewidth=0.8, zorder=0)
        if row is not None:
            requests.annotate(
                text,
                (row.point.interval_seconds, 1),
                xycoords=("data", "axes fraction"),
                xytext=(3, -12),
                textcoords="offset points",
                color="gray",
            )
    late.set(
        title=f"What other flush intervals would do\n{what}", ylabel="seconds late", yscale="log"
    )
    requests.set(xlabel="flush.interval", ylabel="requests a second", xscale="log", yscale="log")
    late.legend()
    if several:
        requests.legend()
    intervals = {row.point.interval_seconds: row.values["flush.interval"] for row in result.rows}
    requests.set_xticks([*intervals], labels=[*intervals.values()])
    requests.set_xticks([], minor=True)
    for axes in (late, requests):
        axes.grid(visible=True, alpha=0.3)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    try:
        figure.savefig(file)
    except (OSError, ValueError) as error:  # a folder that isn't there; a form that it doesn't know
        raise StartError(f"--plot = {str(file)!r}: {error}") from None
