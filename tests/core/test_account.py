"""Every record and every call has one fate, whenever its generation ends."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from streamer.core.account import Account, Ledger
from streamer.core.model import CALL_TYPES, FilterReason, Reason

MAIN = ("page", "track")
FIRST_FATE = {"delivered": "delivered", "refused": "dead_lettered"}


def everything(account: Account) -> dict[str, Any]:
    """A copy of all totals."""
    return {
        one.name: value if isinstance(value := getattr(account, one.name), int) else dict(value)
        for one in fields(Account)
    }


def test_a_record_is_delivered_with_its_main_call_alone() -> None:
    account = Account()
    ledger = account.ledger()
    ledger.consumed("events", 1, 100)
    ledger.made("identify")
    ledger.made("track")
    ledger.delivered("identify", 1)
    assert (account.delivered, account.in_flight) == (0, 1)
    ledger.delivered("track", 1)
    assert (account.delivered, account.in_flight) == (1, 0)
    assert account.calls_delivered == {"identify": 1, "group": 0, "page": 0, "track": 1}
    assert (account.consumed["events"], account.consumed_bytes["events"]) == (1, 100)
    assert account.balance() == []


def test_a_refused_identify_call_does_not_decide_its_record() -> None:
    account = Account()
    ledger = account.ledger()
    ledger.consumed("events", 1, 100)
    ledger.made("identify")
    ledger.made("page")
    ledger.refused("identify", Reason.REFUSED)
    assert (account.refused["identify"], account.dead_lettered.total()) == (1, 0)
    ledger.refused("page", Reason.REFUSED)
    assert account.dead_lettered == {Reason.REFUSED: 1}
    assert (account.delivered, account.in_flight) == (0, 0)
    assert account.balance() == []


def test_a_rejected_record_has_no_calls() -> None:
    account = Account()
    ledger = account.ledger()
    ledger.consumed("events", 2, 10)
    ledger.dead_lettered(Reason.NOT_JSON)
    assert account.dead_lettered == {Reason.NOT_JSON: 1}
    assert account.in_flight == 1
    assert account.balance() == []


def test_a_filtered_record_is_settled_without_calls() -> None:
    account = Account()
    ledger = account.ledger()
    ledger.consumed("events", 3, 10)
    ledger.filtered(FilterReason.DROPPED_EVENT)
    ledger.filtered(FilterReason.SAMPLED_OUT)
    assert account.filtered == {FilterReason.DROPPED_EVENT: 1, FilterReason.SAMPLED_OUT: 1}
    assert (account.in_flight, ledger.records) == (1, 1)
    assert account.balance() == []


def test_what_is_in_flight_when_its_generation_ends_is_released_once() -> None:
    account = Account()
    ledger = account.ledger()
    ledger.consumed("events", 3, 10)
    ledger.made("track", 2)
    ledger.delivered("track", 1)
    ledger.end()
    assert (account.released, account.calls_released["track"], account.in_flight) == (2, 1, 0)
    assert (ledger.records, sum(ledger.calls.values()), ledger.ended) == (0, 0, True)
    before = everything(account)
    ledger.end()
    assert everything(account) == before


def test_what_completes_after_the_end_counts_nowhere() -> None:
    account = Account()
    ledger = account.ledger()
    ledger.consumed("events", 2, 10)
    ledger.made("identify", 2)
    ledger.made("track", 2)
    ledger.end()
    before = everything(account)
    ledger.consumed("events", 1, 5)
    ledger.made("track")
    ledger.merged("identify")
    ledger.suppressed("identify")
    ledger.delivered("track", 1)
    ledger.refused("track", Reason.REFUSED)
    ledger.dead_lettered(Reason.EMPTY)
    ledger.filtered(FilterReason.SAMPLED_OUT)
    assert everything(account) == before
    assert account.balance() == []


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("delivered", "records: 2 consumed, but 2 decided and 1 in flight"),
        ("released", "records: 2 consumed, but 2 decided and 1 in flight"),
        ("in_flight", "records: 2 consumed, but 1 decided and 2 in flight"),
    ],
)
def test_a_record_counted_twice_is_named(name: str, sentence: str) -> None:
    account = Account()
    ledger = account.ledger()
    ledger.consumed("events", 2, 10)
    ledger.made("track")
    ledger.delivered("track", 1)
    assert account.balance() == []
    setattr(account, name, getattr(account, name) + 1)
    assert account.balance() == [sentence]


@pytest.mark.parametrize(
    "fate", ["calls_delivered", "merged", "suppressed", "refused", "calls_released"]
)
def test_a_call_counted_twice_is_named(fate: str) -> None:
    account = Account()
    account.ledger().made("group", 3)
    getattr(account, fate)["group"] += 1
    assert account.balance() == ["group calls: 3 made, but 1 ended and 3 in flight"]


@pytest.mark.parametrize("fate", ["filtered", "dead_lettered"])
def test_a_record_that_was_never_read_is_named(fate: str) -> None:
    account = Account()
    getattr(account, fate)["any"] += 1
    assert account.balance() == ["records: 0 consumed, but 1 decided and 0 in flight"]


def test_a_fate_that_is_decided_twice_is_named() -> None:
    account = Account()
    ledger = account.ledger()
    ledger.consumed("events", 1, 10)
    ledger.made("track")
    ledger.delivered("track", 1)
    ledger.delivered("track", 1)
    assert account.balance() == ["less than nothing is in flight: a fate was decided twice"]


# --- generations that begin and end at any time -----------------------------------------------------


@dataclass
class Story:
    """A generation: its ledger, and what of it is in flight."""

    ledger: Ledger
    ended: bool = False
    fresh: int = 0  # records of which nothing was made yet
    calls: list[str] = field(default_factory=list)


class AnyFate(RuleBasedStateMachine):
    """Several generations at once, each with steps before and after its end, against plain counts."""

    @initialize()
    def begin(self) -> None:
        self.account = Account()
        self.stories: list[Story] = []
        self.records: Counter[str] = Counter()
        self.calls: Counter[tuple[str, str]] = Counter()
        self.generation()

    @rule()
    def generation(self) -> None:
        self.stories.append(Story(self.account.ledger()))

    def story(self, data: st.DataObject) -> Story:
        # mostly the latest one
        return data.draw(st.sampled_from([*self.stories, *[self.stories[-1]] * 3]))

    @rule(data=st.data(), records=st.integers(0, 5))
    def read(self, data: st.DataObject, records: int) -> None:
        story = self.story(data)
        story.ledger.consumed("events", records, 7 * records)
        if not story.ended:
            story.fresh += records
            self.records["consumed"] += records

    @rule(data=st.data(), before=st.lists(st.sampled_from(CALL_TYPES[:2]), max_size=3))
    def make(self, data: st.DataObject, before: list[str]) -> None:
        story = self.story(data)
        if not story.fresh:
            return
        story.fresh -= 1
        for kind in (*before, data.draw(st.sampled_from(MAIN))):
            story.ledger.made(kind)
            story.calls.append(kind)
            if not story.ended:
                self.calls["made", kind] += 1

    @rule(data=st.data())
    def reject(self, data: st.DataObject) -> None:
        story = self.story(data)
        if story.fresh:
            story.fresh -= 1
            story.ledger.dead_lettered(Reason.NOT_JSON)
            if not story.ended:
                self.records["dead_lettered"] += 1

    @rule(data=st.data())
    def keep_back(self, data: st.DataObject) -> None:
        story = self.story(data)
        if story.fresh:
            story.fresh -= 1
            story.ledger.filtered(FilterReason.DROPPED_EVENT)
            if not story.ended:
                self.records["filtered"] += 1

    @rule(data=st.data(), fate=st.sampled_from(["delivered", "merged", "suppressed", "refused"]))
    def decide(self, data: st.DataObject, fate: str) -> None:
        story = self.story(data)
        choices = [
            kind for kind in story.calls if fate in ("delivered", "refused") or kind not in MAIN
        ]
        if not choices:
            return
        kind = data.draw(st.sampled_from(choices))
        story.calls.remove(kind)
        match fate:
            case "delivered":
                story.ledger.delivered(kind, 1)
            case "merged":
                story.ledger.merged(kind)
            case "suppressed":
                story.ledger.suppressed(kind)
            case _:
                story.ledger.refused(kind, Reason.REFUSED)
        if not story.ended:
            self.calls[fate, kind] += 1
            if kind in MAIN:
                self.records[FIRST_FATE[fate]] += 1

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        story = self.story(data)
        story.ledger.end()
        if not story.ended:
            story.ended = True
            self.records["released"] += story.fresh
            for kind in story.calls:
                self.calls["released", kind] += 1
                self.records["released"] += kind in MAIN

    @invariant()
    def it_balances(self) -> None:
        assert self.account.balance() == []

    @invariant()
    def each_fate_is_counted_as_often_as_it_was_met(self) -> None:
        account, open_stories = self.account, [s for s in self.stories if not s.ended]
        records = {
            "consumed": account.consumed.total(),
            "delivered": account.delivered,
            "filtered": account.filtered.total(),
            "dead_lettered": account.dead_lettered.total(),
            "released": account.released,
        }
        assert records == {name: self.records[name] for name in records}
        assert account.consumed_bytes.total() == 7 * self.records["consumed"]
        assert account.in_flight == sum(
            story.fresh + sum(kind in MAIN for kind in story.calls) for story in open_stories
        )
        for kind in CALL_TYPES:
            calls = {
                "made": account.made,
                "delivered": account.calls_delivered,
                "merged": account.merged,
                "suppressed": account.suppressed,
                "refused": account.refused,
                "released": account.calls_released,
            }
            for fate, counts in calls.items():
                assert counts[kind] == self.calls[fate, kind]
            assert account.calls_in_flight[kind] == sum(s.calls.count(kind) for s in open_stories)


TestAnyFate = AnyFate.TestCase
TestAnyFate.settings = settings(deadline=None, max_examples=40, stateful_step_count=40)
