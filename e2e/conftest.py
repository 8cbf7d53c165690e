"""A cluster with the release installed, a namespace for each test, and a look at it on failure."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator

import pytest
from harness import REPOSITORY, SYSTEM, Cluster, run
from kubernetes import config


@pytest.fixture(scope="session")
def bare_cluster() -> Cluster:
    """The cluster without a release."""
    if not os.environ.get("INJECTOR_IMAGE") or not shutil.which("kubectl"):
        pytest.exit("run these tests by `make e2e`: it makes cluster, tools and images", 2)
    config.load_kube_config(os.environ["KUBECONFIG"])  # type: ignore[no-untyped-call]
    build = [
        str(REPOSITORY / "e2e/cluster/image.sh"),
        "asya/e2e-model",
        str(REPOSITORY / "e2e/model"),
    ]
    model = run(*build, timeout=600).stdout.strip()
    cluster = Cluster(os.environ["INJECTOR_IMAGE"], model)
    cluster.uninstall()
    return cluster


@pytest.fixture(scope="session")
def cluster(bare_cluster: Cluster) -> Cluster:
    """The cluster with the release installed in `asya-system`, under restricted PodSecurity."""
    bare_cluster.make_namespace(SYSTEM)
    bare_cluster.install()
    return bare_cluster


@pytest.fixture
def namespace(bare_cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of the test's own, under restricted PodSecurity."""
    name = f"e2e-{os.urandom(4).hex()}"
    bare_cluster.make_namespace(name)
    yield name
    if not request.session.stash.get(_FAILED, False):
        bare_cluster.kubectl("delete", "namespace", name, "--wait=false")


_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Iterator[None] | pytest.TestReport:
    report: pytest.TestReport = yield  # type: ignore[misc, assignment]
    if report.failed:
        item.session.stash[_FAILED] = True  # namespaces stay for a look
        arguments = getattr(item, "funcargs", {})
        for namespace in filter(None, (arguments.get("namespace"), SYSTEM)):
            report.sections.append((f"namespace {namespace}", _look(namespace)))
    return report


def _look(namespace: str) -> str:
    """Pods, events and logs, as much as a person would ask for."""

    def say(*words: str) -> str:
        done = run("kubectl", "-n", namespace, *words, check=False)
        return f"$ kubectl -n {namespace} {' '.join(words)}\n{done.stdout}{done.stderr}\n"

    text = say("get", "all,configmaps", "-o", "wide") + say(
        "get", "events", "--sort-by=.lastTimestamp"
    )
    listed = run("kubectl", "-n", namespace, "get", "pods", "-o", "json", check=False)
    pods = json.loads(listed.stdout)["items"] if listed.returncode == 0 else []
    for pod in pods:
        name = pod["metadata"]["name"]
        text += say("logs", name, "--all-containers", "--prefix", "--tail=40")
    return text
