"""A RabbitMQ server on this machine, and queues as tests look at them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from asya_injector.tls.authority import KeyPair

from tests.support.injector_process import until
from tests.support.ports import free_port, is_free

SCRIPT = Path(__file__).parents[2] / "e2e/cluster/rabbitmq.sh"
USER = "guest:guest"


class Server:
    """A server with its data in a directory; it can be killed and started again."""

    def __init__(self, programs: Path, directory: Path) -> None:
        self.programs, self.directory = programs, directory
        self.ports = [free_port() for _ in range(4)]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"amqp://{USER}@127.0.0.1:{self.ports[0]}/"

    @property
    def tls_url(self) -> str:
        return f"amqps://{USER}@localhost:{self.ports[1]}/?cafile={self.directory}/ca.crt"

    def environment(self) -> dict[str, str]:
        where = str(self.directory)
        return os.environ | {
            "HOME": where,
            "RABBITMQ_MNESIA_BASE": where,
            "RABBITMQ_LOG_BASE": where,
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{where}/enabled_plugins",
            "RABBITMQ_CONFIG_FILE": f"{where}/rabbitmq.conf",
            "RABBITMQ_NODENAME": f"test{self.ports[0]}@localhost",
            "RABBITMQ_DIST_PORT": str(self.ports[2]),
            "ERL_EPMD_PORT": str(self.ports[3]),
            "ERL_CRASH_DUMP": f"{where}/crash.dump",
        }

    def configure(self, pair: KeyPair | None = None) -> None:
        """Write the configuration; with a certificate, the server also listens for TLS."""
        (self.directory / "enabled_plugins").write_text("[].")
        plain = f"listeners.tcp.1 = 127.0.0.1:{self.ports[0]}\n"
        (self.directory / "rabbitmq.conf").write_text(plain)
        if not pair:
            return
        (self.directory / "ca.crt").write_bytes(pair.bundle)
        (self.directory / "tls.crt").write_bytes(pair.certificate)
        (self.directory / "tls.key").write_bytes(pair.key)
        (self.directory / "rabbitmq.conf").write_text(
            f"{plain}listeners.ssl.1 = 127.0.0.1:{self.ports[1]}\n"
            f"ssl_options.cacertfile = {self.directory}/ca.crt\n"
            f"ssl_options.certfile = {self.directory}/tls.crt\n"
            f"ssl_options.keyfile = {self.directory}/tls.key\n"
        )

    def start(self) -> None:
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.programs / "bin/rabbitmq"],
                env=self.environment(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.wait()

    def wait(self, seconds: float = 200) -> None:
        """Wait until the server accepts connections."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.ports[0]), timeout=5).close()
                return
            except OSError:
                assert self.process is not None
                assert self.process.poll() is None, (self.directory / "log").read_text()
                time.sleep(0.1)
        raise AssertionError((self.directory / "log").read_text())

    def kill(self) -> None:
        """SIGKILL all processes of the server, and wait until its ports are free."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        until("the ports to be free", lambda: all(map(is_free, self.ports[:3])))

    @contextmanager
    def running(self) -> Iterator[None]:
        environment = self.environment()
        words = [str(self.programs / "bin/epmd"), "-port", environment["ERL_EPMD_PORT"]]
        with subprocess.Popen(words, env={**environment, "ERL_EPMD_ADDRESS": "127.0.0.1"}) as epmd:
            try:
                # A server that finds no epmd starts another one, which nobody ends.
                until("epmd", lambda: not is_free(self.ports[3]))
                self.start()
                yield
            finally:
                self.kill()
                epmd.kill()


def find_programs() -> Path:
    """Where the server's programs are; skips where they cannot be had."""
    done = subprocess.run([SCRIPT], capture_output=True, text=True, check=False, timeout=250)
    if done.returncode or not done.stdout.strip():
        pytest.skip(f"no RabbitMQ: {done.stderr.strip() or 'this is not Debian or Ubuntu'}")
    return Path(done.stdout.strip())


class Queues:
    """The queues of one test, on one connection."""

    def __init__(self, channel: Any, name: str) -> None:
        self.channel, self.name = channel, name

    async def declare(self, name: str, **arguments: Any) -> None:
        await self.channel.declare_queue(name, durable=True, arguments=arguments or None)

    async def send(self, queue: str, *bodies: bytes, **properties: Any) -> None:
        for number, body in enumerate(bodies):
            properties.setdefault("message_id", f"id-{number}")
            message = aio_pika.Message(body, delivery_mode=2, **properties)
            await self.channel.default_exchange.publish(message, routing_key=queue, mandatory=True)

    async def receive(self, queue: str, seconds: float = 100) -> Any:
        """The next message of a queue, which is acknowledged."""
        deadline = time.monotonic() + seconds
        found = await self.channel.get_queue(queue, ensure=False)
        while True:
            message = await found.get(fail=False, no_ack=True)
            if message is not None:
                return message
            assert time.monotonic() < deadline, f"no message in {queue} after {seconds:g} s"
            await asyncio.sleep(0.02)

    async def state(self, queue: str) -> tuple[int, int]:
        """The numbers of waiting messages and of consumers."""
        declared = await self.channel.declare_queue(queue, passive=True)
        result = declared.declaration_result
        return result.message_count, result.consumer_count

    async def until(self, queue: str, state: tuple[int, int], seconds: float = 100) -> None:
        """Wait for numbers of waiting messages and of consumers."""
        deadline = time.monotonic() + seconds
        while (now := await self.state(queue)) != state:
            assert time.monotonic() < deadline, f"{queue}: {now}, not {state}"
            await asyncio.sleep(0.02)
