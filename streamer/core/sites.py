"""Which write key an event has by its site."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from streamer.core.mapping import index_of, number_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


_NAMED = 3
"""So many sites of one write key are named in a line."""


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

    def name(self, write_key: str) -> str:
        """Name a write key for a person, who can't be shown it: by its sites, or else by a digest.

        Args:
            write_key: Segment's.

        Returns:
            Such as `the default write key`, `site 2`, `sites 2, 3 and 5`, `write key with digest 6f1c09ab`.
        """
        if write_key == self._default:
            return "the default write key"
        named = [site for site, key in self._write_keys.items() if key == write_key]
        if not named:
            digest = blake2b(write_key.encode(errors="replace"), digest_size=4).hexdigest()
            return f"write key with digest {digest}"
        return f"site{'s' if len(named) > 1 else ''} {listed(named, _NAMED)}"

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


def listed(names: Sequence[str], most: int) -> str:
    """List names in a sentence: `a`, `a and b`, `a, b and 7 more`.

    Args:
        names: one at least.
        most: so many are listed; of more, only how many they are.
    """
    rest = len(names) - most
    *firsts, last = [*names[:most], f"{rest} more"] if rest > 0 else names
    return f"{', '.join(firsts)} and {last}" if firsts else last
