"""The injector's certificate as processes meet it: replicas that race, a Secret that is mounted."""

import datetime as dt
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from asya_injector.tls.authority import KeyPair, create

from tests.injector.webhook.test_process import POD, Caller, Start, samples
from tests.support.api_server import NAME, NAMESPACE, Api, failure, write_kubeconfig
from tests.support.injector_process import Injector, bundle, free_port, until

SERVICE = f"{NAME}.{NAMESPACE}.svc"
# The program as it is, but it looks at its certificate ten times a second instead of every ten.
HASTY = """
from asya_injector.cli.main import main
from asya_injector.tls import watcher
watcher.CertWatcher.watch.__kwdefaults__["pause"] = 0.1
main(["run"])
"""


def shown(injector: Injector, *trusted: bytes) -> bytes:
    """The certificate that whoever trusts these CAs is shown now; raises where it is none of them,
    or nobody listens.
    """
    connection = injector.connect(b"".join(trusted))
    try:
        certificate = connection.getpeercert(binary_form=True)
    finally:
        connection.close()
    assert certificate
    return certificate


# --- Made by themselves


def meeting(parties: int) -> Callable[..., None]:
    """A fault that lets nobody write the Secret before so many have read that it is empty.

    Who waits for the others too long is told that somebody was quicker: it reads again, and comes
    again.
    """
    met = threading.Event()
    barrier = threading.Barrier(parties, action=met.set)

    def fault(verb: str, resource: str, *_: str) -> None:
        if (verb, resource) == ("update", "secrets") and not met.is_set():
            try:
                barrier.wait(2)
            except threading.BrokenBarrierError:
                barrier.reset()
                raise failure(409, "Conflict", "the object has been modified") from None

    return fault


def test_replicas_that_start_at_once_agree_on_one_ca_that_the_api_server_trusts(
    start: Start, api: Api
) -> None:
    api.fault = meeting(2)
    replicas = [start(), start()]
    for replica in replicas:
        replica.wait_until_ready()
    # The slower one has lost its write and taken what the faster one wrote.
    lines = [line for replica in replicas for line in replica.log]
    assert sum(line["message"] == "certificate written" for line in lines) == 1
    assert {line["level"] for line in lines} == {"INFO"}
    webhooks = api.objects["mutatingwebhookconfigurations", "", NAME]["webhooks"]
    assert len({webhook["clientConfig"]["caBundle"] for webhook in webhooks}) == 1
    assert bundle(api).count(b"BEGIN CERTIFICATE") == 1
    assert len({shown(replica, bundle(api)) for replica in replicas}) == 1
    for replica in replicas:
        assert Caller(replica, bundle(api))(POD)["allowed"]


# --- Made by somebody else, and mounted


class Mounted:
    """A directory as the kubelet keeps a Secret in it: all files are exchanged at once."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._versions = 0
        directory.mkdir()

    def hold(self, **files: bytes) -> None:
        """Exchange what it holds: `crt`, `key`."""
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


def made(name: str = SERVICE, *, days_ago: int = 0) -> KeyPair:
    return create([name], now=dt.datetime.now(dt.UTC) - dt.timedelta(days=days_ago))


def der(pair: KeyPair) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pair.certificate.decode())


@pytest.fixture
def mounted(tmp_path: Path) -> Mounted:
    return Mounted(tmp_path / "mounted")


@pytest.fixture
def files(start: Start, mounted: Mounted) -> Injector:
    """An injector that is shown this directory, where nothing is yet."""
    environ = {"INJECTOR_TLS_MODE": "files", "INJECTOR_TLS_DIRECTORY": str(mounted.directory)}
    unused = {"INJECTOR_WEBHOOK_CONFIGURATION": "", "INJECTOR_TLS_SECRET": ""}
    return start(program=("-c", HASTY), **environ, **unused)


def test_a_mounted_certificate_is_waited_for_shown_and_exchanged_with_the_listener_open(
    files: Injector, mounted: Mounted, api: Api
) -> None:
    missing = f"{mounted.directory}/tls.crt: No such file or directory\n"
    until("what it waits for", lambda: files.get("/readyz") == (503, missing))
    old, new = made(days_ago=30), made()
    mounted.hold(crt=old.certificate, key=old.key)
    files.wait_until_ready()
    assert shown(files, old.bundle) == der(old)
    caller = Caller(files, old.bundle)
    assert caller(POD)["allowed"]

    mounted.hold(crt=new.certificate, key=new.key)
    both = (old.bundle, new.bundle)
    # Each look is a connection: one that nobody took would fail the test.
    until("the new certificate", lambda: shown(files, *both) == der(new))
    assert files.get("/readyz") == (200, "ok\n")
    assert caller(POD)["allowed"]  # on the connection from before
    expiry = "asya_injector_certificate_expiry_timestamp_seconds"
    assert samples(files.get("/metrics")[1])[expiry] == new.expires.timestamp()
    # Who made the certificate tells the API server of its CA.
    assert {resource for _, resource, _, _ in api.calls} == {"configmaps"}


OTHER = made()


def test_a_mounted_certificate_alone_makes_nobody_ready(
    start: Start, mounted: Mounted, tmp_path: Path
) -> None:
    pair = made()
    mounted.hold(crt=pair.certificate, key=pair.key)
    (tmp_path / "gone").mkdir()
    nowhere = write_kubeconfig(tmp_path / "gone", free_port())
    injector = start(
        kubeconfig=nowhere,
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
        "crt": (elsewhere := made("elsewhere.svc")).certificate,
        "key": elsewhere.key,
    },
    "OpenSSL rejects the certificate: ": {
        "crt": OTHER.certificate
        + b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        "key": OTHER.key,
    },
    "/tls.key: No such file or directory": {"key": b""},
}


def test_a_damaged_mounted_certificate_is_told_once_and_the_old_one_goes_on(
    files: Injector, mounted: Mounted
) -> None:
    good = made()
    mounted.hold(crt=good.certificate, key=good.key)
    files.wait_until_ready()

    def troubles() -> list[str]:
        return [line["error"] for line in files.log if line["level"] == "WARNING"]

    before = len(troubles())
    for count, (said, damage) in enumerate(DAMAGES.items(), before + 1):
        given = {"crt": good.certificate, "key": good.key, **damage}
        mounted.hold(**{end: content for end, content in given.items() if content})
        until(said, lambda: said in "".join(troubles()[count - 1 :]))  # noqa: B023
        assert len(troubles()) == count
        assert shown(files, good.bundle) == der(good)
        assert files.get("/readyz") == (200, "ok\n")

    mounted.hold(crt=OTHER.certificate, key=OTHER.key)
    until("the next good one", lambda: shown(files, good.bundle, OTHER.bundle) == der(OTHER))
    until("relief", lambda: files.log[-1]["message"] == "the certificate is valid again")
    assert not [line for line in files.log if line["level"] == "ERROR"]
    assert "Traceback" not in files.text
