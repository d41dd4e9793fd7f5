"""The whole cycle as a person would do it, with a picture of the console at its end.

`streamer tune` says what other intervals would do; the demo runs at 1 s; in the console, in a browser, the interval is
set to 5 s; what then comes of it is printed beside what was said. `make pictures` writes docs/dashboards/console.png.
"""

# ruff: noqa: T201 - a script, which prints

from __future__ import annotations

import asyncio
import re
import shutil
import sys
import urllib.request
from pathlib import Path
from typing import Any

import orjson
from playwright.async_api import async_playwright

from streamer.mock_segment import Lateness

PICTURE = Path(__file__).parent.parent / "docs/dashboards/console.png"
STREAMER = str(Path(sys.executable).with_name("streamer"))
RATE = 40
INTERVALS = ("1s", "5s")
REQUEST_TIME = "75ms"
"""What the demo's mock Segment takes, on average."""
SECONDS = 60.0
"""How long each interval is watched."""
SETTLING = 8.0
PERCENTS = {50: "p50", 95: "p95"}
WIDTH, HEIGHT = 1330, 900


async def predicted() -> dict[str, dict[str, Any]]:
    """Ask `streamer tune`: its answer by the interval."""
    process = await asyncio.create_subprocess_exec(
        STREAMER, "tune", "--rate", str(RATE), "--interval", ",".join(INTERVALS),
        "--request-time", REQUEST_TIME, "--json",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    answer, _ = await process.communicate()
    return {row["settings"]["flush.interval"]: row for row in orjson.loads(answer)["settings"]}


def look(stats: str) -> tuple[int, Lateness]:
    """Ask mock Segment how many requests it got, and how late the calls were."""
    with urllib.request.urlopen(stats) as response:  # noqa: S310 - the demo's, on loopback
        document = orjson.loads(response.read())
    return document["requests"]["total"], Lateness.from_json(document["lateness_seconds"])


async def watch(stats: str, interval: str, said: dict[str, Any]) -> None:
    """Watch for a while, and print what was seen beside what was said."""
    await asyncio.sleep(SETTLING)
    requests, earlier = await asyncio.to_thread(look, stats)
    await asyncio.sleep(SECONDS)
    now, lateness = await asyncio.to_thread(look, stats)
    seen = {f"{name} late s": lateness.since(earlier).percentile(n) for n, name in PERCENTS.items()}
    seen["requests/s"] = (now - requests) / SECONDS
    expected = {f"{name} late s": said["lateness_seconds"][name] for name in PERCENTS.values()}
    expected["requests/s"] = said["requests_per_second"]
    print(f"flush.interval = {interval}")
    for what, number in expected.items():
        print(f"  {what:<12} said {number:.2f}, seen {seen[what]:.2f}")


async def main(picture: Path) -> None:
    """Do it."""
    said = await predicted()
    demo = await asyncio.create_subprocess_exec(
        STREAMER, "demo", "--rate", str(RATE), "--interval", INTERVALS[0], "--for", "5m",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    if demo.stdout is None:
        raise RuntimeError("it was opened as a pipe")
    try:
        text = ""
        while not (found := re.search(r"the console: (\S+); mock Segment counts at (\S+)", text)):
            text += (await demo.stdout.readline()).decode()
        draining = asyncio.create_task(demo.stdout.read())
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            page = await browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
            await page.goto(found[1])
            await watch(found[2], INTERVALS[0], said[INTERVALS[0]])
            field = page.get_by_role("textbox", name="flush.interval")
            await field.fill(INTERVALS[1])
            await page.get_by_role("button", name="Set flush.interval").click()
            await watch(found[2], INTERVALS[1], said[INTERVALS[1]])
            await page.screenshot(path=picture, full_page=True)
            await browser.close()
        demo.terminate()
        await draining
    finally:
        if demo.returncode is None:
            demo.kill()
        await demo.wait()


if __name__ == "__main__":
    asyncio.run(main(PICTURE))
