"""Each alert fires when it should and not when it nearly should (by promtool), and has its section in the runbook."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from ruamel.yaml import YAML

from documents import DOCUMENTS, ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from conftest import Require

ALERTS = ROOT / "dashboards/alerts.yml"
RULES: list[dict[str, Any]] = [
    rule for group in YAML(typ="safe").load(ALERTS.read_text())["groups"] for rule in group["rules"]
]
RUNBOOK = DOCUMENTS["docs/runbook.md"]


@dataclass(frozen=True, slots=True)
class Case:
    """What Prometheus has scraped, once a minute, and whether an alert fires then.

    Args:
        alert, severity: which alert.
        fires: whether it does.
        at: when it is asked, as Prometheus writes durations.
        series: a series without job and instance to its values, in promtool's notation: `0+60x30` is 0, 60, … 1800.
    """

    alert: str
    severity: str
    fires: bool
    at: str
    series: Mapping[str, str]


def requests(*, good: float, bad: float, outcome: str = "server_error") -> dict[str, str]:
    """Requests a minute."""
    return {
        'segment_requests_total{status_class="2xx",outcome="delivered"}': f"0+{good}x90",
        f'segment_requests_total{{status_class="5xx",outcome="{outcome}"}}': f"0+{bad}x90",
    }


def ages(in_time: int, late: int, interval: int = 1) -> dict[str, str]:
    """Events a minute, over 7 hours."""
    return {
        'event_age_seconds_bucket{le="30.0"}': f"0+{in_time}x420",
        "event_age_seconds_count": f"0+{in_time + late}x420",
        "config_flush_interval_seconds": f"{interval}x420",
    }


def durations(under_2: int, under_5: int) -> dict[str, str]:
    """Requests a minute by how long they took."""
    return {
        'segment_request_duration_seconds_bucket{le="1.0"}': "0+0x40",
        'segment_request_duration_seconds_bucket{le="2.0"}': f"0+{under_2}x40",
        'segment_request_duration_seconds_bucket{le="5.0"}': f"0+{under_2 + under_5}x40",
        'segment_request_duration_seconds_bucket{le="+Inf"}': f"0+{under_2 + under_5}x40",
    }


def settled(delivered: float, dead: float) -> dict[str, str]:
    """Records a minute."""
    return {
        'events_settled_total{outcome="delivered",reason=""}': f"0+{delivered}x40",
        'events_settled_total{outcome="dead_lettered",reason="not_json"}': f"0+{dead}x40",
    }


def account(*, consumed: str, in_flight: str) -> dict[str, str]:
    """An account that balances with 100 records a minute and 50 in flight."""
    return {
        'events_consumed_total{topic="events"}': consumed,
        'events_settled_total{outcome="delivered",reason=""}': "0+90x20",
        'events_settled_total{outcome="dead_lettered",reason="not_json"}': "0+5x20",
        "events_released_total": "0+5x20",
        "inflight_events": in_flight,
    }


def batches(fill: float, a_minute: float) -> dict[str, str]:
    """Batches that are so full, all closed by time."""
    return {
        "batch_fill_ratio_sum": f"0+{fill * a_minute}x180",
        "batch_fill_ratio_count": f"0+{a_minute}x180",
        'batches_closed_total{trigger="time"}': f"0+{a_minute}x180",
    }


def commits(ok: int, failed: int, result: str) -> dict[str, str]:
    """Commits a minute."""
    return {
        'offset_commits_total{result="ok"}': f"0+{ok}x40",
        f'offset_commits_total{{result="{result}"}}': f"0+{failed}x40",
    }


PARTITION = 'topic="events",partition="3"'
LAG = f"consumer_lag_records{{{PARTITION}}}"
OFFSET = f"committed_offset{{{PARTITION}}}"
DELIVERED = 'events_settled_total{outcome="delivered",reason=""}'
OLDEST = "oldest_pending_event_timestamp_seconds"  # Prometheus's clock begins at 0 in promtool
INTERVAL = "config_flush_interval_seconds"
CASES = [
    Case("StreamerDown", "critical", True, "3m", {"up": "1 0x10"}),
    Case("StreamerDown", "critical", True, "3m", {"up{job='another'}": "1x10"}),  # no target at all
    Case("StreamerDown", "critical", False, "3m", {"up": "1 0 1x10"}),
    Case("StreamerDeliveryStalled", "critical", True, "20m", {DELIVERED: "7x30", LAG: "5x30"}),
    Case("StreamerDeliveryStalled", "critical", False, "20m", {DELIVERED: "7x30", LAG: "0x30"}),
    Case("StreamerDeliveryStalled", "critical", False, "20m", {DELIVERED: "0+1x30", LAG: "5x30"}),
    Case("StreamerOldestEventTooOld", "warning", True, "15m", {OLDEST: "0x30", INTERVAL: "1x30"}),
    Case("StreamerOldestEventTooOld", "warning", False, "15m", {OLDEST: "0x30", INTERVAL: "600x30"}),
    Case("StreamerLatenessBudgetBurn", "critical", True, "2h", ages(80, 20)),
    Case("StreamerLatenessBudgetBurn", "critical", False, "2h", ages(90, 10)),
    Case("StreamerLatenessBudgetBurn", "critical", False, "2h", ages(0, 20, interval=60)),
    Case("StreamerLatenessBudgetBurn", "warning", True, "7h", ages(90, 10)),
    Case("StreamerLatenessBudgetBurn", "warning", False, "7h", ages(95, 5)),
    Case("StreamerPartitionStuck", "critical", True, "20m", {LAG: "5x30", OFFSET: "7x30"}),
    Case("StreamerPartitionStuck", "critical", False, "20m", {LAG: "5x30", OFFSET: "7+1x30"}),
    Case("StreamerPartitionStuck", "critical", False, "20m", {LAG: "0x12 5x30", OFFSET: "7x42"}),
    Case("StreamerLagGrowing", "warning", True, "80m", {LAG: "0+100x90"}),
    Case("StreamerLagGrowing", "warning", False, "80m", {LAG: "9000-100x90"}),
    Case("StreamerLagGrowing", "warning", False, "80m", {LAG: "0+10x90"}),
    Case("StreamerCommitFailing", "warning", True, "30m", commits(30, 30, "timeout")),
    Case("StreamerCommitFailing", "warning", False, "30m", commits(55, 5, "timeout")),
    Case("StreamerCommitFailing", "warning", False, "30m", commits(30, 30, "rebalance")),
    Case("StreamerRebalancing", "warning", True, "40m", {"rebalances_total": "0+0.3x50"}),
    Case("StreamerRebalancing", "warning", False, "40m", {"rebalances_total": "0x10 1 2 3 4x40"}),
    Case("StreamerSegmentErrors", "critical", True, "20m", requests(good=40, bad=60)),
    Case("StreamerSegmentErrors", "critical", False, "20m", requests(good=60, bad=40)),
    Case("StreamerSegmentErrors", "warning", True, "20m", requests(good=90, bad=10, outcome="connect")),
    Case("StreamerSegmentErrors", "warning", False, "20m", requests(good=97, bad=3)),
    Case("StreamerSegmentErrors", "warning", False, "20m", requests(good=50, bad=50, outcome="refused")),
    Case("StreamerSegmentAuthRejected", "critical", True, "5m", {'destinations{state="misconfigured"}': "0 1x10"}),
    Case("StreamerSegmentAuthRejected", "critical", False, "5m", {'destinations{state="backing_off"}': "0 1x10"}),
    Case("StreamerSegmentThrottled", "warning", True, "30m", requests(good=90, bad=10, outcome="rate_limited")),
    Case("StreamerSegmentThrottled", "warning", False, "30m", requests(good=97, bad=3, outcome="rate_limited")),
    Case("StreamerSegmentSlow", "warning", True, "30m", durations(90, 10)),
    Case("StreamerSegmentSlow", "warning", False, "30m", durations(96, 4)),
    Case("StreamerDeadLettering", "warning", True, "30m", settled(95, 5)),
    Case("StreamerDeadLettering", "warning", False, "30m", settled(199, 1)),
    Case("StreamerDeadLetterWriteFailing", "critical", True, "15m", {"dead_letter_write_failures_total": "0+1x20"}),
    Case("StreamerDeadLetterWriteFailing", "critical", False, "15m", {"dead_letter_write_failures_total": "0 0 9x20"}),
    Case("StreamerUnaccountedEvents", "critical", True, "15m", account(consumed="49+100x20", in_flight="50x20")),
    Case("StreamerUnaccountedEvents", "critical", False, "15m", account(consumed="50+100x20", in_flight="50x20")),
    Case(
        "StreamerDeliverySaturated", "warning", True, "30m",
        {"segment_inflight_requests": "8x40", "segment_concurrency_limit": "8x40"},
    ),
    Case(
        "StreamerDeliverySaturated", "warning", False, "30m",
        {"segment_inflight_requests": "7x40", "segment_concurrency_limit": "8x40"},
    ),
    Case("StreamerBackpressured", "warning", True, "30m", {"paused_seconds_total": "0+30x40"}),
    Case("StreamerBackpressured", "warning", False, "30m", {"paused_seconds_total": "0+10x40"}),
    Case(
        "StreamerEventLoopBlocked", "warning", True, "30m",
        {'event_loop_lag_seconds_bucket{le="0.25"}': "0+115x40", "event_loop_lag_seconds_count": "0+120x40"},
    ),
    Case(
        "StreamerEventLoopBlocked", "warning", False, "30m",
        {'event_loop_lag_seconds_bucket{le="0.25"}': "0+119x40", "event_loop_lag_seconds_count": "0+120x40"},
    ),
    Case("StreamerBatchesUnderfilled", "info", True, "150m", batches(0.02, 300)),
    Case("StreamerBatchesUnderfilled", "info", False, "150m", batches(0.2, 300)),
    Case("StreamerBatchesUnderfilled", "info", False, "150m", batches(0.02, 60)),
]  # fmt: skip


def _series(text: str) -> str:
    """A series with job and instance, and the prefix that all metrics but Prometheus's own have."""
    name, _, labels = text.partition("{")
    prefix = "" if name == "up" else "streamer_"
    own = labels.removesuffix("}").replace("'", '"').split(",") if labels else []
    own += [] if any(label.startswith("job=") for label in own) else ['job="streamer"']
    own.append('instance="a:9464"')
    return f"{prefix}{name}{{{','.join(own)}}}"


def test_every_alert_fires_when_it_should_and_not_when_it_nearly_should(
    require: Require, tmp_path: Path
) -> None:
    require("promtool")
    tests = [
        {
            "name": f"{number}: {case.alert}, {case.severity}, {case.series}",
            "interval": "1m",
            "input_series": [
                {"series": _series(series), "values": values}
                for series, values in case.series.items()
            ],
            "promql_expr_test": [
                {
                    "expr": f'count(ALERTS{{alertname="{case.alert}",severity="{case.severity}",'
                    'alertstate="firing"}) or vector(0)',
                    "eval_time": case.at,
                    "exp_samples": [{"labels": "{}", "value": int(case.fires)}],
                }
            ],
        }
        for number, case in enumerate(CASES)
    ]
    (tmp_path / "alerts.yml").write_text(ALERTS.read_text())
    with (tmp_path / "alerts_test.yml").open("w") as file:
        YAML(typ="safe").dump({"rule_files": ["alerts.yml"], "tests": tests}, file)
    done = subprocess.run(
        ["promtool", "test", "rules", "alerts_test.yml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    cases = {(case.alert, case.severity, case.fires) for case in CASES}
    rules = {(rule["alert"], rule["labels"]["severity"]) for rule in RULES}
    assert cases == {(*rule, fires) for rule in rules for fires in (True, False)}
    assert len(rules) == len(RULES) > 20


def test_prometheus_takes_the_rules_and_the_configuration(require: Require) -> None:
    require("promtool")
    for arguments in (
        ["check", "rules", "--lint=all", "--lint-fatal", "dashboards/alerts.yml"],
        ["check", "config", "dashboards/prometheus.yml"],
    ):
        done = subprocess.run(
            ["promtool", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_is_so_what_to_do_and_where_to_read_on(rule: dict[str, Any]) -> None:
    assert re.fullmatch(r"Streamer[A-Z]\w+", rule["alert"])
    assert rule["labels"].keys() == {"severity"}
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    said = rule["annotations"]
    assert said.keys() == {"summary", "description", "runbook_url"}
    assert said["runbook_url"] == f"docs/runbook.md#{rule['alert'].lower()}"
    assert said["description"].endswith(".")
    assert len(said["description"]) > 60


def test_every_alert_has_a_section_in_the_runbook_and_every_section_an_alert() -> None:
    sections = re.findall(r"^## (Streamer\w+)$", RUNBOOK, re.MULTILINE)
    assert sections == list(Counter(rule["alert"] for rule in RULES))  # in the same order


@pytest.mark.parametrize("alert", dict.fromkeys(rule["alert"] for rule in RULES))
def test_a_section_of_the_runbook_says_what_it_means_what_to_look_at_and_what_to_do(
    alert: str,
) -> None:
    section = re.search(rf"^## {alert}\n(.*?)(?=^## |\Z)", RUNBOOK, re.MULTILINE | re.DOTALL)
    assert section
    parts = re.findall(r"^\*\*(.+?)\*\*", section[1], re.MULTILINE)
    assert parts == ["Means.", "Look at.", "Do.", "Harmless when."]
