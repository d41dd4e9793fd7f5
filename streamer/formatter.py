"""The transform stage: records in, calls out, with site code between.

Where neither site code nor `[segment.sites]` has a say, the pipeline calls `streamer.core.transform` itself, and this
module isn't on the way.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from streamer.core.changed import take_back
from streamer.core.model import Filtered, FilterReason, Formatted, Reason, Reject
from streamer.core.transform import keyed
from streamer.handlers import Failure

if TYPE_CHECKING:
    from collections.abc import Sequence
    from hashlib import blake2b

    from streamer.core.model import Changed
    from streamer.core.sites import Sites
    from streamer.core.transform import Transform
    from streamer.handlers import Filters
    from streamer.hooks import Call

_WRITE_KEY = re.compile(r"[!-9;-~]+")  # as `segment.write_key` may be
_NO_WRITE_KEY = Filtered(FilterReason.NO_WRITE_KEY)
_SLICE_BYTES = 192_000
_RECORD_BYTES = 1000  # what a record costs besides its bytes, in bytes


class Value(NamedTuple):
    """What counts of a record.

    Attributes:
        value: as Kafka has it; None for a tombstone.
        timestamp_ms: Kafka's timestamp, negative if there is none.
    """

    value: bytes | None
    timestamp_ms: int


class Made(NamedTuple):
    """What came of a record.

    Attributes:
        write_key: where its calls go; empty if there are none.
        result: the calls, or why there are none.
    """

    write_key: str
    result: Formatted | Changed | Reject | Filtered


@dataclass(slots=True)
class _Event:
    """A record of which calls are to be made."""

    number: int
    stripped: bytes
    event: dict[str, Any]
    timestamp_ms: int


class Formatter:
    """Makes the calls of a chunk's records.

    Args:
        transform: makes those of one.
        sites: say which write key an event has.
        filters: site code that changes that, and the calls.
        checked: whether what Segment would throw away is rejected of what site code made.
    """

    def __init__(
        self, transform: Transform, sites: Sites, filters: Filters, *, checked: bool = True
    ) -> None:
        self._transform = transform
        self._sites = sites
        self._filters = filters
        self._checked = checked

    @property
    def needed(self) -> bool:
        """Whether anybody has a say: else `Transform.format` with the one write key does the same."""
        filters = self._filters
        return bool(self._sites) or filters.choose_write_keys or filters.see_calls

    def close(self) -> None:
        """Let go of the threads of site code."""
        self._filters.close()

    async def format(self, values: Sequence[Value]) -> list[Made]:
        """Make the calls of a chunk's records.

        Args:
            values: the records, in order.

        Returns:
            what came of each. Nothing is raised, whatever is in the records and whatever site code does.
        """
        made: list[Made | None] = [None] * len(values)
        events: list[_Event] = []
        done = 0
        for number, (value, timestamp_ms) in enumerate(values):
            decoded = self._transform.decode(value)
            if isinstance(decoded, tuple):
                events.append(_Event(number, *decoded, timestamp_ms))
            else:
                made[number] = Made("", decoded)
            done = await _breathe(done, value)
        keys = await self._write_keys(events)
        key_hashes: dict[str, blake2b] = {}
        for one, key in zip(events, keys, strict=True):
            if not isinstance(key, str):
                made[one.number] = Made("", key)
                continue
            key_hash = key_hashes.get(key)
            if key_hash is None:
                key_hash = key_hashes[key] = keyed(key)
            result = self._transform.make(one.stripped, one.event, one.timestamp_ms, key_hash)
            made[one.number] = Made(key if isinstance(result, Formatted) else "", result)
            done = await _breathe(done, one.stripped)
        if self._filters.see_calls:
            await self._change(events, made, key_hashes)
        return [one for one in made if one is not None]

    async def _write_keys(self, events: Sequence[_Event]) -> list[str | Reject | Filtered]:
        keys = [self._sites.write_key(one.event) for one in events]
        if not self._filters.choose_write_keys:
            return [key or _NO_WRITE_KEY for key in keys]
        chosen = await self._filters.write_keys(keys, [one.event for one in events])
        return [_checked_key(key) for key in chosen]

    async def _change(
        self, events: Sequence[_Event], made: list[Made | None], key_hashes: dict[str, blake2b]
    ) -> None:
        """Have site code change what was made; only records of which calls were made are shown to it."""
        shown: list[tuple[_Event, str, list[Call]]] = []
        done = 0
        for one in events:
            before = made[one.number]
            if before is not None and isinstance(before.result, Formatted):
                calls = before.result.calls()
                shown.append((one, before.write_key, calls))
                done = await _breathe(done, one.stripped)
        if not shown:
            return
        ids = [
            frozenset(id_ for call in calls if isinstance(id_ := call.get("messageId"), str))
            for _, _, calls in shown
        ]
        changed = await self._filters.formatted_data([calls for _, _, calls in shown])
        for place, (one, key, _) in enumerate(shown):
            if isinstance(changed, Failure):
                made[one.number] = Made("", Reject(Reason.HOOK_FAILED, changed.detail))
                continue
            record_hash = key_hashes[key].copy()
            record_hash.update(one.stripped)
            result = take_back(
                changed[place],
                ids[place],
                record_hash,
                key_hashes[key],
                mends=self._transform.mends,
                checked=self._checked,
            )
            made[one.number] = Made("" if isinstance(result, Reject | Filtered) else key, result)
            done = await _breathe(done, one.stripped)


def _checked_key(key: str | Failure | None) -> str | Reject | Filtered:
    if isinstance(key, Failure):
        return Reject(Reason.HOOK_FAILED, key.detail)
    if not key:
        return _NO_WRITE_KEY
    if not _WRITE_KEY.fullmatch(key):
        return Reject(
            Reason.HOOK_FAILED,
            "altis.analytics.segment.api_write_key: a write key is printable ASCII without spaces and colons; this one"
            " isn't.",
        )
    return key


async def _breathe(done: int, value: bytes | None) -> int:
    """Give the event loop a turn after so many bytes of records; say how many there were since the last."""
    done += _RECORD_BYTES + (len(value) if value else 0)
    if done < _SLICE_BYTES:
        return done
    await asyncio.sleep(0)
    return 0
