"""Records become calls, each of which Segment keeps; or they are rejected with a reason. Nothing is ever raised."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from hashlib import blake2b
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reference.strategies import altis_events, hostile_records, json_values
from streamer.core.mapping import default_mapping
from streamer.core.model import Contribution, Filtered, FilterReason, Formatted, Reason, Reject
from streamer.core.transform import Transform, keyed
from streamer.core.validate import validate
from streamer.mock_segment.rules import discard_reason

KAFKA_TIME_MS = 1_650_000_000_123

PAGE_VIEW: dict[str, Any] = {
    "event_type": "pageView",
    "event_timestamp": 1_643_673_911_400,
    "arrival_timestamp": 1_643_673_912_082,
    "attributes": {
        "title": "A title",
        "url": "https://site.example/a",
        "search": "",
        "qv_utm_source": "mail",
        "blogId": "1",
    },
    "metrics": {"elapsed": 3, "day": 0},
    "endpoint": {
        "Id": "visitor",
        "EndpointStatus": "ACTIVE",
        "Attributes": {"DeviceMake": ["Apple"], "DeviceModel": ["iPhone"], "Company": ["A", "B"]},
        "Metrics": {"sessions": 2.0},
        "Demographic": {"Locale": "en_gb", "Platform": "ios", "AppVersion": ""},
        "Location": {"Country": "GB"},
        "User": {"UserId": "user", "UserAttributes": {"plan": ["pro"], "DeviceMake": ["Other"]}},
    },
}
TRAITS = {
    "DeviceMake": "Other", "DeviceModel": "iPhone", "Company": "A", "plan": "pro", "sessions": 2.0,
}  # fmt: skip


def changed(**changes: Any) -> bytes:
    """The page view with other values, or without those that are None."""
    event = {**PAGE_VIEW, **changes}
    return orjson.dumps({key: value for key, value in event.items() if value is not None})


def message_id(value: bytes, role: bytes, key: bytes = b"key") -> str:
    return "s1-" + blake2b(value + b"\0" + role, key=key, digest_size=16).hexdigest()


def calls_of(transform: Transform, value: bytes, timestamp_ms: int = -1) -> list[dict[str, Any]]:
    calls = transform.calls(value, timestamp_ms)
    assert isinstance(calls, list), calls
    return calls


def reject_of(transform: Transform, value: bytes | None, timestamp_ms: int = -1) -> Reject:
    reject = transform.format(value, timestamp_ms)
    assert isinstance(reject, Reject), reject
    assert transform.calls(value, timestamp_ms) == reject
    reject.detail.encode()
    assert reject.detail.endswith(".")
    return reject


DEFAULT = Transform(write_key="key")


# --- what the calls are ------------------------------------------------------------------------------------------


def test_a_page_view_becomes_an_identify_and_a_page_in_the_order_of_the_mapping() -> None:
    value = changed()
    identify, page = calls_of(DEFAULT, value)
    common = {
        "anonymousId": "visitor",
        "timestamp": "2022-02-01T00:05:11.400Z",
        "receivedAt": "2022-02-01T00:05:12.082Z",
        "userId": "user",
    }
    expected_identify = {
        "type": "identify",
        **common,
        "messageId": message_id(value, b"identify"),
        "traits": TRAITS,
    }
    where = {"search": "", "title": "A title", "url": "https://site.example/a"}
    library = default_mapping()["track"]["context"]["library"]
    expected_page = {
        "type": "page",
        **common,
        "messageId": message_id(value, b"page"),
        "context": {
            "active": "ACTIVE",
            "app": {"version": ""},
            "campaign": {"source": "mail"},
            "device": {"manufacturer": "Apple", "model": "iPhone"},
            "library": {key: leaf.removesuffix("|static") for key, leaf in library.items()},
            "locale": "en_gb",
            "location": {"country": "GB"},
            "os": {"name": "ios"},
            "page": where,
            "traits": TRAITS,
        },
        "name": "A title",
        "properties": where,
    }
    assert json.dumps([identify, page]) == json.dumps([expected_identify, expected_page])


def test_any_other_event_becomes_a_track() -> None:
    value = changed(event_type="scroll")
    track = calls_of(DEFAULT, value)[-1]
    assert track["type"] == "track"
    assert track["event"] == "scroll"
    assert track["messageId"] == message_id(value, b"track")
    assert "name" not in track
    assert list(track["properties"].items()) == [
        *PAGE_VIEW["attributes"].items(),
        *PAGE_VIEW["metrics"].items(),
    ]


def test_each_group_map_makes_its_calls_between_identify_and_the_main_call() -> None:
    value = changed()
    groups: list[dict[str, Any]] = [
        {
            "field": "endpoint.Attributes.Company",
            "traits": {"country": "endpoint.Location.Country"},
        },
        {"field": "endpoint.Attributes.Nothing"},
        {"field": "endpoint.Attributes.Company", "each": True},
    ]
    calls = calls_of(Transform(write_key="key", groups=groups), value)
    assert [call["type"] for call in calls] == ["identify", "group", "group", "group", "page"]
    assert [call.get("groupId") for call in calls[1:-1]] == ["A", "A", "B"]
    assert [call.get("traits") for call in calls[1:-1]] == [{"country": "GB"}, None, None]
    field = b"group\0endpoint.Attributes.Company\0"
    assert [call["messageId"] for call in calls[1:-1]] == [
        message_id(value, role) for role in (field + b"0", field + b"2\0A", field + b"2\0B")
    ]


def test_each_makes_one_call_an_element_that_is_text_or_a_number_and_none_twice() -> None:
    transform = Transform(write_key="key", groups=[{"field": "ids", "each": True}])

    def groups_of(ids: Any) -> list[str]:
        return [call["groupId"] for call in calls_of(transform, changed(ids=ids))[1:-1]]

    assert groups_of(["a", 5, "5", "", True, None, ["b"], {"c": "d"}, "a"]) == ["a", "5"]
    assert groups_of("alone") == ["alone"]
    assert groups_of(0) == ["0"]
    assert groups_of([]) == []
    assert groups_of({"a": "b"}) == []


def test_a_record_names_1_000_groups_at_most() -> None:
    """A message of a megabyte could name 200,000, and each is a billed call that has to be held."""
    transform = Transform(write_key="key", groups=[{"field": "attributes.teams", "each": True}])
    names: list[Any] = [*range(1000), 0, "1", [], None]
    assert len(calls_of(transform, changed(attributes={"teams": names}))) == 1002
    reject = reject_of(transform, changed(attributes={"teams": list(range(200_000))}))
    assert reject.reason is Reason.INVALID_CALL
    assert reject.detail == (
        "There are 200,000 groups at attributes.teams; a record may name 1,000."
    )


def test_a_contribution_knows_its_profile_its_pair_and_its_traits() -> None:
    groups = [{"field": "endpoint.Attributes.Company", "traits": "endpoint.Metrics"}]
    formatted = Transform(write_key="key", groups=groups).format(changed(), -1)
    assert isinstance(formatted, Formatted)
    identify, group = formatted.contributions
    assert (identify.type, identify.profile, identify.pair) == (
        "identify",
        "user",
        ("user", "visitor"),
    )
    assert (group.type, group.profile, group.pair) == ("group", ("user", "A"), ("user", "visitor"))
    assert identify.traits == orjson.loads(identify.traits_json) == TRAITS
    assert group.traits == orjson.loads(group.traits_json) == {"sessions": 2.0}
    assert formatted.type == "page"

    without_user = {**PAGE_VIEW["endpoint"], "User": {"UserId": ""}}
    formatted = DEFAULT.format(changed(endpoint=without_user), -1)
    assert isinstance(formatted, Formatted)
    assert formatted.contributions[0].profile == "visitor"
    assert formatted.contributions[0].pair == (None, "visitor")


def test_contributions_without_traits_have_no_place_for_them() -> None:
    formatted = DEFAULT.format(changed(endpoint={"Id": "visitor"}), -1)
    assert isinstance(formatted, Formatted)
    (identify,) = formatted.contributions
    assert (identify.traits, identify.traits_json) == ({}, b"{}")
    assert "traits" not in identify.call


def rendered_with(one: Contribution, message_id: str, traits: dict[str, Any]) -> dict[str, Any]:
    """A contribution as it is sent after a merge."""
    call = {**one.call, "messageId": message_id, "traits": orjson.Fragment(orjson.dumps(traits))}
    rendered: dict[str, Any] = orjson.loads(orjson.dumps(call))
    return rendered


@pytest.mark.parametrize("traits", ["endpoint.Metrics", ["endpoint.Metrics"], {"a": "metrics"}])
def test_traits_that_are_merged_change_nothing_else(traits: Any) -> None:
    mapping = default_mapping()
    mapping["identify"]["traits"] = traits
    mapping["identify"]["context"] = {"traits": traits}
    mapping["page"]["context"]["traits"] = traits
    mapping["track"]["context"]["traits"] = traits
    # the same traits once more, at a place before and at one after that of the call's own
    places: tuple[dict[str, Any], ...] = (
        {},
        {"context": {"traits": traits}},
        {"extra": {"traits": traits}},
    )
    groups = [{"field": "endpoint.Id", "traits": traits, **place} for place in places]
    transform = Transform(write_key="key", mapping=mapping, groups=groups)
    plain = calls_of(transform, changed())
    formatted = transform.format(changed(), -1)
    assert isinstance(formatted, Formatted)
    own = [dict(one.traits) for one in formatted.contributions]
    for number, one in enumerate(formatted.contributions):
        one.traits["new"] = number
    for number, one in enumerate(formatted.contributions):
        assert one.traits == {**own[number], "new": number}
        sent = rendered_with(one, "s1-other", one.traits)
        expected = {**plain[number], "messageId": "s1-other", "traits": one.traits}
        assert json.dumps(sent) == json.dumps(expected)


def every_object(value: Any) -> list[int]:
    if isinstance(value, dict):
        return [id(value), *(one for child in value.values() for one in every_object(child))]
    if isinstance(value, list):
        return [id(value), *(one for child in value for one in every_object(child))]
    return []


def test_plain_calls_share_no_objects() -> None:
    calls = calls_of(Transform(write_key="key", groups=[{"field": "endpoint.Id"}]), changed())
    objects = every_object(calls)
    assert len(objects) == len(set(objects))


# --- ids ---------------------------------------------------------------------------------------------------------


def test_ids_come_from_the_record_without_outer_white_space_and_from_the_write_key() -> None:
    value = changed()
    ids = [call["messageId"] for call in calls_of(DEFAULT, value)]
    assert ids == [call["messageId"] for call in calls_of(DEFAULT, b" \t\r\n" + value + b"\n ")]
    assert ids == [call["messageId"] for call in calls_of(Transform(write_key="key"), value, 77)]
    others = [call["messageId"] for call in calls_of(Transform(write_key="other"), value)]
    spaced = [call["messageId"] for call in calls_of(DEFAULT, value.replace(b":", b": ", 1))]
    assert len({*ids, *others, *spaced}) == 6


@pytest.mark.parametrize("length", [0, 1, 64, 65, 1000])
def test_a_write_key_of_any_length_keys_the_ids(length: int) -> None:
    key = b"k" * length
    hashed = key if length <= 64 else blake2b(key).digest()
    page = calls_of(Transform(write_key=key.decode()), changed())[-1]
    assert page["messageId"] == message_id(changed(), b"page", hashed)


@pytest.mark.parametrize(
    ("given_id", "hashed"),
    [
        ("mine", b"mine"),
        (42.0, b"42"),
        (["mine"], b"mine"),
        ("", None),
        (True, None),
        ("a\0b", None),
    ],
)
def test_a_mapped_message_id_stands_for_the_record_and_differs_between_calls(
    given_id: Any, hashed: bytes | None
) -> None:
    mapping = default_mapping()
    for tree in mapping.values():
        tree["messageId"] = "attributes.eventId"
    transform = Transform(write_key="key", mapping=mapping, groups=[{"field": "endpoint.Id"}])
    value = changed(attributes={"eventId": given_id})
    source = value if hashed is None else hashed
    assert [call["messageId"] for call in calls_of(transform, value)] == [
        message_id(source, role) for role in (b"identify", b"group\0endpoint.Id\x000", b"page")
    ]


def test_two_write_keys_never_share_an_id_of_one_mapping() -> None:
    """Whether ids are of the record or mapped: nothing of a key is in what was compiled."""
    mapping = default_mapping()
    mapping["page"]["messageId"] = mapping["group"]["messageId"] = "attributes.title"
    transform = Transform(write_key="one", mapping=mapping, groups=[{"field": "endpoint.Id"}])
    value = changed()
    decoded = transform.decode(value)
    assert isinstance(decoded, tuple)
    ids: list[bytes] = []
    for key in ("one", "other", "k" * 65):
        made = transform.make(*decoded, -1, keyed(key))
        assert isinstance(made, Formatted)
        sent = sent_of(made)
        same = Transform(write_key=key, mapping=mapping, groups=[{"field": "endpoint.Id"}])
        assert [orjson.loads(one) for one in sent] == calls_of(same, value)
        ids += [orjson.loads(one)["messageId"] for one in sent]
    assert len(ids) == 9 == len(set(ids))


IDS_OF_OTHERS = """
import sys
from itertools import islice
from streamer.core.transform import Transform
from streamer.demo.events import generate
for profile in ("default", "altis"):
    groups = [{"field": "endpoint.Attributes.Company", "each": True, "traits": {"a": "metrics.day"}}]
    transform = Transform(write_key="key", groups=groups, profile=profile)
    for event in islice(generate(7), 200):
        made = transform.format(event.value, 1)
        for one in made.contributions:
            print(one.render().hex())
        print(made.main.hex())
"""


def test_the_same_record_has_the_same_calls_after_a_restart() -> None:
    """In processes of other hash seeds, which order sets of text otherwise."""
    of_runs = {
        subprocess.run(
            [sys.executable, "-c", IDS_OF_OTHERS],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(of_runs) == 1
    assert len(of_runs.pop().split()) >= 800


# --- timestamps --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("date", "time"),
    [
        ("2026-11-23T12:00:00+01:00", "2026-11-23T12:00:00+01:00"),
        ("2026-11-23", "2026-11-23"),
        ("tomorrow", "1970-01-01T00:00:00.005Z"),
        ("", "1970-01-01T00:00:00.005Z"),
        (1643673911400, "1970-01-01T00:00:00.005Z"),
    ],
)
def test_a_mapped_time_that_is_no_iso_8601_gives_way_to_kafkas(date: object, time: str) -> None:
    mapping = default_mapping()
    mapping["track"]["timestamp"] = "attributes.date"
    record = changed(event_type="scroll", attributes={"date": date})
    calls = calls_of(Transform(write_key="key", mapping=mapping), record, 5)
    assert calls[-1]["timestamp"] == time


@pytest.mark.parametrize("time", [None, "1643673911400", True, [], 253_402_300_800_000, 1e300])
def test_a_time_that_is_missing_or_unusable_is_kafkas(time: Any) -> None:
    value = changed(event_timestamp=time, arrival_timestamp=time)
    for call in calls_of(DEFAULT, value, KAFKA_TIME_MS):
        assert call["timestamp"] == "2022-04-15T05:20:00.123Z"
        assert "receivedAt" not in call


@pytest.mark.parametrize("kafka_time_ms", [-1, 253_402_300_800_000])
def test_a_record_without_any_usable_time_is_rejected(kafka_time_ms: int) -> None:
    reject = reject_of(DEFAULT, changed(event_timestamp="now"), kafka_time_ms)
    assert reject.reason is Reason.BAD_TIMESTAMP
    assert "event_timestamp" in reject.detail


def test_a_mapping_without_times_and_ids_still_gets_both_last() -> None:
    mapping = default_mapping()
    del mapping["track"]["timestamp"], mapping["track"]["messageId"]
    track = calls_of(Transform(write_key="key", mapping=mapping), changed(event_type="x"), 0)[-1]
    assert list(track)[-2:] == ["timestamp", "messageId"]
    assert track["timestamp"] == "1970-01-01T00:00:00.000Z"


# --- rejects -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "reason", "words"),
    [
        (None, Reason.EMPTY, "no value"),
        (b"", Reason.EMPTY, "no value"),
        (b" \r\n\t", Reason.EMPTY, "no value"),
        (b"{", Reason.NOT_JSON, "line 1 column"),
        (b'{"a":NaN}', Reason.NOT_JSON, "line 1"),
        (b'{"a":1e999}', Reason.NOT_JSON, "line 1"),
        (b'"\xff"', Reason.NOT_JSON, "UTF-8"),
        (b'{"a":"\\ud800"}', Reason.NOT_JSON, "surrogate"),
        (b"\xef\xbb\xbf{}", Reason.NOT_JSON, "BOM"),
        (b"{}\0", Reason.NOT_JSON, "line 1"),
        (b"[" * 100_000, Reason.NOT_JSON, "depth"),
        (b"[]", Reason.NOT_AN_OBJECT, "a list"),
        (b"null", Reason.NOT_AN_OBJECT, "null"),
        (b'"text"', Reason.NOT_AN_OBJECT, "text"),
        (b"5", Reason.NOT_AN_OBJECT, "a number"),
        (b"true", Reason.NOT_AN_OBJECT, "a boolean"),
        (b"{}", Reason.NO_IDENTITY, "endpoint.User.UserId nor endpoint.Id"),
        (changed(endpoint={"Id": True}), Reason.NO_IDENTITY, "endpoint.Id"),
        (changed(event_type=None), Reason.NO_EVENT_TYPE, "event_type"),
        (changed(event_type=""), Reason.NO_EVENT_TYPE, "event_type"),
        (changed(event_type={"a": 1}), Reason.NO_EVENT_TYPE, "event_type"),
        (
            changed(endpoint={"Id": "i", "Attributes": ["x"]}),
            Reason.INVALID_CALL,
            "traits of the identify call is a list",
        ),
        (
            changed(event_type="e", attributes=["x"], metrics=None),
            Reason.INVALID_CALL,
            "properties of the track call is a list",
        ),
        (
            changed(event_type="e", attributes={"x": "y" * 32_000}),
            Reason.CALL_TOO_LARGE,
            "most of them in properties",
        ),
        (
            changed(endpoint={"Id": "i", "Metrics": {"x": "y" * 32_000}}),
            Reason.CALL_TOO_LARGE,
            "identify call is 32,",
        ),
        (
            changed(endpoint={"Id": "i" * 32_000}),
            Reason.CALL_TOO_LARGE,
            "most of them in anonymousId",
        ),
        (
            changed(endpoint={"Id": "\1" * 5400}),
            Reason.CALL_TOO_LARGE,
            "most of them in anonymousId",
        ),
        (
            changed(attributes={"title": "x" * 10_000_000}),
            Reason.CALL_TOO_LARGE,
            "The page call is 30,",
        ),
    ],
)
def test_a_record_that_cannot_become_calls_is_rejected(
    value: bytes | None, reason: Reason, words: str
) -> None:
    reject = reject_of(DEFAULT, value)
    assert reject.reason is reason
    assert words in reject.detail


@pytest.mark.parametrize(
    ("event_type", "key", "value", "is_kept"),
    [
        ("pageView", "category", "news", True),
        ("pageView", "category", "", True),
        ("pageView", "category", 5, False),
        ("scroll", "category", 5, False),
        ("scroll", "previousId", "p", True),
        ("scroll", "previousId", 5, False),
        ("scroll", "previousId", "", False),
    ],
)
def test_keys_of_segments_that_a_mapping_adds_are_checked(
    event_type: str, key: str, value: object, is_kept: bool
) -> None:
    mapping = default_mapping()
    mapping["page"][key] = mapping["track"][key] = "attributes.value"
    record = changed(event_type=event_type, attributes={"value": value})
    result = Transform(write_key="key", mapping=mapping).calls(record, -1)
    if is_kept:
        assert isinstance(result, list)
        assert result[-1][key] == value
    else:
        assert isinstance(result, Reject)
        assert result.reason is Reason.INVALID_CALL
        assert result.detail.startswith(f"{key} of the ")


def test_one_bad_group_call_rejects_the_record() -> None:
    transform = Transform(write_key="key", groups=[{"field": "endpoint.Id", "traits": "metrics"}])
    reject = reject_of(transform, changed(metrics=[1]))
    assert reject.reason is Reason.INVALID_CALL
    assert reject.detail == "traits of the group call is a list, and must be an object."


def test_calls_of_exactly_32_000_bytes_pass_and_no_larger_ones() -> None:
    def identify_and_track(padding: int) -> bytes:
        # numbers and text of which every character counts, whatever estimate stands before the exact one
        return changed(
            event_type="e", endpoint={"Id": "\1" * 2000, "Metrics": {"x": "y" * padding}}
        )

    lengths = [len(orjson.dumps(call)) for call in calls_of(DEFAULT, identify_and_track(0))]
    longest = 32_000 - max(lengths)
    calls = calls_of(DEFAULT, identify_and_track(longest))
    assert max(len(orjson.dumps(call)) for call in calls) == 32_000
    assert reject_of(DEFAULT, identify_and_track(longest + 1)).reason is Reason.CALL_TOO_LARGE

    mapping = default_mapping()
    mapping["track"]["context"] = mapping["track"]["properties"] = ""  # shorter than identify
    transform = Transform(write_key="key", mapping=mapping)
    longest = 32_000 - lengths[0]
    identify = calls_of(transform, identify_and_track(longest))[0]
    assert len(orjson.dumps(identify)) == 32_000
    reject = reject_of(transform, identify_and_track(longest + 1))
    assert reject.reason is Reason.CALL_TOO_LARGE
    assert reject.detail.startswith("The identify call is 32,001 bytes")


@pytest.mark.parametrize(
    "place", ["attributes", "endpoint.Attributes", "endpoint.Location.Country"]
)
@pytest.mark.parametrize("depth", [200, 248, 250, 252, 254, 256, 1000])
def test_depth_is_no_harm(place: str, depth: int) -> None:
    event = json.loads(changed(event_type="e"))
    *parents, last = place.split(".")
    parent = event
    for key in parents:
        parent = parent[key]
    parent[last] = "deep"
    deep = b'{"x":' * depth + b"1" + b"}" * depth
    result = DEFAULT.format(orjson.dumps(event).replace(b'"deep"', deep), -1)
    assert not isinstance(result, Filtered)
    if isinstance(result, Reject):
        assert depth > 240
        assert result.reason in {Reason.INVALID_CALL, Reason.NOT_JSON}
    else:
        for one in result.contributions:
            one.render()


# --- whatever comes ----------------------------------------------------------------------------------------------


def sent_of(formatted: Formatted) -> list[bytes]:
    return [*(one.render() for one in formatted.contributions), formatted.main]


def is_one_outcome(transform: Transform, value: bytes, timestamp_ms: int) -> None:
    """Whatever a record is, each way out gives the same: calls that Segment keeps, or a reason of a closed set."""
    formatted = transform.format(value, timestamp_ms)
    calls = transform.calls(value, timestamp_ms)
    decoded = transform.decode(value)
    if not isinstance(formatted, Formatted) or not isinstance(calls, list):
        assert formatted == calls
        if isinstance(formatted, Reject):
            assert isinstance(formatted.reason, Reason)
            assert len(formatted.detail.encode()) < 1000
            assert "\n" not in formatted.detail
        else:
            assert formatted == Filtered(FilterReason.EMPTY)
        if isinstance(decoded, tuple):
            assert transform.make(*decoded, timestamp_ms, keyed("key")) == formatted
        else:
            assert decoded == formatted
        return
    sent = sent_of(formatted)
    assert isinstance(decoded, tuple)
    made = transform.make(*decoded, timestamp_ms, keyed("key"))
    assert isinstance(made, Formatted)
    assert sent_of(made) == sent
    assert [json.loads(one) for one in sent] == calls
    for call, one in zip(calls, sent, strict=True):
        assert validate(call, len(one)) is None
        assert discard_reason(call) is None
        assert len(one) <= 32_000


def ids_differ(transform: Transform, value: bytes) -> None:
    calls = transform.calls(value, KAFKA_TIME_MS)
    if isinstance(calls, list):
        assert len({call["messageId"] for call in calls}) == len(calls)


GROUPS: list[dict[str, Any]] = [
    {"field": "endpoint.Attributes.Company", "each": True, "traits": "endpoint.Metrics"},
    {"field": "attributes.title", "traits": ["attributes"]},
]
EVERYTHING = Transform(write_key="key", groups=GROUPS)
PHP_GROUPS = [{"field": "endpoint.Attributes.Company.0", "traits": "endpoint.Metrics"}, GROUPS[1]]
PHP = Transform(write_key="key", groups=PHP_GROUPS, profile="altis")
UNCHECKED = Transform(write_key="key", groups=PHP_GROUPS, profile="altis", checked=False)


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(altis_events | json_values, st.integers(-(2**70), 2**70))
def test_both_ways_out_give_the_same_calls_and_each_is_valid(event: Any, timestamp_ms: int) -> None:
    is_one_outcome(EVERYTHING, orjson.dumps(event), timestamp_ms)
    ids_differ(EVERYTHING, orjson.dumps(event))


@settings(deadline=None, max_examples=600, suppress_health_check=[HealthCheck.too_slow])
@given(hostile_records())
def test_hostile_records_become_calls_that_segment_keeps_or_dead_letters(value: bytes) -> None:
    is_one_outcome(EVERYTHING, value, KAFKA_TIME_MS)
    ids_differ(EVERYTHING, value)


@settings(deadline=None, max_examples=600, suppress_health_check=[HealthCheck.too_slow])
@given(hostile_records())
def test_hostile_records_do_no_harm_in_the_profile_altis(value: bytes) -> None:
    is_one_outcome(PHP, value, KAFKA_TIME_MS)
    unchecked = UNCHECKED.calls(value, KAFKA_TIME_MS)
    assert isinstance(unchecked, list | Reject | Filtered)
    if isinstance(unchecked, list):
        assert [call["type"] for call in unchecked][0::-1] == ["identify"]
        assert unchecked[-1]["type"] in {"page", "track"}


@pytest.mark.parametrize("transform", [EVERYTHING, PHP, UNCHECKED])
@pytest.mark.parametrize("size", [31_000, 32_000, 10_000_000])
@pytest.mark.parametrize(
    "place",
    ["event_type", "event_timestamp", "attributes.title", "endpoint.Id", "endpoint.Attributes.x"],
)
def test_text_of_any_length_is_no_harm(transform: Transform, size: int, place: str) -> None:
    event = json.loads(changed(event_type="e"))
    *parents, last = place.split(".")
    parent = event
    for key in parents:
        parent = parent[key]
    parent[last] = "x" * size
    result = transform.format(orjson.dumps(event), KAFKA_TIME_MS)
    if isinstance(result, Reject):
        assert result.reason in {Reason.CALL_TOO_LARGE, Reason.BAD_TIMESTAMP}
        assert len(result.detail) < 300


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=40) | st.text(max_size=40).map(str.encode), st.integers(-1, 2**43))
def test_no_bytes_raise_anything(value: bytes, timestamp_ms: int) -> None:
    is_one_outcome(EVERYTHING, value, timestamp_ms)
    is_one_outcome(PHP, value, timestamp_ms)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_no_damage_to_a_record_raises_anything(data: st.DataObject) -> None:
    value = bytearray(changed())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(value) - 1))
        value[place : place + data.draw(st.integers(0, 3))] = data.draw(
            st.sampled_from(
                [b"", b"[", b"{", b"}", b'"', b"null", b",", b":", b"\xff", b"\\u0000", b"1e9"]
            )
        )
    is_one_outcome(EVERYTHING, bytes(value), KAFKA_TIME_MS)
    is_one_outcome(PHP, bytes(value), KAFKA_TIME_MS)


def test_numbers_beyond_64_bits_become_floats_and_equal_keys_the_last() -> None:
    value = (
        b'{"event_type":"e","event_timestamp":1,"endpoint":{"Id":36893488147419103232,"Id":"i"},'
        b'"metrics":{"x":36893488147419103232,"y":18446744073709551615,"z":"\\u0000"}}'
    )
    track = calls_of(DEFAULT, value)[-1]
    assert track["anonymousId"] == "i"
    assert track["properties"] == {"x": 2.0**65, "y": 2**64 - 1, "z": "\0"}
    assert type(track["properties"]["x"]) is float
