"""What the runtime is told: `ASYA_*` variables, put before the user's and never over them."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping

from asya_injector.annotations.settings import Settings
from asya_injector.annotations.table import BY_NAME, ENV, Annotation
from asya_injector.errors import InjectionError, Reason, quote
from asya_injector.kube_objects import Object, get_items, get_name, get_string
from asya_injector.mutation.ownership import SHARED_SOCKET_MODE

_SOCKET_PATH = BY_NAME["socket-path"]


def resolve_socket_path(model: Object, wishes: Settings) -> str:
    """Where the socket will be: the container's own variable rules, so that mounts follow it."""
    return _literal(model, _variables(model), _SOCKET_PATH, wishes) or wishes["socket-path"]


def resolve_sidecar_socket_path(sidecar: Object, path: str) -> str:
    """Where a sidecar looks for the socket: in another directory if its own variable says so."""
    last = _variables(sidecar).get(_SOCKET_PATH.env)
    if last is None:
        return path
    where = _where(sidecar, _SOCKET_PATH)
    if last.get("valueFrom") is not None:
        raise _unseen(where, _SOCKET_PATH)
    literal = get_string(last, "value")
    try:
        theirs = _SOCKET_PATH.parse(literal)
    except ValueError:
        theirs = ""
    if posixpath.basename(theirs) != posixpath.basename(path):
        raise InjectionError(
            where,
            f"says {quote(literal)}, but the socket is {quote(path)}",
            fix=f"remove it, or give it the path in the sidecar, ending in "
            f"{quote(posixpath.basename(path))}",
            reason=Reason.ENV_CONFLICT,
        )
    return theirs


def set_runtime_env(model: Object, wishes: Settings, *, path: str, shared: bool) -> None:
    """Give the model's container its settings.

    path: the socket's; shared: whether its directory is the emptyDir of ours.
    """
    ours = []
    present = _variables(model)
    for entry in ENV:
        if _literal(model, present, entry, wishes) is not None:
            continue
        value = path if entry is _SOCKET_PATH else wishes[entry.name]
        # What nobody decided stays unsaid: explicit env would beat the image's ENV and envFrom.
        if entry.name in wishes.annotated or entry is _SOCKET_PATH or value != entry.default:
            ours.append({"name": entry.env, "value": value})
    if shared:
        ours.append(dict(SHARED_SOCKET_MODE))
    _prepend(model, ours)


def set_sidecar_env(sidecar: Object, *, path: str) -> None:
    """Let a sidecar know where the socket is."""
    _prepend(sidecar, [{"name": _SOCKET_PATH.env, "value": path}])


def _literal(
    model: Object, present: Mapping[str | None, Object], entry: Annotation, wishes: Settings
) -> str | None:
    """The canonical value that the user's own variable gives; None where there is no such variable.

    Empty where the value cannot be seen and need not be. Raises Refusal where it must be seen, or
    where it differs from the annotation: two masters would leave the user guessing which one rules.
    """
    last = present.get(entry.env)
    if last is None:
        return None
    annotated = wishes.annotated.get(entry.name)
    where = _where(model, entry)
    if last.get("valueFrom") is not None:
        if annotated is None and entry is not _SOCKET_PATH:
            return ""
        raise _unseen(where, entry)
    literal = get_string(last, "value")
    try:
        canonical = entry.parse(literal) if literal else entry.default or ""
    except ValueError as error:
        raise InjectionError(
            where,
            f"{quote(literal)} is not valid",
            fix=f"must be {error}",
            reason=Reason.ENV_CONFLICT,
        ) from None
    if annotated is not None and canonical != annotated:
        raise InjectionError(
            where,
            f"says {quote(literal)}, but {entry.key} says {quote(annotated)}",
            fix="remove one of the two",
            reason=Reason.ENV_CONFLICT,
        )
    return canonical


def _variables(container: Object) -> dict[str | None, Object]:
    """The variables by name; of several with one name the last, as for the kubelet."""
    return {get_name(item): item for item in get_items(container, "env")}


def _where(container: Object, entry: Annotation) -> str:
    return f"env {entry.env} of container {quote(get_name(container))}"


def _unseen(where: str, entry: Annotation) -> InjectionError:
    return InjectionError(
        where,
        "comes from valueFrom, so the injector cannot see it",
        fix=f"say it by {entry.key} alone",
        reason=Reason.ENV_CONFLICT,
    )


def _prepend(container: Object, ours: list[Object]) -> None:
    present = get_items(container, "env")
    names = _variables(container)
    added = [item for item in ours if item["name"] not in names]
    if added:
        container["env"] = added + present
