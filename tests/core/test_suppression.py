"""What is left out says nothing new: with it and without it, profiles and groups end the same."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from core.test_aggregate import NONCE, contribution
from streamer.core.account import Account
from streamer.core.aggregate import Lane, Merging
from streamer.core.batch import Limits
from streamer.core.budget import Budget
from streamer.core.model import Changed, Contribution, Formatted, Main
from streamer.core.offsets import Chunk
from streamer.core.suppression import DIGEST_BYTES, Digests, Suppression

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from streamer.core.batch import Batch

HOUR = 3600.0


class Bench:
    """A lane that leaves out what says nothing new for an hour, fed one record at a time."""

    def __init__(
        self,
        *,
        ignore: Iterable[str] = (),
        limit_bytes: int = 1_000_000,
        write_key: str = "key",
        digests: Digests | None = None,
    ) -> None:
        self.now = 0.0
        self.account = Account()
        self.budget = Budget(1)
        self.ledger, share = self.account.ledger(), self.budget.share()
        self.digests = Digests(limit_bytes, share) if digests is None else digests
        self.lane = Lane(
            write_key=write_key,
            limits=Limits(),
            merging=Merging(),
            nonce=NONCE,
            ledger=self.ledger,
            share=share,
            suppression=Suppression(
                self.digests, write_key=write_key, seconds=HOUR, ignore_traits=frozenset(ignore)
            ),
        )

    def add(self, *contributions: Contribution) -> Chunk:
        chunk = Chunk(("events", 0), [0], [1000], [None], read_at=self.now)
        self.ledger.consumed("events", 1, 1)
        for kind in (*(one.type for one in contributions), "track"):
            self.ledger.made(kind)
        self.lane.add(Formatted(contributions, "track", b'{"type":"track"}'), chunk, 0)
        chunk.let_go()
        return chunk

    def take(self) -> Batch:
        self.lane.close("time", self.now)
        return self.lane.ready.popleft()

    def settle(self, batch: Batch, *, refused: Iterable[int] = ()) -> None:
        """Segment accepts a batch but for some calls, each refused alone."""
        for place in refused:
            self.lane.refused(batch, place)
            self.ledger.refused(batch.kind(place), None)
        for kind, calls in batch.counts():
            self.ledger.delivered(kind, calls - sum(batch.kind(place) == kind for place in refused))
        self.lane.settle(batch, self.now)

    def send(self, *contributions: Contribution) -> list[dict[str, Any]]:
        """Deliver one record by itself, and give the identify and group calls that were sent."""
        self.add(*contributions)
        batch = self.take()
        self.settle(batch)
        assert self.account.balance() == []
        return [call for call in map(orjson.loads, batch.calls) if call["type"] != "track"]


def test_what_was_delivered_last_is_left_out_and_counted() -> None:
    bench = Bench()
    assert len(bench.send(contribution({"plan": "A"}), contribution({"size": 3}, group="g"))) == 2
    assert (
        bench.send(contribution({"plan": "A"}, at=1), contribution({"size": 3}, group="g", at=1))
        == []
    )
    suppressed = {kind: n for kind, n in bench.account.suppressed.items() if n}
    assert suppressed == {"identify": 1, "group": 1}
    assert bench.account.delivered == 2
    assert bench.lane.idle


def test_traits_a_then_b_then_a_again_are_all_sent() -> None:
    bench = Bench()
    sent = [bench.send(contribution({"plan": plan}, at=at)) for at, plan in enumerate("ABABB")]
    assert [len(calls) for calls in sent] == [1, 1, 1, 1, 0]


def test_nothing_is_left_out_while_something_of_its_profile_is_pending() -> None:
    """A is delivered, B in flight or being retried: an A that comes then has to follow it."""
    bench = Bench()
    bench.send(contribution({"plan": "A"}))
    bench.add(contribution({"plan": "B"}))
    retried = bench.take()
    chunk = bench.add(contribution({"plan": "A"}))
    assert bench.lane.waiting_calls == 1
    assert chunk.holders == 2, "the batch of its track call, and the call that waits"
    bench.settle(retried)
    bench.settle(bench.take())
    assert bench.account.suppressed["identify"] == 0
    assert bench.send(contribution({"plan": "A"})) == [], "it was delivered last"


def test_what_was_merged_counts_by_its_last_contribution() -> None:
    bench = Bench()
    bench.add(contribution({"plan": "A"}))
    bench.send(contribution({"size": 1}))
    assert bench.send(contribution({"size": 1})) == []
    assert len(bench.send(contribution({"plan": "A"}))) == 1


def test_what_is_left_out_holds_no_chunk() -> None:
    """Its record is settled with its main call; without one, when its chunk is processed."""
    bench = Bench()
    bench.send(contribution({"plan": "A"}))
    chunk = bench.add(contribution({"plan": "A"}))
    assert chunk.holders == 1
    bench.settle(bench.take())
    assert chunk.holders == 0
    alone = Chunk(("events", 0), [0], [1000], [None])
    bench.ledger.made("identify")
    bench.lane.add_changed(Changed((contribution({"plan": "A"}),)), alone, 0)
    alone.let_go()
    assert alone.holders == 0
    assert bench.lane.idle
    assert bench.account.balance() == []


def test_calls_that_site_code_had_in_its_hands_are_left_out_too() -> None:
    bench = Bench()
    for _ in range(2):
        chunk = Chunk(("events", 0), [0], [1000], [None])
        bench.ledger.consumed("events", 1, 1)
        bench.ledger.made("identify")
        bench.ledger.made("track")
        main = Main("track", b'{"type":"track"}', decides=True)
        bench.lane.add_changed(Changed((contribution({"plan": "A"}), main)), chunk, 0)
        chunk.let_go()
        batch = bench.take()
        bench.settle(batch)
    assert len(batch) == 1
    assert bench.account.suppressed["identify"] == 1
    assert bench.account.delivered == 2


def test_it_is_sent_again_once_its_time_is_over() -> None:
    """The time counts from the delivery; what is left out doesn't prolong it."""
    bench = Bench()
    bench.send(contribution({"plan": "A"}))
    for bench.now in (1000.0, 2000.0, HOUR - 1):
        assert bench.send(contribution({"plan": "A"})) == []
    for bench.now in (HOUR, HOUR * 2 + 1):
        assert len(bench.send(contribution({"plan": "A"}))) == 1
    assert bench.send(contribution({"plan": "A"})) == []


def test_the_time_counts_from_each_pairs_own_delivery() -> None:
    """Though what another device says keeps the profile on its way for long after."""
    bench = Bench()
    bench.add(contribution({"plan": "A"}, anonymous="a1"))
    batch = bench.take()
    bench.add(contribution({"plan": "A"}, anonymous="a2"))
    bench.settle(batch)
    bench.now = HOUR
    bench.settle(bench.take())
    assert len(bench.send(contribution({"plan": "A"}, anonymous="a1"))) == 1


def test_each_pair_is_sent_and_then_left_out() -> None:
    """Two devices of one user: Segment needs each pair once, and the traits go by the user."""
    bench = Bench()
    for expected in (1, 0):
        for device in ("a1", "a2", None):
            calls = bench.send(contribution({"plan": "A"}, anonymous=device))
            assert len(calls) == expected
    assert len(bench.send(contribution({"plan": "B"}, anonymous="a2"))) == 1
    assert len(bench.send(contribution({"plan": "A"}, anonymous="a1"))) == 1, "B was the last"


def test_an_anonymous_id_that_had_another_user_is_sent() -> None:
    """Who logs out and in again was somebody else between; so were two users on one device."""
    bench = Bench()
    for user in ("u1", None, "u1", "u2", "u1"):
        assert len(bench.send(contribution({"plan": "A"}, user=user))) == 1
    assert bench.send(contribution({"plan": "A"})) == []


def test_ten_thousand_guests_under_one_user_id() -> None:
    bench = Bench(limit_bytes=20_000 * DIGEST_BYTES)
    for expected in (10_000, 0):
        sent = 0
        for start in range(0, 10_000, 500):
            for number in range(start, start + 500):
                bench.add(contribution({"role": "guest"}, user="guest", anonymous=f"a{number}"))
            batch = bench.take()
            bench.settle(batch)
            sent += batch.types.count(0)
        assert sent == expected
    assert len(bench.digests) == 10_001
    bench.send(contribution({"role": "member"}, user="guest", anonymous="a7"))
    assert len(bench.send(contribution({"role": "guest"}, user="guest", anonymous="a8"))) == 1


def test_anything_else_that_changes_is_a_reason_to_send() -> None:
    """All of a call counts but its id and its times."""
    bench = Bench()
    bench.send(contribution({"plan": "A"}, context="old"))
    assert len(bench.send(contribution({"plan": "A"}, context="new"))) == 1
    again = contribution({"plan": "A"}, context="new", at=5)
    again.call["receivedAt"] = "2026-11-23T14:00:00.000Z"
    assert bench.send(again) == []


def test_a_change_of_ignored_traits_alone_is_no_reason_to_send() -> None:
    bench = Bench(ignore=["lastSession", "pageViews"])
    assert len(bench.send(contribution({"plan": "A", "pageViews": 1}))) == 1
    assert bench.send(contribution({"plan": "A", "pageViews": 2})) == []
    assert bench.send(contribution({"plan": "A", "lastSession": "s2"})) == []
    (call,) = bench.send(contribution({"plan": "B", "pageViews": 3}))
    assert call["traits"] == {"plan": "B", "pageViews": 3}, "they go out with what is sent"


def test_a_group_call_is_left_out_only_if_the_groups_last_traits_are_these() -> None:
    bench = Bench()

    def send(user: str, size: int) -> int:
        one = contribution({"size": size}, user=user, anonymous=f"a-{user}", group="g")
        return len(bench.send(one))

    assert [send("u1", 1), send("u2", 1)] == [1, 1], "each is a member of its own"
    assert [send("u1", 1), send("u2", 1)] == [0, 0]
    assert [send("u2", 2), send("u1", 1)] == [1, 1], "whichever user said it"
    assert send("u2", 2) == 1
    assert send("u2", 2) == 0


def group_of(user: str, size: int) -> Contribution:
    return contribution({"size": size}, user=user, anonymous=f"a-{user}", group="g")


def test_nobody_knows_in_which_order_two_users_calls_of_one_group_arrived() -> None:
    bench = Bench()
    for user, size in (("u1", 1), ("u2", 2)):
        bench.add(group_of(user, size))
    bench.settle(bench.take())
    assert len(bench.send(group_of("u2", 2))) == 1
    assert bench.send(group_of("u2", 2)) == []
    bench.add(group_of("u1", 1))  # on its way; u2 itself has nothing pending
    first = bench.take()
    bench.add(group_of("u2", 2))
    second = bench.take()
    assert len(second) == 2
    bench.settle(second)
    bench.settle(first)
    assert len(bench.send(group_of("u2", 2))) == 1


def test_others_who_say_the_same_of_a_group_keep_nobody_from_being_left_out() -> None:
    bench = Bench()
    bench.send(group_of("u1", 1))
    bench.add(group_of("u2", 1))
    bench.add(group_of("u1", 1))
    assert bench.account.suppressed["group"] == 1


def test_a_call_that_became_a_dead_letter_was_not_delivered() -> None:
    """Its batch is settled, its siblings are delivered, and Segment doesn't have it."""
    bench = Bench()
    bench.add(contribution({"plan": "A"}))
    batch = bench.take()
    bench.settle(batch, refused=[0])
    assert len(bench.send(contribution({"plan": "A"}))) == 1
    bench.add(contribution({"plan": "B"}))
    bench.settle(bench.take(), refused=[0])
    assert len(bench.send(contribution({"plan": "B"}))) == 1
    assert len(bench.digests) == 2


def test_a_refused_call_spoils_what_waits_behind_it() -> None:
    """The pair of the refused call isn't known, though the profile's next call was accepted."""
    bench = Bench()
    bench.add(contribution({"plan": "A"}, anonymous="a1"))
    batch = bench.take()
    bench.add(contribution({"plan": "A"}, anonymous="a2"))
    bench.settle(batch, refused=[0])
    bench.settle(bench.take())
    assert len(bench.digests) == 0
    assert len(bench.send(contribution({"plan": "A"}, anonymous="a1"))) == 1


def test_a_refused_track_call_says_nothing_of_profiles() -> None:
    bench = Bench()
    bench.add(contribution({"plan": "A"}))
    batch = bench.take()
    bench.lane.refused(batch, 1)
    bench.settle(batch)
    assert bench.send(contribution({"plan": "A"})) == []


def test_lanes_of_one_generation_share_the_digests_and_not_what_they_say() -> None:
    one = Bench(write_key="one")
    other = Bench(write_key="other", digests=one.digests)
    assert len(one.send(contribution({"plan": "A"}))) == 1
    assert len(other.send(contribution({"plan": "A"}))) == 1
    assert len(one.digests) == 4


def test_digests_are_bounded_counted_in_the_budget_and_the_least_used_go_first() -> None:
    bench = Bench(limit_bytes=4 * DIGEST_BYTES + 1)
    for user in ("u1", "u2"):
        bench.send(contribution({}, user=user, anonymous=None))
    assert (len(bench.digests), bench.budget.used) == (4, 4 * DIGEST_BYTES)
    assert bench.send(contribution({}, user="u1", anonymous=None)) == []
    bench.send(contribution({}, user="u3", anonymous=None))
    assert (len(bench.digests), bench.budget.used) == (4, 4 * DIGEST_BYTES)
    assert bench.send(contribution({}, user="u1", anonymous=None)) == []
    assert len(bench.send(contribution({}, user="u2", anonymous=None))) == 1


def test_without_any_room_everything_is_sent() -> None:
    bench = Bench(limit_bytes=0)
    for _ in range(2):
        assert len(bench.send(contribution({"plan": "A"}))) == 1
    assert bench.budget.used == 0


# --- every small history -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Event:
    """A record with one identify or group call, which says one trait."""

    value: str
    user: str = "u"
    device: str = "a"
    group: str | None = None

    @property
    def target(self) -> str:
        return self.group or self.user


def pair_of(call: dict[str, Any]) -> tuple[str | None, str | None, str | None]:
    return call.get("userId"), call.get("anonymousId"), call.get("groupId")


@lru_cache(maxsize=4096)
def parsed(call: bytes) -> dict[str, Any]:
    result: dict[str, Any] = orjson.loads(call)
    return result


class LastId(Lane):
    """A lane that is wrong: the id of a call is that of its last contribution."""

    def _begin(self, new: Contribution) -> bytes:
        return new.render()

    def _merge(self, old: Contribution, new: Contribution, room: int) -> bytes | None:
        own = new.hash.copy()
        data = super()._merge(old, new, room)
        if data is None:
            return None
        new.hash = own
        return new.render()


class Careless(Suppression):
    """A suppression that is wrong: what was refused counts as delivered."""

    def refused(self, profile: str | tuple[str, str]) -> None:
        pass


class Trusting(Suppression):
    """A suppression that is wrong: what was under way before it doesn't count."""

    def under_way(self, profile: str | tuple[str, str]) -> None:
        pass

    def settled(self, profile: str | tuple[str, str], now: float, *, more: bool) -> None:
        if profile in self._pending:
            super().settled(profile, now, more=more)


class Hasty(Suppression):
    """A suppression that is wrong: what is on its way counts as delivered."""

    def leaves_out(self, new: Contribution, now: float) -> bool:
        out = super().leaves_out(new, now)
        if not out:
            super().settled(new.profile, now, more=False)
        return out

    def settled(self, profile: str | tuple[str, str], now: float, *, more: bool) -> None:
        pass

    def refused(self, profile: str | tuple[str, str]) -> None:
        pass


class WrongError(AssertionError):
    """A history ends wrong."""


@dataclass
class World:
    """Kafka with a few records, one member that reads them, and a Segment that drops ids that it has seen.

    What happens is a letter a step: `r` the next record is read, `R` the next two, into one batch; `s` what is open is
    sent, and Segment has it; `l` the same, but the answer is lost, so that the batch is sent again later; `d` the
    oldest request that is under way is answered, `D` the newest one; `x` the oldest one is answered, but its
    identify or group call was refused; `t` an hour passes; `c` the member dies, or its partitions move away and come
    back: what isn't committed is read again; `o` the same, but another member delivers and commits one record between.

    Args:
        events: the records.
        lane_class, suppression_class: what is tried; None for a lane that sends everything.
        keeps: whether digests outlive their generation, which is wrong.
    """

    events: tuple[Event, ...]
    lane_class: type[Lane] = Lane
    suppression_class: type[Suppression] | None = Suppression
    keeps: bool = False
    clears: bool = True
    position: int = 0
    now: float = 0.0
    seen: set[str] = field(default_factory=set)
    traits: dict[str, dict[str, Any]] = field(default_factory=lambda: defaultdict(dict))
    pairs: set[tuple[str | None, str | None, str | None]] = field(default_factory=set)
    generations: int = 0
    sent: int = 0
    suppressed: int = 0
    refused: bool = False

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.generations += 1
        self.account = Account()
        self.ledger, share = self.account.ledger(), Budget(1).share()
        self.under_way: deque[Batch] = deque()
        self.read: dict[int, Chunk] = {}
        if self.generations == 1 or not self.keeps:
            self.digests = Digests(10_000, share)
            self.delivered_at: dict[Any, float] = {}
        self.on = self.suppression_class is not None
        self.lane = self.lane_class(
            write_key="key",
            limits=Limits(),
            merging=Merging(),
            nonce=bytes([self.generations] * 16),
            ledger=self.ledger,
            share=share,
            suppression=self.suppression(),
        )

    def suppression(self) -> Suppression | None:
        if not self.on or self.suppression_class is None:
            return None
        return self.suppression_class(
            self.digests, write_key="key", seconds=HOUR, ignore_traits=frozenset()
        )

    # --- steps ---

    def step(self, letter: str) -> bool:
        """Do one step; False if there is nothing to do it with."""
        match letter:
            case "r":
                return self.take_in()
            case "R":
                return self.take_in() and self.take_in()
            case "s" | "l":
                return self.send(lost=letter == "l")
            case "d":
                return bool(self.under_way) and self.answer(self.under_way.popleft())
            case "D":
                return len(self.under_way) > 1 and self.answer(self.under_way.pop())
            case "x":
                return self.refuse()
            case "t":
                self.now += HOUR
                return True
            case "c":
                self.position = self.committed
                self.begin()
                return True
            case "q":  # one is delivered, though others may still be under way
                return self.step("r") and self.step("s") and (self.step("D") or self.step("d"))
            case "w" | "W":
                return self.switch(on=not self.on if letter == "w" else self.on)
            case _:
                return self.visit_another()

    @property
    def committed(self) -> int:
        held = [number for number, chunk in self.read.items() if chunk.holders]
        return min(held, default=self.position)

    def take_in(self) -> bool:
        if self.position == len(self.events):
            return False
        number, event = self.position, self.events[self.position]
        self.position += 1
        one = contribution(
            {"x": event.value},
            user=event.user,
            anonymous=event.device,
            group=event.group,
            at=number,
            number=number,
        )
        chunk = Chunk(("events", 0), [number], [1000], [None], read_at=self.now)
        self.ledger.consumed("events", 1, 1)
        self.ledger.made(one.type)
        self.ledger.made("track")
        before = self.account.suppressed[one.type]
        main = orjson.dumps({"type": "track", "messageId": f"m{number}"})
        self.lane.add(Formatted((one,), "track", main), chunk, 0)
        chunk.let_go()
        self.read[number] = chunk
        if self.account.suppressed[one.type] > before:
            self.suppressed += 1
            self.check_left_out(event)
        return True

    def send(self, *, lost: bool) -> bool:
        self.lane.close("time", self.now)
        if not self.lane.ready:
            return False
        batch = self.lane.ready.popleft()
        self.arrive(batch.calls)
        if lost:
            self.lane.ready.append(batch)
        else:
            self.under_way.append(batch)
        return True

    def arrive(self, calls: Iterable[bytes]) -> None:
        for call in map(parsed, calls):
            if call["messageId"] in self.seen:
                continue
            self.seen.add(call["messageId"])
            if call["type"] == "track":
                continue
            self.sent += 1
            self.traits[call.get("groupId") or call["userId"]] |= call["traits"]
            self.pairs.add(pair_of(call))

    def answer(self, batch: Batch) -> bool:
        for call in map(parsed, batch.calls):
            self.delivered_at[pair_of(call)] = self.now
        for kind, calls in batch.counts():
            self.ledger.delivered(kind, calls)
        self.lane.settle(batch, self.now)
        return True

    def refuse(self) -> bool:
        """The next batch is sent, and Segment refuses its first identify or group call for ever."""
        self.lane.close("time", self.now)
        if not self.lane.ready or parsed(self.lane.ready[0].calls[0])["type"] == "track":
            return False
        batch = self.lane.ready.popleft()
        self.refused = True
        self.arrive(batch.calls[1:])
        self.lane.refused(batch, 0)
        return self.answer(batch)

    def switch(self, *, on: bool) -> bool:
        """Switch suppression on or off, or go on with another one, as a change of `suppress_for` does."""
        self.on = on
        if not on and self.clears:
            self.digests.clear()
        self.lane.suppress(self.suppression())
        return True

    def visit_another(self) -> bool:
        self.position = self.committed
        if self.position == len(self.events):
            return False
        event = self.events[self.position]
        self.position += 1
        self.traits[event.target]["x"] = event.value
        self.pairs.add((event.user, event.device, event.group))
        self.begin()
        return True

    def finish(self) -> None:
        """What is under way is sent and answered, then the records that are left, one after the other."""
        while self.step("s") or self.step("d") or self.step("r"):
            pass

    # --- what has to hold ---

    def check_left_out(self, event: Event) -> None:
        """To leave a call out, Segment must have what it says, and nothing on its way may change that."""
        if self.traits[event.target].get("x") != event.value:
            raise WrongError("Segment doesn't have the traits")
        pair = (event.user, event.device, event.group)
        if pair not in self.pairs:
            raise WrongError("Segment doesn't have the pair")
        if self.now - self.delivered_at.get(pair, -HOUR) >= HOUR:
            raise WrongError("it is too long ago")
        lane = self.lane
        batches = [*([lane.open] if lane.open else []), *lane.ready, *self.under_way]
        pending = [parsed(call) for batch in batches for call in batch.calls]
        pending += [parsed(one.data) for some in lane._waiting.values() for one in some]
        for call in pending:
            target = call.get("groupId") or call.get("userId")
            if target == event.target and call["traits"]["x"] != event.value:
                raise WrongError("what is on its way will change the traits")

    def check_end(self) -> None:
        """All ends as the stream does; of a group of several users nobody promised an order."""
        if not self.lane.idle or self.committed != len(self.events):
            raise WrongError("something is left")
        if self.account.balance():
            raise WrongError("the account doesn't balance")
        if self.refused:
            return
        users = defaultdict(set)
        for event in self.events:
            users[event.target].add(event.user)
        for event in self.events:
            if len(users[event.target]) > 1:
                continue
            last = [one.value for one in self.events if one.target == event.target][-1]
            if self.traits[event.target].get("x") != last:
                raise WrongError(
                    f"{event.target} ends with {self.traits[event.target]}, not {last}"
                )
        wanted = {(event.user, event.device, event.group) for event in self.events}
        if self.pairs != wanted:
            raise WrongError("a pair is missing")


def histories(letters: str, steps: int, events: tuple[Event, ...], **wrong: Any) -> Iterator[World]:
    """Every history of so many steps or fewer that the letters make, each brought to its end."""
    ahead = [""]
    while ahead:
        story = ahead.pop()
        world = World(events, **wrong)
        try:
            if not all(map(world.step, story)):
                continue
            world.finish()
            world.check_end()
        except WrongError as error:
            raise WrongError(f"{events}, after {story!r}: {error}") from error
        yield world
        if len(story) < steps:
            ahead += [story + letter for letter in letters]


def streams(count: int, *choices: Event) -> Iterator[tuple[Event, ...]]:
    """Every stream of so many records that begins with the first choice."""
    for rest in product(choices, repeat=count - 1):
        yield (choices[0], *rest)


DEVICES = [Event("A"), Event("B"), Event("A", device="b"), Event("B", device="b")]
USERS = [Event(value, user, f"{user}-a", "g") for value in "AB" for user in "uv"]
FAMILIES = {
    "crashes": (DEVICES, 3, "rRsldco", 4),
    "refusals": (DEVICES, 3, "rsldxt", 5),
    "returning values": (DEVICES[:2], 4, "rsldcx", 5),
    "a group": (USERS, 3, "rRsldDx", 5),
    "switches": (DEVICES, 3, "qrswW", 5),
    "switches and a group": (USERS, 3, "qrsw", 6),
}
"""Records, how many of them in a stream, what happens, and in how many steps."""


def try_all(family: str, **wrong: Any) -> Counter[str]:
    """Try every history of a family on every stream, until one ends wrong.

    Returns:
        counts.

    Raises:
        WrongError: the first history that ends wrong.
    """
    choices, length, letters, steps = FAMILIES[family]
    counts = Counter[str]()
    for events in streams(length, *choices):
        for world in histories(letters, steps, events, **wrong):
            counts.update(histories=1, sent=world.sent, suppressed=world.suppressed)
    return counts


@pytest.mark.no_cover
@pytest.mark.parametrize("family", FAMILIES)
def test_every_small_history_ends_right(family: str) -> None:
    counts = try_all(family)
    assert counts["histories"] > 3_000
    assert counts["suppressed"] > 400


@pytest.mark.no_cover
@pytest.mark.parametrize(
    ("family", "wrong"),
    [
        ("crashes", {"lane_class": LastId}),
        ("crashes", {"lane_class": LastId, "suppression_class": None}),
        ("crashes", {"keeps": True}),
        ("refusals", {"suppression_class": Careless}),
        ("returning values", {"suppression_class": Hasty}),
        ("a group", {"suppression_class": Hasty}),
        ("switches", {"clears": False}),
        ("switches and a group", {"suppression_class": Trusting}),
    ],
)
def test_what_is_wrong_is_found(family: str, wrong: dict[str, Any]) -> None:
    """The same check finds ids of the last contribution, and digests of what Segment doesn't have."""
    with pytest.raises(WrongError):
        try_all(family, **wrong)


# --- switched on and off while calls are under way --------------------------------------------------


def another(bench: Bench) -> Suppression:
    return Suppression(bench.digests, write_key="key", seconds=HOUR, ignore_traits=frozenset())


def test_switched_on_it_trusts_nothing_that_was_under_way() -> None:
    """What was under way before may be older or newer than what it sees: the first call after it is sent."""
    bench = Bench()
    bench.lane.suppress(None)
    bench.add(contribution({"plan": "A"}), contribution({"size": 1}, group="g"))
    first = bench.take()
    bench.lane.suppress(another(bench))
    bench.add(contribution({"plan": "A"}, at=1), contribution({"size": 1}, group="g", at=1))
    bench.settle(first)
    bench.settle(bench.take())
    assert len(bench.digests) == 0
    for at, sent in ((2, 2), (3, 0)):
        again = contribution({"plan": "A"}, at=at), contribution({"size": 1}, group="g", at=at)
        assert len(bench.send(*again)) == sent
    assert bench.account.balance() == []


def test_what_was_delivered_while_it_was_off_is_not_left_out_afterwards() -> None:
    """A delivered, then off, B delivered, then on: an A has to be sent."""
    bench = Bench()
    bench.send(contribution({"plan": "A"}))
    bench.lane.suppress(None)
    bench.digests.clear()
    bench.send(contribution({"plan": "B"}, at=1))
    bench.lane.suppress(another(bench))
    assert len(bench.send(contribution({"plan": "A"}, at=2))) == 1
    assert bench.send(contribution({"plan": "A"}, at=3)) == []


def test_cleared_digests_give_their_memory_back() -> None:
    bench = Bench()
    bench.send(contribution({"plan": "A"}))
    assert bench.budget.used == DIGEST_BYTES * len(bench.digests) > 0
    bench.digests.clear()
    assert (bench.budget.used, len(bench.digests)) == (0, 0)
