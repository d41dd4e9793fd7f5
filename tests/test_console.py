"""The console in a browser: it loads, lives, changes settings, and shows what visitors sent as text."""

from __future__ import annotations

import asyncio
import re
import shutil
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from playwright.async_api import Page, Request, async_playwright, expect

from streamer.core.model import Retry
from streamer.hooks import Hooks
from streamer.server import Pages, serve
from test_site_code import KEY, PARTITION, end, event, make, records

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from conftest import Require
    from streamer.pipeline import Pipeline

pytestmark = pytest.mark.timeout(180)

MARKUP = "<script>document.title='broken into'</script><img src=x onerror=\"document.title='broken into'\">"
TOKEN = "a-token-of-some-length"


@asynccontextmanager
async def console(pipeline: Pipeline, token: str | None = None) -> AsyncIterator[str]:
    """The pages of a pipeline, at an address of this machine."""
    pages = Pages(
        pipeline.registry,
        pipeline.not_ready,
        pipeline.held,
        pipeline.settings,
        pipeline._console,
        pipeline._state,
    )
    async with serve("127.0.0.1", 0, pages, token) as port:
        sampling = asyncio.create_task(pipeline._console.run())
        try:
            yield f"http://127.0.0.1:{port}/"
        finally:
            sampling.cancel()


def browse(
    require: Require,
    story: Callable[[Page, Pipeline], Awaitable[None]],
    *,
    token: str | None = None,
    **options: Any,
) -> None:
    """Open the console in headless Chromium; no page may say an error, ask another host, or run what isn't its own."""
    require("chromium")

    async def main() -> None:
        pipeline = make(Hooks(), segment__sites__write_keys='{"2": "key-2"}')
        wrong: list[str] = []
        async with console(pipeline, token) as url, async_playwright() as playwright:
            browser = await playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            page = await browser.new_page(**options)
            page.set_default_timeout(60_000)
            page.on("pageerror", lambda error: wrong.append(str(error)))

            def asked(request: Request) -> None:
                if not request.url.startswith((url, "data:")):
                    wrong.append(request.url)

            page.on("request", asked)
            await page.goto(url)
            await story(page, pipeline)
            assert await page.title() == "streamer"
            await browser.close()
        assert wrong == []
        await end(pipeline)

    asyncio.run(main())


def test_it_shows_what_happens_while_it_happens(require: Require) -> None:
    async def story(page: Page, pipeline: Pipeline) -> None:
        await expect(page.locator("#ready")).to_have_text("not ready", timeout=60_000)
        await expect(page.locator("#reasons")).to_contain_text("not connected to Kafka yet")
        await expect(page.locator("#account")).to_contain_text("consumed0")
        await expect(page.locator("#letters tbody")).to_have_text("none so far")
        await pipeline.read([(PARTITION, records(event("ann"), event("bob", "2"), b"{"))])
        await expect(page.locator("#account tr").first).to_have_text("consumed3", timeout=30_000)
        await expect(page.locator("#letters tbody tr")).to_have_count(1)
        await expect(page.locator("#letters")).to_contain_text("not_json")
        assert await page.locator("svg[role=img]").count() == 9
        label = await page.locator("svg[role=img]").first.get_attribute("aria-label")
        assert label is not None
        assert label.startswith("Events per second: consumed")
        assert KEY not in await page.content()

    browse(require, story)


def test_a_setting_is_changed_by_keyboard_and_holds_at_once(require: Require) -> None:
    async def story(page: Page, pipeline: Pipeline) -> None:
        field = page.get_by_role("textbox", name="flush.interval")
        await expect(field).to_have_value("1s", timeout=60_000)
        await field.fill("5s")
        await field.press("Enter")
        await expect(page.locator("#answer")).to_have_text("flush.interval: 1s → 5s")
        assert pipeline.settings.config.flush.interval == 5.0
        assert pipeline._delivery.interval_seconds == 5.0
        await expect(page.get_by_text("from /config")).to_have_count(1)
        await expect(page.locator(".chart", has_text="Lateness")).to_contain_text("5.00 s")
        goal = await page.locator(".chart path.goal").get_attribute("d")
        assert goal is not None
        heights = re.findall(r"(?:^M[^,]*,|V)([^HV]+)", goal)
        assert len(set(heights)) == 2  # what was in force stays where it was drawn

    browse(require, story)


def test_a_wrong_value_is_refused_with_its_reason_and_kept_to_be_mended(require: Require) -> None:
    async def story(page: Page, pipeline: Pipeline) -> None:
        field = page.get_by_role("textbox", name="flush.max_calls")
        await expect(field).to_have_value("2500", timeout=60_000)
        await field.fill("9999")
        await page.get_by_role("button", name="Set flush.max_calls").click()
        await expect(page.locator("#answer")).to_have_text(
            'flush.max_calls = "9999": must be a whole number from 1 to 2500\nNothing has changed.'
        )
        assert pipeline.settings.config.flush.max_calls == 2500
        await asyncio.sleep(2.5)  # two more samples leave what is being typed alone
        await expect(field).to_have_value("9999")
        await expect(field).to_have_attribute("aria-invalid", "true")

    browse(require, story)


def test_what_others_wrote_is_text_and_never_markup(require: Require) -> None:
    async def story(page: Page, pipeline: Pipeline) -> None:
        now = asyncio.get_running_loop().time()
        await pipeline.read([(PARTITION, records(event("ann"), event("bob", "2")))])
        destination = pipeline._delivery.destinations[KEY]
        destination.misconfigured(MARKUP, now)
        other = pipeline._delivery.destinations["key-2"]
        other.finish(other.start(), Retry("rate_limited", MARKUP, 429, 9.0), now, 0.5)
        lane = pipeline._generation.lanes[KEY]  # type: ignore[union-attr]
        lane.close("time", now)
        pipeline.refused(lane, lane.ready[0], 0, MARKUP)
        for place in ("#letters", "#destinations", "#reasons"):
            await expect(page.locator(place)).to_contain_text(MARKUP, timeout=60_000)
        assert await page.locator("img, main script").count() == 0

    browse(require, story)


def test_on_a_phone_nothing_runs_off_the_page(require: Require) -> None:
    async def story(page: Page, pipeline: Pipeline) -> None:
        await pipeline.read([(PARTITION, records(*[b"x" * 50] * 30))])
        await expect(page.locator("#letters tbody tr")).to_have_count(20, timeout=60_000)
        assert await page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")

    browse(require, story, viewport={"width": 360, "height": 700}, color_scheme="dark")


def test_from_elsewhere_it_asks_for_the_token(require: Require) -> None:
    """A proxy's header is what a request from another machine has here."""

    async def story(page: Page, pipeline: Pipeline) -> None:
        field = page.get_by_label("server.token")
        await expect(field).to_be_visible(timeout=60_000)
        await field.fill("another-token-than-that")
        await field.press("Enter")
        await expect(page.locator("#login-error")).to_have_text("That isn't the token.")
        await field.fill(TOKEN)
        await field.press("Enter")
        await expect(page.get_by_role("textbox", name="flush.interval")).to_have_value("1s")
        await page.get_by_role("textbox", name="flush.interval").fill("2s")
        await page.get_by_role("textbox", name="flush.interval").press("Enter")
        await expect(page.locator("#answer")).to_have_text("flush.interval: 1s → 2s")
        assert pipeline.settings.config.flush.interval == 2.0

    browse(require, story, token=TOKEN, extra_http_headers={"X-Forwarded-For": "192.0.2.1"})
