"""All modes, kinds of workloads and forms of images.

The objects of a table are applied at once, and there is one wait for all of them.
"""

import functools
import json
import os
from collections.abc import Callable
from typing import Any

import pytest

from e2e.harness import (
    SIDECAR,
    Cluster,
    Object,
    Pod,
    bare_pod,
    container,
    is_ready,
    until,
    workload,
)

APP = ["python3", "-m", "app"]
HANDLER = "asya.sh/handler"
WHOAMI = {HANDLER: "handlers.whoami"}
MODES: dict[str, list[str] | None] = {"wrap": APP, "hook": None}
SERVED = "import socket; socket.create_connection(('localhost', 8080), 5)"
# What an init system such as s6-overlay does: it works only as process 1.
INIT = """#!/bin/sh
[ "$$" = 1 ] || { echo "/init: must be process 1" >&2; exit 100; }
exec python3 -m app
"""
# One annotation at each level above the pods of a CronJob, and the variables of the pods.
JOB_LEVEL, POD_LEVEL = {"asya.sh/chunk-size": "8192"}, {"asya.sh/handler-timeout": "7"}
LEVELS = {
    "ASYA_HANDLER": WHOAMI[HANDLER],
    "ASYA_CHUNK_SIZE": "8192",
    "ASYA_HANDLER_TIMEOUT": "7",
}


def as_kind(deployment: Object, kind: str) -> Object:
    """The Deployment as another kind of workload."""
    spec, metadata = deployment["spec"], deployment["metadata"]
    template = spec["template"]
    if kind == "Pod":
        labels = template["metadata"]["labels"]
        metadata = {**template["metadata"], "name": metadata["name"], "labels": labels}
        return {"apiVersion": "v1", "kind": kind, "metadata": metadata, "spec": template["spec"]}
    if kind in {"Job", "CronJob"}:
        template["spec"]["restartPolicy"] = "OnFailure"
        spec = {"template": template}
        if kind == "CronJob":
            spec = {"schedule": "0 0 1 1 *", "jobTemplate": {"spec": spec}}
        return {"apiVersion": "batch/v1", "kind": kind, "metadata": metadata, "spec": spec}
    fields = {key: value for key, value in spec.items() if key != "replicas" or kind != "DaemonSet"}
    if kind == "StatefulSet":
        fields["serviceName"] = metadata["name"]
    return {**deployment, "kind": kind, "spec": fields}


def wait_for_pods(cluster: Cluster, namespace: str, names: list[str]) -> dict[str, Pod]:
    """A ready pod of each application."""

    def look() -> dict[str, Pod] | None:
        pods = cluster.core.list_namespaced_pod(namespace).items
        found = {pod.metadata.labels["app"]: pod for pod in pods if is_ready(pod)}
        return found if set(names) <= set(found) else None

    return until(f"pods of {', '.join(names)}", look, seconds=600)


def call(cluster: Cluster, pod: Pod) -> Any:
    (reply,) = cluster.call(pod, {"payload": {}})
    return reply.get("result", reply)


def mode_of(pod: Pod) -> str:
    mode: str = json.loads(pod.metadata.annotations["asya.sh/injected"])["mode"]
    return mode


@pytest.mark.timeout(500)
def test_every_kind_of_workload_is_injected_in_both_modes(cluster: Cluster, namespace: str) -> None:
    kinds = ["StatefulSet", "DaemonSet", "ReplicaSet", "Job", "CronJob", "Pod"]
    items = {}
    for kind in kinds:
        for mode, command in MODES.items():
            name = f"{kind.lower()}-{mode}"
            item = workload(name, cluster.model_image, command=command, annotations=WHOAMI)
            template = item["spec"]["template"]
            if kind == "Pod":  # the annotation of a bare pod is its own
                template["metadata"]["annotations"] = WHOAMI
            if kind == "CronJob":
                template["metadata"]["annotations"] = POD_LEVEL
            items[name] = as_kind(item, kind)
            if kind == "CronJob":
                items[name]["spec"]["jobTemplate"]["metadata"] = {"annotations": JOB_LEVEL}
    cluster.apply(*items.values(), namespace=namespace)
    # By kubectl, and as dashboards do: without `controller` in the reference to the CronJob.
    words = ["-n", namespace, "create", "job", "once", "--from"]
    cluster.kubectl(*words, "cronjob/cronjob-wrap")
    made = cluster.kubectl(*words, "cronjob/cronjob-hook", "--dry-run=client", "-o", "json")
    job = json.loads(made.stdout)
    job["metadata"] |= {"name": "by-dashboard", "namespace": namespace}
    del job["metadata"]["ownerReferences"][0]["controller"]
    cluster.create(job)
    pods = wait_for_pods(cluster, namespace, list(items))
    seen = {name: (mode_of(pods[name]), call(cluster, pods[name])["user"]) for name in items}
    assert seen == {name: (name.rpartition("-")[2], 10001) for name in items}
    for mode in MODES:
        variables = pods[f"cronjob-{mode}"].spec.containers[0].env
        env = {each.name: each.value for each in variables if each.name in LEVELS}
        assert env == LEVELS


def variants(cluster: Cluster) -> dict[str, tuple[Object, Object]]:
    """Workloads by name, each with a part of the expected reply of its actor."""
    image = cluster.images
    table: dict[str, tuple[Object, Object]] = {}

    def add(
        name: str,
        expected: Object,
        change: Callable[[Object], None] = lambda _: None,
        **how: Any,
    ) -> None:
        item = workload(name, how.pop("image", image["model"]), **{"template": WHOAMI, **how})
        change(item["spec"]["template"]["spec"])
        table[name] = (item, expected)

    def runs_as(user: int | None) -> Callable[[Object], None]:
        return lambda spec: spec["containers"][0]["securityContext"].update(runAsUser=user)

    def native(spec: Object) -> None:
        sidecar = spec["containers"].pop()
        spec["initContainers"] = [{**sidecar, "restartPolicy": "Always"}]

    def init(spec: Object) -> None:
        spec["initContainers"] = [container("first", image["model"], ["python3", "-c", "pass"])]

    def mount_parent(spec: Object) -> None:
        spec["volumes"] = [{"name": "tmp", "emptyDir": {}}]
        spec["containers"][0]["volumeMounts"] = [{"name": "tmp", "mountPath": "/tmp"}]

    def mount_init(spec: Object) -> None:
        scripts = {"name": "scripts", "defaultMode": 0o555}
        spec["volumes"] = [{"name": "scripts", "configMap": scripts}]
        mount = {"name": "scripts", "mountPath": "/init", "subPath": "init"}
        spec["containers"][0]["volumeMounts"] = [mount]

    def env(spec: Object) -> None:
        value = "$(ASYA_SOCKET_PATH)"  # the injected variable comes first
        spec["containers"][0]["env"] = [{"name": "SEEN", "value": value}]

    wrapped, hooked = {"is_process_1": False}, {"is_process_1": False}
    for version in ("3.9", "3.11", *os.environ.get("MORE_PYTHONS", "").split()):
        add(
            f"wrap-{version.replace('.', '-')}",
            wrapped | {"python": version},
            image=image[f"model-{version}"],
            command=APP,
        )
        add(
            f"hook-{version.replace('.', '-')}",
            hooked | {"python": version},
            image=image[f"model-{version}"],
        )
    add("hook-exec-form", hooked)
    add("hook-shell-form", hooked, image=image["shell"])
    add("hook-script", hooked, image=image["script"])
    add("wrap-tini", wrapped, image=image["init"], command=["tini", "--", *APP])
    add("wrap-dumb-init", wrapped, image=image["init"], command=["dumb-init", *APP])
    # Process 1 is the runtime too: it reaps orphans, and serves in its child.
    served = {"is_process_1": False, "is_child_of_process_1": True}
    add("runtime", served, template=WHOAMI | {"asya.sh/mode": "runtime"})
    script = "python3 /opt/asya/asya_runtime.py & exec python3 -m app"
    add(
        "mount",
        {"is_process_1": False},
        template=WHOAMI | {"asya.sh/mode": "mount"},
        command=["sh", "-c", script],
    )
    add(
        "one-file",
        wrapped,
        command=APP,
        template=WHOAMI | {"asya.sh/mount-path": "/app/asya_runtime.py"},
    )
    add(
        "venv",
        {"name": "venv", "prefix": "/opt/venv"},
        image=image["init"],
        command=["/opt/venv/bin/python3", "-m", "app"],
        template={HANDLER: "only_venv.where"},
    )
    add(
        "conda",
        {"name": "conda", "prefix": "/opt/conda"},
        image=image["init"],
        command=APP,
        template={HANDLER: "only_conda.where", "asya.sh/python": "/opt/conda/bin/python3"},
    )
    add("unknown-user", {"user": 1234567890}, runs_as(1234567890), command=APP)
    add("hook-unknown-user", {"user": 1234567890}, runs_as(1234567890))
    add(
        "native-sidecar",
        wrapped,
        native,
        command=APP,
        template=WHOAMI | {"asya.sh/sidecars": SIDECAR},
    )
    add(
        "shared-processes",
        wrapped,
        lambda spec: spec.update(shareProcessNamespace=True),
        command=APP,
    )
    add("init-container", wrapped, init, command=APP)
    add("mount-above", wrapped, mount_parent, command=APP)
    add("env-refers", wrapped, env, command=APP)
    add("must-be-process-1", hooked, mount_init, command=["/init"])
    return table  # fmt: skip


def assert_replies(
    cluster: Cluster, namespace: str, table: dict[str, tuple[Object, Object]]
) -> dict[str, Pod]:
    """Assert what the actors of a table of variants answer. Returns their pods."""
    pods = wait_for_pods(cluster, namespace, list(table))
    seen = {}
    for name, (_, expected) in table.items():
        reply = call(cluster, pods[name])
        seen[name] = {key: reply.get(key) for key in expected}
    assert seen == {name: expected for name, (_, expected) in table.items()}
    return pods


@pytest.mark.timeout(500)
def test_an_actor_starts_in_every_form_of_image_and_pod(cluster: Cluster, namespace: str) -> None:
    table = variants(cluster)
    scripts = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "scripts"}}
    scripts["data"] = {"init": INIT}
    cluster.apply(scripts, *(item for item, _ in table.values()), namespace=namespace)
    pods = assert_replies(cluster, namespace, table)
    words = ["-n", namespace, pods["env-refers"].metadata.name, "-c", "model"]
    program = "print(open('/proc/1/environ').read(), end='')"
    environment = cluster.exec_python(*words, program=program).stdout.split("\0")
    assert "SEEN=/tmp/sockets/app.sock" in environment
    # The image's own program serves too.
    own = ("hook-exec-form", "hook-shell-form", "hook-script", "wrap-tini", "must-be-process-1")
    for name in own:
        words = ["-n", namespace, pods[name].metadata.name, "-c", "model"]
        cluster.exec_python(*words, program=SERVED)


@pytest.mark.timeout(300)
def test_a_container_that_cannot_start_shows_the_reason_and_is_not_ready(
    cluster: Cluster, namespace: str
) -> None:
    missing = {HANDLER: "handlers.predict"}
    no_python = cluster.images["no-python"]
    cluster.apply(
        workload("wrong-handler", cluster.model_image, template=missing),
        workload("hook-without-python", no_python, template=WHOAMI),
        workload("wrap-without-python", no_python, template=WHOAMI, command=["sleep", "1000"]),
        namespace=namespace,
    )
    wanted = {
        "wrong-handler": "predict",
        "hook-without-python": "python3",
        "wrap-without-python": "python3",
    }

    def is_shown(name: str, word: str) -> bool:
        events = cluster.core.list_namespaced_event(namespace).items
        texts = [
            event.message or ""
            for event in events
            if event.type == "Warning" and event.involved_object.name.startswith(name)
        ]
        texts += [
            status.state.waiting.message or ""
            for pod in cluster.pods(namespace, name)
            for status in pod.status.container_statuses or []
            if status.state.waiting
        ]
        return any(word in text for text in texts)

    for name, word in wanted.items():
        shown = functools.partial(is_shown, name, word)
        until(f"the reason in an event or status of {name}", shown)
        assert not any(is_ready(pod) for pod in cluster.pods(namespace, name))


HOOK = {HANDLER: "handlers.echo", "asya.sh/mode": "hook"}
GET = {"httpGet": {"port": 8080}}


def set_target(**fields: Any) -> Callable[[Object], None]:
    return lambda pod: pod["spec"]["containers"][0].update(fields)


def set_spec(**fields: Any) -> Callable[[Object], None]:
    return lambda pod: pod["spec"].update(fields)


def annotate(name: str, value: str) -> Callable[[Object], None]:
    return lambda pod: pod["metadata"]["annotations"].update({f"asya.sh/{name}": value})


def mount_at(path: str) -> Callable[[Object], None]:
    return set_target(volumeMounts=[{"name": "own", "mountPath": path}])


REJECTED = {
    "shared-processes": (set_spec(shareProcessNamespace=True), "HookUnsupported"),
    "post-start-get": (set_target(lifecycle={"postStart": GET}), "HookConflict"),
    "pre-stop-get": (set_target(lifecycle={"preStop": GET}), "HookConflict"),
    "runtime-with-command": (annotate("mode", "runtime"), "CommandConflict"),
    "init-as-target": (annotate("container", "first"), "ContainerNotFound"),
    "env-differs": (set_target(env=[{"name": "ASYA_HANDLER", "value": "a.b"}]), "EnvConflict"),
    "mount-at-injected-path": (mount_at("/opt/asya"), "MountConflict"),
    "mount-below-injected-path": (mount_at("/tmp/sockets/deep"), "MountConflict"),
    "volume-with-injected-name": (set_spec(volumes=[{"name": "asya-runtime", "emptyDir": {}}]),
                           "VolumeConflict"),
    "windows": (set_spec(nodeSelector={"kubernetes.io/os": "windows"}), "WindowsUnsupported"),
}  # fmt: skip


def test_an_invalid_combination_is_rejected_with_its_reason(
    cluster: Cluster, namespace: str
) -> None:
    seen = {}
    for name, (change, _) in REJECTED.items():
        pod = bare_pod(name, cluster.model_image, dict(HOOK))
        pod["spec"]["initContainers"] = [container("first", cluster.model_image, ["true"])]
        pod["spec"]["volumes"] = [{"name": "own", "emptyDir": {}}]
        change(pod)
        done = cluster.create(pod, "-n", namespace, "--dry-run=server", check=False)
        seen[name] = done.stderr.rstrip().rpartition(" ")[2]
    assert seen == {name: f"({reason})" for name, (_, reason) in REJECTED.items()}


@pytest.mark.timeout(300)
def test_a_job_completes_when_its_program_ends(cluster: Cluster, namespace: str) -> None:
    item = workload("once", cluster.model_image, command=["python3", "-c", "pass"], template=WHOAMI)
    item["spec"]["template"]["spec"]["containers"].pop()  # a sidecar that never ends
    cluster.apply(as_kind(item, "Job"), namespace=namespace)
    words = ["-n", namespace, "wait", "job/once", "--for=condition=Complete", "--timeout=280s"]
    cluster.kubectl(*words)
