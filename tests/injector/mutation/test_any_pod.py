"""Properties of random pods. Set HYPOTHESIS_EXAMPLES=10000 for a longer search."""

import copy
import json
import os
from typing import Any, cast

import jsonpatch
import kopf
from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.annotations.sidecar import SidecarTemplate
from asya_injector.errors import InjectionError
from asya_injector.kube_objects import get_template
from asya_injector.mutation.inject import inject
from asya_injector.mutation.uninject import uninject, uninject_object
from asya_injector.mutation.workload import find_overridden, propagate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.deliveries import check_both_deliveries, from_image

Object = dict[str, Any]

settings.register_profile(
    "pods",
    settings(),  # the profile that the command line selects
    max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "40")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
ANY = settings.get_profile("pods")

DEFAULTS = ClusterDefaults("0123456789", {})
OTHER = ClusterDefaults(
    "ffffffffff", {"chunk-size": "8192", "mount-path": "/srv/other", "json": "auto"}
)
FROM_IMAGE = from_image(DEFAULTS)
ANY_DEFAULTS = st.sampled_from([DEFAULTS, OTHER, FROM_IMAGE])
SIZE = {"asya.sh/size": {"env": "SIZE"}}
DATA = {"name": "data", "emptyDir": {}}
SIDECARS = [
    ClusterDefaults("0123456789", {}, sidecar=SidecarTemplate.parse({"annotations": SIZE, **value}))
    for value in (
        {"container": {"name": "queue", "image": "queue:1", "env": [{"name": "SIZE", "value": ""}]},
         "volumes": [{"name": "ca", "secret": {"secretName": "ca"}}],
         "imagePullSecrets": [{"name": "pull"}, {"name": "mine"}]},
        {"container": {"name": "queue", "image": "queue:2", "command": ["queue"],
                       "volumeMounts": [{"name": "data", "mountPath": "/data"}]},
         "volumes": [DATA], "native": False},
        {"container": {"name": "proxy", "image": "queue:1", "resources": {"limits": {"cpu": 1}},
                       "ports": [{"containerPort": 80}],
                       "env": [{"name": "ASYA_SOCKET_PATH", "value": "/x/app.sock"}]}},
    )
]  # fmt: skip
ANY_SIDECAR = st.sampled_from(SIDECARS)

HANDLER = "my_app.handler.predict"
NAMES = st.sampled_from(["model", "other", "asya-sidecar", "proxy"])
PATHS = st.sampled_from(["/tmp", "/tmp/sockets", "/data/", "/opt", "/opt/asya", "tmp/sockets/a"])
COMMANDS = st.lists(
    st.sampled_from(["python3", "app.py", "--", "-I", "-S", "$(A)", "tini", "asya_entrypoint.py"]),
    max_size=5,
)
TYPICAL = [
    ["python3", "app.py"],
    ["tini", "--", "gunicorn", "app"],
    ["python3", "-I", "-S", "/opt/asya/asya_entrypoint.py", "--", "app"],
    ["python3", "/opt/asya/asya_runtime.py"],
]
VOLUMES = st.sampled_from(["data", "data", "data", "asya-socket", "asya-socket", "asya-runtime"])
ENTRIES = st.fixed_dictionaries(
    {"name": st.sampled_from(["A", "ASYA_HANDLER", "ASYA_CHUNK_SIZE", "ASYA_SOCKET_PATH"])},
    optional={
        "value": st.sampled_from(["", HANDLER, "1", "/x/y.sock", "/tmp/sockets/app.sock"]),
        "valueFrom": st.just({"fieldRef": {"fieldPath": "metadata.name"}}),
    },
)
EXEC = st.builds(lambda command: {"exec": {"command": command}}, COMMANDS)
CONTAINERS = st.fixed_dictionaries(
    {"name": NAMES},
    optional={
        "image": st.just("image:1"),
        "command": COMMANDS | st.sampled_from([None, *TYPICAL]),
        "args": COMMANDS,
        "env": st.lists(ENTRIES, max_size=3) | st.none(),
        "volumeMounts": st.lists(
            st.fixed_dictionaries(
                {"name": VOLUMES, "mountPath": PATHS},
                optional={"subPath": st.just("a"), "readOnly": st.booleans()},
            ),
            max_size=3,
        ),
        "lifecycle": st.dictionaries(st.sampled_from(["postStart", "preStop"]), EXEC, max_size=2),
        "readinessProbe": st.none() | EXEC,
        "restartPolicy": st.just("Always"),
        "resources": st.just({"limits": {"cpu": "1"}}),
        "securityContext": st.just({"runAsUser": 1}),
        "workingDir": st.just("/app"),
        "future": st.integers(),
    },
)
ANNOTATIONS = st.fixed_dictionaries(
    {"asya.sh/handler": st.just(HANDLER)},
    optional={
        "asya.sh/mode": st.sampled_from(["auto", "wrap", "hook", "runtime", "mount"]),
        "asya.sh/container": NAMES,
        "asya.sh/sidecars": NAMES,
        "asya.sh/mount-path": st.sampled_from(["/srv/a", "/app/asya_runtime.py"]),
        "asya.sh/socket-path": st.sampled_from(["/data/a.sock", "/x/y.sock"]),
        "asya.sh/chunk-size": st.just("1"),
        "asya.sh/probe": st.sampled_from(["true", "false"]),
        "kubectl.kubernetes.io/default-container": NAMES,
        "example.com/a": st.just("b"),
    },
)


SIDECAR_ANNOTATIONS = st.builds(
    dict.__or__,
    ANNOTATIONS,
    st.fixed_dictionaries(
        {},
        optional={
            "asya.sh/sidecar": st.sampled_from(["true", "true", "false"]),
            "asya.sh/sidecar-env": st.sampled_from(["A=1", 'A="$(B), $$", C=']),
            "asya.sh/size": st.sampled_from(["1", "", "$(B)"]),
        },
    ),
)


def received(drawn: Any) -> Any:
    """A deep copy, as if it had come over the network."""
    return json.loads(json.dumps(drawn))


def fitting(annotations: Object, containers: list[Object], inits: list[Object]) -> Object:
    """Without annotations that name a missing container, so that most pods can become actors."""
    names = [item["name"] for item in containers]
    native = [item["name"] for item in inits if "restartPolicy" in item]
    dropped = {key for key, value in annotations.items() if "container" in key} - {
        key for key, value in annotations.items() if value in names
    }
    if annotations.get("asya.sh/sidecars") not in [*names[1:], *native]:
        dropped.add("asya.sh/sidecars")
    return {key: value for key, value in annotations.items() if key not in dropped}


def pod(annotations: Object, containers: list[Object], inits: list[Object], volumes: Any) -> Object:
    return {
        "metadata": {"annotations": fitting(annotations, containers, inits)},
        "spec": {"containers": containers, "initContainers": inits, "volumes": volumes, "x": 1},
        "status": {"future": [None]},
    }


def pods(annotations: st.SearchStrategy[Object]) -> st.SearchStrategy[Object]:
    containers = st.lists(
        CONTAINERS, min_size=1, max_size=4, unique_by=lambda item: str(item["name"])
    )
    return containers.flatmap(
        lambda drawn: st.builds(
            pod,
            annotations,
            st.just(drawn[: max(1, len(drawn) - 1)]),
            st.just(drawn[max(1, len(drawn) - 1) :]),
            st.lists(
                st.builds(
                    lambda name, source: {"name": name, source: {}},
                    VOLUMES,
                    st.sampled_from(["emptyDir", "emptyDir", "emptyDir", "hostPath"]),
                ),
                max_size=2,
                unique_by=lambda item: item["name"],
            ),
        )
    ).map(received)


PODS = pods(ANNOTATIONS)
SIDECAR_PODS = st.builds(
    lambda given, more: given | {"spec": given["spec"] | more},
    pods(SIDECAR_ANNOTATIONS),
    st.fixed_dictionaries(
        {},
        optional={
            "restartPolicy": st.sampled_from(["Always", "Never"]),
            "imagePullSecrets": st.sampled_from([None, [], [{"name": "mine"}]]),
        },
    ),
)
# A pod, and the cluster defaults.
CASES = st.tuples(PODS, ANY_DEFAULTS) | st.tuples(SIDECAR_PODS, ANY_SIDECAR)


def done(given: Object, defaults: ClusterDefaults = DEFAULTS) -> Object | None:
    """The injected pod, None if it is rejected; checks that the input does not change."""
    before = copy.deepcopy(given)
    try:
        result = inject(given, defaults)
    except InjectionError as error:
        line = str(error)
        assert line.isascii()
        assert line.isprintable()
        assert len(line) < 1500
        return None
    finally:
        assert given == before
    assert result is not None
    return result.pod


def tidy(node: Any) -> Any:
    """Without null and empty values, which the API server treats as absent."""
    if isinstance(node, dict):
        kept = {key: tidy(value) for key, value in node.items()}
        return {key: value for key, value in kept.items() if value not in (None, [], {})}
    return [tidy(item) for item in node] if isinstance(node, list) else node


@ANY
@given(CASES)
def test_injection_is_idempotent(case: tuple[Object, ClusterDefaults]) -> None:
    given, defaults = case
    once = done(given, defaults)
    assert once is None or json.dumps(done(once, defaults)) == json.dumps(once)


@ANY
@given(PODS)
def test_the_runtime_from_an_image_changes_only_the_volume_and_its_mount(given: Object) -> None:
    injected = done(given)
    if injected is None:
        assert done(given, FROM_IMAGE) is None
    else:
        check_both_deliveries(given, injected, DEFAULTS)


@ANY
@given(CASES)
def test_uninject_restores_the_original(case: tuple[Object, ClusterDefaults]) -> None:
    given, defaults = case
    injected = done(given, defaults)
    # A wrapper written by hand with another path is corrected, and stays so.
    moved = defaults is OTHER or "asya.sh/mount-path" in given["metadata"].get("annotations", {})
    elsewhere = moved and "/opt/asya/" in json.dumps(given["spec"])
    if injected is not None and not elsewhere:
        assert tidy(uninject(injected)) == tidy(given)
    assert uninject(given) is given


@ANY
@given(
    st.tuples(PODS, ANNOTATIONS, ANY_DEFAULTS, ANY_DEFAULTS)
    | st.tuples(SIDECAR_PODS, SIDECAR_ANNOTATIONS, ANY_SIDECAR, ANY_SIDECAR)
)
def test_a_copy_with_other_settings_becomes_what_the_original_would(
    case: tuple[Object, Object, ClusterDefaults, ClusterDefaults],
) -> None:
    given, annotations, first, second = case
    copied = done(given, first)
    if copied is None:
        return
    chosen = json.loads(copied["metadata"]["annotations"]["asya.sh/injected"])["container"]
    spec = given["spec"]
    annotations = fitting(annotations, spec["containers"], spec["initContainers"])
    annotations = {"asya.sh/container": chosen} | annotations
    for each in (given, copied):
        record = {"asya.sh/injected": each["metadata"]["annotations"].get("asya.sh/injected")}
        each["metadata"]["annotations"] = annotations | (record if each is copied else {})
    assert tidy(done(given, second)) == tidy(done(copied, second))


@ANY
@given(CASES, CONTAINERS, st.integers(0, 3))
def test_a_container_that_another_webhook_adds_changes_nothing_else(
    case: tuple[Object, ClusterDefaults], added: Object, place: int
) -> None:
    given, defaults = case
    injected = done(given, defaults)
    if injected is None:
        return
    added = received(added) | {"name": "asya-sidecar-2"}
    before = copy.deepcopy(injected)
    injected["spec"]["containers"].insert(place, added)
    again = done(injected, defaults)
    assert again is not None
    again["spec"]["containers"].remove(added)
    assert again == before


@ANY
@given(CASES)
def test_keeps_other_fields_and_the_order_of_items(case: tuple[Object, ClusterDefaults]) -> None:
    given, defaults = case
    injected = done(given, defaults)
    if injected is None:
        return
    assert injected["status"] == given["status"]
    assert injected["spec"]["x"] == 1
    pairs = []
    for field in ("containers", "initContainers", "volumes", "imagePullSecrets"):
        theirs = given["spec"].get(field) or []
        found = injected["spec"].get(field) or []
        assert [each["name"] for each in found][: len(theirs)] == [each["name"] for each in theirs]
        if field in ("containers", "initContainers"):
            assert len(found) - len(theirs) in ((0, 1) if defaults.sidecar else (0,))
            pairs += list(zip(theirs, found, strict=False))
    for before, after in pairs:
        for field in ("name", "image", "resources", "securityContext", "workingDir", "future"):
            assert after.get(field) == before.get(field)
        theirs = before.get("env") or []
        assert (after.get("env") or [])[len(after.get("env") or []) - len(theirs) :] == theirs
        mounts = before.get("volumeMounts") or []
        assert (after.get("volumeMounts") or [])[: len(mounts)] == mounts


@ANY
@given(CASES)
def test_kopfs_json_patch_results_in_the_same_pod(case: tuple[Object, ClusterDefaults]) -> None:
    given, defaults = case
    injected = done(given, defaults)
    if injected is None:
        return
    patch = kopf.Patch(body=cast(Any, kopf.Body(cast(Any, copy.deepcopy(given)))))
    patch.fns.append(lambda draft: cast(Object, draft).update(injected))
    operations = patch.as_json_patch()
    assert jsonpatch.apply_patch(given, json.loads(json.dumps(operations))) == injected


@ANY
@given(PODS, st.sampled_from(["Deployment", "CronJob"]), ANY_DEFAULTS)
def test_uninject_restores_a_workload(given: Object, kind: str, defaults: ClusterDefaults) -> None:
    spec: Object = {"template": {key: given[key] for key in ("metadata", "spec")}}
    if kind == "CronJob":
        spec = {"jobTemplate": {"spec": spec}, "schedule": "@daily"}
    workload = {"kind": kind, "metadata": {"annotations": {"asya.sh/json": "auto"}}, "spec": spec}
    before = copy.deepcopy(workload)
    propagated = propagate(workload)
    assert workload == before
    injected = done(get_template(propagated), defaults)
    if injected is not None:
        template = get_template(propagated)
        template.clear()
        template.update(injected)
        assert workload == before
        assert tidy(uninject_object(propagated)) == tidy(workload)
    assert uninject_object(workload) is workload


# --- Malformed objects

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all nodes of a tree."""
    inner: list[tuple[Any, Any]] = list(node.items()) if isinstance(node, dict) else []
    if isinstance(node, list):
        inner = list(enumerate(node))
    return [path, *(found for key, value in inner for found in places(value, (*path, key)))]


def broken(node: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The tree with another value at one path."""
    if not path:
        return value
    node = copy.copy(node)
    node[path[0]] = broken(node[path[0]], path[1:], value)
    return node


def without(node: Any, path: tuple[Any, ...]) -> Any:
    """The tree without the node at a path."""
    node = copy.copy(node)
    if len(path) == 1:
        del node[path[0]]
    else:
        node[path[0]] = without(node[path[0]], path[1:])
    return node


def call_all(given: Any) -> None:
    for function in (
        lambda: inject(given, DEFAULTS),
        lambda: inject(given, SIDECARS[0]),
        lambda: uninject(given),
        lambda: propagate(given),
        lambda: find_overridden(given),
        lambda: uninject_object(given),
    ):
        line = ""
        try:
            function()
        except InjectionError as error:
            line = str(error)
        assert line.isascii()
        assert line.isprintable()
        assert len(line) < 1500


@ANY
@given(JSON)
def test_no_value_crashes_the_injector(given: Any) -> None:
    call_all(given)


@ANY
@given(st.data(), PODS, JSON)
def test_no_wrong_value_anywhere_in_a_pod_crashes_the_injector(
    data: st.DataObject, given: Object, value: Any
) -> None:
    given = done(given, SIDECARS[0]) or given
    path = data.draw(st.sampled_from(places(given)))
    call_all(broken(given, path, value))
    template = {key: given[key] for key in ("metadata", "spec")}
    workload = {"kind": "Deployment", "metadata": {}, "spec": {"template": template}}
    path = data.draw(st.sampled_from(places(workload)))
    call_all(broken(workload, path, value))


@ANY
@given(st.data(), PODS)
def test_no_missing_field_crashes_the_injector(data: st.DataObject, given: Object) -> None:
    given = done(given, SIDECARS[0]) or given
    path = data.draw(st.sampled_from(places(given)[1:]))
    call_all(without(given, path))
