"""The same injection with the runtime from an image: what differs, and that nothing else does."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import pytest
from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.errors import InjectionError, Reason
from asya_injector.mutation.inject import inject
from asya_injector.runtime_image import RuntimeImage

Object = dict[str, Any]

IMAGE = RuntimeImage("registry.example.com/asya/injector:1", "Always")
_VOLUME = {
    "name": "asya-runtime",
    "image": {"reference": "registry.example.com/asya/injector:1", "pullPolicy": "Always"},
}


def from_image(defaults: ClusterDefaults) -> ClusterDefaults:
    """The same defaults, with an image in place of the ConfigMap."""
    return replace(defaults, image=IMAGE)


def check_both_deliveries(given: Object, injected: Object, defaults: ClusterDefaults) -> None:
    """Inject a pod from an image, and compare with its injection from a ConfigMap.

    Only the volume and its mount may differ. A copy that is injected with the other delivery
    becomes what the original would.
    """
    other = from_image(defaults)
    if any(mount["mountPath"].endswith(".py") for mount in _find_added_mounts(injected)):
        with pytest.raises(InjectionError) as caught:
            inject(given, other)
        assert caught.value.reason == Reason.MOUNT_PATH_UNSUPPORTED
        return
    result = inject(given, other)
    assert result is not None
    assert result.pod == _expect(injected)
    for source, wanted, settings in (
        (result.pod, result.pod, other),
        (result.pod, injected, defaults),
        (injected, result.pod, other),
    ):
        again = inject(source, settings)
        assert again is not None
        assert again.pod == wanted


def _expect(injected: Object) -> Object:
    """The pod with the volume from an image."""
    pod = copy.deepcopy(injected)
    spec = pod["spec"]
    spec["volumes"] = [
        _VOLUME if volume["name"] == "asya-runtime" else volume for volume in spec["volumes"]
    ]
    for mount in _find_added_mounts(pod):
        mount["subPath"] = "asya-runtime"
    return pod


def _find_added_mounts(pod: Object) -> list[Object]:
    """The mounts of the runtime files that the record lists, not copies."""
    record = json.loads(pod["metadata"]["annotations"]["asya.sh/injected"])
    return [
        mount
        for container in pod["spec"]["containers"]
        for mount in container.get("volumeMounts") or []
        if f"mount {mount['name']}:{mount['mountPath']}"
        in record["added"].get(container["name"], ())
        and mount["name"] == "asya-runtime"
    ]
