"""`make kafka`: a broker for a person without Docker, until Ctrl-C."""

from __future__ import annotations

import argparse
import shutil
import signal
import socket
import sys

from kafka_broker.broker import BrokerError, KafkaBroker
from kafka_broker.jars import JarsError


def main() -> None:
    """Starts a broker, prints its address, and stops it on Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(prog="make kafka", description=__doc__)
    parser.add_argument("--port", type=int, default=9092, help="where it listens (default: 9092)")
    port = parser.parse_args().port
    try:
        with socket.create_server(("127.0.0.1", port)):
            pass
    except (OSError, OverflowError) as error:
        sys.exit(
            f"can't listen on 127.0.0.1:{port}: {error}; another port: make kafka ARGS='--port 9192'"
        )
    lacking = [program for program in ("java", "mvn") if shutil.which(program) is None]
    if lacking:
        sys.exit(f"{' and '.join(lacking)} missing: apt-get install default-jre-headless maven")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with KafkaBroker(port=port) as broker:
            sys.stdout.write(
                f"Kafka listens on {broker.bootstrap}; it logs to {broker.log_path}.\n"
                "Ctrl-C stops it and removes its data.\n"
            )
            sys.stdout.flush()
            signal.pause()
    except (BrokerError, JarsError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.stdout.write("\nKafka is stopped.\n")


if __name__ == "__main__":
    main()
