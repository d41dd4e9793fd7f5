"""What goes wrong in a run, and when: drawn from a seed before the run begins, so that the seed is the run."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

MEMBERS = 2
"""Members of the group while nothing is wrong."""
SESSION_SECONDS = 6.0
"""`kafka.session_timeout` of the members."""
SITES = ("2", "3")
"""Sites with a write key of their own; all others have `segment.write_key`."""
CALM_SECONDS = 5.0
"""How long all is well at the beginning, and again at the end, where good calls follow the last bad ones."""

_GAP_SECONDS = 7.0  # between the starts of two troubles, on average
_REST_SECONDS = {"broker": 15.0, "dead_letter": 5.0, "producer": 2.0, "growth": 5.0, "door": 5.0}
"""Areas in which one trouble at a time is enough, and how long each is left alone after it."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """One thing that goes wrong for a time.

    Attributes:
        kind: one of `KINDS`.
        starts: in seconds since the run's start.
        seconds: how long it lasts; then it is undone: what was killed is started, what was frozen goes on.
        options: what else the kind needs to know.
    """

    kind: str
    starts: float
    seconds: float
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def ends(self) -> float:
        """In seconds since the run's start."""
        return self.starts + self.seconds


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is drawn of a run.

    Attributes:
        seed: what it was drawn from; also of the events and of the mock's chances.
        seconds: how long records are produced.
        settings: of the members, as environment variables.
        troubles: in the order in which they start.
    """

    seed: int
    seconds: float
    settings: dict[str, str]
    troubles: list[Trouble]

    def as_json(self) -> dict[str, Any]:
        """Give it as JSON's values."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Plan:
        """Make it of what `as_json` gave; more keys than these do no harm."""
        names = ("kind", "starts", "seconds", "options")
        troubles = [
            Trouble(**{name: each[name] for name in names}) for each in document["troubles"]
        ]
        return cls(document["seed"], document["seconds"], dict(document["settings"]), troubles)

    def without(self, kinds: Collection[str]) -> Plan:
        """Leave kinds out."""
        left = [trouble for trouble in self.troubles if trouble.kind not in kinds]
        return Plan(self.seed, self.seconds, self.settings, left)


@dataclass(frozen=True, slots=True)
class _Kind:
    """What is drawn of a kind: how long it lasts, and its options."""

    area: str
    shortest: float
    longest: float
    options: Callable[[random.Random], dict[str, Any]] = lambda _: {}


def _one(rng: random.Random) -> dict[str, Any]:
    return {"member": rng.randrange(100)}  # of those that run then, by the remainder


def _chance(rng: random.Random) -> float:
    return rng.choice([0.3, 0.6, 1.0])


def _drop(rng: random.Random) -> dict[str, Any]:
    return {"fault": {"kind": "drop", "probability": _chance(rng)}}


def _accept_and_drop(rng: random.Random) -> dict[str, Any]:
    return {"fault": {"kind": "drop", "accept": True, "probability": _chance(rng)}}


def _server_error(rng: random.Random) -> dict[str, Any]:
    status = rng.choice([408, 460, 500, 502, 503, 504, 520, 529])
    accept = rng.random() < 0.3
    fault = {"kind": "answer", "status": status, "probability": _chance(rng), "accept": accept}
    return {"fault": fault}


def _html(rng: random.Random) -> dict[str, Any]:
    status = rng.choice([500, 502, 503])
    return {"fault": {"kind": "answer", "status": status, "body": "html", "probability": 0.7}}


def _too_many_requests(rng: random.Random) -> dict[str, Any]:
    return {
        "fault": {
            "kind": "answer",
            "status": 429,
            "retry_after_seconds": rng.choice([1, 2, 5]),
            "retry_after_form": rng.choice(["seconds", "date"]),
            "probability": _chance(rng),
        }
    }


def _hang(rng: random.Random) -> dict[str, Any]:
    accept = rng.random() < 0.5
    fault = {"kind": "hang", "seconds": 10.0, "accept": accept, "probability": _chance(rng)}
    return {"fault": fault}


def _latency(rng: random.Random) -> dict[str, Any]:
    seconds = round(rng.uniform(0.05, 0.5), 2)
    return {"fault": {"kind": "delay", "seconds": seconds, "jitter_seconds": seconds}}


def _forbidden(rng: random.Random) -> dict[str, Any]:
    return {"fault": {"kind": "answer", "status": rng.choice([401, 403])}}


def _key_outage(rng: random.Random) -> dict[str, Any]:
    fault = rng.choice(
        [
            {"kind": "answer", "status": 503},
            {"kind": "answer", "status": 401},
            {"kind": "answer", "status": 429, "retry_after_seconds": 3},
            {"kind": "drop"},
            {"kind": "hang", "seconds": 10.0},
        ]
    )
    return {"fault": fault, "site": rng.choice(SITES)}


KINDS: dict[str, _Kind] = {
    "kill": _Kind("members", 0.5, 10, _one),
    "terminate": _Kind("members", 0.5, 10, _one),
    "interrupt": _Kind("members", 0.5, 10, _one),
    "freeze": _Kind("members", 0.5, SESSION_SECONDS * 0.6, _one),
    "long_freeze": _Kind("members", SESSION_SECONDS + 2, SESSION_SECONDS * 3, _one),
    "add": _Kind("growth", 10, 25, lambda rng: {"members": rng.randint(1, 4)}),
    "broker_kill": _Kind("broker", 0.5, 8),
    "broker_stop": _Kind("broker", 0.5, 8),
    "broker_freeze": _Kind("broker", 0.5, SESSION_SECONDS * 0.6),
    "broker_long_freeze": _Kind("broker", SESSION_SECONDS + 2, SESSION_SECONDS * 3),
    "refuse_connections": _Kind("door", 3, 15),
    "drop": _Kind("segment", 3, 15, _drop),
    "accept_and_drop": _Kind("segment", 3, 15, _accept_and_drop),
    "server_error": _Kind("segment", 3, 15, _server_error),
    "html": _Kind("segment", 3, 15, _html),
    "too_many_requests": _Kind("segment", 3, 15, _too_many_requests),
    "hang": _Kind("segment", 3, 15, _hang),
    "latency": _Kind("segment", 5, 20, _latency),
    "forbidden": _Kind("segment", 3, 10, _forbidden),
    "key_outage": _Kind("segment", 5, 25, _key_outage),
    "dead_letters_denied": _Kind("dead_letter", 5, 20),
    "burst": _Kind("producer", 3, 8, lambda rng: {"factor": rng.choice([2.0, 3.0, 4.0])}),
    "lull": _Kind("producer", 3, 15, lambda rng: {"factor": rng.choice([0.0, 0.02, 0.2])}),
    "broken_records": _Kind("producer", 3, 10, lambda rng: {"share": rng.choice([0.05, 0.3, 1.0])}),
    "poison_calls": _Kind(
        "producer", 3, 10, lambda rng: {"share": rng.choice([0.002, 0.01, 0.05])}
    ),
}
"""Every kind of trouble.

Of members: killed, stopped by SIGTERM or SIGINT, frozen for less or more than their session; one to four more for a
while. Of the broker the same. Of Segment: what `streamer.mock_segment.Fault` has, for all or for one site's write key,
and a port on which nothing listens. The dead-letter topic may not be written. Of the input: more or less of it, records
that can't become calls, and calls that Segment refuses.
"""


def make(seed: int, seconds: float, without: Collection[str] = ()) -> Plan:
    """Draw a plan. Each kind has its turn before any has another one.

    Args:
        seed: equal seeds, and equal other arguments, make equal plans.
        seconds: how long records are produced; every trouble ends before that.
        without: kinds to leave out.
    """
    rng = random.Random(seed)
    settings = _settings(rng)
    end = seconds - CALM_SECONDS
    busy: dict[str, float] = {}  # area to when it may be troubled again
    members: list[float] = []  # when each member that is away is back
    deck: list[str] = []
    troubles: list[Trouble] = []
    now = CALM_SECONDS
    while now < end:
        if not deck:
            deck = [kind for kind in KINDS if kind not in without]
            rng.shuffle(deck)
        for kind in list(deck):
            drawn = KINDS[kind]
            longest = min(drawn.longest, end - now)
            members = [back for back in members if back > now]
            if busy.get(drawn.area, 0.0) > now or longest < drawn.shortest:
                continue
            if drawn.area == "members" and len(members) > MEMBERS:
                continue
            lasts = round(rng.uniform(drawn.shortest, longest), 1)
            lasts = min(lasts, longest)
            troubles.append(Trouble(kind, round(now, 1), lasts, drawn.options(rng)))
            if drawn.area == "members":
                members.append(now + lasts)
            if drawn.area in _REST_SECONDS:
                busy[drawn.area] = now + lasts + _REST_SECONDS[drawn.area]
            deck.remove(kind)
            break
        now += rng.uniform(0.3, 1.7) * _GAP_SECONDS
    return Plan(seed, seconds, settings, troubles)


def _settings(rng: random.Random) -> dict[str, str]:
    """What the members are told: also what is off by default gets its share of trouble."""
    return {
        "STREAMER_FLUSH__INTERVAL": rng.choice(["200ms", "1s", "3s"]),
        "STREAMER_FLUSH__MAX_CALLS": rng.choice(["100", "2500"]),
        "STREAMER_FLUSH__CONCURRENCY": rng.choice(["adaptive", "4"]),
        "STREAMER_FLUSH__MEMORY_BUDGET": rng.choice(["8MB", "32MB"]),
        "STREAMER_AGGREGATE__SUPPRESS_FOR": rng.choice(["0s", "20s"]),
        "STREAMER_SEGMENT__GZIP": rng.choice(["true", "false"]),
    }
