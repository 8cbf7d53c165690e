"""Certificates by cert-manager: its own controllers, run as processes beside the cluster.

`make e2e-cert-manager` builds and runs them; they are no part of `make e2e`.
"""

from __future__ import annotations

import base64
import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.harness import RELEASE, SYSTEM, Cluster, serial, until
from e2e.releases import Release, stream

pytestmark = [pytest.mark.alone, pytest.mark.timeout(400)]

BY_CERT_MANAGER = "certificates.mode=certManager"
SECRET = f"secret/{RELEASE}-cert-manager"


@contextlib.contextmanager
def controller(directory: Path, name: str, log: Path) -> Iterator[None]:
    """One of cert-manager's programs, running; what it logged stays in the test's directory."""
    words = [str(directory / "bin" / name), "--kubeconfig", os.environ["KUBECONFIG"]]
    with (
        log.open("w") as stream,
        subprocess.Popen([*words, "--leader-elect=false"], stdout=stream, stderr=stream) as process,
    ):
        try:
            yield
            assert process.poll() is None, log.read_text()
        finally:
            process.terminate()


@pytest.fixture
def with_cert_manager(free: Cluster, tmp_path: Path) -> Iterator[Cluster]:
    """A cluster with cert-manager and without a release of ours."""
    directory = Path(os.environ["CERT_MANAGER"])
    crds = ["-f", str(directory / "crds")]
    free.kubectl("apply", "--server-side", *crds)
    free.kubectl("wait", *crds, "--for=condition=Established", "--timeout=60s")
    try:
        with (
            controller(directory, "controller", tmp_path / "controller.log"),
            controller(directory, "cainjector", tmp_path / "cainjector.log"),
        ):
            yield free
            free.uninstall()
    finally:
        free.kubectl("delete", *crds, "--wait=false")


def serial_of(cluster: Cluster) -> int:
    """The serial number of the certificate in cert-manager's Secret."""
    return serial(base64.b64decode(cluster.get("-n", SYSTEM, SECRET)["data"]["tls.crt"]))


def test_cert_manager_makes_the_certificate_and_renews_it_unnoticed(
    with_cert_manager: Cluster, namespace: str
) -> None:
    cluster = with_cert_manager
    release = Release(cluster)
    release.change("install", BY_CERT_MANAGER)
    until("cainjector's caBundle to be known", lambda: cluster.admits(namespace))
    assert "the actor answers" in release.helm("test", RELEASE, "--logs")
    trusted = cluster.ca_bundles()
    assert len(trusted) == 1

    pods = set(cluster.injectors())
    before = serial_of(cluster)
    with stream(cluster, namespace) as asked:
        # A Secret that is gone is how anybody asks cert-manager for a new certificate.
        cluster.kubectl("-n", SYSTEM, "delete", SECRET)
        words = ["-n", SYSTEM, "get", SECRET, "--ignore-not-found", "-o", "name"]
        until("another Secret", lambda: cluster.kubectl(*words).stdout)
        until(
            "another certificate",
            lambda: cluster.get("-n", SYSTEM, SECRET)["data"].get("tls.crt", "") != "",
        )
        fresh = serial_of(cluster)
        assert fresh != before
        # A kubelet looks at a Secret that is mounted once a minute or so.
        until("it to be shown by all", lambda: cluster.serials_shown() == {fresh}, seconds=150)
    assert (asked.refused, asked.plain) == ([], 0)
    assert cluster.ca_bundles() == trusted
    assert set(cluster.injectors()) == pods

    # To the injector's own certificate: for a moment nobody can know its CA, and pods are refused,
    # by the API server itself; none is missed.
    with stream(cluster, namespace) as asked:
        release.change("upgrade")
        until(
            "the old replicas to be gone", lambda: not pods & set(cluster.injectors()), seconds=90
        )
        until("pods to be admitted again", lambda: cluster.admits(namespace))
    assert asked.plain == 0
    assert [text for text in asked.refused if "failed calling webhook" not in text] == []
