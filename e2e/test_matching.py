"""The API server asks us about exactly the objects that the chart's conditions describe.

The conditions are CEL, which an API server alone evaluates; the cases are the chart's tests' own.
"""

import contextlib
import re
import time
from typing import Any

import pytest
from kubernetes import client
from kubernetes.client.exceptions import ApiException
from kubernetes.dynamic import DynamicClient

from e2e.harness import SYSTEM, Cluster, Object, until
from tests.chart.cel_cases import CASES, HANDLER, Case, build

pytestmark = pytest.mark.alone  # reviews are counted


class Asker:
    """Sends objects as dry runs and counts the reviews that this makes."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        api: Any = client.ApiClient()
        self._objects: Any = DynamicClient(api)  # type: ignore[no-untyped-call]
        self._core = cluster.core
        self._namespace = namespace
        until("two injectors", lambda: len(cluster.injectors()) == 2)
        self._injectors = [f"{name}:8080" for name in cluster.injectors()]

    def reviews(self) -> int:
        """What both replicas have answered, by their own count."""
        total = 0
        for pod in self._injectors:
            text = self._core.connect_get_namespaced_pod_proxy_with_path(pod, SYSTEM, "metrics")
            found = re.search(r"^asya_injector_admission_duration_seconds_count (\S+)$", text, re.M)
            assert found is not None
            total += int(float(found[1]))
        return total

    def send(self, verb: str, item: Object, **how: Any) -> None:
        kind = self._objects.resources.get(api_version=item["apiVersion"], kind=item["kind"])
        getattr(kind, verb)(body=item, namespace=self._namespace, **how)

    def is_asked(self, verb: str, item: Object) -> bool:
        before = self.reviews()
        with contextlib.suppress(ApiException):  # some of the cases are refused
            self.send(verb, item, dry_run="All")
        return self.reviews() > before

    def unanswered(self, verb: str, item: Object) -> str:
        """The name of the webhook without whose answer the object is refused; empty if none is."""
        try:
            self.send(verb, item, dry_run="All")
        except ApiException as error:
            found = re.search(r'failed calling webhook \\"([a-z.]+)\\"', str(error.body))
            if not found:
                raise
            return found[1]
        return ""


def named(item: Object, name: str) -> Object:
    return {**item, "metadata": {**item["metadata"], "name": name}}


PROBE = next(case for case in CASES if case.id == "pod-with-handler").new


def make_the_old_ones(cluster: Cluster, namespace: str, asker: Asker) -> None:
    """The objects that updates start from, made while nobody looks, so that they are as given."""
    cluster.kubectl("label", "namespace", namespace, "asya.sh/injection=disabled")
    until("the namespace to be left alone", lambda: not asker.is_asked("create", PROBE))
    for case in CASES:
        if case.old is not None:
            asker.send("create", named(case.old, case.id))
    cluster.kubectl("label", "namespace", namespace, "asya.sh/injection-")
    until("the namespace to be looked at", lambda: asker.is_asked("create", PROBE))


def verb_of(case: Case) -> str:
    return "create" if case.old is None else "replace"


def test_the_injector_is_asked_about_what_concerns_it_and_nothing_else(
    cluster: Cluster, namespace: str
) -> None:
    asker = Asker(cluster, namespace)
    make_the_old_ones(cluster, namespace, asker)
    asked = {case.id: asker.is_asked(verb_of(case), named(case.new, case.id)) for case in CASES}
    assert asked == {case.id: bool(case.webhook) for case in CASES}


@pytest.mark.timeout(300)
def test_while_no_injector_answers_only_what_it_must_write_to_has_to_wait(
    cluster: Cluster, namespace: str
) -> None:
    asker = Asker(cluster, namespace)
    make_the_old_ones(cluster, namespace, asker)
    with cluster.without_injectors():
        waiting = {
            case.id: asker.unanswered(verb_of(case), named(case.new, case.id)) for case in CASES
        }
    must = {"pods": "pods.asya.sh", "workloads": "workloads.asya.sh"}
    assert waiting == {case.id: must.get(case.webhook, "") for case in CASES}


@pytest.mark.parametrize("namespace_name", ["kube-system", "kube-public", "kube-node-lease"])
def test_nothing_in_the_clusters_own_namespaces_is_asked_about(
    cluster: Cluster, namespace_name: str
) -> None:
    asker = Asker(cluster, namespace_name)
    probe = next(case for case in CASES if case.id == "deployment-annotated-itself").new
    assert not asker.is_asked("create", probe)


def many_annotations(count: int, size: int) -> dict[str, str]:
    """Annotations that do not concern the injector."""
    return {f"example.com/{number}": "v" * size for number in range(count)}


def seconds(asker: Asker, verb: str, item: Object) -> float:
    """The shortest time of some attempts."""
    times = []
    for _ in range(3):
        began = time.monotonic()
        asker.send(verb, item, dry_run="All")
        times.append(time.monotonic() - began)
    return min(times)


def requests(annotations: dict[str, str]) -> dict[str, tuple[str, Object]]:
    """Requests with these annotations on the objects and on their pod templates."""
    deployment = build(own=annotations, template=annotations)
    changed = build(own=annotations, template=annotations, image="newer")
    return {
        "create a pod": ("create", named(build("Pod", annotations), "new")),
        "create a deployment": ("create", named(deployment, "new")),
        "update a deployment": ("replace", named(changed, "old")),
    }


@pytest.mark.timeout(300)
def test_annotations_of_others_take_little_time_in_the_api_server(
    cluster: Cluster, namespace: str
) -> None:
    asker = Asker(cluster, namespace)
    annotations = many_annotations(8000, size=10)
    asker.send("create", named(build(own=annotations, template=annotations), "old"))
    with_webhook = {
        what: seconds(asker, *request) for what, request in requests(annotations).items()
    }
    cluster.kubectl("label", "namespace", namespace, "asya.sh/injection=disabled")
    until("the namespace to be disabled", lambda: not asker.is_asked("create", PROBE))
    without = {what: seconds(asker, *request) for what, request in requests(annotations).items()}
    slow = {what: (with_webhook[what], without[what]) for what in without}
    assert {what for what in slow if with_webhook[what] > without[what] + 1} == set(), slow


@pytest.mark.timeout(300)
def test_no_number_of_annotations_makes_the_api_server_reject_an_object(
    cluster: Cluster, namespace: str
) -> None:
    asker = Asker(cluster, namespace)
    annotations = {f"a/{number}": "" for number in range(20_000)}  # all of them: at most 256 KiB
    asker.send("create", named(build(own=annotations, template=annotations), "old"))
    before = asker.reviews()
    for verb, item in requests(annotations).values():
        asker.send(verb, item, dry_run="All")
    assert asker.reviews() == before


@pytest.mark.timeout(300)
def test_an_annotation_among_thousands_of_others_is_seen(cluster: Cluster, namespace: str) -> None:
    asker = Asker(cluster, namespace)
    annotations = many_annotations(8000, size=1)
    asker.send("create", named(build(own=annotations, template=annotations), "old"))
    for verb, item in requests(annotations | HANDLER).values():
        assert asker.is_asked(verb, item)
