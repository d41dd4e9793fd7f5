"""The pages of a running streamer, over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson
import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_classic

from streamer.config import load_config
from streamer.console import Console
from streamer.errors import StartError
from streamer.live import LiveSettings
from streamer.server import Pages, serve

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

TOKEN = "a-token-of-some-length"


class Silent:
    """Observes nothing."""

    def reloaded(self, *, accepted: bool) -> None:
        pass


def live_settings() -> LiveSettings:
    config = load_config(None, {}, {"SEGMENT_API_WRITE_KEY": "a-key-that-nobody-may-see"})
    return LiveSettings(config, lambda: config, lambda _: None, Silent())


def pages(
    registry: CollectorRegistry | None = None,
    reasons: list[str] | None = None,
    held: list[str] | None = None,
    settings: LiveSettings | None = None,
) -> Pages:
    return Pages(
        registry or CollectorRegistry(),
        lambda: reasons or [],
        lambda: held or [],
        settings or live_settings(),
        Console(registry or CollectorRegistry()),
        dict,
    )


def play(
    story: Callable[..., Awaitable[None]],
    reasons: list[str] | None = None,
    held: list[str] | None = None,
) -> None:
    """Run a story with a server; it is called with a function that gets a page, and with a counter on /metrics."""

    async def main() -> None:
        registry = CollectorRegistry()
        counter = Counter("served", "How often.", registry=registry)
        async with (
            serve("127.0.0.1", 0, pages(registry, reasons, held)) as port,
            aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http,
        ):

            async def get(path: str, method: str = "GET", **headers: str) -> tuple[int, str, str]:
                async with http.request(method, path, headers=headers) as response:
                    content_type = response.headers.get("Content-Type", "")
                    return response.status, content_type, await response.text()

            await story(get, counter)

    asyncio.run(main())


def test_metrics_in_the_classic_format() -> None:
    """What a plain request gets, as it is at that moment."""

    async def story(get: Any, counter: Counter) -> None:
        for expected in (0.0, 1.0):
            status, content_type, text = await get("/metrics")
            assert status == 200
            assert content_type.startswith("text/plain; version=")
            [served] = [family for family in parse_classic(text) if family.name == "served"]
            assert [sample.value for sample in served.samples if "total" in sample.name] == [
                expected
            ]
            counter.inc()

    play(story)


def test_metrics_in_openmetrics() -> None:
    """What Prometheus asks for by itself."""
    accept = "application/openmetrics-text;version=1.0.0;q=0.75,text/plain;version=0.0.4;q=0.5"

    async def story(get: Any, _: Counter) -> None:
        status, content_type, text = await get("/metrics", Accept=accept)
        assert status == 200
        assert content_type.startswith("application/openmetrics-text; version=1.0.0")
        assert text.endswith("# EOF\n")
        parsed = parse_openmetrics(text)  # type: ignore[no-untyped-call] # the library left it untyped
        assert [family.name for family in parsed] == ["served"]

    play(story)


def test_a_form_that_there_is_not_gets_the_classic_one() -> None:
    async def story(get: Any, _: Counter) -> None:
        accept = "application/openmetrics-text; version=zz; escaping=??"
        status, content_type, text = await get("/metrics", Accept=accept)
        assert status == 200
        assert content_type.startswith("text/plain")
        assert "# TYPE served_total counter" in text

    play(story)


def test_alive() -> None:
    """As long as the loop answers, whatever else is wrong."""

    async def story(get: Any, _: Counter) -> None:
        status, content_type, text = await get("/healthz")
        assert (status, orjson.loads(text)) == (200, {"alive": True})
        assert content_type.startswith("application/json")

    play(story, ["Kafka: connection refused"])


def test_ready() -> None:
    """When nothing speaks against it; a pause doesn't, and is shown."""
    held = ["Segment: site 2: paused: 429"]

    async def story(get: Any, _: Counter) -> None:
        status, _, text = await get("/readyz")
        page = {"ready": True, "reasons": [], "held": held}
        assert (status, orjson.loads(text)) == (200, page)

    play(story, held=held)


def test_not_ready() -> None:
    """With every reason; and ready again when it has gone."""
    reasons = ["Kafka: connection refused", "Segment: 401: look at segment.write_key"]

    async def story(get: Any, _: Counter) -> None:
        status, _, text = await get("/readyz")
        page = {"ready": False, "reasons": reasons, "held": []}
        assert (status, orjson.loads(text)) == (503, page)
        reasons.clear()
        assert (await get("/readyz"))[0] == 200

    play(story, reasons)


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_can_be_changed(path: str, method: str) -> None:
    """Its pages are to read."""

    async def story(get: Any, _: Counter) -> None:
        assert (await get(path, method))[0] == 405

    play(story)


def test_nothing_else_is_there() -> None:
    """No other page."""

    async def story(get: Any, _: Counter) -> None:
        for path in ("/debug", "/metrics/x", "/static/index.html", "/..%2fserver.py"):
            assert (await get(path))[0] == 404

    play(story)


@contextlib.contextmanager
def taken() -> Any:
    """A port at which somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_port_in_use_is_one_sentence() -> None:
    """That names the port, the settings, and what to do."""

    async def main(port: int) -> None:
        async with serve("127.0.0.1", port, pages()):
            pytest.fail("it listens at a port that is taken")

    with taken() as port, pytest.raises(StartError) as caught:
        asyncio.run(main(port))
    assert str(caught.value) == (
        f"port {port} of 127.0.0.1 is in use; another one is server.port (--port 0 takes any that is free),"
        " another address server.host"
    )


@pytest.mark.parametrize("host", ["192.0.2.1", "nowhere.invalid"])
def test_an_address_that_is_not_ours_is_one_sentence(host: str) -> None:
    """The reason of the operating system is in it."""

    async def main() -> None:
        async with serve(host, 0, pages()):
            pytest.fail("it listens at an address that isn't ours")

    with pytest.raises(StartError) as caught:
        asyncio.run(main())
    assert host in str(caught.value)
    assert "can't be used: " in str(caught.value)
    assert "server.host" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_port_is_free_afterwards() -> None:
    """A restart can take it at once, also while a client still has its connection open."""

    async def main() -> None:
        async with serve("127.0.0.1", 0, pages()) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200 OK" in await reader.readline()
        started = time.monotonic()
        async with serve("127.0.0.1", port, pages()) as again:
            assert again == port
        assert time.monotonic() - started < 1
        writer.close()

    asyncio.run(main())


def test_a_client_that_does_not_read_does_not_hold_the_end() -> None:
    """The process has offsets to commit and a group to leave."""
    registry = CollectorRegistry()
    many = Counter("many", "Large.", ["label"], registry=registry)
    for number in range(20_000):
        many.labels(f"{number}" + "x" * 500)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as stack:
            serving = contextlib.AsyncExitStack()
            port = await serving.enter_async_context(serve("127.0.0.1", 0, pages(registry)))
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", port))
            await loop.sock_sendall(client, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            assert await loop.sock_recv(client, 1) == b"H"
            started = time.monotonic()
            async with asyncio.timeout(10):
                await serving.aclose()
            assert time.monotonic() - started < 5

    asyncio.run(main())


# --- settings -----------------------------------------------------------------------------------


def ask(
    method: str,
    headers: Mapping[str, str],
    *,
    token: str | None = None,
    data: bytes | None = None,
    settings: LiveSettings | None = None,
) -> tuple[int, dict[str, Any]]:
    """Ask a server for `/config`, and get the status and the page."""

    async def main() -> tuple[int, dict[str, Any]]:
        async with (
            serve("127.0.0.1", 0, pages(settings=settings), token) as port,
            aiohttp.ClientSession() as http,
            http.request(
                method, f"http://127.0.0.1:{port}/config", headers=headers, data=data
            ) as response,
        ):
            return response.status, orjson.loads(await response.read())

    return asyncio.run(main())


JSON = {"Content-Type": "application/json"}


def test_settings_are_shown_with_where_they_came_from_and_without_secrets() -> None:
    status, page = ask("GET", {})
    assert status == 200
    rows = {row["key"]: row for row in page["settings"]}
    assert rows["flush.interval"] == {
        "key": "flush.interval", "value": "1s", "origin": "default", "live": True,
    }  # fmt: skip
    assert rows["segment.write_key"]["value"] == "set, from SEGMENT_API_WRITE_KEY"
    assert not rows["segment.write_key"]["live"]
    assert "nobody-may-see" not in orjson.dumps(page).decode()


def test_a_change_is_answered_with_what_was_and_what_is() -> None:
    settings = live_settings()
    data = b'{"flush.interval": "5s", "flush.max_calls": 100}'
    status, page = ask("PATCH", JSON, data=data, settings=settings)
    assert (status, page) == (
        200,
        {
            "before": {"flush.interval": "1s", "flush.max_calls": "2500"},
            "after": {"flush.interval": "5s", "flush.max_calls": "100"},
        },
    )
    assert settings.config.flush.interval == 5.0


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b'{"flush.interval": "5s", "flush.max_calls": 0}', "flush.max_calls = 0: must be a whole number"),
        (b'{"kafka.topics": "other", "flush.interval": "5s"}', "kafka.topics: can't change while streamer runs"),
        (b'{"flush.intervall": "5s"}', "did you mean flush.interval?"),
        (b'{"flush.interval": {"a": 1}}', "flush.interval"),
        (b'{"flush": {"interval": "5s"}}', "flush: is a section; name its settings by dotted keys"),
        (b"[1]", "send a JSON object"),
        (b"{}", "send a JSON object"),
        (b"\xff", "no JSON"),
    ],
)  # fmt: skip
def test_a_wrong_change_changes_nothing_and_is_explained(data: bytes, sentence: str) -> None:
    settings = live_settings()
    before = settings.config
    status, page = ask("PATCH", JSON, data=data, settings=settings)
    assert status == 400
    assert sentence in " ".join(page["errors"])
    assert settings.config is before


@pytest.mark.parametrize(
    ("request_line", "headers"),
    [
        ("/config", ["Host: localhost", "Host: evil.example"]),
        ("/config", ["Host: localhost", "Origin: http://localhost", "Origin: http://evil.example"]),
        ("/config", ["Host: localhost", "Sec-Fetch-Site: none", "Sec-Fetch-Site: cross-site"]),
        ("http://evil.example/config", ["Host: localhost"]),
        ("/metrics/../config", ["Host: evil.example"]),
        ("/%63onfig", ["Host: evil.example"]),
        ("//config", ["Host: evil.example"]),
    ],
)
def test_what_no_browser_sends_opens_nothing(request_line: str, headers: list[str]) -> None:
    async def main() -> bytes:
        async with serve("127.0.0.1", 0, pages()) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            lines = [f"GET {request_line} HTTP/1.1", *headers, "Connection: close", "", ""]
            writer.write("\r\n".join(lines).encode())
            answer = await reader.read()
            writer.close()
            return answer

    answer = asyncio.run(main())
    assert answer.split()[1] in {b"400", b"403"}
    assert b"flush.interval" not in answer


def test_a_body_that_isnt_compressed_as_it_says_is_refused() -> None:
    status, page = ask(
        "PATCH", {**JSON, "Content-Encoding": "gzip"}, data=b'{"flush.interval": "5s"}'
    )
    assert status == 400
    assert "Content-Encoding" in page["errors"][0]


def test_a_stop_doesnt_wait_for_who_watches_or_asks_half_a_question() -> None:
    watch = b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n"
    half = b"PATCH /config HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"

    async def main() -> float:
        clients = []
        async with serve("127.0.0.1", 0, pages()) as port:
            for text in [watch] * 200 + [half] * 50:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(text)
                clients.append(writer)
            await asyncio.sleep(0.1)
            began = time.monotonic()
        took = time.monotonic() - began
        for writer in clients:
            writer.close()
        return took

    assert asyncio.run(main()) < 10  # a minute is what an HTTP server of aiohttp's waits by default


def test_what_is_too_large_or_no_json_by_its_type_is_refused() -> None:
    assert ask("PATCH", {"Content-Type": "text/plain"}, data=b'{"flush.interval": "5s"}')[0] == 415

    async def main() -> int:
        async with serve("127.0.0.1", 0, pages()) as port, aiohttp.ClientSession() as http:
            url = f"http://127.0.0.1:{port}/config"
            async with http.patch(url, headers=JSON, data=b" " * 20_000) as response:
                return response.status

    assert asyncio.run(main()) == 413


@pytest.mark.parametrize("method", ["GET", "PATCH"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:9464"},
        {"Host": "localhost.evil.example"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "10.0.0.1"},
        {"Host": "["},
        {"Host": ""},
        {"Host": "evil.example@localhost"},
        {"Host": "localhost/.evil.example"},
        {"Host": "localhost?.evil.example"},
        {"Host": "localhost#.evil.example"},
        {"Host": "localhost."},
        {"Host": "0.0.0.0:9464"},
        {"Host": "2130706433"},
        {"Host": "[2001:db8::1]"},
        {"Host": "[localhost]"},
        {"Host": "localhost:port"},
        {"Via": "1.1 proxy.example"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "https://localhost"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"X-Forwarded-For": "192.0.2.1"},
        {"Forwarded": "for=192.0.2.1"},
        {"Authorization": "Bearer a-token-of-some-lengtx", "Host": "evil.example"},
        {"Authorization": f"Basic {TOKEN}", "Host": "evil.example"},
        {"Authorization": "Bearer", "Host": "evil.example"},
    ],
)
def test_another_sites_page_or_another_machine_sees_and_changes_nothing(
    headers: dict[str, str], method: str
) -> None:
    settings = live_settings()
    before = settings.config
    for token, refusal in ((None, 403), (TOKEN, 401)):
        status, page = ask(
            method,
            {**JSON, **headers},
            token=token,
            data=b'{"flush.interval": "5s"}',
            settings=settings,
        )
        assert status == refusal
        assert "server.token" in page["errors"][0]
        assert TOKEN not in str(page)
    assert settings.config is before


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Host": "localhost:1"},
        {"Host": "LOCALHOST"},
        {"Host": "[::1]:9464"},
        {"Host": "[::ffff:127.0.0.1]"},
        {"Host": "localhost:1", "Origin": "http://localhost:1", "Sec-Fetch-Site": "same-origin"},
        {"Host": "streamer.example", "Origin": "http://evil.example", "Authorization": f"Bearer {TOKEN}"},
        {"X-Forwarded-For": "192.0.2.1", "Authorization": f"bearer  {TOKEN} "},
    ],
)  # fmt: skip
def test_this_machine_and_who_has_the_token_may(headers: dict[str, str]) -> None:
    status, page = ask("PATCH", {**JSON, **headers}, token=TOKEN, data=b'{"flush.interval": "5s"}')
    assert (status, page.get("errors")) == (200, None)


def test_no_page_may_be_framed_or_kept() -> None:
    async def main() -> None:
        async with serve("127.0.0.1", 0, pages()) as port, aiohttp.ClientSession() as http:
            for path in ("/config", "/metrics", "/readyz"):
                async with http.get(f"http://127.0.0.1:{port}{path}") as response:
                    assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]
                    assert response.headers["Cache-Control"] == "no-store"
                    assert response.headers["X-Content-Type-Options"] == "nosniff"

    asyncio.run(main())
