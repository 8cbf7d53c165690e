"""Write values as YAML or JSON text, in the style of a document."""

import json
import re
from collections.abc import Sequence
from typing import Any

# Plain words that every version of YAML reads as strings. All others are quoted, because YAML 1.1
# (which Kubernetes reads) and 1.2 have different words for numbers and booleans.
_PLAIN = re.compile(r"-{0,2}[A-Za-z][A-Za-z0-9_./-]*|/[A-Za-z0-9_./-]*")
_RESERVED_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
_ESCAPES = {
    code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), 0x2028, 0x2029, 0xFEFF, 0xFFFE, 0xFFFF)
}
_FIRST_INDENT = re.compile(r"[{\[]\r?\n([ \t]+)")


def render_block(value: Any, *, dash_offset: int = 0) -> str:
    """Write a value as a YAML document in block style.

    dash_offset: columns between a key and the dashes of the list below it.
    """
    return "\n".join(_render_lines(value, dash_offset)) + "\n"


def render_flow(value: Any) -> str:
    """Write a value on one line, in flow style."""
    if isinstance(value, dict):
        pairs = (f"{render_flow(key)}: {render_flow(item)}" for key, item in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(render_flow, value)) + "]"
    if isinstance(value, str):
        quotes = _choose_quotes(value)
        if quotes != '"':
            return f"{quotes}{value}{quotes}"
    return json.dumps(value, ensure_ascii=False).translate(_ESCAPES)


def render_json(value: Any, like: str) -> str:
    """Write a JSON document with the indentation and the spaces of another one."""
    return JsonStyle(like).render(value, "\n") + ("\r\n" if "\r\n" in like else "\n")


class YamlStyle:
    """How new parts of a YAML document are written, in brackets or braces."""

    def __init__(self, text: str) -> None:
        self.newline = "\r\n" if "\r\n" in text else "\n"
        self.comma = ", "

    def render(self, value: Any, _: str) -> str:
        """A value behind a gap."""
        return render_flow(value)

    def render_pair(self, key: str, value: Any, gap: str) -> str:
        """A key and its value behind a gap."""
        return f"{render_flow(key)}: {self.render(value, gap)}"

    def inner_gap(self, _: str) -> str:
        """What follows the bracket of a collection that was empty."""
        return ""


class JsonStyle(YamlStyle):
    """How new parts of a JSON document are written."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        indent = _FIRST_INDENT.search(text)
        self._indent = indent[1] if indent else None
        is_loose = indent is not None or '": ' in text
        self.comma, self._colon = (", ", ": ") if is_loose else (",", ":")

    def render(self, value: Any, gap: str) -> str:
        """A value behind a gap."""
        indent = self._indent if "\n" in gap else None
        comma = "," if indent is not None else self.comma
        separators = (comma, self._colon)
        text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators)
        return text.replace("\n", self.newline + gap.rpartition("\n")[2])

    def render_pair(self, key: str, value: Any, gap: str) -> str:
        """A key and its value behind a gap."""
        return f"{json.dumps(key, ensure_ascii=False)}{self._colon}{self.render(value, gap)}"

    def inner_gap(self, line_indent: str) -> str:
        """What follows the bracket of a collection that was empty."""
        if self._indent is None:
            return ""
        return self.newline + line_indent + self._indent


def _render_lines(value: Any, dash_offset: int) -> list[str]:
    """The lines of a value in block style."""
    if isinstance(value, dict) and value:
        return [line for pair in value.items() for line in _render_pair(*pair, dash_offset)]
    if isinstance(value, list) and value:
        return [line for item in value for line in _render_item(item, dash_offset)]
    if isinstance(value, str) and _fits_block(value):
        return [_block_header(value), *_indent(value.rstrip("\n").split("\n"), 2)]
    return [render_flow(value)]


def _render_pair(key: str, value: Any, dash_offset: int) -> list[str]:
    name = render_flow(key) + ":"
    lines = _render_lines(value, dash_offset)
    if isinstance(value, dict) and value:
        return [name, *_indent(lines, 2)]
    if isinstance(value, list) and value:
        return [name, *_indent(lines, dash_offset)]
    return [f"{name} {lines[0]}", *lines[1:]]


def _render_item(value: Any, dash_offset: int) -> list[str]:
    first, *rest = _render_lines(value, dash_offset)
    return [f"- {first}", *_indent(rest, 2)]


def _indent(lines: Sequence[str], columns: int) -> list[str]:
    return [" " * columns + line if line else "" for line in lines]


def _fits_block(text: str) -> bool:
    """Whether a text can be written as a block, line by line."""
    body = text.removesuffix("\n")
    lines = body.split("\n")
    return (
        len(lines) > 1
        and bool(lines[0])
        and bool(lines[-1])
        and not lines[0].startswith(" ")
        and all(line.isprintable() and line == line.rstrip() for line in lines)
    )


def _block_header(text: str) -> str:
    return "|" if text.endswith("\n") else "|-"


def _choose_quotes(text: str) -> str:
    if _PLAIN.fullmatch(text) and text.lower() not in _RESERVED_WORDS:
        return ""
    return "'" if '"' in text and "'" not in text and text.isprintable() else '"'
