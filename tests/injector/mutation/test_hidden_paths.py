"""Where the injector adds a volume: only at a directory that the container is not known to need."""

from typing import Any

import pytest
from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.errors import InjectionError, Reason
from asya_injector.mutation.inject import inject

Object = dict[str, Any]
DEFAULTS = ClusterDefaults("0123456789", {})
SIDECAR = {"name": "asya-sidecar"}
TMP = {"name": "own", "emptyDir": {}}


def pod(annotations: dict[str, str], *containers: Object, **spec: Any) -> Object:
    keys = {f"asya.sh/{name}": text for name, text in annotations.items()}
    handler = {"asya.sh/handler": "my_app.handler.predict"}
    return {
        "metadata": {"annotations": handler | keys},
        "spec": {"containers": list(containers), **spec},
    }


def model(**fields: Any) -> Object:
    return {"name": "model", "command": ["serve"], **fields}


def socket_in(directory: str, *containers: Object, **spec: Any) -> Object:
    return pod({"socket-path": f"{directory}/app.sock"}, *containers, **spec)


def files_in(path: str, *containers: Object, **spec: Any) -> Object:
    return pod({"mount-path": path}, *containers, **spec)


def probe(*command: str) -> Object:
    return {"exec": {"command": list(command)}}


def mount(path: str, **more: Any) -> Object:
    return {"name": "own", "mountPath": path, **more}


USED = (
    "/tmp", "/app", "/data", "/srv", "/workspace", "/run", "/var", "/home", "/root",
    "/var/lib", "/var/tmp", "/var/run", "/var/log", "/var/cache", "/home/user", "/opt/conda",
    "/opt/conda/envs/x", "/opt/miniconda3", "/opt/venv", "/opt/venv/lib", "/app/.venv", "/app/lib",
    "/srv/.cache/huggingface", "/opt/nvidia/x", "/opt/python3.12", "/srv/site-packages",
    "/opt/venv-py3", "/opt/my_venv/x", "/srv/VENV", "/opt/Conda", "/opt/pyenv/x", "/opt/rh/x",
    "/home/linuxbrew/x", "/opt/tljh", "/opt/R/4.4", "/opt/jdk-21", "/databricks/x", "/layers/x",
    "/cnb/process", "/var/www/html", "/var/spool/cron", "/var/cache/apt",
)  # fmt: skip


@pytest.mark.parametrize("directory", USED)
def test_adds_no_volume_at_a_directory_that_images_use(directory: str) -> None:
    for given in (
        socket_in(directory, model()),
        pod({}, model(env=[{"name": "ASYA_SOCKET_PATH", "value": f"{directory}/app.sock"}])),
    ):
        error = reject(given)
        assert error.reason == Reason.MOUNT_CONFLICT
        assert str(error).startswith(f'asya.sh/socket-path: a volume at "{directory}" would hide ')
        assert 'of container "model"; choose a dedicated directory, such as "/tmp/s' in str(error)


@pytest.mark.parametrize("directory", USED)
def test_shares_a_volume_that_the_pod_mounts_at_such_a_directory(directory: str) -> None:
    mounts = [mount(directory)]
    both = (model(volumeMounts=mounts), SIDECAR | {"volumeMounts": mounts})
    result = inject(socket_in(directory, *both, volumes=[TMP]), DEFAULTS)
    assert result is not None
    assert result.socket_volume.value == "own"
    # In the sidecar too, a volume is added only at a dedicated directory.
    alone = socket_in(directory, both[0], SIDECAR, volumes=[TMP])
    assert 'of container "asya-sidecar"; ' in str(reject(alone))


@pytest.mark.parametrize("path", ["/tmp/app.sock", "/app/a.sock", "/opt/conda/s/a.sock"])
def test_rejects_such_a_directory_as_a_cluster_default(path: str) -> None:
    with pytest.raises(InjectionError, match=r"^asya\.sh/socket-path: .* in a dedicated directory"):
        ClusterDefaults("0123456789", {"socket-path": path})


NEEDED = [
    pytest.param({"workingDir": "/srv/model"}, "the working directory", id="working-directory"),
    pytest.param({"workingDir": "srv//model/src/"}, "the working directory", id="below-it"),
    pytest.param({"command": ["/srv/model/serve"]}, '"/srv/model/serve"', id="program"),
    pytest.param({"command": ["python", "-u", "/srv/model/app.py"]}, '"/srv/model/app.py"',
                 id="script"),
    pytest.param({"command": ["tini", "--"], "args": ["/srv/model/serve"]}, '"/srv/model/serve"',
                 id="program-in-args"),
    pytest.param({"command": ["sh", "-c", "cd /; exec /srv/model/run.sh -x"]},
                 '"/srv/model/run.sh"', id="program-in-a-shell"),
    pytest.param({"command": ["./model/serve"], "workingDir": "/srv"}, '"/srv/model/serve"',
                 id="program-by-a-relative-path"),
    pytest.param({"command": ["python", "model/app.py"], "workingDir": "/srv"},
                 '"/srv/model/app.py"', id="script-by-a-relative-path"),
    pytest.param({"args": ["--config=/srv/model/config.yaml"]}, '"/srv/model/config.yaml"',
                 id="config"),
    pytest.param({"args": ["--model", "/srv//x/../model"]}, '"/srv/model"', id="model"),
    pytest.param({"lifecycle": {"postStart": probe("/srv/model/warm")}}, '"/srv/model/warm"',
                 id="hook"),
    pytest.param({"livenessProbe": probe("sh", "/srv/model/live.sh")}, '"/srv/model/live.sh"',
                 id="probe"),
    pytest.param({"env": [{"name": "PYTHONPATH", "value": "/x:/srv/model"}]}, '"/srv/model"',
                 id="import-path"),
    *(pytest.param({"env": [{"name": name, "value": "/srv/model/weights"}]},
                   '"/srv/model/weights"', id=f"variable-{name}")
      for name in ("MODEL_DIR", "WORKDIR", "APP_ROOT", "HF_HUB_CACHE", "MODEL_FILE", "LD_PRELOAD")),
    pytest.param({"command": ["$(APP)/serve"], "env": [{"name": "APP", "value": "/srv/model"}]},
                 '"/srv/model/serve"', id="program-by-a-variable"),
    pytest.param({"args": ["--config=$(A)$(B)/c.yaml"], "env": [
        {"name": "A", "value": "/srv"}, {"name": "B", "value": "/model"}]},
                 '"/srv/model/c.yaml"', id="config-by-variables"),
    pytest.param({"workingDir": "/srv", "command": ["python", "-m", "model.serve"]},
                 '"/srv/model/serve"', id="module"),
    pytest.param({"workingDir": "/", "args": ["uvicorn", "srv.model.main:app"]},
                 '"/srv/model/main"', id="application"),
    pytest.param({"command": ["python", "-m", "model"], "env": [
        {"name": "PYTHONPATH", "value": "/x:/srv"}]}, '"/srv/model"', id="module-in-import-path"),
    pytest.param({"terminationMessagePath": "/srv//model/end"},
                 'the termination message path "/srv//model/end"', id="termination-message"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "hidden"), NEEDED)
def test_adds_no_volume_over_what_the_container_needs(fields: Object, hidden: str) -> None:
    for setting, given in (
        ("socket-path", socket_in("/srv/model", model(**fields))),
        ("mount-path", files_in("/srv/model", model(**fields))),
    ):
        error = reject(given)
        assert error.reason == Reason.MOUNT_CONFLICT
        line = f'asya.sh/{setting}: a volume at "/srv/model" would hide {hidden} of container '
        assert str(error).startswith(line)


@pytest.mark.parametrize(("fields", "hidden"), NEEDED)
def test_the_same_holds_for_sidecars(fields: Object, hidden: str) -> None:
    proxy = {"name": "proxy", **fields}
    given = pod({"socket-path": "/srv/model/a.sock", "sidecars": "proxy"}, model(), proxy)
    assert f'would hide {hidden} of container "proxy"' in str(reject(given))
    # Nothing is mounted in a container that is not named.
    del given["metadata"]["annotations"]["asya.sh/sidecars"]
    assert inject(given, DEFAULTS)


@pytest.mark.parametrize(("fields", "hidden"), NEEDED)
def test_a_directory_beside_it_is_fine(fields: Object, hidden: str) -> None:
    for directory in ("/srv/models", "/srv/mod", "/srv/model/actor"):
        if hidden != '"/srv/model"' or directory != "/srv/model/actor":
            assert inject(socket_in(directory, model(**fields)), DEFAULTS)
            assert inject(files_in(directory, model(**fields)), DEFAULTS)


FREE = [
    pytest.param({"args": ["--uds", "/tmp/sockets/other.sock"]}, id="another-socket"),
    pytest.param({"args": ["--pid", "/tmp/sockets/app.pid"]}, id="pid-file"),
    pytest.param({"args": ["--ready-file=/tmp/sockets/ready"]}, id="file-created-later"),
    pytest.param({"args": ["--socket-dir", "/tmp/sockets"]}, id="the-directory-itself"),
    pytest.param({"args": ["--bind", "unix:/tmp/sockets/x"]}, id="address"),
    pytest.param({"env": [{"name": "SOCKET_DIR", "value": "/tmp/sockets"}]}, id="variable"),
    pytest.param({"command": ["sh", "-c", "python3 /opt/asya/asya_runtime.py"]}, id="runtime"),
    pytest.param({"readinessProbe": probe("test", "-S", "/tmp/sockets/app.sock")}, id="probe"),
    pytest.param({"workingDir": "/tmp"}, id="working-directory-above"),
    pytest.param({"workingDir": "/opt", "command": ["python", "app.py"]}, id="script-above"),
]  # fmt: skip


@pytest.mark.parametrize("fields", FREE)
def test_the_injectors_own_files_and_files_created_later_are_not_needed(fields: Object) -> None:
    assert inject(pod({}, model(**fields), SIDECAR | fields), DEFAULTS)


@pytest.mark.parametrize(
    "fields", [{"workingDir": "/srv/x"}, {"env": [{"name": "PYTHONPATH", "value": "/a:/srv/x"}]}]
)
@pytest.mark.parametrize("directory", ["/srv/x/my_app", "/srv/x/my_app/handler"])
def test_the_handlers_package_is_needed(fields: Object, directory: str) -> None:
    for given in (socket_in(directory, model(**fields)), files_in(directory, model(**fields))):
        assert 'would hide "/srv/x/my_app/handler" of container "model"' in str(reject(given))
    # It is needed in its own container only.
    shared = [{"name": "own", "mountPath": directory}]
    proxy = {"name": "asya-sidecar", "workingDir": "/srv/x"}
    given = socket_in(directory, model(**fields, volumeMounts=shared), proxy, volumes=[TMP])
    assert inject(given, DEFAULTS)


@pytest.mark.parametrize(("link", "target"), [("/var/run/s", "/run/s"), ("/run/s", "/var/run/s")])
def test_a_directory_behind_a_symbolic_link_is_the_same(link: str, target: str) -> None:
    for fields, said in (
        ({"command": [f"{link}/serve"]}, f'would hide "{link}/serve"'),
        ({"workingDir": link}, "would hide the working directory"),
        ({"volumeMounts": [mount(link)]}, f'mounts "own" at "{link}"'),
        ({"volumeMounts": [mount(f"{link}/x")]}, f'mounts "own" at "{link}/x"'),
        ({"volumeMounts": [mount(link.removesuffix("/s"), readOnly=True)]}, "read-only"),
    ):
        for given in (
            socket_in(target, model(**fields), volumes=[TMP]),
            files_in(target, model(**fields), volumes=[TMP]),
        ):
            assert said in str(reject(given))
    assert inject(socket_in("/run/s", model(workingDir="/var/runs/s")), DEFAULTS)
    assert "of the system" in str(reject(socket_in("/var/lock/s", model())))


def test_a_program_in_a_temporary_directory_is_needed() -> None:
    for word in ("/tmp/sockets/run.sh", "/tmp/sockets/app.py"):
        assert reject(pod({}, model(command=["sh", word]))).reason == Reason.MOUNT_CONFLICT
    assert reject(pod({}, model(command=["/tmp/sockets/x"]))).reason == Reason.MOUNT_CONFLICT


def test_the_interpreter_is_needed() -> None:
    for given in (files_in("/srv/py", model()), socket_in("/srv/py", model())):
        given["metadata"]["annotations"]["asya.sh/python"] = "/srv/py/x/python3"
        assert 'would hide "/srv/py/x/python3" of container "model"' in str(reject(given))


def test_a_mount_at_or_below_the_directory_of_the_socket_is_a_conflict_in_a_sidecar() -> None:
    proxy = {"name": "proxy", "volumeMounts": [mount("/vault/secrets/tls")]}
    given = pod({"socket-path": "/vault/secrets/a.sock", "sidecars": "proxy"}, model(), proxy)
    assert 'container "proxy" mounts "own" at "/vault/secrets/tls"' in str(reject(given))


@pytest.mark.parametrize("path", ["/tmp/sockets", "/tmp/sockets/x"])
def test_a_block_device_at_or_below_the_directory_of_the_socket_is_a_conflict(path: str) -> None:
    devices = [{"name": "disk", "devicePath": path}]
    assert f'mounts "disk" at "{path}"' in str(reject(pod({}, model(volumeDevices=devices))))


@pytest.mark.parametrize(
    ("files", "socket"),
    [
        ("/srv/asya", "/srv/asya/app.sock"),
        ("/srv/asya", "/srv/asya/s/app.sock"),
        ("/srv/asya/x", "/srv/asya/app.sock"),
        ("/srv/asya/asya_runtime.py", "/srv/asya/app.sock"),
    ],
)
def test_socket_and_runtime_files_need_different_directories(files: str, socket: str) -> None:
    given = pod({"mount-path": files, "socket-path": socket}, model())
    assert reject(given).reason == Reason.MOUNT_CONFLICT


@pytest.mark.parametrize(
    "fields",
    [
        {"command": ["python", "/app/asya_serve.py"]},
        {"command": ["sh", "-c", "exec python /app/asya_serve.py"]},
        {"command": ["python"], "args": ["/app//x/../asya_serve.py"]},
        {"command": ["python", "asya_serve.py"], "workingDir": "/app"},
        {"command": ["python", "-m", "asya_serve"], "workingDir": "/app"},
        {"command": ["uvicorn", "asya_serve:app"], "env": [{"name": "PYTHONPATH",
                                                           "value": "/app"}]},
    ],
)  # fmt: skip
def test_one_file_must_not_be_the_containers_program(fields: Object) -> None:
    given = files_in("/app/asya_serve.py", {"name": "model", **fields})
    assert str(reject(given)) == (
        'asya.sh/mount-path: a volume at "/app/asya_serve.py" would hide "/app/asya_serve.py" of '
        'container "model"; name the file asya_runtime.py (MountConflict)'
    )
    given["metadata"]["annotations"]["asya.sh/mount-path"] = "/app/asya_other.py"
    result = inject(given, DEFAULTS)
    assert result is not None
    again = inject(result.pod, DEFAULTS)
    assert again is not None
    assert again.pod == result.pod
    # In these modes, the program is the runtime.
    given["metadata"]["annotations"] |= {
        "asya.sh/mount-path": "/app/asya_serve.py", "asya.sh/mode": "mount",
    }  # fmt: skip
    assert inject(given, DEFAULTS)


def test_one_file_must_not_have_the_name_of_the_handlers_module() -> None:
    given = files_in("/app/asya_models.py", model())
    assert inject(given, DEFAULTS)
    given["metadata"]["annotations"]["asya.sh/handler"] = "asya_models.predict"
    assert str(reject(given)) == (
        'asya.sh/mount-path: "/app/asya_models.py" has the name of the handler\'s module; '
        "name the file asya_runtime.py (MountConflict)"
    )


# --- Read-only volumes

SOURCES = (
    "awsElasticBlockStore", "azureDisk", "azureFile", "cephfs", "cinder", "csi", "fc", "flexVolume",
    "gcePersistentDisk", "glusterfs", "iscsi", "nfs", "persistentVolumeClaim", "portworxVolume",
    "quobyte", "rbd", "scaleIO", "storageos",
)  # fmt: skip
READ_ONLY = [
    *(pytest.param({source: {"readOnly": True}}, id=source) for source in SOURCES),
    pytest.param({"ephemeral": {"volumeClaimTemplate": {
        "spec": {"accessModes": ["ReadOnlyMany"]}}}}, id="ephemeral"),
]  # fmt: skip


@pytest.mark.parametrize("source", READ_ONLY)
def test_adds_no_mount_inside_a_read_only_volume(source: Object) -> None:
    for path, setting in (("/opt", "mount-path"), ("/tmp", "socket-path")):
        given = pod({}, model(volumeMounts=[mount(path)]), volumes=[{"name": "own", **source}])
        error = reject(given)
        assert error.reason == Reason.MOUNT_CONFLICT
        assert str(error).startswith(
            f'asya.sh/{setting}: container "model" mounts "own" at "{path}'
        )
        assert "read-only, so nothing can be mounted at" in str(error)


@pytest.mark.parametrize("source", READ_ONLY)
def test_puts_no_socket_into_a_read_only_volume(source: Object) -> None:
    item = model(volumeMounts=[mount("/tmp/sockets")])
    given = pod({}, item, volumes=[{"name": "own", **source}])
    assert "read-only, so the socket cannot be created there" in str(reject(given))


@pytest.mark.parametrize("value", [False, None])
def test_a_writable_claim_is_fine(value: Any) -> None:
    claim = {"name": "own", "persistentVolumeClaim": {"claimName": "c", "readOnly": value}}
    assert inject(pod({}, model(volumeMounts=[mount("/opt")]), volumes=[claim]), DEFAULTS)


def test_a_mount_at_a_writable_volume_inside_a_read_only_one_is_fine() -> None:
    claim = {"name": "own", "persistentVolumeClaim": {"claimName": "c", "readOnly": True}}
    mounts = [mount("/opt"), {"name": "tmp", "mountPath": "/opt/actors"}]
    volumes = [claim, {"name": "tmp", "emptyDir": {}}]
    given = pod({"mount-path": "/opt/actors/x"}, model(volumeMounts=mounts), volumes=volumes)
    assert inject(given, DEFAULTS)


def reject(given: Object) -> InjectionError:
    with pytest.raises(InjectionError) as caught:
        inject(given, DEFAULTS)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400
    return caught.value
