"""`python3 -m asya_queue`: run the sidecar. `--stop`, for a preStop hook: take no more messages."""

import asyncio
import os
import socket
import sys
from dataclasses import dataclass

# An abstract socket, which exists only inside the pod.
STOP_SOCKET = "\0asya-queue-stop"
BAD_SETTING = 78  # EX_CONFIG


@dataclass(frozen=True)
class Settings:
    """What the container's environment says."""

    url: str
    queue: str
    next_queue: str
    dead_letters: str
    prefetch: int
    connections: int
    retries: int
    max_size: int
    metrics_port: int
    socket_path: str


def read_settings(environment: dict[str, str]) -> Settings:
    """Raises ValueError, whose text is one line, for a setting that is missing or wrong."""

    def text(name: str, default: str | None = None) -> str:
        value = environment.get(name) or default
        if value is None:
            raise ValueError(f"{name} is not set")
        return value

    def number(name: str, default: int, lowest: int, highest: int) -> int:
        value = text(name, str(default))
        if not value.isascii() or not value.isdigit() or not lowest <= int(value) <= highest:
            raise ValueError(f"{name}={value!r} is not a number from {lowest} to {highest}")
        return int(value)

    url = text("AMQP_URL")
    if not url.startswith(("amqp://", "amqps://")):
        raise ValueError("AMQP_URL does not start with amqp:// or amqps://")
    queue = text("QUEUE")
    return Settings(
        url=url,
        queue=queue,
        next_queue=text("NEXT", ""),
        dead_letters=text("DEAD_LETTERS", f"{queue}.dead"),
        prefetch=number("PREFETCH", 32, 1, 65535),
        connections=number("CONNECTIONS", 4, 1, 64),
        retries=number("RETRIES", 5, 0, 1000),
        max_size=number("MAX_SIZE", 16 << 20, 1, 512 << 20),  # RabbitMQ's max_message_size
        metrics_port=number("METRICS_PORT", 9095, 0, 65535),
        socket_path=text("ASYA_SOCKET_PATH"),
    )


def stop() -> None:
    """Tell the sidecar of this pod to take no more messages, and wait until it takes none."""
    with socket.socket(socket.AF_UNIX) as sidecar:
        sidecar.connect(STOP_SOCKET)
        sidecar.recv(1)


def main() -> int:
    """Run the sidecar, or stop it; returns the exit status."""
    if sys.argv[1:] == ["--stop"]:
        try:
            stop()
        except ConnectionError:
            print("asya-queue: no sidecar is running", file=sys.stderr)
        return 0
    try:
        settings = read_settings(dict(os.environ))
    except ValueError as error:
        print(f"asya-queue: {error}", file=sys.stderr)
        return BAD_SETTING
    from asya_queue.worker import run  # imported here, because --stop has to be quick

    asyncio.run(run(settings, STOP_SOCKET))
    return 0


if __name__ == "__main__":
    sys.exit(main())
