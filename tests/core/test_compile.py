"""The compiled functions mean what the mapping says: held against a plain interpreter, and looked at by example."""

from __future__ import annotations

import ast
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reference.interpreter import AltisInterpreter, Interpreter
from reference.strategies import (
    altis_events,
    group_maps,
    hostile_records,
    json_values,
    mappings,
    plain_events,
)
from streamer.core.altis import ALTIS, altis_mapping
from streamer.core.exclude import Exclusions
from streamer.core.mapping import BUILTIN_CALLBACKS, default_mapping
from streamer.core.model import Filtered, FilterReason, Reason, Reject
from streamer.core.transform import Transform
from streamer.errors import MappingError

KAFKA_TIME_MS = 1_650_000_000_123


def raises(value: Any) -> Any:
    raise LookupError(f"no {value!r}")


SITE_CALLBACKS = {
    "raises": raises,
    "boxed": lambda value: [value, {"boxed": value}],
    "nulled": lambda _: None,
    "emptied": lambda _: {},
}
CALLBACKS = {**BUILTIN_CALLBACKS, **SITE_CALLBACKS}
PHP_CALLBACKS = {**ALTIS.callbacks, **SITE_CALLBACKS}


def made(
    value: bytes,
    timestamp_ms: int,
    transform: Transform,
    interpreter: Interpreter | AltisInterpreter,
) -> tuple[bytes, bytes]:
    """What the compiled functions and the interpreter make of a record, each as JSON or as its reason."""
    calls = transform.calls(value, timestamp_ms)
    expected = interpreter.calls(value, timestamp_ms)
    return (
        calls.reason.encode() if isinstance(calls, Reject | Filtered) else orjson.dumps(calls),
        expected.encode()
        if isinstance(expected, Reason | FilterReason)
        else orjson.dumps(expected),
    )


def is_compiled_right_in_both_profiles(
    event: dict[str, Any],
    mapping: dict[str, Any],
    groups: list[dict[str, Any]],
    exclusions: Exclusions,
    **same: Any,
) -> None:
    """To make up a mapping costs Hypothesis more than to compile it: each is tried in both."""
    record = orjson.dumps(event)
    transform = Transform(
        write_key="key", mapping=mapping, groups=groups, callbacks=CALLBACKS, exclusions=exclusions
    )
    interpreter = Interpreter("key", mapping, groups, CALLBACKS, **same)
    compiled, interpreted = made(record, KAFKA_TIME_MS, transform, interpreter)
    assert compiled == interpreted
    transform = Transform(
        write_key="",
        mapping=mapping,
        groups=groups,
        callbacks=SITE_CALLBACKS,
        exclusions=exclusions,
        profile="altis",
        checked=False,
    )
    by_php = AltisInterpreter(mapping, groups, PHP_CALLBACKS, **same)
    compiled, interpreted = made(record, KAFKA_TIME_MS, transform, by_php)
    assert compiled == interpreted


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(plain_events, mappings(), group_maps)
def test_any_mapping_gives_what_the_interpreter_gives(
    event: dict[str, Any], mapping: dict[str, Any], groups: list[dict[str, Any]]
) -> None:
    is_compiled_right_in_both_profiles(event, mapping, groups, Exclusions())


def excluded(
    events: list[str], traits: list[str], properties: list[str], sample: dict[str, float]
) -> tuple[Exclusions, dict[str, Any]]:
    """The same for the transform and for the interpreter."""
    exclusions = Exclusions(frozenset(events), tuple(traits), tuple(properties), sample)
    return exclusions, {
        "drop_events": events, "drop_traits": traits, "drop_properties": properties, "sample": sample,
    }  # fmt: skip


def some_of(*names: str) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(names), max_size=3, unique=True)


def exclusions(*keys: str) -> st.SearchStrategy[tuple[Exclusions, dict[str, Any]]]:
    types = st.sampled_from([[], [], [], ["scroll"], ["pageView"], ["ü 'x'\n#"]])
    shares = st.sampled_from([0.0, 0.3, 0.5, 1.0])
    samples = st.dictionaries(st.sampled_from(["pageView", "scroll"]), shares, max_size=2)
    return st.builds(excluded, types, some_of(*keys), some_of(*keys), samples)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(plain_events, mappings(), group_maps, exclusions("a", "b", "traits", "0", "ü 'x'\n#"))
def test_what_is_excluded_is_what_the_interpreter_leaves_out(
    event: dict[str, Any],
    mapping: dict[str, Any],
    groups: list[dict[str, Any]],
    given_exclusions: tuple[Exclusions, dict[str, Any]],
) -> None:
    """From any mapping: dicts, merges, and objects taken whole."""
    exclusions, same = given_exclusions
    is_compiled_right_in_both_profiles(event, mapping, groups, exclusions, **same)


@pytest.mark.parametrize("profile", ["default", "altis"])
@settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.too_slow])
@given(altis_events, exclusions("plan", "DeviceMake", "title", "elapsed", "url"))
def test_what_is_excluded_from_a_profiles_own_mapping_is_in_no_call(
    profile: str, event: dict[str, Any], given_exclusions: tuple[Exclusions, dict[str, Any]]
) -> None:
    exclusions, same = given_exclusions
    transform = Transform(
        write_key="key",
        groups=DEFAULT_GROUPS,
        exclusions=exclusions,
        profile=profile,
        checked=False,
    )
    interpreter = (
        Interpreter("key", default_mapping(), DEFAULT_GROUPS, BUILTIN_CALLBACKS, **same)
        if profile == "default"
        else AltisInterpreter(altis_mapping(), DEFAULT_GROUPS, ALTIS.callbacks, **same)
    )
    value = orjson.dumps(event)
    compiled, interpreted = made(value, KAFKA_TIME_MS, transform, interpreter)
    assert compiled == interpreted
    calls = transform.calls(value, KAFKA_TIME_MS)
    for call in calls if isinstance(calls, list) else []:
        context = call.get("context", {})
        for where, place, names in (
            (call, "traits", exclusions.traits),
            (context, "traits", exclusions.traits),
            (call, "properties", exclusions.properties),
            (context, "page", exclusions.properties),
        ):
            found = where.get(place)  # of a group map in the profile altis anything at all
            assert not (isinstance(found, dict) and (set(names) & set(found) or not found))


def test_an_object_that_exclusions_leave_empty_goes_with_them() -> None:
    mapping = default_mapping()
    mapping["track"]["context"] = "a"
    transform = Transform(write_key="", mapping=mapping, exclusions=Exclusions(traits=("b",)))
    event = {"event_type": "e", "event_timestamp": 1, "endpoint": {"Id": "i"}}
    for traits, kept in (({"b": 1}, {}), ({"b": 1, "c": 2}, {"traits": {"c": 2}})):
        record = orjson.dumps({**event, "a": {"x": 1, "traits": traits}})
        calls = transform.calls(record, KAFKA_TIME_MS)
        assert isinstance(calls, list)
        assert calls[-1]["context"] == {"x": 1, **kept}


def test_what_is_not_set_leaves_no_trace_in_the_code() -> None:
    assert (
        Transform(write_key="key", exclusions=Exclusions()).source
        == Transform(write_key="key").source
    )
    of_pages = Transform(write_key="key", exclusions=Exclusions(frozenset({"pageView"}))).source
    page, track = (part for part in of_pages.split("\ndef ") if "_calls(event" in part)
    assert "DROPPED_EVENT" in page
    assert "DROPPED_EVENT" not in track


DEFAULT_GROUPS: list[dict[str, Any]] = [
    {"field": "endpoint.Attributes.Company", "each": True, "traits": {"plan": "attributes.plan"}},
    {"field": "endpoint.Attributes.plan", "traits": "endpoint.Metrics"},
]
DEFAULT = (
    Transform(write_key="k" * 65, groups=DEFAULT_GROUPS),
    Interpreter("k" * 65, default_mapping(), DEFAULT_GROUPS, BUILTIN_CALLBACKS),
)


@settings(deadline=None, max_examples=500, suppress_health_check=[HealthCheck.too_slow])
@given(altis_events, st.sampled_from([KAFKA_TIME_MS, -1, 2**62]))
def test_the_default_mapping_gives_what_the_interpreter_gives(
    event: dict[str, Any], timestamp_ms: int
) -> None:
    compiled, interpreted = made(b" %s\n" % orjson.dumps(event), timestamp_ms, *DEFAULT)
    assert compiled == interpreted


BY_PHP = (
    Transform(write_key="", groups=DEFAULT_GROUPS, profile="altis", checked=False),
    AltisInterpreter(altis_mapping(), DEFAULT_GROUPS, ALTIS.callbacks),
)


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(hostile_records(boundless=False), st.sampled_from([DEFAULT, BY_PHP]))
def test_hostile_records_give_what_the_interpreter_gives(
    value: bytes, both: tuple[Transform, Interpreter | AltisInterpreter]
) -> None:
    compiled, interpreted = made(value, KAFKA_TIME_MS, *both)
    assert compiled == interpreted


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(altis_events | json_values)
def test_the_altis_mapping_gives_what_the_interpreter_gives(event: Any) -> None:
    compiled, interpreted = made(b" %s\n" % orjson.dumps(event), KAFKA_TIME_MS, *BY_PHP)
    assert compiled == interpreted


# --- the grammar, row by row -------------------------------------------------------------------------------------


def property_of(tree: Any, event: dict[str, Any]) -> Any:
    """What a tree at `properties.x` gives, None if the key is left out."""
    mapping = default_mapping()
    mapping["track"]["properties"] = {"x": tree}
    record = orjson.dumps(
        {"event_type": "e", "event_timestamp": 1, "endpoint": {"Id": "i"}, **event}
    )
    calls = Transform(write_key="", mapping=mapping, callbacks=CALLBACKS).calls(record, -1)
    assert isinstance(calls, list)
    return calls[-1].get("properties", {}).get("x")


@pytest.mark.parametrize(
    ("tree", "event", "expected"),
    [
        ("a.b", {"a": {"b": 5}}, 5),
        ("a.1", {"a": ["x", "y"]}, "y"),
        ("a.1", {"a": {"1": "y"}}, "y"),
        ("a.2", {"a": ["x", "y"]}, None),
        ("a.01", {"a": ["x", "y"]}, None),
        ("a.-1", {"a": ["x", "y"]}, None),
        ("a.1_0", {"a": list(range(12))}, None),
        ("a.٠", {"a": ["x"]}, None),  # noqa: RUF001 - a digit, but none of JSON's
        ("a.99999999999999999999", {"a": ["x"]}, None),
        ("a.0", {"a": "scalar"}, "scalar"),
        ("a.0", {"a": False}, False),
        ("a.1", {"a": "scalar"}, None),
        ("a.b", {"a": "scalar"}, None),
        ("a.0.b", {"a": [{"b": 1}]}, 1),
        ("a|b|strtoupper", {"a|b": "x"}, "X"),
        ("a|strtoupper", {}, None),
        ("a|raises", {"a": None}, None),
        (
            "|json_encode",
            {"a": 1},
            '{"event_type":"e","event_timestamp":1,"endpoint":{"Id":"i"},"a":1}',
        ),
        ("a.b|static", {"a": {"b": 1}}, "a.b"),
        ("|static", {}, ""),
        ("", {"": 1}, None),
        ({"y": "", "z": None}, {}, None),
        ("a", {"a": ""}, ""),
        ("a", {"a": 0}, 0),
        ("a", {"a": False}, False),
        ("a", {"a": {}}, None),
        ("a", {"a": []}, None),
        ("a", {"a": {"b": None, "c": []}}, {"b": None, "c": []}),
        ({"y": {"z": "a"}}, {"a": 1}, {"y": {"z": 1}}),
    ],
)
def test_a_leaf_gives_what_the_grammar_says(
    tree: Any, event: dict[str, Any], expected: object
) -> None:
    assert property_of(tree, event) == expected


@pytest.mark.parametrize(
    ("tree", "event", "expected"),
    [
        (["a", "b"], {"a": {"x": 1, "y": 2}, "b": {"x": 3}}, [("x", 3), ("y", 2)]),
        (["a"], {"a": {"x": ["f", "g"], "y": {"h": 1, "i": 2}}}, [("x", "f"), ("y", 1)]),
        (["a"], {"a": {"x": None, "y": [], "z": {}, "u": [None], "v": [[]], "w": 0}}, [("w", 0)]),
        (["a", "b"], {"a": {"x": 1}, "b": {"x": None}}, [("x", 1)]),
        (["a"], {"a": {"x": [["f", "g"]]}}, [("x", ["f", "g"])]),
        (["a", {"y": "b"}], {"a": {"x": 1}, "b": ["f", "g"]}, [("x", 1), ("y", ["f", "g"])]),
        (["a", "b"], {"a": {"x": 1}, "b": ["f"]}, [("x", 1)]),
        (["a", "b"], {"a": {"x": 1}, "b": 5}, [("x", 1)]),
    ],
)
def test_objects_merge_in_order(
    tree: Any, event: dict[str, Any], expected: list[tuple[str, Any]]
) -> None:
    assert list(property_of(tree, event).items()) == expected


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"a": ["f"], "b": ["g", "h"]}, ["f", "g", "h"]),
        ({"b": ["g"]}, ["g"]),
        ({"a": 5, "b": ["g"]}, ["g"]),
        ({"a": 5}, None),
        ({"a": [None, []]}, [None, []]),
    ],
)
def test_lists_are_appended(event: dict[str, Any], expected: object) -> None:
    assert property_of(["a", "b"], event) == expected


# --- callbacks ---------------------------------------------------------------------------------------------------


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even this")


def gives_unspeakable(_: Any) -> Any:
    raise UnspeakableError


def cyclic(_: Any) -> Any:
    cycle: list[Any] = []
    cycle.append(cycle)
    return cycle


@pytest.mark.parametrize(
    "callback",
    [
        raises,
        gives_unspeakable,
        cyclic,
        lambda _: float("nan"),
        lambda _: {"deep": [float("inf")]},
        lambda _: {1: "a key that isn't text"},
        lambda _: "\ud800",
        lambda _: {"\ud800": 1},
        lambda _: object(),
        lambda _: b"bytes",
        lambda _: {1, 2},
        lambda _: 10**400,
    ],
)
def test_a_callback_that_raises_or_gives_what_json_cannot_hold_rejects_the_record(
    callback: Any,
) -> None:
    mapping = default_mapping()
    mapping["track"]["context"]["ip"] = "attributes.ip|broken"
    transform = Transform(write_key="", mapping=mapping, callbacks={"broken": callback})
    record = b'{"event_type":"e","event_timestamp":1,"endpoint":{"Id":"i"},"attributes":{"ip":"1"}}'
    reject = transform.format(record, -1)
    assert isinstance(reject, Reject)
    assert reject.reason is Reason.CALLBACK_FAILED
    assert "broken" in reject.detail
    assert "attributes.ip" in reject.detail
    reject.detail.encode()


class Text(str):
    __slots__ = ()


def test_what_a_callback_gives_becomes_plain_json() -> None:
    given_value = {"t": (1, 2), Text("s"): Text("x"), "big": 2**70, "b": True, "n": None}
    CALLBACKS["gives"] = lambda _: given_value
    try:
        assert property_of("|gives", {}) == {
            "t": [1, 2], "s": "x", "big": float(2**70), "b": True, "n": None,
        }  # fmt: skip
    finally:
        del CALLBACKS["gives"]


def test_a_callback_runs_only_for_calls_that_are_made() -> None:
    mapping = default_mapping()
    mapping["page"]["context"]["ip"] = "|raises"
    transform = Transform(write_key="", mapping=mapping, callbacks=CALLBACKS)
    track = b'{"event_type":"e","event_timestamp":1,"endpoint":{"Id":"i"}}'
    assert isinstance(transform.calls(track, -1), list)
    page = track.replace(b'"e"', b'"pageView"')
    reject = transform.calls(page, -1)
    assert isinstance(reject, Reject)
    assert reject.reason is Reason.CALLBACK_FAILED


# --- the source --------------------------------------------------------------------------------------------------


def test_the_source_is_python_that_looks_each_value_up_once() -> None:
    source = Transform(write_key="").source
    functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    assert [one.name for one in functions] == ["page_calls", "track_calls"]
    for function in functions:
        lookups = [
            ast.unparse(node)
            for node in ast.walk(function)
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".get")
        ]
        assert len(lookups) == len(set(lookups))


def test_a_mapping_cannot_smuggle_code_into_the_source() -> None:
    evil = "x'\n    import os  # \"]"
    mapping = default_mapping()
    mapping["track"]["properties"] = {evil: {evil: f"{evil}.y", "z": f"{evil}|static"}}
    transform = Transform(write_key="", mapping=mapping, groups=[{"field": evil}])
    assert not [n for n in ast.walk(ast.parse(transform.source)) if isinstance(n, ast.Import)]
    record = {"event_type": "e", "event_timestamp": 1, "endpoint": {"Id": "i"}, evil: {"y": 1}}
    calls = transform.calls(orjson.dumps(record), -1)
    assert isinstance(calls, list)
    assert calls[-1]["properties"] == {evil: {evil: 1, "z": evil}}


@pytest.mark.parametrize(
    ("call_type", "change", "place"),
    [
        ("track", {"type": "screen|static"}, "track.type"),
        ("page", {"type": ""}, "page.type"),
        ("identify", {"userId": "", "anonymousId": ""}, "identify: expected a path at userId"),
        ("track", {"event": ""}, "track.event"),
        (
            "track",
            {"event": {"a": "b"}},
            "track.event: expected the path of the event's name; found {'a'",
        ),
        (
            "track",
            {"event": "|static"},
            "track.event: expected the path of the event's name; found '|s",
        ),
        (
            "page",
            {"userId": "|static", "anonymousId": {"a": "b"}},
            "page: expected a path at userId",
        ),
        ("group", {"context": 5}, "group.context"),
        (
            "track",
            {"properties": "abc|static"},
            "track.properties: expected what gives an object: a",
        ),
        (
            "page",
            {"context": "|static"},
            "page.context: expected what gives an object: .*; found '|s",
        ),
        (
            "identify",
            {"traits": "endpoint.Attributes|json_encode"},
            "identify.traits: expected what",
        ),
        (
            "group",
            {"integrations": "a|strtolower"},
            "group.integrations: expected what gives an ob",
        ),
    ],
)
def test_a_tree_that_can_make_no_call_is_an_error_at_the_start(
    call_type: str, change: dict[str, Any], place: str
) -> None:
    mapping = default_mapping()
    mapping[call_type].update(change)
    for profile in ("default", "altis"):
        with pytest.raises(MappingError, match=place.replace("|", r"\|")):
            Transform(write_key="", mapping=mapping, profile=profile)


def test_a_group_map_whose_traits_are_text_is_an_error_at_the_start() -> None:
    with pytest.raises(MappingError, match=r"groups\[1\]\.traits: expected what gives an object"):
        Transform(write_key="", groups=[{"field": "a"}, {"field": "a", "traits": "b|trim"}])


def test_a_callback_of_ones_own_may_give_an_object_even_under_a_name_that_is_known() -> None:
    mapping = default_mapping()
    mapping["track"]["properties"] = "attributes|trim"
    transform = Transform(
        write_key="",
        mapping=mapping,
        callbacks={"trim": lambda _: {"a": 1}},
        exclusions=Exclusions(properties=("b",)),
    )
    calls = transform.calls(
        b'{"event_type":"e","event_timestamp":1,"endpoint":{"Id":"i"},"attributes":{"b":1}}', -1
    )
    assert isinstance(calls, list)
    assert calls[-1]["properties"] == {"a": 1}


def test_every_type_of_call_needs_a_tree() -> None:
    mapping: dict[str, Any] = default_mapping()
    del mapping["group"]
    with pytest.raises(MappingError, match="group: expected the tree of a call"):
        Transform(write_key="", mapping=mapping)


def test_what_is_flattened_away_may_be_nested_however_deeply() -> None:
    deep = b"[" * 253 + b"]" * 253
    attributes = b'{"a":{"x":1,"y":' + deep + b"}}"
    calls = Transform(write_key="").calls(
        b'{"event_type":"e","event_timestamp":1,"endpoint":{"Id":"i","Attributes":%b}}'
        % attributes,
        -1,
    )
    assert isinstance(calls, list)
    assert calls[0]["traits"] == {"a": 1}


def test_times_at_other_keys_count_where_a_call_is_too_large() -> None:
    mapping = default_mapping()
    for key in "abcdefghijklmnopqrstuvwxyz":
        mapping["identify"][key] = "event_timestamp|milliseconds_to_iso8601"
    transform = Transform(write_key="", mapping=mapping)
    attributes = b'{"a":"%b"}' % (b"x" * 31_060)
    reject = transform.format(
        b'{"event_type":"e","event_timestamp":1,"endpoint":{"Id":"i","Attributes":%b}}'
        % attributes,
        -1,
    )
    assert isinstance(reject, Reject)
    assert reject.reason is Reason.CALL_TOO_LARGE
