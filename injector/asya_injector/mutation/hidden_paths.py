"""What a container is known to need in its file system, so that no added volume may hide it."""

import posixpath
import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice, pairwise

from asya_injector.annotations.formats import find_use
from asya_injector.errors import quote
from asya_injector.kube_objects import (
    Object,
    get_items,
    get_mapping,
    get_name,
    get_string,
    get_strings,
)
from asya_injector.runtime_files import ENTRYPOINT_FILE, RUNTIME_FILE
from asya_injector.startup.hooks import HOOKS, get_hook_command
from asya_injector.startup.wrapper import unwrap

# Directories that are empty in an image, so that files in them are created later. Only programs
# are looked for there.
_VOLATILE = re.compile(r"(/tmp|/run|/var/run|/var/tmp)/")
_PATHS = re.compile(r"/[^\s=:,;'\"|&<>()$`]*")
_PROGRAM = re.compile(r".*\.(py|pyc|pyz|sh|bash|pl|rb|js|jar|so)")
_PROBES = ("livenessProbe", "readinessProbe", "startupProbe")
# Created by the programs themselves.
_CREATED = (".sock", ".socket", ".pid", ".lock", ".log")
# Variables that name directories with programs and libraries, and with an application's files.
_PROGRAM_VARIABLES = frozenset({
    "CLASSPATH", "CONDA_PREFIX", "LD_LIBRARY_PATH", "LD_PRELOAD", "NODE_PATH", "PATH", "PYTHONHOME",
    "PYTHONPATH", "VIRTUAL_ENV",
})  # fmt: skip
_FILE_VARIABLES = re.compile(r".*(CACHE|DIR|FILE|HOME|PATH|PREFIX|ROOT|STORE)")
_REFERENCE = re.compile(r"\$\(([-._a-zA-Z0-9]+)\)")
# An application as uvicorn and gunicorn name it.
_APPLICATION = re.compile(r"[A-Za-z_]\w*(\.\w+)*:\w+")
# Symbolic links in most images.
_LINKS = (("/var/run", "/run"), ("/var/lock", "/run/lock"))
# No real container has more; the search of a hostile one stays short.
_MAX_WORDS = 1000
_MAX_TEXT = 65536
_MAX_PATH = 8192  # Linux knows none longer than half of it
_MAX_REFERENCES = 10
_MAX_DIRECTORIES = 100


_find_use = lru_cache(maxsize=1000)(find_use)


def find_hidden(container: Object, directory: str, own: str, handler: str = "") -> str:
    """What a volume at a directory would hide, as the object of "hide"; empty if nothing is known.

    directory: a normalized path. own: the path of an injector's file in it, which does not count.
    handler: of the container, if it has one.
    """
    use = _find_use(directory)
    if use:
        return use
    working = get_string(container, "workingDir")
    if working and is_at_or_below(normalize(working), directory):
        return "the working directory"
    log = get_string(container, "terminationMessagePath")  # the kubelet mounts a file there
    if log and is_at_or_below(normalize(log), directory):
        return f"the termination message path {quote(log)}"
    found = next(_find_paths(container, directory, own), None)
    if found is None:
        modules = _find_modules(container, handler)
        found = next((path for path in modules if is_at_or_below(path, directory)), None)
    return "" if found is None else quote(found)


def find_hidden_file(container: Object, file: str, handler: str) -> str:
    """The program or module of a container that a mount of one file would hide; empty if none.

    file: a normalized path. handler: of the container.
    """
    command = unwrap(get_strings(container, "command")) + unwrap(get_strings(container, "args"))
    paths = (path for path, _ in _find_in_command(container, command, posixpath.basename(file)))
    modules = (f"{path}.py" for path in _find_modules(container, handler))
    is_hidden = file in paths or file in modules
    return quote(file) if is_hidden else ""


def normalize(path: str) -> str:
    """A normalized path; a relative one is resolved from the root directory."""
    is_plain = path[:1] == "/" and path[-1:] != "/" and "//" not in path and "/." not in path
    if is_plain and len(path) <= _MAX_PATH:
        return path
    return posixpath.normpath("/" + path[:_MAX_PATH].lstrip("/"))


def is_at_or_below(path: str, directory: str) -> bool:
    """Whether a normalized path is a normalized directory, or inside it, perhaps by a link."""
    if path.startswith("/var/") or directory.startswith("/var/"):
        path, directory = _resolve(path), _resolve(directory)
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _resolve(path: str) -> str:
    """A normalized path without the symbolic links of most images."""
    for link, target in _LINKS:
        if path == link or path.startswith(link + "/"):
            return target + path.removeprefix(link)
    return path


def _find_paths(container: Object, directory: str, own: str) -> Iterator[str]:
    """Paths of the container's programs, and of its files, in a directory."""
    is_volatile = _VOLATILE.match(directory) is not None

    def is_needed(path: str, is_program: bool) -> bool:
        if not is_at_or_below(path, directory) or path == own:
            return False
        if posixpath.basename(path) in (RUNTIME_FILE, ENTRYPOINT_FILE) or path.endswith(_CREATED):
            return False
        return is_program or not is_volatile or bool(_PROGRAM.fullmatch(path))

    commands = [get_strings(container, "command") + get_strings(container, "args")]
    probes = (get_mapping(container, probe, "exec") for probe in _PROBES)
    commands += [get_strings(probe, "command") for probe in probes]
    commands += [get_hook_command(container, hook) for hook in HOOKS]
    last = posixpath.basename(directory)
    for words in commands:
        for path, is_program in _find_in_command(container, words, last):
            if is_needed(path, is_program):
                yield path
    variables = ((name, text) for name, text in _iter_variables(container) if last in text)
    for name, text in islice(variables, _MAX_WORDS):
        is_program = name in _PROGRAM_VARIABLES
        if is_program or (_FILE_VARIABLES.fullmatch(name[:100]) and "SOCK" not in name):
            paths = text[:_MAX_TEXT].split(":")
            for path in (normalize(each) for each in paths if each.startswith("/")):
                if is_needed(path, is_program):
                    yield path


def _find_in_command(container: Object, words: list[str], name: str) -> Iterator[tuple[str, bool]]:
    """Paths in the words of a command that contain a name, and whether each is its program."""
    working = get_string(container, "workingDir")
    named = ((i, word) for i, word in enumerate(words) if name in word or "$(" in word)
    values: dict[str, str] = {}
    for index, word in islice(named, _MAX_WORDS):
        before = words[index - 1] if index else ""
        if "unix:" in word or "sock" in before or ("sock" in word and "=" in word):
            continue
        text = word[:_MAX_TEXT]
        if "$(" in text:
            values = values or dict(_iter_variables(container))
            text = _expand(text, values)
        found = _PATHS.findall(text)
        if working and (index == 0 or _PROGRAM.fullmatch(text)):
            found.append(posixpath.join(working, text))
        for path in map(normalize, found):
            yield path, index == 0


def _find_modules(container: Object, handler: str) -> Iterator[str]:
    """Paths, without suffix, at which Python may find the modules of a command and the handler."""
    words = (get_strings(container, "command") + get_strings(container, "args"))[:_MAX_WORDS]
    names = [handler.rpartition(".")[0]]
    for before, word in pairwise(["", *words]):
        if before == "-m" or _APPLICATION.fullmatch(word[:_MAX_PATH]):
            names.append(word[:_MAX_PATH].partition(":")[0])
    directories = [get_string(container, "workingDir")]
    for name, text in _iter_variables(container):
        if name == "PYTHONPATH":
            directories += text[:_MAX_TEXT].split(":")
    for directory in filter(None, directories[:_MAX_DIRECTORIES]):
        for name in filter(None, names[:_MAX_DIRECTORIES]):
            yield normalize(posixpath.join(directory, *name.split(".")))


def _iter_variables(container: Object) -> Iterator[tuple[str, str]]:
    """Names and values of the variables that have a literal value."""
    for item in get_items(container, "env"):
        if isinstance(item.get("value"), str):
            yield get_name(item), item["value"]


def _expand(word: str, values: dict[str, str]) -> str:
    """A word of a command as the kubelet expands it."""
    return _REFERENCE.sub(
        lambda match: values.get(match[1], match[0])[:_MAX_PATH], word, count=_MAX_REFERENCES
    )
