"""The mapping, read off its specification: slow, plain, and sharing nothing with the compiler but the callbacks.

Each function does what one row of the grammar's table says, on the tree as it is written down. Held against
`streamer.core.transform`, it tells whether the compiled functions mean what the mapping says.

For the profile `altis` the same grammar is read off what PHP's arrays, `array_merge`, `current` and `empty` do;
`tests/core/test_altis.py` holds that profile against what PHP itself has made.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from hashlib import blake2b
from types import MappingProxyType
from typing import Any

import orjson

from streamer.core.model import FilterReason, Reason
from streamer.core.validate import validate

Callbacks = Mapping[str, Callable[[Any], Any]]

TEXT_KEYS = ("userId", "anonymousId", "groupId", "event", "name")


class RejectedError(Exception):
    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


def is_nothing(value: Any) -> bool:
    """Null or missing, or an empty object or list; not an empty string, false or 0."""
    return value is None or (isinstance(value, dict | list) and not value)


def look_up(event: Any, path: str, *, php: bool = False) -> Any:
    value = event
    for step in path.split("."):
        if isinstance(value, dict):
            value = value.get(step)
        elif not re.fullmatch("0|[1-9][0-9]*", step, re.ASCII):
            return None
        elif isinstance(value, list) or (php and isinstance(value, str)):
            value = value[int(step)] if int(step) < len(value) else None
        elif php or step != "0":
            return None
        if value is None:
            return None
    return value


def iso8601(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=value // 1)
    except (OverflowError, ValueError):
        return None
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def is_time(value: Any) -> bool:
    """Text in a form of ISO-8601."""
    if not isinstance(value, str):
        return False
    try:
        datetime.fromisoformat(value)
    except ValueError:
        return False
    return True


def php_time(value: Any) -> str:
    """PHP's `date('c', …)` of what its `int` takes, divided by 1000."""
    number = value
    if isinstance(value, str):
        trimmed = value.strip(" \t\n\r\v\f")
        if not re.fullmatch(
            r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", trimmed, re.ASCII
        ):
            raise RejectedError(Reason.BAD_TIMESTAMP)
        whole = re.fullmatch(r"[+-]?[0-9]{1,19}", trimmed, re.ASCII)
        number = int(trimmed) if whole else float(trimmed)
    if not isinstance(number, int | float) or not -(2**63) <= number < 2**63:
        raise RejectedError(Reason.BAD_TIMESTAMP)
    milliseconds = int(number)
    seconds = milliseconds // 1000
    if milliseconds % 1000:
        seconds = math.trunc(float(milliseconds) / 1000)
    days, second = divmod(seconds, 86_400)
    # years that begin in March, so that the leap day is a year's last one
    era, day = divmod(days + 719_468, 146_097)
    year = (day - day // 1460 + day // 36_524 - day // 146_096) // 365
    day -= 365 * year + year // 4 - year // 100
    march = (5 * day + 2) // 153
    day -= (153 * march + 2) // 5
    month = (march + 2) % 12 + 1
    year += 400 * era + (month <= 2)
    shown = str(year).zfill(4)
    clock = f"{second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}"
    return f"{shown}-{month:02d}-{day + 1:02d}T{clock}+00:00"


def php_array(value: Any) -> Any:
    """What a value is after PHP's `json_decode` and `json_encode`.

    A number has no needless fraction, and an object is a list if its keys are those of one.
    """
    if isinstance(value, list):
        return [php_array(element) for element in value]
    if isinstance(value, dict):
        if list(value) == [str(number) for number in range(len(value))]:
            return [php_array(element) for element in value.values()]
        return {key: php_array(element) for key, element in value.items()}
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    number = value if isinstance(value, int) and value < 2**63 else float(value)
    return (
        int(php_float(number)) if re.fullmatch("[0-9]+|-[1-9][0-9]*", php_float(number)) else number
    )


def php_float(number: float) -> str:
    """A number as PHP's `json_encode` writes it."""
    if isinstance(number, int):
        return str(number)
    sign = "-" if math.copysign(1, number) < 0 else ""
    if number == 0:
        return f"{sign}0"
    _, digits, power = Decimal(repr(abs(number))).normalize().as_tuple()
    shown = "".join(map(str, digits))
    point = len(shown) + int(power)
    if not -4 < point <= 17:
        return f"{sign}{shown[0]}.{shown[1:] or '0'}e{'-' if point < 1 else '+'}{abs(point - 1)}"
    plain = f"{abs(Decimal(repr(number))):f}"
    return sign + (plain.rstrip("0").rstrip(".") if "." in plain else plain)


def php_json(value: Any) -> str:
    """PHP's `json_encode` of a decoded value, written by Python's, with floats and what it escapes otherwise put in."""
    value = php_array(value)
    if isinstance(value, list):
        return f"[{','.join(map(php_json, value))}]"
    if isinstance(value, dict):
        return (
            "{" + ",".join(f"{php_json(key)}:{php_json(one)}" for key, one in value.items()) + "}"
        )
    if isinstance(value, float):
        return php_float(value)
    if not isinstance(value, str):
        return json.dumps(value)
    kept = {"/": "\\/", "\x7f": "\x7f"}
    return '"' + "".join(kept.get(one, json.dumps(one)[1:-1]) for one in value) + '"'


def leaf(tree: str, event: Any, callbacks: Callbacks, *, php: bool = False) -> Any:
    if tree == "":
        return None
    if "|" not in tree:
        return look_up(event, tree, php=php)
    path, name = tree.rsplit("|", 1)
    if name == "static":
        return path
    value = look_up(event, path, php=php) if path else event
    if value is None:
        return None
    if name == "milliseconds_to_iso8601":
        return php_time(value) if php else iso8601(value)
    if php and name == "json_encode":
        return php_json(value)
    if php and name == "hash_event":
        return hashlib.md5(php_json(value).encode(), usedforsecurity=False).hexdigest()
    try:
        return callbacks[name](value)
    except Exception:  # noqa: BLE001 - a callback may raise anything
        raise RejectedError(Reason.CALLBACK_FAILED) from None


def first_element(value: Any) -> Any:
    if isinstance(value, list):
        return value[0] if value else None
    if isinstance(value, dict):
        return next(iter(value.values())) if value else None
    return value


Drops = Mapping[str, Any]
"""Keys to what is taken out inside of them; of an empty one, all."""


def less(value: Any, drops: Drops) -> Any:
    """A value without keys; an object in it that loses all it has goes, too."""
    if not isinstance(value, dict):
        return value
    left = {}
    for key, inner in value.items():
        if key not in drops:
            left[key] = inner
        elif drops[key]:
            rest = less(inner, drops[key])
            if rest != {} or inner == {}:
                left[key] = rest
    return left


def current(value: Any) -> Any:
    """The first element of an array, false if it is empty; else the value."""
    if isinstance(value, dict):
        value = list(value.values())
    return (value[0] if value else False) if isinstance(value, list) else value


def php_merge(tree: Sequence[Any], event: Any, callbacks: Callbacks, drops: Drops) -> Any:
    """`array_merge`, but that objects keep their keys."""
    merged: dict[str, Any] = {}
    next_number = 0
    inside = {key: below for key, below in drops.items() if below}
    for part in tree:
        value = evaluate(part, event, callbacks, inside if isinstance(part, dict) else {}, php=True)
        if isinstance(value, list):
            for element in value:
                while str(next_number) in merged:
                    next_number += 1
                merged[str(next_number)] = current(element)
        elif isinstance(value, dict):
            for key, element in value.items():
                merged[key] = element if isinstance(part, dict) else current(element)
    return php_array(merged)


def merge(tree: Sequence[Any], event: Any, callbacks: Callbacks, drops: Drops) -> Any:
    objects, lists = [], []
    inside = {key: below for key, below in drops.items() if below}
    for part in tree:
        value = evaluate(part, event, callbacks, inside if isinstance(part, dict) else {})
        if isinstance(value, list):
            lists.append(value)
        elif isinstance(value, dict) and isinstance(part, dict):
            objects.append(value)
        elif isinstance(value, dict):
            objects.append({key: first_element(element) for key, element in value.items()})
    merged: dict[str, Any] = {}
    for one in objects:
        merged.update({key: value for key, value in one.items() if not is_nothing(value)})
    if merged:
        return merged
    return [element for one in lists for element in one]


def evaluate(
    tree: Any,
    event: Any,
    callbacks: Callbacks,
    drops: Drops = MappingProxyType({}),
    *,
    php: bool = False,
) -> Any:
    if tree is None:
        return None
    if isinstance(tree, str):
        return less(leaf(tree, event, callbacks, php=php), drops)
    if isinstance(tree, list):
        merged = (php_merge if php else merge)(tree, event, callbacks, drops)
        return less(merged, drops)
    result = {}
    for key, subtree in tree.items():
        if drops.get(key) == {}:
            continue
        value = evaluate(subtree, event, callbacks, drops.get(key, {}), php=php)
        if not is_nothing(value):
            result[key] = php_array(value) if php and isinstance(subtree, str) else value
    return result


def as_text(value: Any) -> str | None:
    if isinstance(value, list):
        value = first_element(value)
    if isinstance(value, str):
        return value if value != "" else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, float) and value == int(value) and abs(value) < 2**53:
        return str(int(value))
    return repr(value)


def message_id(write_key: str, identity: bytes, role: bytes) -> str:
    key = write_key.encode()
    if len(key) > 64:
        key = blake2b(key).digest()
    return "s1-" + blake2b(identity + b"\0" + role, key=key, digest_size=16).hexdigest()


class Excluding:
    """What the interpreters of both profiles are made of, and what isn't forwarded."""

    def __init__(
        self,
        mapping: Mapping[str, Any],
        groups: Sequence[Mapping[str, Any]],
        callbacks: Callbacks,
        *,
        drop_events: Collection[str] = (),
        drop_traits: Collection[str] = (),
        drop_properties: Collection[str] = (),
        sample: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        self.mapping = mapping
        self.groups = groups
        self.callbacks = callbacks
        self.drop_events = drop_events
        self.sample = sample
        traits: Drops = {key: {} for key in drop_traits}
        properties: Drops = {key: {} for key in drop_properties}
        context = {key: below for key, below in (("traits", traits), ("page", properties)) if below}
        drops = {"traits": traits, "properties": properties, "context": context}
        self.drops = {key: below for key, below in drops.items() if below}

    def kept_back(self, event: Any, *, php: bool = False) -> FilterReason | None:
        event_type = event.get("event_type")
        if event_type in list(self.drop_events):
            return FilterReason.DROPPED_EVENT
        if event_type in list(self.sample):
            tree = self.mapping["identify"]
            ids = [
                as_text(evaluate(tree.get(key), event, self.callbacks, php=php))
                for key in ("userId", "anonymousId")
            ]
            user = ids[0] or ids[1]
            digest = blake2b(f"{event_type}\0{user}".encode(), digest_size=8).hexdigest()
            if user is not None and int(digest, 16) / 2**64 >= self.sample[event_type]:
                return FilterReason.SAMPLED_OUT
        return None


class AltisInterpreter(Excluding):
    """Makes the calls of the profile `altis`, unchecked: a reason for a reject, and for a line that makes none."""

    def calls(
        self,
        value: bytes | None,
        timestamp_ms: int,  # noqa: ARG002 - PHP knows no time of the record
    ) -> list[dict[str, Any]] | Reason | FilterReason:
        if value is None or value.strip() == b"":
            return FilterReason.EMPTY
        try:
            event = orjson.loads(value)
        except ValueError:
            return Reason.NOT_JSON
        if is_nothing(event) or event in (False, 0, "", "0"):
            return FilterReason.EMPTY
        if not isinstance(event, dict):
            return Reason.NOT_AN_OBJECT
        trees = [self.mapping["identify"]]
        try:
            reason = self.kept_back(event, php=True)
            if reason is not None:
                return reason
            for group_map in self.groups:
                laid = {
                    "groupId" if key == "field" else key: tree
                    for key, tree in group_map.items()
                    if key != "each"
                }
                group_id = evaluate(group_map["field"], event, self.callbacks, php=True)
                if not is_nothing(group_id) and group_id not in (False, 0, "", "0"):
                    trees.append({**self.mapping["group"], **laid})
            is_page = event.get("event_type") == "pageView"
            trees.append(self.mapping["page" if is_page else "track"])
            return [evaluate(tree, event, self.callbacks, self.drops, php=True) for tree in trees]
        except RejectedError as rejected:
            return rejected.reason


class Interpreter(Excluding):
    """Makes the calls of a record as `Transform.calls` does, but a reason instead of a Reject or Filtered."""

    def __init__(
        self,
        write_key: str,
        mapping: Mapping[str, Any],
        groups: Sequence[Mapping[str, Any]],
        callbacks: Callbacks,
        **excluded: Any,
    ) -> None:
        super().__init__(mapping, groups, callbacks, **excluded)
        self.write_key = write_key

    def calls(
        self, value: bytes | None, timestamp_ms: int
    ) -> list[dict[str, Any]] | Reason | FilterReason:
        if value is None or value.strip() == b"":
            return Reason.EMPTY
        try:
            event = orjson.loads(value)
        except ValueError:
            return Reason.NOT_JSON
        if not isinstance(event, dict):
            return Reason.NOT_AN_OBJECT
        record = value.strip()
        try:
            reason = self.kept_back(event)
            if reason is not None:
                return reason
            calls = [self.call("identify", self.mapping["identify"], event, record, timestamp_ms)]
            for number, group_map in enumerate(self.groups):
                calls += self.group_calls(number, group_map, event, record, timestamp_ms)
            main = "page" if event.get("event_type") == "pageView" else "track"
            calls.append(self.call(main, self.mapping[main], event, record, timestamp_ms))
        except RejectedError as rejected:
            return rejected.reason
        return calls

    def group_calls(
        self,
        number: int,
        group_map: Mapping[str, Any],
        event: Any,
        record: bytes,
        timestamp_ms: int,
    ) -> list[dict[str, Any]]:
        laid = {
            "groupId" if key == "field" else key: value
            for key, value in group_map.items()
            if key != "each"
        }
        tree = {**self.mapping["group"], **laid}
        found = evaluate(group_map["field"], event, self.callbacks)
        ids: list[str] = []
        if group_map.get("each", False):
            for element in found if isinstance(found, list) else [found]:
                element_text = None if isinstance(element, list) else as_text(element)
                if element_text is not None and element_text not in ids:
                    ids.append(element_text)
        elif as_text(found) is not None:
            ids.append(str(as_text(found)))
        if len(ids) > 1000:
            raise RejectedError(Reason.INVALID_CALL)
        calls = []
        for group_id in ids:
            role = f"group\0{group_map['field']}\0{number}"
            if group_map.get("each", False):
                role += f"\0{group_id}"
            tree["groupId"] = f"{group_id}|static"
            calls.append(self.call("group", tree, event, record, timestamp_ms, role))
        return calls

    def call(
        self,
        call_type: str,
        tree: Mapping[str, Any],
        event: Any,
        record: bytes,
        timestamp_ms: int,
        role: str | None = None,
    ) -> dict[str, Any]:
        places = {**tree}
        places.setdefault("timestamp", "")
        places.setdefault("messageId", "")
        call: dict[str, Any] = {}
        for key, subtree in places.items():
            value = evaluate(subtree, event, self.callbacks, self.drops.get(key, {}))
            if key in TEXT_KEYS:
                value = as_text(value)
            elif key == "timestamp" and not is_time(value):
                value = iso8601(timestamp_ms) if timestamp_ms >= 0 else None
            elif key == "messageId":
                mapped = as_text(value)
                usable = mapped is not None and "\0" not in mapped
                identity = str(mapped).encode() if usable else record
                value = message_id(self.write_key, identity, (role or call_type).encode())
            if not is_nothing(value):
                call[key] = value
        if "userId" not in call and "anonymousId" not in call:
            raise RejectedError(Reason.NO_IDENTITY)
        if "timestamp" not in call:
            raise RejectedError(Reason.BAD_TIMESTAMP)
        if call_type == "track" and "event" not in call:
            raise RejectedError(Reason.NO_EVENT_TYPE)
        reject = validate(call, len(orjson.dumps(call)))
        if reject is not None:
            raise RejectedError(reject.reason)
        return call
