"""A real Apache Kafka on loopback: nodes that are broker and controller in one process each, one or three of them."""

from __future__ import annotations

import base64
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from kafka_broker import jars

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

HERE = Path(__file__).parent

NODES = 3
"""In a `KafkaCluster`."""

START_TIMEOUT_SECONDS = 60.0
STOP_TIMEOUT_SECONDS = 20.0

PORTS = range(20_000, 32_000)
"""Below the ports that kernels hand out to clients: a port taken from those could be gone after a
restart, or a client that tries to reach a stopped broker could connect to itself."""

JVM = ["-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData"]
"""A small heap and a fast start: ready in 1.5 to 3.4 s, 170 MB."""


class BrokerError(RuntimeError):
    """The broker did not start or stop; the text ends with what it logged last."""


def free_port() -> int:
    """A TCP port of loopback on which nothing listens."""
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", port))
            return port
    raise BrokerError(f"no port from {PORTS.start} to {PORTS.stop} is free")


class KafkaBroker:
    """A broker with a folder and ports of its own, which outlive its restarts.

    Use it as a context manager, or call `close` at the end. Start it from the main thread: the
    kernel kills the broker when the thread that started it ends, so that none is left behind when
    pytest is killed.

    Attributes:
        bootstrap: its address, `host:port`.
        log_path: the file that it logs to; gone after `close`.

    Args:
        properties: laid over the server.properties that this class writes.
        port: where it listens; a free one if not given.
        defaults: False takes the properties for all there is, but for the folder.
        cluster_id: of the cluster that it belongs to; one of its own if not given.
    """

    def __init__(
        self,
        properties: Mapping[str, str] | None = None,
        *,
        port: int | None = None,
        defaults: bool = True,
        cluster_id: str | None = None,
    ) -> None:
        self.port = port or free_port()
        self.bootstrap = f"127.0.0.1:{self.port}"
        self._folder = Path(tempfile.mkdtemp(prefix="kafka-broker-"))
        self.log_path = self._folder / "broker.log"
        self._config = self._folder / "server.properties"
        self._process: subprocess.Popen[bytes] | None = None
        self._cluster_id = cluster_id or _fresh_cluster_id()
        settings = _server_properties(self.port, free_port()) if defaults else {}
        settings.update(properties or {})
        settings["log.dirs"] = str(self._folder / "data")
        # One controller that others may join, unless the properties name all there will ever be.
        self._quorum = [] if "controller.quorum.voters" in settings else ["--standalone"]
        self._config.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))

    def __enter__(self) -> Self:
        """Starts the broker and waits until it answers."""
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Ends the broker and removes its folder."""
        self.close()

    @property
    def pid(self) -> int | None:
        """The process id of the running broker; None when there is none."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Starts the broker, with the data it had if it ran before, and waits until it answers.

        Blocks for about 3 s. On a running event loop, call `launch` and then
        `await asyncio.to_thread(broker.wait_until_ready)`.

        Raises:
            BrokerError: it didn't become ready.
            JarsError: its jars could not be fetched.
        """
        self.launch()
        self.wait_until_ready()

    def launch(self) -> None:
        """Starts the broker's process and doesn't wait (but for its formatting: 1 s, once).

        Raises:
            BrokerError: it runs already, or its folder could not be formatted.
            JarsError: its jars could not be fetched.
        """
        if self._process:
            raise BrokerError(f"the broker at {self.bootstrap} runs already")
        java = [
            "java",
            *JVM,
            f"-Dlog4j2.configurationFile={HERE / 'log4j2.properties'}",
        ]
        java += ["-cp", f"{jars.fetch()}/*"]
        if not (self._folder / "data").is_dir():
            self._format(java)
        launcher = [
            sys.executable,
            str(HERE / "die_with_parent.py"),
            str(os.getpid()),
        ]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*launcher, *java, "kafka.Kafka", str(self._config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for pytest, which ends the broker in its turn
            )

    def wait_until_ready(self, timeout_seconds: float = START_TIMEOUT_SECONDS) -> None:
        """Waits until a Metadata request is answered with a broker.

        Args:
            timeout_seconds: how long to wait.

        Raises:
            BrokerError: the process ended, or the time is over.
        """
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                break
            if self._answers():
                return
            time.sleep(0.05)
        raise BrokerError(
            f"the broker at {self.bootstrap} did not become ready:\n{self._last_words()}"
        )

    def stop(self) -> None:
        """Stops the broker in good order (SIGTERM), and waits until it is gone.

        Raises:
            BrokerError: it took too long, and was killed.
        """
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        self._process.send_signal(signal.SIGCONT)  # a frozen process gets its signals when it thaws
        try:
            self._process.wait(STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise BrokerError(
                f"the broker at {self.bootstrap} did not stop within {STOP_TIMEOUT_SECONDS:.0f} s:\n"
                + self._last_words()
            ) from None
        self._process = None

    def kill(self) -> None:
        """Kills the broker (SIGKILL), as a crash would."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Stops the broker's clock (SIGSTOP): connections stay open, and nothing answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Lets a frozen broker go on (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """Ends the broker and removes its folder. To be called once, at the end."""
        self.kill()  # its data goes with it: no reason to wait for a stop in good order
        shutil.rmtree(self._folder, ignore_errors=True)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            raise BrokerError(f"the broker at {self.bootstrap} does not run")
        self._process.send_signal(number)

    def _format(self, java: list[str]) -> None:
        # In one argument with its option: an id may begin with a hyphen.
        arguments = [
            "format",
            *self._quorum,
            f"--cluster-id={self._cluster_id}",
            "-c",
            str(self._config),
        ]
        done = subprocess.run(
            [*java, "kafka.tools.StorageTool", *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=START_TIMEOUT_SECONDS,
        )
        if done.returncode != 0:
            raise BrokerError(f"Kafka could not format its folder:\n{done.stdout}{done.stderr}")

    def _answers(self) -> bool:
        with socket.socket() as sock:  # before the client, which logs each refused connection
            if sock.connect_ex(("127.0.0.1", self.port)) != 0:
                return False
        admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})
        try:
            return bool(admin.list_topics(timeout=1.0).brokers)
        except KafkaException:
            return False

    def _last_words(self) -> str:
        if not self.log_path.exists():
            return "(it logged nothing)"
        return self.log_path.read_text(errors="replace")[-4000:]


class KafkaCluster:
    """Three nodes that hold each record thrice, of which one may be lost. Use it as a context manager.

    Attributes:
        brokers: by `node.id`, from 1 on.
        bootstrap: the addresses of all, `host:port` each, with commas between.

    Args:
        properties: of every node, over those that this class writes.
    """

    def __init__(self, properties: Mapping[str, str] | None = None) -> None:
        controllers: set[int] = set()
        while len(controllers) < NODES:
            controllers.add(free_port())
        voters = [(node, f"127.0.0.1:{port}") for node, port in enumerate(controllers, 1)]
        shared = {
            "controller.quorum.voters": ",".join(f"{node}@{address}" for node, address in voters),
            "default.replication.factor": str(NODES),
            "min.insync.replicas": str(NODES - 1),
            "offsets.topic.replication.factor": str(NODES),
            "transaction.state.log.replication.factor": str(NODES),
            **(properties or {}),
        }
        cluster_id = _fresh_cluster_id()
        self.brokers: dict[int, KafkaBroker] = {}
        for node, controller in voters:
            port = free_port()
            while port in controllers or port in {one.port for one in self.brokers.values()}:
                port = free_port()
            own = {
                "node.id": str(node),
                "controller.quorum.bootstrap.servers": controller,
                "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://{controller}",
            }
            self.brokers[node] = KafkaBroker(shared | own, port=port, cluster_id=cluster_id)
        self.bootstrap = ",".join(broker.bootstrap for broker in self.brokers.values())

    def __enter__(self) -> Self:
        """Starts the nodes and waits until they are one cluster."""
        try:
            for broker in self.brokers.values():
                broker.launch()
            self.wait_until_whole()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the nodes and removes their folders."""
        self.close()

    def wait_until_whole(self, timeout_seconds: float = START_TIMEOUT_SECONDS) -> None:
        """Waits until every node is there and every partition has all its replicas in step.

        Args:
            timeout_seconds: how long to wait.

        Raises:
            BrokerError: a node ended, or the time is over.
        """
        deadline = time.monotonic() + timeout_seconds
        for broker in self.brokers.values():
            broker.wait_until_ready(deadline - time.monotonic())
        admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})
        while time.monotonic() < deadline:
            with contextlib.suppress(KafkaException):
                found = admin.list_topics(timeout=1.0)
                partitions = [
                    p for topic in found.topics.values() for p in topic.partitions.values()
                ]
                if len(found.brokers) == NODES and all(
                    len(partition.isrs) == len(partition.replicas) for partition in partitions
                ):
                    return
            time.sleep(0.1)
        raise BrokerError(f"the cluster at {self.bootstrap} did not become whole")

    def close(self) -> None:
        """Ends the nodes and removes their folders. To be called once, at the end."""
        for broker in self.brokers.values():
            broker.close()


def _fresh_cluster_id() -> str:
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")


def _server_properties(port: int, controller_port: int) -> dict[str, str]:
    broker, controller = f"127.0.0.1:{port}", f"127.0.0.1:{controller_port}"
    return {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.bootstrap.servers": controller,
        "listeners": f"PLAINTEXT://{broker},CONTROLLER://{controller}",
        "advertised.listeners": f"PLAINTEXT://{broker}",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        "num.partitions": "4",
        # One node has no replicas; the defaults want three.
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "4",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        "group.initial.rebalance.delay.ms": "0",
        "log.retention.ms": "-1",  # made-up events may be older than the week after which they would go
        "log.cleaner.dedupe.buffer.size": "1048577",  # the default, 128 MB, is the whole heap
        # A broker is back 4 s after SIGKILL, instead of 12.
        "broker.session.timeout.ms": "2000",
        "broker.heartbeat.interval.ms": "500",
    }
