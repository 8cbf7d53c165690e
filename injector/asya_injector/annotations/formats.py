"""The formats of annotation values, as strict as the runtime is with its environment.

A format returns the canonical text of a value, or raises ValueError with the valid values, in words
that can follow "must be".
"""

from __future__ import annotations

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
_PROGRAM = r"[A-Za-z0-9._+/-]+"
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
    words = [word.strip() for word in text.split(",")] if text.strip() else []
    try:
        return ",".join(dict.fromkeys(name(word) for word in words))
    except ValueError:
        raise ValueError("container names separated by commas") from None


@with_schema(pattern=f"^{_PROGRAM}$", maxLength=255)
def python(text: str) -> str:
    """A program name to look up in PATH, or an absolute path."""
    is_path = text.startswith("/") and _is_plain_path(text)
    if len(text) <= 255 and re.fullmatch(_PROGRAM, text) and ("/" not in text or is_path):
        return text
    raise ValueError("a program name or an absolute path, such as /opt/venv/bin/python")


# Directories of the image that a volume would hide.
_SYSTEM = frozenset({
    "/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/opt", "/proc", "/root",
    "/run", "/sbin", "/sys", "/usr", "/usr/bin", "/usr/lib", "/usr/local", "/usr/local/bin",
    "/usr/local/lib", "/usr/sbin", "/var", "/var/run",
})  # fmt: skip
# Nothing can be mounted below these.
_SYSTEM_TREES = ("/dev/", "/proc/", "/sys/", "/var/run/secrets/", "/run/secrets/")


def _is_mountable(directory: str) -> bool:
    return directory not in _SYSTEM and not (directory + "/").startswith(_SYSTEM_TREES)


def _is_plain_path(text: str) -> bool:
    return bool(re.fullmatch(_PATH, text)) and posixpath.normpath(text) == text


@with_schema(pattern=f"^{_PATH}$", maxLength=255)
def mount_path(text: str) -> str:
    """A directory that holds only the runtime files, or a file ending in .py in any directory."""
    # A single file (subPath) hides nothing else in its directory.
    is_file = text.endswith(".py") and not text.startswith(_SYSTEM_TREES)
    if len(text) <= 255 and _is_plain_path(text) and (is_file or _is_mountable(text)):
        return text
    raise ValueError("a dedicated absolute directory, such as /opt/asya, or a file ending in .py")


@with_schema(pattern=f"^{_PATH}$", maxLength=107)
def socket_path(text: str) -> str:
    """The path of a Unix socket, in a directory that can be mounted."""
    is_short = len(text) <= 107  # a socket's address holds 108 bytes with the final NUL
    if is_short and _is_plain_path(text) and _is_mountable(posixpath.dirname(text)):
        return text
    raise ValueError("an absolute path of at most 107 bytes in a dedicated directory")
