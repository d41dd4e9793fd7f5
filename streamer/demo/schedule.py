"""The bad day that `streamer demo --faults` gives mock Segment, told beforehand and while it lasts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

LATENCY = {"kind": "delay", "seconds": 0.05, "jitter_seconds": 0.05}
"""What every request waits for: a Segment in good health."""


@dataclass(frozen=True, slots=True)
class Phase:
    """What mock Segment does for a while.

    Attributes:
        starts, ends: in seconds since the first event.
        title: what it does, for a person.
        fault: as `streamer.mock_segment.Fault` takes it, without its times.
    """

    starts: float
    ends: float
    title: str
    fault: dict[str, Any] = field(default_factory=dict)

    def as_fault(self) -> dict[str, Any]:
        """Give the fault with its times."""
        return {
            **self.fault,
            "start_seconds": self.starts,
            "duration_seconds": self.ends - self.starts,
        }


def bad_day(seconds: float) -> list[Phase]:
    """Spread four kinds of trouble over a run, with time between them to recover.

    Args:
        seconds: how long the run is.
    """
    pause = max(1, round(seconds / 12))
    kinds: list[tuple[float, float, str, dict[str, Any]]] = [
        (0.10, 0.20, "answers a second late", {"kind": "delay", "seconds": 1.0}),
        (0.28, 0.37, "503 Service Unavailable", {"kind": "answer", "status": 503}),
        (
            0.55,
            0.59,
            f"429 with Retry-After: {pause}",
            {"kind": "answer", "status": 429, "retry_after_seconds": float(pause)},
        ),
        (
            0.74,
            0.84,
            "takes the calls, drops every other connection",
            {"kind": "drop", "accept": True, "probability": 0.5},
        ),
    ]
    return [
        Phase(starts * seconds, ends * seconds, title, fault)
        for starts, ends, title, fault in kinds
    ]
