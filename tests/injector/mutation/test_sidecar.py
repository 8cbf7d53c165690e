"""The sidecar of the cluster defaults: which pods get it, and what it looks like there."""

import copy
import json
from typing import Any

import pytest
from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.annotations.sidecar import SidecarTemplate
from asya_injector.errors import InjectionError, Reason
from asya_injector.mutation.inject import Injection, inject
from asya_injector.mutation.uninject import uninject

Object = dict[str, Any]

HASH = "0123456789"
SOCKET_ENV = {"name": "ASYA_SOCKET_PATH", "value": "/tmp/sockets/app.sock"}
SOCKET_MOUNT = {"name": "asya-socket", "mountPath": "/tmp/sockets"}
URL = {"name": "URL", "valueFrom": {"secretKeyRef": {"name": "broker", "key": "url"}}}
CONTAINER: Object = {
    "name": "asya-sidecar",
    "image": "queue:1",
    "env": [URL, {"name": "PREFETCH", "value": "10"}],
    "ports": [{"name": "queue", "containerPort": 9000, "hostPort": 9001}],
    "resources": {"requests": {"cpu": "1000m"}},
    "volumeMounts": [{"name": "ca", "mountPath": "/ca", "readOnly": True}],
}
CA = {"name": "ca", "secret": {"secretName": "ca"}}
VALUE: Object = {
    "container": CONTAINER,
    "annotations": {
        "asya.sh/queue": {"env": "QUEUE", "required": True},
        "asya.sh/prefetch": {"env": "PREFETCH"},
    },
    "volumes": [CA],
    "imagePullSecrets": [{"name": "pull"}],
}
BARE: Object = {"container": {"name": "asya-sidecar", "image": "queue:1"}}


def defaults(value: Object = VALUE, **values: str) -> ClusterDefaults:
    return ClusterDefaults(HASH, values, sidecar=SidecarTemplate.parse(value))


WITH_SIDECAR = defaults()


def pod(*containers: Object, annotations: Object | None = None, **spec: Any) -> Object:
    keys = {"asya.sh/handler": "my_app.handler.predict", "asya.sh/queue": "orders"}
    annotations = {key: text for key, text in (keys | (annotations or {})).items() if text}
    return {
        "metadata": {"name": "p", "annotations": annotations},
        "spec": {"containers": [model(), *containers], **spec},
    }


def model(**fields: Any) -> Object:
    return {"name": "model", "image": "model:1", "command": ["gunicorn", "app:server"], **fields}


def injected(given: Object, settings: ClusterDefaults = WITH_SIDECAR) -> Injection:
    """The injection; checks that it keeps the input, that it is idempotent, and its inverse."""
    before = copy.deepcopy(given)
    result = inject(given, settings)
    assert result is not None
    assert given == before
    again = inject(result.pod, settings)
    assert again is not None
    assert again.pod == result.pod
    assert uninject(result.pod) == before
    return result


def all_names(given: Object) -> list[str]:
    spec = given["spec"]
    return [each["name"] for each in spec.get("initContainers", []) + spec["containers"]]


# --- The sidecar, whole

ADDED = {
    **CONTAINER,
    "env": [SOCKET_ENV, {"name": "QUEUE", "value": "orders"}, *CONTAINER["env"]],
    "volumeMounts": [*CONTAINER["volumeMounts"], SOCKET_MOUNT],
}


@pytest.mark.parametrize("native", [True, False])
def test_adds_the_sidecar_with_all_that_it_needs(native: bool) -> None:
    setup, proxy = {"name": "setup"}, {"name": "proxy"}
    secrets = [{"name": "mine"}]
    given = pod(proxy, initContainers=[setup], imagePullSecrets=secrets)
    result = injected(given, defaults({**VALUE, "native": native}))
    spec = result.pod["spec"]
    assert spec["imagePullSecrets"] == [*secrets, {"name": "pull"}]
    assert spec["volumes"][0] == CA
    assert [each["name"] for each in spec["volumes"]] == ["ca", "asya-runtime", "asya-socket"]
    if native:
        assert spec["initContainers"] == [setup, {**ADDED, "restartPolicy": "Always"}]
        assert spec["containers"][1:] == [proxy]
        because = "the cluster defaults add it as a native sidecar"
    else:
        assert spec["initContainers"] == [setup]
        assert spec["containers"][1:] == [proxy, ADDED]
        because = "the cluster defaults add it as a container"
    assert result.sidecar is not None
    assert (result.sidecar.value, result.sidecar.reason) == ("asya-sidecar", because)
    record = json.loads(result.pod["metadata"]["annotations"]["asya.sh/injected"])
    shown = {**CONTAINER, "env": ADDED["env"][1:]} | ({"restartPolicy": "Always"} if native else {})
    del shown["resources"]
    template = SidecarTemplate.parse({**VALUE, "native": native})
    assert template is not None
    assert record["sidecar"] == {
        "template": template.digest,
        "container": shown,
        "volumes": [CA],
        "imagePullSecrets": ["pull"],
    }


def test_a_cluster_without_a_sidecar_changes_nothing() -> None:
    given = pod(annotations={"asya.sh/queue": ""})
    result = injected(given, ClusterDefaults(HASH, {}))
    assert result.sidecar is None
    assert all_names(result.pod) == ["model"]
    assert "sidecar" not in json.loads(result.pod["metadata"]["annotations"]["asya.sh/injected"])


# --- Which pods get it

NATIVE = {"name": "asya-sidecar", "restartPolicy": "Always"}
PROXY = {"name": "proxy"}


@pytest.mark.parametrize(
    ("given", "value", "because", "with_socket"),
    [
        pytest.param(pod(), "asya-sidecar", "the cluster defaults add it", ["asya-sidecar"],
                     id="by-default"),
        pytest.param(pod(annotations={"asya.sh/sidecar": "false"}), "none",
                     "asya.sh/sidecar is false", [], id="switched-off"),
        pytest.param(pod({"name": "asya-sidecar"}), "asya-sidecar",
                     "the pod has a container of this name", ["asya-sidecar"], id="own"),
        pytest.param(pod(initContainers=[NATIVE]), "asya-sidecar",
                     "the pod has a container of this name", ["asya-sidecar"], id="own-native"),
        pytest.param(pod({"name": "asya-sidecar"}, annotations={"asya.sh/sidecar": "false"}),
                     "none", "asya.sh/sidecar is false", ["asya-sidecar"],
                     id="own-and-switched-off"),
        pytest.param(pod(PROXY, annotations={"asya.sh/sidecars": "proxy"}), "none",
                     'asya.sh/sidecars names container "proxy"', ["proxy"], id="sidecars-named"),
        pytest.param(pod(initContainers=[{**NATIVE, "name": "proxy"}],
                         annotations={"asya.sh/sidecars": "proxy"}), "none",
                     'asya.sh/sidecars names container "proxy"', ["proxy"],
                     id="native-sidecars-of-the-pod"),
        pytest.param(pod(PROXY, annotations={"asya.sh/sidecars": "proxy",
                                             "asya.sh/sidecar": "true"}),
                     "asya-sidecar", "the cluster defaults add it", ["asya-sidecar", "proxy"],
                     id="sidecars-of-the-pod-and-this-one"),
        pytest.param(pod(PROXY, annotations={"asya.sh/sidecars": "proxy,asya-sidecar"}),
                     "asya-sidecar", "the cluster defaults add it", ["asya-sidecar", "proxy"],
                     id="named-beside-one-of-the-pod"),
        pytest.param(pod(annotations={"asya.sh/sidecars": "asya-sidecar"}), "asya-sidecar",
                     "the cluster defaults add it", ["asya-sidecar"], id="named"),
        pytest.param(pod(annotations={"asya.sh/sidecars": " "}), "asya-sidecar",
                     "the cluster defaults add it", ["asya-sidecar"], id="sidecars-empty"),
        pytest.param(pod(restartPolicy="Never"), "asya-sidecar", "the cluster defaults add it",
                     ["asya-sidecar"], id="pod-that-ends"),
    ],
)  # fmt: skip
def test_a_pod_gets_the_sidecar_unless_it_has_one_or_wants_none(
    given: Object, value: str, because: str, with_socket: list[str]
) -> None:
    given["metadata"]["annotations"]["asya.sh/queue"] = "orders"
    result = injected(given)
    assert result.sidecar is not None
    assert result.sidecar.value == value
    assert result.sidecar.reason.startswith(because)
    spec = result.pod["spec"]
    assert with_socket == [
        each["name"]
        for each in spec.get("initContainers", []) + spec["containers"]
        if SOCKET_MOUNT in each.get("volumeMounts", []) and each["name"] != "model"
    ]


def test_cluster_defaults_that_name_other_sidecars_do_not_prevent_it() -> None:
    result = injected(pod(PROXY), defaults(BARE | {"annotations": VALUE["annotations"]},
                                           sidecars="proxy"))  # fmt: skip
    assert all_names(result.pod) == ["asya-sidecar", "model", "proxy"]
    mounts = [each.get("volumeMounts") for each in result.pod["spec"]["containers"]]
    assert mounts[1] == [SOCKET_MOUNT]


# --- Its variables


@pytest.mark.parametrize(
    ("annotations", "env"),
    [
        ({}, {"QUEUE": "orders", "PREFETCH": "10"}),
        ({"asya.sh/prefetch": "99"}, {"QUEUE": "orders", "PREFETCH": "99"}),
        ({"asya.sh/queue": " a\nb "}, {"QUEUE": " a\nb ", "PREFETCH": "10"}),
        ({"asya.sh/queue": "$(URL)"}, {"QUEUE": "$$(URL)", "PREFETCH": "10"}),
        ({"asya.sh/queue": "$$(URL)"}, {"QUEUE": "$$$$(URL)", "PREFETCH": "10"}),
        ({"asya.sh/queue": "5$"}, {"QUEUE": "5$", "PREFETCH": "10"}),
        (
            {"asya.sh/sidecar-env": 'A=$(URL), B="a,b", C='},
            {"QUEUE": "orders", "A": "$$(URL)", "B": "a,b", "C": "", "PREFETCH": "10"},
        ),
    ],
)
def test_annotations_become_literal_variables_before_those_of_the_template(
    annotations: Object, env: dict[str, str]
) -> None:
    result = injected(pod(annotations=annotations)).pod["spec"]["initContainers"][-1]["env"]
    assert result[0] == SOCKET_ENV
    assert {each["name"]: each["value"] for each in result[1:] if each != URL} == env
    assert list(env) == [each["name"] for each in result[1:] if each != URL]


def test_inherits_its_parameters_from_the_workload() -> None:
    given = pod(annotations={"asya.sh/queue": ""})
    inherited = {"asya.sh/queue": "of-the-workload", "asya.sh/sidecar-env": "A=1"}
    given["metadata"]["annotations"]["asya.sh/inherited"] = json.dumps(inherited)
    result = inject(given, WITH_SIDECAR)
    assert result is not None
    env = {
        each["name"]: each.get("value") for each in result.pod["spec"]["initContainers"][0]["env"]
    }
    assert (env["QUEUE"], env["A"]) == ("of-the-workload", "1")


@pytest.mark.parametrize(
    ("given", "warnings"),
    [
        (pod(), ()),
        (
            pod(annotations={"asya.sh/sidecar": "false", "asya.sh/sidecar-env": "A=1"}),
            (
                "asya.sh/sidecar-env: has no effect, because asya.sh/sidecar is false",
                "asya.sh/queue: has no effect, because asya.sh/sidecar is false",
            ),
        ),
        (
            pod({"name": "asya-sidecar"}),
            ("asya.sh/queue: has no effect, because the pod has a container of this name",),
        ),
        (pod({"name": "asya-sidecar"}, annotations={"asya.sh/queue": ""}), ()),
    ],
)
def test_warns_of_parameters_without_effect(given: Object, warnings: tuple[str, ...]) -> None:
    assert injected(given).warnings == warnings


# --- Rejections

SETUP = {"name": "asya-sidecar"}
REJECTED = [
    pytest.param(pod(initContainers=[SETUP]), Reason.SIDECAR_NAME_CONFLICT,
                 "but is an init container", id="init-container-of-its-name"),
    pytest.param({**pod(), "spec": {"containers": [model(name="asya-sidecar")]}},
                 Reason.SIDECAR_NAME_CONFLICT, "but is the container with the handler",
                 id="target-of-its-name"),
    pytest.param(pod(annotations={"asya.sh/queue": ""}), Reason.ANNOTATION_MISSING,
                 'asya.sh/queue: is required: the sidecar "asya-sidecar" needs it',
                 id="without-a-required-annotation"),
    pytest.param(pod(annotations={"asya.sh/queue": "a\0"}), Reason.ANNOTATION_INVALID,
                 'asya.sh/queue: "a\\u0000" is not valid', id="null-byte"),
    pytest.param(pod(annotations={"asya.sh/quue": "a"}), Reason.ANNOTATION_UNKNOWN,
                 'did you mean "asya.sh/queue"?', id="declared-key-misspelt"),
    pytest.param(pod(annotations={"asya.sh/sidecar-env": "QUEUE=x"}), Reason.SIDECAR_ENV_CONFLICT,
                 "sets QUEUE, which the cluster defaults set; set it with asya.sh/queue",
                 id="variable-of-an-annotation"),
    *(pytest.param(pod(annotations={"asya.sh/sidecar-env": f"{name}=x"}),
                   Reason.SIDECAR_ENV_CONFLICT, f"sets {name}, which", id=f"variable-{name}")
      for name in ("URL", "ASYA_SOCKET_PATH")),
    *(pytest.param(pod(annotations={"asya.sh/sidecar-env": text}), Reason.ANNOTATION_INVALID,
                   "must be NAME=value pairs", id=f"variables-{text}")
      for text in ("A", "A=1,", "A=1,A=2", 'A="b', "1=2")),
    pytest.param(pod(volumes=[{"name": "ca", "emptyDir": {}}]), Reason.SIDECAR_VOLUME_CONFLICT,
                 'volume "ca": the sidecar', id="volume-of-its-name"),
    *(pytest.param({**pod(), "spec": {"containers": [model(ports=[port])]}},
                   Reason.SIDECAR_PORT_CONFLICT, words, id=f"port-{words}")
      for port, words in (
          ({"containerPort": 9000, "name": "web"}, 'container "model": has a port 9000, which'),
          ({"containerPort": 9000, "protocol": "TCP"}, "has a port 9000"),
          ({"containerPort": 1, "name": "queue"}, 'has a port named "queue"'),
      )),
    pytest.param({**pod(), "spec": {"containers": [model(ports=[{"containerPort": 1,
                                                                  "hostPort": 9001}])]}},
                 Reason.SIDECAR_PORT_CONFLICT, "has a host port 9001, which", id="host-port"),
    pytest.param(pod(initContainers=[{"name": "x", "restartPolicy": "Always",
                                      "ports": [{"containerPort": 9000}]}]),
                 Reason.SIDECAR_PORT_CONFLICT, 'container "x"', id="port-of-a-native-sidecar"),
    pytest.param(pod(annotations={"asya.sh/metrics-port": "9000"}), Reason.PORT_CONFLICT,
                 'container "asya-sidecar" has the port 9000 already', id="port-of-the-metrics"),
]  # fmt: skip
ORDINARY = defaults({**VALUE, "native": False})
REJECTED_ORDINARY = [
    pytest.param(pod(restartPolicy=policy), Reason.SIDECAR_RESTART_POLICY,
                 f'spec.restartPolicy: is "{policy}"', id=policy)
    for policy in ("Never", "OnFailure")
]  # fmt: skip
NONE = ClusterDefaults(HASH, {})
REJECTED_WITHOUT = [
    pytest.param(pod(annotations={"asya.sh/queue": "", key: text}), Reason.SIDECAR_UNDEFINED,
                 f"{key}: the cluster defaults have no sidecar", id=key)
    for key, text in {"asya.sh/sidecar": "true", "asya.sh/sidecar-env": "A=1"}.items()
] + [
    pytest.param(pod(), Reason.ANNOTATION_UNKNOWN, "asya.sh/queue: unknown annotation",
                 id="declared-elsewhere"),
]  # fmt: skip
ALL_REJECTED = [
    pytest.param(*case.values[:2], case.values[2], settings, id=case.id)
    for settings, cases in (
        (WITH_SIDECAR, REJECTED),
        (ORDINARY, REJECTED_ORDINARY),
        (NONE, REJECTED_WITHOUT),
    )
    for case in cases
]


@pytest.mark.parametrize(("given", "reason", "text", "settings"), ALL_REJECTED)
def test_rejects_a_pod_that_cannot_have_it(
    given: Object, reason: Reason, text: str, settings: ClusterDefaults
) -> None:
    with pytest.raises(InjectionError) as caught:
        inject(given, settings)
    assert text in str(caught.value)
    assert caught.value.reason == reason
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({"volumes": [CA]}, id="same-volume"),
        pytest.param({"volumes": [{**CA, "secret": {"secretName": "ca", "defaultMode": 1}}]},
                     id="same-volume-from-the-api-server"),
        pytest.param({"imagePullSecrets": [{"name": "pull"}]}, id="same-pull-secret"),
        pytest.param({"initContainers": [{"name": "x", "ports": [{"containerPort": 9000}]}]},
                     id="port-of-a-container-that-ends"),
        pytest.param({"initContainers": []}, id="empty-list"),
        pytest.param({"initContainers": None, "imagePullSecrets": None}, id="null-lists"),
    ],
)  # fmt: skip
def test_shares_what_the_pod_has_and_gives_it_back(more: Object) -> None:
    spec = injected(pod(**more)).pod["spec"]
    for field in ("volumes", "imagePullSecrets"):
        names = [each["name"] for each in spec[field]]
        assert len(names) == len(set(names))
