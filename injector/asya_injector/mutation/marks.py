"""The mark of an injection, `asya.sh/injected`: what was done, so that it can be undone or redone.

It is never trusted: a forged one can at most make the injector take out pieces that look exactly
like its own, and put them in again.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from asya_injector.annotations.parse import INJECTED, RUNTIME_HASH_LABEL
from asya_injector.kube_objects import Object, everyone, items, mapping, name_of, opened, put
from asya_injector.mutation import ownership

Pieces = Mapping[str, Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What was done to a pod.

    asked: digest of the wishes that it came from. added: names of pieces by container; volumes:
    names of the volumes that were added.
    """

    container: str
    mode: str
    runtime: str
    asked: str
    added: Pieces
    volumes: Sequence[str]

    @property
    def text(self) -> str:
        """The annotation's value."""
        return json.dumps(vars(self), separators=(",", ":"))

    @classmethod
    def read(cls, annotations: Mapping[str, str]) -> Mark | None:
        """The mark that a pod carries; None where there is none, or it is not one of ours."""
        try:
            found = json.loads(annotations.get(INJECTED, ""))
            mark = cls(**found)
        except (ValueError, TypeError, RecursionError):
            return None
        return mark if mark._is_sound() else None

    def _is_sound(self) -> bool:
        strings = (self.container, self.mode, self.runtime, self.asked)
        if not all(isinstance(each, str) for each in strings) or not isinstance(self.added, dict):
            return False
        return all(
            isinstance(each, list) and all(isinstance(name, str) for name in each)
            for each in (self.volumes, *self.added.values())
        )


def survey(pod: Object, names: Collection[str], model: str) -> dict[str, list[str]]:
    """The names of all pieces that have the form of ours in the containers of these names.

    model: name of the one that may be the runtime itself.
    """
    return {
        name_of(container): ownership.in_container(container, program=name_of(container) == model)
        for container in everyone(pod)
        if name_of(container) in names
    }


def without(pod: Object, mark: Mark) -> Object:
    """The pod without the pieces that its mark lists, and without the mark; the one given stays."""
    pod = opened(pod)
    spec = pod["spec"]
    for container in everyone(pod):
        ownership.take_out(container, mark.added.get(name_of(container), ()))
    gone = set(mark.volumes).intersection(ownership.volumes(pod))
    if gone:
        kept = [item for item in items(spec, "volumes") if name_of(item) not in gone]
        put(spec, "volumes", kept)
    return without_key(without_key(pod, "annotations", INJECTED), "labels", RUNTIME_HASH_LABEL)


def without_key(node: Object, field: str, key: str) -> Object:
    """An object without one of its annotations or labels; itself where it has not got it."""
    present = mapping(node, "metadata", field)
    if key not in present:
        return node
    metadata = dict(mapping(node, "metadata"))
    put(metadata, field, {name: value for name, value in present.items() if name != key})
    return {**node, "metadata": metadata}
