"""Whatever valid objects a cluster holds, `check` and `prune` give rows."""

import datetime as dt
import random
from collections.abc import Iterator

import pytest
from asya_injector.diagnostics.check import check
from asya_injector.diagnostics.prune import prune
from asya_injector.kube_objects import WORKLOAD_KINDS
from asya_injector.runtime_files import CHART, CHART_SHA256, INJECTOR, MANAGED_BY, RuntimeFiles
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.injector.paged_api import NOW, Object, PagedApi, serve_paged_api
from tests.support.any_object import EXAMPLES, Generator

RUNTIME = RuntimeFiles.packaged()
RELEASE = "s"
CONFIGURATIONS = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
CHECKS = ["webhook", "pods", "workloads"]


@pytest.fixture(scope="module")
def server() -> Iterator[PagedApi]:
    with serve_paged_api() as server:
        yield server


class Listing:
    """Random objects as an API server lists them."""

    def __init__(self, seed: int) -> None:
        self._generator = Generator(seed)
        self._random = random.Random(seed)
        self._number = 0

    def build(self, kind: str, **labels: str) -> Object:
        """An object with the metadata that every stored object has."""
        self._number += 1
        item = self._generator.generate(kind, status=True)
        hash_ = self._random.choice([RUNTIME.hash, "0123456789"])
        age = dt.timedelta(minutes=self._random.choice([0, 60]))
        metadata = item["metadata"] = item.get("metadata") or {}
        metadata |= {
            "name": self._random.choice(["a", "asya-runtime", f"asya-runtime-{hash_}"]),
            "namespace": self._random.choice([RELEASE, "m"]),
            "uid": str(self._number),
            "resourceVersion": "7",
            "creationTimestamp": (NOW - age).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        if labels and self._random.random() < 0.8:
            metadata["labels"] = {**metadata.get("labels", {}), **labels}
        return item

    def fill(self, server: PagedApi) -> None:
        """Let the server list some objects of each kind that is read."""

        def some(kind: str, **labels: str) -> list[Object]:
            return [self.build(kind, **labels) for _ in range(self._random.randrange(4))]

        configmaps = some("/v1/ConfigMap", **MANAGED_BY) + some("/v1/ConfigMap", **CHART)
        for item in configmaps:
            if self._random.random() < 0.5:
                item["metadata"].setdefault("annotations", {})[CHART_SHA256] = RUNTIME.sha256
        pods = some("/v1/Pod", **INJECTOR) + some("/v1/Pod")
        kind = "admissionregistration.k8s.io/v1/MutatingWebhookConfiguration"
        configurations = some(kind)
        for item in configurations:
            for webhook in item.get("webhooks", []):
                webhook["name"] = self._random.choice(["pods.asya.sh", "x"])
        deployments = some("apps/v1/Deployment", **INJECTOR)
        server.lists = {CONFIGURATIONS: configurations}
        for namespace in ("", f"/namespaces/{RELEASE}", "/namespaces/m"):
            server.lists[f"/api/v1{namespace}/configmaps"] = configmaps
            server.lists[f"/api/v1{namespace}/pods"] = pods
            server.lists[f"/apis/apps/v1{namespace}/deployments"] = deployments
            for each in WORKLOAD_KINDS:
                path = f"/apis/{each.api_version}{namespace}/{each.plural}"
                schema = "batch/v1/CronJob" if each.name == "CronJob" else "apps/v1/Deployment"
                server.lists.setdefault(path, some(schema))


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.integers(min_value=0))
def test_any_valid_objects_give_rows(server: PagedApi, seed: int) -> None:
    Listing(seed).fill(server)
    rows = list(check(server.connect(), RUNTIME))
    assert {row.check for row in rows} >= set(CHECKS)
    decisions = list(
        prune(server.connect(), older_than=dt.timedelta(minutes=10), dry_run=False, release=RELEASE)
    )
    assert len(decisions) <= len(server.lists["/api/v1/configmaps"])
