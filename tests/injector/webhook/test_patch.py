"""The JSON patch, applied by an independent library."""

import base64
import copy
import json
from typing import Any

import pytest
from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.mutation.inject import inject
from asya_injector.webhook.patch import build_json_patch
from asya_injector.webhook.review import Review
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonpatch import JsonPatch

KEYS = st.sampled_from(["a", "b", "~", "/", "a/b", "~1", "", "0", "-"])
LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=3)
NODES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=25,
)
OBJECTS = st.dictionaries(KEYS, NODES, max_size=5)


# On a busy machine, generating examples is slow.
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(OBJECTS, OBJECTS)
def test_turns_before_into_after_and_modifies_neither(before: Any, after: Any) -> None:
    original = copy.deepcopy(before)
    patch = json.loads(json.dumps(build_json_patch(before, after)))
    assert JsonPatch(patch).apply(copy.deepcopy(before)) == after
    assert before == original


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(OBJECTS)
def test_equal_objects_need_no_patch(item: Any) -> None:
    assert build_json_patch(item, copy.deepcopy(item)) == []


def test_patches_only_the_fields_of_a_pod_that_differ() -> None:
    pod = {
        "metadata": {"annotations": {"asya.sh/handler": "a.b"}, "labels": {"x": "y"}},
        "spec": {
            "containers": [
                {"name": "model", "command": ["python3"], "image": "i"},
                {"name": "other", "image": "j"},
            ],
            "volumes": [{"name": "data", "emptyDir": {}}],
        },
    }
    injection = inject(pod, ClusterDefaults("0123456789", {}))
    assert injection
    assert [operation["path"] for operation in build_json_patch(pod, injection.pod)] == [
        *("/metadata/annotations/asya.sh~1injected", "/metadata/labels/asya.sh~1runtime-hash"),
        *("/spec/containers/0/command", "/spec/containers/0/volumeMounts"),
        *("/spec/containers/0/env", "/spec/containers/0/readinessProbe", "/spec/volumes"),
    ]


ITEMS = [{"name": str(number)} for number in range(101)]
A, B = {"name": "a"}, {"name": "b"}


@pytest.mark.parametrize(
    ("after", "paths"),
    [
        ([A, B, *ITEMS], ["/x/0", "/x/0"]),
        ([*ITEMS, A, B], ["/x/-", "/x/-"]),
        ([A, *ITEMS, B], ["/x"]),
        (ITEMS[1:], ["/x"]),
        ([A, B, *ITEMS[1:]], ["/x"]),
        ([], ["/x"]),
    ],
)
def test_a_long_list_grows_by_single_items(after: list[Any], paths: list[str]) -> None:
    patch = build_json_patch({"x": ITEMS}, {"x": after})
    assert [operation["path"] for operation in patch] == paths
    assert JsonPatch(patch).apply({"x": copy.deepcopy(ITEMS)}) == {"x": after}


def test_a_short_list_is_replaced() -> None:
    patch = build_json_patch({"x": ITEMS[:100]}, {"x": [*ITEMS[:100], A]})
    assert [operation["op"] for operation in patch] == ["replace"]


@pytest.mark.parametrize("text", ["\U0001f600" * 100, "\x00\x1f\u2028\ufffe", "\ud800", "\udc00x"])
def test_a_patch_holds_any_text(text: str) -> None:
    review = Review.parse(
        {
            "request": {
                "uid": "u",
                "resource": {"group": "", "version": "v1", "resource": "pods"},
                "operation": "CREATE",
                "namespace": "models",
                "userInfo": {},
                "object": {"metadata": {}},
            }
        }
    )
    review.admit({"metadata": {}, "x": text})
    patch = base64.b64decode(review.patch)
    assert json.loads(patch) == [{"op": "add", "path": "/x", "value": text}]
    assert len(patch) < 100 + 4 * len(text)
