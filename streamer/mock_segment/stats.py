"""What the mock has counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from streamer.mock_segment.lateness import Lateness


@dataclass(slots=True)
class Stats:
    """Counts since the start or the last reset.

    Attributes:
        requests_total: requests that came in, whatever was answered.
        answers: requests by what they were answered: the status as text, `dropped`, or `hung`.
        refusals: requests that Segment's own rules refused, by reason; injected answers are not among them.
        in_flight: requests that have no answer yet.
        max_in_flight: the most there were of these.
        accepted: calls that were accepted, by type.
        lateness: of the page, screen and track calls that were accepted, from their `timestamp` to the acceptance.
        duplicates: calls whose messageId had been accepted before, by type.
        discarded: calls that were thrown away after a 200, by type (`other` where it is none of Segment's).
        discards: the same calls, by reason.
        received_bytes: bodies as they were sent.
        inflated_bytes: bodies of batches within the limits, inflated.
        max_calls: most calls in a batch that was taken.
        max_body_bytes: the longest body that was taken, inflated.
        max_call_bytes: the longest call that was taken.
        retried_requests: requests with an X-Retry-Count.
        max_retry_count: the largest X-Retry-Count.
        bad_retry_counts: requests whose X-Retry-Count isn't a number above 0: it belongs on retries only.
        bad_sent_at: batches without a usable `sentAt`: a time with its zone.
        max_sent_at_age_seconds: the oldest `sentAt`, at receipt: how badly timestamps would be corrected.
    """

    requests_total: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    in_flight: int = 0
    max_in_flight: int = 0
    accepted: Counter[str] = field(default_factory=Counter)
    lateness: Lateness = field(default_factory=Lateness)
    duplicates: Counter[str] = field(default_factory=Counter)
    discarded: Counter[str] = field(default_factory=Counter)
    discards: Counter[str] = field(default_factory=Counter)
    received_bytes: int = 0
    inflated_bytes: int = 0
    max_calls: int = 0
    max_body_bytes: int = 0
    max_call_bytes: int = 0
    retried_requests: int = 0
    max_retry_count: int = 0
    bad_retry_counts: int = 0
    bad_sent_at: int = 0
    max_sent_at_age_seconds: float = 0.0

    @property
    def accepted_total(self) -> int:
        """Calls that were accepted."""
        return self.accepted.total()

    @property
    def duplicates_total(self) -> int:
        """Calls whose messageId had been accepted before."""
        return self.duplicates.total()

    @property
    def discarded_total(self) -> int:
        """Calls that were thrown away after a 200."""
        return self.discarded.total()

    def as_json(self) -> dict[str, Any]:
        """Give every count, for `GET /stats`."""
        return {
            "requests": {
                "total": self.requests_total,
                "answers": dict(self.answers),
                "refusals": dict(self.refusals),
                "in_flight": self.in_flight,
                "max_in_flight": self.max_in_flight,
                "retried": self.retried_requests,
                "max_retry_count": self.max_retry_count,
                "bad_retry_counts": self.bad_retry_counts,
                "bad_sent_at": self.bad_sent_at,
                "max_sent_at_age_seconds": self.max_sent_at_age_seconds,
            },
            "calls": {
                "accepted": dict(self.accepted),
                "duplicate": dict(self.duplicates),
                "discarded": dict(self.discarded),
            },
            "discards": dict(self.discards),
            "lateness_seconds": self.lateness.as_json(),
            "bytes": {
                "received": self.received_bytes,
                "inflated": self.inflated_bytes,
                "max_body": self.max_body_bytes,
                "max_call": self.max_call_bytes,
            },
            "max_calls": self.max_calls,
        }

    def summary(self) -> str:
        """Give the heart of it in one line."""
        return (
            f"requests {self.requests_total} ({_counts(self.answers)}), "
            f"accepted {self.accepted_total} ({_counts(self.accepted)}), "
            f"duplicate {self.duplicates_total}, "
            f"discarded {self.discarded_total} ({_counts(self.discards)})"
        )


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items())) or "none"
