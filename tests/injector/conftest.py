"""A stand-in API server, and the injector as a process that uses it."""

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from asya_injector.kube_client import ApiClient, connect
from stand_in import NAME, NAMESPACE, SECRET, Api, api_server

ROOT = Path(__file__).parents[2]
DEADLINE = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def until(what: str, check: Callable[[], Any], *, seconds: float = DEADLINE) -> Any:
    """Wait until `check` returns a true value, and return that; fails after `seconds`."""
    end = time.monotonic() + seconds
    while not (result := check()):
        if time.monotonic() > end:
            raise AssertionError(f"timed out waiting for {what}")
        time.sleep(0.02)
    return result


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with api_server(tmp_path) as api:
        api.install()
        yield api


def run_script(script: str, text: str = "") -> subprocess.CompletedProcess[str]:
    """Run a Python script in a new process that can import the package.

    text: its standard input.
    """
    return subprocess.run(
        [sys.executable, "-c", script],
        input=text,
        env={"PYTHONPATH": str(ROOT / "injector")},
        capture_output=True,
        text=True,
        check=True,
    )


class Injector:
    """A process that runs `asya-injector run`."""

    def __init__(
        self, directory: Path, kubeconfig: Path, program: Sequence[str], **environ: str
    ) -> None:
        self.webhook_port, self.http_port = free_port(), free_port()
        self._output = directory / f"log-{self.webhook_port}"
        self._connections: list[ssl.SSLSocket] = []
        settings = {
            "INJECTOR_NAMESPACE": NAMESPACE,
            "INJECTOR_SERVICE": NAME,
            "INJECTOR_WEBHOOK_CONFIGURATION": NAME,
            "INJECTOR_TLS_SECRET": SECRET,
            "INJECTOR_RUNTIME_DIRECTORY": str(ROOT / "runtime"),
            "INJECTOR_WEBHOOK_PORT": str(self.webhook_port),
            "INJECTOR_HTTP_PORT": str(self.http_port),
            "KUBECONFIG": str(kubeconfig),
            "PYTHONPATH": str(ROOT / "injector"),
        }
        # Compile modules once, not at each start.
        inherited = {
            key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"
        }
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                (sys.executable, *program),
                env={**inherited, **settings, **environ},
                stdout=output,
                stderr=output,
            )

    @property
    def log(self) -> list[Any]:
        """The lines of its log; each must be JSON."""
        return [json.loads(line) for line in self._output.read_text().splitlines()]

    @property
    def text(self) -> str:
        """Its whole output."""
        return self._output.read_text()

    def get(self, path: str) -> tuple[int, str]:
        """Status and text from its plain HTTP port; status 0 while the port is closed."""
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.http_port}{path}", timeout=5
            ) as it:
                return it.status, it.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def wait_until_ready(self) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, self.text
            return self.get("/readyz") == (200, "ok\n")

        until("readiness", ready)

    def connect(self, bundle: bytes) -> ssl.SSLSocket:
        """A TLS connection as the API server opens it."""
        context = ssl.create_default_context(cadata=bundle.decode())
        plain = socket.create_connection(("127.0.0.1", self.webhook_port), timeout=10)
        connection = context.wrap_socket(plain, server_hostname=f"{NAME}.{NAMESPACE}.svc")
        self._connections.append(connection)
        return connection

    def stop(self) -> int:
        """Send SIGTERM; returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE)

    def end(self) -> None:
        """Kill the process and close its connections."""
        for connection in self._connections:
            connection.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture
def start(tmp_path: Path, api: Api) -> Iterator[Callable[..., Injector]]:
    """Start an injector with additional settings; it is killed after the test."""
    with contextlib.ExitStack() as stack:

        def run(
            *,
            kubeconfig: Path | None = None,
            program: Sequence[str] = ("-m", "asya_injector", "run"),
            **environ: str,
        ) -> Injector:
            injector = Injector(tmp_path, kubeconfig or api.kubeconfig, program, **environ)
            stack.callback(injector.end)
            return injector

        yield run


def connect_with(kubeconfig: Path) -> ApiClient:
    """The injector's client for the API server of a kubeconfig."""
    with pytest.MonkeyPatch.context() as patch:
        location = "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION"
        patch.setattr(location, str(kubeconfig))
        return connect()


@pytest.fixture
def connection(api: Api) -> Iterator[ApiClient]:
    """The injector's client for the stand-in API server."""
    client = connect_with(api.kubeconfig)
    yield client
    client.rest_client.pool_manager.clear()
