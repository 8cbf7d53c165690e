"""How a value must be written: a parser for each form that the table of annotations uses.

A parser gives the canonical text, or raises ValueError with what is valid, in words that can follow
"must be". They are as strict as the runtime is when it reads its environment.
"""

from __future__ import annotations

import keyword
import math
import posixpath
import re
from collections.abc import Callable


def boolean(text: str) -> str:
    """true, 1, yes, false, 0, no, in any case: the words that the runtime takes."""
    word = text.lower()
    if word in {"true", "1", "yes"}:
        return "true"
    if word in {"false", "0", "no"}:
        return "false"
    raise ValueError("true or false")


def integer(low: int, high: int) -> Callable[[str], str]:
    """A whole number in ASCII digits, both bounds included."""

    def parse(text: str) -> str:
        if re.fullmatch(r"[0-9]{1,10}", text) and low <= int(text) <= high:
            return str(int(text))
        raise ValueError(f"a whole number from {low} to {high}")

    return parse


def seconds(*, zero: bool) -> Callable[[str], str]:
    """A decimal number of seconds, without exponent or sign."""

    def parse(text: str) -> str:
        if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text):
            number = float(text)
            if math.isfinite(number) and (number > 0 or zero):
                return text
        raise ValueError(f"a number of seconds {'from' if zero else 'above'} 0, such as 2.5")

    return parse


def choice(*words: str) -> Callable[[str], str]:
    """One of the words, to the letter."""

    def parse(text: str) -> str:
        if text in words:
            return text
        raise ValueError(f"one of {', '.join(words)}")

    return parse


def handler(text: str) -> str:
    """A dotted path of at least two ASCII identifiers, none of them a keyword."""
    parts = text.split(".")
    if (
        len(parts) < 2
        or len(text) > 253
        or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)+", text)
        or any(keyword.iskeyword(part) for part in parts)
    ):
        raise ValueError("module.path.function, such as my_app.handler.predict")
    return text


def name(text: str) -> str:
    """A name as Kubernetes allows it for containers (DNS-1123 label)."""
    if re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", text):
        return text
    raise ValueError("the name of a container")


def names(text: str) -> str:
    """Comma-separated container names; the empty text stands for none."""
    words = [word.strip() for word in text.split(",")] if text.strip() else []
    try:
        return ",".join(dict.fromkeys(name(word) for word in words))
    except ValueError:
        raise ValueError("names of containers, separated by commas") from None


def python(text: str) -> str:
    """A program to be found by PATH, or an absolute path."""
    if re.fullmatch(r"[A-Za-z0-9._+/-]+", text) and (
        "/" not in text or (text.startswith("/") and posixpath.normpath(text) == text)
    ):
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
    # Paths become words of commands too, where the kubelet would expand $(NAME).
    return bool(re.fullmatch(r"(/[A-Za-z0-9._+@~-]+)+", text)) and posixpath.normpath(text) == text


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


def socket_path(text: str) -> str:
    """The path of a Unix socket in a directory that can be mounted."""
    if (
        _is_plain_path(text)
        and len(text.encode()) <= 107  # sun_path holds 108 bytes with its final NUL
        and _mountable(posixpath.dirname(text))
    ):
        return text
    raise ValueError("an absolute path of at most 107 bytes in a directory of its own")
