"""The metrics as Prometheus sees them: names and types, no first event missed, and identities in every scrape."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families

from streamer import virtual_time
from streamer.core.account import Account
from streamer.core.batch import Batch, Limits
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
from streamer.core.offsets import Chunk
from streamer.metrics import AGE_BUCKETS, HOOK_FAILURES, STAGES, TRIGGERS, Metrics, Readings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prometheus_client import Metric

    from streamer.core.model import Outcome, Partition

OUTCOMES = ("delivered", "merged", "suppressed", "refused", "released")
REQUESTS: dict[tuple[str, str], Outcome] = {
    ("2xx", "delivered"): Delivered(200),
    ("2xx", "server_error"): Retry("server_error", "no success", 200),
    ("3xx", "misconfigured"): Misconfigured(302, ""),
    ("4xx", "misconfigured"): Misconfigured(401, ""),
    ("5xx", "misconfigured"): Misconfigured(501, ""),
    ("4xx", "rate_limited"): Retry("rate_limited", "", 429, 1.0),
    ("4xx", "timeout"): Retry("timeout", "", 408),
    ("4xx", "server_error"): Retry("server_error", "", 460),
    ("5xx", "server_error"): Retry("server_error", "", 529),
    ("none", "timeout"): Retry("timeout", ""),
    ("none", "connect"): Retry("connect", ""),
    ("4xx", "refused"): Refused(413, ""),
}
"""What can come of a request, by the labels that count it."""


def one(label: str, *values: str) -> list[dict[str, str]]:
    return [{label: value} for value in values]


PARTITION = {"topic": "events", "partition": "3"}
EXPECTED: dict[str, tuple[str, list[dict[str, str]]]] = {
    "events_consumed": ("counter", one("topic", "events")),
    "consumed_bytes": ("counter", one("topic", "events")),
    "consumer_lag_records": ("gauge", [PARTITION]),
    "committed_offset": ("gauge", [PARTITION]),
    "assigned_partitions": ("gauge", [{}]),
    "undecodable_partitions": ("gauge", [{}]),
    "kafka_consumer_restarts": ("counter", one("reason", *Restart)),
    "rebalances": ("counter", [{}]),
    "offset_commits": ("counter", one("result", "ok", "timeout", "rebalance", "error")),
    "offset_commit_duration_seconds": ("histogram", [{}]),
    "paused_seconds": ("counter", [{}]),
    "event_age_seconds": ("histogram", [{}]),
    "oldest_pending_event_timestamp_seconds": ("gauge", [{}]),
    "last_delivery_timestamp_seconds": ("gauge", [{}]),
    "stage_event_seconds": ("counter", one("stage", *STAGES)),
    "events_settled": (
        "counter",
        [
            {"outcome": "delivered", "reason": ""},
            *({"outcome": "dead_lettered", "reason": str(reason)} for reason in Reason),
            *({"outcome": "filtered", "reason": str(reason)} for reason in FilterReason),
        ],
    ),
    "events_released": ("counter", [{}]),
    "inflight_events": ("gauge", [{}]),
    "calls": (
        "counter",
        [{"type": kind, "outcome": outcome} for kind in CALL_TYPES for outcome in OUTCOMES],
    ),
    "inflight_calls": ("gauge", one("type", *CALL_TYPES)),
    "dead_letter_write_failures": ("counter", [{}]),
    "records_skipped": ("counter", [{}]),
    "aggregation_open_keys": ("gauge", [{}]),
    "suppression_keys": ("gauge", [{}]),
    "batches_closed": ("counter", one("trigger", *TRIGGERS)),
    "batch_calls": ("histogram", [{}]),
    "batch_bytes": ("histogram", [{}]),
    "batch_fill_ratio": ("histogram", [{}]),
    "batch_wait_seconds": ("histogram", [{}]),
    "memory_budget_bytes": ("gauge", [{}]),
    "memory_used_bytes": ("gauge", [{}]),
    "segment_requests": (
        "counter",
        [{"status_class": status, "outcome": outcome} for status, outcome in REQUESTS],
    ),
    "segment_request_duration_seconds": ("histogram", [{}]),
    "segment_retries": ("counter", one("reason", *{name for _, name in REQUESTS} - {"delivered"})),
    "segment_inflight_requests": ("gauge", [{}]),
    "segment_concurrency_limit": ("gauge", [{}]),
    "config_reloads": ("counter", one("result", "ok", "rejected")),
    "destinations": ("gauge", one("state", "flowing", "paused", "backing_off", "misconfigured")),
    "delivered_bytes": ("counter", one("encoding", "identity", "wire")),
    "config_flush_interval_seconds": ("gauge", [{}]),
    "config_flush_max_calls": ("gauge", [{}]),
    "config_flush_max_bytes": ("gauge", [{}]),
    "build_info": ("gauge", []),  # an info, which the classic format knows as a gauge
    "config_info": ("gauge", []),
    "event_loop_lag_seconds": ("histogram", [{}]),
    "hook_failures": (
        "counter",
        [
            {"hook": hook.removeprefix("altis.analytics.segment."), "how": how}
            for hook, ways in HOOK_FAILURES.items()
            for how in ways
        ],
    ),
}
"""Every metric with its type and the labels that are there from the start, as dashboards and alerts rely on them."""


@dataclass
class Service:
    """What a running pipeline knows, and its metrics."""

    account: Account = field(default_factory=Account)
    lag: Mapping[Partition, int] = field(default_factory=lambda: {("events", 3): 5})
    committed: Mapping[Partition, int] = field(default_factory=lambda: {("events", 3): 7})
    oldest_pending_ms: int | None = None
    destinations: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.registry = CollectorRegistry()
        self.metrics = Metrics(
            self.registry,
            self.read,
            interval_seconds=1.5,
            max_calls=2500,
            max_bytes=475_000,
            config_hash="0a1b2c3d",
        )

    def read(self) -> Readings:
        return Readings(
            account=self.account,
            memory_limit=1000,
            memory_used=10,
            lag=self.lag,
            committed=self.committed,
            assigned=len(self.committed),
            undecodable=0,
            requests=2,
            concurrency=8,
            destinations=self.destinations,
            open_profiles=4,
            suppression_keys=9,
            oldest_pending_ms=self.oldest_pending_ms,
        )

    def families(self) -> dict[str, Metric]:
        """One scrape, by Prometheus's own parser."""
        return {
            family.name.removeprefix("streamer_"): family
            for family in text_string_to_metric_families(generate_latest(self.registry).decode())
        }

    def value(self, name: str, **labels: str) -> float:
        found = self.registry.get_sample_value(f"streamer_{name}", labels)
        assert found is not None, name
        return found


def series(families: Mapping[str, Metric]) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    """Every series of a scrape."""
    return {
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in families.values()
        for sample in family.samples
    }


def batch(service: Service, ages: list[float], *, identifies: int = 0, tries: int = 0) -> Batch:
    """A closed batch, of page calls with these ages, all read just now."""
    now, clock = time.time(), asyncio.get_running_loop().time()
    made = Batch(Limits(2500, 475_000))
    stamps = [round((now - age) * 1000) for age in ages] or [-1]
    chunk = Chunk(("events", 3), range(len(stamps)), stamps, [None], read_at=clock)
    for _ in range(identifies):
        made.append(b"{}", CALL_TYPES.index("identify"), chunk, 0)
    for number in range(len(ages)):
        made.append(b"{}", CALL_TYPES.index("page"), chunk, number)
    made.trigger, made.closed_at, made.tries = "time", clock, tries
    service.metrics.closed(made)
    return made


# --- names, types, children -----------------------------------------------------------------------


def test_every_metric_is_there_from_the_start() -> None:
    """With its type, a sentence of help, and each child that will ever count, or `increase()` misses the first."""
    families = Service().families()
    ours = {name: found for name, found in families.items() if found.name.startswith("streamer_")}
    assert ours.keys() == EXPECTED.keys()
    for name, (kind, labels) in EXPECTED.items():
        found = ours[name]
        assert found.type == kind, name
        assert found.documentation.endswith("."), name
        for wanted in labels:
            samples = [
                sample
                for sample in found.samples
                if {key: v for key, v in sample.labels.items() if key != "le"} == wanted
            ]
            assert samples, (name, wanted)
            if kind == "counter":
                assert [(sample.name, sample.value) for sample in samples] == [
                    (f"streamer_{name}_total", 0.0)
                ]


def test_nothing_that_happens_adds_a_series() -> None:
    """Every label comes from a closed set, and all of them are made at the start."""
    service = Service()
    before = series(service.families())
    metrics = service.metrics

    async def main() -> None:
        metrics.rebalanced()
        for result in ("ok", "timeout", "rebalance", "error"):
            metrics.committed(result, 0.1)
        metrics.paused(1.0)
        metrics.skipped(3)
        metrics.letter_failed()
        for trigger in (*TRIGGERS, None):
            made = Batch(Limits())
            made.oldest, made.trigger = 0.0, trigger
            metrics.closed(made)
        for outcome in REQUESTS.values():
            metrics.attempted(outcome, 0.1)
        for tries in (0, 1):
            metrics.delivered(batch(service, [1.0], tries=tries), (0, 1), 100, 10, 0.1)
        ledger = service.account.ledger()
        for reason in Reason:
            ledger.consumed("events", 1, 1)
            ledger.dead_lettered(reason)
        for kind in CALL_TYPES:
            ledger.made(kind)

    asyncio.run(main())
    service.destinations = {"paused": 1}
    assert series(service.families()) == before


@pytest.mark.parametrize(("labels", "outcome"), REQUESTS.items(), ids=str)
def test_a_request_is_counted_by_what_came_of_it(labels: tuple[str, str], outcome: Outcome) -> None:
    """Once; and as a retry, unless it delivered."""
    service = Service()
    service.metrics.attempted(outcome, 0.26)
    counted = {
        (sample.labels["status_class"], sample.labels["outcome"])
        for sample in service.families()["segment_requests"].samples
        if sample.value
    }
    assert counted == {labels}
    retries = {
        sample.labels["reason"]: sample.value
        for sample in service.families()["segment_retries"].samples
        if sample.value
    }
    assert retries == ({} if labels[1] == "delivered" else {labels[1]: 1.0})
    assert service.value("segment_request_duration_seconds_sum") == pytest.approx(0.26)
    assert service.value("segment_request_duration_seconds_bucket", le="0.3") == 1
    assert service.value("segment_request_duration_seconds_bucket", le="0.2") == 0


def test_both_formats_can_be_parsed() -> None:
    """Without `_created` series, which double what is stored and say nothing."""
    service = Service()
    asyncio.run(_deliver(service, [1.0, 2.0]))
    text = generate_latest(service.registry).decode()
    assert "_created" not in text
    openmetrics = generate_openmetrics(service.registry).decode()  # type: ignore[no-untyped-call] # left untyped there
    assert "_created" not in openmetrics
    parsed = parse_openmetrics(openmetrics)  # type: ignore[no-untyped-call] # left untyped there
    classic = series({family.name: family for family in text_string_to_metric_families(text)})
    assert {
        found
        for found in series({family.name: family for family in parsed})
        if found[0].startswith("streamer_")
    } == {found for found in classic if found[0].startswith("streamer_")}
    for line in text.splitlines():
        if 'le="' in line:
            edge = line.split('le="')[1].split('"')[0]
            assert edge == "+Inf" or "." in edge, 'dashboards say le="60.0"'


async def _deliver(service: Service, ages: list[float]) -> None:
    service.metrics.delivered(batch(service, ages), (0, len(ages)), 100, 10, 0.1)


# --- the account ----------------------------------------------------------------------------------

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["consumed", "made", "merged", "delivered", "refused", "dead", "end"]),
        st.sampled_from(CALL_TYPES),
        st.sampled_from(list(Reason)),
    ),
    max_size=60,
)


@settings(deadline=None, max_examples=50)
@given(STEPS)
def test_the_identities_hold_in_every_scrape(steps: list[tuple[str, str, Reason]]) -> None:
    """Records and calls: what came in is what was decided, was released, or is in flight."""
    service = Service()
    account = service.account
    ledger = account.ledger()
    for step, kind, reason in steps:
        match step:
            case "consumed":
                ledger.consumed("events", 2, 100)
            case "made":
                ledger.made(kind)
            case "merged" if ledger.calls[kind]:
                ledger.merged(kind)
            case "delivered" if ledger.calls[kind] and ledger.records:
                ledger.delivered(kind, 1)
            case "refused" if ledger.calls[kind] and ledger.records:
                ledger.refused(kind, reason)
            case "dead" if ledger.records:
                ledger.dead_lettered(reason)
            case "end":
                ledger.end()
                ledger = account.ledger()
    found = service.families()

    def total(name: str, **labels: str) -> float:
        return sum(
            sample.value
            for sample in found[name].samples
            if labels.items() <= sample.labels.items()
        )

    assert total("events_consumed") == account.consumed.total()
    assert total("consumed_bytes") == 50 * account.consumed.total()
    assert total("events_consumed") == total("events_settled") + total("events_released") + total(
        "inflight_events"
    )
    for kind in CALL_TYPES:
        assert account.made[kind] == total("calls", type=kind) + total("inflight_calls", type=kind)
    for reason in Reason:
        assert total("events_settled", reason=reason) == account.dead_lettered[reason]


def test_what_is_read_at_the_scrape() -> None:
    """Partitions that were taken away vanish; a time is a timestamp."""
    service = Service(oldest_pending_ms=1_700_000_000_500, destinations={"paused": 2})
    assert service.value("consumer_lag_records", topic="events", partition="3") == 5
    assert service.value("committed_offset", topic="events", partition="3") == 7
    assert service.value("assigned_partitions") == 1
    assert service.value("oldest_pending_event_timestamp_seconds") == 1_700_000_000.5
    assert service.value("memory_budget_bytes") == 1000
    assert service.value("memory_used_bytes") == 10
    assert service.value("segment_inflight_requests") == 2
    assert service.value("segment_concurrency_limit") == 8
    assert service.value("aggregation_open_keys") == 4
    assert service.value("suppression_keys") == 9
    assert service.value("destinations", state="paused") == 2
    assert service.value("destinations", state="flowing") == 0
    assert service.value("config_flush_interval_seconds") == 1.5
    assert service.value("config_flush_max_calls") == 2500
    assert service.value("config_flush_max_bytes") == 475_000
    assert service.value("config_info", hash="0a1b2c3d") == 1
    service.metrics.tuned(3.0, 100, 50_000, "4e5f6071")
    assert service.value("config_flush_interval_seconds") == 3
    assert service.value("config_flush_max_calls") == 100
    assert service.value("config_flush_max_bytes") == 50_000
    assert service.value("config_info", hash="4e5f6071") == 1
    assert service.registry.get_sample_value("streamer_config_info", {"hash": "0a1b2c3d"}) is None
    service.lag = service.committed = {}
    service.oldest_pending_ms = None
    families = service.families()
    assert families["consumer_lag_records"].samples == []
    assert families["committed_offset"].samples == []
    assert time.time() - 60 < service.value("oldest_pending_event_timestamp_seconds") <= time.time()


# --- batches and ages -----------------------------------------------------------------------------


def test_a_batch_is_seen_as_it_closes() -> None:
    """Its calls, bytes, how full it is, and how long it waited."""
    service = Service()
    made = Batch(Limits(2500, 475_000))
    for number in range(2500):
        chunk = Chunk(("events", 3), [number], [-1], [None], read_at=100.0 + number)
        made.append(b"{}", 2, chunk, 0)
    made.trigger, made.closed_at = "calls", 107.0
    service.metrics.closed(made)
    assert service.value("batches_closed_total", trigger="calls") == 1
    assert service.value("batch_calls_sum") == 2500
    assert service.value("batch_calls_bucket", le="2500.0") == 1
    assert service.value("batch_calls_bucket", le="2375.0") == 0
    assert service.value("batch_bytes_sum") == made.size
    assert service.value("batch_bytes_bucket", le="475000.0") == 1
    assert service.value("batch_fill_ratio_bucket", le="0.9") == 0
    assert service.value("batch_wait_seconds_sum") == 7.0


BETWEEN = [(low + high) / 2 for low, high in zip([0.0, *AGE_BUCKETS], AGE_BUCKETS, strict=False)]
"""Ages in the middle of each bucket: the clock goes on while the test does."""


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.sampled_from([*BETWEEN, 5000.0]), max_size=40), max_size=4))
def test_ages_are_those_of_a_naive_histogram(batches: list[list[float]]) -> None:
    """Although they are counted a batch at a time."""
    service = Service()

    async def main() -> None:
        for ages in batches:
            made = batch(service, ages, identifies=2)
            service.metrics.delivered(made, (0, len(made)), 100, 10, 0.0)

    asyncio.run(main())
    everything = [age for ages in batches for age in ages]
    for edge in AGE_BUCKETS:
        at_most = sum(age <= edge for age in everything)
        assert service.value("event_age_seconds_bucket", le=str(edge)) == at_most
    assert service.value("event_age_seconds_bucket", le="+Inf") == len(everything)
    assert service.value("event_age_seconds_count") == len(everything)
    assert service.value("event_age_seconds_sum") == pytest.approx(sum(everything), abs=5)


def test_a_part_of_a_batch_counts_its_own_ages() -> None:
    """What was delivered, not what was refused beside it."""
    service = Service()

    async def main() -> None:
        made = batch(service, [1.2, 7.0, 70.0])
        service.metrics.delivered(made, (1, 2), 1000, 100, 0.1)

    asyncio.run(main())
    assert service.value("event_age_seconds_count") == 1
    assert service.value("event_age_seconds_sum") == pytest.approx(7.0, abs=0.5)
    assert service.value("delivered_bytes_total", encoding="identity") == 1000
    assert service.value("delivered_bytes_total", encoding="wire") == 100
    assert time.time() - 60 < service.value("last_delivery_timestamp_seconds") <= time.time()


@pytest.mark.parametrize("tries", [0, 2])
def test_stages_stack_to_the_age(tries: int) -> None:
    """5 s in Kafka, 2 s in a batch, 3 s waiting for a slot or another try, 1 s in the request."""
    service = Service()

    async def main() -> None:
        made = Batch(Limits())
        clock = asyncio.get_running_loop().time
        stamp = round((time.time() - 11.0) * 1000)  # the wall clock isn't virtual
        chunk = Chunk(("events", 3), [1, 2], [stamp] * 2, [None], read_at=clock())
        for number in range(2):
            made.append(b"{}", CALL_TYPES.index("track"), chunk, number)
        await asyncio.sleep(2.0)
        made.trigger, made.closed_at, made.tries = "time", clock(), tries
        await asyncio.sleep(4.0)
        service.metrics.delivered(made, (0, 2), 100, 10, 1.0)

    virtual_time.run(main())
    stages = {stage: service.value("stage_event_seconds_total", stage=stage) for stage in STAGES}
    waited = "backoff" if tries else "slot"
    expected = {"kafka": 10.0, "batch": 4.0, "request": 2.0, "slot": 0.0, "backoff": 0.0}
    expected[waited] = 6.0
    assert stages == pytest.approx(expected, abs=0.5)
    assert sum(stages.values()) == pytest.approx(service.value("event_age_seconds_sum"))


def test_a_batch_without_page_and_track_calls_has_no_ages() -> None:
    """Identify calls alone: nothing is divided by nothing."""
    service = Service()

    async def main() -> None:
        made = batch(service, [], identifies=3)
        service.metrics.delivered(made, (0, 3), 100, 10, 0.1)

    asyncio.run(main())
    assert service.value("event_age_seconds_count") == 0
    assert service.value("delivered_bytes_total", encoding="wire") == 10


def test_a_loop_that_is_held_up_shows() -> None:
    """Its lag is seen by a timer that comes late."""
    service = Service()

    async def main() -> None:
        watching = asyncio.create_task(service.metrics.watch_loop())
        await asyncio.sleep(0.01)
        loop: Any = asyncio.get_running_loop()
        loop.now += 3.0  # what a long synchronous stretch does
        await asyncio.sleep(0.6)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)

    virtual_time.run(main())
    assert service.value("event_loop_lag_seconds_sum") == pytest.approx(2.51)
    assert (
        service.value("event_loop_lag_seconds_bucket", le="1.0")
        == service.value("event_loop_lag_seconds_count") - 1
    )
