"""The formats of annotation values, as strict as the runtime is with its environment.

A format returns the canonical text of a value, or raises ValueError with the valid values, in words
that can follow "must be".
"""

import keyword
import posixpath
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Format:
    """A parser and a JSON Schema of its texts.

    The schema accepts all that the parser accepts, and more: it cannot express bounds of numbers,
    keywords and the like.
    value: JSON Schema of the same setting as a chart value, which may be a boolean or a number.
    """

    parse: Callable[[str], str]
    schema: Mapping[str, Any]
    value: Mapping[str, Any]

    def __call__(self, text: str) -> str:
        """Parse a text."""
        return self.parse(text)


# The API server accepts no more in all annotations of an object together.
MAX_ANNOTATIONS = 262144


def with_schema(
    value: Mapping[str, Any] | None = None, **schema: Any
) -> Callable[[Callable[[str], str]], Format]:
    """Make a parser a format; without `value` the chart's value is a string with this schema."""
    return lambda parse: Format(parse, schema, value or {"type": "string", **schema})


@with_schema(
    pattern="^([Tt][Rr][Uu][Ee]|[Ff][Aa][Ll][Ss][Ee]|[Yy][Ee][Ss]|[Nn][Oo]|[01])$",
    value={"type": "boolean"},
)
def boolean(text: str) -> str:
    """A boolean as the runtime accepts it: true, 1, yes, false, 0 or no, in any case."""
    word = text.lower()
    if word in {"true", "1", "yes"}:
        return "true"
    if word in {"false", "0", "no"}:
        return "false"
    raise ValueError("true or false")


def integer(low: int, high: int) -> Format:
    """An integer in ASCII digits, both bounds included."""

    @with_schema(
        pattern="^[0-9]{1,10}$", value={"type": "integer", "minimum": low, "maximum": high}
    )
    def parse(text: str) -> str:
        if re.fullmatch(r"[0-9]{1,10}", text) and low <= int(text) <= high:
            return str(int(text))
        raise ValueError(f"a whole number from {low} to {high}")

    return parse


def seconds(*, zero: bool) -> Format:
    """A decimal number without exponent or sign. zero: whether 0 is valid."""
    lowest = 0 if zero else 0.001

    @with_schema(
        pattern="^[0-9]{1,9}(\\.[0-9]{1,9})?$",
        value={"type": "number", "minimum": lowest, "maximum": 999999999},
    )
    def parse(text: str) -> str:
        is_number = re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text)
        if is_number and (zero or float(text) > 0):
            return text
        raise ValueError(f"a number of seconds {'from' if zero else 'above'} 0, such as 2.5")

    return parse


_LEAST_MEMORY = 16777216  # bytes; the runtime needs as much before each call


@with_schema(
    pattern="^([0-9]{1,15}|[0-9]{1,3}%)$",
    value={"type": ["integer", "string"], "minimum": 0, "pattern": "^([0-9]{1,15}|[0-9]{1,3}%)$"},
)
def memory_limit(text: str) -> str:
    """0, a number of bytes, or a whole percentage."""
    match = re.fullmatch(r"([0-9]{1,15})(%?)", text)
    number = int(match[1]) if match else -1
    if match and match[2] and 1 <= number <= 100:
        return f"{number}%"
    if match and not match[2] and (number == 0 or number >= _LEAST_MEMORY):
        return str(number)
    raise ValueError(f"0, at least {_LEAST_MEMORY} bytes, or 1% to 100%")


def choice(*words: str) -> Format:
    """Exactly one of the words."""

    @with_schema(enum=list(words))
    def parse(text: str) -> str:
        if text in words:
            return text
        raise ValueError(f"one of {', '.join(words)}")

    return parse


_HANDLER = r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)+"
_NAME = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
# A name that begins with "-" would be an option, not a program.
_PROGRAM = r"([A-Za-z0-9_][A-Za-z0-9._+-]*|(/[A-Za-z0-9._+-]+)+)"
# Without $(NAME), which the kubelet would expand where a path stands in a command.
_PATH = r"(/[A-Za-z0-9._+@~-]+)+"


@with_schema(pattern=f"^{_HANDLER}$", maxLength=253)
def handler(text: str) -> str:
    """A dotted path of at least two ASCII identifiers that are not keywords."""
    is_path = len(text) <= 253 and re.fullmatch(_HANDLER, text)
    if not is_path or any(map(keyword.iskeyword, text.split("."))):
        raise ValueError("module.path.function, such as my_app.handler.predict")
    return text


@with_schema(pattern=f"^{_NAME}$")
def name(text: str) -> str:
    """A container name (DNS-1123 label)."""
    if re.fullmatch(_NAME, text):
        return text
    raise ValueError("a container name")


@with_schema(pattern=rf"^\s*({_NAME}\s*(,\s*{_NAME}\s*)*)?$")
def names(text: str) -> str:
    """Comma-separated container names, or an empty text."""
    try:
        if len(text) > MAX_ANNOTATIONS:
            raise ValueError
        words = [word.strip() for word in text.split(",")] if text.strip() else []
        return ",".join(dict.fromkeys(name(word) for word in words))
    except ValueError:
        raise ValueError("container names separated by commas") from None


@with_schema(pattern=f"^{_PROGRAM}$", maxLength=255)
def python(text: str) -> str:
    """A program name to look up in PATH, or an absolute path."""
    is_valid = len(text) <= 255 and re.fullmatch(_PROGRAM, text)
    if is_valid and (not text.startswith("/") or _is_plain_path(text)):
        return text
    raise ValueError("a program name or an absolute path, such as /opt/venv/bin/python")


# The system's own directories, with all below them: programs, libraries, settings, devices, and
# what the kubelet mounts itself.
_SYSTEM = re.compile(
    r"/(bin|boot|dev|etc|gnu|lib[a-z]?[0-9]*|nix|proc|sbin|snap|sys|usr)(/|$)"
    r"|(/var)?/run/(secrets|systemd|udev|dbus|docker|containerd|crio|nvidia[^/]*|lock|user)(/|$)"
    r"|/var/lock(/|$)|/var/lib/(apk|apt|containerd|docker|dpkg|kubelet|pacman|private|rpm|systemd)(/|$)"
)
# Directories in which users and services have theirs.
_SHARED = re.compile(r"/home/[^/]+|/var/[^/]+|/var/(cache|mail|spool|www)/[^/]+")
# Directories of interpreters, package managers and image vendors, with all below them.
_INSTALLED = re.compile(
    r"(\..*|(ana|mini)?conda\d*|(mini|mamba)forge\d*|(micro)?mamba|envs?|virtualenvs?|v?env\d*"
    r"|(.*[-_.])?venv([-_.\d].*)?|pyenv|pixi|(home|linux)brew|s?bin|libexec|lib\d*|include"
    r"|(site|dist)-packages|node_modules|(python|pypy|cpython)[\d.]*t?)",
    re.IGNORECASE,
)
_VENDORS = re.compile(
    r"/opt/(amazon|aws|app-root|bitnami|cuda|dotnet|google|hpcx|intel|java|j(dk|re|ulia)[^/]*|local"
    r"|microsoft|ml|node[^/]*|nvidia|oracle|poetry|program|pytorch|rh|rocm[^/]*|spark|tensorflow"
    r"|tensorrt|tljh|tritonserver|uv|R)(/|$)"
    # Of buildpacks, of Databricks, and of images with these programs alone.
    r"|/(busybox|cnb|databricks|kaniko|layers)(/|$)"
)


def find_use(directory: str) -> str:
    """What a directory holds that a volume would hide; empty if it can be a dedicated one.

    directory: a normalized absolute path. The result can follow "is".
    """
    parts = directory.split("/")[1:]
    below = directory.removeprefix("/var/lib").split("/")[1:]
    if is_system(directory):
        return "a directory of the system"
    if len(parts) < 2:
        return "a top-level directory"
    if _SHARED.fullmatch(directory):
        return "a directory that others use too"
    if _VENDORS.match(directory) or any(map(_INSTALLED.fullmatch, below)):
        return "a directory with installed programs"
    return ""


def is_system(directory: str) -> bool:
    """Whether a directory belongs to the system, or is the root directory."""
    return directory == "/" or _SYSTEM.match(directory) is not None


def _is_plain_path(text: str) -> bool:
    return bool(re.fullmatch(_PATH, text)) and posixpath.normpath(text) == text


def _is_free_module(file: str) -> bool:
    """Whether a file in an import path can hide no module of the application or of Python."""
    stem = file.removesuffix(".py")
    return not stem.isidentifier() or (stem.startswith("asya_") and stem != "asya_entrypoint")


@with_schema(pattern=f"^{_PATH}$", maxLength=255)
def mount_path(text: str) -> str:
    """A directory that holds only the runtime files, or a file ending in .py that hides no module.

    The file's directory comes first in the import path of the handler.
    """
    if len(text) <= 255 and _is_plain_path(text):
        directory, file = posixpath.split(text)
        if not file.endswith(".py"):
            if not find_use(text):
                return text
        elif _is_free_module(file) and (directory == "/" or not is_system(directory)):
            return text
    raise ValueError(
        "a dedicated directory outside those of the system, such as /opt/asya, or a file whose "
        "name begins with asya_ and ends in .py"
    )


SOCKET_PATH_RULE = (
    "an absolute path of at most 107 bytes in a dedicated directory outside those of the system, "
    "such as /tmp/sockets/app.sock"
)


@with_schema(pattern=f"^{_PATH}$", maxLength=107)
def socket_path(text: str) -> str:
    """The path of a Unix socket, outside the system's directories.

    Whether its directory hides something depends on the pod: it may mount a volume there.
    """
    is_short = len(text) <= 107  # a socket's address holds 108 bytes with the final NUL
    if is_short and _is_plain_path(text) and not is_system(posixpath.dirname(text)):
        return text
    raise ValueError(SOCKET_PATH_RULE)
