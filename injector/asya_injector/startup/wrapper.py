"""The wrapper in a command: found, replaced and removed."""

import posixpath

from asya_injector.annotations.settings import Settings
from asya_injector.kube_objects import Object, get_strings
from asya_injector.runtime_files import ENTRYPOINT_FILE

# Where the wrapper may begin at most.
_MAX_WRAPPER = 1000


def build_wrapper(settings: Settings, python: str, *options: str) -> list[str]:
    """The command that starts the wrapper, which finds the runtime only in its own directory."""
    is_elsewhere = settings.is_one_file and "--stop" not in options
    location = ["--runtime", settings.runtime_file] if is_elsewhere else []
    return [python, "-I", "-S", f"{settings.directory}/{ENTRYPOINT_FILE}", *options, *location]


def has_wrapper(container: Object) -> bool:
    """Whether the wrapper starts in the command or in the args of a container."""
    return any(is_wrapped(get_strings(container, field)) for field in ("command", "args"))


def is_wrapped(command: list[str]) -> bool:
    """Whether a command contains the wrapper, perhaps inside the wrapper of another webhook."""
    return _find_wrapper(command) is not None


def get_wrapper(command: list[str]) -> list[str]:
    """The words of the wrapper in a command; empty if the command does not contain it."""
    found = _find_wrapper(command)
    return command[found] if found else []


def get_wrapped(command: list[str]) -> list[str]:
    """What the wrapper in a command starts; empty if the command does not contain the wrapper."""
    found = _find_wrapper(command)
    return command[found.stop :] if found else []


def unwrap(command: list[str]) -> list[str]:
    """The command without the wrapper."""
    return replace_wrapper(command, [])


def replace_wrapper(command: list[str], wrapper: list[str]) -> list[str]:
    """The command with another wrapper in the place of the one it contains, if any."""
    found = _find_wrapper(command)
    return [*command[: found.start], *wrapper, *command[found.stop :]] if found else command


def _find_wrapper(command: list[str]) -> slice | None:
    """Where the wrapper stands with its options and `--`."""
    if "-I" not in command:
        return None
    for start in range(min(len(command) - 3, _MAX_WRAPPER)):
        if (
            command[start + 1] == "-I"
            and command[start + 2] == "-S"
            and posixpath.basename(command[start + 3][-100:]) == ENTRYPOINT_FILE
        ):
            try:
                return slice(start, command.index("--", start) + 1)
            except ValueError:
                return slice(start, len(command))
    return None
