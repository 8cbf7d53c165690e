"""How the runtime is started beside the container's own program, and how its readiness shows."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable

from asya_injector.annotations.settings import Settings
from asya_injector.annotations.table import PREFIX
from asya_injector.errors import InjectionError, Reason, quote
from asya_injector.kube_objects import Object, get_mapping, get_name, get_strings
from asya_injector.mutation.ownership import (
    HOOKS,
    get_hook_command,
    is_runtime_probe,
    is_wrapped,
    replace_hook_command,
    replace_wrapper,
    unwrap,
)
from asya_injector.runtime_files import ENTRYPOINT_FILE

# The chart's template helpers use these three too: `make sync` writes them there.
# A program that is a Python interpreter, with "/" before its name. It must not contain $(NAME):
# the kubelet expands that in a command, but not in probes and hooks.
INTERPRETER = r"[^$]*/(python|pypy)[0-9]*(\.[0-9]+)*t?"
# Programs that run another program as process 1, and their options that take a value.
INIT_PROGRAMS = ("catatonit", "docker-init", "dumb-init", "tini", "tini-static")
INIT_OPTIONS_WITH_VALUE = ("-p", "-e", "-r", "--rewrite")


def configure_startup(pod: Object, model: Object, wishes: Settings) -> str:
    """Change how the container starts; returns the mode that was used."""
    mode = wishes["mode"]
    if mode == "auto":
        # Without a command in the pod, the image's ENTRYPOINT is unknown and must stay untouched.
        has_program = get_strings(model, "command") or is_wrapped(get_strings(model, "args"))
        mode = "wrap" if has_program else "hook"
    _MODES[mode](pod, model, wishes)
    return mode


def add_probe(model: Object, wishes: Settings) -> list[str]:
    """Make the container ready when its actor is; returns warnings."""
    if wishes["probe"] == "false":
        return []
    command = [_python(model, wishes), "-I", "-S", wishes.runtime_file, "--ready"]
    present = get_mapping(model, "readinessProbe")
    if not present:
        # A probe starts an interpreter, which can take seconds on a busy node.
        probe = {"exec": {"command": command}, "periodSeconds": 5, "timeoutSeconds": 10}
        model["readinessProbe"] = probe
    elif is_runtime_probe(present):
        model["readinessProbe"] = {**present, "exec": {**present["exec"], "command": command}}
    else:
        return [
            f"container {quote(get_name(model))} keeps its own readiness probe, so the pod may be "
            "ready before its actor is"
        ]
    return []


def _wrap(_: Object, model: Object, wishes: Settings) -> None:
    wrapper = [*_entrypoint(model, wishes), "--"]
    for field in ("command", "args"):
        present = get_strings(model, field)
        if is_wrapped(present):  # perhaps inside the wrapper of another webhook: there it stays
            model[field] = replace_wrapper(present, wrapper)
            return
    command = get_strings(model, "command")
    if not command:
        raise InjectionError(
            PREFIX + "mode",
            f"container {quote(get_name(model))} has no command to wrap",
            fix="set command, or use mode hook",
            reason=Reason.COMMAND_MISSING,
        )
    model["command"] = [*wrapper, *command]


def _hook(pod: Object, model: Object, wishes: Settings) -> None:
    for field in ("shareProcessNamespace", "hostPID"):
        if get_mapping(pod, "spec").get(field):
            raise InjectionError(
                PREFIX + "mode",
                f"mode hook does not work with {field}: process 1 is not the container's own",
                fix=f"set command, which mode wrap uses, or remove {field}",
                reason=Reason.HOOK_UNSUPPORTED,
            )
    if is_wrapped(get_strings(model, "command")) or is_wrapped(get_strings(model, "args")):
        raise InjectionError(
            PREFIX + "mode",
            f"container {quote(get_name(model))} already starts the runtime by its wrapper, so "
            "mode hook would start a second one",
            fix="remove the wrapper, or use mode wrap",
            reason=Reason.COMMAND_CONFLICT,
        )
    lifecycle = dict(get_mapping(model, "lifecycle"))
    for hook, option in HOOKS.items():
        theirs = get_hook_command(model, hook)
        if get_mapping(lifecycle, hook) and not theirs:
            raise InjectionError(
                f"lifecycle.{hook} of container {quote(get_name(model))}",
                "is not an exec hook, so mode hook cannot chain it with its own",
                fix="make it an exec hook, or set command, which mode wrap uses",
                reason=Reason.HOOK_CONFLICT,
            )
        theirs = unwrap(theirs)
        chained = ["--", *theirs] if theirs else []
        ours = [*_entrypoint(model, wishes, option), *chained]
        lifecycle[hook] = replace_hook_command(get_mapping(lifecycle, hook), ours)
    model["lifecycle"] = lifecycle


def _runtime(_: Object, model: Object, wishes: Settings) -> None:
    command = [_python(model, wishes), wishes.runtime_file]
    if get_strings(model, "command") not in ([], command) or get_strings(model, "args"):
        raise InjectionError(
            PREFIX + "mode",
            f"container {quote(get_name(model))} has a command or args, which mode runtime would "
            "not run",
            fix="remove them, or use mode wrap",
            reason=Reason.COMMAND_CONFLICT,
        )
    model["command"] = command


def _mount(_: Object, _model: Object, _wishes: Settings) -> None:
    """Nothing: the image's own entrypoint starts the runtime."""


_MODES: dict[str, Callable[[Object, Object, Settings], None]] = {
    "wrap": _wrap,
    "hook": _hook,
    "runtime": _runtime,
    "mount": _mount,
}


def _python(model: Object, wishes: Settings) -> str:
    if "python" in wishes.annotated:
        return wishes.annotated["python"]
    program = _program(unwrap(get_strings(model, "command")))
    return program if re.fullmatch(INTERPRETER, "/" + program) else wishes["python"]


def _program(command: list[str]) -> str:
    """What a command runs in the end, looking through programs that only act as process 1."""
    rest = list(command)
    while rest and posixpath.basename(rest[0]) in INIT_PROGRAMS:
        rest = rest[1:]
        while rest and rest[0].startswith("-"):
            option = rest.pop(0)
            if option == "--":
                break
            if option in INIT_OPTIONS_WITH_VALUE:
                del rest[:1]
    return rest[0] if rest else ""


def _entrypoint(model: Object, wishes: Settings, option: str = "") -> list[str]:
    """The wrapper's command line; -I and -S keep PYTHONPATH and site packages out of the wrapper,
    not out of what it starts.
    """
    words = [_python(model, wishes), "-I", "-S", f"{wishes.directory}/{ENTRYPOINT_FILE}"]
    if option:
        words.append(option)
    if wishes.is_one_file and option != "--stop":  # which starts none
        words += ["--runtime", wishes.runtime_file]
    return words
