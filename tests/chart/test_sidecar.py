"""The value `sidecar`: what reaches the injector and the pods."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.annotations.sidecar import CONTAINER_FIELDS, MAX_DECLARED, SidecarTemplate
from asya_injector.manifests.chart_values import load_values, read_values
from asya_injector.mutation.inject import inject

from tests.chart.charts import CHART, SIDECAR, case_objects, find_by_name
from tests.chart.schemas import RELEASES, problems
from tests.injector.annotations.test_sidecar import REJECTED

Object = dict[str, Any]


@pytest.mark.parametrize("tool", ["helm", "helm3"])
def test_the_injector_gets_what_the_command_line_reads(
    tool: str, chart: Path, tmp_path: Path
) -> None:
    deployment = case_objects("sidecar", chart, tool)["Deployment", "asya-system", "asya-runtime"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    text = find_by_name(container["env"], "INJECTOR_SIDECAR")["value"]
    assert "$" not in text  # the kubelet would expand $(URL)
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump({"sidecar": SIDECAR}))
    defaults, template = read_values(load_values(file), file)
    assert defaults == {}
    assert template == SidecarTemplate.parse(json.loads(text))
    assert template is not None
    assert template.container == SIDECAR["container"]


@pytest.mark.parametrize("native", [True, False])
def test_a_pod_with_the_sidecar_is_valid_in_every_supported_kubernetes_release(
    native: bool,
) -> None:
    template = SidecarTemplate.parse({**SIDECAR, "native": native})
    annotations = {"asya.sh/handler": "a.b", "asya.sh/queue": "q", "asya.sh/sidecar-env": "A=1"}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", "annotations": annotations},
        "spec": {"containers": [{"name": "model", "image": "model:1"}]},
    }
    injection = inject(pod, ClusterDefaults("0123456789", {}, sidecar=template))
    assert injection is not None
    assert [problems(injection.pod, release) for release in RELEASES] == [[] for _ in RELEASES]


# Helm reads no values that JSON cannot hold, and makes strings of all keys.
IN_JSON = [
    given for given, _ in REJECTED if given != {1: 2} and "Infinity" not in json.dumps(given)
]


@pytest.mark.parametrize("given", IN_JSON)
def test_the_schema_rejects_what_the_injector_rejects(given: Any) -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    sidecar = {"definitions": schema["definitions"], **schema["properties"]["sidecar"]}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(given, sidecar, jsonschema.Draft7Validator)


def test_the_schema_has_the_fields_and_the_limit_of_the_injector() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]["sidecar"]
    rejected_by_the_templates = {"startupProbe", "restartPolicy"}
    fields = schema["properties"]["container"]["properties"].keys()
    assert fields == {*CONTAINER_FIELDS} | rejected_by_the_templates
    assert schema["properties"]["annotations"]["maxProperties"] == MAX_DECLARED
