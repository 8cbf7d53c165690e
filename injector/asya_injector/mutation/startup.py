"""Start the runtime with the container's own program, and probe whether it is ready."""

from __future__ import annotations

import posixpath
import re

from asya_injector.annotations.settings import Decision, Settings
from asya_injector.annotations.table import PREFIX
from asya_injector.errors import InjectionError, Reason, quote
from asya_injector.kube_objects import Object, get_mapping, get_name, get_strings
from asya_injector.mutation.ownership import (
    HOOKS,
    PROBE_TIMES,
    get_hook_command,
    has_wrapper,
    is_runtime_probe,
    is_wrapped,
    replace_hook_command,
    replace_wrapper,
    unwrap,
)
from asya_injector.runtime_files import ENTRYPOINT_FILE

# The chart's template helpers use these three too: `make sync` writes them there.
# Programs that run another one as process 1, and those of their options that take a value.
INIT_PROGRAMS = ("catatonit", "docker-init", "dumb-init", "tini", "tini-static")
INIT_OPTIONS_WITH_VALUE = ("-p", "-e", "-r", "--rewrite")
# A Python interpreter, with "/" before its path. It must not contain $(NAME): the kubelet expands
# that in a command, but not in probes and hooks.
INTERPRETER = r"[^$]*/(python|pypy)[0-9]*(\.[0-9]+)*t?"


def find_interpreter(target: Object) -> str:
    """The Python interpreter that the target's command starts; empty if it starts none."""
    rest = unwrap(get_strings(target, "command"))
    while rest and posixpath.basename(rest[0]) in INIT_PROGRAMS:
        rest = _skip_options(rest[1:])
    program = rest[0] if rest else ""
    return program if re.fullmatch(INTERPRETER, "/" + program) else ""


def choose_mode(target: Object, settings: Settings) -> Decision:
    """How the runtime is started."""
    mode = settings["mode"]
    if mode != "auto":
        is_annotated = "mode" in settings.annotated
        where = f"{PREFIX}mode sets it" if is_annotated else "the cluster defaults set it"
        return Decision(mode, where)
    if get_strings(target, "command"):
        return Decision("wrap", "the container has a command")
    if is_wrapped(get_strings(target, "args")):
        return Decision("wrap", "the container's args start the wrapper")
    # The image's ENTRYPOINT is unknown.
    return Decision("hook", "the container has no command, and the image's ENTRYPOINT must stay")


def configure_startup(
    pod: Object, target: Object, settings: Settings, *, mode: str, python: str
) -> None:
    """Start the runtime in a mode, with an interpreter. In mode mount the image starts it."""
    wrapper = [python, "-I", "-S", f"{settings.directory}/{ENTRYPOINT_FILE}"]
    location = ["--runtime", settings.runtime_file] if settings.is_one_file else []
    if mode == "wrap":
        _wrap(target, [*wrapper, *location, "--"])
    elif mode == "hook":
        _reject_unhookable(pod, target)
        _hook(target, "postStart", [*wrapper, HOOKS["postStart"], *location])
        _hook(target, "preStop", [*wrapper, HOOKS["preStop"]])
    elif mode == "runtime":
        _run(target, [python, settings.runtime_file])


def add_probe(target: Object, settings: Settings, python: str) -> list[str]:
    """Add the readiness probe, or update one that calls the runtime; returns warnings."""
    if settings["probe"] == "false":
        return []
    command = [python, "-I", "-S", settings.runtime_file, "--ready"]
    present = get_mapping(target, "readinessProbe")
    if not present:
        target["readinessProbe"] = {"exec": {"command": command}, **PROBE_TIMES}
    elif is_runtime_probe(present):
        target["readinessProbe"] = {**present, "exec": {**present["exec"], "command": command}}
    else:
        return [
            f"container {quote(get_name(target))} keeps its own readiness probe, so the pod may "
            "become ready before the actor"
        ]
    return []


def _wrap(target: Object, wrapper: list[str]) -> None:
    for field in ("command", "args"):
        present = get_strings(target, field)
        if is_wrapped(present):  # it stays inside the wrapper of another webhook
            target[field] = replace_wrapper(present, wrapper)
            return
    command = get_strings(target, "command")
    if not command:
        raise InjectionError(
            PREFIX + "mode",
            f"container {quote(get_name(target))} has no command to wrap",
            fix="set command, or use mode hook",
            reason=Reason.COMMAND_MISSING,
        )
    target["command"] = [*wrapper, *command]


def _reject_unhookable(pod: Object, target: Object) -> None:
    for field in ("shareProcessNamespace", "hostPID"):
        if get_mapping(pod, "spec").get(field):
            raise InjectionError(
                PREFIX + "mode",
                f"mode hook does not work with {field}, because process 1 is another program",
                fix=f"set command to use mode wrap, or remove {field}",
                reason=Reason.HOOK_UNSUPPORTED,
            )
    if has_wrapper(target):
        raise InjectionError(
            PREFIX + "mode",
            f"container {quote(get_name(target))} already starts the runtime with the wrapper, and "
            "mode hook would start it again",
            fix="remove the wrapper, or use mode wrap",
            reason=Reason.COMMAND_CONFLICT,
        )


def _hook(target: Object, hook: str, command: list[str]) -> None:
    """Run a command in a lifecycle hook, and the user's own hook after it."""
    own = get_hook_command(target, hook)
    lifecycle = get_mapping(target, "lifecycle")
    present = get_mapping(lifecycle, hook)
    if present and not own:
        raise InjectionError(
            f"lifecycle.{hook} of container {quote(get_name(target))}",
            "is not an exec hook, so mode hook cannot run it after its own",
            fix="make it an exec hook, or set command to use mode wrap",
            reason=Reason.HOOK_CONFLICT,
        )
    own = unwrap(own)
    chained = [*command, "--", *own] if own else command
    target["lifecycle"] = {**lifecycle, hook: replace_hook_command(present, chained)}


def _run(target: Object, command: list[str]) -> None:
    if get_strings(target, "command") not in ([], command) or get_strings(target, "args"):
        raise InjectionError(
            PREFIX + "mode",
            f"container {quote(get_name(target))} has a command or args, which mode runtime would "
            "not run",
            fix="remove them, or use mode wrap",
            reason=Reason.COMMAND_CONFLICT,
        )
    target["command"] = command


def _skip_options(words: list[str]) -> list[str]:
    """What follows the options of an init program."""
    rest = list(words)
    while rest and rest[0].startswith("-"):
        option = rest.pop(0)
        if option == "--":
            break
        if option in INIT_OPTIONS_WITH_VALUE:
            del rest[:1]
    return rest
