"""The bad day: phases within the run, apart from one another, that mock Segment understands."""

from __future__ import annotations

from itertools import pairwise

import pytest

from streamer.demo.schedule import LATENCY, bad_day
from streamer.mock_segment import Fault


@pytest.mark.parametrize("seconds", [2.0, 30.0, 3600.0])
def test_phases_lie_in_the_run_and_leave_time_to_recover(seconds: float) -> None:
    phases = bad_day(seconds)
    assert phases[0].starts > 0
    assert all(phase.starts < phase.ends for phase in phases)
    assert all(after.starts - before.ends >= 0.05 * seconds for before, after in pairwise(phases))
    assert phases[-1].ends <= 0.9 * seconds


def test_mock_segment_understands_them() -> None:
    """Slow answers, 503s, 429 with Retry-After and dropped connections, each in its time."""
    faults = [Fault.from_json(phase.as_fault()) for phase in bad_day(30)]
    assert [fault.kind for fault in faults] == ["delay", "answer", "answer", "drop"]
    assert [fault.status for fault in faults[1:3]] == [503, 429]
    assert faults[2].retry_after_seconds
    assert all(fault.duration_seconds and fault.start_seconds for fault in faults)
    assert Fault.from_json(LATENCY).seconds == 0.05
