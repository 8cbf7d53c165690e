"""What is lost when an actor fails, or a certificate is due, while messages and pods come in:
nothing that was promised.

No pod that is asked for notices any of this, nor does anything in another namespace.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
import signal
import time
from dataclasses import replace

import pytest
from asya_injector.tls.authority import KeyPair, create
from faults import (
    HOOK,
    KILLS,
    NOTHING,
    SMALL,
    WRAP,
    Property,
    Scene,
    fault,
    kill_within,
    without_an_account,
)
from harness import SYSTEM, Pod, serial, until
from ledger import Promise, Row, State
from traffic import APP, actor, load, long_message

pytestmark = [pytest.mark.xdist_group("actors"), pytest.mark.timeout(240)]


@pytest.mark.parametrize("app", [WRAP, HOOK])
def test_a_runtime_that_is_killed_comes_back(
    scene: Scene, record_property: Property, app: str
) -> None:
    pod, before = scene.pod(app), scene.restarts(app)
    with fault(scene, record_property, f"runtime SIGKILLed, {app} mode", messages=KILLS):
        long_message(scene.cluster, pod, signal.SIGUSR1)
        kill_within(scene.cluster, pod, "asya_runtime.py", signal.SIGKILL)
        # By the kubelet where it goes with the container, by its supervisor where it does not.
        more = 1 if app == WRAP else 0
        until("it to be restarted", lambda: scene.restarts(app) == before + more)
    assert scene.restarts(app) == before + more


def test_a_container_that_is_killed_for_its_memory_comes_back(
    scene: Scene, record_property: Property
) -> None:
    before = scene.restarts(SMALL)
    with fault(scene, record_property, "container OOM-killed by its limit", messages=KILLS):
        long_message(scene.cluster, scene.pod(SMALL), signal.SIGUSR2)
        until("the container to be restarted", lambda: scene.restarts(SMALL) == before + 1)
    (pod,) = scene.cluster.pods(scene.namespace, SMALL)
    status = next(each for each in pod.status.container_statuses if each.name == "model")
    ended = status.last_state.terminated
    assert ended is None or ended.exit_code == 137  # a kubelet may have removed it: test_gpu.py
    assert cut(scene, pod) == 1


def cut(scene: Scene, pod: Pod) -> int:
    """How many messages of a pod's sidecar were cut."""
    histories = scene.sending.ledger().histories
    return sum(
        any(event.state == State.CUT for event in history)
        for thing, history in histories.items()
        if thing.startswith(f"{pod.metadata.name}-kept")
    )


def test_an_application_that_exits_leaves_no_message_unanswered(
    scene: Scene, record_property: Property
) -> None:
    pod, before = scene.pod(WRAP), scene.restarts(WRAP)
    with fault(scene, record_property, "application exits, message in hand"):
        long_message(scene.cluster, pod, signal.SIGUSR1)
        kill_within(scene.cluster, pod, "app", signal.SIGTERM)
        until("the container to be restarted", lambda: scene.restarts(WRAP) == before + 1)


@pytest.mark.parametrize("app", [WRAP, HOOK])
def test_a_pod_that_is_deleted_answers_what_it_has_in_hand(
    scene: Scene, record_property: Property, app: str
) -> None:
    pod = scene.pod(app)
    with fault(scene, record_property, f"SIGTERM, message in hand, {app} mode"):
        long_message(scene.cluster, pod, signal.SIGUSR1)
        words = ["-n", scene.namespace, "delete", "pod", pod.metadata.name, "--timeout=60s"]
        scene.cluster.kubectl(*words)
    living = {each.metadata.name for each in scene.cluster.pods(scene.namespace, app)}
    assert pod.metadata.name not in living


def test_a_configmap_that_is_deleted_is_missed_by_nobody(
    scene: Scene, record_property: Property
) -> None:
    cluster, namespace = scene.cluster, scene.namespace
    before = scene.restarts(SMALL)
    words = ["-n", namespace, "get", "configmaps", "-o", "name"]
    with fault(scene, record_property, "ConfigMap deleted by hand", messages=KILLS):
        label = "app.kubernetes.io/managed-by=asya-injector"
        cluster.kubectl("-n", namespace, "delete", "configmaps", "-l", label)
        # A container that starts again has what it had.
        kill_within(cluster, scene.pod(SMALL), "asya_runtime.py", signal.SIGKILL)
        until("the container to be restarted", lambda: scene.restarts(SMALL) == before + 1)
        # The next pod brings it back.
        until(
            "the ConfigMap to be there again",
            lambda: "configmap/asya-runtime-" in cluster.kubectl(*words).stdout,
        )
    scene.pod(SMALL)


def test_a_namespace_that_is_deleted_goes_and_can_be_made_again(
    scene: Scene, record_property: Property
) -> None:
    cluster = scene.cluster
    name = f"{scene.namespace}-gone"
    cluster.make_namespace(name)
    try:
        began = time.time()
        item = actor(WRAP, cluster.model_image, command=APP)
        with load(cluster, name, item) as (sending, asking):
            pod = cluster.ready_pod(name, WRAP)
            long_message(cluster, pod, signal.SIGUSR1)
            cluster.kubectl("delete", "namespace", name, "--timeout=90s", timeout=100)
            asking.stop()
            assert sending.unfinished(set()) == []
            promise = Promise(refusals=True)
            messages = sending.ledger().tally(NOTHING, since=began)
            # The pod that is asked for at the end is refused for ever, and says why.
            histories = asking.ledger.histories
            last = histories.pop(list(histories)[-1])
            assert {event.state for event in last} <= {State.ASKED, State.REFUSED}
            pods = asking.ledger.tally(promise, since=began)
            for row in (Row("namespace deleted", "messages", messages),
                        Row("namespace deleted", "pods", pods)):  # fmt: skip
                record_property("row", json.dumps(row.cells()))
            assert [*messages.lost, *pods.lost] == []
        cluster.make_namespace(name)
        with load(cluster, name, item) as (sending, _):
            assert sending.answered_since(WRAP, began)
    finally:
        cluster.kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")


@pytest.mark.parametrize("part", ["certificate", "CA"])
def test_what_is_due_is_renewed_unnoticed(
    scene: Scene, record_property: Property, part: str
) -> None:
    core = scene.cluster.core
    secret = core.read_namespaced_secret("asya-runtime-tls", SYSTEM)
    before, now = KeyPair.from_secret(secret.data), dt.datetime.now(dt.UTC)
    # A certificate for other names is due at once, by the same rule as one that is about to end.
    due = before.renew(["elsewhere.svc"], now=now)
    if part == "CA":  # of ten years, of which it has had nearly all; the present one is trusted too
        aged = create(["elsewhere.svc"], now=now - dt.timedelta(days=3600))
        due = replace(aged, bundle=aged.bundle + before.bundle)
    with fault(scene, record_property, f"injector: {part} renewed"):
        secret.data = due.to_secret()
        core.replace_namespaced_secret("asya-runtime-tls", SYSTEM, secret)
        serials = {serial(before.certificate), serial(due.certificate)}

        def renewed() -> int:
            now = core.read_namespaced_secret("asya-runtime-tls", SYSTEM).data["tls.crt"]
            return (serial(base64.b64decode(now)) not in serials) and serial(base64.b64decode(now))

        fresh = until("another certificate", renewed)
        until(
            "both replicas to have loaded it",
            lambda: scene.cluster.serials_shown() == {fresh},
        )
    after = KeyPair.from_secret(core.read_namespaced_secret("asya-runtime-tls", SYSTEM).data)
    kept = after.bundle == before.bundle
    assert kept if part == "certificate" else after.bundle.endswith(before.bundle) and not kept


def test_a_secret_that_is_deleted_or_damaged_is_put_back(
    scene: Scene, record_property: Property
) -> None:
    secret = ["-n", SYSTEM, "secret/asya-runtime-tls"]
    kept = scene.cluster.get(*secret)["data"]
    words = ["get", *secret, "-o", "json", "--ignore-not-found"]
    with fault(scene, record_property, "injector: Secret deleted, then damaged"):
        scene.cluster.kubectl("delete", *secret)
        until("the Secret to be put back", lambda: scene.cluster.kubectl(*words).stdout)
        assert scene.cluster.get(*secret)["data"] == kept
        scene.cluster.kubectl("patch", *secret, "-p", '{"data": {"tls.key": "AAAA"}}')
        until("the Secret to be mended", lambda: scene.cluster.get(*secret)["data"] == kept)


def test_every_sidecar_that_is_gone_gave_a_whole_account(scene: Scene) -> None:
    """Without this, a message could be lost with the log that would have said so."""
    assert without_an_account(scene) == []
