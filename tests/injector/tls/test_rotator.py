"""Secret, caBundle and certificate, against an API server in memory."""

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
from asya_injector.tls.authority import KeyPair, create
from asya_injector.tls.rotator import CertRotator
from asya_injector.tls.watcher import CertificatePair, NotReadyError
from stand_in import NAME, NAMESPACE, SECRET, Api, failure, write_kubeconfig

from tests.injector.conftest import connected
from tests.injector.tls.test_authority import trusts

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
    """An API server whose clock the test sets, and replicas."""

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

    def is_trusted(self, shown: CertificatePair) -> bool:
        """Whether the API server would believe who shows this."""
        pair = KeyPair(shown.certificate, shown.key, b"", b"")
        name = f"{NAME}.{NAMESPACE}.svc"
        return all(trusts(each, pair, at=self.now, name=name) for each in self.bundles if each)


@pytest.fixture
def world(api: Api, connection: ApiClient) -> World:
    return World(api, connection)


def test_a_first_replica_fills_the_secret_of_the_chart_and_tells_the_api_server(
    world: World,
) -> None:
    shown = world.replica().fetch()
    assert all(world.bundles)
    assert world.is_trusted(shown)
    assert base64.b64decode(world.secret["data"]["tls.crt"]) == shown.certificate
    assert [call[:2] for call in world.api.calls] == [
        ("get", "mutatingwebhookconfigurations"),
        ("get", "secrets"),
        ("update", "secrets"),
        ("patch", "mutatingwebhookconfigurations"),
    ]


def test_what_is_in_order_is_not_written_again(world: World) -> None:
    replica = world.replica()
    shown = replica.fetch()
    world.api.calls.clear()
    assert replica.fetch() == shown
    assert {call[0] for call in world.api.calls} == {"get"}


@pytest.mark.parametrize("rendered", [True, False], ids=["empty Secret", "no Secret"])
def test_replicas_that_start_at_once_agree(world: World, rendered: bool) -> None:
    if not rendered:
        del world.api.objects["secrets", NAMESPACE, SECRET]
    count = 4
    barrier = threading.Barrier(count)
    first_reads = threading.local()

    def fault(verb: str, resource: str, *_: str) -> None:
        # All have read that there is nothing before the first one writes.
        if resource == "secrets" and verb != "get" and not hasattr(first_reads, "done"):
            first_reads.done = True
            barrier.wait(20)

    world.api.fault = fault
    shown: list[CertificatePair] = []
    replicas = [
        threading.Thread(target=lambda: shown.append(world.replica().fetch())) for _ in range(count)
    ]
    for replica in replicas:
        replica.start()
    for replica in replicas:
        replica.join(60)
    assert len(shown) == count
    assert len(set(shown)) == 1
    assert world.is_trusted(shown[0])


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


def test_with_a_new_ca_the_old_certificate_is_trusted_until_its_end(world: World) -> None:
    first, second = world.replica(), world.replica()
    first.fetch()
    second.fetch()
    world.set_clock(NOW + dt.timedelta(days=3650 - 175))
    early = second.fetch()  # of the old CA? no: it is replaced from here on
    late = first.fetch()
    assert early == late
    assert world.is_trusted(late)
    assert base64.b64decode(world.secret["data"]["ca.crt"]).count(b"BEGIN CERT") == 2
    assert all(each.count(b"BEGIN CERT") == 2 for each in world.bundles)
    # Once the old one has ended, it is dropped with the next CA.
    world.set_clock(NOW + dt.timedelta(days=2 * 3650 - 300))
    assert world.is_trusted(first.fetch())
    assert all(each.count(b"BEGIN CERT") == 2 for each in world.bundles)


def test_the_api_server_is_told_of_a_new_ca_before_it_is_shown(world: World) -> None:
    replica = world.replica()
    old = replica.fetch()
    world.set_clock(NOW + dt.timedelta(days=3650 - 175))

    def fault(verb: str, *_: str) -> None:
        if verb == "patch":
            raise failure(500, "InternalError", "etcdserver: no leader")

    world.api.fault = fault
    with pytest.raises(ApiException):
        replica.fetch()  # nothing to show
    world.api.fault = lambda *_: None
    fresh = replica.fetch()
    assert fresh != old
    assert world.is_trusted(fresh)


@pytest.mark.parametrize("damage", ["deleted", "emptied", "torn", "no key"])
def test_a_lost_secret_is_put_back_as_it_was(world: World, damage: str) -> None:
    first, second = world.replica(), world.replica()
    shown = first.fetch()
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
    assert second.fetch() == first.fetch() == shown
    assert world.secret["data"] == data


def test_a_secret_that_goes_away_before_it_is_written_is_made_anew_at_once(world: World) -> None:
    def fault(verb: str, resource: str, *_: str) -> None:
        if (verb, resource) == ("update", "secrets"):
            world.api.objects.pop(("secrets", NAMESPACE, SECRET), None)

    world.api.fault = fault
    assert world.is_trusted(world.replica().fetch())
    assert world.secret["data"]
    assert all(world.bundles)


def test_a_secret_that_is_made_anew_belongs_to_the_release(world: World) -> None:
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


def test_a_cleared_ca_bundle_is_restored_from_the_secret_as_it_is_now(world: World) -> None:
    first, second = world.replica(), world.replica()
    first.fetch()
    del world.api.objects["secrets", NAMESPACE, SECRET]
    newer = world.replica().fetch()  # it remembers nothing, so it made another CA
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


def test_a_webhook_configuration_made_anew_is_told_the_same_ca(world: World) -> None:
    replica = world.replica()
    shown = replica.fetch()
    world.api.install()  # rewrites the Secret too, empty
    assert not any(world.bundles)
    assert replica.fetch() == shown
    assert world.is_trusted(shown)


def test_the_api_servers_clock_decides_not_this_machines(world: World) -> None:
    world.set_clock(dt.datetime(2040, 1, 1, tzinfo=dt.UTC))
    assert world.is_trusted(world.replica().fetch())


def test_replicas_that_never_win_give_up_for_now(world: World) -> None:
    def fault(verb: str, *_: str) -> None:
        if verb == "update":
            raise failure(409, "Conflict", "the object has been modified")

    world.api.fault = fault
    with pytest.raises(NotReadyError, match="other replicas"):
        world.replica().fetch()
    assert not any(world.bundles)


def test_a_call_that_fails_is_made_once_and_not_again_behind_our_back(tmp_path: Path) -> None:
    accepted = 0

    def hang_up(listener: socket.socket) -> None:
        nonlocal accepted
        with contextlib.suppress(OSError):  # it is closed
            while True:
                listener.accept()[0].close()
                accepted += 1

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=hang_up, args=(listener,))
        server.start()
        nobody = connected(write_kubeconfig(tmp_path, listener.getsockname()[1]))
        with pytest.raises(HTTPError):
            rotator(nobody).fetch()
        listener.shutdown(socket.SHUT_RDWR)
        server.join()
    assert accepted == 1
