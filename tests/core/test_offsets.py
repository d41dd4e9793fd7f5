"""The committable offset never passes an unsettled record, never goes back, and reaches the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import permutations
from typing import TYPE_CHECKING

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

from streamer.core.budget import Budget
from streamer.core.offsets import Chunk, Offsets

if TYPE_CHECKING:
    import random

P = ("events", 0)
PARTITIONS = (P, ("events", 1), ("others", 0))


def chunk(*offsets: int, partition: tuple[str, int] = P, stamps: tuple[int, ...] = ()) -> Chunk:
    times = stamps or tuple(1000 + offset for offset in offsets)
    return Chunk(partition, offsets, times, [None] * len(offsets))


def test_a_chunk_is_settled_when_its_last_holder_lets_go() -> None:
    one = chunk(3, 4, 7)
    assert (len(one), one.holders, one.next_position) == (3, 1, 8)
    one.hold()
    one.let_go()
    assert one.holders == 1
    one.let_go()
    assert one.holders == 0


def test_a_settled_chunk_can_be_neither_held_nor_let_go() -> None:
    one = chunk(3)
    one.let_go()
    with pytest.raises(RuntimeError, match=r"\('events', 0\) at 3: let go once too often"):
        one.let_go()
    with pytest.raises(RuntimeError, match=r"\('events', 0\) at 3: held after it was settled"):
        one.hold()
    assert one.holders == 0


def test_nothing_is_committable_before_anything_is_known() -> None:
    offsets = Offsets()
    assert offsets.committable(P) is None
    one = chunk(3)
    offsets.add(one)
    assert offsets.committable(P, position=4) is None
    one.let_go()
    assert offsets.committable(P) == 4


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_whatever_the_order_of_completion_only_the_settled_prefix_is_committable(
    order: tuple[int, ...],
) -> None:
    chunks = [chunk(0, 1), chunk(2), chunk(5, 9), chunk(10)]
    offsets = Offsets()
    for one in chunks:
        offsets.add(one)
    for done, number in enumerate(order, start=1):
        chunks[number].let_go()
        finished = set(order[:done])
        prefix = next((n for n in range(4) if n not in finished), 4)
        assert offsets.committable(P, position=11) == (None, 2, 3, 10, 11)[prefix]
        assert offsets.pending() == 4 - done


def test_gaps_and_control_records_move_what_is_committable_once_all_is_settled() -> None:
    offsets = Offsets()
    one = chunk(0, 4)
    offsets.add(one)
    one.let_go()
    assert offsets.committable(P, position=None) == 5
    assert offsets.committable(P, position=9) == 9
    assert offsets.committable(P, position=8) == 9


def test_an_offset_that_control_records_moved_does_not_go_back_when_more_is_read() -> None:
    offsets = Offsets()
    one = chunk(0)
    offsets.add(one)
    one.let_go()
    assert offsets.committable(P, position=3) == 3
    offsets.add(chunk(3))
    assert offsets.committable(P, position=4) == 3
    assert offsets.committable(P, position=None) == 3


def test_a_partition_without_records_is_committable_at_its_position() -> None:
    assert Offsets().committable(P, position=7) == 7


def test_partitions_do_not_touch_one_another() -> None:
    offsets = Offsets()
    here, there = chunk(0), chunk(0, partition=("events", 1))
    offsets.add(here)
    offsets.add(there)
    there.let_go()
    assert offsets.committable(P, 1) is None
    assert offsets.committable(("events", 1), 1) == 1


def test_what_was_read_is_not_read_again() -> None:
    offsets = Offsets()
    offsets.add(chunk(5, 6))
    with pytest.raises(RuntimeError, match=r"\('events', 0\): read 6 after 6"):
        offsets.add(chunk(6))
    offsets.add(chunk(7))


def test_what_was_said_to_be_committable_is_not_read_after_it() -> None:
    offsets = Offsets()
    one = chunk(0)
    offsets.add(one)
    one.let_go()
    assert offsets.committable(P, 1) == 1
    with pytest.raises(RuntimeError, match="read 0 after 0"):
        offsets.add(chunk(0))


def test_the_oldest_timestamp_is_that_of_the_oldest_unsettled_chunk() -> None:
    offsets = Offsets()
    assert offsets.oldest_timestamp() is None
    first, second = chunk(0, stamps=(500,)), chunk(1, stamps=(400,))
    other = chunk(0, partition=("events", 1), stamps=(450,))
    for one in (first, second, other):
        offsets.add(one)
    assert offsets.oldest_timestamp() == 450
    other.let_go()
    assert offsets.oldest_timestamp() == 500
    first.let_go()
    assert offsets.oldest_timestamp() == 400
    second.let_go()
    assert offsets.oldest_timestamp() is None


def test_a_record_without_a_timestamp_is_not_the_oldest() -> None:
    offsets = Offsets()
    offsets.add(chunk(0, stamps=(-1,)))
    assert offsets.oldest_timestamp() is None
    offsets.add(chunk(1, stamps=(600,)))
    assert offsets.oldest_timestamp() == 600


# --- in any order, against a model that keeps every record ------------------------------------------


@dataclass
class Log:
    """A partition as the model sees it: each record's chunk, by offset, and what was said before."""

    records: dict[int, Chunk] = field(default_factory=dict)
    position: int = 0
    said: int | None = None


class AnyOrder(RuleBasedStateMachine):
    """Chunks of several partitions, held and let go in any order, through several generations."""

    @initialize()
    def begin(self) -> None:
        self.holders: list[Chunk] = []  # a chunk as often as it is held
        self.generation()

    def generation(self) -> None:
        self.offsets = Offsets()
        self.logs = {partition: Log() for partition in PARTITIONS}

    @rule(
        partition=st.sampled_from(PARTITIONS),
        gaps=st.lists(st.integers(0, 3), min_size=1, max_size=4),
        holders=st.integers(0, 3),
    )
    def read(self, partition: tuple[str, int], gaps: list[int], holders: int) -> None:
        log = self.logs[partition]
        offsets = []
        for gap in gaps:
            offsets.append(log.position + gap)
            log.position += gap + 1
        one = chunk(*offsets, partition=partition)
        self.offsets.add(one)
        log.records |= dict.fromkeys(offsets, one)
        self.holders.append(one)
        for _ in range(holders):
            one.hold()
            self.holders.append(one)

    @rule(partition=st.sampled_from(PARTITIONS), records=st.integers(1, 3))
    def pass_control_records(self, partition: tuple[str, int], records: int) -> None:
        self.logs[partition].position += records

    @precondition(lambda self: self.holders)
    @rule(data=st.data(), again=st.booleans())
    def let_go(self, data: st.DataObject, again: bool) -> None:
        one = self.holders.pop(data.draw(st.integers(0, len(self.holders) - 1)))
        if again:  # a new holder is added before the old one leaves
            one.hold()
            self.holders.append(one)
        one.let_go()

    @rule(partition=st.sampled_from(PARTITIONS), known=st.booleans())
    def commit(self, partition: tuple[str, int], known: bool) -> None:
        log = self.logs[partition]
        said = self.offsets.committable(partition, log.position if known else None)
        unsettled = [offset for offset, one in log.records.items() if one.holders]
        settled = [offset + 1 for offset, one in log.records.items() if not one.holders]
        expected = log.said
        if unsettled:
            # A chunk is settled as a whole, so the first unsettled record begins one.
            behind = max((o for o in settled if o <= min(unsettled)), default=None)
        else:
            behind = max([*settled, *([log.position] if known else [])], default=None)
        if behind is not None:
            expected = max(behind, expected or 0)
        assert said == expected
        if said is not None:
            assert all(said <= offset for offset in unsettled)
            assert log.said is None or said >= log.said
        log.said = said

    @rule()
    def revoke(self) -> None:
        """The deques are thrown away; who holds a chunk lets go of it later."""
        self.generation()

    @invariant()
    def pending_counts_the_unsettled(self) -> None:
        chunks = {one for log in self.logs.values() for one in log.records.values() if one.holders}
        assert self.offsets.pending() == len(chunks)
        assert (self.offsets.oldest_timestamp() is None) == (not chunks)

    def teardown(self) -> None:
        while self.holders:
            self.holders.pop().let_go()
        for partition, log in self.logs.items():
            end = self.offsets.committable(partition, log.position)
            assert end == max(log.position, log.said or 0)
        assert self.offsets.pending() == 0


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(deadline=None, max_examples=60, stateful_step_count=40)


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=8),
    order=st.randoms(use_true_random=False),
)
def test_the_end_is_reached_exactly_with_the_last_chunk(
    sizes: list[int], order: random.Random
) -> None:
    """With commits after every completion, or only after the last one, the end is the same."""
    offsets, silent = Offsets(), Offsets()
    pairs, position = [], 0
    for size in sizes:
        span = range(position, position + size)
        position += size
        pairs.append((chunk(*span), chunk(*span)))
        offsets.add(pairs[-1][0])
        silent.add(pairs[-1][1])
    order.shuffle(pairs)
    for number, (one, other) in enumerate(pairs, start=1):
        one.let_go()
        other.let_go()
        assert (offsets.committable(P, position) == position) == (number == len(pairs))
    assert silent.committable(P, position) == position


def test_what_a_chunk_keeps_is_held_of_the_budget_until_all_have_let_go() -> None:
    """A key may be as large as a value."""
    share = Budget(10**9).share()
    kept = Chunk(P, [5, 6], [1, 2], [b"k" * 900_000, None], share)
    assert share.used >= 900_000
    kept.hold()
    kept.let_go()
    assert share.used >= 900_000
    kept.let_go()
    assert share.used == 0
