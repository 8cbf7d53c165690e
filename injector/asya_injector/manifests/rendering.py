"""New YAML: values as text that YAML 1.1 and 1.2 read alike."""

from __future__ import annotations

import io
import json
import re
from typing import Any

from ruamel.yaml import YAML

# Plain in every version of YAML; all else is quoted, because 1.1 (which Kubernetes reads) and 1.2
# take different words for numbers and truth values.
_PLAIN = re.compile(r"-{0,2}[A-Za-z][A-Za-z0-9_./-]*|/[A-Za-z0-9_./-]*")
_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
_ESCAPED = {
    code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), 0x2028, 0x2029, 0xFEFF, 0xFFFE, 0xFFFF)
}


def block(value: Any, *, dash: int = 0) -> str:
    """A value as YAML of its own, in block style. dash: columns before a `-` below its key."""
    writer: Any = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False
    writer.width = 1 << 20
    writer.allow_unicode = True
    writer.indent(mapping=2, sequence=2 + dash, offset=dash)
    writer.representer.add_representer(str, _represent)
    stream = io.StringIO()
    writer.dump(value, stream)
    return stream.getvalue().removesuffix("...\n")


def flow(value: Any) -> str:
    """A value on one line, in flow style."""
    if isinstance(value, dict):
        pairs = (f"{flow(key)}: {flow(item)}" for key, item in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(flow, value)) + "]"
    if isinstance(value, str):
        style = _quotes(value)
        if style != '"':
            return f"{style}{value}{style}"
    return json.dumps(value, ensure_ascii=False).translate(_ESCAPED)


def _represent(representer: Any, text: str) -> Any:
    style = _quotes(text)
    lines = text.split("\n")
    if (
        len(lines) > 1
        and not lines[0].startswith(" ")
        and all(line.isprintable() and line == line.rstrip() for line in lines)
    ):
        style = "|"
    return representer.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _quotes(text: str) -> str:
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return ""
    return "'" if '"' in text and "'" not in text and text.isprintable() else '"'
