"""Which calls Segment throws away after it has answered 200.

Segment documents none of this in one place. The rules are what its documentation, its official SDKs and its own
validator (`@segment/loosely-validate-event`) agree on; where they are silent, the stricter reading.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

TYPES = frozenset({"alias", "group", "identify", "page", "screen", "track"})
"""The calls of Segment's specification; a call of any other type is thrown away."""

MAX_MESSAGE_ID_CHARACTERS = 99
"""Segment says 100; whether that is still inside is not said, so 99."""

_ID_FIELDS = ("userId", "anonymousId", "groupId", "previousId")


class Discard(StrEnum):
    """Why a call was thrown away although its request was answered with 200."""

    NOT_AN_OBJECT = "not_an_object"
    NO_TYPE = "no_type"
    UNKNOWN_TYPE = "unknown_type"
    BAD_ID = "bad_id"  # not a string, or empty
    NO_IDENTITY = "no_identity"  # neither userId nor anonymousId
    NO_EVENT = "no_event"
    NO_GROUP_ID = "no_group_id"
    INCOMPLETE_ALIAS = "incomplete_alias"  # needs both previousId and userId
    BAD_TRAITS = "bad_traits"
    BAD_PROPERTIES = "bad_properties"
    BAD_NAME = "bad_name"
    BAD_CATEGORY = "bad_category"
    BAD_EVENT = "bad_event"  # an event beside a call that isn't track, and not a string
    BAD_CONTEXT = "bad_context"
    BAD_INTEGRATIONS = "bad_integrations"
    BAD_TIMESTAMP = "bad_timestamp"
    BAD_MESSAGE_ID = "bad_message_id"
    UNKNOWN_WRITE_KEY = "unknown_write_key"  # every call of the request
    TOO_MANY_CALLS = "too_many_calls"  # every call of the request


_IF_PRESENT = (
    ("name", str, Discard.BAD_NAME),
    ("category", str, Discard.BAD_CATEGORY),
    ("event", str, Discard.BAD_EVENT),
    ("context", dict, Discard.BAD_CONTEXT),
    ("integrations", dict, Discard.BAD_INTEGRATIONS),
)


def discard_reason(call: object) -> Discard | None:
    """Say why Segment would throw a call away, or None if it would take it.

    A field that is null counts as absent, because the official SDKs send null for ids, names and categories that they
    don't have; none of them sends null for traits or properties, so these must be objects once they are there.

    Args:
        call: one element of a batch, as JSON decoded it.

    Returns:
        The first reason found, or None.
    """
    if not isinstance(call, dict):
        return Discard.NOT_AN_OBJECT
    get = call.get
    kind = get("type")
    if kind is None or kind == "":
        return Discard.NO_TYPE
    if not isinstance(kind, str) or kind not in TYPES:
        return Discard.UNKNOWN_TYPE
    for field in _ID_FIELDS:
        value = get(field)
        if value is not None and (not isinstance(value, str) or not value):
            return Discard.BAD_ID
    event = get("event")
    if kind == "alias":
        if get("userId") is None or get("previousId") is None:
            return Discard.INCOMPLETE_ALIAS
    elif get("userId") is None and get("anonymousId") is None:
        return Discard.NO_IDENTITY
    elif kind == "track":
        if not isinstance(event, str) or not event:
            return Discard.NO_EVENT
    elif kind == "group" and get("groupId") is None:
        return Discard.NO_GROUP_ID
    if "traits" in call and not isinstance(call["traits"], dict):
        return Discard.BAD_TRAITS
    if "properties" in call and not isinstance(call["properties"], dict):
        return Discard.BAD_PROPERTIES
    # Segment's own validator wants these of every type of call, not only where they mean something.
    for field, kind_of_value, reason in _IF_PRESENT:
        value = get(field)
        if value is not None and not isinstance(value, kind_of_value):
            return reason
    timestamp = get("timestamp")
    if timestamp is not None and not _is_iso8601(timestamp):
        return Discard.BAD_TIMESTAMP
    message_id = get("messageId")
    if message_id is not None and not (
        isinstance(message_id, str) and 0 < len(message_id) <= MAX_MESSAGE_ID_CHARACTERS
    ):
        return Discard.BAD_MESSAGE_ID
    return None


def _is_iso8601(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        datetime.fromisoformat(value)
    except ValueError:
        return False
    return True
