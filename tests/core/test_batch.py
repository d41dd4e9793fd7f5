"""A batch knows its size to the byte, its limits, its chunks and how old its records are."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from streamer.core.batch import ENVELOPE_BYTES, MAIN_TYPES, Ages, Batch, Limits
from streamer.core.model import CALL_TYPES
from streamer.core.offsets import Chunk

IDENTIFY, GROUP, PAGE, TRACK = range(4)
SENT_AT = b"2026-11-23T14:00:00.000Z"
EPOCH_MS = 1_700_000_000_000


def chunk(
    records: int = 1, partition: int = 0, *, stamps: list[int] | None = None, read_at: float = 0.0
) -> Chunk:
    stamps = [0] * records if stamps is None else stamps
    offsets = range(len(stamps))
    return Chunk(("events", partition), offsets, stamps, [None] * len(stamps), read_at=read_at)


def call(size: int) -> bytes:
    """A call of so many bytes, from 8 on."""
    return b'{"a":"' + b"x" * (size - 8) + b'"}'


def batch_of(*sizes: int, limits: Limits | None = None) -> Batch:
    batch, held = Batch(limits or Limits()), chunk(len(sizes))
    for record, size in enumerate(sizes):
        batch.append(call(size), TRACK, held, record)
    return batch


def test_the_main_types_are_page_and_track() -> None:
    assert [CALL_TYPES[kind] for kind in MAIN_TYPES] == ["page", "track"]


def test_a_body_is_what_segment_expects() -> None:
    batch = Batch(Limits())
    batch.append(b'{"type":"track"}', TRACK, chunk(), 0)
    batch.append(b'{"type":"page"}', PAGE, chunk(), 0)
    assert orjson.loads(batch.body(SENT_AT)) == {
        "batch": [{"type": "track"}, {"type": "page"}],
        "sentAt": "2026-11-23T14:00:00.000Z",
    }
    assert orjson.loads(batch.body(SENT_AT, 1, 2))["batch"] == [{"type": "page"}]
    assert orjson.loads(batch.body(SENT_AT, 0, 1))["batch"] == [{"type": "track"}]


@settings(deadline=None)
@given(st.datetimes(datetime(1970, 1, 1), datetime(9999, 1, 1)))  # noqa: DTZ001 - becomes UTC below
def test_the_envelope_has_one_length_whenever_a_body_is_sent(moment: datetime) -> None:
    sent_at = moment.replace(tzinfo=UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:23].encode() + b"Z"
    assert len(Batch(Limits()).body(sent_at)) == ENVELOPE_BYTES
    batch = batch_of(10, 20)
    assert len(batch.body(sent_at)) == batch.size == ENVELOPE_BYTES + 31


def test_the_last_byte_of_the_limit_is_used_and_none_behind_it() -> None:
    batch = batch_of(100, limits=Limits(max_bytes=ENVELOPE_BYTES + 100 + 1 + 50))
    assert batch.room(51) == "bytes"
    assert batch.room(50) is None
    batch.append(call(50), TRACK, chunk(), 0)
    assert len(batch.body(SENT_AT)) == batch.size == batch.limits.max_bytes


def test_the_first_call_has_no_comma_to_pay_for() -> None:
    batch = Batch(Limits(max_bytes=ENVELOPE_BYTES + 100))
    assert batch.room(101) == "bytes"
    assert batch.room(100) is None


def test_the_last_call_of_the_limit_is_used_and_none_behind_it() -> None:
    batch = batch_of(10, 10, limits=Limits(max_calls=3))
    assert batch.room(10) is None
    batch.append(call(10), TRACK, chunk(), 0)
    assert batch.room(10) == "calls"
    assert batch.room(500_000) == "bytes"


def test_a_chunk_is_held_once_however_many_calls_it_has_and_let_go_with_the_batch() -> None:
    one, other = chunk(3), chunk(1, partition=1)
    batch = Batch(Limits())
    for record in range(3):
        batch.append(call(10), TRACK, one, record)
    batch.append(call(10), TRACK, other, 0)
    assert (one.holders, other.holders) == (2, 2)
    assert list(batch.chunk_numbers) == [0, 0, 0, 1]
    assert batch.chunks == [one, other]
    batch.let_go()
    batch.let_go()
    assert (one.holders, other.holders) == (1, 1)


def test_a_replaced_call_stands_where_it_stood_and_holds_the_chunks_of_both() -> None:
    first, second = chunk(3, read_at=5.0), chunk(9, partition=1, read_at=7.0)
    batch = Batch(Limits())
    place = batch.append(call(10), IDENTIFY, first, 2)
    batch.append(call(20), TRACK, first, 2)
    batch.replace(place, call(30), second, 8)
    assert batch.calls == [call(30), call(20)]
    assert batch.chunks[batch.chunk_numbers[place]] is second
    assert batch.records[place] == 8
    assert (first.holders, second.holders) == (2, 2)
    assert batch.size == len(batch.body(SENT_AT))
    assert batch.oldest == 5.0


def test_the_oldest_record_is_of_any_call_and_the_sum_of_times_of_page_and_track_calls() -> None:
    batch = Batch(Limits())
    assert batch.oldest == float("inf")
    for kind, read_at in ((IDENTIFY, 3.0), (TRACK, 4.0), (GROUP, 2.0), (PAGE, 6.0)):
        batch.append(call(10), kind, chunk(read_at=read_at), 0)
    assert batch.oldest == 2.0
    assert (batch.read_sum, batch.mains) == (10.0, 2)


def test_ages_fall_into_buckets_whose_edges_belong_to_them() -> None:
    now = EPOCH_MS
    ages_ms = (0, 100, 101, 1000, 5000, 60_000)
    batch, held = Batch(Limits()), chunk(stamps=[now - age_ms for age_ms in ages_ms])
    for record in range(6):
        batch.append(call(10), TRACK, held, record)
    batch.append(call(10), IDENTIFY, held, 0)
    assert batch.ages(now, [0.1, 1.0, 30.0]) == Ages([2, 4, 5], 6, 66.201)
    assert batch.ages(now, [0.1, 1.0, 30.0], 3, 5) == Ages([0, 1, 2], 2, 6.0)


def test_a_record_without_a_timestamp_has_no_age() -> None:
    batch = Batch(Limits())
    batch.append(call(10), TRACK, chunk(stamps=[-1]), 0)
    assert batch.ages(1000, [1.0]) == Ages([0], 0, 0.0)


def test_a_record_from_the_future_is_new() -> None:
    batch = Batch(Limits())
    for stamp in (900, 1_500, 99_000):
        batch.append(call(10), TRACK, chunk(stamps=[stamp]), 0)
    assert batch.ages(1000, [0.05, 1.0]) == Ages([2, 3], 3, 0.1)


# --- any calls in any order, against naive computations ----------------------------------------------


@dataclass
class Kept:
    """A call as the model keeps it."""

    size: int
    kind: int
    chunk: Chunk
    record: int


_sizes = st.integers(8, 40) | st.integers(8, 3_000)
_stamps = st.just(-1) | st.integers(EPOCH_MS, EPOCH_MS + 200_000)
_chunks, _records = st.integers(0, 3), st.integers(0, 9)


class AnyCalls(RuleBasedStateMachine):
    """One batch after the other: calls are added, merged and sent in parts, until it is settled."""

    @initialize(
        max_calls=st.integers(1, 12),
        max_bytes=st.integers(3_000 + ENVELOPE_BYTES, 12_000),
        stamps=st.lists(st.lists(_stamps, min_size=10, max_size=10), min_size=4, max_size=4),
        read_at=st.lists(st.floats(0, 1000), min_size=4, max_size=4),
    )
    def begin(
        self, max_calls: int, max_bytes: int, stamps: list[list[int]], read_at: list[float]
    ) -> None:
        self.limits = Limits(max_calls, max_bytes)
        self.chunks = [
            chunk(partition=number, stamps=stamps[number], read_at=read_at[number])
            for number in range(4)
        ]
        self.batch()

    def batch(self) -> None:
        self.open = Batch(self.limits)
        self.kept: list[Kept] = []
        self.touched: set[Chunk] = set()

    @rule(size=_sizes, kind=st.integers(0, 3), number=_chunks, record=_records)
    def add(self, size: int, kind: int, number: int, record: int) -> None:
        batch, held = self.open, self.chunks[number]
        naive = len(batch.body(SENT_AT)) + size + (1 if self.kept else 0)
        room = batch.room(size)
        assert (room == "bytes") == (naive > self.limits.max_bytes)
        assert (room is None) == (
            naive <= self.limits.max_bytes and len(self.kept) < self.limits.max_calls
        )
        if room is None:
            assert batch.append(call(size), kind, held, record) == len(self.kept)
            self.kept.append(Kept(size, kind, held, record))
            self.touched.add(held)

    @rule(over=st.sampled_from([0, 1]), kind=st.integers(0, 3), number=_chunks, record=_records)
    def add_to_the_last_byte(self, over: int, kind: int, number: int, record: int) -> None:
        """A call that fills the batch to the byte, or that is one byte too large for that."""
        left = self.limits.max_bytes - len(self.open.body(SENT_AT)) - (1 if self.kept else 0)
        if left >= 8:
            self.add(left + over, kind, number, record)

    @precondition(lambda self: any(one.kind not in MAIN_TYPES for one in self.kept))
    @rule(data=st.data(), size=_sizes, number=_chunks, record=_records)
    def merge(self, data: st.DataObject, size: int, number: int, record: int) -> None:
        places = [place for place, one in enumerate(self.kept) if one.kind not in MAIN_TYPES]
        place = data.draw(st.sampled_from(places), label="place")
        old = self.kept[place]
        if self.open.size + size - old.size <= self.limits.max_bytes:  # as a lane sees to it
            held = self.chunks[number]
            self.open.replace(place, call(size), held, record)
            self.kept[place] = Kept(size, old.kind, held, record)
            self.touched.add(held)

    @precondition(lambda self: self.kept)
    @rule(
        data=st.data(),
        now_ms=st.integers(EPOCH_MS, EPOCH_MS + 200_000),
        edges_ms=st.lists(st.integers(0, 200_000), max_size=6).map(sorted),
    )
    def send_a_part(self, data: st.DataObject, now_ms: int, edges_ms: list[int]) -> None:
        batch = self.open
        start = data.draw(st.integers(0, len(self.kept) - 1), label="start")
        stop = data.draw(st.none() | st.integers(start + 1, len(self.kept)), label="stop")
        kept = self.kept[start:stop]
        sent = orjson.loads(batch.body(SENT_AT, start, stop))
        assert sent["batch"] == [orjson.loads(call(one.size)) for one in kept]
        kinds = [CALL_TYPES[one.kind] for one in kept]
        assert dict(batch.counts(start, stop)) == {kind: kinds.count(kind) for kind in set(kinds)}
        stamps = [one.chunk.timestamps[one.record] for one in kept if one.kind in MAIN_TYPES]
        ages_ms = [max(now_ms - stamp, 0) for stamp in stamps if stamp >= 0]
        ages = batch.ages(now_ms, [edge / 1000 for edge in edges_ms], start, stop)
        assert ages.at_most == [sum(age <= edge for age in ages_ms) for edge in edges_ms]
        assert ages.count == len(ages_ms)
        assert ages.total_seconds == pytest.approx(sum(ages_ms) / 1000)

    @rule()
    def settle(self) -> None:
        self.open.let_go()
        assert [one.holders for one in self.chunks] == [1] * 4
        self.batch()

    @invariant()
    def it_has_what_was_added(self) -> None:
        batch, kept = self.open, self.kept
        assert len(batch) == len(kept) <= self.limits.max_calls
        if kept:
            assert len(batch.body(SENT_AT)) == batch.size <= self.limits.max_bytes
        assert batch.calls == [call(one.size) for one in kept]
        assert [batch.chunks[number] for number in batch.chunk_numbers] == [
            one.chunk for one in kept
        ]
        assert list(batch.records) == [one.record for one in kept]
        assert batch.oldest == min((one.read_at for one in self.touched), default=float("inf"))
        mains = [one for one in kept if one.kind in MAIN_TYPES]
        assert batch.mains == len(mains)
        assert batch.read_sum == pytest.approx(sum(one.chunk.read_at for one in mains))
        for one in self.chunks:
            assert one.holders == (2 if one in self.touched else 1)


TestAnyCalls = AnyCalls.TestCase
TestAnyCalls.settings = settings(deadline=None, max_examples=60, stateful_step_count=30)
