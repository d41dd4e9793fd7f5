"""The judge of a run finds what isn't as it should be."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import orjson
import pytest

from chaos.judge import POISON, WRITE_KEYS, Judge
from kafka_broker.topics import ReadRecord, ToProduce
from reference.interpreter import Interpreter
from streamer.core.mapping import BUILTIN_CALLBACKS, default_mapping
from streamer.demo.events import generate
from streamer.mock_segment import Line, MockSegment, Stats
from whole_pipeline import GROUP_FIELD, GROUP_TRAITS, WRITE_KEY, Produced

if TYPE_CHECKING:
    from collections.abc import Callable

END = {("t", 0): 400}


@dataclass
class Seen:
    """What a run ends with: as a mock Segment, and the dead letters."""

    lines: list[Line] = field(default_factory=list)
    profiles: dict[str, dict[str, Any]] = field(default_factory=dict)
    group_profiles: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    stats: Stats = field(default_factory=Stats)
    letters: list[ReadRecord] = field(default_factory=list)
    committed: dict[tuple[str, int], int] = field(default_factory=END.copy)

    def take(self, call: dict[str, Any]) -> None:
        user = str(call.get("userId", call.get("anonymousId")))
        if call["type"] == "identify":
            self.profiles.setdefault(user, {}).update(call["traits"])
        elif call["type"] == "group":
            profile = self.group_profiles.setdefault((user, call["groupId"]), {})
            profile.update(call.get("traits", {}))
        self.lines.append(Line(1, 0, "accepted", None, "", call["type"], call["messageId"], call))

    def bury(self, place: Produced, kind: str, reason: str, value: bytes | None) -> None:
        facts = {"kind": kind, "reason": reason, "topic": "t"}
        facts |= {"partition": str(place.partition), "offset": str(place.offset)}
        headers = tuple((f"streamer-{name}", text.encode()) for name, text in facts.items())
        number = len(self.letters)
        key = place.record.key
        self.letters.append(ReadRecord("t.dead-letter", 0, number, key, value, 0, headers))


def after_a_run() -> tuple[Judge, Seen]:
    """A judge and what it should find when all went well."""
    judge, seen = Judge(), Seen()
    events = generate(1, users=50, broken=0.05, missing_ids=0.05, oversized=0.02)
    groups = [{"field": GROUP_FIELD, "traits": GROUP_TRAITS, "each": True}]
    for number, event in enumerate(islice(events, 400)):
        value = event.value
        if number % 100 == 7:
            value = orjson.dumps({**orjson.loads(value), "event_type": POISON})
        place = Produced(0, number, ToProduce(event.key, value, 1_000))
        judge.add(place)
        site = "1"
        if value.endswith(b"}") and value.count(b'"blogId":"'):
            site = value.partition(b'"blogId":"')[2][:1].decode()
        key = WRITE_KEYS.get(site, WRITE_KEY)
        interpreter = Interpreter(key, default_mapping(), groups, BUILTIN_CALLBACKS)
        calls = interpreter.calls(value, 1_000)
        if not isinstance(calls, list):
            seen.bury(place, "record", str(calls), value)
            continue
        for call in calls:
            if call.get("event") == POISON:
                seen.bury(place, "call", "refused", orjson.dumps(call))
            else:
                seen.take(call)
    return judge, seen


def verdict(judge: Judge, seen: Seen) -> list[str]:
    return judge.differences(cast("MockSegment", seen), "t", seen.letters, seen.committed, END)


def test_all_is_well() -> None:
    judge, seen = after_a_run()
    assert {letter.headers[0][1] for letter in seen.letters} == {b"record", b"call"}
    seen.letters += seen.letters  # a redelivery may write them again
    assert verdict(judge, seen) == []


def _main(seen: Seen) -> int:
    return next(n for n, line in enumerate(seen.lines) if line.type == "page")


def _lose_a_call(seen: Seen) -> None:
    del seen.lines[_main(seen)]


def _make_a_call_up(seen: Seen) -> None:
    seen.lines.append(seen.lines[_main(seen)]._replace(message_id="s1-made-up"))


def _lose_a_trait(seen: Seen) -> None:
    next(iter(seen.profiles.values())).popitem()


def _lose_a_user(seen: Seen) -> None:
    seen.profiles.popitem()


def _change_a_trait_of_a_group(seen: Seen) -> None:
    next(iter(seen.group_profiles.values()))["country"] = "elsewhere"


def _discard(seen: Seen) -> None:
    seen.stats.discards = Counter({"too_large": 1})


def _lose_letters(kind: bytes) -> Callable[[Seen], None]:
    def lose(seen: Seen) -> None:
        found = next(letter for letter in seen.letters if letter.headers[0][1] == kind)
        seen.letters.remove(found)

    return lose


def _bury_what_is_well(seen: Seen) -> None:
    seen.bury(Produced(0, 0, ToProduce(b"", b"")), "record", "not_json", b"")


def _bury_a_call_that_is_well(seen: Seen) -> None:
    place = Produced(0, 0, ToProduce(b"", b""))
    seen.bury(place, "call", "refused", orjson.dumps({"messageId": "s1-well"}))


def _change_a_letter(seen: Seen) -> None:
    found = next(n for n, letter in enumerate(seen.letters) if letter.headers[0][1] == b"record")
    seen.letters[found] = replace(seen.letters[found], value=b"another")


def _commit_less(seen: Seen) -> None:
    seen.committed["t", 0] -= 1


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_lose_a_call, "1 page and track calls never arrived"),
        (_make_a_call_up, "1 page and track calls arrived that nobody meant: s1-made-up"),
        (_lose_a_trait, "1 profiles of users are wrong"),
        (_lose_a_user, "1 profiles of users are wrong"),
        (_change_a_trait_of_a_group, "1 profiles of users in groups are wrong"),
        (_discard, "1 reasons for which Segment threw calls away"),
        (_lose_letters(b"record"), "1 records that can't become calls have no dead letter"),
        (_lose_letters(b"call"), "1 calls that Segment refused have no dead letter"),
        (_bury_what_is_well, "1 dead letters are of records that are well"),
        (_bury_a_call_that_is_well, "1 dead letters are of calls that Segment didn't refuse"),
        (_change_a_letter, "1 dead letters are wrong"),
        (_commit_less, "1 committed offsets aren't the end"),
    ],
)
def test_what_is_not_is_said(spoil: Callable[[Seen], None], said: str) -> None:
    judge, seen = after_a_run()
    spoil(seen)
    found = verdict(judge, seen)
    assert len(found) == 1
    assert found[0].startswith(said)
