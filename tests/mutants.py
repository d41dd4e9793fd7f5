"""Small wrong versions of the code, each with the test that has to find it: tests that can fail.

    python tests/mutants.py [WORD ...]

Each mutant is a copy of `streamer` with one substitution, whose text must occur exactly once; the test that is named
beside it runs on that copy and must go red. A mutant that survives, a text that no longer occurs, or a test that is red
on the unchanged copy ends the run with status 1. With words only the mutants whose names have one of them are tried.

Pytest and the libraries are imported once: each mutant's process is a fork.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.process import BaseProcess

ROOT = Path(__file__).parent.parent

_AT_A_TIME = 2
_LONGEST = 300.0  # seconds; no mutant may hang, nor is slow but for a busy machine
_LIBRARIES = (
    "aiohttp.web", "aiokafka", "hypothesis.stateful", "isal.igzip", "orjson", "prometheus_client", "pydantic",
    "rich.console", "structlog", "typer",
)  # fmt: skip
_OPTIONS = (
    "-x", "-q", "--tb=short", "--timeout=0", "-p", "no:cacheprovider", "-p", "no:pytest_cov",
    "-W", "ignore::pytest.PytestAssertRewriteWarning",  # the libraries are there before pytest can change them
)  # fmt: skip
_SHOWN_LINES = 40  # of the output of a run that didn't end as it must
_SLIPS = (NameError, ImportError, SyntaxError, AttributeError, TypeError)
"""What a mutant raises that isn't wrong but broken: a test that sees it has held nothing."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One wrong version.

    Attributes:
        name: what is wrong.
        file: in which file, below `streamer/`.
        right: what stands there, once.
        wrong: what stands there instead.
        test: node id, below `tests/`, of the test that has to find it; a fast one, without Kafka.
    """

    name: str
    file: str
    right: str
    wrong: str
    test: str

    def applied(self, text: str) -> str:
        """Make the substitution.

        Args:
            text: the file's.

        Raises:
            ValueError: it doesn't apply, or changes nothing.
        """
        found = text.count(self.right)
        if found != 1 or self.right == self.wrong:
            raise ValueError(
                f"the mutant `{self.name}` applies no longer: its text occurs {found} times in"
                f" streamer/{self.file}, and must be there once; write it anew in tests/mutants.py"
            )
        return text.replace(self.right, self.wrong)


OFFSETS = "core/test_offsets.py::"
AGGREGATE = "core/test_aggregate.py::"
SUPPRESSION = "core/test_suppression.py::"
BATCH = "core/test_batch.py::"
BISECTION = "core/test_bisection.py::"
DESTINATION = "core/test_destination.py::"
BUDGET = "core/test_budget.py::"
ACCOUNT = "core/test_account.py::"
LIMITER = "core/test_limiter.py::"
TRANSFORM = "core/test_transform.py::"
VALIDATE = "core/test_validate.py::"
SEGMENT = "test_segment.py::"
DELIVERY = "test_delivery.py::"
LOGS = "test_logs.py::"
SOURCE = "test_source.py::"
TALLY = "core/test_tally.py::"
TRACE = "test_trace.py::"
WINDOW = "test_window.py::"
LEASE = "test_lease.py::"
PIPELINE = "test_pipeline.py::"
SITE_CODE = "test_site_code.py::"
DEAD_LETTER = "test_dead_letter.py::"

MUTANTS = (
    # 1. At least once, nothing lost.
    Mutant(
        "offsets are committed before they are settled",
        "core/offsets.py",
        "while chunks and not chunks[0].holders:",
        "while chunks:",
        OFFSETS + "test_whatever_the_order_of_completion_only_the_settled_prefix_is_committable",
    ),
    Mutant(
        "the committed offset is off by one",
        "core/offsets.py",
        "self.next_position = self.offsets[-1] + 1",
        "self.next_position = self.offsets[-1]",
        OFFSETS + "test_whatever_the_order_of_completion_only_the_settled_prefix_is_committable",
    ),
    Mutant(
        "the consumer's position is committed though chunks before it are open",
        "core/offsets.py",
        "if not chunks and position is not None",
        "if position is not None",
        OFFSETS + "test_nothing_is_committable_before_anything_is_known",
    ),
    Mutant(
        "a waiting call holds the chunk of its first contribution alone",
        "core/aggregate.py",
        "            self.chunks.append(chunk)\n            chunk.hold()\n",
        "            pass\n",
        AGGREGATE + "test_what_comes_while_its_profile_is_in_flight_waits_merges_and_moves_on",
    ),
    Mutant(
        "a revocation in the middle of a read isn't noticed between slices",
        "pipeline.py",
        "if generation.ended:\n                    return done",
        "if False:\n                    return done",
        PIPELINE + "test_a_revocation_in_the_middle_of_a_read_makes_nothing_of_it_committable",
    ),
    Mutant(
        "a chunk is let go though its reading was broken off",
        "pipeline.py",
        "            if generation.ended:\n                return\n            chunk.let_go()",
        "            chunk.let_go()",
        PIPELINE + "test_a_revocation_in_the_middle_of_a_read_makes_nothing_of_it_committable",
    ),
    Mutant(
        "what site code gives back after a revocation is taken in",
        "pipeline.py",
        "return None if over.is_set() else await working",
        "return await working",
        SITE_CODE + "test_after_a_revocation_while_a_handler_runs_nothing_of_it_counts",
    ),
    Mutant(
        "a dead letter that isn't written holds nothing",
        "pipeline.py",
        "        chunk.hold()\n\n        def acknowledged() -> None:\n            count()\n"
        "            chunk.let_go()",
        "        def acknowledged() -> None:\n            count()",
        SITE_CODE
        + "test_a_handler_that_raises_makes_dead_letters_with_the_traceback_and_the_stream_goes_on",
    ),
    Mutant(
        "dead letters are acknowledged though their write failed",
        "dead_letter.py",
        "for waiting in together[:written]:",
        "for waiting in together:",
        DEAD_LETTER + "test_a_sink_that_fails_is_tried_again_for_ever",
    ),
    Mutant(
        "a write that ends after its generation acknowledges the next one's letters",
        "dead_letter.py",
        "if self._waiting and self._waiting[0] is waiting:",
        "if self._waiting:",
        DEAD_LETTER + "test_a_generation_that_ended_is_forgotten",
    ),
    Mutant(
        "an answer counts though its generation has ended",
        "delivery.py",
        "if lane not in self._routes:",
        "if False:",
        DELIVERY + "test_an_answer_after_the_end_counts_nowhere",
    ),
    Mutant(
        "a position that a failed read has moved is committed",
        "source.py",
        "if placed else read_to",
        "if True else read_to",
        SOURCE + "test_nothing_is_committed_between_a_generation_that_has_ended_and_the_next",
    ),
    Mutant(
        "commits go on after one that a rebalance refused",
        "source.py",
        "            self._commit_gate = False\n        except KafkaError",
        "            pass\n        except KafkaError",
        SOURCE + "test_nothing_is_committed_between_a_generation_that_has_ended_and_the_next",
    ),
    Mutant(
        "commits go on after a revocation",
        "source.py",
        "                self.assignment = None\n            self._waiting_since",
        "            self._waiting_since",
        SOURCE + "test_nothing_is_committed_between_a_generation_that_has_ended_and_the_next",
    ),
    Mutant(
        "who may have lost its partitions sends on",
        "delivery.py",
        "                if self._may_send():\n",
        "                if True:\n",
        LEASE + "test_nothing_is_started_while_it_may_not_be_sent_and_all_of_it_once_it_may_again",
    ),
    Mutant(
        "heartbeats of a rebalance keep a lease for ever",
        "core/lease.py",
        "min(sent + self._session, self._confirmed + self._rebalance)",
        "sent + self._session",
        "core/test_lease.py::test_it_is_over_before_the_coordinator_gives_the_partitions_away",
    ),
    # 2. Once in Segment, for page and track.
    Mutant(
        "messageId is a constant",
        "core/compile.py",
        "call['messageId'] = 's1-' + own_hash.hexdigest()",
        "call['messageId'] = 's1-' + '0' * 32",
        TRANSFORM
        + "test_ids_come_from_the_record_without_outer_white_space_and_from_the_write_key",
    ),
    Mutant(
        "ids aren't keyed with the write key",
        "core/transform.py",
        "blake2b(digest_size=16, key=key)",
        "blake2b(digest_size=16)",
        TRANSFORM
        + "test_ids_come_from_the_record_without_outer_white_space_and_from_the_write_key",
    ),
    Mutant(
        "outer white space changes the id",
        "core/transform.py",
        "stripped = value.strip()",
        "stripped = value",
        TRANSFORM
        + "test_ids_come_from_the_record_without_outer_white_space_and_from_the_write_key",
    ),
    # 3. Traits end as the stream does.
    Mutant(
        "the id of a merged call is that of its last contribution",
        "core/aggregate.py",
        'new.hash.update(b"\\0" + old.hash.digest())',
        "pass",
        AGGREGATE + "test_an_id_tells_every_contribution_apart",
    ),
    Mutant(
        "a redelivered identify call has its earlier id",
        "core/aggregate.py",
        'self._nonce = b"\\0" + nonce',
        'self._nonce = b"\\0"',
        AGGREGATE
        + "test_the_same_contributions_and_nonce_make_the_same_ids_and_another_nonce_makes_others",
    ),
    Mutant(
        "a record that Kafka has twice has one id",
        "core/aggregate.py",
        "        self._number += 1\n",
        "",
        AGGREGATE + "test_traits_that_come_again_are_applied_again",
    ),
    Mutant(
        "earlier traits are laid over later ones",
        "core/aggregate.py",
        "{**old.traits, **new.traits}",
        "{**new.traits, **old.traits}",
        AGGREGATE + "test_contributions_of_a_profile_merge_key_by_key_and_the_last_says_the_rest",
    ),
    Mutant(
        "a call overtakes those of its profile that wait",
        "core/aggregate.py",
        "if batch is self.open and not waiting:",
        "if batch is self.open:",
        AGGREGATE + "test_nothing_overtakes_what_still_waits",
    ),
    Mutant(
        "what is sent counts as delivered, for suppression",
        "core/suppression.py",
        "        pending.pairs[pair] = (rest, None)\n        return False",
        "        pending.pairs[pair] = (rest, None)\n        digests.put(target, traits, now)\n"
        "        digests.put(pair, rest, now)\n        return False",
        SUPPRESSION + "test_a_call_that_became_a_dead_letter_was_not_delivered",
    ),
    Mutant(
        "a call that Segment refused counts as delivered, for suppression",
        "core/suppression.py",
        "        if pending.refused:\n            return\n",
        "",
        SUPPRESSION + "test_a_refused_call_spoils_what_waits_behind_it",
    ),
    Mutant(
        "traits that other traits follow on their way count as the last",
        "core/suppression.py",
        "        if not same:\n            digests.forget(target)\n",
        "",
        SUPPRESSION + "test_nobody_knows_in_which_order_two_users_calls_of_one_group_arrived",
    ),
    Mutant(
        "what a generation knows of deliveries outlives it",
        "pipeline.py",
        "share, make_digests(self._config, share))",
        'share, self.__dict__.setdefault("_digests", make_digests(self._config, share)))',
        PIPELINE + "test_suppression_is_the_generations_and_what_was_refused_was_not_delivered",
    ),
    # 4. and 5. Nothing silently discarded, limits are hard.
    Mutant(
        "a call may be a byte too large",
        "core/validate.py",
        "if size_bytes > MAX_CALL_BYTES:",
        "if size_bytes > MAX_CALL_BYTES + 1:",
        VALIDATE + "test_a_call_may_be_32_000_bytes_and_no_more",
    ),
    Mutant(
        "a batch is full once it has passed its limit",
        "core/batch.py",
        "if self.size + size + 1 > self.limits.max_bytes:",
        "if self.size > self.limits.max_bytes:",
        BATCH + "test_the_last_byte_of_the_limit_is_used_and_none_behind_it",
    ),
    Mutant(
        "the envelope isn't counted",
        "core/batch.py",
        "self.size = ENVELOPE_BYTES - 1",
        "self.size = -1",
        BATCH + "test_the_last_byte_of_the_limit_is_used_and_none_behind_it",
    ),
    Mutant(
        "a 200 without success is taken as delivered",
        "segment.py",
        "if strict and not _says_success(text):",
        "if False:",
        SEGMENT + "test_a_success_that_does_not_say_so_is_tried_again",
    ),
    Mutant(
        "a compressed body isn't said to be one",
        "segment.py",
        'headers["Content-Encoding"] = "gzip"',
        "pass",
        SEGMENT + "test_what_a_request_says",
    ),
    # 6. Memory is bounded.
    Mutant(
        "the budget is never given back",
        "core/budget.py",
        "self._budget.used -= size",
        "pass",
        BUDGET + "test_from_its_limit_on_the_budget_is_spent_and_below_it_is_not",
    ),
    Mutant(
        "calls are kept in the buffers in which they were made",
        "core/budget.py",
        'return b"".join((data, b""))',
        "return data",
        AGGREGATE + "test_what_the_budget_has_of_calls_is_no_less_than_the_memory_that_they_take",
    ),
    Mutant(
        "what a chunk keeps is never given back",
        "core/offsets.py",
        "            self._share.give(self._kept)\n",
        "",
        OFFSETS + "test_what_a_chunk_keeps_is_held_of_the_budget_until_all_have_let_go",
    ),
    Mutant(
        "the bodies of requests aren't counted",
        "delivery.py",
        "lane.share.take(held)",
        "held = 0",
        DELIVERY
        + "test_a_body_counts_in_the_budget_with_its_compressed_copy_while_it_is_under_way",
    ),
    Mutant(
        "visitors may open lanes without end",
        "pipeline.py",
        "if len(generation.lanes) >= MAX_LANES:",
        "if False:",
        SITE_CODE + "test_one_key_too_many_makes_dead_letters",
    ),
    # 7. Every record is accounted for.
    Mutant(
        "a refused identify call decides its record",
        "core/account.py",
        'if kind in ("page", "track") and reason is not None:',
        "if reason is not None:",
        ACCOUNT + "test_a_refused_identify_call_does_not_decide_its_record",
    ),
    Mutant(
        "what completes after its generation has ended is counted again",
        "core/account.py",
        "        self.calls = _per_type()\n        self.ended = True",
        "        self.calls = _per_type()",
        ACCOUNT + "test_what_completes_after_the_end_counts_nowhere",
    ),
    # When things go wrong.
    Mutant(
        "Retry-After is ignored",
        "core/destination.py",
        "case Retry(after_seconds=None):",
        "case Retry():",
        DESTINATION + "test_retry_after_pauses_for_as_long_as_it_says",
    ),
    Mutant(
        "Retry-After as a date is ignored",
        "segment.py",
        "date = parsedate_to_datetime(value)",
        "return None",
        SEGMENT + "test_retry_after_as_a_date",
    ),
    Mutant(
        "a pause may be of any length",
        "core/destination.py",
        "min(after or 0.0, MAX_PAUSE)",
        "(after or 0.0)",
        DESTINATION + "test_no_pause_is_longer_than_five_minutes",
    ),
    Mutant(
        "a misconfigured destination is asked without end",
        "core/destination.py",
        "until = now + PROBE_INTERVAL",
        "until = now",
        DESTINATION + "test_a_refused_key_is_probed_every_thirty_seconds",
    ),
    Mutant(
        "a success that was on its way before lifts a pause",
        "core/destination.py",
        "if permit.epoch != self._epoch and self.state is not State.BACKING_OFF:",
        "if False:",
        DESTINATION + "test_a_success_on_its_way_before_does_not_lift_a_pause",
    ),
    Mutant(
        "a failed batch is sent again at once",
        "delivery.py",
        "batch.not_before = now + backoff(batch.failures, self._jitter())",
        "batch.not_before = now",
        DELIVERY + "test_a_failed_batch_is_sent_again_later_and_later",
    ),
    Mutant(
        "the last line of a flood is never written",
        "logs.py",
        "if self.rest and not calm:",
        "if self.rest:",
        LOGS + "test_the_last_state_of_a_destination_is_the_last_line_of_it",
    ),
    Mutant(
        "an event may begin a line of the log",
        "logs.py",
        'return "".join(one if one.isprintable() else _escaped(one) for one in text)',
        "return text",
        LOGS + "test_nothing_begins_a_line_or_moves_the_cursor_on_a_terminal",
    ),
    Mutant(
        "slots aren't freed",
        "delivery.py",
        "            self.in_flight -= 1\n",
        "",
        DELIVERY + "test_concurrency_is_used_and_never_exceeded",
    ),
    Mutant(
        "keys that fail may take every slot",
        "delivery.py",
        "self._probing < max(1, limit // 4)",
        "self._probing < limit",
        DELIVERY + "test_keys_that_fail_take_at_most_a_quarter_of_the_slots",
    ),
    Mutant(
        "a key that leaves requests unanswered keeps its slots",
        "delivery.py",
        "            self._regular -= 1\n            self._doubtful += 1\n            destination.doubt(now)\n",
        "            pass\n",
        "test_lanes.py::test_five_hundred_keys_that_time_out_do_not_slow_the_others",
    ),
    Mutant(
        "a burst costs one token",
        "core/limiter.py",
        "max(self._full_at, now) + self._interval",
        "now + self._interval",
        LIMITER + "test_a_tenth_of_a_second_goes_out_at_once_and_the_rest_evenly",
    ),
    Mutant(
        "a 429 doesn't lower the number of requests",
        "core/limiter.py",
        "if not self.adapts or started < self._changed_at:",
        "if True:",
        LIMITER + "test_a_429_shrinks_once_for_those_that_ran_side_by_side",
    ),
    # Bisection.
    Mutant(
        "halving a refused batch drops the siblings of its first half",
        "core/bisection.py",
        "self._open += [(middle, stop), (start, middle)]",
        "self._open += [(start, middle)]",
        BISECTION + "test_one_bad_call_is_found_by_halving",
    ),
    Mutant(
        "a call refused alone is convicted without a witness",
        "core/bisection.py",
        "insort(self._suspects, start)",
        "return [start]",
        BISECTION
        + "test_a_destination_that_refuses_everything_convicts_no_call_however_many_there_are",
    ),
    Mutant(
        "a suspect is convicted by the first acceptance",
        "core/bisection.py",
        "guilty = pieces.overtaken(piece, batch.types)",
        "guilty = list(pieces._suspects)",
        DELIVERY + "test_a_destination_that_refuses_everything_for_a_while_costs_no_call",
    ),
    Mutant(
        "a suspect is convicted by a second refusal, though nothing was accepted in between",
        "core/bisection.py",
        "pieces.again = first <= self._accepted",
        "pieces.again = first < inf",
        BISECTION
        + "test_without_a_witness_the_call_itself_is_sent_again_and_blames_the_destination",
    ),
    Mutant(
        "an identify call is sent once more behind a newer one",
        "core/bisection.py",
        "guilty = pieces.overtaken(piece, batch.types)",
        "guilty = []",
        BISECTION + "test_traits_are_not_sent_once_more_when_newer_ones_were_accepted",
    ),
    # A look at a stream.
    Mutant(
        "the batch that is open at the end counts whole",
        "simulation.py",
        "self._played.requests += min(max(waited, filled), 1.0)",
        "self._played.requests += 1",
        "test_simulation.py::test_rates_dont_depend_on_where_the_trace_ends",
    ),
    Mutant(
        "what is played changes the trace",
        "trace.py",
        "one if isinstance(one, Main | Fixed) else _fresh(one)",
        "one",
        "test_simulation.py::test_playing_changes_nothing_of_the_trace",
    ),
    Mutant(
        "an interval is recommended that misses the aim",
        "simulation.py",
        "            missed = tried",
        "            best = point",
        "test_simulation.py::test_for_a_lateness_the_longest_interval_is_recommended",
    ),
    Mutant(
        "Segment takes no time in a play",
        "simulation.py",
        "await asyncio.sleep(self._request_seconds)",
        "await asyncio.sleep(0)",
        "test_simulation.py::test_a_record_is_as_late_as_its_batch_waits_and_its_request_takes",
    ),
    Mutant(
        "a trait's name that may be a visitor's stands in a trace",
        "trace.py",
        "_PLAIN_NAME.fullmatch(name)",
        "_PLAIN_NAME.match(name)",
        TRACE + "test_a_name_that_may_be_a_visitors_is_hidden_unless_the_settings_have_it",
    ),
    Mutant(
        "what is compared beside traits isn't in a trace",
        "trace.py",
        'said["rest"] = self._digest(without_news(one))',
        'said["rest"] = ""',
        TRACE + "test_a_lane_makes_the_same_of_it",
    ),
    Mutant(
        "the partitions of a window are seen over different times",
        "window.py",
        "    missing = before - _between(starts, low)",
        "    low = starts\n    missing = before",
        WINDOW + "test_so_many_records_lie_before_the_time_that_is_chosen",
    ),
    Mutant(
        "a trait is blamed for calls that differ in others too",
        "core/tally.py",
        "if differing <= ignored",
        "if differing & ignored",
        TALLY + "test_calls_that_differ_in_one_trait_alone_are_told_from_those_that_differ_in_more",
    ),
)


# --- running them ---------------------------------------------------------------------------------


class _Judge:
    """A plug-in of pytest that notes what failed in a test itself, not around it."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.slips: list[str] = []

    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> None:
        error = call.excinfo
        if error is None or isinstance(error.value, pytest.skip.Exception):
            return
        said = f"{item.name}: {error.typename}"
        slip = call.when != "call" or isinstance(error.value, _SLIPS)
        (self.slips if slip else self.found).append(said)


def _test(folder: Path, tests: Sequence[str]) -> None:
    """Run tests on the copy of `streamer` in a folder, and write what came of it there; in a process of its own."""
    with (folder / "output").open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    from hypothesis import settings  # noqa: PLC0415 - the test of the table needs none of it

    settings.register_profile("mutants", derandomize=True, database=None)
    settings.load_profile("mutants")
    os.chdir(ROOT)
    os.environ["PYTHONPATH"] = str(folder)  # for what tests start
    sys.path.insert(0, str(folder))
    found = importlib.import_module("streamer").__file__ or ""
    if not Path(found).is_relative_to(folder):
        raise ImportError(f"tests would see {found}, and not the copy in {folder}")
    judge = _Judge()
    status = pytest.main([*_OPTIONS, *(f"tests/{test}" for test in tests)], [judge])
    result = {"status": int(status), "found": judge.found, "slips": judge.slips}
    (folder / "result").write_text(json.dumps(result))


class _Job:
    """A copy of `streamer` and the process that tests it."""

    def __init__(self, folder: Path, tests: Sequence[str], mutant: Mutant | None) -> None:
        self.mutant = mutant
        self._folder = folder
        self._started = time.monotonic()
        shutil.copytree(
            ROOT / "streamer", folder / "streamer", ignore=shutil.ignore_patterns("__pycache__")
        )
        if mutant is not None:
            file = folder / "streamer" / mutant.file
            file.write_text(mutant.applied(file.read_text()))
        self.process: BaseProcess = multiprocessing.get_context("fork").Process(
            target=_test, args=(folder, tests), daemon=True
        )
        self.process.start()

    @property
    def overdue(self) -> bool:
        return time.monotonic() - self._started > _LONGEST

    def verdict(self) -> str:
        """Say, once the process has ended, why it isn't as it must be: nothing if it is."""
        seconds = time.monotonic() - self._started
        self.process.join()
        result: dict[str, Any] = {"status": None, "found": [], "slips": []}
        if (self._folder / "result").exists():
            result = json.loads((self._folder / "result").read_text())
        status, found, slips = result["status"], result["found"], result["slips"]
        name = self.mutant.name if self.mutant else "the code as it is"
        right = status == 0 if self.mutant is None else status == 1 and found and not slips
        how = (
            ", ".join(found + slips)
            or {0: "all green", None: "the run broke off"}.get(status)
            or f"pytest's exit status {status}"
        )
        sys.stdout.write(f"{'ok ' if right else 'NOT'} {seconds:5.1f} s  {name}: {how}\n")
        sys.stdout.flush()
        if right:
            return ""
        output = (self._folder / "output").read_text(errors="replace").splitlines(keepends=True)
        return f"--- {name}: {how}\n{''.join(output[-_SHOWN_LINES:])}"


def run(mutants: Sequence[Mutant]) -> int:
    """Try mutants, and the code as it is.

    Args:
        mutants: which.

    Returns:
        The exit status: 0 if every mutant is found, and only those.
    """
    wrong = []
    for mutant in mutants:
        try:
            mutant.applied((ROOT / "streamer" / mutant.file).read_text())
        except ValueError as error:
            wrong.append(str(error))
    if wrong:
        sys.stderr.write("".join(f"{said}\n" for said in wrong))
        return 1
    for name in _LIBRARIES:
        importlib.import_module(name)
    started = time.monotonic()
    every_test = list(dict.fromkeys(mutant.test for mutant in mutants))
    waiting: deque[tuple[list[str], Mutant | None]] = deque([(every_test, None)])
    waiting += [([mutant.test], mutant) for mutant in mutants]
    running: list[_Job] = []
    with tempfile.TemporaryDirectory() as temporary:
        while waiting or running:
            while waiting and len(running) < _AT_A_TIME:
                folder = Path(temporary) / str(len(waiting))
                running.append(_Job(folder, *waiting.popleft()))
            wait([job.process.sentinel for job in running], timeout=1.0)
            for job in list(running):
                if job.overdue:
                    job.process.kill()
                elif job.process.is_alive():
                    continue
                running.remove(job)
                wrong.append(job.verdict())
    wrong = [said for said in wrong if said]
    sys.stdout.write("".join(f"{said}\n" for said in wrong))
    came = f"{len(wrong)} runs did not end as they must, see above" if wrong else "each is found"
    sys.stdout.write(f"{len(mutants)} mutants in {time.monotonic() - started:.0f} s: {came}\n")
    return bool(wrong)


def main(words: Sequence[str]) -> int:
    """Try the mutants whose names have one of some words, or all."""
    chosen = [one for one in MUTANTS if not words or any(word in one.name for word in words)]
    if not chosen:
        sys.exit(f"no mutant has {' or '.join(words)} in its name")
    return run(chosen)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
