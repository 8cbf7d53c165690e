"""Declare the port of the actor's metrics, so that a PodMonitor finds it."""

from asya_injector.annotations.settings import Settings
from asya_injector.annotations.table import PREFIX
from asya_injector.errors import InjectionError, Reason, quote
from asya_injector.kube_objects import (
    Object,
    all_containers,
    find_by_name,
    get_items,
    get_mapping,
    get_name,
)
from asya_injector.mutation.injection_record import METRICS_PORT, is_metrics_port


def declare_metrics_port(pod: Object, target: Object, value: str) -> list[str]:
    """Add the port to the target, unless it is 0 or unknown; returns warnings.

    value: the setting that applies in the target, see `find_value`.
    """
    if value in ("", "0"):
        return []
    if get_mapping(pod, "spec").get("hostNetwork") is True:
        return [
            f"the port {value} of the metrics is not declared, because the pod uses the network "
            "of its node: only one such pod of a node can serve it, and no PodMonitor finds it"
        ]
    number = int(value)
    present = find_by_name(get_items(target, "ports"), METRICS_PORT)
    if present is not None and is_metrics_port(present) and present["containerPort"] == number:
        return []
    for container in _find_lasting(pod):
        for port in get_items(container, "ports"):
            is_named = get_name(port) == METRICS_PORT
            is_taken = port.get("containerPort") == number and port.get("protocol") in (None, "TCP")
            if is_named or is_taken:
                raise _conflict(container, port, number, is_named=is_named)
    target["ports"] = [
        *get_items(target, "ports"),
        {"name": METRICS_PORT, "containerPort": number, "protocol": "TCP"},
    ]
    return []


def find_value(settings: Settings, own: dict[str, str]) -> str:
    """The port that the target's env sets, else the setting; empty if it is unknown."""
    return own.get("metrics-port", settings["metrics-port"])


def _find_lasting(pod: Object) -> list[Object]:
    """The containers that run while the pod serves; they share one network."""
    containers = get_items(get_mapping(pod, "spec"), "containers")
    native = [item for item in all_containers(pod) if item.get("restartPolicy") == "Always"]
    return [*containers, *(item for item in native if item not in containers)]


def _conflict(container: Object, port: Object, number: int, *, is_named: bool) -> InjectionError:
    name, what = get_name(port), quote(get_name(container))
    if is_named:
        problem = f"container {what} has another port named {quote(name)}"
        fix = "rename that port, or remove it: the injector adds this port"
    else:
        named = f" as {quote(name)}" if name else ""
        problem = f"container {what} has the port {number} already{named}"
        fix = f"choose another port, or name it {quote(METRICS_PORT)} if it is that of the actor"
    return InjectionError(PREFIX + "metrics-port", problem, fix=fix, reason=Reason.PORT_CONFLICT)
