"""The main path: an annotation turns an unmodified image into an actor."""

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
def test_an_annotation_on_the_deployment_or_its_template_injects_the_pod(
    cluster: Cluster, namespace: str, place: str
) -> None:
    model = workload("model", cluster.model_image, command=APP, **{place: ECHO})  # type: ignore[arg-type]
    cluster.apply(model, namespace=namespace)
    pod = cluster.ready_pod(namespace, "model")
    messages = [{"payload": {"text": text}} for text in ("one", "zwei", "三")]
    assert cluster.call(pod, *messages) == [answer(each["payload"]) for each in messages]
    record = json.loads(pod.metadata.annotations["asya.sh/injected"])
    assert record["mode"] == "wrap"
    assert pod.metadata.labels["asya.sh/runtime-hash"] == record["runtime"]


def test_a_container_without_a_command_gets_the_runtime_by_hooks(
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

    def both_logged() -> bool:  # readiness depends on the actor only
        log = cluster.core.read_namespaced_pod_log(name, namespace, container="model")
        return "app: serving" in log and "asya_runtime: serving" in log

    until("both to log that they serve", both_logged)


def test_an_annotation_that_is_removed_from_the_deployment_is_removed_from_its_pods(
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

    until("one pod without the injected volumes", plain)


def test_applying_the_same_deployment_again_starts_no_rollout(
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
def test_a_pod_without_annotation_is_unchanged_and_not_reviewed(
    cluster: Cluster, namespace: str
) -> None:
    # The same pod in a namespace without injection shows what the API server itself adds.
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
    cluster.create(
        {**plain, "metadata": {"name": "annotated", "annotations": ECHO}}, "-n", namespace
    )
    assert cluster.reviews("pods.asya.sh") > calls
    cluster.kubectl("delete", "namespace", other, "--wait=false")


@pytest.mark.alone  # reviews are counted
def test_a_pod_in_a_namespace_with_injection_disabled_is_not_reviewed(
    cluster: Cluster, namespace: str
) -> None:
    cluster.kubectl("label", "namespace", namespace, "asya.sh/injection=disabled")
    calls = cluster.reviews("pods.asya.sh")
    item = bare_pod("model", cluster.model_image, ECHO)
    until("the label to take effect", lambda: "asya.sh/injected" not in cluster.create(
        item, "-n", namespace, "--dry-run=server", "-o", "yaml").stdout)  # fmt: skip
    seen = cluster.reviews("pods.asya.sh")
    cluster.create(item, "-n", namespace)
    assert cluster.reviews("pods.asya.sh") == seen
    assert seen >= calls


def test_the_first_pod_creates_the_configmap_and_the_second_shares_it(
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


def test_a_deleted_configmap_and_that_of_a_recreated_namespace_are_created_again(
    cluster: Cluster, namespace: str
) -> None:
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


def test_a_configmap_with_the_same_name_and_other_content_is_not_mounted(
    cluster: Cluster, namespace: str
) -> None:
    item = bare_pod("model", cluster.model_image, ECHO)
    shown = cluster.create(item, "-n", namespace, "--dry-run=server", "-o", "json").stdout
    name = f"asya-runtime-{json.loads(shown)['metadata']['labels']['asya.sh/runtime-hash']}"
    label = {"app.kubernetes.io/managed-by": "asya-injector"}
    forged = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": label}}
    data = {"asya_runtime.py": "import evil"}
    cluster.create({**forged, "immutable": True, "data": data}, "-n", namespace)
    rejected = cluster.create(item, "-n", namespace, check=False)
    assert (
        f"ConfigMap {namespace}/{name}: exists with different content, which pods would run; "
        f"delete it: kubectl delete configmap -n {namespace} {name} (RuntimeConfigMapConflict)"
    ) in rejected.stderr


def test_exhausted_gpu_memory_is_a_recoverable_reply_and_the_actor_still_serves(
    cluster: Cluster, namespace: str
) -> None:
    call = {"asya.sh/handler": "handlers.call"}
    cluster.apply(
        workload("model", cluster.model_image, command=APP, template=call), namespace=namespace
    )
    pod = cluster.ready_pod(namespace, "model")
    mib = 1024 * 1024

    def message(call: str, **more: int) -> Object:
        return {"payload": {"call": call, **more}}

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
def test_a_deleted_pod_answers_its_message_after_the_users_hooks(
    cluster: Cluster, namespace: str
) -> None:
    item = workload("model", cluster.model_image, template={"asya.sh/handler": "handlers.slow"})
    spec = item["spec"]["template"]["spec"]
    spec["terminationGracePeriodSeconds"] = 30

    def log_word(word: str) -> Object:
        script = f"import os; os.write(os.open('/proc/1/fd/1', os.O_WRONLY), b'{word}\\n')"
        return {"exec": {"command": ["python3", "-c", script]}}

    spec["containers"][0]["lifecycle"] = {"postStart": log_word("up"), "preStop": log_word("down")}
    # The sidecar must not end before the reply.
    sleep = "import signal, time; signal.signal(15, lambda *_: time.sleep(20)); signal.pause()"
    spec["containers"][1]["command"] = ["python3", "-c", sleep]
    cluster.apply(item, namespace=namespace)
    name = cluster.ready_pod(namespace, "model").metadata.name
    kubectl = ["kubectl", "-n", namespace]
    # With two in flight, a reply is printed when the next message has been sent.
    client = [*kubectl, "exec", "-i", name, "-c", SIDECAR, "--", "python3", "-uc", CLIENT, "2"]
    with (
        subprocess.Popen(
            [*kubectl, "logs", "-f", name, "-c", "model"], stdout=-1, text=True
        ) as log,
        subprocess.Popen(client, stdin=-1, stdout=-1, text=True) as caller,
    ):
        assert log.stdout is not None
        assert caller.stdin is not None
        assert caller.stdout is not None
        lines = []
        for line in log.stdout:  # it is followed from here on
            lines.append(line.rstrip())
            if lines[-1] == "up":
                break
        caller.stdin.write('{"payload": {"seconds": 0}}\n{"payload": {"seconds": 4}}\n')
        caller.stdin.flush()  # not closed: the program ends after its output is read
        # The first reply shows that the next message is there.
        assert json.loads(caller.stdout.readline())["status"] == "ok"
        cluster.kubectl("-n", namespace, "delete", "pod", name, "--wait=false")
        reply = json.loads(caller.stdout.readline())
        assert reply == {"status": "ok", "result": {"seconds": 4}}
        caller.stdin.close()
        assert caller.stdout.read() == ""
        lines += log.stdout.read().splitlines()
    assert [line for line in lines if line in {"up", "down"}] == ["up", "down"]
