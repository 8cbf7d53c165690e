"""Add the sidecar of the cluster defaults to a pod."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from asya_injector.annotations.settings import Decision, Settings
from asya_injector.annotations.sidecar import SidecarTemplate
from asya_injector.annotations.table import BY_NAME, PREFIX
from asya_injector.annotations.variables import is_literal, parse_variables
from asya_injector.errors import InjectionError, Reason, quote
from asya_injector.kube_objects import (
    Object,
    all_containers,
    find_by_name,
    get_items,
    get_name,
    get_string,
)
from asya_injector.mutation.sidecar_additions import (
    build_record,
    contains,
    remove_sidecar,
    strip_volume,
)

_KEY = PREFIX + "sidecar"
_ENV_KEY = PREFIX + "sidecar-env"
_OPT_OUT = f'set {_KEY}: "false"'


@dataclass(frozen=True, kw_only=True)
class SidecarResult:
    """What was decided.

    container: the sidecar in the pod, which shares the socket; None if the pod has none.
    decision: its name, or `none`; None if the cluster defaults have no sidecar.
    record: for the injection record; empty if the sidecar is not an addition.
    """

    container: Object | None = None
    decision: Decision | None = None
    record: Object = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def add_sidecar(pod: Object, target: Object, settings: Settings, recorded: Object) -> SidecarResult:
    """Add the sidecar to a copy of a pod, unless it has one or is to have none.

    recorded: what an earlier injection with the same settings has added.
    """
    template = settings.defaults.sidecar
    if template is None:
        _reject_without_template(settings)
        return SidecarResult()
    reason = find_skip_reason(pod, target, settings, template)
    if reason:
        return _leave_out(settings, Decision("none", reason))
    present = find_by_name(all_containers(pod), template.name)
    if present is not None:
        _reject_unsuitable(pod, target, present)
        if recorded and recorded["container"]["name"] == template.name:
            return SidecarResult(
                container=present, decision=_decide_added(template), record=recorded
            )
        decision = Decision(template.name, "the pod has a container of this name")
        return SidecarResult(
            container=present, decision=decision, warnings=_find_ineffective(settings, decision)
        )
    remove_sidecar(pod, recorded)  # its volumes: somebody has removed the container
    container = _render(template, settings)
    spec = pod["spec"]
    _check_ports(spec, template)
    volumes = _add_volumes(spec, template)
    secrets = _add_pull_secrets(spec, template)
    if template.native:
        spec["initContainers"] = [*get_items(spec, "initContainers"), container]
    else:
        _check_restart_policy(spec)
        spec["containers"] = [*get_items(spec, "containers"), container]
    return SidecarResult(
        container=container,
        decision=_decide_added(template),
        record=build_record(template.digest, dict(container), volumes, secrets),
    )


def find_skip_reason(
    pod: Object, target: Object, settings: Settings, template: SidecarTemplate
) -> str:
    """Why a pod does not get the sidecar; empty if it does."""
    wish = settings.annotated.get("sidecar")
    if wish:
        return f"{_KEY} is false" if wish == "false" else ""
    names = list(filter(None, settings.annotated.get("sidecars", "").split(",")))
    if template.name in names:
        return ""
    for container in all_containers(pod):
        if container is not target and get_name(container) in names:
            return f"{PREFIX}sidecars names container {quote(get_name(container))}"
    return ""


def _decide_added(template: SidecarTemplate) -> Decision:
    kind = "a native sidecar" if template.native else "a container"
    return Decision(template.name, f"the cluster defaults add it as {kind}")


def _leave_out(settings: Settings, decision: Decision) -> SidecarResult:
    return SidecarResult(decision=decision, warnings=_find_ineffective(settings, decision))


def _find_ineffective(settings: Settings, decision: Decision) -> tuple[str, ...]:
    """Warnings about annotations of a sidecar that is not added."""
    keys = [*([_ENV_KEY] if settings.annotated.get("sidecar-env") else []), *settings.parameters]
    return tuple(f"{key}: has no effect, because {decision.reason}" for key in keys)


def _reject_without_template(settings: Settings) -> None:
    is_wanted = settings.annotated.get("sidecar") == "true"
    key = _KEY if is_wanted else _ENV_KEY
    if is_wanted or settings.annotated.get("sidecar-env"):
        raise InjectionError(
            key,
            "the cluster defaults have no sidecar",
            fix="set the chart's value sidecar.container, or remove the annotation",
            reason=Reason.SIDECAR_UNDEFINED,
        )


def _reject_unsuitable(pod: Object, target: Object, present: Object) -> None:
    """Reject a container with the sidecar's name that cannot be one."""
    what = ""
    if present is target:
        what = "is the container with the handler"
    elif (
        any(each is present for each in get_items(pod["spec"], "initContainers"))
        and present.get("restartPolicy") != "Always"
    ):
        what = "is an init container, which ends before the pod serves"
    if what:
        raise InjectionError(
            f"container {quote(get_name(present))}",
            f"has the name of the sidecar that the injector adds, but {what}",
            fix=f"rename it, or {_OPT_OUT}",
            reason=Reason.SIDECAR_NAME_CONFLICT,
        )


def _render(template: SidecarTemplate, settings: Settings) -> Object:
    """The container for a pod, without the socket.

    Its variables come first, so that those of the template can refer to them.
    """
    own = get_items(template.container, "env")
    values = _read_parameters(template, settings)
    extra = parse_variables(settings.annotated.get("sidecar-env", ""))
    declared = {each.env: each.key for each in template.declared.values()}
    names = {get_name(item) for item in own} | {str(BY_NAME["socket-path"].env)}
    for name in extra:
        if name in declared or name in names:
            fix = f"set it with {declared[name]}" if name in declared else "remove it"
            what = f"sets {name}, which the cluster defaults set"
            raise InjectionError(_ENV_KEY, what, fix=fix, reason=Reason.SIDECAR_ENV_CONFLICT)
    added = [
        {"name": name, "value": _escape(value)}
        for name, value in {**values, **extra}.items()
        if name not in names
    ]
    kept = [
        {"name": name, "value": _escape(values[name])}
        if (name := get_name(item)) in values
        else item
        for item in own
    ]
    container = {**template.container, **({"env": added + kept} if added or kept else {})}
    return container | ({"restartPolicy": "Always"} if template.native else {})


def _read_parameters(template: SidecarTemplate, settings: Settings) -> Mapping[str, str]:
    """The values of the declared annotations, by variable."""
    values = {}
    for key, declared in template.declared.items():
        value = settings.parameters.get(key, "")
        if declared.required and not value:
            raise InjectionError(
                key,
                f"is required: the sidecar {quote(template.name)} needs it",
                fix=f"set it, or {_OPT_OUT}",
                reason=Reason.ANNOTATION_MISSING,
            )
        if not is_literal(value):
            raise InjectionError(
                key,
                f"{quote(value)} is not valid",
                fix="must be text without null bytes",
                reason=Reason.ANNOTATION_INVALID,
            )
        if key in settings.parameters:
            values[declared.env] = value
    return values


def _escape(value: str) -> str:
    """The value in a form that the kubelet does not expand: `$$` stands for `$`."""
    return value.replace("$", "$$") if "$(" in value or "$$" in value else value


def _check_restart_policy(spec: Object) -> None:
    policy = get_string(spec, "restartPolicy") or "Always"
    if policy != "Always":
        raise InjectionError(
            "spec.restartPolicy",
            f"is {quote(policy)}, but with the sidecar as an ordinary container the pod never ends",
            fix=f"set the chart's value sidecar.native to true, or {_OPT_OUT}",
            reason=Reason.SIDECAR_RESTART_POLICY,
        )


def _add_volumes(spec: Object, template: SidecarTemplate) -> list[Object]:
    """Add the volumes of the template; returns those that the pod did not have."""
    present = {get_name(volume): volume for volume in get_items(spec, "volumes")}
    added = []
    for volume in template.volumes:
        name = get_name(volume)
        if name not in present:
            added.append(volume)
        elif not contains(present[name], strip_volume(volume)):
            raise InjectionError(
                f"volume {quote(name)}",
                f"the sidecar {quote(template.name)} needs other content in a volume of this name",
                fix=f"rename it, or {_OPT_OUT}",
                reason=Reason.SIDECAR_VOLUME_CONFLICT,
            )
    if added:
        spec["volumes"] = [*get_items(spec, "volumes"), *added]
    return added


def _add_pull_secrets(spec: Object, template: SidecarTemplate) -> list[str]:
    """Add the pull secrets of the template; returns those that the pod did not have."""
    present = get_items(spec, "imagePullSecrets")
    names = set(map(get_name, present))
    added = [name for name in template.pull_secrets if name not in names]
    if added:
        spec["imagePullSecrets"] = [*present, *({"name": name} for name in added)]
    return added


def _check_ports(spec: Object, template: SidecarTemplate) -> None:
    """Reject a pod with a port of the template; the containers of a pod share one network."""
    lasting = get_items(spec, "containers") + [
        item for item in get_items(spec, "initContainers") if item.get("restartPolicy") == "Always"
    ]
    for needed in get_items(template.container, "ports"):
        for container in lasting:
            for port in get_items(container, "ports"):
                _check_port(template, needed, container, port)


def _check_port(template: SidecarTemplate, needed: Object, container: Object, port: Object) -> None:
    name = get_name(needed)
    protocols = {get_string(each, "protocol") or "TCP" for each in (needed, port)}
    shown = f"port named {quote(name)}" if name and get_name(port) == name else ""
    for key, words in (("hostPort", "host port"), ("containerPort", "port")):
        number = needed.get(key)
        if number and number == port.get(key) and len(protocols) == 1:
            shown = f"{words} {number}"
    if shown:
        raise InjectionError(
            f"container {quote(get_name(container))}",
            f"has a {shown}, which the sidecar {quote(template.name)} needs",
            fix=f"choose another port, or {_OPT_OUT}",
            reason=Reason.SIDECAR_PORT_CONFLICT,
        )
