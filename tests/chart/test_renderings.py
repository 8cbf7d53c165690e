"""Renderings of the chart: golden files, the runtime files and the injector's environment."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from asya_injector import __version__
from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.annotations.table import TABLE
from asya_injector.mutation.inject import inject
from asya_injector.runtime_files import ENTRYPOINT_FILE, RUNTIME_FILE
from asya_injector.runtime_image import RUNTIME_FOLDER, Delivery, RuntimeImage
from asya_injector.webhook.config import Config

from tests.chart.charts import (
    CASES,
    CHART,
    GOLDEN,
    REPOSITORY,
    RUNTIME_FILES,
    SYSTEM,
    WITH_IMAGE,
    HelmError,
    Object,
    case_objects,
    copy_chart,
    diff_objects,
    find_by_name,
    find_object,
    load_golden,
    load_objects,
    render,
    render_case,
    run,
    value_at,
)
from tests.chart.schemas import RELEASES, problems

NAME = "asya-runtime"
CLUSTER_WIDE = {
    "ClusterRole",
    "ClusterRoleBinding",
    "MutatingWebhookConfiguration",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
}


def injector(text: str) -> Object:
    """The container of the injector."""
    (container,) = find_object(text, "Deployment")["spec"]["template"]["spec"]["containers"]
    result: Object = container
    return result


def environment(text: str) -> dict[str, str]:
    """The environment variables of the injector's process."""
    return {
        each["name"]: each.get("value", SYSTEM)  # the namespace comes from a field of the pod
        for each in injector(text)["env"]
    }


@pytest.fixture(scope="module")
def defaults() -> str:
    """Rendering of the unmodified chart with default values."""
    return render({})


# --- Golden renderings ------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_a_rendering_equals_its_golden_file(name: str, chart: Path) -> None:
    now = case_objects(name, chart)
    golden = (GOLDEN / f"{name}.yaml").read_text()
    if name == "defaults":
        assert now == load_objects(golden), "if this is intended, run `make chart-render`"
    else:
        changes = diff_objects(now, case_objects("defaults", chart))
        assert changes == load_golden(golden), "if this is intended, run `make chart-render`"


def test_each_golden_file_belongs_to_a_case() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_rendering_is_deterministic(name: str, chart: Path) -> None:
    namespace, values = CASES[name]
    assert render(values, chart=chart, namespace=namespace) == render_case(name, chart)


@pytest.mark.parametrize("name", CASES)
def test_helm_3_renders_the_same_objects(name: str, chart: Path) -> None:
    assert case_objects(name, chart, "helm3") == case_objects(name, chart)


@pytest.mark.parametrize("release", RELEASES)
def test_objects_are_valid_in_every_supported_kubernetes_release(release: str, chart: Path) -> None:
    for name in CASES:
        for item in case_objects(name, chart).values():
            assert problems(item, release) == [], name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param({"replica": 1}, "'replica' was unexpected", id="unknown-field"),
        pytest.param({"replicas": "2"}, "'2' is not of type 'integer'", id="wrong-type"),
        pytest.param(
            {"template": {"spec": {"containers": [{"name": "a"}, {"name": "a"}]}}},
            "duplicate key {'name': 'a'}",
            id="duplicate-key-in-a-list",
        ),
    ],
)
def test_invalid_objects_are_detected(change: Object, words: str, chart: Path) -> None:
    deployment = find_object(render_case("defaults", chart), "Deployment")
    wrong = deployment | {"spec": deployment["spec"] | change}
    (problem,) = problems(wrong, RELEASES[0])
    assert words in problem


@pytest.mark.parametrize("name", CASES)
def test_only_namespaced_objects_have_a_namespace(name: str, chart: Path) -> None:
    for kind, where, _ in case_objects(name, chart):
        assert bool(where) == (kind not in CLUSTER_WIDE)


def test_object_names_do_not_depend_on_the_release_name(chart: Path) -> None:
    other = render({}, chart=chart, release="other")
    assert set(load_objects(other)) == set(case_objects("defaults", chart))


@pytest.mark.parametrize("tool", ["helm", "helm3"])
def test_vendor_versions_of_kubernetes_are_accepted_and_old_versions_rejected(
    tool: str, chart: Path
) -> None:
    render({}, chart=chart, tool=tool, kubernetes="v1.31.2-eks-1234")
    with pytest.raises(HelmError, match=r"incompatible with Kubernetes v1\.29\.9"):
        render({}, chart=chart, tool=tool, kubernetes="v1.29.9")


def test_helm_lint_reports_no_warning() -> None:
    run("lint", "--strict", *WITH_IMAGE, CHART)


# --- The runtime files ------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNTIME_FILES)
def test_the_chart_contains_the_current_runtime_files(name: str) -> None:
    copy = (CHART / "files" / name).read_bytes()
    assert copy == (REPOSITORY / "runtime" / name).read_bytes(), "run `make sync`"
    assert name in {ENTRYPOINT_FILE, RUNTIME_FILE}


def test_the_config_map_contains_the_files_byte_for_byte(defaults: str) -> None:
    files = {name: (CHART / "files" / name).read_bytes().decode() for name in RUNTIME_FILES}
    assert find_object(defaults, "ConfigMap")["data"] == files


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("  indented\n", id="first-line-indented"),
        pytest.param("a\t\n \nb   \n", id="tabs-and-trailing-blanks"),
        pytest.param("a\n\n\n", id="three-final-newlines"),
        pytest.param("a", id="no-final-newline"),
        pytest.param("{{ .Values.secret }} {{/* }}\n", id="looks-like-a-template"),
        pytest.param("größer 😀 \u2028\n", id="beyond-ascii"),
        pytest.param("a\r\nb\n", id="carriage-returns"),
        pytest.param("---\n# a\n", id="looks-like-yaml"),
    ],
)
def test_any_text_is_preserved_byte_for_byte(text: str, tmp_path: Path) -> None:
    files = dict.fromkeys(RUNTIME_FILES, text)
    assert find_object(render({}, chart=copy_chart(tmp_path, files)), "ConfigMap")["data"] == files


def test_the_digest_equals_that_of_sha256sum(defaults: str) -> None:
    listing = "".join(
        f"{hashlib.sha256((CHART / 'files' / name).read_bytes()).hexdigest()}  {name}\n"
        for name in RUNTIME_FILES
    )
    digest = hashlib.sha256(listing.encode()).hexdigest()
    assert find_object(defaults, "ConfigMap")["metadata"]["annotations"] == {
        "asya.sh/runtime-sha256": digest
    }
    template = find_object(defaults, "Deployment")["spec"]["template"]
    assert template["metadata"]["annotations"]["checksum/runtime"] == digest


def test_the_injector_restarts_for_a_new_runtime_but_not_for_a_new_chart_version(
    chart: Path, tmp_path: Path
) -> None:
    def pod_template(where: Path) -> Any:
        return find_object(render({}, chart=where), "Deployment")["spec"]["template"]

    newer = copy_chart(tmp_path)
    about = newer / "Chart.yaml"
    about.write_text(about.read_text().replace("\nversion: ", "\nversion: 1"))
    assert pod_template(newer) == pod_template(chart)
    (newer / "files/asya_runtime.py").write_text("# another\n")
    assert pod_template(newer) != pod_template(chart)


def test_each_namespace_gets_the_config_map_once(chart: Path) -> None:
    text = render({"runtime": {"namespaces": ["a", "b", "a", SYSTEM]}}, chart=chart)
    maps = {key: item for key, item in load_objects(text).items() if key[0] == "ConfigMap"}
    assert sorted(maps) == [("ConfigMap", where, NAME) for where in ("a", SYSTEM, "b")]
    data = [(item["data"], item["metadata"]["annotations"]) for item in maps.values()]
    assert data == [data[0]] * 3


# --- Invalid files ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "words"),
    [
        pytest.param(
            {}, "files/asya_entrypoint.py of the chart is missing or empty", id="no-files"
        ),
        pytest.param(
            {"asya_entrypoint.py": "#\n"},
            "files/asya_runtime.py of the chart is missing or empty",
            id="one-missing",
        ),
        pytest.param(
            {"asya_entrypoint.py": "", "asya_runtime.py": "#\n"},
            "files/asya_entrypoint.py of the chart is missing or empty",
            id="one-empty",
        ),
        pytest.param(
            {"asya_entrypoint.py": "#", "asya_runtime.py": "#" * 921600},
            "the runtime files have 921601 bytes, but a ConfigMap holds at most 921600",
            id="a-byte-too-large",
        ),
    ],
)
def test_files_that_do_not_fit_into_a_config_map_are_rejected(
    files: dict[str, str], words: str, tmp_path: Path
) -> None:
    with pytest.raises(HelmError, match=words):
        render({}, chart=copy_chart(tmp_path, files))


def test_files_of_the_maximum_size_are_accepted(tmp_path: Path) -> None:
    files = {"asya_entrypoint.py": "#", "asya_runtime.py": "#" * 921599}
    assert find_object(render({}, chart=copy_chart(tmp_path, files)), "ConfigMap")["data"] == files


# --- The injector's environment ---------------------------------------------------------------


def test_the_injectors_configuration_matches_the_rendered_objects(defaults: str) -> None:
    environ = environment(defaults)
    config = Config.from_env(environ)
    service = find_object(defaults, "Service")
    assert (config.namespace, config.tls_mode) == (SYSTEM, "self")
    assert config.service == service["metadata"]["name"]
    assert (
        config.webhook_configuration
        == find_object(defaults, "MutatingWebhookConfiguration")["metadata"]["name"]
    )
    assert config.tls_secret == find_object(defaults, "Secret")["metadata"]["name"]
    ports = {each["name"]: each["containerPort"] for each in injector(defaults)["ports"]}
    assert ports == {"webhook": config.webhook_port, "http": config.http_port}
    assert [(each["port"], each["targetPort"]) for each in service["spec"]["ports"]] == [
        (443, "webhook")
    ]
    mount = find_by_name(injector(defaults)["volumeMounts"], "runtime")
    assert mount["mountPath"] == str(config.runtime_directory)


@pytest.mark.parametrize(
    ("name", "own", "image", "directory"),
    [
        ("defaults", "", None, "/etc/asya-runtime"),
        (
            "runtime-from-image",
            f"asya/injector:{__version__}",
            RuntimeImage(f"asya/injector:{__version__}"),
            f"/{RUNTIME_FOLDER}",
        ),
        (
            "runtime-from-another-image",
            f"asya/injector:{__version__}",
            RuntimeImage(
                "images.example.com/runtime-files:3@sha256:" + "fedcba9876543210" * 4, "Always"
            ),
            f"/{RUNTIME_FOLDER}",
        ),
    ],
)
def test_the_injector_gets_what_pods_mount(
    name: str, own: str, image: RuntimeImage | None, directory: str, chart: Path
) -> None:
    text = render_case(name, chart)
    config = Config.from_env(environment(text))
    assert config.delivery == Delivery(image, own)
    assert str(config.runtime_directory) == directory
    if image:  # its own folder, in place of a mounted ConfigMap
        assert injector(text)["image"] == own
        assert "runtime" not in [each["name"] for each in injector(text)["volumeMounts"]]


@pytest.mark.parametrize("release", RELEASES)
def test_an_injected_pod_is_valid_where_image_volumes_are_supported(release: str) -> None:
    metadata = {"name": "p", "annotations": {"asya.sh/handler": "a.b"}}
    spec = {"containers": [{"name": "model", "image": "m"}]}
    given = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
    image = RuntimeImage("asya/injector:1", "Always")
    injection = inject(given, ClusterDefaults("0123456789", {}, image=image))
    assert injection
    found = problems(injection.pod, release)
    # 1.30 does not know the field. From 1.31 to 1.35 it depends on the cluster's configuration.
    assert len(found) == (release == "1.30"), found


def test_the_injector_reads_the_certificate_of_an_existing_secret(chart: Path) -> None:
    text = render_case("existing-secret", chart)
    config = Config.from_env(environment(text))
    mount = find_by_name(injector(text)["volumeMounts"], "tls")
    assert (config.tls_mode, str(config.tls_directory)) == ("files", mount["mountPath"])


def test_default_values_equal_the_defaults_of_the_annotations(defaults: str) -> None:
    values = json.loads(environment(defaults)["INJECTOR_DEFAULTS"])
    # These differ for each workload.
    without_default = {"handler", "inject", "container", "sidecar", "sidecar-env"}
    assert values == {
        entry.name: entry.default for entry in TABLE if entry.name not in without_default
    }
    ClusterDefaults("0", values)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("chunk-size", 4194304, "4194304"),
        ("max-message-size", 1000000, "1000000"),
        ("handler-timeout", 0, "0"),
        ("handler-timeout", 0.5, "0.5"),
        ("handler-timeout", 999999999, "999999999"),
        ("read-timeout", 0.001, "0.001"),
        ("read-timeout", 100, "100"),
        ("concurrency", 10, "10"),
        ("probe", False, "false"),
        ("sidecars", "", ""),
        ("mode", None, None),
    ],
)
def test_the_injector_gets_a_default_as_the_user_wrote_it(
    name: str, value: object, text: str | None, chart: Path
) -> None:
    rendered = render(value_at(f"runtime/defaults/{name}", value), chart=chart)
    values = json.loads(environment(rendered)["INJECTOR_DEFAULTS"])
    assert values.get(name) == text
    ClusterDefaults("0", values)
