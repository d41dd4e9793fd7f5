"""What a stream is like, without what is in it: when its records come, and the shape of their calls.

A trace is NDJSON: a head, then a line a record. `streamer preview --record` writes one from Kafka, `streamer tune`
plays it to lanes with other settings. What merging, suppression and batches go by is kept, and nothing else: sizes, and
for everything that is compared a digest. Digests are keyed with random bytes that nobody keeps, so they say nothing
outside their trace, and no two traces can be joined. Names of traits stay: `aggregate.ignore_traits` goes by them, and
they are a site's vocabulary rather than a visitor's.
"""

from __future__ import annotations

import os
import re
import secrets
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import orjson

from streamer import __version__
from streamer.core.model import (
    CALL_TYPES,
    Changed,
    Contribution,
    Filtered,
    FilterReason,
    Fixed,
    Formatted,
    Main,
    Reason,
    Reject,
)
from streamer.core.suppression import without_news
from streamer.core.transform import PROFILES
from streamer.core.validate import MAX_CALL_BYTES
from streamer.errors import StartError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from streamer.core.model import Partition

STANDARD_OUTPUT = Path("-")
"""What stands for a file: a trace goes to standard output."""

FORMAT = 1
"""The number of this form of a trace; another one can't be read."""

MAX_BYTES = 100_000_000
"""What a trace says of a record's size beyond that is a mistake."""

MAX_AT_MS = 253_402_300_799_999
"""The last millisecond of the year 9999: what a producer gives for a time beyond that is none."""

MAX_LINE_BYTES = 16_000_000
"""No line is that long: what has longer ones is no trace."""

_DIGEST_BYTES = 6
"""Two of a million different values have the same digest with a chance of one in 500."""
_QUOTES = 2
_REASONS = frozenset(map(str, (*Reason, *FilterReason)))
_PLAIN_NAME = re.compile(r"[A-Za-z_][\w.-]{0,63}", re.ASCII)
_ID = "s1-" + "0" * 32
_PROFILED, _MAINS = CALL_TYPES[:2], CALL_TYPES[2:]


class Arrival(NamedTuple):
    """A record of a trace.

    Attributes:
        at_ms: Kafka's timestamp, in milliseconds since the epoch.
        partition: topic and number.
        size: bytes of its value.
        write_key: a digest of its calls' write key; empty if it has none.
        made: its calls, each as long as it was, with digests for content; None if it has none.
        reason: why it has none: of a reject or a filtered record; else empty.
    """

    at_ms: int
    partition: Partition
    size: int
    write_key: str
    made: _Made | None
    reason: str


class _Made(NamedTuple):
    """The calls of one record, to be made anew each time they are played: a lane changes what it merges."""

    profiled: tuple[Contribution | Main, ...]
    main: Main | None

    def calls(self) -> Formatted | Changed:
        """Give the calls, for a lane."""
        fresh = tuple(
            one if isinstance(one, Main | Fixed) else _fresh(one) for one in self.profiled
        )
        if self.main is None:
            return Changed(fresh)
        return Formatted(fresh, self.main.type, self.main.serialised)  # type: ignore[arg-type] # no Main is among them


@dataclass(frozen=True, slots=True)
class Trace:
    """Records of a stream.

    Attributes:
        profile: `transform.profile` of the settings that made their calls.
        arrivals: the records, by their timestamps.
    """

    profile: str
    arrivals: list[Arrival]

    @property
    def seconds(self) -> float:
        """How long it takes from the first record to the last."""
        arrivals = self.arrivals
        return (arrivals[-1].at_ms - arrivals[0].at_ms) / 1000 if arrivals else 0.0

    @property
    def size(self) -> int:
        """Bytes of the records' values."""
        return sum(arrival.size for arrival in self.arrivals)


@dataclass(slots=True)
class Recorder:
    """Makes the lines of a trace.

    Attributes:
        names: names of traits that stay whatever they look like: the settings have them (`aggregate.ignore_traits`).
        key: what its digests are keyed with.
    """

    names: frozenset[str] = frozenset()
    key: bytes = field(default_factory=lambda: secrets.token_bytes(16), repr=False)

    def head(self, profile: str) -> bytes:
        """Give the first line.

        Args:
            profile: `transform.profile` of the settings that make the calls.
        """
        return orjson.dumps({"trace": FORMAT, "streamer": __version__, "profile": profile})

    def line(
        self,
        partition: Partition,
        timestamp_ms: int,
        size: int,
        write_key: str,
        made: Formatted | Changed | Reject | Filtered,
    ) -> bytes:
        """Give the line of a record.

        Args:
            partition: topic and number.
            timestamp_ms: Kafka's timestamp, in milliseconds since the epoch.
            size: bytes of its value.
            write_key: that of its calls, of which only a digest is written.
            made: what came of it; nothing of it is changed.
        """
        line: dict[str, Any] = {
            "at": timestamp_ms,
            "topic": partition[0],
            "partition": partition[1],
            "bytes": size,
        }
        if isinstance(made, Reject | Filtered):
            line["reason"] = made.reason
            return orjson.dumps(line)
        line["key"] = self._digest(write_key.encode())
        if isinstance(made, Formatted):
            line["calls"] = [self._said(one) for one in made.contributions]
            line["main"] = [made.type, len(made.main)]
        else:
            line["calls"] = [
                {"main": one.type, "bytes": len(one.serialised), "decides": one.decides}
                if isinstance(one, Main)
                else self._said(one)
                for one in made.taken
            ]
        return orjson.dumps(line)

    def _said(self, one: Contribution) -> dict[str, Any]:
        """Describe an identify or group call."""
        profile, (user, anonymous) = one.profile, one.pair
        said: dict[str, Any] = {"type": one.type}
        if isinstance(profile, tuple):
            said["profile"], said["group"] = self._name(profile[0]), self._name(profile[1])
        else:
            said["profile"] = self._name(profile)
        if isinstance(one, Fixed):
            said["fixed"] = len(one.serialised)
            return said
        said["user"], said["anonymous"] = self._name(user), self._name(anonymous)
        said["rest"] = self._digest(without_news(one))
        said["bytes"] = len(one.render())
        said["traits"] = {
            self._trait(name): [len(value := orjson.dumps(trait)), self._digest(value)]
            for name, trait in one.traits.items()
        }
        return said

    def _trait(self, name: str) -> str:
        """Give a trait's name, or a digest as long as it is: what a visitor says may stand in a name, too."""
        if name in self.names or _PLAIN_NAME.fullmatch(name):
            return name
        written = orjson.dumps(name)
        return _text(self._digest(written), len(written))

    def _name(self, name: object) -> str | None:
        return None if name is None else self._digest(orjson.dumps(name))

    def _digest(self, data: bytes) -> str:
        return blake2b(data, digest_size=_DIGEST_BYTES, key=self.key).hexdigest()


@contextmanager
def trace_file(file: Path | None, *, force: bool) -> Iterator[BinaryIO | None]:
    """Open what a trace is written into: it gets its name when all of it is there, so that there is never half of one.

    Args:
        file: where it goes; None for nowhere, `STANDARD_OUTPUT` for there.
        force: whether a file that is there is replaced.

    Raises:
        StartError: the file can't be written, or is there and may not be replaced.
    """
    if file is None:
        yield None
        return
    if file == STANDARD_OUTPUT:
        try:
            yield sys.stdout.buffer
        except OSError as error:
            raise StartError(f"--record = '-': can't be written: {error.strerror}") from None
        return
    file = Path(os.path.realpath(file))  # a link goes on pointing at it
    _require_free(file, force=force)
    beside = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as opened:  # noqa: PTH123 - of what is open already
            yield opened
            opened.flush()
            os.fsync(descriptor)
        _require_free(file, force=force)
        beside.replace(file)
    except OSError as error:
        raise StartError(f"--record = {str(file)!r}: can't be written: {error.strerror}") from None
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def _require_free(file: Path, *, force: bool) -> None:
    if not file.exists():
        return
    if not file.is_file():
        raise StartError(f"--record = {str(file)!r}: is there, and no file that could be replaced")
    if not force:
        raise StartError(f"--record = {str(file)!r}: is there already; --force replaces it")


def read_trace(file: Path) -> Trace:
    """Read a trace.

    Args:
        file: as `streamer preview --record` writes it.

    Raises:
        StartError: it can't be read, isn't a trace, or has no records; with the line at fault.
    """
    name = shown(file)
    try:
        with file.open("rb") as opened:
            return parse_trace(_lines(opened, name), name)
    except OSError as error:
        raise StartError(f"{name} can't be read: {error.strerror}") from error


def _lines(opened: BinaryIO, name: str) -> Iterator[bytes]:
    """Give a file's lines, none of which takes more memory than a trace's may."""
    number = 1
    while line := opened.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES:
            raise StartError(f"{name} is no trace: line {number} is longer than any of a trace")
        yield line
        number += 1


def shown(file: Path) -> str:
    """Give a file's name for a person; what a terminal would obey is written as Python would."""
    name = str(file)
    return name if name.isprintable() else repr(name)


def parse_trace(lines: Iterable[bytes] | BinaryIO, name: str) -> Trace:
    """Read the lines of a trace; see `read_trace`.

    Args:
        lines: the head, then those of the records in any order.
        name: what a person calls the trace.
    """
    numbered = enumerate(lines, start=1)
    _, first = next(numbered, (0, b""))
    profile = _profile(first, name)
    arrivals = list(_arrivals(numbered, _Tokens(), name))
    if not arrivals:
        raise StartError(f"{name} has no records: record some with `streamer preview --record`")
    arrivals.sort(key=lambda arrival: arrival.at_ms)
    return Trace(profile, arrivals)


def _profile(first: bytes, name: str) -> str:
    try:
        head = orjson.loads(first)
        form, profile = head["trace"], str(head["profile"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise StartError(
            f"{name} is no trace: its first line isn't the head that `streamer preview --record` writes"
        ) from None
    if form != FORMAT:
        raise StartError(
            f"{name} is a trace of form {form!r:.40}, and this version reads form {FORMAT}: record it again"
        )
    if profile not in PROFILES:
        raise StartError(
            f"{name} was recorded with the profile {profile!r:.40}, which isn't known: record it again"
        )
    return profile


def _arrivals(lines: Iterable[tuple[int, bytes]], tokens: _Tokens, name: str) -> Iterator[Arrival]:
    for number, line in lines:
        try:
            yield _arrival(orjson.loads(line), tokens)
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise StartError(
                f"{name}, line {number}: not a record of a trace ({type(error).__name__}: {error}). If the"
                " recording was cut short, remove that line"
            ) from None


def _arrival(line: dict[str, Any], tokens: _Tokens) -> Arrival:
    at_ms, partition = _time(line["at"]), (str(line["topic"]), int(line["partition"]))
    size = _size(line["bytes"], MAX_BYTES)
    if "calls" not in line:
        return Arrival(at_ms, partition, size, "", None, _reason(line["reason"]))
    profiled = tuple(
        _main(one["main"], one["bytes"], decides=one["decides"])
        if "main" in one
        else _contribution(one, tokens)
        for one in line["calls"]
    )
    main = _main(*line["main"], decides=True) if "main" in line else None
    made = _Made(profiled, main)
    return Arrival(at_ms, partition, size, str(line["key"]), made, "")


def _reason(reason: str) -> str:
    if reason not in _REASONS:
        raise ValueError(f"{reason!r:.40} is no reason for which no calls are made")
    return reason


def _time(at_ms: object) -> int:
    if not isinstance(at_ms, int) or not 0 <= at_ms <= MAX_AT_MS:
        raise ValueError(f"{at_ms!r:.40} is no time in milliseconds")
    return at_ms


def _size(size: object, most: int = MAX_CALL_BYTES) -> int:
    if not isinstance(size, int) or not 0 <= size <= most:
        raise ValueError(f"{size!r:.40} is no number of bytes, of {most:,} at most")
    return size


def _kind(kind: object, of: tuple[str, ...]) -> str:
    if kind not in of:
        raise ValueError(f"{kind!r:.40} is no type of call here")
    return str(kind)


def _id(name: object) -> str:
    if not isinstance(name, str):
        raise ValueError(f"{name!r:.40} is no digest")  # noqa: TRY004 - as whatever else is wrong in a line
    return name


@lru_cache(maxsize=10_000)  # many are alike, and each takes as much memory as it was long
def _main(kind: str, size: int, *, decides: bool) -> Main:
    return Main(_kind(kind, _MAINS), b"x" * _size(size), bool(decides))


def _contribution(said: dict[str, Any], tokens: _Tokens) -> Contribution:
    """Make an identify or group call as long as it was, and equal in what is compared to those it was equal to."""
    kind, profile = _kind(said["type"], _PROFILED), _id(said["profile"])
    group = _id(said["group"]) if kind == "group" else None
    if "fixed" in said:
        call = {"userId": profile, "groupId": group}
        return Fixed(call, kind, b"x" * _size(said["fixed"]))
    traits = {
        name: tokens.of(digest, _size(size)) for name, (size, digest) in said["traits"].items()
    }
    user, anonymous = said["user"], said["anonymous"]
    # The time is no news to suppression: it takes up what a call is longer by.
    call = {"messageId": _ID, "timestamp": "", "rest": said["rest"]}
    made = Contribution(
        kind,
        profile if group is None else (profile, group),
        (user and _id(user), anonymous and _id(anonymous)),
        call,
        traits,
        orjson.dumps(traits),
        blake2b(digest_size=16),
    )
    call["timestamp"] = "x" * (_size(said["bytes"]) - len(made.render()))
    return made


class _Tokens:
    """What stands for the values of traits in a play: as long as they were as JSON, and as different."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], str | int] = {}
        self._numbers: dict[int, int] = {}

    def of(self, digest: str, size: int) -> str | int:
        """Give what stands for a value.

        Values too short for their digest are numbers of as many digits, in turn. Of those of two bytes there may be
        more than 90 different ones, of one byte more than ten in no JSON: then it is the digest, and 12 bytes longer.
        """
        known = self._known.get((digest, size))
        if known is None and not digest:
            raise ValueError("a value has no digest")
        if known is None:
            known = self._known[digest, size] = self._new(digest, size)
        return known

    def _new(self, digest: str, size: int) -> str | int:
        if size >= len(digest) + _QUOTES:
            return _text(digest, size)
        number = self._numbers.get(size, 10 ** (size - 1) if size > 1 else 0)
        if number < 10**size:
            self._numbers[size] = number + 1
            return number
        return digest


def _text(digest: str, size: int) -> str:
    """Give a text that is `size` bytes long as JSON, if the digest isn't longer; another one for another digest."""
    length = size - _QUOTES
    return (digest * (length // len(digest) + 1))[: max(length, len(digest))]


def _fresh(one: Contribution) -> Contribution:
    return Contribution(
        one.type, one.profile, one.pair, one.call, one.traits, one.traits_json, one.hash.copy()
    )
