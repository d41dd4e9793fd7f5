"""Segment, played on loopback: strict where the real one is silent, and rude when it is told to be.

It imports nothing of the rest of streamer: a judge must not share code with the judged.

    request.py     what stands in a request, and the answers that a bad one deserves
    rules.py       which calls Segment throws away after a 200
    judge.py       takes a request: discards, duplicates, profiles
    journal.py     a line for every call
    lateness.py    how old the calls were
    stats.py       the counts
    faults.py      the ways to misbehave
    rate_limit.py  the ceiling on requests
    server.py      HTTP
"""

from streamer.mock_segment.faults import Fault, FaultError, Faults
from streamer.mock_segment.journal import Line, digest, read_journal
from streamer.mock_segment.lateness import Lateness
from streamer.mock_segment.rules import Discard
from streamer.mock_segment.server import MockSegment
from streamer.mock_segment.stats import Stats

__all__ = [
    "Discard",
    "Fault",
    "FaultError",
    "Faults",
    "Lateness",
    "Line",
    "MockSegment",
    "Stats",
    "digest",
    "read_journal",
]
