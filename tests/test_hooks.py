"""`streamer.hooks`: what site code registers."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from streamer import hooks as module
from streamer.hooks import ACTIONS, API_WRITE_KEY, FILTERS, MAPPING, REQUEST_FAILURE, Hooks


def test_handlers_run_by_priority_and_then_as_they_were_registered() -> None:
    hooks = Hooks()
    ran = []
    for name, priority in (("b", 10), ("d", 20), ("a", 1), ("c", 10)):

        def handler(key: str, event: dict[str, Any], name: str = name) -> str:  # noqa: ARG001
            ran.append(name)
            return key

        hooks.filter("altis.analytics.segment.api_write_key", priority=priority)(handler)
    for handler in hooks.handlers(API_WRITE_KEY):
        handler("key", {})
    assert ran == ["a", "b", "c", "d"]


def test_a_handler_stays_what_it_was_and_can_be_removed() -> None:
    hooks = Hooks()

    @hooks.filter("altis.analytics.segment.mapping")
    def add(mapping: dict[str, Any], type: str) -> dict[str, Any]:  # noqa: A002
        return {**mapping, "x": type}

    assert add({}, "page") == {"x": "page"}
    assert hooks.names() == [MAPPING]
    assert hooks.remove_filter("altis.analytics.segment.mapping", add) is True
    assert hooks.remove_filter("altis.analytics.segment.mapping", add) is False
    assert hooks.names() == []

    class Counts:
        def fail(self, response: object, batch: object) -> None:
            """A bound method is another object each time it is looked up."""

    counts = Counts()
    hooks.action("altis.analytics.segment.request_failure")(counts.fail)
    assert hooks.remove_action("altis.analytics.segment.request_failure", counts.fail)
    assert not hooks.handlers(REQUEST_FAILURE)


def test_the_older_spelling_of_api_write_key_is_the_same_hook() -> None:
    hooks = Hooks()

    @hooks.filter("altis.analytic.segment.api_write_key")
    def key(key: str, event: dict[str, Any]) -> str:  # noqa: ARG001
        return key

    assert hooks.handlers(API_WRITE_KEY) == [key]
    assert hooks.remove_filter("altis.analytic.segment.api_write_key", key)


@pytest.mark.parametrize(
    ("kind", "name", "says"),
    [
        (
            "filter",
            "altis.analytics.segment.maping",
            "did you mean 'altis.analytics.segment.mapping'",
        ),
        ("filter", "x", "expected one of altis.analytics.segment.api_write_key, "),
        ("filter", "altis.analytics.segment.after_send", "registered with hooks.action"),
        ("action", "altis.analytics.segment.groups", "registered with hooks.filter"),
        ("remove_filter", "y", "there is no filter 'y'"),
        ("remove_action", "y", "there is no action 'y'"),
    ],
)
def test_an_unknown_hook_is_said_with_the_nearest(kind: str, name: str, says: str) -> None:
    with pytest.raises(ValueError, match=says.replace(".", r"\.")):
        getattr(Hooks(), kind)(name, *([print] if kind.startswith("remove") else []))


@pytest.mark.parametrize("name", [*FILTERS, *ACTIONS])
def test_a_handler_must_take_what_the_hook_gives(name: str) -> None:
    hooks = Hooks()
    register: Any = hooks.filter if name in FILTERS else hooks.action
    arguments = {**FILTERS, **ACTIONS}[name]

    def none() -> None: ...
    def everything(*_: object) -> None: ...

    with pytest.raises(TypeError, match=r"is called with \(" + ", ".join(arguments)):
        register(name)(none)
    with pytest.raises(TypeError, match="expected a function"):
        register(name)("print")
    assert not hooks.handlers(name)
    register(name)(everything)
    register(name)(partial(everything, 1))
    assert len(hooks.handlers(name)) == 2


def test_slips_at_registering_are_said_in_ones_own_words() -> None:
    hooks: Any = Hooks()
    with pytest.raises(
        TypeError, match=r'@hooks\.filter\("altis\.analytics\.segment\.api_write_key"\)'
    ):
        hooks.filter(print)
    with pytest.raises(TypeError, match="a priority is a whole number; found '1'"):
        hooks.filter("altis.analytics.segment.groups", priority="1")
    with pytest.raises(TypeError, match=r"found None in \{'groupid': 'a'\}"):
        hooks.register_segment_group_map({"groupid": "a"})

    def short(mapping: Any) -> Any: ...

    with pytest.raises(
        TypeError, match=r"called with \(mapping, type\), but \S+short takes \(mapping\)"
    ):
        hooks.filter("altis.analytics.segment.mapping")(short)


def test_groups_are_registered_in_both_documented_ways() -> None:
    hooks = Hooks()
    traits = {"country": "endpoint.Location.Country"}
    hooks.register_segment_group_field("a.b", traits)
    hooks.register_segment_group_field("a.c", each=True)
    hooks.register_segment_group_map("a.d", traits)
    hooks.register_segment_group_map({"field": "a.e", "traits": traits, "context": None})
    hooks.register_segment_group_map({"groupId": "a.f"})
    traits["country"] = "changed afterwards"
    assert hooks.groups == [
        {"field": "a.b", "traits": {"country": "endpoint.Location.Country"}},
        {"field": "a.c", "each": True},
        {"field": "a.d", "traits": {"country": "endpoint.Location.Country"}},
        {"field": "a.e", "traits": {"country": "endpoint.Location.Country"}, "context": None},
        {"groupId": "a.f"},
    ]
    hooks.groups[0]["field"] = "not the registered one"
    assert hooks.groups[0]["field"] == "a.b"


@pytest.mark.parametrize(
    "arguments", [("",), (7,), ({},), ({"field": 7},), ({"field": "a"}, {"b": "c"})]
)
def test_a_group_map_without_a_field_is_refused(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError):
        Hooks().register_segment_group_map(*arguments)


def test_a_callback_has_a_name_that_a_mapping_can_use() -> None:
    hooks = Hooks()
    hooks.register_callback("plan", str.upper)
    assert hooks.callbacks == {"plan": str.upper}
    for name in ("", "a|b", "a:b", "static"):
        with pytest.raises(ValueError, match="the name of a callback"):
            hooks.register_callback(name, str)
    with pytest.raises(TypeError, match="can't be called"):
        hooks.register_callback("x", "y")  # type: ignore[arg-type]


def test_the_module_is_one_registry() -> None:
    for name in (
        "filter",
        "action",
        "remove_filter",
        "remove_action",
        "register_segment_group_field",
        "register_segment_group_map",
        "register_callback",
    ):
        assert getattr(module, name) == getattr(module.registered, name)
