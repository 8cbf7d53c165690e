"""The environment: the runtime's `ASYA_*` variables go before the user's and never replace them."""

import posixpath

from asya_injector.annotations.settings import Settings
from asya_injector.annotations.table import BY_NAME, ENV, Annotation
from asya_injector.errors import InjectionError, Reason, quote
from asya_injector.kube_objects import Object, get_items, get_name, get_string
from asya_injector.mutation.injection_record import SHARED_SOCKET_MODE

_SOCKET_PATH = BY_NAME["socket-path"]


def read_settings(target: Object, settings: Settings) -> dict[str, str]:
    """The canonical values of settings that the user's own variables set in the target.

    A value is empty if it comes from `valueFrom`. Raises InjectionError where the injector needs
    that value, and where a variable contradicts an annotation.
    """
    variables = _get_variables(target)
    return {
        entry.name: _read_value(target, variables[entry.env], entry, settings)
        for entry in ENV
        if entry.env in variables
    }


def resolve_sidecar_socket_path(sidecar: Object, path: str) -> str:
    """The path of the socket in a sidecar, whose own variable may name another directory."""
    variable = _get_variables(sidecar).get(_SOCKET_PATH.env)
    if variable is None:
        return path
    where = _describe(sidecar, _SOCKET_PATH)
    if variable.get("valueFrom") is not None:
        raise _unknown_value(where, _SOCKET_PATH)
    literal = get_string(variable, "value")
    try:
        own_path = _SOCKET_PATH.parse(literal)
    except ValueError as error:
        raise _invalid_value(where, literal, error) from None
    file = posixpath.basename(path)
    if posixpath.basename(own_path) != file:
        raise InjectionError(
            where,
            f"is {quote(literal)}, but the socket is {quote(path)}",
            fix=f"remove it, or set the path in the sidecar, ending in {quote(file)}",
            reason=Reason.ENV_CONFLICT,
        )
    return own_path


def set_runtime_env(
    target: Object, settings: Settings, *, own: dict[str, str], path: str, is_shared: bool
) -> None:
    """Set the runtime's variables in the target.

    own: the result of `read_settings`. path: of the socket. is_shared: the socket is in the
    injector's emptyDir.
    """
    # Do not emit defaults: env in the pod would override the image's ENV and envFrom.
    emitted = {*settings.annotated, *settings.defaults.changed, _SOCKET_PATH.name}.difference(own)
    values = {name: settings[name] for name in emitted} | {_SOCKET_PATH.name: path}
    added = [
        {"name": entry.env, "value": values[entry.name]} for entry in ENV if entry.name in emitted
    ]
    if is_shared:
        added.append(dict(SHARED_SOCKET_MODE))
    _prepend(target, added)


def set_sidecar_env(sidecar: Object, *, path: str) -> None:
    """Set the path of the socket in a sidecar."""
    _prepend(sidecar, [{"name": _SOCKET_PATH.env, "value": path}])


def _read_value(target: Object, variable: Object, entry: Annotation, settings: Settings) -> str:
    annotated = settings.annotated.get(entry.name)
    where = _describe(target, entry)
    if variable.get("valueFrom") is not None:
        if annotated is None and entry is not _SOCKET_PATH:
            return ""
        raise _unknown_value(where, entry)
    literal = get_string(variable, "value")
    try:
        # The runtime takes an empty variable for the default.
        value = entry.parse(literal) if literal else entry.default or ""
    except ValueError as error:
        raise _invalid_value(where, literal, error) from None
    if annotated is not None and value != annotated:
        raise InjectionError(
            where,
            f"is {quote(literal)}, but {entry.key} is {quote(annotated)}",
            fix="remove one of the two",
            reason=Reason.ENV_CONFLICT,
        )
    return value


def _get_variables(container: Object) -> dict[str | None, Object]:
    """The variables by name; the last of the same name, as for the kubelet."""
    return {get_name(item): item for item in get_items(container, "env")}


def _describe(container: Object, entry: Annotation) -> str:
    return f"env {entry.env} of container {quote(get_name(container))}"


def _invalid_value(where: str, literal: str, error: ValueError) -> InjectionError:
    return InjectionError(
        where,
        f"{quote(literal)} is not valid",
        fix=f"must be {error}",
        reason=Reason.ENV_CONFLICT,
    )


def _unknown_value(where: str, entry: Annotation) -> InjectionError:
    return InjectionError(
        where,
        "is set with valueFrom, so the injector cannot read it",
        fix=f"set it with the {entry.key} annotation instead",
        reason=Reason.ENV_CONFLICT,
    )


def _prepend(container: Object, variables: list[Object]) -> None:
    present = _get_variables(container)
    added = [item for item in variables if item["name"] not in present]
    if added:
        container["env"] = added + get_items(container, "env")
