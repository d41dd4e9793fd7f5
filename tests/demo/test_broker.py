"""Behaviour of the embedded broker."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from streamer.demo.broker import EmbeddedBroker
from streamer.errors import StartError

if TYPE_CHECKING:
    from pathlib import Path


def refuses(bootstrap: str) -> bool:
    """Whether nothing listens there any more, waiting a while for it."""
    host, _, port = bootstrap.rpartition(":")
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host, int(port)), 1).close()
        except ConnectionRefusedError:
            return True
        except OSError:
            pass  # reset or silent: it is about to end
        time.sleep(0.02)
    return False


def test_records_go_in_and_come_out() -> None:
    """A client produces to it and reads the same records back, by the address that it gives."""

    async def main() -> list[bytes | None]:
        async with EmbeddedBroker() as broker:
            producer = AIOKafkaProducer(bootstrap_servers=broker.bootstrap)
            await producer.start()
            for value in (b"a", b"b", b"c"):
                await producer.send_and_wait("events", value, key=b"k")
            await producer.stop()
            consumer = AIOKafkaConsumer(
                "events", bootstrap_servers=broker.bootstrap, auto_offset_reset="earliest"
            )
            await consumer.start()
            try:
                return [(await consumer.getone()).value for _ in range(3)]
            finally:
                await consumer.stop()

    assert asyncio.run(main()) == [b"a", b"b", b"c"]


def test_it_is_gone_when_it_is_left() -> None:
    """Leaving the context ends the process, whatever raised inside."""

    async def main() -> str:
        broker = EmbeddedBroker()
        async with broker:
            pass
        return broker.bootstrap

    async def fails() -> None:
        async with EmbeddedBroker() as broker:
            raise RuntimeError(broker.bootstrap)

    assert refuses(asyncio.run(main()))
    with pytest.raises(RuntimeError) as caught:
        asyncio.run(fails())
    assert refuses(str(caught.value))


def test_it_does_not_outlive_a_killed_parent() -> None:
    """When the process that started it is killed outright, the broker ends too."""
    program = (
        "import asyncio\n"
        "from streamer.demo.broker import EmbeddedBroker\n"
        "async def main():\n"
        "    async with EmbeddedBroker() as broker:\n"
        "        print(broker.bootstrap, flush=True)\n"
        "        await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        bootstrap = parent.stdout.readline().decode()
        parent.send_signal(signal.SIGKILL)
    assert refuses(bootstrap)


def test_without_confluent_kafka_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the extra isn't installed, the error is the command that installs it."""
    (tmp_path / "confluent_kafka").mkdir()
    (tmp_path / "confluent_kafka" / "__init__.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    async def main() -> None:
        async with EmbeddedBroker():
            pass

    with pytest.raises(
        StartError, match="pip install confluent-kafka, or take a broker of your own: --kafka"
    ):
        asyncio.run(main())
