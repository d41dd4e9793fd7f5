"""Settings that change while streamer runs: read again, or one by one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from streamer.config import LIVE_SETTINGS, SETTINGS, Config, effective, load_config
from streamer.errors import ConfigError
from streamer.live import LiveSettings

if TYPE_CHECKING:
    from pathlib import Path

ENVIRON = {"SEGMENT_API_WRITE_KEY": "a-key-that-nobody-may-see"}


class Rig:
    """Settings in a file, and what was made of them."""

    def __init__(self, folder: Path, text: str = "") -> None:
        self.file = folder / "streamer.toml"
        self.file.write_text(text)
        self.applied: list[Config] = []
        self.counted: list[bool] = []
        self.settings = LiveSettings(self.load(), self.load, self.applied.append, self)

    def load(self) -> Config:
        return load_config(self.file, {}, ENVIRON)

    def reloaded(self, *, accepted: bool) -> None:
        self.counted.append(accepted)


def test_every_live_setting_is_one() -> None:
    assert set(LIVE_SETTINGS) < set(SETTINGS)


def test_what_was_edited_is_taken_over_and_said(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.file.write_text(
        '[flush]\ninterval = "5s"\nconcurrency = 4\n[aggregate]\nsuppress_for = "1h"\n'
    )
    with capture_logs() as logs:
        change = asyncio.run(rig.settings.reload())
    assert change.before == {
        "flush.interval": "1s", "flush.concurrency": '"adaptive"', "aggregate.suppress_for": "0s",
    }  # fmt: skip
    assert change.after == {
        "flush.interval": "5s", "flush.concurrency": "4", "aggregate.suppress_for": "1h",
    }  # fmt: skip
    assert change.needs_restart == []
    assert rig.applied == [rig.settings.config]
    assert rig.settings.config.flush.interval == 5.0
    assert rig.counted == [True]
    assert [line["event"] for line in logs] == ["settings changed"]
    assert logs[0]["flush.interval"] == "1s -> 5s"
    origins = {row.key: row.origin for row in effective(rig.settings.config)}
    assert origins["flush.interval"] == str(rig.file)


def test_what_needs_a_restart_is_named_and_stays_as_it_is(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.file.write_text('[kafka]\ntopics = ["other"]\n[flush]\ninterval = "5s"\n')
    with capture_logs() as logs:
        change = asyncio.run(rig.settings.reload())
    assert change.needs_restart == ["dead_letter.topic", "kafka.topics"]
    assert rig.settings.config.kafka.topics == ("analytics-events",)
    assert rig.settings.config.flush.interval == 5.0
    assert logs[0]["settings"] == "dead_letter.topic, kafka.topics"


def test_a_write_key_that_changed_is_named_and_never_shown(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    environ = {"SEGMENT_API_WRITE_KEY": "another-key-that-nobody-may-see"}
    settings = LiveSettings(
        rig.load(), lambda: load_config(rig.file, {}, environ), rig.applied.append, rig
    )
    with capture_logs() as logs:
        change = asyncio.run(settings.reload())
    assert change.needs_restart == ["segment.write_key"]
    assert "nobody-may-see" not in str(logs)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[flush]\ninterval = "5"', "flush.interval"),
        ("[flush\n", "streamer.toml"),
        ("", "can't be read"),
    ],
)
def test_what_is_wrong_changes_nothing_and_says_why(tmp_path: Path, text: str, reason: str) -> None:
    rig = Rig(tmp_path)
    before = rig.settings.config
    if text:
        rig.file.write_text(text)
    else:
        rig.file.unlink()
        rig.file.mkdir()
    with capture_logs() as logs, pytest.raises(ConfigError, match=reason):
        asyncio.run(rig.settings.reload())
    assert rig.settings.config is before
    assert rig.applied == []
    assert rig.counted == [False]
    assert [line["event"] for line in logs] == [
        "the settings stay as they are: what was asked for is wrong"
    ]
    assert reason in logs[0]["reason"]


def test_what_cannot_go_with_the_memory_there_is_is_refused(tmp_path: Path) -> None:
    small = "[flush]\nmax_bytes = 100_000\nmemory_budget = 5_000_000\n"
    rig = Rig(tmp_path, small)
    rig.file.write_text(small.replace("100_000", "400_000").replace("5_000_000", '"32MB"'))
    with pytest.raises(ConfigError, match=r"flush\.memory_budget, which can't change"):
        asyncio.run(rig.settings.reload())
    with pytest.raises(ConfigError, match=r"flush\.memory_budget, which can't change"):
        rig.settings.change({"flush.max_bytes": 400_000})
    assert rig.settings.config.flush.max_bytes == 100_000
    assert rig.counted == [False, False]


def test_single_settings_change_and_the_others_stay(tmp_path: Path) -> None:
    rig = Rig(tmp_path, '[flush]\ninterval = "2s"\nmax_calls = 100\n')
    change = rig.settings.change({"flush.interval": "500ms", "flush.concurrency": "7"})
    assert change.before == {"flush.interval": "2s", "flush.concurrency": '"adaptive"'}
    assert change.after == {"flush.interval": "500ms", "flush.concurrency": "7"}
    flush = rig.settings.config.flush
    assert (flush.interval, flush.concurrency, flush.max_calls) == (0.5, 7, 100)
    origins = {row.key: row.origin for row in rig.settings.shown()}
    assert origins["flush.interval"] == "/config"
    assert origins["flush.max_calls"] == str(rig.file)


def test_the_file_is_read_by_a_reload_only_and_undoes_single_changes(tmp_path: Path) -> None:
    rig = Rig(tmp_path, '[flush]\ninterval = "2s"\n')
    rig.file.write_text("broken")
    rig.settings.change({"flush.max_calls": 50})
    assert rig.settings.config.flush.interval == 2.0
    rig.file.write_text('[flush]\ninterval = "3s"\n')
    change = asyncio.run(rig.settings.reload())
    assert change.after == {"flush.interval": "3s", "flush.max_calls": "2500"}


def test_nothing_that_changed_is_said_too(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    with capture_logs() as logs:
        assert asyncio.run(rig.settings.reload()).after == {}
    assert [line["event"] for line in logs] == ["no setting changed"]
