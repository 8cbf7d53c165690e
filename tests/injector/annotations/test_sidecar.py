"""The chart's value `sidecar`: what is read from it, and what is rejected."""

import copy
from typing import Any

import pytest
from asya_injector.annotations.sidecar import (
    CONTAINER_FIELDS,
    MAX_DECLARED,
    MAX_SIZE,
    RESERVED,
    DeclaredAnnotation,
    SidecarError,
    SidecarTemplate,
)
from asya_injector.annotations.table import TABLE

from tests.chart import schemas

Object = dict[str, Any]

CONTAINER: Object = {"name": "asya-sidecar", "image": "queue:1"}


def value(container: Object | None = None, **more: Any) -> Object:
    return {"container": CONTAINER | (container or {}), **more}


def declare(**variables: Any) -> Object:
    return value(annotations={f"asya.sh/{name}": {"env": env} for name, env in variables.items()})


NO_MODEL = "would keep the model from starting, because it starts after the sidecar; "
# Values that the chart's templates reject in the same words, and the line.
REJECTED_BY_THE_CHART_TOO: list[tuple[Object, str]] = [
    *(({name: each}, f"sidecar.{name}: is set without sidecar.container; set both or none")
      for name, each in {
          "annotations": {"asya.sh/queue": {"env": "QUEUE"}},
          "volumes": [{"name": "ca"}],
          "imagePullSecrets": [{"name": "pull"}],
      }.items()),
    (value({"args": ["a" * MAX_SIZE]}),
     f"sidecar: has more than {MAX_SIZE} bytes as JSON; shorten it"),
    (value({"startupProbe": {"exec": {}}}),
     f"sidecar.container.startupProbe: {NO_MODEL}use a readinessProbe"),
    (value({"lifecycle": {"postStart": {"exec": {}}}}),
     f"sidecar.container.lifecycle.postStart: {NO_MODEL}do this work in the sidecar's program"),
    (value({"restartPolicy": "Always"}),
     "sidecar.container.restartPolicy: is set by sidecar.native; remove it"),
    ({"container": {"image": "queue:1"}},
     "sidecar.container.name: is required; set it to a name such as asya-sidecar"),
    ({"container": {"name": "asya-sidecar"}},
     "sidecar.container.image: is required; set it to an image"),
    (value(volumes=[{"name": "asya-socket"}]),
     "sidecar.volumes: the injector adds the volume asya-socket; choose another name"),
    (value(volumes=[{"name": "a"}, {"name": "a"}]),
     "sidecar.volumes: two volumes have the name a; choose another name"),
    (value({"volumeMounts": [{"name": "ca", "mountPath": "/ca"}]}),
     "sidecar.container.volumeMounts: the volume ca does not exist; add it to sidecar.volumes"),
    (value({"volumeDevices": [{"name": "d", "devicePath": "/d"}]}),
     "sidecar.container.volumeDevices: the volume d does not exist; add it to sidecar.volumes"),
    *((value({"volumeMounts": [{"name": name, "mountPath": "/a"}]}),
       f"sidecar.container.volumeMounts: the injector mounts {name} where needed; remove it")
      for name in ("asya-socket", "asya-runtime")),
    *((declare(**{key.removeprefix("asya.sh/"): "A"}),
       f"sidecar.annotations: {key} is a key of asya-runtime; choose another key")
      for key in ("asya.sh/handler", "asya.sh/sidecar-env", "asya.sh/injected",
                  "asya.sh/injection")),
    (declare(queue="ASYA_SOCKET_PATH"),
     "sidecar.annotations: the injector sets ASYA_SOCKET_PATH; choose another variable"),
    (declare(b="X", a="X"),
     "sidecar.annotations: asya.sh/a and asya.sh/b set X; choose another variable"),
]  # fmt: skip
# Of the wrong type, by the type.
WRONG: dict[str, list[Any]] = {
    "text": [1, ["a"]],
    "a boolean": ["true", 1],
    "a mapping": [1, [{}]],
    "a list of strings": ["run me", [1], {}],
    "a list of mappings": [{}, ["A"], [[]]],
}
PORT: Object = {"containerPort": 1}
LONG = "a" * 64
# Values that the chart's schema rejects, in the words of Helm.
REJECTED: list[tuple[Any, str]] = [
    ([], "sidecar: is not a mapping"),
    ("on", "sidecar: is not a mapping"),
    ({1: 2}, "sidecar: has a key that is not a string"),
    ({"containers": {}}, 'sidecar: unknown name "containers"; did you mean "container"?'),
    ({"container": ["a"]}, "sidecar.container: is not a mapping"),
    (value({"imge": "a"}), 'sidecar.container: unknown name "imge"; did you mean "image"?'),
    *((value({"name": name}), f"sidecar.container.name: {shown} is not a valid name")
      for name, shown in (("A", '"A"'), ("a_b", '"a_b"'), (LONG, f'"{LONG}"'), (1, '"int"'))),
    (value({"image": 1}), "sidecar.container.image: is required"),
    *((value({field: wrong}), f"sidecar.container.{field}: is not {expected}")
      for field, expected in CONTAINER_FIELDS.items() if field not in ("name", "image")
      for wrong in WRONG[expected]),
    (value({"env": [{"value": "1"}]}), "sidecar.container.env: has no valid name of a variable"),
    (value({"env": [{"name": "A", "value": 1}]}),
     "sidecar.container.env: the value of A is not a string; quote it"),
    *((value({"ports": [PORT | {field: wrong}]}), f"sidecar.container.ports: has no valid {field}")
      for field, wrong in (("containerPort", "1"), ("containerPort", 0), ("containerPort", None),
                           ("containerPort", 65536), ("hostPort", "1"), ("hostPort", -1))),
    *((value({field: [{"name": "a"} | where]}, volumes=[{"name": "a"}]),
       f"sidecar.container.{field}: a mount of a has no {path}")
      for field, path in (("volumeMounts", "mountPath"), ("volumeDevices", "devicePath"))
      for where in ({}, {path: ""}, {path: 1})),
    (value({"resources": {"limits": {"cpu": float("inf")}}}),
     'sidecar.container.resources.limits.cpu: is "float"'),
    (value(native="yes"), "sidecar.native: is not a boolean"),
    (value(volumes={"name": "a"}), "sidecar.volumes: is not a list of mappings"),
    (value(volumes=["a"]), "sidecar.volumes: is not a list of mappings"),
    (value(volumes=[{}]), "sidecar.volumes[0].name: is required"),
    (value(imagePullSecrets=[{}]), "sidecar.imagePullSecrets[0].name: is required"),
    (value(imagePullSecrets=[{"name": "A"}]), "sidecar.imagePullSecrets[0].name: \"A\" is not a"),
    (value(annotations=["a"]), "sidecar.annotations: is not a mapping"),
    (value(annotations={"queue": {"env": "A"}}), 'sidecar.annotations: "queue" is not valid'),
    (value(annotations={"asya.sh/Queue": {"env": "A"}}), '"asya.sh/Queue" is not valid'),
    (value(annotations={"asya.sh/queue": "A"}), "sidecar.annotations.asya.sh/queue: is not a map"),
    (value(annotations={"asya.sh/queue": {"env": "1"}}), "asya.sh/queue.env: has no valid name"),
    (value(annotations={"asya.sh/queue": {"env": "A", "require": True}}),
     'unknown name "require"; did you mean "required"?'),
    (value(annotations={"asya.sh/queue": {"env": "A", "required": "yes"}}),
     "sidecar.annotations.asya.sh/queue.required: is not a boolean"),
    (declare(**{f"a{number}": f"A{number}" for number in range(MAX_DECLARED + 1)}),
     f"sidecar.annotations: has more than {MAX_DECLARED} keys"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "line"), REJECTED_BY_THE_CHART_TOO)
def test_rejects_a_value_that_cannot_work(given: Object, line: str) -> None:
    with pytest.raises(SidecarError) as caught:
        SidecarTemplate.parse(given)
    assert str(caught.value) == line


@pytest.mark.parametrize(("given", "line"), REJECTED)
def test_rejects_what_is_not_of_the_form_of_the_value(given: Any, line: str) -> None:
    with pytest.raises(SidecarError) as caught:
        SidecarTemplate.parse(given)
    assert line in str(caught.value)
    assert str(caught.value).startswith("sidecar")
    assert "; " in str(caught.value)


@pytest.mark.parametrize("given", [{}, {"container": {}}, {"container": None, "native": False}])
def test_without_a_container_there_is_no_sidecar(given: Object) -> None:
    assert SidecarTemplate.parse(given) is None


def test_reads_all_of_it() -> None:
    given = value(
        {"env": [{"name": "A", "value": ""}], "tty": None},
        native=False,
        annotations={
            "asya.sh/queue": {"env": "QUEUE", "required": True},
            "asya.sh/prefetch": {"env": "PREFETCH"},
        },
        volumes=[{"name": "ca", "emptyDir": {}}, {"name": "without-source"}],
        imagePullSecrets=[{"name": "pull.example.com"}],
    )
    before = copy.deepcopy(given)
    assert SidecarTemplate.parse(given) == SidecarTemplate(
        container={**CONTAINER, "env": [{"name": "A", "value": ""}]},
        native=False,
        declared={
            "asya.sh/prefetch": DeclaredAnnotation("asya.sh/prefetch", "PREFETCH"),
            "asya.sh/queue": DeclaredAnnotation("asya.sh/queue", "QUEUE", required=True),
        },
        volumes=[{"name": "ca", "emptyDir": {}}, {"name": "without-source", "emptyDir": {}}],
        pull_secrets=["pull.example.com"],
    )
    assert given == before


def digest(given: Object) -> str:
    template = SidecarTemplate.parse(given)
    assert template is not None
    return template.digest


@pytest.mark.parametrize(
    "change",
    [
        value({"image": "queue:2"}),
        value(native=False),
        declare(queue="QUEUE"),
        value(volumes=[{"name": "a"}]),
        value(imagePullSecrets=[{"name": "a"}]),
    ],
)
def test_each_change_changes_the_digest(change: Object) -> None:
    assert digest(change) != digest(value())


@pytest.mark.parametrize(
    "same",
    [
        value(native=True),
        {"container": dict(reversed(CONTAINER.items()))},
        value({"resources": None}, volumes=[], annotations={}),
    ],
)
def test_what_means_the_same_has_the_same_digest(same: Object) -> None:
    assert digest(same) == digest(value())


def test_whole_numbers_are_read_as_helm_passes_them_on() -> None:
    given = value({"resources": {"limits": {"cpu": 1.0, "memory": 67108864.0}}})
    assert digest(given) == digest(value({"resources": {"limits": {"cpu": 1, "memory": 67108864}}}))


def test_no_key_of_ours_can_be_declared() -> None:
    assert {entry.key for entry in TABLE} <= RESERVED


@pytest.mark.parametrize("release", schemas.RELEASES)
def test_the_template_may_have_each_field_of_a_container_that_suits_a_sidecar(
    release: str,
) -> None:
    fields = schemas.fields("io.k8s.api.core.v1.Container", release)
    unsuitable = {"startupProbe", "restartPolicy", "restartPolicyRules"}
    if release == schemas.RELEASES[-1]:
        assert set(CONTAINER_FIELDS) == fields - unsuitable
    assert fields - unsuitable <= set(CONTAINER_FIELDS)
