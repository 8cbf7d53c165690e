"""The change of a pod, whole objects in and out."""

import copy
import json
from typing import Any

import pytest
from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.errors import InjectionError, Reason
from asya_injector.mutation.inject import Injection, inject

Object = dict[str, Any]

HASH = "0123456789"
POLICY = ClusterDefaults(HASH, {})
HANDLER = {"asya.sh/handler": "my_app.handler.predict"}
WRAPPER = ["python3", "-I", "-S", "/opt/asya/asya_entrypoint.py"]
READY = ["python3", "-I", "-S", "/opt/asya/asya_runtime.py", "--ready"]
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
MARK = {
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
}


def pod(*containers: Object, annotations: Object | None = None, **spec: Any) -> Object:
    """A pod that asks for its first container's handler."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", "annotations": {**HANDLER, **(annotations or {})}},
        "spec": {"containers": list(containers), **spec},
    }


def model(**fields: Any) -> Object:
    return {"name": "model", "image": "model:1", "command": SERVE, **fields}


def injected(given: Object, policy: ClusterDefaults = POLICY) -> Injection:
    """The change, with what holds for each: the input is kept, a second time changes nothing."""
    before = copy.deepcopy(given)
    result = inject(given, policy)
    assert result is not None
    assert given == before
    again = inject(result.pod, policy)
    assert again is not None
    assert again.pod == result.pod
    return result


def container(given: Object, policy: ClusterDefaults = POLICY, name: str = "model") -> Object:
    result = injected(given, policy).pod["spec"]
    everyone = result["containers"] + result.get("initContainers", [])
    return next(item for item in everyone if item["name"] == name)


def refusal(given: Object) -> InjectionError:
    with pytest.raises(InjectionError) as caught:
        inject(given, POLICY)
    assert str(caught.value).isprintable()
    return caught.value


def env(item: Object) -> dict[str, str]:
    return {entry["name"]: entry.get("value") for entry in item["env"]}


# --- The usual pod, whole


def test_a_pod_with_a_command_comes_out_wrapped() -> None:
    given = pod(
        model(args=["--port", "$(PORT)"], env=[{"name": "SOCKET", "value": "$(ASYA_SOCKET_PATH)"}]),
        {"name": "asya-sidecar", "image": "sidecar:1"},
    )
    result = injected(given)
    mark = result.pod["metadata"]["annotations"].pop("asya.sh/injected")
    said = json.loads(mark)
    assert len(said.pop("asked")) == 10
    assert said == MARK
    assert result == Injection(
        container="model",
        mode="wrap",
        warnings=(),
        pod={
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
    )


@pytest.mark.parametrize(
    "annotations",
    [
        pytest.param(None, id="none"),
        pytest.param({}, id="empty"),
        pytest.param({"example.com/handler": "a.b"}, id="of-others"),
        pytest.param({**HANDLER, "asya.sh/inject": "false"}, id="switched-off"),
        pytest.param({"asya.sh/injected": "{}"}, id="our-mark-alone"),
        pytest.param({"asya.sh/inherited": '{"asya.sh/handler":"a.b"}', "asya.sh/inject": "no"},
                     id="inherited-but-switched-off"),
    ],
)  # fmt: skip
def test_a_pod_that_does_not_ask_is_left_alone(annotations: Object | None) -> None:
    given = pod(model())
    given["metadata"]["annotations"] = annotations
    assert inject(given, POLICY) is None


def test_what_the_workload_handed_down_is_asked_for_too() -> None:
    given = pod(model())
    given["metadata"]["annotations"] = {"asya.sh/inherited": json.dumps(HANDLER)}
    assert env(container(given))["ASYA_HANDLER"] == "my_app.handler.predict"


def test_fields_that_nobody_knows_survive() -> None:
    given = pod(model(futureField={"a": [1]}), futureSpec=[{"x": None}])
    given["status"] = {"future": True}
    result = injected(given).pod
    assert result["status"] == {"future": True}
    assert result["spec"]["futureSpec"] == [{"x": None}]
    assert result["spec"]["containers"][0]["futureField"] == {"a": [1]}


def test_null_lists_and_maps_are_taken_for_absent() -> None:
    item = model(env=None, volumeMounts=None, lifecycle=None, readinessProbe=None)
    given = pod(item, volumes=None, initContainers=None)
    given["metadata"]["labels"] = None
    assert injected(given).pod["spec"]["volumes"] == [RUNTIME_VOLUME, SOCKET_VOLUME]


# --- Which container


def test_the_container_is_the_first_unless_something_says_otherwise() -> None:
    both = [model(), {**model(), "name": "other"}]
    assert injected(pod(*both)).container == "model"
    kubectl = {"kubectl.kubernetes.io/default-container": "other"}
    assert injected(pod(*both, annotations=kubectl)).container == "other"
    named = {**kubectl, "asya.sh/container": "model"}
    assert injected(pod(*both, annotations=named)).container == "model"


@pytest.mark.parametrize(
    "more", [{}, {"volumeMounts": [{"name": "asya-runtime", "mountPath": "/data"}]}]
)
def test_a_container_put_in_front_by_another_webhook_does_not_change_the_choice(
    more: Object,
) -> None:
    first = injected(pod(model())).pod
    first["spec"]["containers"].insert(0, {"name": "proxy", "image": "proxy:1", **more})
    second = injected(first)
    assert second.container == "model"
    assert second.pod == first


def test_a_sidecar_that_another_webhook_added_since_gets_the_socket() -> None:
    first = injected(pod(model())).pod
    first["spec"]["containers"].append({"name": "asya-sidecar"})
    assert container(first, name="asya-sidecar")["volumeMounts"] == [SOCKET_MOUNT]


def test_a_native_sidecar_gets_the_socket() -> None:
    native = {"name": "asya-sidecar", "restartPolicy": "Always"}
    assert container(pod(model(), initContainers=[native]), name="asya-sidecar") == {
        "name": "asya-sidecar",
        "restartPolicy": "Always",
        "env": [{"name": "ASYA_SOCKET_PATH", "value": "/tmp/sockets/app.sock"}],
        "volumeMounts": [SOCKET_MOUNT],
    }


def test_a_sidecar_of_the_charts_that_is_not_there_is_no_fault() -> None:
    assert injected(pod(model())).pod["spec"]["containers"][0]["name"] == "model"


# --- Settings


def test_only_what_somebody_decided_becomes_env() -> None:
    policy = ClusterDefaults(HASH, {"chunk-size": "8192", "concurrency": "1"})
    given = pod(model(), annotations={"asya.sh/json": "auto", "asya.sh/handler-timeout": "0"})
    assert env(container(given, policy)) == {
        "ASYA_HANDLER": "my_app.handler.predict",
        "ASYA_SOCKET_PATH": "/tmp/sockets/app.sock",
        "ASYA_SOCKET_MODE": "0666",
        "ASYA_CHUNK_SIZE": "8192",
        "ASYA_HANDLER_TIMEOUT": "0",
        "ASYA_JSON": "auto",
    }


def test_the_users_own_env_stands_where_no_annotation_speaks() -> None:
    mine = [
        {"name": "ASYA_CHUNK_SIZE", "value": "1"},
        {"name": "ASYA_JSON", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}},
    ]
    result = container(
        pod(model(env=mine)), ClusterDefaults(HASH, {"json": "auto", "chunk-size": "9"})
    )
    assert result["env"] == [*ENV, *mine]


def test_an_empty_variable_of_the_users_counts_as_the_default_as_for_the_runtime() -> None:
    empty = [{"name": name, "value": ""} for name in ("ASYA_SOCKET_PATH", "ASYA_CHUNK_SIZE")]
    result = container(pod(model(env=empty)), ClusterDefaults(HASH, {"chunk-size": "9"}))
    assert result["env"] == [ENV[0], ENV[2], *empty]
    assert result["volumeMounts"][1] == SOCKET_MOUNT
    conflict = refusal(pod(model(env=empty), annotations={"asya.sh/chunk-size": "1"}))
    assert conflict.reason == Reason.ENV_CONFLICT


def test_of_two_variables_of_one_name_the_last_counts_as_for_the_kubelet() -> None:
    paths = ["/run/one/app.sock", "/run/two/app.sock"]
    mine = [{"name": "ASYA_SOCKET_PATH", "value": path} for path in paths]
    assert container(pod(model(env=mine)))["volumeMounts"][1]["mountPath"] == "/run/two"


def test_mounts_follow_a_socket_path_that_the_user_set() -> None:
    mine = [{"name": "ASYA_SOCKET_PATH", "value": "/run/model/app.sock"}]
    given = pod(model(env=mine), {"name": "asya-sidecar"})
    assert container(given)["volumeMounts"][1]["mountPath"] == "/run/model"
    sidecar = container(given, name="asya-sidecar")
    assert sidecar["volumeMounts"][0]["mountPath"] == "/run/model"
    assert env(sidecar) == {"ASYA_SOCKET_PATH": "/run/model/app.sock"}


def test_the_users_own_volume_at_the_sockets_directory_is_shared_as_it_is() -> None:
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


def test_a_volume_above_the_sockets_directory_stays_and_ours_lies_in_it() -> None:
    mine = {"name": "tmp", "mountPath": "/tmp"}
    given = pod(model(volumeMounts=[mine]), volumes=[{"name": "tmp", "emptyDir": {}}])
    assert container(given)["volumeMounts"] == [mine, RUNTIME_MOUNT, SOCKET_MOUNT]


def test_the_one_file_form_is_mounted_beside_the_directory() -> None:
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
    assert result["readinessProbe"]["exec"]["command"][3] == "/app/asya_runtime.py"


def test_the_hook_that_stops_needs_no_path_of_the_runtime() -> None:
    where = {"asya.sh/mount-path": "/app/asya_runtime.py", "asya.sh/mode": "hook"}
    lifecycle = container(pod(model(), annotations=where))["lifecycle"]
    started = [*WRAPPER, "--detach", "--runtime", "/app/asya_runtime.py"]
    assert lifecycle["postStart"]["exec"]["command"] == started
    assert lifecycle["preStop"]["exec"]["command"] == [*WRAPPER, "--stop"]


def test_another_directory_moves_all_that_lies_in_it() -> None:
    result = container(pod(model(), annotations={"asya.sh/mount-path": "/srv/asya"}))
    assert result["command"][3] == "/srv/asya/asya_entrypoint.py"
    assert result["readinessProbe"]["exec"]["command"][3] == "/srv/asya/asya_runtime.py"
    assert result["volumeMounts"][0]["mountPath"] == "/srv/asya"


# --- How it starts

INTERPRETERS = [
    pytest.param(["python", "app.py"], {}, "python", id="bare"),
    pytest.param(["/opt/venv/bin/python3.11", "app.py"], {}, "/opt/venv/bin/python3.11", id="venv"),
    pytest.param(["pypy3", "app.py"], {}, "pypy3", id="pypy"),
    pytest.param(["pythonista", "app.py"], {}, "python3", id="only-like-one"),
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
    pytest.param(["tini", "--", "gunicorn"], {}, "python3", id="tini-of-another"),
    pytest.param(["conda", "run", "-n", "env", "python", "app.py"], {}, "python3", id="conda"),
    pytest.param(["poetry", "run", "python", "app.py"], {}, "python3", id="poetry"),
    pytest.param(["/opt/venv/bin/gunicorn", "app"], {}, "python3", id="script-of-a-venv"),
    pytest.param(["$(VENV)/bin/python", "app.py"], {}, "python3", id="expanded-by-the-kubelet"),
    pytest.param(["python", "app.py"], {"asya.sh/python": "/opt/p/bin/python"},
                 "/opt/p/bin/python", id="annotation"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "annotations", "python"), INTERPRETERS)
def test_the_interpreter_is_the_containers_own_where_it_shows(
    command: list[str], annotations: Object, python: str
) -> None:
    result = container(pod(model(command=command), annotations=annotations))
    assert result["command"] == [python, *WRAPPER[1:], "--", *command]
    assert result["readinessProbe"]["exec"]["command"] == [python, *READY[1:]]


def test_without_a_command_hooks_start_and_stop_the_runtime() -> None:
    item = model(args=["serve"])
    del item["command"]
    result = injected(pod(item))
    assert result.mode == "hook"
    changed = result.pod["spec"]["containers"][0]
    assert "command" not in changed
    assert changed["args"] == ["serve"]
    assert changed["lifecycle"] == {
        "postStart": {"exec": {"command": [*WRAPPER, "--detach"]}},
        "preStop": {"exec": {"command": [*WRAPPER, "--stop"]}},
    }


def test_a_wrapper_that_stands_in_args_is_the_command_that_counts() -> None:
    item = model(args=[*WRAPPER, "--", "serve"])
    del item["command"]
    result = injected(pod(item))
    assert result.mode == "wrap"
    changed = result.pod["spec"]["containers"][0]
    assert (changed["args"], changed.keys() & {"command", "lifecycle"}) == (item["args"], set())


def test_the_users_own_exec_hooks_are_chained() -> None:
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


def test_in_mode_runtime_it_is_the_containers_program() -> None:
    item = model()
    del item["command"]
    changed = container(pod(item, annotations={"asya.sh/mode": "runtime"}))
    assert changed["command"] == ["python3", "/opt/asya/asya_runtime.py"]


def test_in_mode_mount_nothing_is_started() -> None:
    changed = container(pod(model(), annotations={"asya.sh/mode": "mount"}))
    assert changed["command"] == SERVE
    assert "lifecycle" not in changed


def test_a_readiness_probe_of_the_users_stays_with_a_warning() -> None:
    probe = {"httpGet": {"port": 80}}
    result = injected(pod(model(readinessProbe=probe)))
    assert result.pod["spec"]["containers"][0]["readinessProbe"] == probe
    assert result.warnings == (
        'container "model" keeps its own readiness probe, so the pod may be ready before its '
        "actor is",
    )


def test_a_readiness_probe_that_asks_the_runtime_is_told_where_it_is_now() -> None:
    by_hand = ["python", "-I", "-S", "/srv/asya_runtime.py", "--ready"]
    probe = {"exec": {"command": by_hand, "future": 1}, "periodSeconds": 1}
    result = injected(pod(model(readinessProbe=probe)))
    assert result.warnings == ()
    assert result.pod["spec"]["containers"][0]["readinessProbe"] == {
        "exec": {"command": READY, "future": 1},
        "periodSeconds": 1,
    }


def test_no_probe_is_added_where_none_is_wanted() -> None:
    changed = container(pod(model(), annotations={"asya.sh/probe": "false"}))
    assert "readinessProbe" not in changed


# --- Copies of other releases, and marks that others wrote


def test_a_copied_pod_of_another_release_moves_to_the_present_runtime() -> None:
    old = inject(pod(model()), ClusterDefaults("aaaaaaaaaa", {}))
    assert old is not None
    assert injected(old.pod).pod == injected(pod(model())).pod


def test_a_volume_of_another_release_that_no_mark_tells_of_moves_too_and_keeps_its_mode() -> None:
    source = {"name": "asya-runtime-aaaaaaaaaa", "defaultMode": 0o400, "optional": False}
    given = pod(model(), volumes=[{"name": "asya-runtime", "configMap": source}])
    assert injected(given).pod["spec"]["volumes"] == [
        {"name": "asya-runtime", "configMap": source | {"name": f"asya-runtime-{HASH}"}},
        SOCKET_VOLUME,
    ]


def test_a_forged_mark_is_overwritten() -> None:
    given = pod(model(), annotations={"asya.sh/injected": '{"mode":"none"}'})
    assert injected(given).pod == injected(pod(model())).pod


# --- Reinvocation: another webhook was here between two calls


def test_a_wrapper_of_another_webhook_around_ours_is_left_where_it_is() -> None:
    given = injected(pod(model(args=["-v"]))).pod
    changed = given["spec"]["containers"][0]
    changed |= {"command": ["/vault/vault-env"], "args": changed["command"] + changed["args"]}
    assert injected(given).pod == given


def test_a_command_that_another_webhook_gave_a_hooked_container_is_wrapped_instead() -> None:
    item = {"name": "model", "args": ["serve"]}
    given = injected(pod(item)).pod
    given["spec"]["containers"][0] |= {"command": ["/vault/vault-env"]}
    result = injected(given)
    assert result.mode == "wrap"
    assert result.pod == injected(pod({**item, "command": ["/vault/vault-env"]})).pod


def test_a_variable_that_another_webhook_put_first_stays_there() -> None:
    given = injected(pod(model())).pod
    given["spec"]["containers"][0]["env"].insert(0, {"name": "A", "value": "1"})
    assert injected(given).pod == given


def test_the_sidecars_of_other_webhooks_do_not_become_actors_in_a_copy_of_another_release() -> None:
    given = injected(pod(model()), ClusterDefaults("aaaaaaaaaa", {"json": "auto"})).pod
    given["spec"]["containers"].insert(0, {"name": "proxy"})
    assert injected(given).container == "model"


# --- Copies of actors, with other wishes

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
def test_a_copied_pod_has_nothing_of_its_old_wishes(annotations: Object, defaults: Object) -> None:
    containers = [model(env=[{"name": "A", "value": "1"}]), {"name": "other", "command": ["x"]}]
    old = {"asya.sh/mode": "wrap", "asya.sh/concurrency": "2"}
    copied = injected(
        pod(*containers, annotations=old), ClusterDefaults("aaaaaaaaaa", {"json": "auto"})
    ).pod
    mark = copied["metadata"]["annotations"]["asya.sh/injected"]
    copied["metadata"]["annotations"] = {**HANDLER, **annotations, "asya.sh/injected": mark}
    policy = ClusterDefaults(HASH, defaults)
    assert injected(copied, policy) == injected(pod(*containers, annotations=annotations), policy)


def test_an_actor_that_is_admitted_after_a_change_of_the_charts_values_follows_them() -> None:
    old = injected(pod(model()), ClusterDefaults(HASH, {"chunk-size": "8192"})).pod
    assert injected(old).pod == injected(pod(model())).pod


def test_what_a_person_changed_in_a_copy_is_not_overwritten_in_silence() -> None:
    copied = injected(pod(model())).pod
    copied["spec"]["containers"][0]["env"][0]["value"] = "x.y"
    assert refusal(copied).reason == Reason.ENV_CONFLICT


def test_a_mirror_of_a_static_pod_is_left_alone() -> None:
    mirror = {"kubernetes.io/config.mirror": "x"}
    assert inject(pod(model(), annotations=mirror), POLICY) is None


# --- Volumes and variables of sidecars


def test_a_sidecar_that_looks_elsewhere_gets_the_socket_there() -> None:
    mine = {"name": "ASYA_SOCKET_PATH", "value": "/run/asya/app.sock"}
    sidecar = {"name": "asya-sidecar", "env": [mine]}
    assert container(pod(model(), sidecar), name="asya-sidecar") == {
        **sidecar,
        "volumeMounts": [{"name": "asya-socket", "mountPath": "/run/asya"}],
    }


def test_a_sidecar_may_mount_the_sockets_directory_read_only() -> None:
    mount = {"name": "mine", "mountPath": "/tmp/sockets"}
    sidecar = {"name": "asya-sidecar", "volumeMounts": [{**mount, "readOnly": True}]}
    given = pod(model(volumeMounts=[mount]), sidecar, volumes=[{"name": "mine", "emptyDir": {}}])
    assert container(given, name="asya-sidecar")["volumeMounts"] == sidecar["volumeMounts"]


def test_a_read_only_mount_far_above_a_writable_one_does_no_harm() -> None:
    mounts = [
        {"name": "ro", "mountPath": "/opt", "readOnly": True},
        {"name": "rw", "mountPath": "/opt/asya/../asya"},
    ]
    given = pod(model(volumeMounts=mounts), annotations={"asya.sh/mount-path": "/opt/asya/x"})
    assert container(given)["volumeMounts"][2]["mountPath"] == "/opt/asya/x"


def test_unknown_fields_of_hooks_and_probes_survive() -> None:
    hook = {"exec": {"command": ["up"], "future": 1}, "more": 2}
    changed = container(
        pod(model(lifecycle={"postStart": hook}), annotations={"asya.sh/mode": "hook"})
    )["lifecycle"]["postStart"]
    assert changed["more"] == 2
    assert changed["exec"]["future"] == 1


def test_a_probe_of_the_users_that_ends_like_ours_stays() -> None:
    probe = {"exec": {"command": ["ctl", "--ready"]}}
    result = injected(pod(model(readinessProbe=probe)))
    assert result.pod["spec"]["containers"][0]["readinessProbe"] == probe
    assert len(result.warnings) == 1


def test_a_chart_value_counts_in_each_of_its_spellings() -> None:
    changed = container(
        pod(model()), ClusterDefaults(HASH, {"probe": "No", "include-metadata": "YES"})
    )
    assert "readinessProbe" not in changed
    assert env(changed)["ASYA_INCLUDE_METADATA"] == "true"


def test_a_wrong_chart_value_is_refused_at_start() -> None:
    with pytest.raises(InjectionError, match=r"^asya\.sh/chunk-size: "):
        ClusterDefaults(HASH, {"chunk-size": "4k"})
    with pytest.raises(KeyError, match="chunksize"):
        ClusterDefaults(HASH, {"chunksize": "4096"})
