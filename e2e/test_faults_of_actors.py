"""Faults of actors, ConfigMaps and certificates under load: no message and no pod is lost.

None of these faults affects the admission of pods, or other namespaces.
"""

from __future__ import annotations

import json
import signal
import time

import pytest
from asya_injector.tls.authority import KeyPair

from e2e.harness import SYSTEM, Pod, until
from e2e.load.faults import (
    ERRORS,
    HOOK,
    KILLS,
    LIMITED,
    NOTHING,
    SMALL,
    WRAP,
    Property,
    Scene,
    fault,
    find_unfinished,
    kill_in_container,
    renew_certificate,
)
from e2e.load.ledger import Row, State, Tolerance
from e2e.load.traffic import APP, actor, generate_load, send_long_message

pytestmark = [pytest.mark.xdist_group("actors"), pytest.mark.timeout(240)]


@pytest.mark.parametrize("app", [WRAP, HOOK])
def test_a_killed_runtime_is_restarted(scene: Scene, record_property: Property, app: str) -> None:
    pod, before = scene.pod(app), scene.restarts(app)
    with fault(scene, record_property, f"runtime SIGKILLed, {app} mode", messages=KILLS):
        send_long_message(scene.cluster, pod, signal.SIGUSR1)
        kill_in_container(scene.cluster, pod, "asya_runtime.py", signal.SIGKILL)
        # In wrap mode the container ends with it; in hook mode a supervisor restarts it.
        until("it to be restarted", lambda: scene.restarts(app) > before or app == HOOK)
    assert (scene.restarts(app) > before) == (app == WRAP)


def test_a_container_over_its_memory_limit_is_restarted(
    scene: Scene, record_property: Property
) -> None:
    before = scene.restarts(SMALL)
    with fault(scene, record_property, "container OOM-killed by its limit", messages=KILLS):
        send_long_message(scene.cluster, scene.pod(SMALL), signal.SIGUSR2)
        until("the container to be restarted", lambda: scene.restarts(SMALL) > before)
    (pod,) = scene.cluster.pods(scene.namespace, SMALL)
    status = next(each for each in pod.status.container_statuses if each.name == "model")
    ended = status.last_state.terminated
    assert ended is None or ended.exit_code == 137  # removed by the kubelet: test_gpu.py
    assert count_messages(scene, pod, State.CUT) == 1


def test_a_message_over_the_memory_limit_of_its_actor_is_answered(
    scene: Scene, record_property: Property
) -> None:
    before, pod = scene.restarts(LIMITED), scene.pod(LIMITED)
    with fault(scene, record_property, "memory exhausted, with a memory limit", messages=ERRORS):
        send_long_message(scene.cluster, pod, signal.SIGUSR2)
        until("the error", lambda: count_messages(scene, pod, State.REJECTED, "oom_error") == 1)
    assert scene.restarts(LIMITED) == before
    assert count_messages(scene, pod, State.CUT) == 0


def count_messages(scene: Scene, pod: Pod, state: State, detail: str | None = None) -> int:
    """The number of messages of a pod's sidecar that were in a state, with a detail if given."""
    histories = scene.messages.ledger().histories
    return sum(
        any(event.state == state and detail in (None, event.detail) for event in history)
        for item, history in histories.items()
        if item.startswith(f"{pod.metadata.name}-kept")
    )


def test_an_application_that_exits_lets_the_current_message_be_answered(
    scene: Scene, record_property: Property
) -> None:
    pod, before = scene.pod(WRAP), scene.restarts(WRAP)
    with fault(scene, record_property, "application exits during a message"):
        send_long_message(scene.cluster, pod, signal.SIGUSR1)
        kill_in_container(scene.cluster, pod, "app", signal.SIGTERM)
        until("the container to be restarted", lambda: scene.restarts(WRAP) > before)


@pytest.mark.parametrize("app", [WRAP, HOOK])
def test_a_deleted_pod_answers_the_message_that_it_has_received(
    scene: Scene, record_property: Property, app: str
) -> None:
    pod = scene.pod(app)
    with fault(scene, record_property, f"SIGTERM during a message, {app} mode"):
        send_long_message(scene.cluster, pod, signal.SIGUSR1)
        words = ["-n", scene.namespace, "delete", "pod", pod.metadata.name, "--timeout=240s"]
        scene.cluster.kubectl(*words)
    living = {each.metadata.name for each in scene.cluster.pods(scene.namespace, app)}
    assert pod.metadata.name not in living


def test_a_deleted_configmap_affects_no_pod(scene: Scene, record_property: Property) -> None:
    cluster, namespace = scene.cluster, scene.namespace
    before = scene.restarts(SMALL)
    words = ["-n", namespace, "get", "configmaps", "-o", "name"]
    with fault(scene, record_property, "ConfigMap deleted by hand", messages=KILLS):
        label = "app.kubernetes.io/managed-by=asya-injector"
        cluster.kubectl("-n", namespace, "delete", "configmaps", "-l", label)
        # A container that restarts still has the files.
        kill_in_container(cluster, scene.pod(SMALL), "asya_runtime.py", signal.SIGKILL)
        until("the container to be restarted", lambda: scene.restarts(SMALL) > before)
        # The next pod creates it again.
        until(
            "the ConfigMap to be created again",
            lambda: "configmap/asya-runtime-" in cluster.kubectl(*words).stdout,
        )
    scene.pod(SMALL)


def test_a_namespace_under_load_can_be_deleted_and_created_again(
    scene: Scene, record_property: Property
) -> None:
    cluster = scene.cluster
    name = f"{scene.namespace}-gone"
    cluster.make_namespace(name)
    try:
        began = time.time()
        item = actor(WRAP, cluster.model_image, command=APP)
        with generate_load(cluster, name, item) as (messages, pod_requests):
            pod = cluster.ready_pod(name, WRAP)
            send_long_message(cluster, pod, signal.SIGUSR1)
            cluster.kubectl("delete", "namespace", name, "--timeout=280s")
            pod_requests.stop()
            until("complete logs", lambda: not messages.unfinished(set()))
            sent = messages.ledger().tally(NOTHING, since=began)
            # The last pod that is requested stays rejected.
            histories = pod_requests.ledger.histories
            last = histories.pop(list(histories)[-1])
            assert {event.state for event in last} <= {State.REQUESTED, State.REJECTED}
            pods = pod_requests.ledger.tally(Tolerance(rejections=True), since=began)
            for row in (Row("namespace deleted", "messages", sent),
                        Row("namespace deleted", "pods", pods)):  # fmt: skip
                record_property("row", json.dumps(row.cells()))
            assert [*sent.lost, *pods.lost] == []
        cluster.make_namespace(name)
        with generate_load(cluster, name, item) as (messages, _):
            assert messages.answered_since(WRAP, began)
    finally:
        cluster.kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")


@pytest.mark.parametrize("part", ["certificate", "CA"])
def test_renewal_rejects_no_pod(scene: Scene, record_property: Property, part: str) -> None:
    core = scene.cluster.core
    before = KeyPair.from_secret(core.read_namespaced_secret("asya-runtime-tls", SYSTEM).data)
    with fault(scene, record_property, f"injector: {part} renewed"):
        renew_certificate(scene.cluster, part=part)
    after = KeyPair.from_secret(core.read_namespaced_secret("asya-runtime-tls", SYSTEM).data)
    kept = after.bundle == before.bundle
    assert kept if part == "certificate" else after.bundle.endswith(before.bundle) and not kept


def test_a_deleted_or_damaged_secret_is_restored(scene: Scene, record_property: Property) -> None:
    secret = ["-n", SYSTEM, "secret/asya-runtime-tls"]
    kept = scene.cluster.get(*secret)["data"]
    words = ["get", *secret, "-o", "json", "--ignore-not-found"]
    with fault(scene, record_property, "injector: Secret deleted, then damaged"):
        scene.cluster.kubectl("delete", *secret)
        until("the Secret to be restored", lambda: scene.cluster.kubectl(*words).stdout)
        assert scene.cluster.get(*secret)["data"] == kept
        scene.cluster.kubectl("patch", *secret, "-p", '{"data": {"tls.key": "AAAA"}}')
        until("the Secret to be repaired", lambda: scene.cluster.get(*secret)["data"] == kept)


def test_the_log_of_every_sidecar_that_is_gone_is_complete(scene: Scene) -> None:
    """Otherwise, a message could be lost together with the log that shows it."""
    until("complete logs", lambda: not find_unfinished(scene))
