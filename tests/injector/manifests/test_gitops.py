"""Several sets of manifests in one namespace, and the tools that apply them."""

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.runtime_files import RuntimeFiles, is_runtime_configmap_name
from asya_injector.webhook.admission import Webhook
from asya_injector.webhook.review import Review

from tests.injector.commands import asya

Object = dict[str, Any]
ROOT = Path(__file__).parents[3]
RUNTIME = RuntimeFiles.packaged()
EXAMPLES = ROOT / "examples" / "gitops"


def actor(name: str, kind: str = "Pod", **annotations: str) -> Object:
    annotations = {"asya.sh/handler": "a.b", **annotations}
    pod: Object = {"spec": {"containers": [{"name": "model", "command": ["serve"]}]}}
    metadata = {"name": name, "annotations": annotations}
    if kind == "Pod":
        return {"apiVersion": "v1", "kind": kind, "metadata": metadata, **pod}
    spec = {"template": pod}
    return {"apiVersion": "batch/v1", "kind": kind, "metadata": metadata, "spec": spec}


def inject(*items: Object, words: tuple[str, ...] = ()) -> list[Object]:
    text = yaml.safe_dump_all(json.loads(json.dumps(items)))  # without aliases
    done = asya("inject", *words, stdin=text)
    assert done.status == 0, done.err
    assert asya("inject", *words, stdin=done.out).out == done.out
    return list(yaml.safe_load_all(done.out))


def copies(documents: list[Object]) -> list[str]:
    return [each["metadata"]["name"] for each in documents if each["kind"] == "ConfigMap"]


def mounted(document: Object) -> str:
    pod = document["spec"].get("template", document)
    (volume,) = [each for each in pod["spec"]["volumes"] if each["name"] == "asya-runtime"]
    name: str = volume["configMap"]["name"]
    return name


def test_sets_of_manifests_have_configmaps_of_different_names() -> None:
    first, second = copies(inject(actor("a"), actor("b"))), copies(inject(actor("b"), actor("a")))
    assert len(first) == len(second) == 1
    assert first != second
    assert first == copies(inject(actor("a")))
    assert copies(inject(actor("a", "Job"))) != first
    for name in (*first, *second):
        assert is_runtime_configmap_name(name)
        assert name.startswith(f"asya-runtime-{RUNTIME.hash}-")


def test_all_actors_of_a_namespace_mount_the_configmap_of_their_set() -> None:
    documents = inject(actor("a"), actor("b"), actor("c", "Job"))
    (name,) = copies(documents)
    assert [mounted(each) for each in documents[1:]] == [name] * 3


def test_a_helm_hook_mounts_a_configmap_that_is_a_hook_too() -> None:
    hook = {"helm.sh/hook": "pre-install,pre-upgrade"}
    documents = inject(
        actor("a"),
        actor("h", "Job", **hook),
        actor("i", "Job", **hook),
        words=("--keep-with", "helm"),
    )
    plain, pod, of_hook, first, second = documents
    assert plain["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert of_hook["metadata"]["annotations"] == {**hook, "helm.sh/hook-weight": "-2147483648"}
    assert [mounted(each) for each in (pod, first, second)] == [
        plain["metadata"]["name"], *[of_hook["metadata"]["name"]] * 2,
    ]  # fmt: skip
    assert plain["metadata"]["name"] != of_hook["metadata"]["name"]


FIRST = "-2147483648"
KEPT = {"argocd.argoproj.io/sync-options": "Prune=false,Delete=false"}


@pytest.mark.parametrize(
    ("early", "expected"),
    [
        ({"hook": "PreSync"}, {"hook": "PreSync", "sync-wave": FIRST}),
        ({"hook": "PreSync", "sync-wave": "-9"}, {"hook": "PreSync", "sync-wave": FIRST}),
        ({"sync-wave": "-5"}, {"sync-wave": "-5"}),
        ({"sync-wave": "0"}, None),
        ({"sync-wave": "3"}, None),
        ({"sync-wave": "x"}, None),
    ],
)
def test_argo_cd_creates_the_configmap_before_hooks_and_waves(
    early: Object, expected: Object | None
) -> None:
    prefix = "argocd.argoproj.io/"
    annotations = {f"{prefix}{key}": text for key, text in early.items()}
    documents = inject(
        actor("a"), actor("h", "Job", **annotations), words=("--keep-with", "argocd")
    )
    plain = documents[0]
    assert plain["metadata"]["annotations"] == KEPT
    (job,) = [each for each in documents if each["kind"] == "Job"]
    if expected is None:
        assert mounted(job) == plain["metadata"]["name"]
        return
    configmap = documents[2]
    assert mounted(job) == configmap["metadata"]["name"] != plain["metadata"]["name"]
    kept = {} if "hook" in expected else KEPT
    assert configmap["metadata"]["annotations"] == kept | {
        f"{prefix}{key}": text for key, text in expected.items()
    }


@pytest.mark.parametrize(
    ("tool", "annotations"),
    [
        ("helm", {"helm.sh/resource-policy": "keep"}),
        ("argocd", {"argocd.argoproj.io/sync-options": "Prune=false,Delete=false"}),
        ("flux", {"kustomize.toolkit.fluxcd.io/prune": "disabled"}),
    ],
)
def test_a_tool_can_be_told_to_keep_the_configmap(tool: str, annotations: Object) -> None:
    (configmap, _) = inject(actor("a"), words=("--keep-with", tool))
    assert configmap["metadata"]["annotations"] == annotations
    assert "annotations" not in inject(actor("a"))[0]["metadata"]


def test_the_webhook_accepts_such_a_pod_and_gives_it_its_own_configmap() -> None:
    (_, pod) = inject(actor("a"))
    review = Review(
        uid="u", resource=("", "v1", "pods"), subresource="", operation="CREATE", namespace="m",
        dry_run=False, object=copy.deepcopy(pod),
    )  # fmt: skip
    webhook = Webhook(ClusterDefaults(RUNTIME.hash, {}), mock.AsyncMock(), mock.AsyncMock())
    admitted = webhook.admit_pod(review, [])
    assert mounted(admitted) == f"asya-runtime-{RUNTIME.hash}"
    assert admitted["spec"]["containers"] == pod["spec"]["containers"]


@pytest.mark.parametrize(
    "name",
    [
        "asya-runtime-0123456789-0123456",
        "asya-runtime-0123456789-x1234567",
        "asya-runtime-01234567",
    ],
)
def test_other_names_are_not_those_of_runtime_configmaps(name: str) -> None:
    assert not is_runtime_configmap_name(name)


def test_a_configmap_that_the_input_has_under_the_common_name_is_used() -> None:
    documents = inject(RUNTIME.config_map(), actor("a"))
    assert copies(documents) == [f"asya-runtime-{RUNTIME.hash}"] == [mounted(documents[1])]


def test_a_kustomize_function_reads_and_writes_a_resource_list() -> None:
    function = yaml.safe_load((EXAMPLES / "kustomize-function.yaml").read_text())
    given = {
        "apiVersion": "config.kubernetes.io/v1", "kind": "ResourceList",
        "items": [actor("a")], "functionConfig": function,
    }  # fmt: skip
    done = asya("inject", stdin=yaml.safe_dump(given))
    result = yaml.safe_load(done.out)
    assert result["kind"] == "ResourceList"
    assert [each["kind"] for each in result["items"]] == ["ConfigMap", "Pod"]
    assert result["functionConfig"] == function


def test_the_plugin_of_argo_cd_prints_injected_manifests(tmp_path: Path) -> None:
    plugin = yaml.safe_load((EXAMPLES / "argocd-plugin.yaml").read_text())["spec"]["generate"]
    (tmp_path / "pod.yaml").write_text(yaml.safe_dump(actor("a")))
    environ = programs(tmp_path, kustomize=f"cat {tmp_path}/pod.yaml")
    words = [*plugin["command"], *plugin["args"]]
    done = subprocess.run(
        words,
        env=environ | {"ARGOCD_APP_NAMESPACE": "m"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(copies(list(yaml.safe_load_all(done.stdout)))) == 1
    failing = programs(tmp_path, kustomize="exit 3") | {"ARGOCD_APP_NAMESPACE": "m"}
    assert subprocess.run(words, env=failing, capture_output=True, check=False).returncode == 3


def programs(directory: Path, **scripts: str) -> dict[str, str]:
    """An environment with these programs, and `asya-injector` of this checkout."""
    injector = f'PYTHONPATH={ROOT / "injector"} exec {sys.executable} -m asya_injector "$@"'
    folder = directory / "bin"
    folder.mkdir(exist_ok=True)
    for name, script in {"asya-injector": injector, **scripts}.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}


def find_helm(version: int) -> str:
    for name in ("helm", f"helm{version}"):
        path = shutil.which(name) or shutil.which(name, path=str(ROOT / ".tools" / "bin"))
        if path:
            words = [path, "version", "--short"]
            text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
            if text.startswith(f"v{version}."):
                return path
    pytest.skip(f"needs Helm {version}: make helm{version}")


@pytest.fixture
def chart(tmp_path: Path) -> Path:
    folder = tmp_path / "model-chart"
    (folder / "templates").mkdir(parents=True)
    (folder / "Chart.yaml").write_text("apiVersion: v2\nname: model\nversion: 0.1.0\n")
    item = yaml.safe_dump(actor("NAME")).replace("NAME", "{{ .Release.Name }}")
    (folder / "templates" / "pod.yaml").write_text(item)
    job = actor("NAME", "Job", **{"helm.sh/hook": "pre-install"})
    text = yaml.safe_dump(job).replace("NAME", "{{ .Release.Name }}-hook")
    (folder / "templates" / "hook.yaml").write_text(text)
    return folder


def render(helm: str, chart: Path, environ: dict[str, str], *words: str) -> list[Object]:
    command = [helm, "template", "blue", str(chart), *words]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def test_helm_3_injects_with_the_program_as_post_renderer(chart: Path, tmp_path: Path) -> None:
    environ = programs(tmp_path)
    words = ["--post-renderer", "asya-injector", "--post-renderer-args", "inject"]
    documents = render(find_helm(3), chart, environ, *words)
    (name,) = copies(documents)
    assert mounted(next(each for each in documents if each["kind"] == "Pod")) == name
    assert "annotations" not in documents[0]["metadata"]


def test_helm_4_injects_with_the_plugin(chart: Path, tmp_path: Path) -> None:
    helm = find_helm(4)
    environ = programs(tmp_path) | {"HELM_DATA_HOME": str(tmp_path)}
    environ.pop("HELM_PLUGINS", None)
    install = [helm, "plugin", "install", str(EXAMPLES / "helm-plugin")]
    subprocess.run(install, env=environ, capture_output=True, check=True)
    documents = render(helm, chart, environ, "--post-renderer", "asya-inject")
    found = {each["metadata"]["name"]: each for each in documents if each["kind"] == "ConfigMap"}
    of_pod = found[mounted(next(each for each in documents if each["kind"] == "Pod"))]
    of_hook = found[mounted(next(each for each in documents if each["kind"] == "Job"))]
    assert of_pod["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert of_hook["metadata"]["annotations"]["helm.sh/hook"] == "pre-install"
