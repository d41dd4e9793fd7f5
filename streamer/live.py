"""The settings in force, and how they change while streamer runs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import structlog

from streamer.config import LIVE_SETTINGS, change_live, changed, effective, take_live
from streamer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from streamer.config import Config, Effective

log = structlog.get_logger()


class Change(NamedTuple):
    """What a change of the settings came to.

    Attributes:
        before, after: what was in force and what is, by dotted key, as a person reads it; only what differs.
        needs_restart: what was read that differs from what is in force and can't change while streamer runs.
    """

    before: dict[str, str]
    after: dict[str, str]
    needs_restart: list[str]


class Observer(Protocol):
    """Is told what the metrics need."""

    def reloaded(self, *, accepted: bool) -> None:
        """A change of the settings was taken over, or refused."""


class LiveSettings:
    """Holds the settings in force, and takes changes over: all of one, or nothing of it.

    Args:
        config: the settings at the start.
        load: reads them again, as at the start; raises ConfigError.
        apply: makes settings take effect.
        observer: is told what the metrics need.

    Attributes:
        config: the settings in force.
        live: the dotted keys of those that can change.
    """

    live = LIVE_SETTINGS

    def __init__(
        self,
        config: Config,
        load: Callable[[], Config],
        apply: Callable[[Config], None],
        observer: Observer,
    ) -> None:
        self.config = config
        self._load = load
        self._apply = apply
        self._observer = observer
        self._reloading = asyncio.Lock()

    def shown(self) -> list[Effective]:
        """Every setting in force as a person reads it, secrets masked."""
        return effective(self.config)

    async def reload(self) -> Change:
        """Read the settings again where they were read at the start; what `change` had changed is forgotten.

        Raises:
            ConfigError: what stands there is wrong; nothing has changed.
        """
        async with self._reloading:
            try:
                wanted = await asyncio.to_thread(self._load)
                taken = take_live(self.config, wanted)
            except ConfigError as error:
                self._refuse("reload", error)
                raise
            return self._take(taken, "reload", sorted(changed(taken, wanted)))

    def change(self, values: Mapping[str, Any]) -> Change:
        """Change single settings.

        Args:
            values: dotted key to value, written as in the file.

        Raises:
            ConfigError: one of them is wrong, or can't change while streamer runs; nothing has changed.
        """
        try:
            taken = change_live(self.config, values)
        except ConfigError as error:
            self._refuse("/config", error)
            raise
        return self._take(taken, "/config", [])

    def _refuse(self, asked_by: str, error: ConfigError) -> None:
        self._observer.reloaded(accepted=False)
        log.error(
            "the settings stay as they are: what was asked for is wrong",
            asked_by=asked_by,
            reason="; ".join(str(error).splitlines()),
        )

    def _take(self, taken: Config, asked_by: str, needs_restart: list[str]) -> Change:
        differences = changed(self.config, taken)
        self._apply(taken)
        self.config = taken
        self._observer.reloaded(accepted=True)
        facts = {key: f"{before} -> {after}" for key, (before, after) in differences.items()}
        if needs_restart:
            log.warning(
                "some settings that were changed take effect only with a restart",
                settings=", ".join(needs_restart),
                at_once=", ".join(LIVE_SETTINGS),
            )
        log.info("settings changed" if facts else "no setting changed", asked_by=asked_by, **facts)
        return Change(
            {key: before for key, (before, _) in differences.items()},
            {key: after for key, (_, after) in differences.items()},
            needs_restart,
        )
