"""What the console at `/` is told: samples of the metrics, with those of the last minutes.

A sample is one collection of the registry, as a scrape is, so the console never shows other numbers than `/metrics`.
That takes one or two milliseconds, which each second would be 2 % of what forwarding 1,000 events a second takes: so
samples are taken seldom while nobody looks.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

INTERVAL = 1.0
"""Seconds between two samples while somebody looks."""
UNSEEN_INTERVAL = 5.0
"""The same while nobody does."""
KEPT = 300
"""So many samples are kept for who opens the page."""

_FAMILIES = frozenset(
    f"streamer_{name}"
    for name in (
        "batch_calls", "batch_fill_ratio", "batches_closed", "calls", "consumer_lag_records", "event_age_seconds",
        "events_consumed", "events_released", "events_settled", "inflight_events", "memory_budget_bytes",
        "memory_used_bytes", "segment_concurrency_limit", "segment_inflight_requests", "segment_requests",
        "stage_event_seconds", "config_flush_interval_seconds",
    )
)  # fmt: skip
_SUMMED = frozenset(("streamer_consumer_lag_records", "streamer_events_consumed_total"))
"""Of these only the sum over all labels is kept: they have as many as there are partitions or topics."""


class Sample(NamedTuple):
    """What the metrics showed at one time.

    Attributes:
        number: counts up by one from sample to sample.
        at: when, in seconds since 1970.
        names: of its values, with the labels' values: `streamer_calls_total{track,delivered}`. Samples share them.
        values: in the order of the names.
    """

    number: int
    at: float
    names: tuple[str, ...]
    values: array[float]


class Console:
    """Takes samples while it runs.

    Args:
        registry: what is sampled.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._samples: deque[Sample] = deque(maxlen=KEPT)
        self._news = asyncio.Event()
        self._asked = asyncio.Event()

    async def run(self) -> None:
        """Take a sample each second while somebody waits for it, else each five, until cancelled."""
        while True:
            self._take()
            await asyncio.sleep(INTERVAL)
            with suppress(TimeoutError):
                async with asyncio.timeout(UNSEEN_INTERVAL - INTERVAL):
                    await self._asked.wait()

    async def since(self, number: int) -> list[Sample]:
        """Give the samples from a number on that are still kept; wait until there is one."""
        while not self._samples or self._samples[-1].number < number:
            self._asked.set()
            await self._news.wait()
        return [sample for sample in self._samples if sample.number >= number]

    def _take(self) -> None:
        samples = self._samples
        number = samples[-1].number + 1 if samples else 0
        values = self._collect()
        names = tuple(values)
        if samples and samples[-1].names == names:
            names = samples[-1].names
        samples.append(Sample(number, time.time(), names, array("d", values.values())))
        self._asked.clear()
        self._news.set()
        self._news = asyncio.Event()

    def _collect(self) -> dict[str, float]:
        values: dict[str, float] = {}
        for family in self._registry.collect():
            if family.name not in _FAMILIES:
                continue
            for sample in family.samples:
                name = sample.name
                if sample.labels and name not in _SUMMED:
                    name += f"{{{','.join(sample.labels.values())}}}"
                values[name] = values.get(name, 0.0) + sample.value
        return values
