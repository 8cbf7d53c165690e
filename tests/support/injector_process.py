"""The injector as a process beside the API server stand-in, and the reviews that it is sent."""

from __future__ import annotations

import base64
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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.support.api_server import NAME, NAMESPACE, SECRET, Api
from tests.support.ports import free_port

ROOT = Path(__file__).parents[2]
# All limits of time turn a hang into a failure: a start takes seconds of a busy machine's CPU.
DEADLINE = 120.0


def until(what: str, found: Callable[[], Any], *, seconds: float = DEADLINE) -> Any:
    """The first true result of `found`."""
    end = time.monotonic() + seconds
    while not (result := found()):
        if time.monotonic() > end:
            raise AssertionError(f"timed out waiting for {what}")
        time.sleep(0.02)
    return result


def build_review(subject: dict[str, Any], **changes: Any) -> tuple[str, dict[str, Any]]:
    """The path and the body of the API server's request about a pod or a Deployment."""
    plural = subject["kind"].lower() + "s"
    group = {"pods": "", "deployments": "apps"}[plural]
    request = {
        "uid": "u-1",
        "resource": {"group": group, "version": "v1", "resource": plural},
        "operation": "CREATE",
        "namespace": subject["metadata"].get("namespace"),
        "userInfo": {},
        "object": subject,
    } | changes
    path = "workloads" if group else "pods"
    # The longest time that an API server waits: a busy machine may be slow.
    return f"/{path}?timeout=30s", {"request": request}


def read_bundle(api: Api) -> bytes:
    """The CA that the API server trusts."""
    with api.lock:
        webhook = api.objects["mutatingwebhookconfigurations", "", NAME]["webhooks"][0]
        return base64.b64decode(webhook["clientConfig"].get("caBundle", ""))


def connect(port: int, bundle: bytes) -> ssl.SSLSocket:
    """A TLS connection as the API server makes it."""
    context = ssl.create_default_context(cadata=bundle.decode())
    plain = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE)
    return context.wrap_socket(plain, server_hostname=f"{NAME}.{NAMESPACE}.svc")


class Injector:
    """`asya-injector run` as a child process."""

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
        # Compiled once, not at each start.
        kept = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                (sys.executable, *program),
                env={**kept, **settings, **environ},
                stdout=output,
                stderr=output,
            )

    @property
    def log(self) -> list[Any]:
        """The complete lines of its log; each must be JSON."""
        complete, _, _ = self._output.read_text().rpartition("\n")
        return [json.loads(line) for line in complete.splitlines()]

    @property
    def text(self) -> str:
        """All that it printed."""
        return self._output.read_text()

    def get(self, path: str) -> tuple[int, str]:
        """Status and text from its plain HTTP port; 0 while that is closed."""
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.http_port}{path}", timeout=30
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
        """A TLS connection to its webhook."""
        connection = connect(self.webhook_port, bundle)
        self._connections.append(connection)
        return connection

    def stop(self) -> int:
        """Its exit status after SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE)

    def end(self) -> None:
        """Kill it, and close its connections."""
        for connection in self._connections:
            connection.close()
        self.process.kill()
        self.process.wait()
