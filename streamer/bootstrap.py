"""Why Kafka can't be reached.

aiokafka's clients only say "Unable to bootstrap", whatever the cause: a closed port, a wrong password, a certificate
that isn't trusted. The connection that they make says why, so it is made once more and asked.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from typing import TYPE_CHECKING, Any

from aiokafka.conn import create_conn
from aiokafka.errors import (
    IllegalSaslStateError,
    KafkaConnectionError,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

_NAME_MISMATCH = {
    62,
    64,
}  # OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH
_SSL_SOURCE = re.compile(r" \(_ssl\.c:\d+\)")  # OpenSSL's errors end in a place in CPython's source


async def failure(server: str, connection: Mapping[str, Any], timeout_seconds: float) -> str | None:
    """Find what keeps a connection from one broker.

    Args:
        server: host:port.
        connection: how to reach Kafka, as aiokafka's arguments.
        timeout_seconds: how long it may take.

    Returns:
        The cause, for who configured it; None if a connection can be made.
    """
    options = {key: value for key, value in connection.items() if key != "bootstrap_servers"}
    protocol = str(options["security_protocol"])
    host, _, port = server.rpartition(":")
    try:
        async with asyncio.timeout(timeout_seconds):
            made = await create_conn(
                host.strip("[]"),
                int(port),
                request_timeout_ms=int(timeout_seconds * 1000),
                **options,
            )
    except (OSError, KafkaError) as error:  # time-outs are OSErrors
        return explain(error, protocol)
    made.close()
    return None


def explain(error: Exception, security_protocol: str) -> str:
    """Say what an error of a connection means for who configured it.

    Args:
        error: what `aiokafka.conn.create_conn` raised.
        security_protocol: what was spoken.
    """
    if isinstance(error, ConnectionRefusedError):
        return "connection refused: nothing listens there"
    if isinstance(error, socket.gaierror):
        return "the host's name can't be resolved"
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _NAME_MISMATCH:
            return f"its certificate is for another name: {error.verify_message}"
        return f"its certificate isn't trusted: {error.verify_message} (kafka.ssl_cafile says which are)"
    if isinstance(error, ssl.SSLError):
        reason = _SSL_SOURCE.sub("", error.strerror or "")
        return f"no TLS with it: {reason}: does its listener speak {security_protocol}?"
    if isinstance(error, TimeoutError):
        return f"no answer in time: is it a Kafka broker, and does its listener speak {security_protocol}?"
    if isinstance(error, SaslAuthenticationFailed):
        return "it refuses kafka.sasl_username and kafka.sasl_password"
    if isinstance(error, UnsupportedSaslMechanismError):
        return "it doesn't offer kafka.sasl_mechanism"
    if isinstance(error, IllegalSaslStateError):
        return f"its listener doesn't speak {security_protocol}"
    if isinstance(error, KafkaConnectionError | ConnectionError):
        return hangs_up(security_protocol)
    return str(error) or type(error).__name__


def hangs_up(security_protocol: str) -> str:
    """Say what it means that a broker closes the connection."""
    return f"it closed the connection: does its listener speak {security_protocol}?"
