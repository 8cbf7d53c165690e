"""The webhooks review exactly the objects that match the chart's conditions.

The conditions are CEL, which only an API server evaluates. The cases are shared with tests/chart.
"""

import contextlib
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from kubernetes import client
from kubernetes.client.exceptions import ApiException
from kubernetes.dynamic import DynamicClient

from e2e.harness import SYSTEM, Cluster, Object, until
from tests.chart.cel_cases import CASES, HANDLER, Case, build

pytestmark = pytest.mark.alone  # reviews are counted


class Sender:
    """Sends objects to a namespace."""

    def __init__(self, namespace: str) -> None:
        api: Any = client.ApiClient()
        self._objects: Any = DynamicClient(api)  # type: ignore[no-untyped-call]
        self._namespace = namespace

    def send(self, verb: str, item: Object, **how: Any) -> None:
        kind = self._objects.resources.get(api_version=item["apiVersion"], kind=item["kind"])
        getattr(kind, verb)(body=item, namespace=self._namespace, **how)

    def find_failing_webhook(self, verb: str, item: Object) -> str:
        """The name of the webhook whose missing answer rejects the object, or an empty string."""
        try:
            self.send(verb, item, dry_run="All")
        except ApiException as error:
            found = re.search(r'failed calling webhook \\"([a-z.]+)\\"', str(error.body))
            if not found:
                raise
            return found[1]
        return ""


class ReviewCounter(Sender):
    """Sends objects as dry runs, and counts the reviews."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        super().__init__(namespace)
        self._core = cluster.core
        cluster.settle()
        self._injectors = [f"{name}:8080" for name in cluster.injectors()]

    def reviews(self) -> int:
        """The number of reviews that both replicas have answered, by their own metrics."""
        total = 0
        for pod in self._injectors:
            text = self._core.connect_get_namespaced_pod_proxy_with_path(pod, SYSTEM, "metrics")
            found = re.search(r"^asya_injector_admission_duration_seconds_count (\S+)$", text, re.M)
            assert found is not None
            total += int(float(found[1]))
        return total

    def is_reviewed(self, verb: str, item: Object) -> bool:
        before = self.reviews()
        with contextlib.suppress(ApiException):  # some of the cases are rejected
            self.send(verb, item, dry_run="All")
        return self.reviews() > before


def rename(item: Object, name: str) -> Object:
    return {**item, "metadata": {**item["metadata"], "name": name}}


PROBE = next(case for case in CASES if case.id == "pod-with-handler").new


def create_old_objects(
    cluster: Cluster, namespace: str, sender: Sender, is_seen: Callable[[str, Object], object]
) -> None:
    """Create the objects for updates without injection, so that they are as given.

    is_seen: whether a webhook sees a request.
    """
    cluster.kubectl("label", "namespace", namespace, "asya.sh/injection=disabled")
    until("injection to be disabled", lambda: not is_seen("create", PROBE))
    for case in CASES:
        if case.old is not None:
            sender.send("create", rename(case.old, case.id))
    cluster.kubectl("label", "namespace", namespace, "asya.sh/injection-")
    until("injection to be enabled", lambda: is_seen("create", PROBE))


def request_of(case: Case) -> tuple[str, Object]:
    return "create" if case.old is None else "replace", rename(case.new, case.id)


def test_only_matching_objects_are_reviewed(cluster: Cluster, namespace: str) -> None:
    counter = ReviewCounter(cluster, namespace)
    create_old_objects(cluster, namespace, counter, counter.is_reviewed)
    reviewed = {case.id: counter.is_reviewed(*request_of(case)) for case in CASES}
    assert reviewed == {case.id: bool(case.webhook) for case in CASES}


@pytest.mark.parametrize("namespace_name", ["kube-system", "kube-public", "kube-node-lease"])
def test_objects_in_the_clusters_own_namespaces_are_not_reviewed(
    cluster: Cluster, namespace_name: str
) -> None:
    counter = ReviewCounter(cluster, namespace_name)
    probe = next(case for case in CASES if case.id == "deployment-annotated-itself").new
    assert not counter.is_reviewed("create", probe)


def many_annotations(count: int, size: int) -> dict[str, str]:
    """Annotations that do not concern the injector."""
    return {f"example.com/{number}": "v" * size for number in range(count)}


def seconds(counter: ReviewCounter, verb: str, item: Object) -> float:
    """The shortest time of some attempts."""
    times = []
    for _ in range(5):
        began = time.monotonic()
        counter.send(verb, item, dry_run="All")
        times.append(time.monotonic() - began)
    return min(times)


def requests(annotations: dict[str, str]) -> dict[str, tuple[str, Object]]:
    """Requests with these annotations on the objects and on their pod templates."""
    deployment = build(own=annotations, template=annotations)
    changed = build(own=annotations, template=annotations, image="newer")
    return {
        "create a pod": ("create", rename(build("Pod", annotations), "new")),
        "create a deployment": ("create", rename(deployment, "new")),
        "update a deployment": ("replace", rename(changed, "old")),
    }


@pytest.mark.timeout(300)
def test_annotations_of_others_take_little_time_in_the_api_server(
    cluster: Cluster, namespace: str
) -> None:
    counter = ReviewCounter(cluster, namespace)
    annotations = many_annotations(8000, size=10)
    counter.send("create", rename(build(own=annotations, template=annotations), "old"))
    cluster.kubectl("label", "namespace", namespace, "asya.sh/injection=disabled")
    until("the namespace to be disabled", lambda: not counter.is_reviewed("create", PROBE))
    without = {what: seconds(counter, *request) for what, request in requests(annotations).items()}
    cluster.kubectl("label", "namespace", namespace, "asya.sh/injection-")
    until("the namespace to be enabled", lambda: counter.is_reviewed("create", PROBE))
    for what, request in requests(annotations).items():
        # A quiet machine takes 0.1 s, a busy one seldom. Slow conditions never do.
        most = max(without[what] + 1, 10 * without[what])
        until(f"{what} in {most:.2g} s", lambda: seconds(counter, *request) <= most)  # noqa: B023


@pytest.mark.timeout(300)
def test_no_number_of_annotations_makes_the_api_server_reject_an_object(
    cluster: Cluster, namespace: str
) -> None:
    counter = ReviewCounter(cluster, namespace)
    annotations = {f"a/{number}": "" for number in range(20_000)}  # all of them: at most 256 KiB
    counter.send("create", rename(build(own=annotations, template=annotations), "old"))
    before = counter.reviews()
    for verb, item in requests(annotations).values():
        counter.send(verb, item, dry_run="All")
    assert counter.reviews() == before


@pytest.mark.timeout(300)
def test_an_annotation_among_thousands_of_others_is_reviewed(
    cluster: Cluster, namespace: str
) -> None:
    counter = ReviewCounter(cluster, namespace)
    annotations = many_annotations(8000, size=1)
    counter.send("create", rename(build(own=annotations, template=annotations), "old"))
    for verb, item in requests(annotations | HANDLER).values():
        assert counter.is_reviewed(verb, item)
