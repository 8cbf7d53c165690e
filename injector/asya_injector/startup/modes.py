"""The modes: how the runtime starts, and why."""

from asya_injector.annotations.settings import Decision, Settings
from asya_injector.annotations.table import PREFIX
from asya_injector.errors import InjectionError, Reason, quote
from asya_injector.kube_objects import Object, get_name, get_strings
from asya_injector.startup.hooks import HOOKS, add_hook, get_hook_command, reject_unhookable
from asya_injector.startup.programs import find_launcher_end, find_process_1, get_program
from asya_injector.startup.wrapper import build_wrapper, has_wrapper, is_wrapped, replace_wrapper


def choose_mode(target: Object, settings: Settings, recorded: str = "") -> Decision:
    """How the runtime is started.

    recorded: the mode in the record of an earlier injection. `hook` stays although another webhook
    has given the container a command, except if that is a launcher.
    """
    mode = settings["mode"]
    if mode != "auto":
        is_annotated = "mode" in settings.annotated
        where = f"{PREFIX}mode sets it" if is_annotated else "the cluster defaults set it"
        return Decision(mode, where)
    reason = _find_hook_reason(target, recorded)
    if reason:
        return Decision("hook", reason)
    is_in_args = is_wrapped(get_strings(target, "args"))
    where = "container's args start the wrapper" if is_in_args else "container has a command"
    return Decision("wrap", f"the {where}")


def configure_startup(
    pod: Object, target: Object, settings: Settings, *, mode: str, python: str
) -> list[str]:
    """Start the runtime in a mode, with an interpreter; returns warnings.

    In mode mount the image starts it.
    """
    if mode == "wrap":
        first = find_process_1(target)
        _wrap(target, [*build_wrapper(settings, python), "--"])
        if first:
            return [
                f"container {quote(get_name(target))} starts {quote(first)}, which must be process "
                "1, but mode wrap starts it as a child; use mode hook"
            ]
    elif mode == "hook":
        reject_unhookable(pod, target)
        for hook, option in HOOKS.items():
            add_hook(target, hook, build_wrapper(settings, python, option))
    elif mode == "runtime":
        _run(target, [python, settings.runtime_file])
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
    args = get_strings(target, "args")
    end = find_launcher_end(command + args)
    if end <= len(command):
        target["command"] = [*command[:end], *wrapper, *command[end:]]
    else:
        end -= len(command)
        target["args"] = [*args[:end], *wrapper, *args[end:]]


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


def _find_hook_reason(target: Object, recorded: str) -> str:
    """Why `auto` selects mode hook; empty if it selects wrap."""
    if has_wrapper(target):
        return ""
    if not get_strings(target, "command"):
        return "the container has no command, and the image's ENTRYPOINT must stay"
    first = find_process_1(target)
    if first:
        return f"{quote(first)} must be process 1"
    is_hooked = all(is_wrapped(get_hook_command(target, hook)) for hook in HOOKS)
    if recorded == "hook" and is_hooked and not find_launcher_end(get_program(target)):
        return "it was chosen before another webhook added the command"
    return ""
