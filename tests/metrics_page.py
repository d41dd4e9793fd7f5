"""docs/metrics.md, made of the metrics themselves: `make docs` writes it, a test holds it to the code.

What is here also serves the tests of dashboards and alerts, which may name no metric, label or value but these.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from streamer.core.account import Account
from streamer.metrics import Metrics, Readings

if TYPE_CHECKING:
    from prometheus_client.core import Metric

PAGE = Path(__file__).parent.parent / "docs/metrics.md"
OPEN_LABELS = {
    "topic": "each topic",
    "partition": "each partition assigned",
    "version": "of streamer",
    "hash": "8 hexadecimal digits",
}
"""Labels whose values aren't known before the service runs, and what they are."""

_SUFFIX = {"counter": "_total", "info": "_info"}
_UNITS = (
    ("_info", "always 1"),
    ("_timestamp_seconds", "Unix time in seconds"),
    ("stage_event_seconds_total", "seconds times events"),
    ("_seconds_total", "seconds"),
    ("_seconds", "seconds"),
    ("_bytes_total", "bytes"),
    ("_bytes", "bytes"),
    ("_ratio", "0 to 1"),
    ("_concurrency_limit", "requests"),
)
_NOUNS = (
    "failures", "retries", "requests", "batches", "commits", "rebalances", "partitions", "events", "records", "calls",
    "offset", "keys", "destinations", "reloads", "restarts",
)  # fmt: skip


def families() -> list[Metric]:
    """Every metric of streamer's own, with the series that it has from the start and one topic."""
    account = Account()
    account.consumed["topic"] = 1
    readings = Readings(
        account=account,
        memory_limit=1,
        memory_used=0,
        lag={("topic", 0): 0},
        committed={("topic", 0): 1},
        assigned=1,
        undecodable=0,
        requests=0,
        concurrency=1,
        destinations={},
        open_profiles=0,
        suppression_keys=0,
        oldest_pending_ms=None,
    )
    registry = CollectorRegistry()
    Metrics(
        registry,
        lambda: readings,
        interval_seconds=1,
        max_calls=2500,
        max_bytes=475_000,
        config_hash="",
    )
    return [family for family in registry.collect() if family.name.startswith("streamer_")]


def sample_name(family: Metric) -> str:
    """The name as Prometheus has it; of a histogram without `_bucket`, `_sum` and `_count`."""
    return family.name + _SUFFIX.get(family.type, "")


def label_values(family: Metric) -> dict[str, list[str]]:
    """Each label's values, in order; those of `OPEN_LABELS` are only examples."""
    values: dict[str, dict[str, None]] = {}
    for sample in family.samples:
        for label, value in sample.labels.items():
            if label != "le":
                values.setdefault(label, {})[value] = None
    return {label: list(found) for label, found in values.items()}


def unit(name: str) -> str:
    """What a metric counts in, which its name says."""
    for suffix, text in _UNITS:
        if name.endswith(suffix):
            return text
    return next(noun for noun in _NOUNS if noun in name)


def _labels(family: Metric) -> str:
    parts = []
    for label, values in label_values(family).items():
        named = ", ".join(f"`{value}`" if value else "none" for value in values)
        parts.append(f"`{label}`: {OPEN_LABELS.get(label, named)}")
    return "; ".join(parts)


def page() -> str:
    """The document."""
    lines = [
        "# Metrics",
        "",
        "What `/metrics` shows, made of the code by `make docs`. A series whose labels are known is there from the",
        "start, so that `increase()` misses no first event. [design.md](design.md#metrics) says what they are for,",
        "`dashboards/` shows them, [runbook.md](runbook.md) says what to do when one of them is alarming.",
        "",
        "Beside these `/metrics` has Python's own: `process_cpu_seconds_total`, `process_resident_memory_bytes`,",
        "`process_start_time_seconds`, `process_open_fds` and their like on Linux, and `python_gc_…`.",
        "",
        "At full speed all of it takes 1.2 % of the process's CPU, a scrape each second a third of that; the account",
        "of every record and call takes 0.4 % more. `make bench` measures both.",
        "",
    ]
    lines += [
        "| metric | type | labels and their values | unit | what it is |",
        "|---|---|---|---|---|",
    ]
    for family in sorted(families(), key=sample_name):
        name = sample_name(family)
        cells = (f"`{name}`", family.type, _labels(family), unit(name), family.documentation)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
