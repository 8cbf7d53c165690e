"""Inject the runtime into a pod. No I/O, no kopf, no Kubernetes API.

Each change follows from the pod as it is, so a second call changes nothing, and a call after
another webhook handles only what that one has added. A pod copied from an injected one, with other
settings, is first un-injected by its record.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from asya_injector.annotations.parse import (
    find_deprecated,
    is_switched_off,
    merge,
    parse_values,
)
from asya_injector.annotations.settings import ClusterDefaults, Decision, Settings
from asya_injector.annotations.table import BY_NAME, INJECTED
from asya_injector.kube_objects import (
    Object,
    all_containers,
    find_by_name,
    get_annotations,
    get_mapping,
    get_name,
    shallow_copy,
)
from asya_injector.mutation import containers, environment, ports, sidecar, volumes
from asya_injector.mutation.injection_record import (
    Additions,
    InjectionRecord,
    find_added_volumes,
    find_additions,
    find_empty_fields,
    identify_variable,
    restore_empty_fields,
    select_difference,
)
from asya_injector.mutation.uninject import remove_injection
from asya_injector.runtime_files import RUNTIME_HASH_LABEL, RUNTIME_VOLUME, SOCKET_VOLUME
from asya_injector.startup import modes, probe, programs

# The API server's copy of a static pod, which the kubelet runs from a file.
MIRROR = "kubernetes.io/config.mirror"


@dataclass(frozen=True, kw_only=True)
class Injection:
    """An injected pod, and what was decided for it.

    container, mode, socket_volume, sidecar: see `containers.find_target`, `modes.choose_mode`,
        `volumes.mount_socket` and `sidecar.add_sidecar`.
    settings: by annotations and cluster defaults.
    overrides: values of settings, by name, that the container's env or command sets instead.
    """

    pod: Object
    container: Decision
    mode: Decision
    socket_volume: Decision
    sidecar: Decision | None
    settings: Settings
    overrides: Mapping[str, str]
    warnings: tuple[str, ...]


def inject(
    pod: Object, defaults: ClusterDefaults, *, original: Object | None = None
) -> Injection | None:
    """Make a pod an actor; returns None if its annotations do not ask for it.

    pod: a Pod or a pod template. It is not changed; the result shares its unchanged parts.
    original: the template before the workload's annotations were propagated to it.
    Raises InjectionError.
    """
    original = pod if original is None else original
    annotations = get_annotations(pod)
    merged = merge(annotations)
    if not merged or is_switched_off(merged) or MIRROR in annotations:
        return None
    inherited = merged.keys() - annotations.keys()
    values = parse_values(merged, defaults.declared)
    parameters = {key: merged[key] for key in sorted(defaults.declared.intersection(merged))}
    settings = Settings(values, defaults, inherited, parameters)
    record = InjectionRecord.parse(annotations)
    injected = containers.find_injected(pod, record)
    if record and record.asked == settings.digest:
        result = _inject(pod, settings, injected, record, original=original)
        if (result.container.value, result.mode.value) == (record.container, record.mode):
            return result
    if record is None:
        return _inject(pod, settings, injected, None, original=original)
    # A copy of a pod with other settings, whose additions would be in the way.
    plain = remove_injection(pod, record)
    original = restore_empty_fields(remove_injection(original, record), record.empty)
    old = find_by_name(all_containers(pod), record.container) or {}
    old_interpreter = programs.check_recorded(old, record.python)
    return _inject(
        plain, settings, injected, None, original=original, old_interpreter=old_interpreter
    )


def _inject(
    given: Object,
    settings: Settings,
    injected: str,
    record: InjectionRecord | None,
    *,
    original: Object,
    old_interpreter: str = "",
) -> Injection:
    """Add what is missing.

    record: of an earlier injection with the same settings. old_interpreter: of the container that
    an injection with other settings made the actor.
    """
    pod = shallow_copy(given)
    target, why = containers.find_target(pod, settings, injected)
    listed: Additions = record.added if record else {}
    added = sidecar.add_sidecar(pod, target, settings, record.sidecar if record else {})
    given = shallow_copy(pod) if added.container else given  # before it gets the socket
    sidecars = containers.find_sidecars(pod, target, settings, added.container)
    containers.reject_windows(pod)
    own = environment.read_settings(target, settings)
    path = own.get("socket-path") or settings["socket-path"]
    if record:
        old_interpreter = programs.check_recorded(target, record.python)
    is_old = get_name(target) == injected
    interpreter = programs.find_interpreter(target) or (old_interpreter if is_old else "")
    python = settings.annotated.get("python") or interpreter or settings["python"]
    is_added = record is not None and RUNTIME_VOLUME in record.volumes
    volumes.mount_runtime(pod, target, settings, python, is_added=is_added)
    socket_volume = volumes.mount_socket(
        pod, target, sidecars, path, handler=settings["handler"], python=python
    )
    is_shared = socket_volume.value == SOCKET_VOLUME
    environment.set_runtime_env(target, settings, own=own, path=path, is_shared=is_shared)
    for each in sidecars:
        environment.set_sidecar_env(each, path=path)
    mode = modes.choose_mode(target, settings, record.mode if record else "")
    warnings = [*find_deprecated(merge(get_annotations(given))), *added.warnings]
    warnings += modes.configure_startup(pod, target, settings, mode=mode.value, python=python)
    warnings += probe.add_probe(target, settings, python)
    warnings += ports.declare_metrics_port(pod, target, ports.find_value(settings, own))
    new_record = InjectionRecord(
        container=get_name(target),
        mode=mode.value,
        runtime=settings.defaults.runtime_hash,
        asked=settings.digest,
        added=_find_new_additions(given, pod, target, sidecars, listed),
        volumes=_select_new(
            find_added_volumes(given), find_added_volumes(pod), record.volumes if record else ()
        ),
        python="" if mode.value == "runtime" else interpreter,
        sidecar=added.record,
    )
    _add_record(pod, new_record)
    empty = {**find_empty_fields(original, pod), **(record.empty if record else {})}
    if empty:
        _add_record(pod, replace(new_record, empty=empty))
    return Injection(
        pod=pod,
        container=Decision(get_name(target), why),
        mode=mode,
        socket_volume=socket_volume,
        sidecar=added.decision,
        settings=settings,
        overrides=_find_overrides(own, interpreter, settings, listed.get(get_name(target), ())),
        warnings=tuple(warnings),
    )


def _add_record(pod: Object, record: InjectionRecord) -> None:
    metadata = get_mapping(pod, "metadata")
    annotations = {**get_mapping(metadata, "annotations"), INJECTED: record.serialize()}
    labels = {**get_mapping(metadata, "labels"), RUNTIME_HASH_LABEL: record.runtime}
    pod["metadata"] = {**metadata, "annotations": annotations, "labels": labels}


def _find_overrides(
    own: Mapping[str, str], interpreter: str, settings: Settings, listed: Sequence[str]
) -> dict[str, str]:
    """The values of the target's env and command that no annotation and no injection has set.

    listed: the target's additions, from the record of an earlier injection.
    """
    found = {
        name: value
        for name, value in own.items()
        if identify_variable({"name": BY_NAME[name].env, "value": value}) not in listed
    }
    if interpreter and not any(each.startswith("command ") for each in listed):
        found["python"] = interpreter
    return {name: value for name, value in found.items() if name not in settings.annotated}


def _find_new_additions(
    given: Object, pod: Object, target: Object, sidecars: list[Object], listed: Additions
) -> Additions:
    """The additions of this injection and of an earlier one, which the record lists."""
    added = {}
    changed = {id(each) for each in (target, *sidecars)}
    for before, after in zip(all_containers(given), all_containers(pod), strict=True):
        if id(after) not in changed:
            continue
        name, is_target = get_name(after), after is target
        known = listed.get(name, ())
        pair = before, after
        if not known:  # what was there before is not new
            pair = select_difference(before, after), select_difference(after, before)
        present, now = (find_additions(each, is_target=is_target) for each in pair)
        found = _select_new(present, now, known)
        if found:
            added[name] = found
    return added


def _select_new(before: Sequence[str], after: Sequence[str], known: Sequence[str]) -> list[str]:
    """What was not there before, or was added by an earlier injection."""
    present, added = set(before), set(known)
    return [each for each in after if each not in present or each in added]
