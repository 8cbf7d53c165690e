"""The values of scalars and keys as kubectl reads them: YAML 1.1, its words and its octals."""

import base64
import re
import struct
from typing import Any

_WORDS: dict[str, Any] = {
    word: value
    for value, words in {
        True: "y Y yes Yes YES true True TRUE on On ON",
        False: "n N no No NO false False FALSE off Off OFF",
        None: "~ null Null NULL",
    }.items()
    for word in words.split()
} | {"": None}
_INTEGER = re.compile(r"[-+]?(0[xX][0-9a-fA-F]+|0[bB][01]+|0[oO]?[0-7]+|[1-9][0-9]*|0)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_A_NUMBER = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_OCTAL = re.compile(r"([-+]?)0([0-7]+)")
_TAG = "tag:yaml.org,2002:"
_TYPES: dict[str, tuple[type, ...]] = {
    "null": (type(None),), "bool": (bool,), "int": (int,), "float": (int, float),
}  # fmt: skip


class DocumentError(Exception):
    """A text cannot be read. line: counts from 1; 0 if the problem is not in one line."""

    def __init__(self, problem: str, line: int = 0) -> None:
        super().__init__(problem)
        self.line = line


def resolve(event: Any) -> Any:
    """The value of a scalar."""
    text, tag = event.value, event.tag
    if tag is None:
        return _resolve_plain(text, event) if event.implicit[0] else text
    name = tag.removeprefix(_TAG)
    if tag == _TAG + "binary":
        try:
            return base64.b64decode(text).decode("utf-8", "replace")
        except ValueError:
            raise DocumentError("!!binary is not base64", event.start_mark.line + 1) from None
    if name not in _TYPES or not tag.startswith(_TAG):
        return text
    value = _resolve_plain(text, event)
    if not isinstance(value, _TYPES[name]) or (name != "bool" and isinstance(value, bool)):
        raise DocumentError(f"{text[:40]!r} is not of type !!{name}", event.start_mark.line + 1)
    return value


def _resolve_plain(text: str, event: Any) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in "+-.0123456789":
        return text
    digits = text.replace("_", "")
    if _INTEGER.fullmatch(digits):
        octal = _OCTAL.fullmatch(digits)
        try:
            number = int(f"{octal[1]}0o{octal[2]}" if octal else digits, 0)
            return number if -(2**63) <= number < 2**64 else float(number)
        except (ValueError, OverflowError):  # too many digits
            return text
    if _FLOAT.fullmatch(digits):
        value = float(digits)
        return text if value in (float("inf"), float("-inf")) else value
    if _NOT_A_NUMBER.fullmatch(digits):
        raise DocumentError(f"{text} cannot be written as JSON", event.start_mark.line + 1)
    return text


def convert_key(key: Any, event: Any) -> str:
    """A key as the string that JSON has for it."""
    if isinstance(key, str):
        return key
    if isinstance(key, bool):
        return str(key).lower()
    if isinstance(key, int):
        return str(key)
    if isinstance(key, float):
        return _format_float(key)
    raise DocumentError("a key must be a string", event.start_mark.line + 1)


def _format_float(number: float) -> str:
    """A number as Go writes a float32: the fewest digits, and exponents from 6 and below -4."""
    single = _to_single(number)
    digits = next(each for each in range(17) if _to_single(float(f"{number:.{each}e}")) == single)
    text = f"{number:.{digits}e}"
    if -4 <= int(text.partition("e")[2]) < 6:
        return f"{float(text):g}"
    return text


def _to_single(number: float) -> bytes:
    return struct.pack("d", number) if abs(number) > 3e38 else struct.pack("f", number)
