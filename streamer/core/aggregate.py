"""One lane: what is open, waiting and in flight for one write key in one generation.

Page and track calls go into the open batch as they come. Identify and group calls are laid over one another in
Segment, so their order counts, and each is billed, so fewer are better:

- all unsettled calls of a profile stand in one batch, in order;
- contributions of one profile with the same userId and anonymousId merge, key by key, as long as their batch is open;
- what comes while that batch is in flight waits, merges on, and moves into the open batch when it is settled.

The id of such a call is a hash of its contributions' ids, its number in the lane and a nonce of the generation. So it
is the same across retries, and new after a redelivery and for a record that Kafka has twice: Segment drops ids it has
seen, and traits that come again must be applied again, in order.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

import orjson

from streamer.core.batch import Batch, Limits
from streamer.core.model import CALL_TYPES
from streamer.core.validate import MAX_CALL_BYTES

if TYPE_CHECKING:
    from streamer.core.account import Ledger
    from streamer.core.budget import Share
    from streamer.core.model import Contribution, Formatted
    from streamer.core.offsets import Chunk

_TYPE_INDEX = {kind: index for index, kind in enumerate(CALL_TYPES)}

CALL_OVERHEAD = 120
"""Bytes of memory that a call in a batch takes besides its own, for the budget."""

PROFILE_OVERHEAD = 4000
"""Bytes of memory that a profile's unsettled call takes besides its own (the dicts of its traits), for the budget."""


@dataclass(frozen=True, slots=True)
class Merging:
    """Which calls of a profile merge. Their order is kept in any case.

    Attributes:
        identify: whether identify calls do.
        group: whether group calls do.
    """

    identify: bool = True
    group: bool = True


class _Pending:
    """An identify or group call that may still take contributions in: one so far, or several merged.

    Attributes:
        latest: the last contribution; all but the traits is as it says.
        message_id: the hash of the contributions' ids, the call's number in the lane and the nonce.
        traits, traits_json: those of all contributions, laid over one another.
        data: the call, serialised.
        chunk, record: where the last contribution's record stands.
        read_at: when the first contribution's record was read, in seconds.
        chunks: those of all contributions, held while it waits; in a batch the batch holds them.
        place: its place in the open batch, -1 while it waits.
    """

    __slots__ = (
        "chunk", "chunks", "data", "latest", "message_id", "place", "read_at", "record", "traits", "traits_json",
    )  # fmt: skip

    def __init__(self, latest: Contribution, chunk: Chunk, record: int, read_at: float) -> None:
        self.latest = latest
        self.message_id = ""
        self.traits = latest.traits
        self.traits_json = latest.traits_json
        self.data = b""
        self.chunk = chunk
        self.record = record
        self.read_at = read_at
        self.chunks: set[Chunk] = set()
        self.place = -1

    def render(self) -> bytes:
        call = self.latest.call
        call["messageId"] = f"s1-{self.message_id}"
        if self.traits:
            call["traits"] = orjson.Fragment(self.traits_json)
        elif "traits" in call:  # of a merge that became too large
            del call["traits"]
        return orjson.dumps(call)

    def hold(self, chunk: Chunk) -> None:
        if chunk not in self.chunks:
            self.chunks.add(chunk)
            chunk.hold()


class Profile:
    """The unsettled calls of one profile.

    Attributes:
        key: as `Contribution.profile`.
        batch: the batch in which they stand, None only while they move on.
        last: the last of them in the open batch, with which the next contribution may merge.
        waiting: those that came while that batch was in flight, in order.
    """

    __slots__ = ("batch", "key", "last", "waiting")

    def __init__(self, key: str | tuple[str, str]) -> None:
        self.key = key
        self.batch: Batch | None = None
        self.last: _Pending | None = None
        self.waiting: deque[_Pending] = deque()


class Lane:
    """What is open, waiting and in flight for one write key in one generation.

    Args:
        write_key: Segment's, for the requests of this lane.
        limits: of a batch.
        merging: which calls merge.
        nonce: 16 random bytes of the generation.
        ledger: where the calls' fates are written.
        share: the generation's share of the memory budget.

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
    ) -> None:
        self.write_key = write_key
        self.ledger = ledger
        self.share = share
        self.open: Batch | None = None
        self.ready: deque[Batch] = deque()
        self.in_flight = 0
        self._limits = limits
        self._merges = {"identify": merging.identify, "group": merging.group}
        self._nonce = nonce
        self._profiles: dict[str | tuple[str, str], Profile] = {}
        self._calls = 0  # identify and group calls so far, merged ones once

    @property
    def idle(self) -> bool:
        """Whether nothing of the lane is open, waiting or in flight."""
        return self.open is None and not self.ready and not self.in_flight and not self._profiles

    @property
    def open_profiles(self) -> int:
        """How many profiles have calls that aren't settled."""
        return len(self._profiles)

    @property
    def waiting_calls(self) -> int:
        """How many calls wait for the batch of their profile to be settled."""
        return sum(len(profile.waiting) for profile in self._profiles.values())

    def add(
        self, formatted: Formatted, chunk: Chunk, record: int, timestamp: int, now: float
    ) -> None:
        """Take in the calls of one record.

        Args:
            formatted: the calls.
            chunk: the chunk of the record.
            record: its number there.
            timestamp: its Kafka timestamp in milliseconds.
            now: when the record was read, in seconds.
        """
        contributions, kind, main = formatted
        for contribution in contributions:
            self._contribute(contribution, chunk, record, now)
        self.ledger.made(kind)
        self._append(main, _TYPE_INDEX[kind], chunk, record, timestamp, now)

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
        for profile in batch.profiles:
            profile.last = None
        self.open = None
        self.ready.append(batch)

    def settle(self, batch: Batch, now: float) -> None:
        """Let go of a batch of which every call is delivered or kept as a dead letter; what waited for it moves on.

        Args:
            batch: one of this lane, closed.
            now: in seconds.
        """
        mergeable = sum(batch.types.count(_TYPE_INDEX[kind]) for kind in self._merges)
        self.share.give(
            sum(map(len, batch.calls)) + CALL_OVERHEAD * len(batch) + PROFILE_OVERHEAD * mergeable
        )
        for profile in batch.profiles:
            profile.batch = None
            if profile.waiting:
                self._move_on(profile, now)
            else:
                del self._profiles[profile.key]
        batch.let_go()

    def _contribute(
        self, contribution: Contribution, chunk: Chunk, record: int, now: float
    ) -> None:
        self.ledger.made(contribution.type)
        profile = self._profiles.get(contribution.profile)
        if profile is None:
            profile = self._profiles[contribution.profile] = Profile(contribution.profile)
            pending = self._pending(contribution, chunk, record, now)
            self._make_room(len(pending.data), now)
            self._place(profile, pending)
            return
        if self.open is not None and profile.batch is self.open and not profile.waiting:
            if profile.last and self._merge(profile.last, contribution, chunk, record):
                return
            pending = self._pending(contribution, chunk, record, now)
            trigger = self.open.room(len(pending.data))
            if trigger is None:
                self._place(profile, pending)
            else:
                self.close(trigger, now)
                self._wait(profile, pending)
        elif not profile.waiting or not self._merge(
            profile.waiting[-1], contribution, chunk, record
        ):
            self._wait(profile, self._pending(contribution, chunk, record, now))

    def _pending(self, latest: Contribution, chunk: Chunk, record: int, now: float) -> _Pending:
        pending = _Pending(latest, chunk, record, now)
        self._calls += 1
        pending.message_id = blake2b(
            f"{self._calls} {latest.id}".encode(), digest_size=16, key=self._nonce
        ).hexdigest()
        pending.data = pending.render()
        self.share.take(len(pending.data) + CALL_OVERHEAD + PROFILE_OVERHEAD)
        return pending

    def _merge(self, pending: _Pending, new: Contribution, chunk: Chunk, record: int) -> bool:
        """Merge a contribution into a call that is open or waits.

        Returns:
            False if that can't be: the pair is another one, or the call or its batch would become too large.
        """
        if not self._merges[new.type] or pending.latest.pair != new.pair:
            return False
        old = pending.latest, pending.message_id, pending.traits, pending.traits_json, pending.data
        if new.traits_json != pending.traits_json:
            pending.traits = {**pending.traits, **new.traits}
            pending.traits_json = orjson.dumps(pending.traits)
        pending.latest = new
        pending.message_id = blake2b(
            (pending.message_id + new.id).encode(), digest_size=16, key=self._nonce
        ).hexdigest()
        pending.data = pending.render()
        growth = len(pending.data) - len(old[-1])
        batch = self.open if pending.place >= 0 else None
        if len(pending.data) > MAX_CALL_BYTES or (
            batch is not None and batch.size + growth > batch.limits.max_bytes
        ):
            (
                pending.latest,
                pending.message_id,
                pending.traits,
                pending.traits_json,
                pending.data,
            ) = old
            return False
        if growth >= 0:
            self.share.take(growth)
        else:
            self.share.give(-growth)
        pending.chunk, pending.record = chunk, record
        if batch is not None:
            batch.replace(pending.place, pending.data, chunk, record)
        else:
            pending.hold(chunk)
        self.ledger.merged(new.type)
        return True

    def _wait(self, profile: Profile, pending: _Pending) -> None:
        pending.hold(pending.chunk)
        profile.waiting.append(pending)

    def _place(self, profile: Profile, pending: _Pending) -> None:
        """Put a call into the open batch, where there is room for it."""
        batch = self.open
        if batch is None:
            batch = self.open = Batch(self._limits)
        kind = _TYPE_INDEX[pending.latest.type]
        pending.place = batch.append(
            pending.data, kind, pending.chunk, pending.record, -1, pending.read_at
        )
        for chunk in pending.chunks:
            batch.hold(chunk)
            chunk.let_go()
        pending.chunks.clear()
        profile.last = pending
        if profile.batch is not batch:
            profile.batch = batch
            batch.profiles.append(profile)

    def _move_on(self, profile: Profile, now: float) -> None:
        """Put what waited for a profile into one open batch, as much as it holds; the rest goes on waiting."""
        self._make_room(len(profile.waiting[0].data), now)
        while profile.waiting and (
            self.open is None or self.open.room(len(profile.waiting[0].data)) is None
        ):
            self._place(profile, profile.waiting.popleft())
        self._close_if_full(now)

    def _append(
        self, main: bytes, kind: int, chunk: Chunk, record: int, timestamp: int, now: float
    ) -> None:
        self._make_room(len(main), now)
        if self.open is None:
            self.open = Batch(self._limits)
        self.open.append(main, kind, chunk, record, timestamp, now)
        self.share.take(len(main) + CALL_OVERHEAD)
        self._close_if_full(now)

    def _make_room(self, size: int, now: float) -> None:
        """Close the open batch if a call of `size` bytes doesn't fit into it."""
        if self.open is not None and (trigger := self.open.room(size)) is not None:
            self.close(trigger, now)

    def _close_if_full(self, now: float) -> None:
        """Close the open batch when no further call can fit; without it a full batch would wait for the interval."""
        if self.open is not None and len(self.open) >= self._limits.max_calls:
            self.close("calls", now)
