"""Pod templates in unknown kinds, keys without effect, the summary and --require."""

import json
from typing import Any

import pytest
import yaml
from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.mutation.inject import inject
from asya_injector.runtime_files import RuntimeFiles

from tests.injector.commands import asya

Object = dict[str, Any]
HANDLER = {"asya.sh/handler": "a.b"}
DEFAULTS = ClusterDefaults(RuntimeFiles.packaged().hash, {})


def template(**fields: Any) -> Object:
    container = {"name": "model", "command": ["serve"]}
    return {"metadata": {"annotations": HANDLER}, "spec": {"containers": [container]}, **fields}


def custom(kind: str, version: str, **fields: Any) -> Object:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": "x"}, **fields}


KNOWN = {
    "RayCluster": custom("RayCluster", "ray.io/v1", spec={
        "headGroupSpec": {"template": template()}, "workerGroupSpecs": [{"template": template()}],
    }),
    "JobSet": custom("JobSet", "jobset.x-k8s.io/v1alpha2", spec={
        "replicatedJobs": [{"name": "a", "template": {"spec": {"template": template()}}}],
    }),
    "LeaderWorkerSet": custom("LeaderWorkerSet", "leaderworkerset.x-k8s.io/v1", spec={
        "leaderWorkerTemplate": {"leaderTemplate": template(), "workerTemplate": template()},
    }),
    "PyTorchJob": custom("PyTorchJob", "kubeflow.org/v1", spec={
        "pytorchReplicaSpecs": {"Master": {"template": template()}},
    }),
    "SparkApplication": custom("SparkApplication", "sparkoperator.k8s.io/v1beta2", spec={
        "driver": {"template": template()}, "executor": {"template": template()},
    }),
    "PodTemplate": custom("PodTemplate", "v1", template=template()),
    "Rollout": custom("Rollout", "argoproj.io/v1alpha1", spec={"template": template()}),
    "list-of-templates": custom("Workers", "x/v1", spec={"podTemplates": [template()]}),
    "other-case": custom("Workers", "x/v1", spec={"workerPodTEMPLATE": template()}),
}  # fmt: skip


def find(node: Any) -> list[Object]:
    if isinstance(node, dict) and "containers" in node.get("spec", {}):
        return [node]
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return [found for child in children for found in find(child)]


@pytest.mark.parametrize("item", KNOWN.values(), ids=KNOWN.keys())
def test_annotated_templates_in_unknown_kinds_are_injected_as_pods(item: Object) -> None:
    text = yaml.safe_dump(json.loads(json.dumps(item)), sort_keys=False)  # without aliases
    done = asya("inject", "--no-configmap", stdin=text)
    expected = inject(template(), DEFAULTS)
    assert expected is not None
    found = find(yaml.safe_load(done.out))
    assert found == [expected.pod] * len(find(item))
    assert f"{len(found)} injected, 0 unchanged, 0 rejected" in done.err
    assert asya("inject", "--no-configmap", stdin=done.out).out == done.out
    assert asya("uninject", stdin=asya("inject", stdin=text).out).out == text
    objects = json.loads(asya("explain", "-o", "json", stdin=text).out)["objects"]
    assert [each["result"] for each in objects] == ["injected"] * len(found)
    assert all(each["template"].lower().rstrip("[0]s").endswith("template") for each in objects)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("RayCluster", "KubeRay rewrites the command of its containers; check that the actor"),
        ("SparkApplication", "the Spark operator rewrites the command of its containers; check"),
        ("JobSet", ""),
    ],
)
def test_operators_that_change_their_pods_are_warned_of(kind: str, text: str) -> None:
    err = asya("inject", "--no-configmap", stdin=json.dumps(KNOWN[kind])).err
    assert ("warning" in err) == bool(text)
    assert text in err


WITHOUT: dict[str, tuple[Object, str]] = {
    "kyverno": (
        custom("ClusterPolicy", "kyverno.io/v1", spec={"rules": [{"mutate": {
            "patchStrategicMerge": {"spec": {"template": template()}}}}]}),
        "pod templates in policies are not injected",
    ),
    "openshift-template": (
        custom("Template", "template.openshift.io/v1", objects=[
            custom("Deployment", "apps/v1", spec={"template": template()})]),
        "objects inside other objects are not injected",
    ),
    "manifest-work": (
        custom("ManifestWork", "work.open-cluster-management.io/v1", spec={"workload": {
            "manifests": [custom("Deployment", "apps/v1", spec={"template": template()})]}}),
        "objects inside other objects are not injected",
    ),
    "names-with-parameters": (
        custom("Thing", "x/v1", spec={"template": template(
            spec={"containers": [{"name": "${NAME}"}]})}),
        "it is not an annotation of a workload or of its pod template",
    ),
    "not-under-a-template": (
        custom("Thing", "x/v1", spec={"pod": template()}),
        "it is not an annotation of a workload or of its pod template",
    ),
    "metadata-of-an-unknown-kind": (
        custom("Service", "v1") | {"metadata": {"name": "x", "annotations": HANDLER}},
        'kind "Service" is not supported; annotate its pod template, if it has one',
    ),
    "older-version": (
        custom("Deployment", "extensions/v1beta1")
        | {"metadata": {"name": "x", "annotations": HANDLER}},
        "Deployment needs apiVersion: apps/v1",
    ),
    "no-version": (
        {"kind": "Pod", "metadata": {"annotations": HANDLER}}, "Pod needs apiVersion: v1",
    ),
    "no-kind": ({"metadata": {"annotations": HANDLER}}, "the object has no kind"),
    "annotation-of-a-namespace": (
        custom("Namespace", "v1")
        | {"metadata": {"annotations": {"asya.sh/injection": "disabled"}}},
        "it is a label of namespaces",
    ),
    "another-value": (
        custom("Namespace", "v1") | {"metadata": {"labels": {"asya.sh/injection": "Disabled"}}},
        'use "disabled"',
    ),
    "labels": (
        custom("Deployment", "apps/v1") | {"metadata": {"name": "x", "labels": HANDLER}},
        "set it as an annotation",
    ),
    "other-prefix": (
        custom("Pod", "v1") | {"metadata": {"annotations": {"asya.io/handler": "a.b"}}},
        "the prefix of the annotations is asya.sh/",
    ),
    **{
        key: (
            custom("Pod", "v1") | {"metadata": {"annotations": {key: "a.b"}}},
            "the prefix of the annotations is asya.sh/",
        )
        for key in ("asya/handler", "asya.com/handler", "runtime.asya.sh/mode", "my-asya/handler")
    },
}  # fmt: skip


@pytest.mark.parametrize(("item", "reason"), WITHOUT.values(), ids=WITHOUT.keys())
def test_keys_without_effect_are_warned_of(item: Object, reason: str) -> None:
    text = json.dumps(item)
    done = asya("inject", stdin=text)
    assert (done.status, done.out) == (0, text)
    assert done.err.count("has no effect") == 1
    assert f"has no effect: {reason}" in done.err
    assert reason in asya("explain", stdin=text).out


@pytest.mark.parametrize("text", ['[{"asya.sh/handler": "a.b"}]\n', "- asya.sh/handler: a.b\n"])
def test_a_list_is_no_object_and_is_warned_of(text: str) -> None:
    done = asya("inject", stdin=text)
    assert (done.status, done.out) == (0, text)
    assert "stdin:1: has no effect: not a Kubernetes object, but a list\n" in done.err


@pytest.mark.parametrize(
    "text",
    [
        "kind: Namespace\nmetadata: {name: x, labels: {asya.sh/injection: disabled}}\n",
        "kind: Pod\napiVersion: v1\nmetadata: {labels: {asya.sh/runtime-hash: x}}\n",
        "kind: X\nspec: {selector: {matchLabels: {asya.sh/runtime-hash: x, asya.sh/y: z}}}\n",
        "kind: ConfigMap\ndata: {a: 'asya.sh/handler: x'}\n",
    ],
)
def test_keys_that_are_in_order_are_not_warned_of(text: str) -> None:
    assert "warning" not in asya("inject", stdin=text).err


def test_templates_are_left_alone_where_the_webhook_would_leave_the_pods_alone() -> None:
    item = KNOWN["Rollout"]
    for words in (["-n", "kube-system"], ["--mode", "wrap"]):
        text = json.dumps(item | {"spec": {"template": template(metadata={
            "annotations": HANDLER | {"asya.sh/inject": "false"} if words[0] != "-n" else HANDLER
        })}})  # fmt: skip
        assert asya("inject", *words, stdin=text).out == text
    wrong = template(metadata={"annotations": {"asya.sh/handler": "x"}})
    done = asya("inject", stdin=json.dumps(item | {"spec": {"template": wrong}}))
    assert (done.status, done.out) == (1, "")


@pytest.mark.parametrize(("required", "status"), [(0, 0), (1, 0), (2, 0), (3, 1)])
def test_a_number_of_actors_can_be_required(required: int, status: int) -> None:
    text = yaml.safe_dump(KNOWN["RayCluster"])
    for given in (text, asya("inject", stdin=text).out):
        done = asya("inject", "--require", str(required), stdin=given)
        assert done.status == status
        assert (done.out == "") == bool(status)
        assert ("asya-injector: --require 3: the output has 2 actors\n" in done.err) == bool(status)


def explain(item: Object) -> str:
    (one,) = json.loads(asya("explain", "-o", "json", stdin=json.dumps(item)).out)["objects"]
    reason: str = one["because"]
    return reason


def test_a_patch_without_a_template_is_explained() -> None:
    item = custom("Deployment", "apps/v1") | {"metadata": {"name": "x", "annotations": HANDLER}}
    assert explain(item) == "it has no pod template"
    assert explain(item | {"spec": {"replicas": 2}}) == "it has no pod template"


def test_annotations_that_were_removed_after_the_injection_are_explained() -> None:
    item = custom("Deployment", "apps/v1", spec={"template": template()})
    injected = json.loads(asya("inject", "--no-configmap", stdin=json.dumps(item)).out)
    del injected["spec"]["template"]["metadata"]["annotations"]["asya.sh/handler"]
    expected = "its annotations were removed after the injection; run uninject"
    assert explain(injected) == expected
