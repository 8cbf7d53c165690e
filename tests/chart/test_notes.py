"""What Helm says after an installation: what is on, what to type next, what to beware of."""

from pathlib import Path

import pytest
import yaml

from tests.chart.charts import CASES, SYSTEM, Object, case, nested, objects, run

# By the values: what is said, and is not said without them.
SAID: list[tuple[Object, str]] = [
    ({}, "made and renewed by the injector"),
    ({}, "refused, and tried again by their controllers"),
    ({}, f"helm test asya-runtime --namespace {SYSTEM}"),
    (nested("certificates/mode", "certManager"), "made by cert-manager, from a CA of its own"),
    (
        nested(
            "certificates", {"mode": "certManager", "certManager": {"issuerRef": {"name": "a"}}}
        ),
        "made by cert-manager, from Issuer a",
    ),
    (CASES["existing-secret"][1], "from your Secret our-certificate"),
    (nested("injector/replicas", 1), "WARNING: injector.replicas is 1: while that pod is away"),
    (nested("injector/replicas", 0), "WARNING: injector.replicas is 0: while there is no pod"),
    (nested("webhook/failurePolicy", "Ignore"), "WARNING: webhook.failurePolicy is Ignore"),
    (nested("injector/podDisruptionBudget/enabled", False), "WARNING: injector.podDisruption"),
    (nested("injector/hostNetwork", True), "WARNING: injector.hostNetwork is true"),
    (nested("rbac/create", False), "WARNING: rbac.create is false"),
    (CASES["existing-secret-with-cainjector"][1], "WARNING: no caBundle is given"),
    (
        nested("prune/enabled", True),
        'prune          unused copies of the runtime are removed, at "17',
    ),
    (nested("networkPolicy/enabled", True), "network        only the ports"),
    (
        nested("metrics/serviceMonitor/enabled", True),
        f"http://asya-runtime-metrics.{SYSTEM}:8080/metrics, with a ServiceMonitor",
    ),
    (nested("runtime/namespaces", ["models"]), f"is in: {SYSTEM}, models"),
    (nested("injector/enabled", False), f"are in ConfigMap asya-runtime, in: {SYSTEM}"),
    (CASES["nothing"][1], "Nothing is installed"),
]


def notes(values: Object, chart: Path, *, namespace: str = SYSTEM) -> str:
    """What `helm install` would print after the objects."""
    words = ["-n", namespace, "--dry-run=client", "-f", "-"]
    _, _, said = run(
        "install", "asya-runtime", chart, *words, stdin=yaml.safe_dump(values)
    ).partition("\nNOTES:\n")
    return said


@pytest.fixture(scope="module")
def usual(chart: Path) -> str:
    return notes({}, chart)


@pytest.mark.parametrize(("values", "words"), SAID)
def test_it_says_what_is_on_and_what_to_beware_of(
    values: Object, words: str, chart: Path, usual: str
) -> None:
    assert (words in usual) == (values == {})
    assert words in notes(values, chart)


def test_all_is_well_by_default(usual: str) -> None:
    assert "WARNING" not in usual


def test_without_its_test_it_names_none(chart: Path) -> None:
    assert "helm test" not in notes(nested("tests/enabled", False), chart)


@pytest.mark.parametrize("name", CASES)
def test_every_case_has_notes_without_a_gap(name: str, chart: Path) -> None:
    namespace, values = CASES[name]
    said = notes(values, chart, namespace=namespace)
    assert said.strip()
    assert "<no value>" not in said
    assert "\n\n\n" not in said.strip()
    # What the notes name is there.
    for kind, _, who in objects(case(name, chart)):
        if kind == "Deployment":
            assert f"rollout status deployment/{who} --namespace {namespace}" in said
