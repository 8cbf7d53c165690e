"""An annotated workload stays as it was applied: no drift, and no second rollout.

Workloads here have no pods: only API server, controllers and injector are involved.
"""

import contextlib
import json
from typing import Any

import pytest

from e2e.harness import Cluster, Object, bare_pod, until, workload

APP = ["python3", "-m", "app"]
ECHO = {"asya.sh/handler": "handlers.echo"}
INHERITED = "asya.sh/inherited"


def deployment(cluster: Cluster, **annotations: Any) -> Object:
    item = workload("model", cluster.model_image, command=APP, **annotations)
    item["spec"]["replicas"] = 0
    return item


def without_pods(cluster: Cluster) -> list[Object]:
    """An annotated workload of each kind that has no pods."""
    base = deployment(cluster, annotations=ECHO)
    spec, template = base["spec"], base["spec"]["template"]
    once = {**template, "spec": {**template["spec"], "restartPolicy": "Never"}}
    nowhere = {**template, "spec": {**template["spec"], "nodeSelector": {"example.com/no": "no"}}}
    job = {"suspend": True, "template": once}
    kinds = [
        ("apps/v1", "Deployment", spec),
        ("apps/v1", "StatefulSet", {**spec, "serviceName": "model"}),
        ("apps/v1", "ReplicaSet", spec),
        ("apps/v1", "DaemonSet", {"selector": spec["selector"], "template": nowhere}),
        ("batch/v1", "Job", job),
        (
            "batch/v1",
            "CronJob",
            {"schedule": "0 0 1 1 *", "suspend": True, "jobTemplate": {"spec": job}},
        ),
    ]
    return [
        {
            "apiVersion": version,
            "kind": kind,
            "metadata": {"name": f"a-{kind.lower()}", "annotations": ECHO},
            "spec": each,
        }
        for version, kind, each in kinds
    ]


def specs(cluster: Cluster, namespace: str) -> dict[str, Object]:
    """The spec of each workload without an owner.

    (The generation of a Deployment also counts changes of annotations, including the controller's.)
    """
    listed = cluster.get("-n", namespace, "deploy,sts,rs,ds,jobs,cronjobs")["items"]
    return {
        f"{item['kind']}/{item['metadata']['name']}": item["spec"]
        for item in listed
        if not item["metadata"].get("ownerReferences")
    }


@pytest.mark.timeout(300)
def test_applying_again_changes_nothing(cluster: Cluster, namespace: str) -> None:
    items = without_pods(cluster)
    cluster.apply(*items, namespace=namespace)
    before = specs(cluster, namespace)
    assert len(before) == len(items)
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    again = cluster.kubectl("apply", "-n", namespace, "-f", "-", stdin=text).stdout.splitlines()
    assert [line.rpartition(" ")[2] for line in again] == ["unchanged"] * len(items)
    words = ["apply", "--server-side", "--field-manager=gitops", "--force-conflicts"]
    for _ in range(2):
        cluster.kubectl(*words, "-n", namespace, "-f", "-", stdin=text)
    assert specs(cluster, namespace) == before
    wait_until_observed(cluster, namespace, "deployment/a-deployment")
    assert cluster.replica_sets(namespace) == 2  # one of the Deployment, and one without an owner
    for flags in ([], ["--server-side", "--field-manager=gitops", "--force-conflicts"]):
        diff = ["diff", *flags, "-n", namespace, "-f", "-"]

        differences: list[str] = []

        def has_none() -> bool:
            done = cluster.kubectl(*diff, stdin=text, check=False)  # noqa: B023
            differences.append(done.stdout + (done.stderr if done.returncode > 1 else ""))  # noqa: B023
            return done.returncode == 0

        # Controllers write the status of what was applied, maybe between the diff's two requests.
        with contextlib.suppress(AssertionError):
            until("no difference", has_none)
        assert differences[-1] == "", flags
    propagated = {
        item["kind"]: INHERITED in annotations_of_template(item)
        for item in cluster.get("-n", namespace, "deploy,sts,rs,ds,jobs,cronjobs")["items"]
        if item["metadata"]["name"] == f"a-{item['kind'].lower()}"
    }
    assert propagated == {item["kind"]: True for item in items}


def wait_until_observed(cluster: Cluster, namespace: str, name: str) -> Object:
    """The workload, once its controller has done what it asks for."""

    def find() -> Object | None:
        item = cluster.get("-n", namespace, name)
        observed = item.get("status", {}).get("observedGeneration", 0)
        return item if observed >= item["metadata"]["generation"] else None

    return until(f"the controller of {name}", find)


def annotations_of_template(item: Object) -> Object:
    spec = item["spec"]
    if item["kind"] == "CronJob":
        spec = spec["jobTemplate"]["spec"]
    found: Object = spec["template"]["metadata"].get("annotations") or {}
    return found


def test_moving_an_annotation_starts_one_rollout(cluster: Cluster, namespace: str) -> None:
    def apply(item: Object) -> tuple[list[str], int]:
        cluster.apply(item, namespace=namespace)
        kept = wait_until_observed(cluster, namespace, "deployment/model")
        return sorted(annotations_of_template(kept)), cluster.replica_sets(namespace)

    at_the_top = deployment(cluster, annotations=ECHO)
    in_the_template = deployment(cluster, template=ECHO)
    assert apply(at_the_top) == ([INHERITED], 1)
    assert apply(in_the_template) == (["asya.sh/handler"], 2)
    assert apply(at_the_top) == ([INHERITED], 2)  # the template of the first ReplicaSet
    both = deployment(cluster, annotations=ECHO, template={"asya.sh/chunk-size": "8192"})
    assert apply(both) == (["asya.sh/chunk-size", INHERITED], 3)
    edited = deployment(cluster, annotations=ECHO, template={"asya.sh/chunk-size": "1024"})
    assert apply(edited) == (["asya.sh/chunk-size", INHERITED], 4)
    assert apply(deployment(cluster)) == ([], 5)


def test_objects_with_an_unknown_owner(cluster: Cluster, namespace: str) -> None:
    owner = {
        "apiVersion": "example.com/v1",
        "kind": "Widget",
        "name": "w",
        "uid": "0e4ad4a8-2f6b-4a5b-9a54-0d5d0c6e8a10",
        "controller": True,
    }
    pod = bare_pod("owned", cluster.model_image, dict(ECHO))
    pod["metadata"]["ownerReferences"] = [owner]
    words = ["-n", namespace, "--dry-run=server", "-o", "json"]
    made = json.loads(cluster.create(pod, *words).stdout)
    assert "asya.sh/injected" in made["metadata"]["annotations"]

    item = next(each for each in without_pods(cluster) if each["kind"] == "ReplicaSet")
    free = json.loads(cluster.create(item, *words).stdout)
    item["metadata"]["ownerReferences"] = [owner]
    owned = json.loads(cluster.create(item, *words).stdout)
    assert [INHERITED in annotations_of_template(each) for each in (free, owned)] == [True, False]
