"""Imports site code: the modules of the setting `plugins`, and what is installed for the entry point group."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from streamer.errors import PluginError
from streamer.handlers import traceback_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

GROUP = "streamer.plugins"
"""The entry point group of installed plug-ins; each entry point names a module, which registers hooks when imported."""


def load_plugins(names: Iterable[str]) -> list[str]:
    """Import every plug-in: first those that are installed, by name, then those of the setting, in its order.

    A module of the setting may lie in the folder in which streamer is started. Importing twice registers nothing twice.

    Args:
        names: modules, as `plugins` has them.

    Returns:
        What was imported, for a person.

    Raises:
        PluginError: one can't be imported; the text has its traceback.
    """
    loaded = []
    for entry_point in sorted(entry_points(group=GROUP), key=lambda one: one.name):
        _load(f"the plug-in {entry_point.name} ({entry_point.value})", entry_point.load)
        loaded.append(f"{entry_point.name} (installed)")
    names = list(names)
    here = os.getcwd()  # noqa: PTH109 - as Python itself puts it there for `python -m`
    if names and here not in sys.path:
        sys.path.insert(0, here)
    for name in names:
        _load(f"plugins: {name}", lambda name=name: import_module(name))  # type: ignore[misc]
        loaded.append(name)
    return loaded


def _load(what: str, load: Callable[[], object]) -> None:
    try:
        load()
    except (Exception, SystemExit) as error:  # code of others may raise anything
        hint = ""
        if isinstance(error, ModuleNotFoundError):
            hint = f"\nThere is no module {error.name!r} in this folder, in PYTHONPATH, or installed beside streamer."
        raise PluginError(f"{what} can't be imported:\n{traceback_of(error)}{hint}") from error
