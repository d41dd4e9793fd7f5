"""`streamer.formatter`: records in, calls out, with sites and site code between."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from streamer.config import load_config
from streamer.core.model import Changed, Filtered, FilterReason, Formatted, Reason, Reject
from streamer.core.transform import Transform
from streamer.formatter import Formatter, Made, Value
from streamer.hooks import Hooks
from streamer.pipeline import make_formatter, make_transform

KEY = "the-default-key"


class Notes:
    def hook_failed(self, hook: str, how: str) -> None:
        """Counted elsewhere."""


def event(blog: str | None = None, event_type: str = "click", **more: Any) -> bytes:
    attributes = {} if blog is None else {"blogId": blog}
    return orjson.dumps(
        {"event_type": event_type, "event_timestamp": 1_700_000_000_000, "endpoint": {"Id": "ann"},
         "attributes": attributes, **more}
    )  # fmt: skip


def make(
    hooks: Hooks | None = None, environ: dict[str, str] | None = None, **more: str
) -> Formatter:
    variables = {"STREAMER_SEGMENT__WRITE_KEY": KEY, **more, **(environ or {})}
    config = load_config(None, {}, variables)
    hooks = hooks or Hooks()
    return make_formatter(config, make_transform(config, KEY, hooks), hooks, Notes())


def formatted(formatter: Formatter, *values: bytes | None) -> list[Made]:
    async def main() -> list[Made]:
        try:
            return await formatter.format([Value(value, -1) for value in values])
        finally:
            formatter.close()

    return asyncio.run(main())


def calls(made: Made) -> list[dict[str, Any]]:
    assert isinstance(made.result, Formatted | Changed)
    calls: list[dict[str, Any]] = orjson.loads(made.result.as_json())
    return calls


SITES = {"STREAMER_SEGMENT__SITES__WRITE_KEYS": '{"2": "key-of-2", "3": ""}'}


def test_without_sites_and_site_code_it_is_not_needed_and_gives_the_same() -> None:
    formatter = make()
    assert not formatter.needed
    (made,) = formatted(formatter, event())
    assert made.write_key == KEY
    assert calls(made) == Transform(write_key=KEY).calls(event(), -1)


def test_every_site_has_its_key_and_its_ids() -> None:
    formatter = make(environ=SITES)
    assert formatter.needed
    default, two, three, broken, empty = formatted(
        formatter, event(), event("2"), event("3"), b"no", None
    )
    assert [one.write_key for one in (default, two)] == [KEY, "key-of-2"]
    assert calls(two) == Transform(write_key="key-of-2").calls(event("2"), -1)
    assert three == Made("", Filtered(FilterReason.NO_WRITE_KEY))
    assert isinstance(broken.result, Reject)
    assert (broken.result.reason, isinstance(empty.result, Reject)) == (Reason.NOT_JSON, True)


def test_a_handler_that_forgets_to_return_a_key_keeps_nothing_back_in_silence() -> None:
    hooks = Hooks()

    @hooks.filter("altis.analytics.segment.api_write_key")
    def forgets(key: str, event: dict[str, Any]) -> Any:  # noqa: ARG001
        return "key-of-2" if event["attributes"].get("blogId") == "2" else None

    two, other = formatted(make(hooks), event("2"), event("1"))
    assert two.write_key == "key-of-2"
    assert isinstance(other.result, Reject)
    assert other.result.reason is Reason.HOOK_FAILED
    assert "gave nothing; expected the write key as text, or an empty one" in other.result.detail


def test_site_code_has_the_last_word_on_the_key() -> None:
    hooks = Hooks()

    @hooks.filter("altis.analytic.segment.api_write_key")
    def key(key: str, event: dict[str, Any]) -> str:
        site = event["attributes"].get("blogId")
        return {"9": "", "8": "no key: it has a colon"}.get(site, key + "-changed")

    default, two, none, wrong = formatted(
        make(hooks, SITES), event(), event("2"), event("9"), event("8")
    )
    assert (default.write_key, two.write_key) == (KEY + "-changed", "key-of-2-changed")
    assert none.result == Filtered(FilterReason.NO_WRITE_KEY)
    assert isinstance(wrong.result, Reject)
    assert wrong.result.reason is Reason.HOOK_FAILED
    assert "has a colon" not in wrong.result.detail, "what may be a key is not shown"


def test_site_code_changes_leaves_out_and_adds_calls() -> None:
    hooks = Hooks()
    shown: list[list[list[str]]] = []

    @hooks.filter("altis.analytics.segment.formatted_data")
    def change(data: list[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
        shown.append([[call["type"] for call in one] for one in data])
        data[0][-1]["properties"] = {"changed": True}
        return [data[0], [], [*data[2], {**data[2][-1], "event": "copy"}], data[3][:1]]

    made = formatted(make(hooks), event("1"), b"[]", event("2"), event("3"), event("4"), b"{")
    assert shown == [[["identify", "track"]] * 4], "records without calls aren't shown"
    changed, rejected, left_out, copied, identify, broken = made
    assert calls(changed)[-1]["properties"] == {"changed": True}
    plain = Transform(write_key=KEY).calls(event("1"), -1)
    assert isinstance(plain, list)
    assert calls(changed)[-1]["messageId"] == plain[-1]["messageId"]
    assert isinstance(rejected.result, Reject)
    assert isinstance(broken.result, Reject)
    assert left_out == Made("", Filtered(FilterReason.HOOK))
    assert [call["type"] for call in calls(copied)] == ["identify", "track", "track"]
    assert len({call["messageId"] for call in calls(copied)}) == 3
    assert isinstance(identify.result, Changed)
    assert not identify.result.decided


def test_formatted_data_that_fails_makes_dead_letters_of_the_chunks_records_alone() -> None:
    hooks = Hooks()

    @hooks.filter("altis.analytics.segment.formatted_data")
    async def fail(data: list[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
        raise ValueError(len(data))

    good, broken = formatted(make(hooks), event(), b"no")
    assert isinstance(good.result, Reject)
    assert good.result.reason is Reason.HOOK_FAILED
    assert "ValueError: 1" in good.result.detail
    assert "raise ValueError(len(data))" in good.result.detail
    assert isinstance(broken.result, Reject)
    assert broken.result.reason is Reason.NOT_JSON


def test_one_wrong_record_of_a_chunk_fails_alone() -> None:
    hooks = Hooks()

    @hooks.filter("altis.analytics.segment.formatted_data")
    def change(data: list[list[dict[str, Any]]]) -> Any:
        return [None, data[1]]

    wrong, good = formatted(make(hooks), event("1"), event("2"))
    assert isinstance(wrong.result, Reject)
    assert wrong.result.reason is Reason.HOOK_FAILED
    assert isinstance(good.result, Changed)


@pytest.mark.parametrize("profile", ["default", "altis"])
def test_a_handler_that_changes_the_event_against_the_rule_fails_that_record_alone(
    profile: str,
) -> None:
    hooks = Hooks()

    @hooks.filter("altis.analytics.segment.api_write_key")
    def change(key: str, event: dict[str, Any]) -> str:
        if event["attributes"].get("blogId") == "1":
            event["endpoint"]["Attributes"] = (1j, "D")
            event["endpoint"]["Id"] = object()
        return key

    wrong, good = formatted(
        make(hooks, STREAMER_TRANSFORM__PROFILE=profile), event("1"), event("2")
    )
    assert isinstance(wrong.result, Reject)
    assert isinstance(good.result, Formatted)


def test_too_many_calls_of_one_record_are_refused() -> None:
    hooks = Hooks()

    @hooks.filter("altis.analytics.segment.formatted_data")
    def many(data: list[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
        return [data[0] * 501, data[1] * 500]

    wrong, good = formatted(make(hooks), event("1"), event("2"))
    assert isinstance(wrong.result, Reject)
    assert "1,000 calls; found 1,002" in wrong.result.detail
    assert len(calls(good)) == 1000


def test_with_the_profile_altis_ids_and_calls_stay_as_they_are() -> None:
    hooks = Hooks()

    @hooks.filter("altis.analytics.segment.formatted_data")
    def same(data: list[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
        return data

    (made,) = formatted(make(hooks, STREAMER_TRANSFORM__PROFILE="altis"), event())
    assert calls(made) == Transform(write_key="", profile="altis").calls(event(), -1)


# --- the set-up --------------------------------------------------------------------------------


def test_the_mapping_filter_gets_whole_trees_and_empty_leaves_in_the_documented_order() -> None:
    hooks = Hooks()
    hooks.register_segment_group_field("endpoint.Id", {"a": "attributes.a"})
    hooks.register_segment_group_map({"groupId": "attributes.blogId", "context": {"x": "1|static"}})
    seen = []

    @hooks.filter("altis.analytics.segment.groups")
    def groups(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        seen.append("groups")
        return [*groups, {"field": "event_type"}]

    @hooks.filter("altis.analytics.segment.mapping")
    def mapping(mapping: dict[str, Any], type: str) -> dict[str, Any]:  # noqa: A002
        seen.append(type)
        if type in ("page", "track"):
            assert mapping["context"]["ip"] == ""
            mapping["context"]["ip"] = "attributes.ip"
        else:
            assert mapping["context"] is None or type == "group"
        if type == "group" and mapping["groupId"] == "event_type":
            del mapping["receivedAt"]
            mapping["traits"] = {"seen": "yes|static"}
        return mapping

    config = load_config(
        None, {}, {"STREAMER_GROUPS": '[{"field": "attributes.team", "each": true}]'}
    )
    transform = make_transform(config, KEY, hooks)
    assert seen == ["groups", "identify", "page", "track", "group", "group", "group", "group"]
    made = transform.calls(
        orjson.dumps(
            {"event_type": "e", "event_timestamp": 1, "arrival_timestamp": 2, "endpoint": {"Id": "i"},
             "attributes": {"ip": "::1", "a": 1, "blogId": "7", "team": ["x", "y"]}}
        ), -1,
    )  # fmt: skip
    assert isinstance(made, list)
    assert [(call["type"], call.get("groupId")) for call in made] == [
        ("identify", None), ("group", "x"), ("group", "y"), ("group", "i"), ("group", "7"), ("group", "e"),
        ("track", None),
    ]  # fmt: skip
    assert made[-1]["context"]["ip"] == "::1"
    assert made[3]["traits"] == {"a": 1}
    assert made[4]["context"] == {"x": "1"}
    assert made[5]["traits"] == {"seen": "yes"}
    assert ["receivedAt" in call for call in made[4:]] == [True, False, True]


def test_registered_callbacks_stand_in_mappings() -> None:
    hooks = Hooks()
    hooks.register_callback("shout", lambda value: value.upper() + "!")
    config = load_config(
        None, {}, {"STREAMER_TRANSFORM__MAPPING": '{"track": {"event": "event_type|shout"}}'}
    )
    made = make_transform(config, KEY, hooks).calls(event(), -1)
    assert isinstance(made, list)
    assert made[-1]["event"] == "CLICK!"


@pytest.mark.parametrize(
    "bad", [{"field": 7}, "endpoint.Id", {"field": "a", "traits": "x|nothing"}]
)
def test_a_wrong_group_map_of_a_filter_is_an_error_at_the_start(bad: Any) -> None:
    hooks = Hooks()

    @hooks.filter("altis.analytics.segment.groups")
    def add(groups: list[Any]) -> list[Any]:
        return [*groups, bad]

    with pytest.raises(Exception, match=r"groups\[0\]"):
        make_transform(load_config(None, {}, {}), KEY, hooks)
