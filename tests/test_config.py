"""Behaviour of the configuration: layers, values as people write them, and mistakes told in one sentence each."""

from __future__ import annotations

import json
import re
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from streamer.config import (
    SETTINGS,
    Config,
    duration_text,
    effective,
    load_config,
    parse_duration,
    parse_size,
    require_write_key,
    size_text,
)
from streamer.errors import ConfigError

EXAMPLE = Path(__file__).parent.parent / "streamer.example.toml"
SECRET = "wk_9fJ2mQ7xTz"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "streamer.toml"


def load(text: str, file: Path, environ: dict[str, str] | None = None, **flags: Any) -> Config:
    file.write_text(text, encoding="utf-8")
    return load_config(
        file, {key.replace("__", "."): value for key, value in flags.items()}, environ or {}
    )


def mistakes(
    overrides: dict[str, Any] | None = None, environ: dict[str, str] | None = None
) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(None, overrides, environ or {})
    return str(caught.value).splitlines()


def mistakes_in(text: str, file: Path, environ: dict[str, str] | None = None) -> list[str]:
    """The lines of the error, without the file's name where they begin with it."""
    with pytest.raises(ConfigError) as caught:
        load(text, file, environ)
    assert "pydantic" not in str(caught.value)
    assert (
        caught.value.__context__ is None
    )  # what pydantic or tomllib raised holds what was given, and secrets
    return [line.removeprefix(f"{file}: ") for line in str(caught.value).splitlines()]


# --- layers ---


def test_nothing_set_gives_the_defaults() -> None:
    """Without file, variables and flags everything has its default, and says so."""
    config = load_config(None, None, {})
    assert config.kafka.bootstrap_servers == ("localhost:9092",)
    assert config.kafka.topics == ("analytics-events",)
    assert config.dead_letter.topic == "analytics-events.dead-letter"
    assert config.flush.interval == 1.0
    assert config.flush.memory_budget == 32_000_000
    assert config.shutdown_timeout == 25.0
    assert config.segment.url == "https://api.segment.io/v1/batch"
    assert set(config.origins.values()) == {"default"}
    assert config.file is None


def test_each_layer_lies_over_the_one_before(file: Path) -> None:
    """A variable goes over the file and a flag over both, setting by setting, and each origin is known."""
    config = load(
        '[flush]\ninterval = "5s"\nmax_calls = 10\nconcurrency = 2',
        file,
        {"STREAMER_FLUSH__INTERVAL": "500ms", "STREAMER_FLUSH__MAX_CALLS": "20"},
        flush__max_calls=30,
        server__port=None,
    )
    assert (config.flush.concurrency, config.flush.interval, config.flush.max_calls) == (2, 0.5, 30)
    origins = config.origins
    assert origins["flush.concurrency"] == str(file)
    assert origins["flush.interval"] == "STREAMER_FLUSH__INTERVAL"
    assert origins["flush.max_calls"] == "--max-calls"
    assert origins["server.port"] == "default"
    assert list(origins) == list(SETTINGS)
    assert config.file == str(file)


def test_every_setting_can_come_from_a_variable() -> None:
    """Each kind of value can be written in the environment: lists with commas, trees as JSON, numbers and booleans."""
    config = load_config(
        None,
        None,
        {
            "STREAMER_KAFKA__BOOTSTRAP_SERVERS": "a:1, b:2",
            "STREAMER_KAFKA__TOPICS": "x,y",
            "STREAMER_SEGMENT__GZIP": "False",
            "STREAMER_TRANSFORM__DROP_EVENTS": "scroll, _session.stop",
            "STREAMER_TRANSFORM__SAMPLE": '{"video.play": 1}',
            "STREAMER_TRANSFORM__MAPPING": '{"track": {"userId": "a.b"}}',
            "STREAMER_GROUPS": '[{"field": "a.0", "each": true}]',
            "STREAMER_FLUSH__MAX_BYTES": "400_000",
            "STREAMER_SHUTDOWN_TIMEOUT": "10s",
            "STREAMER_DEAD_LETTER__FILE": "letters.ndjson",
        },
    )
    assert config.kafka.bootstrap_servers == ("a:1", "b:2")
    assert config.kafka.topics == ("x", "y")
    assert config.segment.gzip is False
    assert config.transform.drop_events == ("scroll", "_session.stop")
    assert config.transform.sample == {"video.play": 1.0}
    assert config.transform.mapping == {"track": {"userId": "a.b"}}
    assert [(group.field, group.each) for group in config.groups] == [("a.0", True)]
    assert config.flush.max_bytes == 400_000
    assert config.shutdown_timeout == 10.0
    assert (config.dead_letter.topic, config.dead_letter.file) == (None, Path("letters.ndjson"))


def test_an_empty_variable_is_not_set() -> None:
    """A variable that is there but empty, as compose files make them, leaves the default."""
    config = load_config(None, None, {"STREAMER_FLUSH__INTERVAL": "", "SEGMENT_API_WRITE_KEY": ""})
    assert config.flush.interval == 1.0
    assert config.segment.write_key is None


def test_variables_of_others_are_left_alone() -> None:
    """What Kubernetes sets for services of these names, and streamer's own that are no settings, is no mistake."""
    load_config(
        None,
        None,
        {
            "STREAMER_SERVICE_HOST": "10.0.0.1",
            "STREAMER_SERVICE_PORT": "9464",
            "STREAMER_PORT": "tcp://10.0.0.1:9464",
            "STREAMER_SERVER_PORT": "tcp://10.0.0.1:9464",
            "STREAMER_LOG_FORMAT": "json",
            "STREAMER_REQUIRE_ALL": "1",
            "PATH": "/bin",
        },
    )


def test_the_example_holds_every_setting_with_its_default() -> None:
    """The example file sets every setting that has a default to that, and shows the others commented out."""
    config = load_config(EXAMPLE, None, {})
    assert config.model_dump() == load_config(None, None, {}).model_dump()
    unset = {row.key for row in effective(config) if row.origin == "default"}
    assert unset == {row.key for row in effective(config) if row.value in {"not set", "{}", "[]"}}
    text = EXAMPLE.read_text(encoding="utf-8")
    for key in unset - {"transform.mapping", "groups"}:
        section, _, name = key.rpartition(".")
        below = text.partition(f"\n[{section}]\n")[2] if section else text
        within = below.partition("\n[")[0]
        assert f"\n# {name} = " in within, key


def test_what_the_example_comments_out_is_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every comment that is a setting made one, and what excludes it left out, the example loads."""
    monkeypatch.chdir(tmp_path)
    for name in ("ca.pem", "streamer.pem", "streamer.key"):
        Path(name).touch()
    text = EXAMPLE.read_text(encoding="utf-8")
    text = re.sub(r"^# (?=[\w.]+ = |\[)", "", text, flags=re.MULTILINE)
    text = re.sub(r"^(topics|topic) = .*", "", text, flags=re.MULTILINE)
    text = text.replace('security_protocol = "PLAINTEXT"', 'security_protocol = "SASL_SSL"')
    Path("all.toml").write_text(text, encoding="utf-8")
    config = load_config(Path("all.toml"), None, {})
    defaults = {key for key, origin in config.origins.items() if origin == "default"}
    assert defaults == {"kafka.topics", "dead_letter.topic"}
    assert config.transform.mapping == {"track": {"context": {"ip": "attributes.ip"}}}
    assert config.transform.sample == {"scroll": 0.1, "click": 0.5}


# --- values ---


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25),
        ("1s", 1.0),
        ("1.5s", 1.5),
        (" 10 m ", 600.0),
        ("6h", 21_600.0),
        ("0s", 0.0),
        ("100ms", 0.1),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    """Durations are read as people write them."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "value",
    ["", "1", "s", "-1s", "1 second", "1m30s", "1e3s", "\u0661s", 1, 1.5, True, None, ["1s"]],
)
def test_what_is_no_duration(value: object) -> None:
    """A bare number, an unknown unit and anything else is refused, with an example of what is allowed."""
    with pytest.raises(ValueError, match=r'"\S+m?s"'):
        parse_duration(value)


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (475_000, 475_000),
        ("475_000", 475_000),
        ("32MB", 32_000_000),
        ("1MiB", 1_048_576),
        ("475kB", 475_000),
        ("1.5 KiB", 1536),
        ("2gb", 2_000_000_000),
        ("7B", 7),
    ],
)
def test_sizes(value: object, size: int) -> None:
    """Sizes are bytes, decimal units or binary ones."""
    assert parse_size(value) == size


@pytest.mark.parametrize(
    "value", ["", "MB", "-1", "1TB", "1 M", "1.5", "0.3kiB", "ib", "_", True, 1.5, None]
)
def test_what_is_no_size(value: object) -> None:
    """Anything else is refused."""
    with pytest.raises(ValueError, match="must be"):
        parse_size(value)


@settings(deadline=None)
@given(st.integers(0, 10**8))
def test_a_duration_written_is_read_back(milliseconds: int) -> None:
    """Writing seconds and reading them gives the same."""
    seconds = milliseconds / 1000
    assert parse_duration(duration_text(seconds)) == seconds


@settings(deadline=None)
@given(st.integers(0, 10**12) | st.integers(0, 1000).map(lambda mega: mega * 10**6))
def test_a_size_written_is_read_back(size: int) -> None:
    """Writing bytes and reading them gives the same."""
    assert parse_size(size_text(size)) == size


def test_what_is_shown_can_be_set() -> None:
    """Every value that `effective` shows, written as a variable, gives the same configuration."""
    config = load_config(
        None,
        {"flush.interval": "1500ms", "flush.max_bytes": "400kB", "groups": [{"field": "a"}]},
        {},
    )
    environ = {
        f"STREAMER_{row.key.replace('.', '__').upper()}": row.value.strip('"')
        for row in effective(config)
        if "not set" not in row.value and row.key not in {"kafka.topics", "kafka.bootstrap_servers"}
    }
    assert len(environ) > 20
    assert load_config(None, None, environ).model_dump() == config.model_dump()


def test_the_url_in_effect() -> None:
    """The region picks Segment's endpoint, and a whole URL goes over it."""
    assert (
        load_config(None, {"segment.region": "EU"}, {}).segment.url
        == "https://events.eu1.segmentapis.com/v1/batch"
    )
    own = {"segment.region": "eu", "segment.endpoint": "http://127.0.0.1:9465/v1/batch"}
    assert load_config(None, own, {}).segment.url == "http://127.0.0.1:9465/v1/batch"


def test_settings_are_frozen() -> None:
    """Nobody changes a setting after it was validated."""
    config = load_config(None, None, {})
    for thing, name in ((config, "shutdown_timeout"), (config.flush, "interval")):
        with pytest.raises(ValidationError):
            setattr(thing, name, 2.0)


def test_a_pattern_takes_the_place_of_topics() -> None:
    """With topic_pattern no topic is read by default, and names are matched from their start, as aiokafka does."""
    kafka = load_config(
        None, {"kafka.topic_pattern": r"events\.", "dead_letter.file": "x"}, {}
    ).kafka
    assert kafka.topics == ()
    assert kafka.consumes("events.clicks")
    assert not kafka.consumes("my.events.clicks")


# --- mistakes ---


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("flush.interval", "99ms", "from 100ms to 24h"),
        ("flush.interval", 1, '"1s" for seconds'),
        ("flush.interval", "soon", "must be a duration"),
        ("flush.max_calls", 0, "whole number from 1 to 2500"),
        ("flush.max_calls", 2501, "whole number from 1 to 2500"),
        ("flush.max_calls", True, "whole number from 1 to 2500"),
        ("flush.max_calls", "ten", "whole number from 1 to 2500"),
        ("flush.max_bytes", 500_001, "from 33_000 to 500_000 bytes"),
        ("flush.max_bytes", "32kB", "from 33_000 to 500_000 bytes"),
        ("flush.concurrency", "adaptiv", 'must be "adaptive" or a whole number from 1 to 256'),
        ("flush.concurrency", 0, 'must be "adaptive" or a whole number from 1 to 256'),
        ("flush.concurrency", 257, "whole number from 1 to 256"),
        ("flush.max_requests_per_second", 0, "whole number from 1"),
        ("flush.memory_budget", "6MB", "at least 6_094_304 bytes"),
        ("flush.memory_budget", "lots", "must be a size"),
        ("shutdown_timeout", "2h", "from 0s to 1h"),
        ("aggregate.suppress_for", "25h", "from 0s to 24h"),
        ("aggregate.suppress_for", 60, "needs a unit"),
        ("aggregate.ignore_traits", 1, "must be a list of texts"),
        ("kafka.bootstrap_servers", "localhost", "host:port"),
        ("kafka.bootstrap_servers", ["a:0"], "host:port"),
        ("kafka.bootstrap_servers", ["a:65536"], "host:port"),
        ("kafka.bootstrap_servers", [], "host:port"),
        ("kafka.bootstrap_servers", "PLAINTEXT://a:9092", "host:port"),
        ("kafka.topics", [], "list of topic names"),
        ("kafka.topics", ["a b"], "topic name"),
        ("kafka.topics", ["a", "a"], "twice"),
        ("kafka.topics", [1], "list of topic names"),
        ("kafka.topics", ["x" * 250], "topic name"),
        ("kafka.topics", [".."], "topic name"),
        ("kafka.topic_pattern", "(", "regular expression"),
        ("kafka.group_id", " ", "not empty"),
        ("kafka.auto_offset_reset", "none", '"earliest" or "latest"'),
        ("kafka.isolation_level", "serializable", '"read_committed" or "read_uncommitted"'),
        ("kafka.session_timeout", "5s", "from 6s to 30m"),
        ("kafka.security_protocol", "TLS", '"SASL_SSL"'),
        ("kafka.sasl_mechanism", "GSSAPI", '"SCRAM-SHA-512"'),
        ("kafka.ssl_cafile", "/nowhere/ca.pem", "no such file"),
        ("kafka.ssl_cafile", "/", "must be a file"),
        ("segment.enabled", "maybe", "true or false"),
        ("segment.enabled", 1, "true or false"),
        ("segment.region", "asia", '"us" or "eu"'),
        ("segment.endpoint", "api.segment.io", "whole URL"),
        ("segment.endpoint", "ftp://host/v1", "whole URL"),
        ("segment.endpoint", "https://host:99999/v1", "whole URL"),
        ("segment.endpoint", "https://host/v1#top", "whole URL"),
        ("segment.timeout", "11m", "from 100ms to 10m"),
        ("segment.sites.field", "attributes.blogId|trim", "plain path"),
        ("segment.sites.field", "a..b", "plain path"),
        ("dead_letter.topic", "a/b", "topic name"),
        ("server.port", 65536, "whole number from 0 to 65535"),
        ("groups", [{"field": ""}], "not empty"),
    ],
)
def test_a_wrong_value_is_told_with_what_is_allowed(key: str, value: object, says: str) -> None:
    """A value out of its range or of the wrong kind is one line: its flag, its key, the value, and what is allowed."""
    (line,) = mistakes({key: value})
    flag = "--" + key.rpartition(".")[2].replace("_", "-")
    assert line.startswith(f"{flag}: {key}")
    assert says in line
    if key != "groups":
        assert line.startswith(f"{flag}: {key} = {json.dumps(value)[:77]}")


def test_limits_themselves_are_allowed() -> None:
    """The ends of every range belong to it."""
    for key, value in (
        ("flush.interval", "100ms"),
        ("flush.interval", "24h"),
        ("flush.max_calls", 1),
        ("flush.max_calls", 2500),
        ("flush.max_bytes", 33_000),
        ("flush.max_bytes", 500_000),
        ("flush.concurrency", 256),
        ("flush.concurrency", 1),
        ("flush.concurrency", "adaptive"),
        ("flush.concurrency", " Adaptive "),
        ("flush.concurrency", "12"),
        ("flush.memory_budget", 6_094_304),
        ("server.port", 0),
        ("shutdown_timeout", "0s"),
        ("aggregate.suppress_for", "24h"),
        ("aggregate.suppress_for", "0s"),
    ):
        load_config(None, {key: value}, {})


def test_all_mistakes_are_told_at_once(file: Path) -> None:
    """One load tells every mistake, each with the file or variable that made it."""
    lines = mistakes_in(
        '[flush]\ninterval = "1"\nmax_calls = 0\n[server]\nport = 1\n',
        file,
        {"STREAMER_SERVER__PORT": "many", "STREAMER_SEGMENT__GZIP": "yes", "STREAMER_X__Y": "1"},
    )
    assert sorted(line.partition(" =")[0].partition(": unknown")[0] for line in lines) == [
        "STREAMER_SEGMENT__GZIP: segment.gzip",
        "STREAMER_SERVER__PORT: server.port",
        "STREAMER_X__Y",
        "flush.interval",
        "flush.max_calls",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            '[flush]\nintervall = "1s"',
            "flush.intervall: unknown setting; did you mean flush.interval?",
        ),
        ("[flsh]\nmax_calls = 1", "flsh: unknown setting; did you mean flush?"),
        ('interval = "1s"', "interval: unknown setting; did you mean flush.interval?"),
        ('[kafka]\ntopic = "a"', "kafka.topic: unknown setting; did you mean kafka.topics?"),
        (
            '[segment]\nhold_most = "6h"',
            "segment.hold_most: unknown setting; segment has enabled, write_key",
        ),
        (
            '[server]\nshutdown_timeout = "1s"',
            "server.shutdown_timeout: unknown setting; did you mean shutdown_timeout, which stands above",
        ),
        ('[flush]\nregion = "eu"', "flush.region: unknown setting; did you mean segment.region?"),
        (
            "[aggregate]\nzzz = 1",
            "aggregate.zzz: unknown setting; aggregate has identify, group",
        ),
        (
            '[transform.mapping.trak]\na = "b"',
            "transform.mapping.trak: unknown setting; did you mean transform.mapping.track?",
        ),
        (
            '[[groups]]\nfield = "a"\ntrait = "b"',
            "groups.0.trait: unknown setting; did you mean traits?",
        ),
        ('[[groups]]\ntraits = "b"', "groups.0.field: must be set"),
        (
            '[[groups]]\nfield = "a"\nregion = "eu"',
            "groups.0.region: unknown setting; a group map has field, traits, each, anonymousId,",
        ),
        ('plugin = ["a"]', "plugin: unknown setting; did you mean plugins?"),
        (
            '[transform]\nprofil = "altis"',
            "transform.profil: unknown setting; did you mean transform.profile?",
        ),
        (
            '[aggregate]\nsupress_for = "1s"',
            "aggregate.supress_for: unknown setting; did you mean aggregate.suppress_for?",
        ),
        ('flush = "1s"', "flush: must be a table"),
        ("[transform]\nmapping = 1", "transform.mapping = 1: must be a table"),
        ("[transform]\ndrop_events = 1", "transform.drop_events = 1: must be a list of texts"),
        (
            '[transform]\ndrop_traits = [""]',
            'transform.drop_traits = [""]: must be a list of texts',
        ),
        ("[transform]\ndrop_properties = [5]", "transform.drop_properties = [5]: must be a list"),
        (
            "[transform]\ndrop_trait = []",
            "transform.drop_trait: unknown setting; did you mean transform.drop_traits?",
        ),
        ("[transform]\nsample = 0.1", "transform.sample = 0.1: must be a table of event types"),
        ("[transform.sample]\nx = 1.1", "transform.sample.x: must be a share of users"),
        ('[transform.sample]\n"a.b" = nan', 'transform.sample."a.b": must be a share of users'),
        ("[transform.sample]\na.b = 0.5", "transform.sample.a: must be a share of users"),
        ("[transform.sample]\nx = true", "transform.sample.x: must be a share of users"),
        ('[transform.sample]\nx = "1"', "transform.sample.x: must be a share of users"),
        ("groups = 1", "groups = 1: must be tables [[groups]]"),
        ('"a\\nb" = 1', r'"a\nb": unknown setting'),
    ],
)
def test_an_unknown_setting_names_the_nearest(text: str, says: str, file: Path) -> None:
    """A key that isn't a setting is an error that names what was probably meant."""
    (line,) = mistakes_in(text, file)
    assert line.startswith(says)


@pytest.mark.parametrize(
    ("variable", "says"),
    [
        ("STREAMER_FLUSH__INTERVALL", "did you mean STREAMER_FLUSH__INTERVAL?"),
        ("STREAMER_FLUSH_INTERVAL", "did you mean STREAMER_FLUSH__INTERVAL?"),
        ("STREAMER_flush__interval", "unknown setting"),
    ],
)
def test_an_unknown_variable_names_the_nearest(variable: str, says: str) -> None:
    """A variable that is meant for streamer and isn't a setting is an error, too."""
    (line,) = mistakes(environ={variable: "1s"})
    assert line.startswith(f"{variable}: ")
    assert says in line


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"kafka.topics": "a", "kafka.topic_pattern": "b", "dead_letter.file": "x"}, "exactly one"),
        ({"dead_letter.topic": "a", "dead_letter.file": "b"}, "exactly one"),
        ({"kafka.topic_pattern": "b"}, "dead_letter.topic: must be set"),
        ({"kafka.topics": "a", "dead_letter.topic": "a"}, "itself consumed"),
        ({"kafka.topics": "a,a.dead-letter"}, "itself consumed"),
        ({"kafka.topic_pattern": "a", "dead_letter.topic": "a.dead-letter"}, "itself consumed"),
        ({"kafka.topics": "x" * 245}, "too long"),
        ({"kafka.sasl_mechanism": "PLAIN"}, "no effect without security_protocol"),
        ({"kafka.ssl_cafile": __file__}, "no effect without security_protocol"),
        (
            {"kafka.security_protocol": "SSL", "kafka.ssl_keyfile": __file__},
            "no effect without ssl_certfile",
        ),
    ],
)
def test_settings_that_contradict_each_other(overrides: dict[str, Any], says: str) -> None:
    """What is right by itself and wrong together is one line as well."""
    (line,) = mistakes(overrides)
    assert says in line


def test_sasl_needs_all_of_it() -> None:
    """A SASL protocol without mechanism, user and password is three lines."""
    lines = mistakes({"kafka.security_protocol": "SASL_SSL"})
    assert [line.partition(":")[0] for line in lines] == [
        "kafka.sasl_mechanism",
        "kafka.sasl_username",
        "kafka.sasl_password",
    ]


def test_what_should_be_set_names_the_file(file: Path) -> None:
    """A setting that is missing is told with the file where it could stand."""
    file.write_text(
        '[kafka]\nsecurity_protocol = "SASL_SSL"\nsasl_mechanism = "PLAIN"\nsasl_username = "u"'
    )
    with pytest.raises(ConfigError) as caught:
        load_config(file, None, {})
    assert (
        str(caught.value)
        == f'{file}: kafka.sasl_password: must be set: security_protocol is "SASL_SSL"'
    )


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    """A file that isn't there, or isn't a file, is one sentence with its name."""
    for path, says in ((tmp_path / "no.toml", "no such file"), (tmp_path, "can't be read")):
        with pytest.raises(ConfigError, match=says) as caught:
            load_config(path, None, {})
        assert str(caught.value).startswith(str(path))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a = 1\nb = \n", 2),
        ("[kafka\n", 1),
        ('a = 1\n\nb = "x', 3),
        ("a = 1\na = 2\n", 2),
        ("x = [1,\n", 1),
    ],
)
def test_a_syntax_error_names_file_and_line(text: str, line: int, file: Path) -> None:
    """TOML that can't be parsed is one sentence with the file and the line."""
    (message,) = mistakes_in(text, file)
    assert message.startswith(f"{file}, line {line}: not valid TOML: ")


def test_a_file_that_is_not_utf8(file: Path) -> None:
    """Bytes that aren't UTF-8 are one sentence."""
    file.write_bytes(b'[kafka]\ngroup_id = "\xff"')
    with pytest.raises(ConfigError, match="UTF-8"):
        load_config(file, None, {})


# --- secrets ---


def test_secrets_never_show(file: Path) -> None:
    """Neither repr, str, a dump, the settings shown, nor an attribute's repr has a secret."""
    config = load(
        f'[segment]\nwrite_key = "{SECRET}"\n[kafka]\nsecurity_protocol = "SASL_SSL"\nsasl_mechanism = "PLAIN"\n'
        f'sasl_username = "u"\nsasl_password = "{SECRET}"',
        file,
    )
    shown = [
        repr(config),
        str(config),
        str(config.model_dump()),
        config.model_dump_json(),
        f"{config.segment}",
    ]
    shown += [repr(config.kafka), str(effective(config)), str(config.segment.write_key)]
    assert not [text for text in shown if SECRET in text]
    rows = {row.key: row.value for row in effective(config)}
    assert rows["segment.write_key"] == rows["kafka.sasl_password"] == f"set, from {file}"
    assert require_write_key(config) == SECRET


@pytest.mark.parametrize(
    "text",
    [
        f'[segment]\nwrite_key = ["{SECRET}"]',
        f'[segment]\nwrite_key = "{SECRET} {SECRET}"',
        f'[segment]\nwrite_key = "{SECRET}:"',
        f'[segment]\nwrite_kye = "{SECRET}"',
        f'segment = "{SECRET}"',
        f'segment = ["{SECRET}"]',
        f'write_key = "{SECRET}"',
        f'[segment.write_key]\nvalue = "{SECRET}"',
        f'[flush]\nwrite_key = "{SECRET}"',
        f'[kafka]\nsasl_password = "{SECRET}"',
        f'[kafka]\nsasl_pasword = "{SECRET}"',
        f'[segment]\nendpoint = "https://{SECRET}@host/v1/batch"',
        f'[segment]\nwrite_key = "{SECRET}',
        f"[segment]\nwrite_key = {SECRET}",
    ],
)
def test_a_mistake_does_not_tell_a_secret(text: str, file: Path) -> None:
    """However a secret was misplaced, the error doesn't have it."""
    assert SECRET not in "\n".join(mistakes_in(text, file))


def test_a_wrong_secret_in_a_variable_does_not_show() -> None:
    """A write key that can't be one is told with its variable and without its value."""
    (line,) = mistakes(environ={"SEGMENT_API_WRITE_KEY": f"{SECRET} {SECRET}"})
    assert line.startswith("SEGMENT_API_WRITE_KEY: segment.write_key: must be")
    assert SECRET not in line


def test_where_the_write_key_comes_from() -> None:
    """Segment's own variable works, streamer's goes over it, and white space around a key is dropped."""
    segment = {"SEGMENT_API_WRITE_KEY": f" {SECRET}\n"}
    assert require_write_key(load_config(None, None, segment)) == SECRET
    both = {**segment, "STREAMER_SEGMENT__WRITE_KEY": "other"}
    config = load_config(None, None, both)
    assert require_write_key(config) == "other"
    assert config.origins["segment.write_key"] == "STREAMER_SEGMENT__WRITE_KEY"


@pytest.mark.parametrize("key", [None, "", "  \n"])
def test_a_write_key_is_required_to_send(key: str | None, file: Path) -> None:
    """Without a write key, or with an empty one, all but sending works; sending says where to set it."""
    config = load("" if key is None else f'segment.write_key = """{key}"""', file)
    with pytest.raises(ConfigError) as caught:
        require_write_key(config)
    assert str(caught.value) == (
        f"no Segment write key: set segment.write_key in {file}, or SEGMENT_API_WRITE_KEY, or"
        " extra.altis.modules.analytics.integrations.segment.api_key in a composer.json given with --altis"
    )


# --- Altis's composer.json ---

PLACE = "extra.altis.modules.analytics.integrations.segment"


def composer(folder: Path, segment: Any) -> Path:
    """A composer.json with what Altis's Segment integration is given, among other things."""
    path = folder / "composer.json"
    analytics = {"native": True, "integrations": {"segment": segment, "other": {"api_key": 5}}}
    altis = {"modules": {"analytics": analytics, "cms": False}, "environments": []}
    path.write_text(json.dumps({"name": "a/site", "require": {}, "extra": {"altis": altis}}))
    return path


def key_of(config: Config) -> str | None:
    key = config.segment.write_key
    return None if key is None else key.get_secret_value()


def test_the_configuration_of_altis_lies_below_file_variables_and_flags(
    tmp_path: Path, file: Path
) -> None:
    altis = composer(tmp_path, {"enabled": False, "api_key": SECRET, "region": "x"})
    config = load_config(None, None, {}, altis)
    assert (config.segment.enabled, key_of(config)) == (False, SECRET)
    assert config.origins["segment.enabled"] == config.origins["segment.write_key"] == str(altis)
    assert config.origins["segment.region"] == "default"
    assert (config.file, config.altis, config.files) == (None, str(altis), [str(altis)])

    file.write_text('[segment]\nenabled = true\nwrite_key = "from-toml"')
    config = load_config(file, None, {}, altis)
    assert (config.segment.enabled, key_of(config)) == (True, "from-toml")
    assert config.origins["segment.write_key"] == str(file)
    assert config.files == [str(file), str(altis)]

    config = load_config(file, None, {"SEGMENT_API_WRITE_KEY": "from-variable"}, altis)
    assert key_of(config) == "from-variable"
    assert config.origins["segment.write_key"] == "SEGMENT_API_WRITE_KEY"


@pytest.mark.parametrize(
    ("segment", "enabled", "key"),
    [
        (True, True, None),
        (False, False, None),
        (None, True, None),
        ({}, True, None),
        ([], True, None),
        ({"enabled": None, "api_key": None}, True, None),
        ({"api_key": "  k\n"}, True, "k"),
        ({"enabled": True, "api_key": ""}, True, None),
        ({"enabled": False}, False, None),
    ],
)
def test_what_altis_may_say(segment: Any, enabled: bool, key: str | None, tmp_path: Path) -> None:
    """True or false in place of the object, and what says nothing: missing, null, empty."""
    config = load_config(None, None, {}, composer(tmp_path, segment))
    assert (config.segment.enabled, key_of(config)) == (enabled, key)


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"extra": []},
        {"extra": {"altis": {"modules": {"analytics": True}}}},
        {"extra": {"altis": {"modules": {"analytics": {"integrations": "x"}}}}},
    ],
)
def test_all_else_in_the_file_is_altis_own(document: Any, tmp_path: Path) -> None:
    path = tmp_path / "composer.json"
    path.write_text(json.dumps(document))
    config = load_config(None, None, {}, path)
    assert config.model_dump() == load_config(None, None, {}).model_dump()
    assert set(config.origins.values()) == {"default"}


@pytest.mark.parametrize(
    ("segment", "says"),
    [
        (SECRET, f"{PLACE}: must be an object, or true or false"),
        ([SECRET], f"{PLACE}: must be an object, or true or false"),
        ({"enabled": "true"}, f"{PLACE}.enabled: must be true or false"),
        ({"enabled": 1, "api_key": SECRET}, f"{PLACE}.enabled: must be true or false"),
        ({"api_key": [SECRET]}, f"{PLACE}.api_key: must be text in quotes"),
        ({"api_key": f"{SECRET} x"}, f"{PLACE}.api_key: must be printable ASCII"),
    ],
)
def test_a_wrong_value_names_file_and_key_and_shows_no_secret(
    segment: Any, says: str, tmp_path: Path
) -> None:
    path = composer(tmp_path, segment)
    with pytest.raises(ConfigError) as caught:
        load_config(None, None, {}, path)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{path}: {says}")
    assert SECRET not in line
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (f'{{\n"api_key": "{SECRET}",\n}}'.encode(), ", line 3: not valid JSON: "),
        (b"", ", line 1: not valid JSON: "),
        (b'["%s"]' % SECRET.encode(), ": must be a JSON object"),
        (b'{"a": "\xff"}', ": JSON is UTF-8, and the byte at 7 isn't"),
        (b'{"a": %s}' % (b"9" * 5000), ": JSON that can't be read"),
        (None, ": no such file"),
    ],
)
def test_a_file_that_is_no_composer_json_is_named(
    content: bytes | None, says: str, tmp_path: Path
) -> None:
    path = tmp_path / "composer.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(None, None, {}, path)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{path}{says}")
    assert SECRET not in line
    assert caught.value.__context__ is None or content is None


def test_what_environments_of_altis_say_of_segment_is_noted_not_read(tmp_path: Path) -> None:
    altis = tmp_path / "composer.json"
    of_segment = {"modules": {"analytics": {"integrations": {"segment": {"enabled": False}}}}}
    others = {"modules": {"analytics": {"enabled": False}}}
    environments = {"local": of_segment, "staging": others, "production": of_segment, "odd": 7}
    altis.write_text(json.dumps({"extra": {"altis": {"environments": environments}}}))
    config = load_config(None, {}, {}, altis)
    assert config.segment.enabled
    (note,) = config.notes
    assert "extra.altis.environments (local, production)" in note
    altis.write_text("{}")
    assert load_config(None, {}, {}, altis).notes == load_config(None, {}, {}).notes == []


def test_mistakes_of_altis_and_of_others_are_said_together(tmp_path: Path, file: Path) -> None:
    altis = composer(tmp_path, {"enabled": 1, "api_key": 2})
    file.write_text("[flush]\nmax_calls = 0")
    with pytest.raises(ConfigError) as caught:
        load_config(file, None, {"STREAMER_FLUSH__X": "1"}, altis)
    assert len(str(caught.value).splitlines()) == 4


# --- connections ---


def test_a_plain_connection() -> None:
    """Without security the clients get the servers and the protocol alone."""
    assert load_config(None, {"kafka.bootstrap_servers": "a:1,[::1]:2"}, {}).kafka.connection() == {
        "bootstrap_servers": ["a:1", "[::1]:2"],
        "security_protocol": "PLAINTEXT",
    }


def test_a_sasl_connection() -> None:
    """With SASL the clients get mechanism, user and password; with TLS a context that verifies names."""
    config = load_config(
        None,
        {
            "kafka.security_protocol": "sasl_ssl",
            "kafka.sasl_mechanism": "scram-sha-512",
            "kafka.sasl_username": "u",
            "kafka.sasl_password": SECRET,
        },
        {},
    )
    options = config.kafka.connection()
    assert options["sasl_mechanism"] == "SCRAM-SHA-512"
    assert (options["sasl_plain_username"], options["sasl_plain_password"]) == ("u", SECRET)
    assert options["ssl_context"].verify_mode == ssl.CERT_REQUIRED
    assert options["ssl_context"].check_hostname


@pytest.mark.parametrize("key", ["ssl_cafile", "ssl_certfile"])
def test_a_certificate_that_is_none(key: str, file: Path) -> None:
    """A file that holds no certificate is told with its setting."""
    file.write_text("no certificate")
    config = load_config(None, {"kafka.security_protocol": "SSL", f"kafka.{key}": file}, {})
    with pytest.raises(ConfigError, match=rf"kafka\.{key} = "):
        config.kafka.connection()


def test_own_certificates_are_used(tmp_path: Path, require: Any) -> None:
    """A certificate with its key, and the certificates to trust, make a context."""
    require("openssl")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=streamer"
        f" -keyout {key} -out {certificate}".split(),
        check=True,
        capture_output=True,
    )
    config = load_config(
        None,
        {
            "kafka.security_protocol": "SSL",
            "kafka.ssl_cafile": certificate,
            "kafka.ssl_certfile": certificate,
            "kafka.ssl_keyfile": key,
        },
        {},
    )
    assert [ca["subject"] for ca in config.kafka.connection()["ssl_context"].get_ca_certs()] == [
        ((("commonName", "streamer"),),)
    ]


@pytest.mark.parametrize("value", ["1" * 5000, "[" * 5000])
def test_toml_that_no_parser_takes_is_a_mistake_like_any_other(tmp_path: Path, value: str) -> None:
    file = tmp_path / "streamer.toml"
    file.write_text(f"[flush]\ninterval = {value}\n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(file, None, {})
