"""Turns a record's bytes into Segment calls, or says why it can't."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from streamer.core.altis import ALTIS
from streamer.core.compile import DEFAULT, Rejected, compile_mapping
from streamer.core.exclude import Exclusions
from streamer.core.mapping import Callback, GroupMap, kind
from streamer.core.model import Filtered, FilterReason, Formatted, Reason, Reject

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streamer.core.compile import Change

PROFILES = {profile.name: profile for profile in (DEFAULT, ALTIS)}
"""What `transform.profile` may be."""

_EMPTY = Reject(Reason.EMPTY, "The record has no value, or one of nothing but white space.")
_SKIPPED = Filtered(FilterReason.EMPTY)


def keyed(write_key: str) -> blake2b:
    """Give the empty hash of which the ids for a write key are made: see `Transform`.

    Args:
        write_key: of any length; beyond the 64 bytes that blake2b takes as a key, its hash is the key.
    """
    key = write_key.encode()
    if len(key) > blake2b.MAX_KEY_SIZE:
        key = blake2b(key).digest()
    return blake2b(digest_size=16, key=key)


class Transform:
    """Makes the calls of a record: one identify, one group for each group that it names, one page or track.

    The same record makes the same calls with the same ids wherever and however often it is transformed. In the profile
    `default` an id is `s1-` and 128 bits of blake2b, keyed with the write key, over the record's value without outer
    white space, a NUL and the call's role: its type; for a group call also, each behind a NUL, its map's field, its
    map's number and, with `each`, the groupId. `streamer.core.altis` tells of the other profile.

    Attributes:
        source: the Python that the mapping is compiled to.
        mends: whether calls are made as Segment wants them: see `streamer.core.compile.Profile`.
    """

    def __init__(
        self,
        *,
        write_key: str,
        mapping: Mapping[str, Any] | None = None,
        groups: Sequence[GroupMap] = (),
        callbacks: Mapping[str, Callback] | None = None,
        exclusions: Exclusions | None = None,
        profile: str = "default",
        checked: bool = True,
        change: Change | None = None,
    ) -> None:
        """Compile the mapping.

        Args:
            write_key: what `format` and `calls` key the ids with, so that two destinations never share any.
            mapping: the tree of each type of call; None for the profile's own.
            groups: the group maps, in order.
            callbacks: callbacks by the names that leaves give them, besides the built-in ones.
            exclusions: what isn't forwarded; None if everything is.
            profile: one of `PROFILES`.
            checked: whether what Segment would throw away is rejected; the profile `default` does so in any case.
            change: changes the tree of a type of call before it is compiled; see `compile_mapping`.

        Raises:
            MappingError: a tree breaks the grammar.
        """
        self._key_hash = keyed(write_key)
        chosen = PROFILES[profile]
        self.mends = chosen.mends
        self._decode = chosen.decode
        self._skips = chosen.skips
        compiled = compile_mapping(
            chosen.mapping() if mapping is None else mapping,
            groups,
            {**chosen.callbacks, **(callbacks or {})},
            exclusions or Exclusions(),
            chosen,
            checked=checked,
            change=change,
        )
        self.source = compiled.source
        self._page_calls = compiled.page_calls
        self._track_calls = compiled.track_calls

    def format(self, value: bytes | None, timestamp_ms: int) -> Formatted | Reject | Filtered:
        """Make a record's calls, on the fast path.

        Args:
            value: the record's value; None for a tombstone.
            timestamp_ms: Kafka's timestamp of the record, negative if it has none.

        Returns:
            the calls, each of which Segment would keep if they are checked; or why there are none: they can't be made,
            or aren't to be. Nothing is raised, whatever the value.
        """
        decoded = self.decode(value)
        if not isinstance(decoded, tuple):
            return decoded
        stripped, event = decoded
        return self.make(stripped, event, timestamp_ms, self._key_hash)

    def decode(self, value: bytes | None) -> tuple[bytes, dict[str, Any]] | Reject | Filtered:
        """Read a record's event: the first half of `format`, for who must know the event to choose the write key.

        Args:
            value: the record's value; None for a tombstone.

        Returns:
            the value without outer white space, and the event; or why no calls are made of it.
        """
        stripped = value.strip() if value is not None else b""
        if not stripped:
            return _EMPTY if self._skips is None else _SKIPPED
        try:
            event = self._decode(stripped)
        except ValueError as error:
            return Reject(Reason.NOT_JSON, f"The record is no JSON: {error}.")
        if self._skips is not None and self._skips(event):
            return _SKIPPED
        if type(event) is not dict:
            return Reject(
                Reason.NOT_AN_OBJECT, f"The record is {kind(event)}, and must be a JSON object."
            )
        return stripped, event

    def make(
        self, stripped: bytes, event: dict[str, Any], timestamp_ms: int, key_hash: blake2b
    ) -> Formatted | Reject | Filtered:
        """Make the calls of an event: the second half of `format`.

        Args:
            stripped: the record's value without outer white space, as `decode` gives it.
            event: the event, as `decode` gives it. It isn't changed.
            timestamp_ms: Kafka's timestamp of the record, negative if it has none.
            key_hash: `keyed` of the write key that the ids are keyed with.
        """
        record_hash = key_hash.copy()
        record_hash.update(stripped)
        try:
            if event.get("event_type") == "pageView":
                return self._page_calls(event, timestamp_ms, key_hash, record_hash)
            return self._track_calls(event, timestamp_ms, key_hash, record_hash)
        except Rejected as rejected:
            return rejected.reject

    def calls(
        self, value: bytes | None, timestamp_ms: int
    ) -> list[dict[str, Any]] | Reject | Filtered:
        """Make a record's calls as plain dicts that share no objects, for who wants to look at them or change them.

        Args:
            value: the record's value; None for a tombstone.
            timestamp_ms: Kafka's timestamp of the record, negative if it has none.

        Returns:
            the calls in order, each with its messageId; or why there are none.
        """
        formatted = self.format(value, timestamp_ms)
        return formatted.calls() if isinstance(formatted, Formatted) else formatted
