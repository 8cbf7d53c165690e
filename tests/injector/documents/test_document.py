"""Which documents are read, and how: as kubectl reads them, within bounds."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from asya_injector.documents.document import read_documents
from asya_injector.documents.nodes import compose_json, compose_yaml

from tests.injector.commands import asya

ACTOR = """\
apiVersion: v1
kind: Pod
metadata:
  name: p
  annotations: {asya.sh/handler: my_app.handler.predict}
spec:
  containers: [{name: model, command: [serve]}]
"""
# What other readers stumble over, and kubectl too in part.
STRANGE = {
    "equals-sign": "a:\n- =\n- b\n",
    "trailing-tab": "a: b\t\n",
    "binary": "a: !!binary aGk=\n",
    "broken-binary": "a: !!binary x\n",
    "unknown-tag": "a: !Tag {b: 1}\n",
    "duplicate-keys": "a: 1\na: 2\n",
    "not-yaml": "a: [\n",
    "template": "a: {{ .Values.a }}\n",
    "tab-for-indentation": "a:\n\tb: 1\n",
    "bomb": "a: &a [x]\nb: &b [*a, *a]\nc: *b\n",
    "cycle": "a: &a [*a]\n",
    "deep-yaml": "a: " + "[" * 100_000 + "\n",
    "deep-json": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "lone-surrogate": '{"a": "\\ud800"}',
    "other-escapes": 'a: "\\x41sya \\u0041sya \\/ \\\n  b"\n',
    "list": "kind: List\nitems:\n- a: [\n",
    "namespace": "kind: Namespace\nmetadata: {name: =}\n",
}


@pytest.mark.parametrize("command", ["inject", "uninject"])
@pytest.mark.parametrize("text", STRANGE.values(), ids=STRANGE.keys())
def test_a_document_without_a_key_of_ours_passes_unread(text: str, command: str) -> None:
    done = asya(command, stdin=text)
    assert (done.status, done.out) == (0, text)
    both = text if text.startswith("{") else f"{text}---\n{ACTOR}"
    assert asya(command, stdin=both).status == 0
    assert asya("inject", "--no-configmap", stdin=both).out.startswith(text)


@pytest.mark.parametrize(
    "text",
    [
        b"# M\xfcller\na: \xff\n",
        b'{"a": "\xfc"}\n',
        b"a: \xed\xa0\x80\n",
        "a: ä\n".encode("utf-16"),
    ],
)
def test_a_document_without_a_key_of_ours_need_not_be_utf_8(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(text)
    (tmp_path / "b.yaml").write_text(ACTOR)
    for command in ("inject", "uninject", "explain"):
        done = asya(command, "-f", tmp_path)
        assert done.status == 0
        if command != "explain":
            assert done.out.encode(errors="surrogateescape").startswith(text)


SPELLINGS = [
    '{"asya.sh/handler": 1}',
    '{"asya.sh\\/handler": 1}',
    '{"\\u0061sya.sh/handler": 1}',
    '{"asya\\u002esh\\u002fhandler": 1}',
    '{"\\u0061\\u0073\\u0079\\u0061.sh/handler": 1}',
    'a: {"\\x61sya.sh/handler": 1}',
    'a: {"asya.s\\U00000068/handler": 1}',
    'a: {? "asya\\\n  .sh/handler" : 1}',
    'a: {? "asya\\\r\n  .sh/handler" : 1}',
    "a: {asya.sh/handler: 1}",
    "a: {asya.io/handler: 1}",
    "a: {asya/handler: 1}",
    "a: {runtime.asya.dev/handler: 1}",
    "kind: Namespace\nmetadata: {labels: {asya.sh/injection: disabled}}",
    "kind: ConfigMap\nmetadata: {name: asya-runtime-0123456789}",
]


@pytest.mark.parametrize("text", SPELLINGS, ids=range(len(SPELLINGS)))
def test_a_document_with_a_key_of_ours_is_read_however_it_is_spelled(text: str) -> None:
    (document,) = read_documents("stdin", text)
    assert document.is_read
    assert document.value is not None


# As `kubectl annotate --local -o json` prints them.
VALUES: list[tuple[str, Any]] = [
    ("[y, Yes, on, TRUE]", [True] * 4),
    ("[n, NO, off, False]", [False] * 4),
    ("[~, null, NULL, nUll]", [None, None, None, "nUll"]),
    ("[0444, 0o17, 08, 0x1F, 0b11, -0o17, 1__0, +1]", [292, 15, 8, 31, 3, -15, 10, 1]),
    ("[18446744073709551616, 1_0.5, .5, 1., 1e3]", [18446744073709551616.0, 10.5, 0.5, 1, 1000]),
    ("[1e400, 1:20, _1, =, <<, 2026-01-01]", ["1e400", "1:20", "_1", "=", "<<", "2026-01-01"]),
    ("[!!str 1, !!int '3', !!float 1, !!bool 'yes']", ["1", 3, 1, True]),
    ("[!foo 12, !Foo {a: 1}, !!timestamp 2026-01-01]", ["12", {"a": 1}, "2026-01-01"]),
    ("[!!binary aGk=, !!binary //8=]", ["hi", "\ufffd\ufffd"]),
    ("{yes: 1, 0444: 2, 1e3: 3, 1.5: 4, 1234567.5: 5}",
     {"true": 1, "292": 2, "1000": 3, "1.5": 4, "1.2345675e+06": 5}),
    ("{a: 1, a: 2}", {"a": 2}),
    ("{a: 1, <<: {a: 4, b: 5}}", {"a": 4, "b": 5}),
    ("{<<: [{a: 1, b: 2}, {b: 7, c: 8}]}", {"a": 1, "b": 2, "c": 8}),
    ("[1,\t2]\t", [1, 2]),
    ("x\n...\nother: document", "x"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), VALUES)
def test_values_are_those_that_kubectl_reads(text: str, value: Any) -> None:
    root = compose_yaml(f"a: {text}\n")
    assert root is not None
    assert root.value == {"a": value}
    read, expected = (json.dumps(each, sort_keys=True) for each in (root.value, {"a": value}))
    assert read.replace(".0", "") == expected.replace(".0", "")  # true is not 1


def test_lone_surrogates_and_equal_keys_of_json_are_read_as_kubectl_reads_them() -> None:
    text = '{"asya.sh/handler": "\\ud800x", "b": 1, "b": {"\\udfff": 2}, "c": "\\ud83d\\ude00"}'
    (document,) = read_documents("stdin", text)
    assert document.value == {"asya.sh/handler": "\ufffdx", "b": {"\ufffd": 2}, "c": "\U0001f600"}


def test_nodes_of_json_have_the_values_of_the_document() -> None:
    text = ' {"a": [1, -2.5e3, true, null, "x\\"],{}"], "b": {}, "c" :[ ]}\n'
    root = compose_json(text)
    assert root.value == json.loads(text)
    assert text[root.start : root.end] == text.strip()
    assert [text[key.start : key.end] for key, _ in root.pairs] == ['"a"', '"b"', '"c"']


def test_five_megabytes_of_others_take_less_than_a_second() -> None:
    crd = "apiVersion: x/v1\nkind: CRD\nspec:\n" + "  - {name: x, pattern: '^\\/[a-z]'}\n" * 30_000
    text = "---\n".join([crd] * 5 + [ACTOR])
    assert len(text) > 5_000_000
    start = time.process_time()
    assert asya("inject", stdin=text).status == 0
    assert time.process_time() - start < 1


@pytest.mark.parametrize("template", ["{}---\n", '{{"kind": "List", "items": [{}]}}'])
def test_many_actors_take_linear_time(template: str) -> None:
    item = json.dumps({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "NAME", "annotations": {"asya.sh/handler": "a.b"}},
        "spec": {"containers": [{"name": "m", "image": "i", "env": [{"name": "A"}] * 20}]},
    })  # fmt: skip

    def measure(count: int) -> float:
        items = [item.replace("NAME", f"p{i}") for i in range(count)]
        text = template.format(",".join(items)) if "List" in template else "\n---\n".join(items)
        start = time.process_time()
        assert asya("inject", stdin=text).status == 0
        return (time.process_time() - start) / count

    assert measure(400) < max(3 * measure(50), 0.01)


def test_explain_shows_documents_that_were_not_read() -> None:
    text = (
        "# x\napiVersion: v1\nkind: Service\nmetadata:\n  labels: {a: b}\n  name: s\n"
        "  namespace: 'n'\nspec: [\n---\napiVersion: apps/v1\nkind: Deployment\nspec: 1\n"
        "---\n# empty\n"
    )
    done = asya("explain", stdin=text)
    assert done.out.splitlines() == [
        "stdin:1 Service n/s: left alone, because its kind is not supported",
        "stdin:2 Deployment: left alone, because it has no asya.sh/ annotation",
    ]
