"""The example chart, which creates an actor with the template helpers, without the injector.

Its pods must be those that the injector would make.
"""

import copy
import shutil
from pathlib import Path

import pytest
import yaml
from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.mutation.inject import inject
from asya_injector.runtime_files import RUNTIME_VOLUME
from asya_injector.startup import programs

from tests.chart.charts import (
    CHART,
    EXAMPLE,
    HelmError,
    Object,
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
    shutil.copytree(CHART, root / "chart")
    here = root / "examples/chart-with-helpers"
    shutil.copytree(EXAMPLE, here, ignore=shutil.ignore_patterns("charts", "Chart.lock"))
    run("dependency", "update", here)
    return here


def deployment(chart: Path, values: Object, *, tool: str = "helm") -> Object:
    """The example's Deployment, which is all that it renders beside the runtime files."""
    text = render(IMAGES | values, chart=chart, namespace="models", tool=tool)
    found = load_objects(text)
    assert set(found) == {
        ("ConfigMap", "models", "asya-runtime"),
        ("Deployment", "models", "sentiment"),
    }
    for item in found.values():
        assert problems(item, RELEASES[0]) == []
    result: Object = found["Deployment", "models", "sentiment"]
    return result


def with_defaults(defaults: Object) -> Object:
    return value_at("asya-runtime/runtime/defaults", defaults)


def injected(spec: Object, command: list[str], defaults: Object) -> Object:
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
    policy = ClusterDefaults("0" * 10, {name: str(value) for name, value in settings.items()})
    injection = inject(pod, policy)
    assert injection
    wanted: Object = injection.pod["spec"]
    for volume in wanted["volumes"]:  # the plain ConfigMap in place of a copy
        if volume["name"] == RUNTIME_VOLUME:
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
