"""What a record's transform costs, in units of `orjson.loads` of the same record.

Both are measured in turns, in short stretches, of which the fastest counts: so a busy machine slows both or neither,
and the ratio can be held against that of another machine.

    python benchmarks/transform.py
"""

# ruff: noqa: T201 - a script, which prints

from __future__ import annotations

from itertools import islice
from time import process_time

import orjson

from streamer.core.model import Formatted
from streamer.core.transform import Transform
from streamer.demo.events import generate

EVENTS = 200
TURNS = 300
SEED = 20220201


def main() -> None:
    """Measure and print."""
    records = [event.value for event in islice(generate(SEED), EVENTS)]
    transform = Transform(write_key="benchmark")
    if not all(isinstance(transform.format(record, 0), Formatted) for record in records):
        raise SystemExit("an event was rejected: there is nothing to measure")

    best_loads = best_transform = float("inf")
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

    size = sum(map(len, records)) / EVENTS
    loads_us, transform_us = (1e6 * best / EVENTS for best in (best_loads, best_transform))
    print(f"{EVENTS} events of {size:,.0f} bytes on average")
    print(f"orjson.loads  {loads_us:6.2f} µs an event")
    print(f"transform     {transform_us:6.2f} µs an event")
    print(f"ratio         {transform_us / loads_us:6.2f}")


if __name__ == "__main__":
    main()
