"""The settings of injectors, from the variables of their containers. This module does no I/O."""

from collections.abc import Iterator

from asya_injector.kube_objects import Object, find_by_name, get_in


def read_variables(spec: Object, *names: str) -> Iterator[tuple[str, ...]]:
    """The values of some variables, for each container of a pod's spec; empty where unset."""
    for container in get_in(spec).get("containers") or []:
        variables = container.get("env") or []
        yield tuple(str((find_by_name(variables, name) or {}).get("value") or "") for name in names)
