"""The README's commands do and print what it shows, figures apart."""

from __future__ import annotations

import asyncio
import re
import time
from itertools import islice
from typing import TYPE_CHECKING

import pytest

from documents import assert_printed, fenced, run_streamer, transcripts
from kafka_broker.broker import KafkaBroker
from kafka_broker.topics import Kafka, ToProduce
from streamer.demo.events import generate
from streamer.mock_segment import MockSegment
from whole_pipeline import Member

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Require

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

RECORDS = 6000


def test_the_demo_prints_what_the_readme_shows(tmp_path: Path) -> None:
    done = run_streamer("demo --for 6s", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    shown = transcripts("README.md")["make demo"]
    made_by_make, _, shown = shown.partition("\n")
    shown = re.sub(
        r"dead letters \(.*\)", "dead letters (…)", shown
    )  # fewer reasons in six seconds
    assert made_by_make.startswith("Installing into .venv")
    printed = done.stdout.replace("for 6s", "for 30s")
    assert_printed(shown, printed, figures=False)


def test_check_says_what_a_start_reads_and_run_reads_it(require: Require, tmp_path: Path) -> None:
    """With the README's own configuration, on a Kafka that has nothing but the topics that it names."""
    require("java", "mvn")
    (toml,) = [block for name, block in fenced("toml") if name == "README.md"]

    async def story(bootstrap: str) -> None:
        kafka = Kafka(bootstrap)
        await kafka.create_topic("analytics-events", partitions=4)
        await kafka.create_topic("analytics-events.dead-letter", partitions=1)
        since = int(time.time() * 1000) - 60_000
        events = islice(generate(1, broken=0.005, start_ms=since), RECORDS)
        await kafka.produce("analytics-events", [ToProduce(*event) for event in events])

        (tmp_path / "streamer.toml").write_text(toml.replace("localhost:9092", bootstrap))
        async with MockSegment() as segment:
            settings = {
                "SEGMENT_API_WRITE_KEY": "key",
                "STREAMER_SEGMENT__ENDPOINT": segment.url,
                "STREAMER_SERVER__PORT": "0",
            }
            arguments = "check --config streamer.toml"
            done = await asyncio.to_thread(run_streamer, arguments, tmp_path, **settings)
            assert done.returncode == 0, done.stdout + done.stderr
            shown = transcripts("README.md")[f"streamer {arguments}"]
            assert len(shown.splitlines()) > 10
            printed = done.stdout.replace(bootstrap, "localhost:9092")
            assert_printed(shown, printed, figures=False)

            config = str(tmp_path / "streamer.toml")
            member = await Member(settings, tmp_path / "run.log", "--config", config).start()
            try:
                async with asyncio.timeout(60):
                    while (
                        sum((await kafka.committed("streamer", "analytics-events")).values())
                        < RECORDS
                    ):
                        await asyncio.sleep(0.2)
                assert (await member.get("/readyz"))[0] == 200
                mains = segment.stats.accepted["page"] + segment.stats.accepted["track"]
                letters = await kafka.read("analytics-events.dead-letter")
                assert mains + len(letters) == RECORDS
                assert letters
            finally:
                assert await member.stop() == 0

    with KafkaBroker() as broker:
        asyncio.run(story(broker.bootstrap))
