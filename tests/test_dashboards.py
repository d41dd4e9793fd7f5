"""The dashboards are what their source makes, and ask for nothing that streamer doesn't have."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

import pytest

import generate
from metrics_page import OPEN_LABELS, families, label_values, sample_name
from watched import BOARDS, DASHBOARDS, Variables, dashboard, panels, selectors

FILL = Variables("1m", "1h", "1h")
OTHERS = {
    "up": set[str](),
    "ALERTS": {"alertname", "alertstate"},
    "process_start_time_seconds": set[str](),
    "process_cpu_seconds_total": set[str](),
    "process_resident_memory_bytes": set[str](),
    "process_open_fds": set[str](),
    "python_gc_collections_total": {"generation"},
}
"""Metrics that aren't streamer's own, with their labels."""
EVERYWHERE = {"job", "instance"}


@cache
def metrics() -> dict[str, dict[str, list[str]]]:
    """Every series name of streamer, with its labels and their values."""
    found = {}
    for family in families():
        labels = label_values(family)
        for suffix in ("_bucket", "_sum", "_count") if family.type == "histogram" else ("",):
            found[sample_name(family) + suffix] = labels
    return found


def assert_known(query: str) -> None:
    """Each metric, label and value of a label that a query names is there."""
    for selector in selectors(query):
        if selector.name in OTHERS:
            allowed = dict.fromkeys(OTHERS[selector.name], None)
        else:
            assert selector.name in metrics(), query
            allowed = dict.fromkeys(metrics()[selector.name], None)
        for matcher in selector.matchers.matchers:
            if matcher.name == "le":
                assert selector.name.endswith("_bucket")
                continue
            assert matcher.name in allowed.keys() | EVERYWHERE, f"{matcher.name} in {query}"
            if matcher.name in OPEN_LABELS or selector.name in OTHERS or matcher.name in EVERYWHERE:
                continue
            known = metrics()[selector.name][matcher.name]
            for value in matcher.value.split("|"):
                assert value in known, f"{matcher.name}={value} in {query}"


def queries(board: dict[str, Any]) -> list[str]:
    """Those of panels and of annotations."""
    return [
        *(target["expr"] for panel in panels(board) for target in panel["targets"]),
        *(annotation["expr"] for annotation in board["annotations"]["list"]),
    ]


def test_the_names_of_the_dashboards() -> None:
    assert set(BOARDS) == set(generate.DASHBOARDS)
    assert {path.name for path in DASHBOARDS.glob("*.json")} == set(BOARDS)
    assert len({dashboard(name)["uid"] for name in BOARDS}) == len(BOARDS)


@pytest.mark.parametrize("name", BOARDS)
def test_a_dashboard_is_what_its_source_makes(name: str) -> None:
    made = generate.DASHBOARDS[name]().text()
    assert (DASHBOARDS / name).read_text() == made, "write it anew: make docs"


@pytest.mark.parametrize("name", BOARDS)
def test_a_dashboard_has_what_all_have(name: str) -> None:
    board = dashboard(name)
    assert board["schemaVersion"] == 42
    assert board["editable"] is False
    assert board["graphTooltip"] == 1, "a shared crosshair"
    variables = [variable["name"] for variable in board["templating"]["list"]]
    assert variables[:4] == ["datasource", "job", "instance", "topic"]
    assert [annotation["name"] for annotation in board["annotations"]["list"]] == [
        "Config changes", "Starts", "Rebalances", "Firing alerts",
    ]  # fmt: skip
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(board))) - {
        "__rate_interval",
        "__range",
        "__all",
    }
    assert used == set(variables), "each variable does something"


@pytest.mark.parametrize("name", BOARDS)
def test_every_panel_says_what_it_is_and_none_covers_another(name: str) -> None:
    board = dashboard(name)
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        assert panel["title"]
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
    for panel in panels(board):
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert re.fullmatch(r".{15,}[.\d]", panel["description"]), panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs) > 0
    names = [panel["title"] for panel in panels(board)]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    assert len(names) > 15


@pytest.mark.parametrize("name", BOARDS)
def test_every_query_asks_for_what_is_there_and_for_what_was_chosen(name: str) -> None:
    for query in queries(dashboard(name)):
        assert_known(FILL.fill(query))
        for selector in selectors(FILL.fill(query)):
            chosen = {matcher.name for matcher in selector.matchers.matchers}
            if selector.name == "ALERTS":
                assert "job" in chosen
            else:
                assert chosen >= EVERYWHERE, query
            if (
                "topic" in metrics().get(str(selector.name), {})
                and generate.UNACCOUNTED not in query
            ):
                assert "topic" in chosen, query
        for window in re.findall(r"\[([^\]]+)\]", query):
            assert window in {"$__rate_interval", "$__range"}, query


def test_every_metric_stands_on_a_dashboard() -> None:
    """What nobody looks at is a metric too many, or a panel too few."""
    asked = {
        str(selector.name).removesuffix(suffix)
        for name in BOARDS
        for query in queries(dashboard(name))
        for selector in selectors(FILL.fill(query))
        for suffix in ("", "_bucket", "_sum", "_count")
    }
    assert {sample_name(family) for family in families()} - asked == {
        "streamer_last_delivery_timestamp_seconds",  # the rate of deliveries says it on a graph
    }
