"""What isn't forwarded: event types, keys of traits and properties, and users who aren't in a sample.

`streamer.core.compile` puts it into the functions that it writes: the checks stand before anything is made of a record,
and what isn't set leaves no line there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TypeAlias

from streamer.core.mapping import Branch, Merge, Node, Nothing, Path, Without

Drops: TypeAlias = Mapping[str, "Drops"]
"""What is taken out of an object: the keys whose `Drops` are empty as a whole, of the others what these say."""


@dataclass(frozen=True, slots=True)
class Exclusions:
    """What isn't forwarded.

    Attributes:
        events: event types of which no call is made.
        traits: keys that no call has in `traits` or `context.traits`.
        properties: keys that no call has in `properties` or `context.page`.
        sample: event type to the share of users, from 0 to 1, of whom calls are made; see `in_sample`.
    """

    events: frozenset[str] = frozenset()
    traits: tuple[str, ...] = ()
    properties: tuple[str, ...] = ()
    sample: Mapping[str, float] = field(default_factory=dict)

    def drops(self) -> Drops:
        """Give what is taken out of each call."""
        traits: Drops = {key: {} for key in self.traits}
        properties: Drops = {key: {} for key in self.properties}
        # An empty one would take the whole.
        context = {key: one for key, one in (("traits", traits), ("page", properties)) if one}
        call = {"traits": traits, "properties": properties, "context": context}
        return {key: drops for key, drops in call.items() if drops}


def in_sample(event_type: str, user: str, share: float) -> bool:
    """Say whether a user's events of a type are forwarded.

    64 bits of blake2b over the event type, a NUL and the user's id, read as a big-endian fraction of 1, are less than
    the share. So a user is in or out on every machine and for every write key, and who is in stays in when the share
    grows.

    Args:
        event_type: the events' type.
        user: the userId, else the anonymousId.
        share: from 0, nobody, to 1, everybody.
    """
    digest = blake2b(f"{event_type}\0{user}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) < share * 2**64  # exact: a float times a power of two


def without(node: Node, drops: Drops) -> Node:
    """Take keys out of what a node makes.

    Args:
        node: of a mapping.
        drops: what is taken out.

    Returns:
        The node with keys of a branch gone, so that nothing is looked up for them; what else may hold them is wrapped.
    """
    if not drops or isinstance(node, Nothing):
        return node
    if isinstance(node, Branch):
        items = [
            (key, without(item, drops.get(key, {})))
            for key, item in node.items
            if key not in drops or drops[key]
        ]
        items = [(key, item) for key, item in items if not isinstance(item, Nothing)]
        return Branch(tuple(items)) if items else Nothing()
    if isinstance(node, Merge):
        # What lies deeper may be JSON already when the parts meet, so it goes before; the keys that meet go after.
        inside = {key: below for key, below in drops.items() if below}
        parts = (part if isinstance(part, Path) else without(part, inside) for part in node.parts)
        node = Merge(tuple(part for part in parts if isinstance(part, Path | Branch)))
    return Without(node, _frozen(drops)) if isinstance(node, Path | Merge) else node


def _frozen(drops: Drops) -> tuple[tuple[str, object], ...]:
    return tuple((key, _frozen(below)) for key, below in drops.items())
