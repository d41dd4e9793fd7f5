"""The ways in which the mock misbehaves when it is told to."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, fields
from random import Random
from typing import TYPE_CHECKING, Any

import orjson

from streamer.mock_segment.journal import digest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_ALWAYS = frozenset(
    {"kind", "key_digest", "probability", "count", "after", "start_seconds", "duration_seconds"}
)
_ANSWER = frozenset({"status", "body", "retry_after_seconds", "retry_after_form", "location"})
_OPTIONS = {
    "delay": _ALWAYS | {"seconds", "jitter_seconds"},
    "answer": _ALWAYS | _ANSWER | {"accept"},
    "drop": _ALWAYS | {"accept"},
    "hang": _ALWAYS | {"seconds", "accept"},
    "refuse": _ALWAYS | {"message_id", "event", "contains"},
}
KINDS = tuple(_OPTIONS)
"""The kinds of fault."""


class FaultError(ValueError):
    """A fault isn't one that the mock knows; the text names the option and what is allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One way to misbehave, and when.

    | kind | does | its options |
    |---|---|---|
    | `delay` | waits before the request is taken, then goes on | `seconds`, `jitter_seconds` |
    | `answer` | gives that answer | `status`, `body`, `retry_after_seconds`, `retry_after_form`, `location`, `accept` |
    | `drop` | drops the connection without an answer | `accept` |
    | `hang` | gives no answer for `seconds`, then drops the connection | `seconds`, `accept` |
    | `refuse` | 400 for a request that has a matching call | `message_id`, `event`, `contains` |

    Delays add up; of the other faults, the first in the list that is due decides.

    Attributes:
        kind: one of `KINDS`.
        status: HTTP status of an `answer`.
        body: `json`, `html` or `empty`: the body of an `answer`. JSON never says `success: true`.
        retry_after_seconds: sends Retry-After and X-RateLimit-Reset with the `answer`.
        retry_after_form: `seconds`, or `date` for an HTTP date; X-RateLimit-Reset is in seconds always.
        location: where a 3xx points; without it, to a path of the mock that nothing serves.
        accept: take the calls first, so that they are accepted although the sender can't know.
        seconds: length of a `delay`; the longest that a `hang` lasts.
        jitter_seconds: added to a `delay`, evenly distributed from 0 to this.
        message_id: `refuse` a call with this messageId.
        event: `refuse` a call with this `event`.
        contains: `refuse` a call whose compact JSON contains this text. With none of the three, any call.
        key_digest: only requests with this write key (`digest` of it).
        probability: of each request that it could hit, the share that it does hit.
        count: how many requests it hits at most.
        after: how many requests that it could hit it lets pass first.
        start_seconds: when it begins, in seconds since it was set.
        duration_seconds: how long it lasts from then on; None for ever.
    """

    kind: str
    status: int = 503
    body: str = "json"
    retry_after_seconds: float | None = None
    retry_after_form: str = "seconds"
    location: str = "/v1/moved"
    accept: bool = False
    seconds: float = 60.0
    jitter_seconds: float = 0.0
    message_id: str | None = None
    event: str | None = None
    contains: str | None = None
    key_digest: str | None = None
    probability: float = 1.0
    count: int | None = None
    after: int = 0
    start_seconds: float = 0.0
    duration_seconds: float | None = None

    def __post_init__(self) -> None:
        """Hold every option against what is allowed.

        Raises:
            FaultError: an option is unknown to the kind, or out of its range.
        """
        _require(self.kind in _OPTIONS, "kind", f"one of {', '.join(KINDS)}", self.kind)
        for field in fields(self):
            value = getattr(self, field.name)
            if value == field.default:
                continue
            if field.name not in _OPTIONS[self.kind]:
                allowed = ", ".join(sorted(_OPTIONS[self.kind] - {"kind"}))
                raise FaultError(f"a fault {self.kind} has no {field.name}; it has {allowed}")
            wanted = str(field.type).removesuffix(" | None")
            _require(_is(value, wanted), field.name, f"of type {wanted}", value)
            if wanted in {"int", "float"}:
                _require(value >= 0, field.name, "0 or more", value)
        _require(200 <= self.status <= 599, "status", "from 200 to 599", self.status)
        _require(self.body in {"json", "html", "empty"}, "body", "json, html or empty", self.body)
        forms = {"seconds", "date"}
        _require(
            self.retry_after_form in forms,
            "retry_after_form",
            "seconds or date",
            self.retry_after_form,
        )
        _require(self.probability <= 1, "probability", "from 0 to 1", self.probability)

    @classmethod
    def from_json(cls, document: object) -> Fault:
        """Make a fault of decoded JSON.

        Args:
            document: an object with the options by name; `write_key` may stand for `key_digest`.

        Returns:
            The fault.

        Raises:
            FaultError: it isn't an object, or an option isn't allowed.
        """
        if not isinstance(document, dict):
            raise FaultError('a fault must be an object such as {"kind": "answer", "status": 503}')
        options = dict(document)
        write_key = options.pop("write_key", None)
        if write_key is not None:
            _require(isinstance(write_key, str), "write_key", "of type str", "what was given")
            options["key_digest"] = digest(write_key)
        names = [field.name for field in fields(cls)]
        for name in options:
            if name not in names:
                raise FaultError(
                    f"a fault has no option {name}; it has {', '.join(names)}, write_key"
                )
        if "kind" not in options:
            raise FaultError(f"a fault needs a kind: one of {', '.join(KINDS)}")
        return cls(**options)

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Make a fault of one word, as on a command line: `answer:status=503,count=10`.

        Args:
            text: the kind, and after a colon the options, separated by commas.

        Returns:
            The fault.

        Raises:
            FaultError: the text hasn't that form, or an option isn't allowed.
        """
        kind, _, rest = text.partition(":")
        options: dict[str, Any] = {"kind": kind}
        for option in rest.split(",") if rest else ():
            name, equals, value = option.partition("=")
            if not equals:
                raise FaultError(
                    f"{option!r} in a fault must be name=value, as in answer:status=503,count=10"
                )
            options[name] = _value(name, value)
        return cls.from_json(options)

    def as_json(self) -> dict[str, Any]:
        """Give the options that differ from their defaults; `from_json` makes the same fault of them."""
        defaults = {field.name: field.default for field in fields(self)}
        return {name: value for name, value in asdict(self).items() if value != defaults[name]}

    def matches(self, call: object, serialised: bytes) -> bool:
        """Say whether a `refuse` means this call.

        Args:
            call: the call, decoded.
            serialised: the call as compact JSON.

        Returns:
            True if every one of `message_id`, `event` and `contains` that is set fits.
        """
        get = call.get if isinstance(call, dict) else {}.get
        return (
            (self.message_id is None or get("messageId") == self.message_id)
            and (self.event is None or get("event") == self.event)
            and (self.contains is None or self.contains.encode() in serialised)
        )


class _Armed:
    """A fault that was set, and what it has done since."""

    __slots__ = ("applied", "fault", "passed", "random", "since")

    def __init__(self, fault: Fault, random: Random, since: float) -> None:
        self.fault = fault
        self.random = random
        self.since = since
        self.passed = 0
        self.applied = 0

    def is_open(self, key_digest: str | None, now: float) -> bool:
        """Say whether it could hit a request of this key now."""
        fault = self.fault
        elapsed = now - self.since - fault.start_seconds
        return (
            (fault.key_digest is None or fault.key_digest == key_digest)
            and elapsed >= 0
            and (fault.duration_seconds is None or elapsed < fault.duration_seconds)
            and (fault.count is None or self.applied < fault.count)
        )

    def hits(self) -> bool:
        """Decide over a request that it could hit."""
        if self.passed < self.fault.after:
            self.passed += 1
            return False
        if self.fault.probability < 1 and self.random.random() >= self.fault.probability:
            return False
        self.applied += 1
        return True


class Faults:
    """The faults that are set. Two of them with the same seed and requests do the same."""

    def __init__(
        self, *faults: Fault, seed: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Set faults.

        Args:
            *faults: the first ones.
            seed: of probabilities and jitter.
            clock: gives monotonic seconds, for the windows of time.
        """
        self._seed = seed
        self._clock = clock
        self._armed: list[_Armed] = []
        self.set(*faults)

    def set(self, *faults: Fault, seed: int | None = None) -> None:
        """Replace all faults; counts and windows of time begin anew.

        Args:
            *faults: the new ones; none for a Segment in good health.
            seed: a new seed, None to keep the last one.
        """
        if seed is not None:
            self._seed = seed
        now = self._clock()
        # A generator each: what one fault draws doesn't depend on the others being there.
        self._armed = [
            _Armed(fault, Random(f"{self._seed}/{position}"), now)  # noqa: S311 - reproducible on purpose
            for position, fault in enumerate(faults)
        ]

    def clear(self) -> None:
        """Remove all faults."""
        self.set()

    def due(self, key_digest: str | None) -> tuple[float, Fault | None]:
        """Decide what happens to a request, `refuse` aside.

        Args:
            key_digest: of its write key, None if it has no usable one.

        Returns:
            Seconds to wait before it is taken, and the fault that decides its answer, if any.
        """
        delay_seconds = 0.0
        if not self._armed:
            return delay_seconds, None
        now = self._clock()
        decisive: Fault | None = None
        for armed in self._armed:
            kind = armed.fault.kind
            if kind == "refuse" or (kind != "delay" and decisive is not None):
                continue
            if armed.is_open(key_digest, now) and armed.hits():
                if kind == "delay":
                    delay_seconds += armed.fault.seconds
                    delay_seconds += armed.random.random() * armed.fault.jitter_seconds
                else:
                    decisive = armed.fault
        return delay_seconds, decisive

    def may_refuse(self, key_digest: str | None) -> bool:
        """Say whether `refuses` has to be asked about a request of this key at all."""
        now = self._clock()
        return any(
            armed.fault.kind == "refuse" and armed.is_open(key_digest, now) for armed in self._armed
        )

    def refuses(
        self, key_digest: str | None, calls: Sequence[object], serialised: Sequence[bytes]
    ) -> bool:
        """Decide whether a request is refused for one of its calls.

        Args:
            key_digest: of its write key.
            calls: its calls, decoded.
            serialised: the same as compact JSON.

        Returns:
            True if a `refuse` hits.
        """
        now = self._clock()
        return any(
            armed.fault.kind == "refuse"
            and armed.is_open(key_digest, now)
            and any(map(armed.fault.matches, calls, serialised))
            and armed.hits()
            for armed in self._armed
        )

    def as_json(self) -> dict[str, Any]:
        """Give the seed, the faults in order, and how many requests each has hit."""
        return {
            "seed": self._seed,
            "faults": [armed.fault.as_json() for armed in self._armed],
            "applied": [armed.applied for armed in self._armed],
        }


def _require(holds: bool, name: str, allowed: str, value: object) -> None:
    if not holds:
        raise FaultError(f"{name} of a fault must be {allowed}, and {value!r} isn't")


def _is(value: object, wanted: str) -> bool:
    if isinstance(value, bool):
        return wanted == "bool"
    if wanted == "float":
        return isinstance(value, int | float)
    return type(value).__name__ == wanted


def _value(name: str, text: str) -> object:
    """Read an option's value from a command line: what is text by its nature stays text."""
    if name in {"message_id", "event", "contains", "write_key", "key_digest", "location"}:
        return text
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
