"""The example chart, which creates an actor with the template helpers, without the injector.

Its pods must be those that the injector would make.
"""

import copy
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from asya_injector import __version__
from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.mutation.inject import inject
from asya_injector.runtime_files import RUNTIME_VOLUME
from asya_injector.runtime_image import RuntimeImage
from asya_injector.startup import programs

from tests.chart.charts import (
    CHART,
    EXAMPLE,
    HelmError,
    Object,
    copy_chart,
    load_objects,
    render,
    run,
    value_at,
)
from tests.chart.schemas import RELEASES, problems

HANDLER = "my_app.handler.predict"
IMAGES = {"image": "model:1", "sidecarImage": "sidecar:1"}


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example with its dependency, as `helm dependency update` gets it."""
    root = tmp_path_factory.mktemp("checkout")
    copy_chart(root, all_defaults=True)
    here = root / "examples/chart-with-helpers"
    shutil.copytree(EXAMPLE, here, ignore=shutil.ignore_patterns("charts", "Chart.lock"))
    run("dependency", "update", here)
    return here


def deployment(
    chart: Path, values: Object, *, tool: str = "helm", release: str = RELEASES[0]
) -> Object:
    """The example's Deployment, which is all that it renders beside the runtime files."""
    where: Any = {"chart": chart, "namespace": "models", "kubernetes": f"{release}.0"}
    text = render(IMAGES | values, tool=tool, **where)
    found = load_objects(text)
    assert set(found) == {
        ("ConfigMap", "models", "asya-runtime"),
        ("Deployment", "models", "sentiment"),
    }
    for item in found.values():
        assert problems(item, release) == []
    result: Object = found["Deployment", "models", "sentiment"]
    return result


def with_defaults(defaults: Object) -> Object:
    return value_at("asya-runtime/runtime/defaults", defaults)


def injected(
    spec: Object, command: list[str], defaults: Object, image: RuntimeImage | None = None
) -> Object:
    """What the injector makes of the pod, once all that the helpers gave it is removed."""
    annotations = {"asya.sh/handler": HANDLER}
    pod: Object = {"metadata": {"annotations": annotations}, "spec": copy.deepcopy(spec)}
    del pod["spec"]["volumes"]
    model, sidecar = pod["spec"]["containers"]
    for container in (model, sidecar):
        del container["env"], container["volumeMounts"]
    del model["readinessProbe"], model["command"]
    model.pop("ports", None)
    if command:
        model["command"] = command
    else:
        annotations["asya.sh/mode"] = "runtime"
    settings = {"handler-timeout": 30} | defaults  # the example's own value
    texts = {name: str(value) for name, value in settings.items()}
    policy = ClusterDefaults("0" * 10, texts, image=image)
    injection = inject(pod, policy)
    assert injection
    wanted: Object = injection.pod["spec"]
    for volume in wanted["volumes"]:  # the plain ConfigMap in place of a copy
        if volume["name"] == RUNTIME_VOLUME and not image:
            volume["configMap"]["name"] = "asya-runtime"
    return wanted


APP = ["python3", "-m", "app"]
SETTINGS: list[Object] = [
    {},
    {"metrics-port": 9464},
    {"handler-timeout": 0, "concurrency": 4, "chunk-size": 1048576, "json": "orjson"},
    {"socket-path": "/run/actor/a.sock", "mount-path": "/opt/actor", "python": "pypy3"},
    {"mount-path": "/app/asya_runtime.py"},
    {"mount-path": "/opt/asya/asya_runtime.py"},
]
# The interpreter of runtime and wrapper depends on the program; none is the runtime alone.
COMMANDS = [
    [],
    *(
        [program, "-m", "app"]
        for program in (
            *(
                "python",
                "python3.12",
                "python3.13t",
                "pypy3.10",
                "/opt/venv/bin/python3",
                "./python",
            ),
            *("python3.", "python-config", "xpython", "python3.13td", "gunicorn", "/python/app"),
            *("", "-", "$(VENV)/bin/python3", "$(VENV)/../usr/bin/python3", "python3\n"),
        )
    ),
    *([init, "--", "python3.12", "app.py"] for init in programs.INIT_PROGRAMS),
    *(
        ["tini", option, "python3.11", "python3.12", "app.py"]
        for option in (*programs.INIT_OPTIONS_WITH_VALUE, "-s", "-vvv", "--rewrite=15:2")
    ),
    ["/usr/bin/tini", "-s", "-p", "SIGTERM", "--", "/opt/venv/bin/python3.13t", "-m", "app"],
    *([f"/x/{launcher}", "python3.12", "app.py"] for launcher in programs.LAUNCHERS),
    *(
        [f"/x/{launcher.split()[0]}", launcher.split()[1], "-x", "v", "--", "python3.12", "app.py"]
        for launcher in programs.SUBCOMMAND_LAUNCHERS
    ),
    ["vault-env", "op", "run", "--", "tini", "-p", "SIGTERM", "pypy3"],
    ["tini", "--", "op", "run", "--", "python3.12", "--", "x"],
    ["op", "run", "python3.12"],
    ["op", "run", "--"],
    ["op", "--", "python3.12"],
    ["op"],
    ["tini", "-g", "--", "/vault/vault-env", "-x", "--", "tini", "--", "pypy3"],
    ["vault-env"],
    ["tini", "vault-env", "--"],
    ["tini", "-p", "--", "python3.12"],
    ["tini", "--", "dumb-init", "-r", "15:2", "--", "pypy3"],
    ["tini", "--", "-s", "python3.12"],
    ["tini", "--", "gunicorn", "python3.12"],
    ["tini/", "--", "python3.12"],
    ["tini"],
    ["tini", "--"],
    ["tini", "-p"],
    ["sh", "-c", "exec python3.12 -m app"],
    ["env", "python3.12"],
]


@pytest.mark.parametrize("tool", ["helm", "helm3"])
@pytest.mark.parametrize("defaults", SETTINGS, ids=str)
def test_the_helpers_render_what_the_injector_would_add(
    defaults: Object, tool: str, example: Path
) -> None:
    deployed = deployment(example, with_defaults(defaults), tool=tool)
    spec = deployed["spec"]["template"]["spec"]
    assert spec == injected(spec, APP, defaults)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_helpers_choose_the_interpreter_as_the_injector_does(
    command: list[str], example: Path
) -> None:
    defaults = {"python": "python3.9"}
    values = with_defaults(defaults) | {"command": command}
    spec = deployment(example, values)["spec"]["template"]["spec"]
    assert spec == injected(spec, command, defaults)


DIGEST = "sha256:" + "fedcba9876543210" * 4
INJECTOR = {"repository": "example.com/injector", "digest": DIGEST}  # as in a released chart
FILES = {"repository": "example.com/files", "tag": "1"}


def from_image(injector: Object, **runtime: Object) -> Object:
    delivery: Object = {"delivery": "image"}
    return {"asya-runtime": {"injector": {"image": injector}, "runtime": delivery | runtime}}


@pytest.mark.parametrize(
    ("values", "reference", "policy"),
    [
        (from_image({}, image=FILES), "example.com/files:1", "IfNotPresent"),
        (from_image(INJECTOR), f"example.com/injector:{__version__}@{DIGEST}", "IfNotPresent"),
        (from_image(INJECTOR, image={"pullPolicy": "Never"}),
         f"example.com/injector:{__version__}@{DIGEST}", "Never"),
        (from_image(INJECTOR | {"pullPolicy": "Always"}, image={"repository": "example.com/files"}),
         f"example.com/files:{__version__}", "Always"),
    ],
)  # fmt: skip
def test_the_helpers_mount_an_image_as_the_injector_would(
    values: Object, reference: str, policy: str, example: Path
) -> None:
    spec = deployment(example, values, release=RELEASES[-1])["spec"]["template"]["spec"]
    assert spec == injected(spec, APP, {}, RuntimeImage(reference, policy))


@pytest.mark.parametrize(
    ("values", "kubernetes", "line"),
    [
        (from_image({}), "1.37.0",
         "chart sentiment uses runtime.delivery: image of asya-runtime, which names no image"),
        (from_image({}, image={"tag": "1"}), "1.37.0", "runtime.image.repository is required if"),
        (from_image(INJECTOR), "1.35.9", "runtime.delivery: image requires Kubernetes 1.36"),
        (from_image(INJECTOR, defaults={"mount-path": "/app/asya_runtime.py"}), "1.37.0",
         "runtime.defaults.mount-path is the file /app/asya_runtime.py"),
    ],
)  # fmt: skip
def test_an_image_that_the_helpers_cannot_mount_is_rejected(
    values: Object, kubernetes: str, line: str, example: Path
) -> None:
    with pytest.raises(HelmError, match=re.escape(line)):
        render(IMAGES | values, chart=example, kubernetes=kubernetes)


def test_the_config_map_may_belong_to_another_release(example: Path) -> None:
    values = IMAGES | {
        "asya-runtime": {"runtime": {"configMap": {"create": False, "name": "files"}}}
    }
    found = load_objects(render(values, chart=example, namespace="models"))
    assert set(found) == {("Deployment", "models", "sentiment")}
    volumes = found["Deployment", "models", "sentiment"]["spec"]["template"]["spec"]["volumes"]
    assert volumes[0]["configMap"]["name"] == "files"


def test_an_alias_of_the_dependency_is_found(example: Path, tmp_path: Path) -> None:
    chart = tmp_path / "chart"
    shutil.copytree(example, chart)
    about = yaml.safe_load((chart / "Chart.yaml").read_text())
    about["dependencies"][0]["alias"] = "actor"
    (chart / "Chart.yaml").write_text(yaml.safe_dump(about))
    values = IMAGES | {
        "actor": {"injector": {"enabled": False}, "runtime": {"defaults": {"concurrency": 2}}}
    }
    found = load_objects(render(values, chart=chart, namespace="models"))
    model, _ = found["Deployment", "models", "sentiment"]["spec"]["template"]["spec"]["containers"]
    assert {"name": "ASYA_CONCURRENCY", "value": "2"} in model["env"]


@pytest.mark.parametrize("handler", ["predict", "my-app.predict", "", "a.b c"])
def test_an_invalid_handler_is_rejected(handler: str, example: Path) -> None:
    with pytest.raises(
        HelmError, match=r"asya-runtime\.env: .* is not a valid handler; must be module\.path"
    ):
        render(IMAGES | {"handler": handler}, chart=example)


def test_a_helper_without_the_dependency_is_an_error(example: Path, tmp_path: Path) -> None:
    chart = tmp_path / "chart"
    shutil.copytree(CHART, chart)
    (chart / "templates/x.yaml").write_text('{{ include "asya-runtime.volumes" . }}')
    with pytest.raises(
        HelmError, match="chart asya-runtime uses a template helper of asya-runtime, which is not"
    ):
        render({}, chart=chart)


def test_values_of_the_dependency_are_validated(example: Path) -> None:
    with pytest.raises(HelmError, match="replica"):
        render(IMAGES | value_at("asya-runtime/injector/replica", 1), chart=example)
