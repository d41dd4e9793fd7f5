"""A lane merges, orders and bounds: traits end as the stream does, and nothing is held too long or too short."""

from __future__ import annotations

import gc
import re
import tracemalloc
from collections import defaultdict
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from itertools import count, islice
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from streamer.core.account import Account
from streamer.core.aggregate import CALL_OVERHEAD, CLOSED_OVERHEAD, Lane, Merging, open_bytes
from streamer.core.batch import ENVELOPE_BYTES, MAIN_TYPES, Limits
from streamer.core.budget import Budget
from streamer.core.model import CALL_TYPES, Changed, Contribution, Formatted, Main
from streamer.core.offsets import Chunk
from streamer.core.suppression import DIGEST_BYTES, Digests, Suppression
from streamer.core.transform import Transform
from streamer.core.validate import MAX_CALL_BYTES
from streamer.demo.events import generate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streamer.core.batch import Batch

ROOMY = Limits()
SENT_AT = b"2026-11-23T14:00:00.000Z"
NONCE = bytes(range(16))
FILLER = "x" * MAX_CALL_BYTES


def contribution(
    traits: dict[str, Any],
    *,
    user: str | None = "u1",
    anonymous: str | None = "a1",
    group: str | None = None,
    at: int = 0,
    number: int | None = None,
    context: str = "",
) -> Contribution:
    """What the transform makes: `messageId` and, unless they are empty, `traits` at their places."""
    name = f"s1-{at if number is None else number:032x}"
    profile = user or anonymous or ""
    call: dict[str, Any] = {"type": "group" if group else "identify"}
    call |= {"userId": user} if user else {}
    call |= {"anonymousId": anonymous} if anonymous else {}
    call |= {"groupId": group} if group else {}
    call |= {"messageId": name, "timestamp": at, "context": {"filler": context}}
    traits_json = orjson.dumps(traits)
    if traits:
        call["traits"] = orjson.Fragment(traits_json)
    return Contribution(
        type=call["type"],
        profile=(profile, group) if group else profile,
        pair=(user, anonymous),
        call=call,
        traits=traits,
        traits_json=traits_json,
        hash=blake2b(name.encode(), digest_size=16),
    )


def size_of(one: Contribution) -> int:
    return len(orjson.dumps(one.call))


class Bench:
    """A lane with all that it needs, fed one record at a time."""

    def __init__(
        self,
        limits: Limits = ROOMY,
        *,
        merging: Merging | None = None,
        nonce: bytes = NONCE,
    ) -> None:
        self.account = Account()
        self.budget = Budget(1)
        self.ledger = self.account.ledger()
        self.lane = Lane(
            write_key="key",
            limits=limits,
            merging=merging or Merging(),
            nonce=nonce,
            ledger=self.ledger,
            share=self.budget.share(),
        )
        self.chunks: list[Chunk] = []
        self.ids = count()

    def add(self, *contributions: Contribution, kind: str = "track", now: float = 0.0) -> Chunk:
        """Take in a record, in a chunk of its own that is processed with it."""
        number = next(self.ids)
        chunk = Chunk(("events", 0), [number], [1000], [None], read_at=now)
        self.chunks.append(chunk)
        self.ledger.consumed("events", 1, 1)
        main = orjson.dumps({"type": kind, "messageId": f"m{number}"})
        for made in (*(one.type for one in contributions), kind):
            self.ledger.made(made)
        self.lane.add(Formatted(contributions, kind, main), chunk, 0)
        chunk.let_go()
        return chunk

    def close(self) -> Batch:
        """Close what is open and take it, as if it were sent."""
        self.lane.close("time", 0.0)
        return self.lane.ready.popleft()

    def settle(self, batch: Batch) -> None:
        for kind, calls in batch.counts():
            self.ledger.delivered(kind, calls)
        self.lane.settle(batch, 0.0)


def calls(batch: Batch | None) -> list[dict[str, Any]]:
    """The identify and group calls of a batch."""
    assert batch is not None
    return [one for one in map(orjson.loads, batch.calls) if one["type"] in ("identify", "group")]


def traits(batch: Batch | None) -> list[dict[str, Any]]:
    return [one.get("traits", {}) for one in calls(batch)]


def stamps(batch: Batch | None) -> list[int]:
    return [one["timestamp"] for one in calls(batch)]


def test_an_identify_call_stands_before_its_page_or_track_call() -> None:
    bench = Bench()
    bench.add(contribution({"plan": "pro"}), contribution({"size": 3}, group="g1"), kind="page")
    batch = bench.close()
    assert [orjson.loads(one)["type"] for one in batch.calls] == ["identify", "group", "page"]
    assert batch.trigger == "time"


def test_contributions_of_a_profile_merge_key_by_key_and_the_last_says_the_rest() -> None:
    bench = Bench()
    bench.add(contribution({"a": 1, "b": 1}, at=1, context="old"))
    bench.add(contribution({"b": 2, "c": {"deep": [None, "ü"]}}, at=2, context="new"))
    (call,) = calls(bench.close())
    assert call.pop("messageId").startswith("s1-")
    assert call == {
        "type": "identify",
        "userId": "u1",
        "anonymousId": "a1",
        "timestamp": 2,
        "context": {"filler": "new"},
        "traits": {"a": 1, "b": 2, "c": {"deep": [None, "ü"]}},
    }
    assert bench.account.merged["identify"] == 1


def test_traits_that_are_equal_change_only_the_rest() -> None:
    bench = Bench()
    for at in (1, 2, 3):
        bench.add(contribution({"a": 1}, at=at))
    (call,) = calls(bench.lane.open)
    assert (call["traits"], call["timestamp"]) == ({"a": 1}, 3)


def test_no_traits_take_none_away() -> None:
    bench = Bench()
    bench.add(contribution({}, at=1))
    bench.add(contribution({"a": 1}, at=2))
    bench.add(contribution({}, at=3))
    (call,) = calls(bench.lane.open)
    assert (call["traits"], call["timestamp"]) == ({"a": 1}, 3)


def test_a_call_without_traits_has_no_place_for_them() -> None:
    bench = Bench()
    bench.add(contribution({}))
    assert "traits" not in calls(bench.lane.open)[0]


def test_another_pair_stands_behind_and_order_is_kept() -> None:
    bench = Bench()
    for at, anonymous in enumerate(["a1", "a2", "a2", "a1"]):
        bench.add(contribution({"n": at}, anonymous=anonymous, at=at))
    found = [(one["anonymousId"], one["traits"]["n"]) for one in calls(bench.lane.open)]
    assert found == [("a1", 0), ("a2", 2), ("a1", 3)]


def test_profiles_and_groups_do_not_touch_one_another() -> None:
    bench = Bench()
    bench.add(contribution({"n": 1}), contribution({"n": 2}, group="g1"))
    bench.add(contribution({"n": 3}, user="u2"), contribution({"n": 4}, user="u2", group="g1"))
    bench.add(contribution({"n": 5}, group="g2"), contribution({"m": 6}, group="g1"))
    assert traits(bench.lane.open) == [{"n": 1}, {"n": 2, "m": 6}, {"n": 3}, {"n": 4}, {"n": 5}]


@pytest.mark.parametrize(("identify", "group"), [(False, True), (True, False), (False, False)])
def test_what_is_not_to_merge_keeps_its_order(*, identify: bool, group: bool) -> None:
    bench = Bench(merging=Merging(identify=identify, group=group))
    for at in (1, 2):
        bench.add(contribution({"n": at}, at=at), contribution({"n": at}, at=at, group="g1"))
    batch = bench.close()
    bench.add(contribution({"n": 3}, at=3))
    bench.add(contribution({"n": 4}, at=4))
    found = [(one["type"], one["timestamp"]) for one in calls(batch)]
    assert [at for kind, at in found if kind == "identify"] == ([2] if identify else [1, 2])
    assert [at for kind, at in found if kind == "group"] == ([2] if group else [1, 2])
    assert bench.lane.waiting_calls == (1 if identify else 2)


def test_what_comes_while_its_profile_is_in_flight_waits_merges_and_moves_on() -> None:
    bench = Bench()
    bench.add(contribution({"a": 1}, at=1), now=1.0)
    first = bench.close()
    late = bench.add(contribution({"a": 2}, at=2), now=2.0)
    later = bench.add(contribution({"b": 3}, at=3), now=3.0)
    assert calls(bench.lane.open) == []
    assert (bench.lane.waiting_calls, bench.lane.open_profiles) == (1, 1)
    second = bench.close()  # their track calls don't wait
    bench.settle(second)
    assert (late.holders, later.holders) == (1, 1), "held by the call that waits"
    assert bench.lane.open is None
    bench.settle(first)
    assert traits(bench.lane.open) == [{"a": 2, "b": 3}]
    assert (late.holders, later.holders) == (1, 1), "held by the batch now"
    assert bench.lane.waiting_calls == 0
    assert bench.lane.open is not None
    assert bench.lane.open.oldest == 2.0
    bench.settle(bench.close())
    assert bench.lane.idle
    assert [chunk.holders for chunk in bench.chunks] == [0, 0, 0]
    assert bench.budget.used == 0


def long_events(size: int) -> Iterator[bytes]:
    """Events of one visitor each, with so many characters in one attribute and one trait."""
    for number in count():
        yield orjson.dumps(
            {
                "event_type": "read",
                "event_timestamp": 1643673911400,
                "attributes": {"text": "x" * size},
                "endpoint": {"Id": f"visitor-{number}", "Attributes": {"interest": ["y" * size]}},
            }
        )


@pytest.mark.parametrize("size", [None, 1, 300, 3_000, 12_000])
def test_what_the_budget_has_of_calls_is_no_less_than_the_memory_that_they_take(
    size: int | None,
) -> None:
    values = (
        [event.value for event in islice(generate(1), 600)]
        if size is None
        else list(islice(long_events(size), 60))
    )
    bench = Bench(Limits(max_calls=10_000, max_bytes=10**9))
    make = Transform(write_key="key").format
    lane, share = bench.lane, bench.lane.share
    chunk = Chunk(("events", 0), range(len(values)), [0] * len(values), [None] * len(values))
    for kind in CALL_TYPES:
        bench.ledger.made(kind, 10_000)
    held = []

    def take_in() -> None:
        for number, value in enumerate(values):
            formatted = make(value, 0)
            if isinstance(formatted, Formatted):
                lane.add(formatted, chunk, number)

    def measure() -> None:
        gc.collect()
        held.append((share.used, tracemalloc.get_traced_memory()[0] - before))

    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        take_in()
        measure()  # open
        lane.close("time", 0.0)
        measure()  # closed
        take_in()  # what is said of the same visitors waits
        measure()
    finally:
        tracemalloc.stop()
    assert lane.waiting_calls
    for used, real in held:
        assert used > real > 0


def test_a_call_that_moved_on_goes_on_merging() -> None:
    bench = Bench()
    bench.add(contribution({"a": 1}, at=1))
    first = bench.close()
    bench.add(contribution({"a": 2}, at=2))
    bench.settle(first)
    bench.add(contribution({"b": 3}, at=3))
    assert traits(bench.lane.open) == [{"a": 2, "b": 3}]


def test_what_waits_without_room_keeps_waiting_in_order() -> None:
    bench = Bench(Limits(max_calls=3))
    bench.add(contribution({"n": 0}, at=0))
    first = bench.close()
    for at in range(1, 6):
        bench.add(contribution({"n": at}, anonymous=f"a{at}", at=at))
    mains = [bench.lane.ready.popleft(), bench.close()]
    assert bench.lane.waiting_calls == 5
    bench.settle(first)
    second = bench.lane.ready.popleft()
    assert (stamps(second), second.trigger) == ([1, 2, 3], "calls")
    assert bench.lane.waiting_calls == 2
    bench.add(contribution({"n": 6}, anonymous="a5", at=6))  # merges with the last that waits
    assert bench.lane.waiting_calls == 2
    bench.settle(second)
    third = bench.lane.ready.popleft()
    assert (stamps(third), third.trigger) == ([4, 6], "calls")
    for batch in (*mains, third):
        bench.settle(batch)
    assert bench.lane.idle
    assert bench.account.balance() == []
    assert bench.account.in_flight == 0


def test_nothing_overtakes_what_still_waits() -> None:
    """Part of what waited has moved into the open batch; what comes now doesn't merge with that part."""
    bench = Bench(Limits(max_bytes=33_000))
    bench.add(contribution({"n": 0}, at=0))
    first = bench.close()
    bench.add(contribution({"f": FILLER[:20_000]}, anonymous="a1", at=1))
    bench.add(contribution({"f": FILLER[:20_001]}, anonymous="a2", at=2))
    bench.settle(bench.close())
    bench.settle(first)
    assert stamps(bench.lane.open) == [1]
    bench.add(contribution({"f": "short"}, anonymous="a1", at=3))
    assert stamps(bench.lane.open) == [1]
    assert bench.lane.waiting_calls == 2
    bench.settle(bench.close())
    assert stamps(bench.lane.open) == [2, 3]


def test_a_profile_is_not_split_when_its_batch_is_full() -> None:
    """A second call of it that has no room waits, though a new batch would take it."""
    bench = Bench(Limits(max_bytes=33_000))
    bench.add(contribution({"f": FILLER[:20_000]}, at=1))
    bench.add(contribution({"g": FILLER[:20_000]}, at=2))
    assert bench.lane.waiting_calls == 1
    (first,) = bench.lane.ready
    assert (stamps(first), first.trigger) == ([1], "bytes")
    assert calls(bench.lane.open) == []


def sized(total: int, key: str, **arguments: Any) -> Contribution:
    """A contribution whose call has exactly so many bytes."""
    bare = contribution({key: ""}, **arguments)
    full = contribution({key: FILLER[: total - size_of(bare)]}, **arguments)
    assert size_of(full) == total
    return full


@pytest.mark.parametrize(("growth", "merges"), [(0, True), (1, False)])
def test_a_merge_past_32000_bytes_is_not_made(growth: int, *, merges: bool) -> None:
    bench = Bench()
    second = contribution({"b": FILLER[:99]}, at=2)
    # what the second adds to the first: a comma and its traits without their braces
    room = MAX_CALL_BYTES - (len(orjson.dumps({"b": FILLER[:99]})) - 2) - 1
    bench.add(sized(room + growth, "a", at=1))
    bench.add(second)
    sizes = [len(one) for one in bench.close().calls if b'"traits"' in one]
    if merges:
        assert sizes == [MAX_CALL_BYTES]
    else:
        assert sizes == [room + 1, size_of(second)]


def test_a_contribution_without_traits_gets_none_of_a_merge_that_was_not_made() -> None:
    bench = Bench()
    bench.add(sized(31_000, "a", at=1))
    bench.add(contribution({}, at=2, context=FILLER[:5_000]))
    first, second = calls(bench.lane.open)
    assert "traits" not in second
    assert (first["timestamp"], second["timestamp"]) == (1, 2)


def test_a_merge_that_was_not_made_leaves_the_earlier_call_as_it_was() -> None:
    bench, alone = Bench(), Bench()
    for one in (bench, alone):
        one.add(sized(31_000, "a", at=1))
    before = alone.close().calls[0]
    bench.add(contribution({"b": FILLER[:5_000]}, at=2))
    bench.add(contribution({"c": 1}, at=3))
    batch = bench.close()
    assert batch.calls[0] == before
    assert [sorted(one) for one in traits(batch)] == [["a"], ["b", "c"]]


def test_a_merge_past_the_bytes_of_its_batch_is_not_made() -> None:
    bench = Bench(Limits(max_bytes=33_000))
    bench.add(contribution({"a": 1}, at=1))
    filler = contribution({"f": FILLER[:31_000]}, user="u2", at=2)
    bench.add(filler)
    bench.add(contribution({"b": FILLER[:3_000]}, at=3))
    (first,) = bench.lane.ready
    assert stamps(first) == [1, 2]
    assert first.size <= 33_000
    assert bench.lane.waiting_calls == 1


def test_a_full_batch_closes_at_once() -> None:
    bench = Bench(Limits(max_calls=2))
    bench.add(contribution({"a": 1}))
    assert bench.lane.open is None
    assert bench.lane.ready[0].trigger == "calls"


def test_closing_nothing_does_nothing() -> None:
    bench = Bench()
    bench.lane.close("shutdown", 1.0)
    assert bench.lane.idle
    assert not bench.lane.ready


def ids_of(nonce: bytes) -> list[str]:
    """The ids of some calls: one merged, one of the same contributions again, one of another profile."""
    bench = Bench(nonce=nonce)
    found = []
    for _ in range(2):
        bench.add(contribution({"a": 1}, number=1), contribution({"a": 1}, number=2, user="u2"))
        bench.add(contribution({"a": 2}, number=3))
        batch = bench.close()
        found += [one["messageId"] for one in calls(batch)]
        bench.settle(batch)
    return found


def test_the_same_contributions_and_nonce_make_the_same_ids_and_another_nonce_makes_others() -> (
    None
):
    same, other = ids_of(NONCE), ids_of(bytes(16))
    assert same == ids_of(NONCE)
    assert len({*same, *other}) == len(same) + len(other) == 8
    assert all(len(one) == 35 and one.startswith("s1-") for one in same)


def test_traits_that_come_again_are_applied_again() -> None:
    """Kafka may have a record twice; with one id for both Segment would drop the second, and end wrong."""
    bench = Bench()
    seen = {}
    for number, value in ((1, "old"), (2, "new"), (1, "old")):
        bench.add(contribution({"plan": value}, number=number))
        batch = bench.close()
        (call,) = calls(batch)
        assert call["messageId"] not in seen
        seen[call["messageId"]] = call["traits"]
        bench.settle(batch)
    assert list(seen.values()) == [{"plan": "old"}, {"plan": "new"}, {"plan": "old"}]


def test_an_id_tells_every_contribution_apart() -> None:
    found = set()
    for numbers in [(1,), (2,), (1, 2), (1, 3), (2, 1), (1, 2, 3)]:
        bench = Bench()
        for number in numbers:
            bench.add(contribution({"a": 1}, number=number))
        found |= {one["messageId"] for one in calls(bench.lane.open)}
    assert len(found) == 6


# --- any interleaving, against what Segment would end with ------------------------------------------


@dataclass(frozen=True, slots=True)
class Said:
    """A contribution as the model keeps it."""

    one: Contribution
    at: int
    pair: tuple[str | None, str | None]
    traits: dict[str, Any]
    chunk: Chunk
    read_at: float


@dataclass
class Profile:
    """What was said of a profile, in order, how much is settled, and what Segment has, each pair since when."""

    said: list[Said] = field(default_factory=list)
    settled: int = 0
    traits: dict[str, Any] = field(default_factory=dict)
    delivered_at: dict[tuple[str | None, str | None], float] = field(default_factory=dict)


@lru_cache(maxsize=4096)
def parsed(call: bytes) -> dict[str, Any]:
    result: dict[str, Any] = orjson.loads(call)
    return result


def profile_of(call: dict[str, Any]) -> Any:
    profile = call.get("userId") or call["anonymousId"]
    return (profile, call["groupId"]) if call["type"] == "group" else profile


_sizes = st.sampled_from([0] * 9 + [9_000, 16_000, 31_000])
_traits = st.just({"a": 1}) | st.dictionaries(
    st.sampled_from("abcd"), st.integers(0, 3), max_size=3
)
_contributions = st.fixed_dictionaries(
    {
        "traits": _traits,
        "trait_filler": _sizes,
        "filler_key": st.sampled_from("fgh"),
        "context_filler": _sizes,
        "number": st.integers(0, 3),
    }
)
_records = st.fixed_dictionaries(
    {
        "user": st.sampled_from(["u1", "u1", "u1", "u2", None]),
        "anonymous": st.sampled_from(["a1", "a1", "a1", "a2", "a3"]),
        "identify": _contributions,
        "groups": st.lists(
            st.tuples(st.sampled_from(["g1", "g1", "g2"]), _contributions),
            max_size=1,
        ),
        "kind": st.sampled_from(["page", "track"]),
        "size": st.sampled_from([0] * 8 + [14_000, 31_000]),
    }
)


class AnyInterleaving(RuleBasedStateMachine):
    """Records, closings, requests and settlements in any order, through several generations."""

    @initialize(
        max_calls=st.sampled_from([1, 2, 3, 5, 50, 50, 50]),
        max_bytes=st.sampled_from([33_000, 50_000, 475_000]),
        merging=st.sampled_from([Merging(), Merging(), Merging(), Merging(False, False)]),
        suppress_seconds=st.sampled_from([0, 9, 1000, 1000]),
        digests=st.sampled_from([3, 100]),
    )
    def begin(
        self, max_calls: int, max_bytes: int, merging: Merging, suppress_seconds: int, digests: int
    ) -> None:
        self.limits = Limits(max_calls, max_bytes)
        self.merging = merging
        self.suppress_seconds = suppress_seconds
        self.most_digests = digests
        self.account = Account()
        self.budget = Budget(1)
        self.clock = 0
        self.last: dict[str, Any] = {}
        self.seen: set[str] = set()  # by Segment
        self.generation()

    def generation(self) -> None:
        self.ledger = self.account.ledger()
        self.share = self.budget.share()
        self.digests = Digests(self.most_digests * DIGEST_BYTES, self.share)
        suppression = Suppression(
            self.digests,
            write_key="key",
            seconds=self.suppress_seconds,
            ignore_traits=frozenset(),
        )
        self.lane = Lane(
            write_key="key",
            limits=self.limits,
            merging=self.merging,
            nonce=self.clock.to_bytes(16),
            ledger=self.ledger,
            share=self.share,
            suppression=suppression if self.suppress_seconds else None,
        )
        self.in_flight: list[Batch] = []
        self.profiles: dict[Any, Profile] = defaultdict(Profile)
        self.groups: dict[str, dict[str, Any]] = defaultdict(
            dict
        )  # the traits that Segment has of each
        self.mains: dict[str, tuple[Chunk, float]] = {}  # by id, while they aren't settled
        self.chunks: list[Chunk] = []

    # --- what happens ---

    @rule(records=st.lists(_records, min_size=1, max_size=3))
    def read(self, records: list[dict[str, Any]]) -> None:
        """A chunk is read, noted and processed."""
        self.last = records[-1]
        first = self.clock
        numbers = range(first, first + len(records))
        stamps, keys = [1000] * len(records), [None] * len(records)
        chunk = Chunk(("events", 0), numbers, stamps, keys, read_at=float(self.clock))
        self.chunks.append(chunk)
        self.ledger.consumed("events", len(records), 1)
        for number, record in enumerate(records):
            self.clock += 1
            contributions = [self.say(record, None, record["identify"], chunk)]
            contributions += [
                self.say(record, group, says, chunk) for group, says in record["groups"]
            ]
            main = {
                "type": record["kind"],
                "messageId": f"m{self.clock}",
                "properties": {"f": FILLER[: record["size"]]},
            }
            formatted = Formatted(tuple(contributions), record["kind"], orjson.dumps(main))
            self.mains[f"m{self.clock}"] = (chunk, chunk.read_at)
            for made in (*(one.type for one in contributions), record["kind"]):
                self.ledger.made(made)
            before = dict(self.account.suppressed)
            self.lane.add(formatted, chunk, number)
            assert chunk.holders > 1
            for one in contributions:
                if (
                    self.account.suppressed[one.type] > before[one.type]
                ):  # a record has one of each at most
                    self.left_out(one)
        chunk.let_go()

    def left_out(self, one: Contribution) -> None:
        """Segment has it all, nothing is on its way, and it isn't long ago that it was told."""
        profile = self.profiles[one.profile]
        said = profile.said.pop()
        assert said.one is one
        assert profile.settled == len(profile.said)
        for known in (
            profile.traits,
            *([self.groups[one.profile[1]]] if one.type == "group" else []),
        ):
            assert known | said.traits == known
        assert said.read_at - profile.delivered_at[said.pair] < self.suppress_seconds
        if one.type == "group":
            for key, other in self.profiles.items():
                if key[1:] == one.profile[1:]:
                    assert all(s.traits == said.traits for s in other.said[other.settled :])

    def say(
        self, record: dict[str, Any], group: str | None, says: dict[str, Any], chunk: Chunk
    ) -> Contribution:
        traits_ = dict(says["traits"])
        if says["trait_filler"]:
            traits_[says["filler_key"]] = FILLER[: says["trait_filler"]]
        context = says["context_filler"] if says["trait_filler"] < 10_000 else 0
        one = contribution(
            traits_,
            user=record["user"],
            anonymous=record["anonymous"],
            group=group,
            at=self.clock,
            number=says["number"],
            context=FILLER[: min(context, 20_000)],
        )
        assert size_of(one) <= MAX_CALL_BYTES
        said = Said(one, self.clock, one.pair, traits_, chunk, chunk.read_at)
        self.profiles[one.profile].said.append(said)
        return one

    @rule()
    def close(self) -> None:
        had = self.lane.open
        self.lane.close("time", float(self.clock))
        assert self.lane.open is None
        if had is not None:
            assert self.lane.ready[-1] is had
            assert (had.trigger, had.closed_at) == ("time", float(self.clock))

    @precondition(lambda self: self.lane.ready)
    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        place = data.draw(st.integers(0, len(self.lane.ready) - 1))
        batch = self.lane.ready[place]
        del self.lane.ready[place]
        self.in_flight.append(batch)

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        self.deliver(self.in_flight.pop(data.draw(st.integers(0, len(self.in_flight) - 1))))

    @precondition(lambda self: self.last)
    @rule()
    def come_again(self) -> None:
        """Once all is settled, a visitor says the same as before."""
        self.settle_all()
        self.read([self.last])

    @rule()
    def settle_all(self) -> None:
        """All that is open or in flight is settled; what waited for it may be open then."""
        self.lane.close("time", float(self.clock))
        self.in_flight += self.lane.ready
        self.lane.ready.clear()
        while self.in_flight:
            self.deliver(self.in_flight.pop(0))

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        """The generation ends; what is in flight completes late, and counts nowhere."""
        if data.draw(st.integers(0, 9)):
            return  # generations are seldom that short
        self.ledger.end()
        self.share.end()
        assert self.budget.used == 0
        late = (self.account.delivered, self.account.released, dict(self.account.calls_delivered))
        for batch in self.in_flight:
            for kind, number in batch.counts():
                self.ledger.delivered(kind, number)
            self.lane.settle(batch, float(self.clock))
        now = (self.account.delivered, self.account.released, dict(self.account.calls_delivered))
        assert now == late
        assert self.budget.used == 0
        assert self.account.balance() == []
        assert self.account.in_flight == 0
        self.generation()

    # --- what Segment would do with it ---

    def deliver(self, batch: Batch) -> None:
        """Segment accepts a batch, whose calls are then held against what was said."""
        self.check_limits(batch)
        read: list[float] = []
        previous: dict[Any, tuple[list[Said], dict[str, Any]]] = {}
        for place, call in enumerate(map(parsed, batch.calls)):
            assert len(batch.calls[place]) <= MAX_CALL_BYTES
            assert call["messageId"] not in self.seen, "Segment would drop it"
            self.seen.add(call["messageId"])
            if batch.types[place] in MAIN_TYPES:
                read.append(self.mains.pop(call["messageId"])[1])
                continue
            key = profile_of(call)
            profile = self.profiles[key]
            run = self.run(profile, call)
            assert batch.chunks[batch.chunk_numbers[place]] is run[-1].chunk
            offsets = run[-1].chunk.offsets
            assert offsets[batch.records[place]] == run[-1].at - 1
            read.append(run[0].read_at)
            if key in previous:
                self.check_apart(*previous[key], run)
            previous[key] = run, call
            profile.settled += len(run)
            profile.traits |= call.get("traits", {})
            profile.delivered_at[run[-1].pair] = float(self.clock)
            if call["type"] == "group":
                self.groups[call["groupId"]] |= call.get("traits", {})
        assert batch.oldest == min(read)
        for kind, number in batch.counts():
            self.ledger.delivered(kind, number)
        self.lane.settle(batch, float(self.clock))

    def run(self, profile: Profile, call: dict[str, Any]) -> list[Said]:
        """Find which contributions a call stands for: the next ones, up to that whose time it has."""
        ends = [said.at for said in profile.said].index(call["timestamp"], profile.settled)
        run = profile.said[profile.settled : ends + 1]
        last = run[-1]
        merges = self.merging.group if call["type"] == "group" else self.merging.identify
        assert len(run) == 1 or merges
        assert {said.pair for said in run} == {(call.get("userId"), call.get("anonymousId"))}
        laid: dict[str, Any] = {}
        for said in run:
            laid |= said.traits
        assert call.get("traits", {}) == laid
        names = set(call) - {"traits", "messageId"}
        assert {n: call[n] for n in names} == {
            n: value for n, value in last.one.call.items() if n not in ("traits", "messageId")
        }
        return run

    def check_apart(self, before: list[Said], call: dict[str, Any], after: list[Said]) -> None:
        """Two calls of a profile stand in one batch only for a reason."""
        merges = self.merging.group if call["type"] == "group" else self.merging.identify
        if not merges or before[0].pair != after[0].pair or self.limits.max_bytes < 475_000:
            return
        laid = call.get("traits", {}) | after[0].traits
        together = {**after[0].one.call, **({"traits": laid} if laid else {})}
        assert len(orjson.dumps(together)) > MAX_CALL_BYTES

    # --- what holds after every step ---

    def batches(self) -> list[Batch]:
        unclosed = [self.lane.open] if self.lane.open else []
        return [*unclosed, *self.lane.ready, *self.in_flight]

    def check_limits(self, batch: Batch) -> None:
        assert 0 < len(batch) <= self.limits.max_calls
        assert ENVELOPE_BYTES < batch.size <= self.limits.max_bytes
        assert len(batch.body(SENT_AT)) == batch.size

    @invariant()
    def limits_hold(self) -> None:
        for batch in self.batches():
            assert 0 < len(batch) <= self.limits.max_calls
            assert batch.size <= self.limits.max_bytes
        assert self.lane.open is None or len(self.lane.open) < self.limits.max_calls

    @invariant()
    def the_calls_of_a_profile_stand_in_one_batch(self) -> None:
        where: dict[Any, set[int]] = defaultdict(set)
        for batch in self.batches():
            for kind, call in zip(batch.types, batch.calls, strict=True):
                if kind not in MAIN_TYPES:
                    where[profile_of(parsed(call))].add(id(batch))
        assert all(len(batches) == 1 for batches in where.values())
        unsettled = {key for key, one in self.profiles.items() if one.settled < len(one.said)}
        assert set(where) == unsettled, "what waits, waits behind something"
        assert self.lane.open_profiles == len(unsettled)

    @invariant()
    def everything_is_accounted_for(self) -> None:
        assert self.account.balance() == []
        assert self.account.in_flight == self.ledger.records == len(self.mains)
        in_batches = sum(map(len, self.batches()))
        assert sum(self.ledger.calls.values()) == in_batches + self.lane.waiting_calls

    @invariant()
    def a_chunk_is_held_until_everything_of_it_is_settled(self) -> None:
        unsettled = {chunk for chunk, _ in self.mains.values()}
        for profile in self.profiles.values():
            unsettled |= {said.chunk for said in profile.said[profile.settled :]}
        for chunk in self.chunks:
            assert (chunk.holders > 0) == (chunk in unsettled)

    @invariant()
    def the_budget_has_every_call(self) -> None:
        used = DIGEST_BYTES * len(self.digests)
        assert len(self.digests) <= self.most_digests
        for batch in self.batches():
            for kind, call in zip(batch.types, batch.calls, strict=True):
                if kind in MAIN_TYPES:
                    used += len(call) + CALL_OVERHEAD
                elif batch.trigger:
                    used += len(call) + CALL_OVERHEAD + CLOSED_OVERHEAD
                else:
                    used += open_bytes(len(call))
        for waiting in self.lane._waiting.values():
            used += sum(open_bytes(len(one.data)) for one in waiting)
        assert self.share.used == self.budget.used == used

    @invariant()
    def it_is_idle_when_nothing_is_left(self) -> None:
        # delivery keeps count of what is in flight
        assert (self.lane.idle and not self.in_flight) == (not self.batches())

    def teardown(self) -> None:
        """Everything is sent; each profile ends as the stream did."""
        if not hasattr(self, "lane"):
            return
        for _ in range(10_000):
            self.lane.close("shutdown", float(self.clock))
            self.in_flight += self.lane.ready
            self.lane.ready.clear()
            if not self.in_flight:
                break
            self.deliver(self.in_flight.pop(0))
        assert self.lane.idle
        assert not self.mains
        for profile in self.profiles.values():
            assert profile.settled == len(profile.said)
            laid: dict[str, Any] = {}
            for said in profile.said:
                laid |= said.traits
            assert profile.traits == laid
        assert [chunk.holders for chunk in self.chunks] == [0] * len(self.chunks)
        assert self.budget.used == DIGEST_BYTES * len(self.digests)
        assert self.lane.waiting_calls == self.account.in_flight == 0
        assert not any(self.account.calls_in_flight.values())
        assert self.account.balance() == []


TestAnyInterleaving = AnyInterleaving.TestCase
TestAnyInterleaving.settings = settings(
    deadline=None,
    max_examples=60,
    stateful_step_count=30,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # to shrink takes longer than a test may
)


# --- calls that site code has had in its hands -------------------------------------------------


@pytest.mark.parametrize("limits", [ROOMY, Limits(max_calls=3), Limits(max_bytes=700)])
def test_changed_calls_go_the_same_way_as_those_of_the_short_path(limits: Limits) -> None:
    def sent(*, changed: bool) -> tuple[list[tuple[str | None, list[bytes]]], Account]:
        bench = Bench(limits)
        for number in range(12):
            one = contribution({"n": number}, user=f"u{number % 3}", at=number)
            two = contribution({"n": number}, user=f"u{number % 3}", group="g", at=number)
            if not changed:
                bench.add(one, two)
                continue
            chunk = Chunk(("events", 0), [number], [1000], [None])
            bench.ledger.consumed("events", 1, 1)
            for kind in ("identify", "group", "track"):
                bench.ledger.made(kind)
            data = orjson.dumps({"type": "track", "messageId": f"m{number}"})
            bench.lane.add_changed(Changed((one, two, Main("track", data, True))), chunk, 0)
            chunk.let_go()
        batches = []
        while not bench.lane.idle:
            batch = bench.lane.ready.popleft() if bench.lane.ready else bench.close()
            batches.append((batch.trigger, list(batch.calls)))
            bench.settle(batch)
        assert bench.account.balance() == []
        assert bench.budget.used == 0
        return batches, bench.account

    (short, account), (long, other) = sent(changed=False), sent(changed=True)
    assert long == short
    assert other == account
    assert other.delivered == 12


def test_only_the_call_that_decides_delivers_its_record() -> None:
    bench = Bench()
    chunk = Chunk(("events", 0), [0, 1], [1000, 2000], [None, None], read_at=5.0)
    bench.ledger.consumed("events", 2, 2)
    data = orjson.dumps({"type": "page"})
    first = Main("page", data, decides=False)
    for kind in ("page", "page", "track", "identify"):
        bench.ledger.made(kind)
    calls = (first, first, Main("track", orjson.dumps({"type": "track"}), decides=True))
    bench.lane.add_changed(Changed(calls), chunk, 0)
    bench.lane.add_changed(Changed((contribution({"a": 1}),)), chunk, 1)
    chunk.on_settled = lambda: bench.ledger.settled(1)
    chunk.let_go()
    batch = bench.close()
    assert batch.counts() == [("identify", 1), ("page", 2), ("track", 1)]
    assert [batch.further(kind) for kind in ("page", "track")] == [2, 0]
    assert (batch.mains, batch.read_sum) == (1, 5.0)
    assert batch.ages(3000, [5.0]).count == 1
    assert [batch.decides(place) for place in range(4)] == [False, False, True, False]
    assert [batch.kind(place) for place in range(4)] == ["page", "page", "track", "identify"]
    for kind, number in batch.counts():
        bench.ledger.delivered(kind, number, batch.further(kind))
    assert (bench.account.delivered, bench.account.in_flight) == (1, 1)
    bench.lane.settle(batch, 0.0)
    assert (bench.account.delivered, bench.account.in_flight) == (2, 0), "with its chunk"
    assert bench.account.balance() == []
    assert bench.budget.used == 0


# --- limits that change ---------------------------------------------------------------------------


def test_an_open_batch_that_has_reached_its_new_limits_closes() -> None:
    for limits, trigger in ((Limits(3, 475_000), "calls"), (Limits(2500, 33_000), "bytes")):
        bench = Bench()
        for at in range(3):
            bench.add(contribution({"a": "x" * 15_000}, user=f"u{at}"))
        bench.lane.limit(limits, 1.0)
        assert [batch.trigger for batch in bench.lane.ready] == [trigger]
        bench.settle(bench.lane.ready.popleft())
        assert bench.lane.idle


def test_an_open_batch_goes_on_under_its_new_limits() -> None:
    bench = Bench(Limits(2, 475_000))
    bench.add()
    bench.lane.limit(Limits(4, 475_000), 0.0)
    for _ in range(2):
        bench.add()
    assert not bench.lane.ready
    bench.add()
    assert [len(batch) for batch in bench.lane.ready] == [4]


def test_batches_have_names_that_no_other_has_and_that_tell_nothing() -> None:
    """Of 3,000 batches, a thousand of each of three lanes; with the same nonce they are the same."""

    def names(nonce: bytes) -> list[str]:
        bench = Bench(Limits(max_calls=1), nonce=nonce)
        for _ in range(1000):
            bench.add()
        return [batch.name for batch in bench.lane.ready]

    nonces = [bytes([number]) * 16 for number in range(3)]
    all_names = [name for nonce in nonces for name in names(nonce)]
    assert len(set(all_names)) == 3000
    assert all(re.fullmatch("[0-9a-f]{10}", name) for name in all_names)
    assert not any(nonces[2].hex()[:6] in name for name in names(nonces[2]))
    assert names(nonces[1]) == names(nonces[1])
