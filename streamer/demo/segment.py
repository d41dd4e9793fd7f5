"""Mock Segment in a process of its own: the command `streamer mock-segment`, asked over HTTP what it has counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import aiohttp

from streamer.demo.child import Child
from streamer.errors import StartError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_SAYS = "mock Segment listens on "
_ANSWER_SECONDS = 10.0


class SegmentProcess(Child):
    """Starts it on loopback when it is entered and stops it when it is left.

    Attributes:
        url: Segment's endpoint, as a sender needs it.
        address: the same without its path, once it is entered.
    """

    url: str
    address: str

    def __init__(self) -> None:
        command = "from streamer.cli import main; main()"
        options = ("mock-segment", "--port", "0", "--until-eof")
        super().__init__("mock Segment", "-c", command, *options)

    async def __aenter__(self) -> Self:
        """Start it.

        Raises:
            StartError: it didn't come up.
        """
        line = await self.start()
        if not line.startswith(_SAYS):
            raise StartError(f"mock Segment ended at its start, with status {await self.stop()}")
        self.url = line.removeprefix(_SAYS)
        self.address = self.url.removesuffix("/v1/batch")
        timeout = aiohttp.ClientTimeout(total=_ANSWER_SECONDS)
        self._http = aiohttp.ClientSession(self.address, timeout=timeout)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop it, and wait until it is gone."""
        await self._http.close()
        await self.stop()

    async def stats(self) -> dict[str, Any]:
        """Ask what it has counted: `GET /stats`.

        Raises:
            StartError: it doesn't answer.
        """
        return await self._ask("GET", "/stats")

    async def misbehave(self, faults: Iterable[Mapping[str, Any]], seed: int) -> None:
        """Set its faults: `PUT /faults`. What they say of time counts from now.

        Args:
            faults: as `streamer.mock_segment.Fault.from_json` takes them.
            seed: of their probabilities and jitter.

        Raises:
            StartError: it doesn't answer.
        """
        await self._ask("PUT", "/faults", {"seed": seed, "faults": list(faults)})

    async def _ask(self, method: str, path: str, document: object = None) -> dict[str, Any]:
        try:
            async with self._http.request(method, path, json=document) as answer:
                answer.raise_for_status()
                said: dict[str, Any] = await answer.json()
                return said
        except (aiohttp.ClientError, TimeoutError) as error:
            why = str(error) or type(error).__name__
            raise StartError(f"mock Segment doesn't answer: {why}") from None
