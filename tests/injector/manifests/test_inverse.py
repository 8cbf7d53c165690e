"""`uninject` gives back what `inject` was given: byte for byte, and with the edits of users."""

import json
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.injector.commands import asya

DEPLOYMENT = """\
apiVersion: apps/v1
kind: Deployment
metadata:
  name: sentiment
  annotations:
    asya.sh/handler: my_app.handler.predict
spec:
  template:
    metadata:
      labels: {app: a}
    spec:
      containers:
        - name: model
          image: model:1
          command: ["gunicorn", "app:server"]
"""
JOB = """\
apiVersion: batch/v1
kind: Job
metadata: {name: j, annotations: {asya.sh/handler: a.b}}
spec:
  template:
    spec:
      containers:
      - image: i
        name: model
"""


def _replace(old: str, new: str, text: str = DEPLOYMENT) -> str:
    assert old in text
    return text.replace(old, new)


IMAGE = "          image: model:1\n"
META = "    metadata:\n      labels: {app: a}\n"
TEXTS = {
    "job-without-metadata": JOB,
    "empty-metadata": _replace("    spec:\n", "    metadata: {}\n    spec:\n", JOB),
    "metadata-without-value": _replace("    spec:\n", "    metadata:\n    spec:\n", JOB),
    "empty-labels": _replace("{app: a}", "{}"),
    "labels-with-a-space": _replace("{app: a}", "{ }"),
    "labels-without-value": _replace("labels: {app: a}", "labels:"),
    "null-annotations": _replace(META, META + "      annotations:\n"),
    "empty-annotations": _replace(META, META + "      annotations: {}  # none\n"),
    "created": _replace("      labels: {app: a}", "      creationTimestamp: null"),
    "empty-env": _replace(IMAGE, IMAGE + "          env: []\n"),
    "empty-env-with-a-space": _replace(IMAGE, IMAGE + "          env: [ ] # none\n"),
    "env-without-value": _replace(IMAGE, IMAGE + "          env:\n"),
    "empty-mounts": _replace(IMAGE, IMAGE + "          volumeMounts: []\n"),
    "empty-lifecycle": _replace('command: ["gunicorn", "app:server"]', "lifecycle: {}"),
    "empty-command": _replace('["gunicorn", "app:server"]', "[]"),
    "sleep-hook": _replace(
        '          command: ["gunicorn", "app:server"]\n',
        """\
          lifecycle:
            preStop: # one
                # two
                sleep: # three
                  seconds: 5  # four
                # five
""",
    ),
    "sleep-hook-in-a-line": _replace(
        'command: ["gunicorn", "app:server"]',
        """\
lifecycle:
            preStop:
              sleep: {seconds: 5}  # why""",
    ),
    "sleep-hook-in-braces": _replace(
        'command: ["gunicorn", "app:server"]', "lifecycle: {preStop: {sleep: {seconds: 5}}}"
    ),
    "empty-probe": _replace(IMAGE, IMAGE + "          readinessProbe: {}\n"),
    "empty-volumes": DEPLOYMENT + "      volumes: []\n",
    "volumes-without-value": DEPLOYMENT + "      volumes:\n",
    "no-newline-at-the-end": DEPLOYMENT.rstrip("\n"),
    "no-newline-behind-a-job": JOB.rstrip("\n"),
    "no-newline-behind-a-block": DEPLOYMENT + "          args: [a]\n      x: |\n        a",
    "blank-lines-at-the-end": DEPLOYMENT + "\n\n",
    "comment-at-the-end": DEPLOYMENT + "# the end",
    "crlf": DEPLOYMENT.replace("\n", "\r\n"),
    "crlf-without-the-last": DEPLOYMENT.rstrip("\n").replace("\n", "\r\n"),
    "crlf-twice": f"---\n{DEPLOYMENT}---\n{JOB}".replace("\n", "\r\n"),
    "bom": "\ufeff" + DEPLOYMENT,
    "bom-and-marker": "\ufeff---\n" + DEPLOYMENT,
    "bom-and-crlf": "\ufeff" + DEPLOYMENT.replace("\n", "\r\n"),
    "unused-anchor": _replace("        - name: model", "        - &m\n          name: model"),
    "unused-anchor-of-a-list": _replace("containers:", "containers: &all"),
    "unused-anchors": _replace("    spec:\n      c", "    spec: &s\n      c").replace(
        "{app", "&l {app"
    ),
    "tag": _replace("{app: a}", "!!map {app: !!str a}"),
    "used-anchor-elsewhere": _replace(IMAGE, "          image: &i model:1\n          x: *i\n"),
    "comments-with-dashes": _replace(
        "        - name: model", "        # a-b - c\n        - # x-y: z\n          name: model"
    ),
    "comment-behind-a-key": _replace("containers:", "containers: # all: of - them"),
    "nested-dashes": _replace(IMAGE, IMAGE + "          x:\n          - - a\n            - b\n"),
    "odd-indentation": JOB.replace("    spec:\n      c", "      spec:\n         c").replace(
        "      - image: i\n        name: model", "         -   image: i\n             name: model"
    ),
    "equal-keys": _replace("  name: sentiment", "  name: other\n  name: sentiment"),
    "quoted-keys": _replace("command:", '"command" :').replace("containers:", "'containers':"),
    "flow-on-lines": _replace(
        '["gunicorn", "app:server"]',
        '[\n            "gunicorn", # x\n            "app:server"\n          ]',
    ),
    "block-command": _replace(
        'command: ["gunicorn", "app:server"]',
        "command:\n          - sh\n          - |\n            a - b\n\n            c: d",
    ),
    "block-text-kept": _replace(
        'command: ["gunicorn", "app:server"]',
        "args:\n            - |+\n              a\n\n          command: [x]",
    ),
    "tabs-behind-values": _replace("kind: Deployment\n", "kind: Deployment\t\n"),
    "first-key-behind-a-dash": JOB.replace("- image: i\n        name: model", "- name: model"),
    "list": "kind: List\napiVersion: v1\nitems:\n- " + JOB.replace("\n", "\n  ").rstrip(" "),
    "directive": "%YAML 1.1\n---\n" + DEPLOYMENT,
    "end-marker": DEPLOYMENT + "...\n",
}


def _as_json(text: str) -> object:
    return yaml.safe_load(text)


VALUE = _as_json(DEPLOYMENT)
JSON = {
    "crlf": json.dumps(VALUE, indent=2).replace("\n", "\r\n"),
    "crlf-at-the-end": json.dumps(VALUE, indent=2).replace("\n", "\r\n") + "\r\n",
    "compact": json.dumps(VALUE, separators=(",", ":")),
    "spaces": json.dumps(VALUE) + "\n",
    "tabs": json.dumps(VALUE, indent="\t") + "\n\n",
    "four": json.dumps(VALUE, indent=4),
    "inline-lists": json.dumps(VALUE, indent=2).replace(
        '[\n              "gunicorn",\n              "app:server"\n            ]',
        '["gunicorn", "app:server"]',
    ),
    "escapes": json.dumps(VALUE)
    .replace("/", "\\/")
    .replace("sentiment", "\\u0073entiment\\ud83d\\ude00"),
    "bom": "\ufeff" + json.dumps(VALUE, indent=2),
    "stream": json.dumps(VALUE) + "\n" + json.dumps(_as_json(JOB), indent=2) + "\n",
    "equal-keys": json.dumps(VALUE).replace('"kind":', '"kind": "X", "kind":'),
    "list": json.dumps({"kind": "List", "items": [VALUE, _as_json(JOB)]}, indent=1),
    "empty-fields": json.dumps(VALUE, indent=2).replace(
        '"image": "model:1"', '"env": [], "args": []'
    ),
}


@pytest.mark.parametrize("mode", ["auto", "hook", "mount"])
@pytest.mark.parametrize(
    "text", [*TEXTS.values(), *JSON.values()], ids=[*TEXTS, *(f"json-{name}" for name in JSON)]
)
def test_uninject_gives_the_bytes_back(text: str, mode: str) -> None:
    words = ["-n", "m", "--mode", mode]
    injected = asya("inject", *words, stdin=text)
    assert injected.status == 0, injected.err
    assert "written without its comments" not in injected.err
    assert injected.out.count("asya.sh/injected") + injected.out.count("asya.sh\\/injected") > 0
    assert asya("inject", *words, stdin=injected.out).out == injected.out
    assert asya("uninject", stdin=injected.out).out == text


@pytest.mark.parametrize("text", [TEXTS["bom"], JSON["bom"]], ids=["yaml", "json"])
def test_a_byte_order_mark_is_at_the_start_of_the_output_and_nowhere_else(text: str) -> None:
    out = asya("inject", stdin=text).out
    assert out.startswith("\ufeff")
    assert out.count("\ufeff") == 1
    first = next(yaml.safe_load_all(out))
    assert first["kind"] == "ConfigMap"


def test_line_ends_of_added_documents_are_those_of_the_file() -> None:
    for text in (TEXTS["crlf"], JSON["crlf-at-the-end"]):
        out = asya("inject", stdin=text).out
        assert "\n" not in out.replace("\r\n", "")


def test_a_used_anchor_is_named_as_the_cause_of_lost_comments_and_only_then() -> None:
    text = JOB.replace("    spec:\n", "    metadata: {labels: &l {a: b}}\n    spec:\n")
    text += "x: *l # both\n"
    done = asya("inject", "--no-configmap", stdin=text)
    assert "written without its comments, because of its anchors" in done.err
    text = TEXTS["unused-anchor"]
    assert "anchor" not in asya("inject", "--no-configmap", stdin=text).err


EDITS = {
    "tuned-probe": ("periodSeconds: 5", "periodSeconds: 30", "--ready"),
    "larger-socket-volume": ('sizeLimit: "1Mi"', "sizeLimit: 64Mi", "sizeLimit: 64Mi"),
    "changed-variable": ("my_app.handler.predict\n", "my_app.other\n", "value: my_app.other"),
}


@pytest.mark.parametrize(("old", "new", "kept"), EDITS.values(), ids=EDITS.keys())
def test_edits_of_users_in_what_was_injected_stay(old: str, new: str, kept: str) -> None:
    text = yaml.safe_dump(yaml.safe_load(DEPLOYMENT))
    injected = asya("inject", "--no-configmap", stdin=text).out
    head, _, tail = injected.rpartition(old)
    edited = asya("uninject", stdin=head + new + tail).out
    assert old in injected
    assert kept in edited
    assert asya("uninject", stdin=injected).out == text


def test_a_command_of_ones_own_in_mode_runtime_stays() -> None:
    text = _replace('          command: ["gunicorn", "app:server"]\n', "")
    injected = asya("inject", "--no-configmap", "--mode", "runtime", stdin=text).out
    assert asya("uninject", stdin=injected).out == text
    edited = re.sub(
        r"command:\n.*- python3\n.*- /opt/asya/asya_runtime.py",
        "command: [python3, /app/main.py]",
        injected,
    )
    assert edited != injected
    assert "command: [python3, /app/main.py]\n" in asya("uninject", stdin=edited).out


ENDS = st.sampled_from(["", "\n", "\n\n# end", "\n# x\n"])
EMPTY_LIST = st.sampled_from([None, "", " []", " [ ]", " # none"])


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([None, "", " {}", " # none"]), EMPTY_LIST, EMPTY_LIST, EMPTY_LIST,
    st.booleans(), st.sampled_from(["\n", "\r\n"]), ENDS,
)  # fmt: skip
def test_any_empty_fields_and_ends_come_back(
    metadata: str | None, env: str | None, mounts: str | None, volumes: str | None,
    has_command: bool, newline: str, end: str,
) -> None:  # fmt: skip
    lines = [*JOB.splitlines()]
    fields = {"env": env, "volumeMounts": mounts}
    lines += [f"        {name}:{value}" for name, value in fields.items() if value is not None]
    lines += ["        command: [x]"] * has_command
    lines += [f"      volumes:{volumes}"] * (volumes is not None)
    lines += [f"    metadata:{metadata}"] * (metadata is not None)
    text = newline.join(lines) + end.replace("\n", newline)
    injected = asya("inject", stdin=text)
    assert injected.status == 0
    assert asya("uninject", stdin=injected.out).out == text


def test_files_are_restored_from_a_directory(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(DEPLOYMENT)
    out = asya("inject", "-f", tmp_path).out
    assert asya("uninject", stdin=out).out == DEPLOYMENT
