"""How a value must be written: the forms that the table of annotations uses.

A form gives the canonical text, or raises ValueError with what is valid, in words that can follow
"must be". They are as strict as the runtime is when it reads its environment.
"""

from __future__ import annotations

import keyword
import math
import posixpath
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Form:
    """A form of texts: called with a text, it gives the canonical one or raises ValueError.

    schema: what JSON Schema can say of it; every text of the form is valid by that, but not every
    text that is valid by that has the form (bounds of numbers, lengths in bytes, keywords).
    value: JSON Schema of the same setting as a value of the chart, which may be a boolean or a
    number.
    """

    parse: Callable[[str], str]
    schema: Mapping[str, Any]
    value: Mapping[str, Any]

    def __call__(self, text: str) -> str:
        """The canonical text; raises ValueError."""
        return self.parse(text)


def form(
    value: Mapping[str, Any] | None = None, **schema: Any
) -> Callable[[Callable[[str], str]], Form]:
    """Make a parser a form; without `value` the chart's value is a text by `schema`."""
    return lambda parse: Form(parse, schema, value or {"type": "string", **schema})


@form(
    pattern="^([Tt][Rr][Uu][Ee]|[Ff][Aa][Ll][Ss][Ee]|[Yy][Ee][Ss]|[Nn][Oo]|[01])$",
    value={"type": "boolean"},
)
def boolean(text: str) -> str:
    """true, 1, yes, false, 0, no, in any case: the words that the runtime takes."""
    word = text.lower()
    if word in {"true", "1", "yes"}:
        return "true"
    if word in {"false", "0", "no"}:
        return "false"
    raise ValueError("true or false")


def integer(low: int, high: int) -> Form:
    """A whole number in ASCII digits, both bounds included."""

    @form(pattern="^[0-9]{1,10}$", value={"type": "integer", "minimum": low, "maximum": high})
    def parse(text: str) -> str:
        if re.fullmatch(r"[0-9]{1,10}", text) and low <= int(text) <= high:
            return str(int(text))
        raise ValueError(f"a whole number from {low} to {high}")

    return parse


def seconds(*, zero: bool) -> Form:
    """A decimal number of seconds, without exponent or sign."""
    lowest = 0 if zero else 0.001

    @form(
        pattern="^[0-9]{1,9}(\\.[0-9]{1,9})?$",
        value={"type": "number", "minimum": lowest, "maximum": 999999999},
    )
    def parse(text: str) -> str:
        if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text):
            number = float(text)
            if math.isfinite(number) and (number > 0 or zero):
                return text
        raise ValueError(f"a number of seconds {'from' if zero else 'above'} 0, such as 2.5")

    return parse


def choice(*words: str) -> Form:
    """One of the words, to the letter."""

    @form(enum=list(words))
    def parse(text: str) -> str:
        if text in words:
            return text
        raise ValueError(f"one of {', '.join(words)}")

    return parse


_HANDLER = r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)+"
_NAME = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_PROGRAM = r"[A-Za-z0-9._+/-]+"
# Paths become words of commands too, where the kubelet would expand $(NAME).
_PATH = r"(/[A-Za-z0-9._+@~-]+)+"


@form(pattern=f"^{_HANDLER}$", maxLength=253)
def handler(text: str) -> str:
    """A dotted path of at least two ASCII identifiers, none of them a keyword."""
    parts = text.split(".")
    if (
        len(parts) < 2
        or len(text) > 253
        or not re.fullmatch(_HANDLER, text)
        or any(keyword.iskeyword(part) for part in parts)
    ):
        raise ValueError("module.path.function, such as my_app.handler.predict")
    return text


@form(pattern=f"^{_NAME}$")
def name(text: str) -> str:
    """A name as Kubernetes allows it for containers (DNS-1123 label)."""
    if re.fullmatch(_NAME, text):
        return text
    raise ValueError("the name of a container")


@form(pattern=rf"^\s*({_NAME}\s*(,\s*{_NAME}\s*)*)?$")
def names(text: str) -> str:
    """Comma-separated container names; the empty text stands for none."""
    words = [word.strip() for word in text.split(",")] if text.strip() else []
    try:
        return ",".join(dict.fromkeys(name(word) for word in words))
    except ValueError:
        raise ValueError("names of containers, separated by commas") from None


@form(pattern=f"^{_PROGRAM}$", maxLength=255)
def python(text: str) -> str:
    """A program to be found by PATH, or an absolute path."""
    is_path = text.startswith("/") and _is_plain_path(text)
    if len(text) <= 255 and re.fullmatch(_PROGRAM, text) and ("/" not in text or is_path):
        return text
    raise ValueError("a program name or an absolute path, such as /opt/venv/bin/python")


# Places that the container needs as they are: a volume over one of them breaks the image.
_SYSTEM = frozenset({
    "/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/opt", "/proc", "/root",
    "/run", "/sbin", "/sys", "/usr", "/usr/bin", "/usr/lib", "/usr/local", "/usr/local/bin",
    "/usr/local/lib", "/usr/sbin", "/var", "/var/run",
})  # fmt: skip
# Below these not even a directory of its own can be mounted.
_SYSTEM_TREES = ("/dev/", "/proc/", "/sys/", "/var/run/secrets/", "/run/secrets/")


def _mountable(directory: str) -> bool:
    return directory not in _SYSTEM and not (directory + "/").startswith(_SYSTEM_TREES)


def _is_plain_path(text: str) -> bool:
    return bool(re.fullmatch(_PATH, text)) and posixpath.normpath(text) == text


@form(pattern=f"^{_PATH}$", maxLength=255)
def mount_path(text: str) -> str:
    """A directory for the runtime alone, or one file ending in .py in any directory."""
    directory = posixpath.dirname(text) if text.endswith(".py") else text
    if _is_plain_path(text) and len(text) <= 255:
        # One file (subPath) hides nothing, so it may lie in any directory but the kernel's.
        if text.endswith(".py") and not (directory + "/").startswith(_SYSTEM_TREES):
            return text
        if _mountable(text):
            return text
    raise ValueError("an absolute directory of its own, such as /opt/asya, or a file ending in .py")


@form(pattern=f"^{_PATH}$", maxLength=107)
def socket_path(text: str) -> str:
    """The path of a Unix socket in a directory that can be mounted."""
    if (
        _is_plain_path(text)
        and len(text.encode()) <= 107  # sun_path holds 108 bytes with its final NUL
        and _mountable(posixpath.dirname(text))
    ):
        return text
    raise ValueError("an absolute path of at most 107 bytes in a directory of its own")
