"""The memory budget knows what is held, and gets all of it back."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from streamer.core.budget import Budget, Share


def test_from_its_limit_on_the_budget_is_spent_and_below_it_is_not() -> None:
    budget = Budget(100)
    share = budget.share()
    share.take(99)
    assert not budget.spent
    assert not share.spent
    share.take(1)
    assert budget.spent
    assert share.spent
    share.give(1)
    assert not budget.spent


def test_what_one_read_brought_is_held_even_past_the_limit() -> None:
    budget = Budget(100)
    budget.share().take(1000)
    assert (budget.used, budget.peak, budget.spent) == (1000, 1000, True)


def test_one_share_spends_the_budget_for_all() -> None:
    budget = Budget(100)
    one, other = budget.share(), budget.share()
    one.take(100)
    assert other.spent
    one.end()
    assert not other.spent


def test_more_than_was_taken_cannot_be_given_back() -> None:
    budget = Budget(100)
    one, other = budget.share(), budget.share()
    one.take(10)
    other.take(10)
    with pytest.raises(RuntimeError, match="11 bytes given back to the memory budget, 10 taken"):
        one.give(11)
    assert (one.used, budget.used) == (10, 20)


def test_the_end_of_a_share_gives_all_of_it_back_once() -> None:
    budget = Budget(100)
    one, other = budget.share(), budget.share()
    one.take(60)
    other.take(30)
    one.end()
    assert (budget.used, one.used, other.used) == (30, 0, 30)
    one.end()
    one.give(60)
    one.take(60)
    assert (budget.used, one.used, budget.peak) == (30, 0, 90)


class AnyShares(RuleBasedStateMachine):
    """Shares that take, give and end in any order, against a plain sum."""

    @initialize(limit=st.integers(1, 500))
    def begin(self, limit: int) -> None:
        self.budget = Budget(limit)
        self.shares: list[Share] = []
        self.held: list[int | None] = []  # None once it has ended
        self.peak = 0
        self.open()

    @rule()
    def open(self) -> None:
        self.shares.append(self.budget.share())
        self.held.append(0)

    @rule(data=st.data(), size=st.integers(0, 300))
    def take(self, data: st.DataObject, size: int) -> None:
        number = data.draw(st.integers(0, len(self.shares) - 1))
        self.shares[number].take(size)
        held = self.held[number]
        if held is not None:
            self.held[number] = held + size
            self.peak = max(self.peak, self.used())

    @rule(data=st.data(), size=st.integers(0, 300))
    def give(self, data: st.DataObject, size: int) -> None:
        number = data.draw(st.integers(0, len(self.shares) - 1))
        held = self.held[number]
        if held is None:
            self.shares[number].give(size)
        elif size > held:
            with pytest.raises(RuntimeError):
                self.shares[number].give(size)
        else:
            self.shares[number].give(size)
            self.held[number] = held - size

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, len(self.shares) - 1))
        self.shares[number].end()
        self.held[number] = None

    def used(self) -> int:
        return sum(held or 0 for held in self.held)

    @invariant()
    def the_budget_is_the_sum_of_its_shares(self) -> None:
        assert self.budget.used == self.used()
        assert [share.used for share in self.shares] == [held or 0 for held in self.held]
        assert self.budget.peak == self.peak
        assert self.budget.spent == (self.used() >= self.budget.limit)

    def teardown(self) -> None:
        for share in self.shares:
            share.end()
        assert self.budget.used == 0


TestAnyShares = AnyShares.TestCase
TestAnyShares.settings = settings(deadline=None, max_examples=40, stateful_step_count=30)
