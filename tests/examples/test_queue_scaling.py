"""The files of examples/queue agree with each other; e2e/test_keda.py scales with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

EXAMPLE = Path(__file__).parents[2] / "examples/queue"


def read(file: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((EXAMPLE / file).read_text()))


def test_the_scaled_object_names_an_actor_its_queue_and_the_secret_of_its_sidecar() -> None:
    scaled, authentication = read("scaledobject.yaml")
    target = scaled["spec"]["scaleTargetRef"]["name"]
    (trigger,) = scaled["spec"]["triggers"]
    (reference,) = authentication["spec"]["secretTargetRef"]
    queues = {
        each["metadata"]["name"]: each["metadata"]["annotations"]["asya.sh/queue"]
        for each in read("actors.yaml")
    }
    (variables,) = [each["sidecar"]["container"]["env"] for each in read("values.yaml")]
    secrets = {each["name"]: each["valueFrom"]["secretKeyRef"] for each in variables}
    assert (
        trigger["metadata"]["queueName"],
        trigger["authenticationRef"]["name"],
        {key: reference[key] for key in ("name", "key")},
    ) == (queues[target], authentication["metadata"]["name"], secrets["AMQP_URL"])
