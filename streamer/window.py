"""Some hundred or thousand records of a stream as they came, to look at: all partitions over the same time.

Rates, merging and suppression are those of the stream only if every partition is seen over the same time: the last
thousand records of each would be an hour of a quiet partition beside a second of a busy one. So a window is chosen by
time. Kafka is asked where each partition stands at some time, and the time is halved until as many records lie on one
side of it as are wanted. Where timestamps don't say (a topic without any, or from the future, or the same for all) each
partition gives its part, and what lies outside of the time that all have in common is left out.

Offsets are counted, and records are wanted: where compaction or transactions left gaps more offsets are read.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from aiokafka import TopicPartition

from streamer.onlooker import onlooker, read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from aiokafka import AIOKafkaConsumer, ConsumerRecord

    from streamer.core.model import Partition

_GRACE = 2.0
"""Seconds that a question which was asked in time may go on."""
_ROUNDS = 4
_MORE = 1.1
_MOST_MORE = 10.0
"""Times as many offsets as the round before, at most: gaps may be anywhere."""

_order = attrgetter("timestamp", "topic", "partition", "offset")

Spans: TypeAlias = dict["Partition", range]


class Since(NamedTuple):
    """From a time on.

    Attributes:
        at_ms: in milliseconds since the epoch, of Kafka's timestamps.
    """

    at_ms: int


Start: TypeAlias = Literal["end", "beginning"] | Since | int
"""Where a window begins: at the beginning, at a time, at an offset of each partition; or it is the last one."""


@dataclass(slots=True)
class Window:
    """Records of a stream.

    Attributes:
        there: the offsets that each partition has.
        missing: partitions in which the offset that was asked for isn't.
        records: those of the time that all partitions have in common, by their timestamps; so many as were asked for at
            most. If there is no such time, all that were read.
        together: whether there is such a time, so that rates can be said.
        outside: how many records were read that lie outside of that time.
        complete: whether all was read that was to be; else the time was over.
    """

    there: Spans
    missing: list[Partition] = field(default_factory=list)
    records: list[ConsumerRecord] = field(default_factory=list)
    together: bool = True
    outside: int = 0
    complete: bool = True


async def look(
    connection: Mapping[str, Any],
    partitions: Iterable[Partition],
    start: Start,
    number: int,
    *,
    isolation_level: str,
    timeout_seconds: float,
    progress: Callable[[int], None],
) -> Window:
    """Read a window, without any group.

    Args:
        connection: how to reach Kafka, as aiokafka's arguments.
        partitions: of topics that exist: asking for another one might make it.
        start: where it begins.
        number: how many records are wanted; at most twice as many are held.
        isolation_level: as `kafka.isolation_level`.
        timeout_seconds: about how long it may take; what was read until then is given.
        progress: is told how many records have been read.

    Returns:
        What was found; without records if there is nothing.

    Raises:
        KafkaError: Kafka refuses an answer.
        TimeoutError: it gave none in time.
    """
    deadline = asyncio.get_running_loop().time() + timeout_seconds
    async with (
        asyncio.timeout_at(deadline + _GRACE),
        onlooker(connection, timeout_seconds, isolation_level=isolation_level) as consumer,
    ):
        window = Window(await _there(consumer, partitions))
        spans = await _begin(consumer, window, start)
        wanted = number
        for _ in range(_ROUNDS):
            plan = await _choose(consumer, spans, start, wanted)
            before, window = window, Window(window.there, window.missing)
            await _fill(consumer, plan, window, start, number, deadline, progress)
            if not window.complete and len(before.records) > len(window.records):
                return before
            total = len(window.records) + window.outside
            if total >= number or plan.spans == spans or not window.complete:
                break
            more = number * _MORE / total if total else _MOST_MORE
            wanted = round(wanted * min(more, _MOST_MORE)) + 1
    return window


async def _there(consumer: AIOKafkaConsumer, partitions: Iterable[Partition]) -> Spans:
    """Ask which offsets the partitions have."""
    tps = [TopicPartition(*partition) for partition in sorted(partitions)]
    consumer.assign(tps)  # so that one request asks for all of their leaders
    consumer.pause(*tps)
    beginnings = await consumer.beginning_offsets(tps)
    ends = await consumer.end_offsets(tps)
    return {(tp.topic, tp.partition): range(beginnings[tp], ends[tp]) for tp in tps}


async def _begin(consumer: AIOKafkaConsumer, window: Window, start: Start) -> Spans:
    """Leave out what lies before the start."""
    there = window.there
    if isinstance(start, Since):
        at, _ = await _positions(consumer, there, start.at_ms)
        return {partition: range(at[partition], span.stop) for partition, span in there.items()}
    if isinstance(start, int):
        window.missing = [partition for partition, span in there.items() if start not in span]
        return {
            partition: range(start, span.stop) for partition, span in there.items() if start in span
        }
    return there


@dataclass(frozen=True, slots=True)
class _Plan:
    """What to read.

    Attributes:
        spans: the offsets.
        within: what lies before the first of these offsets or behind the last is of another time than this, in
            milliseconds; None where it isn't known.
    """

    spans: Spans
    within: tuple[float, float] | None


_ALWAYS = (float("-inf"), float("inf"))


async def _choose(consumer: AIOKafkaConsumer, spans: Spans, start: Start, wanted: int) -> _Plan:
    """Choose the offsets to read of all that could be: so many of them, of one time."""
    total = sum(map(len, spans.values()))
    # At an offset partitions may stand at different times, so each gives its part.
    together = not isinstance(start, int)
    if total <= wanted:
        return _Plan(spans, _ALWAYS if together else None)
    at_end = start == "end"
    before = total - wanted if at_end else wanted
    split, at_ms, whole = await _split(consumer, spans, before, by_time=together)
    if at_end:
        chosen = {one: range(split[one], span.stop) for one, span in spans.items()}
        return _Plan(chosen, None if at_ms is None else (at_ms, float("inf")))
    chosen = {one: range(span.start, split[one]) for one, span in spans.items()}
    last = None if at_ms is None else at_ms - whole
    return _Plan(chosen, None if last is None else (float("-inf"), last))


async def _split(
    consumer: AIOKafkaConsumer, spans: Spans, before: int, *, by_time: bool
) -> tuple[dict[Partition, int], int | None, bool]:
    """Find offsets before which so many of the spans lie, those of all partitions at one time.

    Returns:
        The offsets; the time, in milliseconds since the epoch, None if it isn't one; whether no record of that
        millisecond lies before them.
    """
    starts = {partition: span.start for partition, span in spans.items()}
    stops = {partition: span.stop for partition, span in spans.items()}
    if not by_time:
        return _share(starts, stops, before), None, False
    low, first_ms = await _positions(consumer, spans, 0)
    high_ms = int(time.time() * 1000) + 1
    high, _ = await _positions(consumer, spans, high_ms)
    if first_ms is None or _between(starts, low) > before:
        return _share(starts, low, before), None, False  # many have no timestamp
    if _between(starts, high) < before:
        return _share(high, stops, before - _between(starts, high)), None, False  # of the future
    low_ms = min(first_ms, high_ms)
    while high_ms - low_ms > 1 and _between(starts, low) < before:
        middle_ms = (low_ms + high_ms) // 2
        middle, _ = await _positions(consumer, spans, middle_ms)
        if _between(starts, middle) <= before:
            low_ms, low = middle_ms, middle
        else:
            high_ms, high = middle_ms, middle
    missing = before - _between(starts, low)
    return _share(low, high, missing), low_ms, not missing


async def _positions(
    consumer: AIOKafkaConsumer, spans: Spans, at_ms: int
) -> tuple[dict[Partition, int], int | None]:
    """Ask where the first record stands in each partition that is so old or younger, within the spans.

    Returns:
        The offsets, and the oldest of the timestamps of these first records; None if there are none.
    """
    found = await consumer.offsets_for_times({TopicPartition(*one): at_ms for one in spans})
    positions, times = {}, []
    for partition, span in spans.items():
        at = found.get(TopicPartition(*partition))
        offset = span.stop if at is None else at.offset
        if at is not None:
            times.append(at.timestamp)
        positions[partition] = max(span.start, min(offset, span.stop))
    return positions, min(times, default=None)


def _between(low: Mapping[Partition, int], high: Mapping[Partition, int]) -> int:
    return sum(high.values()) - sum(low.values())


def _share(
    low: Mapping[Partition, int], high: Mapping[Partition, int], number: int
) -> dict[Partition, int]:
    """Go on from offsets by so many, in each partition by its part of what lies before the higher ones."""
    total, passed, taken = _between(low, high), 0, 0
    shared = {}
    for partition, offset in low.items():
        passed += high[partition] - offset
        share = number * passed // total - taken if total else 0
        taken += share
        shared[partition] = offset + share
    return shared


async def _fill(
    consumer: AIOKafkaConsumer,
    plan: _Plan,
    window: Window,
    start: Start,
    number: int,
    deadline: float,
    progress: Callable[[int], None],
) -> None:
    """Read what is planned into a window, and leave out what is of another time."""
    records: list[ConsumerRecord] = []
    first: dict[Partition, int] = {}
    last: dict[Partition, int] = {}
    position = {partition: span.start for partition, span in plan.spans.items()}
    seen = 0
    async for passed in read(consumer, plan.spans, deadline):
        position[passed.partition] += passed.offsets
        if passed.records:
            first.setdefault(passed.partition, passed.records[0].timestamp)
            last[passed.partition] = passed.records[-1].timestamp
            records += passed.records
            seen += len(passed.records)
            progress(min(seen, number))
        if len(records) > 2 * number:
            records = _nearest(records, start, number)
    unfinished = [one for one, span in plan.spans.items() if position[one] < span.stop]
    window.complete = not unfinished
    records = _nearest(records, start, number)
    if len(plan.spans) > 1:
        since, until = plan.within or _common(plan, window.there, first, last)
        if unfinished:
            until = min([until, *(last.get(one, float("-inf")) for one in unfinished)])
        inside = [one for one in records if one.timestamp < 0 or since <= one.timestamp <= until]
        window.together = bool(inside)
        if window.together:
            window.outside = len(records) - len(inside)
            records = inside
    window.records = records


def _nearest(records: list[ConsumerRecord], start: Start, number: int) -> list[ConsumerRecord]:
    """Give the records that are nearest to where the window begins, or of the last one to its end."""
    records = sorted(records, key=_order)
    return records[-number:] if start == "end" else records[:number]


def _common(
    plan: _Plan,
    there: Spans,
    first: Mapping[Partition, int],
    last: Mapping[Partition, int],
) -> tuple[float, float]:
    """Say which time all partitions have in common of which parts were read."""
    since, until = _ALWAYS
    for partition, span in plan.spans.items():
        if partition in first and span.start > there[partition].start:
            since = max(since, first[partition])
        if partition in last and span.stop < there[partition].stop:
            until = min(until, last[partition])
    return since, until
