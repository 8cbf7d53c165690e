"""The main path: an annotation makes an actor of an unmodified image."""

import json
import subprocess

import pytest

from e2e.harness import CLIENT, SIDECAR, Cluster, Object, bare_pod, until, workload

ECHO = {"asya.sh/handler": "handlers.echo"}
APP = ["python3", "-m", "app"]
MANAGED = "app.kubernetes.io/managed-by=asya-injector"


def answer(payload: Object) -> Object:
    return {"status": "ok", "result": payload}


@pytest.mark.parametrize("place", ["annotations", "template"])
def test_an_annotation_on_the_deployment_or_its_template_makes_an_actor(
    cluster: Cluster, namespace: str, place: str
) -> None:
    model = workload("model", cluster.model_image, command=APP, **{place: ECHO})  # type: ignore[arg-type]
    cluster.apply(model, namespace=namespace)
    pod = cluster.ready_pod(namespace, "model")
    messages = [{"payload": {"text": text}} for text in ("one", "zwei", "三")]
    assert cluster.call(pod, *messages) == [answer(each["payload"]) for each in messages]
    note = json.loads(pod.metadata.annotations["asya.sh/injected"])
    assert note["mode"] == "wrap"
    assert pod.metadata.labels["asya.sh/runtime-hash"] == note["runtime"]


def test_an_image_whose_entrypoint_is_unknown_becomes_an_actor_by_hooks(
    cluster: Cluster, namespace: str
) -> None:
    cluster.apply(workload("model", cluster.model_image, template=ECHO), namespace=namespace)
    pod = cluster.ready_pod(namespace, "model")
    assert cluster.call(pod, {"payload": {}}) == [answer({})]
    assert json.loads(pod.metadata.annotations["asya.sh/injected"])["mode"] == "hook"
    assert pod.spec.containers[0].command is None


def test_the_application_runs_beside_the_actor_and_both_log_to_the_container(
    cluster: Cluster, namespace: str
) -> None:
    cluster.apply(
        workload("model", cluster.model_image, command=APP, template=ECHO), namespace=namespace
    )
    pod = cluster.ready_pod(namespace, "model")
    name = pod.metadata.name

    def both_logged() -> bool:  # the pod is ready by its actor, whenever the application is
        log = cluster.core.read_namespaced_pod_log(name, namespace, container="model")
        return "app: serving" in log and "asya_runtime: serving" in log

    until("both to say in the log that they serve", both_logged)


def test_an_annotation_taken_away_from_the_deployment_is_taken_away_from_its_pods(
    cluster: Cluster, namespace: str
) -> None:
    cluster.apply(
        workload("model", cluster.model_image, command=APP, annotations=ECHO), namespace=namespace
    )
    cluster.ready_pod(namespace, "model")
    cluster.kubectl("-n", namespace, "annotate", "deployment/model", "asya.sh/handler-")
    template = cluster.get("-n", namespace, "deployment/model")["spec"]["template"]
    assert "asya.sh/inherited" not in template["metadata"].get("annotations", {})

    def plain() -> bool:
        pods = cluster.pods(namespace, "model")
        return len(pods) == 1 and len(pods[0].spec.volumes) == 1  # the service account's token

    until("one pod without our volumes", plain, seconds=90)


def test_applying_the_same_deployment_again_rolls_nothing_out(
    cluster: Cluster, namespace: str
) -> None:
    model = workload("model", cluster.model_image, command=APP, annotations=ECHO)
    cluster.apply(model, namespace=namespace)
    before = cluster.get("-n", namespace, "deployment/model")["metadata"]["generation"]
    assert "unchanged" in cluster.apply(model, namespace=namespace).stdout
    assert cluster.get("-n", namespace, "deployment/model")["metadata"]["generation"] == before
    diff = cluster.kubectl("-n", namespace, "diff", "-f", "-", stdin=json.dumps(model), check=False)
    assert (diff.returncode, diff.stdout) == (0, "")


@pytest.mark.alone  # reviews are counted
def test_a_pod_without_annotation_is_as_sent_and_costs_no_call(
    cluster: Cluster, namespace: str
) -> None:
    # The same pod in a namespace that is never looked at shows what the API server itself adds.
    other = f"{namespace}-off"
    cluster.make_namespace(other)
    cluster.kubectl("label", "namespace", other, "asya.sh/injection=disabled")
    plain = bare_pod("plain", cluster.model_image, {"example.com/handler": "handlers.echo"})
    calls = cluster.reviews("pods.asya.sh")

    def created(where: str) -> Object:
        item: Object = json.loads(cluster.create(plain, "-n", where, "-o", "json").stdout)
        metadata = item["metadata"]
        token = next(v["name"] for v in item["spec"]["volumes"] if v["name"].startswith("kube-api"))
        kept = {key: metadata.get(key) for key in ("name", "labels", "annotations")}
        return {
            "metadata": kept,
            "spec": json.loads(json.dumps(item["spec"]).replace(token, "token")),
        }

    assert created(namespace) == created(other)
    assert cluster.reviews("pods.asya.sh") == calls
    cluster.create({**plain, "metadata": {"name": "asks", "annotations": ECHO}}, "-n", namespace)
    assert cluster.reviews("pods.asya.sh") > calls
    cluster.kubectl("delete", "namespace", other, "--wait=false")


@pytest.mark.alone  # reviews are counted
def test_a_namespace_with_injection_disabled_is_never_touched(
    cluster: Cluster, namespace: str
) -> None:
    cluster.kubectl("label", "namespace", namespace, "asya.sh/injection=disabled")
    calls = cluster.reviews("pods.asya.sh")
    item = bare_pod("model", cluster.model_image, ECHO)
    until("the label to be seen", lambda: "asya.sh/injected" not in cluster.create(
        item, "-n", namespace, "--dry-run=server", "-o", "yaml").stdout)  # fmt: skip
    seen = cluster.reviews("pods.asya.sh")
    cluster.create(item, "-n", namespace)
    assert cluster.reviews("pods.asya.sh") == seen
    assert seen >= calls


def test_the_configmap_comes_with_the_first_pod_and_serves_the_second(
    cluster: Cluster, namespace: str
) -> None:
    item = bare_pod("first", cluster.model_image, ECHO)
    cluster.create(item, "-n", namespace, "--dry-run=server")
    assert cluster.copies(namespace) == []
    cluster.create(item, "-n", namespace)
    (first,) = cluster.copies(namespace)
    assert first["immutable"] is True
    assert sorted(first["data"]) == ["asya_entrypoint.py", "asya_runtime.py"]
    cluster.create(bare_pod("second", cluster.model_image, ECHO), "-n", namespace)
    assert cluster.copies(namespace) == [first]
    for name in ("first", "second"):
        cluster.ready_pod(namespace, name)


def test_a_namespace_made_anew_gets_its_configmap_anew(cluster: Cluster, namespace: str) -> None:
    item = bare_pod("model", cluster.model_image, ECHO)
    cluster.create(item, "-n", namespace)
    cluster.ready_pod(namespace, "model")
    cluster.kubectl("delete", "configmaps", "-n", namespace, "-l", MANAGED, "--wait")
    cluster.kubectl("delete", "pod", "model", "-n", namespace, "--wait", "--grace-period=1")
    cluster.create(item, "-n", namespace)
    cluster.ready_pod(namespace, "model")
    cluster.kubectl("delete", "namespace", namespace, "--wait")
    cluster.make_namespace(namespace)
    cluster.create(item, "-n", namespace)
    cluster.ready_pod(namespace, "model")


def test_a_configmap_of_that_name_with_other_content_is_never_mounted(
    cluster: Cluster, namespace: str
) -> None:
    item = bare_pod("model", cluster.model_image, ECHO)
    shown = cluster.create(item, "-n", namespace, "--dry-run=server", "-o", "json").stdout
    name = f"asya-runtime-{json.loads(shown)['metadata']['labels']['asya.sh/runtime-hash']}"
    label = {"app.kubernetes.io/managed-by": "asya-injector"}
    forged = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": label}}
    cluster.create({**forged, "data": {"asya_runtime.py": "import evil"}}, "-n", namespace)
    refused = cluster.create(item, "-n", namespace, check=False)
    assert (
        f"ConfigMap {namespace}/{name}: exists with different content, which pods would run; "
        f"delete it: kubectl delete configmap -n {namespace} {name} (RuntimeConfigMapConflict)"
    ) in refused.stderr


def test_gpu_memory_that_runs_out_is_a_recoverable_reply_and_service_goes_on(
    cluster: Cluster, namespace: str
) -> None:
    call = {"asya.sh/handler": "handlers.call"}
    cluster.apply(
        workload("model", cluster.model_image, command=APP, template=call), namespace=namespace
    )
    pod = cluster.ready_pod(namespace, "model")
    mib = 1024 * 1024

    def message(what: str, **more: int) -> Object:
        return {"payload": {"call": what, **more}}

    replies = cluster.call(
        pod,
        message("allocate", bytes=64 * mib),
        message("allocate", bytes=1 << 50, pieces=2),
        message("stats"),
        message("allocate", bytes=64 * mib),
    )
    first, exhausted, stats, again = replies
    assert first["status"] == "ok"
    assert exhausted.pop("message").startswith("CUDA out of memory. Tried to allocate ")
    assert exhausted == {
        "status": "error",
        "error": "cuda_oom_error",
        "type": "OutOfMemoryError",
        "severity": "recoverable",
        "retry_after": 60,
    }
    assert stats["result"]["memory"]["allocated_bytes.all.current"] == 0
    assert stats["result"]["memory"]["reserved_bytes.all.current"] == 0
    assert again["status"] == "ok"


@pytest.mark.timeout(200)
def test_a_pod_that_is_deleted_answers_its_message_after_the_users_own_hooks(
    cluster: Cluster, namespace: str
) -> None:
    item = workload("model", cluster.model_image, template={"asya.sh/handler": "handlers.slow"})
    spec = item["spec"]["template"]["spec"]
    spec["terminationGracePeriodSeconds"] = 30

    def say(word: str) -> Object:
        script = f"import os; os.write(os.open('/proc/1/fd/1', os.O_WRONLY), b'{word}\\n')"
        return {"exec": {"command": ["python3", "-c", script]}}

    spec["containers"][0]["lifecycle"] = {"postStart": say("up"), "preStop": say("down")}
    # The sidecar's own end must not come before the reply.
    sleep = "import signal, time; signal.signal(15, lambda *_: time.sleep(20)); signal.pause()"
    spec["containers"][1]["command"] = ["python3", "-c", sleep]
    cluster.apply(item, namespace=namespace)
    name = cluster.ready_pod(namespace, "model").metadata.name
    ours = ["kubectl", "-n", namespace]
    client = [*ours, "exec", "-i", name, "-c", SIDECAR, "--", "python3", "-uc", CLIENT]
    with (
        subprocess.Popen([*ours, "logs", "-f", name, "-c", "model"], stdout=-1, text=True) as log,
        subprocess.Popen(client, stdin=-1, stdout=-1, text=True) as caller,
    ):
        assert log.stdout is not None
        assert caller.stdin is not None
        assert caller.stdout is not None
        caller.stdin.write('{"payload": {"seconds": 0}}\n{"payload": {"seconds": 4}}\n')
        caller.stdin.flush()  # not closed: the program is to end after its output was read
        assert (
            json.loads(caller.stdout.readline())["status"] == "ok"
        )  # so the next one is on its way
        cluster.kubectl("-n", namespace, "delete", "pod", name, "--wait=false")
        reply = json.loads(caller.stdout.readline())
        assert reply == {"status": "ok", "result": {"seconds": 4}}
        caller.stdin.close()
        assert caller.stdout.read() == ""
        lines = log.stdout.read().splitlines()
    assert [line for line in lines if line in {"up", "down"}] == ["up", "down"]
