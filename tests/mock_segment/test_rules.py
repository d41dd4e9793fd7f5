"""The mock throws away what Segment throws away, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from streamer.mock_segment.rules import MAX_MESSAGE_ID_CHARACTERS, TYPES, Discard, discard_reason

VALID: dict[str, dict[str, Any]] = {
    "identify": {"type": "identify", "userId": "u", "traits": {"a": 1}},
    "track": {"type": "track", "anonymousId": "a", "event": "scroll", "properties": {}},
    "page": {"type": "page", "userId": "u", "name": "Home", "category": "Docs"},
    "screen": {"type": "screen", "userId": "u", "name": "Home"},
    "group": {"type": "group", "userId": "u", "groupId": "g", "traits": {}},
    "alias": {"type": "alias", "userId": "u", "previousId": "p"},
}


def without(call: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in call.items() if name not in names}


def test_there_is_a_valid_call_of_every_type() -> None:
    assert set(VALID) == TYPES


@pytest.mark.parametrize("call", VALID.values(), ids=VALID)
def test_takes_a_valid_call_of_every_type(call: dict[str, Any]) -> None:
    assert discard_reason(call) is None


@pytest.mark.parametrize("call", [None, 5, "text", [], [VALID["track"]]])
def test_discards_what_is_not_an_object(call: object) -> None:
    assert discard_reason(call) is Discard.NOT_AN_OBJECT


@pytest.mark.parametrize("call", [{"userId": "u"}, {"userId": "u", "type": None}, {"type": ""}])
def test_discards_a_call_without_a_type(call: dict[str, Any]) -> None:
    assert discard_reason(call) is Discard.NO_TYPE


@pytest.mark.parametrize("kind", ["Track", "delete", 5, [], {"type": "track"}, True])
def test_discards_a_type_that_is_none_of_segments(kind: object) -> None:
    assert discard_reason({"type": kind, "userId": "u"}) is Discard.UNKNOWN_TYPE


@pytest.mark.parametrize("kind", sorted(TYPES - {"alias"}))
@pytest.mark.parametrize("ids", [{}, {"userId": None}, {"userId": None, "anonymousId": None}])
def test_discards_a_call_without_both_ids(kind: str, ids: dict[str, Any]) -> None:
    call = without(VALID[kind], "userId", "anonymousId") | ids
    assert discard_reason(call) is Discard.NO_IDENTITY


@pytest.mark.parametrize("kind", sorted(TYPES - {"alias"}))
@pytest.mark.parametrize("ids", [{"userId": "u"}, {"anonymousId": "a", "userId": None}])
def test_one_id_is_enough_and_null_counts_as_absent(kind: str, ids: dict[str, Any]) -> None:
    assert discard_reason(without(VALID[kind], "userId", "anonymousId") | ids) is None


@pytest.mark.parametrize("field", ["userId", "anonymousId", "groupId", "previousId"])
@pytest.mark.parametrize("value", ["", 0, 5, 1.5, False, [], {}, ["u"]])
def test_discards_an_id_that_is_empty_or_no_string_even_beside_a_good_one(
    field: str, value: object
) -> None:
    call = VALID["group"] | {"anonymousId": "a"} | {field: value}
    assert discard_reason(call) is Discard.BAD_ID


@pytest.mark.parametrize("event", [None, "", 5, [], {}, True])
def test_discards_a_track_call_without_a_string_event(event: object) -> None:
    assert discard_reason(VALID["track"] | {"event": event}) is Discard.NO_EVENT
    assert discard_reason(without(VALID["track"], "event")) is Discard.NO_EVENT


def test_discards_a_group_call_without_a_group_id() -> None:
    assert discard_reason(without(VALID["group"], "groupId")) is Discard.NO_GROUP_ID
    assert discard_reason(VALID["group"] | {"groupId": None}) is Discard.NO_GROUP_ID


@pytest.mark.parametrize("field", ["userId", "previousId"])
def test_discards_an_alias_that_lacks_either_id(field: str) -> None:
    call = without(VALID["alias"], field) | {"anonymousId": "a"}
    assert discard_reason(call) is Discard.INCOMPLETE_ALIAS


@pytest.mark.parametrize("kind", sorted(TYPES))
@pytest.mark.parametrize("value", [None, [], "text", 5, False])
def test_discards_traits_and_properties_that_are_no_objects(kind: str, value: object) -> None:
    assert discard_reason(VALID[kind] | {"traits": value}) is Discard.BAD_TRAITS
    assert discard_reason(VALID[kind] | {"properties": value}) is Discard.BAD_PROPERTIES


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("name", 5, Discard.BAD_NAME),
        ("name", ["Home"], Discard.BAD_NAME),
        ("category", False, Discard.BAD_CATEGORY),
        ("category", {}, Discard.BAD_CATEGORY),
        ("event", 5, Discard.BAD_EVENT),
        ("context", "text", Discard.BAD_CONTEXT),
        ("context", [], Discard.BAD_CONTEXT),
        ("integrations", "All", Discard.BAD_INTEGRATIONS),
        ("timestamp", 1643673911400, Discard.BAD_TIMESTAMP),
        ("timestamp", "yesterday", Discard.BAD_TIMESTAMP),
        ("timestamp", "", Discard.BAD_TIMESTAMP),
        ("messageId", "", Discard.BAD_MESSAGE_ID),
        ("messageId", 5, Discard.BAD_MESSAGE_ID),
        ("messageId", "m" * (MAX_MESSAGE_ID_CHARACTERS + 1), Discard.BAD_MESSAGE_ID),
    ],
)
@pytest.mark.parametrize("kind", ["page", "screen"])
def test_discards_fields_of_the_wrong_type(
    kind: str, field: str, value: object, reason: Discard
) -> None:
    assert discard_reason(VALID[kind] | {field: value}) is reason


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((field, None) for field in ("name", "category", "event", "context", "integrations")),
        ("name", ""),
        ("timestamp", None),
        ("timestamp", "2022-02-01T00:05:11.400Z"),
        ("timestamp", "2022-02-01T00:05:11+00:00"),
        ("messageId", None),
        ("messageId", "é" * MAX_MESSAGE_ID_CHARACTERS),
        ("anythingElse", [1, {"deep": None}]),
    ],
)
def test_takes_what_the_official_senders_send(field: str, value: object) -> None:
    assert discard_reason(VALID["page"] | {field: value}) is None
