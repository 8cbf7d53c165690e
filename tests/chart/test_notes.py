"""The notes that Helm prints after an installation: features, next steps and warnings."""

from pathlib import Path

import pytest
import yaml
from asya_injector import __version__

from tests.chart.charts import (
    CASES,
    SYSTEM,
    WITH_IMAGE,
    Object,
    case_objects,
    run,
    value_at,
)

# Values, and words of the notes that depend on them.
NOTES: list[tuple[Object, str]] = [
    ({}, f"image           asya/injector:{__version__}\n"),
    ({}, "created and renewed by the injector"),
    ({}, "are rejected, and their controllers retry"),
    ({}, f"helm test asya-runtime --namespace {SYSTEM}"),
    (
        value_at("certificates/mode", "certManager"),
        "issued by cert-manager, with a CA that this chart creates",
    ),
    (
        value_at(
            "certificates", {"mode": "certManager", "certManager": {"issuerRef": {"name": "a"}}}
        ),
        "issued by cert-manager, with Issuer a",
    ),
    (CASES["existing-secret"][1], "taken from Secret our-certificate"),
    (
        value_at("injector/replicas", 1),
        "WARNING: injector.replicas is 1. Annotated pods are rejected while this pod is",
    ),
    (
        value_at("injector/replicas", 0),
        "WARNING: injector.replicas is 0. Annotated pods are rejected.\n",
    ),
    (CASES["image-by-digest"][1], "WARNING: injector.image.tag is 1.10, but injector.image.digest"),
    (value_at("webhook/failurePolicy", "Ignore"), "WARNING: webhook.failurePolicy is Ignore"),
    (value_at("injector/podDisruptionBudget/enabled", False), "WARNING: injector.podDisruption"),
    (value_at("injector/hostNetwork", True), "WARNING: injector.hostNetwork is true"),
    (value_at("rbac/create", False), "WARNING: rbac.create is false"),
    (
        CASES["existing-secret-with-cainjector"][1],
        "WARNING: certificates.existingSecret.caBundle is empty",
    ),
    (value_at("prune/enabled", True), "prune           deletes unused copies of the runtime"),
    (value_at("prune/enabled", True), 'ConfigMap at "17 3 * * *"'),
    (
        CASES["sidecar"][1],
        "sidecar         asya-sidecar from image registry.example.com/queue:1 is added to each",
    ),
    (
        CASES["sidecar"][1] | CASES["no-injector"][1],
        "WARNING: sidecar.container is set, but without the injector",
    ),
    (CASES["runtime-from-image"][1], "runtime         mounted from image asya/injector:"),
    (
        CASES["runtime-from-another-image"][1],
        "runtime         mounted from image images.example.com/runtime-files:3@sha256:fedcba98765",
    ),
    (
        CASES["runtime-from-image"][1],
        "WARNING: prune.enabled has no effect, because runtime.delivery is image.",
    ),
    (value_at("networkPolicy/enabled", True), "network policy  admits traffic only to"),
    (value_at("webhook/failurePolicy", "Ignore"), "pods are admitted without the runtime"),
    (
        value_at("metrics/serviceMonitor/enabled", True),
        f"http://asya-runtime-metrics.{SYSTEM}:8080/metrics, with a ServiceMonitor",
    ),
    (value_at("runtime/namespaces", ["models"]), f"ConfigMap asya-runtime in: {SYSTEM}, models"),
    (value_at("injector/enabled", False), "The ConfigMap asya-runtime with asya-runtime"),
    (value_at("injector/enabled", False), f"is installed in: {SYSTEM}"),
    (CASES["empty"][1], "The release is empty"),
]


def notes(values: Object, chart: Path, *, namespace: str = SYSTEM) -> str:
    """The notes that `helm install` would print."""
    words = ["-n", namespace, "--dry-run=client", *WITH_IMAGE, "-f", "-"]
    _, _, printed = run(
        "install", "asya-runtime", chart, *words, stdin=yaml.safe_dump(values)
    ).partition("\nNOTES:\n")
    return printed


@pytest.fixture(scope="module")
def default_notes(chart: Path) -> str:
    return notes({}, chart)


@pytest.mark.parametrize(("values", "words"), NOTES)
def test_the_notes_list_features_and_warnings_of_the_values(
    values: Object, words: str, chart: Path, default_notes: str
) -> None:
    assert (words in default_notes) == (values == {})
    assert words in notes(values, chart)


def test_default_values_cause_no_warning(default_notes: str) -> None:
    assert "WARNING" not in default_notes


def test_without_the_test_pod_the_notes_do_not_mention_helm_test(chart: Path) -> None:
    assert "helm test" not in notes(value_at("tests/enabled", False), chart)


@pytest.mark.parametrize("name", CASES)
def test_all_cases_have_complete_notes_that_name_existing_objects(name: str, chart: Path) -> None:
    namespace, values = CASES[name]
    text = notes(values, chart, namespace=namespace)
    assert text.strip()
    assert "<no value>" not in text
    assert "\n\n\n" not in text.strip()
    for kind, _, deployment in case_objects(name, chart):
        if kind == "Deployment":
            assert f"rollout status deployment/{deployment} --namespace {namespace}" in text
