"""Compare the sidecars of actors with that of the chart. This module does no I/O."""

import json
from collections.abc import Iterable

from asya_injector.annotations.parse import merge, parse_values
from asya_injector.annotations.settings import ClusterDefaults, Settings
from asya_injector.annotations.sidecar import SIDECAR_VARIABLE, SidecarTemplate
from asya_injector.diagnostics.variables import read_variables
from asya_injector.errors import InjectionError
from asya_injector.kube_objects import (
    Object,
    all_containers,
    find_by_name,
    get_annotations,
    get_in,
)
from asya_injector.mutation.injection_record import InjectionRecord
from asya_injector.mutation.sidecar import find_skip_reason


class ChartSidecar:
    """The sidecar of the chart, as its Deployments give it to the injector.

    is_known: whether there is a Deployment, and its sidecar can be read.
    """

    def __init__(self, deployments: Iterable[Object] = ()) -> None:
        self.is_known = False
        self.template: SidecarTemplate | None = None
        for item in deployments:
            spec = get_in(item, "spec", "template", "spec")
            for (text,) in read_variables(spec, SIDECAR_VARIABLE):
                try:
                    template = SidecarTemplate.parse(json.loads(text or "{}"))
                except (ValueError, RecursionError):
                    continue
                self.is_known = True
                self.template = self.template or template
        self._defaults = ClusterDefaults("", {}, sidecar=self.template)

    @property
    def declared(self) -> frozenset[str]:
        """The keys of the annotations that it declares."""
        return self._defaults.declared

    def find_problem(self, pod: Object) -> str:
        """What is wrong with the sidecar of an actor, as a predicate; empty if nothing is."""
        annotations = get_annotations(pod)
        record = InjectionRecord.parse(annotations)
        if record is None or not self.is_known:
            return ""
        if record.sidecar and not self.template:
            return "runs a sidecar that the chart does not have any more"
        if record.sidecar and self.template:
            is_current = record.sidecar["template"] == self.template.digest
            return "" if is_current else "runs an older sidecar than the chart's"
        return "runs without the chart's sidecar" if self._would_add(pod, record.container) else ""

    def _would_add(self, pod: Object, target: str) -> bool:
        template = self.template
        containers = all_containers(pod)
        if template is None or find_by_name(containers, template.name):
            return False
        try:
            values = parse_values(merge(get_annotations(pod)), self.declared)
        except InjectionError:
            return False
        settings = Settings(values, self._defaults)
        found = find_by_name(containers, target) or {}
        return not find_skip_reason(pod, found, settings, template)
