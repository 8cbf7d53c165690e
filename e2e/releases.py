"""Releases of the chart by either Helm, and a stream of pods that are requested during changes."""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asya_injector import __version__
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from kubernetes import client
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from e2e.harness import RELEASE, REPOSITORY, SYSTEM, Cluster, Object, bare_pod, run, until

CHART = REPOSITORY / "chart"


def find_fixtures() -> dict[str, Path]:
    """The charts of releases, oldest first, by their versions."""
    found = {
        path.stem.removeprefix("asya-runtime-"): path
        for path in (REPOSITORY / "e2e/charts").glob("asya-runtime-*.tgz")
    }
    return dict(sorted(found.items(), key=lambda each: _numbers(each[0])))


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


# The chart of the release before this version.
PREVIOUS = [
    path for version, path in find_fixtures().items() if _numbers(version) < _numbers(__version__)
][-1]
ECHO = {"asya.sh/handler": "handlers.echo"}


@dataclass
class Release:
    """A release in a namespace, changed as from a terminal."""

    cluster: Cluster
    tool: str = "helm"
    namespace: str = SYSTEM

    def helm(self, *words: str, check: bool = True) -> str:
        """Run Helm and return its output; raises AssertionError if it fails."""
        done = run(self.tool, *words, "--namespace", self.namespace, check=check, timeout=400)
        return done.stdout + done.stderr

    def change(self, verb: str, *values: str, chart: Path = CHART, name: str = RELEASE) -> str:
        """Install or upgrade, with the image under test and these values alone."""
        repository, tag = self.cluster.injector_image.rsplit(":", 1)
        image = (f"injector.image.repository={repository}", f"injector.image.tag={tag}")
        settings = [word for value in (*image, *values) for word in ("--set", value)]
        return self.helm(verb, name, str(chart), "--wait", "--timeout", "5m", *settings)


@dataclass
class Stream:
    """Annotated pods that are requested without a pause, as dry runs, and the results."""

    cluster: Cluster
    namespace: str
    injected: int = 0
    plain: int = 0
    rejected: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def _request(self) -> None:
        core: Any = client.CoreV1Api(client.ApiClient())
        pod = bare_pod("requested", self.cluster.model_image, ECHO)
        while not self._stop.is_set():
            try:
                made = core.create_namespaced_pod(self.namespace, pod, dry_run="All")
            except ApiException as error:
                self.rejected.append(str(error.body))
            except HTTPError:
                continue  # the API server did not answer
            else:
                if "asya.sh/injected" in (made.metadata.annotations or {}):
                    self.injected += 1
                else:
                    self.plain += 1
            time.sleep(0.02)  # leaves one core to the cluster


@contextmanager
def stream(cluster: Cluster, namespace: str) -> Iterator[Stream]:
    """Request pods while the context is open, after one pod is admitted."""
    until("a pod to be admitted", lambda: cluster.admits(namespace))
    requested = Stream(cluster, namespace)
    thread = threading.Thread(target=requested._request, daemon=True)
    thread.start()
    try:
        yield requested
    finally:
        requested._stop.set()
        thread.join(timeout=100)


def create_certificate(name: str) -> tuple[str, Object]:
    """A CA as PEM, and the data of a Secret with a certificate for the name, signed by it."""
    now = dt.datetime.now(dt.UTC)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each)]) for each in ("test CA", name)
    ]
    signed = []
    for index, is_ca in enumerate((True, False)):
        builder = (
            x509.CertificateBuilder()
            .subject_name(names[index])
            .issuer_name(names[0])
            .public_key(keys[index].public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(minutes=5))
            .not_valid_after(now + dt.timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        )
        if not is_ca:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False
            )
        made = builder.sign(keys[0], hashes.SHA256())
        signed.append(made.public_bytes(serialization.Encoding.PEM).decode())
    key = keys[1].private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return signed[0], {"tls.crt": signed[1], "tls.key": key.decode()}
