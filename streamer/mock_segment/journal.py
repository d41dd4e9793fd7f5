"""One line for every call that came in: accepted, discarded or a duplicate."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import orjson

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

Fate: TypeAlias = Literal["accepted", "discarded", "duplicate"]
"""What became of a call of a request that wasn't refused."""


def digest(write_key: str) -> str:
    """Give the name under which a write key stands in journals, statistics and faults; never the key itself."""
    return hashlib.blake2b(write_key.encode(), digest_size=8).hexdigest()


class Line(NamedTuple):
    """One call and its fate.

    Attributes:
        request: the number of its request, from 1; repeated requests have numbers of their own.
        received_at: when the request was taken, in Unix seconds.
        fate: accepted, discarded or duplicate.
        reason: why it was discarded (a value of `Discard`), else None.
        key_digest: `digest` of the request's write key.
        type: the call's type, None if it isn't one of Segment's.
        message_id: its messageId, or the one it was given; None where a discarded call has no usable one.
        call: the call as it was sent, None where calls aren't kept.
    """

    request: int
    received_at: float
    fate: Fate
    reason: str | None
    key_digest: str
    type: str | None
    message_id: str | None
    call: Any


class Journal:
    """Appends lines to an NDJSON file; what was written stays when the process is killed."""

    def __init__(self, path: Path) -> None:
        """Open the file, making it if it isn't there.

        Args:
            path: where to append.

        Raises:
            OSError: the file can't be opened for writing.
        """
        self._file = path.open("ab")

    def write(self, lines: Iterable[bytes]) -> None:
        """Append lines (without their newlines) and hand them to the operating system in one go."""
        self._file.writelines(line + b"\n" for line in lines)
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def render(line: Line, serialised: bytes | None) -> bytes:
    """Give a line as JSON.

    Args:
        line: the line; its `call` isn't looked at.
        serialised: the call's JSON, None to leave the call out.

    Returns:
        The JSON, without a newline.
    """
    document = line._asdict()
    document["call"] = None if serialised is None else orjson.Fragment(serialised)
    return orjson.dumps(document)


def read_journal(path: Path) -> Iterator[Line]:
    """Read a journal from its start.

    Args:
        path: the file.

    Yields:
        Its lines, in the order of receipt. A last line that isn't finished is left out: the mock was stopped in it.

    Raises:
        OSError: the file can't be read.
    """
    with path.open("rb") as file:
        for text in file:
            if text.endswith(b"\n"):
                yield Line(**orjson.loads(text))
