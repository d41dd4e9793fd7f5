"""The broker that other tests trust: it keeps what it acknowledged, and it never outlives its test run."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from confluent_kafka import KafkaException

from kafka_broker.broker import BrokerError, KafkaBroker, free_port
from kafka_broker.topics import Kafka, ToProduce, fresh_name

if TYPE_CHECKING:
    from conftest import Require

TESTS = Path(__file__).parent


def test_what_is_produced_is_read_back_with_its_key_timestamp_and_headers(kafka: Kafka) -> None:
    async def main() -> None:
        topic = await kafka.create_topic(partitions=2)
        positions = await kafka.produce(
            topic,
            [
                ToProduce(b"a", b"one", 1_700_000_000_123, (("h", b"1"), ("h", b"2")), partition=1),
                (b"b", None, 1_700_000_000_456),
                (None, b"", 1_700_000_000_789),
            ],
        )

        by_position = {
            (record.partition, record.offset): record for record in await kafka.read(topic)
        }
        first, tombstone, empty = (by_position[position] for position in positions)
        assert (first.partition, first.key, first.value) == (1, b"a", b"one")
        assert first.headers == (("h", b"1"), ("h", b"2"))
        assert first.timestamp_ms == 1_700_000_000_123
        assert (tombstone.key, tombstone.value, tombstone.headers) == (b"b", None, ())
        assert (empty.key, empty.value) == (None, b"")
        assert len(by_position) == 3

    asyncio.run(main())


def test_records_of_one_key_stay_in_order_in_one_partition(kafka: Kafka) -> None:
    async def main() -> None:
        topic = await kafka.create_topic(partitions=4)
        await kafka.produce(topic, [(b"%d" % (n % 7), b"%d" % n, None) for n in range(5_000)])

        records = await kafka.read(topic)
        assert len(records) == 5_000
        for key in range(7):
            mine = [record for record in records if record.key == b"%d" % key]
            assert len({record.partition for record in mine}) == 1
            assert [record.value for record in mine] == [b"%d" % n for n in range(key, 5_000, 7)]

    asyncio.run(main())


def test_offsets_are_those_that_a_group_committed_and_where_a_topic_ends(kafka: Kafka) -> None:
    async def main() -> None:
        group = fresh_name("group")
        topic = await kafka.create_topic(partitions=2)
        assert await kafka.end_offsets(topic) == {(topic, 0): 0, (topic, 1): 0}
        assert await kafka.committed(group, topic) == {}

        await kafka.produce(topic, [ToProduce(None, b"v", partition=0)] * 3)
        consumer = AIOKafkaConsumer(
            topic, bootstrap_servers=kafka.bootstrap, group_id=group, enable_auto_commit=False
        )
        await consumer.start()
        try:
            await consumer.commit({TopicPartition(topic, 0): 2})
        finally:
            await consumer.stop()

        assert await kafka.end_offsets(topic) == {(topic, 0): 3, (topic, 1): 0}
        assert await kafka.committed(group, topic) == {(topic, 0): 2}

    asyncio.run(main())


def test_a_topic_that_is_not_there_is_an_error_and_not_an_empty_topic(kafka: Kafka) -> None:
    with pytest.raises(KafkaException):
        asyncio.run(kafka.read(fresh_name("nowhere")))
    with pytest.raises(KafkaException):
        asyncio.run(kafka.end_offsets(fresh_name("nowhere")))


def test_a_record_that_the_broker_refuses_is_an_error(kafka: Kafka) -> None:
    async def main() -> None:
        topic = await kafka.create_topic(config={"max.message.bytes": "1000"})
        with pytest.raises(KafkaException):
            await kafka.produce(topic, [(None, os.urandom(5_000), None)])

    asyncio.run(main())


def test_a_broker_keeps_its_address_and_what_it_acknowledged_through_kill_freeze_and_stop(
    require: Require,
) -> None:
    require("java", "mvn")
    with KafkaBroker() as broker:
        kafka = Kafka(broker.bootstrap)

        async def put_and_read(topic: str, value: bytes) -> list[bytes]:
            await kafka.produce(topic, [(None, value, None)])
            return sorted(record.value or b"" for record in await kafka.read(topic))

        topic = asyncio.run(kafka.create_topic())
        assert asyncio.run(put_and_read(topic, b"1")) == [b"1"]

        broker.kill()
        assert broker.pid is None
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", broker.port)).close()
        broker.start()
        assert asyncio.run(put_and_read(topic, b"2")) == [b"1", b"2"]

        broker.freeze()
        with pytest.raises(BrokerError, match="did not become ready"):
            broker.wait_until_ready(timeout_seconds=1.5)
        broker.thaw()
        broker.wait_until_ready()
        assert asyncio.run(put_and_read(topic, b"3")) == [b"1", b"2", b"3"]

        broker.stop()
        assert broker.pid is None
        broker.start()
        assert asyncio.run(put_and_read(topic, b"4")) == [b"1", b"2", b"3", b"4"]
        folder = broker.log_path.parent
        assert "Kafka Server started" in broker.log_path.read_text()
    assert not folder.exists()


def test_properties_are_laid_over_the_defaults(require: Require) -> None:
    require("java", "mvn")
    with KafkaBroker({"num.partitions": "7"}) as broker:
        kafka = Kafka(broker.bootstrap)
        asyncio.run(kafka.produce("created-by-its-first-record", [(None, b"v", None)]))
        assert len(asyncio.run(kafka.end_offsets("created-by-its-first-record"))) == 7


def test_a_broker_that_cannot_start_says_what_it_logged(require: Require) -> None:
    require("java", "mvn")
    broker = KafkaBroker({"log.retention.ms": "soon"})
    with pytest.raises(BrokerError, match=r"log\.retention\.ms"), broker:
        pytest.fail("a broker with a setting that is no number has started")
    assert not broker.log_path.parent.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a process with its parent")
def test_a_broker_dies_with_the_process_that_started_it(require: Require) -> None:
    require("java", "mvn")
    script = (
        "import sys; from kafka_broker.broker import KafkaBroker\n"
        "with KafkaBroker() as broker: print(broker.pid, broker.log_path.parent, flush=True); sys.stdin.read()"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=TESTS,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with run:
        assert run.stdout is not None
        pid, folder = run.stdout.readline().split()
        assert Path(f"/proc/{pid}").exists()
        run.kill()
    deadline = time.monotonic() + 10
    while _runs(int(pid)):
        assert time.monotonic() < deadline, "the broker outlived its parent"
        time.sleep(0.02)
    subprocess.run(["rm", "-r", folder], check=True)


def test_make_kafka_prints_its_address_and_stops_on_an_interrupt(require: Require) -> None:
    require("java", "mvn")
    port = free_port()
    run = subprocess.Popen(
        [sys.executable, "-m", "kafka_broker", "--port", str(port)],
        cwd=TESTS,
        stdout=subprocess.PIPE,
        text=True,
    )
    with run:
        assert run.stdout is not None
        assert f"127.0.0.1:{port}" in run.stdout.readline()
        topic = asyncio.run(Kafka(f"127.0.0.1:{port}").create_topic())
        assert topic
        run.send_signal(signal.SIGINT)
        assert run.stdout.read().endswith("Kafka is stopped.\n")
    assert run.returncode == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port)).close()


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
