"""The handlers as functions, and all of them together on this folder's events."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import my_site
from streamer.hooks import Response

if TYPE_CHECKING:
    import pytest

FOLDER = Path(__file__).parent.parent


def test_the_shop_has_a_source_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_WRITE_KEY", "shop")
    for host, key in {"shop.x": "shop", "www.x": "key", "staging.x": ""}.items():
        assert my_site.choose_source("key", {"attributes": {"host": host}}) == key
    assert my_site.choose_source("key", {"attributes": "broken"}) == "key"


def test_failures_are_counted() -> None:
    my_site.failures.clear()
    for response in (Response(503, {}, ""), Response(503, {}, ""), TimeoutError()):
        asyncio.run(my_site.count_failures(response, []))
    assert my_site.failures == {"503": 2, "TimeoutError": 1}


def test_what_becomes_of_events() -> None:
    """`streamer transform` runs the filters as `streamer run` does, without any network."""
    streamer = Path(sys.executable).with_name("streamer")
    done = subprocess.run(
        [streamer, "transform", "--config", "streamer.toml", "events.ndjson"],
        cwd=FOLDER,
        env={**os.environ, "SHOP_WRITE_KEY": "shop"},
        capture_output=True,
        text=True,
        check=True,
    )
    shopper, editor, staging = map(json.loads, done.stdout.splitlines())
    assert [call["type"] for call in shopper] == ["identify", "group", "group", "page"]
    assert shopper[-1]["context"]["ip"] == "203.0.113.7"
    assert (editor, staging) == ([], [])
