"""How the runtime is started beside the container's own program, and how its readiness shows."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable

from asya_injector.annotations import PREFIX
from asya_injector.pieces import (
    HOOKS,
    hook_command,
    hooked,
    is_ready_probe,
    is_wrapped,
    rewrapped,
    unwrapped,
)
from asya_injector.pods import Object, mapping, name_of, words
from asya_injector.policy import ENTRYPOINT_FILE, Wishes
from asya_injector.refusal import Reason, Refusal, quoted

# The chart's template helpers use these three too: `make sync` writes them there.
# A program that is a Python interpreter, with "/" before its name. It must not contain $(NAME):
# the kubelet expands that in a command, but not in probes and hooks.
INTERPRETER = r"[^$]*/(python|pypy)[0-9]*(\.[0-9]+)*t?"
# Programs that run another program as process 1, and their options that take a value.
INIT_PROGRAMS = ("catatonit", "docker-init", "dumb-init", "tini", "tini-static")
INIT_OPTIONS_WITH_VALUE = ("-p", "-e", "-r", "--rewrite")


def start(pod: Object, model: Object, wishes: Wishes) -> str:
    """Change how the container starts; returns the mode that was used."""
    mode = wishes["mode"]
    if mode == "auto":
        # Without a command in the pod, the image's ENTRYPOINT is unknown and must stay untouched.
        has_program = words(model, "command") or is_wrapped(words(model, "args"))
        mode = "wrap" if has_program else "hook"
    _MODES[mode](pod, model, wishes)
    return mode


def add_probe(model: Object, wishes: Wishes) -> list[str]:
    """Make the container ready when its actor is; returns warnings."""
    if wishes["probe"] == "false":
        return []
    command = [_python(model, wishes), "-I", "-S", wishes.runtime_file, "--ready"]
    present = mapping(model, "readinessProbe")
    if not present:
        # A probe starts an interpreter, which can take seconds on a busy node.
        probe = {"exec": {"command": command}, "periodSeconds": 5, "timeoutSeconds": 10}
        model["readinessProbe"] = probe
    elif is_ready_probe(present):
        model["readinessProbe"] = {**present, "exec": {**present["exec"], "command": command}}
    else:
        return [
            f"container {quoted(name_of(model))} keeps its own readiness probe, so the pod may be "
            "ready before its actor is"
        ]
    return []


def _wrap(_: Object, model: Object, wishes: Wishes) -> None:
    wrapper = [*_entrypoint(model, wishes), "--"]
    for field in ("command", "args"):
        present = words(model, field)
        if is_wrapped(present):  # perhaps inside the wrapper of another webhook: there it stays
            model[field] = rewrapped(present, wrapper)
            return
    command = words(model, "command")
    if not command:
        raise Refusal(
            PREFIX + "mode",
            f"container {quoted(name_of(model))} has no command to wrap",
            fix="set command, or use mode hook",
            reason=Reason.COMMAND_MISSING,
        )
    model["command"] = [*wrapper, *command]


def _hook(pod: Object, model: Object, wishes: Wishes) -> None:
    for field in ("shareProcessNamespace", "hostPID"):
        if mapping(pod, "spec").get(field):
            raise Refusal(
                PREFIX + "mode",
                f"mode hook does not work with {field}: process 1 is not the container's own",
                fix=f"set command, which mode wrap uses, or remove {field}",
                reason=Reason.HOOK_UNSUPPORTED,
            )
    if is_wrapped(words(model, "command")) or is_wrapped(words(model, "args")):
        raise Refusal(
            PREFIX + "mode",
            f"container {quoted(name_of(model))} already starts the runtime by its wrapper, so "
            "mode hook would start a second one",
            fix="remove the wrapper, or use mode wrap",
            reason=Reason.COMMAND_CONFLICT,
        )
    lifecycle = dict(mapping(model, "lifecycle"))
    for hook, option in HOOKS.items():
        theirs = hook_command(model, hook)
        if mapping(lifecycle, hook) and not theirs:
            raise Refusal(
                f"lifecycle.{hook} of container {quoted(name_of(model))}",
                "is not an exec hook, so mode hook cannot chain it with its own",
                fix="make it an exec hook, or set command, which mode wrap uses",
                reason=Reason.HOOK_CONFLICT,
            )
        theirs = unwrapped(theirs)
        chained = ["--", *theirs] if theirs else []
        ours = [*_entrypoint(model, wishes, option), *chained]
        lifecycle[hook] = hooked(mapping(lifecycle, hook), ours)
    model["lifecycle"] = lifecycle


def _runtime(_: Object, model: Object, wishes: Wishes) -> None:
    command = [_python(model, wishes), wishes.runtime_file]
    if words(model, "command") not in ([], command) or words(model, "args"):
        raise Refusal(
            PREFIX + "mode",
            f"container {quoted(name_of(model))} has a command or args, which mode runtime would "
            "not run",
            fix="remove them, or use mode wrap",
            reason=Reason.COMMAND_CONFLICT,
        )
    model["command"] = command


def _mount(_: Object, _model: Object, _wishes: Wishes) -> None:
    """Nothing: the image's own entrypoint starts the runtime."""


_MODES: dict[str, Callable[[Object, Object, Wishes], None]] = {
    "wrap": _wrap,
    "hook": _hook,
    "runtime": _runtime,
    "mount": _mount,
}


def _python(model: Object, wishes: Wishes) -> str:
    if "python" in wishes.annotated:
        return wishes.annotated["python"]
    program = _program(unwrapped(words(model, "command")))
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


def _entrypoint(model: Object, wishes: Wishes, option: str = "") -> list[str]:
    """The wrapper's command line; -I and -S keep PYTHONPATH and site packages out of the wrapper,
    not out of what it starts.
    """
    words = [_python(model, wishes), "-I", "-S", f"{wishes.directory}/{ENTRYPOINT_FILE}"]
    if option:
        words.append(option)
    if wishes.is_one_file and option != "--stop":  # which starts none
        words += ["--runtime", wishes.runtime_file]
    return words
