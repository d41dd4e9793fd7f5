"""The topics of one run: made before it, read meanwhile, and removed after it."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import (
    GroupCoordinatorNotAvailableError,
    GroupIdNotFound,
    GroupLoadInProgressError,
    KafkaError,
    NotCoordinatorForGroupError,
    for_code,
)
from aiokafka.protocol.admin import DeleteGroupsRequest

from streamer.bootstrap import failure
from streamer.errors import StartError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

_PARTITIONS = 4
_ANSWER_SECONDS = 10.0
_AGAIN_SECONDS = 0.2
_COMES_SOON = {
    GroupCoordinatorNotAvailableError.errno,
    GroupLoadInProgressError.errno,
    NotCoordinatorForGroupError.errno,
}
"""A cluster that has no group yet makes the topic of their offsets when it is first asked."""
_READ_MS = 500
_KEPT = 20


async def let_make(bootstrap: str, topics: Iterable[str]) -> None:
    """Ask for topics at a broker that makes what it is asked for: the embedded one.

    It has to be done before a consumer comes, which would wait for its next look.
    """
    client = AIOKafkaClient(bootstrap_servers=bootstrap)
    try:
        await client.bootstrap()
        for topic in topics:
            await client.add_topic(topic)
    finally:
        await client.close()


async def make(bootstrap: str, topics: Iterable[str]) -> None:
    """Make topics, each of four partitions without a replica: they live as long as the run.

    Raises:
        StartError: Kafka can't be reached, or refuses.
    """
    async with _admin(bootstrap) as admin:
        wanted = [NewTopic(topic, _PARTITIONS, 1) for topic in topics]
        answer = await admin.create_topics(wanted)
        for topic, code, *_ in answer.topic_errors:
            if code:
                raise StartError(f"{bootstrap} doesn't make the topic {topic}: {for_code(code)()}")


async def remove(bootstrap: str, topics: Iterable[str], group: str) -> None:
    """Remove topics, and a consumer group that has no members any more.

    Raises:
        StartError: Kafka can't be reached, or refuses.
    """
    client = AIOKafkaClient(bootstrap_servers=bootstrap)
    async with _admin(bootstrap) as admin:
        answer = await admin.delete_topics(list(topics))
        for topic, code in answer.topic_error_codes:
            if code:
                raise StartError(f"the topic {topic} can't be removed: {for_code(code)()}")
        try:
            await client.bootstrap()
            while code := await _remove_group(admin, client, group):
                if code not in _COMES_SOON:
                    raise StartError(f"the group {group} can't be removed: {for_code(code)()}")
                await asyncio.sleep(_AGAIN_SECONDS)
        finally:
            await client.close()


async def _remove_group(admin: Any, client: Any, group: str) -> int:  # noqa: ANN401 - aiokafka has no types
    """Ask once; aiokafka's admin can't, but its client speaks the protocol.

    Returns:
        Kafka's error code, 0 if the group is gone.
    """
    try:
        coordinator = await admin.find_coordinator(group)
    except GroupCoordinatorNotAvailableError as error:
        return int(error.errno)
    answer = await client.send(coordinator, DeleteGroupsRequest([group]))
    ((_, code),) = answer.results
    return 0 if code == GroupIdNotFound.errno else int(code)  # nobody had joined it yet


@asynccontextmanager
async def _admin(bootstrap: str) -> AsyncIterator[Any]:
    connection = {"bootstrap_servers": [bootstrap], "security_protocol": "PLAINTEXT"}
    why = await failure(bootstrap, connection, _ANSWER_SECONDS)
    if why:
        raise StartError(f"Kafka can't be reached at {bootstrap}: {why}")
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            await admin.start()
            yield admin
    except (KafkaError, TimeoutError) as error:
        raise StartError(f"Kafka at {bootstrap}: {str(error) or type(error).__name__}") from None
    finally:
        await admin.close()


class Letter(NamedTuple):
    """A dead letter, as it stands in Kafka.

    Attributes:
        reason: why it couldn't be delivered, of a closed set.
        detail: the same as a sentence.
        place: `partition/offset` of its record.
    """

    reason: str
    detail: str
    place: str


class Letters:
    """Reads the topic of the dead letters from its beginning, as anybody could.

    Args:
        bootstrap: `host:port` of a broker.
        topic: its name.

    Attributes:
        counts: letters, by reason.
        last: the last of them.
    """

    def __init__(self, bootstrap: str, topic: str) -> None:
        self.counts: Counter[str] = Counter()
        self.last: deque[Letter] = deque(maxlen=_KEPT)
        self._bootstrap = bootstrap
        self._topic = topic
        self._more = asyncio.Event()

    async def follow(self) -> None:
        """Read until cancelled."""
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self._bootstrap,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            fetch_max_wait_ms=_READ_MS,
        )
        await consumer.start()
        try:
            consumer.assign([TopicPartition(self._topic, n) for n in range(_PARTITIONS)])
            while True:
                found = await consumer.getmany(timeout_ms=_READ_MS)
                for records in found.values():
                    for record in records:
                        self._take(dict(record.headers))
                if found:
                    self._more.set()
        finally:
            await consumer.stop()

    async def until(self, total: int, seconds: float) -> None:
        """Wait until so many are read, or so long."""
        try:
            async with asyncio.timeout(seconds):
                while self.counts.total() < total:
                    self._more.clear()
                    await self._more.wait()
        except TimeoutError:
            pass

    def _take(self, headers: dict[str, bytes]) -> None:
        said = {name: value.decode() for name, value in headers.items()}
        reason = said["streamer-reason"]
        place = f"{said['streamer-partition']}/{said['streamer-offset']}"
        self.counts[reason] += 1
        self.last.append(Letter(reason, said["streamer-detail"], place))
