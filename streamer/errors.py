"""Every exception that streamer raises on purpose, in one tree.

    StreamerError              the command ends with one sentence
    ├── ConfigError            a setting is wrong: exit 2
    │   ├── MappingError       a mapping tree breaks the grammar, with the place in the tree
    │   └── PluginError        site code can't be imported, or fails when the mapping is set up
    └── StartError             something outside is not as it must be: a port in use, an unreadable file: exit 2

What is expected while events flow (a record that can't be mapped, a request that Segment refuses) is a value,
never an exception: see `streamer.core.model`.
"""


class StreamerError(Exception):
    """Something that the person who runs streamer can mend; its text is one sentence that says how."""


class ConfigError(StreamerError):
    """A setting is wrong. The text names the file or variable, the key, and what is allowed."""


class MappingError(ConfigError):
    """A mapping tree breaks the grammar. The text names the place in the tree and what was expected."""


class PluginError(ConfigError):
    """Site code can't be imported, or fails at the start. The text has the module or the handler, and the traceback."""


class StartError(StreamerError):
    """Something that streamer needs at its start is missing or taken."""
