"""Which identify and group calls say nothing new, so that they needn't be sent.

A call is left out if Segment would end the same with it. For that, nothing of its profile may be pending, and all of
these must hold:

- the traits that were last delivered to the user, or of a group call to the group, by whichever user, are the call's,
  and nothing pending says others of that group;
- the last call delivered of its anonymousId (in that group) was the same but for traits, id and times. It had the same
  userId then, so Segment has the pair. A call without an anonymousId goes by its userId;
- that one was delivered less than `suppress_for` ago.

What was delivered is known by digests only, each under the digest of its name. What is missing there is sent, so any
of them may be forgotten at any time. They are forgotten when another call is on its way, until all calls of its
profile are settled and none was refused; and all of them when the generation ends, since another member may send what
changes them.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING

import orjson

if TYPE_CHECKING:
    from streamer.core.budget import Share
    from streamer.core.model import Contribution

DIGEST_BYTES = 300
"""Bytes of memory that one digest takes with its name, for the budget."""

_NO_NEWS = frozenset(
    ("messageId", "traits", "timestamp", "receivedAt", "sentAt", "originalTimestamp")
)
"""What of a call is no news: its id and its times. Its traits have a digest of their own."""


def without_news(call: Contribution) -> bytes:
    """Serialise what of a call is compared beside its traits: all but its id and its times."""
    return orjson.dumps({key: value for key, value in call.call.items() if key not in _NO_NEWS})


class Digests:
    """What was last delivered in one generation: a bounded number of digests, of which the least used one goes first.

    Args:
        limit_bytes: how much memory they may take, of the budget.
        share: the generation's share of the memory budget.
    """

    __slots__ = ("_found", "_limit", "_share")

    def __init__(self, limit_bytes: int, share: Share) -> None:
        self._found: OrderedDict[bytes, tuple[bytes, float]] = OrderedDict()
        self._limit = limit_bytes // DIGEST_BYTES
        self._share = share

    def __len__(self) -> int:
        return len(self._found)

    def get(self, name: bytes) -> tuple[bytes, float] | None:
        """Give a digest, and when what it is of was delivered, in seconds; None if it isn't known."""
        return self._found.get(name)

    def used(self, name: bytes) -> None:
        """Note that a digest has saved a call."""
        self._found.move_to_end(name)

    def put(self, name: bytes, digest: bytes, now: float) -> None:
        """Keep a digest of what was delivered at `now`, in seconds."""
        if name not in self._found:
            self._share.take(DIGEST_BYTES)
        self._found[name] = (digest, now)
        self._found.move_to_end(name)
        if len(self._found) > self._limit:
            self._found.popitem(last=False)
            self._share.give(DIGEST_BYTES)

    def clear(self) -> None:
        """Forget them all."""
        self._share.give(DIGEST_BYTES * len(self._found))
        self._found.clear()

    def forget(self, name: bytes) -> None:
        """Forget a digest, if it is known."""
        if self._found.pop(name, None) is not None:
            self._share.give(DIGEST_BYTES)


@dataclass(slots=True)
class _Pending:
    """What of a profile is on its way.

    Attributes:
        target: the name of what its traits are laid over.
        pairs: names to digests of the last call of each anonymousId, but for its traits; and when it was delivered at
            the earliest, in seconds, None if it can't be yet.
        refused: whether one of the calls became a dead letter, or isn't known: then Segment may not have what is said.
    """

    target: bytes
    pairs: dict[bytes, tuple[bytes, float | None]] = field(default_factory=dict)
    refused: bool = False


@dataclass(slots=True)
class _Target:
    """What traits on their way are laid over: a user or a group.

    Attributes:
        traits: the digest in which it will end; None if nobody knows, as calls of several users overtake one another.
        profiles: how many have something on its way.
    """

    traits: bytes | None
    profiles: int = 0


class Suppression:
    """Says which calls of one lane needn't be sent.

    Args:
        digests: the generation's.
        write_key: of the lane: other lanes' digests are none of its business.
        seconds: how long after a delivery the same may be left out.
        ignore_traits: names of traits whose change alone is no reason to send.
    """

    def __init__(
        self, digests: Digests, *, write_key: str, seconds: float, ignore_traits: frozenset[str]
    ) -> None:
        self._digests = digests
        self._seconds = seconds
        self._ignored = ignore_traits
        self._hash = blake2b(write_key.encode() + b"\0", digest_size=16)
        self._pending: dict[str | tuple[str, str], _Pending] = {}
        self._targets: dict[bytes, _Target] = {}

    def leaves_out(self, new: Contribution, now: float) -> bool:
        """Say whether a contribution needn't be sent. If it has to be, it is on its way from now on.

        Args:
            new: the contribution, before any merging.
            now: when it was read, in seconds.
        """
        profile, digests = new.profile, self._digests
        user, anonymous = new.pair
        group = profile[1] if isinstance(profile, tuple) else None
        target = self._name((new.type, profile[1] if isinstance(profile, tuple) else profile))
        pair = self._name((new.type, group, anonymous, user if anonymous is None else None))
        traits = self._digest(self._traits(new))
        rest = self._digest(without_news(new))
        had, known = digests.get(target), digests.get(pair)
        same = had is not None and had[0] == traits
        pending = self._pending.get(profile)
        if (
            pending is None
            and same
            and known is not None
            and known[0] == rest
            and now - known[1] < self._seconds
        ):
            digests.used(target)
            digests.used(pair)
            return True
        digests.forget(pair)
        if not same:
            digests.forget(target)
        on_its_way = self._targets.get(target)
        if on_its_way is None:
            on_its_way = self._targets[target] = _Target(traits)
        elif group is None:
            # A user's calls are in order; those of a group's users aren't.
            on_its_way.traits = traits
        elif on_its_way.traits != traits:
            on_its_way.traits = None
        if pending is None:
            pending = self._pending[profile] = _Pending(target)
            on_its_way.profiles += 1
        pending.pairs[pair] = (rest, None)
        return False

    def under_way(self, profile: str | tuple[str, str]) -> None:
        """Note that something of a profile is on its way of which nothing else is known: it was before this began."""
        kind, name = ("group", profile[1]) if isinstance(profile, tuple) else ("identify", profile)
        target = self._name((kind, name))
        self._targets.setdefault(target, _Target(None)).profiles += 1
        self._pending[profile] = _Pending(target, refused=True)

    def refused(self, profile: str | tuple[str, str]) -> None:
        """Note that a call of a profile may have become a dead letter, instead of being delivered."""
        self._pending[profile].refused = True

    def settled(self, profile: str | tuple[str, str], now: float, *, more: bool) -> None:
        """Note that a batch with calls of a profile is settled.

        Args:
            profile: one that has something on its way.
            now: in seconds.
            more: whether more of it waited for that, and is on its way still.
        """
        pending = self._pending[profile]
        if more:
            for pair, (rest, at) in pending.pairs.items():
                if at is None:
                    pending.pairs[pair] = (rest, now)
            return
        del self._pending[profile]
        target = self._targets[pending.target]
        target.profiles -= 1
        if not target.profiles:
            del self._targets[pending.target]
        if pending.refused:
            return
        if target.traits is not None:
            self._digests.put(pending.target, target.traits, now)
        for pair, (rest, at) in pending.pairs.items():
            self._digests.put(pair, rest, now if at is None else at)

    def _traits(self, new: Contribution) -> bytes:
        if self._ignored.isdisjoint(new.traits):
            return new.traits_json
        return orjson.dumps(
            {key: value for key, value in new.traits.items() if key not in self._ignored}
        )

    def _name(self, parts: tuple[str | None, ...]) -> bytes:
        return self._digest(orjson.dumps(parts))

    def _digest(self, data: bytes) -> bytes:
        found = self._hash.copy()
        found.update(data)
        return found.digest()
