"""Who is in a sample is the same everywhere, and what is taken out of a node is gone for good."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streamer.core.exclude import Drops, Exclusions, in_sample, without
from streamer.core.mapping import Branch, Merge, Nothing, Path, Static, Without

NAME, SIZE = Path(("name",)), Path(("size",))

shares = st.floats(0, 1)


@given(st.text(), st.text(), shares, shares)
def test_who_is_in_a_sample_is_in_a_larger_one(
    event_type: str, user: str, share: float, other: float
) -> None:
    small, large = sorted([share, other])
    assert not in_sample(event_type, user, small) or in_sample(event_type, user, large)


@given(st.text(), st.text())
def test_a_share_of_nothing_has_nobody_and_one_of_all_has_everybody(
    event_type: str, user: str
) -> None:
    assert not in_sample(event_type, user, 0)
    assert in_sample(event_type, user, 1)


def test_the_form_of_the_sample_never_changes() -> None:
    """A user who is in today is in tomorrow, on whatever machine."""
    users = [f"user-{number}" for number in range(10)]
    assert [u for u in users if in_sample("scroll", u, 0.5)] == ["user-1", "user-5", "user-8"]


def test_a_sample_has_about_the_users_that_its_share_says_and_others_for_another_type() -> None:
    users = [f"user-{number}" for number in range(10_000)]
    scroll = {user for user in users if in_sample("scroll", user, 0.1)}
    click = {user for user in users if in_sample("click", user, 0.1)}
    assert 850 < len(scroll) < 1150
    assert 50 < len(scroll & click) < 150


def test_what_a_branch_makes_of_a_dropped_key_is_not_even_looked_up() -> None:
    branch = Branch((("name", NAME), ("size", SIZE)))
    assert without(branch, {"name": {}}) == Branch((("size", SIZE),))
    assert without(branch, {"name": {}, "size": {}}) == Nothing()
    assert without(branch, {"other": {}}) == branch
    assert without(Branch((("traits", branch),)), {"traits": {"name": {}, "size": {}}}) == Nothing()


def test_what_comes_from_the_event_is_stripped_when_it_is_there() -> None:
    assert without(NAME, {"a": {}}) == Without(NAME, (("a", ()),))
    merge = Merge((NAME, Branch((("a", SIZE),))))
    assert without(merge, {"a": {}}) == Without(merge, (("a", ()),))
    assert without(merge, {}) is merge
    assert without(Static("text"), {"a": {}}) == Static("text")


def test_what_is_excluded_nowhere_is_dropped_nowhere() -> None:
    assert Exclusions(frozenset({"scroll"}), sample={"click": 0.5}).drops() == {}
    traits: Drops = {"Email": {}}
    assert Exclusions(traits=("Email",)).drops() == {
        "traits": traits,
        "context": {"traits": traits},
    }
