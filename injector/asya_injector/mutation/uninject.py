"""Undo an injection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from asya_injector.annotations.table import INHERITED, INJECTED
from asya_injector.errors import InjectionError, Reason
from asya_injector.kube_objects import Object, get_annotations, get_template, replace_template
from asya_injector.mutation.injection_record import (
    InjectionRecord,
    remove_injection,
    remove_key,
    restore_empty_fields,
)


def uninject(pod: Object) -> Object:
    """The pod as it was before its injection; the pod itself if it was not injected.

    pod: a Pod or a pod template. It is not changed; the result shares its unchanged parts.
    Removes what the record lists and nobody has edited since. Lost is which of two equal items was
    the user's. Raises InjectionError.
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
    return restore_empty_fields(remove_key(pod, "annotations", INHERITED), empty)


def uninject_object(item: Object) -> Object:
    """A Pod, or a workload with its pod template, as it was before its injection."""
    get_annotations(item)  # rejects what is not an object
    template = get_template(item)
    original = uninject(template)
    return item if original is template else replace_template(item, original)
