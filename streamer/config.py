"""Every setting of streamer: read, laid one over another, and validated once.

Altis's composer.json, then a TOML file, then environment variables, then flags, each over the one
before; only the first has a form of its own. What comes out is a
frozen `Config` whose values are plain seconds and bytes, which knows where each value came from,
and which can't show a secret. All that is wrong in one load is said in one `ConfigError`, a line
each.

Why the layers aren't pydantic-settings sources: those read the process's environment only, ignore a
variable whose name is misspelt, and forget where a value came from.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import ssl
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PrivateAttr,
    SecretStr,
    ValidationError,
    model_validator,
)

from streamer.core.model import CALL_TYPES
from streamer.errors import ConfigError

ENVIRONMENT_PREFIX = "STREAMER_"
WRITE_KEY_VARIABLE = "SEGMENT_API_WRITE_KEY"
"""The write key's variable, as Segment's PHP integration and SDKs have it."""

ALTIS_KEY = "extra.altis.modules.analytics.integrations.segment"
"""Where Altis keeps the configuration of its Segment integration in composer.json."""

# One Segment call may have 32,000 bytes; a batch adds its envelope to it.
SMALLEST_BATCH_BYTES = 33_000
# Segment's limit of 500 KB for a body, in decimal kilobytes to be safe.
LARGEST_BATCH_BYTES = 500_000
# Segment throws a batch of more calls away and answers 200.
LARGEST_BATCH_CALLS = 2_500
# What one fetch brings of one partition: aiokafka's max_partition_fetch_bytes.
CHUNK_BYTES = 1024 * 1024

_ENDPOINTS = {
    "us": "https://api.segment.io/v1/batch",
    "eu": "https://events.eu1.segmentapis.com/v1/batch",
}

ADAPTIVE: Final = "adaptive"
"""Of `flush.concurrency`: the number of requests in flight is found while running."""
MOST_CONCURRENCY = 256
"""The greatest number that `flush.concurrency` may be."""

_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_SIZE_UNITS = {
    "b": 1,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "kib": 1024,
    "mib": 1024**2,
    "gib": 1024**3,
}


class _ProblemsError(ValueError):
    """What is wrong with settings that are each right by themselves.

    Attributes:
        problems: pairs of a dotted key below the section and a sentence.
    """

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(sentence for _, sentence in problems))
        self.problems = problems


# --- one kind of value each: what people write, to what the code uses -----------------------------


def parse_duration(value: object) -> float:
    """Read a duration as people write it.

    Args:
        value: a number and a unit: `"250ms"`, `"1s"`, `"1.5s"`, `"10m"`, `"6h"`.

    Returns:
        Seconds.

    Raises:
        ValueError: it isn't one; the text says what is allowed.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError(  # noqa: TRY004 - pydantic collects ValueErrors
            f'a duration needs a unit, in quotes: "{value}s" for seconds, "{value}ms" for thousandths'
        )
    text = value.strip() if isinstance(value, str) else ""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h)", text, re.ASCII)
    if match is None:
        raise ValueError(
            'must be a duration: a number and ms, s, m or h, such as "250ms", "1.5s" or "10m"'
        )
    # Rounded to whole microseconds, so that "250ms" is 0.25 and not what binary fractions make of
    # it.
    return round(float(match[1]) * _DURATION_UNITS[match[2]], 6)


def parse_size(value: object) -> int:
    """Read a size as people write it.

    Args:
        value: bytes as a whole number, or with a unit: `475_000`, `"32MB"` (decimal), `"1MiB"`
            (binary).

    Returns:
        Bytes.

    Raises:
        ValueError: it isn't one; the text says what is allowed.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    text = value.strip().lower() if isinstance(value, str) else ""
    match = re.fullmatch(r"([\d_]*\d[\d_]*(?:\.\d+)?)\s*([kmg]?i?b)?", text, re.ASCII)
    if match is None or (match[2] or "b") not in _SIZE_UNITS:
        raise ValueError(
            'must be a size: bytes as a whole number, or such as "475kB", "32MB" or "1MiB"'
        )
    size = float(match[1].replace("_", "")) * _SIZE_UNITS[match[2] or "b"]
    if not size.is_integer():
        raise ValueError("must be a whole number of bytes")
    return int(size)


def duration_text(seconds: float) -> str:
    """Write seconds as `parse_duration` reads them, in the largest unit that needs no fraction."""
    for unit in ("h", "m", "s"):
        count = seconds / _DURATION_UNITS[unit]
        if seconds and count.is_integer():
            return f"{count:.0f}{unit}"
    return f"{seconds * 1000:.3f}".rstrip("0").rstrip(".") + "ms" if seconds else "0s"


def size_text(size: int) -> str:
    """Write bytes as `parse_size` reads them, in the largest unit that needs no fraction."""
    for unit, name in ((1024**3, "GiB"), (1000**3, "GB"), (1024**2, "MiB"), (1000**2, "MB")):
        if size and size % unit == 0:
            return f"{size // unit}{name}"
    return f"{size:_}"


def _duration(least: str, most: str) -> BeforeValidator:
    low, high = parse_duration(least), parse_duration(most)

    def validate(value: object) -> float:
        seconds = parse_duration(value)
        if not low <= seconds <= high:
            raise ValueError(f"must be from {least} to {most}")
        return seconds

    return BeforeValidator(validate)


def _size(least: int, most: int | None) -> BeforeValidator:
    def validate(value: object) -> int:
        size = parse_size(value)
        if size < least or (most is not None and size > most):
            limit = f"at least {least:_}" if most is None else f"from {least:_} to {most:_}"
            raise ValueError(f"must be {limit} bytes")
        return size

    return BeforeValidator(validate)


def _whole_from_to(value: object, least: int, most: int) -> int:
    if isinstance(value, str) and re.fullmatch(r"\d[\d_]{0,20}", value.strip(), re.ASCII):
        value = int(value.strip().replace("_", ""))
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"must be a whole number from {least} to {most}")
    return value


def _whole(least: int, most: int) -> BeforeValidator:
    return BeforeValidator(lambda value: _whole_from_to(value, least, most))


def _is_concurrency(value: object) -> object:
    if isinstance(value, str) and value.strip().lower() == ADAPTIVE:
        return ADAPTIVE
    try:
        return _whole_from_to(value, 1, MOST_CONCURRENCY)
    except ValueError:
        raise ValueError(
            f'must be "{ADAPTIVE}" or a whole number from 1 to {MOST_CONCURRENCY}'
        ) from None


def _choice(*allowed: str) -> BeforeValidator:
    def validate(value: object) -> str:
        if isinstance(value, str):
            for choice in allowed:
                if value.strip().lower() == choice.lower():
                    return choice
        raise ValueError("must be " + " or ".join(json.dumps(choice) for choice in allowed))

    return BeforeValidator(validate)


def _is_boolean(value: object) -> bool:
    if isinstance(value, bool):
        return value
    known = {"true": True, "1": True, "false": False, "0": False}  # as environments say it
    if isinstance(value, str) and value.strip().lower() in known:
        return known[value.strip().lower()]
    raise ValueError("must be true or false")


def _is_text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("must be text in quotes, and not empty")
    return value.strip()


def _is_secret(value: object) -> SecretStr:
    if isinstance(value, SecretStr):
        return value
    if not isinstance(value, str):
        raise ValueError("must be text in quotes")  # noqa: TRY004 - pydantic collects ValueErrors
    return SecretStr(value)


def _is_token(value: object) -> SecretStr:
    token = _is_secret(value).get_secret_value().strip()
    if not re.fullmatch(r"[!-~]{16,}", token):
        raise ValueError("must be 16 or more printable ASCII characters without spaces")
    return SecretStr(token)


def _is_write_key(value: object) -> SecretStr:
    # Keys mounted from secrets often end in a newline. An empty one is left for `require_write_key`
    # to say.
    key = _is_secret(value).get_secret_value().strip()
    if not re.fullmatch(
        r"[!-9;-~]*", key
    ):  # printable ASCII but the colon, which ends a user name in HTTP Basic
        raise ValueError("must be printable ASCII without spaces and colons, as Segment shows it")
    return SecretStr(key)


def _is_write_keys(value: object) -> dict[str, SecretStr]:
    keys = _from_json(value)
    if not isinstance(keys, dict):
        raise ValueError(  # noqa: TRY004 - as above
            'must be a table of sites, each with its write key, such as { "2" = "..." }'
        )
    found, wrong = {}, []
    for site, key in keys.items():
        try:
            found[site] = _is_write_key(key)
        except ValueError as error:
            wrong.append((site, str(error)))
    if wrong:
        raise _ProblemsError(wrong)
    return found


def _is_readable_file(value: object) -> Path:
    path = Path(_is_text(os.fspath(value) if isinstance(value, os.PathLike) else value))
    try:
        if not path.exists():
            raise ValueError("no such file")
        readable = path.is_file() and os.access(path, os.R_OK)
    except OSError:  # a folder on the way may not be entered
        readable = False
    if not readable:
        raise ValueError("must be a file that streamer may read")
    return path


def _is_path(value: object) -> Path:
    return Path(_is_text(os.fspath(value) if isinstance(value, os.PathLike) else value))


def _is_topic(value: object) -> str:
    # Kafka's rule: org.apache.kafka.common.internals.Topic. A consumer that subscribes to a name
    # that breaks it hangs.
    topic = _is_text(value)
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", topic) or topic in {".", ".."}:
        raise ValueError("must be a topic name: 1 to 249 of the characters A-Z a-z 0-9 . _ -")
    return topic


def _listed(value: object, what: str) -> list[str]:
    """A list of texts; from an environment variable it is one text with commas."""
    items = value.split(",") if isinstance(value, str) else value
    if (
        not isinstance(items, list | tuple)
        or not items
        or not all(isinstance(item, str) for item in items)
    ):
        raise ValueError(f"must be {what}")
    return [item.strip() for item in items]


def _is_topics(value: object) -> tuple[str, ...]:
    if value == ():  # what `KafkaSettings` puts in place of the default beside a pattern
        return ()
    topics = tuple(
        _is_topic(topic) for topic in _listed(value, 'a list of topic names, such as ["events"]')
    )
    if len(set(topics)) < len(topics):
        raise ValueError("names a topic twice")
    return topics


def _is_servers(value: object) -> tuple[str, ...]:
    rule = 'host:port, or several in a list or with commas between: "kafka-1:9092,kafka-2:9092"'
    servers = _listed(value, rule)
    for server in servers:
        match = re.fullmatch(r"(?:[^\s:/\[\],@]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})", server, re.ASCII)
        if match is None or not 0 < int(match[1]) < 65536:
            raise ValueError(f"must be {rule}")
    return tuple(servers)


def _is_pattern(value: object) -> str:
    text = _is_text(value)
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"must be a regular expression: {error}") from None
    return text


def _is_endpoint(value: object) -> str:
    url = _is_text(value)
    rule = "must be a whole URL without user or fragment, such as https://host/v1/batch"
    try:
        parts = urlsplit(url)
        valid = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        raise ValueError(rule) from None
    if (
        not valid
        or parts.scheme not in {"http", "https"}
        or parts.fragment
        or "@" in parts.netloc
        or re.search(r"[^!-~]", url)
    ):
        raise ValueError(rule)
    return url


def _from_json(value: object) -> object:
    """A tree from an environment variable is JSON; from a file it is a tree already."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError("must be a table in the file, or JSON in the environment") from None


def _is_mapping(value: object) -> dict[str, dict[str, Any]]:
    trees = _from_json(value)
    if not isinstance(trees, dict):
        raise ValueError("must be a table of a table for each call type")  # noqa: TRY004 - as above
    problems = []
    for call_type, tree in trees.items():
        if call_type not in CALL_TYPES:
            problems.append(
                (call_type, _unknown(f"transform.mapping.{call_type}", _mapping_keys()))
            )
        elif not isinstance(tree, dict):
            problems.append((call_type, "must be a table: a mapping tree"))
    if problems:
        raise _ProblemsError(problems)
    return trees


def _is_names(value: object) -> tuple[str, ...]:
    """A list of texts, which may be empty; from an environment variable it is one text with commas."""
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(n, str) and n for n in names):
        raise ValueError('must be a list of texts that aren\'t empty, such as ["a", "b"]')
    return tuple(names)


def _is_sample(value: object) -> dict[str, float]:
    shares = _from_json(value)
    if not isinstance(shares, dict):
        raise ValueError("must be a table of event types, each with a share from 0 to 1")  # noqa: TRY004 - as above
    wrong = [
        (event_type, "must be a share of users, a number from 0 to 1")
        for event_type, share in shares.items()
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1
    ]
    if wrong:
        raise _ProblemsError(wrong)
    return {event_type: float(share) for event_type, share in shares.items()}


Names = Annotated[tuple[str, ...], BeforeValidator(_is_names)]
Boolean = Annotated[bool, BeforeValidator(_is_boolean)]
Text = Annotated[str, BeforeValidator(_is_text)]
Topic = Annotated[str, BeforeValidator(_is_topic)]
ReadableFile = Annotated[Path, BeforeValidator(_is_readable_file)]
Secret = Annotated[SecretStr, BeforeValidator(_is_secret)]


# --- the settings ---------------------------------------------------------------------------------


class _Section(BaseModel):
    # Secrets in a wrong place must not come back in an error's text, nor pydantic's words in ours.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class KafkaSettings(_Section):
    """`[kafka]`: where records come from.

    Attributes:
        bootstrap_servers: host:port of the brokers to ask first.
        topics: the topics to read; empty if `topic_pattern` is set.
        topic_pattern: reads every topic whose name this regular expression matches from its start.
        group_id: the consumer group; its members share the partitions.
        auto_offset_reset: where a group without a committed offset starts: `earliest` or `latest`.
        isolation_level: `read_committed`, or `read_uncommitted` to forward what transactions take back too.
        session_timeout: seconds without a heartbeat after which the group goes on without this
            member.
        security_protocol: `PLAINTEXT`, `SSL`, `SASL_PLAINTEXT` or `SASL_SSL`.
        sasl_mechanism: `PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`, with a SASL protocol.
        sasl_username: the user, for any mechanism.
        sasl_password: the user's password.
        ssl_cafile: PEM file of the certificates to trust; without it those of the system.
        ssl_certfile: PEM file of the client's own certificate.
        ssl_keyfile: PEM file of its private key, unless `ssl_certfile` has that too.
    """

    bootstrap_servers: Annotated[tuple[str, ...], BeforeValidator(_is_servers)] = (
        "localhost:9092",
    )
    topics: Annotated[tuple[str, ...], BeforeValidator(_is_topics)] = ("analytics-events",)
    topic_pattern: Annotated[str, BeforeValidator(_is_pattern)] | None = None
    group_id: Text = "streamer"
    auto_offset_reset: Annotated[str, _choice("earliest", "latest")] = "earliest"
    isolation_level: Annotated[str, _choice("read_committed", "read_uncommitted")] = (
        "read_committed"
    )
    # What brokers allow by default: group.min.session.timeout.ms and group.max.session.timeout.ms.
    session_timeout: Annotated[float, _duration("6s", "30m")] = 45.0
    security_protocol: Annotated[str, _choice("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")] = (
        "PLAINTEXT"
    )
    sasl_mechanism: Annotated[str, _choice("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")] | None = None
    sasl_username: Text | None = None
    sasl_password: Secret | None = None
    ssl_cafile: ReadableFile | None = None
    ssl_certfile: ReadableFile | None = None
    ssl_keyfile: ReadableFile | None = None

    @model_validator(mode="before")
    @classmethod
    def _a_pattern_replaces_the_default_topic(cls, data: object) -> object:
        if (
            isinstance(data, dict)
            and data.get("topic_pattern") is not None
            and "topics" not in data
        ):
            return {**data, "topics": ()}
        return data

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        problems = []
        if self.topics and self.topic_pattern:
            problems.append(
                ("topics", "topics and topic_pattern are both set; exactly one of them is allowed")
            )
        sasl = self.security_protocol.startswith("SASL")
        for key in ("sasl_mechanism", "sasl_username", "sasl_password"):
            if sasl and not _given(getattr(self, key)):
                problems.append(
                    (key, f'must be set: security_protocol is "{self.security_protocol}"')
                )
            elif not sasl and getattr(self, key) is not None:
                problems.append(
                    (
                        key,
                        'has no effect without security_protocol = "SASL_SSL" or "SASL_PLAINTEXT"',
                    ),
                )
        if not self.security_protocol.endswith("SSL"):
            problems += [
                (key, 'has no effect without security_protocol = "SSL" or "SASL_SSL"')
                for key in ("ssl_cafile", "ssl_certfile", "ssl_keyfile")
                if getattr(self, key) is not None
            ]
        elif self.ssl_keyfile and not self.ssl_certfile:
            problems.append(("ssl_keyfile", "has no effect without ssl_certfile"))
        if problems:
            raise _ProblemsError(problems)
        return self

    def consumes(self, topic: str) -> bool:
        """Tell whether records of `topic` would be read."""
        # As aiokafka does it: match, not fullmatch.
        return topic in self.topics or bool(
            self.topic_pattern and re.match(self.topic_pattern, topic)
        )

    def connection(self) -> dict[str, Any]:
        """How any aiokafka client reaches these brokers, as its arguments, password in the clear.

        Raises:
            ConfigError: a certificate or key can't be used.
        """
        options: dict[str, Any] = {
            "bootstrap_servers": list(self.bootstrap_servers),
            "security_protocol": self.security_protocol,
        }
        if self.security_protocol.endswith("SSL"):
            options["ssl_context"] = self._ssl_context()
        if self.security_protocol.startswith("SASL"):
            options["sasl_mechanism"] = self.sasl_mechanism
            options["sasl_plain_username"] = self.sasl_username
            options["sasl_plain_password"] = (
                self.sasl_password.get_secret_value() if self.sasl_password else None
            )
        return options

    def _ssl_context(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self.ssl_cafile)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"kafka.ssl_cafile = {_shown(self.ssl_cafile)}: holds no usable PEM certificates:"
                f" {error}"
            ) from None
        if self.ssl_certfile:
            try:
                # The password says: fail instead of asking on the terminal for an encrypted key's.
                context.load_cert_chain(self.ssl_certfile, self.ssl_keyfile, password="")
            except (OSError, ssl.SSLError) as error:
                raise ConfigError(
                    f"kafka.ssl_certfile = {_shown(self.ssl_certfile)}: must be a PEM certificate, with"
                    f" its unencrypted private key there or in kafka.ssl_keyfile: {error}"
                ) from None
        return context


def _is_plain_path(value: object) -> str:
    path = _is_text(value)
    if "|" in path or not all(path.split(".")):
        raise ValueError('must be a plain path, such as "attributes.blogId", without a callback')
    return path


class SitesSettings(_Section):
    """`[segment.sites]`: another write key for each site of a network.

    Attributes:
        field: the path of what tells the site of an event.
        write_keys: what stands there, as text, to the site's write key; an empty one keeps the site's events back. A
            site that isn't listed has `segment.write_key`.
    """

    field: Annotated[str, BeforeValidator(_is_plain_path)] = "attributes.blogId"
    write_keys: Annotated[dict[str, SecretStr], BeforeValidator(_is_write_keys)] = {}


class SegmentSettings(_Section):
    """`[segment]`: where calls go.

    Attributes:
        enabled: false makes `streamer run` stop at once, with status 0.
        write_key: the source's write key; also from the variable `SEGMENT_API_WRITE_KEY`.
        region: `us` or `eu`.
        endpoint: the whole URL to post batches to, in place of the region's.
        gzip: whether bodies are compressed.
        timeout: seconds that one request may take.
        max_hold: seconds that calls wait for a write key that nothing goes to, while others deliver; and that a call is
            refused which is all there is of its write key.
        sites: other write keys.
    """

    enabled: Boolean = True
    write_key: Annotated[SecretStr, BeforeValidator(_is_write_key)] | None = None
    region: Annotated[str, _choice("us", "eu")] = "us"
    endpoint: Annotated[str, BeforeValidator(_is_endpoint)] | None = None
    gzip: Boolean = True
    timeout: Annotated[float, _duration("100ms", "10m")] = 15.0
    max_hold: Annotated[float, _duration("1s", "720h")] = 21_600.0
    sites: SitesSettings = SitesSettings()

    @property
    def url(self) -> str:
        """The URL in effect."""
        return self.endpoint or _ENDPOINTS[self.region]


class TransformSettings(_Section):
    """`[transform]`: what becomes of an event.

    Attributes:
        profile: what the calls are made for: `default`, or `altis` for value for value what the PHP integration sends.
        drop_events: event types that aren't forwarded.
        drop_traits: keys that are in no call's `traits` or `context.traits`.
        drop_properties: keys that are in no call's `properties` or `context.page`.
        sample: event type to the share of users, from 0 to 1, whose events are forwarded.
        mapping: call type to the tree that is laid over that of the profile, deep. The trees'
            grammar is checked where they are compiled.
    """

    profile: Annotated[str, _choice("default", "altis")] = "default"
    drop_events: Names = ()
    drop_traits: Names = ()
    drop_properties: Names = ()
    sample: Annotated[dict[str, float], BeforeValidator(_is_sample)] = {}
    mapping: Annotated[dict[str, dict[str, Any]], BeforeValidator(_is_mapping)] = {}


GROUP_KEYS = (
    "anonymousId",
    "userId",
    "timestamp",
    "receivedAt",
    "messageId",
    "context",
    "integrations",
)
"""What a group map may lay over the mapping of group calls, beside `traits`."""


class GroupMap(_Section):
    """`[[groups]]`: one group call for each record that has a value at `field`.

    Beside these, keys of a group call (`GROUP_KEYS`) may stand there, with mappings that lie over those of
    `transform.mapping.group`.

    Attributes:
        field: the path of the groupId.
        traits: the mapping of the group's traits.
        each: whether a list at `field` makes a call for each of its elements.
    """

    model_config = ConfigDict(extra="allow")

    field: Text
    traits: Any = None
    each: Boolean = False

    @model_validator(mode="after")
    def _has_keys_of_a_group_call(self) -> Self:
        known = [*type(self).model_fields, *GROUP_KEYS]
        wrong = [key for key in self.model_extra or {} if key not in GROUP_KEYS]
        if wrong:
            near = {key: _nearest(key, known, 0.6) for key in wrong}
            raise _ProblemsError(
                [
                    (
                        key,
                        f"unknown setting; did you mean {near[key]}?"
                        if near[key]
                        else f"unknown setting; a group map has {', '.join(known)}",
                    )
                    for key in wrong
                ]
            )
        return self


class AggregateSettings(_Section):
    """`[aggregate]`: which calls of one profile are merged while they wait, and which needn't be sent.

    Attributes:
        identify: whether identify calls are merged.
        group: whether group calls are.
        suppress_for: seconds since its last delivery in which what a profile has is not sent again;
            0 sends everything. The topics have to be partitioned by user.
        ignore_traits: names of traits whose change alone is no reason to send a call.
    """

    identify: Boolean = True
    group: Boolean = True
    suppress_for: Annotated[float, _duration("0s", "24h")] = 0.0
    ignore_traits: Names = ()


class FlushSettings(_Section):
    """`[flush]`: when a batch closes, and how many requests run.

    Attributes:
        interval: seconds after which the oldest call's batch closes.
        max_calls: calls in a batch.
        max_bytes: bytes of a batch's body, before compression.
        concurrency: requests in flight at most; `adaptive` for a number that is found while running.
        max_requests_per_second: requests started a second at most.
        memory_budget: bytes that one process holds at most, of records, calls and bodies together.
    """

    interval: Annotated[float, _duration("100ms", "24h")] = 1.0
    max_calls: Annotated[int, _whole(1, LARGEST_BATCH_CALLS)] = LARGEST_BATCH_CALLS
    max_bytes: Annotated[int, _size(SMALLEST_BATCH_BYTES, LARGEST_BATCH_BYTES)] = 475_000
    concurrency: Annotated[int | Literal["adaptive"], BeforeValidator(_is_concurrency)] = ADAPTIVE
    max_requests_per_second: Annotated[int, _whole(1, 100_000)] = 1000
    memory_budget: Annotated[int, _size(1, None)] = 32_000_000

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        sentence = self.budget_problem()
        if sentence:
            raise _ProblemsError([("memory_budget", sentence)])
        return self

    def budget_problem(self) -> str:
        """Say what the memory budget must be, if it is too small for the batches; else nothing."""
        least = 4 * (self.max_bytes + CHUNK_BYTES)
        if self.memory_budget >= least:
            return ""
        return (
            f"must be at least {least:_} bytes: four times max_bytes ({self.max_bytes:_}) and a"
            f" chunk of records ({CHUNK_BYTES:_})"
        )


class DeadLetterSettings(_Section):
    """`[dead_letter]`: where goes what can't be delivered. Exactly one of the two is set.

    Attributes:
        topic: a Kafka topic; by default the first topic's name and `.dead-letter`.
        file: an NDJSON file.
    """

    topic: Topic | None = None
    file: Annotated[Path, BeforeValidator(_is_path)] | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.topic and self.file:
            raise _ProblemsError(
                [("topic", "topic and file are both set; exactly one of them is allowed")]
            )
        return self


class ServerSettings(_Section):
    """`[server]`: where `/metrics`, `/healthz`, `/readyz` and `/config` answer.

    Attributes:
        host: the address to listen on.
        port: the port; 0 takes any that is free.
        token: who has it may see and change settings from elsewhere than this machine.
    """

    host: Text = "127.0.0.1"
    port: Annotated[int, _whole(0, 65535)] = 9464
    token: Annotated[SecretStr, BeforeValidator(_is_token)] | None = None


def _is_groups(value: object) -> object:
    groups = _from_json(value)
    if not isinstance(groups, list | tuple):
        raise ValueError("must be tables [[groups]], each with a field")  # noqa: TRY004 - as above
    return groups


class Config(_Section):
    """All settings in effect. `load_config` makes it.

    Attributes:
        plugins: modules with site code, which registers hooks: see `streamer.hooks`.
        hook_timeout: seconds that a handler of a hook may take for one chunk of records, or for one request.
        shutdown_timeout: seconds that a clean stop waits for what is under way.
    """

    plugins: Names = ()
    hook_timeout: Annotated[float, _duration("100ms", "2m")] = 10.0
    shutdown_timeout: Annotated[float, _duration("0s", "1h")] = 25.0
    kafka: KafkaSettings = KafkaSettings()
    segment: SegmentSettings = SegmentSettings()
    transform: TransformSettings = TransformSettings()
    groups: Annotated[tuple[GroupMap, ...], BeforeValidator(_is_groups)] = ()
    aggregate: AggregateSettings = AggregateSettings()
    flush: FlushSettings = FlushSettings()
    dead_letter: DeadLetterSettings = DeadLetterSettings()
    server: ServerSettings = ServerSettings()

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)
    _file: str | None = PrivateAttr(default=None)
    _altis: str | None = PrivateAttr(default=None)
    _altis_environments: tuple[str, ...] = PrivateAttr(default=())

    @property
    def origins(self) -> dict[str, str]:
        """Dotted key of every setting to its source: `default`, the file, a variable or a flag."""
        return {key: self._origins.get(key, "default") for key in SETTINGS}

    @property
    def file(self) -> str | None:
        """The TOML file that was read, as it was named."""
        return self._file

    @property
    def altis(self) -> str | None:
        """The composer.json that was read, as it was named."""
        return self._altis

    @property
    def notes(self) -> list[str]:
        """What a person should know of how the settings were read."""
        if not self._altis_environments:
            return []
        names = ", ".join(self._altis_environments)
        note = (
            f"{self._altis}: what extra.altis.environments ({names}) says of the Segment integration isn't read; say it"
            " in the TOML, or by environment variables"
        )
        return [note]

    @property
    def files(self) -> list[str]:
        """Every file that was read."""
        return [file for file in (self._file, self._altis) if file is not None]

    @model_validator(mode="after")
    def _has_a_dead_letter_topic(self) -> Self:
        topic = self.dead_letter.topic
        if topic is None and self.dead_letter.file is None:
            if not self.kafka.topics:
                raise _ProblemsError(
                    [
                        (
                            "dead_letter.topic",
                            "must be set (or dead_letter.file) beside kafka.topic_pattern",
                        )
                    ]
                )
            topic = f"{self.kafka.topics[0]}.dead-letter"
            try:
                dead_letter = DeadLetterSettings(topic=topic)
            except ValidationError:
                raise _ProblemsError(
                    [
                        (
                            "dead_letter.topic",
                            f"must be set: {_shown(topic)} is too long for a topic's name",
                        )
                    ]
                ) from None
            # The default hangs on another section. Only here, before anyone has seen the object, it
            # is still open.
            object.__setattr__(self, "dead_letter", dead_letter)
        if topic is not None and self.kafka.consumes(topic):
            source = (
                "kafka.topic_pattern matches it"
                if self.kafka.topic_pattern
                else "kafka.topics has it"
            )
            raise _ProblemsError(
                [
                    (
                        "dead_letter.topic",
                        f"{topic} is itself consumed ({source}): dead letters would go in circles",
                    )
                ]
            )
        return self


# --- reading --------------------------------------------------------------------------------------


def _settings(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _settings(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


SETTINGS: tuple[str, ...] = tuple(key for key, _ in _settings(Config))
"""The dotted key of every setting, in the order of the sections."""

_SECRETS = frozenset(
    key for key, field in _settings(Config) if "SecretStr" in str(field.annotation)
)
_DURATIONS = frozenset(key for key, field in _settings(Config) if field.annotation is float)
_SIZES = frozenset({"flush.max_bytes", "flush.memory_budget"})
_VARIABLES = {ENVIRONMENT_PREFIX + key.replace(".", "__").upper(): key for key in SETTINGS}


LIVE_SETTINGS = (
    "flush.interval",
    "flush.max_calls",
    "flush.max_bytes",
    "flush.concurrency",
    "flush.max_requests_per_second",
    "aggregate.suppress_for",
)
"""The settings that can change while streamer runs."""
LIVE_ORIGIN = "/config"
"""Where a setting came from that was changed over HTTP."""


def load_config(
    path: Path | None,
    overrides: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] = os.environ,
    altis: Path | None = None,
) -> Config:
    """Read every setting: Altis, the file, the environment, the flags, each over the one before.

    Args:
        path: the TOML file, None for none.
        overrides: dotted key to value, as flags give them; a value of None is a flag that wasn't
            given. A flag is named after the last part of its key: `server.port` is `--port`.
        environ: the variables: `STREAMER_FLUSH__INTERVAL` is `flush.interval`. Lists are written
            with commas, trees as JSON. An empty variable counts as not set.
        altis: Altis's composer.json, None for none: see `_from_altis`.

    Returns:
        The settings in effect.

    Raises:
        ConfigError: a file can't be read, or settings are wrong: a line for each of them. What
            the settings of a section say together is looked at once each is right by itself.
    """
    merged: dict[str, Any] = {}
    origins: dict[tuple[str, ...], str] = {}
    problems: list[str] = []
    environments: tuple[str, ...] = ()
    if altis is not None:
        found, problems, environments = _from_altis(altis)
        _lay(merged, {"segment": found}, str(altis), origins)
    if path is not None:
        _lay(merged, _read(path), str(path), origins)
    variables, unknown = _from_environment(environ)
    problems += unknown
    for variable, key, value in variables:
        _lay(merged, _nested(key, value), variable, origins)
    for key, value in (overrides or {}).items():
        if value is not None:
            flag = "--" + key.rpartition(".")[2].replace("_", "-")
            _lay(merged, _nested(key, value), flag, origins)
    try:
        config = Config.model_validate(merged)
    except ValidationError as error:
        problems += _explain(error, origins, merged, path)
    if problems:
        # Outside of the handler: pydantic's error holds what was given, and must not hang on ours.
        raise ConfigError("\n".join(problems))
    config._origins.update({key: _origin(tuple(key.split(".")), origins) for key in SETTINGS})  # noqa: SLF001 - ours
    config._file = None if path is None else str(path)  # noqa: SLF001 - the same
    config._altis = None if altis is None else str(altis)  # noqa: SLF001 - the same
    config._altis_environments = environments  # noqa: SLF001 - the same
    return config


def changed(before: Config, after: Config) -> dict[str, tuple[str, str]]:
    """Say which settings differ.

    Args:
        before: all settings, as they were.
        after: as they are.

    Returns:
        Dotted key to what it was and what it is, as a person reads them; secrets masked.
    """
    rows = zip(effective(before), effective(after), strict=True)
    return {
        old.key: (old.value, new.value)
        for old, new in rows
        if _value(before, old.key) != _value(after, old.key)
    }


def change_live(before: Config, values: Mapping[str, Any], origin: str = LIVE_ORIGIN) -> Config:
    """Change settings while streamer runs.

    Args:
        before: the settings in force.
        values: dotted key to value, written as in the file.
        origin: where they were given, as a person knows it.

    Raises:
        ConfigError: one of them is wrong, or can't change: a line for each.
    """
    merged: dict[str, Any] = {}
    origins: dict[tuple[str, ...], str] = {}
    problems = []
    for key, value in values.items():
        if key in LIVE_SETTINGS:
            _lay(merged, _nested(key, value), origin, origins)
        elif key in SETTINGS:
            can = ", ".join(LIVE_SETTINGS)
            problems.append(f"{key}: can't change while streamer runs; what can: {can}")
        elif any(setting.startswith(f"{key}.") for setting in SETTINGS):
            problems.append(
                f'{key}: is a section; name its settings by dotted keys, such as "flush.interval"'
            )
        else:
            problems.append(f"{key}: {_unknown(key, list(LIVE_SETTINGS))}")
    try:
        wanted = Config.model_validate(merged)
    except ValidationError as error:
        problems += _explain(error, origins, merged, None)
    if problems:
        raise ConfigError("\n".join(problems))
    wanted._origins.update(dict.fromkeys(values, origin))  # noqa: SLF001 - ours
    return take_live(before, wanted, values)


def take_live(before: Config, after: Config, keys: Iterable[str] = LIVE_SETTINGS) -> Config:
    """Take over what can change while streamer runs, and leave the rest as it is.

    Args:
        before: the settings in force.
        after: what is wanted.
        keys: what is taken of it.

    Raises:
        ConfigError: what can change doesn't go with what can't.
    """
    sections: dict[str, dict[str, object]] = {}
    for key in keys:
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = _value(after, key)
    update = {
        name: getattr(before, name).model_copy(update=values) for name, values in sections.items()
    }
    taken = before.model_copy(update=update)
    problem = taken.flush.budget_problem()
    if problem:
        raise ConfigError(
            f"flush.memory_budget, which can't change while streamer runs, {problem}; restart it, or leave"
            " flush.max_bytes as it is"
        )
    origins = before.origins | {key: after.origins[key] for key in keys}
    taken._origins = origins  # noqa: SLF001 - ours
    return taken


def require_write_key(config: Config, *, elsewhere: bool = False) -> str:
    """The write key in the clear, for who sends to Segment.

    Args:
        config: all settings.
        elsewhere: whether site code may have others.

    Returns:
        The key of the sites that have no other one; empty if there is none, and sites or site code have some.

    Raises:
        ConfigError: there is none at all.
    """
    key = config.segment.write_key
    if key is None or not key.get_secret_value():
        if elsewhere or any(map(_given, config.segment.sites.write_keys.values())):
            return ""
        file = config.file or "a file given with --config"
        composer = config.altis or "a composer.json given with --altis"
        raise ConfigError(
            f"no Segment write key: set segment.write_key in {file}, or {WRITE_KEY_VARIABLE}, or"
            f" {ALTIS_KEY}.api_key in {composer}"
        )
    return key.get_secret_value()


class Effective(NamedTuple):
    """One setting as a person reads it.

    Attributes:
        key: its dotted key.
        value: its value as it could be written in the file; a secret's says only whether it is set.
        origin: where it came from.
    """

    key: str
    value: str
    origin: str


def effective(config: Config) -> list[Effective]:
    """Every setting in effect, in the order of the sections, secrets masked."""
    rows = []
    for key, origin in config.origins.items():
        value = _value(config, key)
        if key in _SECRETS:
            text = f"set, from {origin}" if _given(value) else "not set"
            if isinstance(value, dict) and value:
                text = f"set for {', '.join(map(_shown, value))}, from {origin}"
        elif key in _DURATIONS:
            text = duration_text(value)
        elif key in _SIZES:
            text = size_text(value)
        elif key == "groups":
            text = _plain([group.model_dump(exclude_defaults=True) for group in value])
        else:
            text = "not set" if value is None or value == () else _plain(value)
        rows.append(Effective(key, text, origin))
    return rows


def _value(config: Config, key: str) -> Any:  # noqa: ANN401 - a setting's value is of any type
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _given(value: object) -> bool:
    if isinstance(value, dict):
        return bool(value)
    return bool(value.get_secret_value()) if isinstance(value, SecretStr) else value is not None


def _plain(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _text_of(path: Path, form: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        place = error.start
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from None
    # Outside of the handler: the error holds the whole file, and with it the secrets.
    raise ConfigError(f"{path}: {form} is UTF-8, and the byte at {place} isn't")


def _read(path: Path) -> dict[str, Any]:
    text = _text_of(path, "TOML")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        where = re.search(r"\(at (?:line (\d+), column (\d+)|end of document)\)", str(error))
        line = int(where[1]) if where and where[1] else len(text.splitlines())
        what = str(error).partition(" (at ")[0]
    except (ValueError, RecursionError):  # a number of thousands of digits, or as many brackets
        line, what = 1, "a number is too long, or something is nested too deeply"
    # Outside of the handler: the error holds the whole document, and with it the secrets.
    raise ConfigError(f"{path}, line {line}: not valid TOML: {what}")


def _from_altis(path: Path) -> tuple[dict[str, Any], list[str], tuple[str, ...]]:
    """What Altis's composer.json says of `[segment]`, what is wrong there, and which environments say something else.

    Read is `ALTIS_KEY` alone: an object with `enabled` and `api_key`, or true or false in its place. What is missing,
    null or, as PHP writes an object without keys, an empty list says nothing; all else is Altis's own.
    """
    text = _text_of(path, "JSON")
    try:
        document, mistake = json.loads(text), None
    except json.JSONDecodeError as error:
        mistake = f", line {error.lineno}: not valid JSON: {error.msg}"
    except (RecursionError, ValueError):  # of objects too deep, or of numbers too long
        mistake = ": JSON that can't be read: too deep, or with a number too long"
    if mistake is not None:
        # Outside of the handler: the error holds the whole document, and with it the secrets.
        raise ConfigError(f"{path}{mistake}")
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: must be a JSON object, as Composer has it")
    value = _within_json(document, ALTIS_KEY)
    of_each = _within_json(document, "extra.altis.environments")
    environments = tuple(
        name
        for name, one in (of_each.items() if isinstance(of_each, dict) else ())
        if _within_json(one, ALTIS_KEY.removeprefix("extra.altis.")) is not None
    )
    if value is None or value == []:
        return {}, [], environments
    if isinstance(value, bool):
        return {"enabled": value}, [], environments
    if not isinstance(value, dict):
        return {}, [f"{path}: {ALTIS_KEY}: must be an object, or true or false"], environments
    found: dict[str, Any] = {}
    problems = []
    enabled, key = value.get("enabled"), value.get("api_key")
    if isinstance(enabled, bool):
        found["enabled"] = enabled
    elif enabled is not None:
        problems.append(f"{path}: {ALTIS_KEY}.enabled: must be true or false")
    if key is not None and key != "":
        try:
            found["write_key"] = _is_write_key(key)
        except ValueError as error:
            problems.append(f"{path}: {ALTIS_KEY}.api_key: {error}")
    return found, problems, environments


def _within_json(value: Any, path: str) -> Any:  # noqa: ANN401 - any JSON value
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _from_environment(environ: Mapping[str, str]) -> tuple[list[tuple[str, str, str]], list[str]]:
    """The variables that are settings, as (variable, key, value); what is wrong with others."""
    found, problems = [], []
    if environ.get(WRITE_KEY_VARIABLE):
        found.append((WRITE_KEY_VARIABLE, "segment.write_key", environ[WRITE_KEY_VARIABLE]))
    collapsed = {variable.replace("__", "_"): variable for variable in _VARIABLES}
    for variable, value in sorted(environ.items()):
        if not variable.startswith(ENVIRONMENT_PREFIX) or not value:
            continue
        if variable in _VARIABLES:
            found.append((variable, _VARIABLES[variable], value))
        elif "__" in variable:
            near = _nearest(variable, list(_VARIABLES), 0.8)
            problems.append(
                f"{variable}: unknown setting" + (f"; did you mean {near}?" if near else "")
            )
        elif variable in collapsed and not value.startswith("tcp://"):
            # Kubernetes gives every container STREAMER_SERVICE_PORT and the like for a service
            # named streamer, and STREAMER_SERVER_PORT=tcp://… for one named streamer-server; so
            # other names without __ are no mistake.
            problems.append(f"{variable}: unknown setting; did you mean {collapsed[variable]}?")
    return found, problems


def _nested(key: str, value: object) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value  # type: ignore[return-value]  # a key has at least one part, so it is a dict by now


def _lay(
    below: dict[str, Any],
    above: Mapping[str, Any],
    origin: str,
    origins: dict[tuple[str, ...], str],
    path: tuple[str, ...] = (),
) -> None:
    """Lay one source over the others, table by table, and note which source each value is from."""
    for key, value in above.items():
        here = (*path, key)
        dotted = ".".join(here)
        if isinstance(value, Mapping) and (
            not path or any(name.startswith(dotted + ".") for name in SETTINGS)
        ):
            table = below.setdefault(key, {})
            if isinstance(
                table, dict
            ):  # else the source below has no table there, which is said as its mistake
                origins.setdefault(here, origin)
                _lay(table, value, origin, origins, here)
        else:
            below[key] = value
            origins[here] = origin


def _origin(path: tuple[str, ...], origins: Mapping[tuple[str, ...], str]) -> str:
    """The source of a setting; of what lies inside one, that one's."""
    for end in range(len(path), 0, -1):
        if path[:end] in origins and (end == len(path) or ".".join(path[:end]) in SETTINGS):
            return origins[path[:end]]
    return "default"


def _explain(
    error: ValidationError,
    origins: Mapping[tuple[str, ...], str],
    merged: Mapping[str, Any],
    file: Path | None,
) -> list[str]:
    """Say in the project's own words what pydantic found, a line for each."""
    lines = []
    for found in error.errors(include_url=False):
        path = tuple(str(part) for part in found["loc"])
        cause = found.get("ctx", {}).get("error")
        if isinstance(cause, _ProblemsError):
            for below, sentence in cause.problems:
                # A key of these two is free text; keys of settings have no quotes, so splitting at
                # dots is right.
                full = (
                    (*path, below)
                    if path in {("transform", "mapping"), ("transform", "sample")}
                    else (*path, *below.split("."))
                )
                lines.append(_line(full, sentence, origins, merged, file))
            continue
        if found["type"] == "extra_forbidden":
            sentence = _unknown(_dotted(path), _keys_near(path))
        elif found["type"] == "missing":
            sentence = "must be set"
        elif isinstance(cause, ValueError):
            sentence = str(cause)
        else:  # the sections' and group maps' own types are all that is left to pydantic
            sentence = "must be a table" if found["type"].startswith("model") else found["msg"]
        lines.append(_line(path, sentence, origins, merged, file))
    return lines


def _line(
    path: tuple[str, ...],
    sentence: str,
    origins: Mapping[tuple[str, ...], str],
    merged: Mapping[str, Any],
    file: Path | None,
) -> str:
    origin = origins.get(path) or _origin(path, origins)
    if origin == "default" and file is not None:
        origin = str(file)  # what should have been set there
    where = "" if origin == "default" else f"{origin}: "
    key = _dotted(path)
    value: Any = merged
    for part in path:
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list | tuple) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            value = None
            break
    # Only the value of a setting that is known and no secret: a misspelt key, or a table, may hold
    # one.
    known = key in SETTINGS or path[0] == "groups"
    hidden = key in _SECRETS or not known or sentence.startswith("unknown")
    if hidden or value is None or "@" in str(value):  # a URL's user and password stand before an @
        return f"{where}{key}: {sentence}"
    return f"{where}{key} = {_shown(value)}: {sentence}"


def _shown(value: object) -> str:
    """A value on one line, cut where it gets long."""
    text = _plain(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _dotted(path: tuple[str, ...]) -> str:
    """A key as TOML would write it, on one line; group maps are counted from 0."""
    return ".".join(
        part if re.fullmatch(r"[\w-]+", part, re.ASCII) else json.dumps(part) for part in path
    )


def _keys_near(path: tuple[str, ...]) -> list[str]:
    if path[0] == "groups" and len(path) > 1:
        return [f"groups.{path[1]}.{name}" for name in GroupMap.model_fields]
    return [*SETTINGS, *_mapping_keys()]


def _mapping_keys() -> list[str]:
    return [f"transform.mapping.{call_type}" for call_type in CALL_TYPES]


def _unknown(key: str, known: list[str]) -> str:
    section, _, name = key.rpartition(".")
    siblings = [_within(candidate, section) for candidate in known if _within(candidate, section)]
    elsewhere: dict[str, str] = {}
    for candidate in known:
        elsewhere.setdefault(candidate.rpartition(".")[2], candidate)
    if near := _nearest(name, siblings, 0.6):
        return f"unknown setting; did you mean {section + '.' if section else ''}{near}?"
    if near := _nearest(name, list(elsewhere), 0.8):
        meant = elsewhere[near]
        hint = "" if "." in meant else ", which stands above the first [section]"
        return f"unknown setting; did you mean {meant}{hint}?"
    if section and siblings:
        return f"unknown setting; {section} has {', '.join(siblings)}"
    return f"unknown setting; there are {', '.join(dict.fromkeys(key.partition('.')[0] for key in known))}"


def _within(key: str, section: str) -> str:
    """The next part of a key behind a section, empty if the key isn't in it."""
    if not section:
        return key.partition(".")[0]
    return (
        key.removeprefix(f"{section}.").partition(".")[0] if key.startswith(f"{section}.") else ""
    )


def _nearest(name: str, known: list[str], cutoff: float) -> str | None:
    close = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    return close[0] if close else None
