"""What this site changes in its calls to Segment: importing it registers the handlers."""

from __future__ import annotations

import logging
import os
from collections import Counter
from typing import TYPE_CHECKING, Any

import streamer
from streamer import hooks

if TYPE_CHECKING:
    from streamer.hooks import Call, Event, MappingTree

log = logging.getLogger("my_site")

INTERNAL_ROLES = {"administrator", "editor"}

failures: Counter[str] = Counter()
"""Requests that didn't deliver, by status or by the exception's name."""

# One group for each audience that the visitor is in.
streamer.register_segment_group_field("endpoint.Attributes.AudienceId", each=True)


@hooks.filter("altis.analytics.segment.api_write_key")
def choose_source(key: str, event: Event) -> str:
    """Send what the shop records to a source of its own, and nothing of what staging does."""
    attributes = event.get("attributes")
    host = str(attributes.get("host", "")) if isinstance(attributes, dict) else ""
    if host.startswith("staging."):
        return ""
    if host.startswith("shop."):
        return os.environ.get("SHOP_WRITE_KEY") or key
    return key


@hooks.filter("altis.analytics.segment.mapping")
def add_ip(mapping: MappingTree, type: str) -> MappingTree:  # noqa: A002 - the hook's own word
    """Let Segment know where a visitor is."""
    if type in ("page", "track"):
        mapping["context"]["ip"] = "attributes.ip"
    return mapping


@hooks.filter("altis.analytics.segment.formatted_data")
def leave_out_internal_users(data: list[list[Call]]) -> list[list[Call]]:
    """Send nothing of what the site's own people do."""
    return [[] if is_internal(calls) else calls for calls in data]


def is_internal(calls: list[Call]) -> bool:
    """Tell it by the role that the identify call has."""
    roles = {call["traits"].get("role") for call in calls if isinstance(call.get("traits"), dict)}
    return not roles.isdisjoint(INTERNAL_ROLES)


@hooks.action("altis.analytics.segment.request_failure")
async def count_failures(response: hooks.Response | Exception, batch: list[dict[str, Any]]) -> None:
    """Count what went wrong, and say it the first time and each hundredth time."""
    why = str(response.status) if isinstance(response, hooks.Response) else type(response).__name__
    failures[why] += 1
    if failures[why] % 100 == 1:
        log.warning("%s for a request of %d calls, %d so far", why, len(batch), failures[why])
