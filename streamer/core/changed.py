"""Calls that site code has had in its hands, checked like any others and made ready for a lane again."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import orjson

from streamer.core.compile import as_json
from streamer.core.mapping import kind
from streamer.core.model import (
    CALL_TYPES,
    Changed,
    Contribution,
    Filtered,
    FilterReason,
    Fixed,
    Main,
    Reason,
    Reject,
)
from streamer.core.validate import validate

if TYPE_CHECKING:
    from hashlib import blake2b

MAX_CALLS = 1000
"""So many calls may be made of one record."""

_LEFT_OUT = Filtered(FilterReason.HOOK)
_MAIN = ("page", "track")
_MADE_ID = re.compile("s1-[0-9a-f]{32}")


def take_back(
    calls: object,
    own_ids: frozenset[str],
    record_hash: blake2b,
    key_hash: blake2b,
    *,
    mends: bool = True,
    checked: bool = True,
) -> Changed | Filtered | Reject:
    """Take the calls of one record back from site code.

    A call keeps the messageId that it was given, or that site code gave it. One that has none, or an id that streamer
    made for something else (site code copied the call), gets an id of its own from the record, the call's type and its
    place in the list: the same whenever the record is read again.

    Args:
        calls: what site code says of the record: a list of dicts, in the order in which they are to be sent.
        own_ids: the messageIds that the record's calls had before.
        record_hash: the hash of the record, keyed with the write key.
        key_hash: the empty hash, keyed with the write key.
        mends: whether calls get ids and identify and group calls can merge, as in the profile `default`.
        checked: whether what Segment would throw away is rejected.

    Returns:
        the calls; or that there are none; or what is wrong with the first that is. Nothing is raised, whatever stands
        in `calls`.
    """
    if not isinstance(calls, list | tuple):
        return _wrong(f"the calls of a record are a list of dicts; found {kind(calls)}")
    try:
        calls = [*calls]  # of whatever class it is
    except Exception as error:  # noqa: BLE001 - which may do anything
        return _wrong(f"the calls of a record can't be read: {type(error).__name__}")
    if not calls:
        return _LEFT_OUT
    if len(calls) > MAX_CALLS:
        return _wrong(f"a record may have {MAX_CALLS:,} calls; found {len(calls):,}")
    taken: list[Contribution | Main] = []
    used: set[str] = set()
    last_main = -1
    for number, call in enumerate(calls):
        if not isinstance(call, dict):
            return _wrong(f"call {number} of a record must be a dict; found {kind(call)}")
        try:
            copied: dict[str, Any] = as_json(call)
        except Exception as error:  # noqa: BLE001 - site code may leave anything, and nested without end
            return _wrong(f"call {number} of a record isn't of JSON's values: {error}")
        call_type = copied.get("type")
        if call_type not in CALL_TYPES:
            shown = repr(call_type)[:40]
            return _wrong(
                f"call {number} of a record has the type {shown}; expected one of {', '.join(CALL_TYPES)}"
            )
        if mends:
            _give_id(copied, number, own_ids, used, record_hash)
        try:
            serialised = orjson.dumps(copied)
        except TypeError:
            return Reject(
                Reason.INVALID_CALL,
                f"The {call_type} call is nested too deeply: over 250 levels.",
            )
        reject = validate(copied, len(serialised)) if checked or mends else None
        if reject is not None:
            return reject
        if call_type in _MAIN:
            last_main = len(taken)
            taken.append(Main(call_type, serialised, decides=False))
        elif mends:
            taken.append(_contribution(copied, call_type, key_hash))
        else:
            taken.append(Fixed(copied, call_type, serialised))
    if last_main >= 0:
        main = taken[last_main]
        taken[last_main] = main._replace(decides=True) if isinstance(main, Main) else main
    return Changed(tuple(taken))


def _give_id(
    call: dict[str, Any],
    number: int,
    own_ids: frozenset[str],
    used: set[str],
    record_hash: blake2b,
) -> None:
    found = call.get("messageId")
    if found in (None, "") or (
        isinstance(found, str)
        and (found in used or (found not in own_ids and _MADE_ID.fullmatch(found)))
    ):
        own_hash = record_hash.copy()
        own_hash.update(f"\0{call['type']}\0hook\0{number}".encode())
        call["messageId"] = found = "s1-" + own_hash.hexdigest()
    if isinstance(found, str):
        used.add(found)


def _contribution(call: dict[str, Any], call_type: str, key_hash: blake2b) -> Contribution:
    user, anonymous = call.get("userId"), call.get("anonymousId")
    profile: str = call.get("userId") or call["anonymousId"]  # it is checked
    traits = call.get("traits") or {}
    if not traits:
        call.pop("traits", None)
    own_hash = key_hash.copy()
    own_hash.update(call["messageId"].encode())
    return Contribution(
        call_type,
        (profile, call["groupId"]) if call_type == "group" else profile,
        (user, anonymous),
        call,
        traits,
        orjson.dumps(traits),
        own_hash,
    )


def _wrong(sentence: str) -> Reject:
    return Reject(Reason.HOOK_FAILED, f"altis.analytics.segment.formatted_data: {sentence}.")
