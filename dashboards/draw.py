"""Draws the dashboards: runs streamer through a bad day, and puts each panel's answer where the dashboard has it.

`make pictures` writes docs/dashboards/; ARGS="--minutes 2" is a shorter day. It needs what whole-pipeline tests need.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from PIL import Image

mpl.use("agg")

from matplotlib import pyplot as plt
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from kafka_broker.broker import KafkaBroker, free_port
from kafka_broker.topics import Kafka
from watched import BOARDS, EXCLUDED, SETTINGS, Prometheus, Series, Variables, bad_day, dashboard
from whole_pipeline import Stage

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURES = Path(__file__).parent.parent / "docs/dashboards"
CELL_WIDTH, CELL_HEIGHT, DPI = 0.6, 0.3, 92  # inches of a cell of the grid
TOP = 1.2  # cells above the panels, for the title
COLORS = (
    "#1f78b4", "#e66101", "#33a02c", "#e31a1c", "#6a3d9a", "#b15928", "#00a0a0", "#c2a500", "#e377c2", "#777777",
)  # fmt: skip
FIXED = {
    "delivered": "#33a02c", "dead_lettered": "#e31a1c", "filtered": "#777777", "server_error": "#e31a1c",
    "timeout": "#e66101", "rate_limited": "#c2a500", "refused": "#6a3d9a", "released": "#b15928",
    "flowing": "#33a02c", "paused": "#c2a500", "backing_off": "#e66101", "misconfigured": "#e31a1c",
    "kafka": "#777777", "batch": "#1f78b4", "slot": "#6a3d9a", "request": "#e66101", "backoff": "#e31a1c",
    "time": "#33a02c", "bytes": "#1f78b4", "calls": "#e66101",
}  # fmt: skip
MARKS = {"blue": "#1f78b4", "purple": "#6a3d9a", "yellow": "#c2a500", "red": "#e31a1c"}
INK, FAINT, LIMIT = "#222222", "#8a8f98", "#000000"
GOOD = {"green": "#2b8a3e", "orange": "#d9730d", "red": "#c92a2a", "text": INK}


@dataclass(frozen=True)
class Answers:
    """What Prometheus knows of the time shown.

    Args:
        prometheus: the server.
        variables: what is put into queries.
        start, end: in seconds since 1970.
        step: seconds between two points.
    """

    prometheus: Prometheus
    variables: Variables
    start: float
    end: float
    step: float

    async def of(self, query: str, *, instant: bool = False) -> list[Series]:
        """A query's answer over the time, or at its end."""
        filled = self.variables.fill(query)
        if instant:
            return await self.prometheus.at(filled, self.end)
        return await self.prometheus.over(filled, self.start, self.end, self.step)

    async def named(self, panel: dict[str, Any]) -> list[tuple[str, Series]]:
        """Every series of a panel with its legend."""
        found = []
        for target in panel["targets"]:
            legend = self.variables.fill(target.get("legendFormat", ""))
            for series in await self.of(target["expr"]):
                name = legend
                for label in re.findall(r"{{(\w+)}}", legend):
                    name = name.replace(f"{{{{{label}}}}}", series.labels.get(label, ""))
                found.append((name.replace("127.0.0.1:", ":"), series))
        return found


def _tick(value: float, unit: str) -> str:
    """The same for an axis, where there is no room for what is counted."""
    return text_of(
        value, unit if unit in {"s", "percentunit", "decbytes", "bytes", "Bps"} else "short"
    )


# --- words -----------------------------------------------------------------------------------------------


def text_of(value: float, unit: str) -> str:
    """A value as Grafana would write it in a unit."""
    if not math.isfinite(value):
        return "-"
    if unit == "s":
        return _seconds(value)
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    suffix = {
        "eps": " evt/s", "reqps": " req/s", "cps": " calls/s", "ops": " /s", "Bps": "B/s", "decbytes": "B", "bytes": "B",
    }.get(unit, "")  # fmt: skip
    scaled, prefix = value, ""
    for prefix in ("", "k", "M", "G"):
        if abs(scaled) < 1000 or prefix == "G":
            break
        scaled /= 1000
    number = f"{scaled:.3g}"
    gap = " " if suffix.startswith("B") else ""
    return f"{number}{gap}{prefix}{suffix}"


def _seconds(value: float) -> str:
    if value == 0:
        return "0 s"
    if abs(value) < 1:
        return f"{value * 1000:.3g} ms"
    if abs(value) < 120:
        return f"{value:.3g} s"
    if abs(value) < 7200:
        return f"{value / 60:.3g} min"
    return f"{value / 3600:.3g} h"


# --- kinds of panels -------------------------------------------------------------------------------------


def _line(series: Series, answers: Answers) -> tuple[Any, Any]:
    """Times and values on the grid of steps; what wasn't there is a gap."""
    count = round((answers.end - answers.start) / answers.step) + 1
    times = answers.start + np.arange(count) * answers.step
    values = np.full(count, np.nan)
    for at, value in series.points:
        values[min(round((at - answers.start) / answers.step), count - 1)] = value
    return times, values


def _limits(panel: dict[str, Any]) -> set[str]:
    return {override["matcher"]["options"] for override in panel["fieldConfig"]["overrides"]}


def _graph(
    axes: Axes, panel: dict[str, Any], found: list[tuple[str, Series]], answers: Answers
) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    custom, unit = defaults["custom"], defaults["unit"]
    stacked = custom["stacking"]["mode"] == "normal"
    log = custom.get("scaleDistribution", {}).get("type") == "log"
    limits = {answers.variables.fill(name) for name in _limits(panel)}
    shown = [(n, s) for n, s in found if any(s.finite()) or len(found) <= 4]
    shown = shown or found[:1]
    colors = iter(COLORS * 3)
    bottom: Any = 0.0
    for name, series in shown:
        x, y = _line(series, answers)
        if log:
            y = np.where(y > 0, y, np.nan)
        if name in limits:
            axes.plot(x, y, color=LIMIT, linestyle=(0, (4, 3)), linewidth=1.1, label=name, zorder=4)
            continue
        color = FIXED.get(name) or next(colors)
        if stacked:
            y = np.nan_to_num(y)
            axes.fill_between(
                x, bottom, bottom + y, color=color, alpha=0.75, linewidth=0, label=name
            )
            bottom = bottom + y
        else:
            axes.plot(x, y, color=color, linewidth=1.2, label=name, zorder=3, clip_on=False)
    if log:
        axes.set_yscale("log")
    else:
        top = max(axes.get_ylim()[1], custom.get("axisSoftMax", 0))
        lowest = min((min(s.finite(), default=0.0) for _, s in shown), default=0.0)
        axes.set_ylim(min(lowest, 0), top if top > 0 else 1)
        axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value, unit)))
    axes.minorticks_off()
    _time_axis(axes, answers)
    axes.grid(axis="y", color="#e6e8eb", linewidth=0.6)
    axes_cells = axes.get_window_extent().height / DPI / CELL_HEIGHT
    handles, names = axes.get_legend_handles_labels()
    if handles:
        letters = panel["gridPos"]["w"] * 9.5  # that fit into a line
        columns = max(1, min(len(names), int(letters / (max(map(len, names)) + 6))))
        axes.legend(
            handles, names, loc="upper left", bbox_to_anchor=(-0.01, -0.85 / axes_cells), ncols=columns, fontsize=6.5,
            frameon=False, handlelength=1.1, columnspacing=1.0, handletextpad=0.4, borderaxespad=0.1, labelspacing=0.25,
        )  # fmt: skip


def _time_axis(axes: Axes, answers: Answers) -> None:
    axes.set_xlim(answers.start, answers.end)
    started = answers.start

    def since(value: float, _: object) -> str:
        seconds = round(value - started)
        return f"{seconds // 60}:{seconds % 60:02d}"

    width = axes.get_window_extent().width / DPI
    step = next(
        s for s in (5, 10, 15, 30, 60, 120, 300, 600) if (answers.end - started) / s <= width * 1.8
    )
    ticks = np.arange(0, answers.end - started, step)
    axes.set_xticks([started + tick for tick in ticks])
    axes.xaxis.set_major_formatter(FuncFormatter(since))


def _heat(axes: Axes, panel: dict[str, Any], found: list[Series], answers: Answers) -> None:
    unit = panel["fieldConfig"]["defaults"]["unit"]
    found = sorted(found, key=lambda series: float(series.labels["le"]))
    edges = [float(series.labels["le"]) for series in found]
    rows = np.array([np.nan_to_num(_line(series, answers)[1]) for series in found])
    counts = np.diff(rows, axis=0, prepend=0).clip(min=0)
    if math.isinf(edges[-1]) and not counts[-1].any():
        edges, counts = edges[:-1], counts[:-1]
    x = answers.start + np.arange(counts.shape[1] + 1) * answers.step
    masked = np.ma.masked_equal(counts, 0)
    axes.pcolormesh(x, np.arange(len(edges) + 1), masked, cmap="Oranges", vmin=0, rasterized=True)
    labels = ["0", *(text_of(edge, unit) if math.isfinite(edge) else "∞" for edge in edges)]
    every = max(1, len(labels) // 6)
    ticks = list(range(len(labels) - 1, -1, -every))
    axes.set_yticks(ticks, [labels[tick] for tick in ticks])
    _time_axis(axes, answers)


def _colored(value: float, panel: dict[str, Any]) -> str:
    color = "text"
    for step in panel["fieldConfig"]["defaults"].get("thresholds", {}).get("steps", []):
        if step.get("value") is None or value >= step["value"]:
            color = step["color"]
    return GOOD[color]


def _figures(
    axes: Axes, panel: dict[str, Any], found: list[tuple[str, Series]], answers: Answers
) -> None:
    unit = panel["fieldConfig"]["defaults"]["unit"]
    axes.axis("off")
    if len(found) == 1:
        series = found[0][1]
        x, y = _line(series, answers)
        value = (series.finite() or [math.nan])[-1]
        color = _colored(value, panel)
        inset = axes.inset_axes((0.0, 0.0, 1.0, 0.42))
        inset.axis("off")
        inset.fill_between(x, 0, np.nan_to_num(y), color=color, alpha=0.18, linewidth=0)
        inset.plot(x, y, color=color, linewidth=0.8, alpha=0.7)
        axes.text(
            0.5,
            0.66,
            text_of(value, unit),
            ha="center",
            va="center",
            fontsize=14,
            color=color,
            weight="bold",
        )
        return
    for number, (name, series) in enumerate(found):
        value = (series.finite() or [math.nan])[-1]
        left = (number + 0.5) / len(found)
        axes.text(
            left,
            0.62,
            text_of(value, unit),
            ha="center",
            va="center",
            fontsize=14,
            color=INK,
            weight="bold",
        )
        axes.text(left, 0.2, name, ha="center", va="center", fontsize=8, color=FAINT)


def _bars(axes: Axes, panel: dict[str, Any], found: list[tuple[str, Series]]) -> None:
    axes.axis("off")
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.6, len(found) - 0.2)
    for number, (name, series) in enumerate(reversed(found)):
        last = (series.finite() or [math.nan])[-1]
        most = max(series.finite(), default=math.nan)
        axes.barh(number, 1, height=0.34, color="#eef0f2")
        axes.barh(number, min(most, 1), height=0.34, color="#d0d4da")
        axes.barh(number, min(last, 1), height=0.34, color=_colored(last, panel))
        axes.text(0, number + 0.3, name, ha="left", va="bottom", fontsize=7.5, color=INK)
        words = f"{text_of(last, 'percentunit')}   (most: {text_of(most, 'percentunit')})"
        axes.text(1, number + 0.3, words, ha="right", va="bottom", fontsize=7.5, color=FAINT)


async def _cells(panel: dict[str, Any], answers: Answers) -> tuple[list[str], list[list[str]]]:
    steps = {step["id"]: step["options"] for step in panel["transformations"]}
    organize = steps["organize"]
    units = {
        override["matcher"]["options"]: prop["value"]
        for override in panel["fieldConfig"]["overrides"]
        for prop in override["properties"]
    }
    rows: dict[str, dict[str, str]] = {}
    several = len(panel["targets"]) > 1
    keys = ("interval", "instance")
    for target in panel["targets"]:
        value = f"Value #{target['refId']}" if several else "Value"
        for number, series in enumerate(await answers.of(target["expr"], instant=True)):
            key = next(
                (series.labels[k] for k in keys if several and k in series.labels), str(number)
            )
            row = rows.setdefault(key, {})
            row.update(
                {k: v for k, v in series.labels.items() if k not in organize["excludeByName"]}
            )
            header = organize["renameByName"].get(value)
            if header:
                row[header] = text_of(series.points[0][1], units[header])
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    columns.sort(
        key=lambda name: (
            list(organize["renameByName"].values()).index(name) if name in units else -1
        )
    )
    sort = steps["sortBy"]["sort"][0]["field"]
    cells = sorted(rows.values(), key=lambda row: row.get(sort, ""))
    return columns, [[row.get(name, "") for name in columns] for row in cells]


def _table(axes: Axes, panel: dict[str, Any], columns: list[str], cells: list[list[str]]) -> None:
    axes.axis("off")
    if not cells:
        axes.text(
            0.5, 0.5, panel["fieldConfig"]["defaults"].get("noValue", ""), ha="center", color=FAINT
        )
        return
    cells = [[cell.replace("127.0.0.1:", ":") for cell in row] for row in cells][:12]
    widths = [
        max(map(len, (name, *column))) + 2
        for name, column in zip(columns, zip(*cells, strict=True), strict=True)
    ]
    lefts = np.concatenate([[0], np.cumsum(widths)]) / sum(widths)
    line = min(1 / (len(cells) + 1), 0.14)
    for row, texts in enumerate([columns, *cells]):
        y = 1 - line * (row + 0.5)
        for left, text in zip(lefts, texts, strict=False):
            color, weight = (FAINT, "normal") if row == 0 else (INK, "normal")
            axes.text(
                left, y, text, ha="left", va="center", fontsize=7.5, color=color, weight=weight
            )
        axes.plot([0, 1], [y - line / 2] * 2, color="#e6e8eb", linewidth=0.6)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)


# --- the picture -----------------------------------------------------------------------------------------


async def _marks(board: dict[str, Any], answers: Answers) -> list[tuple[float, str]]:
    """Times and colours of the annotations; of what lasts, its begin."""
    found = []
    for annotation in board["annotations"]["list"]:
        for series in await answers.of(annotation["expr"]):
            last = 0.0
            for at, value in series.points:
                when = value / 1000 if annotation.get("useValueForTime") else at
                if when - last > answers.step * 1.5 and answers.start < when < answers.end:
                    found.append((when, MARKS[annotation["iconColor"]]))
                last = when
    return found


def _box(place: dict[str, int], height: float) -> tuple[float, float, float, float]:
    """Left, bottom, width and height of a panel, as shares of the picture."""
    left, top = place["x"] / 24, (place["y"] + TOP) / height
    return left, 1 - top - place["h"] / height, place["w"] / 24, place["h"] / height


async def draw(name: str, answers: Answers, folder: Path) -> None:
    """Draw a dashboard.

    Args:
        name: its file.
        answers: of Prometheus.
        folder: where the picture is put, as PNG.
    """
    board = dashboard(name)
    height = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in board["panels"]) + TOP + 0.4
    figure = plt.figure(
        figsize=(24 * CELL_WIDTH, height * CELL_HEIGHT), dpi=DPI, facecolor="#f4f5f7"
    )
    figure.text(
        0.006,
        1 - 0.6 / height,
        f"{board['title']}   (minutes of a bad day)",
        fontsize=13,
        weight="bold",
        va="center",
        color=INK,
    )
    words = (
        ("settings changed", "blue"),
        ("start", "purple"),
        ("rebalance", "yellow"),
        ("alert fires", "red"),
    )
    for number, (word, color) in enumerate(words):
        figure.text(
            0.66 + number * 0.09, 1 - 0.6 / height, f"┆ {word}", fontsize=8, va="center", color=MARKS[color]
        )  # fmt: skip
    marks = await _marks(board, answers)
    for panel in board["panels"]:
        left, bottom, w, h = _box(panel["gridPos"], height)
        if panel["type"] == "row":
            figure.text(
                left + 0.006,
                bottom + h * 0.4,
                panel["title"],
                fontsize=9.5,
                weight="bold",
                color="#555b66",
                va="center",
            )
            continue
        gap_x, gap_y = 0.0025, 0.15 / height
        figure.add_artist(
            FancyBboxPatch(
                (left + gap_x, bottom + gap_y), w - 2 * gap_x, h - 2 * gap_y, boxstyle="square,pad=0",
                facecolor="white", edgecolor="#d9dce1", linewidth=0.7, transform=figure.transFigure, zorder=-1,
            )
        )  # fmt: skip
        figure.text(
            left + 0.007,
            bottom + h - 0.75 / height,
            panel["title"],
            fontsize=8,
            weight="bold",
            color=INK,
            va="center",
        )
        inner = (left + 0.008, bottom + 0.4 / height, w - 0.016, h - 1.7 / height)
        match panel["type"]:
            case "timeseries":
                inner = (left + 0.036, bottom + 2.2 / height, w - 0.044, h - 3.5 / height)
                axes = figure.add_axes(inner)
                found = await answers.named(panel)
                _graph(axes, panel, found, answers)
                for when, color in marks:
                    axes.axvline(when, color=color, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
            case "heatmap":
                inner = (left + 0.042, bottom + 1.3 / height, w - 0.05, h - 2.7 / height)
                axes = figure.add_axes(inner)
                _heat(axes, panel, await answers.of(panel["targets"][0]["expr"]), answers)
            case "stat":
                axes = figure.add_axes(inner)
                _figures(axes, panel, await answers.named(panel), answers)
            case "bargauge":
                axes = figure.add_axes(inner)
                _bars(axes, panel, await answers.named(panel))
            case "table":
                axes = figure.add_axes(inner)
                _table(axes, panel, *await _cells(panel, answers))
            case kind:
                raise AssertionError(
                    f"{name} has a panel of the kind {kind}, which nobody taught to draw"
                )
        axes.tick_params(labelsize=6.5, colors=FAINT, length=2, width=0.5)
        for side, spine in axes.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color("#c9ccd1")
    path = folder / f"{Path(name).stem}.png"
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(
            224, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
        )
    small.save(path, optimize=True)


async def watch(kafka: Kafka, seconds: float, rate: float, folder: Path) -> None:
    """Have a bad day, and draw it.

    Args:
        kafka: a cluster.
        seconds: how long it lasts.
        rate: events a second.
        folder: for the pictures.
    """
    ports = (free_port(), free_port())
    async with Stage(kafka, SETTINGS, excluded=EXCLUDED) as stage, Prometheus(ports) as prometheus:
        begin = time.time()
        await bad_day(stage, ports, seconds, rate)
        await prometheus.scraped_all()
        end = time.time()
        # What is taken over the time shown is taken over its end, which is calm.
        variables = Variables("10s", f"{seconds / 8:.0f}s", f"{seconds / 4:.0f}s")
        step = max((end - begin) / 240, 1.0)
        for name in BOARDS:
            await draw(name, Answers(prometheus, variables, begin, end, step), folder)


def main() -> None:
    """Read the command line, start a broker, and draw."""
    parser = argparse.ArgumentParser(prog="make pictures", description=__doc__)
    parser.add_argument("--minutes", type=float, default=4.0, help="how long the day lasts")
    parser.add_argument("--rate", type=float, default=100.0, help="events a second")
    parser.add_argument("--out", type=Path, default=PICTURES, help="folder for the pictures")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with KafkaBroker() as broker:
        asyncio.run(
            watch(Kafka(broker.bootstrap), arguments.minutes * 60, arguments.rate, arguments.out)
        )
    sys.stdout.write("".join(f"{path}\n" for path in sorted(arguments.out.glob("*.png"))))


if __name__ == "__main__":
    main()
