"""The files around the code say what the code does: versions, ports, paths, commands and settings."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from ruamel.yaml import YAML

from kafka_broker.broker import KafkaBroker, free_port
from kafka_broker.topics import Kafka
from streamer.config import Config, load_config

if TYPE_CHECKING:
    from conftest import Require

ROOT = Path(__file__).parent.parent


def _yaml(path: str) -> Any:
    return YAML(typ="safe").load((ROOT / path).read_text())


def _pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def _compose() -> Any:
    return _yaml("docker-compose.yml")


def _interpolated(value: str) -> str:
    """What compose makes of `${NAME:-default}` when the variable isn't set."""
    return re.sub(r"\$\{\w+:?-([^}]*)\}", r"\1", value)


def _environment(service: str) -> dict[str, str]:
    found = _compose()["services"][service].get("environment", {})
    return {name: _interpolated(value) for name, value in found.items()}


# --- versions -------------------------------------------------------------------------------------


def _pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): pinned for name, pinned in pins}


def _required(requirement: Requirement, seen: dict[tuple[str, str], Requirement]) -> None:
    """Collects a requirement and all that its distribution needs in turn, as far as it is installed."""
    for extra in requirement.extras or {""}:
        if (requirement.name, extra) in seen:
            continue
        seen[requirement.name, extra] = requirement
        try:
            needed = requires(requirement.name) or []
        except (
            PackageNotFoundError
        ):  # what builds the distribution lives in an environment of its own
            continue
        for text in needed:
            child = Requirement(text)
            if child.marker is None or child.marker.evaluate({"extra": extra}):
                _required(child, seen)


def test_constraints_are_exact_versions_without_addresses() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    wrong = [
        line
        for line in lines
        if not line.startswith("#")
        and not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line)
    ]
    assert wrong == []
    assert len(_pins()) == len([line for line in lines if not line.startswith("#")])


def test_constraints_cover_every_requirement_and_what_it_needs_in_turn() -> None:
    project = _pyproject()
    stated = project["project"]["dependencies"] + project["build-system"]["requires"]
    for extra in project["project"]["optional-dependencies"].values():
        stated += extra
    seen: dict[tuple[str, str], Requirement] = {}
    for text in stated:
        _required(Requirement(text), seen)

    pins = _pins()
    missing, unfit = set(), set()
    for requirement in seen.values():
        name = canonicalize_name(requirement.name)
        if name == "altis-streamer":
            continue
        if name not in pins:
            missing.add(name)
        elif pins[name] not in requirement.specifier:
            unfit.add(f"{requirement} but {pins[name]}")
    assert missing == set()
    assert unfit == set()
    assert len(seen) > 40  # else nothing was looked at


def test_the_tests_run_with_the_versions_of_the_constraints() -> None:
    different = {}
    for name, pinned in _pins().items():
        try:
            installed = version(name)
        except PackageNotFoundError:  # what builds the distribution isn't installed beside it
            continue
        if Version(installed) != Version(pinned):  # some say v1.0
            different[name] = f"{installed} is installed, constraints.txt says {pinned}"
    assert different == {}, "run `make test`, which installs what the constraints say"


def test_every_module_at_the_top_stands_in_the_contract_of_who_imports_whom() -> None:
    """A new stage that nobody entered into the contracts could import whatever it likes."""
    contracts = {
        contract["name"]: contract for contract in _pyproject()["tool"]["importlinter"]["contracts"]
    }
    stages = set(contracts["a stage never imports another stage"]["modules"])
    below = set(
        contracts["only the pipeline, the simulation and the commands put things together"][
            "source_modules"
        ]
    )
    assembled = {"streamer.pipeline", "streamer.simulation", "streamer.cli"}
    for path in (ROOT / "streamer").iterdir():
        name = f"streamer.{path.stem}"
        if path.suffix == ".py" or (path / "__init__.py").is_file():
            known = below | assembled | {"streamer.core", "streamer.__init__"}
            assert name in known, f"{name} stands in no contract of pyproject.toml"
    assert stages <= below
    forbidden_in_core = set(contracts[next(iter(contracts))]["forbidden_modules"])
    assert (below | assembled) - {"streamer.errors"} <= forbidden_in_core


# --- the image and docker-compose.yml -------------------------------------------------------------


def _dockerfile() -> str:
    return (ROOT / "Dockerfile").read_text()


def test_compose_file_is_valid() -> None:
    command = ["-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run(
        [sys.executable, *command, "docker-compose.yml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_path_that_compose_mounts_is_there() -> None:
    mounted = [
        volume.split(":")[0]
        for service in _compose()["services"].values()
        for volume in service.get("volumes", [])
    ]
    paths = [path for path in mounted if path.startswith(".")]
    assert len(paths) >= 3
    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert {path for path in mounted if not path.startswith(".")} == set(_compose()["volumes"])


def test_every_port_is_published_on_loopback_alone_and_once() -> None:
    published = [
        port for service in _compose()["services"].values() for port in service.get("ports", [])
    ]
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in published)
    assert len({port.split(":")[1] for port in published}) == len(published) >= 5


def test_all_that_the_image_copies_is_there_and_not_ignored() -> None:
    copied = [
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", _dockerfile(), re.MULTILINE)
        for source in line.split()[:-1]
    ]
    kept = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert sorted(copied) == sorted(kept)
    assert [path for path in copied if not (ROOT / path).exists()] == []


def test_the_image_is_not_root_and_its_health_check_asks_where_streamer_listens() -> None:
    final = _dockerfile().rpartition("\nFROM ")[2]
    user = re.search(r"^USER (\S+)$", final, re.MULTILINE)
    assert user
    assert user[1] not in {"0", "root"}
    port = Config.model_fields["server"].get_default(call_default_factory=True).port
    assert f"EXPOSE {port}\n" in final

    health = re.search(r"^HEALTHCHECK .*\\\n\s*CMD (\[.+\])$", final, re.MULTILINE)
    assert health
    program, flag, code = json.loads(health[1])
    assert (program, flag) == ("python", "-c")
    called: list[str] = []
    stand_in = type("request", (), {"urlopen": staticmethod(lambda url, **_: called.append(url))})
    exec(  # noqa: S102 - the health check's own code, with only the network taken from it
        code.replace("import os, urllib.request as r;", "import os;"), {"r": stand_in}
    )
    assert called == [f"http://127.0.0.1:{port}/healthz"]


def _accepts(arguments: list[str]) -> None:
    """Has a command parse its arguments, without running it."""
    cli = importlib.import_module("streamer.cli")
    cli.load(arguments[0]).make_context(arguments[0], arguments[1:])


def test_streamers_settings_in_compose_are_valid_and_lead_to_the_other_services() -> None:
    services = _compose()["services"]
    image = dict(re.findall(r"(STREAMER_\w+)=(\S+)", _dockerfile()))
    config = load_config(None, environ={**image, **_environment("streamer")})

    kafka = _environment("kafka")["KAFKA_ADVERTISED_LISTENERS"]
    assert [f"INTERNAL://{server}" for server in config.kafka.bootstrap_servers] == [
        kafka.split(",")[0]
    ]
    endpoint = urlsplit(config.segment.endpoint or "")
    command = services["mock-segment"]["command"]
    assert endpoint.hostname == "mock-segment"
    assert str(endpoint.port) == command[command.index("--port") + 1]
    assert config.server.host == "0.0.0.0"  # noqa: S104 - reachable from outside the container
    assert services["streamer"]["ports"] == [f"127.0.0.1:{config.server.port}:{config.server.port}"]
    grace = float(services["streamer"]["stop_grace_period"].removesuffix("s"))
    assert grace > config.shutdown_timeout

    prometheus = _yaml("dashboards/prometheus.yml")
    targets = prometheus["scrape_configs"][0]["static_configs"][0]["targets"]
    assert targets == [f"streamer:{config.server.port}"]


def test_without_the_mock_compose_leads_to_segment_itself() -> None:
    config = load_config(
        None, environ={**_environment("streamer"), "STREAMER_SEGMENT__ENDPOINT": ""}
    )
    assert config.segment.endpoint is None


def test_the_commands_of_the_image_and_of_compose_are_accepted() -> None:
    default = re.search(r"^CMD (\[.+\])$", _dockerfile(), re.MULTILINE)
    assert default
    _accepts(json.loads(default[1]))
    _accepts(_compose()["services"]["mock-segment"]["command"])


def test_mock_segment_listens_by_default_where_compose_has_it() -> None:
    module = importlib.import_module("streamer.cli.mock_segment")
    port = inspect.signature(module.mock_segment).parameters["port"].default
    assert _compose()["services"]["mock-segment"]["ports"] == [f"127.0.0.1:{port}:{port}"]


def test_grafana_is_told_of_prometheus_and_of_the_folder_with_the_dashboards() -> None:
    services = _compose()["services"]
    source = _yaml("dashboards/provisioning/datasources/prometheus.yml")["datasources"][0]
    url = urlsplit(source["url"])
    assert url.hostname in services
    assert any(port.endswith(f":{url.port}") for port in services[url.hostname]["ports"])
    scraped = _yaml("dashboards/prometheus.yml")["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scraped

    path = _yaml("dashboards/provisioning/dashboards/streamer.yml")["providers"][0]["options"][
        "path"
    ]
    assert f"./dashboards:{path}:ro" in services["grafana"]["volumes"]


def test_prometheus_finds_the_alerts_and_grafana_the_dashboards_where_compose_puts_them() -> None:
    services = _compose()["services"]
    mounted = dict(v.split(":")[:2] for v in services["prometheus"]["volumes"])
    config = Path(mounted["./dashboards/prometheus.yml"])
    rules = [str(config.parent / name) for name in _yaml("dashboards/prometheus.yml")["rule_files"]]
    assert rules == [mounted["./dashboards/alerts.yml"]]

    grafana = dict(v.split(":")[:2] for v in services["grafana"]["volumes"])
    options = _yaml("dashboards/provisioning/dashboards/streamer.yml")["providers"][0]["options"]
    folder = ROOT / next(path for path, inside in grafana.items() if inside == options["path"])
    assert len(list(folder.glob("*.json"))) == 3
    job = _yaml("dashboards/prometheus.yml")["scrape_configs"][0]["job_name"]
    assert f'up{{job="{job}"}}' in (ROOT / "dashboards/alerts.yml").read_text()


def test_a_broker_with_composes_settings_starts_and_keeps_records(require: Require) -> None:
    """Apache Kafka's image turns each KAFKA_A_B into a.b of server.properties; so does this test, on loopback."""
    require("java", "mvn")
    ports = {"19092": str(free_port()), "9092": str(free_port()), "9093": str(free_port())}
    settings = {}
    for variable, value in _environment("kafka").items():
        text = re.sub(r"//(kafka|localhost)?:", "//127.0.0.1:", value)
        for wanted, port in ports.items():
            text = re.sub(rf":{wanted}\b", f":{port}", text)
        settings[variable.removeprefix("KAFKA_").lower().replace("_", ".")] = text
    settings["log.cleaner.dedupe.buffer.size"] = "1048577"  # this test's heap is small
    with KafkaBroker(settings, port=int(ports["9092"]), defaults=False) as broker:
        kafka = Kafka(broker.bootstrap)

        async def main() -> None:
            await kafka.produce("analytics-events", [(b"key", b"value", None)])
            assert [record.value for record in await kafka.read("analytics-events")] == [b"value"]
            assert len(await kafka.end_offsets("analytics-events")) == 4

        asyncio.run(main())


# --- the commands that people and CI call ---------------------------------------------------------


def _make(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_every_target_is_in_makes_own_help_and_in_contributing() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    targets = set(" ".join(phony).split()) - {"help"}
    assert set(re.findall(r"^make (\S+)", _make("help").stdout, re.MULTILINE)) == targets
    assert set(re.findall(r"`make ([a-z-]+)`", (ROOT / "CONTRIBUTING.md").read_text())) >= targets
    for target in targets:
        assert _make("--dry-run", target).returncode == 0


@pytest.mark.parametrize(
    ("python", "said"),
    [
        ("exit 1", "needs Python 3.11 or newer"),
        ('case "$2" in *ensurepip*) exit 1;; esac', "apt-get install python3-venv"),
    ],
)
def test_a_python_that_will_not_do_is_named_with_what_to_install(
    python: str, said: str, tmp_path: Path
) -> None:
    unfit = tmp_path / "python"
    unfit.write_text(f"#!/bin/sh\n{python}\n")
    unfit.chmod(0o755)
    done = _make(f"PYTHON={unfit}", f"VENV={tmp_path / 'venv'}", "test")
    assert done.returncode != 0
    assert said in done.stderr
    assert str(unfit) in done.stderr
    assert not (tmp_path / "venv").exists()


def test_ci_calls_lint_test_and_mutants_and_forgives_no_skip() -> None:
    script = ROOT / ".ci/run"
    assert script.stat().st_mode & 0o111
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    text = script.read_text()
    assert "export STREAMER_REQUIRE_ALL=1" in text
    assert re.search(r"make .*lint test mutants$", text, re.MULTILINE)


def test_relative_links_of_the_documents_lead_somewhere() -> None:
    broken = [
        f"{document.name}: {target}"
        for folder in (".", "docs", "dashboards", "examples/*")
        for document in ROOT.glob(f"{folder}/*.md")
        for target in re.findall(r"\]\((?!\w+:)([^)#\s]+)", document.read_text())
        if not (document.parent / target).exists()
    ]
    assert broken == []
