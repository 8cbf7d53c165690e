"""Releases that bring their own runtime share a namespace with each other and with the webhook."""

from __future__ import annotations

import copy
import json
import os
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from e2e.harness import (
    REPOSITORY,
    Cluster,
    Object,
    Pod,
    is_ready,
    run,
    switch_injection,
    until,
    workload,
)

ECHO = {"asya.sh/handler": "handlers.echo"}
APP = ["python3", "-m", "app"]
OK = [{"status": "ok", "result": {}}]
PLUGIN = REPOSITORY / "examples/gitops/helm-plugin"
CHART = "apiVersion: v2\nname: model\nversion: 0.1.0\n"


@dataclass
class Release:
    """A release of the model's chart, by the documented post-renderer of one of the Helms."""

    cluster: Cluster
    namespace: str
    name: str
    tool: str
    chart: Path

    def helm(self, verb: str, *words: str, injector: Path | None = None) -> None:
        """Run Helm; injector: where the program is with which the chart is injected."""
        environ = dict(os.environ)
        if injector:
            environ |= {
                "PATH": f"{injector}:{environ['PATH']}",
                "HELM_DATA_HOME": str(self.chart.parent),
            }
            program = ["asya-injector", "--post-renderer-args", "inject"]
            words = (str(self.chart), *words, "--post-renderer")
            words += ("asya-inject",) if self.tool == "helm" else tuple(program)
        command = [self.tool, verb, self.name, *words, "--namespace", self.namespace]
        run(*command, env=environ)

    def find_pod(self) -> Pod | None:
        """The ready pod."""
        return next(filter(is_ready, self.cluster.pods(self.namespace, self.name)), None)

    def replace_pod(self) -> None:
        """Delete the pod, so that one of the current template takes its place."""
        old = self.cluster.ready_pod(self.namespace, self.name)
        words = ["delete", "pod", old.metadata.name, "--wait=false"]
        self.cluster.kubectl("-n", self.namespace, *words)

        def is_replaced() -> bool:
            pod = self.find_pod()
            return pod is not None and pod.metadata.uid != old.metadata.uid

        until(f"another pod of {self.name}", is_replaced)

    def mounted(self) -> str:
        """The runtime ConfigMap that the pod mounts."""
        return find_mounted(self.cluster.get("-n", self.namespace, f"pod/{self.name}-0")["spec"])

    def answers(self) -> bool:
        pod = self.cluster.ready_pod(self.namespace, self.name)
        return self.cluster.call(pod, {"payload": {}}) == OK


@pytest.mark.timeout(300)
def test_releases_of_both_helms_and_the_webhook_share_a_namespace(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    older, newer = (install_program(tmp_path, version) for version in ("older", "newer"))
    chart = write_chart(cluster, tmp_path / "model-chart")
    environ = {**os.environ, "HELM_DATA_HOME": str(tmp_path)}
    run("helm", "plugin", "install", str(PLUGIN), env=environ)
    all_three = blue, green, red = [
        Release(cluster, namespace, name, tool, chart)
        for name, tool in (("blue", "helm"), ("green", "helm3"), ("red", "none"))
    ]
    both = [blue, green]
    cluster.apply(stateful("red", cluster, ECHO), namespace=namespace)
    cluster.ready_pod(namespace, "red")

    switch_injection(cluster, namespace, on=False)
    for each in both:
        each.helm("install", injector=older)
    assert [each.answers() for each in all_three] == [True] * 3
    first = [each.mounted() for each in both]
    assert len({*first, red.mounted()}) == 3
    # Helm 4 injects hooks, whose ConfigMap comes first; Helm 3 does not pass them on.
    of_hook = find_mounted(find_hook(blue))
    assert of_hook not in {*first, red.mounted()}
    assert find_mounted(find_hook(green)) == ""

    # The pods of the previous revision still run, and a restarted container finds its files.
    at_once(lambda each: each.helm("upgrade", injector=newer), both)
    at_once(restart, both)
    assert [each.answers() for each in all_three] == [True] * 3
    at_once(Release.replace_pod, both)
    second = [each.mounted() for each in both]
    assert {name.split("-")[2] for name in second}.isdisjoint(name.split("-")[2] for name in first)

    at_once(lambda each: each.helm("rollback", "1"), both)
    at_once(Release.replace_pod, both)
    assert [each.mounted() for each in both] == first
    assert [each.answers() for each in all_three] == [True] * 3

    switch_injection(cluster, namespace, on=True)
    green.helm("uninstall")
    at_once(Release.replace_pod, [blue, red])
    green.helm("install", injector=newer)
    blue.helm("uninstall")
    at_once(Release.replace_pod, [green, red])
    assert [each.answers() for each in (green, red)] == [True] * 2
    green.helm("uninstall")
    assert red.answers()
    # Helm 4 keeps what pods may still mount; hooks belong to no release.
    left = {each["metadata"]["name"] for each in cluster.copies(namespace)}
    assert left == {first[0], second[0], of_hook, red.mounted()}


def at_once(act: Callable[[Release], None], releases: list[Release]) -> None:
    with ThreadPoolExecutor() as pool:
        list(pool.map(act, releases))


def restart(release: Release) -> None:
    release.cluster.restart_target(release.cluster.ready_pod(release.namespace, release.name))


def find_hook(release: Release) -> Object:
    """The spec of the pod of the release's hook, which has succeeded."""
    job = release.cluster.get("-n", release.namespace, f"job/{release.name}-hook")
    assert job["status"]["succeeded"] == 1
    return dict(job["spec"]["template"]["spec"])


def find_mounted(spec: Object) -> str:
    """The runtime ConfigMap that a pod mounts."""
    volumes = {each["name"]: each for each in spec.get("volumes", [])}
    return str(volumes["asya-runtime"]["configMap"]["name"]) if "asya-runtime" in volumes else ""


def install_program(directory: Path, version: str) -> Path:
    """A directory with the program `asya-injector`; the newer one has other runtime files."""
    package = REPOSITORY / "injector"
    if version == "newer":
        package = directory / "injector"
        # Other processes write bytecode now.
        source, ignore = (
            REPOSITORY / "injector/asya_injector",
            shutil.ignore_patterns("__pycache__"),
        )
        shutil.copytree(source, package / "asya_injector", ignore=ignore)
        data = package / "asya_injector" / "data"
        shutil.copytree(REPOSITORY / "runtime", data, ignore=ignore, dirs_exist_ok=True)
        runtime = data / "asya_runtime.py"
        runtime.write_text(runtime.read_text() + "# Another version of this file.\n")
    programs = directory / version
    programs.mkdir()
    program = programs / "asya-injector"
    command = f'PYTHONPATH={package} exec {sys.executable} -m asya_injector "$@"'
    program.write_text(f"#!/bin/sh\n{command}\n")
    program.chmod(0o755)
    return programs


def stateful(name: str, cluster: Cluster, annotations: dict[str, str]) -> Object:
    """A StatefulSet whose pod changes only when it is deleted."""
    item = workload(
        name, cluster.model_image, template=annotations, command=APP, kind="StatefulSet"
    )
    item["spec"] |= {"serviceName": name, "updateStrategy": {"type": "OnDelete"}}
    return item


def write_chart(cluster: Cluster, folder: Path) -> Path:
    """A chart with an actor, and with an actor that is a hook."""
    (folder / "templates").mkdir(parents=True)
    (folder / "Chart.yaml").write_text(CHART)
    name = "{{ .Release.Name }}"
    model = stateful(name, cluster, ECHO)
    pod = copy.deepcopy(model["spec"]["template"])
    pod["metadata"].pop("labels")
    pod["spec"]["containers"] = pod["spec"]["containers"][:1]
    pod["spec"]["containers"][0]["command"] = ["python3", "-c", "pass"]
    pod["spec"]["restartPolicy"] = "Never"
    hook: Object = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": f"{name}-hook", "annotations": {"helm.sh/hook": "pre-install"}},
        "spec": {"template": pod, "backoffLimit": 0},
    }
    for item in (model, hook):
        (folder / "templates" / f"{item['kind']}.yaml").write_text(json.dumps(item))
    return folder
