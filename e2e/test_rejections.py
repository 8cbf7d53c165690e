"""Mistakes are rejected at `kubectl apply`, in one line, and change nothing."""

import json

from e2e.harness import SIDECAR, SYSTEM, Cluster, Object, bare_pod, until, workload

APP = ["python3", "-m", "app"]
HANDLER = "asya.sh/handler"
REJECTED: list[tuple[dict[str, str], str]] = [
    ({HANDLER: "predict"},
     'asya.sh/handler: "predict" is not valid; must be module.path.function, such as '
     "my_app.handler.predict (AnnotationInvalid)"),
    ({"asya.sh/handlr": "handlers.echo"},
     'asya.sh/handlr: unknown annotation; did you mean "asya.sh/handler"? (AnnotationUnknown)'),
    ({HANDLER: "handlers.echo", "asya.sh/container": "modle"},
     'asya.sh/container: no container "modle" in this pod; did you mean "model"? '
     "(ContainerNotFound)"),
    ({HANDLER: "handlers.echo", "asya.sh/sidecars": "sidecar"},
     'asya.sh/sidecars: no container "sidecar" beside "model" in this pod; '
     f'did you mean "{SIDECAR}"? (SidecarNotFound)'),
    ({HANDLER: "a.b\n\x1b[31mERROR forged"},
     'asya.sh/handler: "a.b\\n\\u001b[31mERROR forged" is not valid; must be '
     "module.path.function, such as my_app.handler.predict (AnnotationInvalid)"),
]  # fmt: skip


def test_kubectl_apply_of_invalid_workloads_fails_with_one_line_for_each(
    cluster: Cluster, namespace: str
) -> None:
    """The annotations may be on the workload, on its pod template, or between them."""
    wrong: list[Object] = []
    lines: list[str] = []
    for annotations, line in REJECTED:
        for place in ("annotations", "template"):
            name = f"model-{len(wrong)}"
            item = workload(name, cluster.model_image, command=APP, **{place: annotations})  # type: ignore[arg-type]
            wrong.append(item)
            lines.append(line)
        wrong.append(build_cron_job(f"model-{len(wrong)}", item["spec"]["template"], annotations))
        lines.append(line)
    done = cluster.apply(*wrong, namespace=namespace, check=False)
    assert done.returncode == 1
    denied = 'admission webhook "workloads.asya.sh" denied the request: '
    printed = done.stderr.splitlines()
    assert [text.partition(denied)[2] for text in printed if text] == lines
    assert cluster.get("-n", namespace, "deployments,cronjobs")["items"] == []


def build_cron_job(name: str, template: Object, annotations: dict[str, str]) -> Object:
    """A CronJob whose Job template has the annotations."""
    spec = {**template["spec"], "restartPolicy": "Never"}
    job = {"metadata": {"annotations": annotations}, "spec": {"template": {"spec": spec}}}
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": name},
        "spec": {"schedule": "0 0 1 1 *", "jobTemplate": job},
    }


def test_a_bare_pod_is_rejected_with_the_same_line(cluster: Cluster, namespace: str) -> None:
    done = cluster.create(
        bare_pod("model", cluster.model_image, {HANDLER: "predict"}), "-n", namespace, check=False
    )
    assert done.stderr.rstrip().endswith("(AnnotationInvalid)")
    assert cluster.get("-n", namespace, "pods")["items"] == []
    assert cluster.core.list_namespaced_config_map(namespace).items[0].metadata.name == (
        "kube-root-ca.crt"
    )


def test_an_invalid_change_does_not_affect_running_pods(cluster: Cluster, namespace: str) -> None:
    right = {HANDLER: "handlers.echo"}
    cluster.apply(
        workload("model", cluster.model_image, command=APP, template=right), namespace=namespace
    )
    before = cluster.ready_pod(namespace, "model")
    words = ["-n", namespace, "annotate", "--overwrite", "deployment/model"]
    done = cluster.kubectl(*words, "asya.sh/mode=wrapp", check=False)
    assert "must be one of auto, wrap, hook, runtime, mount" in done.stderr
    (after,) = cluster.pods(namespace, "model")
    assert after.metadata.uid == before.metadata.uid


def test_warnings_are_shown_by_kubectl(cluster: Cluster, namespace: str) -> None:
    model = workload(
        "model",
        cluster.model_image,
        command=APP,
        annotations={HANDLER: "handlers.slow"},
        template={HANDLER: "handlers.echo"},
    )
    probe = {"httpGet": {"port": 8080}}
    model["spec"]["template"]["spec"]["containers"][0]["readinessProbe"] = probe
    printed = cluster.apply(model, namespace=namespace).stderr
    assert (
        'Warning: asya.sh/handler: the pod template sets "handlers.echo", which overrides '
        '"handlers.slow"'
    ) in printed
    assert 'Warning: container "model" keeps its own readiness probe' in printed
    pod = cluster.ready_pod(namespace, "model")
    env = {each.name: each.value for each in pod.spec.containers[0].env}
    assert env["ASYA_HANDLER"] == "handlers.echo"


def test_a_missing_handler_is_shown_in_the_pods_status(cluster: Cluster, namespace: str) -> None:
    model = bare_pod("model", cluster.model_image, {HANDLER: "handlers.predict"})
    cluster.create({**model, "spec": {**model["spec"], "restartPolicy": "Never"}}, "-n", namespace)
    words = ["-n", namespace, "wait", "pod/model", "--for=jsonpath={.status.phase}=Failed"]
    cluster.kubectl(*words, "--timeout=240s")
    (status,) = cluster.get("-n", namespace, "pod/model")["status"]["containerStatuses"]
    ended = status["state"]["terminated"]
    assert ended["exitCode"] == 78
    assert "predict" in ended["message"]
    assert len(ended["message"].strip().splitlines()) == 1


def test_decisions_are_logged_as_one_json_line_each(cluster: Cluster, namespace: str) -> None:
    cluster.create(
        bare_pod("model", cluster.model_image, {HANDLER: "predict"}), "-n", namespace, check=False
    )

    def find_lines() -> list[Object]:
        logs = [
            cluster.core.read_namespaced_pod_log(name, SYSTEM).splitlines()
            for name in cluster.injectors()
        ]
        found = [json.loads(line) for lines in logs for line in lines if namespace in line]
        return [each for each in found if each.get("resource") == "pods"]

    (line,) = until("the line in a log", find_lines)
    assert line["message"] == "rejected"
    assert line["reason"] == "AnnotationInvalid"
    assert line["object"] == "model"
