"""The way back: the pod as it was before it became an actor."""

from __future__ import annotations

from asya_injector.annotations.table import INHERITED, INJECTED
from asya_injector.errors import InjectionError, Reason
from asya_injector.kube_objects import Object, get_annotations, get_template, replace_template
from asya_injector.mutation.ownership import InjectionRecord, remove_injection, remove_key


def uninject(pod: Object) -> Object:
    """The original of an injected pod; one that was not injected comes back as it is.

    pod: a Pod or a pod template as plain data; it is not changed, and shares what is the same with
    the result. Taken out is what the mark `asya.sh/injected` lists and nobody has changed since;
    all else, `asya.sh/` keys that a user wrote included, stays.
    What cannot be told: whether a list, mapping or probe that is gone was missing, null or empty in
    the original (it is missing in the result); and which of two equal things in one place was the
    user's.
    Raises Refusal for a mark that the injector did not write, and what is no pod at all.
    """
    annotations = get_annotations(pod)
    if INJECTED in annotations:
        mark = InjectionRecord.read(annotations)
        if mark is None:
            raise InjectionError(
                INJECTED,
                "is not what the injector wrote, so what it added is not known",
                fix="remove it and, by hand, what it stood for",
                reason=Reason.ANNOTATION_INVALID,
            )
        pod = remove_injection(pod, mark)
    return remove_key(pod, "annotations", INHERITED)


def uninject_workload(workload: Object) -> Object:
    """A workload with the original of its pod template; the rules are those of `uninject`."""
    get_annotations(workload)  # refuses what is no object
    template = get_template(workload)
    original = uninject(template)
    return workload if original is template else replace_template(workload, original)
