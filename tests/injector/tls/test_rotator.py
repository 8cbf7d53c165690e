"""Secret, caBundle and certificate, with the stand-in API server."""

import base64
import calendar
import contextlib
import datetime as dt
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from asya_injector.kube_client import ApiClient, ApiException, HTTPError
from asya_injector.tls import rotator as rotator_module
from asya_injector.tls.authority import KeyPair, create
from asya_injector.tls.rotator import CertRotator
from asya_injector.tls.watcher import CertificatePair, NotReadyError

from tests.injector.conftest import connect_with
from tests.injector.tls.test_authority import trusts
from tests.support.api_server import NAME, NAMESPACE, SECRET, Api, failure, write_kubeconfig

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)


def rotator(api: ApiClient) -> CertRotator:
    short = f"{NAME}.{NAMESPACE}"
    return CertRotator(
        api,
        namespace=NAMESPACE,
        secret=SECRET,
        webhook_configuration=NAME,
        dns_names=[f"{short}.svc", short, f"{short}.svc.cluster.local"],
    )


class World:
    """An API server whose clock the test sets, and replicas of the injector."""

    def __init__(self, api: Api, connection: ApiClient) -> None:
        self.api = api
        self._connection = connection
        self.set_clock(NOW)

    def set_clock(self, now: dt.datetime) -> None:
        self.now = now
        self.api.time = calendar.timegm(now.timetuple())

    def replica(self) -> CertRotator:
        return rotator(self._connection)

    @property
    def secret(self) -> Any:
        return self.api.objects.get(("secrets", NAMESPACE, SECRET))

    @property
    def configuration(self) -> Any:
        return self.api.objects["mutatingwebhookconfigurations", "", NAME]

    @property
    def bundles(self) -> list[bytes]:
        """The caBundle of each webhook."""
        return [
            base64.b64decode(webhook["clientConfig"].get("caBundle", ""))
            for webhook in self.configuration["webhooks"]
        ]

    def is_trusted(self, served: CertificatePair) -> bool:
        """Whether the API server trusts this certificate."""
        pair = KeyPair(served.certificate, served.key, b"", b"")
        name = f"{NAME}.{NAMESPACE}.svc"
        return all(trusts(each, pair, at=self.now, name=name) for each in self.bundles if each)


@pytest.fixture
def world(api: Api, connection: ApiClient, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(rotator_module, "_API_TIMEOUT", (60, 120))  # for a busy stand-in
    return World(api, connection)


def test_the_first_replica_fills_the_secret_and_writes_ca_bundle(
    world: World,
) -> None:
    served = world.replica().fetch()
    assert all(world.bundles)
    assert world.is_trusted(served)
    assert base64.b64decode(world.secret["data"]["tls.crt"]) == served.certificate
    assert [call[:2] for call in world.api.calls] == [
        ("get", "mutatingwebhookconfigurations"),
        ("get", "secrets"),
        ("update", "secrets"),
        ("patch", "mutatingwebhookconfigurations"),
    ]


def test_writes_nothing_while_all_is_valid(world: World) -> None:
    replica = world.replica()
    served = replica.fetch()
    world.api.calls.clear()
    assert replica.fetch() == served
    assert {call[0] for call in world.api.calls} == {"get"}


@pytest.mark.parametrize("rendered", [True, False], ids=["empty Secret", "no Secret"])
def test_replicas_that_start_together_agree(world: World, rendered: bool) -> None:
    if not rendered:
        del world.api.objects["secrets", NAMESPACE, SECRET]
    count = 4
    barrier = threading.Barrier(count)
    first_reads = threading.local()

    def fault(verb: str, resource: str, *_: str) -> None:
        # All replicas read before the first one writes.
        if resource == "secrets" and verb != "get" and not hasattr(first_reads, "done"):
            first_reads.done = True
            barrier.wait(100)

    world.api.fault = fault
    served: list[CertificatePair] = []
    replicas = [
        threading.Thread(target=lambda: served.append(world.replica().fetch()))
        for _ in range(count)
    ]
    for replica in replicas:
        replica.start()
    for replica in replicas:
        replica.join(200)
    assert len(served) == count
    assert len(set(served)) == 1
    assert world.is_trusted(served[0])


def test_a_renewal_changes_the_certificate_and_not_the_ca(world: World) -> None:
    first, second = world.replica(), world.replica()
    old = first.fetch()
    assert second.fetch() == old
    bundles = world.bundles
    world.set_clock(NOW + 61 * DAY)
    fresh = first.fetch()
    assert fresh.certificate != old.certificate
    assert world.bundles == bundles
    assert second.fetch() == fresh
    assert world.is_trusted(fresh)


def test_after_a_new_ca_the_old_one_stays_trusted_until_it_expires(world: World) -> None:
    first, second = world.replica(), world.replica()
    first.fetch()
    second.fetch()
    world.set_clock(NOW + dt.timedelta(days=3650 - 175))
    early = second.fetch()  # the CA expires within 180 days, so it is replaced
    late = first.fetch()
    assert early == late
    assert world.is_trusted(late)
    assert base64.b64decode(world.secret["data"]["ca.crt"]).count(b"BEGIN CERT") == 2
    assert all(each.count(b"BEGIN CERT") == 2 for each in world.bundles)
    # The next CA drops the expired one.
    world.set_clock(NOW + dt.timedelta(days=2 * 3650 - 300))
    assert world.is_trusted(first.fetch())
    assert all(each.count(b"BEGIN CERT") == 2 for each in world.bundles)


def test_writes_ca_bundle_before_it_serves_a_new_ca(world: World) -> None:
    replica = world.replica()
    old = replica.fetch()
    world.set_clock(NOW + dt.timedelta(days=3650 - 175))

    def fault(verb: str, *_: str) -> None:
        if verb == "patch":
            raise failure(500, "InternalError", "etcdserver: no leader")

    world.api.fault = fault
    with pytest.raises(ApiException):
        replica.fetch()
    world.api.fault = lambda *_: None
    fresh = replica.fetch()
    assert fresh != old
    assert world.is_trusted(fresh)


@pytest.mark.parametrize("damage", ["deleted", "emptied", "torn", "no key"])
def test_restores_a_lost_secret(world: World, damage: str) -> None:
    first, second = world.replica(), world.replica()
    served = first.fetch()
    second.fetch()
    data = dict(world.secret["data"])
    match damage:
        case "deleted":
            del world.api.objects["secrets", NAMESPACE, SECRET]
        case "emptied":
            del world.secret["data"]
        case "torn":
            world.secret["data"]["tls.key"] = create(["x"], now=NOW).to_secret()["tls.key"]
        case "no key":
            del world.secret["data"]["ca.key"]
    assert second.fetch() == first.fetch() == served
    assert world.secret["data"] == data


def test_creates_a_secret_that_is_deleted_before_the_write(world: World) -> None:
    def fault(verb: str, resource: str, *_: str) -> None:
        if (verb, resource) == ("update", "secrets"):
            world.api.objects.pop(("secrets", NAMESPACE, SECRET), None)

    world.api.fault = fault
    assert world.is_trusted(world.replica().fetch())
    assert world.secret["data"]
    assert all(world.bundles)


def test_a_new_secret_belongs_to_the_release(world: World) -> None:
    labels = {"app.kubernetes.io/managed-by": "Helm"}
    metadata = world.configuration["metadata"]
    metadata["labels"] = labels
    metadata["annotations"]["cert-manager.io/inject-ca-from"] = "a/b"
    replica = world.replica()
    replica.fetch()
    del world.api.objects["secrets", NAMESPACE, SECRET]
    replica.fetch()
    made = world.secret["metadata"]
    assert made["annotations"] == {"meta.helm.sh/release-name": NAME}
    assert made["labels"] == labels
    assert world.secret["type"] == "Opaque"


def test_restores_a_cleared_ca_bundle_from_the_current_secret(world: World) -> None:
    first, second = world.replica(), world.replica()
    first.fetch()
    del world.api.objects["secrets", NAMESPACE, SECRET]
    newer = world.replica().fetch()  # it remembers no pair, so it creates another CA
    del world.configuration["webhooks"][1]["clientConfig"]["caBundle"]
    assert first.fetch() == second.fetch() == newer
    assert world.is_trusted(newer)
    assert all(world.bundles)


def test_without_a_webhook_configuration_no_secret_is_written(world: World) -> None:
    configuration = world.configuration
    del world.api.objects["mutatingwebhookconfigurations", "", NAME]
    del world.api.objects["secrets", NAMESPACE, SECRET]
    replica = world.replica()
    with pytest.raises(NotReadyError, match="MutatingWebhookConfiguration"):
        replica.fetch()
    assert world.secret is None
    world.api.objects["mutatingwebhookconfigurations", "", NAME] = configuration
    assert world.is_trusted(replica.fetch())


def test_a_recreated_webhook_configuration_gets_the_same_ca(world: World) -> None:
    replica = world.replica()
    served = replica.fetch()
    world.api.install()  # rewrites the Secret too, empty
    assert not any(world.bundles)
    assert replica.fetch() == served
    assert world.is_trusted(served)


def test_uses_the_api_servers_clock(world: World) -> None:
    world.set_clock(dt.datetime(2040, 1, 1, tzinfo=dt.UTC))
    assert world.is_trusted(world.replica().fetch())


def test_gives_up_after_losing_several_races(world: World) -> None:
    def fault(verb: str, *_: str) -> None:
        if verb == "update":
            raise failure(409, "Conflict", "the object has been modified")

    world.api.fault = fault
    with pytest.raises(NotReadyError, match="other replicas"):
        world.replica().fetch()
    assert not any(world.bundles)


def test_the_client_does_not_retry_a_failed_call(tmp_path: Path) -> None:
    accepted = 0

    def close_connections(listener: socket.socket) -> None:
        nonlocal accepted
        with contextlib.suppress(OSError):  # it is closed
            while True:
                listener.accept()[0].close()
                accepted += 1

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=close_connections, args=(listener,))
        server.start()
        api = connect_with(write_kubeconfig(tmp_path, listener.getsockname()[1]))
        with pytest.raises(HTTPError):
            rotator(api).fetch()
        listener.shutdown(socket.SHUT_RDWR)
        server.join()
    assert accepted == 1
