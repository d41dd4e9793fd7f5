"""Senders and a validator that nobody here wrote agree with the mock.

Where the mock and `@segment/loosely-validate-event` differ, the mock is stricter, and `_known_difference` says in which
fields and why; everywhere else their verdicts must be equal.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from segment.analytics.client import Client

from reference.strategies import hostile_records
from streamer.core.transform import Transform
from streamer.mock_segment import Discard, MockSegment
from streamer.mock_segment.rules import TYPES, discard_reason

DRIVER = Path(__file__).parent / "node" / "driver.mjs"

CALLS = 120
"""Calls that a sender sends, in batches of 50: three requests, twenty calls of each type."""

TWENTY_EACH = dict.fromkeys(TYPES, CALLS // len(TYPES))


def send_with_python(segment: MockSegment, compress: bool) -> list[object]:
    errors: list[object] = []
    client = Client(
        "python",
        host=segment.address,
        gzip=compress,
        upload_size=50,
        max_retries=0,
        on_error=lambda error, _: errors.append(error),
    )
    for number in range(CALLS // 6):
        user, anonymous = f"user-{number}", f"anonymous-{number}"
        when = datetime(2026, 1, 1, tzinfo=UTC)
        client.identify(user, {"plan": "pro", "tags": ["a"]}, timestamp=when)
        client.track(anonymous_id=anonymous, event="Order Completed", properties={"total": 9.5})
        client.page(user, name="Home", category="Docs", anonymous_id=anonymous)
        client.screen(user, name="Start")
        client.group(user, "acme", {"name": "Ümläut ☃ 𝄞"})
        client.alias(anonymous, user)
    client.shutdown()
    return errors


@pytest.mark.parametrize("compress", [False, True])
def test_every_call_of_segment_analytics_python_is_accepted(compress: bool) -> None:
    async def main() -> None:
        async with MockSegment(known_keys=["python"]) as segment:
            assert await asyncio.to_thread(send_with_python, segment, compress) == []
            assert segment.stats.accepted == TWENTY_EACH
            assert segment.stats.discards == {}
            assert segment.stats.requests_total >= 3
            assert (segment.stats.received_bytes < segment.stats.inflated_bytes) is compress
            assert segment.stats.bad_sent_at == 0
            assert segment.profiles["user-0"] == {"plan": "pro", "tags": ["a"]}
            assert segment.group_profiles["user-19", "acme"] == {"name": "Ümläut ☃ 𝄞"}

    asyncio.run(main())


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_every_call_of_analytics_node_is_accepted(node_modules: Path, encoding: str) -> None:
    async def main() -> None:
        async with MockSegment(known_keys=["node"]) as segment:
            command = ["node", str(DRIVER), str(node_modules), "send", segment.url]
            node = await asyncio.create_subprocess_exec(
                *command, str(CALLS), "50", encoding, stdout=-1, stderr=-1
            )
            out, err = await node.communicate()
            assert (node.returncode, err) == (0, b"")
            assert orjson.loads(out) == TWENTY_EACH
            assert segment.stats.accepted == TWENTY_EACH
            assert segment.stats.discards == {}
            assert segment.stats.requests_total == 3
            compressed = segment.stats.received_bytes < segment.stats.inflated_bytes
            assert compressed is (encoding == "gzip")
            assert segment.stats.bad_sent_at == 0
            assert segment.profiles["user-0"] == {"plan": "pro", "tags": ["a"]}
            assert segment.group_profiles["user-4", "acme"] == {"name": "Ümläut ☃ 𝄞"}

    asyncio.run(main())


def _known_difference(call: dict[str, Any]) -> set[Discard]:
    """Name the reasons for which the mock may throw away what Segment's validator takes."""
    reasons = set()
    for field in ("userId", "anonymousId", "groupId", "previousId"):
        value = call.get(field)
        # The validator takes numbers, and skips whatever JavaScript takes for false. Segment drops an id that is no
        # string or is empty, even where another id would do.
        if value is not None and (not isinstance(value, str) or not value):
            reasons.add(Discard.BAD_ID)
    # The validator never looks at these.
    reasons |= {Discard.BAD_MESSAGE_ID, Discard.BAD_TRAITS, Discard.BAD_PROPERTIES}
    # It skips what JavaScript takes for false before it asks for the type: false, 0 and "".
    falsy = {
        "context": Discard.BAD_CONTEXT,
        "integrations": Discard.BAD_INTEGRATIONS,
        "timestamp": Discard.BAD_TIMESTAMP,
        "name": Discard.BAD_NAME,
        "category": Discard.BAD_CATEGORY,
        "event": Discard.BAD_EVENT,
    }
    reasons |= {reason for field, reason in falsy.items() if not call.get(field, True)}
    # It gets a Date, and a Date that holds no time is one too.
    if isinstance(call.get("timestamp"), str):
        reasons.add(Discard.BAD_TIMESTAMP)
    return reasons


USUAL: dict[str, Any] = {
    "type": "track",
    "userId": "u",
    "anonymousId": "a",
    "groupId": "g",
    "previousId": "p",
    "event": "scroll",
    "name": "Home",
    "category": "Docs",
    "traits": {"a": 1},
    "properties": {"a": 1},
    "context": {"locale": "en"},
    "integrations": {"All": True},
    "timestamp": "2026-01-01T00:00:00.000Z",
    "messageId": "m",
}
WILD: tuple[Any, ...] = (None, "", "ünïcode", 0, 5, -2.5, True, False, [], ["text"], {}, {"a": 1})


@st.composite
def nearly_valid_calls(draw: st.DrawFn) -> dict[str, Any]:
    """A call with all that any type needs, then some fields left out and at most two made wild."""
    call = USUAL | {"type": draw(st.sampled_from(sorted(TYPES)))}
    for name in draw(st.sets(st.sampled_from(sorted(USUAL)), max_size=4)):
        del call[name]
    wild = st.dictionaries(st.sampled_from(sorted(USUAL)), st.sampled_from(WILD), max_size=2)
    return call | draw(wild)


def ask_node(node_modules: Path, calls: list[dict[str, Any]]) -> list[str | None]:
    lines = b"".join(orjson.dumps(call) + b"\n" for call in calls)
    node = subprocess.run(
        ["node", DRIVER, node_modules, "validate"],
        input=lines,
        capture_output=True,
        check=True,
    )
    return [orjson.loads(line) for line in node.stdout.splitlines()]


# Few examples of many calls each: starting node costs more than a thousand verdicts.
@settings(
    deadline=None,
    max_examples=10,
    # A failure names its call; shrinking it would start node a thousand times.
    phases=[Phase.generate],
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.large_base_example,
    ],
)
@given(calls=st.lists(nearly_valid_calls(), min_size=50, max_size=200))
def test_segments_own_validator_agrees_on_what_is_valid(
    node_modules: Path, calls: list[dict[str, Any]]
) -> None:
    complaints = ask_node(node_modules, calls)
    assert len(complaints) == len(calls)
    for call, complaint in zip(calls, complaints, strict=True):
        reason = discard_reason(call)
        if reason is not None and complaint is None:
            assert reason in _known_difference(call), (call, reason)
        else:
            assert (reason is None) == (complaint is None), (call, reason, complaint)


def test_segments_own_validator_takes_every_call_that_streamer_makes(node_modules: Path) -> None:
    """Of records as hostile as Hypothesis can make them, in one run of node."""
    transform = Transform(
        write_key="key", groups=[{"field": "endpoint.Attributes.Company", "each": True}]
    )
    calls: list[dict[str, Any]] = []

    @settings(deadline=None, max_examples=400, phases=[Phase.generate])
    @given(hostile_records())
    def make(value: bytes) -> None:
        made = transform.calls(value, 1_650_000_000_123)
        if isinstance(made, list):
            calls.extend(made)

    make()
    assert len(calls) > 200
    assert ask_node(node_modules, calls) == [None] * len(calls)


def test_the_generated_calls_reach_agreement_on_every_verdict(node_modules: Path) -> None:
    """Calls with one field at fault each, so that agreement doesn't rest on the luck of generation."""
    base = {
        name: {"userId": "u", "groupId": "g", "previousId": "p", "event": "e"} for name in TYPES
    }
    calls: list[dict[str, Any]] = []
    for kind, fields in base.items():
        whole = fields | {"type": kind}
        calls.append(whole)
        calls += [{k: v for k, v in whole.items() if k != gone} for gone in whole]
        calls += [whole | {field: value} for field in USUAL for value in WILD]
    verdicts: Counter[tuple[bool, bool]] = Counter()
    for call, complaint in zip(calls, ask_node(node_modules, calls), strict=True):
        reason = discard_reason(call)
        verdicts[reason is None, complaint is None] += 1
        if reason is not None and complaint is None:
            assert reason in _known_difference(call), (call, reason)
    assert verdicts[True, True] > 40
    assert verdicts[False, False] > 100
    assert verdicts[True, False] == 0  # the mock takes nothing that Segment's validator doesn't
