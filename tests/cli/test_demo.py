"""`streamer demo`: it ends with a balanced account, and would say so if it didn't."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from streamer.cli.demo import _compare
from streamer.core.account import Account
from streamer.mock_segment import Stats

STREAMER = str(Path(sys.executable).with_name("streamer"))


@pytest.mark.e2e
def test_the_demo_ends_with_a_balanced_account() -> None:
    done = subprocess.run(
        [STREAMER, "demo", "--events", "3000", "--rate", "2000", "--interval", "200ms"],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "the account balances" in done.stdout
    assert re.search(r"consumed\s+│ 3,000 ", done.stdout)
    assert re.search(r"delivered\s+│ 2,9\d\d ", done.stdout)
    assert re.search(r"dead letters .*not_json", done.stdout)


def test_an_account_that_mock_segment_does_not_confirm_is_told() -> None:
    account, stats = Account(), Stats()
    ledger = account.ledger()
    ledger.consumed("events", 2, 100)
    ledger.made("track", 2)
    ledger.delivered("track", 2)
    stats.accepted["track"] = 2
    assert _compare(account, stats, 2) == []
    stats.accepted["track"] = 1
    assert _compare(account, stats, 3) == [
        "3 records were produced, 2 consumed",
        "2 track calls delivered, 1 accepted by mock Segment",
    ]
