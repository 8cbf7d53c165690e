"""Pods that are rejected: each reason code, and its section in the troubleshooting page."""

import re
from pathlib import Path
from typing import Any

import pytest
from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.errors import InjectionError, Reason
from asya_injector.mutation.inject import inject
from asya_injector.runtime_image import RuntimeImage

from tests.injector.mutation import test_sidecar

Object = dict[str, Any]

PAGE = Path(__file__).parents[3] / "docs" / "troubleshooting.md"
DEFAULTS = ClusterDefaults("0123456789", {})
FROM_IMAGE = ClusterDefaults("0123456789", {}, image=RuntimeImage("asya/injector:1"))
WRAPPER = ["python3", "-I", "-S", "/opt/asya/asya_entrypoint.py"]


def pod(*containers: Object, annotations: Object | None = None, **spec: Any) -> Object:
    handler = {"asya.sh/handler": "my_app.handler.predict"}
    return {
        "metadata": {"annotations": {**handler, **(annotations or {})}},
        "spec": {"containers": list(containers), **spec},
    }


def model(**fields: Any) -> Object:
    return {"name": "model", "image": "model:1", "command": ["gunicorn", "app:server"], **fields}


def affinity(*terms: Object) -> Object:
    required = {"nodeSelectorTerms": list(terms)}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}


def reject(given: Object, defaults: ClusterDefaults = DEFAULTS) -> InjectionError:
    with pytest.raises(InjectionError) as caught:
        inject(given, defaults)
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()
    return caught.value


RULE = {"key": "kubernetes.io/os", "operator": "In", "values": ["windows"]}
WINDOWS = {"matchExpressions": [RULE]}
CONFIG_MAP = {"name": "asya-runtime", "configMap": {"name": "asya-runtime"}}
RENAMED = {"name": "asya-runtime", "configMap": {
    "name": "asya-runtime-0123456789", "items": [{"key": "asya_runtime.py", "path": "x.py"}],
}}  # fmt: skip
HOST = {"name": "asya-socket", "hostPath": {"path": "/tmp"}}
VALUE_FROM = {"fieldRef": {"fieldPath": "metadata.name"}}
NO_COMMAND = {"name": "model", "image": "model:1"}
REJECTED = [
    pytest.param(pod(), Reason.OBJECT_INVALID, "spec.containers: ", id="no-containers"),
    pytest.param(pod(model(), annotations={"asya.sh/container": "modle"}),
                 Reason.CONTAINER_NOT_FOUND,
                 'asya.sh/container: no container "modle" in this pod; did you mean "model"? '
                 "(ContainerNotFound)", id="container-misspelt"),
    pytest.param(pod(model(), annotations={"asya.sh/container": "setup"},
                     initContainers=[{"name": "setup"}]),
                 Reason.CONTAINER_NOT_FOUND, '"setup" is an init container', id="init-container"),
    pytest.param(pod(model(), annotations={"kubectl.kubernetes.io/default-container": "x"}),
                 Reason.CONTAINER_NOT_FOUND, "kubectl.kubernetes.io/default-container: ",
                 id="default-container-not-in-the-pod"),
    pytest.param(pod(model(), {"name": "asya-sidecar"},
                     annotations={"asya.sh/sidecars": "sidecar"}),
                 Reason.SIDECAR_NOT_FOUND, 'did you mean "asya-sidecar"?', id="sidecar-misspelt"),
    pytest.param(pod(model(), annotations={"asya.sh/sidecars": "model"}),
                 Reason.SIDECAR_NOT_FOUND, '"model" is the container with the handler',
                 id="sidecar-is-the-target"),
    pytest.param(pod(model(), os={"name": "windows"}), Reason.WINDOWS_UNSUPPORTED, "Windows",
                 id="windows-by-os"),
    pytest.param(pod(model(), nodeSelector={"kubernetes.io/os": "windows"}),
                 Reason.WINDOWS_UNSUPPORTED, "Windows", id="windows-by-node"),
    pytest.param(pod(model(), volumes=[CONFIG_MAP]), Reason.VOLUME_CONFLICT,
                 'volume "asya-runtime"', id="users-runtime-volume"),
    pytest.param(pod(model(), volumes=[RENAMED]), Reason.VOLUME_CONFLICT,
                 'volume "asya-runtime"', id="runtime-volume-with-renamed-files"),
    pytest.param(pod(model(), volumes=[HOST]), Reason.VOLUME_CONFLICT, 'volume "asya-socket"',
                 id="users-socket-volume"),
    pytest.param(pod(model(volumeMounts=[{"name": "v", "mountPath": "/opt/asya"}])),
                 Reason.MOUNT_CONFLICT, 'mounts "v" at "/opt/asya"', id="mount-at-the-runtime"),
    pytest.param(pod(model(volumeMounts=[{"name": "v", "mountPath": "/opt/asya/x"}])),
                 Reason.MOUNT_CONFLICT, 'mounts "v" at "/opt/asya/x"',
                 id="mount-below-the-runtime"),
    pytest.param(pod(model(volumeMounts=[{"name": "v", "mountPath": "/tmp/sockets/x"}])),
                 Reason.MOUNT_CONFLICT, "asya.sh/socket-path: ", id="mount-below-the-socket"),
    pytest.param(pod(model(), {"name": "asya-sidecar",
                               "volumeMounts": [{"name": "v", "mountPath": "/tmp/sockets"}]}),
                 Reason.MOUNT_CONFLICT, 'container "asya-sidecar"', id="sidecar-mounts-another"),
    pytest.param(pod(model(env=[{"name": "ASYA_HANDLER", "value": "x.y"}])), Reason.ENV_CONFLICT,
                 'is "x.y", but asya.sh/handler is "my_app.handler.predict"',
                 id="env-differs-from-annotation"),
    pytest.param(pod(model(env=[{"name": "ASYA_HANDLER", "valueFrom": VALUE_FROM}])),
                 Reason.ENV_CONFLICT, "is set with valueFrom", id="handler-with-value-from"),
    pytest.param(pod(model(env=[{"name": "ASYA_SOCKET_PATH", "valueFrom": VALUE_FROM}])),
                 Reason.ENV_CONFLICT, "is set with valueFrom", id="socket-path-with-value-from"),
    pytest.param(pod(model(env=[{"name": "ASYA_CHUNK_SIZE", "value": "4k"}])),
                 Reason.ENV_CONFLICT, "must be a whole number", id="env-not-valid"),
    pytest.param(pod(NO_COMMAND, annotations={"asya.sh/mode": "wrap"}), Reason.COMMAND_MISSING,
                 "has no command to wrap", id="nothing-to-wrap"),
    pytest.param(pod(model(), annotations={"asya.sh/mode": "runtime"}), Reason.COMMAND_CONFLICT,
                 "which mode runtime would not run", id="command-in-mode-runtime"),
    pytest.param(pod({**NO_COMMAND, "args": ["x"]}, annotations={"asya.sh/mode": "runtime"}),
                 Reason.COMMAND_CONFLICT, "which mode runtime would not run",
                 id="args-in-mode-runtime"),
    pytest.param(pod(NO_COMMAND, shareProcessNamespace=True), Reason.HOOK_UNSUPPORTED,
                 "set command to use mode wrap, or remove shareProcessNamespace",
                 id="hook-with-shared-processes"),
    pytest.param(pod(model(command=["/init"]), shareProcessNamespace=True),
                 Reason.HOOK_UNSUPPORTED, "; use mode wrap, or remove shareProcessNamespace",
                 id="process-1-with-shared-processes"),
    pytest.param(pod(NO_COMMAND, hostPID=True), Reason.HOOK_UNSUPPORTED, "hostPID",
                 id="hook-with-host-processes"),
    pytest.param(pod({**NO_COMMAND, "lifecycle": {"preStop": {"httpGet": {
                     "port": 8080, "path": "/drain"}}}}),
                 Reason.HOOK_CONFLICT, 'lifecycle.preStop of container "model": is an httpGet '
                 "hook, which mode hook cannot combine with its own hook; set command to the "
                 "image's "
                 "ENTRYPOINT to use mode wrap, which keeps this hook, or send the request with an "
                 'exec hook, such as ["curl", "-fsS", "http://localhost:8080/drain"]',
                 id="hook-http"),
    pytest.param(pod({**NO_COMMAND, "lifecycle": {"postStart": {"httpGet": {
                     "port": "web", "scheme": "HTTPS", "host": "h", "path": "x"}}}}),
                 Reason.HOOK_CONFLICT, '"https://h:web/x"', id="hook-https"),
    pytest.param(pod({**NO_COMMAND, "lifecycle": {"preStop": {"tcpSocket": {"port": 80}}}}),
                 Reason.HOOK_CONFLICT, "is a tcpSocket hook, which mode hook cannot combine with "
                 "its own hook; set command to the image's ENTRYPOINT to use mode wrap, which "
                 "keeps this hook (HookConflict)", id="hook-tcp"),
    *(pytest.param(pod({**NO_COMMAND, "lifecycle": {"preStop": {"sleep": sleep}}}),
                   Reason.HOOK_CONFLICT, "nor a valid sleep hook", id=f"hook-sleep-{sleep}")
      for sleep in ({}, {"seconds": -1}, {"seconds": "1"}, {"seconds": True},
                    {"seconds": 10**9})),
    # Ports
    *(pytest.param(pod(model(ports=[port]), annotations={"asya.sh/metrics-port": "9464"}),
                   Reason.PORT_CONFLICT, words, id=f"port-{name}")
      for name, port, words in (
          ("taken", {"name": "web", "containerPort": 9464}, 'the port 9464 already as "web"; '
           'choose another port, or name it "asya-metrics"'),
          ("taken-without-a-name", {"containerPort": 9464, "protocol": "TCP"},
           "the port 9464 already; choose"),
          ("name-taken", {"name": "asya-metrics", "containerPort": 80},
           'has another port named "asya-metrics"; rename'),
          ("tuned", {"name": "asya-metrics", "containerPort": 9464, "hostPort": 1},
           "has another port named"),
          ("of-udp", {"name": "asya-metrics", "containerPort": 9464, "protocol": "UDP"},
           "has another port named"),
      )),
    *(pytest.param(pod(model(), annotations={"asya.sh/metrics-port": "9464"}, **more),
                   Reason.PORT_CONFLICT, 'container "side" has the port 9464 already', id=name)
      for name, more in (
          ("port-of-a-native-sidecar", {"initContainers": [
              {"name": "side", "restartPolicy": "Always", "ports": [{"containerPort": 9464}]}]}),
      )),
    pytest.param(pod(model(), {"name": "side", "ports": [{"containerPort": 9464}]},
                     annotations={"asya.sh/metrics-port": "9464"}),
                 Reason.PORT_CONFLICT, 'container "side" has the port 9464 already',
                 id="port-of-another-container"),
    pytest.param(pod(model(env=[{"name": "ASYA_METRICS_PORT", "valueFrom": VALUE_FROM}]),
                     annotations={"asya.sh/metrics-port": "9464"}),
                 Reason.ENV_CONFLICT, "is set with valueFrom", id="port-with-value-from"),
    # Values and keys
    pytest.param(pod(model(), annotations={"asya.sh/chunk-size": "4k"}), Reason.ANNOTATION_INVALID,
                 'asya.sh/chunk-size: "4k" is not valid; must be a whole number', id="value"),
    pytest.param(pod(model(), annotations={"asya.sh/inject": "maybe"}), Reason.ANNOTATION_INVALID,
                 'asya.sh/inject: "maybe" is not valid; must be true or false', id="switch"),
    pytest.param(pod(model(), annotations={"asya.sh/handlr": "a.b"}), Reason.ANNOTATION_UNKNOWN,
                 'did you mean "asya.sh/handler"?', id="key-misspelt"),
    pytest.param({**pod(model()), "metadata": {"annotations": {"asya.sh/mode": "wrap"}}},
                 Reason.HANDLER_MISSING, "asya.sh/handler: is required when asya.sh/mode is set",
                 id="no-handler"),
    pytest.param(pod(model(), annotations={"asya.sh/inherited": "{"}), Reason.ANNOTATION_INVALID,
                 "asya.sh/inherited: was not written by the injector", id="inherited-damaged"),
    pytest.param(pod(model(), annotations={"asya.sh/chunk-size": 4096}), Reason.OBJECT_INVALID,
                 'annotation "asya.sh/chunk-size": is not a string; quote the value',
                 id="number-without-quotes"),
    # Shapes
    pytest.param({**pod(model()), "spec": []}, Reason.OBJECT_INVALID, "spec: is not a mapping",
                 id="spec-is-a-list"),
    pytest.param(pod(model(), {"name": "model"}), Reason.OBJECT_INVALID,
                 'two containers have the name "model"', id="equal-names"),
    pytest.param(pod(model(), initContainers=[{"name": "model"}]), Reason.OBJECT_INVALID,
                 'two containers have the name "model"', id="name-of-an-init-container"),
    pytest.param(pod(model(command="serve")), Reason.OBJECT_INVALID,
                 "command: is not a list of strings", id="command-is-a-string"),
    pytest.param(pod(model(env=[None])), Reason.OBJECT_INVALID, "env: is not a list of mappings",
                 id="env-of-null"),
    # Containers
    pytest.param(pod(model(), annotations={"asya.sh/container": "native"},
                     initContainers=[{"name": "native", "restartPolicy": "Always"}]),
                 Reason.CONTAINER_NOT_FOUND, '"native" is a native sidecar', id="native-target"),
    pytest.param(pod(model(), annotations={"asya.sh/sidecars": "setup"},
                     initContainers=[{"name": "setup"}]),
                 Reason.SIDECAR_NOT_FOUND, '"setup" is an init container', id="init-as-sidecar"),
    pytest.param(pod(model(), annotations={"asya.sh/sidecars": "x"}), Reason.SIDECAR_NOT_FOUND,
                 "the pod has no other container", id="no-sidecar-at-all"),
    pytest.param(pod(model(), nodeSelector={"beta.kubernetes.io/os": "windows"}),
                 Reason.WINDOWS_UNSUPPORTED, "Windows", id="windows-by-old-label"),
    pytest.param(pod(model(), affinity=affinity(WINDOWS)), Reason.WINDOWS_UNSUPPORTED, "Windows",
                 id="windows-by-affinity"),
    # Mounts
    pytest.param(pod(model(volumeMounts=[{"name": "v", "mountPath": "opt/./asya//"}])),
                 Reason.MOUNT_CONFLICT, 'mounts "v" at "/opt/asya"',
                 id="mount-at-the-runtime-not-normalized"),
    pytest.param(pod(model(volumeMounts=[{"name": "v", "mountPath": "//tmp/x/../sockets/a/"}])),
                 Reason.MOUNT_CONFLICT, 'at "/tmp/sockets/a"',
                 id="mount-below-the-socket-not-normalized"),
    pytest.param(pod(model(volumeDevices=[{"name": "v", "devicePath": "/opt/asya/disk"}])),
                 Reason.MOUNT_CONFLICT, 'mounts "v" at "/opt/asya/disk"', id="block-device"),
    *(pytest.param(pod(model(volumeMounts=[{"name": "v", "mountPath": "/opt"}]),
                       volumes=[{"name": "v", source: {}}]),
                   Reason.MOUNT_CONFLICT, 'at "/opt" read-only, so nothing can be mounted at '
                   '"/opt/asya" inside it', id=f"inside-a-volume-of-{source}")
      for source in ("configMap", "secret", "projected", "downwardAPI", "image")),
    pytest.param(pod(model(volumeMounts=[{"name": "v", "mountPath": "/tmp", "readOnly": True}])),
                 Reason.MOUNT_CONFLICT, "asya.sh/socket-path: ", id="inside-a-read-only-mount"),
    pytest.param(pod(model(volumeMounts=[{"name": "v", "mountPath": "/tmp/sockets",
                                          "readOnly": True}])),
                 Reason.MOUNT_CONFLICT, "read-only, so the socket cannot be created there",
                 id="socket-directory-read-only"),
    pytest.param(pod(model(volumeMounts=[{"name": "v", "mountPath": "/tmp/sockets",
                                          "subPathExpr": "$(A)"}]), {"name": "asya-sidecar"}),
                 Reason.MOUNT_CONFLICT, "with subPathExpr", id="sub-path-by-expression"),
    pytest.param(pod(model(volumeMounts=[{"name": "v", "mountPath": "/tmp/sockets",
                                          "subPath": "a"}]),
                     {"name": "asya-sidecar",
                      "volumeMounts": [{"name": "v", "mountPath": "/tmp/sockets"}]}),
                 Reason.MOUNT_CONFLICT, "which does not hold the socket",
                 id="sidecar-mounts-another-sub-path"),
    pytest.param(pod(model(volumeMounts=[{"name": "v", "mountPath": "/tmp/sockets"}]),
                     {"name": "asya-sidecar",
                      "volumeMounts": [{"name": "v", "mountPath": "/tmp/sockets",
                                        "subPathExpr": "$(A)"}]}),
                 Reason.MOUNT_CONFLICT, "which does not hold the socket",
                 id="sidecar-mounts-a-sub-path-by-expression"),
    # Variables of sidecars
    pytest.param(pod(model(), {"name": "asya-sidecar",
                               "env": [{"name": "ASYA_SOCKET_PATH", "value": "/run/x.sock"}]}),
                 Reason.ENV_CONFLICT, 'container "asya-sidecar": is "/run/x.sock", but the '
                 'socket is "/tmp/sockets/app.sock"', id="sidecar-with-another-socket"),
    pytest.param(pod(model(), {"name": "asya-sidecar", "env": [{"name": "ASYA_SOCKET_PATH",
                                                                "value": "/run/asya/x.sock"}]}),
                 Reason.ENV_CONFLICT, 'ending in "app.sock"', id="sidecar-with-another-file-name"),
    pytest.param(pod(model(), {"name": "asya-sidecar",
                               "env": [{"name": "ASYA_SOCKET_PATH", "value": "sockets/app.sock"}]}),
                 Reason.ENV_CONFLICT, '"sockets/app.sock" is not valid; must be an absolute path',
                 id="sidecar-with-a-relative-path"),
    pytest.param(pod(model(), {"name": "asya-sidecar",
                               "env": [{"name": "ASYA_SOCKET_PATH", "value": "/etc/app.sock"}]}),
                 Reason.ENV_CONFLICT, '"/etc/app.sock" is not valid; must be an absolute path',
                 id="sidecar-with-a-path-of-the-system"),
    pytest.param(pod(model(), {"name": "asya-sidecar", "env": [{"name": "ASYA_SOCKET_PATH",
                                                                "valueFrom": VALUE_FROM}]}),
                 Reason.ENV_CONFLICT, "is set with valueFrom", id="sidecar-with-value-from"),
    # Starting
    pytest.param(pod(model(command=[*WRAPPER, "--", "app"]), annotations={"asya.sh/mode": "hook"}),
                 Reason.COMMAND_CONFLICT, "already starts the runtime with the wrapper",
                 id="wrapper-by-hand-in-mode-hook"),
    pytest.param(pod({**NO_COMMAND, "args": [*WRAPPER, "--", "app"]},
                     annotations={"asya.sh/mode": "hook"}),
                 Reason.COMMAND_CONFLICT, "already starts the runtime with the wrapper",
                 id="wrapper-in-args-in-mode-hook"),
    pytest.param(pod({**NO_COMMAND, "lifecycle": {"postStart": {"exec": {"command": []}}}}),
                 Reason.HOOK_CONFLICT, "lifecycle.postStart", id="hook-without-a-command"),
]  # fmt: skip


# Only where the runtime comes from an image.
REJECTED_FROM_IMAGE = [
    *(pytest.param(pod(model(), annotations={"asya.sh/mount-path": path}),
                   Reason.MOUNT_PATH_UNSUPPORTED, f'asya.sh/mount-path: "{path}" is a file',
                   id=f"a-file-{path}")
      for path in ("/app/asya_runtime.py", "/opt/asya/asya_runtime.py")),
    pytest.param(pod(model(volumeMounts=[{"name": "asya-runtime", "mountPath": "/x"}]),
                     volumes=[{"name": "asya-runtime", "image": {"reference": "mine:1"}}]),
                 Reason.VOLUME_CONFLICT, 'volume "asya-runtime"', id="users-image-volume"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "reason", "text", "defaults"),
    [
        pytest.param(*case.values, defaults, id=f"{case.id}-{defaults.image and 'image'}")
        for cases, deliveries in (
            (REJECTED, (DEFAULTS, FROM_IMAGE)),
            (REJECTED_FROM_IMAGE, (FROM_IMAGE,)),
        )
        for case in cases
        for defaults in deliveries
    ],
)
def test_rejects_with_the_reason_code(
    given: Object, reason: Reason, text: str, defaults: ClusterDefaults
) -> None:
    error = reject(given, defaults)
    assert error.reason == reason
    assert text in str(error)
    assert str(error).endswith(f" ({reason})")


@pytest.mark.parametrize(
    "rules",
    [
        [{**RULE, "operator": "NotIn"}],
        [{**RULE, "values": ["windows", "linux"]}],
        [{**RULE, "key": "pool"}],
        [],
    ],
    ids=["not-in", "either", "another-key", "none"],
)
def test_accepts_a_pod_that_may_run_on_linux(rules: list[Object]) -> None:
    assert inject(pod(model(), affinity=affinity({"matchExpressions": rules})), DEFAULTS)
    assert inject(pod(model(), affinity=affinity(WINDOWS, {"matchExpressions": rules})), DEFAULTS)


# --- The troubleshooting page

# Not caused by a pod: faults of the injector and of the namespace (http/test_body.py,
# webhook/test_server.py, webhook/test_runtime_configmap.py, webhook/test_image_volumes.py).
OF_THE_CLUSTER = {
    Reason.INTERNAL_ERROR,
    Reason.KUBERNETES_UNSUPPORTED,
    Reason.REVIEW_TOO_LARGE,
    Reason.RUNTIME_CONFIGMAP_CONFLICT,
    Reason.RUNTIME_CONFIGMAP_UNAVAILABLE,
}
SECTIONS = dict(
    re.findall(
        r"^## ([A-Z][A-Za-z]+)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
)


# Each pod that is rejected, with its reason and the cluster defaults.
ALL_REJECTED = (
    [(*case.values[:2], DEFAULTS) for case in REJECTED]
    + [(*case.values[:2], FROM_IMAGE) for case in REJECTED_FROM_IMAGE]
    + [(*case.values[:2], case.values[3]) for case in test_sidecar.ALL_REJECTED]
)


def test_the_tables_have_each_reason_that_a_pod_can_cause() -> None:
    assert {reason for _, reason, _ in ALL_REJECTED} == set(Reason) - OF_THE_CLUSTER


@pytest.mark.parametrize("reason", sorted(OF_THE_CLUSTER))
def test_another_test_names_each_other_reason(reason: Reason) -> None:
    folders = (Path(__file__).parents[1], PAGE.parent.parent / "e2e")
    files = [path for folder in folders for path in folder.rglob("*.py") if path != Path(__file__)]
    texts = [path.read_text() for path in files]
    assert any(f"Reason.{reason.name}" in text or str(reason) in text for text in texts)


@pytest.mark.parametrize("reason", sorted(Reason))
def test_each_section_has_a_meaning_an_example_and_a_fix(reason: Reason) -> None:
    meaning, _, rest = SECTIONS[str(reason)].partition("```text\n")
    example, _, fix = rest.partition("\n```")
    assert len(meaning.split()) >= 8
    assert len(fix.split()) >= 5
    assert example.endswith(f" ({reason})")
    assert example.isprintable()


@pytest.mark.parametrize("reason", sorted(set(Reason) - OF_THE_CLUSTER))
def test_each_example_is_a_line_that_the_injector_writes(reason: Reason) -> None:
    example = SECTIONS[str(reason)].partition("```text\n")[2].partition("\n```")[0]
    lines = {str(reject(given, defaults)) for given, why, defaults in ALL_REJECTED if why == reason}  # type: ignore[arg-type]
    assert example in lines
