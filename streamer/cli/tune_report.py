"""What `streamer tune` says of the settings that it played: a table, what to take, and the trade-off drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import log10
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from streamer.cli.terminal import number_text, percent_text
from streamer.errors import StartError
from streamer.simulation import LATE_PERCENT, Aim, Played, Point
from streamer.trace import Trace

if TYPE_CHECKING:
    from rich.console import Console

_PERCENTS = (50, LATE_PERCENT, 99)
_PLOT_WIDTH, _PLOT_HEIGHT, _PLOT_MARGIN = 56, 14, 24


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
    console.print(_table(result))
    console.print()
    console.print(_terminal_plot(result, console), markup=False)
    console.print()
    for line in _sentences(result, aim):
        console.print(line, markup=False)


def _table(result: Result) -> Table:
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
            number_text(played.requests_per_second),
            f"{played.calls_per_request:,.0f}",
            number_text(played.bytes_per_second / 1000),
            number_text(played.billed / played.seconds),
            percent_text(played.merged, played.made),
            *([percent_text(played.suppressed, played.made)] if suppressed else []),
            _closed_by(played),
            style="bold green" if row is result.recommended else "",
        )
    return table


def _marks(result: Result) -> list[tuple[str, str, list[Setting]]]:
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
    return trigger if number == total else f"{trigger} {percent_text(number, total)}"


def _sentences(result: Result, aim: Aim) -> Iterator[str]:
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


def require_matplotlib() -> None:
    """Say at once that there is nothing to draw with.

    Raises:
        StartError: it isn't installed.
    """
    try:
        import matplotlib as mpl  # noqa: F401, PLC0415 - heavy, and only for this
    except ImportError:
        raise StartError(
            "--plot draws with matplotlib, which isn't installed: pip install 'altis-streamer[plot]'"
        ) from None


def draw(file: Path, result: Result, what: str) -> None:
    """Draw lateness and requests a second over the interval.

    Args:
        file: where the picture goes; its ending says of what form it is.
        result: what came of it.
        what: what was played, in words.

    Raises:
        StartError: it can't be written, or there is no such form.
    """
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
