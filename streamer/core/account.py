"""Every record's and every call's fate.

Two identities hold after every step:

    records: consumed = delivered + filtered + dead-lettered + released + in flight
    calls:   made = delivered + merged + suppressed + refused + released + in flight

`Account` has the totals of the process. A `Ledger` is the hand that writes them for one generation: when the
generation ends, what is in flight in it counts as released, once, and what completes later counts nowhere.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from streamer.core.model import CALL_TYPES

if TYPE_CHECKING:
    from streamer.core.model import FilterReason, Reason


def _per_type() -> dict[str, int]:
    return dict.fromkeys(CALL_TYPES, 0)


@dataclass(slots=True)
class Account:
    """The totals of the process.

    Attributes:
        consumed: records read, by topic.
        consumed_bytes: bytes of their values, by topic.
        delivered: records whose main call Segment accepted; of those that site code left without one, the ones that
            are settled.
        filtered: records of which no calls are to be made, by reason.
        dead_lettered: records that became dead letters, by reason, counted when the dead letter was acknowledged.
        released: records whose generation ended before their fate was decided; they are read again.
        in_flight: records whose fate isn't decided.
        made, calls_delivered, merged, suppressed, refused, calls_released, calls_in_flight: the calls', by type.
    """

    consumed: Counter[str] = field(default_factory=Counter)
    consumed_bytes: Counter[str] = field(default_factory=Counter)
    delivered: int = 0
    filtered: Counter[str] = field(default_factory=Counter)
    dead_lettered: Counter[str] = field(default_factory=Counter)
    released: int = 0
    in_flight: int = 0
    made: dict[str, int] = field(default_factory=_per_type)
    calls_delivered: dict[str, int] = field(default_factory=_per_type)
    merged: dict[str, int] = field(default_factory=_per_type)
    suppressed: dict[str, int] = field(default_factory=_per_type)
    refused: dict[str, int] = field(default_factory=_per_type)
    calls_released: dict[str, int] = field(default_factory=_per_type)
    calls_in_flight: dict[str, int] = field(default_factory=_per_type)

    def ledger(self) -> Ledger:
        """Open a ledger, for one generation."""
        return Ledger(self)

    def balance(self) -> list[str]:
        """Check both identities.

        Returns:
            A sentence for each that doesn't hold; an empty list when the account balances.
        """
        wrong = []
        consumed = self.consumed.total()
        decided = (
            self.delivered + self.filtered.total() + self.dead_lettered.total() + self.released
        )
        if consumed != decided + self.in_flight:
            wrong.append(
                f"records: {consumed} consumed, but {decided} decided and {self.in_flight} in flight"
            )
        for kind in CALL_TYPES:
            fates = (
                self.calls_delivered,
                self.merged,
                self.suppressed,
                self.refused,
                self.calls_released,
            )
            ended = sum(fate[kind] for fate in fates)
            if self.made[kind] != ended + self.calls_in_flight[kind]:
                wrong.append(
                    f"{kind} calls: {self.made[kind]} made, but {ended} ended and "
                    f"{self.calls_in_flight[kind]} in flight"
                )
        if self.in_flight < 0 or min(self.calls_in_flight.values()) < 0:
            wrong.append("less than nothing is in flight: a fate was decided twice")
        return wrong


class Ledger:
    """Writes the account for one generation.

    Args:
        account: the totals.
    """

    __slots__ = ("_account", "calls", "ended", "records")

    def __init__(self, account: Account) -> None:
        self._account = account
        self.records = 0  # in flight in this generation
        self.calls = _per_type()  # the same, by type
        self.ended = False

    def consumed(self, topic: str, records: int, size: int) -> None:
        """Note records that were read, `size` bytes in all."""
        if self.ended:
            return
        self._account.consumed[topic] += records
        self._account.consumed_bytes[topic] += size
        self._account.in_flight += records
        self.records += records

    def made(self, kind: str, calls: int = 1) -> None:
        """Note calls that were made of records."""
        if self.ended:
            return
        self._account.made[kind] += calls
        self._account.calls_in_flight[kind] += calls
        self.calls[kind] += calls

    def merged(self, kind: str) -> None:
        """Note that a call was merged into another one, which goes on in its place."""
        self._end_calls(self._account.merged, kind, 1)

    def suppressed(self, kind: str) -> None:
        """Note that a call was left out: Segment has what it says."""
        self._end_calls(self._account.suppressed, kind, 1)

    def delivered(self, kind: str, calls: int, further: int = 0) -> None:
        """Note calls that Segment accepted; with a page or track call its record is delivered.

        Args:
            kind: their type.
            calls: how many.
            further: with how many of them no record is: see `streamer.core.batch.FURTHER`.
        """
        self._end_calls(self._account.calls_delivered, kind, calls)
        if kind in ("page", "track"):
            self.settled(calls - further)

    def settled(self, records: int) -> None:
        """Note records as delivered: with their main call, or without one, when all that is left of them is settled."""
        if self.ended:
            return
        self._account.delivered += records
        self._end_records(records)

    def refused(self, kind: str, reason: Reason | None) -> None:
        """Note a call that became a dead letter; with a page or track call so did its record.

        Args:
            kind: its type.
            reason: why; None for a call whose fate isn't its record's.
        """
        self._end_calls(self._account.refused, kind, 1)
        if kind in ("page", "track") and reason is not None:
            self.dead_lettered(reason)

    def dead_lettered(self, reason: Reason) -> None:
        """Note a record that became a dead letter, now that it is acknowledged."""
        if self.ended:
            return
        self._account.dead_lettered[reason] += 1
        self._end_records(1)

    def filtered(self, reason: FilterReason) -> None:
        """Note a record of which no calls are to be made."""
        if self.ended:
            return
        self._account.filtered[reason] += 1
        self._end_records(1)

    def end(self) -> None:
        """Count as released what is in flight, once; from now on this ledger writes nothing."""
        if self.ended:
            return
        account = self._account
        account.released += self.records
        self._end_records(self.records)
        for kind, calls in self.calls.items():
            account.calls_released[kind] += calls
            account.calls_in_flight[kind] -= calls
        self.calls = _per_type()
        self.ended = True

    def _end_records(self, records: int) -> None:
        self._account.in_flight -= records
        self.records -= records

    def _end_calls(self, fate: dict[str, int], kind: str, calls: int) -> None:
        if self.ended:
            return
        fate[kind] += calls
        self._account.calls_in_flight[kind] -= calls
        self.calls[kind] -= calls
