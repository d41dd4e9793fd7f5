"""Compiles mapping trees to Python: one function makes all calls of a record.

An interpreter of the mapping would look at every leaf for every event. Here that is done once, at the start: the trees
become the source of a module, written for people too (`streamer transform --show-code`), in which a value is looked
up once however many leaves of the identify and the main call want it.

The functions of that module:

    page_calls, track_calls(event, timestamp_ms, key_hash, record_hash)  -> Formatted: identify, groups, page or track;
                                                                            or Filtered
    group_N_ids(event)                                                   -> the groupIds that group map N finds
    group_N(event, timestamp_ms, key_hash, record_hash, group_id, ...)   -> Contribution; the rest is made for identify

They raise `Rejected` for an event that can't become calls. `timestamp_ms` is Kafka's. `key_hash` is an empty hash,
keyed with a write key: what a mapped messageId is hashed with; `record_hash` is that of the record's bytes, made with
the same key. Nothing of a write key is in the functions, so they serve any number of them. What the trees guarantee (an
id is text, a branch is an object) isn't checked again; all else that Segment would throw away is, at the end of each
function.
"""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import orjson

from streamer.core.exclude import Exclusions, in_sample, without
from streamer.core.mapping import (
    BUILTIN_CALLBACKS,
    TEXT_KEYS,
    Branch,
    Callback,
    GroupMap,
    Merge,
    Node,
    Nothing,
    Path,
    Static,
    Without,
    default_mapping,
    group_tree,
    index_of,
    milliseconds_to_iso8601,
    parse,
    resolve_callback,
    shown,
    text,
)
from streamer.core.model import (
    CALL_TYPES,
    Contribution,
    Filtered,
    FilterReason,
    Fixed,
    Formatted,
    Reason,
    Reject,
)
from streamer.core.validate import (
    MAX_CALL_BYTES,
    is_iso8601,
    not_an_object,
    not_text,
    too_large,
    validate,
)
from streamer.errors import MappingError

if TYPE_CHECKING:
    from hashlib import blake2b

    from streamer.core.exclude import Drops


class UnusableTimeError(ValueError):
    """A callback can't make a time of what it was given; the text says what that is."""


class Rejected(Exception):  # noqa: N818 - no error: it carries an expected outcome out of generated code
    """The event can't become calls.

    Attributes:
        reject: why.
    """

    def __init__(self, reject: Reject) -> None:
        super().__init__(reject.detail)
        self.reject = reject


@dataclass(frozen=True, slots=True)
class Profile:
    """What a mapping is compiled for: calls as Segment should have them, or as the PHP integration sends them.

    Attributes:
        name: as `transform.profile` has it.
        mapping: gives the tree for each type of call.
        callbacks: every callback that needs no registering, by its name.
        mends: whether calls are made as Segment wants them: ids, groupId, event and name are text; each call has an id
            of its own and a time, if need be Kafka's; identify and group calls can merge; what Segment would throw away
            is rejected. Otherwise every key is what its leaf gives.
        functions: what generated functions call in place of this module's functions of these names.
        decode: decodes a record; raises ValueError for what isn't JSON.
        skips: says of a record that is JSON whether no call is made of it on purpose; None if that is never so.
    """

    name: str
    mapping: Callable[[], dict[str, dict[str, Any]]]
    callbacks: Mapping[str, Callback]
    mends: bool
    functions: Mapping[str, Callable[..., Any]]
    decode: Callable[[bytes], Any]
    skips: Callable[[Any], bool] | None


DEFAULT = Profile(
    name="default",
    mapping=default_mapping,
    callbacks=BUILTIN_CALLBACKS,
    mends=True,
    functions={},
    decode=orjson.loads,
    skips=None,
)
"""The profile that is meant for Segment."""


Change: TypeAlias = Callable[[dict[str, Any], str], dict[str, Any]]
"""Makes another tree of that of a type of call."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """The functions of a mapping: see this module's docstring for their arguments.

    Attributes:
        source: the Python they were made of.
        page_calls: makes the calls of a record whose main call is a page call.
        track_calls: makes those of any other record.
    """

    source: str
    page_calls: Callable[[dict[str, Any], int, blake2b, blake2b], Formatted | Filtered]
    track_calls: Callable[[dict[str, Any], int, blake2b, blake2b], Formatted | Filtered]


def compile_mapping(
    mapping: Mapping[str, Any],
    groups: Sequence[GroupMap],
    callbacks: Mapping[str, Callback],
    exclusions: Exclusions,
    profile: Profile = DEFAULT,
    *,
    checked: bool = True,
    change: Change | None = None,
) -> Compiled:
    """Compile a mapping.

    Args:
        mapping: the tree of each type of call.
        groups: the group maps, in order.
        callbacks: every callback by its name.
        exclusions: what isn't forwarded.
        profile: what the calls are made for.
        checked: whether what Segment would throw away is rejected, where the profile doesn't do so in any case.
        change: makes the tree that is compiled of the one that is there, for a type of call: for identify, page and
            track, and then for the group call of each group map.

    Raises:
        MappingError: a tree breaks the grammar, or can't make a call that Segment would keep.
    """
    if change is not None:
        mapping = {
            **mapping,
            **{
                name: change(deepcopy(mapping[name]), name)
                for name in ("identify", "page", "track")
            },
        }
    drops = exclusions.drops()
    trees = {
        name: _parse_call(
            mapping.get(name), name, f"transform.mapping.{name}", callbacks, drops, profile
        )
        for name in CALL_TYPES
    }
    module = _Module(trees, callbacks, profile)
    for number, group_map in enumerate(groups):
        place = f"groups[{number}]"
        group = group_tree(mapping["group"], group_map, place)
        if change is not None:
            group = change(deepcopy(group), "group")
        tree = _parse_call(group, "group", place, callbacks, drops, profile)
        each = profile.mends and bool(group_map.get("each"))
        field = str(group_map.get("field", group_map.get("groupId")))
        role = b"\0group\0%s\0%d" % (field.encode(), number)
        module.group(f"group_{number}", tree, role=role, each=each)
    for call_type in ("page", "track"):
        module.calls(call_type, len(groups), exclusions)

    source = module.source()
    namespace = {**_NAMESPACE, **profile.functions, **module.callbacks}
    if not checked and not profile.mends:
        namespace["validated"] = _json_of_call
    # What a mapping says stands in the source only as ASCII literals and in names made of [a-z0-9_].
    exec(compile(source, "<mapping>", "exec"), namespace)  # noqa: S102 - compiling is what this module is for
    return Compiled(
        source=source,
        page_calls=namespace["page_calls"],
        track_calls=namespace["track_calls"],
    )


def _parse_call(
    tree: object,
    call_type: str,
    place: str,
    callbacks: Mapping[str, Callback],
    drops: Drops,
    profile: Profile,
) -> dict[str, Node]:
    """Parse the tree of a call to a node for each key, less what is dropped, and hold it to what Segment must have."""
    if not isinstance(tree, Mapping):
        raise MappingError(f"{place}: expected the tree of a call, a dict; found {shown(tree)}")
    call = without(parse(tree, place, callbacks), drops)
    nodes = dict(call.items) if isinstance(call, Branch) else {}
    if nodes.get("type") != Static(call_type):
        raise MappingError(
            f"{place}.type: expected \"{call_type}|static\", since a call's type can't be mapped"
        )
    if not (_may_be_text(nodes.get("userId")) or _may_be_text(nodes.get("anonymousId"))):
        raise MappingError(f"{place}: expected a path at userId or at anonymousId; found neither")
    if call_type == "track" and not _may_be_text(nodes.get("event")):
        raise MappingError(
            f"{place}.event: expected the path of the event's name; found"
            f" {shown(tree['event']) if 'event' in nodes else 'nothing'}"
        )
    for key in _OBJECT_KEYS:
        if _is_text(nodes.get(key), callbacks, profile):
            raise MappingError(
                f"{place}.{key}: expected what gives an object: a dict, a list of paths, or a path"
                f" without a callback; found {shown(tree[key])}"
            )
    if not profile.mends:
        return nodes
    # These two are in every call. One that is mapped to nothing keeps its place, one that has none comes last.
    kept = {"timestamp", "messageId"}
    nothing = Nothing()
    return {
        **{key: nodes.get(key, nothing) for key in tree if key in nodes or key in kept},
        **dict.fromkeys(sorted(kept - tree.keys(), reverse=True), nothing),
    }


def _may_be_text(node: Node | None) -> bool:
    """Say whether a node can give what Segment takes where it wants text, of whatever event."""
    return isinstance(node, Path | Merge) or (isinstance(node, Static) and node.text != "")


def _is_text(node: Node | None, callbacks: Mapping[str, Callback], profile: Profile) -> bool:
    """Say whether what a node gives is never an object, of whatever event: the callbacks of a profile give none."""
    if isinstance(node, Without):
        node = node.node
    if isinstance(node, Path) and node.callback is not None:
        own = profile.callbacks.get(node.callback)
        return own is not None and callbacks[node.callback] is own
    return isinstance(node, Static)


# --- the writer --------------------------------------------------------------------------------------------------

_SHARED_KEYS = ("anonymousId", "timestamp", "receivedAt", "userId")
_OBJECT_KEYS = ("context", "integrations", "traits", "properties")
_VARIABLES = {
    "userId": "user_id",
    "anonymousId": "anonymous_id",
    "groupId": "group_id",
    "event": "event_name",
    "receivedAt": "received_at",
}


class _Module:
    """Writes the functions, one after the other."""

    def __init__(
        self,
        trees: Mapping[str, Mapping[str, Node]],
        callbacks: Mapping[str, Callback],
        profile: Profile,
    ) -> None:
        self._mends = profile.mends
        self.callbacks: dict[str, Callable[..., Any]] = {}
        self._trees = trees
        self._known_callbacks = callbacks
        self._callback_names: dict[str, str] = {}
        self._functions: list[_Function] = []
        # What stands at the top of identify, and of the other calls mostly too: made once for all of them.
        identify = trees["identify"]
        self._common = {key: identify[key] for key in _SHARED_KEYS if key in identify}

    def source(self) -> str:
        return "\n\n\n".join(function.text() for function in self._functions) + "\n"

    def calls(self, main_type: str, groups: int, exclusions: Exclusions) -> None:
        """Write what makes all calls of a record.

        Args:
            main_type: `page` or `track`: its main call.
            groups: how many group maps there are.
            exclusions: what isn't forwarded.
        """
        name = f"{main_type}_calls"
        function = self._function(name, ["event", "timestamp_ms", "key_hash", "record_hash"])
        function.line(f'"""Make the calls of a record whose main call is a {main_type} call."""')
        identify = self._trees["identify"]
        function.filters(main_type, identify, exclusions)
        self._contribution(function, "identify", identify, b"\0identify")
        function.line("contributions = (contribution,)")
        names = ", ".join(_VARIABLES.get(key, key) for key in self._common)
        for number in range(groups):
            function.line(f"for group_id in group_{number}_ids(event):")
            made = f"group_{number}(event, timestamp_ms, key_hash, record_hash, group_id, {names})"
            function.line(f"    contributions += ({made},)")

        tree = self._trees[main_type]
        self._share(function, tree)
        # Traits, which most mappings put into the context of the main call too: serialised once.
        traits = identify.get("traits")
        whole = traits.node if isinstance(traits, Without) else traits
        if self._mends and traits is not None and isinstance(whole, Merge | Branch):
            function.line("traits_fragment = Fragment(traits_json) if traits else None")
            function.fragments[traits] = "traits_fragment"
        for key, node in function.begin(main_type, tree):
            if self._mends and key == "messageId":
                function.id_hash(node, b"\0" + main_type.encode(), None)
                function.line("call['messageId'] = 's1-' + own_hash.hexdigest()")
            else:
                function.put(key, node)
        if self._mends:
            function.checks(main_type, tree)
        serialised = f"{'serialised' if self._mends else 'validated'}(call, {main_type!r})"
        function.line(f"return Formatted(contributions, {main_type!r}, {serialised})")

    def group(self, name: str, tree: Mapping[str, Node], *, role: bytes, each: bool) -> None:
        """Write what finds the groupIds of a group map, and what makes the call for one of them."""
        function = self._function(f"{name}_ids", ["event"])
        function.line('"""Find the ids of the groups that the event belongs to."""')
        found = function.value(tree["groupId"], "group_id")
        if each:
            function.line(f"return texts({found}, {_place(tree['groupId'])!a})")
        else:
            function.line(f"return {'first_text' if self._mends else 'group_ids'}({found})")

        common = [_VARIABLES.get(key, key) for key in self._common]
        arguments = ["event", "timestamp_ms", "key_hash", "record_hash", "group_id", *common]
        function = self._function(name, arguments)
        function.line('"""Make the group call."""')
        self._share(function, tree)
        function.made["groupId"] = "group_id"
        self._contribution(function, "group", tree, role, "group_id" if each else None)
        function.line("return contribution")

    def _share(self, function: _Function, tree: Mapping[str, Node]) -> None:
        """Begin another call with what was made for identify at the keys that are mapped alike."""
        function.made = {
            key: _VARIABLES.get(key, key)
            for key, node in self._common.items()
            if tree.get(key) == node
        }

    def _contribution(
        self,
        function: _Function,
        call_type: str,
        tree: Mapping[str, Node],
        role: bytes,
        element: str | None = None,
    ) -> None:
        """Write what makes an identify or a group call, as the variable `contribution`."""
        if not self._mends:
            for key, node in function.begin(call_type, tree):
                function.put(key, node)
            function.line(
                f"contribution = fixed(call, {call_type!r}, validated(call, {call_type!r}))"
            )
            return
        for key, node in function.begin(call_type, tree):
            if key == "messageId":
                function.id_hash(node, role, element)
                function.line("call['messageId'] = None  # until it is rendered")
            elif key == "traits":
                # The traits of a group are its own dict, even if they are those of identify: each is merged for itself.
                function.own_traits(node, call_type)
                function.made["traits"] = "traits"
                function.line("if traits:")
                function.line("    call['traits'] = None  # until it is rendered")
            else:
                function.put(key, node)
        if "traits" not in tree:
            function.line("traits, traits_json = {}, b'{}'")
        function.checks(call_type, tree)
        ids = [function.made.get(key) for key in ("userId", "anonymousId")]
        profile = " or ".join(filter(None, ids))
        pair = ", ".join(f"{one} or None" if one else "None" for one in ids)
        function.line("contribution = Contribution(")
        function.line(f"    {call_type!r},")
        function.line(f"    ({profile}, group_id)," if call_type == "group" else f"    {profile},")
        function.line(f"    ({pair}),")
        function.line("    call,")
        function.line("    traits,")
        function.line("    traits_json,")
        function.line("    own_hash,")
        function.line(")")
        function.measure(tree)

    def _function(self, name: str, parameters: Sequence[str]) -> _Function:
        function = _Function(name, parameters, self._callback, mends=self._mends)
        self._functions.append(function)
        return function

    def _callback(self, name: str) -> str:
        """Give the name that a callback has in the source."""
        if name not in self._callback_names:
            callback = resolve_callback(name, "mapping", self._known_callbacks)
            if callback is milliseconds_to_iso8601:
                # ours: gives text or None whatever it is given, and needs no guard
                self._callback_names[name] = "milliseconds_to_iso8601"
            else:
                # in capitals, which no variable has
                known = _unique(_identifier(name).upper(), {*_NAMESPACE, *self.callbacks})
                self._callback_names[name] = known
                self.callbacks[known] = _guarded(name, callback)
        return self._callback_names[name]


class _Function:
    """Writes one function, in which each value of the event is looked up once."""

    def __init__(
        self,
        name: str,
        parameters: Sequence[str],
        callback: Callable[[str], str],
        *,
        mends: bool,
    ) -> None:
        self._mends = mends
        self._callback = callback
        self._lines = [f"def {name}({', '.join(parameters)}):"]
        self._taken = {*_NAMESPACE, *_RESERVED, *_VARIABLES.values()}
        self._variables: dict[object, str] = {}
        # The variables that hold what `shared` or this function has made for a key at the top of the call, None or
        # empty if the key is left out; and those that hold the JSON of a node.
        self.made: dict[str, str] = {}
        self.fragments: dict[Node, str] = {}
        self._spliced: dict[Node, str] = {}

    def text(self) -> str:
        return "\n".join(self._lines)

    def line(self, line: str) -> None:
        self._lines.append(f"    {line}")

    def _comment(self, comment: str) -> None:
        """Write a comment, unless what a mapping put into it would be more than one."""
        if comment.isascii() and comment.isprintable():
            self.line(f"# {comment}")

    def _variable(self, *keys: str) -> str:
        """Give a new variable a name that tells where its value is from."""
        name = _unique(_identifier("_".join(keys)), self._taken)
        self._taken.add(name)
        return name

    # --- values

    def _path(self, keys: tuple[str, ...]) -> str:
        """Look up the value at a path, None if it is missing."""
        if not keys:
            return "event"
        if keys not in self._variables:
            *parents, key = keys
            index = index_of(key)
            name = self._variable(*keys[-2:])
            if index is None or not parents:
                self.line(f"{name} = {self._object(tuple(parents))}.get({key!a})")
            else:
                value = self._path(tuple(parents))
                found = f"item({name}, {index})"
                if index == 0:  # by far the most frequent one: a call saved
                    found = f"{name}[0] if type({name}) is list and {name} else {found}"
                self.line(f"{name} = {value}")
                self.line(f"if {name} is not None:")
                self.line(f"    {name} = {found}")
            self._variables[keys] = name
        return self._variables[keys]

    def _object(self, keys: tuple[str, ...]) -> str:
        """Look up the object at a path, an empty one if something else stands there."""
        if not keys:
            return "event"
        if ("object", keys) not in self._variables:
            value = self._path(keys)
            name = self._variable(*keys[-2:], "keys")
            self.line(f"{name} = {value} if type({value}) is dict else NO_KEYS")
            self._variables["object", keys] = name
        return self._variables["object", keys]

    def value(self, node: Node, *place: str) -> str:
        """Make a node's value: None if it is missing; for a merge or a branch, empty if it holds nothing.

        Args:
            node: what to make.
            place: where in the call it will stand: what a variable of its own is named after.
        """
        if isinstance(node, Nothing):
            return "None"
        if isinstance(node, Static):
            return ascii(node.text)
        return self.fragments.get(node) or self._in_python(node, *place)

    def _serialisable(self, node: Node, *place: str) -> str:
        """Make a node's value as `value` does, where it will only be serialised: a merge of two may be JSON already."""
        if (
            not self._mends
            or not isinstance(node, Merge)
            or len(node.parts) != 2
            or not all(isinstance(part, Path) for part in node.parts)
            or node in self.fragments
            or node in self._variables
        ):
            return self.value(node, *place)
        if node not in self._spliced:
            parts = [self._in_python(part) for part in node.parts]
            name = self._variable(*place)
            self.line(f"{name} = spliced({', '.join(parts)})")
            self._spliced[node] = name
        return self._spliced[node]

    def _in_python(self, node: Path | Merge | Branch | Without, *place: str) -> str:
        """Make a node's value as `value` does, but never as a piece of JSON."""
        if node not in self._variables:
            if isinstance(node, Path):
                self._variables[node] = self._path_value(node)
            elif isinstance(node, Merge):
                self._variables[node] = self._merge(node, *place)
            elif isinstance(node, Without):
                self._variables[node] = self._without(node, *place)
            else:
                self._variables[node] = self._branch(node, *place)
        return self._variables[node]

    def _path_value(self, path: Path) -> str:
        value = self._path(path.keys)
        if path.callback is None:
            return value
        callback = self._callback(path.callback)
        name = self._variable(*path.keys[-2:], path.callback)
        if callback == "milliseconds_to_iso8601":
            self.line(f"{name} = {callback}({value})")
        elif not path.keys:
            self.line(f"{name} = {callback}(event, 'the event')")
        else:
            self.line(f"{name} = None if {value} is None else {callback}({value}, {str(path)!a})")
        return name

    def _merge(self, merge: Merge, *place: str) -> str:
        parts = []
        for number, part in enumerate(merge.parts):
            value = self._in_python(part, *place, str(number))
            parts.append(value if isinstance(part, Path) else f"({value},)")
        name = self._variable(*place)
        self.line(f"{name} = merged({', '.join(parts)})")
        return name

    def _without(self, node: Without, *place: str) -> str:
        value = self._in_python(node.node, *place)
        name = self._variable(*place, "kept")
        self.line(f"{name} = kept({value}, {_literal(node.drops)})")
        return name

    def _branch(self, branch: Branch, *place: str) -> str:
        name = self._variable(*place)
        self._comment(".".join(place))
        texts = {}  # those that come first stand in the literal
        for key, node in branch.items:
            if not isinstance(node, Static):
                break
            texts[key] = node.text
        self.line(f"{name} = {{{', '.join(f'{key!a}: {text!a}' for key, text in texts.items())}}}")
        for key, node in branch.items[len(texts) :]:
            value = self._serialisable(node, *place, key)
            self._put(node, value, f"{name}[{key!a}]")
        return name

    def _put(self, node: Node, value: str, place: str) -> None:
        """Put a value in its place, unless it is left out."""
        if isinstance(node, Nothing):
            return
        if isinstance(node, Static) or (
            isinstance(node, Branch) and any(isinstance(item, Static) for _, item in node.items)
        ):
            self.line(f"{place} = {value}")
            return
        kept = value
        if isinstance(node, Without):
            node = node.node
        if isinstance(node, Path) and not self._is_time(node):  # empty text, 0 and false are kept
            kept = f"{value} or ({value} is not None and {value} not in EMPTY)"
        if isinstance(node, Path) and not self._mends:  # merged values are so already
            value = f"as_sent({value})"
        self.line(f"if {kept}:")
        self.line(f"    {place} = {value}")

    def _is_time(self, node: Node) -> bool:
        """Say whether a node gives a time as text, or None, whatever stands in the event."""
        return (
            isinstance(node, Path)
            and node.callback is not None
            and self._callback(node.callback) == "milliseconds_to_iso8601"
        )

    # --- what isn't forwarded

    def filters(self, main_type: str, identify: Mapping[str, Node], exclusions: Exclusions) -> None:
        """Give a record back of which no calls are to be made, as far as that is set for records of this kind."""

        def concerned(event_types: Iterable[str]) -> list[str]:
            return sorted(
                name for name in event_types if (name == "pageView") is (main_type == "page")
            )

        events, sample = concerned(exclusions.events), concerned(exclusions.sample)
        if not events and not sample:
            return
        event_type = self._path(("event_type",))
        if events:
            self.line(f"if type({event_type}) is str and {event_type} in {{{_listed(events)}}}:")
            self.line("    return DROPPED_EVENT")
        if sample:
            ids = [
                self.make(key, identify[key])
                for key in ("userId", "anonymousId")
                if key in identify
            ]
            user = " or ".join(ids if self._mends else (f"text({one})" for one in ids))
            shares = ", ".join(f"{name!a}: {exclusions.sample[name]!r}" for name in sample)
            self.line(
                f"if type({event_type}) is str and {event_type} in {{{_listed(sample)}}} and ({user}):"
            )
            self.line(f"    if not in_sample({event_type}, {user}, {{{shares}}}[{event_type}]):")
            self.line("        return SAMPLED_OUT")

    # --- what stands at the top of a call

    def make(self, key: str, node: Node) -> str:
        """Make what stands at a key, and give the variable that holds it: None or empty if the key is left out."""
        if key not in self.made:
            is_text = key in TEXT_KEYS or key in _SHARED_KEYS
            make = self.value if is_text else self._serialisable
            value = make(node, _VARIABLES.get(key, key))
            if not self._mends:
                name = value
                if key in _SHARED_KEYS:  # the functions of group maps are given it by this name
                    name = self._at_top(key)
                    self.line(f"{name} = {value}")
            elif key in TEXT_KEYS:
                name = self._at_top(key)
                if isinstance(node, Path):
                    value = f"{value} if {value} is None or type({value}) is str else text({value})"
                elif not isinstance(node, Static):
                    value = f"text({value})"
                self.line(f"{name} = {value}")
            elif key == "timestamp":
                name = self._at_top(key)
                if isinstance(node, Nothing):
                    self.line(f"{name} = kafka_time(timestamp_ms)")
                else:
                    is_time = self._is_time(node)
                    self.line(f"{name} = {value if is_time else f'mapped_time({value})'}")
                    self.line(f"if not {name}:")
                    self.line(f"    {name} = kafka_time(timestamp_ms)")
            elif key in _SHARED_KEYS:
                name = self._at_top(key)
                self.line(f"{name} = {value}")
            else:
                name = value
            self.made[key] = name
        return self.made[key]

    @staticmethod
    def _at_top(key: str) -> str:
        return _VARIABLES.get(key, key)

    def begin(self, call_type: str, tree: Mapping[str, Node]) -> Iterator[tuple[str, Node]]:
        """Begin a call, with its type if that comes first, and give what is still to be put into it."""
        self._comment(call_type)
        (key, node), *rest = tree.items()
        if key == "type" and isinstance(node, Static):
            self.line(f"call = {{'type': {node.text!a}}}")
            yield from rest
        else:
            self.line("call = {}")
            yield from tree.items()

    def put(self, key: str, node: Node) -> None:
        """Make what stands at a key and put it into the call."""
        name = self.make(key, node)
        if not self._mends:
            self._put(node, name, f"call[{key!a}]")
        elif key == "timestamp":
            self.line(f"call['timestamp'] = {name}")
        elif key in TEXT_KEYS:
            self.line(f"if {name}:")
            self.line(f"    call[{key!a}] = {name}")
        else:
            self._put(node, name, f"call[{key!a}]")

    def own_traits(self, node: Node, call_type: str) -> None:
        """Make the traits of a contribution, a dict that nothing else holds since it will be merged, and their JSON."""
        is_fresh = isinstance(node, Merge | Branch) and node not in self._variables
        if isinstance(node, Merge) and all(isinstance(part, Path) for part in node.parts):
            parts = ", ".join(self._in_python(part) for part in node.parts)
            self.line(f"traits, traits_json = merged_traits({call_type!r}, {parts})")
            return
        value = self.value(node, "own_traits")
        if is_fresh:
            del self._variables[node]  # who wants the same once more makes another
        self.line(f"traits = {value if is_fresh else f'copied({value})'}")
        self.line(f"traits_json = json_of(traits, {call_type!r}) if traits else b'{{}}'")

    def id_hash(self, node: Node, role: bytes, element: str | None) -> None:
        """Make the hash of the call's id: of the record, or of what is mapped to messageId, and of the role."""
        if isinstance(node, Nothing):
            self.line("own_hash = record_hash.copy()")
        else:
            value = self.value(node, "message_id")
            self.line(f"own_hash = hash_of({value}, key_hash, record_hash)")
        self.line(f"own_hash.update({role!r})")
        if element is not None:
            self.line(f"own_hash.update(b'\\0' + {element}.encode())")

    def checks(self, call_type: str, tree: Mapping[str, Node]) -> None:
        """Reject what Segment would throw away, as far as the tree doesn't rule it out."""
        places = [(self.made[key], tree[key]) for key in ("userId", "anonymousId") if key in tree]
        found = " or ".join(name for name, _ in places)
        where = " nor ".join(_place(node) for _, node in places)
        self._comment("what Segment would throw away")
        self._reject(
            f"not ({found})",
            Reason.NO_IDENTITY,
            f"There is no id: neither text nor a number at {where}.",
        )
        if isinstance(tree["timestamp"], Nothing):
            detail = "The record's own Kafka timestamp is no usable one."
        else:
            detail = f"There is no usable time at {_place(tree['timestamp'])}, nor is Kafka's timestamp one."
        self._reject("timestamp is None", Reason.BAD_TIMESTAMP, detail)
        if call_type == "track":
            detail = f"There is no name for the event: no text at {_place(tree['event'])}."
            self._reject("not event_name", Reason.NO_EVENT_TYPE, detail)
        for key in ("previousId", "category"):
            if key in tree:
                wrong = f"type(call[{key!r}]) is not str"
                if key == "previousId":
                    wrong = f"({wrong} or not call[{key!r}])"
                self.line(f"if {key!r} in call and {wrong}:")
                self.line(f"    raise Rejected(not_text({call_type!r}, {key!r}, call[{key!r}]))")
        for key in _OBJECT_KEYS:
            node = tree.get(key)
            if node is None or isinstance(node, Branch) or node in self.fragments:
                continue  # what is spliced is the traits of identify, which are objects if we get here
            name = self.made[key]
            wrong = f"type({name}) is not dict"
            if node in self._spliced:
                wrong = f"type({name}) not in OBJECTS"
            if key != "traits" or call_type not in {"identify", "group"}:
                wrong = f"{key!r} in call and {wrong}"
            self.line(f"if {wrong}:")
            self.line(f"    raise Rejected(not_an_object({call_type!r}, {key!r}, {name}))")

    def measure(self, tree: Mapping[str, Node]) -> None:
        """Hold a contribution to Segment's limit, without serialising it if it is surely short."""
        fixed, texts = 0, []
        for key, node in tree.items():
            fixed += 6 * len(key) + 8
            if key in TEXT_KEYS:
                texts.append(f"len({self.made[key]} or '')")
            elif isinstance(node, Static):
                fixed += 6 * len(node.text)
            elif key == "messageId" or self._is_time(node):
                fixed += 64
            elif key != "traits":
                texts = []
                break
        if texts:
            self.line("# a character is six bytes of JSON at most")
            rest = MAX_CALL_BYTES - fixed
            self.line(f"if len(traits_json) + 6 * ({' + '.join(texts)}) > {rest}:")
            self.line("    measured(contribution)")
        else:
            self.line("measured(contribution)")

    def _reject(self, condition: str, reason: Reason, detail: str) -> None:
        self.line(f"if {condition}:")
        self.line("    raise Rejected(")
        self.line(f"        Reject(Reason.{reason.name}, {detail!a})")
        self.line("    )")


def _place(node: Node) -> str:
    """Say where in the event a node's value comes from."""
    if isinstance(node, Merge):
        return ", ".join(_place(part) for part in node.parts)
    if isinstance(node, Branch):
        return ", ".join(_place(item) for _, item in node.items)
    return str(node) if isinstance(node, Path) else "the mapping"


def _literal(drops: tuple[tuple[str, Any], ...]) -> str:
    return f"{{{', '.join(f'{key!a}: {_literal(below)}' for key, below in drops)}}}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(ascii, names))


def _identifier(name: str) -> str:
    identifier = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:60] or "value"
    return (
        f"_{identifier}" if identifier[0].isdigit() or keyword.iskeyword(identifier) else identifier
    )


def _unique(name: str, taken: set[str] | Mapping[str, Any]) -> str:
    number = 2
    unique = name
    while unique in taken:
        unique = f"{name}_{number}"
        number += 1
    return unique


# --- what the generated functions call ---------------------------------------------------------------------------

_SCALARS = frozenset({str, int, float, bool})


def _item(value: Any, index: int) -> Any:  # noqa: ANN401 - any JSON value
    """Give the element of a list, the value at a key of digits, or for index 0 a scalar itself."""
    if type(value) is list:
        return value[index] if index < len(value) else None
    if type(value) is dict:
        return value.get(str(index))
    return value if index == 0 else None


def _merged(*parts: Any) -> dict[str, Any] | list[Any]:  # noqa: ANN401 - any JSON value
    """Lay objects over one another; if there are none, append the lists; scalars are left out.

    What is found at a path is flattened: a list or object in it gives way to its first element, and what is empty goes.
    A branch of the mapping, which comes as a tuple of one, gives its keys as they are.
    """
    merged: dict[str, Any] = {}
    for part in parts:
        if type(part) is dict:
            if _SCALARS.issuperset(map(type, part.values())):
                merged.update(part)
                continue
            for key, element in part.items():
                first = element
                if type(element) is list:
                    first = element[0] if element else None
                elif type(element) is dict:
                    first = next(iter(element.values())) if element else None
                if first or (first is not None and first not in _EMPTY):
                    merged[key] = first
        elif type(part) is tuple:
            merged.update(part[0])
    if merged:
        return merged
    return [element for part in parts if type(part) is list for element in part] or merged


def _merged_traits(call_type: str, *parts: Any) -> tuple[Any, bytes]:  # noqa: ANN401 - any JSON value
    """Merge as `_merged` does, and give the JSON too.

    In the JSON one look tells whether there was more to flatten than lists of scalars, as there hardly ever is. A value
    that a later part has replaced isn't seen there, so the parts must have no key in common.
    """
    merged: dict[str, Any] = {}
    keys = 0
    for part in parts:
        if type(part) is dict:
            keys += len(part)
            merged.update(
                {
                    key: element[0] if type(element) is list and element else element
                    for key, element in part.items()
                }
            )
        elif part is not None:
            break
    else:
        try:
            traits_json = orjson.dumps(merged)
        except TypeError:  # too deep, perhaps only where it is flattened
            keys = -1
        if len(merged) == keys and _is_flat(traits_json):
            return merged, traits_json
    traits = _merged(*parts)
    return traits, _json_of(traits, call_type) if traits else b"{}"


def _spliced(first: Any, second: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Merge two as `_merged` does, for what is only serialised: their JSON is spliced, if they hold scalars alone."""
    if type(first) is dict and type(second) is dict and first.keys().isdisjoint(second):
        if not first or not second:
            return _merged(first, second)
        try:
            left, right = orjson.dumps(first), orjson.dumps(second)
        except TypeError:  # too deep, which is said when the call is serialised
            return _merged(first, second)
        if _is_flat(left) and _is_flat(right):
            return orjson.Fragment(left[:-1] + b"," + right[1:])
    return _merged(first, second)


def _is_flat(json_object: bytes) -> bool:
    """Say whether an object surely holds scalars alone. Texts that look like more make it False."""
    return (
        json_object.find(b"[") < 0 and json_object.find(b"{", 1) < 0 and b"null" not in json_object
    )


def _kept(value: Any, drops: Drops) -> Any:  # noqa: ANN401 - any JSON value
    """Give an object less what is dropped; an object in it that this leaves empty goes with it."""
    if type(value) is not dict or drops.keys().isdisjoint(value):
        return value
    kept = dict(value)
    for key, below in drops.items():
        if not below:
            kept.pop(key, None)
        elif key in kept:
            rest = _kept(kept[key], below)
            if rest or rest is kept[key]:
                kept[key] = rest
            else:
                del kept[key]
    return kept


def _copied(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Give traits that were taken whole from the event as a dict of their own, empty for nothing."""
    if value is None or value in _EMPTY:
        return {}
    return dict(value) if type(value) is dict else value


def _first_text(value: object) -> tuple[str, ...]:
    found = text(value)
    return (found,) if found else ()


_MAX_GROUPS = 1000
"""So many groups may one record name at one place: a call is made for each, and a record can have very many."""


def _texts(value: object, place: str) -> Sequence[str]:
    """Give each element as text, once."""
    elements = value if type(value) is list else [value]
    texts = list(
        dict.fromkeys(
            found for element in elements if type(element) is not list and (found := text(element))
        )
    )
    if len(texts) > _MAX_GROUPS:
        detail = f"There are {len(texts):,} groups at {place}; a record may name {_MAX_GROUPS:,}."
        raise Rejected(Reject(Reason.INVALID_CALL, detail))
    return texts


def _kafka_time(timestamp_ms: int) -> str | None:
    """Give Kafka's timestamp, which is -1 if there is none."""
    return milliseconds_to_iso8601(timestamp_ms) if timestamp_ms >= 0 else None


def _mapped_time(value: object) -> str | None:
    """Give a time that is mapped as text, if it is one that Segment takes: ISO-8601."""
    return value if isinstance(value, str) and is_iso8601(value) else None


def _hash_of(mapped: object, key_hash: blake2b, record_hash: blake2b) -> blake2b:
    """Begin the hash of an id: with what is mapped to messageId, or with the record if that is no text.

    Text with a NUL is not taken, because the NUL is what ends it in the hash: with one more, somebody who chooses ids
    could make those of two calls collide.
    """
    mapped_text = text(mapped)
    if mapped_text is None or "\0" in mapped_text:
        return record_hash.copy()
    mapped_hash = key_hash.copy()
    mapped_hash.update(mapped_text.encode())
    return mapped_hash


def _json_of(traits: Any, call_type: str) -> bytes:  # noqa: ANN401 - any JSON value
    """Serialise the traits of a call."""
    try:
        return orjson.dumps(traits)
    except TypeError:
        raise Rejected(_too_deep(call_type)) from None


def _serialised(call: dict[str, Any], call_type: str) -> bytes:
    """Serialise a call, and hold it to Segment's limit."""
    try:
        serialised = orjson.dumps(call)
    except TypeError:
        raise Rejected(_too_deep(call_type)) from None
    if len(serialised) > MAX_CALL_BYTES:
        raise Rejected(too_large(call, len(serialised)))
    return serialised


def _json_of_call(call: dict[str, Any], call_type: str) -> bytes:
    """Serialise a call whatever Segment thinks of it."""
    try:
        return orjson.dumps(call)
    except TypeError:
        raise Rejected(_too_deep(call_type)) from None


def _validated(call: dict[str, Any], call_type: str) -> bytes:
    """Serialise a call of which nothing is known but its type, and reject what Segment would throw away."""
    serialised = _json_of_call(call, call_type)
    reject = validate(call, len(serialised))
    if reject is not None:
        raise Rejected(reject)
    return serialised


def _measured(contribution: Contribution) -> None:
    """Hold a contribution to Segment's limit."""
    try:
        size = len(contribution.render())
    except TypeError:
        raise Rejected(_too_deep(contribution.type)) from None
    if size > MAX_CALL_BYTES:
        raise Rejected(too_large(contribution.call, size))


def _too_deep(call_type: str) -> Reject:
    # All values are JSON's own: only their depth can be wrong, of which orjson takes 254.
    detail = f"The {call_type} call is nested too deeply: over 250 levels."
    return Reject(Reason.INVALID_CALL, detail)


def _guarded(name: str, callback: Callback) -> Callable[[Any, str], Any]:
    """Wrap a callback so that whatever it does ends in a JSON value or in a rejected record."""

    def guarded(value: Any, place: str) -> Any:  # noqa: ANN401 - any JSON value
        try:
            return as_json(callback(value))
        except UnusableTimeError as error:
            detail = f"There is no usable time at {place}: found {error}."
            raise Rejected(Reject(Reason.BAD_TIMESTAMP, detail)) from None
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - code of others may raise anything, and exit
            detail = f"The callback {name} failed on {place}: {_said(error)}."
            raise Rejected(Reject(Reason.CALLBACK_FAILED, detail)) from None

    return guarded


def _said(error: BaseException) -> str:
    """Give an exception's name and text, on one line and not too long, as UTF-8 can hold it."""
    try:
        said = " ".join(str(error).split())[:200]
    except Exception:  # noqa: BLE001 - an exception of others may fail to say what it is
        said = "it can't say why"
    name = type(error).__name__
    return f"{name}: {said}".encode(errors="replace").decode() if said else name


def as_json(value: Any) -> Any:  # noqa: ANN401 - any value, for all we know
    """Give a value of JSON's own types, sharing nothing that can change with what the callback holds.

    Raises:
        TypeError: JSON can't hold it.
        ValueError: it is a number or text that JSON can't hold.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        value.encode()  # a lone surrogate is a ValueError
        return str.__str__(value)
    if isinstance(value, int):
        return int(value) if -(2**63) <= value < 2**64 else _finite(float(value))
    if isinstance(value, float):
        return _finite(float(value))
    if isinstance(value, list | tuple):
        return [as_json(element) for element in value]
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("a key is not text")
        return {as_json(key): as_json(element) for key, element in value.items()}
    raise TypeError(f"JSON can't hold {type(value).__name__}")


def _finite(number: float) -> float:
    if not math.isfinite(number):
        raise ValueError(f"JSON can't hold {number}")
    return number


_EMPTY: tuple[Any, ...] = ([], {})
_OBJECTS = frozenset({dict, orjson.Fragment})

_NAMESPACE: dict[str, Any] = {
    "Contribution": Contribution,
    "DROPPED_EVENT": Filtered(FilterReason.DROPPED_EVENT),
    "EMPTY": _EMPTY,
    "Formatted": Formatted,
    "Fragment": orjson.Fragment,
    "NO_KEYS": {},
    "OBJECTS": _OBJECTS,
    "Reason": Reason,
    "Reject": Reject,
    "Rejected": Rejected,
    "SAMPLED_OUT": Filtered(FilterReason.SAMPLED_OUT),
    "copied": _copied,
    "first_text": _first_text,
    "fixed": Fixed,
    "hash_of": _hash_of,
    "in_sample": in_sample,
    "item": _item,
    "json_of": _json_of,
    "kafka_time": _kafka_time,
    "kept": _kept,
    "mapped_time": _mapped_time,
    "measured": _measured,
    "merged_traits": _merged_traits,
    "merged": _merged,
    "milliseconds_to_iso8601": milliseconds_to_iso8601,
    "not_an_object": not_an_object,
    "not_text": not_text,
    "serialised": _serialised,
    "spliced": _spliced,
    "text": text,
    "texts": _texts,
    "validated": _validated,
}

# Names that a generated function uses itself, besides those of Python.
_RESERVED = {
    *("event", "timestamp_ms", "record_hash", "key_hash", "own_hash", "call"),
    *(
        "contribution",
        "contributions",
        "name",
        "timestamp",
        "traits",
        "traits_json",
        "traits_fragment",
    ),
    *("dict", "len", "list", "str", "type"),
}
