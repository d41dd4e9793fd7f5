"""What stands in a request is read as it was sent, and its limits are counted in bytes."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.mock_segment.request import (
    BODY_TOO_LARGE,
    CALL_TOO_LARGE,
    INVALID_KEY,
    MALFORMED,
    MAX_BODY_BYTES,
    MAX_CALL_BYTES,
    NOT_JSON,
    Contents,
    Request,
    sizes_as_sent,
)

CALL = {"type": "track", "userId": "u", "event": "scroll", "messageId": "m"}


def basic(user: str, password: str = "") -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def request(body: bytes, **headers: str) -> Request:
    usual = {"Content-Type": "application/json", "Authorization": basic("key")}
    given_headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return Request(usual | given_headers, body)


def batch(*calls: object, **envelope: object) -> bytes:
    return orjson.dumps({"batch": calls, **envelope})


def call_of(size_bytes: int) -> dict[str, Any]:
    call = CALL | {"properties": {"x": ""}}
    call["properties"] = {"x": "x" * (size_bytes - len(orjson.dumps(call)))}
    return call


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Basic",
        "Basic %%%",
        "Bearer abc",
        basic(""),
        basic(" key"),
        basic("key\n"),
        basic("key", "password"),
        "Basic " + base64.b64encode(b"no-colon").decode(),
    ],
)
def test_refuses_an_empty_or_unusable_write_key_even_if_the_body_has_one(
    authorization: str,
) -> None:
    assert (
        request(batch(CALL, writeKey="k"), Authorization=authorization).write_key() == INVALID_KEY
    )


def test_finds_the_write_key_in_the_header_else_in_the_body() -> None:
    headers = {"Content-Type": "application/json"}
    assert request(batch(CALL, writeKey="in-body")).write_key() == "key"
    assert Request(headers, batch(CALL, writeKey="in-body")).write_key() == "in-body"
    for key in (None, "", 5, "a b"):
        assert Request(headers, batch(CALL, writeKey=key)).write_key() == INVALID_KEY
    assert Request(headers, batch(CALL)).write_key() == INVALID_KEY
    assert Request(headers, b"{").write_key() == MALFORMED


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"5",
        b"{}",
        b'{"batch": {}}',
        b'{"batch": []}',
        b'{"batch": [NaN]}',
        b'{"batch": ["\xff"]}',
        b'{"batch": [' + b"[" * 300 + b"]" * 300 + b"]}",
    ],
)
def test_refuses_what_is_no_json_object_with_calls(body: bytes) -> None:
    assert request(body).contents() == MALFORMED


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded"])
def test_wants_the_content_type_json(content_type: str) -> None:
    assert request(batch(CALL), Content_Type=content_type).contents() == NOT_JSON


def test_reads_identity_and_gzip_and_gives_the_same() -> None:
    body = batch(CALL, sentAt="2026-01-01T00:00:00Z")
    wanted = Contents(
        [CALL], [orjson.dumps(CALL)], [len(orjson.dumps(CALL))], "2026-01-01T00:00:00Z", len(body)
    )
    assert request(body, Content_Type="application/json; charset=utf-8").contents() == wanted
    assert request(gzip.compress(body), Content_Encoding="gzip").contents() == wanted
    assert request(body, Content_Encoding="identity").contents() == wanted


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (batch(CALL), "gzip"),
        (gzip.compress(batch(CALL))[:-1], "gzip"),
        (gzip.compress(batch(CALL)) + b"x", "gzip"),
        (gzip.compress(batch(CALL)), "identity"),
        (batch(CALL), "br"),
    ],
)
def test_refuses_a_body_that_is_not_encoded_as_it_says(body: bytes, encoding: str) -> None:
    assert request(body, Content_Encoding=encoding).contents() == MALFORMED


@pytest.mark.parametrize("compress", [False, True])
def test_counts_the_inflated_bytes_of_a_body_envelope_included(compress: bool) -> None:
    def answer(size_bytes: int) -> object:
        body = batch(CALL).ljust(size_bytes)
        if compress:
            return request(gzip.compress(body), Content_Encoding="gzip").contents()
        return request(body).contents()

    fits = answer(MAX_BODY_BYTES)
    assert isinstance(fits, Contents)
    assert fits.body_bytes == MAX_BODY_BYTES
    assert answer(MAX_BODY_BYTES + 1) == BODY_TOO_LARGE


def test_stops_inflating_at_the_limit() -> None:
    bomb = request(gzip.compress(bytes(50_000_000)), Content_Encoding="gzip")
    assert bomb.contents() == BODY_TOO_LARGE


@pytest.mark.parametrize("others", [0, 1, 10])
def test_refuses_a_batch_with_a_call_over_the_limit(others: int) -> None:
    neighbours = [call_of(20_000)] * others
    fits = request(batch(*neighbours, call_of(MAX_CALL_BYTES))).contents()
    assert isinstance(fits, Contents)
    assert fits.sizes_bytes == [20_000] * others + [MAX_CALL_BYTES]
    assert request(batch(*neighbours, call_of(MAX_CALL_BYTES + 1))).contents() == CALL_TOO_LARGE


def test_counts_a_call_as_it_was_sent_with_its_escapes_and_white_space() -> None:
    escaped = json.dumps({"batch": [CALL | {"properties": {"x": "é" * 6_000}}]}).encode()
    assert len(orjson.dumps(orjson.loads(escaped)["batch"][0])) < MAX_CALL_BYTES / 2
    assert request(escaped).contents() == CALL_TOO_LARGE


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


@settings(deadline=None)
@given(
    calls=st.lists(json_values, max_size=5),
    before=st.dictionaries(st.text(max_size=4), json_values, max_size=3),
    after=st.dictionaries(st.text(max_size=4), json_values, max_size=3),
    ascii_only=st.booleans(),
    gap=st.sampled_from(["", " ", "\n\t "]),
)
def test_measures_every_call_exactly_however_it_is_written(
    calls: list[Any], before: dict[str, Any], after: dict[str, Any], ascii_only: bool, gap: str
) -> None:
    def write(value: object) -> str:
        return json.dumps(value, ensure_ascii=ascii_only, separators=(f",{gap}", f":{gap}"))

    texts = [write(call) for call in calls]
    members = [f"{write(name)}{gap}:{gap}{write(value)}" for name, value in before.items()]
    members.append(f'"batch"{gap}:{gap}[{gap}' + f"{gap},{gap}".join(texts) + f"{gap}]")
    members += [f"{write(name)}:{write(value)}" for name, value in after.items() if name != "batch"]
    body = gap + "{" + gap + f"{gap},{gap}".join(members) + gap + "}" + gap
    try:
        encoded = body.encode()
    except UnicodeEncodeError:
        return  # a lone surrogate is no UTF-8, and the mock has refused it before
    assert sizes_as_sent(encoded) == [len(text.encode()) for text in texts]
