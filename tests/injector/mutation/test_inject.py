"""The injection of a pod: whole objects in and out."""

import copy
import json
from typing import Any

import pytest
from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.errors import InjectionError, Reason
from asya_injector.mutation.inject import Injection, inject

from tests.support.deliveries import check_both_deliveries, from_image

Object = dict[str, Any]

HASH = "0123456789"
DEFAULTS = ClusterDefaults(HASH, {})
HANDLER = {"asya.sh/handler": "my_app.handler.predict"}
WRAPPER = ["python3", "-I", "-S", "/opt/asya/asya_entrypoint.py"]
READY = [*WRAPPER, "--ready"]
RUNTIME_VOLUME = {
    "name": "asya-runtime",
    "configMap": {"name": f"asya-runtime-{HASH}", "defaultMode": 0o444},
}
SOCKET_VOLUME = {"name": "asya-socket", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}
RUNTIME_MOUNT = {"name": "asya-runtime", "mountPath": "/opt/asya", "readOnly": True}
SOCKET_MOUNT = {"name": "asya-socket", "mountPath": "/tmp/sockets"}
PROBE = {"exec": {"command": READY}, "periodSeconds": 5, "timeoutSeconds": 10}
ENV = [
    {"name": "ASYA_HANDLER", "value": "my_app.handler.predict"},
    {"name": "ASYA_SOCKET_PATH", "value": "/tmp/sockets/app.sock"},
    {"name": "ASYA_SOCKET_MODE", "value": "0666"},
]
SERVE = ["gunicorn", "app:server"]
RECORD = {
    "container": "model",
    "mode": "wrap",
    "runtime": HASH,
    "added": {
        "model": [
            "env ASYA_HANDLER=my_app.handler.predict",
            "env ASYA_SOCKET_PATH=/tmp/sockets/app.sock",
            "env ASYA_SOCKET_MODE=0666",
            "mount asya-runtime:/opt/asya",
            "mount asya-socket:/tmp/sockets",
            "wrapper",
            "readinessProbe",
        ],
        "asya-sidecar": [
            "env ASYA_SOCKET_PATH=/tmp/sockets/app.sock",
            "mount asya-socket:/tmp/sockets",
        ],
    },
    "volumes": ["asya-runtime", "asya-socket"],
    "python": "",
}


def pod(*containers: Object, annotations: Object | None = None, **spec: Any) -> Object:
    """A pod whose first container holds the handler."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", "annotations": {**HANDLER, **(annotations or {})}},
        "spec": {"containers": list(containers), **spec},
    }


def model(**fields: Any) -> Object:
    return {"name": "model", "image": "model:1", "command": SERVE, **fields}


def injected(given: Object, defaults: ClusterDefaults = DEFAULTS) -> Injection:
    """The injection; checks that it keeps the input, and that a second one changes nothing.

    For a pod that was not injected before, also that it is the same with the other delivery.
    """
    before = copy.deepcopy(given)
    result = inject(given, defaults)
    assert result is not None
    assert given == before
    again = inject(result.pod, defaults)
    assert again is not None
    assert again.pod == result.pod
    assert again.mode.value == result.mode.value
    names = [each["name"] for each in given["spec"].get("volumes") or ()]
    is_new = "asya.sh/injected" not in given["metadata"]["annotations"]
    if is_new and "asya-runtime" not in names and not defaults.image:
        check_both_deliveries(given, result.pod, defaults)
    return result


def container(given: Object, defaults: ClusterDefaults = DEFAULTS, name: str = "model") -> Object:
    result = injected(given, defaults).pod["spec"]
    everyone = result["containers"] + result.get("initContainers", [])
    return next(item for item in everyone if item["name"] == name)


@pytest.mark.parametrize(
    ("given", "values", "ports"),
    [
        ({}, {}, None),
        ({}, {"metrics-port": "9464"}, [9464]),
        ({"annotations": {"asya.sh/metrics-port": "9465"}}, {"metrics-port": "9464"}, [9465]),
        ({"annotations": {"asya.sh/metrics-port": "0"}}, {"metrics-port": "9464"}, None),
        ({"env": [{"name": "ASYA_METRICS_PORT", "value": "9466"}]}, {}, [9466]),
        (
            {"env": [{"name": "ASYA_METRICS_PORT", "valueFrom": {"fieldRef": {"fieldPath": "a"}}}]},
            {"metrics-port": "9464"},
            None,
        ),
        ({"ports": [{"containerPort": 80}]}, {"metrics-port": "9464"}, [80, 9464]),
        ({"hostNetwork": True}, {"metrics-port": "9464"}, None),
    ],
)
def test_declares_the_port_of_the_metrics(
    given: Object, values: dict[str, str], ports: list[int] | None
) -> None:
    fields = {key: value for key, value in given.items() if key in ("env", "ports")}
    more = {key: value for key, value in given.items() if key not in fields}
    result = injected(pod(model(**fields), **more), ClusterDefaults(HASH, values))
    found = result.pod["spec"]["containers"][0].get("ports")
    assert found == (
        None
        if ports is None
        else [
            {"containerPort": 80}
            if number == 80
            else {"name": "asya-metrics", "containerPort": number, "protocol": "TCP"}
            for number in ports
        ]
    )
    warned = [line for line in result.warnings if "metrics is not declared" in line]
    assert len(warned) == ("hostNetwork" in given)


def test_moves_the_port_of_the_metrics_when_the_setting_changes() -> None:
    first = injected(pod(model(), annotations={"asya.sh/metrics-port": "9464"})).pod
    first["metadata"]["annotations"]["asya.sh/metrics-port"] = "9465"
    assert injected(first).pod["spec"]["containers"][0]["ports"] == [
        {"name": "asya-metrics", "containerPort": 9465, "protocol": "TCP"}
    ]


def reject(given: Object) -> InjectionError:
    with pytest.raises(InjectionError) as caught:
        inject(given, DEFAULTS)
    assert str(caught.value).isprintable()
    return caught.value


def facts(injection: Injection) -> Object:
    """All of an injection but the reasons, which depend on what was there before."""
    return {
        "pod": injection.pod,
        "container": injection.container.value,
        "mode": injection.mode.value,
        "socket_volume": injection.socket_volume.value,
        "warnings": injection.warnings,
    }


def env(item: Object) -> dict[str, str]:
    return {entry["name"]: entry.get("value") for entry in item["env"]}


# --- The usual pod, whole


def test_wraps_the_command_of_a_pod() -> None:
    given = pod(
        model(args=["--port", "$(PORT)"], env=[{"name": "SOCKET", "value": "$(ASYA_SOCKET_PATH)"}]),
        {"name": "asya-sidecar", "image": "sidecar:1"},
    )
    result = injected(given)
    record = json.loads(result.pod["metadata"]["annotations"].pop("asya.sh/injected"))
    assert len(record.pop("asked")) == 10
    assert record == RECORD
    assert facts(result) == {
        "container": "model",
        "mode": "wrap",
        "socket_volume": "asya-socket",
        "warnings": (),
        "pod": {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": "p",
                "annotations": HANDLER,
                "labels": {"asya.sh/runtime-hash": HASH},
            },
            "spec": {
                "containers": [
                    {
                        "name": "model",
                        "image": "model:1",
                        "command": [*WRAPPER, "--", *SERVE],
                        "args": ["--port", "$(PORT)"],
                        "env": [*ENV, {"name": "SOCKET", "value": "$(ASYA_SOCKET_PATH)"}],
                        "volumeMounts": [RUNTIME_MOUNT, SOCKET_MOUNT],
                        "readinessProbe": PROBE,
                    },
                    {
                        "name": "asya-sidecar",
                        "image": "sidecar:1",
                        "env": [{"name": "ASYA_SOCKET_PATH", "value": "/tmp/sockets/app.sock"}],
                        "volumeMounts": [SOCKET_MOUNT],
                    },
                ],
                "volumes": [RUNTIME_VOLUME, SOCKET_VOLUME],
            },
        },
    }


@pytest.mark.parametrize(
    "annotations",
    [
        pytest.param(None, id="none"),
        pytest.param({}, id="empty"),
        pytest.param({"example.com/handler": "a.b"}, id="other-keys"),
        pytest.param({**HANDLER, "asya.sh/inject": "false"}, id="switched-off"),
        pytest.param({"asya.sh/injected": "{}"}, id="only-a-record"),
        pytest.param({"asya.sh/inherited": '{"asya.sh/handler":"a.b"}', "asya.sh/inject": "no"},
                     id="inherited-but-switched-off"),
    ],
)  # fmt: skip
def test_does_not_inject_a_pod_without_annotations(annotations: Object | None) -> None:
    given = pod(model())
    given["metadata"]["annotations"] = annotations
    assert inject(given, DEFAULTS) is None


def test_inherited_annotations_count_too() -> None:
    given = pod(model())
    given["metadata"]["annotations"] = {"asya.sh/inherited": json.dumps(HANDLER)}
    assert env(container(given))["ASYA_HANDLER"] == "my_app.handler.predict"


def test_keeps_unknown_fields() -> None:
    given = pod(model(futureField={"a": [1]}), futureSpec=[{"x": None}])
    given["status"] = {"future": True}
    result = injected(given).pod
    assert result["status"] == {"future": True}
    assert result["spec"]["futureSpec"] == [{"x": None}]
    assert result["spec"]["containers"][0]["futureField"] == {"a": [1]}


def test_takes_null_lists_and_mappings_for_absent() -> None:
    item = model(env=None, volumeMounts=None, lifecycle=None, readinessProbe=None)
    given = pod(item, volumes=None, initContainers=None)
    given["metadata"]["labels"] = None
    assert injected(given).pod["spec"]["volumes"] == [RUNTIME_VOLUME, SOCKET_VOLUME]


# --- Containers


def test_selects_the_first_container_unless_an_annotation_names_another() -> None:
    both = [model(), {**model(), "name": "other"}]
    assert injected(pod(*both)).container.value == "model"
    kubectl = {"kubectl.kubernetes.io/default-container": "other"}
    assert injected(pod(*both, annotations=kubectl)).container.value == "other"
    named = {**kubectl, "asya.sh/container": "model"}
    assert injected(pod(*both, annotations=named)).container.value == "model"


@pytest.mark.parametrize(
    "more", [{}, {"volumeMounts": [{"name": "asya-runtime", "mountPath": "/data"}]}]
)
def test_keeps_the_container_if_another_webhook_puts_one_in_front(
    more: Object,
) -> None:
    first = injected(pod(model())).pod
    first["spec"]["containers"].insert(0, {"name": "proxy", "image": "proxy:1", **more})
    second = injected(first)
    assert second.container.value == "model"
    assert second.pod == first


def test_mounts_the_socket_in_a_sidecar_that_another_webhook_has_added() -> None:
    first = injected(pod(model())).pod
    first["spec"]["containers"].append({"name": "asya-sidecar"})
    assert container(first, name="asya-sidecar")["volumeMounts"] == [SOCKET_MOUNT]


def test_mounts_the_socket_in_a_native_sidecar() -> None:
    native = {"name": "asya-sidecar", "restartPolicy": "Always"}
    assert container(pod(model(), initContainers=[native]), name="asya-sidecar") == {
        "name": "asya-sidecar",
        "restartPolicy": "Always",
        "env": [{"name": "ASYA_SOCKET_PATH", "value": "/tmp/sockets/app.sock"}],
        "volumeMounts": [SOCKET_MOUNT],
    }


def test_ignores_a_missing_sidecar_of_the_chart() -> None:
    assert injected(pod(model())).pod["spec"]["containers"][0]["name"] == "model"


# --- Settings


def test_emits_no_defaults_as_env() -> None:
    defaults = ClusterDefaults(HASH, {"chunk-size": "8192", "concurrency": "1"})
    given = pod(model(), annotations={"asya.sh/json": "auto", "asya.sh/handler-timeout": "0"})
    assert env(container(given, defaults)) == {
        "ASYA_HANDLER": "my_app.handler.predict",
        "ASYA_SOCKET_PATH": "/tmp/sockets/app.sock",
        "ASYA_SOCKET_MODE": "0666",
        "ASYA_CHUNK_SIZE": "8192",
        "ASYA_HANDLER_TIMEOUT": "0",
        "ASYA_JSON": "auto",
    }


def test_keeps_the_users_env_without_an_annotation() -> None:
    mine = [
        {"name": "ASYA_CHUNK_SIZE", "value": "1"},
        {"name": "ASYA_JSON", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}},
    ]
    result = container(
        pod(model(env=mine)), ClusterDefaults(HASH, {"json": "auto", "chunk-size": "9"})
    )
    assert result["env"] == [*ENV, *mine]


def test_takes_the_users_empty_variable_for_the_default_as_the_runtime_does() -> None:
    empty = [{"name": name, "value": ""} for name in ("ASYA_SOCKET_PATH", "ASYA_CHUNK_SIZE")]
    result = container(pod(model(env=empty)), ClusterDefaults(HASH, {"chunk-size": "9"}))
    assert result["env"] == [ENV[0], ENV[2], *empty]
    assert result["volumeMounts"][1] == SOCKET_MOUNT
    conflict = reject(pod(model(env=empty), annotations={"asya.sh/chunk-size": "1"}))
    assert conflict.reason == Reason.ENV_CONFLICT


def test_the_last_of_two_variables_of_one_name_counts_as_for_the_kubelet() -> None:
    paths = ["/run/one/app.sock", "/run/two/app.sock"]
    mine = [{"name": "ASYA_SOCKET_PATH", "value": path} for path in paths]
    assert container(pod(model(env=mine)))["volumeMounts"][1]["mountPath"] == "/run/two"


def test_mounts_follow_the_users_socket_path() -> None:
    mine = [{"name": "ASYA_SOCKET_PATH", "value": "/run/model/app.sock"}]
    given = pod(model(env=mine), {"name": "asya-sidecar"})
    assert container(given)["volumeMounts"][1]["mountPath"] == "/run/model"
    sidecar = container(given, name="asya-sidecar")
    assert sidecar["volumeMounts"][0]["mountPath"] == "/run/model"
    assert env(sidecar) == {"ASYA_SOCKET_PATH": "/run/model/app.sock"}


def test_shares_the_users_volume_at_the_sockets_directory() -> None:
    mine = {"name": "mine", "mountPath": "/tmp/sockets/", "subPath": "a"}
    given = pod(
        model(volumeMounts=[mine]),
        {"name": "asya-sidecar"},
        volumes=[{"name": "mine", "emptyDir": {}}],
    )
    assert container(given)["volumeMounts"] == [mine, RUNTIME_MOUNT]
    assert "ASYA_SOCKET_MODE" not in env(container(given))
    assert container(given, name="asya-sidecar")["volumeMounts"] == [
        {"name": "mine", "mountPath": "/tmp/sockets", "subPath": "a"}
    ]
    assert injected(given).pod["spec"]["volumes"] == [
        {"name": "mine", "emptyDir": {}},
        RUNTIME_VOLUME,
    ]


def test_mounts_the_socket_volume_inside_the_users_volume() -> None:
    mine = {"name": "tmp", "mountPath": "/tmp"}
    given = pod(model(volumeMounts=[mine]), volumes=[{"name": "tmp", "emptyDir": {}}])
    assert container(given)["volumeMounts"] == [mine, RUNTIME_MOUNT, SOCKET_MOUNT]


def test_mounts_a_single_file_beside_the_directory() -> None:
    given = pod(model(), annotations={"asya.sh/mount-path": "/app/asya_runtime.py"})
    result = container(given)
    assert result["volumeMounts"] == [
        RUNTIME_MOUNT,
        {
            "name": "asya-runtime",
            "mountPath": "/app/asya_runtime.py",
            "subPath": "asya_runtime.py",
            "readOnly": True,
        },
        SOCKET_MOUNT,
    ]
    assert result["command"] == [*WRAPPER, "--runtime", "/app/asya_runtime.py", "--", *SERVE]
    ready = [*READY, "--runtime", "/app/asya_runtime.py"]
    assert result["readinessProbe"]["exec"]["command"] == ready


def test_the_stopping_hook_needs_no_path_of_the_runtime() -> None:
    where = {"asya.sh/mount-path": "/app/asya_runtime.py", "asya.sh/mode": "hook"}
    lifecycle = container(pod(model(), annotations=where))["lifecycle"]
    started = [*WRAPPER, "--detach", "--runtime", "/app/asya_runtime.py"]
    assert lifecycle["postStart"]["exec"]["command"] == started
    assert lifecycle["preStop"]["exec"]["command"] == [*WRAPPER, "--stop"]


def test_another_mount_path_moves_all_runtime_files() -> None:
    result = container(pod(model(), annotations={"asya.sh/mount-path": "/srv/asya"}))
    assert result["command"][3] == "/srv/asya/asya_entrypoint.py"
    assert result["readinessProbe"]["exec"]["command"][3] == "/srv/asya/asya_entrypoint.py"
    assert result["volumeMounts"][0]["mountPath"] == "/srv/asya"


# --- Startup

INTERPRETERS = [
    pytest.param(["python", "app.py"], {}, "python", id="bare"),
    pytest.param(["/opt/venv/bin/python3.11", "app.py"], {}, "/opt/venv/bin/python3.11", id="venv"),
    pytest.param(["pypy3", "app.py"], {}, "pypy3", id="pypy"),
    pytest.param(["pythonista", "app.py"], {}, "python3", id="only-similar"),
    pytest.param(["sh", "-c", "python app.py"], {}, "python3", id="shell"),
    pytest.param(["tini", "--", "python", "app.py"], {}, "python", id="tini"),
    pytest.param(["/usr/bin/tini", "-g", "-p", "SIGTERM", "/opt/venv/bin/python", "-m", "app"], {},
                 "/opt/venv/bin/python", id="tini-with-options"),
    pytest.param(["dumb-init", "python3.12", "app.py"], {}, "python3.12", id="dumb-init"),
    pytest.param(["dumb-init", "--rewrite", "15:2", "--", "python3.13t"], {}, "python3.13t",
                 id="dumb-init-with-options"),
    pytest.param(["tini", "-e", "143", "--", "python3.9"], {}, "python3.9", id="tini-with-status"),
    pytest.param(["catatonit", "--", "/usr/bin/python3.9"], {}, "/usr/bin/python3.9",
                 id="catatonit"),
    pytest.param(["tini", "-g"], {}, "python3", id="tini-alone"),
    pytest.param(["tini", "--", "gunicorn"], {}, "python3", id="tini-with-another-program"),
    pytest.param(["conda", "run", "-n", "env", "python", "app.py"], {}, "python3", id="conda"),
    pytest.param(["poetry", "run", "python", "app.py"], {}, "python3", id="poetry"),
    pytest.param(["/opt/venv/bin/gunicorn", "app"], {}, "python3", id="script-in-a-venv"),
    pytest.param(["$(VENV)/bin/python", "app.py"], {}, "python3", id="expanded-by-the-kubelet"),
    pytest.param(["python", "app.py"], {"asya.sh/python": "/opt/p/bin/python"},
                 "/opt/p/bin/python", id="annotation"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "annotations", "python"), INTERPRETERS)
def test_uses_the_interpreter_of_the_command(
    command: list[str], annotations: Object, python: str
) -> None:
    result = container(pod(model(command=command), annotations=annotations))
    assert result["command"] == [python, *WRAPPER[1:], "--", *command]
    assert result["readinessProbe"]["exec"]["command"] == [python, *READY[1:]]


def test_uses_hooks_without_a_command() -> None:
    item = model(args=["serve"])
    del item["command"]
    result = injected(pod(item))
    assert result.mode.value == "hook"
    changed = result.pod["spec"]["containers"][0]
    assert "command" not in changed
    assert changed["args"] == ["serve"]
    assert changed["lifecycle"] == {
        "postStart": {"exec": {"command": [*WRAPPER, "--detach"]}},
        "preStop": {"exec": {"command": [*WRAPPER, "--stop"]}},
    }


def test_updates_a_wrapper_in_args() -> None:
    item = model(args=[*WRAPPER, "--", "serve"])
    del item["command"]
    result = injected(pod(item))
    assert result.mode.value == "wrap"
    changed = result.pod["spec"]["containers"][0]
    assert (changed["args"], changed.keys() & {"command", "lifecycle"}) == (item["args"], set())


def test_chains_the_users_exec_hooks() -> None:
    item = model(
        lifecycle={
            "postStart": {"exec": {"command": ["warm-up", "--", "x"]}},
            "stopSignal": "SIGINT",
        }
    )
    changed = container(pod(item, annotations={"asya.sh/mode": "hook"}))
    assert changed["lifecycle"] == {
        "postStart": {"exec": {"command": [*WRAPPER, "--detach", "--", "warm-up", "--", "x"]}},
        "preStop": {"exec": {"command": [*WRAPPER, "--stop"]}},
        "stopSignal": "SIGINT",
    }
    assert changed["command"] == SERVE


def test_mode_runtime_makes_the_runtime_the_containers_program() -> None:
    item = model()
    del item["command"]
    changed = container(pod(item, annotations={"asya.sh/mode": "runtime"}))
    assert changed["command"] == ["python3", "/opt/asya/asya_runtime.py"]


def test_mode_mount_starts_nothing() -> None:
    changed = container(pod(model(), annotations={"asya.sh/mode": "mount"}))
    assert changed["command"] == SERVE
    assert "lifecycle" not in changed


def test_keeps_the_users_readiness_probe_and_warns() -> None:
    probe = {"httpGet": {"port": 80}}
    result = injected(pod(model(readinessProbe=probe)))
    assert result.pod["spec"]["containers"][0]["readinessProbe"] == probe
    assert result.warnings == (
        'container "model" keeps its own readiness probe, so the pod may become ready '
        "before the actor",
    )


def test_adds_no_probe_if_it_is_disabled() -> None:
    changed = container(pod(model(), annotations={"asya.sh/probe": "false"}))
    assert "readinessProbe" not in changed


# --- Copies from other releases, and forged records


def test_moves_a_copied_pod_of_another_release_to_the_current_runtime() -> None:
    old = inject(pod(model()), ClusterDefaults("aaaaaaaaaa", {}))
    assert old is not None
    assert injected(old.pod).pod == injected(pod(model())).pod


def test_moves_an_unrecorded_volume_of_another_release_and_keeps_its_mode() -> None:
    source = {"name": "asya-runtime-aaaaaaaaaa", "defaultMode": 0o400, "optional": False}
    given = pod(model(), volumes=[{"name": "asya-runtime", "configMap": source}])
    assert injected(given).pod["spec"]["volumes"] == [
        {"name": "asya-runtime", "configMap": source | {"name": f"asya-runtime-{HASH}"}},
        SOCKET_VOLUME,
    ]


def test_moves_an_unrecorded_volume_of_the_other_delivery_with_its_mount() -> None:
    image = from_image(DEFAULTS)
    for first, second in ((DEFAULTS, image), (image, DEFAULTS)):
        given = injected(pod(model()), first).pod
        del given["metadata"]["annotations"]["asya.sh/injected"]
        fresh = injected(pod(model()), second).pod
        assert injected(given, second).pod["spec"] == fresh["spec"]


def test_another_container_may_mount_the_volume_in_its_own_way() -> None:
    """Its volume does not exist before the injection, which `injected` repeats in both forms."""
    mount = {"name": "asya-runtime", "mountPath": "/files", "subPath": "a"}
    result = injected(pod(model(), initContainers=[{"name": "a", "volumeMounts": [mount]}]))
    assert result.pod["spec"]["initContainers"][0]["volumeMounts"] == [mount]


def test_overwrites_a_forged_record() -> None:
    given = pod(model(), annotations={"asya.sh/injected": '{"mode":"none"}'})
    assert injected(given).pod == injected(pod(model())).pod


# --- Reinvocation after another webhook


def test_keeps_the_wrapper_of_another_webhook_around_the_injectors() -> None:
    given = injected(pod(model(args=["-v"]))).pod
    changed = given["spec"]["containers"][0]
    changed |= {"command": ["/vault/vault-env"], "args": changed["command"] + changed["args"]}
    assert injected(given).pod == given


def test_wraps_a_command_that_another_webhook_gave_a_hooked_container() -> None:
    item = {"name": "model", "args": ["serve"]}
    given = injected(pod(item)).pod
    given["spec"]["containers"][0] |= {"command": ["/vault/vault-env"]}
    result = injected(given)
    assert result.mode.value == "wrap"
    assert result.pod == injected(pod({**item, "command": ["/vault/vault-env"]})).pod


def test_keeps_a_variable_that_another_webhook_has_put_first() -> None:
    given = injected(pod(model())).pod
    given["spec"]["containers"][0]["env"].insert(0, {"name": "A", "value": "1"})
    assert injected(given).pod == given


def test_keeps_the_container_in_a_copy_of_another_release() -> None:
    given = injected(pod(model()), ClusterDefaults("aaaaaaaaaa", {"json": "auto"})).pod
    given["spec"]["containers"].insert(0, {"name": "proxy"})
    assert injected(given).container.value == "model"


# --- Copies of actors, with other settings

TO = [
    pytest.param({"asya.sh/mode": "hook"}, {}, id="mode-hook"),
    pytest.param({"asya.sh/mode": "mount"}, {}, id="mode-mount"),
    pytest.param({"asya.sh/handler": "other.handler"}, {}, id="handler"),
    pytest.param({"asya.sh/container": "other"}, {}, id="container"),
    pytest.param({"asya.sh/sidecars": "other"}, {}, id="sidecars"),
    pytest.param({"asya.sh/mount-path": "/srv/asya"}, {}, id="mount-path"),
    pytest.param({"asya.sh/socket-path": "/run/model/s.sock"}, {}, id="socket-path"),
    pytest.param({"asya.sh/probe": "false"}, {}, id="probe"),
    pytest.param({"asya.sh/python": "/opt/venv/bin/python"}, {}, id="python"),
    pytest.param({}, {"chunk-size": "9", "json": "auto"}, id="chart-values"),
]


@pytest.mark.parametrize(("annotations", "defaults"), TO)
def test_a_copied_pod_keeps_nothing_of_its_old_settings(
    annotations: Object, defaults: Object
) -> None:
    containers = [model(env=[{"name": "A", "value": "1"}]), {"name": "other", "command": ["x"]}]
    old = {"asya.sh/mode": "wrap", "asya.sh/concurrency": "2"}
    copied = injected(
        pod(*containers, annotations=old), ClusterDefaults("aaaaaaaaaa", {"json": "auto"})
    ).pod
    record = copied["metadata"]["annotations"]["asya.sh/injected"]
    copied["metadata"]["annotations"] = {**HANDLER, **annotations, "asya.sh/injected": record}
    fresh = pod(*containers, annotations=annotations)
    current = ClusterDefaults(HASH, defaults)
    assert facts(injected(copied, current)) == facts(injected(fresh, current))


def test_an_actor_follows_changed_chart_values_when_it_is_admitted_again() -> None:
    old = injected(pod(model()), ClusterDefaults(HASH, {"chunk-size": "8192"})).pod
    assert injected(old).pod == injected(pod(model())).pod


def test_does_not_overwrite_an_edit_in_a_copy_silently() -> None:
    copied = injected(pod(model())).pod
    copied["spec"]["containers"][0]["env"][0]["value"] = "x.y"
    assert reject(copied).reason == Reason.ENV_CONFLICT


def test_does_not_inject_the_mirror_of_a_static_pod() -> None:
    mirror = {"kubernetes.io/config.mirror": "x"}
    assert inject(pod(model(), annotations=mirror), DEFAULTS) is None


# --- Volumes and variables of sidecars


def test_mounts_the_socket_where_the_sidecar_expects_it() -> None:
    mine = {"name": "ASYA_SOCKET_PATH", "value": "/run/asya/app.sock"}
    sidecar = {"name": "asya-sidecar", "env": [mine]}
    assert container(pod(model(), sidecar), name="asya-sidecar") == {
        **sidecar,
        "volumeMounts": [{"name": "asya-socket", "mountPath": "/run/asya"}],
    }


def test_accepts_a_sidecar_that_mounts_the_sockets_directory_read_only() -> None:
    mount = {"name": "mine", "mountPath": "/tmp/sockets"}
    sidecar = {"name": "asya-sidecar", "volumeMounts": [{**mount, "readOnly": True}]}
    given = pod(model(volumeMounts=[mount]), sidecar, volumes=[{"name": "mine", "emptyDir": {}}])
    assert container(given, name="asya-sidecar")["volumeMounts"] == sidecar["volumeMounts"]


def test_accepts_a_read_only_mount_above_a_writable_one() -> None:
    mounts = [
        {"name": "ro", "mountPath": "/opt", "readOnly": True},
        {"name": "rw", "mountPath": "/opt/asya/../asya"},
    ]
    given = pod(model(volumeMounts=mounts), annotations={"asya.sh/mount-path": "/opt/asya/x"})
    assert container(given)["volumeMounts"][2]["mountPath"] == "/opt/asya/x"


def test_keeps_unknown_fields_of_hooks() -> None:
    hook = {"exec": {"command": ["up"], "future": 1}, "more": 2}
    changed = container(
        pod(model(lifecycle={"postStart": hook}), annotations={"asya.sh/mode": "hook"})
    )["lifecycle"]["postStart"]
    assert changed["more"] == 2
    assert changed["exec"]["future"] == 1


def test_accepts_each_spelling_of_a_boolean_chart_value() -> None:
    changed = container(
        pod(model()), ClusterDefaults(HASH, {"probe": "No", "include-metadata": "YES"})
    )
    assert "readinessProbe" not in changed
    assert env(changed)["ASYA_INCLUDE_METADATA"] == "true"


def test_rejects_an_invalid_chart_value_at_start() -> None:
    with pytest.raises(InjectionError, match=r"^asya\.sh/chunk-size: "):
        ClusterDefaults(HASH, {"chunk-size": "4k"})
    with pytest.raises(KeyError, match="chunksize"):
        ClusterDefaults(HASH, {"chunksize": "4096"})
