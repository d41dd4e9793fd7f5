"""Every metric of the service, on an injected registry.

What happens per request is counted as it happens, on children that are made once. What can be read at any time (the
account, lag, memory) is collected at the scrape, in one synchronous read, so that one scrape is consistent: consumed =
settled + released + in flight holds in every one of them.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from functools import partial
from operator import add
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.registry import Collector

from streamer import __version__
from streamer.core.destination import State
from streamer.core.model import (
    CALL_TYPES,
    Delivered,
    FilterReason,
    Misconfigured,
    Reason,
    Refused,
    Restart,
    Retry,
)
from streamer.hooks import ACTIONS, API_WRITE_KEY, FORMATTED_DATA

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from prometheus_client.core import Metric

    from streamer.core.account import Account
    from streamer.core.batch import Batch
    from streamer.core.model import Outcome, Partition

AGE_BUCKETS = [
    0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 15.0, 20.0, 25.0, 30.0, 45.0, 60.0,
    90.0, 120.0, 180.0, 300.0, 600.0, 1800.0, 3600.0,
]  # fmt: skip
"""Upper edges of `streamer_event_age_seconds`, dense around the usual flush intervals, between which a p95 is read."""

_FILTER_FAILURES = ("raised", "timeout", "wrong")
_ACTION_FAILURES = ("raised", "timeout", "dropped")
HOOK_FAILURES = {
    API_WRITE_KEY: _FILTER_FAILURES,
    FORMATTED_DATA: _FILTER_FAILURES,
    **dict.fromkeys(ACTIONS, _ACTION_FAILURES),
}
TRIGGERS = ("bytes", "calls", "time", "memory", "shutdown", "rebalance")
STAGES = ("kafka", "batch", "slot", "request", "backoff")
_REQUEST_LABELS = (
    ("2xx", "delivered"), ("4xx", "rate_limited"), ("none", "timeout"), ("4xx", "timeout"), ("none", "connect"),
    ("5xx", "server_error"), ("4xx", "server_error"), ("2xx", "server_error"), ("4xx", "refused"),
    ("4xx", "misconfigured"), ("3xx", "misconfigured"), ("5xx", "misconfigured"),
)  # fmt: skip
_RETRY_REASONS = ("rate_limited", "timeout", "connect", "server_error", "refused", "misconfigured")
_SECONDS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0,
)  # fmt: skip
_LOOP_LAG = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0)
_LOOP_LAG_INTERVAL = 0.5


@dataclass(frozen=True, slots=True)
class Readings:
    """What is read at a scrape, all at one time.

    Attributes:
        account: every record's and every call's fate.
        memory_limit, memory_used: bytes of the memory budget.
        lag: records between what is committed and the end, by partition.
        committed: the offset last committed, by partition.
        assigned: how many partitions this member has.
        undecodable: how many of them wait because their next record can't be decoded.
        requests: attempts under way.
        concurrency: how many may be.
        destinations: how many there are, by state.
        open_profiles: profiles with calls that aren't settled.
        suppression_keys: digests of what was last delivered.
        oldest_pending_ms: Kafka timestamp of the oldest record that isn't settled, None if there is none.
    """

    account: Account
    memory_limit: int
    memory_used: int
    lag: Mapping[Partition, int]
    committed: Mapping[Partition, int]
    assigned: int
    undecodable: int
    requests: int
    concurrency: int
    destinations: Mapping[str, int]
    open_profiles: int
    suppression_keys: int
    oldest_pending_ms: int | None


class Metrics:
    """Counts what happens; the names of its methods are those of the observers of delivery and source.

    Args:
        registry: where the metrics are registered.
        read: gives the readings of a scrape.
        interval_seconds, max_calls, max_bytes: the flush settings, shown beside what comes of them.
        config_hash: of all settings, without the secrets: it changes when one of them does.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        read: Callable[[], Readings],
        *,
        interval_seconds: float,
        max_calls: int,
        max_bytes: int,
        config_hash: str,
    ) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call] # the library left it untyped
        self.registry = registry
        counter = partial(Counter, namespace="streamer", registry=registry)
        gauge = partial(Gauge, namespace="streamer", registry=registry)
        histogram = partial(Histogram, namespace="streamer", registry=registry)
        self._rebalances = counter("rebalances", "Assignments of partitions to this member.")
        commits = counter("offset_commits", "Commits of offsets, by result.", ["result"])
        self._commits = {r: commits.labels(r) for r in ("ok", "timeout", "rebalance", "error")}
        self._commit_seconds = histogram(
            "offset_commit_duration_seconds", "How long commits took.", buckets=_SECONDS
        )
        self._paused = counter(
            "paused_seconds", "Time in which nothing was read because the memory budget was spent."
        )
        self._skipped = counter(
            "records_skipped",
            "Records that were gone before they were read: retention, or a topic made anew.",
        )
        restarts = counter(
            "kafka_consumer_restarts", "How often the Kafka consumer was made anew.", ["reason"]
        )
        self._restarts = {reason: restarts.labels(reason) for reason in Restart}
        self._letter_failures = counter(
            "dead_letter_write_failures", "Writes of dead letters that failed and are tried again."
        )
        failures = counter(
            "hook_failures",
            "Handlers of hooks that raised, took too long (timeout), gave something wrong or were dropped.",
            ["hook", "how"],
        )
        self._hook_failures = {
            (hook, how): failures.labels(hook.rpartition(".")[2], how)
            for hook, ways in HOOK_FAILURES.items()
            for how in ways
        }
        closed = counter("batches_closed", "Batches, by what closed them.", ["trigger"])
        self._closed = {trigger: closed.labels(trigger) for trigger in TRIGGERS}
        self._batch_calls = histogram(
            "batch_calls",
            "Calls in a batch.",
            buckets=_edges(max_calls, (1, 10, 50, 100, 250, 500, 1000, 2000)),
        )
        self._batch_bytes = histogram(
            "batch_bytes",
            "Bytes of a batch's body before compression.",
            buckets=_edges(max_bytes, (1e3, 5e3, 1e4, 2.5e4, 5e4, 1e5, 2e5, 3e5, 4e5)),
        )
        self._fill = histogram(
            "batch_fill_ratio",
            "How full batches are: the larger share of their two limits.",
            buckets=[n / 10 for n in range(1, 11)],
        )
        self._wait = histogram(
            "batch_wait_seconds",
            "From the reading of a batch's oldest record to its closing.",
            buckets=AGE_BUCKETS,
        )
        self._requests = counter(
            "segment_requests",
            "Requests to Segment, by what came of them.",
            ["status_class", "outcome"],
        )
        for status_class, outcome in _REQUEST_LABELS:
            self._requests.labels(status_class, outcome)
        self._request_seconds = histogram(
            "segment_request_duration_seconds",
            "How long requests to Segment took.",
            buckets=_SECONDS,
        )
        retries = counter(
            "segment_retries",
            "Requests after which calls are sent again, by the reason.",
            ["reason"],
        )
        self._retries = {reason: retries.labels(reason) for reason in _RETRY_REASONS}
        delivered = counter(
            "delivered_bytes",
            "Bytes of the bodies that Segment accepted, as JSON and on the wire.",
            ["encoding"],
        )
        self._identity, self._wire = delivered.labels("identity"), delivered.labels("wire")
        self._last_delivery = gauge(
            "last_delivery_timestamp_seconds",
            "When Segment last accepted something; 0 before that.",
        )
        stages = counter(
            "stage_event_seconds",
            "Age of the delivered events, summed, by where they spent it; divided by the events delivered"
            " it is their mean age.",
            ["stage"],
        )
        self._stages = {stage: stages.labels(stage) for stage in STAGES}
        self._loop_lag = histogram(
            "event_loop_lag_seconds", "How late the event loop runs what is due.", buckets=_LOOP_LAG
        )
        self._interval = gauge("config_flush_interval_seconds", "The flush interval in force.")
        self._limit_calls = gauge("config_flush_max_calls", "The limit of calls in a batch.")
        self._limit_bytes = gauge("config_flush_max_bytes", "The limit of bytes of a batch's body.")
        self._config = Info(
            "config",
            "The settings in force, as a hash in which secrets have no part.",
            namespace="streamer",
            registry=registry,
        )
        self.tuned(interval_seconds, max_calls, max_bytes, config_hash)
        reloads = counter(
            "config_reloads", "Changes of the settings while running, by result.", ["result"]
        )
        self._reloads = {result: reloads.labels(result) for result in ("ok", "rejected")}
        Info("build", "The version of streamer.", namespace="streamer", registry=registry).info(
            {"version": __version__}
        )
        self._age_counts = [0] * len(AGE_BUCKETS)
        self._age_count = 0
        self._age_sum = 0.0
        registry.register(_AtScrape(self, read))
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)

    # --- what changes the settings says ---------------------------------------------------------

    def reloaded(self, *, accepted: bool) -> None:
        """A change of the settings was taken over, or refused."""
        self._reloads["ok" if accepted else "rejected"].inc()

    def tuned(
        self, interval_seconds: float, max_calls: int, max_bytes: int, config_hash: str
    ) -> None:
        """Show other settings; see the arguments of `Metrics`."""
        self._interval.set(interval_seconds)
        self._limit_calls.set(max_calls)
        self._limit_bytes.set(max_bytes)
        self._config.info({"hash": config_hash})
        self._max_calls, self._max_bytes = max_calls, max_bytes

    # --- what the source says -------------------------------------------------------------------

    def rebalanced(self) -> None:
        """Partitions were assigned."""
        self._rebalances.inc()

    def committed(self, result: str, seconds: float) -> None:
        """A commit ended."""
        self._commits[result].inc()
        self._commit_seconds.observe(seconds)

    def paused(self, seconds: float) -> None:
        """Nothing was read for so long."""
        self._paused.inc(seconds)

    def restarted(self, reason: Restart) -> None:
        """The consumer is made anew."""
        self._restarts[reason].inc()

    def skipped(self, records: int) -> None:
        """So many records went before they were read."""
        self._skipped.inc(records)

    # --- what delivery and the dead letters say -------------------------------------------------

    def letter_failed(self) -> None:
        """Dead letters couldn't be written."""
        self._letter_failures.inc()

    def hook_failed(self, hook: str, how: str) -> None:
        """A handler of a hook failed."""
        self._hook_failures[hook, how].inc()

    def closed(self, batch: Batch) -> None:
        """A batch is about to be sent for the first time."""
        self._closed[batch.trigger or "time"].inc()
        self._batch_calls.observe(len(batch))
        self._batch_bytes.observe(batch.size)
        self._fill.observe(max(len(batch) / self._max_calls, batch.size / self._max_bytes))
        self._wait.observe(max(batch.closed_at - batch.oldest, 0.0))

    def attempted(self, outcome: Outcome, seconds: float) -> None:
        """A request has ended."""
        status = getattr(outcome, "status", None)
        status_class = f"{status // 100}xx" if status else "none"
        match outcome:
            case Delivered():
                name = "delivered"
            case Retry(reason=name):
                self._retries[name].inc()
            case Refused():
                name = "refused"
                self._retries[name].inc()
            case Misconfigured():
                name = "misconfigured"
                self._retries[name].inc()
        self._requests.labels(status_class, name).inc()
        self._request_seconds.observe(seconds)

    def delivered(
        self, batch: Batch, piece: tuple[int, int], body_bytes: int, wire_bytes: int, seconds: float
    ) -> None:
        """Segment accepted a part of a batch.

        Args:
            batch: the batch.
            piece: the part.
            body_bytes: of its body, as JSON.
            wire_bytes: of its body, as it was sent.
            seconds: how long the request took that delivered it.
        """
        now = time.time()
        self._identity.inc(body_bytes)
        self._wire.inc(wire_bytes)
        self._last_delivery.set(now)
        ages = batch.ages(int(now * 1000), AGE_BUCKETS, *piece)
        self._age_counts = list(map(add, self._age_counts, ages.at_most))
        self._age_count += ages.count
        self._age_sum += ages.total_seconds
        if not ages.count:
            return
        # Of a part of a batch the mean of the whole batch is taken.
        loop_now = asyncio.get_running_loop().time()
        n = ages.count
        read = n * batch.read_sum / batch.mains
        after_close = n * (loop_now - batch.closed_at)
        request = min(n * seconds, after_close)
        self._stages["kafka"].inc(max(ages.total_seconds - (n * loop_now - read), 0.0))
        self._stages["batch"].inc(max(n * batch.closed_at - read, 0.0))
        self._stages["request"].inc(request)
        self._stages["backoff" if batch.tries else "slot"].inc(after_close - request)

    async def watch_loop(self) -> None:
        """Measure how late the event loop is, until cancelled."""
        clock = asyncio.get_running_loop().time
        while True:
            due = clock() + _LOOP_LAG_INTERVAL
            await asyncio.sleep(_LOOP_LAG_INTERVAL)
            self._loop_lag.observe(max(clock() - due, 0.0))

    def age_histogram(self) -> HistogramMetricFamily:
        """The ages of delivered events; `observe` on each of them would cost thirty times as much."""
        counts = [
            (str(edge), float(count))
            for edge, count in zip(AGE_BUCKETS, self._age_counts, strict=True)
        ]
        return HistogramMetricFamily(
            "streamer_event_age_seconds",
            "Age of events when Segment accepted their page or track call, counted from Kafka's timestamp.",
            buckets=[*counts, ("+Inf", float(self._age_count))],
            sum_value=self._age_sum,
        )


class _AtScrape(Collector):
    """What is read at a scrape."""

    def __init__(self, metrics: Metrics, read: Callable[[], Readings]) -> None:
        self._metrics = metrics
        self._read = read

    def describe(self) -> Iterable[Metric]:
        return []  # so that registering reads nothing

    def collect(self) -> Iterator[Metric]:
        readings = self._read()
        yield from _accounting(
            readings.account, {topic for topic, _ in (*readings.committed, *readings.lag)}
        )
        yield self._metrics.age_histogram()
        lag = GaugeMetricFamily(
            "streamer_consumer_lag_records",
            "Records between the committed offset and the end of the log.",
            labels=["topic", "partition"],
        )
        for (topic, partition), records in readings.lag.items():
            lag.add_metric([topic, str(partition)], records)
        yield lag
        committed = GaugeMetricFamily(
            "streamer_committed_offset", "The committed offset.", labels=["topic", "partition"]
        )
        for (topic, partition), offset in readings.committed.items():
            committed.add_metric([topic, str(partition)], offset)
        yield committed
        destinations = GaugeMetricFamily(
            "streamer_destinations", "Destinations (write keys), by state.", labels=["state"]
        )
        for state in State:
            destinations.add_metric([state], readings.destinations.get(state, 0))
        yield destinations
        oldest = readings.oldest_pending_ms
        for name, text, value in (
            ("assigned_partitions", "Partitions that this member has.", readings.assigned),
            ("undecodable_partitions", "Partitions that wait: the next record can't be decoded.", readings.undecodable),
            ("memory_budget_bytes", "The memory budget.", readings.memory_limit),
            ("memory_used_bytes", "Bytes held of the memory budget.", readings.memory_used),
            ("segment_inflight_requests", "Requests to Segment under way.", readings.requests),
            ("segment_concurrency_limit", "Requests to Segment that may be under way.", readings.concurrency),
            ("aggregation_open_keys", "Profiles with calls that aren't settled.", readings.open_profiles),
            ("suppression_keys", "Digests of what was last delivered.", readings.suppression_keys),
            (
                "oldest_pending_event_timestamp_seconds",
                "Kafka's timestamp of the oldest event that isn't settled; the time of the scrape if there is none.",
                time.time() if oldest is None else oldest / 1000,
            ),
        ):  # fmt: skip
            yield GaugeMetricFamily(f"streamer_{name}", text, value=value)


def _accounting(account: Account, topics: set[str]) -> Iterator[Metric]:
    consumed = CounterMetricFamily(
        "streamer_events_consumed", "Records read from Kafka.", labels=["topic"]
    )
    size = CounterMetricFamily(
        "streamer_consumed_bytes", "Bytes of the values of the records read.", labels=["topic"]
    )
    for topic in sorted(topics | account.consumed.keys()):
        consumed.add_metric([topic], account.consumed[topic])
        size.add_metric([topic], account.consumed_bytes[topic])
    yield consumed
    yield size
    settled = CounterMetricFamily(
        "streamer_events_settled", "Records whose fate is decided.", labels=["outcome", "reason"]
    )
    settled.add_metric(["delivered", ""], account.delivered)
    for reason in Reason:
        settled.add_metric(["dead_lettered", reason], account.dead_lettered[reason])
    for cause in FilterReason:
        settled.add_metric(["filtered", cause], account.filtered[cause])
    yield settled
    yield CounterMetricFamily(
        "streamer_events_released",
        "Records whose generation ended before their fate was decided; they are read again.",
        value=account.released,
    )
    yield GaugeMetricFamily(
        "streamer_inflight_events", "Records whose fate isn't decided.", value=account.in_flight
    )
    calls = CounterMetricFamily(
        "streamer_calls", "Segment calls by what became of them.", labels=["type", "outcome"]
    )
    in_flight = GaugeMetricFamily(
        "streamer_inflight_calls", "Segment calls whose fate isn't decided.", labels=["type"]
    )
    for kind in CALL_TYPES:
        for outcome, fate in (
            ("delivered", account.calls_delivered),
            ("merged", account.merged),
            ("suppressed", account.suppressed),
            ("refused", account.refused),
            ("released", account.calls_released),
        ):
            calls.add_metric([kind, outcome], fate[kind])
        in_flight.add_metric([kind], account.calls_in_flight[kind])
    yield calls
    yield in_flight


def _edges(limit: float, below: Iterable[float]) -> list[float]:
    """Buckets that end at the limit in force, so that full batches stand in one of their own."""
    return [*(edge for edge in below if edge < limit * 0.95), limit * 0.95, limit]
