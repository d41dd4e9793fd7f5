"""Imports site code: the modules of the setting `plugins`, and what is installed for the entry point group."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from streamer.errors import PluginError
from streamer.handlers import traceback_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

GROUP = "streamer.plugins"
"""The entry point group of installed plug-ins; each entry point names a module, which registers hooks when imported."""


def load_plugins(names: Iterable[str], file: str | None = None) -> list[str]:
    """Import every plug-in: first those that are installed, by name, then those of the setting, in its order.

    A module of the setting may lie in the folder in which streamer is started, or in that of the TOML file. Importing
    twice registers nothing twice.

    Args:
        names: modules, as `plugins` has them.
        file: the TOML file, None for none.

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
    folders = [Path.cwd(), *([Path(file).resolve().parent] if file else [])]
    for folder in map(str, reversed(folders) if names else ()):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    for name in names:
        _load(f"plugins: {name}", lambda name=name: import_module(name), folders)  # type: ignore[misc]
        loaded.append(name)
    return loaded


def _load(what: str, load: Callable[[], object], folders: Iterable[Path] = ()) -> None:
    try:
        load()
    except (Exception, SystemExit, GeneratorExit) as error:  # code of others may raise anything
        hint = ""
        if isinstance(error, ModuleNotFoundError):
            where = "".join(f"{folder}, " for folder in dict.fromkeys(folders))
            hint = f"\nThere is no module {error.name!r} in {where}PYTHONPATH, or installed beside streamer."
        raise PluginError(f"{what} can't be imported:\n{traceback_of(error)}{hint}") from error
