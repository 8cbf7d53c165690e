"""Checks of how pods get the runtime, from objects of the cluster. This module does no I/O."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from asya_injector.diagnostics.results import Finding
from asya_injector.diagnostics.variables import read_variables
from asya_injector.errors import join
from asya_injector.kube_objects import Object, get_mapping
from asya_injector.runtime_image import (
    IMAGE_VARIABLE,
    RUNTIME_IMAGE_VARIABLE,
    Delivery,
    RuntimeImage,
)

# The first versions that mount a folder of an image without further configuration.
_MIN_KUBELET = (1, 35)
_MIN_RUNTIMES = {"containerd": (2, 2), "cri-o": (1, 33)}
_FIX = (
    "upgrade the nodes to containerd 2.2 or CRI-O 1.33 and kubelet 1.35, keep actors off them, or "
    "set the chart's runtime.delivery to configMap"
)


def find_delivery(deployments: Sequence[Object]) -> Delivery:
    """What new pods mount, by the variables of the injector's Deployment."""
    for item in deployments:
        spec = get_mapping(item, "spec", "template", "spec")
        for reference, own in read_variables(spec, RUNTIME_IMAGE_VARIABLE, IMAGE_VARIABLE):
            if reference:
                try:
                    return Delivery(RuntimeImage(reference), own)
                except ValueError:  # the injector does not start with it
                    continue
    return Delivery()


def check_delivery(delivery: Delivery) -> Finding:
    """Say what pods mount."""
    if delivery.image is None:
        return Finding("pods mount a copy of the chart's ConfigMap, in their namespace")
    image = delivery.image.reference
    return Finding(f"pods mount image {image}; copies of the ConfigMap: none needed")


def check_nodes(nodes: Iterable[Object]) -> Iterator[Finding]:
    """Check that the nodes can mount images; report problems by version."""
    problems: dict[str, list[str]] = defaultdict(list)
    healthy = 0
    for node in nodes:
        info = get_mapping(node, "status", "nodeInfo")
        if info.get("operatingSystem") == "windows":  # where no actor can run
            continue
        problem = _find_problem(info)
        if problem:
            problems[problem].append(str(get_mapping(node, "metadata").get("name")))
        else:
            healthy += 1
    for problem, names in sorted(problems.items()):
        yield Finding(f"nodes with {problem}, where actors do not start: {join(names)}", _FIX)
    if not problems:
        yield Finding(f"nodes that can mount images: {healthy}")


def _find_problem(info: Object) -> str:
    """What keeps a node from mounting images; empty if nothing does."""
    kubelet = str(info.get("kubeletVersion") or "unknown")
    name, _, version = str(info.get("containerRuntimeVersion") or "unknown").partition("://")
    least = _MIN_RUNTIMES.get(name)
    if least is None or _parse(version) < least:
        return f"container runtime {name} {version}".rstrip()
    return "" if _parse(kubelet) >= _MIN_KUBELET else f"kubelet {kubelet}"


def _parse(version: str) -> tuple[int, ...]:
    """Major and minor version; (0,) for another text."""
    match = re.match(r"v?(\d{1,9})\.(\d{1,9})", version, re.ASCII)
    return tuple(map(int, match.groups())) if match else (0,)
