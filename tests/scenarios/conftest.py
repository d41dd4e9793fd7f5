"""Brokers that stories may break."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kafka_broker.broker import KafkaBroker, KafkaCluster

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Require


@pytest.fixture(scope="session")
def broker(require: Require) -> Iterator[KafkaBroker]:
    """A broker that may be killed and frozen, and makes no topic by itself: whoever breaks it mends it."""
    require("java", "mvn")
    with KafkaBroker({"auto.create.topics.enable": "false"}) as broker:
        yield broker


@pytest.fixture(scope="session")
def cluster(require: Require) -> Iterator[KafkaCluster]:
    """Three brokers, of which one may be killed: whoever does so starts it again."""
    require("java", "mvn")
    with KafkaCluster() as cluster:
        yield cluster
