"""The mapping: which parts of an event become which keys of a call.

A mapping is a tree for each type of call: a dict whose leaves are strings. Its grammar, in which the order of keys is
the order in the call:

    "a.b.0"           the value at that path: keys of objects, and indexes of lists as canonical decimals
    "a.b|callback"    that value through the callback; not called when the value is missing or null
    "|callback"       the whole event through the callback
    "Text|static"     the text
    "", None, {}, []  nothing: the key is left out
    a list            paths and dicts whose values are merged; lists are appended to one another
    a dict            a nested object

`parse` turns a tree into nodes, and says where it breaks the grammar; `streamer.core.compile` makes Python of them.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from importlib import import_module
from typing import Any, TypeAlias, cast

import orjson

from streamer import __version__
from streamer.core.model import CALL_TYPES
from streamer.errors import MappingError

Callback: TypeAlias = Callable[[Any], Any]
"""Takes a value of an event, which it must not change, and gives what stands in its place."""

Tree: TypeAlias = "str | Sequence[Any] | Mapping[str, Any] | None"
"""A mapping tree as it is written down: see the grammar above."""

GroupMap: TypeAlias = Mapping[str, Any]
"""One `[[groups]]` of the configuration: `field`, the path of the groupId; `traits`, a tree; `each`, true for one
call for each element of the list at `field`. Its other keys are laid over the mapping of `group`."""

TEXT_KEYS = frozenset({"userId", "anonymousId", "groupId", "event", "name"})
"""Keys at the top of a call that Segment takes only as text: a list gives its first element, a number its decimals."""

_MAX_DEPTH = 64
_INDEX = re.compile(r"0|[1-9][0-9]*", re.ASCII)


# --- the nodes ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Nothing:
    """A leaf that leaves its key out."""


@dataclass(frozen=True, slots=True)
class Static:
    """A text that stands in every call.

    Attributes:
        text: the text, which may be empty.
    """

    text: str


@dataclass(frozen=True, slots=True)
class Path:
    """A value of the event.

    Attributes:
        keys: the steps from the event to the value; none for the whole event.
        callback: the name of what the value goes through, None if it stays as it is.
    """

    keys: tuple[str, ...]
    callback: str | None = None

    def __str__(self) -> str:
        return ".".join(self.keys) or "the event"


@dataclass(frozen=True, slots=True)
class Merge:
    """Objects laid over one another, or lists appended to one another.

    Attributes:
        parts: what is merged, in order; a `Branch` gives its keys as they are.
    """

    parts: tuple[Path | Branch, ...]


@dataclass(frozen=True, slots=True)
class Branch:
    """A nested object.

    Attributes:
        items: its keys and what they hold, in order, without those that hold nothing.
    """

    items: tuple[tuple[str, Node], ...]


@dataclass(frozen=True, slots=True)
class Without:
    """An object less some of its keys; what isn't an object stays as it is. No tree says it: settings do.

    Attributes:
        node: what makes the object.
        drops: the keys, each with what goes inside of it: all of it if that is empty.
    """

    node: Path | Merge
    drops: tuple[tuple[str, Any], ...]


Node: TypeAlias = Nothing | Static | Path | Merge | Branch | Without
"""What a mapping tree is made of."""


def index_of(key: str) -> int | None:
    """Give the index of a list that a step of a path means, None if it can only be a key."""
    return int(key) if _INDEX.fullmatch(key) else None


# --- the default mapping -----------------------------------------------------------------------------------------


def default_mapping() -> dict[str, dict[str, Any]]:
    """Give the mapping of the profile `default`: a fresh tree for each type of call.

    Keys of Segment's common fields that an event says nothing of are there too, mapped to nothing, so that who changes
    a mapping finds them. A `messageId` that is mapped to nothing, as here, is made from the record's bytes; a
    `timestamp` that an event doesn't have is Kafka's.
    """

    def common(call_type: str) -> dict[str, Any]:
        return {
            "type": f"{call_type}|static",
            "anonymousId": "endpoint.Id",
            "timestamp": "event_timestamp|milliseconds_to_iso8601",
            "receivedAt": "arrival_timestamp|milliseconds_to_iso8601",
            "userId": "endpoint.User.UserId",
            "messageId": "",
        }

    def traits() -> list[Any]:
        return ["endpoint.Attributes", "endpoint.User.UserAttributes", "endpoint.Metrics"]

    def page() -> dict[str, Any]:
        return {
            "path": "",
            "referrer": "attributes.referrer",
            "search": "attributes.search",
            "title": "attributes.title",
            "url": "attributes.url",
            "keywords": "",
        }

    def context() -> dict[str, Any]:
        return {
            "active": "endpoint.EndpointStatus",
            "app": {"name": "", "version": "endpoint.Demographic.AppVersion", "build": ""},
            "campaign": {
                "name": "attributes.qv_utm_campaign",
                "source": "attributes.qv_utm_source",
                "medium": "attributes.qv_utm_medium",
                "term": "attributes.qv_utm_term",
                "content": "attributes.qv_utm_content",
            },
            "device": {
                "id": "",
                "advertisingId": "",
                "manufacturer": "endpoint.Attributes.DeviceMake.0",
                "model": "endpoint.Attributes.DeviceModel.0",
                "name": "",
                "type": "endpoint.Attributes.DeviceType.0",
                "version": "",
            },
            "ip": "",
            "library": {"name": "streamer|static", "version": f"{__version__}|static"},
            "locale": "endpoint.Demographic.Locale",
            "location": {
                "country": "endpoint.Location.Country",
                "city": "endpoint.Location.City",
                "latitude": "endpoint.Location.Latitude",
                "longitude": "endpoint.Location.Longitude",
            },
            "os": {
                "name": "endpoint.Demographic.Platform",
                "version": "endpoint.Demographic.PlatformVersion",
            },
            "page": page(),
            "referrer": {"type": "", "name": "", "url": "", "link": ""},
            "screen": {"density": "", "height": "", "width": ""},
            "timezone": "endpoint.Demographic.Timezone",
            "groupId": "",
            "traits": traits(),
            "userAgent": "",
        }

    return {
        "identify": {**common("identify"), "context": None, "traits": traits()},
        "group": {**common("group"), "context": None, "groupId": "", "traits": ""},
        "page": {
            **common("page"),
            "context": context(),
            "name": "attributes.title",
            "properties": page(),
        },
        "track": {
            **common("track"),
            "context": context(),
            "event": "event_type",
            "properties": ["attributes", "metrics"],
        },
    }


def overlay(
    mapping: Mapping[str, Mapping[str, Any]], over: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Lay `[transform.mapping.<type>]` over a mapping, deep.

    Args:
        mapping: a tree for each type of call.
        over: trees for some types of call. A dict on a dict is laid over it key by key; anything else replaces what it
            lies on, in its place; keys that are new come last.

    Raises:
        MappingError: `over` names a type of call that there isn't.
    """
    unknown = [name for name in over if name not in CALL_TYPES]
    if unknown:
        raise MappingError(
            f"transform.mapping.{unknown[0]}: there is no such call;"
            f" {_nearest(unknown[0], CALL_TYPES)}"
        )
    return cast("dict[str, dict[str, Any]]", _laid_over(mapping, over))


def _laid_over(under: Any, over: Any) -> Any:  # noqa: ANN401 - a tree's node is of any shape until it is parsed
    if not (isinstance(under, Mapping) and isinstance(over, Mapping)):
        return over
    laid = dict(under)
    for key, value in over.items():
        laid[key] = _laid_over(under[key], value) if key in under else value
    return laid


def group_tree(group: Mapping[str, Any], group_map: GroupMap, place: str) -> dict[str, Any]:
    """Lay a group map over the mapping of `group`, shallow.

    Args:
        group: the tree of `group`.
        group_map: `field` (or `groupId`), `traits` and other keys of a group call.
        place: where the map stands, for an error.

    Raises:
        MappingError: the map has no `field`, or one of the wrong kind.
    """
    if not isinstance(group_map, Mapping):
        raise MappingError(f"{place}: expected a dict with a field; found {shown(group_map)}")
    field = group_map.get("field", group_map.get("groupId"))
    if not isinstance(field, str) or not field:
        raise MappingError(
            f"{place}.field: expected the path of the group's id, such as"
            f' "endpoint.Attributes.Company.0"; found {shown(field)}'
        )
    each = group_map.get("each", False)
    if not isinstance(each, bool):
        raise MappingError(f"{place}.each: expected true or false; found {shown(each)}")
    over = {
        "groupId" if key == "field" else key: value
        for key, value in group_map.items()
        if key != "each"
    }
    return {**group, **over, "groupId": field}


# --- parsing -----------------------------------------------------------------------------------------------------


def parse(tree: Tree, place: str, callbacks: Mapping[str, Callback]) -> Node:
    """Turn a tree into nodes.

    Args:
        tree: a mapping tree, or a part of one.
        place: where it stands, for an error: `track.context`.
        callbacks: every callback that a leaf may name, beside those named `package.module:function`.

    Raises:
        MappingError: the tree breaks the grammar.
    """
    return _parse(tree, place, callbacks, 0)


def _parse(tree: Any, place: str, callbacks: Mapping[str, Callback], depth: int) -> Node:  # noqa: ANN401 - any shape
    if depth > _MAX_DEPTH:
        raise MappingError(
            f"{place[:200]}…: expected at most {_MAX_DEPTH} levels; found a deeper tree"
        )
    if tree is None:
        return Nothing()
    if isinstance(tree, str):
        return _parse_leaf(tree, place, callbacks)
    if isinstance(tree, Mapping):
        items = []
        for key, value in tree.items():
            if not isinstance(key, str):
                raise MappingError(f"{place}: expected keys that are text; found {shown(key)}")
            if not _is_utf8(key):
                raise MappingError(f"{place}: expected keys that UTF-8 can hold; found {key!a}")
            node = _parse(value, f"{place}.{key}", callbacks, depth + 1)
            if not isinstance(node, Nothing):
                items.append((key, node))
        return Branch(tuple(items)) if items else Nothing()
    if isinstance(tree, list | tuple):
        parts = []
        for number, value in enumerate(tree):
            there = f"{place}[{number}]"
            node = _parse(value, there, callbacks, depth + 1)
            if isinstance(node, Path | Branch):
                parts.append(node)
            elif not isinstance(node, Nothing):
                raise MappingError(f"{there}: expected a path or a dict; found {shown(value)}")
        return Merge(tuple(parts)) if parts else Nothing()
    raise MappingError(
        f"{place}: expected a path, a list of paths, a dict or nothing; found {shown(tree)}"
    )


def _parse_leaf(leaf: str, place: str, callbacks: Mapping[str, Callback]) -> Node:
    if not leaf:
        return Nothing()
    path, bar, name = leaf.rpartition("|")
    if not bar:
        path, name = leaf, ""
    if not _is_utf8(leaf):
        raise MappingError(f"{place}: expected text that UTF-8 can hold; found {leaf!a}")
    if name == "static":
        return Static(path)
    keys = tuple(path.split(".")) if path else ()
    if not bar:
        return Path(keys)
    if not name:
        raise MappingError(f"{place}: expected the name of a callback after the | of {leaf!r}")
    resolve_callback(name, place, callbacks)
    return Path(keys, name)


def resolve_callback(name: str, place: str, callbacks: Mapping[str, Callback]) -> Callback:
    """Find a callback by its name, or import it if the name is `package.module:function`.

    Args:
        name: as it stands behind the `|` of a leaf.
        place: where it stands, for an error.
        callbacks: those that have a name.

    Raises:
        MappingError: there is no such callback.
    """
    if name in callbacks:
        return callbacks[name]
    module_name, colon, function_name = name.partition(":")
    if not colon:
        raise MappingError(
            f"{place}: there is no callback {name!r}; {_nearest(name, [*callbacks, 'static'])}"
            " (one of your own: package.module:function, or a name given with hooks.register_callback)"
        )
    try:
        callback = getattr(import_module(module_name), function_name)
    except Exception as error:  # importing runs code of others, which may raise anything
        raise MappingError(
            f"{place}: the callback {name!r} can't be imported: {type(error).__name__}: {error}"
        ) from error
    if not callable(callback):
        raise MappingError(f"{place}: expected a function; {name!r} is {shown(callback)}")
    return cast("Callback", callback)


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(sorted(known))}"


def _is_utf8(characters: str) -> bool:
    """Say whether a text has no lone surrogates, which Python's JSON and escapes let in and orjson can't write."""
    try:
        characters.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(value: object) -> str:
    """Show a part of a mapping in an error, not too long."""
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:79]}…"


# --- values ------------------------------------------------------------------------------------------------------


def number_text(number: float) -> str:
    """Give a number as text: without a fraction when that is zero, so that `42.0`, as some senders write ids, is 42."""
    if isinstance(number, int) or (number.is_integer() and abs(number) < 2**53):
        return str(int(number))
    return repr(number)


def text(value: object) -> str | None:
    """Give what stands at a key that Segment takes only as text: see `TEXT_KEYS`.

    Args:
        value: any JSON value.

    Returns:
        a string as it is, a number's decimals, a list's first element; None for all else, and for an empty string.
    """
    if type(value) is list:
        value = value[0] if value else None
    if type(value) is str:
        return value or None
    if type(value) is int or type(value) is float:
        return number_text(value)
    return None


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_MILLISECOND = -62_135_596_800_000  # 0001-01-01T00:00:00.000Z, where Python's calendar begins
_LAST_MILLISECOND = (
    253_402_300_799_999  # 9999-12-31T23:59:59.999Z, where ISO 8601's four digits end
)
_MILLISECONDS = tuple(f"{millisecond:03d}Z" for millisecond in range(1000))


@lru_cache(
    maxsize=4096
)  # events come in order of time: formatting a second once instead of each time saves 1 µs
def _second(seconds: int) -> str:
    moment = _EPOCH + timedelta(seconds=seconds)
    return f"{moment.replace(tzinfo=None).isoformat()}."


def milliseconds_to_iso8601(milliseconds: object) -> str | None:
    """Give `2022-02-01T00:05:11.400Z` for milliseconds since 1970; None for what is no such number or after 9999."""
    if type(milliseconds) is not int:
        if type(milliseconds) is not float or not math.isfinite(milliseconds):
            return None
        milliseconds = math.floor(milliseconds)
    if not _FIRST_MILLISECOND <= milliseconds <= _LAST_MILLISECOND:
        return None
    return _second(milliseconds // 1000) + _MILLISECONDS[milliseconds % 1000]


def _strval(value: object) -> str:
    """Give a scalar as text: `true` is "1" and `false` is "", as in the language that the callbacks are named after."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "1" if value else ""
    if isinstance(value, int | float):
        return number_text(value)
    raise TypeError(f"expected text or a number, found {kind(value)}")


def _intval(value: object) -> int:
    number = _leading_number(value)
    if not math.isfinite(number):
        return 0
    return min(max(int(number), -(2**63)), 2**63 - 1)


def _floatval(value: object) -> float:
    return float(_leading_number(value))


_NUMBER = re.compile(
    r"\s*([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?)", re.ASCII
)
_INTEGER = re.compile(r"\s*([+-]?[0-9]{1,40})(?![0-9.eE])", re.ASCII)


def _leading_number(value: object) -> float:
    """Give the number that a text begins with, 0 if there is none; a number is itself."""
    if isinstance(value, int | float):
        return value
    if not isinstance(value, str):
        raise TypeError(f"expected text or a number, found {kind(value)}")
    whole = _INTEGER.match(value)
    if whole:
        return int(whole[1])
    number = _NUMBER.match(value)
    return float(number[1]) if number else 0


def _ucfirst(value: object) -> str:
    characters = _strval(value)
    return characters[:1].upper() + characters[1:]


def _json_encode(value: object) -> str:
    return orjson.dumps(value).decode()


def _md5(value: object) -> str:
    return hashlib.md5(_strval(value).encode(), usedforsecurity=False).hexdigest()


BUILTIN_CALLBACKS: Mapping[str, Callback] = {
    "ucfirst": _ucfirst,
    "strtolower": lambda value: _strval(value).lower(),
    "strtoupper": lambda value: _strval(value).upper(),
    "trim": lambda value: _strval(value).strip(" \t\n\r\0\x0b"),
    "strval": _strval,
    "intval": _intval,
    "floatval": _floatval,
    "md5": _md5,
    "json_encode": _json_encode,
    "milliseconds_to_iso8601": milliseconds_to_iso8601,
    "hash_event": lambda value: _md5(_json_encode(value)),
}
"""The callbacks that need no registering. They take scalars as text and raise TypeError for a list or an object,
but for `json_encode` and `hash_event` (the md5 of the value's JSON), which take everything."""


def kind(value: object) -> str:
    """Name what a JSON value is, with its article, for a sentence."""
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else "no JSON")
