"""What a container is known to need in its file system, so that no added volume may hide it."""

import posixpath
import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice

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
    "CONDA_PREFIX", "LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV",
})  # fmt: skip
_FILE_VARIABLES = re.compile(r"(.*_)?(PATH|DIR|HOME)")
# No real container has more; the search of a hostile one stays short.
_MAX_WORDS = 1000
_MAX_TEXT = 65536
_MAX_PATH = 8192  # Linux knows none longer than half of it


_find_use = lru_cache(maxsize=1000)(find_use)


def find_hidden(container: Object, directory: str, own: str) -> str:
    """What a volume at a directory would hide, as the object of "hide"; empty if nothing is known.

    directory: a normalized path. own: the path of an injector's file in it, which does not count.
    """
    use = _find_use(directory)
    if use:
        return use
    working = get_string(container, "workingDir")
    if working and is_at_or_below(normalize(working), directory):
        return "the working directory"
    found = next(_find_paths(container, directory, own), None)
    return "" if found is None else quote(found)


def normalize(path: str) -> str:
    """A normalized path; a relative one is resolved from the root directory."""
    is_plain = path[:1] == "/" and path[-1:] != "/" and "//" not in path and "/." not in path
    if is_plain and len(path) <= _MAX_PATH:
        return path
    return posixpath.normpath("/" + path[:_MAX_PATH].lstrip("/"))


def is_at_or_below(path: str, directory: str) -> bool:
    """Whether a normalized path is a normalized directory, or inside it."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _find_paths(container: Object, directory: str, own: str) -> Iterator[str]:
    """Paths of the container's programs, and of its files, in a directory."""
    is_volatile = _VOLATILE.match(directory) is not None
    working = get_string(container, "workingDir")
    last = posixpath.basename(directory)

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
    for words in commands:
        named = ((i, word) for i, word in enumerate(words) if last in word)
        for index, word in islice(named, _MAX_WORDS):
            before = words[index - 1] if index else ""
            if "unix:" in word or "sock" in before or ("sock" in word and "=" in word):
                continue
            found = _PATHS.findall(word[:_MAX_TEXT])
            if working and (index == 0 or _PROGRAM.fullmatch(word[:_MAX_TEXT])):
                found.append(posixpath.join(working, word))
            for path in map(normalize, found):
                if is_needed(path, index == 0):
                    yield path
    variables = (
        item
        for item in get_items(container, "env")
        if isinstance(item.get("value"), str) and last in item["value"]
    )
    for item in islice(variables, _MAX_WORDS):
        name = get_name(item)
        is_program = name in _PROGRAM_VARIABLES
        if is_program or (_FILE_VARIABLES.fullmatch(name[:100]) and "SOCK" not in name):
            paths = item["value"][:_MAX_TEXT].split(":")
            for path in (normalize(each) for each in paths if each.startswith("/")):
                if is_needed(path, is_program):
                    yield path
