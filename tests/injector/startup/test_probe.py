"""The readiness probe: which probes are the injector's, of this release and of earlier ones."""

import copy
from typing import Any

import pytest
from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.mutation.inject import Injection, inject
from asya_injector.mutation.uninject import uninject

Object = dict[str, Any]
DEFAULTS = ClusterDefaults("0123456789", {})
TIMES = {"periodSeconds": 5, "timeoutSeconds": 10}
TUNED = {"periodSeconds": 1, "failureThreshold": 9}
FILE = "/app/asya_runtime.py"
OWN_PROBE = (
    'container "model" keeps its own readiness probe, so the pod may become ready before the actor'
)


def ready(file: str, *options: str, python: str = "python3") -> list[str]:
    return [python, "-I", "-S", file, "--ready", *options]


NEW = ready("/opt/asya/asya_entrypoint.py")
NEW_FOR_FILE = [*NEW, "--runtime", FILE]
OLD = ready("/opt/asya/asya_runtime.py")
OURS = {
    "of-this-release": NEW,
    "of-this-release-for-one-file": NEW_FOR_FILE,
    "of-this-release-elsewhere": ready("/srv/asya_entrypoint.py", python="/venv/bin/python"),
    "of-an-earlier-release": OLD,
    "of-an-earlier-release-for-one-file": ready("/app/server.py", python="python"),
}
OTHERS = {
    "of-another-program": ["ctl", "--ready"],
    "not-isolated": ["python3", "/opt/asya/asya_entrypoint.py", "--ready"],
    "with-other-flags-of-python": ["python3", "-X", "dev", *NEW[3:]],
    "with-more-options": [*NEW, "--verbose"],
    "without-the-file": [*NEW, "--runtime"],
    "with-more-than-the-file": [*NEW_FOR_FILE, "x"],
    "runtime-with-the-wrappers-option": [*OLD, "--runtime", FILE],
    "another-command-of-the-wrapper": [*NEW[:-1], "--stop"],
    "wrapper-with-another-option-first": [*NEW[:-1], "--runtime", FILE, "--ready"],
}


def pod(probe: Object | None = None, path: str = "") -> Object:
    keys = {"asya.sh/mount-path": path} if path else {}
    container: Object = {"name": "model", "command": ["serve"]}
    if probe:
        container["readinessProbe"] = probe
    return {
        "kind": "Pod",
        "metadata": {"name": "p", "annotations": {"asya.sh/handler": "a.b", **keys}},
        "spec": {"containers": [container]},
    }


def injected(given: Object) -> Injection:
    result = inject(given, DEFAULTS)
    assert result is not None
    return result


def probe_of(given: Object) -> Object | None:
    probe: Object | None = given["spec"]["containers"][0].get("readinessProbe")
    return probe


@pytest.mark.parametrize(("path", "new"), [("", NEW), (FILE, NEW_FOR_FILE)], ids=["folder", "file"])
@pytest.mark.parametrize("command", OURS.values(), ids=OURS)
def test_updates_its_own_probe_in_pods_of_any_release(
    command: list[str], path: str, new: list[str]
) -> None:
    """In a template by hand, in a copy of a pod without its record, and in one with it."""
    by_hand = injected(pod({"exec": {"command": command, "future": 1}, **TUNED}, path))
    assert by_hand.warnings == ()
    assert probe_of(by_hand.pod) == {"exec": {"command": new, "future": 1}, **TUNED}

    current = injected(pod(path=path)).pod
    copied = copy.deepcopy(current)
    copied["spec"]["containers"][0]["readinessProbe"]["exec"]["command"] = command
    again = injected(copied)
    assert (again.pod, again.warnings) == (current, ())
    del copied["metadata"]["annotations"]["asya.sh/injected"]
    assert probe_of(injected(copied).pod) == {"exec": {"command": new}, **TIMES}


@pytest.mark.parametrize("command", OURS.values(), ids=OURS)
def test_uninject_removes_its_own_probe_of_any_release_unless_it_is_tuned(
    command: list[str],
) -> None:
    given = injected(pod()).pod
    probe = given["spec"]["containers"][0]["readinessProbe"]
    probe["exec"]["command"] = command
    assert uninject(given) == pod()
    probe["periodSeconds"] = 30
    assert probe_of(uninject(given)) == probe


@pytest.mark.parametrize("command", OTHERS.values(), ids=OTHERS)
def test_keeps_the_users_probe_and_warns(command: list[str]) -> None:
    probe = {"exec": {"command": command}, **TIMES}
    result = injected(pod(probe))
    assert (probe_of(result.pod), result.warnings) == (probe, (OWN_PROBE,))
    assert uninject(result.pod) == pod(probe)
