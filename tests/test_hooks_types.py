"""The types of `streamer.hooks`: an editor knows what a handler is called with, and a checker finds a wrong one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mypy import api

if TYPE_CHECKING:
    from pathlib import Path

GOOD = """
from typing import Any
from streamer import hooks

@hooks.filter("altis.analytics.segment.api_write_key")
async def key(key: str, event: dict[str, Any]) -> str:
    return key

@hooks.filter("altis.analytic.segment.api_write_key", priority=5)
def no_key(key: str, event: dict[str, Any]) -> str:
    return ""

@hooks.filter("altis.analytics.segment.mapping")
def mapping(mapping: hooks.MappingTree, type: str) -> hooks.MappingTree:
    return mapping

@hooks.filter("altis.analytics.segment.groups")
def groups(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return groups

@hooks.filter("altis.analytics.segment.formatted_data")
async def data(data: list[list[hooks.Call]]) -> list[list[hooks.Call]]:
    return data

@hooks.action("altis.analytics.segment.request_success")
def success(response: hooks.Response, batch: list[hooks.Call]) -> None:
    print(response.status)

@hooks.action("altis.analytics.segment.request_failure")
async def failure(response: hooks.Response | Exception, batch: list[hooks.Call]) -> None: ...

@hooks.action("altis.analytics.segment.after_send")
def after(
    results: list[hooks.Response | Exception], batches: list[list[hooks.Call]], events: list[list[hooks.Call]]
) -> None: ...

hooks.register_segment_group_field("a.b", {"c": ["d", "e"]}, each=True)
hooks.register_segment_group_map({"field": "a.b"})
hooks.register_segment_group_map("a.b", {"c": "d"})
hooks.register_callback("shout", str.upper)
hooks.remove_filter("altis.analytics.segment.mapping", mapping)
reveal_type(mapping)
reveal_type(data)
"""
BAD = """
from typing import Any
from streamer import hooks

@hooks.filter("altis.analytics.segment.formatted_data")
def one_list(data: list[str]) -> list[str]:
    return data

@hooks.filter("altis.analytics.segment.mapping")
def forgets(mapping: dict[str, Any], type: str) -> None: ...

@hooks.action("altis.analytics.segment.request_failure")
def only_answers(response: hooks.Response, batch: list[hooks.Call]) -> None: ...

@hooks.filter("altis.analytics.segment.after_send")
def no_filter(results: Any, batches: Any, events: Any) -> None: ...

hooks.register_segment_group_field(7)

@hooks.filter("altis.analytics.segment.api_write_key")
def forgets_too(key: str, event: dict[str, Any]) -> str | None: ...
"""


def checked(folder: Path, text: str) -> str:
    file = folder / "site.py"
    file.write_text(text)
    found, errors, _ = api.run(
        ["--strict", "--config-file=", f"--cache-dir={folder / 'cache'}", str(file)]
    )
    assert not errors
    return found


def test_right_handlers_pass_and_keep_their_types(tmp_path: Path) -> None:
    found = checked(tmp_path, GOOD)
    assert "error" not in found, found
    mapping, data = re.findall(r'Revealed type is "(.*)"', found)
    assert mapping.startswith("def (mapping: ")
    assert "Coroutine" in data, "an async handler stays one"


def test_wrong_handlers_are_found(tmp_path: Path) -> None:
    found = checked(tmp_path, BAD)
    lines = {int(line) for line in re.findall(r"site\.py:(\d+): error", found)}
    assert lines >= {5, 9, 12, 15, 18, 20}, found
