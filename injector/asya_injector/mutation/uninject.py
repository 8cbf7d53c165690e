"""Undo an injection: remove what its record lists."""

from collections.abc import Collection, Mapping
from typing import Any

from asya_injector.annotations.table import INHERITED, INJECTED
from asya_injector.errors import InjectionError, Reason
from asya_injector.kube_objects import (
    Object,
    all_containers,
    get_annotations,
    get_items,
    get_mapping,
    get_name,
    get_strings,
    get_template,
    replace_template,
    set_or_remove,
    shallow_copy,
)
from asya_injector.mutation.injection_record import (
    InjectionRecord,
    find_added_volumes,
    find_additions,
    identify_command,
    identify_mount,
    identify_port,
    identify_variable,
    restore_empty_fields,
)
from asya_injector.mutation.sidecar_additions import remove_sidecar
from asya_injector.runtime_files import RUNTIME_HASH_LABEL
from asya_injector.startup.hooks import HOOKS, restore_hook
from asya_injector.startup.wrapper import is_wrapped, unwrap


def uninject(pod: Object) -> Object:
    """The pod as it was before its injection; the pod itself if it was not injected.

    pod: a Pod or a pod template. It is not changed; the result shares its unchanged parts.
    Removes what the record lists, unless it was edited since. Of two equal items, the record does
    not tell which one was the user's. Raises InjectionError.
    """
    annotations = get_annotations(pod)
    empty: Mapping[str, Any] = {}
    if INJECTED in annotations:
        record = InjectionRecord.parse(annotations)
        if record is None:
            raise InjectionError(
                INJECTED,
                "was not written by the injector, so its additions are unknown",
                fix="remove it, and remove the additions by hand",
                reason=Reason.ANNOTATION_INVALID,
            )
        empty = record.empty
        pod = remove_injection(pod, record)
    return restore_empty_fields(_remove_key(pod, "annotations", INHERITED), empty)


def uninject_object(item: Object) -> Object:
    """A Pod, or a workload with its pod template, as it was before its injection."""
    get_annotations(item)  # rejects what is not an object
    template = get_template(item)
    original = uninject(template)
    return item if original is template else replace_template(item, original)


def remove_injection(pod: Object, record: InjectionRecord) -> Object:
    """A copy of the pod without the additions that the record lists, and without the record."""
    pod = shallow_copy(pod)
    for container in all_containers(pod):
        _remove_additions(container, record.added.get(get_name(container), ()))
    remove_sidecar(pod, record.sidecar)
    removed = set(record.volumes).intersection(find_added_volumes(pod))
    if removed:
        spec = pod["spec"]
        kept = [item for item in get_items(spec, "volumes") if get_name(item) not in removed]
        set_or_remove(spec, "volumes", kept)
    return _remove_key(_remove_key(pod, "annotations", INJECTED), "labels", RUNTIME_HASH_LABEL)


def _remove_additions(container: Object, listed: Collection[str]) -> None:
    """Remove the listed additions; a field that is empty then is removed too."""
    present = set(find_additions(container, is_target=True)).intersection(listed)
    if not present:
        return
    for name, identify in (
        ("env", identify_variable),
        ("volumeMounts", identify_mount),
        ("ports", identify_port),
    ):
        items = get_items(container, name)
        kept = [item for item in items if identify(item) not in present]
        if kept != items:
            set_or_remove(container, name, kept)
    if "wrapper" in present:
        for name in ("command", "args"):
            words = get_strings(container, name)
            if is_wrapped(words):
                set_or_remove(container, name, unwrap(words))
    if identify_command(get_strings(container, "command")) in present:
        del container["command"]
    if "readinessProbe" in present:
        del container["readinessProbe"]
    if present.isdisjoint(HOOKS):
        return
    lifecycle = dict(get_mapping(container, "lifecycle"))
    for hook in present.intersection(HOOKS):
        set_or_remove(lifecycle, hook, restore_hook(get_mapping(lifecycle, hook)))
    set_or_remove(container, "lifecycle", lifecycle)


def _remove_key(node: Object, field: str, key: str) -> Object:
    """A copy of an object without one annotation or label; the object itself if it has none."""
    present = get_mapping(node, "metadata", field)
    if key not in present:
        return node
    metadata = dict(get_mapping(node, "metadata"))
    set_or_remove(metadata, field, {name: value for name, value in present.items() if name != key})
    node = dict(node)
    set_or_remove(node, "metadata", metadata)
    return node
