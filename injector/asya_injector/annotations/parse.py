"""Read and validate the annotations of a pod."""

import json
import re
from collections.abc import Collection, Mapping

from asya_injector.annotations.formats import MAX_ANNOTATIONS
from asya_injector.annotations.table import (
    BY_KEY,
    BY_NAME,
    INHERITED,
    INTERNAL,
    PREFIX,
)
from asya_injector.errors import InjectionError, Reason, quote, suggest


def select_own(annotations: Mapping[str, str]) -> dict[str, str]:
    """The `asya.sh/` annotations that a user wrote."""
    return {
        key: value
        for key, value in annotations.items()
        if key.startswith(PREFIX) and key not in INTERNAL
    }


def merge(annotations: Mapping[str, str]) -> dict[str, str]:
    """The `asya.sh/` annotations that apply to a pod: its own override the inherited ones."""
    return parse_inherited(annotations) | select_own(annotations)


def parse_inherited(annotations: Mapping[str, str]) -> dict[str, str]:
    """The workload's annotations, from `asya.sh/inherited`."""
    text = annotations.get(INHERITED)
    if text is None:
        return {}
    try:
        value = json.loads(text) if len(text) <= MAX_ANNOTATIONS else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or not all(isinstance(word, str) for word in value.values()):
        raise InjectionError(
            INHERITED,
            "was not written by the injector",
            fix="remove it and annotate the workload instead",
            reason=Reason.ANNOTATION_INVALID,
        )
    return select_own(value)


def is_switched_off(merged: Mapping[str, str]) -> bool:
    """Whether `asya.sh/inject` is false."""
    return parse_value("inject", merged.get(PREFIX + "inject", "true")) == "false"


def parse_value(name: str, value: str) -> str:
    """The canonical value of an annotation; raises InjectionError."""
    entry = BY_NAME[name]
    try:
        return entry.parse(value)
    except ValueError as error:
        raise invalid_value(name, value, str(error)) from None


def invalid_value(name: str, value: str, rule: str) -> InjectionError:
    """The error for a value of an annotation. rule: the valid values, after "must be"."""
    return InjectionError(
        BY_NAME[name].key,
        f"{quote(value)} is not valid",
        fix=f"must be {rule}",
        reason=Reason.ANNOTATION_INVALID,
    )


def find_deprecated(merged: Mapping[str, str]) -> list[str]:
    """Warnings about annotations that a later version removes."""
    found = [(key, BY_KEY[key].deprecated) for key in sorted(merged.keys() & BY_KEY.keys())]
    return [f"{key}: is deprecated; {instead}" for key, instead in found if instead]


def parse_values(
    merged: Mapping[str, str], declared: Collection[str] = frozenset()
) -> dict[str, str]:
    """The canonical values of annotations of the table, by name.

    declared: keys that are known too. Raises InjectionError for an unknown key, an invalid value,
    and where there is no handler.
    """
    for key in merged:
        if key not in BY_KEY and key not in declared:
            shown = key if re.fullmatch(r"asya\.sh/[A-Za-z0-9._-]{1,63}", key) else quote(key)
            known = [*BY_KEY, *declared]
            fallback = (
                f"known annotations are {', '.join(known)}; others can be declared in the chart's "
                "value sidecar.annotations"
            )
            raise InjectionError(
                shown,
                "unknown annotation",
                fix=suggest(key, known, fallback=fallback, prefix=PREFIX),
                reason=Reason.ANNOTATION_UNKNOWN,
            )
    if PREFIX + "handler" not in merged:
        raise InjectionError(
            PREFIX + "handler",
            f"is required when {' or '.join(sorted(merged))} is set",
            fix="add it as module.path.function, or remove the other annotations",
            reason=Reason.HANDLER_MISSING,
        )
    names = {key: BY_KEY[key].name for key in merged if key in BY_KEY}
    return {name: parse_value(name, merged[key]) for key, name in names.items()}
