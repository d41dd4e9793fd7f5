"""`streamer.core.sites`: which write key an event has."""

from __future__ import annotations

from typing import Any

import pytest

from streamer.core.sites import Sites


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
