"""A batch knows its size to the byte, its limits, its chunks and how old its records are."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


# --- against naive computations ---------------------------------------------------------------------

steps = st.lists(
    st.fixed_dictionaries(
        {
            "size": st.one_of(st.integers(8, 40), st.integers(8, 3_000)),
            "kind": st.integers(0, 3),
            "chunk": st.integers(0, 3),
            "record": st.integers(0, 9),
            "replace": st.booleans(),
        }
    ),
    min_size=1,
    max_size=40,
)


stamp = st.one_of(st.just(-1), st.integers(EPOCH_MS, EPOCH_MS + 200_000))


@settings(deadline=None)
@given(
    steps=steps,
    stamps=st.lists(st.lists(stamp, min_size=10, max_size=10), min_size=4, max_size=4),
    read_at=st.lists(st.floats(0, 1000), min_size=4, max_size=4),
    max_calls=st.integers(1, 20),
    max_bytes=st.integers(3_000 + ENVELOPE_BYTES, 12_000),
    now_ms=st.integers(EPOCH_MS, EPOCH_MS + 200_000),
    edges_ms=st.lists(st.integers(0, 200_000), max_size=6).map(sorted),
    data=st.data(),
)
def test_after_any_appends_and_replacements_all_that_a_batch_says_is_so(
    steps: list[dict[str, Any]],
    stamps: list[list[int]],
    read_at: list[float],
    max_calls: int,
    max_bytes: int,
    now_ms: int,
    edges_ms: list[int],
    data: st.DataObject,
) -> None:
    chunks = [
        chunk(partition=number, stamps=stamps[number], read_at=read_at[number])
        for number in range(4)
    ]
    batch = Batch(Limits(max_calls, max_bytes))
    kept: list[dict[str, Any]] = []
    touched: set[Chunk] = set()
    for step in steps:
        body, held = call(step["size"]), chunks[step["chunk"]]
        mergeable = [place for place, one in enumerate(kept) if one["kind"] not in MAIN_TYPES]
        if step["replace"] and mergeable:
            place = data.draw(st.sampled_from(mergeable))
            if batch.size + len(body) - len(batch.calls[place]) > max_bytes:
                continue
            batch.replace(place, body, held, step["record"])
            kept[place] |= {name: step[name] for name in ("size", "chunk", "record")}
        else:
            naive = len(batch.body(SENT_AT)) + len(body) + (1 if kept else 0)
            room = batch.room(len(body))
            assert (room == "bytes") == (naive > max_bytes)
            assert (room is None) == (naive <= max_bytes and len(kept) < max_calls)
            if room is not None:
                continue
            place = batch.append(body, step["kind"], held, step["record"])
            assert place == len(kept)
            kept.append(step)
        touched.add(held)
        assert len(batch.body(SENT_AT)) == batch.size <= max_bytes
    assert len(batch) == len(kept) <= max_calls
    assert batch.calls == [call(one["size"]) for one in kept]
    assert [batch.chunks[number] for number in batch.chunk_numbers] == [
        chunks[one["chunk"]] for one in kept
    ]
    assert list(batch.records) == [one["record"] for one in kept]
    assert batch.oldest == min(one.read_at for one in touched)
    mains = [one for one in kept if one["kind"] in MAIN_TYPES]
    assert batch.mains == len(mains)
    assert batch.read_sum == pytest.approx(sum(read_at[one["chunk"]] for one in mains))
    assert [one.holders for one in chunks] == [2 if one in touched else 1 for one in chunks]

    start = data.draw(st.integers(0, len(kept) - 1))
    stop = data.draw(st.integers(start + 1, len(kept)))
    for piece in ((), (start, stop), (start, None)):
        part = slice(*piece) if piece else slice(None)
        sent = orjson.loads(batch.body(SENT_AT, *piece))
        assert sent["batch"] == [orjson.loads(one) for one in batch.calls[part]]
        kinds = [CALL_TYPES[one["kind"]] for one in kept[part]]
        assert dict(batch.counts(*piece)) == {kind: kinds.count(kind) for kind in set(kinds)}
        sent_mains = [one for one in kept[part] if one["kind"] in MAIN_TYPES]
        of_mains = [stamps[one["chunk"]][one["record"]] for one in sent_mains]
        ages_ms = [max(now_ms - stamp, 0) for stamp in of_mains if stamp >= 0]
        ages = batch.ages(now_ms, [edge / 1000 for edge in edges_ms], *piece)
        assert ages.at_most == [sum(age <= edge for age in ages_ms) for edge in edges_ms]
        assert ages.count == len(ages_ms)
        assert ages.total_seconds == pytest.approx(sum(ages_ms) / 1000)

    batch.let_go()
    assert [one.holders for one in chunks] == [1] * 4
