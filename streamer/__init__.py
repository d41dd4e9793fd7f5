"""Forwards Altis Analytics events from Kafka to Segment, with nothing lost."""

from importlib.metadata import version

__version__ = version("altis-streamer")
