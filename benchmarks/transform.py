"""What a record's transform costs, in units of `orjson.loads` of the same record.

All are measured in turns, in short stretches, of which the fastest counts: so a busy machine slows all or none, and the
ratios can be held against those of another machine. The mapping of one's own has as many leaves as the default one, in
other places, and should cost as much.

    python benchmarks/transform.py
"""

# ruff: noqa: T201 - a script, which prints

from __future__ import annotations

from itertools import islice
from time import process_time
from typing import Any

import orjson

from streamer.core.mapping import default_mapping, overlay
from streamer.core.model import Formatted
from streamer.core.transform import Transform
from streamer.demo.events import generate

EVENTS = 200
TURNS = 300
SEED = 20220201


def own_mapping() -> dict[str, dict[str, Any]]:
    """Give a mapping of as many leaves as the default one: other keys, another order, an object in each merge."""
    traits = ["endpoint.Attributes", "endpoint.User.UserAttributes", {"site": "attributes.blog"}]
    context = {
        "locale": "",
        "place": {"land": "endpoint.Location.Country", "town": "endpoint.Location.City"},
        "location": {"country": "", "city": ""},
        "traits": traits,
        "ip": "attributes.host",
    }
    properties = ["attributes", "metrics", {"source": "website|static"}]
    mapping = overlay(
        default_mapping(),
        {
            "identify": {"traits": traits},
            "page": {"context": context},
            "track": {"context": {**context, "timezone": ""}, "properties": properties},
        },
    )
    return {name: dict(reversed(tree.items())) for name, tree in mapping.items()}


def leaves(tree: Any) -> int:  # noqa: ANN401 - a tree's node is of any shape
    """Count the leaves of a tree that give something."""
    if isinstance(tree, dict):
        return sum(map(leaves, tree.values()))
    return sum(map(leaves, tree)) if isinstance(tree, list) else bool(tree)


def main() -> None:
    """Measure and print."""
    records = [event.value for event in islice(generate(SEED), EVENTS)]
    own, default = own_mapping(), default_mapping()
    if [leaves(own[name]) for name in own] != [leaves(default[name]) for name in own]:
        raise SystemExit("the two mappings don't have the same number of leaves")
    transform = Transform(write_key="benchmark")
    own_transform = Transform(write_key="benchmark", mapping=own)
    for one in (transform, own_transform):
        if not all(isinstance(one.format(record, 0), Formatted) for record in records):
            raise SystemExit("an event was rejected: there is nothing to measure")

    best_loads = best_transform = best_default = best_own = float("inf")
    for _ in range(TURNS):
        begin = process_time()
        for record in records:
            orjson.loads(record)
        middle = process_time()
        for record in records:
            transform.format(record, 0)
        end = process_time()
        best_loads = min(best_loads, middle - begin)
        best_transform = min(best_transform, end - middle)
    for _ in range(TURNS):
        begin = process_time()
        for record in records:
            transform.format(record, 0)
        middle = process_time()
        for record in records:
            own_transform.format(record, 0)
        end = process_time()
        best_default = min(best_default, middle - begin)
        best_own = min(best_own, end - middle)

    size = sum(map(len, records)) / EVENTS
    loads_us, transform_us = (1e6 * best / EVENTS for best in (best_loads, best_transform))
    print(f"{EVENTS} events of {size:,.0f} bytes on average")
    print(f"orjson.loads  {loads_us:6.2f} µs an event")
    print(f"transform     {transform_us:6.2f} µs an event")
    print(f"ratio         {transform_us / loads_us:6.2f}")
    print(f"own mapping   {best_own / best_default:6.2f} of the default one")


if __name__ == "__main__":
    main()
