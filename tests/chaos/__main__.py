"""`make chaos`: a random mixture of everything that can go wrong, on a real Kafka, judged at the end."""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from chaos.plan import KINDS, Plan, make
from chaos.run import BROKER, Run
from kafka_broker.broker import BrokerError, KafkaBroker
from kafka_broker.jars import JarsError

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a plan, print what came of it, and write the report.

    Returns:
        The exit status: 0 if all promises held.
    """
    given = _parse(arguments)
    lacking = [program for program in ("java", "mvn") if shutil.which(program) is None]
    if lacking:
        sys.exit(f"{' and '.join(lacking)} missing: apt-get install default-jre-headless maven")
    if given.plan is None:
        seed = secrets.randbelow(1_000_000) if given.seed is None else given.seed
        plan = make(seed, given.minutes * 60, given.without)
        rate = given.rate or 400.0
    else:
        document = orjson.loads(given.plan.read_bytes())
        plan = Plan.from_json(document).without(given.without)
        rate = given.rate or document["rate"]
    report_path = given.report or Path("build") / f"chaos-{plan.seed}.json"
    logs = report_path.with_suffix(".logs")
    _say(
        f"seed {plan.seed}: {plan.seconds / 60:g} minutes, {len(plan.troubles)} troubles,"
        f" {rate:g} records a second; {plan.settings}"
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with KafkaBroker(BROKER) as broker:
            report = asyncio.run(_run(Run(plan, broker, rate, _say, logs), report_path))
    except (BrokerError, JarsError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        _say("interrupted: no verdict")
        return 130
    return 0 if report["verdict"] == "ok" else 1


async def _run(run: Run, path: Path) -> dict[str, Any]:
    """Run, write the report and sum it up: before the loop waits for threads that a dead broker keeps."""
    report = await run.run()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2) + b"\n")  # noqa: ASYNC240 - nothing else runs any more
    _sum_up(report, path, run.logs)
    return report


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="how long (default: 5)")
    parser.add_argument("--seed", type=int, help="of an earlier run, to have the same again")
    parser.add_argument("--plan", type=Path, help="a report, whose troubles are to come again")
    parser.add_argument(
        "--without", type=_kinds, default=(), metavar="KIND,...", help=f"of {', '.join(KINDS)}"
    )
    parser.add_argument("--rate", type=float, help="records a second (default: 400)")
    parser.add_argument(
        "--report", type=Path, help="where to write it (default: build/chaos-SEED.json)"
    )
    return parser.parse_args(arguments)


def _kinds(text: str) -> list[str]:
    kinds = text.split(",")
    for kind in kinds:
        if kind not in KINDS:
            raise argparse.ArgumentTypeError(f"{kind} is none of {', '.join(KINDS)}")
    return kinds


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _sum_up(report: dict[str, Any], path: Path, logs: Path) -> None:
    for name, value in report["counts"].items():
        shown = ", ".join(f"{n} {c:,}" for n, c in value.items()) if type(value) is dict else value
        _say(f"{name.replace('_', ' '):>28}  {shown if type(shown) is str else f'{shown:,}'}")
    _say(
        f"longest time without progress while nothing was wrong:"
        f" {report['longest_standstill_without_trouble_seconds']} s;"
        f" peak memory of a member: {report['peak_rss_bytes'] / 1e6:.0f} MB"
    )
    _say(f"report: {path}; the logs of members and broker: {logs}")
    if report["verdict"] == "ok":
        _say("every promise held")
        return
    _say(f"NOT as it should be; the same troubles again: make chaos PLAN={path}")
    for sentence in report["verdict"]:
        _say(f"- {sentence}")


if __name__ == "__main__":
    os._exit(main())  # a thread that waits for a broker that is gone would keep it for minutes
