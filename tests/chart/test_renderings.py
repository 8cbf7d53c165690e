"""What Helm makes of the chart, for every case that is kept as a file."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.annotations.table import TABLE
from asya_injector.runtime_files import ENTRYPOINT_FILE, RUNTIME_FILE
from asya_injector.webhook.config import Config
from charts import (
    CASES,
    CHART,
    GOLDEN,
    REPOSITORY,
    RUNTIME_FILES,
    SYSTEM,
    HelmError,
    Object,
    case,
    copied,
    difference,
    nested,
    objects,
    read,
    render,
    run,
)
from schemas import RELEASES, problems

NAME = "asya-runtime"
CLUSTER_WIDE = {
    "ClusterRole",
    "ClusterRoleBinding",
    "MutatingWebhookConfiguration",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
}


def one(text: str, kind: str) -> Object:
    """The one object of its kind."""
    (found,) = [item for item in objects(text).values() if item["kind"] == kind]
    result: Object = found
    return result


def injector(text: str) -> Object:
    """The injector's container."""
    (container,) = one(text, "Deployment")["spec"]["template"]["spec"]["containers"]
    result: Object = container
    return result


def environment(text: str) -> dict[str, str]:
    """The injector's variables as its process has them."""
    return {
        each["name"]: each.get("value", SYSTEM)  # the one without value is the pod's namespace
        for each in injector(text)["env"]
    }


@pytest.fixture(scope="module")
def defaults() -> str:
    """The chart as it is, with default values."""
    return render({})


# --- Golden renderings ------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_a_rendering_is_what_is_kept_of_it(name: str, chart: Path) -> None:
    now = objects(case(name, chart))
    kept = (GOLDEN / f"{name}.yaml").read_text()
    if name == "defaults":
        assert now == objects(kept), "if this is wanted: make chart-render"
    else:
        changes = difference(now, objects(case("defaults", chart)))
        assert changes == read(kept), "if this is wanted: make chart-render"


def test_no_rendering_is_kept_of_a_case_that_has_gone() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_two_renderings_are_the_same_bytes(name: str, chart: Path) -> None:
    namespace, values = CASES[name]
    assert render(values, chart=chart, namespace=namespace) == case(name, chart)


@pytest.mark.parametrize("name", CASES)
def test_helm_3_makes_the_same_objects(name: str, chart: Path) -> None:
    assert objects(case(name, chart, "helm3")) == objects(case(name, chart))


@pytest.mark.parametrize("release", RELEASES)
def test_an_api_server_of_any_release_knows_every_field(release: str, chart: Path) -> None:
    for name in CASES:
        for item in objects(case(name, chart)).values():
            assert problems(item, release) == [], name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param({"replica": 1}, "'replica' was unexpected", id="unknown-field"),
        pytest.param({"replicas": "2"}, "'2' is not of type 'integer'", id="wrong-type"),
        pytest.param(
            {"template": {"spec": {"containers": [{"name": "a"}, {"name": "a"}]}}},
            "{'name': 'a'} is there twice",
            id="key-of-a-list-twice",
        ),
    ],
)
def test_a_wrong_object_would_be_seen(change: Object, words: str, chart: Path) -> None:
    deployment = one(case("defaults", chart), "Deployment")
    wrong = deployment | {"spec": deployment["spec"] | change}
    (problem,) = problems(wrong, RELEASES[0])
    assert words in problem


@pytest.mark.parametrize("name", CASES)
def test_namespaces_are_on_what_lives_in_one_and_nowhere_else(name: str, chart: Path) -> None:
    for kind, where, _ in objects(case(name, chart)):
        assert bool(where) == (kind not in CLUSTER_WIDE)


def test_a_release_of_another_name_makes_objects_of_the_same_names(chart: Path) -> None:
    other = render({}, chart=chart, release="other")
    assert set(objects(other)) == set(objects(case("defaults", chart)))


@pytest.mark.parametrize("tool", ["helm", "helm3"])
def test_a_vendors_version_of_kubernetes_is_taken_and_an_old_one_is_not(
    tool: str, chart: Path
) -> None:
    render({}, chart=chart, tool=tool, kubernetes="v1.31.2-eks-1234")
    with pytest.raises(HelmError, match=r"incompatible with Kubernetes v1\.29\.9"):
        render({}, chart=chart, tool=tool, kubernetes="v1.29.9")


def test_helm_finds_nothing_to_warn_about() -> None:
    run("lint", "--strict", CHART)


# --- The runtime's files ----------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNTIME_FILES)
def test_the_chart_carries_the_runtime_as_it_is(name: str) -> None:
    ours = (CHART / "files" / name).read_bytes()
    assert ours == (REPOSITORY / "runtime" / name).read_bytes(), "make sync"
    assert name in {ENTRYPOINT_FILE, RUNTIME_FILE}


def test_the_config_map_holds_the_files_to_the_byte(defaults: str) -> None:
    files = {name: (CHART / "files" / name).read_bytes().decode() for name in RUNTIME_FILES}
    assert one(defaults, "ConfigMap")["data"] == files


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
def test_any_text_comes_through_to_the_byte(text: str, tmp_path: Path) -> None:
    files = dict.fromkeys(RUNTIME_FILES, text)
    assert one(render({}, chart=copied(tmp_path, files)), "ConfigMap")["data"] == files


def test_its_digest_is_that_of_sha256sum(defaults: str) -> None:
    listing = "".join(
        f"{hashlib.sha256((CHART / 'files' / name).read_bytes()).hexdigest()}  {name}\n"
        for name in RUNTIME_FILES
    )
    digest = hashlib.sha256(listing.encode()).hexdigest()
    assert one(defaults, "ConfigMap")["metadata"]["annotations"] == {
        "asya.sh/runtime-sha256": digest
    }
    template = one(defaults, "Deployment")["spec"]["template"]
    assert template["metadata"]["annotations"]["checksum/runtime"] == digest


def test_the_injector_restarts_for_another_runtime_and_not_for_another_chart_version(
    chart: Path, tmp_path: Path
) -> None:
    def pod_template(where: Path) -> Any:
        return one(render({}, chart=where), "Deployment")["spec"]["template"]

    newer = copied(tmp_path)
    about = newer / "Chart.yaml"
    about.write_text(about.read_text().replace("\nversion: ", "\nversion: 1"))
    assert pod_template(newer) == pod_template(chart)
    (newer / "files/asya_runtime.py").write_text("# another\n")
    assert pod_template(newer) != pod_template(chart)


def test_the_plain_config_map_is_in_each_namespace_once(chart: Path) -> None:
    text = render({"runtime": {"namespaces": ["a", "b", "a", SYSTEM]}}, chart=chart)
    maps = {key: item for key, item in objects(text).items() if key[0] == "ConfigMap"}
    assert sorted(maps) == [("ConfigMap", where, NAME) for where in ("a", SYSTEM, "b")]
    data = [(item["data"], item["metadata"]["annotations"]) for item in maps.values()]
    assert data == [data[0]] * 3


# --- What the chart refuses -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "words"),
    [
        pytest.param({}, "asya_entrypoint.py is missing or empty", id="no-files"),
        pytest.param(
            {"asya_entrypoint.py": "#\n"}, "asya_runtime.py is missing or empty", id="one-missing"
        ),
        pytest.param(
            {"asya_entrypoint.py": "", "asya_runtime.py": "#\n"},
            "asya_entrypoint.py is missing or empty",
            id="one-empty",
        ),
        pytest.param(
            {"asya_entrypoint.py": "#", "asya_runtime.py": "#" * 921600},
            "the runtime's files have 921601 bytes; 921600 fit",
            id="a-byte-too-large",
        ),
    ],
)
def test_files_that_cannot_be_a_config_map_are_refused(
    files: dict[str, str], words: str, tmp_path: Path
) -> None:
    with pytest.raises(HelmError, match=words):
        render({}, chart=copied(tmp_path, files))


def test_files_that_just_fit_are_taken(tmp_path: Path) -> None:
    files = {"asya_entrypoint.py": "#", "asya_runtime.py": "#" * 921599}
    assert one(render({}, chart=copied(tmp_path, files)), "ConfigMap")["data"] == files


# --- What the injector is told ----------------------------------------------------------------


def test_the_injector_reads_all_that_it_is_told(defaults: str) -> None:
    environ = environment(defaults)
    config = Config.from_env(environ)
    service = one(defaults, "Service")
    assert (config.namespace, config.tls_mode) == (SYSTEM, "self")
    assert config.service == service["metadata"]["name"]
    assert (
        config.webhook_configuration
        == one(defaults, "MutatingWebhookConfiguration")["metadata"]["name"]
    )
    assert config.tls_secret == one(defaults, "Secret")["metadata"]["name"]
    ports = {each["name"]: each["containerPort"] for each in injector(defaults)["ports"]}
    assert ports == {"webhook": config.webhook_port, "http": config.http_port}
    assert [(each["port"], each["targetPort"]) for each in service["spec"]["ports"]] == [
        (443, "webhook")
    ]
    (mount,) = [each for each in injector(defaults)["volumeMounts"] if each["name"] == "runtime"]
    assert mount["mountPath"] == str(config.runtime_directory)


def test_the_injector_reads_where_the_files_of_others_are(chart: Path) -> None:
    text = case("existing-secret", chart)
    config = Config.from_env(environment(text))
    (mount,) = [each for each in injector(text)["volumeMounts"] if each["name"] == "tls"]
    assert (config.tls_mode, str(config.tls_directory)) == ("files", mount["mountPath"])


def test_default_values_are_the_defaults_of_the_annotations(defaults: str) -> None:
    said = json.loads(environment(defaults)["INJECTOR_DEFAULTS"])
    # What opts in, out and chooses a container is for each workload to say.
    own = {"handler", "inject", "container"}
    assert said == {entry.name: entry.default for entry in TABLE if entry.name not in own}
    ClusterDefaults("0", said)


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
def test_a_default_reaches_the_injector_as_it_was_written(
    name: str, value: object, text: str | None, chart: Path
) -> None:
    rendered = render(nested(f"runtime/defaults/{name}", value), chart=chart)
    said = json.loads(environment(rendered)["INJECTOR_DEFAULTS"])
    assert said.get(name) == text
    ClusterDefaults("0", said)
