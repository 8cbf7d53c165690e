"""The injector's certificate in whole processes: racing replicas, and a mounted Secret."""

import datetime as dt
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from asya_injector.tls.authority import KeyPair, create

from tests.injector.webhook.test_process import POD, Caller, Start, parse_samples
from tests.support.api_server import NAME, NAMESPACE, Api, write_kubeconfig
from tests.support.injector_process import DEADLINE, Injector, read_bundle, until
from tests.support.ports import free_port

SERVICE = f"{NAME}.{NAMESPACE}.svc"
# The program, but it checks its certificate ten times a second.
FAST_CHECKS = """
from asya_injector.cli.main import main
from asya_injector.tls import watcher
watcher.CertWatcher.watch.__kwdefaults__["pause"] = 0.1
main(["run"])
"""

# The program, but its calls wait for a replica that starts late.
PATIENT_ROTATOR = """
from asya_injector.cli.main import main
from asya_injector.tls import rotator
rotator._API_TIMEOUT = (60, 120)
main(["run"])
"""


def get_certificate(injector: Injector, *bundles: bytes) -> bytes:
    """The certificate that the injector presents; raises if none of these CAs signed it."""
    connection = injector.connect(b"".join(bundles))
    try:
        certificate = connection.getpeercert(binary_form=True)
    finally:
        connection.close()
    assert certificate
    return certificate


# --- Issued by the injector


def block_first_write(parties: int) -> Callable[..., None]:
    """A fault that blocks writes of the Secret until so many replicas have read it."""
    complete = threading.Event()
    barrier = threading.Barrier(parties, action=complete.set)

    def fault(verb: str, resource: str, *_: str) -> None:
        if (verb, resource) == ("update", "secrets") and not complete.is_set():
            barrier.wait(DEADLINE)

    return fault


def test_replicas_that_start_together_agree_on_one_trusted_ca(start: Start, api: Api) -> None:
    api.fault = block_first_write(2)
    replicas = [start(program=("-c", PATIENT_ROTATOR)) for _ in range(2)]
    for replica in replicas:
        replica.wait_until_ready()
    # The slower replica lost its write, and read what the faster one wrote.
    lines = [line for replica in replicas for line in replica.log]
    assert sum(line["message"] == "certificate written" for line in lines) == 1
    assert {line["level"] for line in lines} == {"INFO"}
    webhooks = api.objects["mutatingwebhookconfigurations", "", NAME]["webhooks"]
    assert len({webhook["clientConfig"]["caBundle"] for webhook in webhooks}) == 1
    assert read_bundle(api).count(b"BEGIN CERTIFICATE") == 1
    assert len({get_certificate(replica, read_bundle(api)) for replica in replicas}) == 1
    for replica in replicas:
        assert Caller(replica, read_bundle(api))(POD)["allowed"]


# --- Issued by another program, and mounted


class Mounted:
    """A mounted Secret as the kubelet maintains it: it replaces all files at once."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._versions = 0
        directory.mkdir()

    def write(self, **files: bytes) -> None:
        """Replace the files: `crt`, `key`."""
        self._versions += 1
        version = self.directory / f"..{self._versions}"
        version.mkdir()
        for end, content in files.items():
            (version / f"tls.{end}").write_bytes(content)
        (self.directory / "..new").symlink_to(version.name)
        (self.directory / "..new").rename(self.directory / "..data")
        for end in ("crt", "key"):
            link = self.directory / f"tls.{end}"
            if end not in files:
                link.unlink(missing_ok=True)
            elif not link.is_symlink():
                link.symlink_to(f"..data/{link.name}")


def issue(name: str = SERVICE, *, days_ago: int = 0) -> KeyPair:
    return create([name], now=dt.datetime.now(dt.UTC) - dt.timedelta(days=days_ago))


def der(pair: KeyPair) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pair.certificate.decode())


@pytest.fixture
def mounted(tmp_path: Path) -> Mounted:
    return Mounted(tmp_path / "mounted")


@pytest.fixture
def files(start: Start, mounted: Mounted) -> Injector:
    """An injector that uses this directory, which is still empty."""
    environ = {"INJECTOR_TLS_MODE": "files", "INJECTOR_TLS_DIRECTORY": str(mounted.directory)}
    unused = {"INJECTOR_WEBHOOK_CONFIGURATION": "", "INJECTOR_TLS_SECRET": ""}
    return start(program=("-c", FAST_CHECKS), **environ, **unused)


def test_waits_for_a_mounted_certificate_and_replaces_it_without_closing_the_listener(
    files: Injector, mounted: Mounted, api: Api
) -> None:
    missing = f"{mounted.directory}/tls.crt: No such file or directory\n"
    until("the reason", lambda: files.get("/readyz") == (503, missing))
    old, new = issue(days_ago=30), issue()
    mounted.write(crt=old.certificate, key=old.key)
    files.wait_until_ready()
    assert get_certificate(files, old.bundle) == der(old)
    caller = Caller(files, old.bundle)
    assert caller(POD)["allowed"]

    mounted.write(crt=new.certificate, key=new.key)
    both = (old.bundle, new.bundle)
    # Each check is a connection; a refused one fails the test.
    until("the new certificate", lambda: get_certificate(files, *both) == der(new))
    assert files.get("/readyz") == (200, "ok\n")
    assert caller(POD)["allowed"]  # on the connection from before
    expiry = "asya_injector_certificate_expiry_timestamp_seconds"
    assert parse_samples(files.get("/metrics")[1])[expiry] == new.expires.timestamp()
    # The issuer writes caBundle.
    assert {resource for _, resource, _, _ in api.calls} == {"configmaps"}


OTHER = issue()


def test_is_not_ready_without_the_api_server(
    start: Start, mounted: Mounted, tmp_path: Path
) -> None:
    pair = issue()
    mounted.write(crt=pair.certificate, key=pair.key)
    (tmp_path / "unreachable").mkdir()
    unreachable = write_kubeconfig(tmp_path / "unreachable", free_port())
    injector = start(
        kubeconfig=unreachable,
        INJECTOR_TLS_MODE="files",
        INJECTOR_TLS_DIRECTORY=str(mounted.directory),
    )
    until("the certificate", lambda: "certificate loaded" in injector.text)
    until("a reason", lambda: "did not answer" in injector.get("/readyz")[1])
    assert injector.get("/readyz")[0] == 503
    with pytest.raises(OSError, match="refused"):
        injector.connect(pair.bundle)


DAMAGES: dict[str, dict[str, bytes]] = {
    "the key does not belong to the certificate": {"key": OTHER.key},
    "the certificate or its key cannot be read": {"crt": b"-----BEGIN CERTIFICATE-----\n"},
    f"the certificate is not for {SERVICE}, which the API server calls": {
        "crt": (elsewhere := issue("elsewhere.svc")).certificate,
        "key": elsewhere.key,
    },
    "OpenSSL rejects the certificate: ": {
        "crt": OTHER.certificate
        + b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        "key": OTHER.key,
    },
    "/tls.key: No such file or directory": {"key": b""},
}


def test_logs_a_damaged_mounted_certificate_once_and_keeps_the_old_one(
    files: Injector, mounted: Mounted
) -> None:
    good = issue()
    mounted.write(crt=good.certificate, key=good.key)
    files.wait_until_ready()

    def read_errors() -> list[str]:
        return [line["error"] for line in files.log if line["level"] == "WARNING"]

    before = len(read_errors())
    for count, (message, damage) in enumerate(DAMAGES.items(), before + 1):
        pair = {"crt": good.certificate, "key": good.key, **damage}
        mounted.write(**{end: content for end, content in pair.items() if content})
        until(message, lambda: message in "".join(read_errors()[count - 1 :]))  # noqa: B023
        assert len(read_errors()) == count
        assert get_certificate(files, good.bundle) == der(good)
        assert files.get("/readyz") == (200, "ok\n")

    mounted.write(crt=OTHER.certificate, key=OTHER.key)
    until(
        "the next valid pair",
        lambda: get_certificate(files, good.bundle, OTHER.bundle) == der(OTHER),
    )
    until("recovery", lambda: files.log[-1]["message"] == "the certificate is valid again")
    assert not [line for line in files.log if line["level"] == "ERROR"]
    assert "Traceback" not in files.text
