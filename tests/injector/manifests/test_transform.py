"""`inject` and `uninject` of whole sets of manifests."""

import copy
import hashlib
import itertools
import json
import re
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.annotations.table import INHERITED
from asya_injector.documents.document import read_documents
from asya_injector.kube_objects import KINDS, WORKLOAD_KINDS, get_template
from asya_injector.mutation.inject import inject
from asya_injector.runtime_files import RuntimeFiles
from asya_injector.webhook.admission import HANDLED, Webhook
from asya_injector.webhook.review import Review

from tests.injector.commands import asya
from tests.injector.conftest import run_script

Object = dict[str, Any]
RUNTIME = RuntimeFiles.packaged()
NAME = f"asya-runtime-{RUNTIME.hash}"
HANDLER = {"asya.sh/handler": "my_app.handler.predict"}

DEPLOYMENT = """\
# The model.
apiVersion: apps/v1
kind: Deployment
metadata:
  name: sentiment   # as the team calls it
  annotations:
    asya.sh/handler: my_app.handler.predict
spec:
  selector: {matchLabels: {app: a}}
  template:
    metadata:
      labels: {app: a}
    spec:
      containers:
        - name: model
          image: model:1
          command: ["gunicorn", "app:server"]
          env:
            # why
            - name: X
              value: "0444"
"""
SERVICE = """\
apiVersion:   v1      # typed like this
kind: Service
metadata: {name: 'x', labels: {on: yes}}
spec:
    ports:
    - port: 0o120
"""
BAD = DEPLOYMENT.replace("my_app.handler.predict", "predict").replace("sentiment", "bad")


def read(text: str) -> list[Any]:
    return list(yaml.safe_load_all(text))


def pod(**metadata: Any) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", "annotations": HANDLER, **metadata},
        "spec": {"containers": [{"name": "model", "command": ["serve"]}]},
    }


def workload(kind: str, own: Object | None, template: Object | None) -> Object:
    spec: Object = {
        "template": {
            **({"metadata": {"annotations": template}} if template else {}),
            "spec": {"containers": [{"name": "model", "command": ["serve"]}]},
        }
    }
    if kind == "CronJob":
        spec = {"schedule": "@daily", "jobTemplate": {"spec": spec}}
    metadata = {"name": "w", **({"annotations": own} if own else {})}
    return {"apiVersion": KINDS[kind].api_version, "kind": kind, "metadata": metadata, "spec": spec}


# --- Unchanged documents


def test_objects_without_annotations_are_written_byte_for_byte(tmp_path: Path) -> None:
    text = f"# first\n---\n{SERVICE}--- # second\n# nothing here\n---\n'just a text'\n---\n[1,  2]"
    (tmp_path / "all.yaml").write_text(text)
    for command in ("inject", "uninject"):
        assert asya(command, "-f", tmp_path / "all.yaml").out == text
        assert asya(command, stdin=text).out == text


def test_line_ends_and_byte_order_mark_are_kept() -> None:
    text = "\ufeffa: 1\r\n---\r\nb: 2\r\n"
    assert asya("inject", stdin=text).out == text


def test_everything_but_the_actor_is_written_as_it_was() -> None:
    out = asya("inject", "--no-configmap", stdin=f"{SERVICE}---\n{DEPLOYMENT}---\n{SERVICE}").out
    assert out.startswith(f"{SERVICE}---\n# The model.\n")
    assert out.endswith(f"---\n{SERVICE}")
    new = iter(out.removeprefix(f"{SERVICE}---\n").splitlines())
    # The lists on one line have grown on it.
    for line in DEPLOYMENT.splitlines():
        if not re.search("command|labels", line):
            assert line in new, f"{line!r} is gone, or stands elsewhere"


# --- As the webhook


def review(item: Object) -> Review:
    return Review(
        uid="u",
        resource=("", "v1", "pods"),
        subresource="",
        operation="CREATE",
        namespace="models",
        dry_run=False,
        object=copy.deepcopy(item),
    )


@pytest.mark.parametrize("command", [None, ["serve"]])
def test_a_pod_is_changed_as_by_the_webhook(command: list[str] | None) -> None:
    item = pod(namespace="models")
    item["spec"]["containers"][0] = {"name": "model", **({"command": command} if command else {})}
    policy = ClusterDefaults(RUNTIME.hash, {"concurrency": "4"})
    admitted = Webhook(policy, mock.AsyncMock(), mock.AsyncMock()).admit_pod(review(item), [])
    words = ["inject", "--no-configmap", "--concurrency", "4"]
    assert json.loads(asya(*words, stdin=json.dumps(item)).out) == admitted
    assert read(asya(*words, stdin=yaml.safe_dump(item)).out) == [admitted]


def test_the_kinds_are_those_of_the_webhooks() -> None:
    resources = {(f"{group}/{version}", name) for group, version, name in HANDLED["workloads"]}
    assert resources == {(kind.api_version, f"{kind.name.lower()}s") for kind in WORKLOAD_KINDS}


ANNOTATIONS: list[tuple[Object | None, Object | None]] = [
    (HANDLER, None),
    (None, HANDLER),
    (HANDLER, {"asya.sh/mode": "hook"}),
    ({"asya.sh/handler": "x.y", "asya.sh/concurrency": "2"}, HANDLER),
    ({"asya.sh/inject": "false"}, HANDLER | {"asya.sh/inject": "true"}),
]


@pytest.mark.parametrize("kind", [kind.name for kind in WORKLOAD_KINDS])
@pytest.mark.parametrize(("own", "template"), ANNOTATIONS)
def test_a_pod_template_is_changed_as_a_pod_by_both_webhooks(
    kind: str, own: Object | None, template: Object | None
) -> None:
    item = workload(kind, own, template)
    policy = ClusterDefaults(RUNTIME.hash, {})
    admitted = Webhook(policy, mock.AsyncMock(), mock.AsyncMock()).admit_workload(review(item), [])
    injection = inject(get_template(admitted), policy)
    assert injection is not None
    (out,) = read(asya("inject", "--no-configmap", stdin=yaml.safe_dump(item)).out)
    assert get_template(out) == injection.pod
    assert (INHERITED in out.get("metadata", {}).get("annotations", {})) is False


LEFT_ALONE = {
    "without-annotations": {"annotations": {}},
    "switched-off": {"annotations": HANDLER | {"asya.sh/inject": "false"}},
    "system-namespace": {"namespace": "kube-system"},
    "public-namespace": {"namespace": "kube-public"},
    "namespace-of-leases": {"namespace": "kube-node-lease"},
    "mirror": {"annotations": HANDLER | {"kubernetes.io/config.mirror": "x"}},
    "being-deleted": {"deletionTimestamp": "2026-01-01T00:00:00Z"},
}


@pytest.mark.parametrize("metadata", LEFT_ALONE.values(), ids=LEFT_ALONE.keys())
def test_objects_that_the_api_server_does_not_send_are_left_alone(metadata: Object) -> None:
    text = json.dumps(pod(**metadata))
    assert asya("inject", stdin=text).out == text


def inherit(annotations: Object) -> Object:
    return {INHERITED: json.dumps(annotations, sort_keys=True, separators=(",", ":"))}


OFF: Object = {"asya.sh/inject": "false"}


@pytest.mark.parametrize(
    ("own", "template", "because", "left"),
    [
        (HANDLER, OFF, 'asya.sh/inject is "false" on the pod template', OFF),
        (None, HANDLER | OFF, 'asya.sh/inject is "false" on the pod template', HANDLER | OFF),
        (HANDLER | OFF, None, 'asya.sh/inject is "false"', None),
        # The inherited annotations are updated nevertheless.
        (
            HANDLER | OFF,
            HANDLER,
            "asya.sh/inject switches it off",
            HANDLER | inherit(HANDLER | OFF),
        ),
        (None, OFF | inherit(HANDLER), "asya.sh/inject switches it off", OFF),
    ],
)
def test_a_workload_or_template_with_injection_switched_off_is_not_an_actor(
    own: Object | None, template: Object | None, because: str, left: Object | None
) -> None:
    item = workload("Deployment", own, template)
    (explained,) = json.loads(asya("explain", "-o", "json", stdin=json.dumps(item)).out)["objects"]
    assert (explained["result"], explained["because"]) == ("left-alone", because)
    out = asya("inject", "--no-configmap", stdin=json.dumps(item)).out
    assert json.loads(out) == workload("Deployment", own, left)


def test_objects_in_a_system_namespace_of_the_option_are_left_alone() -> None:
    text = json.dumps(pod())
    assert asya("inject", "-n", "kube-system", stdin=text).out == text
    assert asya("inject", "-n", "kube-systems", stdin=text).out != text


def test_a_replicaset_of_a_deployment_is_left_alone() -> None:
    item = workload("ReplicaSet", None, HANDLER)
    for owners in ([], [{"kind": "Team", "controller": False}]):
        item["metadata"]["ownerReferences"] = owners
        assert asya("inject", "--no-configmap", stdin=json.dumps(item)).out != json.dumps(item)
    item["metadata"]["ownerReferences"] = [{"kind": "Deployment", "controller": True}]
    done = asya("inject", stdin=json.dumps(item))
    assert done.out == json.dumps(item)


def test_objects_in_a_namespace_that_the_input_disables_are_left_alone() -> None:
    space: Object = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": "m", "labels": {"asya.sh/injection": "disabled"}},
    }
    text = yaml.safe_dump_all([pod(namespace="m"), space])
    assert asya("inject", stdin=text).out == text
    space["metadata"]["labels"] = {}
    assert asya("inject", stdin=yaml.safe_dump_all([pod(namespace="m"), space])).out != text


def test_an_annotated_object_of_an_unsupported_kind_causes_a_warning() -> None:
    item: Object = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Rollout",
        "metadata": {"name": "r"},
    }
    item["spec"] = {"template": {"metadata": {"annotations": HANDLER}}}
    done = asya("inject", stdin=json.dumps(item))
    assert done.out == json.dumps(item)
    assert done.err == (
        'asya-injector: warning: stdin:1 Rollout r: "asya.sh/handler" in '
        "spec.template.metadata.annotations has no effect: it is not an annotation of a workload "
        "or of its pod template\nasya-injector: 0 injected, 0 unchanged, 0 rejected\n"
    )


# --- The ConfigMaps


def stream(owner: str) -> str:
    return hashlib.sha256(owner.encode()).hexdigest()[:8]


def test_each_namespace_gets_one_runtime_configmap_before_its_first_actor() -> None:
    items = [pod(namespace="a"), pod(namespace="b"), pod(namespace="a"), pod()]
    out = read(asya("inject", "-n", "b", stdin=yaml.safe_dump_all(items)).out)
    assert [(each["kind"], each["metadata"].get("namespace")) for each in out] == [
        ("ConfigMap", "a"),
        ("Pod", "a"),
        ("ConfigMap", "b"),
        ("Pod", "b"),
        ("Pod", "a"),
        ("Pod", None),
    ]
    expected = RUNTIME.config_map()
    expected["metadata"]["name"] = f"{NAME}-{stream('Pod/p')}"
    expected["metadata"]["namespace"] = "a"
    expected["metadata"]["labels"]["asya.sh/source"] = "manifest"
    assert out[0] == expected


def test_an_object_without_namespace_gets_a_configmap_without_one() -> None:
    (copied, _) = read(asya("inject", stdin=yaml.safe_dump(pod())).out)
    assert copied["metadata"] == {
        "name": f"{NAME}-{stream('Pod/p')}",
        "labels": {**RUNTIME.config_map()["metadata"]["labels"], "asya.sh/source": "manifest"},
    }


def test_without_actors_or_with_the_option_no_configmap_is_added() -> None:
    assert "ConfigMap" not in asya("inject", stdin=SERVICE).out
    assert "kind: ConfigMap" not in asya("inject", "--no-configmap", stdin=DEPLOYMENT).out


def test_injecting_again_changes_nothing() -> None:
    for text in (DEPLOYMENT, f"{SERVICE}---\n{DEPLOYMENT}", json.dumps(pod())):
        once = asya("inject", "-n", "m", stdin=text).out
        assert asya("inject", "-n", "m", stdin=once).out == once


def test_a_configmap_with_the_same_name_and_other_content_is_rejected() -> None:
    forged = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": NAME},
        "data": {"a": "b"},
    }
    done = asya("inject", stdin=yaml.safe_dump_all([pod(), forged]))
    assert (done.status, done.out) == (1, "")
    assert done.err == (
        f'asya-injector: stdin:1 Pod p: ConfigMap "{NAME}" in stdin:2: has other content, which '
        "pods would run; remove it: asya-injector adds its own (RuntimeConfigMapConflict)\n"
        "asya-injector: 0 injected, 0 unchanged, 1 rejected; no output was written\n"
    )


def test_a_configmap_without_namespace_is_in_the_namespace_of_the_option() -> None:
    items = [RUNTIME.config_map(), pod(), pod(namespace="m")]
    out = read(asya("inject", "-n", "m", stdin=yaml.safe_dump_all(items)).out)
    assert [item["kind"] for item in out] == ["ConfigMap", "Pod", "Pod"]


# --- Lists and JSON


def test_the_items_of_a_list_are_changed_and_their_configmap_is_added_to_it() -> None:
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}}
    given = {"apiVersion": "v1", "kind": "List", "items": [service, "odd", pod()]}
    for text in (json.dumps(given, indent=4), yaml.safe_dump(given)):
        out = asya("inject", stdin=text).out
        assert out.startswith("{\n    ") == text.startswith("{")
        (result,) = read(out)
        assert result["items"][:2] == [service, "odd"]
        assert [item["kind"] for item in result["items"][2:]] == ["ConfigMap", "Pod"]
        assert asya("uninject", stdin=out).out == text


@pytest.mark.parametrize("indent", [None, 2, 4, "\t"])
def test_json_input_gives_json_output_with_its_order_and_indentation(
    indent: int | str | None,
) -> None:
    text = json.dumps(pod(z=1, a=2), indent=indent)
    out = asya("inject", "--no-configmap", stdin=text).out
    assert list(json.loads(out)["metadata"]) == ["name", "annotations", "z", "a", "labels"]
    assert json.dumps(json.loads(out), indent=indent) == out


def test_a_stream_of_json_is_written_as_one() -> None:
    out = asya("inject", stdin=json.dumps(pod()) + "\n" + SERVICE.replace(SERVICE, '{"a": 1}')).out
    decoder, values = json.JSONDecoder(), []
    while out.strip():
        value, end = decoder.raw_decode(out)
        values.append(value)
        out = out[end:].lstrip()
    assert [value.get("kind") for value in values] == ["ConfigMap", "Pod", None]


def test_yaml_and_json_files_together_are_written_as_yaml(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(pod()))
    (tmp_path / "b.yaml").write_text(SERVICE)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "c.yml").write_text(DEPLOYMENT)
    (tmp_path / "README.md").write_text("no manifest")
    out = read(asya("inject", "-f", tmp_path).out)
    assert [item["kind"] for item in out] == ["ConfigMap", "Pod", "Service", "Deployment"]
    both: list[str | Path] = ["-f", tmp_path / "b.yaml", "-f", "-"]
    assert len(read(asya("inject", "--no-configmap", *both, stdin=DEPLOYMENT).out)) == 2


def test_a_document_that_loses_its_comments_because_of_anchors_causes_a_warning() -> None:
    text = """\
# both alike
apiVersion: v1
kind: Pod
metadata: {name: p, annotations: {asya.sh/handler: a.b}}
spec:
  containers:
    - &one
      name: model
      command: [x]
      env: &env
        - {name: X, value: "1"}
    - name: other
      env: *env
"""
    done = asya("inject", "--no-configmap", stdin=text)
    (out,) = read(done.out)
    names = [[each["name"] for each in item["env"]] for item in out["spec"]["containers"]]
    assert names == [["ASYA_HANDLER", "ASYA_SOCKET_PATH", "ASYA_SOCKET_MODE", "X"], ["X"]]
    assert "warning: stdin:1: written without its comments, because of its anchors" in done.err


# --- Rejections


def test_all_errors_are_reported_and_no_output_is_written(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"{DEPLOYMENT}---\n{BAD}")
    given = {"kind": "List", "items": [{}, pod(namespace="m", annotations={"asya.sh/handlr": "a"})]}
    (tmp_path / "b.json").write_text(json.dumps(given))
    done = asya("inject", "-f", tmp_path)
    assert (done.status, done.out) == (1, "")
    assert done.err.splitlines() == [
        f'asya-injector: {tmp_path}/a.yaml:2 Deployment bad: asya.sh/handler: "predict" is not '
        "valid; must be module.path.function, such as my_app.handler.predict (AnnotationInvalid)",
        f"asya-injector: {tmp_path}/b.json:1[1] Pod m/p: asya.sh/handlr: unknown annotation; did "
        'you mean "asya.sh/handler"? (AnnotationUnknown)',
        "asya-injector: 1 injected, 0 unchanged, 2 rejected; no output was written",
    ]


@pytest.mark.parametrize("name", ["\x1b[2J\nok", "x" * 100_000])
def test_names_in_messages_cannot_forge_terminal_sequences_and_are_short(name: str) -> None:
    item = pod(name=name, annotations={"asya.sh/handler": "x"})
    done = asya("inject", stdin=json.dumps(item))
    assert done.status == 1
    assert len(done.err.splitlines()) == 2
    assert len(done.err) < 500
    assert all(line.isprintable() for line in done.err.split("\n"))


PODS: list[Object] = [
    {}, {"metadata": None}, {"metadata": []}, {"metadata": {"annotations": [1]}}, {"spec": 5},
    {"metadata": {"annotations": {1: 2}}}, {"metadata": {"labels": 5}},
]  # fmt: skip
ODD: list[Any] = [
    *({"apiVersion": "v1", "kind": "Pod"} | rest for rest in PODS),
    {"kind": ["x"], "metadata": "y"}, {"kind": "List", "items": [1, None, {}]}, {}, [], 3,
    {"apiVersion": "apps/v1", "kind": "Deployment", "spec": [], "metadata": {"annotations": 5}},
    {"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"ownerReferences": 5}},
    {"kind": "Namespace", "metadata": {"labels": []}}, {"kind": "ConfigMap", "metadata": 4},
]  # fmt: skip


@pytest.mark.parametrize("odd", ODD, ids=str)
def test_objects_of_any_shape_pass_or_are_rejected(odd: Any) -> None:
    text = yaml.safe_dump(odd)
    for command in ("inject", "uninject", "explain"):
        done = asya(command, stdin=text)
        if done.status == 1 and command != "explain":
            assert done.out == ""
            assert re.search(r"\(ObjectInvalid\)$", done.err, re.MULTILINE)
        else:
            assert done.status == 0 or "ObjectInvalid" in done.out
            assert command == "explain" or done.out == text


OURS = "asya.sh/handler: a.b\n"
BOMB = "a: &a0 [x]\n" + "".join(
    f"b{i}: &a{i + 1} [{', '.join([f'*a{i}'] * 10)}]\n" for i in range(12)
)


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("a.yaml", f"{OURS}a: [\n", "a.yaml:1, line 3 of the document: did not find expected node"),
        (
            "a.yaml",
            f"a: 1\n---\n{OURS}a: b: c\n",
            "a.yaml:2, line 3 of the document: mapping values are",
        ),
        (
            "a.yaml",
            f"{OURS}? [a]\n: b\n",
            "a.yaml:1, line 4 of the document: a key must be a string",
        ),
        ("a.yaml", f"{OURS}a: !!int x\n", "line 2 of the document: 'x' is not of type !!int"),
        ("a.yaml", f"{OURS}a: !!binary x\n", "line 2 of the document: !!binary is not base64"),
        ("a.yaml", f"{OURS}a: .inf\n", "line 2 of the document: .inf cannot be written as JSON"),
        ("a.yaml", f"{OURS}a: &x [*x]\n", "line 2 of the document: anchor 'x' contains itself"),
        ("a.yaml", f"{OURS}a: *x\n", "line 2 of the document: unknown anchor 'x'"),
        ("a.yaml", f"{OURS}a: {{<<: 1}}\n", "a merge key needs a mapping or a list of them"),
        ("a.yaml", f"{OURS}a: {{{{ .Values.x }}}}\n", "a.yaml:1"),
        ("a.yaml", f"{OURS}\ta: 1\n", "a.yaml:1, line 2 of the document: found a tab character"),
        ("a.yaml", OURS.encode() + b"a: \xff\xfe\n", "a.yaml:1: not UTF-8: invalid byte 0xff"),
        ("a.yaml", f"a: 1\n---\n{OURS}# ".encode() + b"M\xfcller", "a.yaml:2: not UTF-8: invalid"),
        ("a.json", b'{"asya.sh/handler":"\xfc"}', "a.json:1: not UTF-8: invalid byte 0xfc"),
        ("a.yaml", OURS.encode("utf-16"), "a.yaml:1: not UTF-8: invalid byte 0xff"),
        ("a.yaml", OURS.encode("utf-16-le"), "a.yaml:1: unacceptable character #x0000"),
        ("a.json", '{"asya.sh/handler": 1', "a.json:1"),
        ("a.json", '{"asya.sh/handler":' + "[" * 100_000, "a.json:1: nested more than 200 levels"),
        ("a.json", '{"asya.sh/handler":' + "[" * 201 + "]" * 201 + "}", "more than 200 levels"),
        (
            "a.yaml",
            f"{OURS}a: {'[' * 100_000}",
            "a.yaml:1, line 2 of the document: exceeded maximum",
        ),
        ("a.yaml", f"{OURS}a:\n{'- ' * 100_000}", "line 3 of the document: nested more than 200"),
        ("a.yaml", OURS + BOMB, "line 7 of the document: aliases repeat too many values"),
    ],
    ids=itertools.count(),
)
def test_unreadable_input_is_reported_in_one_line(
    tmp_path: Path, name: str, text: str | bytes, line: str
) -> None:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    done = asya("inject", "-f", path)
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("asya-injector: ")
    assert line in done.err
    assert done.err.count("\n") == 1


def test_missing_files_and_directories_without_manifests_are_wrong_usage(
    tmp_path: Path,
) -> None:
    done = asya("inject", "-f", tmp_path / "none.yaml")
    assert (done.status, done.err) == (
        2, f"asya-injector: {tmp_path}/none.yaml: No such file or directory\n",
    )  # fmt: skip
    done = asya("inject", "-f", tmp_path)
    assert (done.status, done.err) == (
        2, f"asya-injector: {tmp_path}: contains no file named *.yaml, *.yml, *.json\n",
    )  # fmt: skip


# --- Uninject


@pytest.mark.parametrize("mode", ["auto", "hook", "mount"])
@pytest.mark.parametrize(
    "text",
    [DEPLOYMENT, f"# pre\n---\n{DEPLOYMENT}", f"---\n{SERVICE}---\n{DEPLOYMENT}---\n{SERVICE}"],
)
def test_uninject_restores_the_text(text: str, mode: str) -> None:
    injected = asya("inject", "-n", "m", "--mode", mode, stdin=text)
    assert injected.status == 0
    assert injected.out != text
    assert asya("uninject", stdin=injected.out).out == text


def test_uninject_keeps_configmaps_that_inject_did_not_add() -> None:
    mine = RUNTIME.config_map()
    mine["metadata"]["namespace"] = "m"
    text = yaml.safe_dump(mine)
    assert asya("uninject", stdin=text).out == text


def test_yaml_is_read_as_kubernetes_reads_it() -> None:
    """YAML 1.1 as the API server has it: `no` is false, dates are texts."""
    text = DEPLOYMENT.replace(
        "    spec:\n", "    spec:\n      shareProcessNamespace: no\n"
    ).replace('          command: ["gunicorn", "app:server"]\n', "")
    assert asya("inject", "--no-configmap", stdin=text).status == 0
    wrong = asya(
        "inject", stdin=text.replace("shareProcessNamespace: no", "shareProcessNamespace: yes")
    )
    assert re.search(r"\(HookUnsupported\)$", wrong.err, re.MULTILINE)


@pytest.mark.parametrize("word", ["=", "<<", "_1", "1:20", "2026-01-01", "2026-01-01T00:00:00Z"])
def test_words_that_kubernetes_does_not_convert_are_strings(word: str) -> None:
    labels = "      labels: {app: a}\n"
    assert DEPLOYMENT.count(labels) == 1
    text = DEPLOYMENT.replace(labels, f"{labels}      annotations:\n        note: {word}\n")
    done = asya("inject", "--no-configmap", stdin=text)
    assert (done.status, done.err.count("\n")) == (0, 1)
    assert f"        note: {word}\n" in done.out


@pytest.mark.parametrize(
    ("word", "value"),
    [  # as `kubectl annotate --local -o json` prints them
        ("1e3", 1000),
        ("1E3", 1000),
        ("-1e3", -1000),
        ("1e-3", 0.001),
        ("12e03", 12000),
        ("1_0e3", 10000),
        (".5e3", 500),
        ("-.5", -0.5),
        ("1e", "1e"),
    ],
)
def test_a_number_with_an_exponent_is_read_as_kubectl_reads_it(
    word: str, value: float | str
) -> None:
    (document,) = read_documents("stdin", f"a: {word}\n", read_all=True)
    assert document.value == {"a": value}
    assert type(document.value["a"]) is (str if isinstance(value, str) else float)


def test_a_number_with_an_exponent_causes_no_warning() -> None:
    script = "from asya_injector.cli.main import main; main(['inject'])"
    done = run_script(script, f"{SERVICE}---\na: 1e3\n")
    summary = "asya-injector: 0 injected, 0 unchanged, 0 rejected\n"
    assert (done.returncode, done.stderr) == (0, summary)
    assert done.stdout.endswith("---\na: 1e3\n")


def test_neither_kopf_nor_kubernetes_is_loaded_for_manifests() -> None:
    script = (
        "import sys; from asya_injector.cli.main import program\n"
        "program(['explain'], standalone_mode=False)\n"
        "print(sorted({'kopf', 'kubernetes', 'cryptography', 'aiohttp'} & set(sys.modules)))"
    )
    done = run_script(script, SERVICE)
    assert done.stdout.splitlines()[-1] == "[]"
