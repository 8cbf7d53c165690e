"""The programs that a container's command starts: interpreters, init programs and launchers."""

import itertools
import re
from collections.abc import Iterator

from asya_injector.kube_objects import Object, get_mapping, get_strings
from asya_injector.startup.hooks import HOOKS, get_hook_command
from asya_injector.startup.probe import get_probe_command
from asya_injector.startup.wrapper import get_wrapped, get_wrapper, is_wrapped

# The chart's template helpers use these five too: `make sync` writes them there.
# Programs that run another one as process 1, and those of their options that take a value.
INIT_PROGRAMS = ("catatonit", "docker-init", "dumb-init", "tini", "tini-static")
INIT_OPTIONS_WITH_VALUE = (
    "-p", "-e", "-r", "--rewrite",
    "-l", "--google-project", "--log-format", "--provider",  # of secrets-init
)  # fmt: skip
# Programs that put secrets into the environment and then become another program. Webhooks put them
# before a container's command. The runtime needs these secrets, so the wrapper stands inside.
LAUNCHERS = (
    "azure-keyvault-env",
    "k8s-secret-injector",
    "secret-init",
    "secrets-init",
    "vault-env",
)
# Launchers with a subcommand, and with `--` before the program.
SUBCOMMAND_LAUNCHERS = (
    "berglas exec",
    "chamber exec",
    "doppler run",
    "infisical run",
    "op run",
    "teller run",
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
_MAX_SHELL_OPTIONS = 10
_SHELLS = ("ash", "bash", "dash", "sh")


def find_interpreter(target: Object) -> str:
    """The Python interpreter that the target's command starts; empty if it starts none."""
    words = get_program(target)
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
    return python if _is_interpreter(python) and _shows_interpreter(target, python) else ""


def find_process_1(target: Object) -> str:
    """The program of the target's command that must be process 1; empty if there is none."""
    words = get_program(target)
    if is_wrapped(words):
        words = get_wrapped(words)
    words = words[_skip_starters(words, LAUNCHERS) :]
    if words and _is_any(words[0], ("env",)):
        words = list(itertools.dropwhile(_is_of_env, words[1:_MAX_STARTERS]))
    if words and _is_any(words[0], _SHELLS):
        script = _find_script(words)
        last = re.fullmatch(r"(?s:.*)\bexec\s+([^\s;&|]+)[^;&|\n]*\s*", script[-1000:])
        simple = re.fullmatch(r"\s*([^\s;&|]+)\s*", script[:1000])
        found = last or simple
        words = [found[1].strip("\"'")] if found else []
    program = words[0] if words else ""
    if _is_any(program, ("busybox",)) and words[1:2] == ["init"]:
        return program
    is_first = len(program) < _MAX_PATH and _PROCESS_1.fullmatch(program)
    return program if is_first else ""


def _is_of_env(word: str) -> bool:
    """Whether a word is an option or a variable of the program `env`."""
    return word.startswith("-") or "=" in word


def _find_script(words: list[str]) -> str:
    """What a shell runs with its option -c; empty if it has none."""
    for index, word in enumerate(words[1:_MAX_SHELL_OPTIONS], 1):
        if re.fullmatch(r"-[a-z]*c", word):
            rest = [each for each in words[index + 1 : index + 3] if each != "--"]
            return rest[0] if rest else ""
        if word[:1] not in ("-", "+") and not words[index - 1].endswith("o"):
            return ""
    return ""


def _is_interpreter(program: str) -> bool:
    return len(program) < _MAX_PATH and re.fullmatch(INTERPRETER, "/" + program) is not None


def get_program(target: Object) -> list[str]:
    """The command with its arguments; empty without a command, as ENTRYPOINT is unknown then."""
    command = get_strings(target, "command")
    return command + get_strings(target, "args") if command else []


def _is_any(word: str, programs: tuple[str, ...]) -> bool:
    return word[-_MAX_NAME:].rpartition("/")[2] in programs


def find_launcher_end(words: list[str]) -> int:
    """Where the program starts that the last launcher becomes; 0 if there is no launcher."""
    starters = _iter_starters(words, INIT_PROGRAMS + LAUNCHERS)
    ends = [end for name, end in starters if not _is_any(name, INIT_PROGRAMS)]
    return max((end for end in ends if end < min(len(words), _MAX_STARTERS)), default=0)


def _skip_starters(words: list[str], starters: tuple[str, ...]) -> int:
    """Where the program starts that programs before it start, with their options."""
    return max((end for _, end in _iter_starters(words, starters)), default=0)


def _iter_starters(words: list[str], starters: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """The programs that start another one, launchers with a subcommand too.

    Each with where that one is.
    """
    start = 0
    words = words[:_MAX_STARTERS]
    while start < len(words):
        name = words[start]
        if _is_any(name, starters):
            start = _skip_options(words, start + 1)
        elif _is_any(" ".join(words[start : start + 2]), SUBCOMMAND_LAUNCHERS) and (
            "--" in words[start:]
        ):
            start = words.index("--", start) + 1
        else:
            return
        yield name, start


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


def _shows_interpreter(container: Object, python: str) -> bool:
    """Whether the container has an addition that runs with this interpreter."""
    commands = [get_strings(container, field) for field in ("command", "args")]
    commands += [get_hook_command(container, hook) for hook in HOOKS]
    starts = [get_wrapper(command) for command in commands]
    starts.append(get_probe_command(get_mapping(container, "readinessProbe")))
    return any(words[:1] == [python] for words in starts)
