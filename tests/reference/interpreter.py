"""The mapping, read off its specification: slow, plain, and sharing nothing with the compiler but the callbacks.

Each function does what one row of the grammar's table says, on the tree as it is written down. Held against
`streamer.core.transform`, it tells whether the compiled functions mean what the mapping says.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
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


def look_up(event: Any, path: str) -> Any:
    value = event
    for step in path.split("."):
        if isinstance(value, dict):
            value = value.get(step)
        elif not re.fullmatch("0|[1-9][0-9]*", step, re.ASCII):
            return None
        elif isinstance(value, list):
            value = value[int(step)] if int(step) < len(value) else None
        elif step != "0":
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


def leaf(tree: str, event: Any, callbacks: Callbacks) -> Any:
    if tree == "":
        return None
    if "|" not in tree:
        return look_up(event, tree)
    path, name = tree.rsplit("|", 1)
    if name == "static":
        return path
    value = look_up(event, path) if path else event
    if value is None:
        return None
    if name == "milliseconds_to_iso8601":
        return iso8601(value)
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
    tree: Any, event: Any, callbacks: Callbacks, drops: Drops = MappingProxyType({})
) -> Any:
    if tree is None:
        return None
    if isinstance(tree, str):
        return less(leaf(tree, event, callbacks), drops)
    if isinstance(tree, list):
        return less(merge(tree, event, callbacks, drops), drops)
    result = {}
    for key, subtree in tree.items():
        if drops.get(key) == {}:
            continue
        value = evaluate(subtree, event, callbacks, drops.get(key, {}))
        if not is_nothing(value):
            result[key] = value
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


class Interpreter:
    """Makes the calls of a record as `Transform.calls` does, but a reason instead of a Reject or Filtered."""

    def __init__(
        self,
        write_key: str,
        mapping: Mapping[str, Any],
        groups: Sequence[Mapping[str, Any]],
        callbacks: Callbacks,
        *,
        drop_events: Collection[str] = (),
        drop_traits: Collection[str] = (),
        drop_properties: Collection[str] = (),
        sample: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        self.write_key = write_key
        self.mapping = mapping
        self.groups = groups
        self.callbacks = callbacks
        self.drop_events = drop_events
        self.sample = sample
        traits: Drops = {key: {} for key in drop_traits}
        properties: Drops = {key: {} for key in drop_properties}
        self.drops = {"traits": traits, "properties": properties}
        self.context_drops = {"traits": traits, "page": properties}

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
        event_type = event.get("event_type")
        if event_type in list(self.drop_events):
            return FilterReason.DROPPED_EVENT
        try:
            if event_type in list(self.sample):
                tree = self.mapping["identify"]
                ids = [
                    evaluate(tree.get(key), event, self.callbacks)
                    for key in ("userId", "anonymousId")
                ]
                user = as_text(ids[0]) or as_text(ids[1])
                digest = blake2b(f"{event_type}\0{user}".encode(), digest_size=8).hexdigest()
                if user is not None and int(digest, 16) / 2**64 >= self.sample[event_type]:
                    return FilterReason.SAMPLED_OUT
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
            drops = self.drops.get(key, {})
            if key == "context":
                drops = {place: below for place, below in self.context_drops.items() if below}
            value = evaluate(subtree, event, self.callbacks, drops)
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
