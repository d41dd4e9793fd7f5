"""One request as it came in, opened no further than somebody asks."""

from __future__ import annotations

import base64
import binascii
import re
import zlib
from dataclasses import dataclass, field
from json import JSONDecoder
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_BODY_BYTES = 500_000
"""Inflated bytes of a body: Segment's 500 KB, with a KB of 1,000 bytes."""

MAX_CALL_BYTES = 32_000
"""Bytes of one call as it was sent: Segment's 32 KB, with a KB of 1,000 bytes."""

_WRITE_KEY = re.compile(r"[\x21-\x7e]+")  # with white space in it, it isn't well formed
_JSON_SPACE = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True, slots=True)
class Answer:
    """What is sent back.

    Attributes:
        status: HTTP status.
        body: the bytes of the body.
        content_type: of the body.
        headers: further headers.
        refusal: a word for the statistics, where the request was refused.
    """

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    refusal: str | None = None


def _refused(refusal: str, message: str) -> Answer:
    body = {"success": False, "message": message, "code": "invalid_request"}
    return Answer(400, orjson.dumps(body), refusal=refusal)


SUCCESS = Answer(200, orjson.dumps({"success": True}))
INVALID_KEY = _refused("invalid_write_key", "An invalid write key was provided")
MALFORMED = _refused("malformed_json", "malformed JSON")
NOT_JSON = _refused("content_type", "Content-Type must be application/json")
CALL_TOO_LARGE = _refused("call_too_large", "Exceed payload limit")
REFUSED_CALL = _refused("refused_call", "A call of this batch was refused")
BODY_TOO_LARGE = Answer(400, b"Bad Request", "text/plain", refusal="body_too_large")


@dataclass(frozen=True, slots=True)
class Contents:
    """What stood in a body that is within the limits.

    Attributes:
        calls: the calls, decoded; of any JSON type.
        serialised: the same as compact JSON.
        sizes_bytes: the length of each as it was sent.
        sent_at: what stood in `sentAt`, None if nothing did.
        body_bytes: the inflated length of the body.
    """

    calls: list[Any]
    serialised: list[bytes]
    sizes_bytes: list[int]
    sent_at: Any
    body_bytes: int


class Request:
    """One request.

    Its write key is known without inflating and decoding the body, if the header has it: a burst of injected 503s costs
    the mock next to nothing.
    """

    def __init__(self, headers: Mapping[str, str], body: bytes) -> None:
        """Keep what came in.

        Args:
            headers: the request's; names must compare without regard to case, or be in the usual one.
            body: the body as it was sent, perhaps compressed.
        """
        self._headers = headers
        self._body = body
        self._document: dict[str, Any] | Answer | None = None
        self._text = b""

    def write_key(self) -> str | Answer:
        """Give the write key, or the answer that the request deserves for its want of one.

        The Authorization header decides if it is there: `Basic`, the write key as the user name, an empty password.
        Without it, `writeKey` in the body.
        """
        authorization = self._headers.get("Authorization")
        if authorization is not None:
            key = _basic_user(authorization)
        else:
            document = self._decode()
            if isinstance(document, Answer):
                return document
            key = document.get("writeKey")
        if not isinstance(key, str) or not _WRITE_KEY.fullmatch(key):
            return INVALID_KEY
        return key

    def contents(self) -> Contents | Answer:
        """Give the calls, or the answer that the body deserves."""
        document = self._decode()
        if isinstance(document, Answer):
            return document
        calls = document.get("batch")
        if not isinstance(calls, list) or not calls:
            return MALFORMED
        try:
            serialised = [orjson.dumps(call) for call in calls]
        except orjson.JSONEncodeError:  # orjson reads deeper nesting than it writes: 254 levels
            return MALFORMED
        sizes = [len(call) for call in serialised]
        # What the calls as sent can have more than their compact form: the envelope, white space and escapes. Only if
        # one could be over the limit with all of it, they are measured in the text, which takes longer.
        slack = len(self._text) - sum(sizes) - (len(calls) - 1)
        if slack < 0 or max(sizes) + slack > MAX_CALL_BYTES:
            sizes = sizes_as_sent(self._text)
            if max(sizes) > MAX_CALL_BYTES:
                return CALL_TOO_LARGE
        return Contents(calls, serialised, sizes, document.get("sentAt"), len(self._text))

    def _decode(self) -> dict[str, Any] | Answer:
        if self._document is None:
            self._document = self._read()
        return self._document

    def _read(self) -> dict[str, Any] | Answer:
        media_type = self._headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            return NOT_JSON
        encoding = self._headers.get("Content-Encoding", "identity").strip().lower()
        if encoding == "gzip":
            inflated = _inflate(self._body)
        elif encoding == "identity":
            inflated = self._body
        else:
            inflated = None
        if inflated is None:
            return MALFORMED
        if len(inflated) > MAX_BODY_BYTES:
            return BODY_TOO_LARGE
        self._text = inflated
        try:
            document = orjson.loads(inflated)
        except orjson.JSONDecodeError:
            return MALFORMED
        return document if isinstance(document, dict) else MALFORMED


def _basic_user(authorization: str) -> str | None:
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(credentials, validate=True).partition(b":")
    except binascii.Error:
        return None
    return user.decode("latin-1") if colon and not password else None


def _inflate(body: bytes) -> bytes | None:
    """Inflate one gzip member, no further than it takes to see that it is too long.

    With zlib, although isal is faster: a judge that shared the compressor of what it judges would share its errors.
    """
    inflater = zlib.decompressobj(wbits=31)
    try:
        text = inflater.decompress(body, MAX_BODY_BYTES + 1)
    except zlib.error:
        return None
    if len(text) > MAX_BODY_BYTES:
        return text
    return text if inflater.eof and not inflater.unused_data else None


def sizes_as_sent(body: bytes) -> list[int]:
    """Measure each call of a batch in the bytes that were sent, white space and escapes included.

    Args:
        body: an object with a list `batch`, already known to be valid JSON; if that key stands in it twice, the last.

    Returns:
        The bytes of each element.
    """
    text = body.decode()
    decode = JSONDecoder().raw_decode
    sizes: list[int] = []

    def skip(position: int) -> int:
        space = _JSON_SPACE.match(text, position)
        return position if space is None else space.end()

    position = skip(0) + 1  # behind the brace
    while text[position := skip(position)] != "}":
        name, position = decode(text, position)
        position = skip(skip(position) + 1)  # behind the colon
        if name == "batch" and text[position] == "[":
            sizes = []
            position += 1
            while text[position := skip(position)] != "]":
                _, end = decode(text, position)
                sizes.append(len(text[position:end].encode()))
                position = skip(end)
                position += text[position] == ","
            position += 1
        else:
            _, position = decode(text, position)
        position = skip(position)
        position += text[position] == ","
    return sizes
