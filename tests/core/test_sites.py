"""`streamer.core.sites`: which write key an event has."""

from __future__ import annotations

import re
from typing import Any

import pytest

from streamer.core.sites import Sites, listed


@pytest.mark.parametrize(
    ("blog", "key"),
    [("2", "two"), (2, "two"), (2.0, "two"), ("3", ""), ("4", "default"), (True, "default"), (None, "default"),
     ([], "default"), ({}, "default"), ("", "default")],
)  # fmt: skip
def test_a_site_has_its_key_and_any_other_one_the_default(blog: object, key: str) -> None:
    sites = Sites("attributes.blogId", {"2": "two", "3": ""}, "default")
    assert sites.write_key({"attributes": {"blogId": blog}}) == key


@pytest.mark.parametrize(
    ("field", "event", "key"),
    [
        ("a.0", {"a": ["x"]}, "key"),
        ("a.0", {"a": "x"}, "key"),
        ("a.0", {"a": {"0": "x"}}, "key"),
        ("a.1", {"a": ["x"]}, ""),
        ("a.b", {"a": ["x"]}, ""),
        ("a.1", {"a": "x"}, ""),
        ("a", {}, ""),
    ],
)
def test_the_field_is_a_path_as_in_a_mapping(field: str, event: dict[str, Any], key: str) -> None:
    assert Sites(field, {"x": "key"}, "").write_key(event) == key


def test_without_keys_there_is_nothing_to_look_up() -> None:
    assert not Sites("a", {}, "default")
    assert Sites("a", {"x": "key"}, "default")


def test_a_write_key_is_named_without_being_shown() -> None:
    keys = {"2": "two", "3": "three", "5": "three", "7": "", **dict.fromkeys("abcdef", "many")}
    sites = Sites("a", keys, "default")
    assert sites.name("default") == "the default write key"
    assert sites.name("two") == "site 2"
    assert sites.name("three") == "sites 3 and 5"
    assert sites.name("many") == "sites a, b, c and 3 more"
    unknown = [sites.name(f"{number:032}") for number in range(50)]
    assert len(set(unknown)) == 50
    assert unknown == [sites.name(f"{number:032}") for number in range(50)]
    assert all(re.fullmatch("write key with digest [0-9a-f]{8}", name) for name in unknown)


@pytest.mark.parametrize(
    ("names", "most", "text"),
    [
        ("a", 3, "a"),
        ("ab", 3, "a and b"),
        ("abc", 3, "a, b and c"),
        ("abcd", 3, "a, b, c and 1 more"),
        ("abcd", 1, "a and 3 more"),
    ],
)
def test_names_in_a_sentence(names: str, most: int, text: str) -> None:
    assert listed(names, most) == text
