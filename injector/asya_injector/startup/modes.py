"""Start the runtime with the container's own program, and probe whether it is ready."""

from __future__ import annotations

import re

from asya_injector.annotations.settings import Decision, Settings
from asya_injector.annotations.table import PREFIX
from asya_injector.errors import InjectionError, Reason, quote
from asya_injector.kube_objects import Object, get_mapping, get_name, get_string, get_strings
from asya_injector.mutation.injection_record import (
    HOOKS,
    PROBE_TIMES,
    build_sleep,
    get_hook_command,
    get_wrapped,
    has_wrapper,
    is_runtime_probe,
    is_wrapped,
    replace_hook_command,
    replace_wrapper,
    shows_interpreter,
    unwrap,
)
from asya_injector.runtime_files import ENTRYPOINT_FILE

# The chart's template helpers use these four too: `make sync` writes them there.
# Programs that run another one as process 1, and those of their options that take a value.
INIT_PROGRAMS = ("catatonit", "docker-init", "dumb-init", "tini", "tini-static")
INIT_OPTIONS_WITH_VALUE = ("-p", "-e", "-r", "--rewrite")
# Programs that put secrets into the environment and then become another program. Webhooks put them
# before a container's command. The runtime needs these secrets, so the wrapper stands inside.
LAUNCHERS = (
    "azure-keyvault-env",
    "k8s-secret-injector",
    "secret-init",
    "secrets-init",
    "vault-env",
)
# A Python interpreter, with "/" before its path. It must not contain $(NAME): the kubelet expands
# that in a command, but not in probes and hooks.
INTERPRETER = r"[^$]*/(python|pypy)[0-9]*(\.[0-9]+)*t?"
# Programs that refuse to run, or do not work, unless they are process 1.
_PROCESS_1 = re.compile(
    r"/?init|(/usr)?/s?bin/(init|openrc-init)|(.*/)?(systemd|my_init|runit|runit-init)"
    r"|(.*/)?(s6-overlay-suexec|s6-linux-init)|/.*/s6-overlay[^/]*/.*/init|/nix/store/[^/]+/init"
)
# Linux knows no longer paths. Programs that start others stand among the first words.
_MAX_PATH = 4096
_MAX_NAME = 255
_MAX_STARTERS = 100
_SHELLS = ("ash", "bash", "dash", "sh")


def find_interpreter(target: Object) -> str:
    """The Python interpreter that the target's command starts; empty if it starts none."""
    words = _get_program(target)
    for field in ("command", "args"):
        if is_wrapped(get_strings(target, field)):
            words = get_wrapped(get_strings(target, field))
            words += get_strings(target, "args") if field == "command" else []
    start = _skip_starters(words, INIT_PROGRAMS + LAUNCHERS)
    program = words[start] if start < len(words) else ""
    return program if _is_interpreter(program) else ""


def check_recorded(target: Object, python: str) -> str:
    """The interpreter of an earlier injection's record, if the target still shows it; else empty.

    Since then, another webhook may have changed the command that started this interpreter.
    """
    return python if _is_interpreter(python) and shows_interpreter(target, python) else ""


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


def find_process_1(target: Object) -> str:
    """The program of the target's command that must be process 1; empty if there is none."""
    words = _get_program(target)
    if is_wrapped(words):
        words = get_wrapped(words)
    words = words[_skip_starters(words, LAUNCHERS) :]
    if len(words) > 2 and _is_any(words[0], _SHELLS):
        is_script = re.fullmatch(r"-[a-z]*c", words[1])
        last = re.fullmatch(r"(?s:.*)\bexec\s+([^\s;&|]+)[^;&|\n]*\s*", words[2][-1000:])
        simple = re.fullmatch(r"\s*([^\s;&|]+)\s*", words[2][:1000])
        found = (last or simple) if is_script else None
        words = [found[1]] if found else []
    program = words[0] if words else ""
    if _is_any(program, ("busybox",)) and words[1:2] == ["init"]:
        return program
    is_first = len(program) < _MAX_PATH and _PROCESS_1.fullmatch(program)
    return program if is_first else ""


def configure_startup(
    pod: Object, target: Object, settings: Settings, *, mode: str, python: str
) -> list[str]:
    """Start the runtime in a mode, with an interpreter; returns warnings.

    In mode mount the image starts it.
    """
    wrapper = [python, "-I", "-S", f"{settings.directory}/{ENTRYPOINT_FILE}"]
    location = ["--runtime", settings.runtime_file] if settings.is_one_file else []
    if mode == "wrap":
        first = find_process_1(target)
        _wrap(target, [*wrapper, *location, "--"])
        if first:
            return [
                f"container {quote(get_name(target))} starts {quote(first)}, which must be process "
                "1, but mode wrap starts it as a child; use mode hook"
            ]
    elif mode == "hook":
        _reject_unhookable(pod, target)
        _hook(target, "postStart", [*wrapper, HOOKS["postStart"], *location])
        _hook(target, "preStop", [*wrapper, HOOKS["preStop"]])
    elif mode == "runtime":
        _run(target, [python, settings.runtime_file])
    return []


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
    args = get_strings(target, "args")
    end = _find_launcher_end(command + args)
    if end <= len(command):
        target["command"] = [*command[:end], *wrapper, *command[end:]]
    else:
        end -= len(command)
        target["args"] = [*args[:end], *wrapper, *args[end:]]


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
    own = unwrap(own) if own else build_sleep(command[0], present)
    if present and not own and not is_wrapped(get_hook_command(target, hook)):
        raise _unchainable(target, hook, present)
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


def _unchainable(target: Object, hook: str, present: Object) -> InjectionError:
    what = "is neither an exec hook nor a valid sleep hook, so mode hook cannot keep it"
    fix = "make it an exec hook, or set command to use mode wrap"
    if get_mapping(present, "httpGet") or get_mapping(present, "tcpSocket"):
        kind = "httpGet" if present.get("httpGet") else "tcpSocket"
        what = f"is an {kind} hook" if kind == "httpGet" else f"is a {kind} hook"
        what += ", which mode hook cannot combine with its own hook"
        fix = "set command to the image's ENTRYPOINT to use mode wrap, which keeps this hook"
        if kind == "httpGet":
            request = quote(_build_url(get_mapping(present, "httpGet")))
            fix += f', or send the request with an exec hook, such as ["curl", "-fsS", {request}]'
    return InjectionError(
        f"lifecycle.{hook} of container {quote(get_name(target))}",
        what,
        fix=fix,
        reason=Reason.HOOK_CONFLICT,
    )


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
    if recorded == "hook" and is_hooked and not _find_launcher_end(_get_program(target)):
        return "it was chosen before another webhook added the command"
    return ""


def _build_url(request: Object) -> str:
    """The URL of a hook's request, as a program in the container sends it."""
    scheme = "https" if request.get("scheme") == "HTTPS" else "http"
    host, path = get_string(request, "host") or "localhost", get_string(request, "path") or "/"
    return f"{scheme}://{host}:{request.get('port')}{path if path.startswith('/') else '/' + path}"


def _is_interpreter(program: str) -> bool:
    return len(program) < _MAX_PATH and re.fullmatch(INTERPRETER, "/" + program) is not None


def _get_program(target: Object) -> list[str]:
    """The command with its arguments; empty without a command, as ENTRYPOINT is unknown then."""
    command = get_strings(target, "command")
    return command + get_strings(target, "args") if command else []


def _is_any(word: str, programs: tuple[str, ...]) -> bool:
    return word[-_MAX_NAME:].rpartition("/")[2] in programs


def _find_launcher_end(words: list[str]) -> int:
    """Where the program starts that the last launcher becomes; 0 if there is no launcher."""
    end = start = 0
    words = words[:_MAX_STARTERS]
    while start < len(words) and _is_any(words[start], INIT_PROGRAMS + LAUNCHERS):
        is_launcher = _is_any(words[start], LAUNCHERS)
        start = _skip_options(words, start + 1)
        if is_launcher and start < len(words):
            end = start
    return end


def _skip_starters(words: list[str], starters: tuple[str, ...]) -> int:
    """Where the program starts that programs before it start, with their options."""
    start = 0
    words = words[:_MAX_STARTERS]
    while start < len(words) and _is_any(words[start], starters):
        start = _skip_options(words, start + 1)
    return start


def _skip_options(words: list[str], start: int) -> int:
    """Where the options of an init program or launcher end."""
    while start < len(words) and words[start].startswith("-"):
        option = words[start]
        start += 1
        if option == "--":
            break
        if option in INIT_OPTIONS_WITH_VALUE:
            start += 1
    return start
