"""The values that flow between the stages, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import orjson

if TYPE_CHECKING:
    from collections.abc import Mapping

Partition: TypeAlias = tuple[str, int]
"""A topic's name and a partition's number."""

CALL_TYPES = ("identify", "group", "page", "track")
"""Segment's calls that streamer makes."""


class Reason(StrEnum):
    """Why a record, or a call, became a dead letter. The set is closed: it labels metrics and dead letters."""

    EMPTY = "empty"  # a tombstone, or a value of nothing but white space
    NOT_JSON = "not_json"
    NOT_AN_OBJECT = "not_an_object"
    NO_IDENTITY = "no_identity"
    NO_EVENT_TYPE = "no_event_type"
    BAD_TIMESTAMP = "bad_timestamp"
    CALLBACK_FAILED = "callback_failed"
    INVALID_CALL = "invalid_call"  # Segment would answer 200 and throw it away
    CALL_TOO_LARGE = "call_too_large"
    HOOK_FAILED = "hook_failed"  # a handler of a filter raised, hung, or gave what it may not
    TOO_MANY_WRITE_KEYS = (
        "too_many_write_keys"  # the event's would be one more lane than there may be
    )
    DESTINATION_UNAVAILABLE = (
        "destination_unavailable"  # for `segment.max_hold`, while others delivered
    )
    REFUSED = "refused"  # Segment refused the call when it stood alone in a request


@dataclass(frozen=True, slots=True)
class Reject:
    """A record that can't become calls.

    Attributes:
        reason: one of the closed set.
        detail: one sentence for a person: what is wrong and where in the record.
    """

    reason: Reason
    detail: str


class FilterReason(StrEnum):
    """Why a record isn't forwarded, by the user's own will. The set is closed: it labels metrics."""

    DROPPED_EVENT = "dropped_event"  # `transform.drop_events` has its type
    SAMPLED_OUT = "sampled_out"  # `transform.sample` has its type, and its user isn't in the sample
    EMPTY = "empty"  # of which the PHP integration makes no call: the profile `altis` only
    NO_WRITE_KEY = "no_write_key"  # its site has none
    HOOK = "hook"  # `altis.analytics.segment.formatted_data` left no call of it


class Restart(StrEnum):
    """Why the Kafka consumer was made anew. The set is closed: it labels a metric."""

    START = "start"  # Kafka couldn't be reached, or refused, before there was an assignment
    ERROR = "error"  # what can't be retried
    CANCELLED = "cancelled"  # aiokafka gave up without saying why
    NO_ASSIGNMENT = "no_assignment"  # the group gave no partitions
    NO_ANSWER = "no_answer"  # Kafka didn't say where to read from
    UNCONFIRMED = "unconfirmed"  # no heartbeat was answered
    COMMITS = "commits"  # no commit was answered
    POLL = "poll"  # a read didn't return


@dataclass(frozen=True, slots=True)
class Filtered:
    """A record of which no calls are to be made: it is settled as it is.

    Attributes:
        reason: one of the closed set.
    """

    reason: FilterReason


class Contribution:
    """What one record says of a profile: its identify call, or one of its group calls.

    When it merges with those before it, it gets their traits, and its hash goes on from theirs.

    Attributes:
        type: `identify` or `group`.
        profile: what Segment lays traits over: the userId, else the anonymousId; for a group call that and the groupId
            as a tuple. Calls of one profile must arrive in order.
        pair: userId and anonymousId (either may be None). Only calls of the same pair merge: Segment needs each pair.
        call: the call as a dict in its order of keys, of which `render` fills in `messageId` and `traits`; traits that
            are empty have no place.
        traits: the traits, empty if there are none.
        traits_json: the traits as JSON, `b"{}"` if there are none.
        hash: makes the call's id: of the record and the call's role, the same wherever the record is transformed.
    """

    __slots__ = ("call", "hash", "pair", "profile", "traits", "traits_json", "type")

    def __init__(
        self,
        type: str,  # noqa: A002 - Segment's own word
        profile: str | tuple[str, str],
        pair: tuple[str | None, str | None],
        call: dict[str, Any],
        traits: dict[str, Any],
        traits_json: bytes,
        hash: blake2b,  # noqa: A002 - what it is
    ) -> None:
        self.type = type
        self.profile = profile
        self.pair = pair
        self.call = call
        self.traits = traits
        self.traits_json = traits_json
        self.hash = hash

    def render(self) -> bytes:
        """Serialise the call, with its traits and its id as they are now."""
        call = self.call
        call["messageId"] = "s1-" + self.hash.hexdigest()
        if self.traits:
            call["traits"] = orjson.Fragment(self.traits_json)
        elif "traits" in call:  # of a merge that became too large
            del call["traits"]
        return orjson.dumps(call)


class Fixed(Contribution):
    """A contribution that is sent as it was made, with the id it has, or without one; it merges with none.

    Args:
        call: the call as a dict.
        type: `identify` or `group`.
        serialised: the call.

    Attributes:
        serialised: the call.
    """

    __slots__ = ("serialised",)

    def __init__(
        self,
        call: Mapping[str, Any],
        type: str,  # noqa: A002 - Segment's own word
        serialised: bytes,
    ) -> None:
        profile = call.get("userId", call.get("anonymousId"))
        if type == "group":
            profile = (profile, call.get("groupId"))
        super().__init__(type, profile, (None, None), {}, {}, b"{}", blake2b())
        self.serialised = serialised

    def render(self) -> bytes:
        """Give the call."""
        return self.serialised


class Main(NamedTuple):
    """A page or track call that site code has had in its hands.

    Attributes:
        type: `page` or `track`.
        serialised: the call.
        decides: whether its fate is its record's: true of one of them at most.
    """

    type: str
    serialised: bytes
    decides: bool


class Changed(NamedTuple):
    """The calls of one record as site code left them: any number, in its order.

    Attributes:
        taken: each of them.
    """

    taken: tuple[Contribution | Main, ...]

    @property
    def decided(self) -> bool:
        """Whether one of the calls decides the record's fate."""
        return any(isinstance(call, Main) for call in self.taken)

    def as_json(self) -> bytes:
        """Give the calls as `Formatted.as_json` does; identify and group calls have ids made of those they had."""
        return b"[%b]" % b",".join(
            call.serialised if isinstance(call, Main) else call.render() for call in self.taken
        )


class Formatted(NamedTuple):
    """The calls of one record, on the fast path.

    Attributes:
        contributions: its identify call and its group calls, in order.
        type: `page` or `track`: the type of the main call.
        main: the main call, serialised.
    """

    contributions: tuple[Contribution, ...]
    type: str
    main: bytes

    def as_json(self) -> bytes:
        """Give the calls in order as one JSON list, as they are sent: the deepest in a list is too deep to dump."""
        return b"[%b]" % b",".join([*(one.render() for one in self.contributions), self.main])

    def calls(self) -> list[dict[str, Any]]:
        """Give the calls in order as plain dicts that share no objects.

        A call has to be serialised in any case, to know that Segment takes it; reading that back is the fastest way
        to objects of its own, and the surest to the same calls.
        """
        return [orjson.loads(one.render()) for one in self.contributions] + [
            orjson.loads(self.main)
        ]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record or a call that can't be delivered, with all that is needed to look at it and to send it again.

    Attributes:
        kind: `record`, with the record's value as it was, or `call`, with one call of it as Segment got it.
        reason: one of the closed set.
        detail: one sentence for a person.
        topic, partition, offset: where its record stands.
        timestamp_ms: the record's Kafka timestamp, None where there is none.
        key: the record's key.
        value: the record's value, or the call.
        headers: the record's headers; a call has none.
        tries: how many requests to Segment carried it.
        batch: what the log calls the batch of a call; a record has none.
    """

    kind: str
    reason: Reason
    detail: str
    topic: str
    partition: int
    offset: int
    timestamp_ms: int | None
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    tries: int = 0
    batch: str = ""


@dataclass(frozen=True, slots=True)
class Delivered:
    """Segment accepted the request.

    Attributes:
        status: the HTTP status.
    """

    status: int


@dataclass(frozen=True, slots=True)
class Retry:
    """The same request may succeed later.

    Attributes:
        reason: `rate_limited`, `timeout`, `connect` or `server_error`: a label of the metrics.
        detail: what was seen, for a person.
        status: the HTTP status, None if there was no answer.
        after_seconds: what Retry-After said, not capped; None if it said nothing.
    """

    reason: str
    detail: str
    status: int | None = None
    after_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """Segment refuses something in the request: 400, 413 or 422.

    Attributes:
        status: the HTTP status.
        detail: what Segment said.
    """

    status: int
    detail: str


@dataclass(frozen=True, slots=True)
class Misconfigured:
    """No request to this destination can succeed until a person mends something.

    Attributes:
        status: the HTTP status.
        detail: what Segment said and what to look at.
    """

    status: int
    detail: str


@dataclass(frozen=True, slots=True)
class Response:
    """What Segment answered to a request, for site code.

    Attributes:
        status: the HTTP status.
        headers: the answer's.
        body: the beginning of its body, as text; without the write key, should the answer repeat it.
    """

    status: int
    headers: Mapping[str, str]
    body: str

    @property
    def ok(self) -> bool:
        """Whether the status is one of success."""
        return 200 <= self.status < 300


Outcome: TypeAlias = Delivered | Retry | Refused | Misconfigured
"""What came of one attempt at a request."""
