"""The work for an object of any size is bounded: no loop in a loop, no list without a limit."""

import contextlib
import cProfile
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.errors import InjectionError
from asya_injector.mutation.inject import inject
from asya_injector.mutation.uninject import uninject
from asya_injector.mutation.workload import find_overridden, propagate

Object = dict[str, Any]
DEFAULTS = ClusterDefaults("0123456789", {})
# Far more than it takes on a busy machine. Loops in loops take ten times as long.
SECONDS = 2.5


def pod(fields: Object, annotations: Object | None = None, **spec: Any) -> Object:
    handler = {"asya.sh/handler": "my_app.handler.predict"}
    item = {"name": "model", "command": ["serve"], **fields}
    containers = [item, *spec.pop("more", [])]
    return {
        "metadata": {"annotations": handler | (annotations or {})},
        "spec": {"containers": containers, **spec},
    }


def named(count: int, **fields: Any) -> list[Object]:
    return [{"name": f"c{i}", **fields} for i in range(count)]


def sidecars(count: int, **fields: Any) -> Object:
    return {"asya.sh/sidecars": ",".join(f"c{i}" for i in range(count))}


def with_mounts(count: int) -> Object:
    """A pod with sidecars, each of which mounts seven volumes."""
    mounts = [
        [{"name": f"c{i * 7 + j}", "mountPath": f"/data/{j}"} for j in range(7)]
        for i in range(count)
    ]
    more = [{"name": f"c{i}", "volumeMounts": each} for i, each in enumerate(mounts)]
    return pod({}, sidecars(count), volumes=named(7 * count, emptyDir={}), more=more)


LARGE: list[Any] = [
    pytest.param(lambda: with_mounts(7000), id="sidecars-with-mounts"),
    pytest.param(lambda: pod({}, sidecars(7000), more=named(7000)), id="sidecars"),
    pytest.param(lambda: pod({}, sidecars(7000), initContainers=named(
        7000, restartPolicy="Always")), id="native-sidecars"),
    pytest.param(lambda: pod({}, sidecars(7000), volumes=named(40_000, emptyDir={}), more=named(
        7000, volumeMounts=[{"name": "c1", "mountPath": "/tmp"}])), id="sidecars-with-volumes"),
    pytest.param(lambda: pod({}, sidecars(1_000_000)), id="names-of-sidecars"),
    pytest.param(lambda: pod({}, {"asya.sh/sidecars": "a," * 4_000_000 + "a"}), id="equal-names"),
    pytest.param(lambda: pod({}, initContainers=named(100_000)), id="init-containers"),
    pytest.param(lambda: pod({"env": named(45_000, value="x")}), id="variables"),
    pytest.param(lambda: pod({"env": [{"name": "ASYA_SOCKET_MODE", "value": str(i)}
                                      for i in range(45_000)]}), id="variables-of-the-runtime"),
    pytest.param(lambda: pod({"volumeMounts": [{"name": "v", "mountPath": f"/data/{i}"}
                                               for i in range(45_000)]}), id="mounts"),
    pytest.param(lambda: pod({"volumeMounts": [{"name": "v", "mountPath": "/a/.." * 1_500_000}]}),
                 id="long-mount-path"),
    pytest.param(lambda: pod({}, volumes=[{"name": "asya-socket", "emptyDir": {}}] * 200_000),
                 id="volumes"),
    pytest.param(lambda: pod({"command": ["tini"] * 1_000_000}), id="init-programs"),
    pytest.param(lambda: pod({"command": ["tini"] * 45_000}), id="fewer-init-programs"),
    pytest.param(lambda: pod({"command": ["tini", *["-p"] * 45_000]}), id="options"),
    pytest.param(lambda: pod({"command": ["vault-env"] * 45_000}), id="launchers"),
    pytest.param(lambda: pod({"command": ["-I", "-S"] * 22_000}), id="almost-wrappers"),
    pytest.param(lambda: pod({"command": ["x", "-I", "-S", "asya_entrypoint.py"] * 12_000}),
                 id="wrappers"),
    pytest.param(lambda: pod({"command": ["/tmp/sockets/a.sock"] * 45_000}), id="paths"),
    pytest.param(lambda: pod({"command": ["x", " /tmp/sockets/a.sock" * 400_000]}), id="script"),
    pytest.param(lambda: pod({"command": ["x", "$(A)" * 2_000_000], "env": [
        {"name": "A", "value": "/tmp/sockets" * 100_000}]}), id="references"),
    pytest.param(lambda: pod({"command": ["$(A)"] * 45_000, "env": [
        {"name": "A", "value": "/tmp/sockets" * 100_000}]}), id="many-references"),
    pytest.param(lambda: pod({"command": ["a:b"] * 45_000, "env": [
        {"name": "PYTHONPATH", "value": "/a:" * 2_000_000}]}), id="modules"),
    pytest.param(lambda: pod({"command": ["x", "a." * 3_000_000 + "a:b"], "env": [
        {"name": "PYTHONPATH", "value": "/a:" * 2_000_000}]}), id="long-module"),
    pytest.param(lambda: pod({"command": ["sh", "-c", "exec " * 1_500_000]}), id="execs"),
    pytest.param(lambda: pod({"command": ["/python1" * 1_000_000 + "!"]}), id="interpreter"),
    pytest.param(lambda: pod({"command": ["python" + ".1" * 4_000_000 + "!"]}), id="version"),
    pytest.param(lambda: pod({"command": ["/" * 8_000_000]}), id="slashes"),
    pytest.param(lambda: pod({"workingDir": "/a/.." * 1_500_000}), id="working-directory"),
    pytest.param(lambda: pod({}, {f"example.com/{i}": "x" for i in range(250_000)}),
                 id="annotations-of-others"),
    pytest.param(lambda: pod({}, {f"asya.sh/{i}": "x" for i in range(250_000)}),
                 id="unknown-annotations"),
    pytest.param(lambda: pod({}, {"asya.sh/inherited": json.dumps(
        {f"a{i}": "x" for i in range(400_000)})}), id="inherited-annotations"),
    pytest.param(lambda: pod({}, {"asya.sh/injected": json.dumps({
        "container": "model", "mode": "wrap", "runtime": "0", "asked": "0",
        "volumes": ["a"] * 99_999, "added": {"model": ["env A=1"] * 400_000},
        "python": ""})}), id="record"),
]  # fmt: skip


@pytest.mark.parametrize("build", LARGE)
def test_a_large_object_takes_no_long_time(build: Callable[[], Object]) -> None:
    given = build()
    workload = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"annotations": given["metadata"]["annotations"]},
        "spec": {"template": given},
    }
    results: list[Any] = []
    for function in (
        lambda: results.append(inject(given, DEFAULTS)),
        lambda: inject(results[0].pod, DEFAULTS) if results else None,
        lambda: uninject(results[0].pod) if results else None,
        lambda: propagate(workload),
        lambda: find_overridden(workload),
    ):
        start = time.process_time()
        with contextlib.suppress(InjectionError):
            function()
        assert time.process_time() - start < SECONDS


def test_each_mount_of_a_sidecar_takes_few_calls() -> None:
    """So 7,000 sidecars with 49,000 mounts take a bounded number of calls."""
    given, profile = with_mounts(700), cProfile.Profile()
    profile.enable()
    inject(given, DEFAULTS)
    profile.disable()
    calls = sum(entry.callcount for entry in profile.getstats())
    assert calls < 80 * 4900


def test_accepts_thousands_of_sidecars() -> None:
    result = inject(pod({}, sidecars(7000), more=named(7000)), DEFAULTS)
    assert result is not None
    assert all("volumeMounts" in item for item in result.pod["spec"]["containers"])


def test_a_list_that_is_too_long_is_rejected() -> None:
    for given, line in (
        (pod({}, more=named(10_000)), "containers: has more than 10000 items; "),
        (pod({"args": ["x"] * 50_001}), "args: has more than 50000 items; "),
    ):
        with pytest.raises(InjectionError, match=f"^{line}"):
            inject(given, DEFAULTS)
