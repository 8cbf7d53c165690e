"""How the runtime is started beside the container's own program, and how its readiness shows."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from typing import Any

from asya_injector.annotations import PREFIX
from asya_injector.pods import Object, mapping, name_of
from asya_injector.policy import ENTRYPOINT_FILE, Wishes
from asya_injector.refusal import Reason, Refusal, quoted


def start(pod: Object, model: Object, wishes: Wishes) -> str:
    """Change how the container starts; returns the mode that was used."""
    mode = wishes["mode"]
    if mode == "auto":
        # Without a command in the pod, the image's ENTRYPOINT is unknown and must stay untouched.
        mode = "wrap" if _unwrapped(model.get("command")) else "hook"
    _MODES[mode](pod, model, wishes)
    return mode


def add_probe(model: Object, wishes: Wishes) -> list[str]:
    """Make the container ready when its actor is; returns warnings."""
    if wishes["probe"] == "false":
        return []
    command = [_python(model, wishes), "-I", "-S", wishes.runtime_file, "--ready"]
    present = model.get("readinessProbe")
    if not present:
        # A probe starts an interpreter, which can take seconds on a busy node.
        probe = {"exec": {"command": command}, "periodSeconds": 5, "timeoutSeconds": 10}
        model["readinessProbe"] = probe
    elif (mapping(present, "exec").get("command") or [])[-1:] == ["--ready"]:
        present["exec"]["command"] = command
    else:
        return [
            f"container {quoted(name_of(model))} keeps its own readiness probe, so the pod may be "
            "ready before its actor is"
        ]
    return []


def _wrap(_: Object, model: Object, wishes: Wishes) -> None:
    command = _unwrapped(model.get("command"))
    if not command:
        raise Refusal(
            PREFIX + "mode",
            f"container {quoted(name_of(model))} has no command to wrap",
            fix="set command, or use mode hook",
            reason=Reason.COMMAND_MISSING,
        )
    model["command"] = [*_entrypoint(model, wishes), "--", *command]


def _hook(pod: Object, model: Object, wishes: Wishes) -> None:
    for field in ("shareProcessNamespace", "hostPID"):
        if mapping(pod, "spec").get(field):
            raise Refusal(
                PREFIX + "mode",
                f"mode hook does not work with {field}: process 1 is not the container's own",
                fix=f"set command, which mode wrap uses, or remove {field}",
                reason=Reason.HOOK_UNSUPPORTED,
            )
    lifecycle = dict(mapping(model, "lifecycle"))
    for hook, option in (("postStart", "--detach"), ("preStop", "--stop")):
        present = mapping(lifecycle, hook)
        theirs = mapping(present, "exec").get("command") or []
        if present and not theirs:
            raise Refusal(
                f"lifecycle.{hook} of container {quoted(name_of(model))}",
                "is not an exec hook, so mode hook cannot chain it with its own",
                fix="make it an exec hook, or set command, which mode wrap uses",
                reason=Reason.HOOK_CONFLICT,
            )
        theirs = _unwrapped(theirs)
        chained = ["--", *theirs] if theirs else []
        lifecycle[hook] = {"exec": {"command": [*_entrypoint(model, wishes, option), *chained]}}
    model["lifecycle"] = lifecycle


def _runtime(_: Object, model: Object, wishes: Wishes) -> None:
    command = [_python(model, wishes), wishes.runtime_file]
    if model.get("command") not in (None, [], command) or model.get("args"):
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
    first = str((_unwrapped(model.get("command")) or [""])[0])
    is_interpreter = re.fullmatch(r"(python|pypy)[0-9]*(\.[0-9]+)*", posixpath.basename(first))
    return first if is_interpreter else wishes["python"]


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


def _unwrapped(command: list[Any] | None) -> list[Any]:
    """A command without our wrapper in front of it."""
    words = command or []
    is_wrapped = words[1:3] == ["-I", "-S"] and (
        posixpath.basename(str(words[3:4] and words[3])) == ENTRYPOINT_FILE
    )
    if not is_wrapped:
        return words
    return words[words.index("--") + 1 :] if "--" in words else []
