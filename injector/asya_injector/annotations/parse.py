"""What a user can say: one table of annotations, and how a pod's annotations are read by it.

The table is the one place of these facts: validation, the container's environment, the chart's
values and the documentation all come from it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from asya_injector.annotations.table import BY_KEY, BY_NAME, INHERITED, PREFIX, WRITTEN_BY_US
from asya_injector.errors import InjectionError, Reason, quote, suggest


def select_own(annotations: Mapping[str, str]) -> dict[str, str]:
    """The `asya.sh/` annotations that a user wrote on this object."""
    return {
        key: value
        for key, value in annotations.items()
        if key.startswith(PREFIX) and key not in WRITTEN_BY_US
    }


def merge(annotations: Mapping[str, str]) -> dict[str, str]:
    """What a pod is asked for: what its workload handed down, under what it says itself."""
    return parse_inherited(annotations) | select_own(annotations)


def parse_inherited(annotations: Mapping[str, str]) -> dict[str, str]:
    """What the workload handed down in `asya.sh/inherited`."""
    text = annotations.get(INHERITED)
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or not all(isinstance(word, str) for word in value.values()):
        raise InjectionError(
            INHERITED,
            "is not what the injector wrote",
            fix="remove it; it follows the annotations of the workload",
            reason=Reason.ANNOTATION_INVALID,
        )
    return select_own(value)


def is_switched_off(asked: Mapping[str, str]) -> bool:
    """Whether `asya.sh/inject` says no; a word that is neither yes nor no is refused."""
    return parse_value("inject", asked.get(PREFIX + "inject", "true")) == "false"


def parse_value(name: str, value: str) -> str:
    """The canonical text of an annotation's value; raises Refusal."""
    entry = BY_NAME[name]
    try:
        return entry.parse(value)
    except ValueError as error:
        raise InjectionError(
            entry.key,
            f"{quote(value)} is not valid",
            fix=f"must be {error}",
            reason=Reason.ANNOTATION_INVALID,
        ) from None


def parse_values(asked: Mapping[str, str]) -> dict[str, str]:
    """Names and canonical values of what a pod is asked for.

    Raises Refusal for a key that the table does not hold, a value that is not valid, and for
    annotations that ask for something without naming a handler.
    """
    for key in asked:
        if key not in BY_KEY:
            shown = key if re.fullmatch(r"asya\.sh/[A-Za-z0-9._-]{1,63}", key) else quote(key)
            raise InjectionError(
                shown,
                "unknown annotation",
                fix=suggest(key, BY_KEY, fallback=f"known are {', '.join(BY_KEY)}"),
                reason=Reason.ANNOTATION_UNKNOWN,
            )
    if PREFIX + "handler" not in asked:
        raise InjectionError(
            PREFIX + "handler",
            f"is missing beside {', '.join(sorted(asked))}",
            fix="add it, as module.path.function, or remove the others",
            reason=Reason.HANDLER_MISSING,
        )
    return {BY_KEY[key].name: parse_value(BY_KEY[key].name, value) for key, value in asked.items()}
