"""What Segment would throw away in silence is found before it is sent."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from streamer.core.model import Reason
from streamer.core.validate import validate

GOOD: dict[str, dict[str, Any]] = {
    "identify": {"type": "identify", "userId": "u", "traits": {}},
    "group": {"type": "group", "anonymousId": "a", "groupId": "g"},
    "track": {"type": "track", "userId": "u", "anonymousId": "a", "event": "e", "properties": {}},
    "page": {"type": "page", "userId": "u", "name": "", "context": {}, "messageId": "m" * 99},
    "screen": {"type": "screen", "userId": "u", "category": "c"},
    "alias": {"type": "alias", "userId": "u", "previousId": "p"},
}


def reason_of(call: dict[str, Any]) -> Reason | None:
    reject = validate(call, len(orjson.dumps(call)))
    return None if reject is None else reject.reason


@pytest.mark.parametrize("call_type", list(GOOD))
def test_a_good_call_passes(call_type: str) -> None:
    assert reason_of(GOOD[call_type]) is None


@pytest.mark.parametrize(
    ("call_type", "change"),
    [
        ("track", {"type": None}),
        ("track", {"type": "event"}),
        ("track", {"type": ["track"]}),
        ("track", {"userId": 5}),
        ("track", {"userId": ""}),
        ("track", {"userId": None}),
        ("track", {"anonymousId": ["a"]}),
        ("track", {"event": ""}),
        ("track", {"event": 5}),
        ("track", {"properties": []}),
        ("track", {"properties": None}),
        ("track", {"context": "x"}),
        ("track", {"messageId": "m" * 100}),
        ("track", {"messageId": ""}),
        ("track", {"messageId": 5}),
        ("identify", {"traits": []}),
        ("identify", {"traits": "x"}),
        ("group", {"groupId": ""}),
        ("group", {"groupId": 7}),
        ("page", {"name": 5}),
        ("page", {"name": None}),
        ("page", {"category": []}),
        ("screen", {"name": 5}),
        ("alias", {"previousId": ""}),
    ],
)
def test_a_call_that_segment_would_throw_away_is_invalid(
    call_type: str, change: dict[str, Any]
) -> None:
    assert reason_of({**GOOD[call_type], **change}) is Reason.INVALID_CALL


@pytest.mark.parametrize(
    ("call_type", "missing"),
    [
        ("track", "type"),
        ("track", "event"),
        ("group", "groupId"),
        ("alias", "previousId"),
        ("alias", "userId"),
    ],
)
def test_a_call_that_lacks_what_segment_needs_is_invalid(call_type: str, missing: str) -> None:
    call = {key: value for key, value in GOOD[call_type].items() if key != missing}
    assert reason_of(call) is Reason.INVALID_CALL


def test_a_call_of_nobody_has_no_identity() -> None:
    assert reason_of({"type": "track", "event": "e"}) is Reason.NO_IDENTITY


@pytest.mark.parametrize(
    "timestamp", ["now", "", 5, None, "10000-01-01T00:00:00+00:00", "-591-01-01"]
)
def test_a_time_is_text_in_iso_8601(timestamp: object) -> None:
    assert reason_of({**GOOD["track"], "timestamp": "2022-02-01T00:05:11+00:00"}) is None
    assert reason_of({**GOOD["track"], "timestamp": timestamp}) is Reason.BAD_TIMESTAMP


@pytest.mark.parametrize("key", ["name", "category"])
def test_a_name_is_text_in_a_call_of_any_type(key: str) -> None:
    assert reason_of({**GOOD["track"], key: "x"}) is None
    assert reason_of({**GOOD["track"], key: 5}) is Reason.INVALID_CALL


def test_integrations_are_an_object() -> None:
    assert reason_of({**GOOD["track"], "integrations": {"All": True}}) is None
    assert reason_of({**GOOD["track"], "integrations": True}) is Reason.INVALID_CALL


def test_a_call_may_be_32_000_bytes_and_no_more() -> None:
    call = {**GOOD["track"], "properties": {"text": ""}}
    call["properties"]["text"] = "x" * (32_000 - len(orjson.dumps(call)))
    assert reason_of(call) is None
    call["properties"]["text"] += "x"
    reject = validate(call, 32_001)
    assert reject is not None
    assert reject.reason is Reason.CALL_TOO_LARGE
    assert reject.detail == (
        "The track call is 32,001 bytes of JSON, most of them in properties; Segment takes 32,000."
    )


def test_the_detail_names_key_call_and_what_was_found() -> None:
    reject = validate({**GOOD["track"], "properties": ["x"]}, 100)
    assert reject is not None
    assert reject.detail == "properties of the track call is a list, and must be an object."
