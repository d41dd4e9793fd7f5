"""A minute of everything at once, the same every time; `make chaos` has as many as one likes, and other ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
import pytest

from chaos.__main__ import main

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Require

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]  # CI may be slow; a hang still ends


def test_a_minute_of_chaos_breaks_no_promise(require: Require, tmp_path: Path) -> None:
    require("java", "mvn")
    path = tmp_path / "report.json"
    arguments = ["--minutes", "1", "--seed", "45", "--rate", "200", "--report", str(path)]
    status = main(arguments)
    report = orjson.loads(path.read_bytes())
    assert (status, report["verdict"]) == (0, "ok")
    counts = report["counts"]
    assert counts["produced"] > 5_000
    assert counts["troubles"] == len(report["troubles"]) > 5
    # More if a letter was written twice, or an identify or group call of a delivered record was refused.
    assert sum(counts["dead_letters"].values()) + counts["delivered"] >= counts["produced"]
