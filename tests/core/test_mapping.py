"""The grammar of mappings, the default mapping, overlays, and the callbacks."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.interpreter import iso8601
from reference.strategies import json_values, trees
from streamer.core.mapping import (
    BUILTIN_CALLBACKS,
    Branch,
    Merge,
    Nothing,
    Path,
    Static,
    default_mapping,
    group_tree,
    milliseconds_to_iso8601,
    overlay,
    parse,
    text,
)
from streamer.errors import MappingError

CALLBACKS: dict[str, Any] = {
    **BUILTIN_CALLBACKS,
    **dict.fromkeys(("boxed", "nulled", "emptied", "raises"), str),
}


def parsed(tree: Any) -> Any:
    return parse(tree, "track.context", CALLBACKS)


@pytest.mark.parametrize(
    ("tree", "node"),
    [
        ("a.b.0", Path(("a", "b", "0"))),
        ("a|b|trim", Path(("a|b",), "trim")),
        ("|hash_event", Path((), "hash_event")),
        ("a.b|static", Static("a.b")),
        ("|static", Static("")),
        ("", Nothing()),
        (None, Nothing()),
        ({}, Nothing()),
        ([], Nothing()),
        ({"a": {"b": ""}, "c": None}, Nothing()),
        ({"a": "x", "b": ""}, Branch((("a", Path(("x",))),))),
        (["a", "", {"k": "b"}], Merge((Path(("a",)), Branch((("k", Path(("b",))),))))),
        (("a", "b"), Merge((Path(("a",)), Path(("b",))))),
        (["", {}], Nothing()),
    ],
)
def test_a_tree_is_parsed(tree: Any, node: Any) -> None:
    assert parsed(tree) == node


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"ip": 5}, r"track\.context\.ip: expected a path.*; found 5"),
        ({"ip": True}, r"track\.context\.ip: .*found True"),
        ({5: "a"}, r"track\.context: expected keys that are text; found 5"),
        (["a", ["b"]], r"track\.context\[1\]: expected a path or a dict; found \['b'\]"),
        (["a|static"], r"track\.context\[0\]: expected a path or a dict; found 'a\|static'"),
        ({"ip": "a|"}, r"track\.context\.ip: expected the name of a callback after the \|"),
        ({"ip": "a|strtolwer"}, r"track\.context\.ip: .*'strtolwer'; did you mean 'strtolower'"),
        ({"ip": "a|statik"}, r"did you mean 'static'"),
        ({"ip": "a|qqqq"}, r"expected one of .*strval.*package\.module:function"),
        ({"ip": "a|nowhere.to.be.found:x"}, r"track\.context\.ip: .*can't be imported"),
        ({"ip": "a|math:nothing"}, r"can't be imported.*nothing"),
        ({"ip": "a|math:pi"}, r"expected a function; 'math:pi' is 3\.14"),
        ({"ip": "\ud800"}, r"track\.context\.ip: expected text that UTF-8 can hold"),
        ({"\ud800": "a"}, r"track\.context: expected keys that UTF-8 can hold"),
    ],
)
def test_a_wrong_tree_is_an_error_that_names_its_place(tree: Any, words: str) -> None:
    with pytest.raises(MappingError, match=words) as caught:
        parsed(tree)
    str(caught.value).encode()


def test_a_tree_of_any_depth_is_parsed_or_refused() -> None:
    tree: Any = "a"
    for _ in range(5000):
        tree = {"x": tree}
    with pytest.raises(MappingError, match="levels"):
        parsed(tree)


@settings(deadline=None)
@given(trees)
def test_every_tree_of_the_grammar_is_parsed(tree: Any) -> None:
    parsed(tree)


def test_a_callback_is_imported_by_the_name_of_its_module(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("site_callbacks")
    module.__dict__["double"] = lambda value: value * 2
    monkeypatch.setitem(sys.modules, "site_callbacks", module)
    assert parsed("a|site_callbacks:double") == Path(("a",), "site_callbacks:double")


# --- the default mapping -----------------------------------------------------------------------------------------


def paths_of(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, dict):
        return {
            path: leaf
            for key, subtree in tree.items()
            for path, leaf in paths_of(subtree, f"{prefix}{key}.").items()
        }
    return {prefix.removesuffix("."): tree}


def test_keys_that_an_event_says_nothing_of_are_there_for_who_changes_the_mapping() -> None:
    empty = {
        path for path, leaf in paths_of(default_mapping()["track"]["context"]).items() if leaf == ""
    }
    assert empty == {
        *("app.name", "app.build", "device.id", "device.advertisingId", "device.name", "ip"),
        *("device.version", "page.path", "page.keywords", "groupId", "userAgent"),
        *("referrer.type", "referrer.name", "referrer.url", "referrer.link"),
        *("screen.density", "screen.height", "screen.width"),
    }
    assert default_mapping()["identify"]["context"] is None
    assert default_mapping()["group"]["context"] is None


def test_each_default_mapping_is_a_fresh_one() -> None:
    changed = default_mapping()
    changed["track"]["context"]["page"]["title"] = ""
    assert changed["track"]["properties"] is not default_mapping()["track"]["properties"]
    assert default_mapping()["track"]["context"]["page"]["title"] == "attributes.title"
    assert changed["page"]["context"]["page"]["title"] == "attributes.title"


# --- overlays ----------------------------------------------------------------------------------------------------


def test_an_overlay_goes_deep_and_keeps_places() -> None:
    under = default_mapping()
    laid = overlay(
        under, {"track": {"context": {"ip": "attributes.ip", "new": "x"}, "event": "name"}}
    )
    assert list(laid["track"]) == list(under["track"])
    assert list(laid["track"]["context"]) == [*under["track"]["context"], "new"]
    assert laid["track"]["context"]["ip"] == "attributes.ip"
    assert laid["track"]["event"] == "name"
    assert laid["page"] == under["page"]
    assert under == default_mapping()


def test_an_overlay_replaces_what_is_no_dict() -> None:
    over = {"identify": {"context": {"ip": "x"}, "traits": "y"}, "track": {"context": None}}
    laid = overlay(default_mapping(), over)
    assert laid["identify"]["context"] == {"ip": "x"}
    assert laid["identify"]["traits"] == "y"
    assert laid["track"]["context"] is None


def test_an_overlay_for_no_type_of_call_names_the_nearest() -> None:
    with pytest.raises(MappingError, match=r"transform\.mapping\.trakc.*did you mean 'track'"):
        overlay(default_mapping(), {"trakc": {}})


def test_a_group_map_is_laid_over_shallow() -> None:
    group = {"type": "group|static", "context": {"a": "b"}, "traits": {"x": "y"}}
    laid = group_tree(
        group, {"field": "f", "traits": {"z": "z"}, "each": True, "new": "n"}, "groups[0]"
    )
    assert laid == {
        "type": "group|static", "context": {"a": "b"}, "traits": {"z": "z"}, "groupId": "f", "new": "n",
    }  # fmt: skip
    assert list(laid) == ["type", "context", "traits", "groupId", "new"]


def test_a_group_map_may_say_group_id_for_field() -> None:
    assert group_tree({}, {"groupId": "f"}, "groups[0]") == {"groupId": "f"}


@pytest.mark.parametrize(
    ("group_map", "words"),
    [
        ({}, r"groups\[3\]\.field: expected the path of the group's id.*found None"),
        ({"field": ""}, r"groups\[3\]\.field"),
        ({"field": ["a"]}, r"groups\[3\]\.field"),
        ({"field": "a", "each": "yes"}, r"groups\[3\]\.each: expected true or false; found 'yes'"),
    ],
)
def test_a_wrong_group_map_is_an_error(group_map: dict[str, Any], words: str) -> None:
    with pytest.raises(MappingError, match=words):
        group_tree({}, group_map, "groups[3]")


# --- values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("x", "x"),
        ("", None),
        (["x", "y"], "x"),
        ([], None),
        ([["x"]], None),
        ([7], "7"),
        (0, "0"),
        (2**64 - 1, "18446744073709551615"),
        (42.0, "42"),
        (-0.0, "0"),
        (1.5, "1.5"),
        (1e300, "1e+300"),
        (True, None),
        (None, None),
        ({"x": 1}, None),
    ],
)
def test_ids_and_names_become_text(value: object, expected: str | None) -> None:
    assert text(value) == expected


@pytest.mark.parametrize(
    ("milliseconds", "expected"),
    [
        (1_643_673_911_400, "2022-02-01T00:05:11.400Z"),
        (1_643_673_911_400.9, "2022-02-01T00:05:11.400Z"),
        (0, "1970-01-01T00:00:00.000Z"),
        (-1, "1969-12-31T23:59:59.999Z"),
        (-62_135_596_800_000, "0001-01-01T00:00:00.000Z"),
        (-62_135_596_800_001, None),
        (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
        (253_402_300_800_000, None),
        (1e300, None),
        (float("nan"), None),
        (float("inf"), None),
        ("1643673911400", None),
        (True, None),
        (None, None),
        ([1], None),
    ],
)
def test_milliseconds_become_iso_8601(milliseconds: object, expected: str | None) -> None:
    assert milliseconds_to_iso8601(milliseconds) == expected


@settings(deadline=None)
@given(st.integers(-(10**14), 3 * 10**14) | st.floats(-1e14, 3e14) | json_values)
def test_milliseconds_become_what_datetime_says(milliseconds: object) -> None:
    assert milliseconds_to_iso8601(milliseconds) == iso8601(milliseconds)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("ucfirst", "élan vital", "Élan vital"),
        ("ucfirst", "", ""),
        ("strtolower", "ABC", "abc"),
        ("strtoupper", "abc", "ABC"),
        ("trim", " \t\n\r\0\x0bx y\u00a0 ", "x y\u00a0"),
        ("trim", 5, "5"),
        ("strval", 5.0, "5"),
        ("strval", True, "1"),
        ("strval", False, ""),
        ("intval", "42abc", 42),
        ("intval", " -1.9e1x", -19),
        ("intval", "abc", 0),
        ("intval", 7.9, 7),
        ("intval", True, 1),
        ("intval", "9" * 30, 2**63 - 1),
        ("intval", "-1e9999", 0),
        ("floatval", "1.5kg", 1.5),
        ("floatval", ".5", 0.5),
        ("floatval", "x", 0.0),
        ("floatval", 3, 3.0),
        ("md5", "hello", "5d41402abc4b2a76b9719d911017c592"),
        ("json_encode", {"a": [1, "ü"]}, '{"a":[1,"ü"]}'),
        ("hash_event", {"a": 1}, "bb6cb5c68df4652941caf652a366f2d8"),
    ],
)
def test_a_callback_gives(name: str, value: object, expected: object) -> None:
    result = BUILTIN_CALLBACKS[name](value)
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize("name", ["ucfirst", "strtolower", "trim", "strval", "intval", "md5"])
def test_a_callback_for_text_refuses_lists_and_objects(name: str) -> None:
    for value in ([], ["x"], {"x": 1}):
        with pytest.raises(TypeError, match="expected text or a number, found"):
            BUILTIN_CALLBACKS[name](value)
