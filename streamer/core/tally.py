"""What some records come to: how many calls, what is rejected, and what of their profiles changes from call to call.

What is counted of traits goes by what `Suppression` compares, so that it says which of them keep calls from being left
out. It knows nothing of time: a call counts as the same if it says what the one before it said, however long ago.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import orjson

from streamer.core.model import Filtered, Fixed, Formatted, Main, Reject
from streamer.core.suppression import without_news

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

    from streamer.core.model import Changed, Contribution, FilterReason, Partition, Reason

_OFTEN = 0.2
"""A trait that changes in a smaller part of the calls says something of its visitor: it isn't suggested."""
_WORTH = 0.05
"""Of the calls that a suggestion saves a trait saves so many at least, or it isn't in it."""
_LEAST = 0.01
"""What saves fewer of the calls isn't suggested."""

_Traits: TypeAlias = dict[str, bytes]


class Suggestion(NamedTuple):
    """Traits whose change could be no reason to send.

    Attributes:
        names: of the traits, beside those that are ignored already.
        calls: how many more calls would say nothing new.
    """

    names: tuple[str, ...]
    calls: int


@dataclass(slots=True)
class Changes:
    """What changes in the identify calls, or in the group calls, of one profile from one to the next.

    Attributes:
        following: calls before which there is one of the same profile: of the user, or of the user in the group.
        changed: in how many of these each trait has another value than in the call before, or is only in one of both.
        compared: calls before which there is one of the same user or group, and one of the same anonymousId: those that
            suppression could leave out.
        same: how many of these say what those said, but for traits that are ignored.
        differing: how many differ from them in traits only, by the names of these.
    """

    following: int = 0
    changed: Counter[str] = field(default_factory=Counter)
    compared: int = 0
    same: int = 0
    differing: Counter[frozenset[str]] = field(default_factory=Counter)

    def most_changed(self) -> list[tuple[str, int]]:
        """Give the traits that change and in how many calls, those that change most first."""
        return sorted(self.changed.items(), key=lambda one: (-one[1], one[0]))

    def alone(self, name: str) -> int:
        """Say how many calls would have been the same but for one trait."""
        return self.differing[frozenset((name,))]

    def without(self, names: Iterable[str]) -> int:
        """Say how many calls more would be the same if some traits were ignored."""
        ignored = frozenset(names)
        return sum(number for differing, number in self.differing.items() if differing <= ignored)

    def suggestion(self) -> Suggestion:
        """Choose traits to ignore: those that change often, and without whose change calls would be the same.

        Traits that change together keep a call together, so they are chosen together: whichever change in a fifth of
        the calls, less those without which hardly fewer calls would be left out.
        """
        often = _OFTEN * self.following
        # The one that changes least is the first to be spared.
        names = [
            name
            for name, number in reversed(self.most_changed())
            if number >= often and any(name in differing for differing in self.differing)
        ]
        least = (1 - _WORTH) * self.without(names)
        for name in list(names):
            fewer = [one for one in names if one != name]
            if self.without(fewer) >= least:
                names = fewer
        found = self.without(names)
        if found <= _LEAST * self.compared:
            return Suggestion((), 0)
        return Suggestion(tuple(reversed(names)), found)


class Tally:
    """Counts records and their calls.

    Args:
        ignored: the traits that suppression ignores.

    Attributes:
        records: how many there were.
        calls: those made of them, by type.
        rejects: records that can't become calls, by reason.
        filtered: records of which no call is to be made, by reason.
        changes: those of identify and of group calls.
    """

    def __init__(self, ignored: frozenset[str] = frozenset()) -> None:
        self.records = 0
        self.calls: Counter[str] = Counter()
        self.rejects: Counter[Reason] = Counter()
        self.filtered: Counter[FilterReason] = Counter()
        self.changes = {"identify": Changes(), "group": Changes()}
        self._ignored = ignored
        self._partitions: dict[Hashable, set[Partition]] = {}
        # The last traits of each profile, and of what they are laid over; the last of each pair but for its traits.
        self._profiles: dict[Hashable, _Traits] = {}
        self._targets: dict[Hashable, _Traits] = {}
        self._pairs: dict[Hashable, bytes] = {}

    @property
    def users(self) -> int:
        """How many users there are: userIds, or anonymousIds where there is none."""
        return len(self._partitions)

    @property
    def scattered(self) -> int:
        """How many of them have identify calls from more than one partition."""
        return sum(len(partitions) > 1 for partitions in self._partitions.values())

    def add(
        self, partition: Partition, write_key: str, made: Formatted | Changed | Reject | Filtered
    ) -> None:
        """Count a record, in the order in which they came.

        Args:
            partition: the record's.
            write_key: that of its calls.
            made: what came of it, before any of it merges.
        """
        self.records += 1
        if isinstance(made, Reject):
            self.rejects[made.reason] += 1
            return
        if isinstance(made, Filtered):
            self.filtered[made.reason] += 1
            return
        calls: Iterable[Contribution | Main]
        if isinstance(made, Formatted):
            calls = made.contributions
            self.calls[made.type] += 1
        else:
            calls = made.taken
        for call in calls:
            self.calls[call.type] += 1
            if isinstance(call, Main):
                continue
            if call.type == "identify":
                user = write_key, orjson.dumps(call.profile)
                self._partitions.setdefault(user, set()).add(partition)
            if not isinstance(call, Fixed):
                self._compare(call, write_key)

    def _compare(self, call: Contribution, write_key: str) -> None:
        """Hold a call against those before it; see `Suppression.leaves_out`."""
        changes, profile = self.changes[call.type], call.profile
        user, anonymous = call.pair
        group = profile[1] if isinstance(profile, tuple) else None
        traits = {name: orjson.dumps(value) for name, value in call.traits.items()}
        rest = without_news(call)

        own = write_key, call.type, profile
        before = self._profiles.get(own)
        if before is not None:
            changes.following += 1
            changes.changed.update(_differing(before, traits))
        self._profiles[own] = traits

        target = write_key, call.type, profile if group is None else group
        pair = write_key, call.type, group, anonymous, user if anonymous is None else None
        had, known = self._targets.get(target), self._pairs.get(pair)
        if had is not None and known is not None:
            changes.compared += 1
            if known == rest and _in_order(had, traits):
                differing = _differing(had, traits) - self._ignored
                if differing:
                    changes.differing[differing] += 1
                else:
                    changes.same += 1
        self._targets[target] = traits
        self._pairs[pair] = rest


def _differing(before: _Traits, traits: _Traits) -> frozenset[str]:
    return frozenset(
        name for name in before.keys() | traits.keys() if before.get(name) != traits.get(name)
    )


def _in_order(before: _Traits, traits: _Traits) -> bool:
    """Whether the traits that both have stand in the same order: they are compared as JSON."""
    return [name for name in before if name in traits] == [
        name for name in traits if name in before
    ]
