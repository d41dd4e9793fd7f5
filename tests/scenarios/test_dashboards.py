"""Every query of every panel and every alert is asked of a real Prometheus that watched a bad day."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest

from kafka_broker.broker import free_port
from watched import (
    BOARDS,
    EXCLUDED,
    SETTINGS,
    Prometheus,
    Series,
    Variables,
    bad_day,
    dashboard,
    panels,
    selectors,
)
from whole_pipeline import Stage

if TYPE_CHECKING:
    from conftest import Require
    from kafka_broker.topics import Kafka

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]  # CI may be slow; a hang still ends

SECONDS = 15.0
NOTHING_TO_SHOW = {
    ("Unaccounted", "records"),
    ("Unaccounted records", "records"),
    ("Events in and out", "released"),
    ("Consumer restarts", "{{reason}}"),
    ("Partitions that can't be read on", "partitions"),
    ("Released and skipped records", "released"),
    ("Released and skipped records", "skipped"),
    ("What else went wrong", "dead-letter writes failed"),
    ("What else went wrong", "records skipped"),
    ("What else went wrong", "handlers failed"),
    ("Garbage collections", "{{generation}}"),
}
"""Queries that may be 0 all day, by panel and legend: nothing of that kind need happen on it."""


def numbers(answer: list[Series]) -> list[float]:
    return [value for series in answer for value in series.finite()]


def test_every_panel_and_every_alert_is_answered_after_a_bad_day(
    kafka: Kafka, require: Require, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each query names metrics that are there, and gives numbers; those of faults show the faults."""
    require("prometheus")
    asked = {"panels": 0, "queries": 0, "annotations": 0, "alerts": 0}
    silent: list[tuple[str, str]] = []

    async def story() -> None:
        ports = (free_port(), free_port())
        async with (
            Stage(kafka, SETTINGS, excluded=EXCLUDED) as stage,
            Prometheus(ports) as prometheus,
        ):
            start = time.time()
            refused = await bad_day(stage, ports, SECONDS, rate=300)
            await stage.until_committed()
            await prometheus.scraped_all()
            end = time.time()
            variables = Variables("10s", f"{end - start:.0f}s", "10s")
            known = set(await prometheus.read("label/__name__/values"))

            async def ask(query: str, *, instant: bool = False) -> list[Series]:
                query = variables.fill(query)
                assert {selector.name for selector in selectors(query)} <= known, query
                if instant:
                    return await prometheus.at(query, end)
                return await prometheus.over(query, start, end, 1)

            for name in BOARDS:
                board = dashboard(name)
                for panel in panels(board):
                    asked["panels"] += 1
                    for target in panel["targets"]:
                        asked["queries"] += 1
                        found = numbers(await ask(target["expr"], instant=target["instant"]))
                        what = (panel["title"], target.get("legendFormat", target["refId"]))
                        assert found, f"{name}: {what} has no data: {target['expr']}"
                        if not any(found):
                            silent.append(what)
                for annotation in board["annotations"]["list"]:
                    asked["annotations"] += 1
                    drawn = await ask(annotation["expr"])
                    assert drawn or annotation["name"] == "Firing alerts"  # nothing lasts so long

            for rule in await rules(prometheus):
                asked["alerts"] += 1
                assert (rule["health"], rule.get("lastError", "")) == ("ok", "")
                for selector in selectors(rule["query"]):
                    assert selector.name in known
                    matchers = str(selector.matchers)
                    assert numbers(await ask(f"{selector.name}{matchers}")), (
                        rule["name"],
                        matchers,
                    )
                for alert in rule["alerts"]:
                    assert "template" not in "".join(alert["annotations"].values())
            await stage.assert_accounted_for(refused=refused, once=False)

    asyncio.run(story())
    with capsys.disabled():
        counts = ", ".join(f"{number} {what}" for what, number in asked.items())
        print(f"\nPrometheus was asked: {counts}; all answered")  # noqa: T201 - for whoever reads CI's output
    assert set(silent) <= NOTHING_TO_SHOW
    assert min(asked.values()) >= 12


async def rules(prometheus: Prometheus) -> list[dict[str, Any]]:
    """The alerts as Prometheus knows them."""
    return [rule for group in (await prometheus.read("rules"))["groups"] for rule in group["rules"]]
