"""Lifecycle hooks: the runtime's, with the user's own hook after it."""

import re

from asya_injector.annotations.table import PREFIX
from asya_injector.errors import InjectionError, Reason, quote
from asya_injector.kube_objects import Object, get_mapping, get_name, get_string, get_strings
from asya_injector.startup.wrapper import has_wrapper, is_wrapped, unwrap

HOOKS = {"postStart": "--detach", "preStop": "--stop"}
# The words after the interpreter in the command of `_build_sleep`.
_SLEEP = re.compile(r"-I\n-S\n-c\nimport time; time\.sleep\(([0-9]{1,9})\)  # lifecycle sleep")


def get_hook_command(container: Object, hook: str) -> list[str]:
    """The command of a lifecycle hook; empty where there is none."""
    return get_strings(get_mapping(container, "lifecycle", hook, "exec"), "command")


def reject_unhookable(pod: Object, target: Object) -> None:
    """Raise InjectionError for a pod or container in which hooks cannot start the runtime."""
    how = "use" if get_strings(target, "command") else "set command to use"
    for field in ("shareProcessNamespace", "hostPID"):
        if get_mapping(pod, "spec").get(field):
            raise InjectionError(
                PREFIX + "mode",
                f"mode hook does not work with {field}, because process 1 is another program",
                fix=f"{how} mode wrap, or remove {field}",
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


def add_hook(target: Object, hook: str, command: list[str]) -> None:
    """Run a command in a lifecycle hook, and the user's own hook after it."""
    own = get_hook_command(target, hook)
    lifecycle = get_mapping(target, "lifecycle")
    present = get_mapping(lifecycle, hook)
    own = unwrap(own) if own else _build_sleep(command[0], present)
    if present and not own and not is_wrapped(get_hook_command(target, hook)):
        raise _unchainable(target, hook, present)
    chained = [*command, "--", *own] if own else command
    target["lifecycle"] = {**lifecycle, hook: _replace_command(present, chained)}


def restore_hook(hook: Object) -> Object | None:
    """The lifecycle hook that was there before the injection; None if there was none."""
    own = unwrap(get_strings(get_mapping(hook, "exec"), "command"))
    if not own:
        return None
    seconds = _SLEEP.fullmatch("\n".join(own[1:]))
    if not seconds:
        return _replace_command(hook, own)
    kept = {key: value for key, value in hook.items() if key != "exec"}
    return {**kept, "sleep": {"seconds": int(seconds[1])}}


def _replace_command(hook: Object, command: list[str]) -> Object:
    """A copy of a lifecycle hook with another command, in place of a `sleep` if it has one."""
    is_sleep = hook.get("exec") is None
    kept = {key: value for key, value in hook.items() if key != "sleep" or not is_sleep}
    return {**kept, "exec": {**get_mapping(hook, "exec"), "command": command}}


def _build_sleep(python: str, hook: Object) -> list[str]:
    """The command of a lifecycle hook that only sleeps; empty if it does something else."""
    seconds = get_mapping(hook, "sleep").get("seconds")
    if hook.get("exec") is not None or type(seconds) is not int or not 0 <= seconds < 10**9:
        return []
    return [python, "-I", "-S", "-c", f"import time; time.sleep({seconds})  # lifecycle sleep"]


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


def _build_url(request: Object) -> str:
    """The URL of a hook's request, as a program in the container sends it."""
    scheme = "https" if request.get("scheme") == "HTTPS" else "http"
    host, path = get_string(request, "host") or "localhost", get_string(request, "path") or "/"
    return f"{scheme}://{host}:{request.get('port')}{path if path.startswith('/') else '/' + path}"
