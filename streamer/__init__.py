"""Forwards Altis Analytics events from Kafka to Segment, with nothing lost.

Site code finds `hooks`, `register_segment_group_field` and `register_segment_group_map` here, as the PHP integration
has them in one namespace. They, and the version, are looked up when they are asked for: `streamer --help` shouldn't
wait for what they import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamer import hooks
    from streamer.hooks import register_segment_group_field, register_segment_group_map

    __version__: str

__all__ = [
    "__version__",
    "hooks",
    "register_segment_group_field",
    "register_segment_group_map",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - what each is says TYPE_CHECKING above
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415 - see above

        found: Any = version("altis-streamer")
    else:
        from importlib import import_module  # noqa: PLC0415 - the same

        hooks = import_module("streamer.hooks")
        found = hooks if name == "hooks" else getattr(hooks, name)
    globals()[name] = found  # asked for once
    return found
