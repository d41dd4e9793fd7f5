"""A journal holds each call's fate, is on disk before its request is answered, and never holds a write key."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamer.mock_segment.journal import Journal, Line, digest, read_journal, render

if TYPE_CHECKING:
    from pathlib import Path

LINE = Line(3, 1764000000.25, "accepted", None, digest("key"), "track", "m", {"type": "track"})


def test_what_was_written_is_read_back_without_closing_the_file(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.ndjson")
    refused = LINE._replace(fate="discarded", reason="no_event", message_id=None)
    journal.write([render(LINE, b'{"type":"track"}'), render(refused, b'{"type":"track"}')])
    assert list(read_journal(tmp_path / "journal.ndjson")) == [LINE, refused]
    journal.close()


def test_calls_can_be_left_out() -> None:
    assert b'"call":null' in render(LINE, None)


def test_a_journal_is_continued_not_overwritten(tmp_path: Path) -> None:
    for _ in range(2):
        journal = Journal(tmp_path / "journal.ndjson")
        journal.write([render(LINE, None)])
        journal.close()
    assert len(list(read_journal(tmp_path / "journal.ndjson"))) == 2


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "journal.ndjson"
    path.write_bytes(render(LINE, None) + b"\n" + render(LINE, None)[:-5])
    assert list(read_journal(path)) == [LINE._replace(call=None)]


def test_digests_tell_keys_apart_without_showing_them() -> None:
    assert digest("key-a") != digest("key-b")
    assert "key" not in digest("key")
