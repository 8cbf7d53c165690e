"""The sidecar of the chart's values, in pods of all kinds, under PodSecurity and a quota."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.conftest import own_release
from e2e.harness import SIDECAR, Cluster, Object, Pod, bare_pod, container, is_ready, until
from e2e.test_command_line import run_check

ECHO = {"asya.sh/handler": "handlers.echo"}
APP = ["python3", "-m", "app"]
REQUESTS = {"requests": {"cpu": "10m", "memory": "24Mi"}}
# Sends one message as soon as there is a socket, and prints the reply. SIGUSR1 is what preStop
# sends.
PROGRAM = r"""
import json, os, signal, socket, struct, sys, time
def end(*_):
    print("ended", flush=True)
    sys.exit()
def stop(*_):
    print("stopped", flush=True)
    open(os.environ["ASYA_SOCKET_PATH"] + ".stopped", "w").close()
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGUSR1, stop)
payload = {name: os.environ.get(name) for name in ("QUEUE", "LITERAL", "TEMPLATE")}
body = json.dumps({"payload": payload}).encode()
while True:
    try:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(os.environ["ASYA_SOCKET_PATH"])
        connection.sendall(struct.pack(">I", len(body)) + body)
        stream = connection.makefile("rb")
        prefix = stream.read(4)
        print(stream.read(int.from_bytes(prefix, "big")).decode(), flush=True)
        open(os.environ["ASYA_SOCKET_PATH"] + ".answered", "w").close()
        break
    except OSError:
        time.sleep(0.2)
while True:
    signal.pause()
"""
STOP = ["python3", "-c", "import os; os.kill(1, 10)"]
# Ends when the sidecar has its reply.
TASK = ["python3", "-c", """
import os, time
while not os.path.exists(os.environ["ASYA_SOCKET_PATH"] + ".answered"):
    time.sleep(0.1)
"""]  # fmt: skip

# After SIGTERM, it waits until the sidecar has received SIGUSR1, and ends three seconds later.
ENDS_SLOWLY = """
import os, signal, time
def end(*_):
    while not os.path.exists(os.environ["ASYA_SOCKET_PATH"] + ".stopped"):
        time.sleep(0.1)
    time.sleep(3)
    raise SystemExit
signal.signal(signal.SIGTERM, end)
while True:
    signal.pause()
"""


def values(image: str, version: str = "1") -> Object:
    sidecar = container(SIDECAR, image, ["python3", "-c", PROGRAM])
    sidecar["securityContext"]["runAsUser"] = 20002
    return {
        "container": {
            **sidecar,
            "env": [{"name": "TEMPLATE", "value": f"{version} of $(QUEUE)"}],
            "resources": REQUESTS,
            "lifecycle": {"preStop": {"exec": {"command": STOP}}},
            "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
        },
        "annotations": {"asya.sh/queue": {"env": "QUEUE", "required": True}},
        "volumes": [{"name": "scratch", "emptyDir": {}}],
        "imagePullSecrets": [{"name": "missing-is-allowed"}],
    }


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("values") / "values.yaml"


@pytest.fixture(scope="module")
def sidecar_release(cluster: Cluster, file: Path) -> Iterator[Cluster]:
    """The cluster with a release that has a sidecar. The last test changes it."""
    with own_release(cluster):
        install(cluster, file, values(cluster.model_image))
        yield cluster


def install(cluster: Cluster, file: Path, sidecar: Object, verb: str = "install") -> None:
    file.write_text(json.dumps({"sidecar": sidecar}))
    cluster.install(verb=verb, options=("--values", str(file)))
    cluster.settle()


def model(image: str, command: list[str] | None = None, **more: Any) -> Object:
    item = container("model", image, command or APP) | {"resources": REQUESTS}
    return {"containers": [item], "terminationGracePeriodSeconds": 20, **more}


def workload_of(kind: str, image: str, **annotations: str) -> Object:
    """A workload of one container, which has its annotations on top."""
    name = kind.lower()
    labels = {"app": name}
    ends = kind in ("Job", "CronJob")
    spec = model(image, TASK, restartPolicy="Never") if ends else model(image)
    template = {"metadata": {"labels": labels}, "spec": spec}
    specs: dict[str, Object] = {
        "Job": {"template": template, "backoffLimit": 0},
        "CronJob": {
            "schedule": "0 0 1 1 *",
            "jobTemplate": {"spec": {"template": template, "backoffLimit": 0}},
        },
    }
    lasting = {"selector": {"matchLabels": labels}, "template": template, "replicas": 1}
    metadata = {
        "name": name,
        "annotations": ECHO | {f"asya.sh/{key}": text for key, text in annotations.items()},
    }
    return {
        "apiVersion": "batch/v1" if ends else "apps/v1",
        "kind": kind,
        "metadata": metadata,
        "spec": specs.get(kind, lasting | ({"serviceName": name} if kind == "StatefulSet" else {})),
    }


def reply_of(cluster: Cluster, pod: Pod) -> Object:
    """What the sidecar of a pod got."""
    words = ("-n", pod.metadata.namespace, "logs", pod.metadata.name, "-c", SIDECAR)

    def first_line() -> str:
        done = cluster.kubectl(*words, check=False)
        return done.stdout.partition("\n")[0] if "\n" in done.stdout else ""

    line = until(f"a reply to the sidecar of {pod.metadata.name}", first_line)
    reply: Object = json.loads(line)
    return reply


def answered(queue: str, literal: str | None = None, version: str = "1") -> Object:
    payload = {"QUEUE": queue, "LITERAL": literal, "TEMPLATE": f"{version} of {queue}"}
    return {"status": "ok", "result": payload}


@pytest.mark.alone
@pytest.mark.timeout(600)
def test_pods_of_all_kinds_get_the_sidecar_and_those_that_end_still_end(
    sidecar_release: Cluster, namespace: str
) -> None:
    cluster, image = sidecar_release, sidecar_release.model_image
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "all"},
        "spec": {"hard": {"requests.cpu": "2", "requests.memory": "2Gi"}},
    }
    lasting, ending = ("Deployment", "StatefulSet"), ("Job", "CronJob")
    items = [workload_of(kind, image, queue=kind.lower()) for kind in (*lasting, *ending)]
    items[0]["metadata"]["annotations"]["asya.sh/sidecar-env"] = 'LITERAL="$(QUEUE), $$"'
    never = bare_pod("never", image, ECHO | {"asya.sh/queue": "never"}, command=TASK)
    never["spec"] |= {"restartPolicy": "Never"}
    never["spec"]["containers"][0]["resources"] = REQUESTS
    cluster.apply(quota, namespace=namespace)
    # The API server rejects pods until it knows what the quota counts.
    dry = ("-n", namespace, "--dry-run=server")
    until("the quota", lambda: not cluster.create(never, *dry, check=False).returncode)
    cluster.apply(*items, never, namespace=namespace)
    cluster.kubectl("-n", namespace, "create", "job", "by-hand", "--from=cronjob/cronjob")

    def find_pods(app: str) -> list[Pod]:
        return cluster.pods(namespace, app)

    replies = {}
    for app in ("deployment", "statefulset", "job", "cronjob", "never"):
        pods = until(f"the pod of {app}", lambda app=app: find_pods(app))  # type: ignore[misc]
        replies[app] = reply_of(cluster, pods[0])
    assert replies == {
        "deployment": answered("deployment", "$(QUEUE), $$"),
        **{app: answered(app) for app in ("statefulset", "job", "cronjob", "never")},
    }

    def phases() -> bool:
        found = [find_pods(app)[0].status.phase for app in ("job", "cronjob", "never")]
        return found == ["Succeeded"] * 3

    until("the pods that end to have succeeded", phases)
    for job in ("job", "by-hand"):
        words = ("wait", "--for=condition=complete", f"job/{job}", "--timeout=240s")
        cluster.kubectl("-n", namespace, *words)
    pod = cluster.ready_pod(namespace, "deployment")
    (native,) = pod.spec.init_containers
    assert (native.name, native.restart_policy) == (SIDECAR, "Always")
    assert [each.name for each in pod.spec.image_pull_secrets] == ["missing-is-allowed"]


@pytest.mark.alone
@pytest.mark.timeout(600)
def test_pods_that_need_none_are_as_before_and_wrong_ones_are_rejected(
    sidecar_release: Cluster, namespace: str
) -> None:
    cluster, image = sidecar_release, sidecar_release.model_image
    own = container(SIDECAR, image, ["python3", "-c", PROGRAM])
    other = own | {"name": "other"}
    off = bare_pod("off", image, ECHO | {"asya.sh/sidecar": "false"})
    with_own = bare_pod("own", image, dict(ECHO))
    with_own["spec"]["containers"].append(own)
    with_other = bare_pod("other", image, ECHO | {"asya.sh/sidecars": "other"})
    with_other["spec"]["containers"].append(other)
    cluster.apply(off, with_own, with_other, namespace=namespace)
    expected = {"off": ["model"], "own": ["model", SIDECAR], "other": ["model", "other"]}
    for name, containers in expected.items():
        pod = cluster.ready_pod(namespace, name)
        assert not pod.spec.init_containers, name
        assert [each.name for each in pod.spec.containers] == containers
    assert reply_of(cluster, cluster.ready_pod(namespace, "own")) == {
        "status": "ok",
        "result": {"QUEUE": None, "LITERAL": None, "TEMPLATE": None},
    }

    init = bare_pod("init", image, ECHO | {"asya.sh/queue": "q"})
    init["spec"]["initContainers"] = [container(SIDECAR, image, ["true"])]
    volume = bare_pod("volume", image, ECHO | {"asya.sh/queue": "q"})
    volume["spec"]["volumes"] = [{"name": "scratch", "configMap": {"name": "x"}}]
    for item, reason in (
        (bare_pod("queue", image, dict(ECHO)), "AnnotationMissing"),
        (bare_pod("typo", image, ECHO | {"asya.sh/quueue": "q"}), "AnnotationUnknown"),
        (init, "SidecarNameConflict"),
        (volume, "SidecarVolumeConflict"),
        (workload_of("Deployment", image), "AnnotationMissing"),
    ):
        done = cluster.create(item, "-n", namespace, check=False)
        assert f"({reason})" in done.stderr


@pytest.mark.alone
@pytest.mark.timeout(600)
def test_the_sidecar_stops_first_and_ends_last(sidecar_release: Cluster, namespace: str) -> None:
    cluster, image = sidecar_release, sidecar_release.model_image
    command = ["python3", "-c", ENDS_SLOWLY]
    pod = bare_pod("slow", image, ECHO | {"asya.sh/queue": "q"}, command=command)
    pod["spec"]["terminationGracePeriodSeconds"] = 60
    cluster.create(pod, "-n", namespace)
    assert reply_of(cluster, cluster.ready_pod(namespace, "slow"))["status"] == "ok"
    words = ["kubectl", "-n", namespace, "logs", "slow", "-c", SIDECAR, "-f", "--timestamps"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as logs:
        assert logs.stdout
        try:
            lines = [logs.stdout.readline()]  # the reply: the log is followed now
            delete = ("delete", "pod", "slow", "--timeout=240s")
            cluster.kubectl("-n", namespace, *delete)
            lines += logs.stdout
        finally:
            logs.kill()
    times = {text.rstrip(): time for time, text in (line.split(" ", 1) for line in lines)}
    order = [line for line in times if line in ("stopped", "ended")]
    assert order == ["stopped", "ended"]
    stopped, ended = (dt.datetime.fromisoformat(times[each]) for each in order)
    assert (ended - stopped).total_seconds() > 2


@pytest.mark.alone
@pytest.mark.timeout(600)
def test_a_changed_template_reaches_new_pods_and_check_names_the_old_ones(
    sidecar_release: Cluster, namespace: str, file: Path
) -> None:
    """The last test of the release, which it changes."""
    cluster, image = sidecar_release, sidecar_release.model_image
    cluster.apply(workload_of("Deployment", image, queue="orders"), namespace=namespace)
    pod = cluster.ready_pod(namespace, "deployment")
    assert reply_of(cluster, pod) == answered("orders")
    status, rows = run_check("-n", namespace)
    assert rows["pods"][0]["found"] == "actors with the current runtime and sidecar: 1"
    assert status == 0, rows

    install(cluster, file, values(image, "2"), "upgrade")
    assert cluster.ready_pod(namespace, "deployment").metadata.name == pod.metadata.name
    (row,) = run_check("-n", namespace)[1]["pods"]
    assert row["found"] == (
        f"{namespace}: deployment/deployment runs an older sidecar than the chart's (1 pod)"
    )
    cluster.kubectl("-n", namespace, "rollout", "restart", "deployment/deployment")
    words = ("rollout", "status", "deployment/deployment", "--timeout=280s")
    cluster.kubectl("-n", namespace, *words)
    new = until(
        "the new pod alone",
        lambda: [
            each
            for each in cluster.pods(namespace, "deployment")
            if each.metadata.name != pod.metadata.name and is_ready(each)
        ],
    )[0]
    assert reply_of(cluster, new) == answered("orders", version="2")
    assert run_check("-n", namespace)[1]["pods"][0]["state"] == "ok"
