"""`python3 -m asya_queue`: run the sidecar. `--stop`, for a preStop hook: take no more messages."""

import asyncio
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

BAD_SETTING = 78  # EX_CONFIG
LONGEST_OWN_NAME = 240  # bytes of a queue's name; the queues for retries add a few to it


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
        value = environment.get(name, "").strip() or default
        if value is None:
            raise ValueError(f"{name} is not set")
        return value

    def number(name: str, default: int, lowest: int, highest: int) -> int:
        value = text(name, str(default))
        if not value.isascii() or not value.isdigit() or not lowest <= int(value) <= highest:
            raise ValueError(f"{name}={value!r} is not a number from {lowest} to {highest}")
        return int(value)

    def name(name: str, default: str | None = None) -> str:
        value = text(name, default)
        if len(value.encode(errors="replace")) > LONGEST_OWN_NAME:
            raise ValueError(f"{name} has more than {LONGEST_OWN_NAME} bytes")
        return value

    url = text("AMQP_URL")
    check_url(url)
    queue = name("QUEUE")
    socket_path = text("ASYA_SOCKET_PATH")
    if not Path(socket_path).parent.is_dir():
        raise ValueError(f"ASYA_SOCKET_PATH={socket_path}: its folder is not mounted")
    return Settings(
        url=url,
        queue=queue,
        next_queue=name("NEXT", ""),
        dead_letters=name("DEAD_LETTERS", f"{queue}.dead"),
        prefetch=number("PREFETCH", 32, 1, 65535),
        connections=number("CONNECTIONS", 4, 1, 64),
        retries=number("RETRIES", 5, 0, 1000),
        max_size=number("MAX_SIZE", 16 << 20, 1, 512 << 20),  # RabbitMQ's max_message_size
        metrics_port=number("METRICS_PORT", 9095, 0, 65535),
        socket_path=socket_path,
    )


def check_url(url: str) -> None:
    """Raises ValueError, without the password in its text."""
    try:
        parts = urlsplit(url)
        is_valid = parts.scheme in ("amqp", "amqps") and parts.hostname and parts.port != 0
    except ValueError:
        is_valid = False
    # A password with `/`, `?` or `#` ends the host too early.
    if not is_valid or parts.fragment or "@" in parts.path + parts.query:
        raise ValueError(
            "AMQP_URL is not like amqp://user:password@host:5672/vhost, or amqps://...; write "
            "special characters of the password as %2F (/), %3F (?), %23 (#), %40 (@)"
        )
    for name, path in parse_qsl(parts.query):
        if name in ("cafile", "certfile", "keyfile") and not Path(path).exists():
            raise ValueError(f"AMQP_URL: {name}={path} does not exist; mount it in the sidecar")


def name_stop_socket(socket_path: str) -> str:
    """An abstract socket. Pods that use the node's network share these: the folder is the pod's."""
    folder = Path(socket_path).parent.stat()
    return f"\0asya-queue-stop-{folder.st_dev}-{folder.st_ino}"


def stop(socket_path: str) -> None:
    """Tell the sidecar of this pod to take no more messages, and wait until it takes none."""
    with socket.socket(socket.AF_UNIX) as sidecar:
        sidecar.connect(name_stop_socket(socket_path))
        sidecar.recv(1)


def main() -> int:
    """Run the sidecar, or stop it; returns the exit status."""
    if sys.argv[1:] == ["--stop"]:
        try:
            stop(os.environ.get("ASYA_SOCKET_PATH", ""))
        except (ConnectionError, FileNotFoundError):
            print("asya-queue: no sidecar is running", file=sys.stderr)
        return 0
    try:
        settings = read_settings(dict(os.environ))
    except ValueError as error:
        print(f"asya-queue: {error}", file=sys.stderr)
        return BAD_SETTING
    from asya_queue.worker import run  # imported here, because --stop has to be quick

    asyncio.run(run(settings, name_stop_socket(settings.socket_path)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
