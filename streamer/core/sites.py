"""Which write key an event has by its site."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streamer.core.mapping import index_of, number_text

if TYPE_CHECKING:
    from collections.abc import Mapping


class Sites:
    """Write keys by site.

    Args:
        field: the path of what tells the site of an event.
        write_keys: what stands there, as text, to the site's write key, which may be empty.
        default: the key of every other site.
    """

    def __init__(self, field: str, write_keys: Mapping[str, str], default: str) -> None:
        self._keys = tuple(field.split("."))
        self._write_keys = dict(write_keys)
        self._default = default

    def __bool__(self) -> bool:
        """Whether there is any but the default key."""
        return bool(self._write_keys)

    def write_key(self, event: Mapping[str, Any]) -> str:
        """Give the write key of an event; empty if its site has none."""
        value: Any = event
        for key in self._keys:
            if isinstance(value, dict):
                value = value.get(key)
            else:
                index = index_of(key)
                if isinstance(value, list) and index is not None:
                    value = value[index] if index < len(value) else None
                elif index != 0:  # as in a mapping, the first of a scalar is the scalar
                    value = None
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = number_text(value)
        return (
            self._write_keys.get(value, self._default) if isinstance(value, str) else self._default
        )
