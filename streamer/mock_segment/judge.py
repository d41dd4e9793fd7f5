"""Segment's mind: what it does with the calls of a request. Knows no socket; time is an argument."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import uuid4

from streamer.mock_segment.journal import Fate, Journal, Line, digest, render
from streamer.mock_segment.request import REFUSED_CALL, SUCCESS, Answer
from streamer.mock_segment.rules import TYPES, Discard, discard_reason
from streamer.mock_segment.stats import Stats

if TYPE_CHECKING:
    from collections.abc import Collection

    from streamer.mock_segment.faults import Faults
    from streamer.mock_segment.request import Request

MAX_CALLS = 2_500
"""Calls in a batch; Segment answers 200 to a longer one, and throws it away."""

_TIMED = ("page", "screen", "track")  # the calls that say when something happened

Traits: TypeAlias = dict[str, Any]


class Judge:
    """Takes requests and remembers what came of every call.

    Attributes:
        stats: the counts; who answers requests keeps those of answers in them too.
        lines: every call and its fate, in the order of receipt; empty if calls aren't kept.
        profiles: the traits of each user, by userId, else anonymousId.
        group_profiles: the traits of each user in each group, by (that id, groupId).
    """

    def __init__(
        self,
        *,
        known_keys: Collection[str] | None = None,
        journal: Journal | None = None,
        journal_calls: bool = True,
        keep_calls: bool = False,
    ) -> None:
        """Start without a memory.

        Args:
            known_keys: the write keys that belong to a source; the calls of others are thrown away. None: all do.
            journal: where each call is written to, if anywhere.
            journal_calls: whether the calls themselves are written there too.
            keep_calls: whether `lines` fills: for tests, it holds every call in memory.
        """
        self._known = None if known_keys is None else frozenset(map(digest, known_keys))
        self._journal = journal
        self._journal_calls = journal_calls
        self._keep_calls = keep_calls
        self.reset()

    def reset(self) -> None:
        """Forget everything that came in."""
        self.stats = Stats()
        self.lines: list[Line] = []
        self.profiles: dict[str, Traits] = {}
        self.group_profiles: dict[tuple[str, str], Traits] = {}
        self._accepted: set[str] = (
            set()
        )  # Segment forgets after a day or more; a mock doesn't live as long

    def take(
        self, request: Request, number: int, received_at: float, faults: Faults | None = None
    ) -> Answer:
        """Take a request: decide over every call, remember it, and answer.

        Args:
            request: the request.
            number: its number, for the journal.
            received_at: Unix seconds.
            faults: asked whether one of the calls is refused.

        Returns:
            The answer that Segment would give.
        """
        answer = self._decide(request, number, received_at, faults)
        if answer.refusal is not None:
            self.stats.refusals[answer.refusal] += 1
        return answer

    def _decide(
        self, request: Request, number: int, received_at: float, faults: Faults | None
    ) -> Answer:
        write_key = request.write_key()
        if isinstance(write_key, Answer):
            return write_key
        contents = request.contents()
        if isinstance(contents, Answer):
            return contents
        key_digest = digest(write_key)
        calls = contents.calls
        if (
            faults is not None
            and faults.may_refuse(key_digest)
            and faults.refuses(key_digest, calls, contents.serialised)
        ):
            return REFUSED_CALL
        self._measure(contents.body_bytes, contents.sizes_bytes, contents.sent_at, received_at)

        whole: Discard | None = None  # a reason that holds for every call of the request
        if self._known is not None and key_digest not in self._known:
            whole = Discard.UNKNOWN_WRITE_KEY
        elif len(calls) > MAX_CALLS:
            whole = Discard.TOO_MANY_CALLS

        written: list[bytes] = []
        for call, serialised in zip(calls, contents.serialised, strict=True):
            reason = whole or discard_reason(call)
            kind, message_id = _label(call)
            fate: Fate
            if reason is not None:
                fate = "discarded"
                self.stats.discarded[kind or "other"] += 1
                self.stats.discards[reason.value] += 1
            else:
                if message_id is None:
                    message_id = call["messageId"] = f"mock-{uuid4().hex}"
                fate = self._accept(call, kind or "other", message_id, received_at)
            if self._keep_calls or self._journal is not None:
                line = Line(number, received_at, fate, reason, key_digest, kind, message_id, call)
                if self._keep_calls:
                    self.lines.append(line)
                if self._journal is not None:
                    written.append(render(line, serialised if self._journal_calls else None))
        if self._journal is not None:
            self._journal.write(written)
        return SUCCESS

    def _accept(self, call: dict[str, Any], kind: str, message_id: str, received_at: float) -> Fate:
        if message_id in self._accepted:
            self.stats.duplicates[kind] += 1
            return "duplicate"
        self._accepted.add(message_id)
        self.stats.accepted[kind] += 1
        if kind == "identify":
            user = call.get("userId") or call["anonymousId"]
            self.profiles.setdefault(user, {}).update(call.get("traits", {}))
        elif kind == "group":
            user = call.get("userId") or call["anonymousId"]
            profile = self.group_profiles.setdefault((user, call["groupId"]), {})
            profile.update(call.get("traits", {}))
        elif kind in _TIMED:
            late_seconds = _age_seconds(call.get("timestamp"), received_at)
            if late_seconds is not None:
                self.stats.lateness.add(late_seconds)
        return "accepted"

    def _measure(
        self, body_bytes: int, sizes_bytes: list[int], sent_at: object, received_at: float
    ) -> None:
        stats = self.stats
        stats.inflated_bytes += body_bytes
        stats.max_body_bytes = max(stats.max_body_bytes, body_bytes)
        stats.max_calls = max(stats.max_calls, len(sizes_bytes))
        stats.max_call_bytes = max(stats.max_call_bytes, *sizes_bytes)
        age_seconds = _age_seconds(sent_at, received_at)
        if age_seconds is None:
            stats.bad_sent_at += 1
        else:
            stats.max_sent_at_age_seconds = max(stats.max_sent_at_age_seconds, age_seconds)


def key_digest(request: Request) -> str | None:
    """Give the digest of a request's write key, None if it has no usable one."""
    write_key = request.write_key()
    return None if isinstance(write_key, Answer) else digest(write_key)


def _label(call: object) -> tuple[str | None, str | None]:
    """Give a call's type and messageId, where they are such."""
    if not isinstance(call, dict):
        return None, None
    kind, message_id = call.get("type"), call.get("messageId")
    return (
        kind if isinstance(kind, str) and kind in TYPES else None,
        message_id if isinstance(message_id, str) else None,
    )


def _age_seconds(time: object, received_at: float) -> float | None:
    if not isinstance(time, str):
        return None
    try:
        moment = datetime.fromisoformat(time)
    except ValueError:
        return None
    return None if moment.tzinfo is None else received_at - moment.timestamp()
