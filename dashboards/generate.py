"""Makes the three dashboards beside this file: `make docs` writes them, a test holds them to this source.

Queries are written with `rate`, `total` and `quantile` below, so that each selects by the variables of the dashboard.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    table,
    timeseries,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    AxisPlacement,
    BarGaugeDisplayMode,
    BigValueColorMode,
    BigValueGraphMode,
    BigValueTextMode,
    DataSourceRef,
    HeatmapCellLayout,
    LegendDisplayMode,
    LegendPlacement,
    ScaleDistribution,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
    VizOrientation,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataTransformerConfig,
    DynamicConfigValue,
    GridPos,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import TypeAlias

    Queries: TypeAlias = Sequence[tuple[str, str]]  # expressions, each with its legend

FOLDER = Path(__file__).parent
DATASOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
INSTANCE = 'job=~"$job",instance=~"$instance"'
TOPIC = 'topic=~"$topic"'
NOW, RANGE = "$__rate_interval", "$__range"
WHAT_IF = (1, 2, 5, 10, 30, 60)
"""The flush intervals of the what-if table, in seconds."""


# --- queries ---------------------------------------------------------------------------------------


def of(metric: str, *matchers: str) -> str:
    """Select a metric of the members that the dashboard is told to show."""
    return f"streamer_{metric}{{{','.join((INSTANCE, *matchers))}}}"


def rate(metric: str, *matchers: str, over: str = NOW, offset: str = "") -> str:
    """Give a counter's increase a second."""
    return f"rate({of(metric, *matchers)}[{over}]{offset})"


def increase(metric: str, *matchers: str, over: str = NOW) -> str:
    """Give by how much a counter has grown."""
    return f"increase({of(metric, *matchers)}[{over}])"


def total(expression: str, *by: str) -> str:
    """Sum series up, by labels if some are given."""
    return f"sum by ({', '.join(by)}) ({expression})" if by else f"sum({expression})"


def per(part: str, whole: str) -> str:
    """Divide; nothing of nothing is 0."""
    return f"{part} / clamp_min({whole}, 1e-9)"


def shares(part: str, label: str, whole: str) -> str:
    """Divide the sums by a label by one number; nothing of nothing is 0."""
    return f"{total(part, label)} / on () group_left () clamp_min({whole}, 1e-9)"


def quantile(q: float, histogram: str, offset: str = "") -> str:
    """Give a quantile of a histogram, over all members."""
    buckets = total(rate(f"{histogram}_bucket", offset=offset), "le")
    return f"histogram_quantile({q}, {buckets})"


def mean(histogram: str, offset: str = "") -> str:
    """Give the mean of a histogram."""
    sums = total(rate(f"{histogram}_sum", offset=offset))
    return per(sums, total(rate(f"{histogram}_count", offset=offset)))


def quantiles(histogram: str, *qs: float) -> list[tuple[str, str]]:
    """Give some quantiles as queries, named p50 and so on."""
    return [(quantile(q, histogram), f"p{q * 100:g}") for q in qs]


DELIVERED = 'outcome="delivered"'
DEAD = 'outcome="dead_lettered"'
INTERVAL = (f"max({of('config_flush_interval_seconds')})", "flush interval")
PENDING_AGE = f"clamp_min(time() - {of('oldest_pending_event_timestamp_seconds')}, 0)"
KEPT = 'outcome=~"merged|suppressed"'
MADE = 'outcome=~"delivered|merged|suppressed"'
FAILED = 'outcome=~"timeout|connect|server_error"'
CALLS_PER_REQUEST = per(
    total(rate("calls_total", DELIVERED)), total(rate("segment_requests_total", DELIVERED))
)
UNACCOUNTED = (
    f"{total(of('events_consumed_total'))} - {total(of('events_settled_total'))}"
    f" - {total(of('events_released_total'))} - {total(of('inflight_events'))}"
)


def saved(offset: str = "") -> str:
    """Give the share of the calls that merging and suppression kept off the bill."""
    kept = total(rate("calls_total", KEPT, offset=offset))
    made = total(rate("calls_total", MADE, offset=offset))
    return per(kept, made)


# --- what-if: other intervals, from what is measured now ---------------------------------------------


def _fill_seconds() -> str:
    """How long a batch takes to fill to a limit, by member: at the present rates, spread over its destinations."""
    calls, size = fill_rates(RANGE)
    faster = f"(({calls}) >= ({size}) or ({size}))"
    return f"({_destinations()} / {faster})"


def fill_rates(over: str) -> tuple[str, str]:
    """Give batches a second that calls, and that bytes, would fill, by member."""
    calls = total(rate("calls_total", DELIVERED, over=over), "instance")
    size = total(rate("delivered_bytes_total", 'encoding="identity"', over=over), "instance")
    by = "max by (instance)"
    return (
        f"{calls} / {by} ({of('config_flush_max_calls')})",
        f"{size} / {by} ({of('config_flush_max_bytes')})",
    )


def _destinations() -> str:
    return f"clamp_min({total(of('destinations'), 'instance')}, 1)"


def _events() -> str:
    """Records that are delivered a second, by member."""
    return total(rate("events_settled_total", DELIVERED, over=RANGE), "instance")


def _open_seconds(interval: str) -> str:
    """How long a batch is open: until the interval is over, or a limit is reached."""
    return f"clamp_max({_fill_seconds()}, {interval})"


def what_if_requests(interval: str) -> str:
    """Give requests a second: a batch opens with a record, and the next one with the record after it closed."""
    gap = f"({_destinations()} / {_events()})"
    by_time, by_limit = f"({interval} + {gap})", _fill_seconds()
    cycle = f"({by_limit} < {by_time} or {by_time})"
    return f"sum({_destinations()} / {cycle})"


def what_if_calls(interval: str) -> str:
    """Give calls per request."""
    return f"{total(rate('calls_total', DELIVERED, over=RANGE))} / ({what_if_requests(interval)})"


def what_if_wait(interval: str) -> str:
    """Give the mean wait in the batch: the first record waits all the time, the others half of it."""
    window, arrivals = _open_seconds(interval), f"({_events()} / {_destinations()})"
    waits = f"{window} * (1 + {arrivals} * {window} / 2) / (1 + {arrivals} * {window})"
    return f"sum({_events()} * {waits}) / sum({_events()})"


def what_if_age(interval: str) -> str:
    """Give the mean age: the wait in the batch, and all else as it is."""
    others = per(
        total(rate("stage_event_seconds_total", 'stage!="batch"', over=RANGE)),
        total(rate("events_settled_total", DELIVERED, over=RANGE)),
    )
    return f"{what_if_wait(interval)} + {others}"


def what_if_longest(interval: str) -> str:
    """Give the longest wait in a batch."""
    return f"max({_open_seconds(interval)})"


def what_if_by_time(interval: str) -> str:
    """Give the share of members whose batches the interval would close, before a limit does."""
    return f"avg({_fill_seconds()} > bool {interval})"


MEASURED = {
    "requests/s": total(rate("batches_closed_total", over=RANGE)),
    "calls per request": per(
        total(rate("calls_total", DELIVERED, over=RANGE)),
        total(rate("batches_closed_total", over=RANGE)),
    ),
    "mean age": per(
        total(rate("stage_event_seconds_total", over=RANGE)),
        total(rate("events_settled_total", DELIVERED, over=RANGE)),
    ),
    "longest wait": f"histogram_quantile(0.99, {total(rate('batch_wait_seconds_bucket', over=RANGE), 'le')})",
    "closed by time": per(
        total(rate("batches_closed_total", 'trigger="time"', over=RANGE)),
        total(rate("batches_closed_total", over=RANGE)),
    ),
}


def what_if() -> list[tuple[str, str, str]]:
    """Give the columns of the table: an expression with a series for each row, the header, and its unit."""
    rows: dict[str, str] = {f"{seconds:02d} s": str(seconds) for seconds in WHAT_IF}
    rows["in force, predicted"] = f"scalar({INTERVAL[0]})"
    columns = []
    for header, unit, make in (
        ("requests/s", "reqps", what_if_requests),
        ("calls per request", "short", what_if_calls),
        ("mean age", "s", what_if_age),
        ("longest wait", "s", what_if_longest),
        ("closed by time", "percentunit", what_if_by_time),
    ):
        cells = {name: make(interval) for name, interval in rows.items()}
        cells["in force, measured"] = MEASURED[header]
        union = " or ".join(
            f'label_replace({cell}, "interval", "{name}", "", "")' for name, cell in cells.items()
        )
        columns.append((union, header, unit))
    return columns


# --- panels ----------------------------------------------------------------------------------------


@dataclass
class Board:
    """A dashboard in the making; panels are set as close to the top left as they go.

    Attributes:
        builder: of Grafana's SDK.
    """

    builder: dashboard.Dashboard
    _panels: int = 0
    _skyline: list[int] = field(default_factory=lambda: [0] * 24)

    def row(self, title: str) -> None:
        """Start a row with a heading."""
        self._panels += 1
        top = max(self._skyline)
        place = GridPos(h=1, w=24, x=0, y=top)
        self.builder.with_row(dashboard.Row(title).id(self._panels).grid_pos(place))
        self._skyline = [top + 1] * 24

    def add(self, panel: Any, title: str, unit: str, description: str, w: int, h: int) -> None:
        """Add a panel.

        Args:
            panel: its builder.
            title, unit, description: what it says of itself.
            w, h: its size; a dashboard is 24 wide.
        """
        self._panels += 1
        tops = [(max(self._skyline[x : x + w]), x) for x in range(24 - w + 1)]
        y, x = min(tops)
        self._skyline[x : x + w] = [y + h] * w
        self.builder.with_panel(
            panel.id(self._panels)
            .title(title)
            .unit(unit)
            .description(description)
            .datasource(DATASOURCE)
            .grid_pos(GridPos(h=h, w=w, x=x, y=y))
        )

    def graph(
        self,
        title: str,
        unit: str,
        description: str,
        queries: Queries,
        *,
        w: int = 8,
        h: int = 8,
        stack: StackingMode = StackingMode.NONE,
        dashed: Iterable[str] = (),
        log: bool = False,
        top: float | None = None,
    ) -> None:
        """Add a graph over time.

        Args:
            title, unit, description: what it says of itself.
            queries: what it draws.
            w, h: its size.
            stack: whether its series lie on each other.
            dashed: names of series that are limits, not measurements.
            log: whether its axis is logarithmic.
            top: where the axis ends at least.
        """
        panel = timeseries.Panel().min(0) if not log else timeseries.Panel()
        panel = (
            panel.legend(
                common.VizLegendOptions()
                .show_legend(True)
                .display_mode(LegendDisplayMode.LIST)
                .placement(LegendPlacement.BOTTOM)
            )
            .tooltip(
                common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING)
            )
            .line_width(1)
            .show_points(VisibilityMode.NEVER)
            .fill_opacity(60 if stack is not StackingMode.NONE else 5)
            .stacking(common.StackingConfig().mode(stack).group("A"))
            .axis_placement(AxisPlacement.AUTO)
        )
        if log:
            panel = panel.scale_distribution(
                common.ScaleDistributionConfig().type(ScaleDistribution.LOG).log(10)
            )
        if top is not None:
            panel = panel.axis_soft_max(top)
        for name in dashed:
            panel = panel.override_by_name(
                name,
                [
                    DynamicConfigValue("custom.lineStyle", {"fill": "dash", "dash": [8, 6]}),
                    DynamicConfigValue("custom.fillOpacity", 0),
                    DynamicConfigValue("custom.lineWidth", 2),
                    DynamicConfigValue("color", {"mode": "fixed", "fixedColor": "text"}),
                ],
            )
        self.add(_with(panel, queries), title, unit, description, w, h)

    def stat(
        self,
        title: str,
        unit: str,
        description: str,
        queries: Queries,
        *,
        w: int = 3,
        h: int = 4,
        bad: Sequence[float] = (),
    ) -> None:
        """Add figures.

        Args:
            title, unit, description: what it says of itself.
            queries: the figures.
            w, h: its size.
            bad: from where on it is amber, and red.
        """
        several = len(queries) > 1
        panel = (
            stat.Panel()
            .graph_mode(BigValueGraphMode.NONE if several else BigValueGraphMode.AREA)
            .color_mode(BigValueColorMode.VALUE)
            .text_mode(BigValueTextMode.VALUE_AND_NAME if several else BigValueTextMode.VALUE)
            .orientation(VizOrientation.VERTICAL if several else VizOrientation.AUTO)
            .reduce_options(_last())
            .thresholds(_thresholds(bad))
        )
        self.add(_with(panel, queries), title, unit, description, w, h)

    def bars(
        self,
        title: str,
        unit: str,
        description: str,
        queries: Queries,
        *,
        w: int,
        h: int,
        bad: Sequence[float],
    ) -> None:
        """Add bars from 0 to 1.

        Args:
            title, unit, description: what it says of itself.
            queries: one for each bar.
            w, h: its size.
            bad: from where on a bar is amber, and red.
        """
        panel = (
            bargauge.Panel()
            .min(0)
            .max(1)
            .display_mode(BarGaugeDisplayMode.BASIC)
            .orientation(VizOrientation.HORIZONTAL)
            .reduce_options(_last())
            .thresholds(_thresholds(bad))
        )
        self.add(_with(panel, queries), title, unit, description, w, h)

    def heatmap(
        self, title: str, unit: str, description: str, histogram: str, *, w: int = 8, h: int = 8
    ) -> None:
        """Add a histogram over time.

        Args:
            title, unit, description: what it says of itself.
            histogram: its metric.
            w, h: its size.
        """
        panel = (
            heatmap.Panel()
            .calculate(False)
            .rows_frame(heatmap.RowsHeatmapOptions().layout(HeatmapCellLayout.LE))
            .y_axis(heatmap.YAxisConfig().unit(unit))
            .color(
                heatmap.HeatmapColorOptions()
                .mode(HeatmapColorMode.SCHEME)
                .scheme("Oranges")
                .steps(64)
            )
            .with_target(
                _query(total(increase(f"{histogram}_bucket"), "le"), "{{le}}", "A").format(
                    PromQueryFormat.HEATMAP
                )
            )
        )
        self.add(panel, title, unit, description, w, h)

    def table(
        self,
        title: str,
        unit: str,
        description: str,
        columns: Sequence[tuple[str, str, str]],
        *,
        hidden: Iterable[str] = (),
        sort: str,
        empty: str = "",
        w: int,
        h: int,
    ) -> None:
        """Add a table of what is so at the end of the time shown.

        Args:
            title, unit, description: what it says of itself.
            columns: an expression, the header of its values (empty: left out) and their unit.
            hidden: labels that are no columns.
            sort: the column by which rows are sorted.
            empty: what stands there if there are no rows.
            w, h: its size.
        """
        panel = table.Panel()
        if empty:
            panel = panel.no_value(empty)
        excluded = dict.fromkeys(["Time", *hidden], True)
        renamed = {}
        for number, (expression, header, column_unit) in enumerate(columns):
            ref = chr(ord("A") + number)
            panel = panel.with_target(
                _query(expression, "", ref).instant().format(PromQueryFormat.TABLE)
            )
            value = f"Value #{ref}" if len(columns) > 1 else "Value"
            if header:
                renamed[value] = header
                panel = panel.override_by_name(header, [DynamicConfigValue("unit", column_unit)])
            else:
                excluded[value] = True
        for step, options in (
            ("merge", {}),
            ("organize", {"excludeByName": excluded, "renameByName": renamed}),
            ("sortBy", {"sort": [{"field": sort}]}),
        ):
            panel = panel.with_transformation(DataTransformerConfig(id_val=step, options=options))
        self.add(panel, title, unit, description, w, h)

    def text(self) -> str:
        """Give the dashboard as JSON."""
        return json.dumps(self.builder.build(), cls=JSONEncoder, indent=1, sort_keys=True) + "\n"


def _query(expression: str, legend: str, ref: str) -> prometheus.Dataquery:
    query = prometheus.Dataquery().expr(expression).ref_id(ref).datasource(DATASOURCE).range()
    return query.legend_format(legend) if legend else query


def _with(panel: Any, queries: Queries) -> Any:
    for number, (expression, legend) in enumerate(queries):
        panel = panel.with_target(_query(expression, legend, chr(ord("A") + number)))
    return panel


def _last() -> common.ReduceDataOptions:
    return common.ReduceDataOptions().calcs(["lastNotNull"])


def _thresholds(bad: Sequence[float]) -> dashboard.ThresholdsConfig:
    steps = [Threshold(None, "green" if bad else "text")]
    steps += [Threshold(value, color) for value, color in zip(bad, ("orange", "red"), strict=False)]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


# --- what all three have ------------------------------------------------------------------------------


def _board(uid: str, title: str, description: str) -> Board:
    everything = VariableOption(selected=True, text="All", value="$__all")
    builder = (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags(["streamer"])
        .readonly()
        .timezone("browser")
        .time("now-1h", "now")
        .refresh("10s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    )  # fmt: skip
    for name, label, values, several in (
        ("job", "Job", "label_values(streamer_build_info, job)", False),
        ("instance", "Instance", 'label_values(streamer_build_info{job=~"$job"}, instance)', True),
        ("topic", "Topic", f"label_values({of('events_consumed_total')}, topic)", True),
    ):
        variable = (
            dashboard.QueryVariable(name)
            .label(label)
            .query(values)
            .definition(values)
            .datasource(DATASOURCE)
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(VariableSort.ALPHABETICAL_ASC)
        )
        if several:
            variable = variable.multi(True).include_all(True).all_value(".+").current(everything)
        builder = builder.with_variable(variable)
    for name, color, expression, text in (
        (
            "Config changes", "blue",
            f"{total(increase('config_reloads_total'), 'instance', 'result')} > 0",
            "{{instance}}: settings changed, {{result}}",
        ),
        ("Starts", "purple", f"process_start_time_seconds{{{INSTANCE}}} * 1000", "{{instance}} started"),
        ("Rebalances", "yellow", f"{increase('rebalances_total')} > 0", "{{instance}} was given partitions"),
        (
            "Firing alerts", "red",
            'ALERTS{alertname=~"Streamer.+",alertstate="firing",job=~"$job"}', "{{alertname}} {{instance}}",
        ),
    ):  # fmt: skip
        builder = builder.annotation(
            dashboard.AnnotationQuery()
            .name(name)
            .datasource(DATASOURCE)
            .enable(True)
            .icon_color(color)
            .expr(expression)
            .use_value_for_time(name == "Starts")  # so that no outage is too long for a range
            .text_format(text)
            .title_format(name)
            .tag_keys("instance")
        )
    builder = builder.link(
        dashboard.DashboardLink("streamer")
        .type(DashboardLinkType.DASHBOARDS)
        .tags(["streamer"])
        .keep_time(True)
        .include_vars(True)
    )
    return Board(builder)


# --- the dashboards -----------------------------------------------------------------------------------


def overview() -> Board:
    """Is data flowing, how late is it, is Segment healthy, is anything lost."""
    board = _board(
        "streamer-overview",
        "streamer: overview",
        "Is data flowing, how late is it, is Segment healthy, is anything lost",
    )
    board.row("Now")
    board.table(
        "Alerts", "none", "Alerts that fire, or are about to. docs/runbook.md has a section for each.",
        [('ALERTS{alertname=~"Streamer.+",job=~"$job"}', "", "none")],
        hidden=["__name__", "job", "topic", "partition"], sort="alertstate", empty="none", w=9, h=8,
    )  # fmt: skip
    board.stat(
        "Delivered", "eps", "Events whose page or track call Segment accepted, a second.",
        [(total(rate("events_settled_total", DELIVERED)), "delivered")],
    )  # fmt: skip
    board.stat(
        "Lateness p95", "s",
        "95 of 100 events were accepted by Segment within this time of Kafka's timestamp. What is normal depends on the flush interval.",
        [(quantile(0.95, "event_age_seconds"), "p95")],
    )  # fmt: skip
    board.stat(
        "Oldest event", "s", "Age of the oldest event that was read and isn't settled. It grows in a stall, when lateness falls silent.",
        [(f"max({PENDING_AGE})", "oldest")], bad=[60, 300],
    )  # fmt: skip
    board.stat(
        "Lag", "short", "Records between what is committed and the end of the topic.",
        [(total(of("consumer_lag_records", TOPIC)), "lag")],
    )  # fmt: skip
    board.stat(
        "Members up", "short", "Processes that answer Prometheus.",
        [(f"sum(up{{{INSTANCE}}})", "up")],
    )  # fmt: skip
    board.stat(
        "Failed requests", "percentunit", "Share of requests that ended with a 5xx, a time-out or no connection. They are tried again.",
        [(per(total(rate("segment_requests_total", FAILED)), total(rate("segment_requests_total"))), "failed")],
        bad=[0.05, 0.5],
    )  # fmt: skip
    board.stat(
        "Dead letters", "short", "Records that became dead letters in the time shown. Each is kept with its reason.",
        [(total(increase("events_settled_total", DEAD, over=RANGE)), "dead letters")],
    )  # fmt: skip
    board.stat(
        "Held destinations", "short", "Write keys that are paused, back off, or are misconfigured. /readyz names them.",
        [(total(of("destinations", 'state!="flowing"')), "held")], bad=[1],
    )  # fmt: skip
    board.stat(
        "Unaccounted", "short", "Records consumed less settled, released and in flight. Anything but 0 is a bug.",
        [(f"abs({UNACCOUNTED})", "records")], bad=[1, 1],
    )  # fmt: skip
    board.stat(
        "Calls saved", "percentunit", "Share of the calls that merging and suppression kept off Segment's bill.",
        [(saved(), "saved")],
    )  # fmt: skip

    board.row("Flow")
    board.graph(
        "Events in and out", "eps",
        "Records read, by topic, and what became of records. Out follows in, but for what is in flight.",
        [
            (total(rate("events_consumed_total", TOPIC), "topic"), "read from {{topic}}"),
            (total(rate("events_settled_total"), "outcome"), "{{outcome}}"),
            (total(rate("events_released_total")), "released"),
        ],
        w=12,
    )  # fmt: skip
    board.graph(
        "Lateness", "s",
        "From Kafka's timestamp until Segment accepted the event. In a quiet system most of it is the flush interval.",
        [*quantiles("event_age_seconds", 0.5, 0.95, 0.99), INTERVAL], dashed=["flush interval"], w=12,
    )  # fmt: skip
    board.graph(
        "Lag", "short", "Records between what is committed and the end of the topic. Commits go out once a second.",
        [(total(of("consumer_lag_records", TOPIC), "topic"), "{{topic}}")], w=12,
    )  # fmt: skip
    board.graph(
        "Oldest event", "s", "Age of the oldest event that was read and isn't settled, by member.",
        [(PENDING_AGE, "{{instance}}")], w=12,
    )  # fmt: skip

    board.row("Segment")
    board.graph(
        "Requests by what came of them", "reqps", "Requests to Segment a second.",
        [(total(rate("segment_requests_total"), "outcome"), "{{outcome}}")], stack=StackingMode.NORMAL,
    )  # fmt: skip
    requests = total(rate("segment_requests_total"))
    board.graph(
        "Share of failed requests", "percentunit",
        "Failed: 5xx, time-out, no connection. Throttled: 429. Refused: 400, 413, 422, after which the call at fault is searched.",
        [
            (per(total(rate("segment_requests_total", FAILED)), requests), "failed"),
            (per(total(rate("segment_requests_total", 'outcome="rate_limited"')), requests), "throttled"),
            (per(total(rate("segment_requests_total", 'outcome=~"refused|misconfigured"')), requests), "refused"),
        ],
        top=0.05,
    )  # fmt: skip
    board.graph(
        "Request duration", "s", "How long requests to Segment took, failed ones included.",
        quantiles("segment_request_duration_seconds", 0.5, 0.95, 0.99),
    )  # fmt: skip
    board.graph(
        "Destinations", "short",
        "Write keys by their state. Paused: Segment said when to come back. Backing off: three failures in a row."
        " Misconfigured: a person has to mend something.",
        [(total(of("destinations"), "state"), "{{state}}")], stack=StackingMode.NORMAL,
    )  # fmt: skip
    board.graph(
        "Retries", "ops", "Requests after which calls are sent again, by the reason.",
        [(total(rate("segment_retries_total"), "reason"), "{{reason}}")], stack=StackingMode.NORMAL,
    )  # fmt: skip
    board.graph(
        "Bytes accepted", "Bps", "Bodies that Segment accepted: as JSON (identity), and as they were sent (wire).",
        [(total(rate("delivered_bytes_total"), "encoding"), "{{encoding}}")],
    )  # fmt: skip

    board.row("Account")
    board.graph(
        "Dead letters by reason", "eps", "docs/mapping.md explains each reason.",
        [(total(rate("events_settled_total", DEAD), "reason"), "{{reason}}")],
        stack=StackingMode.NORMAL,
    )  # fmt: skip
    board.graph(
        "Calls by what became of them", "cps", "Segment bills what is delivered; what is merged or suppressed it doesn't see.",
        [(total(rate("calls_total"), "outcome"), "{{outcome}}")], stack=StackingMode.NORMAL,
    )  # fmt: skip
    board.graph(
        "Delivered calls by type", "cps", "Identify and group calls merge while they wait; page and track calls never do.",
        [(total(rate("calls_total", DELIVERED), "type"), "{{type}}")], stack=StackingMode.NORMAL,
    )  # fmt: skip
    board.graph(
        "In flight", "short", "What was read and isn't settled: it waits in batches, or is on its way.",
        [(total(of("inflight_events")), "records"), (total(of("inflight_calls")), "calls")],
    )  # fmt: skip
    board.graph(
        "Unaccounted records", "short", "Records consumed less settled, released and in flight, in one consistent scrape: 0.",
        [(UNACCOUNTED, "records")], top=1,
    )  # fmt: skip
    board.graph(
        "What else went wrong", "short",
        "Writes of dead letters that failed (tried again), records that retention took before they were read, and handlers"
        " of site code that failed.",
        [
            (total(increase("dead_letter_write_failures_total")), "dead-letter writes failed"),
            (total(increase("records_skipped_total")), "records skipped"),
            (total(increase("hook_failures_total")), "handlers failed"),
        ],
        top=1,
    )  # fmt: skip
    return board


def flush_tuning() -> Board:
    """Each setting beside its reality, and what another interval would do."""
    board = _board(
        "streamer-flush-tuning",
        "streamer: flush tuning",
        "Each flush setting beside its reality; is the interval the cause; what would another one do",
    )
    board.builder.with_variable(
        dashboard.CustomVariable("before")
        .label("Compare with")
        .values("5m,15m,1h,6h,1d,7d")
        .current(VariableOption(selected=True, text="1h", value="1h"))
    )
    board.row("Settings, and what comes of them")
    board.stat(
        "Interval", "s",
        "flush.interval, and how long batches were open in fact. Shorter than set: they were full before. Longer: no slot was free.",
        [(INTERVAL[0], "set"), (mean("batch_wait_seconds"), "mean"), (quantile(0.99, "batch_wait_seconds"), "p99")],
        w=6,
    )  # fmt: skip
    board.stat(
        "Calls per batch", "short", "flush.max_calls, and the calls of batches in fact.",
        [(f"max({of('config_flush_max_calls')})", "set"), (mean("batch_calls"), "mean"), (quantile(0.95, "batch_calls"), "p95")],
        w=6,
    )  # fmt: skip
    board.stat(
        "Bytes per batch", "decbytes", "flush.max_bytes, and the bytes of bodies in fact, before compression.",
        [(f"max({of('config_flush_max_bytes')})", "set"), (mean("batch_bytes"), "mean"), (quantile(0.95, "batch_bytes"), "p95")],
        w=6,
    )  # fmt: skip
    board.stat(
        "Requests at a time", "short",
        "The limit in effect (flush.concurrency, or what adaptive makes of it), and requests under way; summed over members.",
        [
            (total(of("segment_concurrency_limit")), "limit"),
            (total(f"avg_over_time({of('segment_inflight_requests')}[{NOW}])"), "mean"),
            (total(f"max_over_time({of('segment_inflight_requests')}[{NOW}])"), "max"),
        ],
        w=6,
    )  # fmt: skip

    board.row("What the interval gives and takes")
    board.graph(
        "Lateness, and the interval", "s",
        "From Kafka's timestamp until Segment accepted the event. If p95 lies far above the interval, the interval isn't the cause.",
        [*quantiles("event_age_seconds", 0.5, 0.95, 0.99), INTERVAL], dashed=["flush interval"], w=24, h=9,
    )  # fmt: skip
    board.graph(
        "Requests", "reqps", "Requests to Segment a second, retries included.",
        [(total(rate("segment_requests_total")), "requests")], w=24, h=6,
    )  # fmt: skip
    board.graph(
        "Calls per request", "short", "Calls that a delivered request had. A longer interval raises it, until batches are full.",
        [(CALLS_PER_REQUEST, "calls per request")], w=24, h=6,
    )  # fmt: skip
    delivered = total(rate("events_settled_total", DELIVERED))
    board.graph(
        "Mean age by stage", "s",
        "Where delivered events spent their age. Batch is what the interval costs; kafka: they lay in the topic; slot: no"
        " request was free; request: Segment; backoff: failures. If batch isn't the thick one, another interval won't help.",
        [
            (shares(rate("stage_event_seconds_total"), "stage", delivered), "{{stage}}"),
        ],
        stack=StackingMode.NORMAL, w=12, h=9,
    )  # fmt: skip
    board.graph(
        "What closed the batches", "percentunit",
        "Mostly time: the interval governs. Mostly bytes or calls: batches are full before, and another interval changes nothing.",
        [(shares(rate("batches_closed_total"), "trigger", total(rate("batches_closed_total"))), "{{trigger}}")],
        stack=StackingMode.NORMAL, w=12, h=9, top=1,
    )  # fmt: skip

    board.row("How full batches are")
    board.heatmap(
        "Fill ratio", "percentunit",
        "Batches by the larger share of their two limits. At the bottom: each request costs more than it carries.",
        "batch_fill_ratio",
    )  # fmt: skip
    board.heatmap("Calls in a batch", "short", "Batches by their number of calls.", "batch_calls")
    board.heatmap(
        "Bytes of a batch",
        "decbytes",
        "Batches by the bytes of their bodies, before compression.",
        "batch_bytes",
    )
    calls, size = fill_rates(NOW)
    board.graph(
        "Time to fill a batch", "s",
        "How long a batch takes to reach its limit of calls, or of bytes, at the present rate. Below the interval: the limit governs.",
        [
            (f"min({_destinations()} / ({calls} > 0))", "to max_calls"),
            (f"min({_destinations()} / ({size} > 0))", "to max_bytes"),
            INTERVAL,
        ],
        dashed=["flush interval"], log=True,
    )  # fmt: skip
    board.graph(
        "Calls saved", "percentunit",
        "Share of the calls that merging and suppression kept off Segment's bill. A longer interval merges more.",
        [
            (shares(rate("calls_total", KEPT), "outcome", total(rate("calls_total", MADE))), "{{outcome}}"),
        ],
        stack=StackingMode.NORMAL,
    )  # fmt: skip

    board.graph(
        "Events read", "eps", "What comes in, by topic: a change of it moves all of the above.",
        [(total(rate("events_consumed_total", TOPIC), "topic"), "{{topic}}")],
    )  # fmt: skip

    board.row("What if")
    board.table(
        "Another interval", "short",
        "What other intervals would do with the mean rates of the time shown: choose a time without faults. Requests are"
        " without retries; the age outside of batches is taken as it is; calls per request as if nothing more merged, which a"
        " longer interval does: what that saves can't be read from metrics. The last two rows hold the"
        " prediction for the interval in force against what was measured.",
        what_if(), sort="interval", w=16, h=10,
    )  # fmt: skip
    board.bars(
        "Guardrails", "percentunit",
        "What can go wrong with a setting: each bar is a share of what is there. Memory: of flush.memory_budget. Slots: of the"
        " requests that may be under way. Throttled: of requests. Paused: of the time. Loop: p99 lag of 250 ms. Segment's limit: of"
        " 1,000 requests a second.",
        [
            (f"max({of('memory_used_bytes')} / {of('memory_budget_bytes')})", "memory"),
            (
                f"max(avg_over_time({of('segment_inflight_requests')}[{NOW}]) / {of('segment_concurrency_limit')})",
                "slots",
            ),
            (per(total(rate("segment_requests_total", 'outcome="rate_limited"')), requests_of(NOW)), "throttled"),
            (f"max({rate('paused_seconds_total')})", "paused"),
            (f"{quantile(0.99, 'event_loop_lag_seconds')} / 0.25", "loop"),
            (f"{requests_of(NOW)} / 1000", "Segment's limit"),
        ],
        bad=[0.7, 0.9], w=8, h=10,
    )  # fmt: skip

    board.row("Before and after: now, and as long ago as is chosen above")
    ago = " offset $before"
    for title, unit, description, now, then in (
        (
            "Lateness p95", "s",
            "95 of 100 events were accepted by Segment within this time of Kafka's timestamp; now, and then.",
            quantile(0.95, "event_age_seconds"), quantile(0.95, "event_age_seconds", ago),
        ),
        (
            "Requests", "reqps", "Requests to Segment a second, retries included; now, and then.",
            total(rate("segment_requests_total")), total(rate("segment_requests_total", offset=ago)),
        ),
        (
            "Calls per request", "short", "Calls that a delivered request had; now, and then.",
            CALLS_PER_REQUEST,
            per(
                total(rate("calls_total", DELIVERED, offset=ago)),
                total(rate("segment_requests_total", DELIVERED, offset=ago)),
            ),
        ),
        (
            "Calls saved", "percentunit",
            "Share of the calls that merging and suppression kept off Segment's bill; now, and then.", saved(), saved(ago),
        ),
    ):  # fmt: skip
        board.graph(
            f"{title}: before and after", unit, description, [(now, "now"), (then, "$before before")],
            dashed=["$before before"], w=6,
        )  # fmt: skip
    return board


def requests_of(over: str) -> str:
    """Give requests to Segment a second."""
    return total(rate("segment_requests_total", over=over))


def kafka_and_runtime() -> Board:
    """Lag, commits, rebalances, pauses, memory, the event loop, the process."""
    board = _board(
        "streamer-kafka-and-runtime",
        "streamer: Kafka and runtime",
        "Lag, commits, rebalances, pauses, memory budget, event loop, CPU and memory of the process",
    )
    board.row("Kafka")
    board.graph(
        "Lag by partition", "short",
        "Records between what is committed and the end. One that grows alone: its partition is stuck, or its keys are hot.",
        [(f"max by (topic, partition) ({of('consumer_lag_records', TOPIC)})", "{{topic}}/{{partition}}")],
    )  # fmt: skip
    board.graph(
        "Committed records", "eps", "How fast the committed offset moves, by partition.",
        [(f"max by (topic, partition) (rate({of('committed_offset', TOPIC)}[{NOW}]))", "{{topic}}/{{partition}}")],
    )  # fmt: skip
    board.graph(
        "Time to catch up", "s", "Lag over the rate at which records are settled: how far behind the group is.",
        [
            (
                f"{total(of('consumer_lag_records', TOPIC))} / clamp_min({total(rate('events_settled_total'))}, 1)",
                "at the present rate",
            )
        ],
    )  # fmt: skip
    board.graph(
        "Bytes read", "Bps", "Values of the records read, by topic.",
        [(total(rate("consumed_bytes_total", TOPIC), "topic"), "{{topic}}")],
    )  # fmt: skip
    board.graph(
        "Commits", "ops", "Commits of offsets by their result. Rebalance: the group was shared out anew meanwhile.",
        [(total(rate("offset_commits_total"), "result"), "{{result}}")], stack=StackingMode.NORMAL,
    )  # fmt: skip
    board.graph(
        "Commit duration", "s", "How long commits took.",
        quantiles("offset_commit_duration_seconds", 0.5, 0.99),
    )  # fmt: skip
    board.graph(
        "Partitions", "short", "Partitions that each member has. Without any it is idle, or the group is being shared out.",
        [(of("assigned_partitions"), "{{instance}}")], stack=StackingMode.NORMAL,
    )  # fmt: skip
    board.graph(
        "Rebalances", "short", "Assignments of partitions, by member.",
        [(increase("rebalances_total"), "{{instance}}")],
    )  # fmt: skip
    board.graph(
        "Consumer restarts", "short", "How often the Kafka consumer was made anew, by the reason.",
        [(total(increase("kafka_consumer_restarts_total"), "reason"), "{{reason}}")],
    )  # fmt: skip
    board.graph(
        "Partitions that can't be read on", "short",
        "Their next record can't be decoded; the others go on. The log says which, and what to do.",
        [(total(of("undecodable_partitions")), "partitions")],
    )  # fmt: skip
    board.graph(
        "Released and skipped records", "eps",
        "Released: the partition went before the record was settled; it is read again. Skipped: gone before it was read.",
        [
            (total(rate("events_released_total")), "released"),
            (total(rate("records_skipped_total")), "skipped"),
        ],
        top=1,
    )  # fmt: skip

    board.row("Memory and back-pressure")
    board.graph(
        "Memory budget", "decbytes", "Bytes of records, calls and bodies that a member holds, and flush.memory_budget.",
        [
            (of("memory_used_bytes"), "{{instance}}"),
            (f"max({of('memory_budget_bytes')})", "budget"),
        ],
        dashed=["budget"],
    )  # fmt: skip
    board.graph(
        "Paused", "percentunit", "Share of the time in which nothing was read because the budget was spent.",
        [(rate("paused_seconds_total"), "{{instance}}")], top=0.1,
    )  # fmt: skip
    board.graph(
        "Profiles and digests", "short",
        "Profiles with calls that aren't settled, and digests by which suppression knows what Segment was told last.",
        [
            (total(of("aggregation_open_keys")), "profiles"),
            (total(of("suppression_keys")), "digests"),
        ],
    )  # fmt: skip

    board.row("Process")
    board.graph(
        "Event loop lag", "s", "How late the event loop runs what is due. Kafka's heartbeats share it.",
        quantiles("event_loop_lag_seconds", 0.5, 0.99),
    )  # fmt: skip
    board.graph(
        "CPU", "percentunit", "Of one core; a process can't use more than one.",
        [(f"rate(process_cpu_seconds_total{{{INSTANCE}}}[{NOW}])", "{{instance}}")], top=1,
    )  # fmt: skip
    board.graph(
        "Memory of the process", "bytes", "Resident memory. The budget bounds what is held of the stream; Python comes on top.",
        [(f"process_resident_memory_bytes{{{INSTANCE}}}", "{{instance}}")],
    )  # fmt: skip
    board.graph(
        "Open files", "short", "File descriptors: connections to Kafka and Segment, mostly.",
        [(f"process_open_fds{{{INSTANCE}}}", "{{instance}}")],
    )  # fmt: skip
    board.graph(
        "Garbage collections", "ops", "Python's, by generation.",
        [(total(f"rate(python_gc_collections_total{{{INSTANCE}}}[{NOW}])", "generation"), "{{generation}}")],
    )  # fmt: skip
    board.table(
        "Members", "short", "Version, hash of the settings in force (without secrets), and how long each has run.",
        [
            (f"{of('build_info')} * on (job, instance) group_left (hash) {of('config_info')}", "", "none"),
            (f"time() - process_start_time_seconds{{{INSTANCE}}}", "running for", "s"),
        ],
        hidden=["job"], sort="instance", w=8, h=8,
    )  # fmt: skip
    return board


DASHBOARDS = {
    "overview.json": overview,
    "flush-tuning.json": flush_tuning,
    "kafka-and-runtime.json": kafka_and_runtime,
}

if __name__ == "__main__":
    for name, make in DASHBOARDS.items():
        (FOLDER / name).write_text(make().text())
