"""`streamer transform`: calls on standard output, rejected lines on standard error, and what the exit status says."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from streamer.cli import app
from streamer.cli.transform import PLACEHOLDER_WRITE_KEY
from streamer.core.transform import Transform
from streamer.errors import ConfigError, MappingError, StartError

if TYPE_CHECKING:
    from pathlib import Path

    from typer.testing import Result

GOOD = b'{"event_type":"scroll","event_timestamp":1643673911400,"endpoint":{"Id":"v"},"attributes":{"ip":"::1"}}'
TIMELESS = b'{"event_type":"scroll","endpoint":{"Id":"v"}}'


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEGMENT_API_WRITE_KEY", raising=False)


def run(*arguments: str, stdin: bytes = b"") -> Result:
    return CliRunner().invoke(app, ["transform", *arguments], input=stdin)


def test_each_line_becomes_one_array_of_calls(tmp_path: Path) -> None:
    events = tmp_path / "events.ndjson"
    events.write_bytes(GOOD + b"\n" + GOOD + b"\r\n")
    result = run(str(events))
    assert (result.exit_code, result.stderr) == (0, "")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert lines == [Transform(write_key=PLACEHOLDER_WRITE_KEY).calls(GOOD, -1)] * 2


def test_rejected_lines_are_said_with_number_and_reason_and_the_others_come_out() -> None:
    result = run(stdin=b"\n".join([GOOD, b"{broken", b"", TIMELESS, GOOD]))
    assert result.exit_code == 1
    assert len(result.stdout.splitlines()) == 2
    first, second, third = result.stderr.splitlines()
    assert first.startswith("line 2: not_json: The record is no JSON")
    assert second.startswith("line 3: empty: ")
    assert third.startswith("line 4: bad_timestamp: ")


def test_the_configuration_gives_mapping_groups_and_write_key(tmp_path: Path) -> None:
    config = tmp_path / "streamer.toml"
    config.write_text(
        """
        [segment]
        write_key = "wk"
        [transform.mapping.track]
        context.ip = "attributes.ip"
        [[groups]]
        field = "endpoint.Id"
        traits = { ip = "attributes.ip" }
        """
    )
    result = run("--config", str(config), stdin=GOOD)
    assert result.exit_code == 0, result.output
    identify, group, track = json.loads(result.stdout)
    assert identify["messageId"] == Transform(write_key="wk").calls(GOOD, -1)[0]["messageId"]  # type: ignore[index] # a list
    assert group["traits"] == {"ip": "::1"}
    assert track["context"]["ip"] == "::1"


def test_what_is_not_forwarded_is_an_empty_array_and_no_mistake(tmp_path: Path) -> None:
    config = tmp_path / "streamer.toml"
    config.write_text(
        """
        [transform]
        drop_events = ["click"]
        drop_properties = ["ip"]
        sample = { share = 0 }
        """
    )
    dropped, sampled = GOOD.replace(b"scroll", b"click"), GOOD.replace(b"scroll", b"share")
    nobody = sampled.replace(b'{"Id":"v"}', b"{}")
    stdin = b"\n".join([dropped, GOOD, sampled, nobody, b'{"event_type":["click"]}'])
    result = run("--config", str(config), stdin=stdin)
    first, second, third = (json.loads(line) for line in result.stdout.splitlines())
    assert (first, third) == ([], [])
    assert "properties" not in second[-1]
    assert [line.partition(": The")[0] for line in result.stderr.splitlines()] == [
        "line 4: no_identity",
        "line 5: no_identity",
    ]
    assert result.exit_code == 1


def test_the_deepest_call_that_can_be_sent_is_printed() -> None:
    deep = b"[" * 252 + b"]" * 252
    result = run(stdin=GOOD.replace(b'"v"', b'"v","EndpointStatus":%b' % deep) + b"\n" + GOOD)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.count("[" * 252) == 1
    assert len(result.stdout.splitlines()) == 2


def test_a_group_map_lies_over_the_mapping_of_group_calls_in_place_and_shallow(
    tmp_path: Path,
) -> None:
    config = tmp_path / "streamer.toml"
    config.write_text(
        """
        [transform.mapping.group]
        traits = { plan = "attributes.plan" }
        context = { locale = "endpoint.Demographic.Locale", ip = "attributes.ip" }
        [[groups]]
        field = "endpoint.Id"
        integrations = { Slack = "attributes.ip" }
        context.page.url = "attributes.ip"
        userId = "attributes.plan"
        [[groups]]
        field = "endpoint.Id"
        traits = {}
        """
    )
    event = GOOD.replace(b'"ip":', b'"plan":"pro","ip":')
    result = run("--config", str(config), stdin=event)
    assert result.exit_code == 0, result.output
    _, first, second, _ = json.loads(result.stdout)
    assert (first["traits"], first["context"]) == ({"plan": "pro"}, {"page": {"url": "::1"}})
    assert (first["integrations"], first["userId"]) == ({"Slack": "::1"}, "pro")
    assert list(first)[-1] == "integrations"
    assert "traits" not in second
    assert second["context"] == {"ip": "::1"}


def test_the_write_key_may_be_altis(tmp_path: Path) -> None:
    """The ids are those that `streamer run` sends with it."""
    altis = tmp_path / "composer.json"
    altis.write_text(
        '{"extra":{"altis":{"modules":{"analytics":{"integrations":{"segment":{"api_key":"wk"}}}}}}}'
    )
    result = run("--altis", str(altis), stdin=GOOD)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == Transform(write_key="wk").calls(GOOD, -1)


def test_show_code_prints_the_compiled_mapping_and_reads_nothing() -> None:
    result = run("--show-code", "no-such-file")
    assert result.exit_code == 0
    assert result.stdout == Transform(write_key="").source


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        result = run(str(path))
        assert isinstance(
            result.exception, StartError
        )  # which main() makes one line and exit status 2
        assert str(result.exception).startswith(f"{path} can't be read: ")


def test_a_wrong_mapping_names_its_place(tmp_path: Path) -> None:
    config = tmp_path / "streamer.toml"
    config.write_text('[transform.mapping.track]\ncontext.ip = "a|trimm"\n')
    result = run("--config", str(config), stdin=GOOD)
    assert isinstance(result.exception, MappingError)
    assert str(result.exception).startswith(
        "transform.mapping.track.context.ip: there is no callback 'trimm'; did you mean 'trim'?"
    )


def test_a_configuration_that_is_missing_is_an_error(tmp_path: Path) -> None:
    result = run("--config", str(tmp_path / "missing.toml"), stdin=GOOD)
    assert isinstance(result.exception, ConfigError)


def test_the_profile_altis_shows_what_php_sends_unchecked_and_leaves_out_what_it_skips() -> None:
    result = run("--profile", "altis", stdin=b'{"event_type":"e"}\n{}\n\n[1]\n')
    assert result.exit_code == 1
    identify, track = json.loads(result.stdout)
    assert identify == {"type": "identify", "messageId": "32bc479e9699c2f010d0ec31d69fd694"}
    assert track == {**identify, "type": "track", "event": "e"}
    assert result.stderr.startswith("line 4: not_an_object: ")


def test_what_is_not_forwarded_is_an_empty_array_in_the_profile_altis_too(tmp_path: Path) -> None:
    config = tmp_path / "streamer.toml"
    config.write_text('[transform]\nprofile = "altis"\ndrop_events = ["click"]\n')
    result = run("--config", str(config), stdin=b'{}\n{"event_type":"click"}\nnull\n')
    assert (result.exit_code, result.stdout, result.stderr) == (0, "[]\n", "")


def test_a_profile_that_there_is_not_is_an_error() -> None:
    result = run("--profile", "php", stdin=GOOD)
    assert isinstance(result.exception, ConfigError)
    assert "transform.profile" in str(result.exception)
