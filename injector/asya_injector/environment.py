"""What the runtime is told: `ASYA_*` variables, put before the user's and never over them."""

from __future__ import annotations

from asya_injector.annotations import BY_NAME, ENV, Annotation
from asya_injector.pods import Object, name_of
from asya_injector.policy import Wishes
from asya_injector.refusal import Reason, Refusal, quoted

# Only the containers that mount our emptyDir can reach the socket in it, whatever their user ids.
SHARED_SOCKET_MODE = {"name": "ASYA_SOCKET_MODE", "value": "0666"}


def socket_path(model: Object, wishes: Wishes) -> str:
    """Where the socket will be: the container's own variable rules, so that mounts follow it."""
    return _literal(model, BY_NAME["socket-path"], wishes) or wishes["socket-path"]


def tell_runtime(model: Object, wishes: Wishes, *, path: str, shared: bool) -> None:
    """Give the model's container its settings.

    path: the socket's; shared: whether its directory is the emptyDir of ours.
    """
    ours = []
    for entry in ENV:
        if _literal(model, entry, wishes) is not None:
            continue
        value = path if entry.name == "socket-path" else wishes[entry.name]
        # What nobody decided stays unsaid: explicit env would beat the image's ENV and envFrom.
        if entry.name in wishes.annotated or entry.name == "socket-path" or value != entry.default:
            ours.append({"name": entry.env, "value": value})
    if shared:
        ours.append(dict(SHARED_SOCKET_MODE))
    _prepend(model, ours)


def tell_sidecar(sidecar: Object, *, path: str) -> None:
    """Let a sidecar know where the socket is."""
    _prepend(sidecar, [{"name": BY_NAME["socket-path"].env, "value": path}])


def _literal(model: Object, entry: Annotation, wishes: Wishes) -> str | None:
    """The canonical value that the user's own variable gives; None where there is no such variable.

    Empty where the value cannot be seen and need not be. Raises Refusal where it must be seen, or
    where it differs from the annotation: two masters would leave the user guessing which one rules.
    """
    present = [item for item in model.get("env") or [] if item.get("name") == entry.env]
    if not present:
        return None
    last = present[-1]  # as the kubelet does
    annotated = wishes.annotated.get(entry.name)
    where = f"env {entry.env} of container {quoted(name_of(model))}"
    if last.get("valueFrom"):
        if annotated is None and entry.name != "socket-path":
            return ""
        raise Refusal(
            where,
            "comes from valueFrom, so the injector cannot see it",
            fix=f"say it by {entry.key} alone",
            reason=Reason.ENV_CONFLICT,
        )
    literal = str(last.get("value") or "")
    try:
        canonical = entry.parse(literal) if literal else entry.default or ""
    except ValueError as error:
        raise Refusal(
            where,
            f"{quoted(literal)} is not valid",
            fix=f"must be {error}",
            reason=Reason.ENV_CONFLICT,
        ) from None
    if annotated is not None and canonical != annotated:
        raise Refusal(
            where,
            f"says {quoted(literal)}, but {entry.key} says {quoted(annotated)}",
            fix="remove one of the two",
            reason=Reason.ENV_CONFLICT,
        )
    return canonical


def _prepend(container: Object, ours: list[Object]) -> None:
    present = container.get("env") or []
    names = {item.get("name") for item in present}
    added = [item for item in ours if item["name"] not in names]
    if added:
        container["env"] = added + present
