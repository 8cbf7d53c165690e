"""Certificates by cert-manager, whose controllers run as processes beside the cluster.

`make e2e-cert-manager` builds and runs them; `make e2e` does not include this module.
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
    """Run one of cert-manager's programs; its log is in the test's directory."""
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
    """The cluster with cert-manager, and without a release."""
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


def test_cert_manager_issues_the_certificate_and_its_renewal_rejects_no_pod(
    with_cert_manager: Cluster, namespace: str
) -> None:
    cluster = with_cert_manager
    release = Release(cluster)
    release.change("install", BY_CERT_MANAGER)
    until("cainjector's caBundle to be used", lambda: cluster.admits(namespace))
    assert "the actor answers" in release.helm("test", RELEASE, "--logs")
    trusted = cluster.ca_bundles()
    assert len(trusted) == 1

    pods = set(cluster.injectors())
    before = serial_of(cluster)
    with stream(cluster, namespace) as requested:
        # Deleting the Secret makes cert-manager issue a new certificate.
        cluster.kubectl("-n", SYSTEM, "delete", SECRET)
        words = ["-n", SYSTEM, "get", SECRET, "--ignore-not-found", "-o", "name"]
        until("another Secret", lambda: cluster.kubectl(*words).stdout)
        until(
            "another certificate",
            lambda: cluster.get("-n", SYSTEM, SECRET)["data"].get("tls.crt", "") != "",
        )
        fresh = serial_of(cluster)
        assert fresh != before
        # A kubelet updates a mounted Secret about once a minute.
        until(
            "all replicas to use it", lambda: cluster.certificate_serials() == {fresh}, seconds=300
        )
    assert (requested.rejected, requested.plain) == ([], 0)
    assert cluster.ca_bundles() == trusted
    assert set(cluster.injectors()) == pods

    # Back to the injector's own certificate: until the API server has its CA, it rejects annotated
    # pods; none is admitted without injection.
    with stream(cluster, namespace) as requested:
        release.change("upgrade")
        until("the old replicas to be gone", lambda: not pods & set(cluster.injectors()))
        until("pods to be admitted again", lambda: cluster.admits(namespace))
    assert requested.plain == 0
    assert [text for text in requested.rejected if "failed calling webhook" not in text] == []
