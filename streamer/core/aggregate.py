"""One lane: what is open, waiting and in flight for one write key in one generation.

Page and track calls go into the open batch as they come. Identify and group calls are laid over one another in
Segment, so their order counts, and each is billed, so fewer are better:

- all unsettled calls of a profile stand in one batch, in order;
- contributions of one profile with the same userId and anonymousId merge, key by key, as long as their batch is open;
- what comes while that batch is in flight waits, merges on, and moves into the open batch when it is settled;
- with nothing unsettled of a profile, what says nothing new is left out, if that is wanted: see `Suppression`.

The id of such a call is a hash of its contributions' ids, its number in the lane and a nonce of the generation. So it
is the same across retries, and new after a redelivery and for a record that Kafka has twice: Segment drops ids it has
seen, and traits that come again must be applied again, in order.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import orjson

from streamer.core.batch import FURTHER, Batch
from streamer.core.budget import compact
from streamer.core.model import CALL_TYPES, Contribution, Main
from streamer.core.validate import MAX_CALL_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from streamer.core.account import Ledger
    from streamer.core.batch import Limits
    from streamer.core.budget import Share
    from streamer.core.model import Changed, Formatted
    from streamer.core.offsets import Chunk
    from streamer.core.suppression import Suppression

_Profile: TypeAlias = str | tuple[str, str]
"""As `Contribution.profile`."""

_Call = TypeVar("_Call", bound=Contribution | Main)

_TYPE_INDEX = {kind: index for index, kind in enumerate(CALL_TYPES)}

CALL_OVERHEAD = 120
"""Bytes of memory that a call in a batch takes besides its own, for the budget."""

PROFILE_OVERHEAD = 4000
"""Bytes of memory that an identify or group call takes besides its own as long as others may merge with it, for the
budget: the dicts of its traits."""

TRAITS_FACTOR = 3
"""How often what such a call says stands in memory until then: the call, its traits as JSON, and as objects."""

CLOSED_OVERHEAD = 300
"""What is left of that once its batch is closed, when the call stands there once: the profile's name and place."""

NAME_BYTES = 5
"""Of the name of a batch, which is twice as many hexadecimal digits."""

_PROFILES = (_TYPE_INDEX["identify"], _TYPE_INDEX["group"])


def open_bytes(size: int) -> int:
    """Say for the budget what memory an identify or group call of `size` bytes takes, waiting or in an open batch."""
    return TRAITS_FACTOR * size + CALL_OVERHEAD + PROFILE_OVERHEAD


@dataclass(frozen=True, slots=True)
class Merging:
    """Which calls of a profile merge. Their order is kept in any case.

    Attributes:
        identify: whether identify calls do.
        group: whether group calls do.
    """

    identify: bool = True
    group: bool = True


class _Waiting:
    """A call that waits for the batch of its profile to be settled: of one contribution so far, or of several merged.

    Attributes:
        last: the last contribution, with the traits and the id of all.
        data: the call, serialised.
        chunk, record: where the last contribution's record stands.
        chunks: those of all contributions, held while it waits; in a batch the batch holds them.
    """

    __slots__ = ("chunk", "chunks", "data", "last", "record")

    def __init__(self, last: Contribution, data: bytes, chunk: Chunk, record: int) -> None:
        self.last = last
        self.data = data
        self.chunk = chunk
        self.record = record
        self.chunks = [chunk]
        chunk.hold()

    def replace(self, last: Contribution, data: bytes, chunk: Chunk, record: int) -> None:
        self.last = last
        self.data = data
        self.chunk = chunk
        self.record = record
        if chunk not in self.chunks:
            self.chunks.append(chunk)
            chunk.hold()


class Lane:
    """What is open, waiting and in flight for one write key in one generation.

    Args:
        write_key: Segment's, for the requests of this lane.
        limits: of a batch.
        merging: which calls merge.
        nonce: 16 random bytes of the generation.
        ledger: where the calls' fates are written.
        share: the generation's share of the memory budget.
        suppression: says which calls needn't be sent; None if all are.

    Attributes:
        open: the batch that calls are added to, None when there is nothing in it.
        ready: closed batches that wait for a slot, as they were closed or came back to be sent again.
        in_flight: how many of its requests are under way; delivery counts them.
    """

    def __init__(
        self,
        *,
        write_key: str,
        limits: Limits,
        merging: Merging,
        nonce: bytes,
        ledger: Ledger,
        share: Share,
        suppression: Suppression | None = None,
    ) -> None:
        self.write_key = write_key
        self.ledger = ledger
        self.share = share
        self.open: Batch | None = None
        self.ready: deque[Batch] = deque()
        self.in_flight = 0
        self._limits = limits
        self._merges = {"identify": merging.identify, "group": merging.group}
        self._nonce = b"\0" + nonce
        self._suppression = suppression
        self._number = 0  # of the last identify or group call
        self._begun = 0  # batches
        # The profiles with calls that aren't settled, and the batch in which these stand.
        self._batches: dict[_Profile, Batch] = {}
        # Of those in the open batch, what the next contribution may merge with: the last one, which has the traits and
        # the id of the whole call, and the call's place.
        self._last: dict[_Profile, tuple[Contribution, int]] = {}
        # What came while the batch of its profile was in flight, in order.
        self._waiting: dict[_Profile, list[_Waiting]] = {}

    @property
    def idle(self) -> bool:
        """Whether nothing of the lane is open, waiting or in flight."""
        return self.open is None and not self.ready and not self.in_flight and not self._batches

    @property
    def open_profiles(self) -> int:
        """How many profiles have calls that aren't settled."""
        return len(self._batches)

    @property
    def waiting_calls(self) -> int:
        """How many calls wait for the batch of their profile to be settled."""
        return sum(map(len, self._waiting.values()))

    def add(self, formatted: Formatted, chunk: Chunk, record: int) -> None:
        """Take in the calls of one record; that they were made is noted by who made them.

        Args:
            formatted: the calls.
            chunk: the chunk of the record.
            record: its number there.
        """
        contributions: Iterable[Contribution]
        contributions, kind, main = formatted
        if self._suppression is not None:
            contributions = self._needed(self._suppression, contributions, chunk.read_at)
        for new in contributions:
            profile = new.profile
            if profile in self._batches:
                self._add_behind(new, chunk, record)
                continue
            data = self._begin(new)
            size = len(data)
            self.share.take(open_bytes(size))
            self._place(self._room(size, chunk.read_at), new, data, chunk, record)
        size = len(main)
        batch = self._room(size, chunk.read_at)
        batch.append(compact(main), _TYPE_INDEX[kind], chunk, record)
        self.share.take(size + CALL_OVERHEAD)
        if len(batch.calls) >= self._limits.max_calls:
            self.close("calls", chunk.read_at)

    def add_changed(self, changed: Changed, chunk: Chunk, record: int) -> None:
        """Take in the calls of one record that site code has had in its hands; see `add`."""
        taken: Iterable[Contribution | Main] = changed.taken
        if self._suppression is not None:
            taken = self._needed(self._suppression, changed.taken, chunk.read_at)
        for call in taken:
            if isinstance(call, Main):
                data, kind = compact(call.serialised), _TYPE_INDEX[call.type]
                batch = self._room(len(data), chunk.read_at)
                batch.append(data, kind if call.decides else kind | FURTHER, chunk, record)
                self.share.take(len(data) + CALL_OVERHEAD)
            elif call.profile in self._batches:
                self._add_behind(call, chunk, record)
            else:
                data = self._begin(call)
                self.share.take(open_bytes(len(data)))
                self._place(self._room(len(data), chunk.read_at), call, data, chunk, record)
        if self.open is not None and len(self.open.calls) >= self._limits.max_calls:
            self.close("calls", chunk.read_at)

    def limit(self, limits: Limits, now: float) -> None:
        """Hold other limits from now on; an open batch that has reached one of them closes.

        Args:
            limits: of a batch.
            now: in seconds.
        """
        self._limits = limits
        batch = self.open
        if batch is None:
            return
        batch.limits = limits
        if len(batch.calls) >= limits.max_calls:
            self.close("calls", now)
        elif batch.size > limits.max_bytes:
            self.close("bytes", now)

    def suppress(self, suppression: Suppression | None) -> None:
        """Leave out what another suppression says from now on, or nothing; what is under way it doesn't know."""
        self._suppression = suppression
        if suppression is not None:
            for profile in self._batches:
                suppression.under_way(profile)

    def close(self, trigger: str, now: float) -> None:
        """Close the open batch, if there is one.

        Args:
            trigger: `bytes`, `calls`, `time`, `memory`, `shutdown` or `rebalance`.
            now: in seconds.
        """
        batch = self.open
        if batch is None:
            return
        batch.trigger = trigger
        batch.closed_at = now
        self._last.clear()
        sizes = [
            len(call)
            for kind, call in zip(batch.types, batch.calls, strict=True)
            if kind in _PROFILES
        ]
        self.share.give(
            len(sizes) * (PROFILE_OVERHEAD - CLOSED_OVERHEAD) + (TRAITS_FACTOR - 1) * sum(sizes)
        )
        self.open = None
        self.ready.append(batch)

    def refused(self, batch: Batch, place: int) -> None:
        """Note that a call becomes a dead letter; its batch isn't settled yet.

        Args:
            batch: one of this lane, closed.
            place: the call's.
        """
        if self._suppression is not None and batch.kind(place) in self._merges:
            # The call's profile is one of them; to spare the others would not be worth a search.
            for profile in batch.profiles:
                self._suppression.refused(profile)

    def settle(self, batch: Batch, now: float) -> None:
        """Let go of a batch of which every call is delivered or kept as a dead letter; what waited for it moves on.

        Args:
            batch: one of this lane, closed.
            now: in seconds.
        """
        self.share.give(
            sum(map(len, batch.calls))
            + CALL_OVERHEAD * len(batch)
            + CLOSED_OVERHEAD * sum(map(batch.types.count, _PROFILES))
        )
        for profile in batch.profiles:
            del self._batches[profile]
            waits = profile in self._waiting
            if self._suppression is not None:
                self._suppression.settled(profile, now, more=waits)
            if waits:
                self._move_on(profile, now)
        batch.let_go()

    def _needed(
        self, suppression: Suppression, calls: Iterable[_Call], now: float
    ) -> Iterator[_Call]:
        """Give the calls of a record that have to be sent, one by one, as each is taken in."""
        for call in calls:
            if isinstance(call, Main) or not suppression.leaves_out(call, now):
                yield call
            else:
                self.ledger.suppressed(call.type)

    def _add_behind(self, new: Contribution, chunk: Chunk, record: int) -> None:
        """Take in a contribution to a profile that has calls which aren't settled."""
        profile = new.profile
        last = self._last.get(profile)
        if last is not None and self._merge_into_open(*last, new, chunk, record):
            return
        waiting = self._waiting.get(profile)
        if waiting and self._merge_into_waiting(waiting[-1], new, chunk, record):
            return
        data = self._begin(new)
        size = len(data)
        self.share.take(open_bytes(size))
        batch = self._batches[profile]
        if batch is self.open and not waiting:
            trigger = batch.room(size)
            if trigger is None:
                self._place(batch, new, data, chunk, record)
                return
            self.close(trigger, chunk.read_at)
        one = _Waiting(new, data, chunk, record)
        if waiting:
            waiting.append(one)
        else:
            self._waiting[profile] = [one]

    def _begin(self, new: Contribution) -> bytes:
        """Make a call of a contribution that merges with none before it.

        Returns:
            The call, serialised.
        """
        self._number += 1
        new.hash.update(self._nonce + self._number.to_bytes(8, "big"))
        new.traits_json = compact(new.traits_json)
        return compact(new.render())

    def _merge_into_open(
        self, old: Contribution, place: int, new: Contribution, chunk: Chunk, record: int
    ) -> bool:
        """Merge a contribution into the last call of its profile in the open batch.

        Args:
            old: the last contribution to that call.
            place: the call's, in the open batch.
            new: the contribution.
            chunk: the chunk of its record.
            record: its record's number there.

        Returns:
            False if that can't be: the pair is another one, or the call or its batch would become too large.
        """
        batch = self.open
        if batch is None:
            raise RuntimeError("there is no open batch to merge into")
        size = len(batch.calls[place])
        data = self._merge(old, new, size + self._limits.max_bytes - batch.size)
        if data is None:
            return False
        self.share.grow(TRAITS_FACTOR * (len(data) - size))
        batch.replace(place, data, chunk, record)
        self._last[new.profile] = (new, place)
        return True

    def _merge_into_waiting(
        self, waiting: _Waiting, new: Contribution, chunk: Chunk, record: int
    ) -> bool:
        """Merge a contribution into the last call of its profile that waits; see `_merge_into_open`."""
        data = self._merge(waiting.last, new, MAX_CALL_BYTES)
        if data is None:
            return False
        self.share.grow(TRAITS_FACTOR * (len(data) - len(waiting.data)))
        waiting.replace(new, data, chunk, record)
        return True

    def _merge(self, old: Contribution, new: Contribution, room: int) -> bytes | None:
        """Lay a contribution over what its profile has said before it.

        Args:
            old: the last contribution to the call, with the traits and the id of the whole call; stays as it is.
            new: gets these in its turn.
            room: the bytes that its batch has for the call.

        Returns:
            The merged call, serialised; None if they don't merge: then `new` is a call of its own.
        """
        if not self._merges[new.type] or old.pair != new.pair:
            return None
        own = new.traits, new.traits_json, new.hash
        if new.traits_json == old.traits_json:
            new.traits_json = old.traits_json
        else:
            new.traits = {**old.traits, **new.traits}
            new.traits_json = compact(orjson.dumps(new.traits))
        new.hash = own[2].copy()
        new.hash.update(b"\0" + old.hash.digest())
        data = compact(new.render())
        if len(data) > MAX_CALL_BYTES or len(data) > room:
            new.traits, new.traits_json, new.hash = own
            return None
        self.ledger.merged(new.type)
        return data

    def _place(
        self, batch: Batch, last: Contribution, data: bytes, chunk: Chunk, record: int
    ) -> None:
        """Put a call of a profile into the open batch, where there is room for it."""
        place = batch.append(data, _TYPE_INDEX[last.type], chunk, record)
        profile = last.profile
        if self._merges[last.type]:
            self._last[profile] = (last, place)
        if profile not in self._batches:
            self._batches[profile] = batch
            batch.profiles.append(profile)

    def _move_on(self, profile: _Profile, now: float) -> None:
        """Put what waited for a profile into one open batch, as much as it holds; the rest goes on waiting."""
        waiting = self._waiting.pop(profile)
        batch = self._room(len(waiting[0].data), now)
        for number, one in enumerate(waiting):
            if number and batch.room(len(one.data)) is not None:
                self._last.pop(profile, None)  # what comes next stands behind those that wait
                self._waiting[profile] = waiting[number:]
                break
            self._place(batch, one.last, one.data, one.chunk, one.record)
            for chunk in one.chunks:
                batch.hold(chunk)
                chunk.let_go()
        if len(batch.calls) >= self._limits.max_calls:
            self.close("calls", now)

    def _room(self, size: int, now: float) -> Batch:
        """Give an open batch into which a call of `size` bytes fits; one into which it doesn't is closed.

        Without a look at the number of calls after each that is added, a full batch would wait for the interval.
        """
        batch = self.open
        if batch is not None:
            trigger = batch.room(size)
            if trigger is None:
                return batch
            self.close(trigger, now)
        batch = self.open = Batch(self._limits, self._name())
        return batch

    def _name(self) -> str:
        """Name one more batch: as none in the logs of all members is named, but by a rare chance."""
        self._begun += 1
        own = blake2b(self._begun.to_bytes(8, "big"), key=self._nonce, digest_size=NAME_BYTES)
        return own.hexdigest()
