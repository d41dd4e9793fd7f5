"""What is counted of records and calls, and what of it is said to change."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.test_aggregate import contribution
from core.test_suppression import Bench
from streamer.core.model import (
    Changed,
    Filtered,
    FilterReason,
    Fixed,
    Formatted,
    Main,
    Reason,
    Reject,
)
from streamer.core.tally import Suggestion, Tally
from streamer.core.transform import Transform
from streamer.demo.events import GROUPS, generate

if TYPE_CHECKING:
    from streamer.core.model import Contribution, Partition

FIRST: Partition = ("events", 0)
SECOND: Partition = ("events", 1)


def formatted(*contributions: Contribution) -> Formatted:
    return Formatted(contributions, "track", b"{}")


def tally(*traits: dict[str, Any], ignored: tuple[str, ...] = (), **who: Any) -> Tally:
    counted = Tally(frozenset(ignored))
    for one in traits:
        counted.add(FIRST, "key", formatted(contribution(one, **who)))
    return counted


def test_records_and_calls_are_counted_by_what_became_of_them() -> None:
    counted = Tally()
    counted.add(FIRST, "key", formatted(contribution({}), contribution({}, group="g")))
    counted.add(FIRST, "", Reject(Reason.NOT_JSON, "x"))
    counted.add(FIRST, "", Filtered(FilterReason.HOOK))
    page = Main("page", b"{}", decides=True)
    counted.add(FIRST, "key", Changed((contribution({}), page, page)))
    assert counted.records == 4
    assert counted.calls == {"identify": 2, "group": 1, "track": 1, "page": 2}
    assert counted.rejects == {Reason.NOT_JSON: 1}
    assert counted.filtered == {FilterReason.HOOK: 1}


def test_a_trait_changes_if_it_is_another_is_new_or_is_gone() -> None:
    """Of the calls that follow another of their profile, the first of which isn't one of them."""
    changes = tally({"a": 1, "b": 1}, {"a": 2, "b": 1}, {"a": 2}, {"a": 2, "c": 1}).changes
    assert changes["identify"].following == 3
    assert changes["identify"].changed == {"a": 1, "b": 1, "c": 1}
    assert changes["group"].following == 0


@pytest.mark.parametrize(("value", "other"), [(1, 1.0), (1, True), (0, False), ("1", 1)])
def test_values_are_compared_as_json(value: Any, other: Any) -> None:
    """As suppression does it: what Python takes for equal isn't."""
    assert tally({"a": value}, {"a": other}).changes["identify"].changed == {"a": 1}


def test_profiles_are_apart_by_user_by_group_and_by_write_key() -> None:
    counted = Tally()
    others: list[tuple[str, dict[str, Any]]] = [
        ("key", {}),
        ("other", {}),
        ("key", {"user": "u2"}),
        ("key", {"group": "g"}),
    ]
    for number, (key, who) in enumerate(others):
        counted.add(FIRST, key, formatted(contribution({"a": number}, **who)))
    assert counted.changes["identify"].following == counted.changes["group"].following == 0
    assert counted.users == 3


def test_calls_that_differ_in_one_trait_alone_are_told_from_those_that_differ_in_more() -> None:
    changes = tally(
        {"a": 1, "b": 1}, {"a": 2, "b": 1}, {"a": 3, "b": 1}, {"a": 4, "b": 2}, {"a": 4, "b": 2}
    ).changes["identify"]
    assert (changes.compared, changes.same) == (4, 1)
    assert (changes.alone("a"), changes.alone("b")) == (2, 0)
    assert changes.without(["b"]) == 0
    assert changes.without(["a", "b"]) == 3


def test_another_context_is_news_that_no_trait_is_to_blame_for() -> None:
    counted = Tally()
    for number in range(3):
        one = contribution({"a": number}, context=str(number))
        counted.add(FIRST, "key", formatted(one))
    changes = counted.changes["identify"]
    assert (changes.following, changes.compared, changes.same) == (2, 2, 0)
    assert changes.changed == {"a": 2}
    assert changes.alone("a") == 0
    assert changes.suggestion() == Suggestion((), 0)


def test_an_anonymous_id_that_comes_for_the_first_time_has_to_be_sent() -> None:
    counted = Tally()
    for anonymous in ("a1", "a2", "a1"):
        counted.add(FIRST, "key", formatted(contribution({"a": 1}, anonymous=anonymous)))
    changes = counted.changes["identify"]
    assert (changes.following, changes.compared, changes.same) == (2, 1, 1)


def test_groups_traits_are_the_groups_whichever_user_says_them() -> None:
    """For suppression; how often a trait changes is by the user in the group."""
    counted = Tally()
    for number, user in enumerate(["u1", "u2", "u1", "u2"]):
        one = contribution({"a": number % 2}, user=user, anonymous=user, group="g")
        counted.add(FIRST, "key", formatted(one))
    changes = counted.changes["group"]
    assert (changes.following, changes.changed["a"]) == (2, 0)
    assert (changes.compared, changes.same, changes.alone("a")) == (2, 0, 2)


def test_traits_in_another_order_are_news() -> None:
    changes = tally({"a": 1, "b": 1}, {"b": 1, "a": 1}).changes["identify"]
    assert (changes.compared, changes.same, changes.without(["a", "b"])) == (1, 0, 0)


def test_what_is_suggested_changes_often_and_keeps_calls_from_being_left_out() -> None:
    """Together, if it changes together; not what changes seldom, nor what makes no difference."""
    calls = [
        {"views": number, "page": number, "plan": number // 90, "noise": number % 2}
        for number in range(100)
    ]
    changes = tally(*calls).changes["identify"]
    assert changes.suggestion() == Suggestion(("noise", "page", "views"), 98)
    steady = tally(*({"views": number, "page": number // 50} for number in range(100)))
    assert steady.changes["identify"].suggestion() == Suggestion(("views",), 98)
    assert tally(*calls[:1]).changes["identify"].suggestion() == Suggestion((), 0)


def test_what_is_ignored_already_is_not_suggested_again() -> None:
    calls = [{"views": number, "page": number} for number in range(10)]
    changes = tally(*calls, ignored=("views",)).changes["identify"]
    assert changes.changed == {"views": 9, "page": 9}
    assert changes.alone("page") == 9
    assert changes.suggestion() == Suggestion(("page",), 9)
    changes = tally(*calls, ignored=("views", "page")).changes["identify"]
    assert (changes.same, changes.suggestion()) == (9, Suggestion((), 0))


def test_users_of_several_partitions_are_counted() -> None:
    counted = Tally()
    for partition, user in [(FIRST, "u1"), (SECOND, "u1"), (FIRST, "u2"), (FIRST, "u2")]:
        counted.add(partition, "key", formatted(contribution({}, user=user, group="g")))
        counted.add(partition, "key", formatted(contribution({}, user=user)))
    assert (counted.users, counted.scattered) == (2, 1)


def test_calls_of_the_profile_altis_say_who_they_are_of_and_no_traits() -> None:
    counted = Tally()
    for partition in (FIRST, SECOND):
        one = Fixed({"userId": {"any": "thing"}}, "identify", b"{}")
        counted.add(partition, "key", formatted(one))
    assert (counted.users, counted.scattered) == (1, 1)
    assert counted.changes["identify"].following == 0


@given(
    seed=st.integers(0, 1000),
    ignored=st.sampled_from([(), ("pageViews",), ("pageViews", "lastPageSession")]),
)
def test_what_says_nothing_new_is_what_suppression_leaves_out(
    seed: int, ignored: tuple[str, ...]
) -> None:
    """With every call delivered before the next one comes, and for as long as wanted, it is the same calls."""
    transform = Transform(write_key="key", groups=GROUPS)
    bench, counted = Bench(ignore=ignored), Tally(frozenset(ignored))
    for event in islice(generate(seed, 10), 60):
        made = transform.format(event.value, event.timestamp_ms)
        assert isinstance(made, Formatted)
        counted.add(FIRST, "key", made)
        bench.send(*made.contributions)
    for kind in ("identify", "group"):
        assert counted.changes[kind].same == bench.account.suppressed[kind]
