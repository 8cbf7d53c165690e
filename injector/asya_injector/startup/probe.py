"""The readiness probe, which asks the runtime whether it is ready."""

from asya_injector.annotations.settings import Settings
from asya_injector.errors import quote
from asya_injector.kube_objects import Object, get_mapping, get_name, get_strings

# A probe starts an interpreter, which can take seconds on a busy node.
_TIMES = {"periodSeconds": 5, "timeoutSeconds": 10}
# What the API server adds to a probe.
_DEFAULTS = {"failureThreshold": 3, "successThreshold": 1}


def add_probe(target: Object, settings: Settings, python: str) -> list[str]:
    """Add the readiness probe, or update one that calls the runtime; returns warnings."""
    if settings["probe"] == "false":
        return []
    command = [python, "-I", "-S", settings.runtime_file, "--ready"]
    present = get_mapping(target, "readinessProbe")
    if not present:
        target["readinessProbe"] = {"exec": {"command": command}, **_TIMES}
    elif get_probe_command(present):
        target["readinessProbe"] = {**present, "exec": {**present["exec"], "command": command}}
    else:
        return [
            f"container {quote(get_name(target))} keeps its own readiness probe, so the pod may "
            "become ready before the actor"
        ]
    return []


def get_probe_command(probe: Object) -> list[str]:
    """The command of a probe that calls the runtime; empty if it calls something else."""
    command = get_strings(get_mapping(probe, "exec"), "command")
    is_ours = len(command) == 5 and command[1:3] == ["-I", "-S"] and command[4] == "--ready"
    return command if is_ours else []


def is_added_probe(probe: Object) -> bool:
    """Whether a probe calls the runtime, and nobody has tuned it."""
    untouched = _TIMES | _DEFAULTS
    times = {key: value for key, value in probe.items() if key != "exec"}
    return bool(get_probe_command(probe)) and untouched | times == untouched
