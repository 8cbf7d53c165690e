"""The sidecar of the chart's values on the command line."""

import json
from pathlib import Path

import jsonschema
import pytest

from tests.injector.commands import asya

VALUES = """\
injector: {enabled: false}
runtime: {defaults: {probe: false}}
sidecar:
  container:
    name: asya-sidecar
    image: queue:1
    env:
      - name: URL
        valueFrom: {secretKeyRef: {name: broker, key: url}}
      - {name: PREFETCH, value: "10"}
    ports: [{containerPort: 9000}]
    resources: {requests: {cpu: 0.5}}
    volumeMounts: [{name: ca, mountPath: /ca, readOnly: true}]
  annotations:
    asya.sh/queue: {env: QUEUE, required: true}
    asya.sh/prefetch: {env: PREFETCH}
  volumes: [{name: ca, secret: {secretName: ca}}]
  imagePullSecrets: [{name: pull}]
"""
DEPLOYMENT = r"""apiVersion: apps/v1
kind: Deployment
metadata:
  name: d  # the model
  annotations:
    asya.sh/handler: my_app.handler.predict
    asya.sh/queue: orders
    asya.sh/sidecar-env: A=$(URL), B="\u001b[2J"
spec:
  template:
    spec:
      containers:
        - name: model
          image: model:1
          command: [serve]
"""
EXPLANATION = r"""stdin:1 Deployment d: becomes an actor
  container   model, because it is the first container
  mode        wrap, because the container has a command
  socket      asya-socket, because the container mounts no volume at /tmp/sockets
  sidecar     asya-sidecar, because the cluster defaults add it as a native sidecar
  handler     my_app.handler.predict, from the workload's annotation
  probe       false, from the cluster defaults
  sidecar-env A=$(URL), B="\u001b[2J", from the workload's annotation
  queue       orders, from the workload's annotation
  volume      ca, secret
  volume      asya-runtime, ConfigMap asya-runtime-HASH
  volume      asya-socket, in memory
  pull secret pull
  in asya-sidecar
    image     queue:1
    mount     /ca from ca, read-only
    mount     /tmp/sockets from asya-socket
    env       ASYA_SOCKET_PATH=/tmp/sockets/app.sock
    env       QUEUE=orders
    env       A=$$(URL)
    env       "B=\u001b[2J"
    env       URL=from secretKeyRef broker url
    env       PREFETCH=10
    port      9000
  in model
    mount     /opt/asya from asya-runtime, read-only
    mount     /tmp/sockets from asya-socket
    env       ASYA_HANDLER=my_app.handler.predict
    env       ASYA_SOCKET_PATH=/tmp/sockets/app.sock
    env       ASYA_SOCKET_MODE=0666
    command   python3 -I -S /opt/asya/asya_entrypoint.py -- serve
"""


@pytest.fixture
def values(tmp_path: Path) -> Path:
    path = tmp_path / "values.yaml"
    path.write_text(VALUES)
    return path


def test_explains_the_sidecar_whole(values: Path) -> None:
    done = asya("explain", "--values", values, stdin=DEPLOYMENT)
    report = json.loads(asya("explain", "--values", values, "-o", "json", stdin=DEPLOYMENT).out)
    assert done.out == EXPLANATION.replace("HASH", report["runtime"])
    jsonschema.validate(report, json.loads(asya("explain", "--schema").out))
    actor = report["objects"][0]["actor"]
    assert actor["settings"]["queue"] == {"value": "orders", "from": "workload"}
    assert actor["imagePullSecrets"] == ["pull"]


@pytest.mark.parametrize(
    ("annotation", "line"),
    [
        ('asya.sh/sidecar: "false"', "  sidecar     none, because asya.sh/sidecar is false"),
        (
            'asya.sh/sidecar: "false"',
            "  warning     asya.sh/queue: has no effect, because asya.sh/sidecar is false",
        ),
        (
            "asya.sh/quue: orders",
            '  asya.sh/quue: unknown annotation; did you mean "asya.sh/queue"? (AnnotationUnknown)',
        ),
    ],
)
def test_explains_why_there_is_none(annotation: str, line: str, values: Path) -> None:
    given = DEPLOYMENT.replace("    asya.sh/queue", f"    {annotation}\n    asya.sh/queue")
    assert line in asya("explain", "--values", values, stdin=given).out.splitlines()


def test_injects_updates_and_restores_a_manifest(values: Path) -> None:
    first = asya("inject", "--no-configmap", "--values", values, stdin=DEPLOYMENT)
    assert first.status == 0
    assert "image: queue:1" in first.out.replace('"', "")
    again = asya("inject", "--no-configmap", "--values", values, stdin=first.out)
    assert again.out == first.out
    values.write_text(VALUES.replace("queue:1", "queue:2"))
    newer = asya("inject", "--no-configmap", "--values", values, stdin=first.out)
    assert newer.out == asya("inject", "--no-configmap", "--values", values, stdin=DEPLOYMENT).out
    assert "queue:1" not in newer.out
    # The record has all that this needs.
    assert asya("uninject", stdin=newer.out).out == DEPLOYMENT


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("image: queue:1", "imag: queue:1", 'sidecar.container: unknown name "imag"; did you'),
        ("name: ca, mountPath", "name: cb, mountPath", "sidecar.container.volumeMounts: the vol"),
        ("asya.sh/queue", "asya.sh/handler", "sidecar.annotations: asya.sh/handler is a key of"),
        (VALUES, "- 1", "chart values must be a mapping"),
    ],
)
def test_a_value_that_the_chart_rejects_is_rejected_with_one_line(
    old: str, new: str, line: str, values: Path
) -> None:
    values.write_text(VALUES.replace(old, new))
    done = asya("inject", "--values", values, stdin=DEPLOYMENT)
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(f"asya-injector: {values}: {line}")
    assert done.err.count("\n") == 1


def test_without_the_values_the_declared_annotation_is_unknown() -> None:
    done = asya("inject", stdin=DEPLOYMENT)
    assert done.status == 1
    assert "asya.sh/queue: unknown annotation" in done.err
