"""`streamer.core.changed`: what site code leaves of a record's calls."""

from __future__ import annotations

import math
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.core.changed import take_back
from streamer.core.model import (
    Changed,
    Contribution,
    Filtered,
    FilterReason,
    Fixed,
    Main,
    Reason,
    Reject,
)
from streamer.core.transform import Transform, keyed

EVENT = {
    "event_type": "click",
    "event_timestamp": 1_700_000_000_000,
    "endpoint": {"Id": "visitor", "User": {"UserId": "ann", "UserAttributes": {"Plan": ["pro"]}}},
    "attributes": {"where": "footer"},
}
VALUE = orjson.dumps(EVENT)
KEY = "key"


def made() -> list[dict[str, Any]]:
    calls = Transform(write_key=KEY).calls(VALUE, -1)
    assert isinstance(calls, list)
    return calls


def taken(calls: object, **options: bool) -> Changed | Filtered | Reject:
    record_hash = keyed(KEY)
    record_hash.update(VALUE)
    own_ids = frozenset(call["messageId"] for call in made())
    return take_back(calls, own_ids, record_hash, keyed(KEY), **options)


def sent(changed: Changed | Filtered | Reject) -> list[dict[str, Any]]:
    assert isinstance(changed, Changed)
    calls: list[dict[str, Any]] = orjson.loads(changed.as_json())
    return calls


def main(calls: list[dict[str, Any]]) -> dict[str, Any]:
    return calls[-1]


def test_what_is_left_as_it_was_is_sent_as_it_was() -> None:
    before = made()
    after = sent(taken(made()))
    assert main(after) == main(before)
    assert list(main(after)) == list(main(before))
    assert after[0]["traits"] == before[0]["traits"]
    assert [call["type"] for call in after] == ["identify", "track"]


def test_identify_calls_can_merge_as_before() -> None:
    changed = taken(made())
    assert isinstance(changed, Changed)
    contribution = changed.taken[0]
    assert isinstance(contribution, Contribution)
    assert (contribution.profile, contribution.pair) == ("ann", ("ann", "visitor"))
    assert contribution.traits == {"Plan": "pro"}


def test_no_call_is_left() -> None:
    assert taken([]) == Filtered(FilterReason.HOOK)


def test_the_last_page_or_track_call_decides_the_records_fate() -> None:
    calls = made()
    changed = taken([calls[1], {**calls[1], "event": "again"}, calls[0]])
    assert isinstance(changed, Changed)
    assert [call.decides for call in changed.taken if isinstance(call, Main)] == [False, True]
    assert changed.decided
    without = taken([calls[0]])
    assert isinstance(without, Changed)
    assert not without.decided


def test_a_copied_or_added_call_gets_an_id_of_its_own_that_is_the_same_each_time() -> None:
    calls = made()
    foreign = {**main(calls), "messageId": "s1-" + "0" * 32}
    added = {"type": "track", "userId": "ann", "event": "more", "timestamp": "2023-01-01T00:00:00Z"}

    def ids() -> list[str]:
        return [call["messageId"] for call in sent(taken([*made(), main(made()), foreign, added]))]

    assert ids()[1] == main(calls)["messageId"]
    assert len(set(ids())) == 5
    assert ids()[1:] == ids()[1:]
    assert all(one.startswith("s1-") and len(one) == 35 for one in ids())


def test_an_id_that_site_code_gives_stays() -> None:
    calls = made()
    main(calls)["messageId"] = "mine"
    assert main(sent(taken(calls)))["messageId"] == "mine"


class Odd(list):  # type: ignore[type-arg]
    """A list that can't be gone through."""

    def __iter__(self) -> Any:
        raise LookupError


@pytest.mark.parametrize(
    ("change", "reason", "says"),
    [
        (lambda _: Odd([1]), Reason.HOOK_FAILED, "can't be read: LookupError"),
        (lambda _: "no", Reason.HOOK_FAILED, "a list of dicts; found text"),
        (lambda _: None, Reason.HOOK_FAILED, "found null"),
        (lambda calls: [*calls, 7], Reason.HOOK_FAILED, "call 2 of a record must be a dict"),
        (lambda calls: [{**calls[1], "type": "screen"}], Reason.HOOK_FAILED, "expected one of"),
        (lambda calls: [{**calls[1], "x": object()}], Reason.HOOK_FAILED, "JSON"),
        (lambda calls: [{**calls[1], "x": math.nan}], Reason.HOOK_FAILED, "nan"),
        (lambda calls: [{**calls[1], "x": "\ud800"}], Reason.HOOK_FAILED, "JSON"),
        (lambda calls: [{**calls[1], 7: "x"}], Reason.HOOK_FAILED, "a key is not text"),
        (lambda calls: [{**calls[1], "event": ""}], Reason.INVALID_CALL, "event"),
        (lambda calls: [{**calls[1], "messageId": 7}], Reason.INVALID_CALL, "messageId"),
        (lambda calls: [{**calls[1], "properties": [1]}], Reason.INVALID_CALL, "properties"),
        (
            lambda calls: [{**calls[1], "properties": {"x": "x" * 32_000}}],
            Reason.CALL_TOO_LARGE,
            "properties",
        ),
        (
            lambda _: [{"type": "track", "event": "x", "timestamp": "2023-01-01T00:00:00Z"}],
            Reason.NO_IDENTITY,
            "neither",
        ),
    ],
)
def test_what_may_not_be_is_said(change: Any, reason: Reason, says: str) -> None:
    reject = taken(change(made()))
    assert isinstance(reject, Reject)
    assert reject.reason == reason
    assert says in reject.detail


def test_a_call_that_holds_itself_is_rejected() -> None:
    calls = made()
    main(calls)["properties"]["self"] = calls
    reject = taken(calls)
    assert isinstance(reject, Reject)
    assert reject.reason == Reason.HOOK_FAILED


def test_the_profile_altis_keeps_every_id() -> None:
    calls = [{**call, "messageId": "same"} for call in made()]
    changed = taken(calls, mends=False)
    assert [call["messageId"] for call in sent(changed)] == ["same", "same"]
    assert isinstance(changed, Changed)
    assert isinstance(changed.taken[0], Fixed)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=10,
)


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["type", "userId", "anonymousId", "messageId", "event", "traits"]),
            anything | st.sampled_from(["identify", "group", "page", "track"]),
        )
    )
    | anything
)
def test_nothing_is_raised_whatever_site_code_leaves(calls: object) -> None:
    result = taken(calls)
    assert isinstance(result, Changed | Filtered | Reject)
    if isinstance(result, Changed):
        assert len(sent(result)) == len(result.taken)
