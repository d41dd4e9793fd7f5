"""The transform stage: records in, calls out, with site code between.

Where neither site code nor `[segment.sites]` has a say, the pipeline calls `streamer.core.transform` itself, and this
module isn't on the way.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog

from streamer.core.changed import take_back
from streamer.core.model import Filtered, FilterReason, Formatted, Main, Reason, Reject
from streamer.core.transform import keyed
from streamer.handlers import Failure
from streamer.hooks import API_WRITE_KEY

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from hashlib import blake2b

    from streamer.core.model import Changed, Contribution
    from streamer.core.sites import Sites
    from streamer.core.transform import Transform
    from streamer.handlers import Filters
    from streamer.hooks import Call

log = structlog.get_logger()

SLICE_BYTES = 192_000
RECORD_BYTES = 1000
"""So many bytes of records are processed in one stretch, each record counted with so many more: some 5 ms of the event
loop's time, of which heartbeats need their share."""

_WRITE_KEY = re.compile(r"[!-9;-~]{1,200}")  # as `segment.write_key` may be
_NO_WRITE_KEY = Filtered(FilterReason.NO_WRITE_KEY)


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


class _Event(NamedTuple):
    """A record of which calls are to be made: its number, its value without white space, and what it says."""

    number: int
    stripped: bytes
    event: dict[str, Any]


class _Shown(NamedTuple):
    """A record of which site code sees the calls."""

    number: int
    write_key: str
    record_hash: blake2b
    calls: list[Call]


_NOT_MADE = Made("", _NO_WRITE_KEY)  # until it is known what comes of a record


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

    async def format(self, values: Sequence[Value], deadline: float = float("inf")) -> list[Made]:
        """Make the calls of a chunk's records.

        Args:
            values: the records, in order.
            deadline: when it is too late for site code, in seconds of the event loop's clock.

        Returns:
            what came of each. Nothing is raised, whatever is in the records and whatever site code does.
        """
        try:
            return await self._format(values, deadline)
        except Exception as error:
            log.exception("a chunk's calls can't be made")
            detail = f"What site code gave can't be worked with: {type(error).__name__}."
            return [Made("", Reject(Reason.HOOK_FAILED, detail))] * len(values)

    async def _format(self, values: Sequence[Value], deadline: float) -> list[Made]:
        made: list[Made] = []
        shown: list[_Shown] = []
        key_hashes: dict[str, blake2b] = {}
        for portion in _portions(values):
            made += await self._portion(portion, key_hashes, shown, len(made), deadline)
            await asyncio.sleep(0)
        if shown:
            await self._change(made, shown, key_hashes, deadline)
        return made

    async def _portion(
        self,
        values: Sequence[Value],
        key_hashes: dict[str, blake2b],
        shown: list[_Shown],
        start: int,
        deadline: float,
    ) -> list[Made]:
        """Make the calls of some records, before site code sees them; a whole chunk of events takes much memory."""
        made = [_NOT_MADE] * len(values)
        events: list[_Event] = []
        for number, (value, _) in enumerate(values):
            decoded = self._transform.decode(value)
            if isinstance(decoded, tuple):
                events.append(_Event(number, *decoded))
            else:
                made[number] = Made("", decoded)
        keys = await self._write_keys(events, deadline)
        for (number, stripped, event), key in zip(events, keys, strict=True):
            if not isinstance(key, str):
                made[number] = Made("", key)
                continue
            key_hash = key_hashes.get(key)
            if key_hash is None:
                key_hash = key_hashes[key] = keyed(key)
            try:
                result = self._transform.make(
                    stripped, event, values[number].timestamp_ms, key_hash
                )
            except Exception as error:  # noqa: BLE001 - of an event as its JSON says nothing is raised
                result = _changed_event(error)
            made[number] = Made(key if isinstance(result, Formatted) else "", result)
            if self._filters.see_calls and isinstance(result, Formatted):
                record_hash = key_hash.copy()
                record_hash.update(stripped)
                shown.append(_Shown(start + number, key, record_hash, result.calls()))
        return made

    async def _write_keys(
        self, events: Sequence[_Event], deadline: float
    ) -> list[str | Reject | Filtered]:
        keys = [self._sites.write_key(one.event) for one in events]
        if not self._filters.choose_write_keys:
            return [key or _NO_WRITE_KEY for key in keys]
        chosen = await self._filters.write_keys(keys, [one.event for one in events], deadline)
        return [_checked_key(key) for key in chosen]

    async def _change(
        self,
        made: list[Made],
        shown: Sequence[_Shown],
        key_hashes: dict[str, blake2b],
        deadline: float,
    ) -> None:
        """Have site code change what was made; only records of which calls were made are shown to it."""
        ids = [
            frozenset(id_ for call in one.calls if isinstance(id_ := call.get("messageId"), str))
            for one in shown
        ]
        changed = await self._filters.formatted_data([one.calls for one in shown], deadline)
        done = 0
        for place, one in enumerate(shown):
            if isinstance(changed, Failure):
                made[one.number] = Made("", Reject(Reason.HOOK_FAILED, changed.detail))
                continue
            result = take_back(
                changed[place],
                ids[place],
                one.record_hash,
                key_hashes[one.write_key],
                mends=self._transform.mends,
                checked=self._checked,
            )
            key = "" if isinstance(result, Reject | Filtered) else one.write_key
            made[one.number] = Made(key, result)
            if not isinstance(result, Reject | Filtered):
                done += sum(map(_size_of, result.taken))
            if done >= SLICE_BYTES:
                done = 0
                await asyncio.sleep(0)


def _size_of(call: Contribution | Main) -> int:
    return 1000 + len(call.serialised if isinstance(call, Main) else call.traits_json)


def _changed_event(error: Exception) -> Reject:
    detail = f"{API_WRITE_KEY}: a handler changed the event, of which no calls can be made now: {type(error).__name__}."
    return Reject(Reason.HOOK_FAILED, detail)


def _portions(values: Sequence[Value]) -> Iterator[Sequence[Value]]:
    start = size = 0
    for number, (value, _) in enumerate(values, start=1):
        size += RECORD_BYTES + (len(value) if value else 0)
        if size >= SLICE_BYTES or number == len(values):
            yield values[start:number]
            start, size = number, 0


def _checked_key(key: str | Failure) -> str | Reject | Filtered:
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
