"""What `streamer tune` says of the settings that it played: a table, what to take, and the trade-off drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import log10
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from streamer.cli.terminal import number_text, percent_text
from streamer.config import duration_text
from streamer.errors import StartError
from streamer.simulation import FEWEST_POINTS, LATE_PERCENT, Aim, Played, Point
from streamer.trace import Trace

if TYPE_CHECKING:
    from rich.console import Console

_PERCENTS = (50, LATE_PERCENT, 99)
_PLOT_WIDTH, _PLOT_HEIGHT, _PLOT_MARGIN = 56, 14, 31
_ANY_WIDTH = 1000
_NAME_SHARE = 0.06  # of the axis, that an interval's name takes


@dataclass(frozen=True, slots=True)
class Setting:
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
            "behind_seconds": round(played.behind_seconds, 3),
            "keeps_up": played.keeps_up,
        }


@dataclass(frozen=True, slots=True)
class Result:
    """What is said.

    Attributes:
        rows: every setting that was played, by rising interval, what is recommended included.
        now: the settings in force; None if they weren't played.
        knees: of each combination of the other settings, where there is one.
        recommended: what meets the aim best; None if nothing does, or there is no knee.
    """

    rows: list[Setting]
    now: Setting | None
    knees: list[Setting]
    recommended: Setting | None


def report(
    console: Console,
    what: str,
    trace: Trace,
    request_time: str,
    result: Result,
    aim: Aim,
    note: str,
) -> None:
    """Print it for a person.

    Args:
        console: what it is printed to.
        what: what was played, in words.
        trace: the same.
        request_time: how long Segment takes for a request, as it was given.
        result: what came of it.
        aim: what is wanted.
        note: what else is to be said of what was played; may be empty.
    """
    played = result.rows[0].point.played
    rejects = Counter(one.reason for one in trace.arrivals if one.made is None)
    left_out = ", ".join(f"{number:,} {reason}" for reason, number in rejects.most_common())
    console.print(
        f"{what}: {len(trace.arrivals):,} records in {_seconds(trace.seconds)} s"
        f" ({number_text(len(trace.arrivals) / trace.seconds)} a second), which make {played.made:,} calls"
        + (f"; of some no calls are made: {left_out}" if left_out else "")
        + f". Segment takes {request_time} for a request."
        + (f" {note}" if note else ""),
        markup=False,
    )
    console.print()
    table, no_room = _table(result, console)
    console.print(table)
    if no_room:
        console.print(f"(no room for: {', '.join(no_room)})", markup=False)
    if len(result.rows) > 1:
        console.print()
        console.print(_terminal_plot(result, console), markup=False)
    for line in ["", *_sentences(result, aim)]:
        console.print(line, markup=False)


class _Column(NamedTuple):
    """A column of the table.

    Attributes:
        head: its two lines.
        cell: what stands in it.
        right: whether that is a number.
    """

    head: str
    cell: Callable[[Setting], str]
    right: bool = True


_DISPENSABLE = ("kB\nper s", "calls\nper req.", "p50\nlate s", "p99\nlate s", "closed by", "merged")
"""What a terminal that is too narrow for all columns does without, in this order."""


def _table(result: Result, console: Console) -> tuple[Table, list[str]]:
    """Make the table.

    Returns:
        It, and which columns there was no room for.
    """
    columns = _columns(result)
    left_out: list[str] = []
    table = _rows(result, columns)
    wide = console.options.update(max_width=_ANY_WIDTH)
    for head in _DISPENSABLE:
        if Measurement.get(console, wide, table).maximum <= console.width:
            break
        columns = [column for column in columns if column.head != head]
        left_out.append(head.replace("\n", " "))
        table = _rows(result, columns)
    return table, left_out


def _columns(result: Result) -> list[_Column]:
    rows = result.rows

    def late(percent: int) -> _Column:
        return _Column(
            f"p{percent}\nlate s", lambda row: _seconds(row.point.played.lateness(percent))
        )

    def of(head: str, text: Callable[[Played], str], *, right: bool = True) -> _Column:
        return _Column(head, lambda row: text(row.point.played), right)

    def given(key: str) -> _Column:
        return _Column(_short(key), lambda row: row.values[key])

    suppressed = any(row.point.played.suppressed for row in rows)
    return [
        *(given(key) for key in rows[0].values),
        *(late(percent) for percent in _PERCENTS),
        of("req.\nper s", lambda played: number_text(played.requests_per_second)),
        of("calls\nper req.", lambda played: f"{played.calls_per_request:,.0f}"),
        of("kB\nper s", lambda played: number_text(played.bytes_per_second / 1000)),
        of("billed\nper s", lambda played: number_text(played.billed / played.seconds)),
        of("merged", lambda played: percent_text(played.merged, played.made)),
        *(
            [of("left\nout", lambda played: percent_text(played.suppressed, played.made))]
            if suppressed
            else []
        ),
        of("closed by", _closed_by, right=False),
    ]


def _rows(result: Result, columns: list[_Column]) -> Table:
    table = Table(
        box=None, pad_edge=False, padding=(0, 1, 0, 0), collapse_padding=True, header_style="bold"
    )
    table.add_column("", no_wrap=True, min_width=1)
    for column in columns:
        table.add_column(column.head, justify="right" if column.right else "left", no_wrap=True)
    for row in result.rows:
        table.add_row(
            "".join(mark for mark, _, those in _marks(result) if any(row is one for one in those)),
            *(column.cell(row) for column in columns),
            style="bold green" if row is result.recommended else "",
        )
    return table


def _marks(result: Result) -> list[tuple[str, str, list[Setting]]]:
    """Give the marks of rows, with what they mean and whose they are."""
    return [
        ("•", "in force", [] if result.now is None else [result.now]),
        ("◆", "the knee", result.knees),
        ("★", "recommended", [] if result.recommended is None else [result.recommended]),
        ("!", "can't keep up", [row for row in result.rows if not row.point.played.keeps_up]),
    ]


def _short(key: str) -> str:
    return key.rpartition(".")[2].replace("max_requests_per_second", "max_requests")


def _closed_by(played: Played) -> str:
    total = played.triggers.total()
    if not total:
        return "none closed"
    trigger, number = played.triggers.most_common(1)[0]
    return trigger if number == total else f"{trigger} {percent_text(number, total)}"


def _sentences(result: Result, aim: Aim) -> Iterator[str]:
    marks = "  ".join(f"{mark} {what}" for mark, what, rows in _marks(result) if rows)
    if marks:
        yield marks
    full = [row for row in result.rows if row.full]
    if full:
        first = full[0].values["flush.interval"]
        others = "" if len(_curves(result)) == 1 else " with some of these settings"
        yield (
            f"From {first} on batches are full before they are old{others}: a longer interval changes nothing."
        )
    elif not result.knees and len(result.rows) >= FEWEST_POINTS:
        yield "There is no knee: in this range, going on costs about as much as it gains."
    late = [row for row in result.rows if not row.point.played.keeps_up]
    if late:
        most = max(late, key=lambda row: row.point.played.behind_seconds)
        named = ", ".join(f"{key} {value}" for key, value in most.values.items())
        yield (
            f"{len(late)} of {len(result.rows)} settings can't keep up (!): with {named} streamer is"
            f" {_seconds(most.point.played.behind_seconds)} s behind at the end, and lateness grows for as long as"
            " records come like that."
        )
    best = result.recommended
    if aim != Aim():
        wanted = [
            *(
                [f"{LATE_PERCENT} % of the events at most {duration_text(aim.max_lateness)} late"]
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
            yield f"None of these settings does that. {_nearest(result.rows, aim)}"
    elif best is None:
        yield "For a recommendation name an aim: --max-lateness or --max-requests."
    if best is None:
        return
    why = (
        "" if aim != Aim() else ", for want of an aim (--max-lateness, --max-requests), is the knee"
    )
    now = result.now
    beside = "" if now is None or now is best else f"; now {_trade(now)}"
    yield f"Recommended{why}: {_settings_text(best, result.rows)}: {_trade(best)}{beside}."


def _nearest(rows: list[Setting], aim: Aim) -> str:
    """Say how near these settings come to an aim that none meets."""
    least_late = min(rows, key=lambda row: row.point.late)
    fewest = min(rows, key=lambda row: row.point.played.requests_per_second)
    if least_late.point.late > aim.max_lateness:
        return f"The least late is {_settings_text(least_late, rows)}: {_trade(least_late)}."
    if fewest.point.played.requests_per_second > aim.max_requests:
        return f"The fewest requests are with {_settings_text(fewest, rows)}: {_trade(fewest)}."
    return "Some do the one, and some the other."


def _settings_text(row: Setting, rows: list[Setting]) -> str:
    """Write the settings of a row as they stand in the file, but for what all rows share."""
    return ", ".join(
        f"{key} = {_toml(value)}"
        for key, value in row.values.items()
        if key == "flush.interval" or len({one.values[key] for one in rows}) > 1
    )


def _trade(row: Setting) -> str:
    requests = row.point.played.requests_per_second
    return f"{_seconds(row.point.late)} s late (p{LATE_PERCENT}) at {number_text(requests)} requests a second"


def _toml(value: str) -> str:
    return value if value.replace(".", "").replace("_", "").isdigit() else f'"{value}"'


def _seconds(seconds: float) -> str:
    if seconds != seconds:  # noqa: PLR0124 - not a number: of nothing
        return "-"
    return f"{seconds:,.2f}" if seconds < 100 else f"{seconds:,.0f}"


def numbers(what: str, trace: Trace, request_seconds: float, result: Result) -> dict[str, Any]:
    """Give what `--json` prints; see `report`."""
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


def _curves(result: Result) -> dict[str, list[Setting]]:
    """Give the rows of each combination of the settings but for the interval, by what a person calls it."""
    curves: dict[str, list[Setting]] = {}
    for row in result.rows:
        name = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in row.others)
        curves.setdefault(name, []).append(row)
    return curves


def _terminal_plot(result: Result, console: Console) -> Text:
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
    for number, rows in enumerate(curves.values()):
        drawn = _drawable(rows)
        xs = [log10(row.point.late) for row in drawn]
        ys = [log10(row.point.played.requests_per_second) for row in drawn]
        if xs:
            figure.plot(xs, ys, lc=colors[number % len(colors)])
    for mark, _, marked in _marks(result):
        drawn = _drawable(marked)
        xs = [log10(row.point.late) for row in drawn]
        ys = [log10(row.point.played.requests_per_second) for row in drawn]
        if xs:
            figure.scatter(xs, ys, lc="green", marker=mark)
    picture = Text.from_ansi(figure.show())
    if len(curves) > 1:  # the table says what the marks are
        for number, name in enumerate(curves):
            picture.append(f"\n  ⠤⠤ {name}", style=colors[number % len(colors)])
    return picture


def _drawable(rows: list[Setting]) -> list[Setting]:
    """Give those that have a place where both axes are logarithms."""
    return [row for row in rows if row.point.played.requests and row.point.late > 0]


def require_drawable(file: Path) -> None:
    """Say at once, before anything is played, that a picture can't be drawn.

    Args:
        file: where it is to go.

    Raises:
        StartError: there is nothing to draw with, no such form, or no such folder.
    """
    try:
        from matplotlib.backend_bases import (  # noqa: PLC0415 - heavy, and only for this
            FigureCanvasBase,
        )
    except ImportError:
        raise StartError(
            "--plot draws with matplotlib, which isn't installed: pip install 'altis-streamer[plot]'"
        ) from None
    forms = FigureCanvasBase.get_supported_filetypes()
    if file.suffix.removeprefix(".").lower() not in forms:
        raise StartError(
            f"--plot = {str(file)!r}: must end with what form it is to have, such as .svg or .png;"
            f" there are: {', '.join(sorted(forms))}"
        )
    if not file.parent.is_dir():
        raise StartError(f"--plot = {str(file)!r}: there is no folder {str(file.parent)!r}")


def _apart(intervals: list[float]) -> list[float]:
    """Keep those whose names don't stand on those of earlier ones, on a logarithmic axis."""
    room = _NAME_SHARE * log10(max(intervals) / min(intervals))
    kept: list[float] = []
    for interval in intervals:
        if all(abs(log10(interval / other)) > room for other in kept):
            kept.append(interval)
    return kept


def draw(file: Path, result: Result, what: str) -> None:
    """Draw lateness and requests a second over the interval.

    Args:
        file: where the picture goes; its ending says of what form it is.
        result: what came of it.
        what: what was played, in words.

    Raises:
        StartError: it can't be written.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - heavy, and only for this
    from matplotlib.ticker import LogLocator, NullLocator  # noqa: PLC0415 - the same

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
    marked: dict[float, list[str]] = {}
    for row, text in ((result.now, "in force"), (result.recommended, "recommended")):
        if row is not None:
            marked.setdefault(row.point.interval_seconds, []).append(text)
    sides = ("right", "left") if len(marked) > 1 else ("center",)
    for (interval, texts), side in zip(sorted(marked.items()), sides, strict=True):
        for axes in (late, requests):
            axes.axvline(interval, color="gray", linewidth=0.8, zorder=0)
        late.annotate(
            ", ".join(texts),
            (interval, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 4),
            textcoords="offset points",
            color="gray",
            ha=side,
        )
    literally = what.replace("$", r"\$")  # it isn't a formula
    late.set(
        title=f"What other flush intervals would do\n{literally}\n",
        ylabel="seconds late",
        yscale="log",
    )  # the last line is for what the intervals are
    requests.set(xlabel="flush.interval", ylabel="requests a second", xscale="log", yscale="log")
    late.legend()
    if several:
        requests.legend()
    intervals = {row.point.interval_seconds: row.values["flush.interval"] for row in result.rows}
    named = _apart([*marked, *intervals])
    requests.set_xticks(named, labels=[intervals[interval] for interval in named])
    requests.set_xticks([], minor=True)
    for axes in (late, requests):
        axes.grid(visible=True, alpha=0.3)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    try:
        figure.savefig(file)
    except OSError as error:
        raise StartError(f"--plot = {str(file)!r}: can't be written: {error.strerror}") from None
