"""From an actor back to the pod that its user wrote; for random pods see test_any_pod.py."""

import copy
import json
from dataclasses import replace
from typing import Any

import pytest
from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.errors import InjectionError
from asya_injector.kube_objects import replace_template
from asya_injector.mutation.inject import inject
from asya_injector.mutation.uninject import uninject, uninject_object
from asya_injector.mutation.workload import propagate

from tests.support.deliveries import from_image

Object = dict[str, Any]
DEFAULTS = ClusterDefaults("0123456789", {})
HANDLER = {"asya.sh/handler": "my_app.handler.predict"}
SOCKET = {"name": "ASYA_SOCKET_PATH", "value": "/tmp/sockets/app.sock"}


def pod(*containers: Object, annotations: Object | None = None, **spec: Any) -> Object:
    return {
        "kind": "Pod",
        "metadata": {"name": "p", "annotations": {**HANDLER, **(annotations or {})}},
        "spec": {"containers": list(containers), **spec},
    }


def model(**fields: Any) -> Object:
    return {"name": "model", "command": ["serve"], **fields}


def injected(given: Object, defaults: ClusterDefaults = DEFAULTS) -> Object:
    result = inject(given, defaults)
    assert result is not None
    return result.pod


MINE = {"name": "mine", "emptyDir": {}}
WRAPPER = ["python3", "-I", "-S", "/opt/asya/asya_entrypoint.py"]
ORIGINALS = [
    pytest.param(pod(model()), id="wrapped"),
    pytest.param(pod({"name": "model", "args": ["x"]}), id="hooked"),
    pytest.param(pod({"name": "model"}, annotations={"asya.sh/mode": "runtime"}), id="runtime"),
    pytest.param(pod(model(), annotations={"asya.sh/mode": "mount"}), id="mounted"),
    pytest.param(pod(model(lifecycle={"postStart": {"exec": {"command": ["warm", "--", "up"]},
                                                    "future": 1}, "stopSignal": "SIGINT"}),
                     annotations={"asya.sh/mode": "hook"}), id="users-hooks"),
    pytest.param(pod(model(readinessProbe={"exec": {"command": ["ctl", "--ready"]}})),
                 id="users-probe-that-ends-like-the-runtimes"),
    pytest.param(pod(model(env=[{"name": "ASYA_HANDLER", "value": "my_app.handler.predict"},
                                {"name": "ASYA_JSON", "value": "stdlib"}])),
                 id="users-variables-with-the-same-names"),
    pytest.param(pod(model(), {"name": "asya-sidecar", "env": [SOCKET]}),
                 id="sidecar-with-the-users-variable"),
    pytest.param(pod(model(volumeMounts=[{"name": "mine", "mountPath": "/tmp/sockets"}]),
                     {"name": "asya-sidecar"}, volumes=[MINE]), id="users-volume-shared"),
    pytest.param(pod(model(volumeMounts=[{"name": "mine", "mountPath": "/tmp/sockets"}]),
                     {"name": "asya-sidecar",
                      "volumeMounts": [{"name": "mine", "mountPath": "/tmp/sockets"}]},
                     volumes=[MINE]), id="users-volume-in-both"),
    pytest.param(pod(model(), volumes=[{"name": "asya-socket", "emptyDir": {}}]),
                 id="users-volume-with-the-same-name"),
    pytest.param(pod(model(), annotations={"asya.sh/mount-path": "/app/asya_runtime.py"}),
                 id="one-file"),
    pytest.param(pod(model(command=[*WRAPPER, "--", "serve"])), id="users-wrapper"),
    pytest.param(pod(model(), initContainers=[{"name": "asya-sidecar", "restartPolicy": "Always"}]),
                 id="native-sidecar"),
    *(pytest.param(pod(model(ports=ports), annotations={"asya.sh/metrics-port": "9464"}),
                   id=f"metrics-port-beside-{len(ports)}-{ports[:1]}")
      for ports in ([], [{"containerPort": 80}], [{"name": "asya-metrics", "containerPort": 9464}],
                    [{"containerPort": 9464, "protocol": "UDP"}])),
]  # fmt: skip


@pytest.mark.parametrize(
    "defaults",
    [DEFAULTS, ClusterDefaults("ffffffffff", {"json": "auto"}), from_image(DEFAULTS)],
    ids=["defaults", "others", "image"],
)
@pytest.mark.parametrize("original", ORIGINALS)
def test_restores_the_original(original: Object, defaults: ClusterDefaults) -> None:
    if original["spec"]["containers"][0].get("command", [""])[0] == "python3":
        # A wrapper written by hand is updated in place, so its path may change with the defaults.
        defaults = replace(DEFAULTS, image=defaults.image)
    if original["metadata"]["annotations"].get("asya.sh/mount-path", "").endswith(".py"):
        defaults = replace(defaults, image=None)  # which the image form rejects
    result = injected(original, defaults)
    before = copy.deepcopy(result)
    assert uninject(result) == original
    assert result == before
    assert uninject(uninject(result)) == original


def test_does_not_change_a_pod_that_was_not_injected() -> None:
    # As a chart may render it: all fields look like additions, but there is no record.
    by_hand = injected(pod(model()))
    del by_hand["metadata"]["annotations"]["asya.sh/injected"]
    assert uninject(by_hand) is by_hand


def test_keeps_what_somebody_has_edited_since() -> None:
    result = injected(pod(model()))
    changed = result["spec"]["containers"][0]
    changed["env"] = [{**item, "value": "x.y"} for item in changed["env"][:1]] + changed["env"][1:]
    changed["readinessProbe"] = {"httpGet": {"port": 80}}
    back = uninject(result)["spec"]["containers"][0]
    assert back == model(
        env=[{"name": "ASYA_HANDLER", "value": "x.y"}], readinessProbe={"httpGet": {"port": 80}}
    )


def test_removes_the_wrapper_from_inside_another_webhooks() -> None:
    result = injected(pod(model(args=["-v"])))
    container = result["spec"]["containers"][0]
    container |= {"command": ["/vault/vault-env"], "args": container["command"] + ["-v"]}
    back = uninject(result)["spec"]["containers"][0]
    assert back == {"name": "model", "command": ["/vault/vault-env"], "args": ["serve", "-v"]}


def test_ignores_additions_of_containers_that_are_gone() -> None:
    result = injected(pod(model(), {"name": "asya-sidecar"}))
    del result["spec"]["containers"][1]
    assert uninject(result) == pod(model())


def test_keeps_other_labels_and_annotations() -> None:
    original = pod(model(), annotations={"a/b": "c", "asya.sh/json": "auto"})
    original["metadata"]["labels"] = {"app": "a"}
    assert uninject(injected(original)) == original


WELL_FORMED: Object = {
    "container": "model",
    "mode": "wrap",
    "runtime": "0",
    "asked": "0",
    "added": {},
    "volumes": [],
}
MALFORMED: list[Object] = [
    {"container": 1},
    {"asked": None},
    {"added": []},
    {"added": {"model": "wrapper"}},
    {"added": {"model": [1]}},
    {"volumes": "asya-socket"},
    {"more": 1},
]
RECORDS = [
    "",
    "{}",
    "[]",
    "x",
    "1",
    "[" * 100_000,
    '{"container":"model","mode":"wrap","runtime":"0"}',
    *(json.dumps(WELL_FORMED | wrong) for wrong in MALFORMED),
]


@pytest.mark.parametrize("record", RECORDS, ids=range(len(RECORDS)))
def test_rejects_a_malformed_record(record: str) -> None:
    result = injected(pod(model()))
    result["metadata"]["annotations"]["asya.sh/injected"] = record
    with pytest.raises(InjectionError, match=r"^asya.sh/injected: was not written by the injector"):
        uninject(result)


def test_a_forged_record_removes_only_what_looks_like_an_addition() -> None:
    original = pod(
        model(
            env=[{"name": "A", "value": "1"}, {"name": "ASYA_JSON", "valueFrom": {"x": {}}}],
            readinessProbe={"exec": {"command": ["x"]}},
            volumeMounts=[{"name": "data", "mountPath": "/x", "subPathExpr": "$(A)"}],
        ),
        volumes=[{"name": "data", "emptyDir": {}}],
    )
    forged = {
        "container": "model", "mode": "runtime", "runtime": "0", "asked": "0",
        "added": {"model": ["env A=1", "env ASYA_JSON=", "command", "wrapper", "readinessProbe",
                            "postStart", "mount data:/x"]},
        "volumes": ["data"],
    }  # fmt: skip
    given = copy.deepcopy(original)
    given["metadata"]["annotations"]["asya.sh/injected"] = json.dumps(forged)
    assert uninject(given) == original


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet", "Job", "CronJob"])
def test_restores_a_workload_without_the_inherited_annotations(kind: str) -> None:
    template = {"spec": {"containers": [model()]}, "metadata": {"labels": {"app": "a"}}}
    spec: Object = {"template": template}
    if kind == "CronJob":
        spec = {"jobTemplate": {"spec": spec}}
    original = {"kind": kind, "metadata": {"annotations": dict(HANDLER)}, "spec": spec}
    propagated = propagate(original)
    assert uninject_object(propagated) == original
    below = propagated["spec"]["jobTemplate"] if kind == "CronJob" else propagated
    whole = replace_template(propagated, injected(below["spec"]["template"]))
    assert "wrap" in json.dumps(whole)
    assert uninject_object(whole) == original


@pytest.mark.parametrize("workload", [{}, {"spec": None}, {"kind": "CronJob", "spec": {}}])
def test_does_not_change_a_workload_without_a_template(workload: Object) -> None:
    assert uninject_object(workload) is workload
