"""The way back from an actor to the pod that its user wrote; any pod: test_any_pod.py."""

import copy
import json
from typing import Any

import pytest
from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.errors import InjectionError
from asya_injector.kube_objects import replace_template
from asya_injector.mutation.inject import inject
from asya_injector.mutation.uninject import uninject, uninject_workload
from asya_injector.mutation.workload import propagate

Object = dict[str, Any]
POLICY = ClusterDefaults("0123456789", {})
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


def injected(given: Object, policy: ClusterDefaults = POLICY) -> Object:
    result = inject(given, policy)
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
                     annotations={"asya.sh/mode": "hook"}), id="hooks-of-the-users"),
    pytest.param(pod(model(readinessProbe={"exec": {"command": ["ctl", "--ready"]}})),
                 id="probe-of-the-users-that-ends-like-ours"),
    pytest.param(pod(model(env=[{"name": "ASYA_HANDLER", "value": "my_app.handler.predict"},
                                {"name": "ASYA_JSON", "value": "stdlib"}])),
                 id="variables-of-the-users-with-our-names"),
    pytest.param(pod(model(), {"name": "asya-sidecar", "env": [SOCKET]}),
                 id="sidecar-with-the-users-own-variable"),
    pytest.param(pod(model(volumeMounts=[{"name": "mine", "mountPath": "/tmp/sockets"}]),
                     {"name": "asya-sidecar"}, volumes=[MINE]), id="volume-of-the-users-shared"),
    pytest.param(pod(model(volumeMounts=[{"name": "mine", "mountPath": "/tmp/sockets"}]),
                     {"name": "asya-sidecar",
                      "volumeMounts": [{"name": "mine", "mountPath": "/tmp/sockets"}]},
                     volumes=[MINE]), id="volume-of-the-users-in-both"),
    pytest.param(pod(model(), volumes=[{"name": "asya-socket", "emptyDir": {}}]),
                 id="volume-of-the-users-with-our-name"),
    pytest.param(pod(model(), annotations={"asya.sh/mount-path": "/app/asya_runtime.py"}),
                 id="one-file"),
    pytest.param(pod(model(command=[*WRAPPER, "--", "serve"])), id="wrapper-of-the-users"),
    pytest.param(pod(model(), initContainers=[{"name": "asya-sidecar", "restartPolicy": "Always"}]),
                 id="native-sidecar"),
]  # fmt: skip


@pytest.mark.parametrize("policy", [POLICY, ClusterDefaults("ffffffffff", {"json": "auto"})])
@pytest.mark.parametrize("original", ORIGINALS)
def test_the_original_comes_back(original: Object, policy: ClusterDefaults) -> None:
    if original["spec"]["containers"][0].get("command", [""])[0] == "python3":
        # Our wrapper written by hand is updated in place, so other releases' paths may differ.
        policy = POLICY
    result = injected(original, policy)
    before = copy.deepcopy(result)
    assert uninject(result) == original
    assert result == before
    assert uninject(uninject(result)) == original


def test_a_pod_that_was_not_injected_comes_back_as_it_is() -> None:
    # Mounted by hand, as a chart may do it: all of it looks like ours, but no mark says so.
    by_hand = injected(pod(model()))
    del by_hand["metadata"]["annotations"]["asya.sh/injected"]
    assert uninject(by_hand) is by_hand


def test_what_somebody_changed_since_is_theirs_and_stays() -> None:
    result = injected(pod(model()))
    changed = result["spec"]["containers"][0]
    changed["env"] = [{**item, "value": "x.y"} for item in changed["env"][:1]] + changed["env"][1:]
    changed["readinessProbe"] = {"httpGet": {"port": 80}}
    back = uninject(result)["spec"]["containers"][0]
    assert back == model(
        env=[{"name": "ASYA_HANDLER", "value": "x.y"}], readinessProbe={"httpGet": {"port": 80}}
    )


def test_a_wrapper_that_another_webhook_has_wrapped_is_taken_out_of_its_inside() -> None:
    result = injected(pod(model(args=["-v"])))
    container = result["spec"]["containers"][0]
    container |= {"command": ["/vault/vault-env"], "args": container["command"] + ["-v"]}
    back = uninject(result)["spec"]["containers"][0]
    assert back == {"name": "model", "command": ["/vault/vault-env"], "args": ["serve", "-v"]}


def test_pieces_in_containers_that_are_gone_are_forgotten() -> None:
    result = injected(pod(model(), {"name": "asya-sidecar"}))
    del result["spec"]["containers"][1]
    assert uninject(result) == pod(model())


def test_labels_and_annotations_of_others_stay() -> None:
    original = pod(model(), annotations={"a/b": "c", "asya.sh/json": "auto"})
    original["metadata"]["labels"] = {"app": "a"}
    assert uninject(injected(original)) == original


SOUND: Object = {
    "container": "model",
    "mode": "wrap",
    "runtime": "0",
    "asked": "0",
    "added": {},
    "volumes": [],
}
UNSOUND: list[Object] = [
    {"container": 1},
    {"asked": None},
    {"added": []},
    {"added": {"model": "wrapper"}},
    {"added": {"model": [1]}},
    {"volumes": "asya-socket"},
    {"more": 1},
]
MARKS = [
    "",
    "{}",
    "[]",
    "x",
    "1",
    "[" * 100_000,
    '{"container":"model","mode":"wrap","runtime":"0"}',
    *(json.dumps(SOUND | wrong) for wrong in UNSOUND),
]


@pytest.mark.parametrize("mark", MARKS, ids=range(len(MARKS)))
def test_a_mark_that_we_did_not_write_is_refused_not_guessed_at(mark: str) -> None:
    result = injected(pod(model()))
    result["metadata"]["annotations"]["asya.sh/injected"] = mark
    with pytest.raises(InjectionError, match=r"^asya.sh/injected: is not what the injector wrote"):
        uninject(result)


def test_a_forged_mark_takes_out_nothing_that_does_not_look_like_ours() -> None:
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
def test_a_workload_comes_back_with_the_note_gone(kind: str) -> None:
    template = {"spec": {"containers": [model()]}, "metadata": {"labels": {"app": "a"}}}
    spec: Object = {"template": template}
    if kind == "CronJob":
        spec = {"jobTemplate": {"spec": spec}}
    original = {"kind": kind, "metadata": {"annotations": dict(HANDLER)}, "spec": spec}
    noted = propagate(original)
    assert uninject_workload(noted) == original
    below = noted["spec"]["jobTemplate"] if kind == "CronJob" else noted
    whole = replace_template(noted, injected(below["spec"]["template"]))
    assert "wrap" in json.dumps(whole)
    assert uninject_workload(whole) == original


@pytest.mark.parametrize("workload", [{}, {"spec": None}, {"kind": "CronJob", "spec": {}}])
def test_a_workload_without_a_template_comes_back_as_it_is(workload: Object) -> None:
    assert uninject_workload(workload) is workload
