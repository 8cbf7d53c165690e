"""Manifests whose pods mount the runtime from an image: `--delivery`, `--runtime-image`, values."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from asya_injector import __version__
from asya_injector.runtime_files import RuntimeFiles

from tests.injector.commands import asya

Object = dict[str, Any]

HASH = RuntimeFiles.packaged().hash
DIGEST = "sha256:" + "fedcba9876543210" * 4
FOREIGN = {"repository": "example.com/files", "tag": "3", "digest": DIGEST, "pullPolicy": "Always"}
FROM_IMAGE = ("--delivery", "image", "--runtime-image", "files:1")
INJECTOR = {"image": {"repository": "example.com/injector", "pullPolicy": "Never"}}


def workload(name: str, **metadata: Any) -> Object:
    annotations = {"asya.sh/handler": "a.b"}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "annotations": annotations, **metadata},
        "spec": {"template": {"spec": {"containers": [{"name": "model", "command": ["serve"]}]}}},
    }


def dump(*items: Object) -> str:
    return yaml.safe_dump_all(items, sort_keys=False)


def hash_of(reference: str) -> str:
    return hashlib.sha256(reference.encode()).hexdigest()[:10]


@pytest.mark.parametrize(
    ("values", "words", "reference", "policy", "label"),
    [
        # Of an unknown image, only the reference is known.
        ({}, ["--delivery", "image", "--runtime-image", "files:1"], "files:1", "IfNotPresent",
         hash_of("files:1")),
        ({}, ["--delivery", "image", "--runtime-image", f"files@{DIGEST}"], f"files@{DIGEST}",
         "IfNotPresent", "fedcba9876"),
        # As the chart does with the same values.
        ({"runtime": {"delivery": "image"}, "injector": INJECTOR}, [],
         f"example.com/injector:{__version__}", "Never", HASH),
        ({"runtime": {"delivery": "image", "image": FOREIGN}, "injector": INJECTOR}, [],
         f"example.com/files:3@{DIGEST}", "Always", "fedcba9876"),
        ({"runtime": {"delivery": "image", "image": {"pullPolicy": "Always"}},
          "injector": INJECTOR}, [], f"example.com/injector:{__version__}", "Always", HASH),
        # Options take precedence.
        ({"injector": INJECTOR}, ["--delivery", "image"], f"example.com/injector:{__version__}",
         "Never", HASH),
        ({"runtime": {"delivery": "image", "image": FOREIGN}}, ["--runtime-image", "files:1"],
         "files:1", "Always", hash_of("files:1")),
    ],
)  # fmt: skip
def test_pods_mount_the_image_and_there_is_no_configmap(
    values: Object, words: list[str], reference: str, policy: str, label: str, tmp_path: Path
) -> None:
    (tmp_path / "values.yaml").write_text(json.dumps(values))
    words = ["--values", str(tmp_path / "values.yaml"), *words]
    items = [workload("a"), workload("b", namespace="n")]
    done = asya("inject", *words, stdin=dump(*items))
    assert done.status == 0, done.err
    found = list(yaml.safe_load_all(done.out))
    assert [each["kind"] for each in found] == ["Deployment", "Deployment"]
    volume = {"name": "asya-runtime", "image": {"reference": reference, "pullPolicy": policy}}
    for each in found:
        template = each["spec"]["template"]
        assert template["spec"]["volumes"][0] == volume
        assert template["metadata"]["labels"] == {"asya.sh/runtime-hash": label}
    assert asya("inject", *words, stdin=done.out).out == done.out
    assert asya("uninject", stdin=done.out).out == dump(*items)
    explained = json.loads(asya("explain", "-o", "json", *words, stdin=dump(*items)).out)
    assert explained["runtime"] == label
    assert volume in explained["objects"][0]["actor"]["volumes"]
    assert f"asya-runtime, image {reference}\n" in asya("explain", *words, stdin=dump(*items)).out


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"runtime": {"delivery": "image"}, "injector": INJECTOR}, ["--delivery", "configMap"]),
        ({"runtime": {"image": FOREIGN}, "injector": INJECTOR}, []),
        ({"runtime": None}, []),
    ],
)
def test_without_that_delivery_pods_mount_a_configmap(
    values: Object, words: list[str], tmp_path: Path
) -> None:
    (tmp_path / "values.yaml").write_text(json.dumps(values))
    done = asya("inject", "--values", tmp_path / "values.yaml", *words, stdin=dump(workload("a")))
    assert done.out == asya("inject", stdin=dump(workload("a"))).out


@pytest.mark.parametrize(
    ("values", "words", "line"),
    [
        ({}, ["--delivery", "image"], "--delivery image: name the image with --runtime-image"),
        ({}, ["--runtime-image", "a"], "--runtime-image: has no effect without --delivery image"),
        ({}, ["--delivery", "image", "--runtime-image", "a b"],
         "--runtime-image: is not valid; must be the reference of an image"),
        ({"runtime": {"delivery": "Image"}}, [],
         "values.yaml: runtime.delivery must be configMap or image"),
        ({"runtime": {"delivery": "image", "image": FOREIGN | {"pullPolicy": "Maybe"}}}, [],
         "values.yaml: runtime.image: is not valid; must be one of IfNotPresent, Always, Never"),
        ({}, [*FROM_IMAGE, "--mount-path", "/app/asya_runtime.py"],
         'default of asya.sh/mount-path: "/app/asya_runtime.py" is a file'),
    ],
)  # fmt: skip
def test_options_that_cannot_work_are_wrong_usage(
    values: Object, words: list[str], line: str, tmp_path: Path
) -> None:
    (tmp_path / "values.yaml").write_text(json.dumps(values))
    for command in ("inject", "explain"):
        done = asya(command, "--values", tmp_path / "values.yaml", *words, stdin="")
        assert (done.status, done.out) == (2, "")
        assert line in done.err
        assert done.err.count("\n") == 1


PAIR = (workload("a"), workload("a", namespace="n"))


def list_of(*items: Object) -> Object:
    return {"apiVersion": "v1", "kind": "List", "items": list(items)}


@pytest.mark.parametrize(
    "plain",
    [
        dump(*PAIR),
        dump(list_of(*PAIR)),
        dump(list_of(PAIR[0]), list_of(PAIR[1]), workload("b", namespace="m")),
        dump(list_of(*PAIR)).replace("\n- ", "\n# its model\n- "),
        json.dumps(list_of(*PAIR), indent=2),
        json.dumps(list_of(*PAIR)),
    ],
    ids=["documents", "a list", "several", "comments", "JSON", "JSON in one line"],
)
def test_injected_manifests_change_to_the_other_delivery_and_back(plain: str) -> None:
    with_configmaps = asya("inject", stdin=plain).out
    with_image = asya("inject", *FROM_IMAGE, stdin=plain).out
    assert asya("inject", *FROM_IMAGE, stdin=with_configmaps).out == with_image
    assert asya("inject", stdin=with_image).out == with_configmaps


@pytest.mark.parametrize("is_list", [False, True])
def test_a_configmap_stays_while_an_object_that_is_left_alone_mounts_it(is_list: bool) -> None:
    both = dump(workload("a"), workload("b", namespace="n"))
    injected = list(yaml.safe_load_all(asya("inject", stdin=both).out))
    injected[1]["spec"]["template"]["metadata"]["annotations"]["asya.sh/inject"] = "false"
    written = dump(list_of(*injected)) if is_list else dump(*injected)
    (*out,) = yaml.safe_load_all(asya("inject", *FROM_IMAGE, stdin=written).out)
    out = out[0]["items"] if is_list else out
    assert [each["kind"] for each in out] == ["ConfigMap", "Deployment", "Deployment"]
    assert out[0] == injected[0]
    (volume, _) = out[1]["spec"]["template"]["spec"]["volumes"]
    assert volume["configMap"]["name"] == injected[0]["metadata"]["name"]
