"""The JSON patch, applied by an independent library."""

import copy
import json
from typing import Any

from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.mutation.inject import inject
from asya_injector.webhook.review import build_json_patch
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
