"""The example of a chart that makes an actor by the template helpers, without the injector."""

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.annotations.table import ENV, TABLE
from asya_injector.mutation.inject import inject
from asya_injector.runtime_files import RUNTIME_VOLUME

from tests.chart.charts import CHART, EXAMPLE, HelmError, Object, nested, objects, render, run
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


def deployment(chart: Path, defaults: Object, *, tool: str = "helm") -> Object:
    values = IMAGES | {"asya-runtime": {"runtime": {"defaults": defaults}}}
    found = objects(render(values, chart=chart, namespace="models", tool=tool))
    assert set(found) == {
        ("ConfigMap", "models", "asya-runtime"),
        ("Deployment", "models", "sentiment"),
    }
    for item in found.values():
        assert problems(item, RELEASES[0]) == []
    result: Object = found["Deployment", "models", "sentiment"]
    return result


@pytest.mark.parametrize("tool", ["helm", "helm3"])
@pytest.mark.parametrize(
    "defaults",
    [
        {},
        {"handler-timeout": 0, "concurrency": 4, "chunk-size": 1048576, "json": "orjson"},
        {"socket-path": "/run/actor/a.sock", "mount-path": "/opt/actor", "python": "pypy3"},
        {"mount-path": "/app/asya_runtime.py"},
    ],
)
def test_the_helpers_make_the_pod_that_the_injector_would(
    defaults: Object, tool: str, example: Path
) -> None:
    spec = deployment(example, defaults, tool=tool)["spec"]["template"]["spec"]
    # Without what the helpers gave it, and asking the injector for the same.
    pod: Object = {
        "metadata": {"annotations": {"asya.sh/handler": HANDLER}},
        "spec": copy.deepcopy(spec),
    }
    del pod["spec"]["volumes"]
    model, sidecar = pod["spec"]["containers"]
    model["command"] = ["python3", "-m", "app"]
    for container in (model, sidecar):
        del container["env"], container["volumeMounts"]
    del model["readinessProbe"]
    said = {"handler-timeout": 30} | defaults  # the example's own value
    injection = inject(
        pod, ClusterDefaults("0" * 10, {name: str(value) for name, value in said.items()})
    )
    assert injection
    wanted: Any = injection.pod["spec"]
    for volume in wanted["volumes"]:  # the plain ConfigMap in place of a copy
        if volume["name"] == RUNTIME_VOLUME:
            volume["configMap"]["name"] = "asya-runtime"
    assert spec == wanted


def test_without_a_command_of_its_own_the_container_is_the_runtime(
    example: Path, tmp_path: Path
) -> None:
    chart = tmp_path / "chart"
    shutil.copytree(example, chart)
    template = chart / "templates/deployment.yaml"
    template.write_text(template.read_text().replace(' "python3" "-m" "app"', ""))
    model, _ = deployment(chart, {"python": "python3.12"})["spec"]["template"]["spec"]["containers"]
    assert model["command"] == ["python3.12", "/opt/asya/asya_runtime.py"]


def test_the_config_map_may_be_another_releases(example: Path) -> None:
    values = IMAGES | {
        "asya-runtime": {"runtime": {"configMap": {"create": False, "name": "files"}}}
    }
    found = objects(render(values, chart=example, namespace="models"))
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
    found = objects(render(values, chart=chart, namespace="models"))
    model, _ = found["Deployment", "models", "sentiment"]["spec"]["template"]["spec"]["containers"]
    assert {"name": "ASYA_CONCURRENCY", "value": "2"} in model["env"]


@pytest.mark.parametrize("handler", ["predict", "my-app.predict", "", "a.b c"])
def test_what_is_no_handler_is_refused(handler: str, example: Path) -> None:
    with pytest.raises(
        HelmError, match=r"asya-runtime\.env: .* is no handler; it must be module\.path"
    ):
        render(IMAGES | {"handler": handler}, chart=example)


def test_a_helper_without_the_dependency_says_so(example: Path, tmp_path: Path) -> None:
    chart = tmp_path / "chart"
    shutil.copytree(CHART, chart)
    (chart / "templates/x.yaml").write_text('{{ include "asya-runtime.volumes" . }}')
    with pytest.raises(
        HelmError, match="chart asya-runtime uses a helper of asya-runtime, which is none"
    ):
        render({}, chart=chart)


def test_a_value_of_the_dependency_is_checked_there(example: Path) -> None:
    with pytest.raises(HelmError, match="replica"):
        render(IMAGES | nested("asya-runtime/injector/replica", 1), chart=example)


def test_the_helpers_know_the_settings_of_the_injectors_table(example: Path) -> None:
    text = (CHART / "templates/_actor.tpl").read_text()
    for entry in ENV:
        if entry.name != "handler":
            row = f'(dict "name" "{entry.name}" "env" "{entry.env}" "default" "{entry.default}")'
            assert row in text
    assert text.count('(dict "name" "') == len(ENV) - 1
    others = {
        entry.name: entry.default for entry in TABLE if entry.name in ("python", "mount-path")
    }
    for name, default in others.items():
        assert f'"{name}" "{default}"' in text
