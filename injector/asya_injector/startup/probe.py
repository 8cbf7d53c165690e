"""The readiness probe: the wrapper looks whether the runtime listens.

Earlier releases started the runtime for that, which takes many times as long, and so do probes
written by hand for containers with the runtime alone. Both forms are recognised.
"""

import posixpath

from asya_injector.annotations.settings import Settings
from asya_injector.errors import quote
from asya_injector.kube_objects import Object, get_mapping, get_name, get_strings
from asya_injector.runtime_files import ENTRYPOINT_FILE
from asya_injector.startup.wrapper import build_wrapper

# A probe starts an interpreter, which can take seconds on a busy node.
_TIMES = {"periodSeconds": 5, "timeoutSeconds": 10}
# What the API server adds to a probe.
_DEFAULTS = {"failureThreshold": 3, "successThreshold": 1}


def add_probe(target: Object, settings: Settings, python: str) -> list[str]:
    """Add the readiness probe, or update one that asks for the runtime; returns warnings."""
    if settings["probe"] == "false":
        return []
    command = build_wrapper(settings, python, "--ready")
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
    """The command of a probe that asks for the runtime; empty if it calls something else."""
    command = get_strings(get_mapping(probe, "exec"), "command")
    if command[1:3] != ["-I", "-S"] or command[4:5] != ["--ready"]:
        return []
    options, is_wrapper = command[5:], posixpath.basename(command[3]) == ENTRYPOINT_FILE
    is_elsewhere = is_wrapper and len(options) == 2 and options[0] == "--runtime"
    return command if not options or is_elsewhere else []


def is_added_probe(probe: Object) -> bool:
    """Whether a probe asks for the runtime, and has not been tuned."""
    untouched = _TIMES | _DEFAULTS
    times = {key: value for key, value in probe.items() if key != "exec"}
    return bool(get_probe_command(probe)) and untouched | times == untouched
