"""Which annotations users can write, and the errors for invalid ones."""

import contextlib
import json
from dataclasses import replace
from typing import Any, cast

import jsonschema
import pytest
from asya_injector.annotations.parse import (
    is_switched_off,
    merge,
    parse_value,
    parse_values,
    select_own,
)
from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.annotations.table import (
    BY_KEY,
    INHERITED,
    INJECTED,
    TABLE,
    Annotation,
    build_schema,
)
from asya_injector.errors import InjectionError, Reason
from asya_injector.mutation.inject import inject
from hypothesis import given
from hypothesis import strategies as st

HANDLER = {"asya.sh/handler": "my_app.handler.predict"}

# fmt: off
VALID = [
    ("handler", "a.b", "a.b"),
    ("handler", "my_app.handler.Model.predict", "my_app.handler.Model.predict"),
    ("inject", "YES", "true"),
    ("inject", "0", "false"),
    ("container", "model", "model"),
    ("sidecars", "a, b,a", "a,b"),
    ("sidecars", "", ""),
    ("mode", "wrap", "wrap"),
    ("python", "python3.11", "python3.11"),
    ("python", "p" * 255, "p" * 255),
    ("python", "/opt/venv/bin/python", "/opt/venv/bin/python"),
    ("mount-path", "/opt/asya", "/opt/asya"),
    ("mount-path", "/app/asya_runtime.py", "/app/asya_runtime.py"),
    ("mount-path", "/s/" + "a" * 252, "/s/" + "a" * 252),
    *(("mount-path", path, path) for path in (
        "/srv/asya", "/tmp/asya", "/run/asya", "/var/run/asya", "/var/tmp/asya", "/var/lib/asya",
        "/home/user/asya", "/app/asya", "/library/asya", "/users/asya", "/opt/asya2",
        "/opt/asya_1.2@x", "/srv/asya_runtime.py", "/asya_runtime.py", "/app/asya_server.py",
        "/opt/conda/asya_runtime.py", "/app/no-module.py",
    )),
    ("python", "_python", "_python"),
    ("python", "/opt/-c/python", "/opt/-c/python"),
    ("probe", "No", "false"),
    ("socket-path", "/tmp/sockets/app.sock", "/tmp/sockets/app.sock"),
    ("socket-path", "/s/" + "a" * 104, "/s/" + "a" * 104),
    # A volume of the pod's may be mounted there.
    ("socket-path", "/data/app.sock", "/data/app.sock"),
    ("chunk-size", "1", "1"),
    ("chunk-size", "16777216", "16777216"),
    ("chunk-size", "007", "7"),
    ("handler-timeout", "0", "0"),
    ("handler-timeout", "0.5", "0.5"),
    ("concurrency", "1024", "1024"),
    ("max-message-size", "4294967295", "4294967295"),
    ("read-timeout", "0.1", "0.1"),
    ("json", "orjson", "orjson"),
    ("memory-limit", "00", "0"),
    ("memory-limit", "16777216", "16777216"),
    ("memory-limit", "090%", "90%"),
    ("memory-limit", "100%", "100%"),
]

INVALID = [
    ("handler", "predict"),
    ("handler", "a..b"),
    ("handler", ".a.b"),
    ("handler", "a.b."),
    ("handler", "1a.b"),
    ("handler", "a.b;rm -rf"),
    ("handler", "a.b\n"),
    ("handler", "a.class.b"),
    ("handler", "a." + "b" * 252),
    ("handler", "módulo.función"),
    ("handler", "$(A).b"),
    ("inject", "maybe"),
    ("container", "Model"),
    ("container", ""),
    ("container", "c" * 64),
    ("sidecars", "a,,b"),
    ("sidecars", "a b"),
    ("mode", "Wrap"),
    ("python", "python3 -u"),
    ("python", "bin/python"),
    ("python", "/opt/../bin/python"),
    ("python", "p" * 256),
    ("mount-path", "opt/asya"),
    ("mount-path", "/opt/asya/"),
    ("mount-path", "/opt//asya"),
    ("mount-path", "//opt/asya"),
    ("mount-path", "/opt/../asya"),
    ("mount-path", "/opt/a:ro"),
    ("mount-path", "/opt/$(X)"),
    ("mount-path", "/"),
    ("mount-path", "/etc"),
    ("mount-path", "/usr/bin"),
    *(("mount-path", path) for path in (
        "/tmp", "/app", "/data", "/srv", "/opt", "/workspace",
        "/usr/lib64", "/usr/local/lib/python3.12", "/usr/local/asya", "/etc/ssl/certs", "/lib/asya",
        "/lib64/x", "/libx32/x", "/bin/x", "/sbin/x", "/boot/x", "/dev/shm", "/proc/x/y", "/sys/fs",
        "/nix/store", "/run/lock", "/var/run/secrets", "/run/secrets",
        "/opt/conda", "/opt/conda/lib", "/opt/miniconda3", "/opt/venv", "/opt/venv/x", "/app/.venv",
        "/opt/python3.12", "/opt/nvidia", "/opt/nvidia/x", "/opt/tritonserver/models", "/app/bin",
        "/srv/site-packages", "/srv/.cache", "/home/user", "/home/user/.local/x",
        "/var/lib", "/var/tmp", "/var/run", "/var/log", "/var/cache", "/var/lib/dpkg",
        "/app/json.py", "/app/numpy.py", "/app/app.py", "/app/asya.py", "/opt/asya/__init__.py",
        "/opt/asya/asya_entrypoint.py", "/usr/lib/python3/asya_runtime.py", "/etc/asya_runtime.py",
    )),
    *(("python", text) for text in ("-c", "-", "-m", "--version", ".", "..", "./python", "+x", "")),
    ("mount-path", "/proc/1"),
    ("mount-path", "/proc/x.py"),
    ("mount-path", "/var/run/secrets/kubernetes.io"),
    ("mount-path", "/run/secrets/kubernetes.io"),
    ("mount-path", "/" + "a" * 255),
    ("socket-path", "app.sock"),
    ("socket-path", "/app.sock"),
    *(("socket-path", f"{directory}/app.sock") for directory in (
        "/etc", "/etc/ssl/certs", "/usr/lib64", "/usr/local/asya", "/lib/x", "/bin", "/sbin",
        "/boot", "/dev/shm", "/proc/self", "/sys/fs", "/var/run/secrets/x", "/var/lib/dpkg",
    )),
    ("socket-path", "/tmp/sockets/"),
    ("socket-path", "/tmp/./app.sock"),
    ("socket-path", "/s/" + "a" * 105),
    ("socket-path", "/tmp/s\0/app.sock"),
    ("chunk-size", "0"),
    ("chunk-size", "16777217"),
    ("chunk-size", "-1"),
    ("chunk-size", "4k"),
    ("chunk-size", "1e3"),
    ("chunk-size", "٣"),
    ("handler-timeout", "-1"),
    ("handler-timeout", "nan"),
    ("handler-timeout", "inf"),
    ("handler-timeout", "1s"),
    ("concurrency", "1025"),
    ("max-message-size", "4294967296"),
    ("read-timeout", "0"),
    ("read-timeout", "0.0"),
    ("json", "ujson"),
    ("memory-limit", "16777215"),
    ("memory-limit", "0%"),
    ("memory-limit", "101%"),
    ("memory-limit", "512Mi"),
    ("include-metadata", "on"),
]


# fmt: on


@pytest.mark.parametrize(("name", "text", "canonical"), VALID)
def test_a_valid_value_becomes_its_canonical_text(name: str, text: str, canonical: str) -> None:
    assert parse_value(name, text) == canonical


@pytest.mark.parametrize(("name", "text"), INVALID)
def test_rejects_an_invalid_value_in_one_line_that_names_the_annotation(
    name: str, text: str
) -> None:
    with pytest.raises(InjectionError) as caught:
        parse_value(name, text)
    line = str(caught.value)
    assert caught.value.reason == Reason.ANNOTATION_INVALID
    assert line.startswith(f"asya.sh/{name}: ")
    assert "; must be " in line
    assert line.endswith(" (AnnotationInvalid)")
    assert line.isascii()
    assert line.isprintable()
    assert len(line) < 400


@pytest.mark.parametrize("entry", TABLE, ids=lambda entry: entry.name)
def test_each_default_is_valid_in_its_own_format(entry) -> None:  # type: ignore[no-untyped-def]
    if entry.default is not None:
        assert entry.parse(entry.default) == entry.default


def test_rejects_a_misspelt_annotation_and_suggests_the_nearest() -> None:
    with pytest.raises(InjectionError) as caught:
        parse_values({"asya.sh/handlr": "a.b"})
    assert str(caught.value) == (
        'asya.sh/handlr: unknown annotation; did you mean "asya.sh/handler"? (AnnotationUnknown)'
    )


@pytest.mark.parametrize("name", ["qqqqqqqqqq", "queue", "topic", "a"])
def test_rejects_an_annotation_unlike_any_other_with_the_whole_list(name: str) -> None:
    """The common prefix does not make names similar."""
    with pytest.raises(InjectionError) as caught:
        parse_values({**HANDLER, f"asya.sh/{name}": "1"})
    assert "known annotations are " + ", ".join(BY_KEY) in str(caught.value)
    assert "can be declared in the chart's value sidecar.annotations" in str(caught.value)


@pytest.mark.parametrize(
    "key", ["asya.sh/\x1b[31m", "asya.sh/a\nb", "asya.sh/", "asya.sh/" + "x" * 5000]
)
def test_a_hostile_key_cannot_forge_a_line_or_a_terminal_sequence(key: str) -> None:
    with pytest.raises(InjectionError) as caught:
        parse_values({key: "1"})
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def test_rejects_annotations_without_a_handler() -> None:
    with pytest.raises(InjectionError) as caught:
        parse_values({"asya.sh/mode": "wrap"})
    assert str(caught.value) == (
        "asya.sh/handler: is required when asya.sh/mode is set; "
        "add it as module.path.function, or remove the other annotations (HandlerMissing)"
    )


def test_the_injectors_own_annotations_are_not_settings() -> None:
    assert select_own({INJECTED: "{}", INHERITED: "{}", "example.com/a": "b", **HANDLER}) == HANDLER


def test_ignores_other_keys_in_the_inherited_annotations() -> None:
    inherited = json.dumps({"example.com/a": "b", INJECTED: "{}", **HANDLER})
    assert merge({INHERITED: inherited}) == HANDLER


def test_a_pods_own_annotation_overrides_the_inherited_one() -> None:
    inherited = json.dumps({"asya.sh/handler": "a.b", "asya.sh/mode": "wrap"})
    assert merge({INHERITED: inherited, **HANDLER}) == {**HANDLER, "asya.sh/mode": "wrap"}


@pytest.mark.parametrize("text", ["", "x", "[]", '{"asya.sh/handler": 1}', "[" * 100_000])
def test_rejects_malformed_inherited_annotations(text: str) -> None:
    with pytest.raises(InjectionError, match=r"asya.sh/inherited: was not written by the injector"):
        merge({INHERITED: text})


@pytest.mark.parametrize(("text", "off"), [("false", True), ("No", True), ("true", False)])
def test_inject_accepts_each_spelling_of_a_boolean(text: str, off: bool) -> None:
    assert is_switched_off({"asya.sh/inject": text}) is off


@given(st.dictionaries(st.text(), st.text()))
def test_no_annotations_crash_the_parser(annotations: dict[str, str]) -> None:
    prefixed = {f"asya.sh/{key}": value for key, value in annotations.items()}
    with contextlib.suppress(InjectionError):
        merged = merge(prefixed)
        if merged and not is_switched_off(merged):
            parse_values(merged)


@given(st.text(), st.sampled_from([entry.name for entry in TABLE]))
def test_each_error_is_one_printable_line(text: str, name: str) -> None:
    line = ""
    try:
        parse_value(name, text)
    except InjectionError as error:
        line = str(error)
    assert line.isprintable()


# --- The JSON Schema

SCHEMA = jsonschema.Draft202012Validator(build_schema())


def test_the_schema_is_valid_and_has_the_whole_table() -> None:
    jsonschema.Draft202012Validator.check_schema(build_schema())
    for entry in TABLE:
        schema = build_schema()["properties"][entry.key]
        assert schema["description"] == entry.description
        assert schema.get("default") == entry.default


@pytest.mark.parametrize(("name", "text", "canonical"), VALID)
def test_the_schema_accepts_what_the_injector_accepts(name: str, text: str, canonical: str) -> None:
    for value in (text, canonical):
        assert SCHEMA.is_valid({f"asya.sh/{name}": value, "example.com/a": "b", INJECTED: "{}"})


@given(st.text(max_size=12), st.sampled_from(TABLE))
def test_the_schema_accepts_any_text_in_the_format(text: str, entry: Annotation) -> None:
    try:
        entry.parse(text)
    except ValueError:
        return
    assert SCHEMA.is_valid({entry.key: text})


@pytest.mark.parametrize(
    "annotations",
    [
        {"asya.sh/handlr": "a.b"},
        {"asya.sh/handler": "predict"},
        {"asya.sh/mode": "Wrap"},
        {"asya.sh/probe": "on"},
        {"asya.sh/chunk-size": 4096},
        {"asya.sh/concurrency": "-1"},
        {"asya.sh/socket-path": "app.sock"},
        {"asya.sh/sidecars": "a b"},
        {"asya.sh/read-timeout": "1s"},
        {"example.com/a": 1},
    ],
    ids=json.dumps,
)
def test_the_schema_rejects_what_it_can_express(annotations: dict[str, Any]) -> None:
    assert not SCHEMA.is_valid(annotations)


@pytest.mark.parametrize("inherited", [False, True])
def test_a_deprecated_annotation_works_and_causes_a_warning(
    inherited: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An annotation of the pod, and one of its workload."""
    key, instead = "asya.sh/mode", "use asya.sh/start, because 2.0 removes it"
    old = replace(BY_KEY[key], deprecated=instead)
    monkeypatch.setitem(cast(dict[str, Annotation], BY_KEY), key, old)
    own = {**HANDLER, key: "wrap"}
    annotations = {INHERITED: json.dumps(own)} if inherited else own
    container = {"name": "model", "image": "m", "command": ["serve"]}
    sidecar = {"name": "asya-sidecar", "image": "s"}
    pod = {
        "metadata": {"annotations": annotations},
        "spec": {"containers": [container, sidecar]},
    }
    injection = inject(pod, ClusterDefaults("0123456789", {}))
    assert injection
    assert injection.warnings == (f"{key}: is deprecated; {instead}",)
    assert injection.mode.value == "wrap"
