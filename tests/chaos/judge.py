"""What the input should have become, gathered while it is produced, and what of that is not so at the end.

The same promises as `Stage.assert_accounted_for` holds, for a run of half an hour: nothing is kept of a record but what
the end needs, and what doesn't fit is told in sentences.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import orjson

import whole_pipeline
from chaos.plan import SITES
from whole_pipeline import WRITE_KEY, Produced

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kafka_broker.topics import Partition, ReadRecord, ToProduce
    from streamer.mock_segment import MockSegment

POISON = "poison"
"""The event type whose calls Segment refuses."""
WRITE_KEYS = {site: f"a-write-key-of-thirty-two-chars-{site}" for site in SITES}
"""By site; all other sites have `WRITE_KEY`."""

_SHOWN = 3  # examples of each difference


class Judge:
    """Knows what was produced and what mock Segment accepted.

    Attributes:
        produced: how many records are in the topic.
        refused: the ids of the calls that Segment refuses.
        accepted: the ids of the page and track calls that it has accepted.
    """

    def __init__(self) -> None:
        self.produced = 0
        self.refused: set[str] = set()
        self.accepted: set[str] = set()
        self._mains: dict[str, tuple[int, int]] = {}
        self._rejects: dict[tuple[int, int], tuple[str, ToProduce]] = {}
        self._users: dict[str, dict[str, Any]] = {}
        self._groups: dict[tuple[str, str], dict[str, Any]] = {}
        self._homes: dict[str, tuple[str, int]] = {}

    def add(self, place: Produced) -> None:
        """Take a record in; those of a partition in their order."""
        self.produced += 1
        site, poisoned = _look_at(place.record)
        found = whole_pipeline._expect([place], {}, WRITE_KEYS.get(site, WRITE_KEY))
        assert not found.mains.keys() & self._mains.keys(), "the input has an event twice"
        self._mains.update(dict.fromkeys(found.mains, (place.partition, place.offset)))
        self._rejects.update(found.rejects)
        if poisoned:
            self.refused.update(found.mains)
        for user, traits in found.users.items():
            # Without this, the order of a user's traits would be anyone's guess.
            home = (site, place.partition)
            assert self._homes.setdefault(user, home) == home, "a visitor in two places"
            self._users.setdefault(user, {}).update(traits)
        for key, traits in found.groups.items():
            self._groups.setdefault(key, {}).update(traits)

    def fold(self, segment: MockSegment) -> None:
        """Take in what the mock has accepted since, and let it forget the calls."""
        lines = segment.lines
        for line in lines:
            if line.fate == "accepted" and line.type in ("page", "track"):
                self.accepted.add(str(line.message_id))
        lines.clear()

    def differences(
        self,
        segment: MockSegment,
        topic: str,
        letters: Iterable[ReadRecord],
        committed: Mapping[Partition, int],
        ends: Mapping[Partition, int],
    ) -> list[str]:
        """Say what isn't as it should be; nothing if all is well.

        Args:
            segment: the mock.
            topic: that was produced to.
            letters: what stands in the dead-letter topic.
            committed: the group's offsets.
            ends: of the topic's partitions.
        """
        self.fold(segment)
        said: list[str] = []

        def say(what: str, examples: Iterable[object]) -> None:
            found = sorted(map(str, examples))
            if found:
                said.append(f"{len(found)} {what}: {'; '.join(found[:_SHOWN])}")

        say("reasons for which Segment threw calls away", segment.stats.discards.items())
        wanted = self._mains.keys() - self.refused
        lost = wanted - self.accepted
        say("page and track calls never arrived", (f"{id_} of {self._mains[id_]}" for id_ in lost))
        say("page and track calls arrived that nobody meant", self.accepted - wanted)

        found: dict[tuple[int, int], list[ReadRecord]] = {}
        refused: Counter[str] = Counter()
        for letter in letters:
            if whole_pipeline._header(letter, "kind") == "call":
                refused[orjson.loads(letter.value or b"")["messageId"]] += 1
            else:
                place = tuple(
                    int(whole_pipeline._header(letter, name)) for name in ("partition", "offset")
                )
                found.setdefault((place[0], place[1]), []).append(letter)
        say("records that can't become calls have no dead letter", self._rejects.keys() - found)
        say("dead letters are of records that are well", found.keys() - self._rejects.keys())
        wrong = [
            f"{place}: {whole_pipeline._header(letter, 'reason')} in place of {reason}, or changed"
            for place, (reason, record) in self._rejects.items()
            for letter in found.get(place, ())
            if whole_pipeline._header(letter, "reason") != reason
            or whole_pipeline._header(letter, "topic") != topic
            or (letter.key, letter.value or b"") != (record.key, record.value or b"")
            or letter.headers[: len(record.headers)] != record.headers
        ]
        say("dead letters are wrong", wrong)
        say("calls that Segment refused have no dead letter", self.refused - refused.keys())
        say("dead letters are of calls that Segment didn't refuse", refused.keys() - self.refused)

        say("profiles of users are wrong", _unequal(segment.profiles, self._users))
        say("profiles of users in groups are wrong", _unequal(segment.group_profiles, self._groups))
        offsets = {p: (committed.get(p, 0), end) for p, end in ends.items()}
        say("committed offsets aren't the end", [p for p in offsets.items() if len(set(p[1])) > 1])
        return said


def _look_at(record: ToProduce) -> tuple[str, bool]:
    """Give the site of a record, as far as it has one, and whether Segment refuses its main call."""
    try:
        event = orjson.loads(record.value or b"")
        return str(event["attributes"]["blogId"]), event.get("event_type") == POISON
    except (ValueError, TypeError, KeyError):
        return "", False  # it becomes no calls, or those of a visitor without a site


def _unequal(found: Mapping[Any, Any], wanted: Mapping[Any, Any]) -> list[str]:
    differing = []
    for key in found.keys() | wanted.keys():
        has, should = found.get(key, {}), wanted.get(key, {})
        if has != should:
            traits = sorted(t for t in has.keys() | should.keys() if has.get(t) != should.get(t))
            shown = ", ".join(f"{t} {has.get(t)!r} for {should.get(t)!r}" for t in traits[:3])
            differing.append(f"{key}: {shown}")
    return differing
