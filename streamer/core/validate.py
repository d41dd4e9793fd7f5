"""What Segment would silently throw away: it answers 200 for the request and drops the call.

The rules are those of Segment's HTTP Tracking API and of its validator `@segment/loosely-validate-event`; where the two
leave a doubt, the stricter reading is taken.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import orjson

from streamer.core.mapping import kind
from streamer.core.model import Reason, Reject

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_CALL_BYTES = 32_000
"""The most a call may be, as JSON. Segment says 32 KB; a KB is taken as 1,000 bytes to be safe."""

MAX_MESSAGE_ID_CHARACTERS = 99
"""The most characters of a messageId. Segment says 100."""

_TYPES = frozenset({"identify", "group", "track", "page", "screen", "alias"})
_IDS = ("userId", "anonymousId", "groupId", "previousId", "messageId")
_OBJECTS = ("context", "integrations", "traits", "properties")
_NEEDED_TEXT = {
    "track": ("event",),
    "group": ("groupId",),
    "alias": ("previousId", "userId"),
}
_OPTIONAL_TEXT = ("name", "category", "event")  # Segment's validator wants that of every call


def validate(call: Mapping[str, Any], size_bytes: int) -> Reject | None:
    """Say why Segment would not keep a call.

    Args:
        call: the call, of JSON values alone.
        size_bytes: its length as JSON.

    Returns:
        the first fault that is found, None if there is none.
    """
    call_type = call.get("type")
    if not isinstance(call_type, str) or call_type not in _TYPES:
        return _invalid(f"There is no call of the type {call_type!r:.40}")
    for key in _IDS:
        if key in call and (not isinstance(call[key], str) or not call[key]):
            return not_text(call_type, key, call[key])
    for key in _NEEDED_TEXT.get(call_type, ()):
        if not isinstance(call.get(key), str) or not call[key]:
            return not_text(call_type, key, call.get(key))
    if call_type != "alias" and "userId" not in call and "anonymousId" not in call:
        return Reject(
            Reason.NO_IDENTITY, f"The {call_type} call has neither a userId nor an anonymousId."
        )
    for key in _OPTIONAL_TEXT:
        if key in call and not isinstance(call[key], str):
            return not_text(call_type, key, call[key])
    for key in _OBJECTS:
        if key in call and not isinstance(call[key], dict):
            return not_an_object(call_type, key, call[key])
    if "timestamp" in call and not is_iso8601(call["timestamp"]):
        return Reject(
            Reason.BAD_TIMESTAMP,
            f"The timestamp of the {call_type} call is no ISO-8601 of a year from 1 to 9999.",
        )
    characters = len(call.get("messageId", ""))
    if characters > MAX_MESSAGE_ID_CHARACTERS:
        return _invalid(
            f"The messageId of the {call_type} call has {characters} characters, and may have"
            f" {MAX_MESSAGE_ID_CHARACTERS}"
        )
    if size_bytes > MAX_CALL_BYTES:
        return too_large(call, size_bytes)
    return None


def is_iso8601(value: object) -> bool:
    """Say whether a value is a time in one of the forms that Segment takes."""
    if not isinstance(value, str):
        return False
    try:
        datetime.fromisoformat(value)
    except ValueError:
        return False
    return True


def not_text(call_type: str, key: str, value: object) -> Reject:
    """Say that a key of a call doesn't hold text, or holds none."""
    found = "empty" if value == "" else "missing" if value is None else kind(value)
    return _invalid(f"{key} of the {call_type} call is {found}, and must be text")


def not_an_object(call_type: str, key: str, value: object) -> Reject:
    """Say that a key of a call doesn't hold an object."""
    return _invalid(f"{key} of the {call_type} call is {kind(value)}, and must be an object")


def too_large(call: Mapping[str, Any], size_bytes: int) -> Reject:
    """Say that a call is larger than Segment takes, and what makes it so."""
    largest = max(call, key=lambda key: len(orjson.dumps(call[key])))
    return Reject(
        Reason.CALL_TOO_LARGE,
        f"The {call['type']} call is {size_bytes:,} bytes of JSON, most of them in {largest}; Segment takes"
        f" {MAX_CALL_BYTES:,}.",
    )


def _invalid(sentence: str) -> Reject:
    return Reject(Reason.INVALID_CALL, f"{sentence}.")
