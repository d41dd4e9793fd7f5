"""The profile `altis` is held against what PHP made: the integration's own transformer, run by PHP 8.2.

`tests/reference/php-8.2.txt` has two lines for each event: the event, and the JSON of the calls that PHP made with the
group maps below, or `filtered` for a line that it skips, or `rejected` where it raises an error or can't write a call.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pytest

from reference.interpreter import php_json, php_time
from streamer.core.altis import (
    ALTIS,
    altis_mapping,
    as_sent,
    hash_event,
    is_empty,
    item,
    json_decode,
    json_encode,
    merge,
    milliseconds_to_iso8601,
)
from streamer.core.compile import UnusableTimeError
from streamer.core.mapping import default_mapping
from streamer.core.model import Filtered, FilterReason, Fixed, Formatted, Reason, Reject
from streamer.core.transform import Transform
from streamer.core.validate import validate

RECORDED = (Path(__file__).parent.parent / "reference" / "php-8.2.txt").read_bytes().split(b"\n")
RECORDED_GROUPS: list[dict[str, Any]] = [
    {
        "field": "endpoint.Attributes.DeviceType.0",
        "traits": {"m": "endpoint.Attributes.DeviceModel.0"},
    },
    {"field": "attributes.plan", "traits": ["endpoint.Attributes", "metrics"]},
    {"field": "endpoint.Id", "traits": {"a": {"b": "attributes.x"}}},
]
AS_PHP = Transform(write_key="", groups=RECORDED_GROUPS, profile="altis", checked=False)
CHECKED = Transform(write_key="", groups=RECORDED_GROUPS, profile="altis")

SESSION_START = (
    b'{"event_type":"_session.start","event_timestamp":1643673911400,"arrival_timestamp":1643673912482,'
    b'"event_version":"3.1","application":{"app_id":"XXXXX","cognito_identity_pool_id":"XXXXX:YYYYY","sdk":{},'
    b'"version_name":""},"client":{"client_id":"XXXXX-XXXX-XXXX-XXXXX","cognito_id":"XX"},"device":{"locale":'
    b'{"code":"en_gb","country":"GB","language":"en"},"make":"WebKit","model":"Mobile Safari","platform":'
    b'{"name":"ios","version":"14.4.1"}},"session":{"session_id":"XXXXX-XXXX-XXXX-XXXXX","start_timestamp":'
    b'1643673911395},"attributes":{"date":"2021-10-12T08:33:00+01:00","referer":"XX","session":'
    b'"XXXXX-XXXX-XXXX-XXXXX","blog":"https://site.com","title":"Some title","pageSession":'
    b'"XXXXX-XXXX-XXXX-XXXXX","network":"https://site.com/","search":"","host":"site.com","networkId":"1",'
    b'"postType":"deal","author":"Some author","postId":"XX","authorId":"XX","url":"https://site.com/XXXX",'
    b'"loggedIn":"false","blogId":"1","hash":"","sector_17":"office"},"metrics":{"elapsed":2,"scrollDepthNow":0,'
    b'"hour":0,"month":2,"year":2022,"scrollDepthMax":0,"day":3},"endpoint":{"EndpointStatus":"ACTIVE","OptOut":'
    b'"ALL","RequestId":"XXXXX-XXXX-XXXX-XXXXX","Location":{"Country":"GB"},"Demographic":{"Make":"WebKit",'
    b'"Model":"Mobile Safari","ModelVersion":"14.0.3","Locale":"en_gb","AppVersion":"","Platform":"ios",'
    b'"PlatformVersion":"14.4.1"},"EffectiveDate":"2022-02-01T00:05:11.400Z","Attributes":{"DeviceModel":'
    b'["iPhone"],"DeviceType":["mobile"],"lastPageSession":["XXXXX-XXXX-XXXX-XXXXX"],"DeviceMake":["Apple"],'
    b'"lastSession":["XXXXX-XXXX-XXXX-XXXXX"]},"Metrics":{"sessions":1.0,"pageViews":1.0},"ApplicationId":'
    b'"XOXOXO","Id":"XXXXX-XXXX-XXXX-XXXXX","CohortId":"48","CreationDate":"2022-02-01T00:05:11.400Z"},'
    b'"awsAccountId":"00000"}'
)


@pytest.mark.parametrize(("event", "php"), list(zip(RECORDED[::2], RECORDED[1::2], strict=False)))
def test_an_event_gives_what_php_gives(event: bytes, php: bytes) -> None:
    calls = AS_PHP.calls(event, -1)
    if isinstance(calls, list):
        # PHP writes -0.0 as -0
        expected = json.loads(php, parse_int=lambda digits: -0.0 if digits == "-0" else int(digits))
        assert json.dumps(calls) == json.dumps(expected)
    else:
        assert ("filtered" if isinstance(calls, Filtered) else "rejected") == php.decode()


@pytest.mark.parametrize("event", RECORDED[::2])
def test_checked_calls_are_the_same_and_segment_keeps_each(event: bytes) -> None:
    unchecked, checked = AS_PHP.calls(event, -1), CHECKED.calls(event, -1)
    if not isinstance(unchecked, list):
        assert type(checked) is type(unchecked)
        return
    faults = [validate(call, len(orjson.dumps(call))) for call in unchecked]
    assert checked == next(filter(None, faults), unchecked)


# --- PHP's JSON --------------------------------------------------------------------------------------------------

AWKWARD = (
    '{"a":{},"b":{"0":1,"1":2},"c":{"1":1},"d":1.0,"e":1e21,"f":1e-7,"g":"/é😀","h":12345678901234567890,"i":[],'
    '"j":-0.0,"k":0.1,"l":100000000000000000000000.5,"m":1e15,"n":123456789.125,"o":"\\u0000\\u001f\\u007f\\u2028<>&'
    '\\u0022","":1,"p":null,"q":true,"r":1e17,"s":1.5e300,"05":1,"5":2,"t":0.00001,"u":1e16,"v":{"x":1,"y":2,"x":3},'
    '"w":[{}, [], {"a":{"b":{}}}],"z":0.0001}'
)
AWKWARD_IN_PHP = (
    '{"a":[],"b":[1,2],"c":{"1":1},"d":1,"e":1.0e+21,"f":1.0e-7,"g":"\\/\\u00e9\\ud83d\\ude00",'
    '"h":1.2345678901234567e+19,"i":[],"j":-0,"k":0.1,"l":1.0000000000000001e+23,"m":1000000000000000,'
    '"n":123456789.125,"o":"\\u0000\\u001f\x7f\\u2028<>&\\"","":1,"p":null,"q":true,"r":1.0e+17,"s":1.5e+300,"05":1,'
    '"5":2,"t":1.0e-5,"u":10000000000000000,"v":{"x":3,"y":2},"w":[[],[],{"a":{"b":[]}}],"z":0.0001}'
)


def test_awkward_json_is_written_as_php_writes_it() -> None:
    event = orjson.loads(AWKWARD)
    assert json_encode(event) == AWKWARD_IN_PHP == php_json(event)
    assert hash_event(event) == "2e1bca7980345fde9625bee58c7a40f0"


def test_the_id_of_a_real_event_is_the_one_that_php_gives_it() -> None:
    transform = Transform(write_key="", groups=[{"field": "endpoint.Id"}], profile="altis")
    formatted = transform.format(SESSION_START, -1)
    assert isinstance(formatted, Formatted)
    assert all(isinstance(one, Fixed) for one in formatted.contributions)
    calls = transform.calls(SESSION_START, -1)
    assert isinstance(calls, list)
    assert [call.get("messageId") for call in calls] == [
        "1d448a8dac2c4cd1739aea00c958eb8d", None, "1d448a8dac2c4cd1739aea00c958eb8d",
    ]  # fmt: skip
    assert "library" not in calls[-1]["context"]


def test_what_is_nested_too_deeply_for_php_is_rejected() -> None:
    for levels, rejected in ((510, False), (511, True), (1000, True), (5000, True)):
        value = b'{"a":' + b"[" * levels + b"]" * levels + b"}"
        assert isinstance(AS_PHP.calls(value, -1), Reject) is rejected


def test_an_infinity_that_no_call_has_leaves_the_id_of_nothing() -> None:
    """PHP's json_encode fails on it, and the md5 is that of an empty text."""
    calls = AS_PHP.calls(b'{"a":1e999,"b":-1' + b"0" * 400 + b"}", -1)
    assert isinstance(calls, list)
    assert calls[0]["messageId"] == "d41d8cd98f00b204e9800998ecf8427e"
    for broken in (
        b'{"a":1e999',
        b'{"a":[1e999,NaN]}',
        b'{"a":1e999,"b":"\n"}',
        b'{"a":1e999,"b":"\\ud800"}',
        b'{"a":1e999,"\\udc00":1}',
        b"[1e999," * 5000,
    ):
        with pytest.raises(ValueError, match="infinity"):
            json_decode(broken)


# --- PHP's functions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "php"),
    [
        ("ucfirst", "straße", "Straße"),
        ("ucfirst", "élan", "élan"),
        ("ucfirst", "", ""),
        ("strtolower", "ÄB", "Äb"),
        ("strtoupper", "straße", "STRAßE"),
        ("strtoupper", 1e-5, "1.0E-5"),
        ("strtolower", 1e25, "1.0e+25"),
        ("trim", " \t\x0b\0\xa0a\n", "\xa0a"),
        ("strval", True, "1"),
        ("strval", False, ""),
        ("strval", 1.0, "1"),
        ("strval", -0.0, "-0"),
        ("strval", 1e13, "10000000000000"),
        ("strval", 1e14, "1.0E+14"),
        ("strval", 0.0001234, "0.0001234"),
        ("strval", 0.30000000000000004, "0.3"),
        ("strval", 123456789.12345679, "123456789.12346"),
        ("strval", 2**63, "9.2233720368548E+18"),
        ("strval", 123456789012345678, "123456789012345678"),
        ("strval", float("inf"), "INF"),
        ("strval", float("-inf"), "-INF"),
        ("strval", ["a"], "Array"),
        ("intval", "12px", 12),
        ("intval", "0x1A", 0),
        ("intval", "1e3x", 1000),
        ("intval", "9999999999999999999", 2**63 - 1),
        ("intval", -1.9, -1),
        ("intval", 2**63 - 1, 2**63 - 1),
        ("intval", 2**63, -(2**63)),
        ("intval", 1e19, -8446744073709551616),
        ("intval", -1e19, 8446744073709551616),
        ("intval", 1e300, 0),
        ("intval", float("inf"), 0),
        ("intval", True, 1),
        ("intval", [], 0),
        ("intval", {"a": 0}, 1),
        ("floatval", " 1.5e3abc", 1500.0),
        ("floatval", True, 1.0),
        ("floatval", [0], 1.0),
        ("md5", 1e14, "7910797abe01f824e32a2ccdce74521c"),
        ("md5", -0.0, "f35e6e6dab145b6a7bb05238e3494a6b"),
        ("json_encode", {"a": [{}, 1.0]}, '{"a":[[],1]}'),
    ],
)
def test_a_callback_gives_what_phps_function_of_that_name_gives(
    name: str, value: Any, php: Any
) -> None:
    found = ALTIS.callbacks[name](value)
    assert (found, type(found)) == (php, type(php))


@pytest.mark.parametrize("name", ["ucfirst", "strtolower", "strtoupper", "trim", "md5"])
@pytest.mark.parametrize("value", [[], {"a": 1}])
def test_functions_for_text_raise_for_arrays_as_phps_do(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match="expected text or a number"):
        ALTIS.callbacks[name](value)


# --- PHP's time --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "time"),
    [
        (1643673911400, "2022-02-01T00:05:11+00:00"),
        (1643673911400.9, "2022-02-01T00:05:11+00:00"),
        (" 1643673911400\n", "2022-02-01T00:05:11+00:00"),
        ("1.6e12", "2020-09-13T12:26:40+00:00"),
        (True, "1970-01-01T00:00:00+00:00"),
        (-999, "1970-01-01T00:00:00+00:00"),
        (-1500, "1969-12-31T23:59:59+00:00"),
        (253402300800000, "10000-01-01T00:00:00+00:00"),
        (-62167219200001, "0000-01-01T00:00:00+00:00"),
        (-62167219200000 - 86400000, "-001-12-31T00:00:00+00:00"),
        (-80799482371920, "-591-07-26T19:20:29+00:00"),
        (-99999999999999, "-1199-02-15T14:13:21+00:00"),
        (2**63 - 1, "292278994-08-17T07:12:56+00:00"),
        (-(2**63), "-292275055-05-16T16:47:04+00:00"),
        (9007199254740999, "287396-10-12T08:59:01+00:00"),
    ],
)
def test_a_time_is_what_php_makes_of_it(value: Any, time: str) -> None:
    assert milliseconds_to_iso8601(value) == time == php_time(value)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "now",
        "12px",
        "0x1A",
        "1_0",
        "\u0661",
        "\xa05",
        "1e",
        "1e30",
        "9223372036854775808",
        2**63,
        1e30,
        [],
        {},
        [1],
    ],
)
def test_what_stops_the_export_in_php_is_no_usable_time(value: Any) -> None:
    with pytest.raises(UnusableTimeError):
        milliseconds_to_iso8601(value)
    for key in ("event_timestamp", "arrival_timestamp"):
        reject = AS_PHP.calls(orjson.dumps({key: value}), 1_650_000_000_123)
        assert isinstance(reject, Reject)
        assert reject.reason is Reason.BAD_TIMESTAMP
        assert reject.detail.startswith(f"There is no usable time at {key}: found ")
        reject.detail.encode()


def test_text_of_digits_that_is_no_number_takes_no_time() -> None:
    digits = "1" * 500_000
    for value in (f"{digits}x", f"{digits}.{digits}x", f"{' ' * 500_000}x", f"{digits}e"):
        with pytest.raises(UnusableTimeError):
            milliseconds_to_iso8601(value)
    assert milliseconds_to_iso8601("-" + "0" * 500_000 + "1500") == "1969-12-31T23:59:59+00:00"


# --- PHP's arrays ------------------------------------------------------------------------------------------------


def test_values_are_sent_as_php_sends_them() -> None:
    value = {
        "a": {},
        "b": [{"0": 1.0, "1": {}}],
        "c": 2**63,
        "d": 1e17,
        "e": 0.5,
        "f": "x",
        "g": None,
    }
    assert json.dumps(as_sent(value)) == json.dumps(
        {"a": [], "b": [[1, []]], "c": float(2**63), "d": 1e17, "e": 0.5, "f": "x", "g": None}
    )


def test_a_large_float_is_the_integer_that_php_writes() -> None:
    assert as_sent(5.537590028693117e16) == 55375900286931170


def test_a_text_has_characters_at_its_indexes() -> None:
    assert [item("é1", index) for index in (0, 1, 2)] == ["é", "1", None]
    assert [item(value, 0) for value in ("", 5, True, {"1": 1})] == [None] * 4


def test_merged_keys_that_are_digits_keep_their_names() -> None:
    assert merge({"5": ["a"], "0": []}, None, {"5": "b"}) == {"5": "b", "0": False}
    assert merge({"0": ["a"]}, {"1": "b"}) == ["a", "b"], "the keys of a list"


def test_a_list_that_meets_an_object_is_named_by_its_numbers() -> None:
    assert merge(["a"], {"x": [1]}, [["b"]]) == {"0": "a", "x": 1, "1": "b"}
    assert merge(["a"], {}, 5, [[], None]) == ["a", False, None]


def test_what_is_empty_in_php() -> None:
    assert all(map(is_empty, (None, False, 0, 0.0, -0.0, "", "0", [], {})))
    assert not any(map(is_empty, (True, 1, "0.0", "00", " ", "false", [0], {"a": None})))


# --- the profile -------------------------------------------------------------------------------------------------


def test_the_mapping_differs_from_the_default_one_in_ids_and_the_library_alone() -> None:
    mapping = altis_mapping()
    assert [tree["messageId"] for tree in mapping.values()] == [
        "|hash_event", None, "|hash_event", "|hash_event",
    ]  # fmt: skip
    for tree in mapping.values():
        tree["messageId"] = ""
    for call_type in ("page", "track"):
        mapping[call_type]["context"]["library"] = default_mapping()["page"]["context"]["library"]
    assert mapping == default_mapping()
    assert ALTIS.mapping() is not ALTIS.mapping()


@pytest.mark.parametrize(
    "value", [None, b"", b" \n", b"{}", b"[]", b"0", b"null", b"false", b'"0"']
)
def test_lines_that_php_skips_are_filtered(value: bytes | None) -> None:
    assert AS_PHP.format(value, -1) == Filtered(FilterReason.EMPTY)
    assert isinstance(Transform(write_key="").format(value, -1), Reject)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"[1]", "not_an_object"),
        (b"5", "not_an_object"),
        (b'"x"', "not_an_object"),
        (b"{", "not_json"),
    ],
)
def test_other_lines_that_are_no_objects_are_rejected(value: bytes, reason: str) -> None:
    reject = AS_PHP.format(value, -1)
    assert isinstance(reject, Reject)
    assert reject.reason == reason


def test_a_mapped_id_is_sent_as_it_is() -> None:
    mapping = altis_mapping()
    mapping["track"]["messageId"] = "attributes.id"
    transform = Transform(write_key="", mapping=mapping, profile="altis", checked=False)
    calls = transform.calls(b'{"attributes":{"id":7.0}}', -1)
    assert isinstance(calls, list)
    assert calls[-1]["messageId"] == 7


def test_checked_calls_that_segment_would_throw_away_reject_the_record() -> None:
    for value, reason in (
        (b'{"event_type":"e"}', "no_identity"),
        (b'{"endpoint":{"Id":5}}', "invalid_call"),
    ):
        assert isinstance(AS_PHP.format(value, -1), Formatted)
        reject = CHECKED.format(value, -1)
        assert isinstance(reject, Reject)
        assert reject.reason == reason


def test_a_list_is_one_group_even_if_a_group_map_says_each() -> None:
    """PHP knows no such thing, and a configuration that has it can still be compared with PHP."""
    groups = [{"field": "a", "each": True}]
    transform = Transform(write_key="", groups=groups, profile="altis", checked=False)
    calls = transform.calls(b'{"a":["x","y"]}', -1)
    assert isinstance(calls, list)
    assert [call.get("groupId") for call in calls] == [None, ["x", "y"], None]
