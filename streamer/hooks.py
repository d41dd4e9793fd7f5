"""The filters and actions that site code registers, under the names that the PHP integration gives them.

A filter changes what it is given and returns it; an action is told what has happened. Site code is a module that the
setting `plugins` names, or one that is installed with an entry point in the group `streamer.plugins`:

    from streamer import hooks

    hooks.register_segment_group_field("endpoint.Attributes.AudienceId.0")

    @hooks.filter("altis.analytics.segment.mapping")
    def add_ip(mapping, type):
        if type in ("page", "track"):
            mapping["context"]["ip"] = "attributes.ip"
        return mapping

Handlers are plain functions or `async` ones. docs/hooks.md has every hook with an example.
"""

from __future__ import annotations

import copy
import difflib
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, overload

from streamer.core.model import Response

if TYPE_CHECKING:
    from streamer.core.mapping import Tree

__all__ = [
    "Hooks",
    "Response",
    "action",
    "filter",
    "register_callback",
    "register_segment_group_field",
    "register_segment_group_map",
    "registered",
    "remove_action",
    "remove_filter",
]

API_WRITE_KEY: Literal["altis.analytics.segment.api_write_key"] = (
    "altis.analytics.segment.api_write_key"
)
MAPPING: Literal["altis.analytics.segment.mapping"] = "altis.analytics.segment.mapping"
GROUPS: Literal["altis.analytics.segment.groups"] = "altis.analytics.segment.groups"
FORMATTED_DATA: Literal["altis.analytics.segment.formatted_data"] = (
    "altis.analytics.segment.formatted_data"
)
REQUEST_SUCCESS: Literal["altis.analytics.segment.request_success"] = (
    "altis.analytics.segment.request_success"
)
REQUEST_FAILURE: Literal["altis.analytics.segment.request_failure"] = (
    "altis.analytics.segment.request_failure"
)
AFTER_SEND: Literal["altis.analytics.segment.after_send"] = "altis.analytics.segment.after_send"

FILTERS: Mapping[str, tuple[str, ...]] = {
    API_WRITE_KEY: ("key", "event"),
    MAPPING: ("mapping", "type"),
    GROUPS: ("groups",),
    FORMATTED_DATA: ("data",),
}
"""Every filter, with what its handlers are called with; the first is what they return."""

ACTIONS: Mapping[str, tuple[str, ...]] = {
    REQUEST_SUCCESS: ("response", "batch"),
    REQUEST_FAILURE: ("response", "batch"),
    AFTER_SEND: ("results", "batches", "events"),
}
"""Every action, with what its handlers are called with."""

_OLDER_SPELLINGS = {"altis.analytic.segment.api_write_key": API_WRITE_KEY}

Event: TypeAlias = dict[str, Any]
"""One event of Altis Analytics, as its JSON says."""

Call: TypeAlias = dict[str, Any]
"""One Segment call, as it is sent: `type`, `userId`, `anonymousId`, `messageId`, `timestamp`, …"""

MappingTree: TypeAlias = dict[str, Any]
"""The mapping of one type of call: see docs/mapping.md."""

GroupMap: TypeAlias = dict[str, Any]
"""`field`, `traits`, and further keys of a group call: see `register_segment_group_field`."""

Handler: TypeAlias = Callable[..., Any]
"""Any handler of any hook."""

_T = TypeVar("_T")
_MaybeAwaitable: TypeAlias = _T | Awaitable[_T]

_ApiWriteKey = TypeVar("_ApiWriteKey", bound=Callable[[str, Event], _MaybeAwaitable[str]])
_Mapping = TypeVar("_Mapping", bound=Callable[[MappingTree, str], _MaybeAwaitable[MappingTree]])
_Groups = TypeVar("_Groups", bound=Callable[[list[GroupMap]], _MaybeAwaitable[list[GroupMap]]])
_FormattedData = TypeVar(
    "_FormattedData", bound=Callable[[list[list[Call]]], _MaybeAwaitable[list[list[Call]]]]
)
_Success = TypeVar("_Success", bound=Callable[[Response, list[Call]], _MaybeAwaitable[object]])
_Failure = TypeVar(
    "_Failure", bound=Callable[[Response | Exception, list[Call]], _MaybeAwaitable[object]]
)
_AfterSend = TypeVar(
    "_AfterSend",
    bound=Callable[
        [list[Response | Exception], list[list[Call]], list[list[Call]]], _MaybeAwaitable[object]
    ],
)


@dataclass(frozen=True, slots=True)
class _Registered:
    handler: Handler
    priority: int


class Hooks:
    """What site code has registered.

    A process has one, whose methods are this module's functions; tests make their own.
    """

    def __init__(self) -> None:
        self._handlers: dict[str, list[_Registered]] = {}
        self._groups: list[GroupMap] = []
        self._callbacks: dict[str, Callable[[Any], Any]] = {}

    # --- for site code

    @overload
    def filter(
        self,
        name: Literal[
            "altis.analytics.segment.api_write_key", "altis.analytic.segment.api_write_key"
        ],
        *,
        priority: int = 10,
    ) -> Callable[[_ApiWriteKey], _ApiWriteKey]: ...
    @overload
    def filter(
        self, name: Literal["altis.analytics.segment.mapping"], *, priority: int = 10
    ) -> Callable[[_Mapping], _Mapping]: ...
    @overload
    def filter(
        self, name: Literal["altis.analytics.segment.groups"], *, priority: int = 10
    ) -> Callable[[_Groups], _Groups]: ...
    @overload
    def filter(
        self, name: Literal["altis.analytics.segment.formatted_data"], *, priority: int = 10
    ) -> Callable[[_FormattedData], _FormattedData]: ...
    def filter(self, name: str, *, priority: int = 10) -> Callable[[Any], Any]:
        """Register a handler of a filter, as a decorator.

        Args:
            name: of the filter; one of `FILTERS`.
            priority: handlers with a lower one run first; of equal ones the one that was registered first.

        Raises:
            ValueError: there is no such filter.
            TypeError: the handler can't be called with what the filter gives.
        """
        return self._adder("filter", FILTERS, name, priority)

    @overload
    def action(
        self, name: Literal["altis.analytics.segment.request_success"], *, priority: int = 10
    ) -> Callable[[_Success], _Success]: ...
    @overload
    def action(
        self, name: Literal["altis.analytics.segment.request_failure"], *, priority: int = 10
    ) -> Callable[[_Failure], _Failure]: ...
    @overload
    def action(
        self, name: Literal["altis.analytics.segment.after_send"], *, priority: int = 10
    ) -> Callable[[_AfterSend], _AfterSend]: ...
    def action(self, name: str, *, priority: int = 10) -> Callable[[Any], Any]:
        """Register a handler of an action, as a decorator.

        Args:
            name: of the action; one of `ACTIONS`.
            priority: handlers with a lower one run first; of equal ones the one that was registered first.

        Raises:
            ValueError: there is no such action.
            TypeError: the handler can't be called with what the action gives.
        """
        return self._adder("action", ACTIONS, name, priority)

    def remove_filter(self, name: str, handler: Handler) -> bool:
        """Take a handler of a filter away; what is compiled or under way already stays as it is.

        Args:
            name: of the filter.
            handler: the function that was registered.

        Returns:
            Whether it was there.

        Raises:
            ValueError: there is no such filter.
        """
        return self._remove(_known("filter", FILTERS, name), handler)

    def remove_action(self, name: str, handler: Handler) -> bool:
        """Take a handler of an action away.

        Args:
            name: of the action.
            handler: the function that was registered.

        Returns:
            Whether it was there.

        Raises:
            ValueError: there is no such action.
        """
        return self._remove(_known("action", ACTIONS, name), handler)

    def register_segment_group_field(
        self, field: str, traits: Tree = None, *, each: bool = False
    ) -> None:
        """Have a group call made for every event that has a value at a path.

        Args:
            field: the path of the groupId, such as `endpoint.Attributes.AudienceId.0`.
            traits: the mapping of the group's traits; any tree. None for no traits.
            each: whether a list at `field` makes a call for each of its elements.

        Raises:
            TypeError: the field is no text, or an empty one.
        """
        _check_field(field)
        group: GroupMap = {"field": field}
        if traits is not None:
            group["traits"] = copy.deepcopy(traits)
        if each:
            group["each"] = True
        self._groups.append(group)

    @overload
    def register_segment_group_map(self, group_map: Mapping[str, Any], /) -> None: ...
    @overload
    def register_segment_group_map(self, field: str, traits: Tree = None, /) -> None: ...
    def register_segment_group_map(
        self, map_or_field: Mapping[str, Any] | str, traits: Tree = None, /
    ) -> None:
        """Have a group call made for every event, from a whole group map.

        Args:
            map_or_field: `field` (or `groupId`), `traits`, `each`, and further keys that are laid over the mapping of
                group calls; or the two arguments of `register_segment_group_field`.
            traits: with a field.

        Raises:
            TypeError: the map has no field, or traits stand beside a whole map.
        """
        if isinstance(map_or_field, str):
            self.register_segment_group_field(map_or_field, traits)
            return
        if not isinstance(map_or_field, Mapping):
            raise TypeError(
                f"a group map is a dict with a field, or a path as text; found {map_or_field!r}"
            )
        if traits is not None:
            raise TypeError("the traits of a whole group map stand in it, under 'traits'")
        _check_field(
            map_or_field.get("field", map_or_field.get("groupId")), f" in {dict(map_or_field)}"
        )
        self._groups.append(copy.deepcopy(dict(map_or_field)))

    def register_callback(self, name: str, callback: Callable[[Any], Any]) -> None:
        """Give a function a name that a mapping can use: `"attributes.plan|plan_name"`.

        Args:
            name: as it stands behind the `|`. A built-in callback of this name is replaced.
            callback: takes the value, which it must not change, and gives what stands in its place: values of JSON.

        Raises:
            ValueError: the name can't stand there.
            TypeError: the callback can't be called.
        """
        if not name or name == "static" or not {*name}.isdisjoint("|:"):
            raise ValueError(
                f"the name of a callback has no | and no :, and isn't 'static'; found {name!r}"
            )
        if not callable(callback):
            raise TypeError(f"the callback {name!r} can't be called: {callback!r}")
        self._callbacks[name] = callback

    # --- for streamer itself

    def handlers(self, name: str) -> list[Handler]:
        """Give the handlers of a hook, in the order in which they run."""
        return [one.handler for one in self._handlers.get(name, ())]

    @property
    def groups(self) -> list[GroupMap]:
        """The group maps that were registered, as copies."""
        return copy.deepcopy(self._groups)

    @property
    def callbacks(self) -> dict[str, Callable[[Any], Any]]:
        """The callbacks that were registered, by name."""
        return dict(self._callbacks)

    def names(self) -> list[str]:
        """Give the hooks that have handlers."""
        return [name for name in (*FILTERS, *ACTIONS) if self._handlers.get(name)]

    def _adder(
        self, kind: str, hooks: Mapping[str, Sequence[str]], name: str, priority: int
    ) -> Callable[[Handler], Handler]:
        if not isinstance(name, str):
            example = next(iter(hooks))
            raise TypeError(f'hooks.{kind} takes the name of a hook: @hooks.{kind}("{example}")')
        if not isinstance(priority, int):
            raise TypeError(f"{name}: a priority is a whole number; found {priority!r}")
        known = _known(kind, hooks, name)

        def add(handler: Handler) -> Handler:
            _check_signature(known, hooks[known], handler)
            handlers = [*self._handlers.get(known, ()), _Registered(handler, priority)]
            # Another list, not the old one sorted: a chunk on its way must not find it empty.
            self._handlers[known] = sorted(handlers, key=lambda one: one.priority)
            return handler

        return add

    def _remove(self, name: str, handler: Handler) -> bool:
        handlers = self._handlers.get(name, [])
        kept = [one for one in handlers if one.handler is not handler and one.handler != handler]
        self._handlers[name] = kept
        return len(kept) < len(handlers)


def handler_name(handler: Handler) -> str:
    """Name a handler for a person: its module and its name there, never what it holds."""
    while isinstance(handler, partial):
        handler = handler.func
    one: object = handler if hasattr(handler, "__qualname__") else type(handler)
    return f"{getattr(one, '__module__', None)}.{getattr(one, '__qualname__', '?')}"


def _known(kind: str, hooks: Mapping[str, Sequence[str]], name: str) -> str:
    name = _OLDER_SPELLINGS.get(name, name)
    if name in hooks:
        return name
    if name in FILTERS or name in ACTIONS:
        other = "action" if kind == "filter" else "filter"
        raise ValueError(f"{name} is registered with hooks.{other}: it is no {kind}")
    near = difflib.get_close_matches(name, hooks, n=1)
    expected = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(hooks)}"
    raise ValueError(f"there is no {kind} {name!r}; {expected}")


def _check_field(field: object, where: str = "") -> None:
    if not isinstance(field, str) or not field:
        raise TypeError(
            "the field (or groupId) of a group is a path as text, such as 'endpoint.Attributes.Company.0'; found"
            f" {field!r}{where}"
        )


def _check_signature(name: str, arguments: Sequence[str], handler: Handler) -> None:
    if not callable(handler):
        raise TypeError(f"{name}: expected a function; found {type(handler).__name__}")
    try:
        signature = inspect.signature(handler)
    except ValueError:  # of some built-in functions nothing is known
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise TypeError(
            f"{name}: a handler is called with ({', '.join(arguments)}), but"
            f" {handler_name(handler)} takes ({', '.join(signature.parameters)}): {error}"
        ) from None


registered = Hooks()
"""What this process's site code has registered."""

filter = registered.filter  # noqa: A001 - the word of those who know the PHP integration
action = registered.action
remove_filter = registered.remove_filter
remove_action = registered.remove_action
register_segment_group_field = registered.register_segment_group_field
register_segment_group_map = registered.register_segment_group_map
register_callback = registered.register_callback
